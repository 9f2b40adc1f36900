"""What became of a transaction whose event came before its commit (R5)."""

from __future__ import annotations

import threading
from typing import Any, Final

import psycopg
from psycopg import errors as pg

from docferry.capture.contract import TransactionState
from docferry.source.session import connect, translated
from docferry.source.statements import load

__all__ = ["PostgresTransactions"]

_SQL: Final = load("outbox.sql")
_SNAPSHOT: Final = load("snapshot.sql")
_STATES: Final = {
    "committed": TransactionState.COMMITTED,
    "aborted": TransactionState.ABORTED,
    "in progress": TransactionState.IN_PROGRESS,
}


class PostgresTransactions:
    """contract.TransactionGate over one connection, opened when needed and again after it broke."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._lock = threading.Lock()
        self._connection: psycopg.Connection[tuple[Any, ...]] | None = None

    def state(self, transaction: int) -> TransactionState:
        """See the contract. UNKNOWN: too old, or of another history of this server."""
        with self._lock, translated():
            used = self._connection is not None and not self._connection.closed
            try:
                return self._ask(transaction)
            except psycopg.OperationalError:
                if not used:
                    raise
            # The server may have been restarted since the last question.
            return self._ask(transaction)

    def _ask(self, transaction: int) -> TransactionState:
        if self._connection is None or self._connection.closed:
            self._connection = connect(self._dsn, purpose="transactions")
        try:
            row = self._connection.execute(_SQL["transaction_status"].encode(), (str(transaction),)).fetchone()
            if row is not None and row[0] == "committed":
                # It may have committed asynchronously; a commit of ours flushes the log up to it and further.
                self._connection.execute(_SNAPSHOT["flush_without_log"].encode())
        except (pg.InvalidParameterValue, pg.DataError):
            return TransactionState.UNKNOWN  # in the future, says the server
        except psycopg.OperationalError:
            self._connection.close()
            raise
        assert row is not None
        return _STATES.get(row[0], TransactionState.UNKNOWN)

    def close(self) -> None:
        """Release the connection."""
        if self._connection is not None:
            self._connection.close()
        self._connection = None
