"""One connection of the load generator, and what it counts."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final, Self

import psycopg
from psycopg.pq import ConnStatus, DiagnosticField, ExecStatus
from psycopg.pq.abc import PGresult

from docferry.errors import DocferryError, SourceRefused
from docferry.operate.load_table import LoadTable
from docferry.source.session import connect, translated

__all__ = ["KINDS", "Client", "LoadError", "Tally"]

KINDS: Final = ("insert", "select", "update", "delete")
INSERT, SELECT, UPDATE, DELETE = range(len(KINDS))

_STATUSES: Final = (b"pending", b"processing", b"shipped", b"returned")
_CONNECTION_FAILURE: Final = "08006"
_PAUSE_SECONDS: Final = 0.2
_STEPS: Final = 32
"""Latencies are counted in steps of a 32nd of an octave, so they are exact to 2.2% and take no room."""


@dataclass(slots=True)
class Tally:
    """Statements of one kind: how many succeeded and failed, and the former's latencies as a histogram."""

    failed: int = 0
    steps: Counter[int] = field(default_factory=Counter)

    @property
    def done(self) -> int:
        """How many succeeded."""
        return self.steps.total()

    def add(self, nanoseconds: int) -> None:
        """One succeeded."""
        self.steps[int(math.log2(nanoseconds or 1) * _STEPS)] += 1

    def quantile(self, share: float) -> float | None:
        """Milliseconds that so large a share of the statements took at most, None if there were none."""
        wanted = share * self.done
        seen = 0
        for step in sorted(self.steps):
            seen += self.steps[step]
            if seen >= wanted:
                return round(2 ** ((step + 0.5) / _STEPS) / 1e6, 3)
        return None

    @classmethod
    def of(cls, tallies: Iterable[Tally]) -> Self:
        """All of them in one."""
        total = cls()
        for tally in tallies:
            total.failed += tally.failed
            total.steps.update(tally.steps)
        return total


@dataclass(slots=True)
class LoadError:
    """Statements that failed with one SQLSTATE, and attempts to connect again, which are 08006 like every broken
    connection. `message`: the first one's."""

    sqlstate: str
    count: int
    message: str

    @staticmethod
    def summed(errors: Iterable[LoadError]) -> list[LoadError]:
        """One for each SQLSTATE, the most frequent first."""
        found: dict[str, LoadError] = {}
        for error in errors:
            known = found.setdefault(error.sqlstate, LoadError(error.sqlstate, 0, error.message))
            known.count += error.count
        return sorted(found.values(), key=lambda error: (-error.count, error.sqlstate))


