"""What verifying takes, made of the objects of the composition root, of which it is a part."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from docferry.capture.contract import CommitGate, KeyTexts, RowReader, Verifications
from docferry.deadletter.contract import DeadLetters
from docferry.document.mirror import Mirror
from docferry.operate.admin import AdminLedger
from docferry.operate.findings import Finding
from docferry.operate.grounds import Grounds, table_needed
from docferry.operate.passing import Passing, Watermark
from docferry.operate.repair import Repair
from docferry.operate.settle import Settler
from docferry.operate.verification import VerifiedMirror
from docferry.operate.verify import TableAccess, Verifier, VerifyLimits, VerifyProgress
from docferry.target.contract import Target

__all__ = ["LOOKS_WITHOUT_ORDER", "Verifying"]

LOOKS_WITHOUT_ORDER = 6
"""How often items are looked at, over the patience, where nobody knows what is still on its way (mode lambda)."""


@dataclass
class Verifying:
    """`tables` opens a reader of a mirror's table, `by_key` reads rows by key for everybody. `letters`: where it is
    looked up whether a key has one; `bury`: where new ones go. `ledger`: with the epoch of the grounds."""

    target: Target
    ledger: AdminLedger
    gate: CommitGate
    verifications: Verifications
    watermark: Watermark
    grounds: Grounds
    tables: Callable[[Mirror], TableAccess]
    letters: DeadLetters
    bury: DeadLetters
    limits: VerifyLimits
    stop: threading.Event
    patience: float = 60.0
    looks: int = 1
    on_progress: Callable[[VerifyProgress], None] = lambda _: None
    opened: list[TableAccess] = field(default_factory=list)

    def mirror(self, mirror: Mirror) -> VerifiedMirror:
        """What a verification takes of a mirror."""
        reader = self.tables(mirror)
        self.opened.append(reader)
        settler = self.settler(mirror, reader)

        def verifier(
            on_finding: Callable[[Finding], None], on_saved: Callable[[str, KeyTexts | None], None]
        ) -> Verifier:
            return Verifier(
                mirror,
                lambda: self.tables(mirror),
                self.target,
                settler,
                self.watermark,
                self.grounds.epoch,
                self.limits,
                stop=self.stop,
                on_finding=on_finding,
                on_saved=on_saved,
                on_progress=self.on_progress,
            )

        def repair() -> Repair:
            return Repair(
                mirror,
                reader,
                self.target,
                self.ledger,
                settler,
                self.watermark,
                grounds=self.grounds,
                bury=self.bury.add,
                stop=self.stop,
            )

        def grounds() -> str:
            self.grounds.check(mirror.table)
            with table_needed(mirror, reader):
                return self.grounds.of(mirror.table, reader.layout(mirror.table))

        return VerifiedMirror(mirror, grounds, verifier, repair)

    def settler(self, mirror: Mirror, reader: TableAccess) -> Settler:
        """What settles a mirror's suspects."""
        return Settler(
            mirror,
            reader,
            self.target,
            self.ledger,
            self.gate,
            Passing(self.watermark, self.patience, self.stop, lambda: self._held_up(mirror, reader)),
            grounds=self.grounds,
            letters=lambda texts: self._lettered(mirror, texts),
            stop=self.stop,
            looks=self.looks,
        )

    def close(self) -> None:
        """Release the connections of the readers by key."""
        for reader in self.opened:
            reader.close()
        self.opened.clear()

    def _held_up(self, mirror: Mirror, reader: RowReader) -> str:
        """Why items may lack what no change brings them: the table is being populated, or is about to be."""
        if any(one.table == mirror.table for one in self.ledger.backfills(unfinished_only=True)):
            return f"the backfill of {mirror.table} is not done: see docferry status"
        record = self.ledger.mirrors().get(mirror.table)
        changed = record is not None and record.layout != reader.layout(mirror.table)
        return (
            f"the columns of {mirror.table} changed, and no worker has noticed: start docferry run" if changed else ""
        )

    def _lettered(self, mirror: Mirror, texts: Collection[KeyTexts]) -> set[KeyTexts]:
        """Those of the keys that have a dead letter."""
        wanted = {_identity(mirror.key_by_name(one)): one for one in texts}
        keys = [dict(key) for key in wanted]
        found: set[KeyTexts] = set()
        after = 0
        while keys and (page := self.letters.find(table=mirror.table, keys=keys, after=after)):
            after = page[-1].id
            found |= {wanted[key] for one in page if (key := _identity(one.letter.key)) in wanted}
        return found


def _identity(key: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(key.items()))
