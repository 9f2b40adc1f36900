"""Which attributes the items of a collection carry, and the statements that follow from it."""

from __future__ import annotations

import threading
from collections.abc import Iterable

from docferry.document.model import Collection
from docferry.target.dynamodb_items import META
from docferry.target.dynamodb_statements import Shape, put_shape, tombstone_shape

__all__ = ["Shapes"]


class _Known:
    def __init__(self, collection: Collection, names: frozenset[str]) -> None:
        self.collection = collection
        self.names = names
        self.puts: dict[tuple[str, ...], Shape] = {}
        self.tombstone: Shape | None = None


class Shapes:
    """An UPDATE must name every attribute that it removes. They are learned: from `Collection.retired`, from every
    document that is written, and from what an update of a tombstone leaves behind."""

    def __init__(self) -> None:
        self._known: dict[str, _Known] = {}
        self._lock = threading.Lock()

    def put(self, collection: Collection, names: tuple[str, ...]) -> Shape:
        """For a document with these attributes."""
        known = self._known.get(collection.name)
        if known is not None and known.collection is collection:
            shape = known.puts.get(names)
            if shape is not None:
                return shape
        with self._lock:
            known = self._grown(collection, names)
            shape = known.puts.get(names)
            if shape is None:
                shape = known.puts[names] = put_shape(collection, names, known.names)
            return shape

    def tombstone(self, collection: Collection) -> Shape:
        """For a tombstone in this collection."""
        with self._lock:
            known = self._grown(collection, ())
            if known.tombstone is None:
                known.tombstone = tombstone_shape(collection, known.names)
            return known.tombstone

    def learn(self, collection: Collection, names: Iterable[str]) -> None:
        """Items of this collection may carry `names`."""
        with self._lock:
            self._grown(collection, names)

    def forget(self, collection: Collection) -> None:
        with self._lock:
            self._known.pop(collection.name, None)

    def _grown(self, collection: Collection, names: Iterable[str]) -> _Known:
        known = self._known.get(collection.name)
        before = known.names if known is not None else frozenset()
        after = before.union(names, collection.retired).difference(META)
        if known is None or after != before or known.collection != collection:
            known = self._known[collection.name] = _Known(collection, after)
        return known
