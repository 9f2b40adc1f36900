"""The event that a trigger sends, wire format 1: one JSON document with the changes of one transaction.

    {"docferry": 1, "epoch": 3, "transaction": "7421", "at": "2026-11-25T10:00:00.123456+00:00",
     "relations": {"public.orders": {"oid": 16412, "columns": ["id", "doc"], "types": [20, 142], "key": ["id"]}},
     "changes": [{"TG_OP": "UPDATE", "table": "public.orders", "version": "79228...", "NEW": "(1,<a/>)"}]}

NEW and OLD are row literals, as PostgreSQL's record output writes them: the exact text of every column (R9). UPDATE
carries OLD only when the key changed. A row that is too large for an event, or in doubt, travels as `key` (and
`old_key`), texts of the key columns, and is read again (R5). `subtransaction`: the id of the one that recorded the
change, when that was not the transaction itself; it may have been rolled back since. A column without a name is
generated and not carried. Integers beyond 2**53 are text.
Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from docferry.change.literals import parse_composite
from docferry.change.model import UNCHANGED, Change, Column, Op, PgType, RawValue, Relation, Row

__all__ = ["WIRE_FORMAT", "Event", "EventDecoder", "WireError", "decode_event", "is_event"]

WIRE_FORMAT: Final = 1
_OVERHEAD: Final = 400
_MOST_RELATIONS: Final = 256


class WireError(ValueError):
    """What was sent is no event of this format."""


@dataclass(frozen=True, slots=True)
class Event:
    """One decoded event: changes of one transaction. `transaction`: its 64-bit id; `at`: when it was sent.
    `subtransactions`: by its version, the one that recorded a change, if that was one."""

    epoch: int
    transaction: int
    at: datetime | None
    changes: list[Change] = field(default_factory=list)
    subtransactions: Mapping[int, int] = field(default_factory=dict)

    @property
    def tables(self) -> frozenset[str]:
        """The tables that the changes are of."""
        return frozenset(change.relation.table for change in self.changes)


def is_event(document: object) -> bool:
    """Whether a JSON document says that it is an event, of whatever format."""
    return isinstance(document, Mapping) and "docferry" in document and "changes" in document


def decode_event(event: Mapping[str, Any], types: Callable[[int], PgType]) -> Event:
    """Decode one event. Raises WireError."""
    return EventDecoder(types).decode(event)


class EventDecoder:
    """Decodes events; equal descriptions of a table give the same Relation. `types`: finds a type by oid. Serves one
    thread."""

    def __init__(self, types: Callable[[int], PgType]) -> None:
        self._types = types
        self._relations: dict[tuple[Any, ...], _Layout] = {}

    def decode(self, event: Mapping[str, Any]) -> Event:
        """Raises WireError when it is no event of this format; nothing of it has been used then."""
        if not is_event(event):
            raise WireError("this is no event of docferry")
        if event["docferry"] != WIRE_FORMAT:
            raise WireError(f"event of format {event['docferry']!r}; this version reads format {WIRE_FORMAT}")
        try:
            transaction = int(event["transaction"])
            at = datetime.fromisoformat(event["at"]) if event.get("at") else None
            layouts = {
                table: self.layout(table, int(one["oid"]), one["columns"], one["types"], one["key"])
                for table, one in event["relations"].items()
            }
            changes = [
                layouts[one["table"]].change(
                    one["TG_OP"],
                    int(one["version"]),
                    transaction,
                    at,
                    new=one.get("NEW"),
                    old=one.get("OLD"),
                    key=one.get("key"),
                    old_key=one.get("old_key"),
                )
                for one in event["changes"]
            ]
            subtransactions = {
                int(one["version"]): int(one["subtransaction"]) for one in event["changes"] if "subtransaction" in one
            }
            return Event(int(event["epoch"]), transaction, at, changes, subtransactions)
        except WireError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise WireError(f"this event cannot be read: {type(error).__name__}: {error}") from error

    def layout(
        self, table: str, oid: int, columns: Sequence[str | None], types: Sequence[int], key: Sequence[str]
    ) -> _Layout:
        """What rows of a table look like. `columns`: None for one that is not carried."""
        identity = (table, oid, tuple(columns), tuple(types), tuple(key))
        known = self._relations.get(identity)
        if known is None:
            if len(columns) != len(types):
                raise WireError(f"{table}: {len(columns)} columns and {len(types)} types")
            if len(self._relations) >= _MOST_RELATIONS:
                self._relations.clear()
            schema, _, name = table.partition(".")
            carried = tuple(index for index, column in enumerate(columns) if column is not None)
            relation = Relation(
                oid,
                schema,
                name,
                tuple(
                    Column(column, self._types(int(type_)), column in key)
                    for column, type_ in zip(columns, types, strict=True)
                    if column is not None
                ),
            )
            known = self._relations[identity] = _Layout(relation, len(columns), carried, tuple(key))
        return known


@dataclass(frozen=True, slots=True)
class _Layout:
    """A relation, and where its columns stand in the row literals. `width`: how many fields those have."""

    relation: Relation
    width: int
    carried: tuple[int, ...]
    key: tuple[str, ...]

    def change(
        self,
        operation: str,
        version: int,
        transaction: int,
        at: datetime | None,
        *,
        new: str | None = None,
        old: str | None = None,
        key: Sequence[str] | None = None,
        old_key: Sequence[str] | None = None,
    ) -> Change:
        """A change of this relation. Raises WireError."""
        try:
            op = Op(operation.lower())
        except ValueError:
            raise WireError(f"{self.relation.table}: unknown operation {operation!r}") from None
        size = _OVERHEAD + sum(len(text) for text in (new, old) if text is not None)
        row = self._row(new) if new is not None else None
        before = self._row(old) if old is not None else None
        if row is None and key is not None and op is not Op.DELETE:
            row = self._key_row(key)
        if before is None and old_key is not None:
            before = self._key_row(old_key)
        if before is None and key is not None and op is Op.DELETE:
            before = self._key_row(key)
        if (op in (Op.INSERT, Op.UPDATE) and row is None) or (op is Op.DELETE and before is None):
            raise WireError(f"{self.relation.table}: {op} without a row, version {version}")
        if op is Op.DELETE:
            row = None
        if op is Op.TRUNCATE:
            row = before = None
        partial = new is None and key is not None and op is not Op.DELETE
        return Change(op, self.relation, row, before, version, transaction & 0xFFFFFFFF, at, size, partial)

    def unreadable(self, version: int, at: datetime | None) -> Change:
        """What is left of a change that cannot be read: something happened to a row whose key nobody knows."""
        nothing: Row = (UNCHANGED,) * len(self.relation.columns)
        return Change(Op.DELETE, self.relation, None, nothing, version, 0, at, _OVERHEAD)

    def _row(self, literal: str) -> Row:
        values = parse_composite(literal.encode())
        if len(values) != self.width:
            raise WireError(f"{self.relation.table}: a row of {len(values)} fields, {self.width} are described")
        if len(self.carried) == self.width:
            return tuple(values)
        return tuple([values[index] for index in self.carried])

    def _key_row(self, texts: Sequence[str]) -> Row:
        """A row of which nothing but the key is known."""
        by_name = dict(zip(self.key, texts, strict=True))
        row: list[RawValue] = [
            by_name[column.name].encode() if column.name in by_name else UNCHANGED for column in self.relation.columns
        ]
        return tuple(row)
