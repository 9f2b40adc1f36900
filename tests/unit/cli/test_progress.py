"""The progress bar, and the lines in its place."""

from __future__ import annotations

import io
import logging
import sys

import pytest

from docferry.cli.logs import logs_to_stderr
from docferry.cli.progress import Progress


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with Progress("backfill public.orders", total=100_000, clock=clock) as progress:
        for _ in range(100):
            clock.now += 0.25
            progress.update(progress._done + 250)
    err = capsys.readouterr().err.splitlines()
    assert err == [
        "backfill public.orders: 10,000 of 100,000 rows, 10.0%, 1,000 rows/s, 1m 30s left",
        "backfill public.orders: 20,000 of 100,000 rows, 20.0%, 1,000 rows/s, 1m 20s left",
        "backfill public.orders: 25,000 of 100,000 rows, 25.0%, 1,000 rows/s, 1m 15s left",
    ]


def test_what_was_done_before_is_not_in_the_rate() -> None:
    clock = Clock()
    with Progress("x", total=2000, done=1000, clock=clock) as progress:
        clock.now += 1
        progress.update(1010)
        assert progress.figures == "1,010 of 2,000 rows, 50.5%, 10 rows/s, 1m 39s left"


def test_the_rate_is_of_the_last_half_minute(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with Progress("x", total=None, unit="items", clock=clock) as progress:
        for step in range(60):
            clock.now += 10
            progress.update(progress._done + (10_000 if step < 30 else 10))
        assert progress.figures.endswith(" items, 1 items/s")


def test_a_total_that_was_too_low() -> None:
    clock = Clock()
    with Progress("x", total=10, clock=clock) as progress:
        clock.now += 1
        progress.update(20)
        assert progress.figures == "20 of 20 rows, 100.0%, 20 rows/s"
        progress.update(20, total=40)
        assert progress.figures == "20 of 40 rows, 50.0%, 20 rows/s, 1s left"


@pytest.mark.parametrize(("total", "figures"), [(0, "0 of 0 rows, 100.0%"), (None, "0 rows"), (7, "0 of 7 rows, 0.0%")])
def test_nothing_done(total: int | None, figures: str) -> None:
    with Progress("x", total=total, clock=Clock()) as progress:
        assert progress.figures == figures


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_on_a_terminal_with_logs_above_it(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    clock = Clock()
    with logs_to_stderr(verbose=False), Progress("backfill", total=100, clock=clock) as progress:
        clock.now += 1
        progress.update(50)
        logging.getLogger("docferry.test").info("[red]page 1[/red] written")
    text = terminal.getvalue()
    assert "[red]page 1[/red] written" in text
    assert "50 of 100 rows, 50.0%, 50 rows/s, 1s left" in text
