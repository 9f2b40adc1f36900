"""Outbox, functions and triggers of the capture modes `outbox` and `lambda`: looked at, created, removed."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, TypeAlias

import psycopg
from psycopg import errors as pg
from psycopg import sql

from docferry.capture.catalog import split_table
from docferry.capture.contract import BREAKER_OPEN, StreamState
from docferry.capture.rights import quoted, quoted_table
from docferry.capture.trigger_functions import (
    CHANGES,
    KEY_CHANGE,
    NESTED,
    TRUNCATE,
    Definition,
    TriggerSettings,
    functions,
    table_triggers,
)
from docferry.errors import SourceRefused, SourceUnavailable
from docferry.source.session import connect, translated
from docferry.source.statements import load

__all__ = ["TriggerSetup"]

_SQL: Final = load("outbox.sql")
_SEND: Final = load("triggers.sql")
_OLDEST: Final = 140000
_FUNCTIONS: Final = {
    "sync_to_dynamodb": "docferry.sync_to_dynamodb()",
    "send_event": "docferry.send_event(text, bigint[], int)",
    "send_to_lambda": "docferry.send_to_lambda()",
}
_FIRES, _FIRES_ALWAYS = "O", "A"
_DEFERRED: Final = (
    "(note) a transaction that has written to a mirrored table may not TRUNCATE or ALTER it any more, because the "
    "triggers are deferred; if the application does that, set [source.triggers] deferred = false"
)
# The application's statements queue behind a DDL statement that waits: give up soon, and try again.
_LOCK_TIMEOUT: Final = "2s"
_LOCK_ATTEMPTS: Final = 10

Connection: TypeAlias = psycopg.Connection[tuple[Any, ...]]
_Found: TypeAlias = "str | tuple[int, bool, bytes]"
"""A trigger's fingerprint, or Definition.parts."""


