"""Reading current rows: by key, once a transaction is visible (R5), and in key-ordered pages (R6)."""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias, TypeVar, cast

import psycopg
from psycopg import errors as pg
from psycopg import pq, sql

from docferry.capture.catalog import TableInfo, Types, describe_table, name_of, split_table
from docferry.capture.contract import KeyTexts
from docferry.change.model import Column, Relation, Row
from docferry.change.renames import current_names
from docferry.errors import ConfigError, Interrupted, KeyUnreadable, SourceRefused, SourceUnavailable
from docferry.failpoints import boundary
from docferry.retry import Retry
from docferry.source.session import connect, translated
from docferry.source.statements import load

__all__ = ["TableReader", "is_visible"]

T = TypeVar("T")

_log = logging.getLogger(__name__)
_SQL: Final = load("snapshot.sql")
_FLUSH_POLLS: Final = 10
_OF_THE_TEXT: Final = frozenset({"22", "23", "54", "P0"})
"""Classes of SQLSTATE in which the cast of a text to its column's type complains of the text: data, constraints of a
domain, limits, and what a domain's check raises."""
_OF_THE_TEXT_TOO: Final = frozenset({pg.SyntaxError.sqlstate, pg.InvalidName.sqlstate})
_MOVED: Final = (pg.UndefinedColumn, pg.UndefinedObject, pg.FeatureNotSupported, pg.UndefinedFunction)
_NOT_PARSED: Final = ("json", "jsonb", "date", "timestamp", "timestamptz", "time", "timetz", "interval")
_SAMPLED_AT_LEAST: Final = 10_000
_CANCELLING: Final = 5.0  # seconds
_SNAPSHOT_COLUMNS: Final = 3  # snapshot, log_end, found


_Description: TypeAlias = tuple[tuple[str, int], ...]
"""(name, type oid) of each column of a result."""


@dataclass(slots=True)
class _Streamed:
    """Rows as they came. `complete`: that was all of them."""

    described: _Description = ()
    rows: list[tuple[bytes | None, ...]] = field(default_factory=list)
    complete: bool = True


