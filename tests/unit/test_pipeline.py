"""The loop: what is in flight at once, what is confirmed when, and how it ends."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from datetime import UTC, datetime
from typing import cast

import pytest

from docferry.applier import Applier, Tombstone
from docferry.capture.contract import Delivery
from docferry.change.model import Change, Op, Relation, make_version, split_version
from docferry.document.model import Collection, KeyAttribute, KeyKind
from docferry.errors import Interrupted, SourceRefused, SourceUnavailable, TargetRefused
from docferry.metrics import Metrics
from docferry.pipeline import Pipeline, PipelineLimits
from docferry.retry import Retry

from ..waiting import PATIENCE, until

T = Relation(7, "public", "t", ())
ITEMS = Collection("t", (KeyAttribute("id", KeyKind.TEXT),))


def change(number: int, op: Op = Op.INSERT, size: int = 10) -> Change:
    return Change(op, T, (), None, make_version(1, number), 0, None, size)


def tombstone(number: int) -> Tombstone:
    return Tombstone(ITEMS, (str(number),), number)


def delivery(*numbers: int, position: int | None = None, size: int = 10, truncates: Sequence[int] = ()) -> Delivery:
    changes = [change(number, Op.TRUNCATE if number in truncates else Op.INSERT, size) for number in numbers]
    return Delivery(changes, position, None, size * len(changes))


class ScriptedCapture:
    """Delivers what it is given, one after the other, then nothing. An exception is raised."""

    def __init__(self, *script: Delivery | Exception) -> None:
        self.script = deque(script)
        self.confirmed: list[int] = []
        self.closed = False
        self.kept_alive = 0
        self.log: list[str] = []

    def read(self, timeout: float) -> Delivery:
        if self.script:
            what = self.script.popleft()
            if isinstance(what, Exception):
                self.log.append("broke")
                raise what
            self.log.append("read")
            return what
        time.sleep(min(timeout, 0.005))
        return Delivery()

    def confirm(self, position: int) -> None:
        assert not self.closed
        if not self.confirmed or self.confirmed[-1] != position:
            self.confirmed.append(position)

    def keep_alive(self, _timeout: float) -> None:
        self.kept_alive += 1

    def look_afresh(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True


class GatedApplier:
    """Applies a job when the test lets it: `gates` by the number of the job's first change; without one, at once."""

    def __init__(self) -> None:
        self.started: list[list[int]] = []
        self.running: set[int] = set()
        self.most_at_once = 0
        self.alone: list[bool] = []
        self.gates: dict[int, Future[list[Tombstone]]] = {}
        self.leaves: dict[int, list[Tombstone]] = {}
        self._lock = threading.Lock()

    def hold(self, *numbers: int) -> None:
        for number in numbers:
            self.gates[number] = Future()

    def let_go(self, number: int) -> None:
        self.gates[number].set_result([])

    def fail(self, number: int, error: Exception) -> None:
        self.gates[number].set_exception(error)

    def apply(self, changes: Sequence[Change]) -> list[Tombstone]:
        numbers = [split_version(one.version)[1] for one in changes]
        first = numbers[0]
        with self._lock:
            self.started.append(numbers)
            self.running.add(first)
            self.most_at_once = max(self.most_at_once, len(self.running))
            if changes[0].op is Op.TRUNCATE:
                self.alone.append(self.running == {first})
        try:
            if first in self.gates:
                self.gates[first].result(PATIENCE)
        finally:
            with self._lock:
                self.running.discard(first)
        return self.leaves.get(first, [])


class Running:
    """A pipeline in a thread of its own."""

    def __init__(self, capture: ScriptedCapture, applier: GatedApplier, **limits: float) -> None:
        self.capture = capture
        self.stopping = threading.Event()
        self.retry = Retry(first=0.001, longest=0.002)
        self.noted: list[Tombstone] = []
        self.metrics = Metrics()
        self.error: BaseException | None = None
        # One delivery is one job: changes do not gather.
        chosen = {"batch_changes": 1, "grace": PATIENCE, **limits}
        self.pipeline = Pipeline(
            capture,
            cast("Applier", applier),
            self.retry,
            PipelineLimits(**chosen),  # type: ignore[arg-type]
            stopping=self.stopping,
            on_confirmed=self.noted.extend,
            metrics=self.metrics,
        )
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.pipeline.run()
        except BaseException as error:  # noqa: BLE001 - handed to the test
            self.error = error

    def join(self) -> None:
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()

    def stop(self) -> None:
        self.stopping.set()
        self.join()


Start = Callable[..., Running]


@pytest.fixture
def applier() -> GatedApplier:
    return GatedApplier()


