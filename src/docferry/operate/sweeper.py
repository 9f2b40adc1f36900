"""Removing tombstones that nothing needs any more, and what comes in below a floor late (R4)."""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict, deque

from docferry.applier import Tombstone
from docferry.capture.contract import Ledger
from docferry.document.model import Collection, Key
from docferry.errors import DocferryError, Verdict
from docferry.target.contract import Target

__all__ = ["Sweeper"]

_log = logging.getLogger(__name__)
_MOST = 200_000
_BATCH = 1_000


class Sweeper:
    """Collects tombstones that the watermark has passed and removes them `grace` seconds later, when no backfill or
    replay is running.

    The grace is for writes of a worker that was killed with requests on the wire. What is more than 200,000 at once, or
    was pending when the worker ended, is left to the target's own expiry. For the same reason a collection that was
    emptied within the grace of the start is emptied again when it is over: this process refuses what is below the
    floor, the requests of the one before it did not know it.
    """

    def __init__(self, target: Target, ledger: Ledger, *, grace: float = 60.0) -> None:
        self._target = target
        self._ledger = ledger
        self._grace = grace
        self._settled_at = time.monotonic() + grace
        self._floors: dict[str, tuple[Collection, int]] = {}
        self._lock = threading.Lock()
        self._pending: deque[tuple[float, Tombstone]] = deque(maxlen=_MOST)

    def note(self, tombstones: list[Tombstone]) -> None:
        """The watermark has passed these."""
        now = time.monotonic()
        with self._lock:
            self._pending.extend((now, tombstone) for tombstone in tombstones)

    def note_floor(self, collection: Collection, version: int) -> None:
        """It was emptied below this version."""
        with self._lock:
            if time.monotonic() < self._settled_at:
                self._floors[collection.name] = collection, version

    @property
    def pending(self) -> int:
        """How many tombstones wait."""
        return len(self._pending)

    def sweep(self) -> int:
        """Remove what is due; returns how many were removed. Trouble is logged, what was due is tried again."""
        self._empty_again()
        due = self._due()
        if not due:
            return 0
        removed = 0
        try:
            with self._ledger.sweeping() as allowed:
                if allowed:
                    removed = self._remove(due)
                    due = []
        except DocferryError as error:
            if error.verdict is not Verdict.RETRY:
                raise
            _log.warning("sweeping again later: %s", error)
        if due:
            with self._lock:
                self._pending.extendleft(reversed(due))
        return removed

    def _empty_again(self) -> None:
        with self._lock:
            if time.monotonic() < self._settled_at:
                return
            floors, self._floors = list(self._floors.values()), {}
        for collection, version in floors:
            if late := self._target.truncate(collection, version):
                _log.warning("removed %d items of %s that an earlier worker wrote late", late, collection.name)

    def _due(self) -> list[tuple[float, Tombstone]]:
        limit = time.monotonic() - self._grace
        due: list[tuple[float, Tombstone]] = []
        with self._lock:
            while self._pending and self._pending[0][0] <= limit and len(due) < _BATCH:
                due.append(self._pending.popleft())
        return due

    def _remove(self, due: list[tuple[float, Tombstone]]) -> int:
        by_collection: dict[str, tuple[Collection, list[tuple[Key, int]]]] = {}
        keys: dict[str, dict[Key, int]] = defaultdict(dict)
        for _, tombstone in due:
            # A key that was deleted twice has one tombstone, the newer.
            keys[tombstone.collection.name][tombstone.key] = tombstone.version
            by_collection[tombstone.collection.name] = (tombstone.collection, [])
        return sum(
            self._target.sweep(collection, list(keys[name].items())) for name, (collection, _) in by_collection.items()
        )