class TableReader:
    """Both readers of the contract over one connection of its own, reconnecting when it broke.

    Rows come with a Relation made from the result's own description, so that a schema change between two statements can
    never pair values with the wrong columns. `by_triggers`: nothing is asked of the log, about which some services say
    nothing. `durable`: what is read must survive a crash of the source; who only looks, maybe before `apply`, need not
    wait for that. `former`: by table, the names of its columns when its key was made, as far as they are known.
    """

    def __init__(
        self,
        dsn: str,
        retry: Retry,
        *,
        purpose: str,
        table: str = "",
        key: Sequence[str] = (),
        by_triggers: bool = False,
        durable: bool = True,
        former: Callable[[str], Collection[str]] = lambda _: (),
    ) -> None:
        self._dsn = dsn
        self._former = former
        self._durable = durable
        self._retry = retry
        self._purpose = purpose
        self._table = table
        self._key = tuple(key)
        self._by_triggers = by_triggers
        self._lock = threading.Lock()
        self._connection: psycopg.Connection[tuple[Any, ...]] | None = None
        self._types: Types | None = None
        self._infos: dict[str, TableInfo] = {}
        self._layouts: dict[str, str] = {}
        self._relations: dict[tuple[Any, ...], Relation] = {}

    # -- by key (R5) --------------------------------------------------------------------------------------------------

    def read_rows(
        self, table: str, key: Sequence[str], keys: Sequence[KeyTexts], transactions: Collection[int], max_bytes: int
    ) -> tuple[list[tuple[Relation, Row]], bool]:
        """See contract.RowReader. An unreachable source is tried again until the retry policy says stop."""
        return self._read_patiently(table, key, keys, transactions, max_bytes, only_key=False)

    def read_keys(self, table: str, key: Sequence[str], keys: Sequence[KeyTexts]) -> list[tuple[Relation, Row]]:
        """See contract.KeyReader."""
        return self._read_patiently(table, key, keys, (), sys.maxsize, only_key=True)[0]

    def _read_patiently(
        self,
        table: str,
        key: Sequence[str],
        keys: Sequence[KeyTexts],
        transactions: Collection[int],
        max_bytes: int,
        *,
        only_key: bool,
    ) -> tuple[list[tuple[Relation, Row]], bool]:
        attempt = 0
        while True:
            try:
                with self._lock:
                    return self._read_visible(table, key, keys, transactions, max_bytes, only_key=only_key)
            except SourceUnavailable as error:
                attempt += 1
                _log.warning("reading %s again: %s", table, error)
                self._retry.wait(attempt, error)

    def relation(self, table: str) -> Relation:
        """See contract.RowReader."""
        with self._lock, translated():
            self._connect()
            assert self._connection is not None
            assert self._types is not None
            # A type may have changed under an oid that is known (a renamed enum): look afresh.
            return describe_table(self._connection, Types(self._connection), table).relation

    def current_name(self, oid: int) -> str | None:
        """See contract.RowReader."""
        with self._lock, translated():
            self._connect()
            assert self._connection is not None
            return name_of(self._connection, oid)

    def layout(self, table: str) -> str:
        """See contract.RowReader."""
        with self._lock, translated():
            self._connect()
            assert self._connection is not None
            layout = describe_table(self._connection, Types(self._connection), table).layout
            if self._layouts.get(table) != layout:
                # Whoever is told of a change must not be given rows as they were described before it.
                self._forget()
                self._layouts[table] = layout
            return layout

    @boundary("applier.reread")
    def _read_visible(
        self,
        table: str,
        key: Sequence[str],
        keys: Sequence[KeyTexts],
        transactions: Collection[int],
        max_bytes: int,
        *,
        only_key: bool,
    ) -> tuple[list[tuple[Relation, Row]], bool]:
        pause = 0.0005
        warn_at = time.monotonic() + 10
        while True:
            snapshot, log_end, rows, complete = self._read_by_key(table, key, keys, max_bytes, only_key=only_key)
            hidden = [xid for xid in transactions if not is_visible(xid, snapshot)]
            if not hidden:
                self._wait_until_flushed(log_end)
                return rows, complete
            # Committed, but not yet visible to others: microseconds; with synchronous standbys until they answer.
            if time.monotonic() >= warn_at:
                warn_at += 60
                _log.warning("waiting for transaction %s to become visible (a synchronous standby?)", hidden[0])
            self._retry.on_wait()
            if self._retry.stop.wait(pause):
                raise Interrupted("stopped while waiting for a transaction to become visible")
            pause = min(pause * 2, 0.25)

    def _read_by_key(
        self, table: str, key: Sequence[str], keys: Sequence[KeyTexts], max_bytes: int, *, only_key: bool
    ) -> tuple[str, int, list[tuple[Relation, Row]], bool]:
        def run() -> tuple[str, int, list[tuple[Relation, Row]], bool]:
            info = self._info(table)
            names = self._key_now(info, key)
            match = sql.SQL("({}) IN ({})").format(_listed(names), _keys(info, names))
            block = _SQL["by_key_without_log" if self._by_triggers else "by_key"]
            columns = _listed(names) if only_key else sql.SQL("r.*")
            query = sql.SQL(cast("Any", block)).format(table=_identifier(table), match=match, columns=columns)
            got = self._stream(query, _by_column(keys, names), max_bytes)
            snapshot, log_end, found = got.rows[0][:_SNAPSHOT_COLUMNS]
            rows = [] if found is None else self._with_relation(info, got, _SNAPSHOT_COLUMNS)
            return _text(snapshot), int(_text(log_end)), rows, got.complete

        try:
            return self._on_current_schema(run)
        except SourceRefused as refused:
            keys = self._without_unreadable(refused, table, key, keys)
        return self._on_current_schema(run)

    def _without_unreadable(
        self, refused: SourceRefused, table: str, key: Sequence[str], keys: Sequence[KeyTexts]
    ) -> list[KeyTexts]:
        """The keys without those that made a read fail. Raises the error again if it was none of them."""
        if not isinstance(refused.__cause__, psycopg.Error) or not _complains_of_text(refused.__cause__):
            raise refused
        readable = self._readable(table, key, keys)
        if len(readable) == len(keys):
            raise refused
        return readable

    def _readable(self, table: str, key: Sequence[str], keys: Sequence[KeyTexts]) -> list[KeyTexts]:
        """Those keys whose texts are of their columns' types, found by halving: no row has another."""
        if self._are_readable(table, key, keys):
            return list(keys)
        if len(keys) == 1:
            return []
        half = len(keys) // 2
        return [*self._readable(table, key, keys[:half]), *self._readable(table, key, keys[half:])]

    def _are_readable(self, table: str, key: Sequence[str], keys: Sequence[KeyTexts]) -> bool:
        """Asked without the table, whose rows may raise an error of the same kind (generated columns)."""

        def run() -> bool:
            info = self._info(table)
            names = self._key_now(info, key)
            try:
                self._execute(_keys(info, names), _by_column(keys, names))
            except psycopg.Error as error:
                if not _complains_of_text(error):
                    raise
                return False
            return True

        return self._on_current_schema(run)

    def _stream(self, query: sql.Composed, parameters: list[Any], max_bytes: int) -> _Streamed:
        """The first rows of a result, up to and including the one with which they reach `max_bytes`.

        Nothing else can be asked over the connection before the stream is closed: what the values mean is found out
        afterwards, from the description that came with them.
        """
        assert self._connection is not None
        cursor = self._connection.cursor()
        stream = cast("Generator[Any, None, None]", cursor.stream(query, parameters))
        got = _Streamed()
        size = 0
        try:
            for _ in stream:
                result = cursor.pgresult
                assert result is not None
                if not got.rows:
                    got.described = tuple((_text(result.fname(i)), result.ftype(i)) for i in range(result.nfields))
                row = tuple([result.get_value(0, i) for i in range(result.nfields)])
                got.rows.append(row)
                size += sum([len(value) for value in row if value is not None])
                if size >= max_bytes:
                    got.complete = False
                    break
        finally:
            stream.close()
        return got

    def _wait_until_flushed(self, log_end: int | None = None) -> None:
        """Until a crash of the server cannot take back what was read: an application may commit asynchronously, and its
        rows are visible before they are on disk. Others' commits flush the log within milliseconds."""
        if not self._durable:
            return
        with translated():
            assert self._connection is not None
            if self._by_triggers:
                self._connection.execute(_SQL["flush_without_log"].encode())
                return
            if log_end is None:
                row = self._connection.execute(_SQL["log_end"].encode()).fetchone()
                assert row is not None
                log_end = int(row[0])
            for _ in range(_FLUSH_POLLS):
                row = self._connection.execute(_SQL["is_flushed"].encode(), (log_end,)).fetchone()
                assert row is not None
                if row[0]:
                    return
                if self._retry.stop.wait(0.001):
                    raise Interrupted("stopped while waiting for the source's log to be flushed")
            # Nobody commits: the unfinished page of an open transaction may stay in memory for long.
            self._connection.execute(_SQL["flush"].encode())

    # -- in pages (R6) ------------------------------------------------------------------------------------------------

    def boundary(self, after: KeyTexts | None, rows: int) -> KeyTexts | None:
        """See contract.PageReader."""

        def run() -> KeyTexts | None:
            info = self._info(self._table)
            names = self._key_now(info, self._key)
            range_, parameters = self._range(info, names, after, None)
            query = sql.SQL(cast("Any", _SQL["boundary"])).format(
                key=_listed(names), table=_identifier(self._table), after=range_
            )
            result = self._execute(query, [*parameters, max(rows, 1) - 1])
            if result.ntuples == 0:
                return None
            return tuple(_text(result.get_value(0, index)) for index in range(len(names)))

        return self._between(run, after)

    def read_page(
        self, after: KeyTexts | None, upto: KeyTexts | None, max_bytes: int
    ) -> tuple[list[tuple[Relation, Row]], KeyTexts | None]:
        """See contract.PageReader. Rows come one by one from the server, so that `max_bytes` holds whatever they
        weigh."""

        def run() -> tuple[list[tuple[Relation, Row]], KeyTexts | None]:
            info = self._info(self._table)
            names = self._key_now(info, self._key)
            range_, parameters = self._range(info, names, after, upto)
            query = sql.SQL(cast("Any", _SQL["page"])).format(
                key=_listed(names), table=_identifier(self._table), range=range_
            )
            got = self._stream(query, parameters, max_bytes)
            rows = self._with_relation(info, got, 0)
            last: KeyTexts | None = None
            if not got.complete:
                relation, row = rows[-1]
                by_name = dict(zip((column.name for column in relation.columns), row, strict=True))
                last = tuple(_text(cast("bytes", by_name[name])) for name in names)
            self._wait_until_flushed()
            return rows, last

        return self._between(run, after, upto)

    def _between(self, run: Callable[[], T], *bounds: KeyTexts | None) -> T:
        """Run a read between keys. Raises KeyUnreadable when one of them is none any more."""
        try:
            return self._on_current_schema(run)
        except SourceRefused as refused:
            self._without_unreadable(refused, self._table, self._key, [one for one in bounds if one is not None])
            raise KeyUnreadable(f"a key of {self._table} that was noted is none of its column's type now") from refused

    def estimate(self) -> int:
        """See contract.PageReader."""
        query = sql.SQL(cast("Any", _SQL["estimate"])).format(table=sql.Identifier(*split_table(self._table)))
        with self._lock, translated():
            self._connect()
            assert self._connection is not None
            row = self._connection.execute(query).fetchone()
        assert row is not None
        return int(json.loads(row[0])[0]["Plan"]["Plan Rows"])

    def sample(self, rows: int) -> list[KeyTexts]:
        """See contract.PageReader."""
        # Whole blocks are taken: of many more keys than are wanted, so that these come from many of them.
        percent = min(100.0, 100.0 * max(20 * rows, _SAMPLED_AT_LEAST) / max(self.estimate(), 1))

        def run() -> list[KeyTexts]:
            names = self._key_now(self._info(self._table), self._key)
            query = sql.SQL(cast("Any", _SQL["sample"])).format(key=_listed(names), table=_identifier(self._table))
            result = self._execute(query, [percent, rows])
            return [
                tuple(_text(result.get_value(row, index)) for index in range(len(names)))
                for row in range(result.ntuples)
            ]

        return self._on_current_schema(run)

    def cancel(self) -> None:
        """See contract.PageReader."""
        connection = self._connection
        if connection is not None:
            with suppress(psycopg.Error):
                connection.cancel_safe(timeout=_CANCELLING)

    def close(self) -> None:
        """Release the connection."""
        if self._connection is not None:
            self._connection.close()
        self._connection = self._types = None
        self._infos.clear()
        self._relations.clear()

    # -- shared -------------------------------------------------------------------------------------------------------

    def _connect(self) -> None:
        if self._connection is None or self._connection.closed:
            self.close()
            self._connection = connect(self._dsn, purpose=self._purpose)
            # A prepared statement outlives the columns that it was prepared for, and its generic plan ignores OFFSET.
            self._connection.prepare_threshold = None
            self._connection.execute(_SQL["by_index"].encode())
            for name in _NOT_PARSED:
                # The values are taken as text from the result; parsing them first would be thrown away, and Python has
                # no such thing as infinity, years before Christ or 24 o'clock.
                self._connection.adapters.register_loader(name, psycopg.types.string.TextLoader)
            self._types = Types(self._connection)

    def _on_current_schema(self, run: Callable[[], T]) -> T:
        """Run a read; if the schema moved under the statement, or a text may be of the type that its column has now,
        look again and run it once more."""
        with translated():
            self._connect()
            try:
                try:
                    return run()
                except psycopg.Error as error:
                    if not isinstance(error, _MOVED) and not _complains_of_text(error):
                        raise
                    self._forget()
                    return run()
            except psycopg.OperationalError:
                self.close()
                raise

    def _forget(self) -> None:
        """Look at tables and types afresh."""
        assert self._connection is not None
        self._types = Types(self._connection)
        self._infos.clear()
        self._relations.clear()

    def _info(self, table: str) -> TableInfo:
        if table not in self._infos:
            assert self._connection is not None
            assert self._types is not None
            self._infos[table] = describe_table(self._connection, self._types, table)
        return self._infos[table]

    def _execute(self, query: sql.Composed, parameters: list[Any]) -> pq.abc.PGresult:
        assert self._connection is not None
        cursor = self._connection.execute(query, parameters)
        assert cursor.pgresult is not None
        return cursor.pgresult

    def _range(
        self, info: TableInfo, names: Sequence[str], after: KeyTexts | None, upto: KeyTexts | None
    ) -> tuple[sql.Composable, list[Any]]:
        values = sql.SQL(", ").join(sql.SQL("%s::text::{}").format(_type(info, name)) for name in names)
        conditions: list[sql.Composable] = []
        parameters: list[Any] = []
        for operator, bound in ((sql.SQL(">"), after), (sql.SQL("<="), upto)):
            if bound is not None:
                conditions.append(sql.SQL("({}) {} ({})").format(_listed(names), operator, values))
                parameters.extend(bound)
        if not conditions:
            return sql.SQL(""), parameters
        return sql.SQL("WHERE ") + sql.SQL(" AND ").join(conditions), parameters

    def _with_relation(self, info: TableInfo, got: _Streamed, skip: int) -> list[tuple[Relation, Row]]:
        """Rows with the relation that their description makes, without the first `skip` columns and generated ones."""
        if not got.rows:
            return []
        described = got.described[skip:]
        relation = self._relation(info, described)
        names = {column.name for column in relation.columns}
        if len(names) == len(described):
            return [(relation, row[skip:]) for row in got.rows]
        kept = [skip + index for index, (name, _) in enumerate(described) if name in names]
        return [(relation, tuple([row[index] for index in kept])) for row in got.rows]

    def _identities(self, info: TableInfo) -> Sequence[tuple[str, ...]]:
        """What tells rows apart, the best first. By triggers, a replica identity is another consumer's."""
        return info.identities[::-1] if self._by_triggers else info.identities

    def _key_now(self, info: TableInfo, key: Sequence[str]) -> tuple[str, ...]:
        return current_key(info, key, self._identities(info), former=self._former(info.table))

    def _relation(self, info: TableInfo, described: _Description) -> Relation:
        """A result's columns as a relation; the same object for the same description."""
        known = self._relations.get((info.table, described))
        if known is None:
            assert self._connection is not None
            assert self._types is not None
            if not _describes(info, described):
                info = self._infos[info.table] = describe_table(self._connection, self._types, info.table)
            identities = self._identities(info)
            # Which of them names a renamed key, the converter finds out; in a stream, it is the replica identity.
            identity = {name for one in (identities if self._by_triggers else identities[:1]) for name in one}
            columns = [
                Column(name, self._types(oid), name in identity)
                for name, oid in described
                if name not in info.generated
            ]
            known = Relation(info.oid, info.relation.schema, info.relation.name, tuple(columns))
            self._relations[info.table, described] = known
        return known


