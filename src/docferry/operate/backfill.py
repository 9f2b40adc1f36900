"""Populating a collection from its table, beside live traffic (R6).

A scout walks the key in steps of a page; workers read and write pages in any order; the record in the ledger moves only
over pages that are durable without a gap, so that a killed backfill goes on from there.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import NoReturn, TypeVar

from docferry.applier import Applier
from docferry.capture.contract import BackfillRecord, BackfillState, KeyTexts, Ledger, PageReader
from docferry.change.model import Op, Relation, Row
from docferry.document.batch import Pending, Refused
from docferry.document.mirror import Mirror
from docferry.document.model import Delete, Write
from docferry.errors import DocferryError, Interrupted, KeyUnreadable, RowRefused, Verdict
from docferry.failpoints import boundary, failpoint
from docferry.retry import Retry
from docferry.target.contract import Outcome, Target
from docferry.tracing import NO_TRACES, Tracer

__all__ = ["LEASE", "NEW_COLLECTION", "Backfill", "BackfillLimits", "Progress"]

NEW_COLLECTION = "new collection"
"""The reason of a backfill into a collection that `apply` has just created: it cannot hold orphans."""

LEASE = 0.5
"""Seconds for which a worker may rely on having asked whether its settings are in force. A backfill takes its version
later than that: what changes behind it is then written by somebody who was told of the settings that it began with."""

_log = logging.getLogger(__name__)
_LEASE_IS_OVER = LEASE + 0.1
_T = TypeVar("_T")
_ORPHANS_AT_ONCE = 100
_FOLLOW_SECONDS = 0.5
_STEP = 1.0


@dataclass(frozen=True, slots=True)
class BackfillLimits:
    """`workers` pages of `page_rows` rows are under way at once, each read in pieces of at most `piece_bytes`."""

    workers: int = 4
    page_rows: int = 500
    piece_bytes: int = 2 << 20


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a backfill is. `total` is the planner's estimate."""

    table: str
    rows: int
    total: int
    done: bool = False


@dataclass(slots=True)
class _Page:
    upto: KeyTexts | None
    result: Future[int]


