"""The composition root of what holds rows against items: `verify`, `trace`, and a worker that reconciles."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from docferry.app import App
from docferry.captures import make_tracer
from docferry.errors import HistoryChanged
from docferry.operate.admin import EpochRecord
from docferry.operate.grounds import Grounds
from docferry.operate.passing import Watermark
from docferry.operate.trace import RowTracing
from docferry.operate.verification import Verification
from docferry.operate.verify import VerifyLimits, VerifyProgress
from docferry.verifying import Verifying

if TYPE_CHECKING:
    from docferry.capture.ledger import PostgresLedger

__all__ = ["VerifyApp"]


class VerifyApp(App):
    """What App has, and what compares."""

    @contextmanager
    def verification(
        self,
        table: str | None,
        *,
        patience: float = 60.0,
        output: Path | None = None,
        limit: int = 20,
        anew: bool = False,
        on_progress: Callable[[VerifyProgress], None] = lambda _: None,
    ) -> Iterator[Verification]:
        """Compares the mirror of a table, or all, with their tables. Raises NotApplied, HistoryChanged, ConfigError and
        what the ends refuse."""
        mirrors = list(self.mirrors.values()) if table is None else [self.mirror(table)]
        epoch = self.admin().check_applied().number
        self.check_target()
        ledger = self._ledger(epoch)
        grounds = self._grounds(ledger, epoch, "this comparison")
        self._remember_attributes(ledger)
        run = self.config.run
        limits = VerifyLimits(run.backfill_workers, run.backfill_page)
        parts = self._verifying(ledger, grounds, limits, Watermark(self.setup), self.retry.stop)
        parts.patience, parts.on_progress = patience, on_progress
        try:
            with Verification(
                [parts.mirror(mirror) for mirror in mirrors],
                parts.verifications,
                parts.watermark,
                epoch,
                output=output,
                limit=limit,
                anew=anew,
            ) as verification:
                yield verification
        finally:
            parts.close()

    def row_tracing(self, table: str, *, patience: float, queue: bool) -> RowTracing:
        """Traces rows of a table, with the dead letters of the queue or without. Raises ConfigError, NotApplied."""
        mirror = self.mirror(table)
        gap = None
        try:
            epoch: EpochRecord | None = self.admin().check_applied()
        except HistoryChanged as error:
            gap, epoch = f"{error}. {error.remedy}", self.ledger.epoch()
        assert epoch is not None, "or it has not been applied"
        reader = self.reader("trace row")
        source = make_tracer(self.config, self.dsn, epoch)
        self._open += [reader, source]
        return RowTracing(
            mirror,
            reader,
            source,
            self._verifications,
            self.target,
            self.ledger,
            self.setup,
            self.dead_letters if queue else self._dead_letters_in_source,
            epoch.number,
            by_triggers=self.by_triggers,
            sends=self.config.source.capture == "lambda",
            patience=patience,
            gap=gap,
            lag=lambda: self.status().lag_seconds,
        )

    def _verifying(
        self,
        ledger: PostgresLedger,
        grounds: Grounds,
        limits: VerifyLimits,
        watermark: Watermark,
        stop: threading.Event,
    ) -> Verifying:
        return Verifying(
            self.target,
            ledger,
            self._verifications,
            self._verifications,
            watermark,
            grounds,
            lambda mirror: self.reader("verify", mirror),
            # Whoever looks into a queue hides it from others for a while: only where most are in it.
            self.dead_letters if self.looks > 1 else self._dead_letters_in_source,
            self._dead_letters_in_source,
            limits,
            stop,
            looks=self.looks,
        )
