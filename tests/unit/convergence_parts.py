"""What the properties of convergence are made of: a small source, jobs step by step, what docferry is given."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from threading import Semaphore, Thread, local
from typing import Any, Final, cast

from docferry.applier import Applier, Tombstone
from docferry.capture import contract
from docferry.capture.contract import BackfillRecord, RowReader
from docferry.capture.snapshot import is_visible
from docferry.change.model import NUMBER_STEP, UNCHANGED, Change, Column, Op, PgType, Relation, Row, make_version
from docferry.change.pgoutput import Commit, timestamp
from docferry.deadletter.contract import DeadLetters
from docferry.document.mirror import Mirror
from docferry.document.model import Collection as Items
from docferry.document.model import KeyAttribute, KeyKind, MirrorSpec, Write
from docferry.metrics import Metrics
from docferry.operate.backfill import Backfill, BackfillLimits
from docferry.retry import Retry
from docferry.target.contract import Result
from docferry.target.memory import MemoryTarget, _Stored

from .reference_parts import Ledger, NoLetters

EPOCH: Final = 2
RECORD: Final = 8
KEYS: Final = (1, 2, 3)
PAGES: Final = ((1,), (2, 3))
INT, TEXT = PgType(23, "int4"), PgType(25, "text")
RELATION = Relation(7, "public", "t", (Column("id", INT, is_key=True), Column("name", TEXT), Column("doc", TEXT)))
ITEMS = Items("t", (KeyAttribute("id", KeyKind.NUMBER),))

Values = tuple[bytes, bytes]
"""name and doc of a row. doc is what a TOAST table would hold."""


def the_mirror() -> Mirror:
    return Mirror(MirrorSpec("public.t", ("id",), ITEMS), RELATION.oid)


# -- the source --------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Transaction:
    """`before`: what its keys held before it touched them; they are locked until it is visible or rolled back.
    `first_record`: where its first INSERT is logged, before it waits for who has the key."""

    number: int
    first_record: int | None
    changes: list[Change] = field(default_factory=list)
    before: dict[int, Values | None] = field(default_factory=dict)
    committed: bool = False
    truncated: bool = False


class Source:
    """A table with its log. `current` holds what every transaction so far has written, `visible` what readers see."""

    def __init__(self) -> None:
        self.current: dict[int, Values] = {}
        self.visible: dict[int, Values] = {}
        self.log: list[Change | Commit] = []
        self.invisible: list[Transaction] = []
        self.full_identity = False
        self.versions_by_record = False
        self._end = 1000
        self._number = 2**32 - 3  # ids wrap around soon
        self._values = 0

    def value(self, what: str) -> bytes:
        self._values += 1
        return f"{what} {self._values}".encode()

    def record(self) -> int:
        """Append a record to the log; returns where it starts. The next one starts where it ends."""
        self._end += RECORD
        return self._end - RECORD

    def start_version(self) -> int:
        """As in ledger.sql: the end of a record of our own, less one."""
        self.record()
        return make_version(EPOCH, self._end - 1, NUMBER_STEP - 1)

    def snapshot(self) -> str:
        running = [one.number for one in self.invisible]
        return f"{min(running, default=self._number)}:{self._number}:{','.join(map(str, running))}"

    def begin(self) -> Transaction:
        transaction = Transaction(self._number, self.record())
        self._number += 1
        while self._number & 0xFFFFFFFF < 3:  # PostgreSQL gives these to no transaction
            self._number += 1
        self.invisible.append(transaction)
        return transaction

    def may_touch(self, transaction: Transaction | None, *keys: int) -> bool:
        others = [one for one in self.invisible if one is not transaction]
        return not any(one.truncated or any(key in one.before for key in keys) for one in others)

    def insert(self, transaction: Transaction, key: int) -> None:
        self._set(transaction, key, (self.value("name"), self.value("doc")))
        self._log(transaction, Op.INSERT, row_of(key, self.current[key]), None, transaction.first_record)
        transaction.first_record = None

    def update(self, transaction: Transaction, key: int, new_key: int, *, keep_doc: bool) -> None:
        """With `keep_doc` the log does not carry the column."""
        old = self.current[key]
        values = (self.value("name"), old[1] if keep_doc else self.value("doc"))
        if new_key != key:
            self._set(transaction, key, None)
        self._set(transaction, new_key, values)
        row = row_of(new_key, values)
        carried = (*row[:2], UNCHANGED) if keep_doc else row
        before: Row | None = None
        if self.full_identity:
            before = row_of(key, old)
        elif new_key != key:
            before = (str(key).encode(), UNCHANGED, UNCHANGED)
        self._log(transaction, Op.UPDATE, carried, before)

    def delete(self, transaction: Transaction, key: int) -> None:
        old = self.current[key]
        self._set(transaction, key, None)
        row = row_of(key, old) if self.full_identity else (str(key).encode(), UNCHANGED, UNCHANGED)
        self._log(transaction, Op.DELETE, None, row)

    def truncate(self, transaction: Transaction) -> None:
        for key in list(self.current):
            self._set(transaction, key, None)
        transaction.truncated = True
        self._log(transaction, Op.TRUNCATE, None, None)

    def commit(self, transaction: Transaction) -> None:
        """It reaches the stream; readers do not see it before `appear`."""
        transaction.committed = True
        position = self.record()
        if not self.versions_by_record:
            transaction.changes = [
                change._replace(version=make_version(EPOCH, position, number))
                for number, change in enumerate(transaction.changes)
            ]
        self.log.extend(transaction.changes)
        self.log.append(Commit(self._end, timestamp(0)))

    def appear(self, transaction: Transaction) -> None:
        for key in transaction.before:
            if key in self.current:
                self.visible[key] = self.current[key]
            else:
                self.visible.pop(key, None)
        self.invisible.remove(transaction)

    def roll_back(self, transaction: Transaction) -> None:
        for key, values in transaction.before.items():
            self._put(key, values)
        self.invisible.remove(transaction)

    def _set(self, transaction: Transaction, key: int, values: Values | None) -> None:
        transaction.before.setdefault(key, self.current.get(key))
        self._put(key, values)

    def _put(self, key: int, values: Values | None) -> None:
        if values is None:
            self.current.pop(key, None)
        else:
            self.current[key] = values

    def _log(
        self, transaction: Transaction, op: Op, row: Row | None, old: Row | None, position: int | None = None
    ) -> None:
        version = make_version(EPOCH, self.record() if position is None else position)
        number = transaction.number & 0xFFFFFFFF
        transaction.changes.append(Change(op, RELATION, row, old, version, number, None, 100))


def row_of(key: int, values: Values) -> Row:
    return (str(key).encode(), *values)


def some_statement(source: Source, transaction: Transaction, key: int, new_key: int, choice: int) -> bool:
    """Run the statement that `choice` means on this key; False if it would have to wait for another transaction."""
    if choice == 0 and key == KEYS[0]:
        possible = source.invisible == [transaction]
        if possible:
            source.truncate(transaction)
        return possible
    moves = choice == 1 and key in source.current and new_key not in source.current
    if not source.may_touch(transaction, key, *([new_key] if moves else [])):
        return False
    if key not in source.current:
        source.insert(transaction, key)
    elif moves:
        source.update(transaction, key, new_key, keep_doc=new_key % 2 == 0)
    elif choice <= 3:
        source.delete(transaction, key)
    else:
        source.update(transaction, key, key, keep_doc=choice <= 6)
    return True


# -- jobs one step at a time -------------------------------------------------------------------------------------------


class Abandoned(BaseException):
    """The process was killed here."""


class Running:
    """A call in a thread of its own that goes on only when it is told to, from one `let_others` to the next: no two
    threads ever run at once."""

    def __init__(self, call: Callable[[], list[Tombstone]]) -> None:
        self.result: Future[list[Tombstone]] = Future()
        self.waiting = False
        self._call = call
        self._abandoned = False
        self._go, self._back = Semaphore(0), Semaphore(0)
        self._thread = Thread(target=self._run, daemon=True)
        self._thread.start()

    def step(self) -> bool:
        """Go on to the next pause or to the end; False if it waits for a transaction to become visible."""
        self._go.release()
        self._back.acquire()
        return not self.waiting

    def abandon(self) -> None:
        self._abandoned = True
        self._go.release()
        self._thread.join()

    def pause(self, *, waiting: bool) -> None:
        self.waiting = waiting
        self._back.release()
        self._wait()

    def _wait(self) -> None:
        self._go.acquire()
        self.waiting = False
        if self._abandoned:
            raise Abandoned

    def _run(self) -> None:
        _here.job = self
        try:
            self._wait()
            self.result.set_result(self._call())
        except Abandoned:
            return
        except BaseException as error:  # noqa: BLE001 - handed to the test
            self.result.set_exception(error)
        self._back.release()


_here = local()


def let_others(*, waiting: bool = False) -> None:
    """In a job: the test may do something else now. Elsewhere nothing."""
    job = getattr(_here, "job", None)
    if job is not None:
        job.pause(waiting=waiting)
    else:
        assert not waiting, "this would wait for ever"


# -- what docferry is given --------------------------------------------------------------------------------------------


class Reader:
    """contract.RowReader."""

    def __init__(self, source: Source, *, waits: bool = True) -> None:
        self._source = source
        self._waits = waits

    def read_rows(
        self,
        _table: str,
        _key: Sequence[str],
        keys: Sequence[tuple[str, ...]],
        transactions: Collection[int],
        _max_bytes: int,
    ) -> tuple[list[tuple[Relation, Row]], bool]:
        let_others()
        while self._waits and not all(is_visible(one, self._source.snapshot()) for one in transactions):
            let_others(waiting=True)
        found = [int(text) for (text,) in keys if int(text) in self._source.visible]
        return [(RELATION, row_of(key, self._source.visible[key])) for key in found], True


class Remembering(Ledger):
    """The ledger, with what a backfill and sweeping need."""

    def __init__(self) -> None:
        super().__init__()
        self.old_writes = False
        self.heeds_old_writes = True

    def finish_backfill(self, _backfill: BackfillRecord, _rows: int) -> None:
        pass

    @contextmanager
    def sweeping(self) -> Iterator[bool]:
        yield not (self.old_writes and self.heeds_old_writes)


class Target(MemoryTarget):
    """The reference implementation, with something else happening before each request."""

    def write(self, writes: Sequence[Write]) -> list[Result]:
        let_others()
        return super().write(writes)


class Unfenced(Target):
    """It takes every write as it comes."""

    def _write(self, write: Write) -> Result:
        self._stored(write.collection).items.pop(write.key, None)
        return super()._write(write)


def in_another_process(target: Target) -> Target:
    """The same items, but floors of its own (see Target.truncate)."""
    other = type(target)()
    other._collections = {name: _Stored(one.collection, items=one.items) for name, one in target._collections.items()}
    return other


class Stream:
    """contract.Capture's confirming half."""

    def __init__(self) -> None:
        self.confirmed = 0

    def confirm(self, position: int) -> None:
        self.confirmed = position

    def keep_alive(self, _timeout: float) -> None:
        pass


def an_applier(source: Source, target: Target, ledger: Remembering, mirror: Mirror, *, waits: bool) -> Applier:
    return Applier(
        {mirror.table: mirror},
        cast("RowReader", Reader(source, waits=waits)),
        target,
        cast("DeadLetters", NoLetters()),
        cast("contract.Ledger", ledger),
        Metrics(),
        Retry(),
    )


def a_backfill(mirror: Mirror, applier: Applier, target: Target, ledger: Remembering) -> Backfill:
    def no_readers() -> Any:
        raise AssertionError("the pages are read by the test")

    return Backfill(mirror, no_readers, applier, target, cast("contract.Ledger", ledger), Retry(), BackfillLimits())


def carried_over(target: Target) -> dict[int, Values]:
    """The documents at the target, as rows."""
    found = {}
    for item in target.scan(ITEMS):
        if item.document is not None:
            (key,) = item.key
            assert isinstance(key, int | Decimal)
            found[int(key)] = (str(item.document["name"]).encode(), str(item.document["doc"]).encode())
    return found
