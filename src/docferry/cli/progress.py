"""How far a long job is: a bar on a terminal, otherwise a line from time to time. Always on standard error."""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import Final, Self

import rich.progress
from rich.console import Console

from docferry.cli.logs import note, writing_through
from docferry.printable import one_line

__all__ = ["Progress"]

_WINDOW_SECONDS: Final = 30.0
_LINE_SECONDS: Final = 10.0
_DRAW_SECONDS: Final = 0.1


class Progress:
    """A context manager; call `update` as often as you like, from any thread.

    `total`: how many there will be, None if unknown; it grows when there turn out to be more. `done`: how many were
    there at the start. `clock`: seconds, for tests.
    """

    def __init__(
        self,
        description: str,
        *,
        total: int | None,
        done: int = 0,
        unit: str = "rows",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._description = one_line(description)
        self._total = total
        self._done = done
        self._unit = unit
        self._clock = clock
        self._lock = threading.Lock()
        self._samples: deque[tuple[float, int]] = deque()
        self._shown_at = 0.0
        self._bar: rich.progress.Progress | None = None
        self._task: rich.progress.TaskID | None = None
        self._open = ExitStack()

    def __enter__(self) -> Self:
        now = self._clock()
        self._shown_at = now
        self._samples.append((now, self._done))
        if sys.stderr.isatty():
            console = Console(stderr=True)
            self._bar = self._open.enter_context(
                rich.progress.Progress(
                    rich.progress.TextColumn("{task.description}", markup=False),
                    rich.progress.BarColumn(),
                    rich.progress.TextColumn("{task.fields[figures]}", markup=False),
                    console=console,
                    transient=False,
                )
            )
            self._task = self._bar.add_task(self._description, total=self._total, completed=self._done, figures="")
            self._open.enter_context(
                writing_through(lambda line: console.print(line, markup=False, highlight=False, soft_wrap=True))
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._lock:
            self._show()
        self._open.close()

    def update(self, done: int, total: int | None = None) -> None:
        """So many are done now, those of before included; `total` when it is known better by now."""
        with self._lock:
            self._done = done
            self._total = total if total is not None else self._total
            now = self._clock()
            if now - self._shown_at >= (_DRAW_SECONDS if self._bar is not None else _LINE_SECONDS):
                self._show()

    @property
    def figures(self) -> str:
        """`12,000 of 100,000 rows, 12.0%, 1,234 rows/s, 1m 11s left`, as far as known."""
        parts = [f"{self._done:,} {self._unit}"]
        rate = self._rate()
        if self._total is not None:
            # Totals are the planner's estimates: never claim more than all.
            total = max(self._total, self._done)
            parts = [f"{self._done:,} of {total:,} {self._unit}", f"{100 * self._done / total if total else 100:.1f}%"]
        if rate > 0:
            parts.append(f"{rate:,.0f} {self._unit}/s")
            if self._total is not None and self._total > self._done:
                parts.append(f"{_duration((self._total - self._done) / rate)} left")
        return ", ".join(parts)

    def _show(self) -> None:
        now = self._clock()
        self._shown_at = now
        self._samples.append((now, self._done))
        while len(self._samples) > 2 and now - self._samples[1][0] >= _WINDOW_SECONDS:
            self._samples.popleft()
        if self._bar is None or self._task is None:
            note(f"{self._description}: {self.figures}")
            return
        total = None if self._total is None else max(self._total, self._done)
        self._bar.update(self._task, completed=self._done, total=total, figures=self.figures)

    def _rate(self) -> float:
        if not self._samples:
            return 0.0
        began, then = self._samples[0]
        seconds = self._clock() - began
        return (self._done - then) / seconds if seconds > 0 else 0.0


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60}s"
    return f"{whole // 3600}h {whole % 3600 // 60}m"
