"""Comparing a table with its collection, completely or in samples, in constant memory and beside live traffic.

Key-ordered pages of rows are held against the items of their keys; then every item is asked for its row. What does not
fit is a suspect, to be settled (settle.py).
"""

from __future__ import annotations

import logging
import queue
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

from docferry.capture.contract import KeyReader, KeyTexts, PageReader
from docferry.change.model import PgType, Relation, Row
from docferry.document.mirror import Mirror
from docferry.document.model import Key
from docferry.document.source_key import is_reversible, source_key
from docferry.errors import Interrupted, RowRefused
from docferry.operate.compare import Expected, Kind, compare, is_made_up
from docferry.operate.findings import Counts, Finding, Suspect
from docferry.operate.grounds import table_needed
from docferry.operate.passing import Watermark
from docferry.operate.settle import Rows, Settler, ceiling_at
from docferry.target.contract import Item, Target

__all__ = ["TableAccess", "Verifier", "VerifyLimits", "VerifyProgress"]

_log = logging.getLogger(__name__)
_SAVE_SECONDS = 5.0
_ITEMS = 250
_SAMPLED_SEGMENTS = 20
_MOST_SEGMENTS = 1_000_000


class TableAccess(PageReader, KeyReader, Protocol):
    """Reads a mirror's table, in pages and by key."""


@dataclass(frozen=True, slots=True)
class VerifyLimits:
    """`workers` pages of `page_rows` rows, or segments of the collection, are compared at once; rows are read in pieces
    of at most `piece_bytes`. `suspects`: so many are settled before more is read. `rate`: rows, and items, a second;
    None for as fast as it goes."""

    workers: int = 4
    page_rows: int = 500
    piece_bytes: int = 2 << 20
    suspects: int = 10_000
    rate: float | None = None


@dataclass(frozen=True, slots=True)
class VerifyProgress:
    """How far it is. `phase`: rows or items; `total`: the planner's estimate of rows."""

    table: str
    phase: str
    done: int
    total: int


@dataclass(slots=True)
class _Page:
    upto: KeyTexts | None
    result: Future[tuple[int, list[Suspect]]]


@dataclass(slots=True)
class _Share:
    """What a thread has found in a part of the collection. `error`: what ended it."""

    items: int = 0
    suspects: Sequence[Suspect] = ()
    done: bool = False
    error: BaseException | None = None


