"""The ledger: what docferry remembers in schema `docferry` of the source."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from types import MappingProxyType
from typing import Any, Final, TypeAlias

import psycopg
from psycopg.types.json import Jsonb

from docferry.capture.contract import BackfillRecord, BackfillState, Columns, KeyTexts, MirrorRecord
from docferry.capture.heartbeats import Heartbeats
from docferry.capture.running import RUNNING, holder, running
from docferry.change.model import NUMBER_STEP, make_version
from docferry.errors import AlreadyRunning, Interrupted, SourceUnavailable
from docferry.failpoints import boundary
from docferry.retry import Retry
from docferry.source.operator import operator
from docferry.source.session import close_shared, connect, translated
from docferry.source.statements import load

__all__ = ["Epoch", "PostgresLedger", "WorkerRecord"]

_log = logging.getLogger(__name__)
_SQL: Final = {**load("ledger.sql"), **RUNNING}
_WORKER_LOCK, _SWEEP_LOCK = 1, 2

_Parameters: TypeAlias = tuple[Any, ...] | dict[str, Any]
_Session: TypeAlias = tuple[int, str]
"""The process id of a server's session and when it began: ids are given again."""


@dataclass(frozen=True, slots=True)
class Epoch:
    """An epoch (R2): positions compare only within one."""

    number: int
    system_identifier: str
    timeline: int
    capture: str


@dataclass(frozen=True, slots=True)
class WorkerRecord:
    """A worker's last heartbeat. `age`: seconds since it."""

    name: str
    state: dict[str, Any]
    started_at: datetime
    updated_at: datetime
    age: float


