"""Two documents beside each other, path by path. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum
from itertools import zip_longest
from typing import Final, Literal, TypeAlias

from docferry.document.model import Put, Value

__all__ = ["ABSENT", "Absent", "Pair", "differences", "pairs", "whole_document"]

_PLAIN_NAME: Final = re.compile(r"[\w@#:$/-]+")


class Absent(Enum):
    """The type of ABSENT: nothing stands at this path on this side; not even null."""

    ABSENT = "absent"

    def __repr__(self) -> str:
        return "ABSENT"


ABSENT: Final = Absent.ABSENT
Side: TypeAlias = "Value | Literal[Absent.ABSENT]"


@dataclass(frozen=True, slots=True)
class Pair:
    """What stands at one path: `row` in the row's document, `item` in the item's. `path`: such as `body.line[2].@sku`,
    list entries counted from 0, names with other characters as JSON text: `body["a.b"]`."""

    path: str
    row: Side
    item: Side

    @property
    def same(self) -> bool:
        """Whether both are the same. Numbers count by value: 1 and 1.0 are one."""
        return _same(self.row, self.item)


def pairs(row: Mapping[str, Value], item: Mapping[str, Value]) -> Iterator[Pair]:
    """Every path at which a value stands that is no container with something in it, or where the kinds differ. What is
    on one side only comes as a whole. The row's order, then what only the item has."""
    waiting: list[Pair] = list(reversed(_entries("", row, item)))
    while waiting:
        pair = waiting.pop()
        match pair.row, pair.item:
            case dict() as ours, dict() as theirs if ours or theirs:
                waiting += reversed(_entries(pair.path, ours, theirs))
            case list() as ours, list() as theirs if ours or theirs:
                found = enumerate(zip_longest(ours, theirs, fillvalue=ABSENT))
                waiting += reversed([Pair(f"{pair.path}[{n}]", one, other) for n, (one, other) in found])
            case _:
                yield pair


def differences(row: Mapping[str, Value], item: Mapping[str, Value]) -> Iterator[Pair]:
    """Those of the pairs whose sides differ."""
    return (pair for pair in pairs(row, item) if not pair.same)


def whole_document(put: Put) -> dict[str, Value]:
    """The document as the item will carry it: with the key's attributes, which win over columns of their name."""
    return {**put.document, **{part.name: value for part, value in zip(put.collection.key, put.key, strict=True)}}


def _entries(path: str, row: Mapping[str, Value], item: Mapping[str, Value]) -> list[Pair]:
    names = [*row, *(name for name in item if name not in row)]
    return [Pair(_below(path, name), row.get(name, ABSENT), item.get(name, ABSENT)) for name in names]


def _below(path: str, name: str) -> str:
    if not _PLAIN_NAME.fullmatch(name):
        return f"{path}[{json.dumps(name, ensure_ascii=False)}]"
    return f"{path}.{name}" if path else name


def _same(one: Side, other: Side) -> bool:
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, int | Decimal) and isinstance(other, int | Decimal):
        return one == other
    # Containers come here empty, or beside something of another kind.
    return type(one) is type(other) and one == other
