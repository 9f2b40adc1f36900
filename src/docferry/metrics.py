"""What a running worker counts: plain data, cheap enough for every batch; and the pulses of its threads."""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

__all__ = ["BackfillCount", "Histogram", "Metrics", "Pulse", "Pulses", "Wait"]

_WINDOW = 60.0
_SAID_OF_A_PAGE = 2
_LATENCIES: Final = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
_CHANGES: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 5000)
_ITEMS: Final = (1, 2, 5, 10, 15, 20, 25)


class Histogram:
    """Counts by upper bound, as Prometheus has them. Safe to call from several threads."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self._lock = threading.Lock()
        self._counts = [0] * (len(self.bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float, weight: int = 1) -> None:
        """Count `value` so many times."""
        place = bisect_left(self.bounds, value)
        with self._lock:
            self._counts[place] += weight
            self._sum += value * weight

    def snapshot(self) -> tuple[list[int], float]:
        """How many were at most each bound, and at last all of them; and their sum."""
        with self._lock:
            counts, total = list(self._counts), self._sum
        for place in range(1, len(counts)):
            counts[place] += counts[place - 1]
        return counts, total


@dataclass(slots=True)
class Pulse:
    """A thread, in seconds of the monotonic clock. `beat`: when it last showed that it lives. `moved`: when it last got
    something done at the target. `failing`: since when the target has given it nothing but errors, None when it has
    not; `error`: the newest of them."""

    beat: float
    moved: float = 0.0
    failing: float | None = None
    error: str = ""
    collection: str = ""


class Pulses:
    """The pulses of threads, by their names: each thread feels its own."""

    def __init__(self) -> None:
        self._by_name: dict[str, Pulse] = {}

    def beat(self) -> None:
        """The calling thread lives."""
        self._mine()

    def moved(self) -> None:
        """It got something done."""
        mine = self._mine()
        mine.moved = mine.beat
        mine.failing = None

    def failed(self, error: str, collection: str) -> None:
        """The target answered it with an error, and it is going to try again."""
        mine = self._mine()
        mine.error, mine.collection = error, collection
        mine.failing = mine.beat if mine.failing is None else mine.failing

    def all(self) -> dict[str, Pulse]:
        """Those of all threads that ever had one."""
        return dict(self._by_name)

    def _mine(self) -> Pulse:
        name, now = threading.current_thread().name, time.monotonic()
        mine = self._by_name.get(name)
        if mine is None:
            mine = self._by_name[name] = Pulse(now)
        mine.beat = now
        return mine


@dataclass(frozen=True, slots=True)
class BackfillCount:
    """A backfill of this process. `total`: the planner's estimate. `active`: it is under way. `said`: how often it has
    told how far it is since it failed. `failures`: in a row, without a page in between; `error`: the newest.
    `moved`: when it began, or last had a page more, in seconds of the monotonic clock."""

    rows: int = 0
    total: int = 0
    active: bool = True
    said: int = 0
    failures: int = 0
    error: str = ""
    moved: float = field(default_factory=time.monotonic)


@dataclass(frozen=True, slots=True)
class Wait:
    """Somebody waits for somebody else's transaction `since`, in seconds of the monotonic clock."""

    for_whom: str
    remedy: str
    since: float


@dataclass(slots=True)
class _Table:
    applied: int = 0
    stale: int = 0
    dead: int = 0
    reread: int = 0
    mended: int = 0
    drift: dict[str, int] = field(default_factory=dict)
    samples: deque[tuple[float, int]] = field(default_factory=deque)


