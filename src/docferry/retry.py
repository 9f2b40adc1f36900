"""Waiting between attempts: exponential backoff with full jitter, interruptible, without a limit on attempts."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from docferry.errors import DocferryError, Interrupted, TimedOut

__all__ = ["Retry"]


@dataclass(frozen=True)
class Retry:
    """A retry policy shared by everything that one run does.

    `first` and `longest`: bounds of the wait in seconds. `stop`: once set, the next wait raises Interrupted instead.
    `attempts`: after so many the cause is raised; None, as a worker has it, for no limit. `on_wait`: called with every
    wait, by the thread that waits: it lives.
    Full jitter after https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/.
    """

    first: float = 0.05
    longest: float = 5.0
    stop: threading.Event = field(default_factory=threading.Event)
    attempts: int | None = None
    on_wait: Callable[[], None] = lambda: None

    def delay(self, attempt: int) -> float:
        """Seconds to wait before attempt number `attempt` (the first retry is 1)."""
        ceiling = min(self.longest, self.first * 2.0 ** min(attempt, 30))
        return random.uniform(ceiling / 4, ceiling)  # noqa: S311 - spreading load, not keeping secrets

    def wait(self, attempt: int, cause: DocferryError | None = None) -> None:
        """Sleep before attempt number `attempt`. Raises Interrupted as soon as `stop` is set, and `cause` when the
        attempts are used up."""
        if self.attempts is not None and attempt > self.attempts:
            raise cause or TimedOut(f"gave up after {self.attempts} attempts")
        self.on_wait()
        if self.stop.wait(self.delay(attempt)):
            raise Interrupted("stopped while waiting to try again")
