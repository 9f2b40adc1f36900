"""The composition root of the worker: what App and VerifyApp have, and what runs until it is stopped."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from typing import TYPE_CHECKING

from docferry import __version__
from docferry.applier import Applier
from docferry.capture.contract import BackfillRecord
from docferry.captures import make_capture
from docferry.config import Config, ListenAddress
from docferry.operate.backfill import Backfill, Progress
from docferry.operate.grounds import Grounds, Lease
from docferry.operate.health import Health, HealthLimits
from docferry.operate.passing import Watermark
from docferry.operate.reconcile import Reconciler
from docferry.operate.sweeper import Sweeper
from docferry.operate.verify import VerifyLimits
from docferry.operate.worker import Worker, WorkerSettings
from docferry.pipeline import Pipeline, PipelineLimits
from docferry.verify_app import VerifyApp

if TYPE_CHECKING:
    from docferry.capture.ledger import PostgresLedger
    from docferry.operate.listen import Listener

__all__ = ["WorkerApp"]

_AGAIN = "Start `docferry run` again; it reads the configuration anew and loses nothing."
_LOOK_AT_LEAST = 5.0


class WorkerApp(VerifyApp):
    """One that makes a worker, and answers for its health."""

    def __init__(self, config: Config, *, patient: bool = True) -> None:
        super().__init__(config, patient=patient)
        self._listener: Listener | None = None

    def worker(self, on_streaming: Callable[[], None] = lambda: None) -> Worker:
        """The worker of `docferry run`; `on_streaming` is called once its stream is open. Raises NotApplied,
        HistoryChanged, ConfigError and what the ends refuse."""
        run = self.config.run
        self.check_rights("run")
        self.setup.check()
        admin = self.admin()
        epoch = admin.check_applied()
        self.check_target()
        capture = make_capture(self.config, self.dsn, epoch, self._former_columns)
        # A standby that is away must not make it look dead, nor keep it from stopping.
        ledger = self._ledger(epoch.number, local=True)
        sweeper = Sweeper(self.target, ledger, grace=_grace())
        grounds = self._grounds(ledger, epoch.number, "this worker", _AGAIN)
        grounds.check_all()
        applier = self._applier(
            ledger,
            check=Lease(grounds).check,
            on_truncated=sweeper.note_floor,
            on_new_layout=capture.look_afresh,
        )
        pipeline = Pipeline(
            capture,
            applier,
            self.retry,
            PipelineLimits(run.workers, run.in_flight_bytes, run.batch_changes, run.batch_bytes, run.stop_grace),
            stopping=self.stopping,
            # Where nobody keeps an order, only its expiry removes a tombstone (R4).
            on_confirmed=(lambda _: None) if self.by_triggers else sweeper.note,
            on_streaming=on_streaming,
            metrics=self.metrics,
            tracer=self.tracer,
        )
        health = self._health(pipeline)

        def check() -> None:
            grounds.check_all()
            admin.check_going_on(epoch)

        worker = Worker(
            pipeline,
            applier,
            lambda record: self._due_backfill(record, applier, ledger, grounds),
            sweeper,
            ledger,
            self.metrics,
            self.retry,
            WorkerSettings(
                heartbeat=self.config.source.heartbeat_interval,
                identity={"host": platform.node(), "pid": os.getpid(), "version": __version__},
                stop_grace=run.stop_grace,
            ),
            only_one=ledger.working,
            stopping=self.stopping,
            check=check,
            reconciler=self._reconciler(ledger, grounds, pipeline),
            health=health,
        )
        if self._listener is not None:
            self._listener.show(health, self._metrics_page(worker, health, pipeline, sweeper))
        return worker

    def _reconciler(self, ledger: PostgresLedger, grounds: Grounds, pipeline: Pipeline) -> Reconciler | None:
        run = self.config.run
        if run.reconcile == "off":
            return None
        # Of several workers that drain one outbox, none knows alone how far all are.
        watermark = Watermark(self.setup, None if self.by_triggers else lambda: pipeline.watermark)
        limits = VerifyLimits(1, min(run.backfill_page, max(int(run.reconcile_rate), 1)), rate=run.reconcile_rate)
        parts = self._verifying(ledger, grounds, limits, watermark, self.stopping)
        self._open.append(parts)
        return Reconciler(
            [parts.mirror(mirror) for mirror in self.mirrors.values()],
            self._verifications,
            watermark,
            self.metrics,
            grounds.epoch,
            mending=run.reconcile == "repair",
        )

    def listen(self, address: ListenAddress) -> ListenAddress:
        """Answer /livez, /readyz and /metrics there from now on: first that the worker is starting, then for the one
        that `worker` makes. Returns the address with the port that was chosen. Raises ConfigError, MissingExtra."""
        import docferry.operate.exposition  # noqa: F401 - what is missing is told before anything is begun
        from docferry.operate.listen import Listener

        self._listener = Listener(address)
        self._open.append(self._listener)
        return self._listener.address

    def _due_backfill(
        self, record: BackfillRecord, applier: Applier, ledger: PostgresLedger, grounds: Grounds
    ) -> Backfill | None:
        """A backfill for the worker, None for a table that it does not mirror."""

        def progress(told: Progress) -> None:
            self.metrics.backfilled(told.table, told.rows, told.total, done=told.done)

        return self._backfill(record, applier, ledger, progress, grounds)

    def _health(self, pipeline: Pipeline) -> Health:
        from docferry.deadletter.postgres import PostgresDeadLetters

        # One of its own: it must not wait for those who write.
        letters = PostgresDeadLetters(self.dsn)
        self._open.append(letters)
        heartbeat, settings = self.config.source.heartbeat_interval, self.config.health
        limits = HealthLimits(
            settings.stuck_after,
            settings.silent_after,
            heartbeat,
            min(max(heartbeat, 1.0), _LOOK_AT_LEAST),
            self.config.dead_letters.limit,
        )
        return Health(
            pipeline,
            self.metrics,
            limits,
            state=self.setup.state,
            count_letters=letters.count,
            check_letters=letters.check,
            stopping=self.stopping.is_set,
        )

    def _metrics_page(
        self, worker: Worker, health: Health, pipeline: Pipeline, sweeper: Sweeper
    ) -> Callable[[str], tuple[str, bytes]]:
        from docferry.operate.exposition import MetricsPage

        return MetricsPage(
            self.metrics,
            health,
            pipeline,
            collections={mirror.collection.name: table for table, mirror in self.mirrors.items()},
            lag_seconds=lambda: worker.lag_seconds,
            tombstones=lambda: sweeper.pending,
            running=lambda: not self.stopping.is_set(),
            version=__version__,
        )


def _grace() -> float:
    """Seconds that a tombstone outlives the watermark. Tests shorten it."""
    return float(os.environ.get("DOCFERRY_TOMBSTONE_GRACE", "60"))
