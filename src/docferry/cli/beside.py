"""A row's document beside its item, as text and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from docferry.cli.plain import shown_value
from docferry.document.model import Value
from docferry.operate.difference import ABSENT, Pair, pairs
from docferry.printable import one_line

__all__ = ["MOST", "beside_lines", "difference_documents"]

MOST: Final = 20
"""Paths that are shown unless all are asked for."""


def beside_lines(
    row: Mapping[str, Value] | None, item: Mapping[str, Value] | None, *, everything: bool = False
) -> list[str]:
    """Path by path: what differs first, then what is the same, so far as there is room.

    `!` differs: the row's value | the item's; `+` only the row has it; `-` only the item; `=` both have it.
    """
    found = list(pairs(row or {}, item or {}))
    if not found:
        return []
    differing = [pair for pair in found if not pair.same]
    same = [pair for pair in found if pair.same]
    room = len(found) if everything else MOST
    longest = None if everything else 120
    chosen = [*differing[:room], *same[: max(room - len(differing), 0)]]
    head = "row's document | item"
    if row is None or item is None:
        head = "item" if row is None else "row's document"
    else:
        head += f": {len(differing):,} of {len(found):,} paths differ" if differing else ": the same at every path"
    lines = [head, *(f"  {_line(pair, longest)}" for pair in chosen)]
    if len(chosen) < len(found):
        lines.append(f"  … {len(found) - len(chosen):,} more, {len(differing[room:]):,} of them different")
    return lines


def difference_documents(
    row: Mapping[str, Value] | None, item: Mapping[str, Value] | None
) -> Sequence[Mapping[str, Any]]:
    """Every difference as JSON has it; a side that has nothing there is left out."""
    return [_document(pair) for pair in pairs(row or {}, item or {}) if not pair.same]


def _line(pair: Pair, longest: int | None) -> str:
    path = one_line(pair.path)
    if pair.same:
        return f"= {path}: {shown_value(pair.row, longest)}"
    if pair.item is ABSENT:
        return f"+ {path}: {shown_value(pair.row, longest)}"
    if pair.row is ABSENT:
        return f"- {path}: {shown_value(pair.item, longest)}"
    return f"! {path}: {shown_value(pair.row, longest)} | {shown_value(pair.item, longest)}"


def _document(pair: Pair) -> dict[str, Any]:
    sides = {"row": pair.row, "item": pair.item}
    return {"path": pair.path, **{name: side for name, side in sides.items() if side is not ABSENT}}
