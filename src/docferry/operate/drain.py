"""Draining: a pipeline that ends when nothing is left to be carried, and what else of a worker's duties the function's
schedule does."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from docferry.applier import Applier, Applies, Observe, Tombstone
from docferry.capture.contract import Capture, Delivery, Ledger
from docferry.change.model import Change
from docferry.document.batch import Pending, mirror_of
from docferry.document.mirror import Mirror
from docferry.errors import DocferryError, SourceUnavailable
from docferry.operate.receive import Judge, Receipt, Results
from docferry.target.contract import Result

__all__ = ["Drained", "Telling", "UntilEmpty", "backfills_due", "look_for_changed_columns"]

_log = logging.getLogger(__name__)
_LOOK = 0.05


@dataclass(frozen=True, slots=True)
class Drained:
    """How a drain left things. `oldest_seconds`: how long the oldest change that is left has waited. `backfills_due`:
    the tables whose backfill waits for somebody to run it."""

    oldest_seconds: float
    backfills_due: tuple[str, ...]


def _unobserved(_pending: Pending, _result: Result) -> None:
    pass


class Telling:
    """An applier that gives receipts for what it made durable. `tell` is called by one thread at a time."""

    def __init__(
        self, applier: Applies, mirrors: Mapping[str, Mirror], tell: Callable[[Sequence[Receipt]], None]
    ) -> None:
        self._applier = applier
        self._mirrors = mirrors
        self._judge = Judge(mirrors)
        self._tell = tell
        self._lock = threading.Lock()

    def apply(self, changes: Sequence[Change], *, observe: Observe = _unobserved) -> list[Tombstone]:
        """See Applier.apply."""
        results: Results = {}

        def note(pending: Pending, result: Result) -> None:
            self._judge.note(results, pending, result)
            observe(pending, result)

        tombstones = self._applier.apply(changes, observe=note)
        ours = [change for change in changes if mirror_of(change.relation, self._mirrors) is not None]
        receipts = [self._judge.judged(change, results) for change in ours]
        with self._lock:
            self._tell(receipts)
        return tombstones


class UntilEmpty:
    """A capture that sets `stopping` once it finds nothing and all that it found before is confirmed or given back."""

    def __init__(self, capture: Capture, stopping: threading.Event) -> None:
        self._capture = capture
        self._stopping = stopping
        self._delivered = 0
        self._confirmed = 0

    def read(self, timeout: float) -> Delivery:
        """See contract.Capture."""
        try:
            delivery = self._capture.read(min(timeout, _LOOK))
        except SourceUnavailable:
            # What was not confirmed comes again, here or, where several drain, to somebody else.
            self._delivered = self._confirmed
            raise
        self._delivered = max(self._delivered, delivery.position or 0)
        if not delivery.changes and self._confirmed >= self._delivered:
            self._stopping.set()
        return delivery

    def confirm(self, position: int) -> None:
        """See contract.Capture."""
        self._capture.confirm(position)
        self._confirmed = max(self._confirmed, position)

    def keep_alive(self, timeout: float) -> None:
        """See contract.Capture."""
        self._capture.keep_alive(timeout)

    def look_afresh(self) -> None:
        """See contract.Capture."""
        self._capture.look_afresh()

    def close(self) -> None:
        """See contract.Capture."""
        self._capture.close()


def look_for_changed_columns(applier: Applier, tables: Iterable[str], seconds: float) -> None:
    """See Applier.check_columns, for so many seconds at most. A table that cannot be looked at keeps no other one from
    it; it is told of, and the next drain looks again."""
    given_up = threading.Event()

    def look() -> None:
        for table in tables:
            if given_up.is_set():
                return
            try:
                applier.check_columns_of(table)
            except DocferryError as error:
                said = {"table": table, "remedy": error.remedy}
                _log.warning("whether the columns of %s changed is not known: %s", table, error, extra=said)

    # A thread, because a table that somebody alters may be locked for as long as that takes.
    thread = threading.Thread(target=look, name="columns", daemon=True)
    thread.start()
    thread.join(max(seconds, 0.0))
    if thread.is_alive():
        given_up.set()
        _log.warning("not all tables could be looked at for changed columns in time; the next drain looks again")


def backfills_due(ledger: Ledger, tables: Iterable[str]) -> tuple[str, ...]:
    """Those of the tables whose backfill is not done, with nobody at it."""
    wanted = set(tables)
    due = []
    for record in ledger.backfills(unfinished_only=True):
        if record.table in wanted:
            with ledger.backfilling(record.table) as nobody_is:
                if nobody_is:
                    due.append(record.table)
    return tuple(due)
