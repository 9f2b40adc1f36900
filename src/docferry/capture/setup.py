"""Publication and slot: looked at, created, removed. Every step is idempotent."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import psycopg
from psycopg import errors as pg
from psycopg import pq, sql

from docferry.capture.catalog import split_table
from docferry.capture.contract import StreamState
from docferry.capture.replication import SystemIdentity, identify_system
from docferry.capture.slot_limit import forget_limit, moved, read_limit
from docferry.errors import AlreadyRunning, SourceRefused
from docferry.source.session import connect, translated
from docferry.source.statements import load

__all__ = ["ReplicationSetup", "ServerInfo", "SlotInfo"]

_log = logging.getLogger(__name__)
_SQL: Final = load("replication.sql")
_OLDEST: Final = 140000
_FAILOVER: Final = 170000
# What the server says of a slot that it invalidated, in words.
_INVALIDATED: Final = {
    "wal_removed": "the server dropped WAL that the replication slot {slot} needed (max_slot_wal_keep_size)",
    "idle_timeout": "the server invalidated the replication slot {slot}, because nobody had read it for longer than "
    "idle_replication_slot_timeout",
    "wal_level_insufficient": "the server invalidated the replication slot {slot}, because wal_level was below "
    "logical for a while",
    "rows_removed": "the server invalidated the replication slot {slot}, because rows of the catalog that it needs "
    "were removed while this was a standby",
}

_WORTH_A_LOOK: Final = 64 << 20
_MOST_MESSAGES: Final = 10_000


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """The source's server and our role on it."""

    wal_level: str
    version_number: int
    version: str
    in_recovery: bool
    role: str
    database: str
    may_replicate: bool


@dataclass(frozen=True, slots=True)
class SlotInfo:
    """A slot. Positions are LSNs as integers; `current` is the server's own. `lost`: of no use any more.
    `invalidation`: the server's word for why, empty where it has none. `failover`: it follows to standbys, None before
    PostgreSQL 17. `safe`: see StreamState."""

    database: str
    plugin: str
    active: bool
    lost: bool
    confirmed: int
    restart: int | None
    current: int
    wal_status: str | None
    invalidation: str = ""
    failover: bool | None = None
    safe: int | None = None

    def is_lost(self, name: str) -> str:
        """Why the lost slot is of no use any more, in words."""
        # Before PostgreSQL 17 there is no word for it, and next to nothing but that it can be.
        words = _INVALIDATED.get(self.invalidation or "wal_removed")
        if words is None:
            return f"the server invalidated the replication slot {name} ({self.invalidation})"
        return words.format(slot=name)