class PostgresLedger:
    """contract.Ledger over one connection that is opened when needed and again after it broke, and one for heartbeats.

    `by_triggers`: positions come from docferry's sequence instead of the log, and several workers may run, each under a
    name of its own. `local`: commits wait for no standby. What a failover loses of a worker's statements is found
    again, and lies behind a new epoch; what begins an epoch must not be lost. `on_waiting(who, for_whom, remedy)`: is
    told again and again for whose transaction somebody waits, and, with empty text, that he does so no more.
    """

    def __init__(
        self,
        dsn: str,
        retry: Retry,
        *,
        epoch: int = 0,
        by_triggers: bool = False,
        local: bool = False,
        on_waiting: Callable[[str, str, str], None] = lambda *_: None,
    ) -> None:
        self._dsn = dsn
        self._retry = retry
        self._epoch = epoch
        self._by_triggers = by_triggers
        self._local = local
        self._on_waiting = on_waiting
        self._worker = f"worker {uuid.uuid4().hex[:12]}" if by_triggers else "worker"
        self._heartbeats = Heartbeats(dsn)
        self._lock = threading.RLock()
        self._connection: psycopg.Connection[tuple[Any, ...]] | None = None

    # -- setting up ---------------------------------------------------------------------------------------------------

    def exists(self) -> bool:
        """Whether `apply` has been run."""
        return bool(self._one("exists")[0])

    def create(self) -> None:
        """Create what is missing."""
        with self._lock, translated():
            connection = self._open()
            with connection.transaction():
                # Concurrent `apply`s would collide on the catalog.
                connection.execute("SELECT pg_catalog.pg_advisory_xact_lock(1685021542, 3)")
                connection.execute(_SQL["schema"].encode())

    def drop(self) -> None:
        """Remove everything."""
        self._run("drop_schema")

    def epoch(self) -> Epoch | None:
        """The epoch in force, None before the first."""
        row = self._optional("current_epoch")
        return Epoch(*row) if row else None

    @boundary("ledger.begin_epoch")
    def begin_epoch(
        self,
        system_identifier: str,
        timeline: int,
        capture: str,
        at_least: int = 1,
        populate: Mapping[str, str] = MappingProxyType({}),
    ) -> Epoch:
        """See AdminLedger."""
        with self._lock, translated(), self._open().transaction():
            (number,) = self._one("begin_epoch", (at_least, system_identifier, timeline, capture))
            for table, reason in populate.items():
                self._request_anew(table, reason)
        return Epoch(int(number), system_identifier, timeline, capture)

    def captures(self) -> list[str]:
        """The capture modes of all epochs so far."""
        return [capture for (capture,) in self._all("captures")]

    # -- mirrors ------------------------------------------------------------------------------------------------------

    def mirrors(self) -> dict[str, MirrorRecord]:
        """See contract.Ledger."""
        return {
            table: MirrorRecord(
                table,
                collection,
                fingerprint,
                frozenset(attributes),
                tuple(zip(names, types, strict=True)),
                layout,
                int(floor),
            )
            for table, collection, fingerprint, attributes, names, types, layout, floor in self._all("mirrors")
        }

    @boundary("ledger.register_mirror")
    def register_mirror(self, mirror: MirrorRecord, populate: str | None = None) -> None:
        """See contract.Ledger."""
        names, types = _columns(mirror.columns)
        with self._lock, translated(), self._open().transaction():
            self._run(
                "register_mirror",
                (
                    mirror.table,
                    mirror.collection,
                    mirror.fingerprint,
                    sorted(mirror.attributes),
                    names,
                    types,
                    mirror.layout,
                ),
            )
            if populate is not None:
                self._request_anew(mirror.table, populate)

    def remove_mirror(self, table: str) -> None:
        """See contract.Ledger."""
        self._run("remove_mirror", (table,))
        self._run("remove_dead_letters_of", {"table": table, "who": operator()})

    @boundary("ledger.remember_columns")
    def remember_columns(
        self, table: str, columns: Columns, attributes: Collection[str], layout: str
    ) -> frozenset[str]:
        """See contract.Ledger."""
        names, types = _columns(columns)
        row = self._optional("remember_columns", (names, types, layout, sorted(attributes), table))
        return frozenset(row[0]) if row else frozenset(attributes)

    @boundary("ledger.raise_floor")
    def raise_floor(self, table: str, version: int) -> None:
        """See contract.Ledger."""
        self._run("raise_floor", (version, table))

    def floor(self, table: str) -> int:
        """See contract.Ledger."""
        row = self._optional("floor", (table,))
        return int(row[0]) if row else 0

    # -- backfills ----------------------------------------------------------------------------------------------------

    def backfills(self, *, unfinished_only: bool = False) -> list[BackfillRecord]:
        """See contract.Ledger."""
        return [_backfill(row) for row in self._all("unfinished_backfills" if unfinished_only else "backfills")]

    @boundary("ledger.request_backfill")
    def request_backfill(self, table: str, reason: str, *, anew: bool = False) -> BackfillRecord:
        """See contract.Ledger."""
        # Both or none: cut off in between, a backfill that is due would be forgotten.
        with self._lock, translated(), self._open().transaction():
            if anew:
                self._request_anew(table, reason)
            else:
                self._run("request_backfill", (table, reason))
        found = [record for record in self.backfills(unfinished_only=True) if record.table == table]
        # Between the two statements another process may have finished it; then asking again is the answer.
        return found[0] if found else self.request_backfill(table, reason)

    def _request_anew(self, table: str, reason: str) -> None:
        self._run("restart_backfill", (table,))
        self._run("request_backfill", (table, reason))

    @boundary("ledger.start_backfill")
    def start_backfill(self, backfill: BackfillRecord, version: int, rows_estimate: int) -> BackfillRecord:
        """See contract.Ledger."""
        row = self._optional("start_backfill", (version, rows_estimate, backfill.id))
        if row is None:
            raise Interrupted(f"the backfill of {backfill.table} was replaced by a newer request")
        return _backfill(row)

    @boundary("ledger.advance_backfill")
    def advance_backfill(self, backfill: BackfillRecord, done_key: KeyTexts, rows_done: int) -> None:
        """See contract.Ledger. Raises Interrupted when the backfill was replaced meanwhile."""
        if self._optional("advance_backfill", (list(done_key), rows_done, backfill.id)) is None:
            raise Interrupted(f"the backfill of {backfill.table} was replaced by a newer request")

    @boundary("ledger.finish_backfill")
    def finish_backfill(self, backfill: BackfillRecord, rows_done: int) -> None:
        """See contract.Ledger. Raises Interrupted when the backfill was replaced meanwhile."""
        if self._optional("finish_backfill", (rows_done, backfill.id)) is None:
            raise Interrupted(f"the backfill of {backfill.table} was replaced by a newer request")

    @boundary("ledger.take_start_version")
    def take_start_version(self, who: str = "the backfill") -> int:
        """See contract.Ledger."""
        if self._by_triggers:
            (position,) = self._one("start_position_by_triggers")
            # Or the sequence could give the same position once more after a crash of the server.
            self._run("flush_positions")
        else:
            (position,) = self._one("start_position")
        try:
            self._wait_for_all(who, running(self._all))  # after the position: what wrote before it had its id by then
        finally:
            self._on_waiting(who, "", "")
        # A position of the sequence is nobody else's; a later change may start at the very LSN that was read.
        return make_version(self._epoch, int(position), 0 if self._by_triggers else NUMBER_STEP - 1)

    def _wait_for_all(self, who: str, transactions: list[str]) -> None:
        """Until all of these have ended and are visible."""
        pause, said_at = 0.005, time.monotonic()
        while transactions:
            rows = self._all("in_progress", (transactions,))
            transactions = [row[0] for row in rows]
            if not transactions:
                break
            for_whom, remedy = holder(*rows[0])
            self._on_waiting(who, for_whom, remedy)
            if time.monotonic() - said_at > 5:
                said_at = time.monotonic()
                _log.warning("%s waits for %d transaction(s) to end, first %s", who, len(rows), for_whom)
            self._retry.on_wait()
            if self._retry.stop.wait(pause):
                raise Interrupted("stopped while waiting for transactions to end")
            pause = min(pause * 2, 0.5)

    # -- locks --------------------------------------------------------------------------------------------------------

    @contextmanager
    def working(self) -> Iterator[Callable[[], None]]:
        """Held by the one worker of this source; call what it yields now and then, to take the lock again after the
        connection was lost. Both raise AlreadyRunning; the latter SourceUnavailable while the server has not noticed
        that it was. By triggers any number may work at once."""
        if self._by_triggers:
            yield lambda: None
            return
        with ExitStack() as stack:
            held = stack.enter_context(self._own_connection("worker"))
            self._take_worker_lock(held, None)
            session = self._session(held)

            def hold() -> None:
                nonlocal held, session
                try:
                    held.execute("SELECT 1")
                except psycopg.Error:
                    stack.close()
                    fresh = stack.enter_context(self._own_connection("worker"))
                    self._take_worker_lock(fresh, session)
                    held, session = fresh, self._session(fresh)

            yield hold

    @staticmethod
    def _session(connection: psycopg.Connection[tuple[Any, ...]]) -> _Session:
        with translated():
            row = connection.execute(_SQL["session"].encode()).fetchone()
        assert row is not None
        return int(row[0]), str(row[1])

    def _take_worker_lock(self, connection: psycopg.Connection[tuple[Any, ...]], former: _Session | None) -> None:
        """`former`: the session that held it for us until its connection was lost. Raises AlreadyRunning."""
        if self._try(connection, _WORKER_LOCK):
            return
        with translated():
            holder = connection.execute(_SQL["holder"].encode(), (_WORKER_LOCK,)).fetchone()
        if holder is not None and former == (holder[0], holder[3]):
            # The server has not noticed yet that we are gone.
            with suppress(psycopg.Error):  # another role's since
                connection.execute(_SQL["end_session"].encode(), former)
            raise SourceUnavailable(
                f"source: our lost connection (server process {holder[0]}) still holds the worker's lock",
                remedy="Nothing, as a rule: the server ends it within tcp_keepalives_* or tcp_user_timeout.",
            )
        who = f" (server process {holder[0]}, from {holder[2]}, since {holder[3]})" if holder else ""
        raise AlreadyRunning(
            f"another docferry worker runs for this source{who}",
            remedy="Stop it first, or let it do the work: one worker mirrors all tables of a source.",
        )

    @contextmanager
    def old_writes(self) -> Iterator[Callable[[], None]]:
        """See contract.Ledger."""
        with self._own_connection("old writes") as connection:
            with translated():
                connection.execute(_SQL["lock_shared"].encode(), (_SWEEP_LOCK,))

            def check() -> None:
                with translated():  # a lost connection shows in a round trip only
                    connection.execute("SELECT 1")

            yield check
            check()

    @contextmanager
    def sweeping(self) -> Iterator[bool]:
        """See contract.Ledger."""
        with self._own_connection("sweeper") as connection:
            yield self._try(connection, _SWEEP_LOCK)

    @contextmanager
    def backfilling(self, table: str) -> Iterator[bool]:
        """See contract.Ledger."""
        with self._own_connection("backfill lock") as connection:
            with translated():
                row = connection.execute(_SQL["table_lock_number"].encode(), (table,)).fetchone()
            assert row is not None
            yield self._try(connection, row[0])

    @contextmanager
    def _own_connection(self, purpose: str) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
        # A session's advisory locks end with its connection, also when we are killed; but the server notices a closed
        # connection a moment later, and whoever comes next must not be refused for that.
        connection = connect(self._dsn, purpose=purpose)
        try:
            yield connection
            with suppress(psycopg.Error):
                connection.execute(_SQL["unlock"].encode())
        finally:
            connection.close()

    @staticmethod
    def _try(connection: psycopg.Connection[tuple[Any, ...]], number: int) -> bool:
        with translated():
            row = connection.execute(_SQL["try_lock"].encode(), (number,)).fetchone()
        assert row is not None
        return bool(row[0])

    # -- workers ------------------------------------------------------------------------------------------------------

    @boundary("ledger.heartbeat")
    def heartbeat(self, state: Mapping[str, Any]) -> None:
        """See contract.Ledger."""
        if self._by_triggers:
            said = {"name": self._worker, "state": Jsonb(dict(state))}
            self._heartbeats.write(_SQL["heartbeat_by_triggers"], said)
        else:
            self._heartbeats.write(_SQL["heartbeat"], (self._worker, Jsonb(dict(state))))

    def workers(self) -> list[WorkerRecord]:
        """The workers' last heartbeats."""
        return [WorkerRecord(*row) for row in self._all("workers")]

    def close(self) -> None:
        """Release the connections."""
        self._heartbeats.close()
        close_shared(self._lock, self._connection)

    # -- statements ---------------------------------------------------------------------------------------------------

    def _open(self) -> psycopg.Connection[tuple[Any, ...]]:
        if self._connection is None or self._connection.closed:
            self._connection = connect(self._dsn, purpose="ledger")
            if self._local:
                self._connection.execute("SET synchronous_commit = local")
        return self._connection

    def _execute(self, name: str, parameters: _Parameters) -> list[tuple[Any, ...]]:
        with self._lock, translated():
            try:
                cursor = self._open().execute(_SQL[name].encode(), parameters)
                return cursor.fetchall() if cursor.description else []
            except psycopg.OperationalError:
                if self._connection is not None:
                    self._connection.close()
                raise

    def _run(self, name: str, parameters: _Parameters = ()) -> None:
        self._execute(name, parameters)

    def _all(self, name: str, parameters: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        return self._execute(name, parameters)

    def _optional(self, name: str, parameters: tuple[Any, ...] = ()) -> tuple[Any, ...] | None:
        rows = self._execute(name, parameters)
        return rows[0] if rows else None

    def _one(self, name: str, parameters: tuple[Any, ...] = ()) -> tuple[Any, ...]:
        return self._execute(name, parameters)[0]


def _columns(columns: Columns) -> tuple[list[str], list[str]]:
    return [name for name, _ in columns], [type_ for _, type_ in columns]


def _backfill(row: tuple[Any, ...]) -> BackfillRecord:
    record = BackfillRecord(*row)
    return replace(
        record,
        state=BackfillState(record.state),
        version=None if record.version is None else int(record.version),
        done_key=None if record.done_key is None else tuple(record.done_key),
    )