class Client:
    """A connection, and the rows that it inserted: no other row is ever updated or deleted, and no two clients wait for
    each other's rows. `counts`: statements a round, in the order of KINDS. `ids`: its rows, as text."""

    def __init__(
        self, dsn: str, table: LoadTable, counts: Sequence[int], documents: Sequence[bytes], random: Random
    ) -> None:
        self._dsn = dsn
        self._statements = [table.statement(kind) for kind in KINDS]
        self._counts = counts
        self._documents = documents
        self._random = random
        self._connection: psycopg.Connection[tuple[Any, ...]] | None = None
        self.ids: list[bytes] = []
        self.tallies = [Tally() for _ in KINDS]
        self.errors: dict[str, LoadError] = {}
        self.done = 0
        self.unsure = 0

    def open(self) -> None:
        """Connect as an application does: settings are the role's own. Raises SourceUnavailable, SourceRefused."""
        self.close()
        self._connection = connect(self._dsn, purpose="load")
        with translated():
            self._connection.execute("RESET ALL")
            for kind, statement in zip(KINDS, self._statements, strict=True):
                result = self._connection.pgconn.prepare(kind.encode(), statement)
                if result.status != ExecStatus.COMMAND_OK:
                    raise _refusal(result)

    def fill(self, rows: int) -> None:
        """Insert the first rows, in one transaction; they do not count. Raises SourceRefused, SourceUnavailable."""
        assert self._connection is not None
        filled: list[bytes] = []
        with translated(), self._connection.transaction():
            self._connection.execute("SET LOCAL lock_timeout = '10s'")
            for _ in range(rows):
                result = self._execute(INSERT)
                if result is None or result.status != ExecStatus.TUPLES_OK:
                    raise _refusal(result)
                filled.append(result.get_value(0, 0) or b"")
        self.ids += filled

    def close(self) -> None:
        """Disconnect."""
        if self._connection is not None:
            self._connection.close()

    def cancel(self) -> None:
        """End the statement that runs, from another thread."""
        if self._connection is not None:
            self._connection.cancel_safe(timeout=5)

    def work(self, stop: threading.Event) -> None:
        """Round after round until `stop`."""
        round_ = [kind for kind, count in enumerate(self._counts) for _ in range(count)]
        while not stop.is_set():
            self._random.shuffle(round_)
            for kind in round_:
                if stop.is_set():
                    return
                # They run out only where inserts fail and deletes do not.
                if kind == INSERT or self.ids:
                    self._one(kind, stop)

    def _one(self, kind: int, stop: threading.Event) -> None:
        began = time.perf_counter_ns()
        result = self._execute(kind)
        took = time.perf_counter_ns() - began
        if result is not None and result.status in (ExecStatus.TUPLES_OK, ExecStatus.COMMAND_OK):
            self.tallies[kind].add(took)
            self.done += 1
            self._took_place(kind, result)
            return
        self.tallies[kind].failed += 1
        self._note(result)
        if self._connection is None or self._connection.pgconn.status != ConnStatus.OK:
            self.unsure += kind == INSERT
            self._reopen(stop)

    def _execute(self, kind: int) -> PGresult | None:
        """None when the connection is broken. The chosen row is the last of `ids` afterwards."""
        assert self._connection is not None
        parameters: list[bytes] = []
        if kind == INSERT:
            parameters = [b"new", self._random.choice(self._documents)]
        else:
            ids = self.ids
            chosen = self._random.randrange(len(ids))
            ids[chosen], ids[-1] = ids[-1], ids[chosen]
            parameters = [self._random.choice(_STATUSES), ids[-1]] if kind == UPDATE else [ids[-1]]
        try:
            return self._connection.pgconn.exec_prepared(KINDS[kind].encode(), parameters)
        except psycopg.OperationalError:
            return None

    def _took_place(self, kind: int, result: PGresult) -> None:
        if kind == INSERT:
            self.ids.append(result.get_value(0, 0) or b"")
        elif kind == DELETE:
            self.ids.pop()

    def _note(self, result: PGresult | None) -> None:
        sqlstate, message = _described(result)
        self.errors.setdefault(sqlstate, LoadError(sqlstate, 0, message)).count += 1

    def _reopen(self, stop: threading.Event) -> None:
        """Connect again, for as long as that takes."""
        while not stop.wait(_PAUSE_SECONDS):
            try:
                self.open()
            except DocferryError as error:
                self.errors.setdefault(_CONNECTION_FAILURE, LoadError(_CONNECTION_FAILURE, 0, str(error))).count += 1
            else:
                return


def _described(result: PGresult | None) -> tuple[str, str]:
    """SQLSTATE and message."""
    if result is None:
        return _CONNECTION_FAILURE, "the connection is broken"
    state = result.error_field(DiagnosticField.SQLSTATE) or _CONNECTION_FAILURE.encode()
    message = result.error_field(DiagnosticField.MESSAGE_PRIMARY) or result.error_message
    return state.decode(), message.decode(errors="replace").strip()


def _refusal(result: PGresult | None) -> SourceRefused:
    sqlstate, message = _described(result)
    return SourceRefused(
        f"source: {message} (SQLSTATE {sqlstate})",
        remedy="The load needs INSERT, SELECT, UPDATE and DELETE on its table, and defaults for id and both times.",
    )
