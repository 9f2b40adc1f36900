"""What one invocation does with the changes that triggers sent: judged by their transaction, applied, told of; and a
receipt for each change, also of those that are drained.

Events come more than once, late and in any order, and each is sent before its transaction has ended. Their versions
settle the order; what is asked here is whether the transaction committed at all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from functools import partial
from itertools import groupby
from operator import attrgetter

from docferry.applier import Applier
from docferry.capture.contract import TransactionGate, TransactionState
from docferry.change.model import Change, Op
from docferry.change.wire import Event
from docferry.document.batch import Pending, mirror_of
from docferry.document.mirror import Mirror
from docferry.document.model import Key
from docferry.errors import ConfigError, RowRefused, TransactionPending
from docferry.target.contract import Outcome, Result

__all__ = ["Fate", "Judge", "Receipt", "Receiver", "Results"]

_by_version = attrgetter("version")
_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 0.5


class Fate(StrEnum):
    """What became of a change."""

    APPLIED = "applied"
    STALE = "stale"  # something at least as new is stored
    DEAD = "dead"  # in the dead letters
    ROLLED_BACK = "rolled back"
    DEFERRED = "deferred"  # left to the event's next coming, or to a backfill

    @property
    def is_durable(self) -> bool:
        """Whether the change is at the target, or in the dead letters."""
        return self in (Fate.APPLIED, Fate.STALE, Fate.DEAD)


@dataclass(frozen=True, slots=True)
class Receipt:
    """What became of one change. `key`: text of each key column by name; empty for a TRUNCATE. `error`: why it is
    DEAD. `made_at`: when the change was made, about: a moment before its commit."""

    table: str
    key: Mapping[str, str]
    version: int
    op: Op
    fate: Fate
    error: RowRefused | None = None
    made_at: datetime | None = None


Results = dict[tuple[str, Key], Result]
"""What became of each key that an applier has told of."""

_FATES = {Outcome.APPLIED: Fate.APPLIED, Outcome.STALE: Fate.STALE, Outcome.REFUSED: Fate.DEAD}
_WEIGHT = (Outcome.STALE, Outcome.APPLIED, Outcome.REFUSED)


class Judge:
    """Says what became of changes, by what became of their keys."""

    def __init__(self, mirrors: Mapping[str, Mirror]) -> None:
        self._mirrors = mirrors

    def judged(self, change: Change, results: Results, *, in_doubt: bool = False) -> Receipt:
        """A change counts as what became of its key; one that moved a row to another key as the weightier of both.
        `in_doubt`: nobody knows whether it was committed."""
        if change.op is Op.TRUNCATE:
            return self.receipt(change, Fate.DEFERRED if in_doubt else Fate.APPLIED)
        met = []
        for row in (change.row, change.old):
            if row is None:
                continue
            try:
                key = self._mirrors[change.relation.table].converter.key(change.relation, row)
            except RowRefused as error:
                if row is change.row or change.row is None:
                    return self.receipt(change, Fate.DEAD, error)
                continue  # what could not be a key left no item
            except ValueError:
                continue  # it does not carry the key
            if (change.relation.table, key) in results:
                met.append(results[change.relation.table, key])
        if not met:
            return self.receipt(change, Fate.DEFERRED)  # the applier has asked for a backfill
        worst = max(met, key=lambda result: _WEIGHT.index(result.outcome))
        return self.receipt(change, _FATES[worst.outcome], worst.error)

    def receipt(self, change: Change, fate: Fate, error: RowRefused | None = None) -> Receipt:
        """That of a change which met this fate."""
        mirror = mirror_of(change.relation, self._mirrors)
        row = change.row if change.row is not None else change.old
        key = {}
        if mirror is not None and row is not None:
            key = mirror.key_by_name(mirror.key_texts(change.relation, row))
        return Receipt(change.relation.table, key, change.version, change.op, fate, error, change.committed_at)

    @staticmethod
    def note(results: Results, one: Pending, result: Result) -> None:
        """For who observes an applier."""
        results[one.mirror.table, one.key] = result


class Receiver:
    """Applies events. Safe to call from several threads.

    `gate`: None where the database cannot be reached; every event then counts as committed. `patience`: seconds to wait
    for a transaction to end.
    """

    def __init__(
        self,
        applier: Applier,
        mirrors: Mapping[str, Mirror],
        gate: TransactionGate | None,
        *,
        patience: float = 5.0,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._applier = applier
        self._mirrors = mirrors
        self._judge = Judge(mirrors)
        self._gate = gate
        self._patience = patience
        self._sleep = sleep

    def receive(self, event: Event, *, reread: bool = False) -> list[Receipt]:
        """Make an event durable, at the target or in the dead letters; a receipt for each change, in their order.
        `reread`: by the current rows instead of those that the event carries.

        Raises TransactionPending while its transaction is open, ConfigError for a table without a mirror (after the
        others are done), and what the ends refuse; the event must come again then.
        """
        match self._state(event.transaction):
            case TransactionState.COMMITTED:
                return self._committed(event, reread=reread)
            case TransactionState.UNKNOWN:
                # It has ended, so long ago that its id may have come round since.
                return self.apply([change._replace(transaction=0) for change in event.changes], in_doubt=True)
            case TransactionState.ABORTED:
                return self.receipts(event.changes, Fate.ROLLED_BACK)
            case TransactionState.IN_PROGRESS:
                raise TransactionPending(
                    f"transaction {event.transaction} is still in progress after {self._patience:g} s"
                )

    def _committed(self, event: Event, *, reread: bool) -> list[Receipt]:
        """Apply an event, but for what was sent before a savepoint took it back."""
        undone: set[int] = set()
        if self._gate is not None and event.subtransactions:
            undone = self._gate.rolled_back(set(event.subtransactions.values()))
        if not undone:
            return self.apply(event.changes, reread=reread)
        kept = [one for one in event.changes if event.subtransactions.get(one.version) not in undone]
        receipts = {one.version: one for one in self.apply(kept, reread=reread)}
        return [receipts.get(one.version) or self._judge.receipt(one, Fate.ROLLED_BACK) for one in event.changes]

    def apply(self, changes: Sequence[Change], *, in_doubt: bool = False, reread: bool = False) -> list[Receipt]:
        """Make changes durable that come in any order and are known to be committed. `in_doubt`: they are not, and the
        current rows decide. `reread`: they are, and the current rows are written. Receipts and errors as from
        `receive`."""
        receipts: dict[int, Receipt] = {}
        for group in _groups([one for one in changes if mirror_of(one.relation, self._mirrors) is not None]):
            results: Results = {}
            doubts = in_doubt or (reread and group[0].op is not Op.TRUNCATE)
            self._applier.apply(group, in_doubt=doubts, observe=partial(Judge.note, results))
            for change in group:
                receipts[change.version] = self._judge.judged(change, results, in_doubt=in_doubt)
        unknown = {change.relation.table for change in changes if change.version not in receipts}
        if unknown:
            raise ConfigError(
                f"a change came of {', '.join(sorted(unknown))}, which is no mirror in this configuration",
                remedy="Deploy the configuration that `docferry apply` was run with; then replay the dead letters.",
            )
        return [receipts[change.version] for change in changes]

    def receipts(self, changes: Sequence[Change], fate: Fate) -> list[Receipt]:
        """Receipts of changes that met the same fate."""
        return [self._judge.receipt(change, fate) for change in changes]

    def _state(self, transaction: int) -> TransactionState:
        """The transaction's state; one that is in progress gets some time to end."""
        if self._gate is None:
            return TransactionState.COMMITTED
        left, pause = self._patience, _FIRST_PAUSE
        while True:
            state = self._gate.state(transaction)
            if state is not TransactionState.IN_PROGRESS or left <= 0:
                return state
            pause = min(pause, left)
            self._sleep(pause)
            left -= pause
            pause = min(2 * pause, _LONGEST_PAUSE)


def _groups(changes: Sequence[Change]) -> list[list[Change]]:
    """In the order of their versions, those between two TRUNCATEs together, and each TRUNCATE alone: what is older than
    one is no longer the last word for its key."""
    pieces = groupby(sorted(changes, key=_by_version), lambda one: one.version if one.op is Op.TRUNCATE else None)
    return [list(piece) for _, piece in pieces]
