"""What must hold at every moment, and at the end. Looks at the store, at what is confirmed and at what is removed; asks
nothing of docferry."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from decimal import Decimal
from functools import lru_cache
from typing import Any, Final

import xmltodict

from docferry.change.model import Op, split_version
from docferry.deadletter.contract import DeadLetter
from docferry.document.model import Collection, Delete, Key, Write
from docferry.operate.findings import Counts
from docferry.target.contract import Item

from .ledger import Memory
from .source import Commit, Place, Source, Values

__all__ = ["Checks", "Violation", "can_be_stored", "expected"]

DEEPEST: Final = 32
"""What DynamoDB stores, the item itself being level 1 and the column's value level 2."""


class Violation(AssertionError):
    """Something that docferry promises does not hold."""


@lru_cache(maxsize=4096)
def _parsed(doc: bytes) -> Any:
    """By somebody else's conversion; None for what is no document, or one too deep."""
    try:
        parsed = xmltodict.parse(doc)
    except Exception:  # noqa: BLE001 - expat's, and whatever else xmltodict lets out
        return None
    return parsed if _depth(parsed) < DEEPEST else None


def _depth(value: Any) -> int:
    if isinstance(value, Mapping):
        return 1 + max((_depth(one) for one in value.values()), default=0)
    return 1 + max((_depth(one) for one in value), default=0) if isinstance(value, list) else 0


def can_be_stored(values: Values) -> bool:
    return _parsed(values.doc) is not None


def expected(place: Place, values: Values) -> dict[str, Any]:
    """The item of a row."""
    return {"id": place.key, "name": values.name.decode(), "doc": _parsed(values.doc)}


