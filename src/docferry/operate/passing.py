"""Waiting until the watermark has passed what was committed before (R3), as long as somebody moves it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from docferry.capture.contract import CaptureSetup
from docferry.errors import Interrupted

__all__ = ["Passing", "Watermark"]

_log = logging.getLogger(__name__)
_FIRST_LOOK, _LONGEST_LOOK = 0.01, 0.25
_BETWEEN_IDLE_LOOKS = 1.0


@dataclass(slots=True)
class Watermark:
    """The capture's. `own`: the position up to which the worker in this process has confirmed, which needs no question
    to the source; only where positions are those of the log."""

    setup: CaptureSetup
    own: Callable[[], int] | None = None

    def mark(self) -> int:
        """See CaptureSetup.mark."""
        return self.setup.mark()

    def look(self) -> tuple[int, bool]:
        """(position, whether a worker is streaming)."""
        if self.own is not None:
            return self.own(), True
        state = self.setup.state()
        return (0, False) if state is None else (state.confirmed, state.active)


@dataclass(slots=True)
class Passing:
    """`patience`: seconds that may go by without any progress. `held_up`: what else has to be done first, in words, or
    "". Once it was in vain for want of a worker, it does not wait again. `why`: why the last wait was in vain."""

    watermark: Watermark
    patience: float
    stop: threading.Event
    held_up: Callable[[], str] = lambda: ""
    why: str = ""
    _deserted: bool = field(default=False, init=False)

    def wait(self, mark: int) -> bool:
        """Whether everything committed before the mark is durable at the target. Raises Interrupted."""
        pause, progress, best = _FIRST_LOOK, time.monotonic(), -1
        looked_at, said = 0.0, ""
        while True:
            position, active = self.watermark.look()
            now = time.monotonic()
            passed = position > mark
            if not passed and not active and now - looked_at > _BETWEEN_IDLE_LOOKS:
                looked_at = now
                passed = self.watermark.setup.idle()
            held_up = self.held_up() if passed else ""
            if passed and not held_up:
                self._deserted = False
                return True
            # Once the mark is passed, that the worker goes on is no progress of what else has to be done.
            if active and position > best and (not passed or best <= mark):
                best, progress = position, now
            if (self._deserted and not active) or now - progress >= self.patience:
                self._deserted = not active
                self.why = held_up or (
                    "the worker makes no progress: see `docferry status`"
                    if active
                    else "no worker is streaming: start docferry run"
                )
                return False
            waits = held_up or ("" if active else "no worker is streaming from this source")
            if waits and waits != said and now - progress > 1:
                said = waits
                _log.warning("waiting for up to %g s: %s", self.patience, waits)
            if self.stop.wait(min(pause, max(self.patience - (now - progress), 0.001))):
                raise Interrupted("stopped while waiting for the watermark")
            pause = min(pause * 1.3, _LONGEST_LOOK)
