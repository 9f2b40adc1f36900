"""Whatever arrives in whatever order, the target ends equal to the source.

A small source is simulated: a table of three keys, transactions that overlap, commit in another order than they wrote
and become visible to readers later than they reach the stream. What docferry does with the stream is its own code,
taken step by step, so that hypothesis can put anything between reading a row again, converting and writing it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from threading import Event
from typing import Any, ClassVar, Final, cast

import pytest
from hypothesis import HealthCheck, Phase, Verbosity, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from docferry.applier import Applier, Tombstone
from docferry.capture.contract import BackfillRecord, BackfillState, Capture, Delivery, Ledger
from docferry.change.model import Change, Relation, Row, make_version
from docferry.change.pgoutput import Commit
from docferry.document.model import Put
from docferry.operate.backfill import Backfill
from docferry.operate.sweeper import Sweeper
from docferry.pipeline import Pipeline, PipelineLimits, _Job, _jobs
from docferry.retry import Retry

from .convergence_parts import (
    EPOCH,
    ITEMS,
    KEYS,
    PAGES,
    RELATION,
    Remembering,
    Running,
    Source,
    Stream,
    Target,
    Transaction,
    Unfenced,
    a_backfill,
    an_applier,
    carried_over,
    in_another_process,
    row_of,
    some_statement,
    the_mirror,
)

# -- any order, any repetition -----------------------------------------------------------------------------------------

STATEMENTS = st.tuples(st.sampled_from(KEYS), st.sampled_from(KEYS), st.integers(0, 9))


@given(
    identity=st.booleans(),
    history=st.lists(st.lists(STATEMENTS, min_size=1, max_size=3), min_size=1, max_size=8),
    cuts=st.lists(st.integers(1, 4), min_size=1, max_size=6),
    again=st.lists(st.tuples(st.integers(0, 40), st.integers(1, 6)), max_size=6),
    order=st.randoms(use_true_random=False),
    backfill_at=st.none() | st.tuples(st.integers(0, 8), st.integers(0, 40)),
)
@settings(max_examples=200, deadline=None, derandomize=True, print_blob=True)
def test_deliveries_in_any_order_and_number_lead_to_the_source(
    *,
    identity: bool,
    history: list[list[tuple[int, int, int]]],
    cuts: list[int],
    again: list[tuple[int, int]],
    order: Any,
    backfill_at: tuple[int, int] | None,
) -> None:
    """No order is kept at all, not even that of a TRUNCATE; therefore nothing is swept."""
    source, ledger, mirror, target = Source(), Remembering(), the_mirror(), Target()
    source.full_identity = identity
    target.create(ITEMS)
    applier = an_applier(source, target, ledger, mirror, waits=True)
    page: tuple[BackfillRecord, list[tuple[Relation, Row]]] | None = None
    for index, statements in enumerate(history):
        if backfill_at is not None and backfill_at[0] == index:
            record = BackfillRecord(1, mirror.table, BackfillState.RUNNING, "", version=source.start_version())
            page = record, [(RELATION, row_of(key, values)) for key, values in source.visible.items()]
        transaction = source.begin()
        for key, new_key, choice in statements:
            some_statement(source, transaction, key, new_key, choice)
        source.commit(transaction)
        source.appear(transaction)
    log = [one for one in source.log if isinstance(one, Change)]
    slices, start = [], 0
    for cut in cuts * len(log):
        slices.append(log[start : start + cut])
        start += cut
    slices.extend(log[start : start + length] for start, length in again)
    deliveries: list[Callable[[], object]] = [
        partial(applier.apply, job.changes) for changes in slices for job in _jobs(Delivery(changes))
    ]
    order.shuffle(deliveries)
    if page is not None and backfill_at is not None:
        backfill = a_backfill(mirror, applier, target, ledger)
        deliveries.insert(backfill_at[1], partial(backfill._write, *page))
    for deliver in deliveries:
        deliver()
    assert carried_over(target) == source.current


# -- step by step, with the sweeper ------------------------------------------------------------------------------------


class Pool:
    """Stands in for the executor: what is submitted runs when the test says so."""

    def __init__(self) -> None:
        self.running: list[Running] = []

    def submit(
        self, apply: Callable[[Sequence[Change]], list[Tombstone]], changes: Sequence[Change]
    ) -> Future[list[Tombstone]]:
        job = Running(partial(apply, changes))
        self.running.append(job)
        return job.result


class Worker:
    """One process: what a crash takes away. Pipeline, applier and sweeper are the real ones."""

    def __init__(self, stream: Stream, applier: Applier, sweeper: Sweeper, *, early: bool) -> None:
        self.stopping = Event()
        self.sweeper = sweeper
        self.early = early
        self.pool = Pool()
        self.waiting: list[_Job] = []
        self.pipeline = Pipeline(
            cast("Capture", stream),
            applier,
            Retry(),
            PipelineLimits(workers=2),
            stopping=self.stopping,
            on_confirmed=(lambda _: None) if early else sweeper.note,
        )

    def submit(self) -> None:
        while self.waiting and (not self.pipeline._jobs or self.pipeline._fits(self.waiting[0])):
            self.pipeline._submit(cast("Any", self.pool), self.waiting.pop(0))

    def end(self) -> None:
        for job in self.pool.running:
            job.abandon()

    def step(self, which: int) -> bool:
        job = self.pool.running[which % len(self.pool.running)]
        moved = job.step()
        if job.result.done():
            self.pool.running.remove(job)
            if self.early:
                self.sweeper.note(job.result.result())
        return moved


@dataclass
class Populating:
    """A backfill from the request on: `waits_for` until L0 counts, then pages `to_read` and `to_write`."""

    record: BackfillRecord
    waits_for: list[Transaction]
    to_read: list[tuple[int, ...]] = field(default_factory=lambda: list(PAGES))
    to_write: list[tuple[tuple[int, ...], list[tuple[Relation, Row]]]] = field(default_factory=list)


class Diverged(AssertionError):
    """The target is not what the source is, and nothing is left to arrive."""


class Convergence(RuleBasedStateMachine):
    """The rules that the subclasses below take away, one each."""

    target_class: ClassVar[type[Target]] = Target
    reads_wait_for_visibility: ClassVar[bool] = True
    backfill_waits_for_transactions: ClassVar[bool] = True
    sweeper_heeds_backfill: ClassVar[bool] = True
    sweeper_heeds_watermark: ClassVar[bool] = True
    versions_by_commit: ClassVar[bool] = True
    # What narrows a search.
    sweeps_at_once: ClassVar[bool] = False
    crashes: ClassVar[bool] = True
    populates_again: ClassVar[bool] = True

    @initialize(
        rows=st.sets(st.sampled_from(KEYS)),
        left=st.none() | st.sampled_from(KEYS),
        full_identity=st.booleans(),
        backfill_elsewhere=st.booleans(),
    )
    def start(self, *, rows: set[int], left: int | None, full_identity: bool, backfill_elsewhere: bool) -> None:
        """Rows that were there before the slot, and maybe an item that another epoch left behind."""
        self.source = Source()
        self.source.full_identity = full_identity
        self.source.versions_by_record = not self.versions_by_commit
        self.source.current = {key: (self.source.value("name"), self.source.value("doc")) for key in sorted(rows)}
        self.source.visible = dict(self.source.current)
        self.target = self.target_class()
        self.target.create(ITEMS)
        if left is not None:
            version = make_version(EPOCH - 1, 5000)
            self.target.write([Put(ITEMS, (left,), version, {"id": left, "name": "left", "doc": "behind"})])
        self.ledger = Remembering()
        self.ledger.heeds_old_writes = self.sweeper_heeds_backfill
        self.stream = Stream()
        self.mirror = the_mirror()
        self.read_upto = 0
        self.populating: Populating | None = None
        self.backfill_elsewhere = backfill_elsewhere
        self.start_worker()
        if rows or left is not None:
            # At once: a later one would mend what went wrong before it.
            self.begin_backfill()

    def start_worker(self) -> None:
        self.target = in_another_process(self.target)
        self.applier = an_applier(
            self.source, self.target, self.ledger, self.mirror, waits=self.reads_wait_for_visibility
        )
        sweeper = Sweeper(self.target, cast("Ledger", self.ledger), grace=0.0)
        self.worker = Worker(self.stream, self.applier, sweeper, early=not self.sweeper_heeds_watermark)

    # the source

    @rule(slot=st.integers(0, 1), key=st.sampled_from(KEYS), new_key=st.sampled_from(KEYS), choice=st.integers(0, 9))
    def write(self, *, slot: int, key: int, new_key: int, choice: int) -> None:
        writing = [one for one in self.source.invisible if not one.committed]
        transaction = writing[slot] if slot < len(writing) else self.source.begin()
        some_statement(self.source, transaction, key, new_key, choice)

    @rule(
        statements=st.lists(STATEMENTS, min_size=1, max_size=3),
        appears=st.booleans(),
    )
    def run_transaction(self, *, statements: list[tuple[int, int, int]], appears: bool) -> None:
        transaction = self.source.begin()
        for statement in statements:
            some_statement(self.source, transaction, *statement)
        self.source.commit(transaction)
        if appears:
            self.source.appear(transaction)

    @precondition(lambda self: any(not one.committed for one in self.source.invisible))
    @rule(which=st.integers(0, 3), rolls_back=st.integers(0, 3))
    def end(self, *, which: int, rolls_back: int) -> None:
        writing = [one for one in self.source.invisible if not one.committed]
        transaction = writing[which % len(writing)]
        if rolls_back == 3:
            self.source.roll_back(transaction)
        else:
            self.source.commit(transaction)

    @precondition(lambda self: any(one.committed for one in self.source.invisible))
    @rule(which=st.integers(0, 3))
    def appear(self, *, which: int) -> None:
        committed = [one for one in self.source.invisible if one.committed]
        self.source.appear(committed[which % len(committed)])

    # the worker

    @precondition(lambda self: self.read_upto < len(self.source.log) and len(self.worker.waiting) < 3)
    @rule(messages=st.integers(1, 5))
    def deliver(self, *, messages: int) -> None:
        delivery = Delivery()
        for message in self.source.log[self.read_upto : self.read_upto + messages]:
            self.read_upto += 1
            if isinstance(message, Commit):
                delivery.position = message.position
            else:
                delivery.changes.append(message)
        self.worker.waiting.extend(_jobs(delivery))
        self.worker.submit()

    @precondition(lambda self: self.worker.pool.running)
    @rule(which=st.integers(0, 3), steps=st.integers(1, 3))
    def work(self, *, which: int, steps: int) -> None:
        job = self.worker.pool.running[which % len(self.worker.pool.running)]
        for _ in range(steps):
            if job in self.worker.pool.running:
                self.worker.step(self.worker.pool.running.index(job))
        if self.sweeps_at_once:
            self.sweep()

    @precondition(lambda self: self.worker.pipeline._jobs)
    @rule()
    def confirm(self) -> None:
        self.worker.pipeline._confirm()
        self.worker.submit()
        if self.sweeps_at_once:
            self.sweep()

    @precondition(lambda self: self.worker.sweeper.pending)
    @rule()
    def sweep(self) -> None:
        self.worker.sweeper.sweep()

    @precondition(lambda self: not self.worker.pool.running)
    @rule()
    def reconnect(self) -> None:
        """The stream broke; what had been read ahead is lost. It is opened again when nothing is in flight."""
        self.worker.pipeline._confirm()
        self.worker.waiting.clear()
        self.rewind()

    @precondition(lambda self: self.crashes)
    @rule(landing=st.lists(st.integers(0, 3), max_size=3))
    def crash(self, *, landing: list[int]) -> None:
        """The worker is killed. Some of what it had on its way still gets there."""
        for which in landing:
            if self.worker.pool.running:
                self.worker.step(which)
        self.abandon_backfill()
        self.worker.end()
        self.start_worker()
        self.rewind()

    def rewind(self) -> None:
        ends = [index for index, one in enumerate(self.source.log) if isinstance(one, Commit)]
        behind = [index for index in ends if cast("Commit", self.source.log[index]).position <= self.stream.confirmed]
        self.read_upto = behind[-1] + 1 if behind else 0

    # the backfill

    @precondition(lambda self: self.populating is None and self.populates_again)
    @rule()
    def begin_backfill(self) -> None:
        record = BackfillRecord(
            1, self.mirror.table, BackfillState.RUNNING, "asked for", version=self.source.start_version()
        )
        waits_for = list(self.source.invisible) if self.backfill_waits_for_transactions else []
        self.populating = Populating(record, waits_for)

    def has_begun(self) -> bool:
        if self.populating is None:
            return False
        return not any(one in self.source.invisible for one in self.populating.waits_for)

    @precondition(lambda self: self.has_begun() and self.populating.to_read)
    @rule(which=st.integers(0, 1))
    def read_page(self, *, which: int) -> None:
        assert self.populating is not None
        self.ledger.old_writes = True
        keys = self.populating.to_read.pop(which % len(self.populating.to_read))
        rows = [(RELATION, row_of(key, self.source.visible[key])) for key in keys if key in self.source.visible]
        self.populating.to_write.append((keys, rows))

    @precondition(lambda self: self.populating is not None and self.populating.to_write)
    @rule(which=st.integers(0, 1))
    def write_page(self, *, which: int) -> None:
        assert self.populating is not None
        _, rows = self.populating.to_write.pop(which % len(self.populating.to_write))
        self.backfill()._write(self.populating.record, rows)

    @precondition(lambda self: self.populating is not None)
    @rule()
    def abandon_backfill(self) -> None:
        """It is killed; what was read and not written is read again when it goes on."""
        self.ledger.old_writes = False
        if self.populating is not None:
            self.populating.to_read.extend(keys for keys, _ in self.populating.to_write)
            self.populating.to_write.clear()

    @precondition(lambda self: self.has_begun() and not self.populating.to_read and not self.populating.to_write)
    @rule()
    def finish_backfill(self) -> None:
        assert self.populating is not None
        self.backfill()._finish(self.populating.record, 0, lambda: None)
        self.ledger.old_writes = False
        self.populating = None

    def backfill(self) -> Backfill:
        if not self.backfill_elsewhere:
            return a_backfill(self.mirror, self.applier, self.target, self.ledger)
        target = in_another_process(self.target)
        applier = an_applier(self.source, target, self.ledger, self.mirror, waits=self.reads_wait_for_visibility)
        return a_backfill(self.mirror, applier, target, self.ledger)

    # the end

    def teardown(self) -> None:
        if not hasattr(self, "source"):
            return
        try:
            self.come_to_an_end()
        finally:
            self.worker.end()
        found = carried_over(self.target)
        if found != self.source.current:
            raise Diverged(f"target {found}, source {self.source.current}")

    def come_to_an_end(self) -> None:
        for transaction in list(self.source.invisible):
            if not transaction.committed:
                self.source.commit(transaction)
            self.source.appear(transaction)
        self.drain()
        while self.populating is not None:
            if self.populating.to_read:
                self.read_page(which=0)
            elif self.populating.to_write:
                self.write_page(which=0)
            else:
                self.finish_backfill()
        self.drain()

    def drain(self) -> None:
        while self.read_upto < len(self.source.log) or self.worker.pool.running or self.worker.pipeline._jobs:
            if self.worker.pool.running:
                assert self.worker.step(0), "everything is visible"
            elif self.read_upto < len(self.source.log):
                self.deliver(messages=3)
            self.worker.pipeline._confirm()
            self.worker.submit()
            self.worker.sweeper.sweep()


RULES: Final = settings(
    max_examples=250,
    stateful_step_count=50,
    deadline=None,
    derandomize=True,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)


def test_any_interleaving_leads_to_the_source() -> None:
    run_state_machine_as_test(Convergence, settings=RULES)


class WithoutFence(Convergence):
    target_class = Unfenced


class ReadingTooEarly(Convergence):
    reads_wait_for_visibility = False
    crashes = populates_again = False


class VersionsByRecord(Convergence):
    """An INSERT is logged before the unique index makes it wait."""

    versions_by_commit = False
    crashes = populates_again = False


class BackfillInAHurry(Convergence):
    backfill_waits_for_transactions = False


class SweepingDuringBackfill(Convergence):
    sweeper_heeds_backfill = False
    sweeps_at_once = True
    crashes = False


class SweepingAheadOfTheWatermark(Convergence):
    sweeper_heeds_watermark = False
    sweeps_at_once = True
    crashes = populates_again = False


@pytest.mark.parametrize(
    "broken",
    [
        WithoutFence,
        ReadingTooEarly,
        VersionsByRecord,
        BackfillInAHurry,
        SweepingDuringBackfill,
        SweepingAheadOfTheWatermark,
    ],
    ids=lambda one: one.__name__,
)
def test_without_any_one_rule_a_counterexample_is_found(broken: type[Convergence]) -> None:
    """The test above is worth something: each of the rules that it stands for is needed."""
    only_search = settings(
        RULES, max_examples=2000, phases=[Phase.generate], database=None, verbosity=Verbosity.quiet, print_blob=False
    )
    with pytest.raises(Diverged):
        run_state_machine_as_test(broken, settings=only_search)
