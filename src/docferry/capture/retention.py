"""What bounds the log that the source keeps for docferry's slot, and what the slot's standbys do: as it was found."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["NOT_VISIBLE", "Retention"]

NOT_VISIBLE = "not visible from here"


@dataclass(frozen=True, slots=True)
class Retention:
    """Sizes in bytes, times in seconds.

    `keep_limit`: max_slot_wal_keep_size, None without limit. `keep_size`: wal_keep_size. `idle_limit`:
    idle_replication_slot_timeout, None without one. `retained`: what the server keeps for our slot. `safe`: what it may
    still write before it drops what the slot needs, None without limit. `idle`: how long nobody has read the slot, None
    while somebody does or where the server does not say. `pg_wal`, `free`: of the log and of its disk; None where they
    cannot be seen, and `pg_wal_seen`, `free_seen` say why. `failover`: the slot follows to standbys, None before
    PostgreSQL 17. `standbys`: connected ones. `synchronising`: those seen to synchronise slots, None where sessions
    cannot be seen. `waits_for`: synchronized_standby_slots. `unready`: those of them that nobody reads.
    """

    keep_limit: int | None
    keep_size: int
    idle_limit: float | None
    exists: bool = False
    active: bool = False
    retained: int = 0
    safe: int | None = None
    idle: float | None = None
    pg_wal: int | None = None
    pg_wal_seen: str = ""
    free: int | None = None
    free_seen: str = ""
    failover: bool | None = None
    standbys: int = 0
    synchronising: int | None = None
    waits_for: tuple[str, ...] = ()
    unready: tuple[str, ...] = ()