class Verifier:
    """Compares one mirror. `tables` opens a reader for its table. `on_finding` is told what was confirmed, `on_saved`
    how far everything is settled: the phase, and the key up to which rows are."""

    def __init__(
        self,
        mirror: Mirror,
        tables: Callable[[], TableAccess],
        target: Target,
        settler: Settler,
        watermark: Watermark,
        epoch: int,
        limits: VerifyLimits,
        *,
        stop: threading.Event,
        on_finding: Callable[[Finding], None] = lambda _: None,
        on_saved: Callable[[str, KeyTexts | None], None] = lambda *_: None,
        on_progress: Callable[[VerifyProgress], None] = lambda _: None,
    ) -> None:
        self._mirror = mirror
        self._tables = tables
        self._target = target
        self._settler = settler
        self._watermark = watermark
        self._epoch = epoch
        self._limits = limits
        self._stop = stop
        self._on_finding = on_finding
        self._on_saved = on_saved
        self._on_progress = on_progress
        self._ceiling = 0
        self._ceiling_lock = threading.Lock()
        self._suspects: list[Suspect] = []
        self.counts = Counts()

    def run(self, phase: str = "rows", after: KeyTexts | None = None, counts: Counts | None = None) -> Counts:
        """Compare everything, or what is left behind `after`. Raises Interrupted, TableGone, SourceRefused for a table
        that has another name now, HistoryChanged once another epoch is in force, and what the ends refuse."""
        self.counts = counts or Counts()
        with ExitStack() as stack:
            scout = self._table(stack)
            stack.enter_context(table_needed(self._mirror, scout))
            total = scout.estimate()
            if phase == "rows":
                self._compare_rows(scout, after, total)
                self._settle()
                self._on_saved("items", None)
            self.counts.items = 0
            types = self._key_types(scout)
            self._ask_items(total, types)
            self._settle()
            self._note_not_asked(types)
        return self.counts

    def sample(self, size: int) -> Counts:
        """Compare about so many rows, and about so many items, from random places. Raises like `run`."""
        self.counts = Counts()
        with ExitStack() as stack:
            table = self._table(stack)
            stack.enter_context(table_needed(self._mirror, table))
            for relation, row in Rows(self._mirror, table).whole(table.sample(size)):
                self._suspects += self._compare([(relation, row)])
                self.counts.rows += 1
            types = self._key_types(table)
            find = self._finder(table, types)
            for batch in _batched(islice(self._sampled_items(table.estimate(), size), size)):
                self.counts.items += len(batch)
                self._suspects += find(batch)
            self._settle()
            self._note_not_asked(types)
        return self.counts

    # -- rows ---------------------------------------------------------------------------------------------------------

    def _compare_rows(self, scout: TableAccess, after: KeyTexts | None, total: int) -> None:
        pages: deque[_Page] = deque()
        idle: deque[TableAccess] = deque()
        saved_at = time.monotonic()

        def page(lower: KeyTexts | None, upper: KeyTexts | None) -> tuple[int, list[Suspect]]:
            reader = idle.popleft()
            try:
                return self._page(reader, lower, upper)
            finally:
                idle.append(reader)

        with ExitStack() as stack:
            for _ in range(self._limits.workers):
                idle.append(self._table(stack))
            pool = stack.enter_context(ThreadPoolExecutor(self._limits.workers, thread_name_prefix="verify"))
            exhausted = False
            try:
                while pages or not exhausted:
                    while not exhausted and len(pages) < 2 * self._limits.workers:
                        upto = scout.boundary(after, self._limits.page_rows)
                        pages.append(_Page(upto, pool.submit(page, after, upto)))
                        exhausted = upto is None
                        after = upto
                    first = pages.popleft()
                    rows, suspects = first.result.result()
                    self.counts.rows += rows
                    self._suspects += suspects
                    self._on_progress(VerifyProgress(self._mirror.table, "rows", self.counts.rows, total))
                    if len(self._suspects) >= self._limits.suspects or time.monotonic() - saved_at > _SAVE_SECONDS:
                        self._settle()
                        saved_at = time.monotonic()
                        if first.upto is not None:
                            self._on_saved("rows", first.upto)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _page(self, reader: TableAccess, after: KeyTexts | None, upto: KeyTexts | None) -> tuple[int, list[Suspect]]:
        count, suspects = 0, list[Suspect]()
        lower = after
        while True:
            self._check_stop()
            rows, last = reader.read_page(lower, upto, self._limits.piece_bytes)
            suspects += self._compare(rows)
            count += len(rows)
            self._slow_down(len(rows))
            if last is None:
                return count, suspects
            lower = last

    def _compare(self, rows: Sequence[tuple[Relation, Row]]) -> list[Suspect]:
        """Those of the rows that do not fit their items."""
        expected: list[tuple[Suspect, Expected]] = []
        for relation, row in rows:
            texts = self._mirror.key_texts(relation, row)
            key: Key | None = None
            try:
                key = self._mirror.converter.key(relation, row)
                expected.append((Suspect(texts, key), self._mirror.converter.put(relation, row, 0)))
            except RowRefused as error:
                expected.append((Suspect(texts, key), error))
        keys = [suspect.key for suspect, _ in expected if suspect.key is not None]
        items = dict(zip(keys, self._target.read(self._mirror.collection, keys), strict=True)) if keys else {}
        ceiling = self._ceiling_above(items.values())
        return [
            suspect
            for suspect, wanted in expected
            if compare(
                wanted,
                None if suspect.key is None else items[suspect.key],
                self._target.digest,
                ceiling=ceiling,
            ).kind
            is not Kind.IDENTICAL
        ]

    def _ceiling_above(self, items: Iterable[Item | None]) -> int:
        """A version that no change had when these items were read, unless somebody else made one up."""
        highest = max((item.version for item in items if item is not None), default=0)
        with self._ceiling_lock:
            if highest > self._ceiling:
                self._ceiling = ceiling_at(self._epoch, self._watermark.mark())
            return self._ceiling

    # -- items --------------------------------------------------------------------------------------------------------

    def _ask_items(self, total: int, types: Sequence[PgType] | None) -> None:
        """Look for items without a row, in several segments at once."""
        shares: queue.Queue[_Share] = queue.Queue(2 * self._limits.workers)
        ending = threading.Event()
        segments = self._limits.workers
        threads = [
            threading.Thread(target=self._segment, args=(one, segments, types, shares, ending), name=f"verify {one}")
            for one in range(segments)
        ]
        for thread in threads:
            thread.start()
        try:
            while segments:
                share = shares.get()
                if share.error is not None:
                    raise share.error
                segments -= share.done
                self.counts.items += share.items
                self._suspects += share.suspects
                self._on_progress(VerifyProgress(self._mirror.table, "items", self.counts.items, total))
                if len(self._suspects) >= self._limits.suspects:
                    self._settle()
        finally:
            ending.set()
            while any(thread.is_alive() for thread in threads):
                with suppress(queue.Empty):
                    shares.get(timeout=0.05)
            for thread in threads:
                thread.join()

    def _segment(
        self,
        segment: int,
        segments: int,
        types: Sequence[PgType] | None,
        shares: queue.Queue[_Share],
        ending: threading.Event,
    ) -> None:
        try:
            with ExitStack() as stack:
                find = self._finder(self._table(stack), types)
                items = self._target.scan(self._mirror.collection, segment=segment, segments=segments)
                for batch in _batched(items):
                    if ending.is_set():
                        return
                    self._check_stop()
                    shares.put(_Share(sum(item.document is not None for item in batch), find(batch)))
                    self._slow_down(len(batch))
            shares.put(_Share(done=True))
        except BaseException as error:  # noqa: BLE001 - handed to the thread that waits for it
            shares.put(_Share(error=error))

    def _key_types(self, table: TableAccess) -> Sequence[PgType] | None:
        """Of the key columns; None where an item's key does not tell its row's."""
        relation = table.relation(self._mirror.table)
        types = [relation.columns[index].type for index in self._mirror.converter.key_indexes(relation)]
        return types if is_reversible(types) else None

    def _note_not_asked(self, types: Sequence[PgType] | None) -> None:
        """Where rows cannot be found by the items' keys, nobody knows which items have one."""
        if types is None:
            self.counts.unsettled += self.counts.items
            self.counts.why = self.counts.why or "items without a row cannot be looked for where a key column is jsonb"

    def _finder(self, table: TableAccess, types: Sequence[PgType] | None) -> Callable[[Sequence[Item]], list[Suspect]]:
        """Finds those of the items that have no row, and of the tombstones those that would hold one back."""
        if types is None:
            return lambda _: []
        rows = Rows(self._mirror, table)
        spec = self._mirror.spec

        def find(items: Sequence[Item]) -> list[Suspect]:
            ceiling = self._ceiling_above(item for item in items if item.document is None)
            live = [item for item in items if item.document is not None or is_made_up(item.version, ceiling)]
            asked = [Suspect(source_key(spec, types, item.key), item.key) for item in live]
            present = rows.keys([one.texts for one in asked if one.texts is not None])
            return [one for one in asked if one.key not in present]

        return find

    def _sampled_items(self, estimate: int, size: int) -> Iterator[Item]:
        """Live items from the beginnings of random segments."""
        each = max(1, size // _SAMPLED_SEGMENTS)
        segments = min(max(1, estimate // each), _MOST_SEGMENTS)
        collection = self._mirror.collection
        for segment in random.sample(range(segments), min(segments, 2 * _SAMPLED_SEGMENTS)):
            items = self._target.scan(collection, segment=segment, segments=segments)
            yield from islice((item for item in items if item.document is not None), each)

    # -- both ---------------------------------------------------------------------------------------------------------

    def _settle(self) -> None:
        if not self._suspects:
            return
        _log.debug("%s: %d suspects are looked at again", self._mirror.table, len(self._suspects))
        settled = self._settler.settle(self._suspects)
        self._suspects = []
        for finding in settled.findings:
            self.counts.note(finding)
            self._on_finding(finding)
        self.counts.in_motion += settled.moving
        self.counts.unsettled += settled.unsettled
        self.counts.why = settled.why or self.counts.why

    def _table(self, stack: ExitStack) -> TableAccess:
        table = self._tables()
        stack.callback(table.close)
        return table

    def _slow_down(self, count: int) -> None:
        if self._limits.rate is not None:
            self._stop.wait(count / self._limits.rate)

    def _check_stop(self) -> None:
        if self._stop.is_set():
            raise Interrupted(f"the verification of {self._mirror.table} was stopped")


def _batched(items: Iterator[Item]) -> Iterator[list[Item]]:
    """Some at a time."""
    while batch := list(islice(items, _ITEMS)):
        yield batch
