"""TRUNCATE as a floor (R4): what is below it stays out, also what was on its way when the floor was set."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Floors"]


class Floors:
    """The floor of every collection, and the calls that may still be writing below one."""

    def __init__(self) -> None:
        self._floors: dict[str, int] = {}
        self._writing: set[object] = set()
        self._changed = threading.Condition()

    @contextmanager
    def writing(self) -> Iterator[dict[str, int]]:
        """Announces a call that writes; gives it the floors to respect: collection name -> lowest version let in."""
        ticket = object()
        with self._changed:
            self._writing.add(ticket)
            floors = dict(self._floors)
        try:
            yield floors
        finally:
            with self._changed:
                self._writing.remove(ticket)
                self._changed.notify_all()

    def learn(self, collection: str, version: int) -> None:
        """Raise the floor for calls that start from now on."""
        with self._changed:
            self._floors[collection] = max(version, self._floors.get(collection, version))

    def set(self, collection: str, version: int) -> None:
        """Raise the floor, then wait until every call that started under the old one has ended."""
        self.learn(collection, version)
        with self._changed:
            earlier = set(self._writing)
            self._changed.wait_for(lambda: not (earlier & self._writing))
