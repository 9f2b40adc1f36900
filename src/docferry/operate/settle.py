"""Looking at suspects again, so that what is merely on its way is not taken for a difference.

One round, for all suspects at once:

1. Read the items.
2. Wait until every transaction in progress now has ended and is visible: what has just been read may come from a commit
   that others do not see yet (R5's gap).
3. Read the rows.
4. Take a mark, and wait until the watermark has passed it: every change whose outcome was just read is at the target.
5. Read the items again. One that is as it was in 1 was, all the time, not older than the row of 3 by the watermark, and
   not newer by 2: so the row's own change, or nothing, was its last, and a difference is real. One that has moved is
   looked at in the next round, unless it equals the row now.

Tombstones stay meanwhile (the sweeper is held off, R4), and a TRUNCATE makes the round void, so "nothing there" twice
means nothing there in between.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from docferry.capture.contract import CommitGate, KeyReader, KeyTexts
from docferry.change.model import NUMBER_STEP, Relation, Row, make_version
from docferry.document.mirror import Mirror
from docferry.document.model import Key, Put
from docferry.errors import Interrupted, RowRefused
from docferry.operate.admin import AdminLedger
from docferry.operate.compare import Kind, Wanted, judge, wanted_of
from docferry.operate.findings import Finding, Suspect
from docferry.operate.grounds import Grounds
from docferry.operate.passing import Passing
from docferry.target.contract import Item, Target

__all__ = ["Rows", "Settled", "Settler", "ceiling_at"]

_KEYS = 250
_BYTES = 2 << 20
_T = TypeVar("_T")
_GAP = 5.0
_ROUNDS = 5


def ceiling_at(epoch: int, mark: int) -> int:
    """The greatest version that a change committed before the mark can have."""
    return make_version(epoch, mark, NUMBER_STEP - 1)


@dataclass(frozen=True, slots=True)
class Settled:
    """What became of suspects. `moving`: keys whose item was another one at every look. `unsettled`: keys about which
    nothing can be said, and `why`."""

    findings: list[Finding] = field(default_factory=list)
    moving: int = 0
    unsettled: int = 0
    why: str = ""


class Rows:
    """Rows by key, of a reader that other threads may use too. Raises TableGone: a table that is gone, or has another
    name, says nothing of its rows."""

    def __init__(self, mirror: Mirror, reader: KeyReader) -> None:
        self._mirror = mirror
        self._reader = reader

    def whole(self, texts: Sequence[KeyTexts]) -> Iterator[tuple[Relation, Row]]:
        """Those that exist, in pieces of bounded size."""
        spec = self._mirror.spec
        for batch in _batches(texts, _KEYS):
            left: list[KeyTexts] = list(batch)
            budget = _BYTES
            while left:
                found, complete = self._reader.read_rows(spec.table, spec.key, left, (), budget)
                yield from found
                if complete:
                    break
                seen = {self._mirror.key_texts(relation, row) for relation, row in found}
                rest = [one for one in left if one not in seen]
                # Texts need not come back as they were asked for (1.0, 1.00): then more is read at once.
                budget = budget if len(rest) < len(left) else budget * 4
                left = rest

    def keys(self, texts: Sequence[KeyTexts]) -> set[Key]:
        """The item keys of those that exist."""
        spec = self._mirror.spec
        found: set[Key] = set()
        for batch in _batches(texts, _KEYS):
            for relation, row in self._reader.read_keys(spec.table, spec.key, batch):
                try:
                    found.add(self._mirror.converter.key(relation, row))
                except RowRefused:
                    continue
        return found


@dataclass(frozen=True, slots=True)
class _Seen:
    """What an item was, small enough to keep thousands. `content`: its hash, computed anew; for what could not have
    been written by docferry that of Python, good within one process."""

    version: int
    content: bytes | int | None
    stored: bytes | None


class Settler:
    """Settles the suspects of one mirror. `grounds`: which must be in force. `letters`: which of these keys have a dead
    letter. `looks`: how often, over the patience, items are looked at where nobody knows what is on its way (mode
    lambda)."""

    def __init__(
        self,
        mirror: Mirror,
        reader: KeyReader,
        target: Target,
        ledger: AdminLedger,
        gate: CommitGate,
        passing: Passing,
        *,
        grounds: Grounds,
        letters: Callable[[Collection[KeyTexts]], set[KeyTexts]],
        stop: threading.Event,
        looks: int = 1,
        rounds: int = _ROUNDS,
    ) -> None:
        self._mirror = mirror
        self._rows = Rows(mirror, reader)
        self._target = target
        self._ledger = ledger
        self._gate = gate
        self._passing = passing
        self._grounds = grounds
        self._letters = letters
        self._stop = stop
        self._looks = looks
        self._rounds = rounds

    def settle(self, suspects: Sequence[Suspect]) -> Settled:
        """Look again until everything is settled, or cannot be. Raises Interrupted, HistoryChanged once the
        grounds are others, and what the ends refuse."""
        left = list(dict.fromkeys(suspects))
        findings: list[Finding] = []
        for turn in range(self._rounds):
            if not left:
                break
            with self._ledger.old_writes() as still_held:
                again, found = self._round(left, last=turn == self._rounds - 1)
                still_held()
            if again is None:
                return Settled(findings, unsettled=len(left), why=self._passing.why)
            findings += found
            left = again
        return Settled(findings, moving=len(left))

    def _round(self, suspects: list[Suspect], *, last: bool) -> tuple[list[Suspect] | None, list[Finding]]:
        """Those that have to be looked at again, None when nothing can be said; and those that are differences."""
        table, floor = self._mirror.table, self._ledger.floor(self._mirror.table)
        populating = bool(self._passing.held_up())
        before = {one: self._seen(item) for one, item in self._items(suspects)}
        if not self._gate.wait_for_commits(_GAP):
            self._passing.why = "a commit waits for a synchronous standby"
            return None, []
        wanted = self._wanted(suspects)
        mark = self._passing.watermark.mark()
        if not self._passing.wait(mark):
            return None, []
        if populating:
            # What was read while the table was being populated may have gone before the population came to it.
            return suspects, []
        moved = self._looked_at_over_time(suspects, before)
        ceiling = ceiling_at(self._grounds.epoch, mark)
        # Before the items: a dead letter goes only once the item is another one.
        unwanted = {one for one in suspects if isinstance(wanted[one], RowRefused)}
        kept = self._letters([one.texts for one in unwanted if one.texts is not None]) if unwanted else set()
        again: list[Suspect] = []
        differing: list[tuple[Suspect, Kind, int | None, str]] = []
        for one, item in self._items(suspects):
            compared = judge(self._mirror.collection, wanted[one], item, self._target.digest, ceiling=ceiling)
            if compared.kind is Kind.IDENTICAL:
                continue
            then, now = before[one], self._seen(item)
            same = one not in moved and then == now
            # Whoever changes the content and not the version is not docferry: waiting for him would take for ever.
            foreign = last and then is not None and now is not None and then.version == now.version
            if not (same or foreign):
                again.append(one)
            else:
                problem = "" if compared.error is None else str(compared.error)
                differing.append((one, compared.kind, None if item is None else item.version, problem))
        # A later epoch's items are all above the ceiling of this one, and those of other settings have another content.
        self._grounds.check(table)
        # The floor is known before the items go, so this is asked behind their reading.
        if self._ledger.floor(table) != floor:
            again += [one for one, *_ in differing]
            differing.clear()
        others = [one.texts for one, *_ in differing if one.texts is not None and one not in unwanted]
        lettered = kept | self._letters(others) if others else kept
        if not last:
            # A change that came behind the reading of the row may have made it one that cannot be stored: look again.
            again += [one for one, *_ in differing if one.texts in lettered and one not in unwanted]
            differing = [each for each in differing if each[0].texts not in lettered or each[0] in unwanted]
        return again, [
            Finding(table, one, kind, version, one.texts in lettered, problem)
            for one, kind, version, problem in differing
        ]

    def _looked_at_over_time(self, suspects: list[Suspect], before: dict[Suspect, _Seen | None]) -> set[Suspect]:
        """Those that changed while they were looked at several times."""
        moved: set[Suspect] = set()
        for _ in range(self._looks - 1):
            if self._stop.wait(self._passing.patience / self._looks):
                raise Interrupted("stopped between two looks")
            moved.update(one for one, item in self._items(suspects) if before[one] != self._seen(item))
        return moved

    def _items(self, suspects: Iterable[Suspect]) -> Iterator[tuple[Suspect, Item | None]]:
        for batch in _batches(list(suspects), _KEYS):
            keyed = [one for one in batch if one.key is not None]
            items = self._target.read(self._mirror.collection, [one.key for one in keyed if one.key is not None])
            found = dict(zip(keyed, items, strict=True))
            for one in batch:
                yield one, found.get(one)

    def _wanted(self, suspects: Sequence[Suspect]) -> dict[Suspect, Wanted]:
        """What the rows make of each. A row whose key cannot be one is known by its texts."""
        wanted: dict[Suspect, Wanted] = dict.fromkeys(suspects)
        by_key = {one.key: one for one in suspects if one.key is not None}
        by_texts = {one.texts: one for one in suspects if one.key is None}
        for relation, row in self._rows.whole([one.texts for one in suspects if one.texts is not None]):
            texts = self._mirror.key_texts(relation, row)
            try:
                put: Put | RowRefused = self._mirror.converter.put(relation, row, 0)
            except RowRefused as error:
                put = error
            try:
                suspect = by_key.get(self._mirror.converter.key(relation, row))
            except RowRefused:
                suspect = by_texts.get(texts)
            if suspect is not None:
                wanted[suspect] = wanted_of(put, self._target.digest)
        return wanted

    def _seen(self, item: Item | None) -> _Seen | None:
        if item is None:
            return None
        content: bytes | int | None = None
        if item.document is not None:
            try:
                content = self._target.digest(Put(self._mirror.collection, item.key, 0, item.document))
            except (RowRefused, TypeError):
                content = hash(repr(item.document))
        return _Seen(item.version, content, item.hash)


def _batches(suspects: Sequence[_T], size: int) -> Iterator[Sequence[_T]]:
    for start in range(0, len(suspects), size):
        yield suspects[start : start + size]
