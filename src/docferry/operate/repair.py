"""Mending exactly what a verification has found, under the fence.

The rows are read under the rule of the backfill (R6): a version strictly below that of any later change is taken once
everything before it is visible, so whatever changes meanwhile wins, whichever arrives first.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice

from docferry.capture.contract import KeyReader
from docferry.change.model import Op
from docferry.deadletter.contract import DeadLetter
from docferry.document.mirror import Mirror
from docferry.document.model import Delete, Put, Write
from docferry.errors import Interrupted, RowRefused
from docferry.operate.admin import AdminLedger
from docferry.operate.compare import Expected, Kind, compare, is_made_up
from docferry.operate.findings import Counts, Finding, Suspect
from docferry.operate.grounds import Grounds, table_needed
from docferry.operate.passing import Watermark
from docferry.operate.settle import Rows, Settler, ceiling_at
from docferry.target.contract import Outcome, Target

__all__ = ["Repair", "Repaired"]

_log = logging.getLogger(__name__)
_KEYS = 100
_TURNS = 3


@dataclass(slots=True)
class Repaired:
    """What a repair did. `mended`: items written, or removed; `lettered`: rows that got a dead letter, because they
    cannot be stored; `left`: what is still not as it should be."""

    mended: int = 0
    lettered: int = 0
    left: Counts = field(default_factory=Counts)


class Repair:
    """Repairs one mirror. `ledger`: with the epoch of the grounds. `bury` keeps dead letters."""

    def __init__(
        self,
        mirror: Mirror,
        reader: KeyReader,
        target: Target,
        ledger: AdminLedger,
        settler: Settler,
        watermark: Watermark,
        *,
        grounds: Grounds,
        bury: Callable[[list[DeadLetter]], None],
        stop: threading.Event,
    ) -> None:
        self._mirror = mirror
        self._reader = reader
        self._rows = Rows(mirror, reader)
        self._target = target
        self._ledger = ledger
        self._settler = settler
        self._watermark = watermark
        self._grounds = grounds
        self._bury = bury
        self._stop = stop

    def run(self, findings: Iterable[Finding], on_mended: Callable[[int], None] = lambda _: None) -> Repaired:
        """Mend them, and look at them again. Raises Interrupted, HistoryChanged once the grounds are others, and what
        the ends refuse."""
        repaired = Repaired()
        # From before the first version is taken until the last is written, as with a backfill.
        with table_needed(self._mirror, self._reader), self._ledger.old_writes() as still_held:
            version: int | None = None
            for batch in _batched(findings):
                if self._stop.is_set():
                    raise Interrupted(f"the repair of {self._mirror.table} was stopped; what is mended is mended")
                # It serves all that is read later, until a TRUNCATE; taking it may mean a long wait.
                if version is None or self._ledger.floor(self._mirror.table) > version:
                    version = self._version()
                version = self._batch(batch, version, still_held, repaired)
                on_mended(repaired.mended + repaired.lettered)
        return repaired

    def _version(self) -> int:
        return self._ledger.take_start_version(f"the repair of {self._mirror.table}")

    def _batch(self, batch: list[Finding], version: int, still_held: Callable[[], None], repaired: Repaired) -> int:
        """Returns the version that was taken last."""
        left = batch
        for turn in range(_TURNS):
            if turn:
                # What changed since may have been held back by an item whose version was made up.
                version = self._version()
            self._mend([one.suspect for one in left], version, repaired)
            floor = self._ledger.floor(self._mirror.table)
            if floor > version:
                self._target.truncate(self._mirror.collection, floor)  # truncated while we wrote what was read
            still_held()
            settled = self._settler.settle([one.suspect for one in left])
            left = [one for one in settled.findings if one.kind is not Kind.REFUSED or not one.dead_letter]
            if not left:
                break
        for finding in settled.findings:
            repaired.left.note(finding)
        repaired.left.in_motion += settled.moving
        repaired.left.unsettled += settled.unsettled
        repaired.left.why = settled.why or repaired.left.why
        return version

    def _mend(self, suspects: list[Suspect], version: int, repaired: Repaired) -> None:
        expected = self._expected(suspects, version)
        keyed = [one for one in suspects if one.key is not None]
        read = self._target.read(self._mirror.collection, [one.key for one in keyed if one.key is not None])
        items = dict(zip(keyed, read, strict=True))
        ceiling = ceiling_at(self._grounds.epoch, self._watermark.mark())
        self._grounds.check(self._mirror.table)
        plain: list[Write] = []
        letters: list[DeadLetter] = []
        for one in suspects:
            wanted, item = expected[one], items.get(one)
            compared = compare(wanted, item, self._target.digest, ceiling=ceiling)
            if compared.kind is Kind.IDENTICAL:
                continue
            if compared.error is not None:
                letters += self._letter(one, compared.error, version)
                continue
            assert one.key is not None, "without a key for an item a row is refused"
            write = wanted if isinstance(wanted, Put) else Delete(self._mirror.collection, one.key, version)
            if item is None or 0 <= item.version < version:
                plain.append(write)
            elif is_made_up(item.version, ceiling):
                repaired.mended += self._target.replace(write, item).outcome is Outcome.APPLIED
            # Else a later change has come, and the next look says what it made of the item.
        if plain:
            repaired.mended += sum(one.outcome is Outcome.APPLIED for one in self._target.write(plain))
        if letters:
            self._bury(letters)
            repaired.lettered += len(letters)

    def _expected(self, suspects: list[Suspect], version: int) -> dict[Suspect, Expected]:
        """What the rows make of them now."""
        expected: dict[Suspect, Expected] = dict.fromkeys(suspects)
        by_key = {one.key: one for one in suspects if one.key is not None}
        by_texts = {one.texts: one for one in suspects}
        for relation, row in self._rows.whole([one.texts for one in suspects if one.texts is not None]):
            try:
                suspect = by_key.get(self._mirror.converter.key(relation, row))
            except RowRefused:
                suspect = by_texts.get(self._mirror.key_texts(relation, row))
            if suspect is None:
                continue
            try:
                expected[suspect] = self._mirror.converter.put(relation, row, version)
            except RowRefused as error:
                expected[suspect] = error
        return expected

    def _letter(self, suspect: Suspect, error: RowRefused, version: int) -> list[DeadLetter]:
        if suspect.texts is None:
            return []
        key = self._mirror.key_by_name(suspect.texts)
        return [DeadLetter.of(self._mirror.table, key, version, Op.UPDATE, error)]


def _batched(findings: Iterable[Finding]) -> Iterator[list[Finding]]:
    """Without those that a dead letter takes care of."""
    open_ = (one for one in findings if one.kind is not Kind.REFUSED or not one.dead_letter)
    while batch := list(islice(open_, _KEYS)):
        yield batch
