"""Rows and items side by side."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any, Final

import rich.box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from docferry.cli.demo_check import Both

__all__ = ["Screen"]

_PIPE_WIDTH: Final = 150
_NARROWEST: Final = 100
_STYLES: Final = {"new": "green", "changed": "yellow", "deleted": "red"}


class Screen:
    """Where the demo speaks: standard output, or, when that is kept for one JSON document, standard error without
    the tables."""

    def __init__(self, *, as_json: bool) -> None:
        self._tables = not as_json
        self._console = Console(stderr=as_json, highlight=False)
        if not self._console.is_terminal:
            self._console.width = _PIPE_WIDTH

    def say(self, text: str, style: str = "") -> None:
        """A line."""
        self._console.print(Text(text, style), soft_wrap=True)

    def show(self, now: Both, before: Both | None) -> None:
        """Rows and items side by side, with what happened to each since `before`."""
        if not self._tables:
            return
        table = Table(box=rich.box.SIMPLE_HEAD, pad_edge=False, width=max(self._console.width, _NARROWEST))
        table.add_column("id", justify="right")
        table.add_column("order_status", no_wrap=True)
        table.add_column("row: order_data", no_wrap=True, overflow="ellipsis", ratio=4)
        table.add_column("item in DynamoDB", no_wrap=True, overflow="ellipsis", ratio=6)
        table.add_column("same?", justify="center")
        table.add_column("", no_wrap=True)
        known = set(now.rows) | set(now.items) | (set(before.rows) if before is not None else set())
        for one in sorted(known):
            happened = "" if before is None else _happened(one, now, before)
            row = now.rows.get(one)
            table.add_row(
                str(one),
                Text(row.order_status if row is not None else "-"),
                Text(" ".join(row.order_data.split()) if row is not None else "-"),
                Text(_item(one, now)),
                Text("✓", "green") if now.same(one) else Text("✗", "bold red"),
                happened,
                style=_STYLES.get(happened, ""),
            )
        self._console.print(table)


def _happened(one: int, now: Both, before: Both) -> str:
    if one not in now.rows:
        return "deleted"
    if one not in before.rows:
        return "new"
    return "changed" if now.rows[one] != before.rows[one] else ""


def _item(one: int, now: Both) -> str:
    if one in now.items:
        item = now.items[one]
        # In the order of the table's columns; DynamoDB itself has none.
        columns = ("id", "order_status", "order_data", "created_at", "updated_at")
        ordered = {name: item[name] for name in columns if name in item}
        return json.dumps({**ordered, **item}, ensure_ascii=False, separators=(",", ":"), default=_number)
    if one in now.tombstones:
        return f"(tombstone, version {now.tombstones[one]})"
    return "-"


def _number(value: Any) -> Any:
    return int(value) if isinstance(value, Decimal) and value == int(value) else str(value)
