"""What `plan` and `status` say of the log that the source keeps for the slot. No command of its own."""

from __future__ import annotations

from docferry.capture.retention import Retention
from docferry.operate.foresight import hints, shown_size, warnings

__all__ = ["advice", "as_text", "wal_line"]


def wal_line(found: Retention) -> str:
    """Limits and sizes on one line."""
    limit = "unlimited" if found.keep_limit is None else shown_size(max(found.keep_limit, found.keep_size))
    parts = [f"kept for the slot: {limit}"]
    if found.safe is not None:
        parts.append(f"{shown_size(max(found.safe, 0))} left")
    parts.append(f"pg_wal {found.pg_wal_seen if found.pg_wal is None else shown_size(found.pg_wal)}")
    parts.append(f"free disk {found.free_seen if found.free is None else shown_size(found.free)}")
    if found.idle_limit is not None:
        parts.append(f"idle at most {found.idle_limit:,.0f} s")
    return ", ".join(parts)


def advice(found: Retention | None) -> list[dict[str, str]]:
    """Warnings first, then hints."""
    said = [] if found is None else [*warnings(found), *hints(found)]
    return [{"problem": problem, "remedy": remedy} for problem, remedy in said]


def as_text(found: Retention | None) -> list[str]:
    """Lines for `plan`."""
    if found is None:
        return []
    lines = ["", f"Log of the source: {wal_line(found)}."]
    for one in advice(found):
        lines += [f"  note: {one['problem']}", f"    remedy: {one['remedy']}"]
    return lines
