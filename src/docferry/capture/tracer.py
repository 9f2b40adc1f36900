"""The source's part in tracing one row: its last change, and what of it waits in the outbox or in the slot."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, cast

import psycopg
from psycopg import errors as pg
from psycopg import sql

from docferry.capture.catalog import TableInfo, Types, describe_table, split_table
from docferry.capture.contract import KeyTexts
from docferry.capture.outbox import described_columns
from docferry.capture.snapshot import current_key
from docferry.capture.tracing import LastChange, Waiting, WaitingChange
from docferry.change.model import Change, make_version
from docferry.change.pgoutput import Decoder, ProtocolError
from docferry.change.wire import EventDecoder, WireError
from docferry.errors import ConfigError
from docferry.source.session import connect, translated
from docferry.source.statements import load

__all__ = ["SourceTracer"]

_SQL: Final = load("trace.sql")
_MOST: Final = 100_000
_SHOWN: Final = 20
_PATIENCE: Final = "20s"
_PAGE: Final = 100
# Texts that stand in a row literal, and in an array's, as they are.
_UNQUOTED: Final = re.compile(r"[A-Za-z0-9_.:+-]+")


class SourceTracer:
    """tracing.RowTracer over a connection of its own.

    `epoch`: of the versions. `slot`, `publication`: where changes wait by replication; None by triggers.
    """

    def __init__(self, dsn: str, epoch: int, slot: str | None, publication: str | None) -> None:
        self._dsn = dsn
        self._epoch = epoch
        self._slot = slot
        self._publication = publication
        self._connection: psycopg.Connection[tuple[Any, ...]] | None = None

    @property
    def keeps_time(self) -> bool:
        """See tracing.RowTracer."""
        with translated():
            return self._open().execute(_SQL["timestamps"].encode()).fetchone() == (True,)

    def canonical(self, table: str, key: Sequence[str], texts: KeyTexts) -> KeyTexts:
        """See tracing.RowTracer."""
        info, names = self._described(table, key)
        values = sql.SQL(", ").join(sql.SQL("({})::text").format(value) for value in _values(info, names))
        try:
            row = self._open().execute(_composed("canonical", values=values), texts).fetchone()
        except (pg.DataError, pg.IntegrityError) as error:
            raise ConfigError(
                f"this cannot be a key of {table} ({', '.join(names)}): {error.diag.message_primary}",
                remedy=f"Give the key as PostgreSQL shows it: {_shown_types(info, names)}.",
            ) from error
        except psycopg.Error:
            with translated():
                raise
        assert row is not None
        return tuple(row[0])

    def last_change(self, table: str, key: Sequence[str], texts: KeyTexts) -> LastChange | None:
        """See tracing.RowTracer."""
        info, names = self._described(table, key)
        query = _composed("last_change", table=_table(table), key=_listed(names), values=_joined(info, names))
        with translated():
            row = self._open().execute(query, texts).fetchone()
        if row is None:
            return None
        low, committed_at, following = row
        full = (following & ~0xFFFFFFFF) | low
        return LastChange(full if full < following else full - 2**32, committed_at)

    def is_behind(self, table: str, key: Sequence[str], texts: KeyTexts, done_key: KeyTexts) -> bool:
        """See tracing.RowTracer."""
        info, names = self._described(table, key)
        values = _joined(info, names)
        query = _composed("is_behind", table=_table(table), key=_listed(names), other=values, values=values)
        with translated():
            return self._open().execute(query, (*done_key, *texts)).fetchone() == (True,)

    def waiting(self, table: str, texts: Sequence[KeyTexts], touches: Callable[[Change], bool]) -> Waiting:
        """See tracing.RowTracer."""
        found: list[WaitingChange] = []
        count = 0
        unseen = ""
        try:
            for change in self._in_outbox(table, texts) if self._slot is None else self._in_slot():
                if change is None:
                    unseen = f"more waits than the {_MOST:,} changes that were looked through"
                elif change.relation.table == table and touches(change):
                    count += 1
                    if len(found) < _SHOWN:
                        found.append(WaitingChange(change.op, change.version, change.committed_at))
        except pg.QueryCanceled:
            unseen = f"looking through what waits took longer than {_PATIENCE}"
        except pg.ObjectInUse:
            unseen = "a worker is reading the slot"
        except (pg.UndefinedObject, pg.ObjectNotInPrerequisiteState, pg.InsufficientPrivilege) as error:
            unseen = str(error.diag.message_primary)
        except (ProtocolError, WireError) as error:
            unseen = f"what waits cannot be read: {error}"
        except psycopg.Error:
            with translated():
                raise
        return Waiting(tuple(found), count, unseen)

    def close(self) -> None:
        """See tracing.RowTracer."""
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    # -- what waits ---------------------------------------------------------------------------------------------------

    def _in_slot(self) -> Iterator[Change | None]:
        """None at the end stands for more."""
        number = 0
        # The types are asked for over another connection: this one is busy with the answer.
        with connect(self._dsn, purpose="trace slot") as connection:
            decoder = Decoder(Types(self._open()), self._epoch)
            for (data,) in _streamed(
                connection, "in_slot", {"slot": self._slot, "limit": _MOST, "publication": self._publication}
            ):
                number += 1
                match decoder.decode(data):
                    case Change() as change:
                        yield change
                    case list() as changes:
                        yield from changes
        if number >= _MOST:
            yield None

    def _in_outbox(self, table: str, texts: Sequence[KeyTexts]) -> Iterator[Change | None]:
        """See _in_slot."""
        number = 0
        decoder = EventDecoder(Types(self._open()))
        parameters = {"table": table, "needles": _needles(texts), "limit": _MOST}
        with connect(self._dsn, purpose="trace outbox") as connection:
            for row in _streamed(connection, "in_outbox", parameters):
                position, epoch, op, oid, described, key_names, new, old, key, old_key, at = row
                number += 1
                layout = decoder.layout(table, int(oid), *described_columns(described), key_names)
                yield layout.change(
                    op, make_version(epoch, position), 0, at, new=new, old=old, key=key, old_key=old_key
                )
        if number >= _MOST:
            yield None

    # -- pieces -------------------------------------------------------------------------------------------------------

    def _open(self) -> psycopg.Connection[tuple[Any, ...]]:
        if self._connection is None or self._connection.closed:
            self._connection = connect(self._dsn, purpose="trace")
        return self._connection

    def _described(self, table: str, key: Sequence[str]) -> tuple[TableInfo, tuple[str, ...]]:
        connection = self._open()
        info = describe_table(connection, Types(connection), table)
        return info, current_key(info, key, info.identities)


def _streamed(
    connection: psycopg.Connection[tuple[Any, ...]], name: str, parameters: dict[str, Any]
) -> Iterator[tuple[Any, ...]]:
    """Rows of a statement, few in memory at a time (R10)."""
    with connection.transaction():
        connection.execute(_SQL["patience"].encode(), (_PATIENCE,))
        with connection.cursor("docferry_trace") as cursor:
            cursor.itersize = _PAGE
            cursor.execute(_SQL[name].encode(), parameters)
            yield from cursor


def _needles(texts: Sequence[KeyTexts]) -> list[str] | None:
    """What the text of a change of the row has in it for certain; None where nothing can be said."""
    if len(texts) != 1 or not all(_UNQUOTED.fullmatch(text) for text in texts[0]):
        return None
    return list(texts[0])


def _composed(name: str, **parts: sql.Composable) -> sql.Composed:
    return sql.SQL(cast("Any", _SQL[name])).format(**parts)


# In a statement with parameters, the driver takes a percent sign for one, in names too.


def _table(table: str) -> sql.Identifier:
    return sql.Identifier(*(part.replace("%", "%%") for part in split_table(table)))


def _listed(names: Sequence[str]) -> sql.Composed:
    return sql.SQL(", ").join(sql.SQL("r.{}").format(sql.Identifier(name.replace("%", "%%"))) for name in names)


def _values(info: TableInfo, names: Sequence[str]) -> list[sql.Composed]:
    casts = [sql.SQL(cast("Any", info.casts[name].replace("%", "%%"))) for name in names]
    return [sql.SQL("%s::text::{}").format(of) for of in casts]


def _joined(info: TableInfo, names: Sequence[str]) -> sql.Composed:
    return sql.SQL(", ").join(_values(info, names))


def _shown_types(info: TableInfo, names: Sequence[str]) -> str:
    return ", ".join(f"{name} is {info.type_names[name]}" for name in names)
