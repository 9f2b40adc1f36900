"""One run of `docferry verify`: its mirrors one after the other, what is remembered of them, and what it answers."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from docferry.capture.contract import KeyTexts, VerificationRecord, Verifications
from docferry.document.mirror import Mirror
from docferry.errors import HistoryChanged, SourceUnavailable
from docferry.operate.findings import Counts, Finding, Findings
from docferry.operate.passing import Watermark
from docferry.operate.repair import Repair, Repaired
from docferry.operate.verify import Verifier
from docferry.outputs import writing

__all__ = ["RECONCILING", "Checked", "Verification", "VerifiedMirror", "check_grounds"]

_log = logging.getLogger(__name__)
_MOST_AGE = timedelta(days=1)
RECONCILING = "reconcile"
"""The run of what a worker does all the time."""


@dataclass(slots=True)
class Checked:
    """What was found in one mirror. `position`: everything committed before it was compared. `sampled`: not everything
    was. `resumed`: a part of it was compared by a run that began at `started_at` and was interrupted. `repaired`: None
    when nothing was to be mended."""

    mirror: Mirror
    position: int
    counts: Counts
    started_at: datetime | None = None
    resumed: bool = False
    sampled: bool = False
    repaired: Repaired | None = None

    @property
    def left(self) -> Counts:
        """What is not as it should be now."""
        return self.counts if self.repaired is None else self.repaired.left

    @property
    def clean(self) -> bool:
        """Whether everything was compared and is identical."""
        return self.differences == 0 and self.unsettled == 0

    @property
    def differences(self) -> int:
        """How many are left."""
        return self.left.differences

    @property
    def unsettled(self) -> int:
        """About how many nothing can be said."""
        return self.left.unsettled + (self.counts.unsettled if self.repaired is not None else 0)


@dataclass(frozen=True, slots=True)
class VerifiedMirror:
    """What a verification takes of a mirror. `grounds`: a hash of what it stands on, asked of the ledger and the
    catalog; raises HistoryChanged when the settings in force are no longer ours, TableGone, SourceRefused. `verifier`
    makes one that tells what it finds and how far it is; `repair` what mends it."""

    mirror: Mirror
    grounds: Callable[[], str]
    verifier: Callable[[Callable[[Finding], None], Callable[[str, KeyTexts | None], None]], Verifier]
    repair: Callable[[], Repair]


class Verification:
    """Runs over its mirrors. `output`: where findings go, None for nowhere that lasts. `limit`: so many of a mirror are
    shown. `anew`: an interrupted run is not gone on with. Use as a context manager."""

    def __init__(
        self,
        mirrors: Sequence[VerifiedMirror],
        verifications: Verifications,
        watermark: Watermark,
        epoch: int,
        *,
        output: Path | None,
        limit: int,
        anew: bool = False,
    ) -> None:
        self._mirrors = {one.mirror.table: one for one in mirrors}
        self._verifications = verifications
        self._watermark = watermark
        self._epoch = epoch
        self._output = output if output is None else output.resolve()
        self._anew = anew
        with nullcontext() if output is None else writing(output):
            self.findings = Findings(self._output, limit)
        self.checked: list[Checked] = []
        self._grounds: dict[str, str] = {}

    def __enter__(self) -> Verification:
        return self

    def __exit__(self, *_: object) -> None:
        self.findings.close()

    def run(self) -> list[Checked]:
        """Compare the mirrors, or go on where an interrupted run stopped. Raises Interrupted; what was compared by then
        is remembered."""
        self._grounds = {table: one.grounds() for table, one in self._mirrors.items()}
        records = None if self._anew else self._interrupted()
        resumed = () if records is None else tuple(records)
        if records is None:
            self.findings.cut(0)
            run, position = uuid.uuid4().hex, self._watermark.mark()
            records = {table: self._start(table, run, position) for table in self._mirrors}
        else:
            self.findings.cut(max(record.output_bytes for record in records.values()))
            _log.info("going on with the verification of %s", next(iter(records.values())).started_at)
        for table, one in self._mirrors.items():
            if table not in records:
                run, position = next(iter(records.values())).run, self._watermark.mark()
                records[table] = self._start(table, run, position)
            self._one(one, records[table], resumed=table in resumed)
        return self.checked

    def sample(self, size: int) -> list[Checked]:
        """Compare a sample of each; nothing of it is remembered."""
        self.findings.cut(0)
        for one in self._mirrors.values():
            mirror = one.mirror
            verifier = one.verifier(partial(self.findings.add, mirror), lambda *_: None)
            position = self._watermark.mark()
            self.checked.append(Checked(mirror, position, verifier.sample(size), sampled=True))
        return self.checked

    def repair(self, on_mended: Callable[[str, int], None] = lambda *_: None) -> None:
        """Mend what was found, and look again."""
        for checked in self.checked:
            if not checked.counts.differences:
                continue
            table = checked.mirror.table
            read = Counts()
            found = _noted(self.findings.of(checked.mirror), read)
            repair = self._mirrors[table].repair()
            checked.repaired = repair.run(found, partial(on_mended, table))
            checked.repaired.left.add_lost(checked.counts, read)
            if checked.clean and not checked.sampled:
                record = self._start(table, uuid.uuid4().hex, checked.position)
                self._verifications.finish(record, self._counts(checked), clean=True)

    def _one(self, one: VerifiedMirror, record: VerificationRecord, *, resumed: bool) -> None:
        mirror = one.mirror
        counts = Counts.of_dict(record.counts)
        start = Checked(mirror, record.position, counts, record.started_at, resumed)
        self.checked.append(start)
        if record.finished_at is not None:  # by the part of this run that was interrupted later
            self.findings.remember(mirror)
            return
        if record.phase != "rows" or record.done_key is not None:
            self.findings.remember(mirror)

        def save(phase: str, done_key: KeyTexts | None) -> None:
            with suppress(SourceUnavailable):  # the next one tells
                self._verifications.advance(record, phase, done_key, verifier.counts.as_dict(), self.findings.size)

        verifier = one.verifier(lambda finding: self.findings.add(mirror, finding), save)
        start.counts = verifier.run(record.phase, record.done_key, counts)
        check_grounds(one, record)
        self._verifications.advance(record, "items", None, start.counts.as_dict(), self.findings.size)
        self._verifications.finish(record, start.counts.as_dict(), clean=start.clean)

    def _start(self, table: str, run: str, position: int) -> VerificationRecord:
        output = None if self._output is None else str(self._output)
        return self._verifications.start(table, run, self._epoch, position, output, self._grounds[table])

    def _interrupted(self) -> dict[str, VerificationRecord] | None:
        """The records of the run to go on with: of one that did not end, as far as these mirrors are concerned, and
        whose findings are at hand."""
        records = self._verifications.records()
        ours = [one for one in records if one.table in self._mirrors and one.run != RECONCILING]
        unfinished = [one for one in ours if one.finished_at is None]
        if not unfinished:
            return None
        run = max(unfinished, key=lambda one: one.id).run
        found = {one.table: one for one in records if one.run == run and one.table in self._mirrors}
        if any((one.epoch, one.grounds) != (self._epoch, self._grounds[one.table]) for one in found.values()):
            _log.warning("the interrupted verification is not gone on with: settings or columns have changed since")
            return None
        if any(_age(one) > _MOST_AGE for one in found.values()):
            _log.warning("the interrupted verification is not gone on with: it began more than a day ago")
            return None
        if all(_found_nothing(one) for one in found.values()):
            return {table: replace(one, output_bytes=0) for table, one in found.items()}
        if all(one.output == str(self._output) for one in found.values()) and self._are_at_hand(found.values()):
            return found
        _log.warning("the interrupted verification is not gone on with: its findings are not at hand (--output)")
        return None

    def _are_at_hand(self, records: Collection[VerificationRecord]) -> bool:
        """Whether the file holds exactly the findings that these records count: another run may have used it since."""
        counted = {one.table: Counts.of_dict(one.counts).noted for one in records}
        written = max(one.output_bytes for one in records)
        return self.findings.size >= written and self.findings.counted(written) == {
            table: kinds for table, kinds in counted.items() if kinds
        }

    @staticmethod
    def _counts(checked: Checked) -> dict[str, Any]:
        left = checked.left.as_dict()
        return {**left, "rows": checked.counts.rows, "items": checked.counts.items}


def check_grounds(one: VerifiedMirror, record: VerificationRecord) -> None:
    """Behind a comparison: raises HistoryChanged when what it stood on has changed under it."""
    if one.grounds() != record.grounds:
        raise HistoryChanged(
            f"the columns or partitions of {one.mirror.table} changed while it was compared",
            remedy="Give the same command again; it starts over.",
        )


def _noted(findings: Iterable[Finding], counts: Counts) -> Iterator[Finding]:
    for finding in findings:
        counts.note(finding)
        yield finding


def _age(record: VerificationRecord) -> timedelta:
    return timedelta(0) if record.started_at is None else datetime.now(UTC) - record.started_at


def _found_nothing(record: VerificationRecord) -> bool:
    return not record.output_bytes and not any(Counts.of_dict(record.counts).by_kind().values())
