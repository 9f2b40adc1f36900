"""How everything stands: gathered from the source alone, so that it also answers while the target does not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from docferry.capture.contract import BackfillRecord, BackfillState, Ledger, StreamState, VerificationRecord
from docferry.capture.history import HISTORY_REMEDY, of_history
from docferry.capture.retention import Retention
from docferry.deadletter.contract import DeadLetterGroup, DeadLetters
from docferry.operate import foresight
from docferry.operate.attention import of_gap, of_mirrors, of_outbox, of_slot, of_worker
from docferry.operate.standing import (
    SPEAKING,
    Attention,
    MirrorStatus,
    Status,
    StatusLedger,
    StatusSetup,
    WorkerBeat,
    WorkerState,
    WorkerStatus,
)
from docferry.operate.verified import Verified, problem_of, verified

__all__ = ["gather_status"]

_BEATS_MISSED = 3
_BEAT_SLACK = 5.0


def gather_status(
    setup: StatusSetup,
    ledger: StatusLedger,
    dead_letters: DeadLetters,
    collections: Mapping[str, str],
    *,
    capture: str = "replication",
    heartbeat: float,
    problems: Sequence[tuple[str, str]] = (),
    verifications: Sequence[VerificationRecord] = (),
    history: tuple[str, int] | None = None,
    retention: Retention | None = None,
    retention_seen: str = "",
) -> Status:
    """Look at everything. `collections`: of the configured mirrors, by table. `capture`: the mode. `heartbeat`: seconds
    between two of them. `problems`: (problem, remedy) of the configured mirrors, known already. `history`: the source's
    now. `retention`: what bounds the log that is kept for the slot; `retention_seen`: why it cannot be seen."""
    applied = ledger.exists()
    stream = setup.state()
    published = setup.published()
    beats = ledger.workers() if applied else []
    beat = beats[0] if beats else None
    worker = _worker(beat, stream, heartbeat)
    groups = dead_letters.groups() if applied else []
    epoch = ledger.epoch() if applied else None
    number = None if epoch is None else epoch.number
    verdicts = {table: verified(verifications, table, number) for table in collections}
    mirrors = _mirrors(ledger if applied else None, published or [], groups, collections, beat, verdicts)
    attention = [Attention(*problem) for problem in problems]
    if epoch is None:
        attention.append(Attention("docferry has not been set up in this source", "Run `docferry apply`."))
    else:
        changed = None if history is None else of_history(epoch, history)
        attention += [] if changed is None else [Attention(f"{changed}; no worker goes on", HISTORY_REMEDY)]
        attention += of_gap(setup.gap())
        attention += of_outbox(stream) if capture != "replication" else of_slot(stream, setup.gap())
        # In mode lambda the function does the daily work; a worker is needed for backfills only.
        if capture != "lambda" or any(_is_due(mirror) for mirror in mirrors):
            attention += of_worker(worker)
        attention += of_mirrors(mirrors, published or [])
        for mirror in mirrors:
            problem = problem_of(mirror.table, mirror.verified)
            attention += [] if problem is None else [Attention(*problem)]
    attention += [] if retention is None else [Attention(*one) for one in foresight.warnings(retention)]
    attention += [
        Attention(
            f"{group.count:,} dead letter{'s' if group.count != 1 else ''} of {group.table}, {group.cause}: "
            f"{group.example}",
            group.remedy or "See `docferry deadletters list`.",
        )
        for group in groups
    ]
    return Status(
        applied=applied,
        capture=capture,
        epoch=None if epoch is None else epoch.number,
        watermark=None if stream is None else stream.confirmed,
        lag_bytes=stream.lag if stream is not None and stream.unit == "bytes" else None,
        lag_changes=stream.lag if stream is not None and stream.unit == "changes" else None,
        lag_seconds=_lag(worker, stream),
        stream=stream,
        worker=worker,
        mirrors=mirrors,
        dead_letters=groups,
        attention=attention,
        retention=retention,
        retention_seen=retention_seen,
    )


def _worker(beat: WorkerBeat | None, stream: StreamState | None, heartbeat: float) -> WorkerStatus:
    active = stream is not None and stream.active
    if beat is None:
        return WorkerStatus(WorkerState.SILENT if active else WorkerState.NEVER)
    overdue = beat.age > _BEATS_MISSED * heartbeat + _BEAT_SLACK
    match bool(beat.state.get("running")), overdue, active:
        case (True, False, True):
            state = WorkerState.STREAMING
        case (True, False, False):
            state = WorkerState.CONNECTING
        case (_, _, True):
            # A worker that has just begun has not said anything yet.
            state = WorkerState.SILENT
        case (False, _, False):
            state = WorkerState.STOPPED
        case _:
            state = WorkerState.GONE
    said = beat.state
    pid = said.get("pid")
    return WorkerStatus(
        state,
        age=round(beat.age, 3),
        started_at=beat.started_at,
        host=str(said.get("host", "")),
        pid=int(pid) if pid is not None else None,
        version=str(said.get("version", "")),
        in_flight=int(said.get("in_flight", 0)),
        tombstones=int(said.get("tombstones", 0)),
        lag_seconds=float(said.get("lag_seconds", 0.0)),
        not_ready=_not_ready(said) if state in SPEAKING else (),
    )


def _not_ready(said: Mapping[str, Any]) -> tuple[Attention, ...]:
    return tuple(
        Attention(f"the worker is not ready: {one.get('why', '')}", str(one.get("remedy", "")))
        for one in said.get("not_ready", ())
    )


def _lag(worker: WorkerStatus, stream: StreamState | None) -> float | None:
    if stream is None:
        return None
    if stream.oldest_seconds is not None:
        return stream.oldest_seconds
    if worker.age is None:
        return None
    if worker.state is WorkerState.STREAMING:
        return worker.lag_seconds
    # Nothing was confirmed since the last heartbeat, so nothing that was committed since has arrived.
    return 0.0 if stream.lag == 0 else round(worker.age + worker.lag_seconds, 3)


def _mirrors(
    ledger: Ledger | None,
    published: Sequence[str],
    groups: Sequence[DeadLetterGroup],
    collections: Mapping[str, str],
    beat: WorkerBeat | None,
    verdicts: Mapping[str, Verified | None],
) -> list[MirrorStatus]:
    registered = ledger.mirrors() if ledger is not None else {}
    backfills = {record.table: record for record in ledger.backfills()} if ledger is not None else {}
    counted: Mapping[str, Mapping[str, Any]] = beat.state.get("tables", {}) if beat is not None else {}
    mirrors = []
    for table, collection in collections.items():
        counts = counted.get(table, {})
        backfill = backfills.get(table)
        mirrors.append(
            MirrorStatus(
                table,
                collection,
                registered=table in registered,
                published=table in published,
                applied=int(counts.get("applied", 0)),
                stale=int(counts.get("stale", 0)),
                dead=int(counts.get("dead", 0)),
                reread=int(counts.get("reread", 0)),
                # The last one of a worker that has ended says nothing about now.
                rate=float(counts.get("rate", 0.0)) if beat is not None and beat.state.get("running") else 0.0,
                dead_letters=sum(group.count for group in groups if group.table == table),
                backfill=backfill,
                percent=_percent(backfill),
                verified=verdicts.get(table),
                drift=counts.get("drift", {}),
                mended=int(counts.get("mended", 0)),
            )
        )
    return mirrors


def _percent(backfill: BackfillRecord | None) -> float | None:
    """None when there is none, or none has ever begun to count."""
    if backfill is None:
        return None
    if backfill.state is BackfillState.DONE:
        return 100.0
    if not backfill.rows_estimate:
        return 0.0
    # The estimate may be too low; before its end a backfill is never shown as complete.
    return round(min(100 * backfill.rows_done / backfill.rows_estimate, 99.9), 1)


def _is_due(mirror: MirrorStatus) -> bool:
    return mirror.backfill is not None and mirror.backfill.state is not BackfillState.DONE
