"""What a trace comes to, in one sentence. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from docferry.capture.contract import BackfillRecord
from docferry.capture.tracing import Waiting, WaitingChange
from docferry.deadletter.contract import StoredDeadLetter
from docferry.errors import RowRefused
from docferry.operate.compare import Kind
from docferry.target.contract import Item

__all__ = ["Evidence", "Verdict", "VerdictKind", "judge"]


class VerdictKind(StrEnum):
    """What is the matter. The first three are as it should be."""

    IDENTICAL = "identical"
    ABSENT = "absent"  # no row, no item
    DELETED = "deleted"  # no row, a tombstone
    BEHIND = "behind"  # on its way
    WAITING = "waiting"  # it waits, and nobody carries it
    BACKFILL = "backfill"  # a backfill will bring it
    DEAD_LETTER = "dead-letter"
    REFUSED = "refused"  # the row cannot be stored, and no dead letter says so
    FOREIGN = "foreign"  # somebody else wrote to the item
    MISSING = "missing"
    STALE = "stale"
    ORPHANED = "orphaned"
    UNDECIDED = "undecided"


_RIGHT = frozenset((VerdictKind.IDENTICAL, VerdictKind.ABSENT, VerdictKind.DELETED))


@dataclass(frozen=True, slots=True)
class Verdict:
    """`sentence`: for people."""

    kind: VerdictKind
    sentence: str

    @property
    def is_right(self) -> bool:
        """Whether the item is as the row says."""
        return self.kind in _RIGHT


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of one row.

    `table`, `place` (such as `the outbox`): for the sentence. `kind`, `error`: the row held against the item, see
    compare. `is_own`: the item is what docferry wrote; `is_ahead`: it would be, but no change has had its version yet.
    `letters`: dead letters of the key whose change is newer than
    the item, newest last. `old_letters`: how many are superseded. `waiting`: None where nobody can look. `backfill`:
    the table's, if it is unfinished and has not come to the row. `settled`: whether everything committed before the
    row was read is durable; None: nobody can tell. `active`: a worker is at work. `waited`: seconds that were spent
    waiting for it. `lag`: seconds that it is behind, as far as known. `position`: up to which all is durable. `gap`:
    why changes may be missing, with what to do. `sends`: events may be under way to the function.
    """

    table: str
    place: str
    kind: Kind
    error: RowRefused | None
    item: Item | None
    is_own: bool
    is_ahead: bool
    exists: bool
    letters: Sequence[StoredDeadLetter]
    old_letters: Sequence[StoredDeadLetter]
    waiting: Waiting | None
    backfill: BackfillRecord | None
    settled: bool | None
    active: bool
    waited: float
    lag: float | None
    position: str
    gap: str | None = None
    sends: bool = False


def judge(seen: Evidence) -> Verdict:
    """The first of these that is so."""
    for rule in (_as_it_should_be, _waits, _written_by_others, _dead, _refused, _comes_by_backfill, _on_its_way, _lost):
        verdict = rule(seen)
        if verdict is not None:
            return verdict
    return Verdict(VerdictKind.UNDECIDED, "nobody can tell; look again")


def _as_it_should_be(seen: Evidence) -> Verdict | None:
    if seen.kind is not Kind.IDENTICAL:
        return None
    if seen.exists:
        sentence = "identical"
        if seen.waited > 0:
            sentence += f", after the worker had carried it over within {_seconds(seen.waited)}"
        kind = VerdictKind.IDENTICAL
    elif seen.item is None:
        kind, sentence = VerdictKind.ABSENT, "no such row and no item"
    else:
        until = "the sweeper or its expiry removes it"
        if seen.item.expires is not None:
            until = f"{datetime.fromtimestamp(seen.item.expires, UTC):%Y-%m-%d %H:%M:%S UTC} at the latest"
        kind, sentence = VerdictKind.DELETED, f"deleted; a tombstone stands until {until}"
    if seen.old_letters or seen.letters:
        letters = [*seen.old_letters, *seen.letters]
        sentence += f"; a dead letter is left over, `docferry deadletters replay {_ids(letters)}` settles it"
    return Verdict(kind, sentence)


def _waits(seen: Evidence) -> Verdict | None:
    """A change that is known to wait explains every difference: it brings the row as it is."""
    waiting = seen.waiting
    newest_letter = max((stored.letter.version for stored in seen.letters), default=-1)
    if waiting is None or not waiting.changes or waiting.changes[-1].version <= newest_letter:
        return None
    number = f"{waiting.count:,} change{'s' if waiting.count != 1 else ''}"
    since = _since(waiting.changes[0])
    if seen.active:
        behind = _seconds(seen.lag) if seen.lag is not None else "an unknown time"
        return Verdict(VerdictKind.BEHIND, f"behind by {behind}, on its way: {number} waiting in {seen.place}{since}")
    who = "the function's schedule or `docferry run` carries it over" if seen.sends else "start `docferry run`"
    return Verdict(
        VerdictKind.WAITING,
        f"the row is waiting in {seen.place} ({number}{since}) and no worker runs: {who}",
    )


