"""Replaying a TRUNCATE: it takes away what is older, so its transaction must have been committed for certain."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from docferry.capture.contract import Ledger, TransactionState
from docferry.change.model import Op
from docferry.deadletter.contract import DeadLetter, StoredDeadLetter
from docferry.document.mirror import Mirror
from docferry.operate.replayed import ReplayResult
from docferry.target.contract import Target

__all__ = ["replay_truncates"]


def replay_truncates(
    mirror: Mirror,
    letters: Sequence[StoredDeadLetter],
    state: Callable[[DeadLetter], TransactionState],
    target: Target,
    ledger: Ledger | None,
    floor: int,
    *,
    dry_run: bool,
) -> tuple[list[ReplayResult], int]:
    """Apply those of the letters that are a TRUNCATE, the newest for all; the others are left. `floor`: the version of
    the newest that is known. Returns the outcomes and the floor that holds then."""
    done: list[ReplayResult] = []
    for stored in sorted(letters, key=lambda one: -one.letter.version):
        version = stored.letter.version
        if stored.letter.op is not Op.TRUNCATE:
            continue
        if version <= floor:
            done.append(ReplayResult(stored, "superseded"))
        elif state(stored.letter) is TransactionState.UNKNOWN:
            # Without the ledger nobody can be asked for a backfill either.
            done.append(ReplayResult(stored, "unreachable" if ledger is None else "backfill"))
            if ledger is not None and not dry_run:
                reason = "a TRUNCATE was replayed of which nobody knows whether it was committed"
                ledger.request_backfill(mirror.table, reason, anew=True)
        else:
            done.append(ReplayResult(stored, "truncated"))
            floor = version
            if not dry_run:
                if ledger is not None:
                    ledger.raise_floor(mirror.table, version)
                target.truncate(mirror.collection, version)
    return done, floor
