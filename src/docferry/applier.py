"""What becomes of a delivery of changes: coalesced, settled, converted, written, or kept as dead letters."""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol, TypeVar

from docferry.capture.absent import NoDatabase
from docferry.capture.contract import Ledger, RowReader
from docferry.change.model import Change, Op, Relation, Row
from docferry.deadletter.contract import DeadLetter
from docferry.document.batch import Pending, Refused, coalesce, mirror_of, renamed, to_write
from docferry.document.mirror import Mirror
from docferry.document.model import Collection, Delete, Key, Write
from docferry.errors import DocferryError, NeedsReread, RowRefused, SourceUnavailable, TableGone, ValueRefused
from docferry.failpoints import boundary
from docferry.metrics import Metrics
from docferry.retry import Retry
from docferry.target.contract import Outcome, Result, Target
from docferry.tracing import NO_TRACES, Tracer

__all__ = ["Applier", "Applies", "LetterBox", "Observe", "Tombstone"]

_log = logging.getLogger(__name__)
_T = TypeVar("_T")
_REREAD_KEYS = 250
_REREAD_BYTES = 2 << 20
_MOST_RELATIONS = 1000

Observe = Callable[[Pending, Result], None]
"""Is told what became of a key; with REFUSED it went to the dead letters. What coalesce() refuses is not among it."""


def _unobserved(_pending: Pending, _result: Result) -> None:
    pass


class LetterBox(Protocol):
    """Where dead letters are put: of contract.DeadLetters what applying takes."""

    def add(self, letters: Sequence[DeadLetter]) -> None:
        """Keep them; durable when this returns."""


@dataclass(frozen=True, slots=True)
class Tombstone:
    """A delete that was applied."""

    collection: Collection
    key: Key
    version: int


class Applies(Protocol):
    """Of an Applier what a pipeline takes."""

    def apply(self, changes: Sequence[Change], *, observe: Observe = ...) -> list[Tombstone]:
        """See Applier.apply."""


