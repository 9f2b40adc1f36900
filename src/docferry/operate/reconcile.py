"""Verifying all the time, beside a worker's other work, at a bounded rate; and mending, where that is wanted."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from docferry.capture.contract import KeyTexts, VerificationRecord, Verifications
from docferry.errors import DocferryError, Interrupted, Verdict
from docferry.metrics import Metrics
from docferry.operate.findings import Counts, Finding
from docferry.operate.passing import Watermark
from docferry.operate.repair import Repair
from docferry.operate.verification import RECONCILING, VerifiedMirror, check_grounds

__all__ = ["Reconciler"]

_log = logging.getLogger(__name__)
_AT_ONCE = 1000
_SHOWN = 5


class Reconciler:
    """One mirror after the other, over and over; a cycle that was cut short goes on where it was. `mending`: what is
    found is mended, otherwise told by log, metrics and status only."""

    def __init__(
        self,
        mirrors: Sequence[VerifiedMirror],
        verifications: Verifications,
        watermark: Watermark,
        metrics: Metrics,
        epoch: int,
        *,
        mending: bool,
    ) -> None:
        self._mirrors = mirrors
        self._verifications = verifications
        self._watermark = watermark
        self._metrics = metrics
        self._epoch = epoch
        self._mending = mending

    def cycle(self) -> None:
        """Once through all mirrors. What makes one impossible is logged: it must not stop the mirroring. Raises
        Interrupted, and errors whose verdict is to try again."""
        for one in self._mirrors:
            try:
                self._one(one)
            except Interrupted:
                raise
            except DocferryError as error:
                if error.verdict is Verdict.RETRY:
                    raise
                _log.error("%s cannot be reconciled: %s", one.mirror.table, error)

    def _one(self, one: VerifiedMirror) -> None:
        record = self._begin(one)
        found: list[Finding] = []
        left = Counts.of_dict(record.counts)
        left.unsettled = 0  # those of before are in the other counts, with what the comparison could not settle

        def mend() -> None:
            nonlocal left
            if self._mending and found:
                left = self._mend(one.repair, found, left)
            found.clear()

        def on_finding(finding: Finding) -> None:
            self._note(finding, len(found))
            found.append(finding)
            if len(found) >= _AT_ONCE:
                mend()

        def save(phase: str, done_key: KeyTexts | None) -> None:
            mend()
            self._verifications.advance(record, phase, done_key, self._told(verifier.counts, left), 0)

        verifier = one.verifier(on_finding, save)
        counts = verifier.run(record.phase, record.done_key, Counts.of_dict(record.counts))
        mend()
        check_grounds(one, record)
        told = self._told(counts, left)
        clean = not (Counts.of_dict(told).differences or told["unsettled"])
        self._verifications.finish(record, told, clean=clean)

    def _told(self, counts: Counts, left: Counts) -> dict[str, object]:
        """What is remembered: what is left where it is mended, what was found where not."""
        if not self._mending:
            return counts.as_dict()
        looked = {"rows": counts.rows, "items": counts.items, "in_motion": counts.in_motion}
        return {
            **left.as_dict(),
            **looked,
            "unsettled": counts.unsettled + left.unsettled,
            "why": counts.why or left.why,
        }

    def _begin(self, one: VerifiedMirror) -> VerificationRecord:
        table, grounds = one.mirror.table, one.grounds()
        for record in self._verifications.records():
            which = (record.table, record.run, record.epoch, record.grounds, record.finished_at)
            if which == (table, RECONCILING, self._epoch, grounds, None):
                return record
        return self._verifications.start(table, RECONCILING, self._epoch, self._watermark.mark(), None, grounds)

    def _note(self, finding: Finding, before: int) -> None:
        if finding.dead_letter and finding.problem:
            return  # it is where it belongs
        self._metrics.drifted(finding.table, finding.kind.value)
        if before < _SHOWN:
            key = finding.suspect.texts if finding.suspect.texts is not None else finding.suspect.key
            _log.warning("drift: the item of %s %s is %s", finding.table, key, finding.kind.value)

    def _mend(self, repair: Callable[[], Repair], found: list[Finding], left: Counts) -> Counts:
        repaired = repair().run(found)
        done = repaired.mended + repaired.lettered
        table = found[0].table
        self._metrics.count(table, mended=done)
        if done:
            _log.warning("drift: mended %d items of %s", done, table)
        for kind, number in repaired.left.by_kind().items():
            setattr(left, kind.value, getattr(left, kind.value) + number)
        left.unlettered += repaired.left.unlettered
        left.unsettled += repaired.left.unsettled
        left.why = repaired.left.why or left.why
        return left