def _written_by_others(seen: Evidence) -> Verdict | None:
    item = seen.item
    if item is not None and item.document is None and seen.kind is Kind.DIFFERENT:
        return Verdict(
            VerdictKind.FOREIGN,
            "the tombstone was written outside docferry, its version is that of no change, so that it would hold back "
            f"later ones; `docferry verify {seen.table} --repair` writes one in its place",
        )
    if item is None or item.document is None or seen.is_own or seen.letters:
        return None
    what = "written" if item.version < 0 or item.hash is None else "changed"
    if seen.exists:
        mend = f"`docferry verify {seen.table} --repair` writes the row over it"
    else:
        mend = "and there is no row: see who wrote it"
    why = "it carries no version" if item.version < 0 else "its content is not what docferry wrote"
    if seen.is_ahead:
        why = "its version is greater than that of any change, so that it would hold back later ones"
    return Verdict(VerdictKind.FOREIGN, f"the item was {what} outside docferry, {why}; {mend}")


def _dead(seen: Evidence) -> Verdict | None:
    if not seen.letters:
        return None
    stored = max(seen.letters, key=lambda one: one.letter.version)
    cause = f"dead letter since {_time(stored.first_at)} ({stored.letter.cause}: {stored.letter.problem})"
    replay = f"replay with `docferry deadletters replay {_ids(seen.letters)}`"
    if seen.error is None:
        return Verdict(VerdictKind.DEAD_LETTER, f"{cause}; {replay}")
    remedy = seen.error.remedy or stored.letter.remedy or "Mend the row."
    return Verdict(VerdictKind.DEAD_LETTER, f"{cause}; the row still cannot be stored. {remedy} Or {replay}")


def _refused(seen: Evidence) -> Verdict | None:
    if seen.error is None:
        return None
    return Verdict(VerdictKind.REFUSED, f"the row cannot be stored: {seen.error}. {seen.error.remedy}")


def _comes_by_backfill(seen: Evidence) -> Verdict | None:
    backfill = seen.backfill
    if backfill is None:
        return None
    start = "" if seen.active else "; no worker runs: start `docferry run`"
    if not seen.exists:
        # What has no row goes at the end of a backfill.
        return Verdict(
            VerdictKind.BACKFILL,
            f"an item without a row; the backfill of {seen.table} ({backfill.state}) removes it at its end{start}",
        )
    return Verdict(
        VerdictKind.BACKFILL, f"the backfill of {seen.table} ({backfill.state}) has not come to this row yet{start}"
    )


def _on_its_way(seen: Evidence) -> Verdict | None:
    if seen.gap is not None:
        return Verdict(VerdictKind.UNDECIDED, f"different, and changes may be missing: {seen.gap}")
    if seen.settled:
        return None
    if seen.sends:
        return Verdict(
            VerdictKind.UNDECIDED,
            "different, and nobody can tell which events Lambda still holds: look again in a minute, then see the "
            "function's log and its dead letters",
        )
    if seen.active:
        behind = _seconds(seen.lag) if seen.lag is not None else f"more than {_seconds(seen.waited)}"
        return Verdict(
            VerdictKind.BEHIND,
            f"behind by {behind}, on its way: the worker has not passed the row's position within "
            f"{_seconds(seen.waited)}; see `docferry status`",
        )
    why = seen.waiting.unseen if seen.waiting is not None and seen.waiting.unseen else "changes may wait"
    return Verdict(
        VerdictKind.WAITING, f"no worker runs, and what waits in {seen.place} is unknown ({why}): start `docferry run`"
    )


def _lost(seen: Evidence) -> Verdict | None:
    durable = f"although everything up to {seen.position} is durable: `docferry verify {seen.table} --repair`"
    match seen.kind:
        case Kind.MISSING if seen.item is not None:
            return Verdict(VerdictKind.MISSING, f"missing, a tombstone stands for a row that exists, {durable}")
        case Kind.MISSING:
            return Verdict(VerdictKind.MISSING, f"missing {durable}")
        case Kind.STALE:
            return Verdict(VerdictKind.STALE, f"the item is of an older state of the row {durable}")
        case Kind.ORPHANED:
            return Verdict(VerdictKind.ORPHANED, f"there is an item and no row {durable}")
    return None


def _ids(letters: Sequence[StoredDeadLetter]) -> str:
    return " ".join(str(stored.id) for stored in letters)


def _since(change: WaitingChange) -> str:
    return "" if change.since is None else f" since {_time(change.since)}"


def _time(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S %Z}"


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:,.0f} s"
