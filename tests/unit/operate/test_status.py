"""What status makes of what it finds."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, cast

import pytest

from docferry.capture.contract import BackfillRecord, BackfillState, MirrorRecord, StreamState
from docferry.deadletter.contract import DeadLetterGroup, DeadLetters
from docferry.operate.standing import Status, StatusLedger, StatusSetup, WorkerState
from docferry.operate.status import gather_status

NOW = datetime(2025, 1, 20, tzinfo=UTC)
TABLE = "public.orders"


@dataclass
class Beat:
    age: float
    state: dict[str, Any]
    started_at: datetime = NOW
    updated_at: datetime = NOW


@dataclass
class Epoch:
    number: int = 3


@dataclass
class Ledger:
    applied: bool = True
    beats: list[Beat] = field(default_factory=list)
    records: list[BackfillRecord] = field(default_factory=list)
    registered: tuple[str, ...] = (TABLE,)

    def exists(self) -> bool:
        return self.applied

    def epoch(self) -> Epoch | None:
        return Epoch() if self.applied else None

    def workers(self) -> list[Beat]:
        return self.beats

    def mirrors(self) -> dict[str, MirrorRecord]:
        return {table: MirrorRecord(table, "orders", "f") for table in self.registered}

    def backfills(self) -> list[BackfillRecord]:
        return self.records


@dataclass
class Setup:
    stream: StreamState | None
    missed: str | None = None
    tables: list[str] | None = field(default_factory=lambda: [TABLE])

    def state(self) -> StreamState | None:
        return self.stream

    def gap(self) -> str | None:
        return self.missed

    def published(self) -> list[str] | None:
        return self.tables


@dataclass
class Letters:
    found: list[DeadLetterGroup] = field(default_factory=list)

    def groups(self) -> list[DeadLetterGroup]:
        return self.found


def stream(*, active: bool = True, lag: int = 0, retained: int = 0, health: str = "reserved") -> StreamState:
    return StreamState(1000, 1000 + lag, active, retained, health)


def status(ledger: Ledger, setup: Setup, letters: Letters | None = None) -> Status:
    return gather_status(
        cast("StatusSetup", setup),
        cast("StatusLedger", ledger),
        cast("DeadLetters", letters or Letters()),
        {TABLE: "orders"},
        heartbeat=10.0,
    )


def problems(found: Status) -> str:
    return "; ".join(one.problem for one in found.attention)


@pytest.mark.parametrize(
    ("beat", "active", "state"),
    [
        (None, False, WorkerState.NEVER),
        (None, True, WorkerState.SILENT),
        (Beat(3, {"running": True}), True, WorkerState.STREAMING),
        (Beat(3, {"running": True}), False, WorkerState.CONNECTING),
        (Beat(300, {"running": True}), False, WorkerState.GONE),
        (Beat(300, {"running": True}), True, WorkerState.SILENT),
        (Beat(300, {"running": False}), False, WorkerState.STOPPED),
    ],
)
def test_the_worker(beat: Beat | None, active: bool, state: WorkerState) -> None:
    found = status(Ledger(beats=[beat] if beat else []), Setup(stream(active=active)))
    assert found.worker.state is state
    assert bool(found.attention) is (state is not WorkerState.STREAMING and (beat is not None or not active))


def test_lag_in_seconds() -> None:
    streaming = Ledger(beats=[Beat(3, {"running": True, "lag_seconds": 1.5})])
    assert status(streaming, Setup(stream(lag=9))).lag_seconds == 1.5
    stopped = Ledger(beats=[Beat(60, {"running": False})])
    assert status(stopped, Setup(stream(active=False, lag=9))).lag_seconds == 60
    assert status(stopped, Setup(stream(active=False))).lag_seconds == 0
    assert status(Ledger(), Setup(stream(active=False, lag=9))).lag_seconds is None


def test_before_apply() -> None:
    found = status(Ledger(applied=False), Setup(None, tables=None))
    assert problems(found) == "docferry has not been set up in this source"
    assert found.mirrors[0].registered is False


def test_the_slot() -> None:
    streaming = Ledger(beats=[Beat(1, {"running": True})])
    stopped = Ledger(beats=[Beat(1, {"running": False})])
    assert "slot is unreserved" in problems(status(streaming, Setup(stream(health="unreserved"))))
    lost = status(stopped, Setup(stream(active=False, health="lost"), missed="the server dropped WAL"))
    assert "the server dropped WAL; changes since then were not seen" in problems(lost)
    assert "slot is lost" not in problems(lost)
    assert "GiB of WAL" in problems(status(stopped, Setup(stream(active=False, retained=3 << 30))))
    assert "does not exist" in problems(status(stopped, Setup(None, missed="the slot does not exist")))


def test_tables_that_are_not_captured() -> None:
    streaming = Ledger(beats=[Beat(1, {"running": True})])
    gone = status(streaming, Setup(stream(), tables=["public.other"]))
    assert "changes of public.orders are not captured" in problems(gone)
    assert "backfill" not in gone.attention[0].remedy, "`apply` has requested it already"
    assert "tables are captured that are not mirrored: public.other" in problems(gone)
    new = Ledger(beats=streaming.beats, registered=())
    assert "the mirror of public.orders has not been set up" in problems(status(new, Setup(stream())))


@pytest.mark.parametrize(
    ("state", "done", "estimate", "percent"),
    [
        (BackfillState.REQUESTED, 0, None, 0.0),
        (BackfillState.RUNNING, 50, 200, 25.0),
        (BackfillState.RUNNING, 500, 200, 99.9),
        (BackfillState.DONE, 0, 200, 100.0),
    ],
)
def test_percent_of_a_backfill(state: BackfillState, done: int, estimate: int | None, percent: float) -> None:
    record = BackfillRecord(1, TABLE, state, "new", rows_done=done, rows_estimate=estimate)
    assert status(Ledger(records=[record]), Setup(stream())).mirrors[0].percent == percent


def test_dead_letters_need_attention() -> None:
    group = DeadLetterGroup(TABLE, "too-large", 2, NOW, NOW, "the item is too large", "Shrink it.")
    found = status(Ledger(beats=[Beat(1, {"running": True})]), Setup(stream()), Letters([group]))
    assert found.mirrors[0].dead_letters == 2
    assert found.attention[0].problem == "2 dead letters of public.orders, too-large: the item is too large"
    assert found.attention[0].remedy == "Shrink it."


@pytest.mark.parametrize(
    ("active", "shown"),
    [
        (True, "the worker is not ready: nothing has become durable for 61 s"),
        (
            False,
            "the worker lives, and does not stream; the worker is not ready: nothing has become durable for 61 s",
        ),
    ],
)
def test_why_the_worker_is_not_ready(active: bool, shown: str) -> None:
    said = {"check": "target", "ok": False, "why": "nothing has become durable for 61 s", "remedy": "See the target."}
    beat = Beat(1, {"running": True, "not_ready": [said]})
    found = status(Ledger(beats=[beat]), Setup(stream(active=active)))
    assert problems(found) == shown
    assert found.attention[-1].remedy == "See the target."
    beat.age = 300
    assert "not ready" not in problems(status(Ledger(beats=[beat]), Setup(stream(active=active)))), "that was then"
