"""The reference implementation: what every target must do, in the plainest way. Used by tests and dry runs."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from docferry.document.model import Collection, Delete, Key, Put, Write
from docferry.errors import RowRefused, TargetRefused
from docferry.target.contract import Item, Outcome, Result
from docferry.target.dynamodb_items import encode, key_texts, stored_document
from docferry.target.floors_shared import SharedFloors

__all__ = ["MemoryStore", "MemoryTarget"]


@dataclass
class _Stored:
    collection: Collection
    items: dict[Key, Item] = field(default_factory=dict)


@dataclass
class MemoryStore:
    """What several targets have in common, as processes have a database: collections by name."""

    collections: dict[str, _Stored] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)


class MemoryTarget:
    """Keeps items in a dict. It has DynamoDB's limits, so that what it accepts the real target accepts too. `store`: of
    another object, which is then like one in another process. `control`: see DynamoDBTarget."""

    def __init__(self, store: MemoryStore | None = None, *, control: Collection | None = None) -> None:
        self.store = store or MemoryStore()
        self._collections = self.store.collections
        self._lock = self.store.lock
        self._floors: dict[str, int] = {}
        self._control = control
        self._shared = None if control is None else SharedFloors(control, self, self._learn)

    def create(self, collection: Collection) -> bool:
        with self._lock:
            if self._matching(collection):
                return False
            self._collections[collection.name] = _Stored(collection)
            return True

    def exists(self, collection: Collection) -> bool:
        with self._lock:
            return self._matching(collection)

    def drop(self, collection: Collection) -> bool:
        with self._lock:
            return self._collections.pop(collection.name, None) is not None

    def check(self, write: Write) -> RowRefused | None:
        try:
            _item(write)
        except RowRefused as error:
            return error
        return None

    def digest(self, put: Put) -> bytes:
        return encode(put.collection, put.key, put.document).hash

    def write(self, writes: Sequence[Write]) -> list[Result]:
        results = self._carry_out(writes)
        return results if self._shared is None else self._shared.enforce(writes, results)

    def replace(self, write: Write, seen: Item) -> Result:
        with self._lock:
            stored = self._stored(write.collection)
            if write.version < self._floors.get(write.collection.name, -1) or stored.items.get(write.key) != seen:
                return Result(Outcome.STALE)
            try:
                item = _item(write)
            except RowRefused as error:
                return Result(Outcome.REFUSED, error)
            stored.items[write.key] = item
        result = Result(Outcome.APPLIED)
        return result if self._shared is None else self._shared.enforce([write], [result])[0]

    def raise_floor(self, collection: Collection, version: int) -> None:
        if self._shared is not None:
            self._shared.set(collection.name, version)
        self._learn(collection.name, version)

    def truncate(self, collection: Collection, version: int) -> int:
        self.raise_floor(collection, version)
        return self._remove_all_below(collection, version)

    def sweep(self, collection: Collection, tombstones: Sequence[tuple[Key, int]]) -> int:
        with self._lock:
            stored = self._stored(collection)
            standing = {item.key: item.version for item in stored.items.values() if item.document is None}
            return _remove(stored, [key for key, version in tombstones if standing.get(key) == version])

    def read(self, collection: Collection, keys: Sequence[Key]) -> list[Item | None]:
        with self._lock:
            stored = self._stored(collection)
            return [copy.deepcopy(stored.items.get(key)) for key in keys]

    def scan(self, collection: Collection, *, segment: int = 0, segments: int = 1) -> Iterator[Item]:
        with self._lock:
            items = copy.deepcopy(
                [item for key, item in self._stored(collection).items.items() if hash(key) % segments == segment]
            )
        yield from items

    def close(self) -> None:
        """There is nothing to release."""

    def put_floor(self, floor: Put) -> None:
        """See floors_shared.FloorStore."""
        with self._lock:
            self._write(floor)

    def read_floors(self, keys: Sequence[Key]) -> Mapping[Key, int]:
        """See floors_shared.FloorStore."""
        assert self._control is not None, "asked only where floors are shared"
        return {item.key: item.version for item in self.read(self._control, keys) if item is not None}

    def remove_below(self, collection: Collection, keys: Sequence[Key], version: int) -> None:
        """See floors_shared.FloorStore."""
        with self._lock:
            stored = self._stored(collection)
            _remove(stored, [key for key in keys if _is_below(stored.items.get(key), version)])

    def _carry_out(self, writes: Sequence[Write]) -> list[Result]:
        with self._lock:
            return [self._write(write) for write in writes]

    def _remove_all_below(self, collection: Collection, version: int) -> int:
        with self._lock:
            stored = self._stored(collection)
            return _remove(stored, [key for key, item in stored.items.items() if _is_below(item, version)])

    def _learn(self, collection: str, version: int) -> None:
        with self._lock:
            self._floors[collection] = max(version, self._floors.get(collection, version))

    def _write(self, write: Write) -> Result:
        stored = self._stored(write.collection)
        if write.version < self._floors.get(write.collection.name, -1):
            return Result(Outcome.STALE)
        try:
            item = _item(write)
        except RowRefused as error:
            return Result(Outcome.REFUSED, error)
        present = stored.items.get(write.key)
        if present is not None and present.version >= write.version:
            return Result(Outcome.STALE)
        stored.items[write.key] = item
        return Result(Outcome.APPLIED)

    def _matching(self, collection: Collection) -> bool:
        stored = self._collections.get(collection.name)
        if stored is not None and stored.collection.key != collection.key:
            raise TargetRefused(
                f"collection {collection.name} exists with another key",
                remedy="Give the mirror another collection name.",
            )
        return stored is not None

    def _stored(self, collection: Collection) -> _Stored:
        if not self._matching(collection):
            raise TargetRefused(f"collection {collection.name} does not exist", remedy="Run `docferry apply`.")
        return self._collections[collection.name]


def _item(write: Write) -> Item:
    if isinstance(write, Delete):
        key_texts(write.collection, write.key)
        return Item(write.key, write.version, None)
    digest = encode(write.collection, write.key, write.document).hash
    document = copy.deepcopy(stored_document(write.collection, write.key, write.document))
    return Item(write.key, write.version, document, digest)


def _is_below(item: Item | None, version: int) -> bool:
    return item is not None and 0 <= item.version < version


def _remove(stored: _Stored, keys: list[Key]) -> int:
    for key in keys:
        del stored.items[key]
    return len(keys)
