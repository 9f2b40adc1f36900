"""What became of a transaction whose event came before its commit (R5)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from typing import Any, Final, TypeAlias, TypeVar

import psycopg
from psycopg import errors as pg

from docferry.capture.contract import TransactionState
from docferry.source.session import connect, translated
from docferry.source.statements import load

__all__ = ["PostgresTransactions"]

_Connection: TypeAlias = psycopg.Connection[tuple[Any, ...]]
_T = TypeVar("_T")
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
        self._connection: _Connection | None = None

    def state(self, transaction: int) -> TransactionState:
        """See the contract. UNKNOWN: too old, or of another history of this server."""

        def ask(connection: _Connection) -> TransactionState:
            try:
                row = connection.execute(_SQL["transaction_status"].encode(), (str(transaction),)).fetchone()
            except (pg.InvalidParameterValue, pg.DataError):
                return TransactionState.UNKNOWN  # in the future, says the server
            assert row is not None
            if row[0] == "committed":
                # It may have committed asynchronously; a commit of ours flushes the log up to it and further.
                connection.execute(_SNAPSHOT["flush_without_log"].encode())
            return _STATES.get(row[0], TransactionState.UNKNOWN)

        return self._asked(ask)

    def rolled_back(self, subtransactions: Collection[int]) -> set[int]:
        """See the contract."""

        def ask(connection: _Connection) -> set[int]:
            try:
                rows = connection.execute(_SQL["rolled_back"].encode(), (list(subtransactions),)).fetchall()
            except (pg.InvalidParameterValue, pg.DataError):
                return set(subtransactions)  # in the future, says the server: a crash took them back
            return {one for (one,) in rows}

        return self._asked(ask)

    def _asked(self, ask: Callable[[_Connection], _T]) -> _T:
        with self._lock, translated():
            used = self._connection is not None and not self._connection.closed
            try:
                return self._answer(ask)
            except psycopg.OperationalError:
                if not used:
                    raise
            # The server may have been restarted since the last question.
            return self._answer(ask)

    def _answer(self, ask: Callable[[_Connection], _T]) -> _T:
        if self._connection is None or self._connection.closed:
            self._connection = connect(self._dsn, purpose="transactions")
        try:
            return ask(self._connection)
        except psycopg.OperationalError:
            self._connection.close()
            raise

    def close(self) -> None:
        """Release the connection."""
        if self._connection is not None:
            self._connection.close()
        self._connection = None