class TriggerSetup:
    """contract.CaptureSetup for the capture modes by triggers. `keys`: the key columns of each mirrored table."""

    def __init__(self, dsn: str, settings: TriggerSettings, keys: Callable[[], Mapping[str, Sequence[str]]]) -> None:
        self._dsn = dsn
        self._settings = settings
        self._keys = keys
        self._gap_seen = False

    # -- the contract -------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """See the contract: version, role in the cluster, the extension that calls Lambda, the owner."""
        with self._connected() as connection:
            number, version, in_recovery, role, has_lambda, available = _one(connection, "server")
            if number < _OLDEST:
                raise SourceRefused(
                    f"the source is PostgreSQL {version}", remedy="docferry needs PostgreSQL 14 or later."
                )
            if in_recovery:
                raise SourceRefused("the source is a standby", remedy="Point [source] dsn at the primary.")
            owner = self._settings.owner
            if owner is not None and not _one(connection, "role_exists", (owner,))[0]:
                raise SourceRefused(
                    f"there is no role {owner}, which is to own the trigger functions",
                    remedy=f"CREATE ROLE {owner} NOLOGIN; GRANT {owner} TO {role}; or remove [source.triggers] owner.",
                )
            if not self._settings.sends:
                return
            if not has_lambda and not available:
                raise SourceRefused(
                    "the source has no extension aws_lambda, which calls the function",
                    remedy='Aurora and RDS for PostgreSQL have it. Elsewhere use capture = "replication" or "outbox".',
                )
            invoker = owner or role
            if has_lambda and not _one(connection, "may_invoke", {"role": invoker})[0]:
                raise SourceRefused(
                    f"role {invoker} may not call aws_lambda.invoke",
                    remedy=f"GRANT USAGE ON SCHEMA aws_lambda TO {invoker}; "
                    f"GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA aws_lambda TO {invoker};",
                )

    def history(self) -> tuple[str, int]:
        """See the contract. What a service does not tell is taken as unchanging."""
        with self._connected() as connection:
            return _told(connection, "system_identifier", "unknown"), int(_told(connection, "timeline", "0"))

    def gap(self) -> str | None:
        """See the contract."""
        with self._connected() as connection:
            if not _one(connection, "exists")[0]:
                self._gap_seen = True
                return "docferry.outbox does not exist"
            missed, known = _one(connection, "missed")
        self._gap_seen = missed > known
        if self._gap_seen:
            return f"{missed - known} transaction(s) had changes that could not be recorded in docferry.outbox"
        return None

    def uncaptured(self, tables: Sequence[str]) -> list[str]:
        """See the contract."""
        with self._connected() as connection:
            fires = self._firing(connection)
            recorded = "sync_to_dynamodb" in {name for name, *_ in _all(connection, "functions")}
            # Last: a table that is renamed meanwhile exists no more, and is not one without triggers.
            existing = _existing(connection, tables)
        return [table for table in existing if not recorded or not _is_captured(fires.get(table, {}))]

    def missing(self, tables: Sequence[str]) -> list[str]:
        """See the contract."""
        with self._connected() as connection:
            if not _one(connection, "exists")[0]:
                steps = ["create docferry.outbox"]
                found: dict[str, str] = {}
            else:
                steps = []
                found = {name: mark for name, mark, _ in _all(connection, "functions")}
            if self._settings.sends and not _one(connection, "server")[4]:
                steps.append("create extension aws_lambda")
            epoch = self._epoch(connection)
            steps += [
                f"create or replace function docferry.{one.name}"
                for one in functions(self._settings, epoch, connection)
                if found.get(one.name) != one.fingerprint
            ]
            fires = self._firing(connection)
            self._refuse_what_needs_the_owner(connection, tables, fires)
            for table, wanted in self._wanted(connection, tables).items():
                names = [one.name for one in wanted if not _is_there(one, fires.get(table, {}))]
                if names:
                    steps.append(f"create trigger{'s' * (len(names) != 1)} {', '.join(names)} on {table}")
            if self._settings.sends and self._settings.deferred and steps:
                steps.append(_DEFERRED)
            steps += [f"drop the triggers on {table}" for table in sorted(set(self._present(connection)) - set(tables))]
        return steps

    def prepare(self, tables: Sequence[str]) -> list[str]:
        """See the contract."""
        done: list[str] = []
        with self._connected() as connection:
            self._refuse_what_needs_the_owner(connection, tables, self._firing(connection))
            if self._settings.sends and not _one(connection, "server")[4]:
                connection.execute(_SQL["extension"].encode())
                done.append("created extension aws_lambda")
            if not _one(connection, "exists")[0]:
                done.append("created docferry.outbox")
            connection.execute(_SQL["schema"].encode())
            self._create_functions(connection, done)
            fires = self._firing(connection)
            for table, wanted in self._wanted(connection, tables).items():
                found = fires.get(table, {})
                stale = [one for one in wanted if not _is_there(one, found)]
                if stale:
                    self._create_triggers(connection, table, wanted, stale)
                    quoted = sql.Identifier(*split_table(table)).as_string(connection)
                    connection.execute(_SQL["relabel"].encode(), {"table": table, "quoted": quoted})
                    done.append(f"created the triggers on {table}")
            for table in sorted(set(self._present(connection)) - set(tables)):
                self._drop_triggers(connection, table)
                done.append(f"dropped the triggers on {table}")
            if self._gap_seen:
                # Whoever was told of it populates all collections once this is done, which makes up for what was missed
                # meanwhile too. Whoever was told of none must learn of it the next time he asks.
                connection.execute(_SQL["missed_is_known"].encode())
                self._gap_seen = False
        return done

    def present(self) -> list[str]:
        """See the contract."""
        with self._connected() as connection:
            found = [f"triggers on {table}" for table in sorted(self._present(connection))]
            if _one(connection, "exists")[0]:
                (waiting,) = connection.execute("SELECT count(*) FROM docferry.outbox").fetchone() or (0,)
                found.append(f"docferry.outbox with {waiting:,} changes that have not been carried over")
        return found

    def remove(self) -> list[str]:
        """See the contract. The triggers go first: a trigger without its outbox would only count what it misses."""
        done = []
        with self._connected() as connection:
            present = sorted(self._present(connection))
            if not all(_owns(connection, table) for table in present):
                # A function's owner may drop it with all that depends on it, on tables of others too.
                _locked_shortly(connection, ", ".join(present), lambda: _drop_function(connection))
                done += [f"dropped the triggers on {table}" for table in present]
                present = []
            for table in present:
                self._drop_triggers(connection, table)
                done.append(f"dropped the triggers on {table}")
            if _one(connection, "exists")[0]:
                connection.execute("TRUNCATE docferry.outbox")
        return done

    def mark(self) -> int:
        """See the contract."""
        with self._connected("wait") as connection:
            return int(_one(connection, "mark")[0])

    def state(self) -> StreamState | None:
        """See the contract; positions, not bytes."""
        with self._connected() as connection:
            if not _one(connection, "exists")[0]:
                return None
            oldest, _, waiting, size, active, age, broken = _one(connection, "state")
        health = BREAKER_OPEN if broken and self._settings.sends else "reserved"
        # The lag is what waits; positions between waiting changes are nobody's.
        return StreamState(oldest, oldest + waiting, active, size, health, unit="changes", oldest_seconds=round(age, 3))

    def idle(self) -> bool:
        """See the contract."""
        with self._connected() as connection:
            return bool(_one(connection, "idle")[0])

    def published(self) -> list[str] | None:
        """The tables whose changes are captured, None before `apply`."""
        with self._connected() as connection:
            if not _one(connection, "exists")[0]:
                return None
            return sorted(table for table, found in self._firing(connection).items() if _is_captured(found))

    # -- pieces -------------------------------------------------------------------------------------------------------

    @contextmanager
    def _connected(self, purpose: str = "setup") -> Iterator[Connection]:
        with connect(self._dsn, purpose=purpose) as connection, translated():
            yield connection

    def _epoch(self, connection: Connection) -> int:
        try:
            return int(_one(connection, "current_epoch")[0])
        except pg.UndefinedTable:
            return 0

    def _wanted(self, connection: Connection, tables: Sequence[str]) -> dict[str, list[Definition]]:
        keys = self._keys()
        return {table: table_triggers(self._settings, table, keys[table], connection) for table in tables}

    @staticmethod
    def _present(connection: Connection) -> set[str]:
        return {table for table, *_ in _all(connection, "triggers")}

    def _firing(self, connection: Connection) -> dict[str, dict[str, _Found]]:
        """Of each table the triggers that fire as configured, also on its partitions: their fingerprints, or what they
        are made of."""
        fires = {_FIRES_ALWAYS} if self._settings.enable_always else {_FIRES, _FIRES_ALWAYS}
        found: dict[str, dict[str, _Found]] = {}
        for table, trigger, mark, ways, kind, deferred, arguments in _all(connection, "triggers"):
            if fires.issuperset(ways):
                found.setdefault(table, {})[trigger] = mark or (kind, deferred, bytes(arguments))
        return found

    def _refuse_what_needs_the_owner(
        self, connection: Connection, tables: Sequence[str], fires: Mapping[str, Mapping[str, _Found]]
    ) -> None:
        """Raises SourceRefused, with the statements for a table's owner: nobody else may drop a trigger."""
        statements = []
        present: dict[str, list[str]] = {}
        for table, trigger, *_ in _all(connection, "triggers"):
            present.setdefault(table, []).append(trigger)
        wanted = self._wanted(connection, tables)
        for table, triggers in present.items():
            if _owns(connection, table):
                continue
            found = fires.get(table, {})
            gone = (
                triggers
                if table not in wanted
                else [
                    one.name
                    for one in wanted[table]
                    if one.replacing is None and one.name in triggers and not _is_there(one, found)
                ]
            )
            statements += [f"DROP TRIGGER {quoted(trigger)} ON {quoted_table(table)};" for trigger in gone]
        if statements:
            raise SourceRefused(
                f"{len(statements)} trigger(s) have to go from tables of other owners, and only these may drop them",
                remedy=" ".join(statements),
            )

    def _create_functions(self, connection: Connection, done: list[str]) -> None:
        found = {name: (mark, owner) for name, mark, owner in _all(connection, "functions")}
        owner = self._settings.owner
        made: list[str] = []

        def create() -> None:
            made.clear()
            for one in functions(self._settings, self._epoch(connection), connection):
                mark, owned_by = found.get(one.name, ("", ""))
                if mark == one.fingerprint and owner in (None, owned_by):
                    continue
                signature = sql.SQL(_FUNCTIONS[one.name])
                connection.execute(one.statement)
                connection.execute(sql.SQL("REVOKE ALL ON FUNCTION {} FROM PUBLIC").format(signature))
                connection.execute(
                    sql.SQL("COMMENT ON FUNCTION {} IS {}").format(signature, sql.Literal(one.fingerprint))
                )
                if owner is not None and owner != owned_by:
                    _give(connection, signature, owner)
                made.append(f"created function docferry.{one.name}")
            if owner is not None:
                _grant(connection, owner)
            there = connection.execute(_SEND["has_send_trigger"].encode()).fetchone() == (True,)
            if self._settings.sends and not there:
                connection.execute(_SEND["send_trigger"].encode())
            if there and not self._settings.sends:
                connection.execute("DROP TRIGGER send_to_lambda ON docferry.outbox")

        _locked_shortly(connection, "docferry.outbox", create)
        done += made

    def _create_triggers(
        self, connection: Connection, table: str, wanted: Sequence[Definition], stale: Sequence[Definition]
    ) -> None:
        name = sql.Identifier(*split_table(table))

        def create() -> None:
            for one in wanted:
                trigger = sql.Identifier(one.name)
                connection.execute(sql.SQL("DROP TRIGGER IF EXISTS {} ON {}").format(trigger, name))
                connection.execute(one.statement)
                connection.execute(
                    sql.SQL("COMMENT ON TRIGGER {} ON {} IS {}").format(trigger, name, sql.Literal(one.fingerprint))
                )
                if self._settings.enable_always:
                    connection.execute(sql.SQL("ALTER TABLE {} ENABLE ALWAYS TRIGGER {}").format(name, trigger))

        def create_as_guest() -> None:
            for one in stale:
                connection.execute(one.replacing or one.statement)

        _locked_shortly(connection, table, create if _owns(connection, table) else create_as_guest)
        for (owner,) in connection.execute(_SQL["partition_owner"].encode(), split_table(table)).fetchall():
            connection.execute(
                sql.SQL("GRANT EXECUTE ON FUNCTION docferry.sync_to_dynamodb() TO {}").format(sql.Identifier(owner))
            )

    def _drop_triggers(self, connection: Connection, table: str) -> None:
        name = sql.Identifier(*split_table(table))
        triggers = [trigger for found, trigger, *_ in _all(connection, "triggers") if found == table]

        def drop() -> None:
            for trigger in triggers:
                connection.execute(sql.SQL("DROP TRIGGER IF EXISTS {} ON {}").format(sql.Identifier(trigger), name))

        _locked_shortly(connection, table, drop)


