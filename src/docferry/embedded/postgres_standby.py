"""A streaming standby of an embedded PostgreSQL, for tests of failover."""

from __future__ import annotations

from collections.abc import Mapping

import psycopg

from docferry.embedded.postgres import EmbeddedPostgres

__all__ = ["EmbeddedStandby"]


class EmbeddedStandby(EmbeddedPostgres):
    """A standby made by a base backup of `primary`, which runs, streaming from a physical slot `name` that is created
    there. PostgreSQL 17 or later: it synchronises failover slots. `settings`: win over the primary's."""

    def __init__(
        self, primary: EmbeddedPostgres, *, name: str = "standby", settings: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(
            {
                "primary_conninfo": (
                    f"host=127.0.0.1 port={primary.port} user=postgres dbname=postgres application_name={name}"
                ),
                "primary_slot_name": name,
                "sync_replication_slots": "on",
                "hot_standby_feedback": "on",
                "wal_retrieve_retry_interval": "200ms",
                **(settings or {}),
            }
        )
        self._primary = primary
        self._name = name

    def promote(self) -> None:
        """Make it a primary of its own; returns when it takes writes."""
        with psycopg.connect(self.dsn(), autocommit=True) as connection:
            connection.execute("SELECT pg_catalog.pg_promote(true, 60)")

    def _fill(self) -> None:
        with psycopg.connect(self._primary.dsn(), autocommit=True) as connection:
            connection.execute("SELECT pg_catalog.pg_create_physical_replication_slot(%s, true)", [self._name])
        self._run_program(
            "pg_basebackup",
            "--pgdata",
            self.data_directory,
            "--dbname",
            self._primary.dsn(),
            "--slot",
            self._name,
            "--checkpoint=fast",
            "--no-sync",
        )
        (self.data_directory / "standby.signal").touch()