class ReplicationSetup:
    """contract.CaptureSetup for capture mode `replication`: a publication and a slot. `failover`: where the server can
    do that, the slot follows to standbys."""

    def __init__(self, dsn: str, slot: str, publication: str, *, failover: bool = True) -> None:
        self._dsn = dsn
        self.slot_name = slot
        self.publication_name = publication
        self._failover = failover

    # -- the contract -------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """See the contract: version, role in the cluster, wal_level, rights, and whose the slot and publication are."""
        server = self.server()
        self.check_server(server)
        self._check_slot(self.slot(), server)
        with connect(self._dsn, purpose="setup") as connection, translated():
            found = connection.execute(_SQL["publication"].encode(), (self.publication_name,)).fetchone()
            partial = self._partly(connection)
            ours = self._is_remembered(connection)
        if found is not None and found[1]:
            raise self._for_all_tables()
        # One that a stream of ours began with was narrowed since, and `prepare` publishes the rest again.
        if partial and not ours:
            raise SourceRefused(
                f"publication {self.publication_name} leaves out rows or columns of {', '.join(partial)}",
                remedy="Publish these tables without WHERE and column list, or choose another name with [source] "
                "publication.",
            )

    def _check_slot(self, slot: SlotInfo | None, server: ServerInfo) -> None:
        if slot is not None and (slot.plugin != "pgoutput" or slot.database != server.database):
            raise SourceRefused(
                f"the replication slot {self.slot_name} exists, for plugin {slot.plugin} in database {slot.database}",
                remedy="Choose another name with [source] slot.",
            )

    def _for_all_tables(self) -> SourceRefused:
        return SourceRefused(
            f"publication {self.publication_name} is FOR ALL TABLES and was not made by docferry",
            remedy="Choose another name with [source] publication.",
        )

    def history(self) -> tuple[str, int]:
        """See the contract."""
        return self.identity().history

    def gap(self) -> str | None:
        """See the contract."""
        slot = self.slot()
        if slot is None:
            return f"the replication slot {self.slot_name} does not exist"
        if slot.lost:
            return slot.is_lost(self.slot_name)
        if self.published() is None:
            return f"the publication {self.publication_name} does not exist"
        if self._replaced():
            return f"the publication {self.publication_name} was dropped and created again"
        return self._moved(slot)

    def _moved(self, slot: SlotInfo) -> str | None:
        """Whether somebody else moved the slot, in words. The limit is read behind the slot: it is raised first."""
        with connect(self._dsn, purpose="setup") as connection, translated():
            limit = read_limit(connection, self.slot_name)
        return moved(self.slot_name, slot.confirmed, limit) if limit is not None and slot.confirmed > limit else None

    def uncaptured(self, tables: Sequence[str]) -> list[str]:
        """See the contract."""
        names = [split_table(table) for table in tables]
        parameters = (list(tables), [schema for schema, _ in names], [name for _, name in names])
        with connect(self._dsn, purpose="setup") as connection, translated():
            rows = connection.execute(_SQL["uncaptured"].encode(), (*parameters, *[self.publication_name] * 2))
            return [table for (table,) in rows]

    def missing(self, tables: Sequence[str]) -> list[str]:
        """See the contract."""
        published = self.published()
        steps = []
        if published is None:
            steps.append(f"create publication {self.publication_name} for {', '.join(tables)}")
        else:
            with connect(self._dsn, purpose="setup") as connection, translated():
                narrowed, partial = self._is_narrowed(connection), self._partly(connection)
            if narrowed:
                steps.append(f"set publication {self.publication_name} to publish everything via partition roots")
            if partial or set(published) != set(tables):
                steps.append(f"set the tables of publication {self.publication_name} to {', '.join(tables)}")
        slot = self.slot()
        if slot is None:
            steps.append(f"create replication slot {self.slot_name}")
        elif slot.lost:
            steps.append(f"drop and create replication slot {self.slot_name}, which is lost")
        elif published is None or self._replaced():
            steps.append(f"drop and create replication slot {self.slot_name}, which is older than the publication")
        elif self._moved(slot) is not None:
            steps.append(f"drop and create replication slot {self.slot_name}, which somebody else moved")
        elif self._differs(slot):
            steps.append(self._following(slot))
        return steps

    def _differs(self, slot: SlotInfo) -> bool:
        return slot.failover is not None and slot.failover is not self._failover

    def _following(self, slot: SlotInfo) -> str:
        return f"let replication slot {self.slot_name} {'no longer ' if slot.failover else ''}follow to standbys"

    def prepare(self, tables: Sequence[str]) -> list[str]:
        """See the contract. The publication comes first: the slot's stream must never precede it."""
        server = self.server()
        slot = self.slot()
        self._check_slot(slot, server)
        # Decoding what precedes the publication fails for good before PostgreSQL 18, and skips silently from then on.
        if slot is not None and (
            slot.lost or self.published() is None or self._replaced() or self._moved(slot) is not None
        ):
            self.drop_slot()
            slot = None
        done = self.create_publication(tables)
        if slot is None:
            with connect(self._dsn, purpose="setup") as connection, translated():
                # Whoever streams first from the new slot takes it as it stands: what came before is populated.
                forget_limit(connection, self.slot_name)
            self.create_slot(server)
            done.append(f"created replication slot {self.slot_name}")
        elif self._differs(slot) and self.alter_slot():
            done.append(self._following(slot))
        self._remember_publication()
        return done

    def present(self) -> list[str]:
        """See the contract."""
        found = []
        if self.slot() is not None:
            found.append(f"replication slot {self.slot_name}")
        if self._owns_publication():
            found.append(f"publication {self.publication_name}")
        return found

    def remove(self) -> list[str]:
        """See the contract."""
        done = []
        if self.drop_slot():
            done.append(f"dropped replication slot {self.slot_name}")
        if self._owns_publication() is False:
            done.append(f"left publication {self.publication_name}, which another role owns")
        elif self.drop_publication():
            done.append(f"dropped publication {self.publication_name}")
        return done

    def state(self) -> StreamState | None:
        """See the contract."""
        slot = self.slot()
        if slot is None:
            return None
        retained = slot.current - slot.restart if slot.restart is not None else 0
        health = slot.wal_status or "unknown"
        return StreamState(slot.confirmed, slot.current, slot.active, max(retained, 0), health, safe=slot.safe)

    def idle(self) -> bool:
        """See the contract. The slot is looked into, which nobody else may do at the time."""
        slot = self.slot()
        if slot is None or slot.active or slot.current - slot.confirmed > _WORTH_A_LOOK:
            return False
        with connect(self._dsn, purpose="verify") as connection:
            try:
                row = connection.execute(
                    _SQL["waiting"].encode(), (self.slot_name, _MOST_MESSAGES, self.publication_name)
                ).fetchone()
            except pg.ObjectInUse:
                return False  # a worker has just begun
            except psycopg.Error:
                with translated():
                    raise
        assert row is not None
        return not row[1] and row[0] < _MOST_MESSAGES

    # -- pieces -------------------------------------------------------------------------------------------------------

    def server(self) -> ServerInfo:
        """Raises SourceUnavailable, SourceRefused."""
        with connect(self._dsn, purpose="setup") as connection, translated():
            row = connection.execute(_SQL["server"].encode()).fetchone()
        assert row is not None
        return ServerInfo(*row)

    @staticmethod
    def check_server(server: ServerInfo) -> None:
        """Raises SourceRefused when logical replication cannot work here."""
        if server.version_number < _OLDEST:
            raise SourceRefused(
                f"the source is PostgreSQL {server.version}", remedy="docferry needs PostgreSQL 14 or later."
            )
        if server.in_recovery:
            raise SourceRefused("the source is a standby", remedy="Point [source] dsn at the primary.")
        if server.wal_level != "logical":
            raise SourceRefused(
                f"the source runs with wal_level = {server.wal_level}; logical replication needs wal_level = logical",
                remedy="ALTER SYSTEM SET wal_level = 'logical' and restart the server (on RDS and Aurora: set "
                "rds.logical_replication = 1 in the cluster parameter group and reboot).",
            )
        if not server.may_replicate:
            raise SourceRefused(
                f"role {server.role} may not replicate",
                remedy=f"ALTER ROLE {server.role} REPLICATION (on RDS and Aurora: GRANT rds_replication TO "
                f"{server.role}).",
            )

    def identity(self) -> SystemIdentity:
        """The history that the source is on."""
        with connect(self._dsn, purpose="setup", replication=True) as connection, translated():
            return identify_system(connection)

    def slot(self) -> SlotInfo | None:
        """The slot, None if there is none."""
        with connect(self._dsn, purpose="setup") as connection, translated():
            row = connection.execute(_SQL["slot"].encode(), (self.slot_name,)).fetchone()
        if row is None:
            return None
        database, plugin, active, lost, confirmed, restart, current, status, invalidation, failover, safe = row
        return SlotInfo(
            database,
            plugin,
            active,
            lost,
            int(confirmed or 0),
            None if restart is None else int(restart),
            int(current),
            status,
            invalidation,
            failover,
            None if safe is None else int(safe),
        )

    def published(self) -> list[str] | None:
        """The publication's tables, None if there is no publication."""
        with connect(self._dsn, purpose="setup") as connection, translated():
            if connection.execute(_SQL["publication"].encode(), (self.publication_name,)).fetchone() is None:
                return None
            return [
                table for (table,) in connection.execute(_SQL["published_tables"].encode(), (self.publication_name,))
            ]

    def _partly(self, connection: psycopg.Connection[tuple[Any, ...]]) -> list[str]:
        """The tables of which the publication leaves out rows or columns."""
        rows = connection.execute(_SQL["partly_published"].encode(), (self.publication_name,))
        return [table for (table,) in rows]

    def _is_narrowed(self, connection: psycopg.Connection[tuple[Any, ...]]) -> bool:
        """Whether the publication leaves out a kind of change, or names the partitions instead of their root."""
        found = connection.execute(_SQL["publication"].encode(), (self.publication_name,)).fetchone()
        return found is not None and not found[0]

    def _is_remembered(self, connection: psycopg.Connection[tuple[Any, ...]]) -> bool:
        """Whether a stream of ours began with the publication that is there."""
        if connection.execute(_SQL["keeps_publication"].encode()).fetchone() != (True,):
            return False
        found = connection.execute(_SQL["remembered_publication"].encode(), (self.publication_name,)).fetchone()
        return found is not None

    def _remember_publication(self) -> None:
        with connect(self._dsn, purpose="setup") as connection, translated():
            if connection.execute(_SQL["has_schema"].encode()).fetchone() != (True,):
                return
            if connection.execute(_SQL["keeps_publication"].encode()).fetchone() != (True,):
                connection.execute(_SQL["keep_publication"].encode())
            connection.execute(_SQL["remember_publication"].encode(), (self.publication_name,))

    def _replaced(self) -> bool:
        """Whether somebody made the publication anew since the slot's stream began with it."""
        with connect(self._dsn, purpose="setup") as connection, translated():
            if connection.execute(_SQL["keeps_publication"].encode()).fetchone() != (True,):
                return False
            found = connection.execute(_SQL["replaced_publication"].encode(), (self.publication_name,)).fetchone()
            return found is not None

    def _owns_publication(self) -> bool | None:
        """None if there is no publication."""
        with connect(self._dsn, purpose="setup") as connection, translated():
            found = connection.execute(_SQL["owns_publication"].encode(), (self.publication_name,)).fetchone()
            return None if found is None else bool(found[0])

    def create_publication(self, tables: Sequence[str]) -> list[str]:
        """Create the publication or bring its tables in line; returns what was done, in words."""
        name = sql.Identifier(self.publication_name)
        listed = sql.SQL(", ").join(sql.Identifier(*split_table(table)) for table in tables)
        with connect(self._dsn, purpose="setup") as connection, translated():
            found = connection.execute(_SQL["publication"].encode(), (self.publication_name,)).fetchone()
            if found is None:
                connection.execute(
                    sql.SQL("CREATE PUBLICATION {} FOR TABLE {} WITH (publish_via_partition_root = true)").format(
                        name, listed
                    )
                )
                return [f"created publication {self.publication_name} for {', '.join(tables)}"]
            if found[1]:
                raise self._for_all_tables()
            done = []
            rows = connection.execute(_SQL["published_tables"].encode(), (self.publication_name,)).fetchall()
            before = {table for (table,) in rows}
            if not found[0]:
                connection.execute(
                    sql.SQL(
                        "ALTER PUBLICATION {} SET (publish = 'insert, update, delete, truncate', "
                        "publish_via_partition_root = true)"
                    ).format(name)
                )
                done.append(f"set publication {self.publication_name} to publish everything via partition roots")
            if before != set(tables) or self._partly(connection):
                connection.execute(sql.SQL("ALTER PUBLICATION {} SET TABLE {}").format(name, listed))
                done.append(f"set the tables of publication {self.publication_name} to {', '.join(tables)}")
            return done

    def create_slot(self, server: ServerInfo) -> None:
        """Create the slot. Raises SourceRefused, SourceUnavailable."""
        follows = self._failover and server.version_number >= _FAILOVER
        name = "create_failover_slot" if follows else "create_slot"
        with connect(self._dsn, purpose="setup") as connection:
            try:
                connection.execute(_SQL[name].encode(), (self.slot_name,))
            except pg.ConfigurationLimitExceeded as error:
                raise SourceRefused(
                    f"source: {error.diag.message_primary}",
                    remedy="Drop unused slots (see pg_replication_slots) or raise max_replication_slots.",
                ) from error
            except psycopg.Error:
                with translated():
                    raise

    def alter_slot(self) -> bool:
        """Let the slot follow to standbys, or no longer; False while somebody streams from it. Raises SourceRefused,
        SourceUnavailable."""
        command = f"ALTER_REPLICATION_SLOT {self.slot_name} (FAILOVER {str(self._failover).lower()})"
        with connect(self._dsn, purpose="setup", replication=True) as connection:
            result = connection.pgconn.exec_(command.encode())
            if result.status == pq.ExecStatus.COMMAND_OK:
                return True
            message = (result.error_field(pq.DiagnosticField.MESSAGE_PRIMARY) or b"").decode()
            if result.error_field(pq.DiagnosticField.SQLSTATE) == b"55006":
                _log.warning("%s: stop `docferry run` and apply again to change its failover", message)
                return False
            raise SourceRefused(
                f"source: {message or result.get_error_message().strip()}",
                remedy=f"Set [source] failover = {str(not self._failover).lower()} to leave the slot as it is.",
            )

    def drop_slot(self) -> bool:
        """Remove the slot; False if there was none. Raises AlreadyRunning while a worker streams from it."""
        with connect(self._dsn, purpose="setup") as connection:
            try:
                return connection.execute(_SQL["drop_slot"].encode(), (self.slot_name,)).fetchone() is not None
            except pg.ObjectInUse as error:
                raise AlreadyRunning(
                    f"the replication slot {self.slot_name} is in use: {error.diag.message_primary}",
                    remedy="Stop `docferry run` first.",
                ) from error
            except psycopg.Error:
                with translated():
                    raise

    def drop_publication(self) -> bool:
        """Remove the publication; False if there was none."""
        with connect(self._dsn, purpose="setup") as connection, translated():
            if connection.execute(_SQL["publication"].encode(), (self.publication_name,)).fetchone() is None:
                return False
            connection.execute(sql.SQL("DROP PUBLICATION IF EXISTS {}").format(sql.Identifier(self.publication_name)))
        return True

    def mark(self) -> int:
        """Commit a mark of our own; once the confirmed position is above the one returned, everything committed before
        this call is durable at the target."""
        with connect(self._dsn, purpose="wait") as connection, translated():
            # Its place in the log is what counts; a standby that does not answer must not hold up whoever asks.
            connection.execute("SET synchronous_commit = local")
            row: tuple[Any, ...] | None = connection.execute(_SQL["mark"].encode()).fetchone()
        assert row is not None
        return int(row[0])
