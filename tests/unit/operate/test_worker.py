"""How a worker ends."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest

from docferry.capture.contract import BackfillRecord, BackfillState
from docferry.metrics import Metrics
from docferry.operate import worker as module
from docferry.operate.worker import Worker, WorkerSettings
from docferry.retry import Retry

from ...waiting import PATIENCE


class Ledger:
    def __init__(self, *due: BackfillRecord) -> None:
        self.said: list[Mapping[str, Any]] = []
        self.due = due

    def heartbeat(self, state: Mapping[str, Any]) -> None:
        self.said.append(state)

    def backfills(self, **_: bool) -> list[BackfillRecord]:
        return list(self.due)


class Applier:
    def check_columns(self) -> None: ...


class Sweeper:
    """Its first step takes until `release`, whatever events are set."""

    pending = 0

    def __init__(self) -> None:
        self.began, self.release = threading.Event(), threading.Event()

    def sweep(self) -> None:
        self.began.set()
        self.release.wait()


class Pipeline:
    watermark = in_flight = 0

    def __init__(self, until: threading.Event) -> None:
        self._until = until

    def run(self) -> None:
        self._until.wait()


@contextmanager
def _only_one() -> Iterator[Callable[[], None]]:
    yield lambda: None


def test_a_thread_that_does_not_end_is_left(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LEAST_GRACE", 2.0)
    sweeper, ledger, metrics = Sweeper(), Ledger(), Metrics()
    worker = Worker(
        cast("Any", Pipeline(sweeper.began)),
        cast("Any", Applier()),
        lambda _: None,
        cast("Any", sweeper),
        cast("Any", ledger),
        metrics,
        Retry(),
        WorkerSettings(stop_grace=0.0),
        only_one=_only_one,
        stopping=threading.Event(),
    )
    runs = threading.Thread(target=worker.run, daemon=True)
    runs.start()
    runs.join(PATIENCE)
    (left,) = [one for one in threading.enumerate() if one.name == "sweeper"]
    try:
        assert not runs.is_alive()
        assert "the thread sweeper has not ended" in caplog.text
        assert left.daemon, "or the process would wait for it"
        assert ledger.said[-1]["running"] is False
    finally:
        sweeper.release.set()
        left.join(10)


def test_a_backfill_that_has_begun_goes_first() -> None:
    """One that has yet to begin may wait for somebody's transaction for long."""
    fresh = BackfillRecord(1, "public.fresh", BackfillState.REQUESTED, "new")
    begun = BackfillRecord(2, "public.begun", BackfillState.RUNNING, "new", version=7)
    ran: list[str] = []
    worker = Worker(
        cast("Any", Pipeline(threading.Event())),
        cast("Any", Applier()),
        lambda record: cast("Any", SimpleNamespace(run=lambda _: ran.append(record.table))),
        cast("Any", Sweeper()),
        cast("Any", Ledger(fresh, begun)),
        Metrics(),
        Retry(),
        WorkerSettings(),
        only_one=_only_one,
        stopping=threading.Event(),
    )
    worker._backfills()
    assert ran == ["public.begun", "public.fresh"]
