"""Where the source's log ended, look by look: what of it has not been sent yet is at least as old as the look that saw
it first."""

from __future__ import annotations

import threading

__all__ = ["LogEnds"]

_MOST = 1000


class LogEnds:
    """The ends that the watermark has not passed. Safe to call from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ahead: list[tuple[int, float]] = []
        self._apart = 0.0

    def saw(self, end: int, at: float) -> None:
        """At `at` (monotonic seconds) the log ended at position `end`."""
        with self._lock:
            if not self._ahead:
                self._apart = 0.0
            elif end <= self._ahead[-1][0] or at - self._ahead[-1][1] < self._apart:
                return
            self._ahead.append((end, at))
            if len(self._ahead) > _MOST:
                # The backlog is long by now, and need not be known to a second.
                del self._ahead[1::2]
                self._apart = (at - self._ahead[0][1]) / len(self._ahead)

    def since(self, watermark: int) -> float | None:
        """Since when there is something that the watermark has not passed; None if it has passed everything."""
        with self._lock:
            passed = 0
            while passed < len(self._ahead) and self._ahead[passed][0] <= watermark:
                passed += 1
            del self._ahead[:passed]
            return self._ahead[0][1] if self._ahead else None
