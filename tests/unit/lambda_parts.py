"""The parts of the world of asynchronous Lambda: processes that stop between any two requests, the source, the target.

What the processes do is docferry's own code. Each is a thread that stops before every request to either end and goes on
when the world says so; no two ever run at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Collection as AnyOf
from dataclasses import dataclass, field
from datetime import datetime
from random import Random
from threading import Lock, Thread, local
from typing import Final

from docferry.capture.contract import (
    BackfillRecord,
    TransactionState,
)
from docferry.capture.snapshot import is_visible
from docferry.change.model import UNCHANGED, Change, Column, Op, PgType, Relation, Row, make_version
from docferry.document.mirror import Mirror
from docferry.document.model import Collection, Delete, Key, KeyAttribute, KeyKind, MirrorSpec, Put, Write
from docferry.target.contract import Outcome, Result
from docferry.target.floors_shared import SharedFloors, control_collection
from docferry.target.memory import MemoryStore, MemoryTarget

from .reference_parts import Ledger

EPOCH: Final = 3
KEYS: Final = (1, 2, 3)
LIFETIME: Final = 16 * 24
TRUSTED_AGE: Final = 15 * 24
INT, TEXT = PgType(23, "int4"), PgType(25, "text")
RELATION = Relation(7, "public", "t", (Column("id", INT, is_key=True), Column("name", TEXT), Column("doc", TEXT)))
ITEMS = Collection("t", (KeyAttribute("id", KeyKind.NUMBER),))
CONTROL = control_collection("docferry")
MIRROR = Mirror(MirrorSpec("public.t", ("id",), ITEMS), RELATION.oid)
MIRRORS = {MIRROR.table: MIRROR}

Values = tuple[bytes, bytes]


@dataclass(frozen=True)
class Rules:
    """The rules by which docferry converges. The test takes one away at a time."""

    fence: bool = True
    tombstones: bool = True
    lifetime: int = LIFETIME
    trusted_age: int | None = TRUSTED_AGE
    gate: bool = True
    outbox: bool = True
    reads_wait: bool = True
    shares_floors: bool = True
    looks_for_floors_afterwards: bool = True
    takes_back_what_it_did_not_write: bool = True
    partial_is_told: bool = True
    backfill_waits: bool = True


# -- processes ---------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """The process ended here."""


class Process:
    """A thread that runs one call after another, from one pause to the next, only while `step` waits for it."""

    def __init__(self) -> None:
        self._go, self._back = Lock(), Lock()
        self._go.acquire()
        self._back.acquire()
        self._call: Callable[[], object] = lambda: None
        self._killed = False
        self.busy = False
        self.waits = False
        self.error: BaseException | None = None
        Thread(target=self._run, daemon=True).start()

    def start(self, call: Callable[[], object]) -> None:
        self._call, self.busy, self.error, self._killed = call, True, None, False

    def step(self) -> None:
        """Go on to the next pause or to the end."""
        self.waits = False
        self._go.release()
        self._back.acquire()

    def kill(self) -> None:
        self._killed = True
        self.step()

    def pause(self, *, waits: bool = False) -> None:
        self.waits = waits
        self._back.release()
        self._go.acquire()
        if self._killed:
            raise Killed

    def _run(self) -> None:
        _here.process = self
        while True:
            self._go.acquire()
            try:
                if self._killed:
                    raise Killed
                self._call()
            except BaseException as error:  # noqa: BLE001 - handed to the world
                self.error = error
            self.busy = False
            self._back.release()


_here = local()


def let_others(*, waits: bool = False) -> None:
    """In a process: something else may happen now. `waits`: it cannot go on before a transaction is visible."""
    process: Process | None = getattr(_here, "process", None)
    if process is not None:
        process.pause(waits=waits)


PROCESSES: Final[list[Process]] = []


def processes() -> list[Process]:
    """Three threads for all schedules; to start new ones takes longer than a schedule."""
    if not PROCESSES:
        PROCESSES.extend(Process() for _ in range(3))
    return PROCESSES


# -- the source --------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Transaction:
    """`before`: what its keys held before it; they are locked until it is visible or rolled back. `outbox`: what it
    leaves there when it commits."""

    number: int
    changes: list[Change] = field(default_factory=list)
    before: dict[int, Values | None] = field(default_factory=dict)
    outbox: list[Change] = field(default_factory=list)
    truncated: bool = False
    sent: bool = False
    state: TransactionState = TransactionState.IN_PROGRESS
    ended_at: int = 0


class Source:
    """A table. `current` holds what every transaction so far has written, `visible` what readers see."""

    def __init__(self) -> None:
        self.current: dict[int, Values] = {}
        self.visible: dict[int, Values] = {}
        self.transactions: dict[int, Transaction] = {}
        self.invisible: list[Transaction] = []
        self._position = 0
        self._number = 2**32 - 3
        self._values = 0

    def version(self) -> int:
        self._position += 1
        return make_version(EPOCH, self._position)

    def values(self) -> Values:
        self._values += 1
        return f"name {self._values}".encode(), f"doc {self._values}".encode()

    def begin(self) -> Transaction:
        self._number += 1
        while self._number & 0xFFFFFFFF < 3:  # PostgreSQL gives these to no transaction
            self._number += 1
        transaction = self.transactions[self._number] = Transaction(self._number)
        self.invisible.append(transaction)
        return transaction

    def snapshot(self) -> str:
        running = [one.number for one in self.invisible]
        end = self._number + 1
        return f"{min(running, default=end)}:{end}:{','.join(map(str, running))}"

    def statement(self, random: Random, transaction: Transaction, at: datetime, truncates: float) -> None:
        """Some statement; none if it would have to wait for another transaction."""
        others = [one for one in self.invisible if one is not transaction]
        if any(one.truncated for one in others):
            return
        if random.random() < truncates:
            if not any(one.before for one in others):
                for key in list(self.current):
                    self._set(transaction, key, None)
                transaction.truncated = True
                self._add(transaction, Op.TRUNCATE, None, None, at)
            return
        locked = {key for one in others for key in one.before}
        free = [key for key in KEYS if key not in locked]
        if not free:
            return
        key = random.choice(free)
        large = random.random() < 0.15
        if key not in self.current:
            self._set(transaction, key, self.values())
            self._add(transaction, Op.INSERT, self._row(key, large=large), None, at, partial=large)
            return
        empty = [other for other in free if other not in self.current]
        choice = random.random()
        if choice < 0.35:
            self._set(transaction, key, None)
            self._add(transaction, Op.DELETE, None, (str(key).encode(), b"old", b"old"), at)
        elif choice < 0.55 and empty:
            other = random.choice(empty)
            values = self.current[key]
            self._set(transaction, key, None)
            self._set(transaction, other, values)
            old: Row = (str(key).encode(), UNCHANGED, UNCHANGED) if large else (str(key).encode(), *values)
            self._add(transaction, Op.UPDATE, self._row(other, large=large), old, at, partial=large)
        else:
            self._set(transaction, key, self.values())
            self._add(transaction, Op.UPDATE, self._row(key, large=large), None, at, partial=large)

    def commit(self, transaction: Transaction, now: int) -> None:
        transaction.state, transaction.ended_at = TransactionState.COMMITTED, now

    def appear(self, transaction: Transaction) -> None:
        for key in transaction.before:
            if key in self.current:
                self.visible[key] = self.current[key]
            else:
                self.visible.pop(key, None)
        self.invisible.remove(transaction)

    def roll_back(self, transaction: Transaction, now: int) -> None:
        for key, values in transaction.before.items():
            self._put(key, values)
        transaction.state, transaction.ended_at = TransactionState.ABORTED, now
        self.invisible.remove(transaction)

    def row(self, key: int) -> Row:
        return (str(key).encode(), *self.visible[key])

    def _row(self, key: int, *, large: bool) -> Row:
        return (str(key).encode(), *((UNCHANGED, UNCHANGED) if large else self.current[key]))

    def _set(self, transaction: Transaction, key: int, values: Values | None) -> None:
        transaction.before.setdefault(key, self.current.get(key))
        self._put(key, values)

    def _put(self, key: int, values: Values | None) -> None:
        if values is None:
            self.current.pop(key, None)
        else:
            self.current[key] = values

    def _add(
        self,
        transaction: Transaction,
        op: Op,
        row: Row | None,
        old: Row | None,
        at: datetime,
        *,
        partial: bool = False,
    ) -> None:
        number = transaction.number & 0xFFFFFFFF
        transaction.changes.append(Change(op, RELATION, row, old, self.version(), number, at, 100, partial))


class Reader:
    """contract.RowReader."""

    def __init__(self, source: Source, *, waits: bool) -> None:
        self._source = source
        self._waits = waits

    def read_rows(
        self,
        _table: str,
        _key: Sequence[str],
        keys: Sequence[tuple[str, ...]],
        transactions: AnyOf[int],
        _max_bytes: int,
    ) -> tuple[list[tuple[Relation, Row]], bool]:
        let_others()
        while self._waits and not all(is_visible(one, self._source.snapshot()) for one in transactions):
            let_others(waits=True)
        found = [int(text) for (text,) in keys if int(text) in self._source.visible]
        return [(RELATION, self._source.row(key)) for key in found], True


class Remembering(Ledger):
    """The ledger, with what a backfill needs."""

    def __init__(self) -> None:
        super().__init__()
        self.wanted = False
        self.finished = False

    def request_backfill(self, _table: str, _reason: str, *, anew: bool) -> None:
        assert anew
        self.wanted = True

    def finish_backfill(self, _backfill: BackfillRecord, _rows: int) -> None:
        self.finished = True


# -- the target --------------------------------------------------------------------------------------------------------


class Target(MemoryTarget):
    """The reference implementation, with something else happening before each request, and with expiry."""

    def __init__(self, store: MemoryStore, rules: Rules, due: dict[Key, int], now: Callable[[], int]) -> None:
        super().__init__(store, control=CONTROL if rules.shares_floors else None)
        self._rules, self._due, self._now = rules, due, now
        if self._shared is not None and not rules.takes_back_what_it_did_not_write:
            self._shared = OwnOnly(CONTROL, self, self._learn)

    def write(self, writes: Sequence[Write]) -> list[Result]:
        if self._shared is None or self._rules.looks_for_floors_afterwards:
            return super().write(writes)
        self._shared.enforce(writes, [Result(Outcome.STALE)] * len(writes))
        return self._carry_out(writes)

    def put_floor(self, floor: Put) -> None:
        let_others()
        super().put_floor(floor)

    def read_floors(self, keys: Sequence[Key]) -> Mapping[Key, int]:
        let_others()
        return super().read_floors(keys)

    def remove_below(self, collection: Collection, keys: Sequence[Key], version: int) -> None:
        let_others()
        super().remove_below(collection, keys, version)

    def _carry_out(self, writes: Sequence[Write]) -> list[Result]:
        let_others()
        return super()._carry_out(writes)

    def _remove_all_below(self, collection: Collection, version: int) -> int:
        let_others()
        seen = [item.key for item in self.scan(collection) if item.version < version]
        self.remove_below(collection, seen, version)
        return len(seen)

    def _write(self, write: Write) -> Result:
        if not self._rules.fence and write.collection is ITEMS:
            self._stored(ITEMS).items.pop(write.key, None)
        result = super()._write(write)
        if result.outcome is Outcome.APPLIED and isinstance(write, Delete):
            self._due[write.key] = self._now() + self._rules.lifetime
            if not self._rules.tombstones:
                self._stored(ITEMS).items.pop(write.key)
        return result


class OwnOnly(SharedFloors):
    """Takes back only what the same call has written."""

    def enforce(self, writes: Sequence[Write], results: Iterable[Result]) -> list[Result]:
        settled = list(results)
        applied = [write for write, result in zip(writes, settled, strict=True) if result.outcome is Outcome.APPLIED]
        super().enforce(applied, [Result(Outcome.APPLIED)] * len(applied))
        return settled
