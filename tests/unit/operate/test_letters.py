"""What is done to dead letters is done to those that somebody was shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from docferry.change.model import Op
from docferry.deadletter.contract import QUEUE_IDS, DeadLetter, DeadLetters, StoredDeadLetter
from docferry.operate.letters import Selection, Shown, count, discard

NOW = datetime(2026, 1, 1, tzinfo=UTC)


class Store:
    """contract.DeadLetters, those of a table and of a queue."""

    def __init__(self) -> None:
        self.kept: dict[int, StoredDeadLetter] = {}

    def fail(self, id_: int, minute: int) -> None:
        """A change fails, for the first time or again."""
        at = NOW + timedelta(minutes=minute)
        known = self.kept.get(id_)
        if known is None:
            letter = DeadLetter("public.t", {"id": str(id_)}, minute, Op.UPDATE, "too-large", "too large")
            self.kept[id_] = StoredDeadLetter(id_, letter, 1, at, at)
        else:
            self.kept[id_] = replace(known, attempts=known.attempts + 1, last_at=at)

    def find(self, *, after: int = 0, limit: int = 1000, **_: Any) -> list[StoredDeadLetter]:
        """As the joined stores do: all of the first come before any of the second."""
        store = [[one for one in self.kept if one < QUEUE_IDS], [one for one in self.kept if one >= QUEUE_IDS]]
        found = [sorted(one for one in ids if one > after)[:limit] for ids in store]
        return [self.kept[one] for one in found[0] or found[1]]

    def remove(self, letters: Sequence[StoredDeadLetter], _outcomes: Mapping[int, str] | None = None) -> int:
        gone = [one.id for one in letters if self.kept.get(one.id) == one]
        for id_ in gone:
            del self.kept[id_]
        return len(gone)

    def shown(self) -> Shown:
        return count(cast("DeadLetters", self), Selection())[1]

    def discard(self, shown: Shown) -> int:
        return discard(cast("DeadLetters", self), Selection(), shown)


def test_what_failed_again_since_it_was_shown_stays() -> None:
    store = Store()
    store.fail(1, minute=0)
    store.fail(2, minute=5)
    shown = store.shown()
    store.fail(1, minute=6)
    assert store.discard(shown) == 1
    assert list(store.kept) == [1]


def test_what_came_since_stays_in_whichever_store() -> None:
    store = Store()
    store.fail(1, minute=0)
    store.fail(QUEUE_IDS + 512, minute=9)
    shown = store.shown()
    # Of another clock, and of no order: a message's id says nothing of its age.
    for number in range(2, 1500):
        store.fail(number, minute=1)
    store.fail(QUEUE_IDS, minute=10)
    assert store.discard(shown) == 2
    assert len(store.kept) == 1499
    assert QUEUE_IDS in store.kept


def test_those_of_the_queue_alone() -> None:
    store = Store()
    store.fail(QUEUE_IDS + 512, minute=0)
    shown = store.shown()
    store.fail(1, minute=0)
    assert store.discard(shown) == 1
    assert list(store.kept) == [1]
