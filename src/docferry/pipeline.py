"""THE loop: read, convert, apply, confirm.

A delivery of changes becomes a job. Several jobs are in flight at once and finish in any order, which is safe because
the target fences every write by its version (R1). The position moves in order only, over jobs that are durable (R3).
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from itertools import groupby

from docferry.applier import Applies, Tombstone
from docferry.capture.contract import Capture, Delivery
from docferry.change.model import Change, Op
from docferry.document.batch import Pending
from docferry.errors import SourceUnavailable
from docferry.failpoints import failpoint
from docferry.metrics import Metrics
from docferry.retry import Retry
from docferry.target.contract import Result
from docferry.tracing import NO_TRACES, Span, Tracer

__all__ = ["Pipeline", "PipelineLimits"]

_log = logging.getLogger(__name__)
_BUSY = 2
_MOST_JOBS = 1000


@dataclass(frozen=True, slots=True)
class PipelineLimits:
    """`workers` jobs are applied at once; as many again may wait for that, and any number that is durable for those in
    front of it, within what `in_flight_bytes` allows. `in_flight_bytes` bounds what is read ahead (R10).
    While two jobs are under way, changes gather until they are `batch_changes` or `batch_bytes`: the busier the target,
    the larger the requests. `grace`: seconds that a stop waits for what is in flight."""

    workers: int = 4
    in_flight_bytes: int = 32 << 20
    batch_changes: int = 200
    batch_bytes: int = 1 << 20
    grace: float = 30.0


@dataclass(slots=True)
class _Job:
    """Changes on their way. `alone`: nothing else may be in flight with it (TRUNCATE). `since`: monotonic
    seconds. `durable_at`: nanoseconds since 1970, when it is traced."""

    changes: Sequence[Change]
    position: int | None
    size: int
    alone: bool = False
    result: Future[list[Tombstone]] = field(default_factory=Future)
    since: float = field(default_factory=time.monotonic)
    span: Span = field(default_factory=Span)
    durable_at: int | None = None


class Pipeline:
    """One worker's loop. `on_confirmed` is told the tombstones that the watermark has passed (R4), `on_streaming` once
    that the stream is open. `moved_at`: when a job was last found durable, monotonic seconds."""

    def __init__(
        self,
        capture: Capture,
        applier: Applies,
        retry: Retry,
        limits: PipelineLimits,
        *,
        stopping: threading.Event,
        on_confirmed: Callable[[list[Tombstone]], None],
        on_streaming: Callable[[], None] = lambda: None,
        metrics: Metrics | None = None,
        tracer: Tracer = NO_TRACES,
    ) -> None:
        self._capture = capture
        self._applier = applier
        self._retry = retry
        self._limits = limits
        self._stopping = stopping
        self._on_confirmed = on_confirmed
        self._on_streaming = on_streaming
        self._metrics = metrics or Metrics()
        self._tracer = tracer
        self._streaming = False
        self._gathered = Delivery()
        self._jobs: deque[_Job] = deque()
        self._in_flight_bytes = 0
        self._finished = threading.Event()
        self._source_failures = 0
        self._tombstones: list[Tombstone] = []
        self._trouble = ""
        self._gathering_since = 0
        self.watermark = 0
        self.moved_at = time.monotonic()

    def run(self) -> None:
        """Mirror until `stopping` is set. Raises what must stop the worker; what is not durable is not confirmed."""
        with ThreadPoolExecutor(self._limits.workers, thread_name_prefix="apply") as pool:
            try:
                while not self._stopping.is_set():
                    self._metrics.pulses.beat()
                    self._gathered.extend(self._read())
                    if self._is_ripe(self._gathered):
                        delivery, self._gathered = self._gathered, Delivery()
                        for job in _jobs(delivery):
                            if not self._submit(pool, job):
                                break  # nothing behind it may be confirmed
                    self._confirm()
                self._drain()
            finally:
                self._retry.stop.set()
                self._capture.close()

    @property
    def in_flight(self) -> int:
        """Changes read and not yet durable."""
        return sum(len(job.changes) for job in tuple(self._jobs))

    @property
    def in_flight_bytes(self) -> int:
        """What these hold in memory, about."""
        return self._in_flight_bytes

    @property
    def head(self) -> tuple[list[str], float] | None:
        """The tables of the oldest job that is not found durable yet, and since when it is in flight (monotonic
        seconds); None when nothing is."""
        jobs = tuple(self._jobs)
        return (sorted({change.relation.table for change in jobs[0].changes}), jobs[0].since) if jobs else None

    @property
    def oldest_commit(self) -> datetime | None:
        """When the oldest of the changes was committed that have been read and are not found durable yet; None if there
        are none, or nobody knows."""
        gathered = self._gathered.changes
        changes = next((job.changes for job in tuple(self._jobs) if job.changes), gathered)
        return changes[0].committed_at if changes else None

    @property
    def not_streaming(self) -> str | None:
        """Why the stream is not open, None when it is."""
        if self._source_failures:
            return self._trouble
        return None if self._streaming else "the stream has not been opened yet"

    def _read(self) -> Delivery:
        # Come back soon when something waits to be submitted or to be confirmed.
        timeout = 0.002 if self._gathered.changes else 0.02 if self._jobs else 0.5
        try:
            delivery = self._capture.read(timeout)
        except SourceUnavailable as error:
            self._source_failures += 1
            self._trouble = str(error)
            delay = self._retry.delay(self._source_failures)
            said = {"attempt": self._source_failures, "position": self.watermark}
            _log.warning("%s; connecting again in %.1f s", error, delay, extra=said)
            self._stopping.wait(delay)
            # What was not confirmed comes again. It must not overtake itself: within a batch the last change counts,
            # and the sweeper relies on nothing older than the watermark being on its way.
            self._gathered = Delivery()
            while self._jobs and not self._stopping.is_set():
                self._metrics.pulses.beat()
                self._wait_for_head(0.2)
                self._confirm()
            return Delivery()
        if not self._streaming:
            self._streaming = True
            self._on_streaming()
        if self._source_failures:
            _log.info("streaming again")
            self._source_failures = 0
        if delivery.changes and not self._gathered.changes:
            self._gathering_since = time.time_ns()
        return delivery

    def _is_ripe(self, delivery: Delivery) -> bool:
        if not delivery.changes:
            return delivery.position is not None
        return (
            len(delivery.changes) >= self._limits.batch_changes
            or delivery.size >= self._limits.batch_bytes
            or sum(not job.result.done() for job in self._jobs) < _BUSY
        )

    def _submit(self, pool: ThreadPoolExecutor, job: _Job) -> bool:
        """Hand a job to the pool as soon as there is room; False if a stop was asked for before there was."""
        while self._jobs and not self._fits(job):
            if self._stopping.is_set():
                return False
            self._metrics.pulses.beat()
            self._capture.keep_alive(0)
            self._wait_for_head(0.5)
            self._confirm()
        if self._jobs and not job.changes and not self._jobs[-1].changes:
            self._jobs.pop()  # a later position says all that the one before said
        self._jobs.append(job)
        self._in_flight_bytes += job.size
        if job.changes:
            if self._tracer.enabled:
                self._begin_span(job)
            with failpoint("pipeline.submit"):
                job.result = pool.submit(self._apply, job)
            job.result.add_done_callback(lambda _: self._finished.set())
        else:
            job.result.set_result([])
        return True

    def _apply(self, job: _Job) -> list[Tombstone]:
        """One job, in a thread of the pool."""
        self._metrics.pulses.beat()
        with self._tracer.span("docferry.apply", parent=job.span) as span:
            tombstones = self._apply_and_tell(job, span) if self._tracer.enabled else self._applier.apply(job.changes)
        oldest = job.changes[0].committed_at
        self._metrics.durable(len(job.changes), None if oldest is None else time.time() - oldest.timestamp())
        return tombstones

    def _apply_and_tell(self, job: _Job, span: Span) -> list[Tombstone]:
        outcomes = {"applied": 0, "stale": 0, "refused": 0}

        def observe(pending: Pending, result: Result) -> None:
            outcomes[result.outcome.value] += pending.changes

        try:
            tombstones = self._applier.apply(job.changes, observe=observe)
        except BaseException:
            job.span.end()  # it will not be confirmed
            raise
        span.set(**outcomes)
        job.span.set(**outcomes)
        job.durable_at = time.time_ns()
        return tombstones

    def _begin_span(self, job: _Job) -> None:
        job.span = self._tracer.begin(
            "docferry.job",
            at=self._gathering_since,
            changes=len(job.changes),
            bytes=job.size,
            tables=sorted({change.relation.table for change in job.changes}),
        )
        self._tracer.begin("docferry.read", parent=job.span, at=self._gathering_since).end()

    def _wait_for_head(self, seconds: float) -> None:
        """Until some job is done, or so long; not at all if the first one is."""
        self._finished.clear()
        if not self._jobs[0].result.done():
            self._finished.wait(seconds)

    def _fits(self, job: _Job) -> bool:
        if job.alone or self._jobs[-1].alone:
            return False
        # Those that are durable, and wait for one in front of them to be confirmed, take memory but nobody's time.
        return (
            len(self._jobs) < _MOST_JOBS
            and sum(not one.result.done() for one in self._jobs) < 2 * self._limits.workers
            and self._in_flight_bytes + job.size <= self._limits.in_flight_bytes
        )

    def _confirm(self) -> None:
        """Move the watermark over the finished jobs at the head. A failed job ends the worker here, unconfirmed."""
        position = None
        while self._jobs and self._jobs[0].result.done():
            job = self._jobs[0]
            tombstones = job.result.result()
            self._jobs.popleft()
            self.moved_at = time.monotonic()
            self._in_flight_bytes -= job.size
            # Those of a transaction that has not ended wait for its position: it may be read again.
            self._tombstones.extend(tombstones)
            if job.position is not None:
                position = job.position
                if self._tombstones:
                    self._on_confirmed(self._tombstones)
                    self._tombstones = []
            if job.changes and self._tracer.enabled:
                self._tracer.begin("docferry.confirm", parent=job.span, at=job.durable_at).end()
                job.span.set(watermark=max(self.watermark, position or 0))
                job.span.end()
        if position is not None:
            self.watermark = max(self.watermark, position)
        if self.watermark:
            self._capture.confirm(self.watermark)

    def _drain(self) -> None:
        """Finish what is in flight, for as long as the grace lasts."""
        deadline = time.monotonic() + self._limits.grace
        while self._jobs and time.monotonic() < deadline:
            self._metrics.pulses.beat()
            self._wait_for_head(0.2)
            self._confirm()
            self._capture.keep_alive(0)
        if self._jobs:
            _log.warning("stopped with %d changes in flight; they will be read again", self.in_flight)
            self._retry.stop.set()


def _jobs(delivery: Delivery) -> Iterator[_Job]:
    """A TRUNCATE goes alone; only the last job of a delivery carries its position."""
    if not delivery.changes:
        if delivery.position is not None:
            yield _Job((), delivery.position, 0)
        return
    groups = [(alone, list(group)) for alone, group in groupby(delivery.changes, lambda c: c.op is Op.TRUNCATE)]
    for index, (alone, changes) in enumerate(groups):
        last = index == len(groups) - 1
        yield _Job(
            changes,
            delivery.position if last else None,
            sum(change.size for change in changes),
            alone,
        )
