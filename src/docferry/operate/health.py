"""Whether a worker lives, and whether it makes progress: told by what it does, not by what it means to do."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from docferry.capture.contract import StreamState
from docferry.config import hide_secrets
from docferry.errors import DocferryError
from docferry.metrics import BackfillCount, Metrics
from docferry.operate.log_ends import LogEnds

__all__ = ["Check", "Health", "HealthLimits", "Watched"]

_BEATS_MISSED = 3
_BEAT_SLACK = 5.0
_FAILED_BACKFILLS = 3
# A server that decodes a large transaction for nothing sends nothing for a while.
_QUIET_FACTOR = 5
# A look at the source may wait for connections that nobody accepts.
_LOOK_SLACK = 20.0
# Whoever tries again does so at least this often: a request's timeouts and the longest wait, and some.
_STILL_TRYING = 120.0
# Their steps are short, or show that they live; those of others may take as long as they like.
_MAKES_TURNS = ("heartbeat", "sweeper", "backfills", "health")
_AT_THE_TARGET = "See what the target answers, and its capacity; it is tried again by itself, nothing is lost."
_LOCKED = (
    "It goes on by itself. As a rule somebody holds a lock on the table: SELECT pid, pg_blocking_pids(pid) FROM "
    "pg_stat_activity WHERE application_name = 'docferry backfill'."
)
_AT_THE_SOURCE = "Check that the source answers and takes our connections; the worker tries again by itself."


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that must be so. `why`: it is not, in words; empty when it is."""

    name: str
    why: str = ""
    remedy: str = ""

    @property
    def ok(self) -> bool:
        """Whether it is so."""
        return not self.why

    def document(self) -> dict[str, Any]:
        """As JSON shows it."""
        shown: dict[str, Any] = {"check": self.name, "ok": self.ok}
        return shown if self.ok else {**shown, "why": hide_secrets(self.why), "remedy": self.remedy}


@dataclass(frozen=True, slots=True)
class HealthLimits:
    """Seconds, but for `dead_letters`: as many kept count as full. `stuck_after`: without anything done while the
    target answers errors. `silent_after`: without a turn of a loop. `heartbeat`, `look`: between two of them."""

    stuck_after: float = 60.0
    silent_after: float = 300.0
    heartbeat: float = 10.0
    look: float = 5.0
    dead_letters: int = 100_000


class Watched(Protocol):
    """What is asked of the pipeline."""

    moved_at: float
    watermark: int

    @property
    def oldest_commit(self) -> datetime | None:
        """When the oldest of the changes was committed that have been read and are not found durable yet."""

    @property
    def in_flight(self) -> int:
        """Changes read and not yet durable."""

    @property
    def in_flight_bytes(self) -> int:
        """What these hold in memory."""

    @property
    def head(self) -> tuple[list[str], float] | None:
        """The tables of the oldest job in flight, and since when it is (monotonic seconds)."""

    @property
    def not_streaming(self) -> str | None:
        """Why the stream is not open."""


