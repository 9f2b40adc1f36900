"""How everything stands, as data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Protocol

from docferry.capture.contract import BackfillRecord, CaptureSetup, StreamState
from docferry.capture.retention import Retention
from docferry.deadletter.contract import DeadLetterGroup
from docferry.operate.admin import AdminLedger
from docferry.operate.verified import Verified

__all__ = [
    "SPEAKING",
    "Attention",
    "MirrorStatus",
    "Status",
    "StatusLedger",
    "StatusSetup",
    "WorkerBeat",
    "WorkerState",
    "WorkerStatus",
]


class WorkerBeat(Protocol):
    """A worker's last heartbeat as the ledger keeps it."""

    @property
    def state(self) -> Mapping[str, Any]:
        """What it said of itself."""

    @property
    def started_at(self) -> datetime:
        """When that worker began."""

    @property
    def updated_at(self) -> datetime:
        """When it said so."""

    @property
    def age(self) -> float:
        """Seconds since then, by the source's clock."""


class StatusLedger(AdminLedger, Protocol):
    """The ledger, with what only looking on needs."""

    def workers(self) -> Sequence[WorkerBeat]:
        """The last heartbeats."""


class StatusSetup(CaptureSetup, Protocol):
    """The setup, with what only looking on needs."""

    def published(self) -> list[str] | None:
        """The tables whose changes are captured, None before `apply`."""


class WorkerState(StrEnum):
    """Where the worker stands."""

    STREAMING = "streaming"
    CONNECTING = "connecting"  # it lives, and does not stream
    SILENT = "silent"  # something streams, and its heartbeat is overdue
    STOPPED = "stopped"  # it said goodbye
    GONE = "gone"  # it did not
    NEVER = "never started"


SPEAKING = (WorkerState.STREAMING, WorkerState.CONNECTING)


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """The worker, and what it said last. `age`: seconds since. `not_ready`: why it makes no progress."""

    state: WorkerState
    age: float | None = None
    started_at: datetime | None = None
    host: str = ""
    pid: int | None = None
    version: str = ""
    in_flight: int = 0
    tombstones: int = 0
    lag_seconds: float = 0.0
    not_ready: tuple[Attention, ...] = ()


@dataclass(frozen=True, slots=True)
class MirrorStatus:
    """One mirror. `applied`, `stale`, `dead`, `reread`, `rate` (changes a second): as of the worker's last heartbeat,
    since its start. `dead_letters`: kept now. `percent`: of an unfinished backfill, by the planner's estimate. `drift`:
    differences that the worker has come across by reconciling, by kind, and how many items it `mended`, since its
    start."""

    table: str
    collection: str
    registered: bool
    published: bool
    applied: int = 0
    stale: int = 0
    dead: int = 0
    reread: int = 0
    rate: float = 0.0
    dead_letters: int = 0
    backfill: BackfillRecord | None = None
    percent: float | None = None
    verified: Verified | None = None
    drift: Mapping[str, int] = field(default_factory=dict)
    mended: int = 0


@dataclass(frozen=True, slots=True)
class Attention:
    """Something for the operator."""

    problem: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Status:
    """How everything stands. `lag_seconds`: how old the oldest change is that is not at the target, None if unknown.
    `lag_bytes`, `lag_changes`: how far the watermark is behind, in the unit of the capture mode. `retention_seen`: why
    `retention` cannot be seen, empty otherwise."""

    applied: bool
    capture: str
    epoch: int | None
    watermark: int | None
    lag_bytes: int | None
    lag_changes: int | None
    lag_seconds: float | None
    stream: StreamState | None
    worker: WorkerStatus
    mirrors: list[MirrorStatus]
    dead_letters: list[DeadLetterGroup]
    attention: list[Attention] = field(default_factory=list)
    retention: Retention | None = None
    retention_seen: str = ""