class Checks:
    """`newest`: the greatest version that was ever durable for a place, at the target or in the dead letters.
    `reached`: the greatest that the place's item, or its tombstone, ever had since the last TRUNCATE. `tampered`: where
    somebody else wrote; what he did is put right by `verify --repair` only."""

    def __init__(self, source: Source, memory: Memory) -> None:
        self.source = source
        self.memory = memory
        self.tables: dict[str, str] = {}
        self.newest: dict[Place, int] = defaultdict(lambda: -1)
        self.reached: dict[Place, int] = defaultdict(lambda: -1)
        self.floors: dict[str, int] = defaultdict(int)
        self.on_the_wire: dict[object, Mapping[Place, int]] = {}
        self.tampered: set[Place] = set()
        self.confirmed = 0

    def place(self, collection: Collection, key: Key) -> Place:
        """Where the row of an item is."""
        (number,) = key
        assert isinstance(number, int | Decimal)
        return Place(self.tables[collection.name], int(number))

    # -- at the target ------------------------------------------------------------------------------------------------

    def written(self, write: Write, before: Item | None) -> None:
        """An item, or a tombstone, has taken its place."""
        place = self.place(write.collection, write.key)
        if before is not None and before.version >= write.version and place not in self.tampered:
            raise Violation(f"{place} went back from version {shown(before.version)} to {shown(write.version)}")
        held = None if isinstance(write, Delete) else dict(write.document)
        if place not in self.tampered or held is not None:
            # Where an item was removed, an older one may come back, and a backfill takes that for one without a row.
            self._check_content(place, write.version, held)
        if write.version >= self.floors[place.table] and place not in self.tampered:
            # What is below a floor does not count: whoever did not know it yet takes it back.
            self.reached[place] = max(self.reached[place], write.version)
        self.newest[place] = max(self.newest[place], write.version)

    def _check_content(self, place: Place, version: int, held: dict[str, Any] | None) -> None:
        """It is what the row was when it had this version, or later: never an older row, never half a row."""
        since = version if version < self.floors[place.table] else max(version, self.reached[place])
        _, position, number = split_version(since)
        for values in self.source.since(place, position, number):
            # A backfill takes an old item away whose row it cannot store.
            if held is None and (values is None or not can_be_stored(values)):
                return
            if held is not None and values is not None and held == expected(place, values):
                return
        raise Violation(f"{place} was never {held} at or after version {shown(since)} (written as {shown(version)})")

    def truncated(self, collection: Collection, version: int) -> None:
        """Everything below was removed."""
        table = self.tables[collection.name]
        if self.memory.mirrors[table].floor < version:
            raise Violation(f"{table} was emptied before the ledger knew the floor {shown(version)}")
        self.floors[table] = max(self.floors[table], version)
        for place in self.reached:
            if place.table == table and self.reached[place] < version:
                self.reached[place] = -1

    def tampers(self, place: Place) -> None:
        """Somebody else writes to the item."""
        self.tampered.add(place)
        self.reached[place] = -1

    def verified(self, table: str, counts: Counts) -> None:
        """A verification says so: nothing is wrong, however much goes on meanwhile, unless somebody tampered."""
        if counts.differences and not any(place.table == table for place in self.tampered):
            raise Violation(f"a false alarm: {table} {counts.as_dict()}")

    def sweeps(self, collection: Collection, tombstones: Iterable[tuple[Key, int]]) -> None:
        """Tombstones are about to be removed: nothing older may still be on its way (R4)."""
        for key, version in tombstones:
            place = self.place(collection, key)
            if any(lock.name == "sweep" and lock.shared for lock in self.memory.locks):
                raise Violation(f"the tombstone of {place} is removed while old versions are written")
            for writes in self.on_the_wire.values():
                if writes.get(place, version) < version:
                    raise Violation(f"the tombstone of {place} is removed while an older write is on the wire")
            epoch, position, _ = split_version(version)
            if self.memory.epoch is not None and epoch == self.memory.epoch.number:
                self._check_nothing_older(place, position)

    def _check_nothing_older(self, place: Place, position: int) -> None:
        if self.source.slot is None:  # nothing of this epoch will be read any more
            return
        for commit in self.source.log[self.source.behind(self.source.slot) :]:
            if commit.position >= position:
                return
            if any(place in (one.place, one.left) for one in commit.statements):
                raise Violation(f"the tombstone of {place} is removed before {commit.position} was confirmed")

    # -- what is confirmed, what is removed ---------------------------------------------------------------------------

    def begins(self, position: int) -> None:
        """The stream counts from here: a new slot."""
        self.confirmed = position

    def confirms(self, position: int, epoch: int) -> None:
        """R3: everything up to there is durable."""
        for commit in self.source.log[self.source.behind(self.confirmed) :]:
            if commit.end > position:
                break
            self._check_durable(commit, epoch)
        self.confirmed = max(self.confirmed, position)

    def _check_durable(self, commit: Commit, epoch: int) -> None:
        for number, statement in enumerate(commit.statements):
            version = (epoch << 96) + (commit.position << 32) + number
            floor = self.memory.mirrors[statement.place.table].floor
            if statement.op is Op.TRUNCATE:
                if floor < version:
                    raise Violation(f"confirmed {commit.end}, but the TRUNCATE {shown(version)} is not known")
                continue
            for place in filter(None, (statement.place, statement.left)):
                if self._durable(place) < version and floor <= version and place not in self.tampered:
                    raise Violation(f"confirmed {commit.end}, but {place} of {shown(version)} is not durable")

    def _durable(self, place: Place) -> int:
        """The greatest version at the target or in the dead letters."""
        letter = self.letter(place)
        return max(self.newest[place], -1 if letter is None else letter.version)

    def letter(self, place: Place) -> DeadLetter | None:
        """The dead letter of a place."""
        stored = self.memory.letters.get((place.table, str([("id", str(place.key))])))
        return None if stored is None else stored.letter

    def removed(self, letter: DeadLetter) -> None:
        """A dead letter was settled: the target has it, or what is newer."""
        place = Place(letter.table, int(letter.key["id"]))
        if (
            place not in self.tampered
            and self.newest[place] < letter.version
            and self.memory.mirrors[place.table].floor <= letter.version
        ):
            raise Violation(f"the dead letter of {place} {shown(letter.version)} was dropped, and nothing was written")

    # -- the end ------------------------------------------------------------------------------------------------------

    def compare(self, items: Mapping[Place, Item]) -> None:
        """Items equal rows; what cannot be stored is a dead letter, and its item as old as it was."""
        for place in sorted({*items, *self.source.current}):
            item, values = items.get(place), self.source.current.get(place)
            found = None if item is None else item.document
            if place in self.tampered and values is not None and not can_be_stored(values):
                continue
            if item is not None and found is not None and item.version < self.memory.mirrors[place.table].floor:
                raise Violation(f"{place} {shown(item.version)} is below the floor")
            if values is not None and not can_be_stored(values):
                letter = self.letter(place)
                changed = self.source.states[place][-1][0][0]
                if letter is None or (changed > self.confirmed_from() and split_version(letter.version)[1] < changed):
                    raise Violation(f"{place} cannot be stored, and no dead letter says so")
                continue
            wanted = None if values is None else expected(place, values)
            if found != wanted:
                raise Violation(f"{place}: the item is {found}, the row is {wanted}")

    def confirmed_from(self) -> int:
        """Where a row that the backfill read last may have changed: its dead letter has the backfill's version."""
        versions = [split_version(one.version)[1] for one in self.memory.backfills if one.version is not None]
        return max(versions, default=0)


def shown(version: int) -> str:
    """A version for people."""
    epoch, position, number = split_version(version)
    return f"{epoch}/{position}/{number}"
