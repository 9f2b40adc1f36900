"""What a replay would write, beside what stands at the target now."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from docferry.cli.beside import beside_lines, difference_documents
from docferry.cli.deadletters_show import WOULD
from docferry.cli.versions import version_text
from docferry.document.model import Delete, Value
from docferry.operate.difference import whole_document
from docferry.operate.replayed import Look, ReplayResult
from docferry.printable import one_line

__all__ = ["preview_document", "preview_lines"]


def preview_lines(result: ReplayResult) -> list[str]:
    """What would become of a dead letter, indented as its details are."""
    lines = [f"  replay:  {WOULD[result.outcome]}"]
    if result.problem:
        lines.append(f"  because: {one_line(result.problem)}")
    for look in result.looks:
        lines += [f"  {line}" for line in _look_lines(look)]
    return lines


def preview_document(result: ReplayResult) -> dict[str, Any]:
    """The same for --json."""
    return {
        "outcome": result.outcome,
        "problem": result.problem,
        "remedy": result.remedy,
        "keys": [
            {
                "key": look.key,
                "write": _kind(look),
                "document": _written(look),
                "item": None if look.item is None else look.item.document,
                "item_version": None if look.item is None else str(look.item.version),
                "differences": difference_documents(_written(look), _stored(look)),
            }
            for look in result.looks
        ],
    }


def _look_lines(look: Look) -> list[str]:
    item = look.item
    if look.stands:
        now = "a TRUNCATE that is newer" if item is None else f"stands: {_standing(look)}"
        return [f"item:    {now}"]
    lines = [f"item:    {_standing(look)}"]
    if look.error is not None or look.write is None:
        return lines
    if isinstance(look.write, Delete):
        return [*lines, "write:   a tombstone, because the row is gone"]
    return [*lines, *beside_lines(_written(look), _stored(look))]


def _standing(look: Look) -> str:
    item = look.item
    if item is None:
        return "none now"
    kind = "a tombstone" if item.document is None else "there"
    return f"{kind}, {version_text(item.version)}"


def _kind(look: Look) -> str | None:
    if look.stands or look.error is not None or look.write is None:
        return None
    return "delete" if isinstance(look.write, Delete) else "put"


def _written(look: Look) -> Mapping[str, Value] | None:
    return None if look.put is None else whole_document(look.put)


def _stored(look: Look) -> Mapping[str, Value] | None:
    return None if look.item is None else look.item.document
