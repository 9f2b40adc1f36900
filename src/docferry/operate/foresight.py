"""What will hurt later: a log that fills the disk, a slot that is about to be lost, a failover that will lack it. Said
in time."""

from __future__ import annotations

from typing import NamedTuple

from docferry.capture.retention import Retention

__all__ = ["Notice", "hints", "shown_size", "warnings"]

_LEFT_WORTH_A_WORD = 0.25
_OF_FREE_DISK = 0.25
_OF_IDLE_LIMIT_WORTH_A_WORD = 0.5


class Notice(NamedTuple):
    """Something that will hurt, and what to do about it."""

    problem: str
    remedy: str


def warnings(found: Retention) -> list[Notice]:
    """What needs attention now."""
    said = [*_of_log(found), *_of_idleness(found)] if found.exists else []
    return said + _of_standbys(found)


def hints(found: Retention) -> list[Notice]:
    """What is worth knowing before docferry runs, beside the warnings."""
    said = []
    if found.keep_limit is None:
        said.append(
            Notice(
                "max_slot_wal_keep_size is unlimited: while no worker runs, the log that waits for it can fill the "
                "source's disk",
                "ALTER SYSTEM SET max_slot_wal_keep_size to what the disk can spare (on RDS and Aurora: in the "
                "parameter group). Beyond that the slot is lost instead, and `docferry apply` heals it.",
            )
        )
    if found.idle_limit is not None:
        said.append(
            Notice(
                f"idle_replication_slot_timeout: the source invalidates the slot when no worker has run for "
                f"{found.idle_limit:,.0f} s",
                "Keep `docferry run` running, or raise the setting.",
            )
        )
    return said


def _of_log(found: Retention) -> list[Notice]:
    if found.keep_limit is not None and found.safe is not None:
        limit = max(found.keep_limit, found.keep_size)
        if found.safe < _LEFT_WORTH_A_WORD * limit:
            return [
                Notice(
                    f"the slot is about to be lost: the source may write {shown_size(max(found.safe, 0))} more, of "
                    f"{shown_size(limit)}, before it drops WAL that docferry has not read",
                    "Let `docferry run` catch up at once, or raise max_slot_wal_keep_size (a reload is enough).",
                )
            ]
    if found.keep_limit is None and found.free is not None and found.retained > _OF_FREE_DISK * found.free:
        return [
            Notice(
                f"the disk is about to fill up: the source keeps {shown_size(found.retained)} of WAL for the slot, "
                f"without limit, and {shown_size(found.free)} are free",
                "Let `docferry run` catch up at once, or set max_slot_wal_keep_size: then the slot is lost instead, "
                "and `docferry apply` heals it.",
            )
        ]
    return []


def _of_idleness(found: Retention) -> list[Notice]:
    if found.idle_limit is None or found.idle is None or found.idle < _OF_IDLE_LIMIT_WORTH_A_WORD * found.idle_limit:
        return []
    return [
        Notice(
            f"nobody has read the slot for {found.idle:,.0f} s; after {found.idle_limit:,.0f} s the source invalidates "
            "it (idle_replication_slot_timeout)",
            "Start `docferry run`, or raise the setting.",
        )
    ]


def _of_standbys(found: Retention) -> list[Notice]:
    said = []
    if found.failover and found.unready:
        said.append(
            Notice(
                f"nobody reads {', '.join(found.unready)} of synchronized_standby_slots: the stream waits for it",
                "Bring that standby back, or take its slot out of synchronized_standby_slots and reload.",
            )
        )
    if found.failover and found.standbys and not found.waits_for:
        said.append(
            Notice(
                "synchronized_standby_slots is empty: docferry can be ahead of a standby, and after its promotion the "
                "target shows changes that the source has lost, until it is populated again",
                "ALTER SYSTEM SET synchronized_standby_slots to the slots of the standbys that may be promoted, and "
                "reload.",
            )
        )
    if found.failover and found.standbys and found.synchronising == 0:
        said.append(
            Notice(
                "no standby is seen to synchronise the slot: after a promotion it has to be created anew",
                "On the standby: sync_replication_slots = on, hot_standby_feedback = on, primary_slot_name, and a "
                "dbname in primary_conninfo.",
            )
        )
    return said


def shown_size(count: float) -> str:
    """Bytes as people read them."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:,.0f} {unit}" if unit == "B" else f"{count:,.1f} {unit}"
        count /= 1024
    return f"{count:,.1f} TiB"