def _is_captured(found: Collection[str]) -> bool:
    """Whether these triggers see every change of their table."""
    return {CHANGES, KEY_CHANGE, NESTED, TRUNCATE}.issubset(found)


def _is_there(wanted: Definition, found: Mapping[str, _Found]) -> bool:
    return found.get(wanted.name) in (wanted.fingerprint, wanted.parts)


def _owns(connection: Connection, table: str) -> bool:
    return connection.execute(_SQL["owns_table"].encode(), split_table(table)).fetchone() == (True,)


def _drop_function(connection: Connection) -> None:
    connection.execute("DROP FUNCTION IF EXISTS docferry.sync_to_dynamodb() CASCADE")


def _locked_shortly(connection: Connection, table: str, change: Callable[[], None]) -> None:
    """Run DDL on a table that the application writes to: its statements never queue behind ours for long (R7)."""
    for attempt in range(1, _LOCK_ATTEMPTS + 1):
        try:
            with connection.transaction():
                connection.execute(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'")
                change()
        except pg.LockNotAvailable:
            if attempt == _LOCK_ATTEMPTS:
                raise SourceUnavailable(
                    f"{table} is in use by a transaction that does not end, so its triggers could not be changed",
                    remedy="Run it again at a quieter time, or end the transaction (see pg_stat_activity).",
                ) from None
            time.sleep(0.2 * attempt)
        else:
            return


def _give(connection: Connection, signature: sql.SQL, owner: str) -> None:
    """Make a role the owner of a function; for that it needs CREATE on the schema, for that moment."""
    role = sql.Identifier(owner)
    connection.execute(sql.SQL("GRANT USAGE, CREATE ON SCHEMA docferry TO {}").format(role))
    connection.execute(sql.SQL("ALTER FUNCTION {} OWNER TO {}").format(signature, role))
    connection.execute(sql.SQL("REVOKE CREATE ON SCHEMA docferry FROM {}").format(role))


def _grant(connection: Connection, owner: str) -> None:
    """What the trigger functions need, and nothing more."""
    role = sql.Identifier(owner)
    for right in (
        "USAGE ON SCHEMA docferry",
        "SELECT, INSERT, DELETE ON docferry.outbox",
        "USAGE ON SEQUENCE docferry.positions, docferry.missed",
        "SELECT ON SEQUENCE docferry.sleeping",
        "SELECT, USAGE, UPDATE ON SEQUENCE docferry.send_failures, docferry.send_after",
    ):
        connection.execute(sql.SQL("GRANT {} TO {}").format(sql.SQL(right), role))


def _existing(connection: Connection, tables: Sequence[str]) -> list[str]:
    names = [split_table(table) for table in tables]
    parameters = (list(tables), [schema for schema, _ in names], [name for _, name in names])
    return [table for (table,) in connection.execute(_SQL["existing"].encode(), parameters)]


def _all(connection: Connection, name: str) -> list[tuple[Any, ...]]:
    return connection.execute(_SQL[name].encode()).fetchall()


def _one(connection: Connection, name: str, parameters: Any = None) -> tuple[Any, ...]:
    row = connection.execute(_SQL[name].encode(), parameters).fetchone()
    assert row is not None
    return row


def _told(connection: Connection, name: str, otherwise: str) -> str:
    """What the server says, or `otherwise` where it does not tell."""
    try:
        return str(_one(connection, name)[0])
    except (psycopg.ProgrammingError, psycopg.NotSupportedError, psycopg.DataError, pg.InternalError):
        return otherwise
