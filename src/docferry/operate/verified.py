"""What status says of verifications: up to where a mirror was found identical, and what the last one found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from docferry.capture.contract import VerificationRecord
from docferry.operate.findings import Counts

__all__ = ["Verified", "problem_of", "verified"]


@dataclass(frozen=True, slots=True)
class Verified:
    """`position`, `at`: everything committed before that position was identical, found out at that time; None: never
    in this epoch. `clean`, `ended_at`, `counts`: of the newest that ended. `running`: how far an unfinished one is."""

    position: int | None = None
    at: datetime | None = None
    clean: bool | None = None
    ended_at: datetime | None = None
    counts: Counts | None = None
    running: Counts | None = None


def verified(records: Sequence[VerificationRecord], table: str, epoch: int | None) -> Verified | None:
    """Of a table, by its records of this epoch, newest first; None when there are none."""
    ours = [one for one in records if one.table == table and one.epoch == epoch]
    ended = [one for one in ours if one.finished_at is not None]
    clean = next((one for one in ended if one.clean), None)
    running = next((one for one in ours if one.finished_at is None), None)
    if not ours:
        return None
    last = ended[0] if ended else None
    return Verified(
        None if clean is None else clean.position,
        None if clean is None else clean.finished_at,
        None if last is None else last.clean,
        None if last is None else last.finished_at,
        None if last is None else Counts.of_dict(last.counts),
        None if running is None else Counts.of_dict(running.counts),
    )


def problem_of(table: str, found: Verified | None) -> tuple[str, str] | None:
    """(problem, remedy), when the last verification, or the one under way, found differences."""
    if found is None:
        return None
    for counts, which in ((found.running, "under way"), (found.counts, "that ended last")):
        if counts is not None and counts.differences:
            some = f"{counts.differences:,} difference{'s' if counts.differences != 1 else ''}"
            return (
                f"the verification of {table} {which} found {some}",
                f"Run `docferry verify {table}` to see them, with --repair to mend them.",
            )
    return None
