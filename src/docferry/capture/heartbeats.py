"""Heartbeats, over a connection of their own: neither other writes nor a standby that is away may hold them up."""

from __future__ import annotations

import threading
from typing import Any, TypeAlias

import psycopg

from docferry.source.session import close_shared, connect, translated

__all__ = ["Heartbeats"]

_Parameters: TypeAlias = tuple[Any, ...] | dict[str, Any]


class Heartbeats:
    """Writes them, over a connection that is opened when needed and again after it broke."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._lock = threading.Lock()
        self._connection: psycopg.Connection[tuple[Any, ...]] | None = None

    def write(self, statement: str, parameters: _Parameters) -> None:
        """Raises SourceUnavailable, SourceRefused, NotApplied."""
        with self._lock, translated():
            if self._connection is None or self._connection.closed:
                self._connection = connect(self._dsn, purpose="heartbeat")
                # The next one says it again; a commit that waits for a standby would look like a dead worker.
                self._connection.execute("SET synchronous_commit = local")
            try:
                self._connection.execute(statement.encode(), parameters)
            except psycopg.OperationalError:
                self._connection.close()
                raise

    def close(self) -> None:
        """Release the connection."""
        close_shared(self._lock, self._connection)
