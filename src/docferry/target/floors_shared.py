"""Floors that all processes share (R4), for changes that come in any order through several of them.

A control collection at the target holds one item for each collection that was truncated; its version is the floor.
TRUNCATE writes the floor first and then removes what is below it. A writer reads the floors after its writes are done
and takes back what is below. So either the writer sees the floor, or its write is there when the removal looks for it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, Protocol

from docferry.document.model import Collection, Key, KeyAttribute, KeyKind, Put, Write
from docferry.target.contract import Outcome, Result

__all__ = ["FloorStore", "SharedFloors", "control_collection", "floor_key", "floor_put", "floored"]

_FLOOR: Final = "floor#"


def control_collection(name: str) -> Collection:
    """The control collection of this name."""
    return Collection(name, (KeyAttribute("name", KeyKind.TEXT),))


def floor_key(collection: str) -> Key:
    """Where the control collection keeps the floor of a collection."""
    return (f"{_FLOOR}{collection}",)


def floored(key: Key) -> str:
    """The collection whose floor is kept there."""
    return str(key[0]).removeprefix(_FLOOR)


def floor_put(control: Collection, collection: str, version: int) -> Put:
    """The write that raises the floor of a collection; the fence keeps it from sinking."""
    return Put(control, floor_key(collection), version, {}, new=True)


class FloorStore(Protocol):
    """What a target does for its shared floors; each of these takes effect before it returns."""

    def put_floor(self, floor: Put) -> None:
        """Store it unless a greater one is stored."""

    def read_floors(self, keys: Sequence[Key]) -> Mapping[Key, int]:
        """The floors that exist under these keys of the control collection, consistently read."""

    def remove_below(self, collection: Collection, keys: Sequence[Key], version: int) -> None:
        """Remove those of the items and tombstones whose version is below `version`, none that carries no version."""


class SharedFloors:
    """The floors in `control`. `learn` is told of every floor that is met: what is known to be below is not written."""

    def __init__(self, control: Collection, store: FloorStore, learn: Callable[[str, int], None]) -> None:
        self.control = control
        self._store = store
        self._learn = learn

    def set(self, collection: str, version: int) -> None:
        """Raise the floor for every process; durable when this returns."""
        self._store.put_floor(floor_put(self.control, collection, version))

    def enforce(self, writes: Sequence[Write], results: Iterable[Result]) -> list[Result]:
        """The results of `writes`, which are done: what is below a floor is taken back, and stale.

        Whatever the writes' own results: a process may have died between such a write and this, and what repeats the
        write finds it done, or knows the floor by now and has not written at all.
        """
        settled = list(results)
        collections = {write.collection.name: write.collection for write in writes}
        floors = self._floors(collections)
        below: dict[str, list[int]] = defaultdict(list)
        for place, write in enumerate(writes):
            if write.version < floors.get(write.collection.name, -1):
                below[write.collection.name].append(place)
        for name, places in below.items():
            keys = [writes[place].key for place in places if settled[place].outcome is not Outcome.REFUSED]
            if keys:
                self._store.remove_below(collections[name], keys, floors[name])
            for place in places:
                settled[place] = Result(Outcome.STALE)
        return settled

    def _floors(self, collections: Iterable[str]) -> dict[str, int]:
        keys = {floor_key(name): name for name in collections}
        found = self._store.read_floors(list(keys)) if keys else {}
        floors = {keys[key]: version for key, version in found.items()}
        for name, version in floors.items():
            self._learn(name, version)
        return floors