@pytest.fixture
def start(applier: GatedApplier) -> Iterator[Start]:
    """Starts pipelines, and ends those that are left."""
    begun: list[Running] = []

    def begin(*script: Delivery | Exception, **limits: float) -> Running:
        begun.append(Running(ScriptedCapture(*script), applier, **limits))
        return begun[-1]

    yield begin
    for running in begun:
        running.stopping.set()
        running.retry.stop.set()
        for gate in applier.gates.values():
            if not gate.done():
                gate.set_result([])
        running.join()


def never(condition: Callable[[], object], what: str, seconds: float = 0.1) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert not condition(), what
        time.sleep(0.005)


# -- R3 ----------------------------------------------------------------------------------------------------------------


def test_the_position_moves_in_order_over_what_is_done(start: Start, applier: GatedApplier) -> None:
    applier.hold(1, 2, 3)
    running = start(delivery(1, position=10), delivery(2, position=20), delivery(3, position=30))
    until(lambda: len(applier.started) == 3, "three jobs run at once")
    applier.let_go(3)
    applier.let_go(2)
    never(lambda: running.capture.confirmed, "nothing is confirmed over an unfinished job")
    applier.let_go(1)
    until(lambda: running.capture.confirmed == [30], "all is confirmed")
    assert running.pipeline.watermark == 30


def test_what_is_inside_a_transaction_moves_nothing(start: Start, applier: GatedApplier) -> None:
    applier.hold(3)
    running = start(delivery(1, position=10), delivery(2), delivery(3, position=30))
    until(lambda: len(applier.started) == 3, "all run")
    until(lambda: running.capture.confirmed == [10], "the first transaction is confirmed")
    never(lambda: running.capture.confirmed != [10], "half a transaction is not")
    applier.let_go(3)
    until(lambda: running.capture.confirmed == [10, 30], "the whole is")


def test_a_position_without_changes_waits_for_those_before_it(start: Start, applier: GatedApplier) -> None:
    applier.hold(1)
    running = start(delivery(1, position=10), delivery(position=99))
    until(lambda: applier.started, "the job runs")
    never(lambda: running.capture.confirmed, "nothing is confirmed over an unfinished job")
    applier.let_go(1)
    until(lambda: running.capture.confirmed == [99], "both are confirmed")


def test_the_position_never_goes_back(start: Start) -> None:
    running = start(delivery(1, position=30), delivery(2, position=20))
    until(lambda: running.capture.confirmed, "confirmed")
    never(lambda: running.capture.confirmed != [30], "a repeated transaction moves nothing")


def test_a_job_that_fails_ends_the_worker_and_is_not_confirmed(start: Start, applier: GatedApplier) -> None:
    applier.hold(2)
    running = start(delivery(1, position=10), delivery(2, position=20), delivery(3, position=30))
    until(lambda: running.capture.confirmed == [10] and len(applier.started) == 3, "the first is confirmed")
    applier.fail(2, TargetRefused("no"))
    running.join()
    assert isinstance(running.error, TargetRefused)
    assert running.capture.confirmed == [10]
    assert running.capture.closed
    assert running.retry.stop.is_set(), "whoever waits elsewhere stops too"


# -- what is in flight at once -----------------------------------------------------------------------------------------


def test_truncate_has_nothing_beside_it(start: Start, applier: GatedApplier) -> None:
    applier.hold(1, 3, 4)
    running = start(delivery(1, 2, 3, 4, 5, position=10, truncates=(3, 4)), delivery(6, position=20))
    until(lambda: applier.started == [[1, 2]], "what came before it runs")
    never(lambda: len(applier.started) > 1, "it waits for what came before it")
    applier.let_go(1)
    until(lambda: applier.started[1:] == [[3, 4]], "then it runs, for both tables")
    never(lambda: len(applier.started) > 2, "what comes after it waits")
    applier.let_go(3)
    until(lambda: running.capture.confirmed == [20], "all is done")
    assert sorted(applier.started[2:]) == [[5], [6]]
    assert applier.alone == [True]


def test_so_many_jobs_and_no_more(start: Start, applier: GatedApplier) -> None:
    applier.hold(*range(1, 11))
    running = start(*[delivery(number, position=number) for number in range(1, 11)], workers=2)
    until(lambda: running.pipeline.in_flight == 4, "two run and two wait")
    never(lambda: running.pipeline.in_flight > 4, "no more are read ahead")
    until(lambda: applier.most_at_once == 2, "two run at once")
    until(lambda: running.capture.kept_alive > 0, "the source hears of us meanwhile")
    for number in range(1, 11):
        applier.let_go(number)
    until(lambda: running.capture.confirmed[-1:] == [10], "all is done")


