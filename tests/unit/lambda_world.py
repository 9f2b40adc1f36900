"""A small world of asynchronous Lambda: triggers send events, a service delivers them once to three times, late and in
any order, a dead-letter queue and an outbox hold what failed, several processes apply them, and a clock counts hours.

One random number generator decides everything: a seed is a schedule, and the same seed the same schedule.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from random import Random
from typing import Any, Final, cast

from docferry.applier import Applier
from docferry.capture.contract import (
    BackfillRecord,
    BackfillState,
    Ledger,
    RowReader,
    TransactionState,
)
from docferry.change.model import Change
from docferry.change.wire import Event
from docferry.deadletter.contract import DeadLetters
from docferry.document.model import Key
from docferry.errors import TransactionPending
from docferry.metrics import Metrics
from docferry.operate.backfill import NEW_COLLECTION, Backfill, BackfillLimits
from docferry.operate.receive import Receiver
from docferry.retry import Retry
from docferry.target.memory import MemoryStore

from .lambda_parts import (
    CONTROL,
    EPOCH,
    ITEMS,
    KEYS,
    MIRROR,
    MIRRORS,
    RELATION,
    Killed,
    Process,
    Reader,
    Remembering,
    Rules,
    Source,
    Target,
    Transaction,
    let_others,
    processes,
)
from .reference_parts import NoLetters

SEED: Final = "DOCFERRY_SIMULATION_SEED"
LAMBDA_AGE: Final = 6
QUEUE_AGE: Final = 14 * 24
BEGINNING: Final = datetime(2026, 1, 1, tzinfo=UTC)


class Diverged(AssertionError):
    """Nothing is left to arrive, and the target is not what the source is."""


@dataclass(eq=False)
class Message:
    """An event on its way. `deliveries`: how many are left. `until`: the hour at which whoever holds it drops it."""

    event: Event
    deliveries: int
    until: int
    dead: bool = False
    done: bool = False
    in_hand: int = 0
    failures: int = 0


class Weather:
    """How often what happens in a schedule. Each has its own: what is rare in all of them meets too rarely. `given`:
    what narrows a search."""

    def __init__(self, random: Random, given: Mapping[str, float]) -> None:
        self.crashes = random.choice((0.0, 0.03, 0.15))
        self.time_passes = random.choice((0.02, 0.1, 0.4))
        self.sending_fails = random.choice((0.05, 0.25, 0.6))
        self.truncates = random.choice((0.0, 0.08, 0.25))
        self.forgets = float(random.random() < 0.15)
        for name, value in given.items():
            setattr(self, name, value)


@dataclass(eq=False)
class Job:
    process: Process
    what: str
    after: Callable[[bool], None]


class World:
    """One schedule, from the first statement until nothing is left to arrive."""

    def __init__(self, seed: int, rules: Rules, weather: Mapping[str, float], *, trace: bool = False) -> None:
        self.random = Random(seed)
        self.weather = Weather(self.random, weather)
        self.rules = rules
        self.trace: list[str] | None = [] if trace else None
        self.now = 0
        self.source = Source()
        self.store = MemoryStore()
        self.due: dict[Key, int] = {}
        self.ledger = Remembering()
        self.messages: list[Message] = []
        self.outbox: list[Change] = []
        self.locked: set[int] = set()
        self.jobs: list[Job] = []
        self.idle = list(processes())
        self.receivers: dict[Process, tuple[Receiver, Applier, Target]] = {}
        self.record: BackfillRecord | None = None
        self.waits_for: list[Transaction] = []
        self.pages: list[tuple[int, ...]] = []
        self.page_under_way = 0
        self.transactions_left = self.random.randint(2, 6)
        self.backfills_left = self.random.randint(0, 1)
        target = Target(self.store, rules, self.due, lambda: self.now)
        target.create(ITEMS)
        target.create(CONTROL)
        if self.random.random() < 0.5:
            for key in self.random.sample(KEYS, self.random.randint(1, 3)):
                self.source.current[key] = self.source.visible[key] = self.source.values()
            self.begin_backfill(NEW_COLLECTION)

    # what happens

    def run(self) -> None:
        """Let everything happen. Raises Diverged."""
        try:
            while actions := self.actions():
                self.random.choice(actions)()
        finally:
            for job in list(self.jobs):
                job.process.kill()
        found = {
            int(str(key[0])): (str(item.document["name"]).encode(), str(item.document["doc"]).encode())
            for key, item in self.store.collections[ITEMS.name].items.items()
            if item.document is not None
        }
        if found != self.source.current:
            raise Diverged(f"target {found}, source {self.source.current}")

    def actions(self) -> list[Callable[[], None]]:
        """What may happen next; more often what is listed more often."""
        actions: list[Callable[[], None]] = []
        opened = [one for one in self.source.invisible if one.state is TransactionState.IN_PROGRESS]
        if self.transactions_left and len(self.source.invisible) < 2:
            actions += [self.begin] * 2
        actions += [partial(self.go_on, one) for one in opened]
        actions += [partial(self.appear, one) for one in self.source.invisible if one not in opened]
        actions += [partial(self.step, job) for job in self.jobs if not job.process.waits] * 2
        if self.idle:
            actions += [partial(self.deliver, one) for one in self.messages if one.deliveries > 0]
            if self.outbox_free():
                actions.append(self.drain)
            actions += self.backfill_actions()
        if actions and self.random.random() < self.weather.time_passes:
            actions += [self.pass_time, self.expire_tombstones]
        if self.jobs and self.random.random() < self.weather.crashes:
            actions.append(self.crash)
        if not actions and (self.jobs or self.messages):
            raise AssertionError(f"nothing goes on: {self.jobs} {self.messages}")
        return actions

    def say(self, text: str) -> None:
        if self.trace is not None:
            self.trace.append(f"{self.now:4} h  {text}")

    def at(self) -> datetime:
        return BEGINNING + timedelta(hours=self.now)

    # transactions

    def begin(self) -> None:
        self.transactions_left -= 1
        transaction = self.source.begin()
        for _ in range(self.random.randint(1, 4)):
            self.source.statement(self.random, transaction, self.at(), self.weather.truncates)
        shown = ", ".join(f"{one.op} {one.row or ''} v{_position(one)}" for one in transaction.changes)
        self.say(f"transaction {transaction.number}: {shown}")

    def go_on(self, transaction: Transaction) -> None:
        """Its deferred triggers send what it did; then it commits, or another trigger makes it roll back."""
        if not transaction.sent:
            transaction.sent = True
            for changes in self.grouped(transaction.changes):
                self.send(Event(EPOCH, transaction.number, self.at(), changes), transaction)
        elif self.random.random() < 0.2:
            self.say(f"{transaction.number} rolls back")
            self.source.roll_back(transaction, self.now)
            self.wake_up()
        else:
            self.say(f"{transaction.number} commits")
            self.source.commit(transaction, self.now)
            if self.random.random() < 0.6:
                self.appear(transaction)

    def appear(self, transaction: Transaction) -> None:
        self.say(f"{transaction.number} is visible")
        self.wake_up()
        self.source.appear(transaction)
        if self.rules.outbox:
            self.outbox.extend(transaction.outbox)

    def wake_up(self) -> None:
        """Who waits for a transaction looks again."""
        for job in self.jobs:
            job.process.waits = False

    def grouped(self, changes: list[Change]) -> list[list[Change]]:
        size = self.random.choice((1, 2, 100))
        if not self.rules.partial_is_told:
            changes = [one._replace(partial=False) for one in changes]
        return [changes[start : start + size] for start in range(0, len(changes), size)]

    def send(self, event: Event, transaction: Transaction) -> None:
        """The call may fail, and it may fail although Lambda has taken the event."""
        fails = self.random.random() < self.weather.sending_fails
        arrives = not fails or self.random.random() < 0.2
        if fails:
            transaction.outbox.extend(event.changes)
        if arrives:
            self.messages.append(Message(event, self.random.randint(1, 3), self.now + LAMBDA_AGE))
        self.say(f"send {_shown(event.changes)}: {'fails' if fails else 'done'}, {'arrives' if arrives else 'is lost'}")

    # deliveries

    def deliver(self, message: Message) -> None:
        if not message.dead and self.random.random() < 0.05:
            self.undelivered(message)  # it expired before a function was free
            return
        message.deliveries -= 1
        message.in_hand += 1
        reread = message.dead and self.random.random() < 0.5
        process = self.idle[-1]
        receiver = self.receiver(process)
        how = (
            f"{'replay' if message.dead else 'deliver'} {_shown(message.event.changes)}{' by reread' if reread else ''}"
        )
        self.start(
            process,
            how,
            lambda: receiver.receive(message.event, reread=reread),
            partial(self.delivered, message, message.failures),
        )

    def delivered(self, message: Message, failures: int, done: bool) -> None:
        """What ended in an error is repeated, even if another delivery of the event went well meanwhile."""
        message.in_hand -= 1
        message.failures += not done
        message.done = done and message.failures == failures
        if message not in self.messages or message.in_hand:
            return
        if message.dead and not message.done:
            message.deliveries = max(message.deliveries, 1)
        elif message.deliveries <= 0:
            self.undelivered(message)

    def undelivered(self, message: Message) -> None:
        """Lambda is through with it, and puts it into the dead-letter queue if it never succeeded."""
        if message.done or message.dead:
            self.messages.remove(message)
            return
        self.say(f"to the dead-letter queue: {_shown(message.event.changes)}")
        message.dead = True
        message.deliveries = self.random.randint(1, 2)
        message.until = min(self.now, message.until) + QUEUE_AGE

    def outbox_free(self) -> list[Change]:
        return [one for one in self.outbox if one.version not in self.locked]

    def drain(self) -> None:
        rows = self.outbox_free()
        chosen = self.random.sample(rows, self.random.randint(1, len(rows)))
        self.locked.update(one.version for one in chosen)
        process = self.idle[-1]
        receiver = self.receiver(process)
        visible = [one._replace(transaction=0) for one in chosen]
        self.start(process, f"drain {_shown(chosen)}", lambda: receiver.apply(visible), partial(self.drained, chosen))

    def drained(self, rows: list[Change], done: bool) -> None:
        """A drainer may die between its writes and its commit."""
        self.locked.difference_update(one.version for one in rows)
        if done and self.random.random() < 0.9:
            self.outbox = [one for one in self.outbox if one not in rows]

    # the backfill

    def begin_backfill(self, reason: str) -> None:
        self.record = BackfillRecord(1, MIRROR.table, BackfillState.RUNNING, reason, version=self.source.version())
        self.waits_for = list(self.source.invisible) if self.rules.backfill_waits else []
        self.pages = [(1,), (2, 3)]
        self.ledger.wanted = self.ledger.finished = False
        self.say(f"backfill with v{self.record.version & 0xFFFF if self.record.version else 0}")

    def backfill_actions(self) -> list[Callable[[], None]]:
        if self.record is None:
            if self.ledger.wanted or (self.backfills_left and self.transactions_left < 3):
                return [self.ask_for_backfill]
            return []
        if any(one in self.source.invisible for one in self.waits_for) or self.page_under_way:
            return []
        return [self.populate]

    def ask_for_backfill(self) -> None:
        self.backfills_left = 0
        self.begin_backfill("asked for")

    def populate(self) -> None:
        """The next page, or the end."""
        assert self.record is not None
        process = self.idle[-1]
        _, applier, target = self.process_of(process)
        record = self.record

        def no_readers() -> Any:
            raise AssertionError("the pages are read here")

        ledger = cast("Ledger", self.ledger)
        backfill = Backfill(MIRROR, no_readers, applier, target, ledger, Retry(), BackfillLimits())
        self.page_under_way = 1
        if not self.pages:
            self.start(process, "backfill ends", lambda: backfill._finish(record, 0, lambda: None), self.populated)
            return
        page = self.pages[0]

        def write_page() -> None:
            rows = [(RELATION, self.source.row(key)) for key in page if key in self.source.visible]
            backfill._write(record, rows)

        self.start(process, f"backfill {page}", write_page, self.populated)

    def populated(self, done: bool) -> None:
        self.page_under_way = 0
        if done and self.pages:
            self.pages.pop(0)
        elif done:
            self.record = None

    # processes

    def process_of(self, process: Process) -> tuple[Receiver, Applier, Target]:
        if process not in self.receivers:
            target = Target(self.store, self.rules, self.due, lambda: self.now)
            trusted = self.rules.trusted_age
            applier = Applier(
                MIRRORS,
                cast("RowReader", Reader(self.source, waits=self.rules.reads_wait)),
                target,
                cast("DeadLetters", NoLetters()),
                cast("Ledger", self.ledger),
                Metrics(),
                Retry(),
                trusted_age=None if trusted is None else trusted * 3600.0,
                clock=lambda: self.at().timestamp(),
            )
            gate = self if self.rules.gate else None
            receiver = Receiver(applier, MIRRORS, gate, patience=0.05, sleep=lambda _: let_others())
            self.receivers[process] = receiver, applier, target
        return self.receivers[process]

    def receiver(self, process: Process) -> Receiver:
        return self.process_of(process)[0]

    def state(self, number: int) -> TransactionState:
        """contract.TransactionGate."""
        transaction = self.source.transactions[number]
        ended = transaction.state is not TransactionState.IN_PROGRESS and transaction not in self.source.invisible
        if self.weather.forgets and ended and transaction.ended_at < self.now - 24:
            return TransactionState.UNKNOWN
        return transaction.state

    def rolled_back(self, subtransactions: Collection[int]) -> set[int]:
        """contract.TransactionGate. There are none."""
        assert not subtransactions
        return set()

    def start(self, process: Process, what: str, call: Callable[[], object], after: Callable[[bool], None]) -> None:
        self.idle.remove(process)
        self.say(f"{what} begins")
        process.start(call)
        job = Job(process, what, after)
        self.jobs.append(job)
        self.step(job)

    def step(self, job: Job) -> None:
        job.process.step()
        if not job.process.busy:
            self.ended(job)

    def ended(self, job: Job) -> None:
        error = job.process.error
        if error is not None and not isinstance(error, Killed | TransactionPending):
            raise error
        self.jobs.remove(job)
        self.idle.insert(self.random.randint(0, len(self.idle)), job.process)
        self.say(f"{job.what} ends{f': {error!r}' if error else ''}")
        job.after(error is None)

    def crash(self) -> None:
        self.kill(self.random.choice(self.jobs))

    def kill(self, job: Job) -> None:
        """The process is gone, and with it what it knew."""
        self.receivers.pop(job.process, None)
        job.process.kill()
        self.ended(job)

    # time

    def pass_time(self) -> None:
        """What takes longer than a function may run is killed, what waits longer than it may is dropped or dead. The
        queue is never let go too old."""
        hours = self.random.choice((1, 4, 30, 200, 300, 500))
        for job in list(self.jobs):
            self.kill(job)
        for message in self.messages:
            if message.dead and not message.done:
                hours = min(hours, message.until - self.now)
            elif not message.dead and not message.done:
                hours = min(hours, message.until + QUEUE_AGE - self.now)
        self.now += max(hours, 0)
        for message in list(self.messages):
            if message.until < self.now:
                message.deliveries = 0
                self.undelivered(message)
        self.say("time has passed")

    def expire_tombstones(self) -> None:
        items = self.store.collections[ITEMS.name].items
        for key, item in list(items.items()):
            if item.document is None and self.due[key] <= self.now and self.random.random() < 0.8:
                self.say(f"tombstone of {key} expires")
                del items[key]


def _position(change: Change) -> int:
    return (change.version >> 32) & 0xFFFF


def _shown(changes: Iterable[Change]) -> str:
    return " ".join(f"v{_position(one)}" for one in changes)


def run(seed: int, rules: Rules, weather: Mapping[str, float]) -> None:
    """One schedule. Raises Diverged, which says how to see it again."""
    try:
        World(seed, rules, weather).run()
    except Diverged as error:
        raise Diverged(f"{error}; see it again with {SEED}={seed}") from None


def traced(seed: int, rules: Rules, weather: Mapping[str, float]) -> list[str]:
    """What happens in a schedule, and how it ends."""
    world = World(seed, rules, weather, trace=True)
    assert world.trace is not None
    try:
        world.run()
    except Diverged as error:
        world.say(f"diverged: {error}")
    return world.trace