def _describes(info: TableInfo, described: _Description) -> bool:
    shown = [name for name, _ in described if name not in info.generated]
    return shown == [column.name for column in info.relation.columns]


def current_key(
    info: TableInfo, key: Sequence[str], identities: Sequence[Sequence[str]], *, former: Collection[str] = ()
) -> tuple[str, ...]:
    """The key's columns as they are called now, by the first of the `identities` that can say it. `former`: see
    current_names. Raises ConfigError when none can."""
    for identity in (*identities, ()):
        names = current_names(key, info.casts, identity, former=former)
        if names is not None:
            return names
    raise ConfigError(
        f"key ({', '.join(key)}) of {info.table} no longer exists",
        remedy="Set key = [...] of this mirror to the columns that are the key now, then `docferry apply`.",
    )


def is_visible(transaction: int, snapshot: str) -> bool:
    """Whether a transaction id (its lower 32 bits suffice, 0 is always visible) is visible to a snapshot in
    PostgreSQL's text form `xmin:xmax:xip,...`. That it committed is known already."""
    if transaction == 0:
        return True
    xmin_text, xmax_text, running = snapshot.split(":")
    xmin, xmax = int(xmin_text), int(xmax_text)
    # The id nearest to xmax with these lower bits: transactions in question are far younger than 2**31 of them.
    distance = (transaction - xmax) & 0xFFFFFFFF
    full = xmax + (distance - 2**32 if distance >= 2**31 else distance)
    if full < xmin:
        return True
    return full < xmax and str(full) not in running.split(",")