def test_what_is_durable_behind_one_that_is_stuck_takes_no_room(start: Start, applier: GatedApplier) -> None:
    """One collection that takes nothing must not keep the others', nor positions without changes."""
    applier.hold(1)
    script = [delivery(1, position=10)]
    for number in range(2, 40):
        script += [delivery(number, position=10 * number), delivery(position=10 * number + 1)]
        script += [delivery(position=10 * number + 2)]
    running = start(*script)
    until(lambda: [39] in applier.started, "all others are applied")
    until(lambda: running.pipeline.in_flight == 39, "all are in flight")
    assert running.capture.confirmed in ([], [0])
    assert len(running.pipeline._jobs) < 2 * 40
    applier.let_go(1)
    until(lambda: running.capture.confirmed[-1:] == [392], "all is confirmed")


def test_so_many_bytes_and_no_more(start: Start, applier: GatedApplier) -> None:
    applier.hold(1, 2, 3, 4)
    sizes = {1: 400, 2: 500, 3: 200, 4: 5000}
    running = start(
        *[delivery(number, position=number, size=size) for number, size in sizes.items()], in_flight_bytes=1000
    )
    until(lambda: running.pipeline.in_flight == 2, "900 bytes are in flight")
    never(lambda: running.pipeline.in_flight > 2, "200 more do not fit")
    applier.let_go(1)
    until(lambda: [3] in applier.started, "now they do")
    never(lambda: [4] in applier.started, "what is too large for everything waits until it is alone")
    applier.let_go(2)
    applier.let_go(3)
    until(lambda: [4] in applier.started, "then it goes")
    applier.let_go(4)
    until(lambda: running.capture.confirmed[-1:] == [4], "all is done")


def test_changes_gather_while_the_target_is_busy(start: Start, applier: GatedApplier) -> None:
    applier.hold(1, 2)
    running = start(*[delivery(number, position=number) for number in range(1, 9)], batch_changes=4)
    until(lambda: [3, 4, 5, 6] in applier.started, "four go together")
    applier.let_go(1)
    applier.let_go(2)
    until(lambda: running.capture.confirmed[-1:] == [8], "all is done")
    assert sorted(applier.started[:3]) == [[1], [2], [3, 4, 5, 6]]


# -- R4 ----------------------------------------------------------------------------------------------------------------


def test_tombstones_are_told_once_the_position_has_passed_them(start: Start, applier: GatedApplier) -> None:
    applier.leaves = {1: [tombstone(1)], 2: [tombstone(2)], 3: [tombstone(3)]}
    applier.hold(1, 3)
    running = start(delivery(1), delivery(2, position=20), delivery(3, position=30))
    until(lambda: len(applier.started) == 3, "all run")
    never(lambda: running.noted, "the second is done, the first is not")
    applier.let_go(1)
    until(lambda: len(running.noted) == 2, "the first transaction is done")
    assert running.noted == [tombstone(1), tombstone(2)]
    applier.let_go(3)
    until(lambda: len(running.noted) == 3, "the second is, too")


def test_tombstones_of_a_transaction_that_may_come_again_are_kept_back(start: Start, applier: GatedApplier) -> None:
    """It is not confirmed, so an older change of the same key may still be on its way."""
    applier.leaves = {1: [tombstone(1)]}
    running = start(delivery(1), SourceUnavailable("gone"))
    until(lambda: applier.started == [[1]] and running.pipeline.in_flight == 0, "done, inside a transaction")
    never(lambda: running.noted, "the position has not passed it")


# -- the source goes away ----------------------------------------------------------------------------------------------


def test_a_broken_stream_is_opened_again(start: Start, applier: GatedApplier) -> None:
    running = start(delivery(1, position=10), *[SourceUnavailable("gone")] * 3, delivery(2, position=20))
    until(lambda: running.capture.confirmed[-1:] == [20], "it goes on")
    assert applier.started == [[1], [2]]


def test_it_is_opened_again_only_when_nothing_is_in_flight(start: Start, applier: GatedApplier) -> None:
    """What was not confirmed comes again, and must not overtake itself."""
    applier.hold(1)
    running = start(delivery(1, position=10), SourceUnavailable("gone"), delivery(2, position=20))
    until(lambda: running.capture.log == ["read", "broke"], "the stream broke")
    never(lambda: len(running.capture.log) > 2, "it waits")
    applier.let_go(1)
    until(lambda: running.capture.confirmed[-1:] == [20], "it goes on")


