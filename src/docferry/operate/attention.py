"""What the operator should do, in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from docferry.capture.contract import BREAKER_OPEN, StreamState
from docferry.operate.standing import Attention, MirrorStatus, WorkerState, WorkerStatus

__all__ = [
    "of_gap",
    "of_mirrors",
    "of_outbox",
    "of_slot",
    "of_worker",
]

_WAL_WORTH_A_WORD: Final = 1 << 30
_HEALTHY: Final = ("reserved", "extended")
_WAITING_WORTH_A_WORD: Final = 180.0


def of_gap(gap: str | None) -> list[Attention]:
    """Changes that were not seen."""
    if gap is None:
        return []
    return [
        Attention(
            f"{gap}; changes since then were not seen",
            "Run `docferry apply`: it mends the capture and has every collection populated again.",
        )
    ]


def of_outbox(outbox: StreamState | None) -> list[Attention]:
    """An outbox that is not drained, or whose function fails."""
    found: list[Attention] = []
    if outbox is None:
        return found
    if outbox.health == BREAKER_OPEN:
        found.append(
            Attention(
                "the function failed several times in a row; it is not called for a while, changes go to the outbox",
                "Look at the function's log. When it works again, its schedule or `docferry run` drains the outbox.",
            )
        )
    if (outbox.oldest_seconds or 0.0) > _WAITING_WORTH_A_WORD:
        found.append(
            Attention(
                f"the oldest of {outbox.lag:,} changes has waited in the outbox for {outbox.oldest_seconds:.0f} s",
                "Start `docferry run`, or see why the function's schedule does not drain it.",
            )
        )
    return found


def of_slot(stream: StreamState | None, gap: str | None) -> list[Attention]:
    """A slot that is about to be lost, or that keeps too much."""
    found: list[Attention] = []
    if stream is None:
        return found
    if gap is None and stream.health not in _HEALTHY:
        found.append(
            Attention(
                f"the replication slot is {stream.health}: the server is about to drop WAL that docferry has not read",
                "Let `docferry run` catch up at once, or raise max_slot_wal_keep_size.",
            )
        )
    if stream.retained > _WAL_WORTH_A_WORD and not stream.active:
        found.append(
            Attention(
                f"the source keeps {stream.retained / 2**30:.1f} GiB of WAL for a slot that nobody reads",
                "Start `docferry run`; or remove the slot with `docferry destroy` if it is not needed any more.",
            )
        )
    return found


def of_worker(worker: WorkerStatus) -> list[Attention]:
    """No worker, or one that does not do its work."""
    said = f"its last heartbeat is {worker.age or 0:.0f} s old"
    match worker.state:
        case WorkerState.STREAMING:
            return list(worker.not_ready)
        case WorkerState.NEVER:
            return [Attention("no worker has run yet", "Start `docferry run`.")]
        case WorkerState.STOPPED:
            return [Attention("the worker was stopped; changes wait in the source", "Start `docferry run`.")]
        case WorkerState.GONE:
            return [
                Attention(
                    f"the worker on {worker.host or 'an unknown host'} ended without a goodbye, {said}",
                    "Look at the end of its log, and start `docferry run`.",
                )
            ]
        case WorkerState.CONNECTING:
            standing = Attention("the worker lives, and does not stream", "Look at its log; it tries again by itself.")
            return [standing, *worker.not_ready]
        case WorkerState.SILENT:
            if worker.age is None:
                return []
            return [Attention(f"somebody reads the slot, but {said}", "Look at the worker's log.")]


def of_mirrors(mirrors: Sequence[MirrorStatus], published: Sequence[str]) -> list[Attention]:
    """Tables that are not, or need not be, captured."""
    found = []
    for mirror in mirrors:
        if not mirror.registered:
            found.append(
                Attention(f"the mirror of {mirror.table} has not been set up", "Run `docferry apply`, restart `run`.")
            )
        elif not mirror.published:
            found.append(
                Attention(
                    f"changes of {mirror.table} are not captured (was it dropped and created again?)",
                    "Run `docferry apply`: it captures them again and has the collection populated anew, because what "
                    "happened meanwhile was not seen.",
                )
            )
    configured = {mirror.table for mirror in mirrors}
    extra = sorted(set(published) - configured)
    if extra:
        found.append(
            Attention(
                f"tables are captured that are not mirrored: {', '.join(extra)}",
                "Run `docferry apply` to take them out, or add them to the configuration.",
            )
        )
    return found