# In a statement with parameters, the driver takes a percent sign for one, in names too.


def _identifier(table: str) -> sql.Identifier:
    return sql.Identifier(*(part.replace("%", "%%") for part in split_table(table)))


def _listed(names: Sequence[str]) -> sql.Composed:
    return sql.SQL(", ").join(sql.SQL("r.{}").format(sql.Identifier(name.replace("%", "%%"))) for name in names)


def _keys(info: TableInfo, names: Sequence[str]) -> sql.Composed:
    """A statement that makes keys of an array of texts for each of their columns. These are cast one by one: of a type
    that is an array itself there are no arrays."""
    aliases = [sql.Identifier(f"k{index}") for index in range(len(names))]
    return sql.SQL("SELECT {values} FROM unnest({texts}) AS k({aliases})").format(
        values=sql.SQL(", ").join(
            sql.SQL("k.{}::{}").format(alias, _type(info, name)) for alias, name in zip(aliases, names, strict=True)
        ),
        texts=sql.SQL(", ").join([sql.SQL("%s::text[]")] * len(names)),
        aliases=sql.SQL(", ").join(aliases),
    )


def _by_column(keys: Sequence[KeyTexts], names: Sequence[str]) -> list[list[str]]:
    return [[key[index] for key in keys] for index in range(len(names))]


def _complains_of_text(error: psycopg.Error) -> bool:
    """Whether an error may be a text's that is none of its column's type."""
    if isinstance(error, psycopg.DataError | psycopg.IntegrityError):  # the driver refuses some itself
        return True
    return (error.sqlstate or "")[:2] in _OF_THE_TEXT or error.sqlstate in _OF_THE_TEXT_TOO


def _type(info: TableInfo, column: str) -> sql.SQL:
    return sql.SQL(cast("Any", info.casts[column].replace("%", "%%")))


def _text(value: bytes | None) -> str:
    assert value is not None
    return value.decode()
