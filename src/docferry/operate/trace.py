"""One row from end to end: what the source has, what waits, what failed, what the target has, and what that means.

A difference may be on its way. So it is looked at again as `docferry verify` does (see settle.py): read the item, wait
until what was being committed then is visible, read the row, wait until the watermark has passed a mark or see that
nothing of the row waits, read the item again. If it is the same both times, the difference is real.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from docferry.capture.contract import (
    BackfillRecord,
    BackfillState,
    CaptureSetup,
    CommitGate,
    KeyTexts,
    Ledger,
    RowReader,
    StreamState,
)
from docferry.capture.tracing import LastChange, RowTracer, Waiting
from docferry.change.model import NUMBER_STEP, Change, Op, Relation, Row, lsn, make_version
from docferry.deadletter.contract import DeadLetters, StoredDeadLetter
from docferry.document.mirror import Mirror
from docferry.document.model import Key
from docferry.errors import RowRefused
from docferry.operate.aims import item_key
from docferry.operate.compare import Compared, Expected, Kind, compare, is_own
from docferry.operate.traced import Trace
from docferry.operate.verdict import Evidence, judge
from docferry.target.contract import Item, Target

__all__ = ["RowTracing"]

_BYTES = 64 << 20
_FIRST_LOOK, _LONGEST_LOOK = 0.02, 0.25
_GAP = 5.0
_ROUNDS = 5


@dataclass(frozen=True, slots=True)
class _Look:
    """A row, and the item that it was held against. `texts`: the key as the row has it."""

    texts: KeyTexts
    exists: bool
    expected: Expected
    last_change: LastChange | None
    item: Item | None
    compared: Compared
    is_own: bool
    is_ahead: bool


@dataclass(slots=True)
class _Course:
    """How far looking has come. See Trace."""

    stream: StreamState | None = None
    waiting: Waiting | None = None
    settled: bool | None = None
    waited: float = 0.0


@dataclass(slots=True)
class RowTracing:
    """Traces rows of one mirror. `epoch`: the one in force. `patience`: seconds to wait for a worker to pass the row.
    `sends`: capture mode lambda. `gap`: why changes may be missing, with what to do. `lag`: seconds that the capture is
    behind."""

    mirror: Mirror
    reader: RowReader
    source: RowTracer
    gate: CommitGate
    target: Target
    ledger: Ledger
    setup: CaptureSetup
    dead_letters: DeadLetters
    epoch: int
    by_triggers: bool
    sends: bool
    patience: float
    gap: str | None
    lag: Callable[[], float | None]
    sleep: Callable[[float], object] = time.sleep

    def trace(self, texts: KeyTexts) -> Trace:
        """Everything about the row with this key. Raises ConfigError for a text that is no key, and what the ends
        refuse."""
        mirror, names = self.mirror, self.mirror.spec.key
        texts = self.source.canonical(mirror.table, names, texts)
        relation = self.reader.relation(mirror.table)
        key = item_key(mirror, relation, mirror.key_row(relation, mirror.key_by_name(texts)))
        course = _Course()
        look = self._look(texts, key)
        if look.compared.kind is Kind.IDENTICAL or self.sends:
            course.stream = self.setup.state()
            if course.stream is not None and (self.by_triggers or not course.stream.active):
                course.waiting = self._waiting(look, texts, key)
        else:
            look = self._settled(look, texts, key, course)
        return self._judged(texts, key, look, course)

    # -- looking ------------------------------------------------------------------------------------------------------

    def _settled(self, look: _Look, texts: KeyTexts, key: Key | None, course: _Course) -> _Look:
        """Look again until row and item are the same, or the difference is real, or nobody can tell."""
        mirror = self.mirror
        # No tombstone is swept meanwhile.
        with self.ledger.old_writes():
            for _ in range(_ROUNDS):
                before, floor = self._item(key), self.ledger.floor(mirror.table)
                seen = self.gate.wait_for_commits(_GAP)
                look = self._look(texts, key)
                done = look.compared.kind is not Kind.IDENTICAL and self._has_arrived(look, texts, key, course)
                if not done:
                    return look
                look = self._held_against(look, self._item(key))
                if look.compared.kind is Kind.IDENTICAL:
                    return look
                if seen and before == look.item and self.ledger.floor(mirror.table) == floor:
                    course.settled = True
                    return look
        return look

    def _has_arrived(self, look: _Look, texts: KeyTexts, key: Key | None, course: _Course) -> bool:
        """Whether everything of the row that was committed before is durable."""
        course.stream = self.setup.state()
        if course.stream is None:
            return False
        if self.by_triggers or not course.stream.active:
            course.waiting = self._waiting(look, texts, key)
            if not course.waiting.changes:
                return not course.waiting.unseen
            if not course.stream.active:
                return False
        passed = self._pass(course)
        if passed and course.waiting is not None:
            course.waiting = Waiting()
        return passed

    def _waiting(self, look: _Look, texts: KeyTexts, key: Key | None) -> Waiting:
        written = list(dict.fromkeys((texts, look.texts)))
        return self.source.waiting(self.mirror.table, written, self._touches(key, written))

    def _item(self, key: Key | None) -> Item | None:
        return None if key is None else self.target.read(self.mirror.collection, [key])[0]

    def _look(self, texts: KeyTexts, key: Key | None) -> _Look:
        mirror = self.mirror
        last_change = self.source.last_change(mirror.table, mirror.spec.key, texts)
        row = self._row(texts, key)
        expected: Expected = None
        if row is not None:
            try:
                expected = mirror.converter.put(*row, 0)
            except RowRefused as error:
                expected = error
        own = self._own_texts(row, texts)
        identical = Compared(Kind.IDENTICAL)
        unheld = _Look(own, row is not None, expected, last_change, None, identical, is_own=False, is_ahead=False)
        return self._held_against(unheld, self._item(key))

    def _held_against(self, look: _Look, item: Item | None) -> _Look:
        """The same row, held against an item that was just read."""
        collection, digest = self.mirror.collection, self.target.digest
        # Above every change that can have been written by then.
        ceiling = make_version(self.epoch, self.setup.mark(), NUMBER_STEP - 1)
        compared = compare(look.expected, item, digest, ceiling=ceiling)
        own = item is not None and is_own(collection, item, digest, ceiling=ceiling)
        ahead = item is not None and not own and is_own(collection, item, digest)
        return replace(look, item=item, compared=compared, is_own=own, is_ahead=ahead)

    def _row(self, texts: KeyTexts, key: Key | None) -> tuple[Relation, Row] | None:
        """The row; of those that the database takes for the same, such as texts in another case, the one of this
        item."""
        mirror = self.mirror
        rows, _ = self.reader.read_rows(mirror.table, mirror.spec.key, [texts], (), _BYTES)
        found = [one for one in rows if item_key(mirror, *one) == key]
        return found[0] if found else None

    def _own_texts(self, row: tuple[Relation, Row] | None, texts: KeyTexts) -> KeyTexts:
        return texts if row is None else self.mirror.key_texts(*row)

    def _pass(self, course: _Course) -> bool:
        """Wait until everything committed before is durable, for as long as a worker is there and patience lasts."""
        began, pause = time.monotonic(), _FIRST_LOOK
        earlier = course.waited
        position = self.setup.mark()
        while True:
            course.stream = stream = self.setup.state()
            waited = time.monotonic() - began
            course.waited = earlier + waited
            if stream is not None and stream.confirmed > position:
                return True
            if stream is None or not stream.active or waited >= self.patience:
                return False
            self.sleep(min(pause, max(self.patience - waited, 0.0)))
            pause = min(pause * 1.5, _LONGEST_LOOK)

    def _touches(self, key: Key | None, written: Sequence[KeyTexts]) -> Callable[[Change], bool]:
        mirror = self.mirror

        def touches(change: Change) -> bool:
            if change.op is Op.TRUNCATE:
                return True
            for row in (change.row, change.old):
                if row is None:
                    continue
                try:
                    found = item_key(mirror, change.relation, row)
                    if found == key and (key is not None or mirror.key_texts(change.relation, row) in written):
                        return True
                except ValueError:  # it does not carry its key: the change is followed by a backfill
                    continue
            return False

        return touches

    # -- judging ------------------------------------------------------------------------------------------------------

    def _judged(self, texts: KeyTexts, key: Key | None, look: _Look, course: _Course) -> Trace:
        mirror, stream = self.mirror, course.stream
        floor = self.ledger.floor(mirror.table)
        version = -1 if look.item is None else look.item.version
        letters = [
            (stored, stored.letter.version <= version or stored.letter.version < floor)
            for stored in sorted(self._letters(texts, look), key=lambda one: one.letter.version)
        ]
        backfill = next((record for record in self.ledger.backfills() if record.table == mirror.table), None)
        has_passed = backfill is None or self._has_passed(backfill, texts)
        lag = None if stream is None or look.compared.kind is Kind.IDENTICAL else self.lag()
        evidence = Evidence(
            table=mirror.table,
            place="the outbox" if self.by_triggers else "the slot",
            kind=look.compared.kind,
            error=look.compared.error,
            item=look.item,
            is_own=look.is_own,
            is_ahead=look.is_ahead,
            exists=look.exists,
            letters=[stored for stored, superseded in letters if not superseded],
            old_letters=[stored for stored, superseded in letters if superseded],
            waiting=course.waiting,
            backfill=None if has_passed else backfill,
            settled=course.settled,
            active=stream is not None and stream.active,
            waited=course.waited,
            lag=lag,
            position="" if stream is None else self._position(stream.confirmed),
            gap=self.gap,
            sends=self.sends,
        )
        return Trace(
            table=mirror.table,
            collection=mirror.collection.name,
            key=look.texts,
            item_key=key,
            exists=look.exists,
            expected=look.expected,
            last_change=look.last_change,
            keeps_time=self.source.keeps_time,
            item=look.item,
            compared=look.compared,
            is_own=look.is_own,
            is_ahead=look.is_ahead,
            letters=letters,
            unread=self.dead_letters.unread,
            backfill=backfill,
            has_passed=has_passed,
            stream=stream,
            lag=lag,
            waiting=course.waiting,
            settled=course.settled,
            waited=course.waited,
            verdict=judge(evidence),
        )

    def _position(self, position: int) -> str:
        return f"position {position}" if self.by_triggers else lsn(position)

    def _letters(self, texts: KeyTexts, look: _Look) -> list[StoredDeadLetter]:
        names = [self.mirror.key_by_name(one) for one in dict.fromkeys((texts, look.texts))]
        found: list[StoredDeadLetter] = []
        while page := self.dead_letters.find(table=self.mirror.table, keys=names, after=found[-1].id if found else 0):
            found += page
        return found

    def _has_passed(self, backfill: BackfillRecord, texts: KeyTexts) -> bool:
        if backfill.state is BackfillState.DONE:
            return True
        if backfill.state is BackfillState.REQUESTED or backfill.done_key is None:
            return False
        return not self.source.is_behind(self.mirror.table, self.mirror.spec.key, texts, backfill.done_key)
