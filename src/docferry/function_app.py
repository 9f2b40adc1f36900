"""The composition root of the Lambda function: what App has, and what receives events and drains the outbox."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from docferry.app import App
from docferry.applier import Applier, LetterBox
from docferry.captures import make_capture
from docferry.operate.drain import Drained, Telling, UntilEmpty, backfills_due, look_for_changed_columns
from docferry.operate.grounds import Lease
from docferry.operate.receive import Receipt, Receiver
from docferry.pipeline import Pipeline, PipelineLimits
from docferry.specify import EventMirrors

if TYPE_CHECKING:
    from docferry.capture.builtin_types import TypeLookup

__all__ = ["FunctionApp"]

_DEPLOY = "Deploy the function with the configuration that `docferry apply` was run with."
_STOP_GRACE = 3.0
# Seconds for looking at the columns of all tables, and what has to be left for the rest of an invocation.
_LOOKING, _REST = 10.0, 2.0


class FunctionApp(App):
    """One that may not know where the source is: events then speak for themselves."""

    @property
    def has_source(self) -> bool:
        """Whether it does."""
        return self.config.source.dsn is not None or self.config.source.secret is not None

    @cached_property
    def types(self) -> TypeLookup:
        """Types by oid, for events."""
        from docferry.capture.builtin_types import TypeLookup

        return TypeLookup(self.dsn if self.has_source else None)

    @cached_property
    def _event_mirrors(self) -> EventMirrors:
        return EventMirrors(self.config, self.types)

    def receiver(self, letters: LetterBox) -> Receiver:
        """What receives events; without the source, `learn` tells it of each event's tables first."""
        patience = self.config.source.lambda_.patience
        if self.has_source:
            return Receiver(self._applier(self.ledger, letters), self.mirrors, self._gate(), patience=patience)
        mirrors = self._event_mirrors
        applier = Applier(
            mirrors, None, self.target, letters, None, self.metrics, self.retry, trusted_age=self._trusted_age
        )
        return Receiver(applier, mirrors, None, patience=patience)

    def learn(self, relations: Mapping[str, Any]) -> None:
        """Take from the descriptions of an event what only the catalog could tell otherwise. Raises EventRefused."""
        if not self.has_source:
            self._event_mirrors.learn(relations)

    def drain(
        self,
        letters: LetterBox,
        stopping: threading.Event,
        until: float,
        tell: Callable[[Sequence[Receipt]], None],
    ) -> Drained:
        """Carry over what waits in the outbox, until it is empty or `stopping` is set; then look for changed columns,
        and for backfills that are due. `until`: when all has to be over, monotonic seconds. `tell`: of each change,
        once it is durable. Raises NotApplied, HistoryChanged."""
        epoch = self.admin().check_applied()
        run = self.config.run
        ledger = self._ledger(epoch.number)
        grounds = self._grounds(ledger, epoch.number, "this function", _DEPLOY)
        applier = self._applier(ledger, letters, check=Lease(grounds).check)
        pipeline = Pipeline(
            UntilEmpty(make_capture(self.config, self.dsn, epoch, self._former_columns), stopping),
            Telling(applier, self.mirrors, tell),
            self.retry,
            PipelineLimits(run.workers, run.in_flight_bytes, run.batch_changes, run.batch_bytes, _STOP_GRACE),
            stopping=stopping,
            on_confirmed=lambda _: None,
        )
        pipeline.run()
        state = self.setup.state()
        look_for_changed_columns(applier, self.mirrors, min(_LOOKING, until - time.monotonic() - _REST))
        oldest = 0.0 if state is None else state.oldest_seconds or 0.0
        return Drained(oldest, backfills_due(ledger, self.mirrors))