class Metrics:
    """What became of changes, by source table, and how that went. Safe to call from several threads.

    `latency`: seconds from commit to durable, a change; all changes of a job count with its oldest. `job_changes`:
    changes a job. `request_items`: items a write request. `letters_error`: why the last dead letters could not be kept,
    empty when they could. Is a target.contract.TargetObserver.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tables: dict[str, _Table] = defaultdict(_Table)
        self._backfills: dict[str, BackfillCount] = {}
        self._waits: dict[str, Wait] = {}
        self._retried: dict[tuple[str, str], int] = defaultdict(int)
        self._throttled: dict[str, int] = defaultdict(int)
        self.latency = Histogram(_LATENCIES)
        self.job_changes = Histogram(_CHANGES)
        self.request_items = Histogram(_ITEMS)
        self.pulses = Pulses()
        self.letters_error = ""

    def count(
        self, table: str, *, applied: int = 0, stale: int = 0, dead: int = 0, reread: int = 0, mended: int = 0
    ) -> None:
        """Add what became of some changes; `mended`: items that reconciling wrote."""
        with self._lock:
            entry = self._tables[table]
            entry.applied += applied
            entry.stale += stale
            entry.dead += dead
            entry.reread += reread
            entry.mended += mended

    def drifted(self, table: str, kind: str) -> None:
        """Count a difference that reconciling has found: missing, stale, different, orphaned or refused."""
        with self._lock:
            drift = self._tables[table].drift
            drift[kind] = drift.get(kind, 0) + 1

    def durable(self, changes: int, seconds: float | None) -> None:
        """A job's changes are durable, the oldest of them `seconds` after its commit, None where nobody knows."""
        self.job_changes.observe(changes)
        if seconds is not None:
            self.latency.observe(max(seconds, 0.0), changes)

    # -- what the target sees -----------------------------------------------------------------------------------------

    def requested(self, items: int) -> None:
        """See target.contract.TargetObserver."""
        self.request_items.observe(items)

    def moved(self) -> None:
        """See target.contract.TargetObserver."""
        self.pulses.moved()

    def throttled(self, collection: str) -> None:
        """See target.contract.TargetObserver."""
        with self._lock:
            self._throttled[collection] += 1

    def held_up(self, collection: str, error: str, *, throttled: bool) -> None:
        """See target.contract.TargetObserver."""
        self.pulses.failed(error, collection)
        with self._lock:
            self._retried[collection, "throttled" if throttled else "unavailable"] += 1

    # -- backfills ----------------------------------------------------------------------------------------------------

    def backfilled(self, table: str, rows: int, total: int, *, done: bool) -> None:
        """A backfill is so far. What it says first when it tries again is no progress, what it says next is."""
        before = self._backfills.get(table, BackfillCount())
        said = before.said + 1
        fails = before.failures > 0 and said < _SAID_OF_A_PAGE and not done
        failures, error = (before.failures, before.error) if fails else (0, "")
        moved = before.moved if fails else time.monotonic()
        self._backfills[table] = BackfillCount(rows, total, not done, said, failures, error, moved)

    def backfill_failed(self, table: str, error: str) -> None:
        """A backfill was thrown back, and tries again."""
        before = self._backfills.get(table, BackfillCount())
        moved = before.moved if before.active else time.monotonic()
        failures = before.failures + 1
        self._backfills[table] = replace(before, active=True, said=0, failures=failures, error=error, moved=moved)

    def backfill_left(self, table: str) -> None:
        """This process is not at it any more, whether it came to its end or not."""
        if (before := self._backfills.get(table)) is not None:
            self._backfills[table] = replace(before, active=False, said=0, failures=0, error="")

    def waits(self, who: str, for_whom: str, remedy: str) -> None:
        """`who` waits for a transaction of `for_whom`; no more if that is empty."""
        if not for_whom:
            self._waits.pop(who, None)
            return
        before = self._waits.get(who)
        self._waits[who] = Wait(for_whom, remedy, time.monotonic() if before is None else before.since)

    # -- looking on ---------------------------------------------------------------------------------------------------

    def backfills(self) -> dict[str, BackfillCount]:
        """Those of this process, by table."""
        return dict(self._backfills)

    def waiting(self) -> dict[str, Wait]:
        """Who waits for somebody's transaction."""
        return dict(self._waits)

    def retries(self) -> tuple[dict[tuple[str, str], int], dict[str, int]]:
        """Pauses before another attempt by (collection, reason), and writes that were throttled by collection."""
        with self._lock:
            return dict(self._retried), dict(self._throttled)

    def snapshot(self) -> dict[str, dict[str, Any]]:
        """Totals since the start, and `rate` in changes a second over the last minute, by table. `drift`: differences
        that reconciling has found, by kind."""
        now = time.monotonic()
        with self._lock:
            shown = {}
            for table, entry in self._tables.items():
                total = entry.applied + entry.stale + entry.dead
                entry.samples.append((now, total))
                while now - entry.samples[0][0] > _WINDOW:
                    entry.samples.popleft()
                since, before = entry.samples[0]
                rate = (total - before) / (now - since) if now > since else 0.0
                shown[table] = {
                    "applied": entry.applied,
                    "stale": entry.stale,
                    "dead": entry.dead,
                    "reread": entry.reread,
                    "rate": round(rate, 1),
                    "drift": dict(entry.drift),
                    "mended": entry.mended,
                }
            return shown
