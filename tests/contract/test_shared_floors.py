"""TRUNCATE where changes come in any order through several processes, held against every target."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest

from docferry.document.model import Collection, Delete, KeyAttribute, KeyKind, Put, Write
from docferry.errors import TargetRefused
from docferry.operate.control import floors_of_others, forget_floors
from docferry.target.contract import Outcome, Target
from docferry.target.floors_shared import control_collection, floor_key, floor_put

from .conftest import MakeTarget, Place, new_name

APPLIED, STALE, REFUSED = Outcome.APPLIED, Outcome.STALE, Outcome.REFUSED
EPOCH = 3 * 2**96


def put(collection: Collection, number: int, version: int, **document: str) -> Put:
    return Put(collection, (number,), version, {"id": number, **document})


def write(target: Target, *writes: Write) -> list[Outcome]:
    return [result.outcome for result in target.write(writes)]


def versions(target: Target, collection: Collection) -> dict[int, int]:
    return {int(str(item.key[0])): item.version for item in target.scan(collection)}


def test_what_another_process_truncated_stays_out(make_process: MakeTarget, orders: Collection) -> None:
    one, other = make_process(), make_process()
    write(other, put(orders, 1, EPOCH + 10), put(orders, 2, EPOCH + 70), Delete(orders, (3,), EPOCH + 20))
    assert one.truncate(orders, EPOCH + 60) == 2
    late: list[Write] = [put(orders, 1, EPOCH + 50), Delete(orders, (4,), EPOCH + 51), put(orders, 5, EPOCH + 61)]
    assert write(other, *late) == [STALE, STALE, APPLIED]
    assert versions(other, orders) == {2: EPOCH + 70, 5: EPOCH + 61}
    assert write(other, *late) == [STALE, STALE, STALE], "it knows the floor by now"
    assert write(make_process(), *late) == [STALE, STALE, STALE]
    assert versions(other, orders) == {2: EPOCH + 70, 5: EPOCH + 61}


def test_a_version_at_the_floor_is_let_in(make_process: MakeTarget, orders: Collection) -> None:
    make_process().truncate(orders, 60)
    assert write(make_process(), put(orders, 1, 60), put(orders, 2, 59)) == [APPLIED, STALE]


def test_a_floor_never_sinks(make_process: MakeTarget, orders: Collection, control: Collection) -> None:
    make_process().truncate(orders, EPOCH + 60)
    assert make_process().truncate(orders, EPOCH + 50) == 0
    assert write(make_process(), put(orders, 1, EPOCH + 55)) == [STALE]
    (item,) = make_process().read(control, [floor_key(orders.name)])
    assert item is not None
    assert item.version == EPOCH + 60


def test_a_process_that_died_between_floor_and_removal(
    make_process: MakeTarget, orders: Collection, control: Collection
) -> None:
    writer, died, again = make_process(), make_process(), make_process()
    write(writer, *[put(orders, number, number) for number in range(1, 70)])
    write(died, floor_put(control, orders.name, 60))
    assert len(versions(writer, orders)) == 69, "the floor alone removes nothing"
    assert write(writer, put(orders, 70, 55)) == [STALE], "but it holds"
    assert again.truncate(orders, 60) == 59
    assert versions(writer, orders) == {number: number for number in range(60, 70)}


@pytest.mark.parametrize("knows", [False, True])
def test_a_writer_that_died_before_it_looked_for_floors(
    make_target: MakeTarget, make_process: MakeTarget, orders: Collection, knows: bool
) -> None:
    """What repeats its write finds it stored, or knows the floor and does not write: it is removed all the same."""
    died, again = make_target(), make_process()
    make_process().truncate(orders, 60)
    if knows:
        assert write(again, put(orders, 9, 10)) == [STALE]
    assert write(died, put(orders, 1, 50), Delete(orders, (2,), 51)) == [APPLIED, APPLIED]
    assert write(again, put(orders, 1, 50), Delete(orders, (2,), 51)) == [STALE, STALE]
    assert versions(again, orders) == {}


def test_what_came_after_the_truncate_is_not_taken_back(
    make_target: MakeTarget, make_process: MakeTarget, orders: Collection
) -> None:
    make_process().truncate(orders, 60)
    write(make_target(), put(orders, 1, 70, note="new"))
    assert write(make_process(), put(orders, 1, 50)) == [STALE]
    assert versions(make_target(), orders) == {1: 70}


def test_items_without_a_version_stay(
    place: Place, make_process: MakeTarget, orders: Collection, control: Collection
) -> None:
    place.put_foreign(orders, 1)
    place.put_foreign(orders, 2)
    knows = make_process()
    assert knows.truncate(orders, 60) == 0
    assert write(knows, put(orders, 1, 50)) == [STALE]
    assert versions(knows, orders) == {1: -1, 2: -1}


def test_each_collection_has_its_own_floor(make_process: MakeTarget, orders: Collection) -> None:
    one, other = make_process(), make_process()
    lines = Collection(new_name(), (KeyAttribute("id", KeyKind.TEXT),))
    one.create(lines)
    try:
        one.truncate(orders, 60)
        writes: list[Write] = [
            put(orders, 1, 50),
            Put(lines, ("a",), 50, {}),
            put(orders, 2, 61),
            Delete(lines, ("b",), 51),
        ]
        assert write(other, *writes) == [STALE, APPLIED, APPLIED, APPLIED]
        one.truncate(lines, 70)
        assert write(other, *writes) == [STALE] * 4
        assert versions(one, orders) == {2: 61}
        assert list(one.scan(lines)) == []
    finally:
        one.drop(lines)


def test_what_is_refused_and_below_the_floor_is_stale(make_process: MakeTarget, orders: Collection) -> None:
    """A row that was truncated needs no dead letter."""
    make_process().truncate(orders, 60)
    other = make_process()
    bad = [Put(orders, ("text",), 50, {}), put(orders, 1, 50, text="\ud800"), put(orders, 2, 70, text="\ud800")]
    assert write(other, *bad) == [STALE, STALE, REFUSED]
    assert write(other, *bad) == [STALE, STALE, REFUSED]


def test_many_at_once(make_process: MakeTarget, orders: Collection) -> None:
    make_process().truncate(orders, 60)
    assert write(make_process(), *[put(orders, number, number) for number in range(130)]) == [
        STALE if number < 60 else APPLIED for number in range(130)
    ]
    assert versions(make_process(), orders) == {number: number for number in range(60, 130)}
    assert make_process().write([]) == []


def test_writers_race_a_truncate(make_process: MakeTarget, orders: Collection) -> None:
    """Whoever is first: once all calls have returned, nothing below the floor is left and all above it is."""
    rounds, keys = 12, 8
    writers = [make_process() for _ in range(3)]
    truncater = make_process()
    start = threading.Barrier(len(writers) + 1)
    failures: list[BaseException] = []

    def race(turns: Sequence[list[Write]], target: Target) -> None:
        try:
            for turn, writes in enumerate(turns):
                start.wait(60)
                if writes:
                    target.write(writes)
                else:
                    target.truncate(orders, 100 * turn + 50)
        except BaseException as error:  # noqa: BLE001 - shown by the assertion below
            failures.append(error)
            start.abort()

    plans: list[tuple[list[list[Write]], Target]] = [
        (
            [
                [put(orders, key * 10 + place, 100 * turn + 20 * key + place) for key in range(keys)]
                for turn in range(rounds)
            ],
            writer,
        )
        for place, writer in enumerate(writers)
    ]
    plans.append(([[] for _ in range(rounds)], truncater))
    racers = [threading.Thread(target=race, args=plan) for plan in plans]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    assert not failures
    floor = 100 * (rounds - 1) + 50
    latest = {key * 10 + place: 100 * (rounds - 1) + 20 * key + place for place in range(3) for key in range(keys)}
    assert versions(truncater, orders) == {key: version for key, version in latest.items() if version >= floor}


def test_a_missing_control_collection_is_named(place: Place, orders: Collection) -> None:
    control = control_collection(new_name())
    process = place.target(control)
    for call in (lambda: process.write([put(orders, 1, 1)]), lambda: process.truncate(orders, 1)):
        with pytest.raises(TargetRefused, match=f"collection {control.name} does not exist") as caught:
            call()
        assert caught.value.remedy == "Run `docferry apply`."


def test_a_floor_may_be_raised_and_nothing_removed(make_process: MakeTarget, orders: Collection) -> None:
    """As at the beginning of an epoch: what the earlier one left stays, what still comes of it does not get in."""
    process = make_process()
    write(process, put(orders, 1, EPOCH - 5))
    process.raise_floor(orders, EPOCH)
    assert write(make_process(), put(orders, 2, EPOCH - 4), put(orders, 3, EPOCH + 1)) == [STALE, APPLIED]
    assert versions(process, orders) == {1: EPOCH - 5, 3: EPOCH + 1}


def test_what_one_configuration_leaves_to_the_others(
    make_process: MakeTarget, orders: Collection, control: Collection
) -> None:
    target = make_process()
    target.truncate(orders, EPOCH + 60)
    write(target, floor_put(control, "theirs", 7))
    assert floors_of_others(target, control, [orders.name]) == ["theirs"]
    forget_floors(target, control, [orders.name, "never truncated"])
    assert floors_of_others(target, control, []) == ["theirs"]
    assert [item.key for item in target.scan(control)] == [floor_key("theirs")]
    assert write(make_process(), put(orders, 1, EPOCH + 50)) == [APPLIED]