def test_what_was_gathered_from_a_broken_stream_is_forgotten(start: Start, applier: GatedApplier) -> None:
    """It comes again. Within a batch the last change of a key counts, so a batch must not hold both."""
    applier.hold(1, 2)
    running = start(
        delivery(1, position=10),
        delivery(2, position=20),
        delivery(3, position=30),
        SourceUnavailable("gone"),
        delivery(3),
        delivery(4, position=40),
        batch_changes=10,
    )
    until(lambda: running.capture.log[-1:] == ["broke"], "three were read")
    applier.let_go(1)
    applier.let_go(2)
    until(lambda: running.capture.confirmed[-1:] == [40], "all is done")
    assert sorted(number for numbers in applier.started for number in numbers) == [1, 2, 3, 4]


def test_what_the_source_refuses_ends_the_worker(start: Start) -> None:
    running = start(delivery(1, position=10), SourceRefused("no"))
    running.join()
    assert isinstance(running.error, SourceRefused)
    assert running.capture.closed


# -- the end -----------------------------------------------------------------------------------------------------------


def test_a_stop_finishes_what_is_in_flight(start: Start, applier: GatedApplier) -> None:
    applier.hold(1)
    running = start(delivery(1, position=10))
    until(lambda: applier.started, "the job runs")
    running.stopping.set()
    never(lambda: running.capture.closed, "it is waited for")
    applier.let_go(1)
    running.join()
    assert running.error is None
    assert running.capture.confirmed == [10]
    assert running.capture.closed


def test_a_stop_does_not_wait_longer_than_its_grace(start: Start, applier: GatedApplier) -> None:
    applier.hold(1)
    running = start(delivery(1, position=10), grace=0.05)
    until(lambda: applier.started, "the job runs")
    running.stopping.set()
    assert running.retry.stop.wait(PATIENCE), "whoever retries is told to give up"
    applier.fail(1, Interrupted("told to give up"))
    running.join()
    assert running.error is None
    assert running.capture.confirmed == []


def test_a_stop_is_heard_while_there_is_no_room(start: Start, applier: GatedApplier) -> None:
    """The target is away, more was read than fits: the grace counts from the stop all the same."""
    applier.hold(1, 2)
    running = start(
        delivery(1, position=10),
        delivery(2, position=20),
        delivery(3, 4, 5, position=30, truncates=(4,)),
        workers=1,
        grace=0.05,
    )
    until(lambda: running.pipeline.in_flight == 2, "no more room")
    running.stopping.set()
    assert running.retry.stop.wait(PATIENCE), "the grace is over"
    applier.fail(1, Interrupted("told to give up"))
    applier.let_go(2)
    running.join()
    assert running.error is None
    assert running.capture.confirmed == []


def test_what_found_no_room_before_the_stop_is_not_confirmed(start: Start, applier: GatedApplier) -> None:
    applier.hold(1, 2)
    running = start(
        delivery(1, position=10),
        delivery(2, position=20),
        delivery(3, 4, 5, position=30, truncates=(4,)),
        workers=1,
    )
    until(lambda: running.pipeline.in_flight == 2, "no more room")
    running.stopping.set()
    never(lambda: running.capture.closed, "what is in flight is waited for")
    applier.let_go(1)
    applier.let_go(2)
    running.join()
    assert running.capture.confirmed[-1] == 20
    assert not any(5 in numbers for numbers in applier.started)


# -- what is told of it ------------------------------------------------------------------------------------------------


def test_who_looks_on_sees_what_is_in_flight_and_why_it_does_not_stream(start: Start, applier: GatedApplier) -> None:
    applier.hold(1)
    committed_at = datetime(2025, 1, 20, 9, 30, tzinfo=UTC)
    changes = [Change(Op.INSERT, T, (), None, make_version(1, 1), 0, committed_at, 7), change(2, size=7)]
    running = start(SourceUnavailable("no answer"), Delivery(changes, 10, None, 14))
    pipeline = running.pipeline
    until(lambda: applier.started, "a job runs")
    assert pipeline.not_streaming is None
    head = pipeline.head
    assert head is not None
    tables, since = head
    assert tables == ["public.t"]
    assert since <= time.monotonic()
    assert (pipeline.in_flight, pipeline.in_flight_bytes) == (2, 14)
    assert pipeline.oldest_commit == committed_at
    applier.let_go(1)
    until(lambda: running.capture.confirmed == [10], "it is confirmed")
    until(lambda: pipeline.head is None, "nothing is left in front")
    until(lambda: pipeline.oldest_commit is None, "nor older")
    assert pipeline.moved_at >= since
    assert running.metrics.job_changes.snapshot()[1] == 2
    assert any(name.startswith("apply") for name in running.metrics.pulses.all())
    running.capture.script.extend(SourceUnavailable("cut") for _ in range(1000))
    until(lambda: pipeline.not_streaming == "cut", "the stream is broken")