class Health:
    """Judges one worker. What the source has to say is asked by `look`, in a thread of its own; the checks themselves
    ask nobody and answer at once.

    `state`: where the capture stands. `count_letters`: kept dead letters by table. `check_letters`: raises what would
    keep new ones from being kept. `stopping`: whether it was told to stop. `clock`: monotonic seconds; `today`: those
    since 1970.
    """

    def __init__(
        self,
        pipeline: Watched,
        metrics: Metrics,
        limits: HealthLimits,
        *,
        state: Callable[[], StreamState | None],
        count_letters: Callable[[], Mapping[str, int]],
        check_letters: Callable[[], None] = lambda: None,
        stopping: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
        today: Callable[[], float] = time.time,
    ) -> None:
        self._pipeline = pipeline
        self._metrics = metrics
        self.limits = limits
        self._ask_state = state
        self._count_letters = count_letters
        self._check_letters = check_letters
        self._stopping = stopping
        self._clock = clock
        self._today = today
        self._began = clock()
        self._beaten = self._began
        self._looked = self._began
        self._seen = self._began
        self._last: StreamState | None = None
        self._ends = LogEnds()
        self._moved_on = (0, self._began)
        self._source_error = ""
        self._letters_error = ""
        self._threads: Sequence[threading.Thread] = ()
        self._main = ""
        self.kept: Mapping[str, int] = {}

    # -- what the worker tells ----------------------------------------------------------------------------------------

    def watch(self, threads: Sequence[threading.Thread]) -> None:
        """These must live as long as the worker; the calling thread is the one of its loop."""
        self._threads = threads
        self._main = threading.current_thread().name

    def beaten(self) -> None:
        """A heartbeat was written."""
        self._beaten = self._clock()

    def look(self) -> None:
        """Ask the source. Raises nothing: whoever looks on stops nothing."""
        try:
            stream = self._ask_state()
        except Exception as error:  # noqa: BLE001 - it is told by the check
            self._source_error = _said(error)
        else:
            self._note(stream)
            self._source_error = "" if stream is not None else "the source has nothing to stream from any more"
            try:
                self.kept = dict(self._count_letters())
                self._check_letters()
                self._letters_error = ""
            except Exception as error:  # noqa: BLE001 - it is told by the check
                self._letters_error = _said(error)
        self._looked = self._clock()

    def _note(self, stream: StreamState | None) -> None:
        """What the source has answered."""
        self._last, self._seen = stream, self._clock()
        if stream is None:
            return
        if stream.unit == "bytes":
            self._ends.saw(stream.current, self._seen)
        if stream.confirmed != self._moved_on[0] or stream.lag == 0:
            self._moved_on = (stream.confirmed, self._seen)

    # -- how far it is ------------------------------------------------------------------------------------------------

    @property
    def stream(self) -> StreamState | None:
        """Where the capture stood at the last look. None while the source is away: then nobody knows."""
        return self._last if self._source().ok else None

    @property
    def source_seen(self) -> float:
        """Seconds since the source has last answered."""
        return self._clock() - self._seen

    @property
    def lag_seconds(self) -> float:
        """How old the oldest change is that is not at the target, as well as it can be known from here.

        Of changes that have been read it is known. What the source has yet to send is as old as the look that saw it
        first, which may be one look too little. While the source is away there may be changes since it was last seen.
        """
        found = []
        if (oldest := self._pipeline.oldest_commit) is not None:
            found.append(self._today() - oldest.timestamp())
        last = self._last
        waiting = (last.oldest_seconds or 0.0) if last is not None else 0.0
        found.append(waiting)
        confirmed = last.confirmed if last is not None and last.unit == "bytes" else 0
        if (since := self._ends.since(max(self._pipeline.watermark, confirmed))) is not None:
            found.append(self._clock() - since)
        if self.stream is None:
            found.append(self.source_seen + waiting)
        return round(max(found), 3)

    # -- the answers --------------------------------------------------------------------------------------------------

    def live(self) -> list[Check]:
        """Whether the process does anything at all: if not, it should be started anew. An outage is no reason."""
        if self._stopping():
            return [self._loop()]  # the threads end one by one
        return [self._loop(), *(self._thread(thread) for thread in self._threads)]

    def ready(self) -> list[Check]:
        """Whether it makes progress. Being throttled, or behind, is no reason not to be."""
        return [
            self._stream(),
            self._source(),
            self._heartbeat(),
            self._target(),
            self._progress(),
            self._backfills(),
            self._dead_letters(),
        ]

    def not_ready(self) -> list[Check]:
        """Those checks that say why it is not."""
        return [check for check in self.ready() if not check.ok]

    # -- alive --------------------------------------------------------------------------------------------------------

    def _silence(self, name: str) -> float:
        """Seconds since a thread, or one that works for it, last showed that it lives: the pages of the thread
        `backfills` are written by `backfill_0` and so on."""
        family = f"{name.removesuffix('s')}_"
        pulses = self._metrics.pulses.all().items()
        beats = [pulse.beat for other, pulse in pulses if other == name or other.startswith(family)]
        return self._clock() - max(beats, default=self._began)

    def _loop(self) -> Check:
        silent = self._silence(self._main)
        if silent <= self.limits.silent_after:
            return Check("loop")
        return Check("loop", f"the main loop has made no turn for {silent:.0f} s", "Start the worker again.")

    def _thread(self, thread: threading.Thread) -> Check:
        name = f"thread {thread.name}"
        if not thread.is_alive():
            return Check(name, f"the thread {thread.name} has ended", "Start the worker again; its log says why.")
        silent = self._silence(thread.name)
        # Its pause between two turns may be longer than that.
        limit = max(self.limits.silent_after, _BEATS_MISSED * self.limits.heartbeat)
        if silent <= limit or thread.name not in _MAKES_TURNS:
            return Check(name)
        return Check(name, f"the thread {thread.name} has made no turn for {silent:.0f} s", "Start the worker again.")

    # -- makes progress -----------------------------------------------------------------------------------------------

    def _stream(self) -> Check:
        if self._stopping():
            return Check("stream", "the worker is stopping", "Start it again, if you did not mean it to.")
        why = self._pipeline.not_streaming
        return Check("stream") if why is None else Check("stream", f"it does not stream: {why}", _AT_THE_SOURCE)

    def _source(self) -> Check:
        if self._source_error:
            return Check("source", self._source_error, _AT_THE_SOURCE)
        age = self._clock() - self._looked
        if age <= _BEATS_MISSED * self.limits.look + _LOOK_SLACK:
            return Check("source")
        return Check("source", f"the source has not answered for {age:.0f} s", _AT_THE_SOURCE)

    def _heartbeat(self) -> Check:
        age = self._clock() - self._beaten
        if age <= _BEATS_MISSED * self.limits.heartbeat + _BEAT_SLACK:
            return Check("heartbeat")
        return Check("heartbeat", f"no heartbeat could be written for {age:.0f} s", _AT_THE_SOURCE)

    def _target(self) -> Check:
        """A thread that gets nothing done, and errors from the target instead."""
        stuck = list(self._stuck())
        if not stuck:
            return Check("target")
        seconds, collection, error = max(stuck)
        return Check(
            "target",
            f"nothing has become durable in {collection or 'the target'} for {seconds:.0f} s: {error}",
            _AT_THE_TARGET,
        )

    def _stuck(self) -> Iterator[tuple[float, str, str]]:
        for pulse in self._metrics.pulses.all().values():
            now = self._clock()
            tries = now - pulse.beat < _STILL_TRYING
            if tries and pulse.failing is not None and now - pulse.failing > self.limits.stuck_after:
                yield now - pulse.failing, pulse.collection, pulse.error

    def _progress(self) -> Check:
        now, limit = self._clock(), self.limits.stuck_after
        head = self._pipeline.head
        if head is not None:
            tables, since = head
            applying = [pulse.moved for name, pulse in self._metrics.pulses.all().items() if name.startswith("apply_")]
            still = now - max([since, self._pipeline.moved_at, *applying])
            if still > limit:
                oldest = ", ".join(tables) or "no table"
                return Check(
                    "progress",
                    f"nothing has become durable for {still:.0f} s; {self._pipeline.in_flight} changes are in flight, "
                    f"the oldest of {oldest}",
                    "See the worker's log for what it waits for.",
                )
            return Check("progress")
        return self._arrival(now)

    def _arrival(self, now: float) -> Check:
        """Nothing is in flight: does anything come, when there is something to come?"""
        quiet = now - max(self._moved_on[1], self._pipeline.moved_at)
        limit = max(_QUIET_FACTOR * self.limits.stuck_after, _BEATS_MISSED * self.limits.heartbeat + _BEAT_SLACK)
        stream = self.stream
        if stream is None or stream.lag == 0 or quiet <= limit:
            return Check("progress")
        return Check(
            "progress",
            f"nothing has come for {quiet:.0f} s from a source that is {stream.lag:,} {stream.unit} ahead",
            "See what the server's WAL sender does (pg_stat_replication), or who holds the rows of the outbox.",
        )

    def _backfills(self) -> Check:
        """One that waits for a transaction, one that fails again and again, or one that gets no page done."""
        now, limit = self._clock(), self.limits.stuck_after
        for who, wait in self._metrics.waiting().items():
            if now - wait.since > limit:
                why = f"{who} has waited for {now - wait.since:.0f} s for {wait.for_whom}"
                return Check("backfills", why, wait.remedy)
        counts = self._metrics.backfills()
        table, count = max(counts.items(), key=lambda one: one[1].failures, default=("", BackfillCount()))
        if count.failures >= _FAILED_BACKFILLS:
            return Check(
                "backfills",
                f"the backfill of {table} failed {count.failures} times in a row: {count.error}",
                "See the worker's log; it tries again by itself, and goes on from its last page.",
            )
        # One at a time is under way. What it gets done at the target counts too: a page may be slow, and at its end
        # it removes items without pages.
        pulses = self._metrics.pulses.all().items()
        written = max((pulse.moved for name, pulse in pulses if name.startswith("backfill")), default=0.0)
        for table, count in counts.items():
            still = now - max(count.moved, written)
            if count.active and still > limit:
                return Check("backfills", f"the backfill of {table} has got no page done for {still:.0f} s", _LOCKED)
        return Check("backfills")

    def _dead_letters(self) -> Check:
        error = self._metrics.letters_error or self._letters_error
        if error:
            return Check("dead letters", f"dead letters cannot be kept: {error}", _AT_THE_SOURCE)
        kept = sum(self.kept.values())
        if kept < self.limits.dead_letters:
            return Check("dead letters")
        return Check(
            "dead letters",
            f"{kept:,} dead letters are kept, the limit is {self.limits.dead_letters:,}",
            "See `docferry deadletters list`: mend, replay or discard them; or raise [dead_letters] limit.",
        )


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, DocferryError) else f"{type(error).__name__}: {error}"
