"""Dead letters by the page: chosen, counted, discarded, replayed, however many there are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from docferry.deadletter.contract import QUEUE_IDS, DeadLetterGroup, DeadLetters, StoredDeadLetter
from docferry.operate.replayed import SETTLED, ReplayResult
from docferry.operate.reread import Replay

__all__ = ["Chosen", "Outcomes", "Selection", "Shown", "count", "count_superseded", "discard", "previews", "replay"]

_PAGE = 1000
_EXAMPLES = 5
_PAGE_SECONDS = 5.0
_SMALLEST_PAGE = 10


@dataclass(slots=True)
class Shown:
    """How far the dead letters go that somebody was shown: in each of the two stores the greatest id, which tells those
    of the table that came later, and the last failure, which tells those that failed again under their id, and those of
    the queue, whose ids are in no order."""

    _newest: dict[bool, tuple[int, datetime]] = field(default_factory=dict)

    def add(self, stored: StoredDeadLetter) -> None:
        """This one was shown, too."""
        id_, last_at = self._newest.get(_in_queue(stored), (stored.id, stored.last_at))
        self._newest[_in_queue(stored)] = max(id_, stored.id), max(last_at, stored.last_at)

    def holds(self, stored: StoredDeadLetter) -> bool:
        """Whether it was there, as it is, when they were shown."""
        newest = self._newest.get(_in_queue(stored))
        return newest is not None and stored.id <= newest[0] and stored.last_at <= newest[1]

    def ends_before(self, stored: StoredDeadLetter) -> bool:
        """Whether all behind it in its store came later."""
        newest = self._newest.get(_in_queue(stored))
        return newest is None or stored.id > newest[0]


def _in_queue(stored: StoredDeadLetter) -> bool:
    return stored.id >= QUEUE_IDS


@dataclass(frozen=True, slots=True)
class Selection:
    """Dead letters that match every condition given. `since`, `until`: of their last failure, both included."""

    table: str | None = None
    cause: str | None = None
    ids: tuple[int, ...] | None = None
    since: datetime | None = None
    until: datetime | None = None

    @property
    def is_dated(self) -> bool:
        """Whether the time of the failure matters."""
        return self.since is not None or self.until is not None

    def holds(self, stored: StoredDeadLetter) -> bool:
        """Whether its last failure was within the times given."""
        after = self.since is None or stored.last_at >= self.since
        return after and (self.until is None or stored.last_at <= self.until)

    def pages(
        self, dead_letters: DeadLetters, *, after: int = 0, shown: Shown | None = None, size: int = _PAGE
    ) -> Iterator[list[StoredDeadLetter]]:
        """Pages by id of about `size`, from behind `after`; `shown` leaves out those that came, or failed again,
        later."""
        while page := dead_letters.find(table=self.table, cause=self.cause, ids=self.ids, after=after, limit=size):
            wanted = [stored for stored in page if self.holds(stored) and (shown is None or shown.holds(stored))]
            if wanted:
                yield wanted
            after = page[-1].id
            if shown is not None and shown.ends_before(page[-1]):
                if _in_queue(page[-1]):
                    return
                after = QUEUE_IDS - 1

    def groups(self, dead_letters: DeadLetters) -> list[DeadLetterGroup]:
        """Them by table and cause, largest first; where times matter, by looking at each."""
        if self.is_dated:
            counted, _ = count(dead_letters, self)
            return [group.plain for group in counted]
        return [
            group
            for group in dead_letters.groups()
            if self.table in (None, group.table) and self.cause in (None, group.cause)
        ]

    def first(self, dead_letters: DeadLetters, limit: int, *, after: int = 0) -> tuple[list[StoredDeadLetter], bool]:
        """The first of them behind `after`, `limit` at most, and whether there are more."""
        found: list[StoredDeadLetter] = []
        for page in self.pages(dead_letters, after=after):
            found += page
            if len(found) > limit:
                return found[:limit], True
        return found, False


@dataclass(slots=True)
class Chosen:
    """Those of one table with one cause. `examples`: the first of them, `newest`: that which failed last."""

    table: str
    cause: str
    count: int = 0
    first_at: datetime | None = None
    last_at: datetime | None = None
    examples: list[StoredDeadLetter] = field(default_factory=list)
    newest: StoredDeadLetter | None = None

    @property
    def plain(self) -> DeadLetterGroup:
        """The same as stores count them."""
        assert self.newest is not None, "made for the first of them"
        assert self.first_at is not None
        assert self.last_at is not None
        letter = self.newest.letter
        return DeadLetterGroup(
            self.table, self.cause, self.count, self.first_at, self.last_at, letter.problem, letter.remedy
        )

    def add(self, stored: StoredDeadLetter) -> None:
        """Count one more."""
        self.count += 1
        if self.newest is None or stored.last_at >= self.newest.last_at:
            self.newest = stored
        self.first_at = min(self.first_at or stored.first_at, stored.first_at)
        self.last_at = max(self.last_at or stored.last_at, stored.last_at)
        if len(self.examples) < _EXAMPLES:
            self.examples.append(stored)


def count(dead_letters: DeadLetters, selection: Selection) -> tuple[list[Chosen], Shown]:
    """What a selection holds, largest first, and how far it goes."""
    groups: dict[tuple[str, str], Chosen] = {}
    shown = Shown()
    for page in selection.pages(dead_letters):
        for stored in page:
            key = (stored.letter.table, stored.letter.cause)
            groups.setdefault(key, Chosen(*key)).add(stored)
            shown.add(stored)
    return sorted(groups.values(), key=lambda group: (-group.count, group.table, group.cause)), shown


def count_superseded(replayer: Replay, selection: Selection) -> dict[tuple[str, str], int]:
    """For how many of a selection nothing is left to do, by table and cause."""
    counts: dict[tuple[str, str], int] = {}
    for page in selection.pages(replayer.dead_letters):
        superseded = replayer.superseded(page)
        for stored in page:
            place = (stored.letter.table, stored.letter.cause)
            counts[place] = counts.get(place, 0) + (stored.id in superseded)
    return counts


def discard(
    dead_letters: DeadLetters, selection: Selection, shown: Shown, on_done: Callable[[int], None] = lambda _: None
) -> int:
    """Remove those that were shown, unless they failed again since; returns how many."""
    removed = 0
    for page in selection.pages(dead_letters, shown=shown):
        removed += dead_letters.remove(page)
        on_done(removed)
    return removed


@dataclass(slots=True)
class Outcomes:
    """What became, or would become, of dead letters. `shown`: how far they go. `failed`: the first that stay, with the
    reason."""

    counts: dict[str, int] = field(default_factory=dict)
    shown: Shown = field(default_factory=Shown)
    failed: list[ReplayResult] = field(default_factory=list)

    @property
    def total(self) -> int:
        """How many there are."""
        return sum(self.counts.values())

    @property
    def unsettled(self) -> int:
        """How many stay dead letters."""
        return sum(count for outcome, count in self.counts.items() if outcome not in SETTLED)

    def add(self, results: Sequence[ReplayResult]) -> None:
        """Count these."""
        for result in results:
            self.counts[result.outcome] = self.counts.get(result.outcome, 0) + 1
            self.shown.add(result.stored)
            if result.outcome not in SETTLED and len(self.failed) < _EXAMPLES:
                self.failed.append(result)


def replay(
    replayer: Replay,
    selection: Selection,
    *,
    dry_run: bool,
    shown: Shown | None = None,
    on_done: Callable[[int], None] = lambda _: None,
) -> Outcomes:
    """Replay a selection; in a dry run nothing is written. `shown`: leaves later ones out. `on_done` is told how many
    are done."""
    outcomes = Outcomes()
    seen = 0

    def note(_result: ReplayResult) -> None:
        nonlocal seen
        seen += 1
        on_done(seen)

    before, replayer.on_result = replayer.on_result, note
    # What is replayed leaves the dead letters page by page: not much is done twice if we are stopped at a low rate.
    size = _PAGE if dry_run else max(_SMALLEST_PAGE, min(_PAGE, int(replayer.rate * _PAGE_SECONDS)))
    try:
        for page in selection.pages(replayer.dead_letters, shown=shown, size=size):
            outcomes.add(replayer.run(page, dry_run=dry_run))
    finally:
        replayer.on_result = before
    return outcomes


def previews(
    replayer: Replay, selection: Selection, limit: int, *, shown: Shown | None = None
) -> Iterator[ReplayResult]:
    """What a replay of the first `limit` of a selection would write, beside what stands there; few at a time."""
    left = limit
    for page in selection.pages(replayer.dead_letters, shown=shown, size=_SMALLEST_PAGE):
        yield from replayer.preview(page[:left])
        left -= len(page)
        if left <= 0:
            return
