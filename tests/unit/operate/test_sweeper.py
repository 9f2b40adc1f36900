"""Tombstones go when nothing needs them any more, and not before."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import pytest

from docferry.applier import Tombstone
from docferry.capture.contract import Ledger
from docferry.document.model import Collection, Delete, Key, KeyAttribute, KeyKind, Put
from docferry.errors import SourceRefused, SourceUnavailable, TargetRefused
from docferry.operate import sweeper as module
from docferry.operate.sweeper import Sweeper
from docferry.target.memory import MemoryTarget

ITEMS, OTHERS = (Collection(name, (KeyAttribute("id", KeyKind.NUMBER),)) for name in ("items", "others"))


class Watched(MemoryTarget):
    def __init__(self) -> None:
        super().__init__()
        self.swept: list[int] = []
        self.failure: Exception | None = None

    def sweep(self, collection: Collection, tombstones: Sequence[tuple[Key, int]]) -> int:
        if self.failure is not None:
            raise self.failure
        self.swept.append(len(tombstones))
        return super().sweep(collection, tombstones)


class Gate:
    """The ledger's part in it: `allowed`, or what it raises."""

    def __init__(self) -> None:
        self.allowed: bool | Exception = True
        self.asked = 0

    @contextmanager
    def sweeping(self) -> Iterator[bool]:
        self.asked += 1
        if isinstance(self.allowed, Exception):
            raise self.allowed
        yield self.allowed


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def target() -> Watched:
    target = Watched()
    target.create(ITEMS)
    target.create(OTHERS)
    return target


@pytest.fixture
def sweeper(target: Watched, gate: Gate, clock: Clock) -> Sweeper:
    return Sweeper(target, cast("Ledger", gate), grace=60.0)


def bury(target: Watched, key: int, version: int, collection: Collection = ITEMS) -> Tombstone:
    target.write([Delete(collection, (key,), version)])
    return Tombstone(collection, (key,), version)


def left(target: Watched, collection: Collection = ITEMS) -> dict[Key, int]:
    return {item.key: item.version for item in target.scan(collection)}


def test_nothing_to_do_asks_nobody(sweeper: Sweeper, gate: Gate) -> None:
    assert sweeper.sweep() == 0
    assert gate.asked == 0


def test_a_tombstone_outlives_the_watermark_by_the_grace(sweeper: Sweeper, target: Watched, clock: Clock) -> None:
    sweeper.note([bury(target, 1, 5)])
    clock.now += 59.9
    assert sweeper.sweep() == 0
    assert left(target) == {(1,): 5}
    clock.now += 0.2
    assert sweeper.sweep() == 1
    assert left(target) == {}
    assert sweeper.pending == 0


def test_a_tombstone_nobody_told_of_stays(sweeper: Sweeper, target: Watched, clock: Clock) -> None:
    bury(target, 1, 5)
    sweeper.note([bury(target, 2, 6)])
    clock.now += 61
    sweeper.sweep()
    assert left(target) == {(1,): 5}


def test_what_is_stored_by_then_stays(sweeper: Sweeper, target: Watched, clock: Clock) -> None:
    sweeper.note([bury(target, 1, 5), bury(target, 2, 6)])
    target.write([Put(ITEMS, (1,), 7, {"id": 1})])
    bury(target, 2, 8)
    clock.now += 61
    assert sweeper.sweep() == 0
    assert left(target) == {(1,): 7, (2,): 8}


def test_of_two_tombstones_of_one_key_the_newer_counts(sweeper: Sweeper, target: Watched, clock: Clock) -> None:
    sweeper.note([bury(target, 1, 5)])
    sweeper.note([bury(target, 1, 9)])
    clock.now += 61
    assert sweeper.sweep() == 1
    assert left(target) == {}


@pytest.mark.parametrize("hindrance", [False, SourceUnavailable("down")])
def test_while_old_versions_may_come_everything_stays(
    sweeper: Sweeper, target: Watched, gate: Gate, clock: Clock, hindrance: bool | Exception
) -> None:
    tombstones = [bury(target, key, key) for key in range(1, 6)]
    sweeper.note(tombstones)
    clock.now += 61
    gate.allowed = hindrance
    assert sweeper.sweep() == 0
    assert len(left(target)) == sweeper.pending == 5
    gate.allowed = True
    assert sweeper.sweep() == 5
    assert left(target) == {}


def test_trouble_that_does_not_pass_is_raised(sweeper: Sweeper, target: Watched, gate: Gate, clock: Clock) -> None:
    sweeper.note([bury(target, 1, 5)])
    clock.now += 61
    gate.allowed = SourceRefused("no")
    with pytest.raises(SourceRefused):
        sweeper.sweep()
    gate.allowed = True
    sweeper.note([bury(target, 2, 6)])
    clock.now += 61
    target.failure = TargetRefused("no")
    with pytest.raises(TargetRefused):
        sweeper.sweep()


def test_collections_are_swept_each_on_its_own(sweeper: Sweeper, target: Watched, clock: Clock) -> None:
    sweeper.note([bury(target, 1, 5), bury(target, 1, 6, OTHERS), bury(target, 2, 7)])
    clock.now += 61
    assert sweeper.sweep() == 3
    assert sorted(target.swept) == [1, 2]


def test_so_many_at_once_in_the_order_they_came(sweeper: Sweeper, target: Watched, clock: Clock) -> None:
    sweeper.note([bury(target, key, key) for key in range(1, 2501)])
    clock.now += 61
    assert [sweeper.sweep() for _ in range(4)] == [1000, 1000, 500, 0]
    assert max(target.swept) <= 1000


def test_memory_is_bounded(sweeper: Sweeper, target: Watched) -> None:
    """The oldest are left to the target's own expiry."""
    sweeper.note([Tombstone(ITEMS, (key,), key) for key in range(1, 300_001)])
    assert sweeper.pending == 200_000


# -- late below a floor ------------------------------------------------------------------------------------------------


def test_what_an_earlier_worker_writes_late_below_a_floor_is_removed(target: Watched, gate: Gate, clock: Clock) -> None:
    sweeper = Sweeper(target, cast("Ledger", gate), grace=60)
    earlier = MemoryTarget(target.store)  # it was killed with a request on the wire, and knew no floor
    target.truncate(ITEMS, 20)
    sweeper.note_floor(ITEMS, 20)
    earlier.write([Put(ITEMS, (1,), 10, {"id": 1})])
    target.write([Put(ITEMS, (2,), 30, {"id": 2})])
    clock.now += 59
    sweeper.sweep()
    assert len(list(target.scan(ITEMS))) == 2
    clock.now += 2
    sweeper.sweep()
    assert [item.key for item in target.scan(ITEMS)] == [(2,)]


def test_nothing_is_removed_twice_once_nothing_can_be_late(target: Watched, gate: Gate, clock: Clock) -> None:
    sweeper = Sweeper(target, cast("Ledger", gate), grace=60)
    clock.now += 61
    sweeper.note_floor(ITEMS, 20)
    MemoryTarget(target.store).write([Put(ITEMS, (1,), 10, {"id": 1})])
    sweeper.sweep()
    assert len(list(target.scan(ITEMS))) == 1
