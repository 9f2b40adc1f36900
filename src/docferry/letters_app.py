"""The composition root of `deadletters`."""

from __future__ import annotations

from docferry.app import App
from docferry.change.wire import EventDecoder
from docferry.deadletter.contract import AuditEntry
from docferry.errors import NotApplied, SourceUnavailable
from docferry.operate.reread import Replay
from docferry.specify import EventMirrors

__all__ = ["LettersApp"]


class LettersApp(App):
    """What App has, and what looks after dead letters."""

    def check_ledger(self) -> None:
        """Raises NotApplied where docferry has never been set up, SourceUnavailable."""
        if not self.ledger.exists():
            raise NotApplied("docferry has not been set up in this source")

    def audit(self, *, table: str | None, before: int | None, limit: int) -> list[AuditEntry]:
        """What became of dead letters that are gone, the newest first, `before` an id. Raises NotApplied."""
        from docferry.deadletter.postgres import PostgresDeadLetters

        letters = PostgresDeadLetters(self.dsn)
        try:
            return letters.audit(table=table, before=before, limit=limit)
        finally:
            letters.close()

    def replay(self, *, rate: float) -> Replay:
        """Replays dead letters; those of a queue by their events while the source does not answer. Raises NotApplied,
        HistoryChanged."""
        from docferry.capture.builtin_types import builtin_type

        try:
            epoch = self.admin().check_applied().number
            self._remember_attributes(self.ledger)
        except SourceUnavailable:
            if self.config.dead_letters.queue is None:
                raise
            return Replay(
                {},
                None,
                self.target,
                self.dead_letters,
                None,
                rate,
                decode=EventDecoder(builtin_type).decode,
                specify=EventMirrors(self.config, builtin_type).by,
                event_lifetime=self._trusted_age,
            )
        reader = self.reader("replay")
        self._open.append(reader)
        gate = self._gate() if self.by_triggers else None
        grounds = self._grounds(self.ledger, epoch, "this replay")
        return Replay(
            self.mirrors, reader, self.target, self.dead_letters, self.ledger, rate, gate=gate, check=grounds.check
        )
