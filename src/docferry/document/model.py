"""Documents and the writes that carry them: pure data, no target's dialect."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum
from typing import TypeAlias

__all__ = [
    "Collection",
    "Delete",
    "DocumentFormat",
    "DocumentSpec",
    "Key",
    "KeyAttribute",
    "KeyKind",
    "KeyValue",
    "MirrorSpec",
    "Put",
    "Value",
    "Write",
]

Value: TypeAlias = "bool | int | Decimal | str | bytes | list[Value] | dict[str, Value] | None"
"""What a document is made of. int and Decimal are finite, of at most 38 significant digits and within
1E-130..9.99E+125 (anything else is a str, see docs/types.md); float never occurs."""

KeyValue: TypeAlias = int | Decimal | str | bytes
Key: TypeAlias = tuple[KeyValue, ...]
"""One value for each key attribute of the collection. Equal keys are the same item."""


class KeyKind(StrEnum):
    """The type of a key attribute."""

    TEXT = "text"
    NUMBER = "number"
    BINARY = "binary"


@dataclass(frozen=True, slots=True)
class KeyAttribute:
    """One attribute of an item's key."""

    name: str
    kind: KeyKind


@dataclass(frozen=True, slots=True)
class Collection:
    """Where a mirror's items go. `retired`: attribute names that older items may carry and current ones must not
    (columns that were dropped or renamed)."""

    name: str
    key: tuple[KeyAttribute, ...]
    retired: frozenset[str] = frozenset()


class DocumentFormat(StrEnum):
    """How a document column is read."""

    XML = "xml"
    JSON = "json"
    YAML = "yaml"


@dataclass(frozen=True, slots=True)
class DocumentSpec:
    """How one document column is read. `lists`: element names or paths that are lists even when they occur once.
    `numbers`: element or attribute names or paths whose text is a number. (See shape.py.)"""

    format: DocumentFormat
    lists: frozenset[str] = frozenset()
    numbers: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class MirrorSpec:
    """The pure part of a mirror: which columns go where, and how.

    `table`: schema-qualified. `key`: names of the source key columns. `collection`: with its key attributes.
    `templates`: for each key attribute a template such as `ORDER#{id}`, or None when it is the column's own value.
    `include`: carried columns, None for all. `documents`: for columns that are read as documents beyond what their type
    says. `columns`: those of the table when this was made, empty if nobody knows.
    """

    table: str
    key: tuple[str, ...]
    collection: Collection
    templates: tuple[str | None, ...] = ()
    include: frozenset[str] | None = None
    exclude: frozenset[str] = frozenset()
    documents: Mapping[str, DocumentSpec] = field(default_factory=dict)
    columns: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Put:
    """Store `document` under `key` unless something newer is there. `document` holds every carried column, key columns
    included. `new`: a hint that the item probably does not exist yet."""

    collection: Collection
    key: Key
    version: int
    document: dict[str, Value]
    new: bool = False


@dataclass(frozen=True, slots=True)
class Delete:
    """Leave a tombstone under `key` unless something newer is there (R4)."""

    collection: Collection
    key: Key
    version: int


Write: TypeAlias = Put | Delete
