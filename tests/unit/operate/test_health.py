"""What counts as alive, and what as making progress."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from docferry.capture.contract import StreamState
from docferry.errors import SourceRefused, SourceUnavailable
from docferry.metrics import Metrics, Pulse
from docferry.operate.health import Health, HealthLimits
from docferry.operate.log_ends import LogEnds


@dataclass
class Pipeline:
    moved_at: float = 0.0
    in_flight: int = 0
    in_flight_bytes: int = 0
    head: tuple[list[str], float] | None = None
    not_streaming: str | None = None
    watermark: int = 0
    oldest_commit: datetime | None = None


@dataclass
class World:
    """A worker as Health sees it. `now`: the clock."""

    now: float = 1000.0
    pipeline: Pipeline = field(default_factory=lambda: Pipeline(moved_at=1000.0))
    metrics: Metrics = field(default_factory=Metrics)
    confirmed: int = 10
    ahead: int = 0
    oldest_seconds: float | None = None
    kept: dict[str, int] = field(default_factory=dict)
    source_error: Exception | None = None
    letters_error: Exception | None = None
    stopping: bool = False
    heartbeat: float = 10.0

    def __post_init__(self) -> None:
        self.health = Health(
            self.pipeline,
            self.metrics,
            HealthLimits(stuck_after=60, silent_after=300, heartbeat=self.heartbeat, look=5, dead_letters=100),
            state=self._state,
            count_letters=self._count,
            stopping=lambda: self.stopping,
            clock=lambda: self.now,
            today=lambda: self.now,
        )
        self.health.look()
        self.health.beaten()

    def _state(self) -> StreamState | None:
        if self.source_error is not None:
            raise self.source_error
        return StreamState(
            self.confirmed,
            self.confirmed + self.ahead,
            active=True,
            retained=0,
            health="reserved",
            unit="bytes" if self.oldest_seconds is None else "changes",
            oldest_seconds=self.oldest_seconds,
        )

    def _count(self) -> Mapping[str, int]:
        if self.letters_error is not None:
            raise self.letters_error
        return self.kept

    def later(self, seconds: float) -> None:
        """Time passes, and the source and the heartbeat are well all the while."""
        self.now += seconds
        self.health.look()
        self.health.beaten()

    def pulse(self, thread: str, **of: float | str | None) -> None:
        self.metrics.pulses._by_name[thread] = Pulse(self.now, **of)  # type: ignore[arg-type]

    @property
    def wrong(self) -> dict[str, str]:
        return {check.name: check.why for check in self.health.not_ready()}


def test_a_worker_that_is_well() -> None:
    world = World()
    assert world.wrong == {}
    world.later(1000)
    assert world.wrong == {}, "idle is no reason"


@pytest.mark.parametrize(
    ("spoil", "check", "why"),
    [
        (lambda world: setattr(world.pipeline, "not_streaming", "cut"), "stream", "it does not stream: cut"),
        (lambda world: setattr(world, "stopping", True), "stream", "stopping"),
        (lambda world: setattr(world, "source_error", SourceUnavailable("no answer")), "source", "no answer"),
        (lambda world: setattr(world, "source_error", ValueError("a bug")), "source", "ValueError: a bug"),
        (
            lambda world: world.kept.update({"public.t": 60, "public.u": 40}),
            "dead letters",
            "100 dead letters are kept",
        ),
        (lambda world: setattr(world, "letters_error", SourceRefused("no right")), "dead letters", "no right"),
        (lambda world: setattr(world.metrics, "letters_error", "no disk"), "dead letters", "cannot be kept: no disk"),
        (lambda world: [world.metrics.backfill_failed("public.t", "cut")] * 3, "backfills", ""),
    ],
)
def test_what_is_wrong_at_once(spoil: Callable[[World], object], check: str, why: str) -> None:
    world = World()
    spoil(world)
    world.health.look()
    if check == "backfills":
        assert world.wrong == {}, "once is no pattern"
        for _ in range(2):
            world.metrics.backfill_failed("public.t", "cut")
        why = "the backfill of public.t failed 3 times in a row: cut"
    assert list(world.wrong) == [check]
    assert why in world.wrong[check]


def test_a_backfill_that_goes_on_is_well_again() -> None:
    world = World()
    for _ in range(3):
        world.metrics.backfill_failed("public.t", "cut")
        # It begins again from where it was recorded, which may be before what it had told.
        world.metrics.backfilled("public.t", 40, 100, done=False)
    assert "backfills" in world.wrong
    world.metrics.backfilled("public.t", 50, 100, done=False)
    assert world.wrong == {}


def test_a_population_that_waits_for_a_transaction(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    monkeypatch.setattr("docferry.metrics.time", SimpleNamespace(monotonic=lambda: world.now))
    who = "the backfill of public.t"
    world.metrics.waits(who, "pid 7", "end it")
    world.later(50)
    world.metrics.waits(who, "pid 8", "end that")
    assert world.wrong == {}
    world.later(11)
    assert world.wrong == {"backfills": "the backfill of public.t has waited for 61 s for pid 8"}
    assert [check.remedy for check in world.health.not_ready()] == ["end that"]
    world.metrics.waits(who, "", "")
    assert world.wrong == {}


def test_a_backfill_that_gets_no_page_done(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    monkeypatch.setattr("docferry.metrics.time", SimpleNamespace(monotonic=lambda: world.now))
    world.metrics.backfilled("public.t", 0, 100, done=False)
    world.later(59)
    assert world.wrong == {}
    world.later(2)
    assert world.wrong == {"backfills": "the backfill of public.t has got no page done for 61 s"}
    world.pulse("backfill_0", moved=world.now)
    assert world.wrong == {}, "a page is slow, and gets on"
    world.later(61)
    assert list(world.wrong) == ["backfills"]
    world.metrics.backfilled("public.t", 10, 100, done=False)
    assert world.wrong == {}
    world.later(61)
    world.metrics.backfill_left("public.t")
    assert world.wrong == {}, "another process is at it, or its table is gone"
    world.metrics.backfill_failed("public.t", "cut")
    assert world.wrong == {}, "it has just begun again"
    world.metrics.backfilled("public.t", 100, 100, done=True)
    world.later(61)
    assert world.wrong == {}


def test_a_target_that_answers_nothing_but_errors() -> None:
    world = World()
    slow: dict[str, Any] = {"failing": world.now, "error": "ThrottlingException: slow down", "collection": "orders"}
    world.pulse("apply_0", **slow)
    world.later(59)
    assert world.wrong == {}
    world.later(2)
    assert world.wrong == {"target": "nothing has become durable in orders for 61 s: ThrottlingException: slow down"}
    world.later(60)
    assert world.wrong == {}, "it does not try any more"
    world.pulse("apply_0", **slow)
    assert list(world.wrong) == ["target"]
    world.pulse("apply_0", moved=world.now)
    assert world.wrong == {}


def test_changes_that_stay_in_flight() -> None:
    world = World()
    world.pipeline.head, world.pipeline.in_flight = (["public.t"], world.now), 7
    world.later(50)
    world.pulse("apply_3", moved=world.now)
    world.later(50)
    assert world.wrong == {}, "it is throttled, and gets on"
    world.later(20)
    assert (
        world.wrong["progress"]
        == "nothing has become durable for 70 s; 7 changes are in flight, the oldest of public.t"
    )
    world.pipeline.moved_at = world.now
    assert world.wrong == {}, "another job was found durable"


def test_nothing_comes_from_a_source_that_moves_on() -> None:
    world = World()
    world.ahead = 5000
    world.later(290)
    assert world.wrong == {}
    world.later(20)
    assert "for 310 s from a source that is 5,000 bytes ahead" in world.wrong["progress"]
    world.confirmed += 1
    world.later(1)
    assert world.wrong == {}


class TestLag:
    def test_of_changes_that_have_been_read(self) -> None:
        world = World()
        assert world.health.lag_seconds == 0
        world.pipeline.oldest_commit = datetime.fromtimestamp(world.now - 90, UTC)
        assert world.health.lag_seconds == 90
        world.pipeline.oldest_commit = datetime.fromtimestamp(world.now + 90, UTC)
        assert world.health.lag_seconds == 0, "the source's clock is ahead"

    def test_of_changes_that_have_not_been_sent(self) -> None:
        world = World()
        world.ahead = 1000
        world.later(5)
        world.ahead = 3000
        world.later(5)
        world.later(20)
        assert world.health.lag_seconds == 25
        world.pipeline.watermark = 1009
        assert world.health.lag_seconds == 25, "the end that was seen first is not passed"
        world.pipeline.watermark = 1010
        assert world.health.lag_seconds == 20
        world.pipeline.watermark = 3010
        assert world.health.lag_seconds == 0

    def test_while_the_source_is_away(self) -> None:
        world = World()
        world.source_error = SourceUnavailable("no answer")
        world.later(20)
        assert world.health.stream is None
        assert world.health.source_seen == 20
        assert world.health.lag_seconds == 20, "there may be changes since"
        world.later(30)
        assert world.health.lag_seconds == 50
        world.source_error = None
        world.later(1)
        assert world.health.source_seen == world.health.lag_seconds == 0

    def test_while_the_source_hangs(self) -> None:
        world = World()
        world.now += 36
        assert world.health.stream is None
        assert world.health.lag_seconds == 36

    def test_of_an_outbox(self) -> None:
        world = World()
        world.oldest_seconds = 12.5
        world.later(5)
        assert world.health.lag_seconds == 12.5
        world.source_error = SourceUnavailable("no answer")
        world.later(10)
        assert world.health.lag_seconds == 22.5

    def test_a_long_backlog_takes_little_memory(self) -> None:
        ends = LogEnds()
        for number in range(100_000):
            ends.saw(number, float(number))
        assert len(ends._ahead) <= 1000
        assert ends.since(-1) == 0
        since = ends.since(50_000)
        assert since is not None
        assert 50_000 < since < 50_000 + 100_000 / 250


def test_a_heartbeat_and_a_look_that_are_overdue() -> None:
    world = World()
    world.now += 34
    assert world.wrong == {}
    world.now += 2
    assert list(world.wrong) == ["source", "heartbeat"]


class TestLive:
    def test_loops_that_make_turns(self) -> None:
        world = World()
        ended, stop = threading.Thread(target=lambda: None, name="sweeper"), threading.Event()
        backfills = threading.Thread(target=stop.wait, name="backfills")
        other = threading.Thread(target=stop.wait, name="reconcile")
        ended.start()
        other.start()
        ended.join()
        backfills.start()
        try:
            world.health.watch([backfills])
            main = threading.current_thread().name
            world.pulse(main)
            world.pulse("backfills")
            assert all(check.ok for check in world.health.live())
            world.source_error = SourceUnavailable("no answer")
            world.later(290)
            assert all(check.ok for check in world.health.live()), "an outage is no reason"

            world.pulse(main)
            world.later(20)
            silent = [check.why for check in world.health.live() if not check.ok]
            assert silent == ["the thread backfills has made no turn for 310 s"]
            world.pulse("backfill_2")
            assert all(check.ok for check in world.health.live()), "it waits for its pages"

            world.later(290)
            world.pulse("backfill_2")
            assert "the main loop has made no turn for 310 s" in [check.why for check in world.health.live()]

            world.pulse(main)
            world.health.watch([ended])
            assert "the thread sweeper has ended" in [check.why for check in world.health.live()]
            world.health.watch([other])
            world.later(9000)
            world.pulse(main)
            assert all(check.ok for check in world.health.live()), "its steps may take long"
            world.stopping = True
            assert all(check.ok for check in world.health.live())
        finally:
            stop.set()
            backfills.join()
            other.join()


def test_heartbeats_that_are_far_between() -> None:
    world, stop = World(heartbeat=600.0), threading.Event()
    thread = threading.Thread(target=stop.wait, name="heartbeat")
    thread.start()
    try:
        world.health.watch([thread])
        world.pulse("heartbeat")
        world.later(700)
        world.pulse(threading.current_thread().name)
        assert all(check.ok for check in world.health.live())
        world.later(1200)
        assert not all(check.ok for check in world.health.live())
    finally:
        stop.set()
        thread.join()


def test_no_secret_is_shown() -> None:
    world = World()
    world.source_error = SourceUnavailable("postgresql://app:geheim@db/shop does not answer")
    world.health.look()
    [shown] = [check.document() for check in world.health.not_ready()]
    assert "geheim" not in str(shown)
    assert shown["check"] == "source"
    assert shown["remedy"]
