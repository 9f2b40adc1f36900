"""The logical replication message format of the `pgoutput` plugin, protocol version 1, text tuples.

Source: https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html
Pure: bytes in, changes out. The decoder keeps what the protocol makes stateful: relations and the open transaction.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from struct import Struct
from typing import Final

from docferry.change.model import (
    UNCHANGED,
    Change,
    Column,
    Op,
    PgType,
    RawValue,
    Relation,
    Row,
    make_version,
)

__all__ = ["Commit", "Decoder", "ProtocolError", "timestamp"]

_INT16: Final = Struct("!h")
_INT32: Final = Struct("!i")
_UINT32: Final = Struct("!I")
_BEGIN: Final = Struct("!QqI")
_COMMIT: Final = Struct("!BQQq")
_POSTGRES_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)

_NULL, _UNCHANGED, _TEXT = b"nut"
_NEW, _OLD, _KEY = b"NOK"
# What a change costs in memory beside its bytes: the tuple, its value objects and the change itself, about.
_OVERHEAD: Final = 400


class ProtocolError(ValueError):
    """The stream is not what the documentation says. Never met with a healthy server."""


@dataclass(frozen=True, slots=True)
class Commit:
    """A transaction ended here. `position`: the LSN behind its commit record; all of it and everything committed
    earlier has been delivered."""

    position: int
    committed_at: datetime


def timestamp(microseconds: int) -> datetime:
    """Microseconds since 2000-01-01 UTC, PostgreSQL's own epoch, as a datetime."""
    return _POSTGRES_EPOCH + timedelta(microseconds=microseconds)


class Decoder:
    """Decodes one stream. A new connection needs a new decoder: the server then repeats the relations.

    `types`: finds a type by oid (the stream names only built-in types). `epoch`: for the versions.
    """

    def __init__(self, types: Callable[[int], PgType], epoch: int) -> None:
        self._types = types
        self._epoch = epoch
        self._next_version = 0
        self._relations: dict[int, Relation] = {}
        self._described: dict[int, bytes] = {}
        self._transaction = 0
        self._committed_at: datetime | None = None

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction has begun and its commit has not been seen."""
        return self._committed_at is not None

    def look_afresh(self, types: Callable[[int], PgType]) -> None:
        """Take the types of all relations from `types` from now on."""
        self._types = types
        self._relations = {oid: self._relation(message) for oid, message in self._described.items()}

    def decode(self, message: bytes) -> list[Change] | Change | Commit | None:
        """Decode one message.

        Returns the change, several for a TRUNCATE of several tables, the commit, or None for messages that carry
        neither. Raises ProtocolError.
        """
        match message[0:1]:
            case b"I":
                return self._insert(message)
            case b"U":
                return self._update(message)
            case b"D":
                return self._delete(message)
            case b"B":
                commit, committed, self._transaction = _BEGIN.unpack_from(message, 1)
                self._next_version = make_version(self._epoch, commit)
                self._committed_at = timestamp(committed)
            case b"C":
                _, _, end, committed = _COMMIT.unpack_from(message, 1)
                self._committed_at = None
                return Commit(end, timestamp(committed))
            case b"R":
                relation = self._relation(message)
                self._relations[relation.oid] = relation
                self._described[relation.oid] = message
            case b"T":
                return self._truncate(message)
            case b"O" | b"Y" | b"M":
                pass  # origin, type name, logical message: nothing of ours
            case kind:
                raise ProtocolError(f"unexpected pgoutput message {kind!r}")
        return None

    def _insert(self, message: bytes) -> Change:
        relation = self._relation_of(message)
        row, _ = _read_tuple(message, 6)
        return self._change(Op.INSERT, relation, row, None, len(message))

    def _update(self, message: bytes) -> Change:
        relation = self._relation_of(message)
        old: Row | None = None
        position = 6
        kind = message[5]
        if kind in (_KEY, _OLD):
            old, position = _read_tuple(message, 6, only_key=kind == _KEY)
            position += 1
        row, _ = _read_tuple(message, position)
        return self._change(Op.UPDATE, relation, row, old, len(message))

    def _delete(self, message: bytes) -> Change:
        relation = self._relation_of(message)
        old, _ = _read_tuple(message, 6, only_key=message[5] == _KEY)
        return self._change(Op.DELETE, relation, None, old, len(message))

    def _truncate(self, message: bytes) -> list[Change]:
        (count,) = _INT32.unpack_from(message, 1)
        relations = [self._relation_of(message, 6 + 4 * index) for index in range(count)]
        return [self._change(Op.TRUNCATE, relation, None, None, 0) for relation in relations]

    def _change(self, op: Op, relation: Relation, row: Row | None, old: Row | None, size: int) -> Change:
        # The changes of a transaction come in their order, the same whenever they are sent again.
        version = self._next_version
        self._next_version += 1
        return Change(op, relation, row, old, version, self._transaction, self._committed_at, size + _OVERHEAD)

    def _relation_of(self, message: bytes, position: int = 1) -> Relation:
        (oid,) = _UINT32.unpack_from(message, position)
        try:
            return self._relations[oid]
        except KeyError:
            raise ProtocolError(f"change of relation {oid}, which the stream has not described") from None

    def _relation(self, message: bytes) -> Relation:
        (oid,) = _UINT32.unpack_from(message, 1)
        schema, position = _read_name(message, 5)
        name, position = _read_name(message, position)
        (count,) = _INT16.unpack_from(message, position + 1)  # one byte of replica identity setting before it
        position += 3
        columns = []
        for _ in range(count):
            is_key = message[position] == 1
            column, position = _read_name(message, position + 1)
            (type_oid,) = _UINT32.unpack_from(message, position)
            position += 8  # the type modifier follows; text values do not need it
            columns.append(Column(column, self._types(type_oid), is_key))
        # The protocol writes pg_catalog as an empty schema name.
        return Relation(oid, schema or "pg_catalog", name, tuple(columns))


def _read_name(message: bytes, position: int) -> tuple[str, int]:
    end = message.index(0, position)
    return message[position:end].decode(), end + 1


def _read_tuple(message: bytes, position: int, *, only_key: bool = False) -> tuple[Row, int]:
    """(row, position behind it). With `only_key`, columns outside the key are sent as NULL and mean "not carried"."""
    (count,) = _INT16.unpack_from(message, position)
    position += 2
    values: list[RawValue] = []
    append = values.append
    length_at = _INT32.unpack_from
    for _ in range(count):
        kind = message[position]
        position += 1
        if kind == _TEXT:
            start = position + 4
            position = start + length_at(message, position)[0]
            append(message[start:position])
        elif kind == _NULL:
            append(UNCHANGED if only_key else None)
        elif kind == _UNCHANGED:
            append(UNCHANGED)
        else:
            raise ProtocolError(f"unexpected column kind {chr(kind)!r}; was the binary option on?")
    return tuple(values), position
