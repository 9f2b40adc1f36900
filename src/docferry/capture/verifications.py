"""How far verifications are, kept in the ledger's schema; and whether a commit is on its way to be seen (R5)."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import psycopg
from psycopg.types.json import Jsonb

from docferry.capture.contract import KeyTexts, VerificationRecord
from docferry.capture.running import RUNNING, running
from docferry.errors import Interrupted
from docferry.source.session import connect, translated
from docferry.source.statements import load

__all__ = ["PostgresVerifications"]

_SQL: Final = {**load("verify.sql"), **RUNNING}
_ORDINARY = ("idle",)
_COMMITTED = ("standby", "hidden")


class PostgresVerifications:
    """contract.Verifications and contract.CommitGate over one connection, opened when needed and again after it
    broke."""

    def __init__(self, dsn: str, stop: threading.Event) -> None:
        self._dsn = dsn
        self._stop = stop
        self._lock = threading.Lock()
        self._connection: psycopg.Connection[tuple[Any, ...]] | None = None

    # -- contract.Verifications ---------------------------------------------------------------------------------------

    def start(
        self, table: str, run: str, epoch: int, position: int, output: str | None, grounds: str
    ) -> VerificationRecord:
        """See the contract."""
        parameters = {
            "table": table,
            "run": run,
            "epoch": epoch,
            "position": position,
            "output": output,
            "grounds": grounds,
        }
        return _record(self._execute("start", parameters)[0])

    def advance(
        self,
        record: VerificationRecord,
        phase: str,
        done_key: KeyTexts | None,
        counts: Mapping[str, Any],
        output_bytes: int,
    ) -> None:
        """See the contract."""
        self._execute(
            "advance",
            {
                "id": record.id,
                "phase": phase,
                "done_key": None if done_key is None else list(done_key),
                "counts": Jsonb(dict(counts)),
                "output_bytes": output_bytes,
            },
        )

    def finish(self, record: VerificationRecord, counts: Mapping[str, Any], *, clean: bool) -> None:
        """See the contract."""
        self._execute("finish", {"id": record.id, "counts": Jsonb(dict(counts)), "clean": clean})

    def records(self) -> list[VerificationRecord]:
        """See the contract."""
        if not self._execute("exists")[0][0]:
            return []
        return [_record(row) for row in self._execute("records")]

    # -- contract.CommitGate ------------------------------------------------------------------------------------------

    def wait_for_commits(self, seconds: float) -> bool:
        """See the contract."""
        waiting = running(self._execute)
        deadline = time.monotonic() + seconds
        pause = 0.002
        states: list[str] = []
        while waiting:
            rows = [row for row in self._execute("in_progress", (waiting,)) if row[1] not in _ORDINARY]
            waiting, states = [row[0] for row in rows], [row[1] for row in rows]
            if not waiting or time.monotonic() >= deadline:
                break
            if self._stop.wait(pause):
                raise Interrupted("stopped while waiting for commits to become visible")
            pause = min(pause * 2, 0.1)
        return not any(state in _COMMITTED for state in states)

    # -- pieces -------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Release the connection."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
            self._connection = None

    def _execute(self, name: str, parameters: Any = ()) -> list[tuple[Any, ...]]:
        with self._lock, translated():
            if self._connection is None or self._connection.closed:
                self._connection = connect(self._dsn, purpose="verify")
                # What is lost of it is done again; a standby that does not answer must not hold it up.
                self._connection.execute("SET synchronous_commit = local")
            try:
                cursor = self._connection.execute(_SQL[name].encode(), parameters)
                return cursor.fetchall() if cursor.description else []
            except psycopg.OperationalError:
                self._connection.close()
                raise


def _record(row: tuple[Any, ...]) -> VerificationRecord:
    record = VerificationRecord(*row)
    return replace(
        record,
        position=int(record.position),
        done_key=None if record.done_key is None else tuple(record.done_key),
    )
