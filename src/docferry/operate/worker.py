"""The worker: the pipeline, the backfills that are due, the sweeper and the heartbeat, under one roof."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from docferry.applier import Applier
from docferry.capture.contract import BackfillRecord, Ledger
from docferry.errors import DocferryError, Interrupted, TableGone, Verdict
from docferry.metrics import Metrics
from docferry.operate.backfill import Backfill
from docferry.operate.health import Health
from docferry.operate.reconcile import Reconciler
from docferry.operate.sweeper import Sweeper
from docferry.pipeline import Pipeline
from docferry.retry import Retry

__all__ = ["Worker", "WorkerSettings"]

_log = logging.getLogger(__name__)
_LEAST_GRACE = 5.0


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """Seconds between two heartbeats, two looks for backfills, two sweeps, and two cycles of reconciling; what the
    heartbeat says of the worker. `stop_grace`: seconds that a stop waits for the threads beside the stream."""

    heartbeat: float = 10.0
    look_for_backfills: float = 1.0
    sweep: float = 2.0
    between_cycles: float = 10.0
    identity: Mapping[str, Any] | None = None
    stop_grace: float = 30.0


class Worker:
    """Runs until `stopping` is set. Only one may run for a source: `only_one` refuses a second. `check` is called
    with every heartbeat and raises what makes going on pointless. `health`: judges it, and is said with every
    heartbeat."""

    def __init__(
        self,
        pipeline: Pipeline,
        applier: Applier,
        backfill_of: Callable[[BackfillRecord], Backfill | None],
        sweeper: Sweeper,
        ledger: Ledger,
        metrics: Metrics,
        retry: Retry,
        settings: WorkerSettings,
        *,
        only_one: Callable[[], AbstractContextManager[Callable[[], None]]],
        stopping: threading.Event,
        check: Callable[[], None] = lambda: None,
        reconciler: Reconciler | None = None,
        health: Health | None = None,
    ) -> None:
        self._pipeline = pipeline
        self._applier = applier
        self._backfill_of = backfill_of
        self._sweeper = sweeper
        self._ledger = ledger
        self._metrics = metrics
        self._retry = retry
        self._settings = settings
        self._only_one = only_one
        self._stopping = stopping
        self._check = check
        self._reconciler = reconciler
        self._health = health
        self._hold: Callable[[], None] = lambda: None
        self._failure: BaseException | None = None
        self._run_id = uuid.uuid4().hex

    @property
    def watermark(self) -> int:
        """The position up to which every change is durable."""
        return self._pipeline.watermark

    def run(self) -> None:
        """Raises what made the worker stop, if it was not asked to."""
        with self._only_one() as self._hold:
            threads = [
                self._thread("backfills", self._settings.look_for_backfills, self._backfills),
                self._thread("sweeper", self._settings.sweep, lambda: self._sweeper.sweep()),
                self._thread("heartbeat", self._settings.heartbeat, self._beat),
            ]
            if self._reconciler is not None:
                threads.append(self._thread("reconcile", self._settings.between_cycles, self._reconciler.cycle))
            if self._health is not None:
                threads.append(self._thread("health", self._health.limits.look, self._health.look))
            for thread in threads:
                thread.start()
            if self._health is not None:
                self._health.watch(threads)
            try:
                self._pipeline.run()
            finally:
                self._stopping.set()
                self._retry.stop.set()
                if "heartbeat" not in self._join(threads):
                    self._say_goodbye()
        if self._failure is not None:
            raise self._failure

    def _thread(self, name: str, interval: float, step: Callable[[], object]) -> threading.Thread:
        def loop() -> None:
            attempt = 0
            while not self._stopping.is_set():
                self._metrics.pulses.beat()
                try:
                    step()
                    attempt = 0
                except Interrupted as error:
                    _log.info("%s", error)
                except DocferryError as error:
                    if error.verdict is Verdict.STOP:
                        self._stop_for(error)
                        return
                    attempt += 1
                    _log.warning("%s: %s; trying again", name, error)
                except Exception as error:  # noqa: BLE001 - handed to the main thread, which raises it
                    self._stop_for(error)
                    return
                self._stopping.wait(interval if not attempt else self._retry.delay(attempt))

        # One that waits for a server that does not answer must not keep the process.
        return threading.Thread(target=loop, name=name, daemon=True)

    def _join(self, threads: Sequence[threading.Thread]) -> list[str]:
        """Wait for the threads to end, with patience; those that have not, by name. What they left is done again by the
        next worker, as after a crash."""
        until = time.monotonic() + max(self._settings.stop_grace, _LEAST_GRACE)
        for thread in threads:
            thread.join(max(until - time.monotonic(), 0.0))
        left = [thread.name for thread in threads if thread.is_alive()]
        for name in left:
            _log.warning("the thread %s has not ended, and is left: it waits for the source or the target", name)
        return left

    def _stop_for(self, error: BaseException) -> None:
        self._failure = self._failure or error
        self._stopping.set()

    def _backfills(self) -> None:
        # Those that have begun first: they wait for nobody's transaction any more.
        for record in sorted(self._ledger.backfills(unfinished_only=True), key=lambda one: one.version is None):
            if self._stopping.is_set():
                return
            backfill = self._backfill_of(record)
            if backfill is not None:
                try:
                    backfill.run(record)
                except TableGone as error:
                    _log.warning("no backfill of %s: %s", record.table, error)
                finally:
                    self._metrics.backfill_left(record.table)

    def _beat(self) -> None:
        self._hold()
        self._ledger.heartbeat(self._state(running=True))
        if self._health is not None:
            self._health.beaten()
        self._applier.check_columns()
        self._check()

    def _say_goodbye(self) -> None:
        try:
            self._ledger.heartbeat(self._state(running=False))
        except DocferryError as error:
            _log.debug("no last heartbeat: %s", error)

    @property
    def lag_seconds(self) -> float:
        """See Health; 0 where nobody looks at the source."""
        return self._health.lag_seconds if self._health is not None else 0.0

    def _state(self, *, running: bool) -> dict[str, Any]:
        not_ready = self._health.not_ready() if self._health is not None and running else ()
        # That the last heartbeat is old is said by a new one only when it is over.
        reasons = [check.document() for check in not_ready if check.name != "heartbeat"]
        return {
            "run": self._run_id,
            "running": running,
            "at": time.time(),
            "watermark": self._pipeline.watermark,
            "in_flight": self._pipeline.in_flight,
            "lag_seconds": self.lag_seconds,
            "not_ready": reasons,
            "tombstones": self._sweeper.pending,
            "tables": self._metrics.snapshot(),
            **(self._settings.identity or {}),
        }
