"""What docferry keeps in the source, in memory: the ledger and the dead letters, which outlive every process."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Final

from docferry.capture.contract import (
    BackfillRecord,
    BackfillState,
    Columns,
    KeyTexts,
    MirrorRecord,
    VerificationRecord,
)
from docferry.capture.running import running
from docferry.change.model import NUMBER_STEP, make_version
from docferry.deadletter.contract import DeadLetter, DeadLetterGroup, StoredDeadLetter
from docferry.errors import AlreadyRunning, Interrupted, NotApplied, SourceUnavailable

from .scheduler import Event, Process, Scheduler
from .source import Source

__all__ = ["Epoch", "Ledger", "Letters", "Memory", "Verifications"]

_AT: Final = datetime(2026, 1, 1, tzinfo=UTC)
_SWEEP: Final = "sweep"


def _running(source: Source, call: Callable[[str], None]) -> list[int]:
    """As docferry asks for it; the server is called for each of its statements."""

    def execute(statement: str) -> list[tuple[str]]:
        call(f"running.{statement}")
        if statement == "end_a_transaction":
            source.end_a_transaction()
        return [(source.snapshot(),)]

    return [int(one) for one in running(execute)]


@dataclass(frozen=True)
class Epoch:
    """An epoch in force."""

    number: int
    system_identifier: str
    timeline: int
    capture: str


@dataclass(eq=False)
class Lock:
    """An advisory lock, held by a connection of a process for as long as that lives."""

    name: str
    process: Process
    shared: bool = False
    lost: bool = False


@dataclass
class Memory:
    """The tables of schema docferry, and who holds which lock."""

    exists: bool = False
    mirrors: dict[str, MirrorRecord] = field(default_factory=dict)
    backfills: list[BackfillRecord] = field(default_factory=list)
    epoch: Epoch | None = None
    letters: dict[tuple[str, str], StoredDeadLetter] = field(default_factory=dict)
    locks: list[Lock] = field(default_factory=list)
    verifications: list[VerificationRecord] = field(default_factory=list)
    numbers: int = 0

    def number(self) -> int:
        self.numbers += 1
        return self.numbers

    def let_go(self, process: Process) -> None:
        """The server notices that its connections are closed."""
        for lock in [one for one in self.locks if one.process is process]:
            self.lose(lock)

    def lose(self, lock: Lock) -> None:
        """Its connection broke."""
        lock.lost = True
        if lock in self.locks:
            self.locks.remove(lock)

    def is_held(self, name: str) -> bool:
        return any(one.name == name for one in self.locks)


Call = Callable[[str], None]
"""Takes its time, and may raise SourceUnavailable: said before something is done ("name") and after ("name done")."""


class Ledger:
    """operate.admin.AdminLedger as one process sees it."""

    def __init__(
        self, memory: Memory, source: Source, scheduler: Scheduler, process: Process, call: Call, *, epoch: int = 0
    ) -> None:
        self._memory = memory
        self._source = source
        self._scheduler = scheduler
        self._process = process
        self._call = call
        self._epoch = epoch
        self.stop = Event(scheduler)

    # setting up

    def exists(self) -> bool:
        self._call("ledger.exists")
        return self._memory.exists

    def create(self) -> None:
        self._call("ledger.create")
        self._memory.exists = True

    def drop(self) -> None:
        self._call("ledger.drop")
        memory = self._memory
        memory.exists, memory.mirrors, memory.backfills, memory.epoch, memory.letters = False, {}, [], None, {}

    def epoch(self) -> Epoch | None:
        self._call("ledger.epoch")
        return self._memory.epoch

    def begin_epoch(
        self, system_identifier: str, timeline: int, capture: str, at_least: int, populate: Mapping[str, str]
    ) -> Epoch:
        self._call("ledger.begin_epoch")
        for table, reason in populate.items():
            self._request(table, reason, anew=True)
        number = max(at_least, self._memory.epoch.number + 1 if self._memory.epoch else 1)
        epoch = self._memory.epoch = Epoch(number, system_identifier, timeline, capture)
        self._call("ledger.begin_epoch done")
        return epoch

    def captures(self) -> list[str]:
        self._call("ledger.captures")
        return ["replication"]

    # mirrors

    def mirrors(self) -> dict[str, MirrorRecord]:
        self._call("ledger.mirrors")
        return dict(self._memory.mirrors)

    def register_mirror(self, mirror: MirrorRecord, populate: str | None = None) -> None:
        self._call("ledger.register_mirror")
        known = self._memory.mirrors.get(mirror.table)
        if known is not None:
            mirror = replace(mirror, attributes=mirror.attributes | known.attributes, floor=known.floor)
        self._memory.mirrors[mirror.table] = mirror
        if populate is not None:
            self._request(mirror.table, populate, anew=True)
        self._call("ledger.register_mirror done")

    def remove_mirror(self, table: str) -> None:
        raise AssertionError(table)

    def remember_columns(
        self, table: str, columns: Columns, attributes: Collection[str], layout: str
    ) -> frozenset[str]:
        self._call("ledger.remember_columns")
        known = self._memory.mirrors[table]
        known = replace(known, columns=columns, attributes=known.attributes | frozenset(attributes), layout=layout)
        self._memory.mirrors[table] = known
        return known.attributes

    def raise_floor(self, table: str, version: int) -> None:
        self._call("ledger.raise_floor")
        known = self._memory.mirrors[table]
        self._memory.mirrors[table] = replace(known, floor=max(known.floor, version))
        self._call("ledger.raise_floor done")

    def floor(self, table: str) -> int:
        self._call("ledger.floor")
        known = self._memory.mirrors.get(table)
        return known.floor if known else 0

    # backfills

    def backfills(self, *, unfinished_only: bool = False) -> list[BackfillRecord]:
        self._call("ledger.backfills")
        if not self._memory.exists:
            raise NotApplied("docferry has not been set up in this source")
        if unfinished_only:
            return self._unfinished()
        newest = {record.table: record for record in self._memory.backfills}
        return [newest[table] for table in sorted(newest)]

    def request_backfill(self, table: str, reason: str, *, anew: bool = False) -> BackfillRecord:
        self._call("ledger.request_backfill")
        record = self._request(table, reason, anew=anew)
        self._call("ledger.request_backfill done")
        return record

    def _request(self, table: str, reason: str, *, anew: bool) -> BackfillRecord:
        if anew:
            self._memory.backfills = [
                one for one in self._memory.backfills if one.table != table or one.state is BackfillState.DONE
            ]
        found = [one for one in self._unfinished() if one.table == table]
        if not found:
            found = [BackfillRecord(self._memory.number(), table, BackfillState.REQUESTED, reason)]
            self._memory.backfills += found
        return found[0]

    def start_backfill(self, backfill: BackfillRecord, version: int, rows_estimate: int) -> BackfillRecord:
        return self._change(
            backfill,
            "start",
            state=BackfillState.RUNNING,
            version=version,
            rows_estimate=rows_estimate,
            rows_done=0,
            done_key=None,
        )

    def advance_backfill(self, backfill: BackfillRecord, done_key: KeyTexts, rows_done: int) -> None:
        self._change(backfill, "advance", done_key=done_key, rows_done=rows_done)

    def finish_backfill(self, backfill: BackfillRecord, rows_done: int) -> None:
        self._change(backfill, "finish", state=BackfillState.DONE, rows_done=rows_done)

    def take_start_version(self, who: str = "the backfill") -> int:
        del who  # for the log
        self._call("ledger.take_start_version")
        self._source.record()
        position = self.start_position(self._source.end)
        waiting = self.waits_for()
        while not self._source.sees(waiting):
            if self.stop.wait(0.05):
                raise Interrupted("stopped while waiting for transactions to end")
            self._call("ledger.in_progress")
        return make_version(self._epoch, position, NUMBER_STEP - 1)

    @staticmethod
    def start_position(end: int) -> int:
        """R6: strictly below that of any later change."""
        return end - 1

    def waits_for(self) -> list[int]:
        """R6: the transactions that have to end first."""
        return _running(self._source, self._call)

    # locks

    @contextmanager
    def working(self) -> Iterator[Callable[[], None]]:
        with self._locked("worker") as lock:
            if lock is None:
                raise AlreadyRunning("another docferry worker runs for this source")
            held = [lock]

            def hold() -> None:
                self._call("ledger.hold")
                if held[0].lost:
                    if self._memory.is_held("worker"):
                        raise AlreadyRunning("another docferry worker runs for this source")
                    held[0] = Lock("worker", self._process)
                    self._memory.locks.append(held[0])

            try:
                yield hold
            finally:
                self._memory.lose(held[0])

    @contextmanager
    def old_writes(self) -> Iterator[Callable[[], None]]:
        self._call("ledger.old_writes")
        while any(one.name == _SWEEP and not one.shared for one in self._memory.locks):
            self._scheduler.pause(0.01)
        lock = Lock(_SWEEP, self._process, shared=True)
        self._memory.locks.append(lock)

        def check() -> None:
            self._call("ledger.still_held")
            if lock.lost:
                raise SourceUnavailable("source: the connection is closed")

        try:
            yield check
            check()
        finally:
            self._memory.lose(lock)

    @contextmanager
    def sweeping(self) -> Iterator[bool]:
        with self._locked(_SWEEP) as lock:
            yield lock is not None

    @contextmanager
    def backfilling(self, table: str) -> Iterator[bool]:
        with self._locked(f"backfill {table}") as lock:
            yield lock is not None

    def heartbeat(self, _state: Mapping[str, Any]) -> None:
        self._call("ledger.heartbeat")
        self._source.record()

    # inside

    def _unfinished(self) -> list[BackfillRecord]:
        return [one for one in self._memory.backfills if one.state is not BackfillState.DONE]

    def _change(self, backfill: BackfillRecord, what: str, **values: Any) -> BackfillRecord:
        self._call(f"ledger.{what}_backfill")
        for index, known in enumerate(self._memory.backfills):
            running = known.state is BackfillState.RUNNING
            if known.id == backfill.id and (running or (what == "start" and known.state is BackfillState.REQUESTED)):
                changed = self._memory.backfills[index] = replace(known, **values)
                self._call(f"ledger.{what}_backfill done")
                return changed
        raise Interrupted(f"the backfill of {backfill.table} was replaced by a newer request")

    @contextmanager
    def _locked(self, name: str) -> Iterator[Lock | None]:
        self._call(f"ledger.lock {name}")
        lock = None
        if not self._memory.is_held(name):
            lock = Lock(name, self._process)
            self._memory.locks.append(lock)
        try:
            yield lock
        finally:
            if lock is not None:
                self._memory.lose(lock)


class Letters:
    """contract.DeadLetters as one process sees them: one a key, the newest version that failed."""

    def __init__(
        self,
        memory: Memory,
        source: Source,
        scheduler: Scheduler,
        call: Call,
        on_removed: Callable[[DeadLetter], None],
    ) -> None:
        self._memory = memory
        self._source = source
        self._scheduler = scheduler
        self._call = call
        self._on_removed = on_removed

    @property
    def unread(self) -> str:
        return ""

    def add(self, letters: Sequence[DeadLetter]) -> None:
        self._call("letters.add")
        # Commits become visible in their order, about: this one is behind that of the change.
        earlier = [one for one in self._source.open if one.committed]
        while any(one in self._source.open for one in earlier):
            self._scheduler.pause(0.01)
        for letter in letters:
            place = (letter.table, str(sorted(letter.key.items())))
            known = self._memory.letters.get(place)
            if known is None:
                self._memory.letters[place] = StoredDeadLetter(self._memory.number(), letter, 1, _AT, _AT)
            elif letter.version >= known.letter.version:
                self._memory.letters[place] = replace(known, letter=letter, attempts=known.attempts + 1)
        self._call("letters.add done")

    def groups(self) -> list[DeadLetterGroup]:
        raise AssertionError

    def find(
        self,
        *,
        table: str | None = None,
        cause: str | None = None,
        ids: Sequence[int] | None = None,
        keys: Sequence[Mapping[str, str]] | None = None,
        after: int = 0,
        limit: int = 1000,
    ) -> list[StoredDeadLetter]:
        self._call("letters.find")
        found = sorted(self._memory.letters.values(), key=lambda one: one.id)
        return [
            one
            for one in found
            if one.id > after
            and table in (None, one.letter.table)
            and cause in (None, one.letter.cause)
            and (ids is None or one.id in ids)
            and (keys is None or one.letter.key in keys)
        ][:limit]

    def count(self) -> dict[str, int]:
        raise AssertionError

    def remove(self, letters: Sequence[StoredDeadLetter], outcomes: Mapping[int, str] | None = None) -> int:
        del outcomes  # for an audit, which is not simulated
        self._call("letters.remove")
        removed = 0
        for stored in letters:
            for place, known in list(self._memory.letters.items()):
                if (known.id, known.attempts) == (stored.id, stored.attempts):
                    del self._memory.letters[place]
                    self._on_removed(known.letter)
                    removed += 1
        self._call("letters.remove done")
        return removed

    def close(self) -> None:
        """There is nothing to release."""


class Verifications:
    """contract.Verifications and contract.CommitGate as one process sees them."""

    def __init__(self, memory: Memory, source: Source, scheduler: Scheduler, call: Call) -> None:
        self._memory = memory
        self._source = source
        self._scheduler = scheduler
        self._call = call

    def start(
        self, table: str, run: str, epoch: int, position: int, output: str | None, grounds: str
    ) -> VerificationRecord:
        self._call("verifications.start")
        record = VerificationRecord(self._memory.number(), table, run, epoch, position, output=output, grounds=grounds)
        kept = [one for one in self._memory.verifications if one.table != table or one.finished_at is not None]
        self._memory.verifications = [record, *kept]
        return record

    def advance(
        self,
        record: VerificationRecord,
        phase: str,
        done_key: KeyTexts | None,
        counts: Mapping[str, Any],
        output_bytes: int,
    ) -> None:
        self._change(record, phase=phase, done_key=done_key, counts=counts, output_bytes=output_bytes)

    def finish(self, record: VerificationRecord, counts: Mapping[str, Any], *, clean: bool) -> None:
        self._change(record, phase="done", counts=counts, clean=clean, finished_at=_AT)

    def records(self) -> list[VerificationRecord]:
        self._call("verifications.records")
        return list(self._memory.verifications)

    def wait_for_commits(self, seconds: float) -> bool:
        numbers = _running(self._source, self._call)
        waiting = [one for one in self._source.open if one.number in numbers]
        until = self._scheduler.now + seconds
        while any(one in self._source.open for one in waiting) and self._scheduler.now < until:
            self._scheduler.pause(0.02)
            self._call("verifications.in_progress")
        return not any(one.committed for one in waiting if one in self._source.open)

    def _change(self, record: VerificationRecord, **values: Any) -> None:
        self._call("verifications.change")
        self._memory.verifications = [
            replace(one, **values) if one.id == record.id else one for one in self._memory.verifications
        ]