class Backfill:
    """Runs the backfill of one mirror. `readers` opens a PageReader for the mirror's table. `on_trouble`: is told what
    throws it back. `check`: raises
    HistoryChanged when the mirror or the epoch is no longer what it began with."""

    def __init__(
        self,
        mirror: Mirror,
        readers: Callable[[], PageReader],
        applier: Applier,
        target: Target,
        ledger: Ledger,
        retry: Retry,
        limits: BackfillLimits,
        *,
        on_progress: Callable[[Progress], None] = lambda _: None,
        on_trouble: Callable[[DocferryError], None] = lambda _: None,
        check: Callable[[], None] = lambda: None,
        tracer: Tracer = NO_TRACES,
    ) -> None:
        self._mirror = mirror
        self._readers = readers
        self._applier = applier
        self._target = target
        self._ledger = ledger
        self._retry = retry
        self._limits = limits
        self._on_progress = on_progress
        self._on_trouble = on_trouble
        self._check = check
        self._tracer = tracer
        self._reading: list[PageReader] = []

    def run(self, record: BackfillRecord) -> bool:
        """Bring the backfill to its end, whatever goes down meanwhile; False if another process is at it.

        Raises Interrupted when stopped (the next run resumes) and errors whose verdict is to stop.
        """
        attempt = 0
        while True:
            try:
                return self._attempt(record)
            except KeyUnreadable as error:
                self._start_over(error)
            except DocferryError as error:
                if error.verdict is not Verdict.RETRY:
                    raise
                attempt += 1
                said = {"table": record.table, "attempt": attempt}
                _log.warning("the backfill of %s goes on after: %s", record.table, error, extra=said)
                self._on_trouble(error)
                self._retry.wait(attempt, error)
                fresh = [one for one in self._unfinished() if one.id == record.id]
                if not fresh:
                    raise Interrupted(f"the backfill of {record.table} was replaced by a newer request") from error
                attempt = 0 if fresh[0].rows_done > record.rows_done else attempt
                record = fresh[0]

    def _start_over(self, error: KeyUnreadable) -> NoReturn:
        """What was written under keys of the old type has to go: of the reasons this one has orphans looked for."""
        table = self._mirror.table
        self._ask(lambda: self._ledger.request_backfill(table, "schema change", anew=True))
        raise Interrupted(f"the backfill of {table} starts over: {error}") from error

    def run_or_follow(self, record: BackfillRecord) -> None:
        """Bring the backfill to its end here, or watch the process that is at it; should that one die, take over.

        Raises like `run`; Interrupted also when watching was stopped.
        """
        following = record
        while following.state is not BackfillState.DONE:
            try:
                if self.run(following):
                    return
            except Interrupted as error:
                if self._retry.stop.is_set():
                    raise
                _log.info("%s", error)  # another process was quicker: look again
            if following is record:
                _log.info("another process is at the backfill of %s; following it", record.table)
            self._on_progress(Progress(record.table, following.rows_done, following.rows_estimate or 0))
            if self._retry.stop.wait(_FOLLOW_SECONDS):
                raise Interrupted(f"stopped watching the backfill of {record.table}")
            following = self._newest(record) or following
        self._on_progress(Progress(record.table, following.rows_done, following.rows_done, done=True))

    def _newest(self, record: BackfillRecord) -> BackfillRecord | None:
        """The record itself, or that of a newer request; None while it is being replaced, which takes two statements.
        Raises Interrupted if its mirror was removed."""
        newest = next((one for one in self._ask(self._ledger.backfills) if one.table == record.table), None)
        if newest is not None and newest.id >= record.id:
            return newest
        if record.table not in self._ask(self._ledger.mirrors):
            raise Interrupted(f"the backfill of {record.table} was given up: its mirror was removed")
        return None

    def _unfinished(self) -> list[BackfillRecord]:
        return self._ask(lambda: self._ledger.backfills(unfinished_only=True))

    def _ask(self, question: Callable[[], _T]) -> _T:
        attempt = 0
        while True:
            try:
                return question()
            except DocferryError as error:
                if error.verdict is not Verdict.RETRY:
                    raise
                attempt += 1
                self._retry.wait(attempt, error)

    def _attempt(self, record: BackfillRecord) -> bool:
        with ExitStack() as stack:
            if not stack.enter_context(self._ledger.backfilling(record.table)):
                return False
            # The request may be a newer one, of other settings: ours would write outdated items and call it done.
            self._check()
            if record.version is None and record.reason != NEW_COLLECTION and self._retry.stop.wait(_LEASE_IS_OVER):
                raise Interrupted(f"the backfill of {record.table} was stopped before it began")
            # Tombstones stay while writes of an old version may come (R4).
            still_held = stack.enter_context(self._ledger.old_writes())
            scout = self._opened(stack)
            scouting = stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="backfill_scout"))
            if record.state is BackfillState.REQUESTED or record.version is None:
                version = self._ledger.take_start_version(f"the backfill of {record.table}")
                rows_estimate = self._patiently(scouting.submit(scout.estimate))
                record = self._ledger.start_backfill(record, version, rows_estimate)
            _log.info(
                "backfill of %s: about %s rows, %d done",
                record.table,
                record.rows_estimate,
                record.rows_done,
                extra={"table": record.table, "version": record.version, "rows": record.rows_done},
            )
            self._on_progress(Progress(record.table, record.rows_done, record.rows_estimate or 0))
            rows = self._pages(record, scout, scouting, still_held)
            self._finish(record, rows, still_held)
        return True

    def _opened(self, stack: ExitStack) -> PageReader:
        reader = self._readers()
        stack.callback(reader.close)
        self._reading.append(reader)
        stack.callback(self._reading.remove, reader)
        return reader

    def _patiently(self, work: Future[_T]) -> _T:
        """The result of what another thread is at. It may wait for long, behind a lock on the table for example; this
        one shows meanwhile that it lives. Who wants to stop does not wait for the lock."""
        while not work.done():
            with suppress(TimeoutError):
                work.result(_STEP)
            self._retry.on_wait()
            if self._retry.stop.is_set() and not work.done():
                for reader in self._reading:
                    reader.cancel()
        return work.result()

    def _pages(
        self,
        record: BackfillRecord,
        scout: PageReader,
        scouting: ThreadPoolExecutor,
        still_held: Callable[[], None],
    ) -> int:
        """Write all pages that are not durable yet; returns the number of rows from the first one on."""
        idle: deque[PageReader] = deque()
        pages: deque[_Page] = deque()
        rows = record.rows_done
        saved_at = time.monotonic()
        after = record.done_key
        exhausted = False

        def page(lower: KeyTexts | None, upper: KeyTexts | None) -> int:
            reader = idle.popleft()
            try:
                with self._tracer.span("docferry.backfill.page", table=record.table) as span:
                    count = self._page(reader, record, lower, upper)
                    span.set(rows=count)
                return count
            finally:
                idle.append(reader)

        # The pool is left before the readers are closed.
        with ExitStack() as stack:
            for _ in range(self._limits.workers):
                idle.append(self._opened(stack))
            pool = stack.enter_context(ThreadPoolExecutor(self._limits.workers, thread_name_prefix="backfill"))
            try:
                while pages or not exhausted:
                    while not exhausted and len(pages) < 2 * self._limits.workers:
                        upto = self._patiently(scouting.submit(scout.boundary, after, self._limits.page_rows))
                        pages.append(_Page(upto, pool.submit(page, after, upto)))
                        exhausted = upto is None
                        after = upto
                    first = pages.popleft()
                    rows += self._patiently(first.result)
                    self._on_progress(Progress(record.table, rows, max(rows, record.rows_estimate or 0)))
                    if first.upto is not None and time.monotonic() - saved_at > 0.5:
                        still_held()
                        self._ledger.advance_backfill(record, first.upto, rows)
                        saved_at = time.monotonic()
                    if self._retry.stop.is_set():
                        if first.upto is not None:
                            still_held()
                            self._ledger.advance_backfill(record, first.upto, rows)
                        raise Interrupted(f"the backfill of {record.table} stopped after {rows} rows; it resumes there")
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return rows

    def _page(self, reader: PageReader, record: BackfillRecord, after: KeyTexts | None, upto: KeyTexts | None) -> int:
        """Read and write one page in pieces of bounded size; returns its rows."""
        count = 0
        lower: KeyTexts | None = after
        while True:
            if self._retry.stop.is_set():
                raise Interrupted("stopped between two pieces of a page")
            with failpoint("backfill.read"):
                rows, last = reader.read_page(lower, upto, self._limits.piece_bytes)
            self._write(record, rows)
            count += len(rows)
            if last is None:
                return count
            lower = last

    @boundary("backfill.write")
    def _write(self, record: BackfillRecord, rows: list[tuple[Relation, Row]]) -> None:
        assert record.version is not None
        pending: list[Pending] = []
        refused: list[Refused] = []
        for relation, row in rows:
            try:
                key = self._mirror.converter.key(relation, row)
            except RowRefused as error:
                texts = self._mirror.key_texts(relation, row)
                refused.append(Refused(self._mirror, texts, record.version, Op.INSERT, error))
                continue
            pending.append(
                Pending(
                    self._mirror,
                    Op.INSERT,
                    relation,
                    key,
                    row,
                    row,
                    record.version,
                    0,
                    in_doubt=False,
                    new=True,
                )
            )
        self._applier.store(pending, refused)

    def _finish(self, record: BackfillRecord, rows: int, still_held: Callable[[], None]) -> None:
        assert record.version is not None
        floor = self._ledger.floor(record.table)
        if floor > record.version:
            # Truncated since L0: what was read before is outdated, what came after has changes of its own.
            self._target.truncate(self._mirror.collection, floor)
        if record.reason != NEW_COLLECTION:
            self._remove_orphans(record.version)
        still_held()
        self._ledger.finish_backfill(record, rows)
        self._on_progress(Progress(record.table, rows, rows, done=True))
        _log.info("backfill of %s done: %d rows", record.table, rows, extra={"table": record.table, "rows": rows})

    def _remove_orphans(self, version: int) -> None:
        """Every row has an item of L0 or later now; an older item has no row. Tombstones take its place, because an
        older change of its key may still be in flight."""
        collection = self._mirror.collection
        removed = 0
        orphans: list[Write] = []
        for item in self._target.scan(collection):
            if item.document is not None and 0 <= item.version < version - 1:
                # Below L0, where no version is: a row that was refused at L0 can still be replayed.
                orphans.append(Delete(collection, item.key, version - 1))
            if len(orphans) >= _ORPHANS_AT_ONCE:
                removed += self._delete(orphans)
                orphans = []
        removed += self._delete(orphans)
        if removed:
            said = {"table": self._mirror.table, "items": removed}
            _log.info("backfill of %s removed %d items without a row", self._mirror.table, removed, extra=said)

    @boundary("backfill.orphans")
    def _delete(self, orphans: list[Write]) -> int:
        if not orphans:
            return 0
        return sum(result.outcome is Outcome.APPLIED for result in self._target.write(orphans))