class Applier:
    """Applies changes: coalesce, settle what is in doubt, convert, write, bury what cannot be stored (R8).

    `reader`, `ledger`: None where the database cannot be reached; what would have to be read is buried. `trusted_age`:
    seconds after which a change is in doubt, because the tombstone that would hold it back may have expired; for
    captures that keep no order. `check` is called ahead of everything, with the tables of changes that have no mirror
    here; it raises HistoryChanged when they have one since, or the mirrors have other settings. `on_truncated` is told
    each collection that was emptied and below which version, `on_new_layout` that a table's columns or types are others
    than they were. `clock`: seconds since 1970.
    """

    def __init__(
        self,
        mirrors: Mapping[str, Mirror],
        reader: RowReader | None,
        target: Target,
        dead_letters: LetterBox,
        ledger: Ledger | None,
        metrics: Metrics,
        retry: Retry,
        *,
        backfill_on_schema_change: bool = True,
        trusted_age: float | None = None,
        check: Callable[[set[str]], None] = lambda _: None,
        on_truncated: Callable[[Collection, int], None] = lambda *_: None,
        on_new_layout: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.time,
        tracer: Tracer = NO_TRACES,
    ) -> None:
        self._check = check
        self._on_truncated = on_truncated
        self._on_new_layout = on_new_layout
        self._mirrors = mirrors
        self._reader = reader if reader is not None else NoDatabase()
        self._can_reread = reader is not None
        self._target = target
        self._dead_letters = dead_letters
        self._ledger = ledger if ledger is not None else NoDatabase()
        self._trusted_age = trusted_age
        self._clock = clock
        self._metrics = metrics
        self._retry = retry
        self._tracer = tracer
        self._backfill_on_schema_change = backfill_on_schema_change
        self._schema_lock = threading.Lock()
        self._layouts: dict[str, str] = {}
        self._seen: set[Relation] = set()

    @boundary("applier.apply")
    def apply(
        self, changes: Sequence[Change], *, in_doubt: bool = False, observe: Observe = _unobserved
    ) -> list[Tombstone]:
        """Make the changes durable, at the target or in the dead letters; returns the tombstones this left.

        Either none of them is a TRUNCATE, or all are. `in_doubt`: nobody knows whether they were committed; the current
        rows tell.
        """
        self._meet(changes)
        if changes[0].op is Op.TRUNCATE:
            for change in changes:
                self._truncate(change, in_doubt=in_doubt)
            return []
        lost: dict[str, tuple[Mirror, Change]] = {}
        pending, refused = coalesce(
            changes, self._mirrors, lambda mirror, change: lost.setdefault(mirror.table, (mirror, change))
        )
        for mirror, change in lost.values():
            self._lost_key(mirror, change)
        self._doubt(pending, changes if in_doubt else self._too_old(changes))
        tombstones = self.store(
            [one for one in pending if not one.in_doubt], refused, observe, to_be_reread=self._can_reread
        )
        by_table: dict[str, list[Pending]] = defaultdict(list)
        for one in pending:
            if one.in_doubt:
                by_table[one.mirror.table].append(one)
        for group in by_table.values():
            for start in range(0, len(group), _REREAD_KEYS):
                batch = group[start : start + _REREAD_KEYS]
                try:
                    for settled in self._settled(batch):
                        tombstones.extend(self.store(settled, (), observe))
                except NeedsReread as error:
                    self._bury([_refusal(one, NeedsReread(error.problem), observe) for one in batch])
        return tombstones

    def _too_old(self, changes: Sequence[Change]) -> list[Change]:
        if self._trusted_age is None:
            return []
        limit = self._clock() - self._trusted_age
        return [one for one in changes if one.committed_at is not None and one.committed_at.timestamp() < limit]

    @staticmethod
    def _doubt(pending: Sequence[Pending], changes: Sequence[Change]) -> None:
        """What is to be done because of these changes is decided by reading."""
        versions = {change.version for change in changes}
        for one in pending:
            one.in_doubt = one.in_doubt or one.version in versions

    def _settled(self, doubtful: list[Pending]) -> Iterator[list[Pending]]:
        """Decide what is in doubt by the current rows (R5), row gone means delete; in pieces of bounded size (R10)."""
        mirror = doubtful[0].mirror
        self._metrics.count(mirror.table, reread=len(doubtful))
        budget = _REREAD_BYTES
        while doubtful:
            rows, complete = self._reread(mirror, doubtful, budget)
            if not rows and not complete:
                budget *= 4  # what came were rows that nobody asked for
                continue
            settled, left = [], []
            for one in doubtful:
                if one.key in rows:
                    one.relation, one.row = rows[one.key]
                    one.key_row = one.row
                elif complete:
                    one.row = None
                else:
                    left.append(one)
                    continue
                one.in_doubt = False
                settled.append(one)
            yield settled
            doubtful = left

    def _reread(
        self, mirror: Mirror, doubtful: list[Pending], max_bytes: int
    ) -> tuple[dict[Key, tuple[Relation, Row]], bool]:
        """The current rows by converted key, not by text: 1.0 and 1.00 are one key, and what a case-insensitive key
        matches may be another row. The second value: whether those are all."""
        try:
            with self._tracer.span("docferry.reread", table=mirror.table, keys=len(doubtful)):
                rows, complete = self._reader.read_rows(
                    mirror.table,
                    mirror.spec.key,
                    [one.key_texts for one in doubtful],
                    {one.transaction for one in doubtful},
                    max_bytes,
                )
        except TableGone:
            self._check_not_renamed(mirror)
            return {}, True  # dropped, and its rows with it
        found = {}
        for relation, row in rows:
            with suppress(RowRefused):  # a row whose key cannot be one is none of those asked for
                found[mirror.converter.key(relation, row)] = (relation, row)
        return found, complete

    def _lost_key(self, mirror: Mirror, change: Change) -> None:
        """A change that does not say which key a row left: the table's replica identity was something else for a while.
        Reading the whole table again finds out."""
        _log.error(
            "%s: a change of %s does not carry the key (was the replica identity changed?); the table is read again",
            change.op,
            mirror.table,
            extra={"table": mirror.table, "version": change.version, "op": change.op.value},
        )
        self._request_backfill(mirror, "a change came without its key")

    def _request_backfill(self, mirror: Mirror, reason: str) -> None:
        self._persist(lambda: self._ledger.request_backfill(mirror.table, reason, anew=True), "requesting a backfill")

    def store(
        self,
        pending: Sequence[Pending],
        refused: Sequence[Refused] = (),
        observe: Observe = _unobserved,
        *,
        to_be_reread: bool = False,
    ) -> list[Tombstone]:
        """Write what is settled; what is refused becomes a dead letter. Returns the tombstones this left.

        `to_be_reread`: a value that is none of its type is in doubt instead; the type may have been altered meanwhile.
        """
        refused = list(refused)
        misread: dict[str, Mirror] = {}
        written: list[Pending] = []
        writes: list[Write] = []
        for one in pending:
            try:
                writes.append(to_write(one))
                written.append(one)
            except ValueRefused as error:
                if to_be_reread:
                    one.in_doubt = True
                    misread[one.mirror.table] = one.mirror
                else:
                    refused.append(_refusal(one, error, observe))
            except RowRefused as error:
                refused.append(_refusal(one, error, observe))
        tombstones = []
        with self._tracer.span("docferry.write", items=len(writes)):
            results = self._target.write(writes) if writes else []
        for one, write, result in zip(written, writes, results, strict=True):
            if result.error is not None:
                refused.append(_refusal(one, result.error, observe))
                continue
            observe(one, result)
            if isinstance(write, Delete) and result.outcome is Outcome.APPLIED:
                tombstones.append(Tombstone(write.collection, write.key, write.version))
            self._metrics.count(
                one.mirror.table,
                applied=one.changes if result.outcome is Outcome.APPLIED else 0,
                stale=one.changes if result.outcome is Outcome.STALE else 0,
            )
        if refused:
            self._bury(refused)
        for mirror in misread.values():
            self._look_for_changes(mirror)
        return tombstones

    def _bury(self, refused: Sequence[Refused]) -> None:
        letters = []
        for one in refused:
            letter = DeadLetter.of(
                one.mirror.table, one.mirror.key_by_name(one.key_texts), one.version, one.op, one.error
            )
            said = {name: getattr(letter, name) for name in ("table", "key", "version", "cause", "limit")}
            _log.error("dead letter: %s; remedy: %s", one.error, one.error.remedy, extra={**said, "op": one.op.value})
            letters.append(letter)
        self._persist(lambda: self._keep(letters), "keeping dead letters")
        for one in refused:
            self._metrics.count(one.mirror.table, dead=1)

    def _keep(self, letters: Sequence[DeadLetter]) -> None:
        try:
            self._dead_letters.add(letters)
        except DocferryError as error:
            self._metrics.letters_error = str(error)
            raise
        self._metrics.letters_error = ""

    def _truncate(self, change: Change, *, in_doubt: bool) -> None:
        mirror = mirror_of(change.relation, self._mirrors)
        if mirror is None:
            return
        if in_doubt:
            # If it was, older changes that still come must not stay; if not, the backfill has what they wrote.
            self._target.raise_floor(mirror.collection, change.version)
            self._request_backfill(mirror, "a TRUNCATE came of which nobody knows whether it was committed")
            return
        # First the floor in the ledger, so that a backfill in another process stops writing older rows.
        self._persist(lambda: self._ledger.raise_floor(mirror.table, change.version), "recording a TRUNCATE")
        removed = self._target.truncate(mirror.collection, change.version)
        self._on_truncated(mirror.collection, change.version)
        said = {"table": mirror.table, "version": change.version, "items": removed}
        _log.info("TRUNCATE of %s removed %d items", mirror.table, removed, extra=said)
        self._metrics.count(mirror.table, applied=1)

    def _meet(self, changes: Sequence[Change]) -> None:
        """Whether they are ours to apply, by the settings in force; and relations not seen before. A table without a
        mirror is never taken for seen: it may get one."""
        strangers: set[str] = set()
        for change in changes:
            if change.relation not in self._seen:
                if mirror_of(change.relation, self._mirrors) is None:
                    strangers.add(change.relation.table)
                elif change.op is not Op.TRUNCATE:
                    self._notice(change.relation)
        self._persist(lambda: self._check(strangers), "asking which settings are in force")

    def _notice(self, relation: Relation) -> None:
        """A relation not seen before: older items may hold columns that rows lost, or lack new ones."""
        with self._schema_lock:
            mirror = mirror_of(relation, self._mirrors)
            if mirror is not None and relation not in self._seen:
                try:
                    self._check_layout(mirror, {column.name for column in relation.columns})
                except TableGone:
                    self._check_not_renamed(mirror)
            if len(self._seen) >= _MOST_RELATIONS:
                self._seen.clear()
            self._seen.add(relation)  # one table has several: its partitions', and those before a schema change

    def check_columns(self) -> None:
        """Look for schema changes that no row change has told of yet: a new column's default fills every row."""
        for mirror in self._mirrors.values():
            self._look_for_changes(mirror)

    def check_columns_of(self, table: str) -> None:
        """The same for one table. Raises SourceRefused if it was renamed."""
        self._look_for_changes(self._mirrors[table])

    def _look_for_changes(self, mirror: Mirror) -> None:
        # Whoever holds it may wait for the source; so do we, and live.
        while not self._schema_lock.acquire(timeout=1.0):
            self._retry.on_wait()
        try:
            self._check_layout(mirror, set())
        except TableGone as error:
            self._check_not_renamed(mirror)
            said = {"table": mirror.table}
            _log.warning("%s; its items stay until you remove the mirror", error, extra=said)
        finally:
            self._schema_lock.release()

    def _check_layout(self, mirror: Mirror, seen: set[str]) -> None:
        """Whatever order old and new relations are met in, the catalog decides what rows are made of now. `seen`:
        columns that changes carry."""
        doing = "looking for schema changes"
        record = self._persist(lambda: self._ledger.mirrors().get(mirror.table), doing)
        if record is None:
            return
        layout = self._persist(lambda: self._reader.layout(mirror.table), doing)
        columns = self._persist(lambda: self._reader.relation(mirror.table), doing).shape
        names = mirror.carried(seen | {name for name, _ in columns})
        # `apply` may have recorded a change already that this process has not seen.
        if layout != self._layouts.get(mirror.table, record.layout):
            self._on_new_layout()  # before a backfill is asked for, which covers what was read under the old types
        self._layouts[mirror.table] = layout
        if layout != record.layout:
            _log.warning("the columns or partitions of %s changed", mirror.table, extra={"table": mirror.table})
            if self._backfill_on_schema_change:
                # Asked for before it is remembered, so that a kill in between loses nothing.
                self._request_backfill(mirror, "schema change")
        elif names <= record.attributes:
            return
        attributes = self._persist(
            lambda: self._ledger.remember_columns(mirror.table, columns, names, layout), "recording a schema change"
        )
        mirror.remember_attributes(attributes)

    def _check_not_renamed(self, mirror: Mirror) -> None:
        """Raises SourceRefused if a table that cannot be found lives on under another name: its rows are not gone."""
        name = self._persist(lambda: self._reader.current_name(mirror.oid), "looking for a renamed table")
        if name is not None and name != mirror.table:
            raise renamed(mirror, name)

    def _persist(self, action: Callable[[], _T], doing: str) -> _T:
        """Run something that needs the source for as long as it takes."""
        attempt = 0
        while True:
            try:
                return action()
            except SourceUnavailable as error:
                attempt += 1
                _log.warning("%s failed, trying again: %s", doing, error, extra={"attempt": attempt})
                self._retry.wait(attempt, error)


def _refusal(one: Pending, error: RowRefused, observe: Observe) -> Refused:
    error = error.at(one.mirror.table, one.mirror.converter.show_key(one.relation, one.key_row))
    observe(one, Result(Outcome.REFUSED, error))
    return Refused(one.mirror, one.key_texts, one.version, one.op, error)
