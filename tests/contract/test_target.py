"""What every target must do, held against each of them."""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any

import boto3
import pytest

from docferry.document.model import Collection, Delete, Key, KeyAttribute, KeyKind, Put, Value, Write
from docferry.errors import DocumentTooDeep, ItemTooLarge, KeyRefused, RowRefused, TargetRefused
from docferry.retry import Retry
from docferry.target.contract import Item, Outcome, Result, Target
from docferry.target.dynamodb import DynamoDBTarget

from .conftest import MakeTarget, Place, new_name

APPLIED, STALE, REFUSED = Outcome.APPLIED, Outcome.STALE, Outcome.REFUSED


def put(collection: Collection, number: int, version: int, *, new: bool = False, **document: Value) -> Put:
    return Put(collection, (number,), version, {"id": number, **document}, new)


def delete(collection: Collection, number: int, version: int) -> Delete:
    return Delete(collection, (number,), version)


def write(target: Target, *writes: Write) -> list[Outcome]:
    return [result.outcome for result in target.write(writes)]


def stored(target: Target, collection: Collection, number: int) -> Item | None:
    (item,) = target.read(collection, [(number,)])
    return item


def document_of(target: Target, collection: Collection, number: int) -> dict[str, Value] | None:
    item = stored(target, collection, number)
    assert item is not None
    return item.document


@pytest.mark.parametrize("new", [True, False])
def test_only_a_greater_version_is_applied(target: Target, orders: Collection, new: bool) -> None:
    assert write(target, put(orders, 1, 10, new=new, note="ten")) == [APPLIED]
    assert write(target, put(orders, 1, 9, new=new, note="nine")) == [STALE]
    assert write(target, put(orders, 1, 10, new=new, note="ten again")) == [STALE]
    assert document_of(target, orders, 1) == {"id": 1, "note": "ten"}
    assert write(target, put(orders, 1, 11, new=new, note="eleven")) == [APPLIED]
    item = stored(target, orders, 1)
    assert item is not None
    assert (item.version, item.document) == (11, {"id": 1, "note": "eleven"})


def test_versions_compare_as_numbers_of_any_epoch(target: Target, orders: Collection) -> None:
    epoch = 2**64
    assert write(target, put(orders, 1, 9)) == [APPLIED]
    assert write(target, put(orders, 1, 10)) == [APPLIED]
    assert write(target, put(orders, 1, 3 * epoch + 5)) == [APPLIED]
    assert write(target, put(orders, 1, 2 * epoch + 7)) == [STALE]
    item = stored(target, orders, 1)
    assert item is not None
    assert item.version == 3 * epoch + 5


def test_a_put_replaces_the_whole_item(target: Target, orders: Collection) -> None:
    write(target, put(orders, 1, 1, a="x", b="y"))
    write(target, put(orders, 1, 2, b="z", c={"d": [1]}))
    assert document_of(target, orders, 1) == {"id": 1, "b": "z", "c": {"d": [1]}}


def test_attributes_of_retired_columns_vanish(make_target: MakeTarget, target: Target, orders: Collection) -> None:
    write(target, put(orders, 1, 1, a="x", gone="y"))
    later = replace(orders, retired=frozenset(("gone",)))
    assert write(make_target(), put(later, 1, 2, a="x")) == [APPLIED]
    assert document_of(target, orders, 1) == {"id": 1, "a": "x"}


def test_values_come_back_as_they_went(target: Target, orders: Collection) -> None:
    document: dict[str, Any] = {
        "null": None,
        "yes": True,
        "no": False,
        "int": -12,
        "digits": 12345678901234567890123456789012345678,
        "decimal": Decimal("0.00000000000000000000000000000000000001"),
        "large": Decimal("9E+100"),
        "zeros": Decimal("2.500"),
        "text": 'a "quoted" \\ back\nslash, ü, 日本, 😀, \x00 and \x7f',
        "empty": "",
        "binary": bytes(range(256)),
        "list": [1, "two", None, [], {}],
        "map": {"@name": "x", "#text": "y", "a.b": {"c'\"d": [{}]}},
        'a column\'s "name", with ü': 1,
    }
    target.write([put(orders, 1, 1, **document)])
    assert document_of(target, orders, 1) == {"id": 1, **document}
    target.write([put(orders, 1, 2, **document)])
    assert document_of(target, orders, 1) == {"id": 1, **document}


def test_the_hash_is_the_one_that_was_announced(target: Target, orders: Collection) -> None:
    one, other = put(orders, 1, 1, a={"x": 1, "y": [2]}), put(orders, 1, 2, a={"y": [2], "x": Decimal("1.0")})
    target.write([one])
    item = stored(target, orders, 1)
    assert item is not None
    assert item.hash == target.digest(one) == target.digest(other)
    assert len(item.hash or b"") == 16
    assert target.digest(put(orders, 1, 1, a={"x": 1, "y": [3]})) != item.hash


@pytest.mark.parametrize("present", [True, False])
def test_a_delete_leaves_a_tombstone(make_target: MakeTarget, orders: Collection, present: bool) -> None:
    target = make_target()
    if present:
        target.write([put(orders, 1, 5, a="x")])
    assert write(make_target(), delete(orders, 1, 7)) == [APPLIED]
    assert stored(target, orders, 1) == Item((1,), 7, None)
    assert write(target, put(orders, 1, 6, a="late")) == [STALE]
    assert write(target, delete(orders, 1, 7)) == [STALE]
    assert stored(target, orders, 1) == Item((1,), 7, None)


def test_a_tombstone_is_revived_by_a_later_put(target: Target, orders: Collection) -> None:
    write(target, put(orders, 1, 1, a="x", b=1))
    write(target, delete(orders, 1, 2))
    assert write(target, put(orders, 1, 3, new=True, b=2)) == [APPLIED]
    assert document_of(target, orders, 1) == {"id": 1, "b": 2}
    assert target.sweep(orders, [((1,), 2)]) == 0
    assert document_of(target, orders, 1) == {"id": 1, "b": 2}


def test_results_come_in_the_order_of_the_writes(target: Target, orders: Collection) -> None:
    write(target, put(orders, 2, 10), put(orders, 4, 10))
    outcomes = write(
        target,
        put(orders, 1, 5, new=True),
        put(orders, 2, 5),
        put(orders, 3, 5, a={"": "no name"}),
        delete(orders, 4, 11),
        put(orders, 5, 5),
        delete(orders, 6, 5),
        put(orders, 7, 5, new=True),
    )
    assert outcomes == [APPLIED, STALE, REFUSED, APPLIED, APPLIED, APPLIED, APPLIED]
    assert target.write([]) == []


def test_more_writes_than_fit_into_a_request(target: Target, orders: Collection) -> None:
    writes = [put(orders, number, 1, new=number % 2 == 0, text="x" * 10) for number in range(130)]
    assert write(target, *writes) == [APPLIED] * 130
    assert (
        write(target, *[put(orders, number, 1 + number % 2, text="y") for number in range(130)])
        == [STALE, APPLIED] * 65
    )
    items = target.read(orders, [(number,) for number in range(140)])
    assert [item is not None for item in items] == [True] * 130 + [False] * 10
    assert [item.version for item in items if item is not None] == [1, 2] * 65


def test_megabytes_in_one_call(target: Target, orders: Collection) -> None:
    writes = [put(orders, number, 1, text=chr(97 + number) * 390_000) for number in range(26)]
    assert write(target, *writes) == [APPLIED] * 26
    documents = [item.document for item in target.read(orders, [w.key for w in writes]) if item is not None]
    assert documents == [w.document for w in writes]


def test_reading_keeps_the_order_of_the_keys(target: Target, orders: Collection) -> None:
    write(target, put(orders, 1, 1), put(orders, 2, 1))
    keys: list[Key] = [(2,), (9,), (1,), (2,), (Decimal("1.0"),)]
    assert [item and item.key for item in target.read(orders, keys)] == [(2,), None, (1,), (2,), (1,)]
    assert target.read(orders, []) == []


def test_a_scan_shows_items_and_tombstones(target: Target, orders: Collection) -> None:
    write(target, *[put(orders, number, 3, text="x" * 20_000) for number in range(120)], delete(orders, 500, 4))
    items = {item.key: item for item in target.scan(orders)}
    assert items.keys() == {*((number,) for number in range(120)), (500,)}
    assert items[(500,)] == Item((500,), 4, None)
    assert items[(7,)].document == {"id": 7, "text": "x" * 20_000}


def deep(levels: int, leaf: Value = "x") -> Value:
    value = leaf
    for _ in range(levels):
        value = {"a": value}
    return value


def test_what_breaks_a_limit_is_refused_and_the_others_are_applied(target: Target, orders: Collection) -> None:
    bottomless = deep(100_000)
    try:
        refused: Sequence[tuple[Put, type[RowRefused], str]] = [
            (put(orders, 2, 5, tree=deep(32)), DocumentTooDeep, "column tree: nests too deep (limit: 32 levels)"),
            (put(orders, 3, 5, tree=bottomless), DocumentTooDeep, "column tree: nests too deep (limit: 32 levels)"),
            (
                put(orders, 4, 5, text="ü" * 210_000),
                ItemTooLarge,
                "420,000 of them in column text (limit: 409,600 bytes)",
            ),
            (put(orders, 5, 5, _v=1), RowRefused, "_v"),
            (put(orders, 6, 5, text="\ud800"), RowRefused, "surrogate"),
            (put(orders, 7, 5, tree=[{"": 1}]), RowRefused, "column tree: a map with an empty name"),
        ]
        good = [put(orders, 1, 5, tree=deep(31)), put(orders, 8, 5, text="x" * 409_000)]
        results = target.write([good[0], *(bad for bad, _, _ in refused), good[1]])
        assert [result.outcome for result in results] == [APPLIED, *[REFUSED] * len(refused), APPLIED]
        for (bad, kind, text), result in zip(refused, results[1:-1], strict=True):
            assert isinstance(result.error, kind)
            assert text in str(result.error)
            assert result.error.remedy
            assert str(target.check(bad)) == str(result.error)
        assert [target.check(fine) for fine in good] == [None, None]
        assert document_of(target, orders, 1) == {"id": 1, "tree": deep(31)}
        assert stored(target, orders, 3) is None
    finally:
        while isinstance(bottomless, dict):  # taken apart by hand: its own destructor would recurse as deep
            bottomless = bottomless.pop("a")


@pytest.mark.parametrize(
    ("kinds", "keys"),
    [
        ((KeyKind.TEXT,), [("a",), ("ü'\"\\",), ("x" * 2048,)]),
        ((KeyKind.NUMBER,), [(1,), (Decimal("1.5"),), (-3,), (0,), (Decimal("1E+20"),)]),
        ((KeyKind.BINARY,), [(b"\x00",), (b"\xff\xfe",)]),
        ((KeyKind.TEXT, KeyKind.NUMBER), [("a", 1), ("a", 2), ("b", 1)]),
        ((KeyKind.NUMBER, KeyKind.BINARY), [(1, b"a"), (1, b"b"), (2, b"a" * 1024)]),
        ((KeyKind.BINARY, KeyKind.TEXT), [(b"a", "x"), (b"a", "y")]),
    ],
)
def test_every_kind_of_key(target: Target, kinds: tuple[KeyKind, ...], keys: list[Key]) -> None:
    names = ("the 'first' \"key\"", "second")
    collection = Collection(new_name(), tuple(KeyAttribute(n, k) for n, k in zip(names, kinds, strict=False)))
    target.create(collection)
    try:
        for version, new in ((1, True), (2, False)):
            writes = [Put(collection, key, version, {"v": version}, new) for key in keys]
            assert write(target, *writes) == [APPLIED] * len(keys)
        assert [item and item.key for item in target.read(collection, keys)] == keys
        assert {item.key for item in target.scan(collection)} == set(keys)
        documents = [item.document for item in target.read(collection, keys) if item is not None]
        expected = [{"v": 2, **dict(zip(names, key, strict=False))} for key in keys]
        assert documents == expected
        assert write(target, *[Delete(collection, key, 3) for key in keys]) == [APPLIED] * len(keys)
        assert {item.document is None for item in target.scan(collection)} == {True}
        assert target.truncate(collection, 9) == len(keys)
    finally:
        target.drop(collection)


@pytest.mark.parametrize(
    ("kinds", "key"),
    [
        ((KeyKind.TEXT,), ("",)),
        ((KeyKind.TEXT,), ("x" * 2049,)),
        ((KeyKind.TEXT,), ("\udc00",)),
        ((KeyKind.TEXT,), (1,)),
        ((KeyKind.NUMBER,), ("1",)),
        ((KeyKind.NUMBER,), (10**40 + 1,)),
        ((KeyKind.BINARY,), (b"",)),
        ((KeyKind.TEXT, KeyKind.TEXT), ("x", "ü" * 513)),
        ((KeyKind.TEXT, KeyKind.TEXT), ("x",)),
    ],
)
def test_keys_that_cannot_be(target: Target, kinds: tuple[KeyKind, ...], key: Key) -> None:
    collection = Collection(new_name(), tuple(KeyAttribute(n, k) for n, k in zip("ab", kinds, strict=False)))
    target.create(collection)
    try:
        for bad in (Put(collection, key, 1, {}), Delete(collection, key, 1)):
            error = target.check(bad)
            assert isinstance(error, KeyRefused)
            assert error.limit
            assert error.remedy
            assert write(target, bad) == [REFUSED]
    finally:
        target.drop(collection)


def test_key_attributes_win_over_columns_of_their_name(target: Target) -> None:
    collection = Collection(new_name(), (KeyAttribute("id", KeyKind.TEXT),))
    target.create(collection)
    try:
        write(target, Put(collection, ("ORDER#7",), 1, {"id": 7, "a": 1}))
        (item,) = target.read(collection, [("ORDER#7",)])
        assert item is not None
        assert item.document == {"id": "ORDER#7", "a": 1}
        assert item.hash == target.digest(Put(collection, ("ORDER#7",), 1, item.document))
    finally:
        target.drop(collection)


def test_truncate_is_a_floor(target: Target, orders: Collection) -> None:
    write(target, *[put(orders, number, number) for number in range(1, 80)], delete(orders, 100, 10))
    assert target.truncate(orders, 60) == 60
    assert {item.key[0] for item in target.scan(orders)} == set(range(60, 80))
    assert write(target, put(orders, 1, 59), delete(orders, 2, 59), put(orders, 3, 60), put(orders, 4, 61)) == [
        STALE,
        STALE,
        APPLIED,
        APPLIED,
    ]
    assert target.truncate(orders, 50) == 0
    assert write(target, put(orders, 5, 55)) == [STALE]


def test_sweep_takes_only_tombstones_of_that_version(target: Target, orders: Collection) -> None:
    write(target, *[delete(orders, number, 5) for number in range(60)], put(orders, 70, 5))
    asked = [((number,), 5 if number % 2 else 4) for number in range(60)]
    assert target.sweep(orders, [*asked, ((70,), 5)]) == 30
    assert {item.key[0] for item in target.scan(orders)} == {*range(0, 60, 2), 70}
    assert write(target, put(orders, 1, 3)) == [APPLIED]


@pytest.mark.parametrize("new", [True, False])
def test_the_greatest_version_wins_every_race(make_target: MakeTarget, orders: Collection, new: bool) -> None:
    """Two writers that both find nothing: the older one may insert first, and the newer one must still win."""
    threads, rounds, keys = 8, 12, 5
    targets = [make_target() for _ in range(2)]
    start = threading.Barrier(threads)
    versions = random.Random(7).sample(range(1, 10_000), threads * rounds * keys)
    sent: dict[int, list[int]] = {}
    plan: list[list[list[Write]]] = [[[] for _ in range(rounds)] for _ in range(threads)]
    for thread in range(threads):
        for turn in range(rounds):
            for key in range(turn * keys, (turn + 1) * keys):
                version = versions.pop()
                sent.setdefault(key, []).append(version)
                tombstone = version % 5 == 0
                plan[thread][turn].append(
                    delete(orders, key, version) if tombstone else put(orders, key, version, new=new, by=version)
                )
            random.Random(thread * rounds + turn).shuffle(plan[thread][turn])
    failures: list[BaseException] = []

    def race(thread: int) -> None:
        try:
            for batch in plan[thread]:
                start.wait(30)
                assert REFUSED not in write(targets[thread % 2], *batch)
        except BaseException as error:  # noqa: BLE001 - shown by the assertion below
            failures.append(error)
            start.abort()

    racers = [threading.Thread(target=race, args=(thread,)) for thread in range(threads)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    assert not failures
    items = {int(item.key[0]): item for item in targets[0].scan(orders)}
    assert {key: item.version for key, item in items.items()} == {key: max(them) for key, them in sent.items()}
    for key, item in items.items():
        winner = max(sent[key])
        assert item.document == (None if winner % 5 == 0 else {"id": key, "by": winner})


def test_create_exists_and_drop(target: Target) -> None:
    collection = Collection(new_name(), (KeyAttribute("id", KeyKind.TEXT), KeyAttribute("line", KeyKind.NUMBER)))
    assert not target.exists(collection)
    assert target.create(collection)
    assert not target.create(collection)
    assert target.exists(collection)
    for other in (
        (KeyAttribute("id", KeyKind.TEXT),),
        (KeyAttribute("line", KeyKind.TEXT), KeyAttribute("id", KeyKind.NUMBER)),
        (KeyAttribute("id", KeyKind.NUMBER), KeyAttribute("line", KeyKind.NUMBER)),
    ):
        for method in (target.create, target.exists):
            with pytest.raises(TargetRefused, match="key") as caught:
                method(Collection(collection.name, other))
            assert caught.value.remedy
    assert target.drop(collection)
    assert not target.drop(collection)
    assert not target.exists(collection)


def test_a_missing_collection_is_named(make_target: MakeTarget) -> None:
    target = make_target()
    collection = Collection(new_name(), (KeyAttribute("id", KeyKind.NUMBER),))
    for method in (
        lambda: target.write([put(collection, 1, 1)]),
        lambda: target.read(collection, [(1,)]),
        lambda: list(target.scan(collection)),
        lambda: target.truncate(collection, 1),
    ):
        with pytest.raises(TargetRefused, match=f"collection {collection.name} does not exist") as caught:
            method()
        assert caught.value.remedy == "Run `docferry apply`."


def test_the_segments_of_a_scan_are_all_of_it(target: Target, orders: Collection) -> None:
    target.write([put(orders, number, 5, note="x") for number in range(40)])
    parts = [[item.key[0] for item in target.scan(orders, segment=one, segments=3)] for one in range(3)]
    assert sorted(number for part in parts for number in part) == list(range(40))


def test_an_item_is_replaced_whatever_its_version_while_it_is_as_it_was_seen(
    target: Target, orders: Collection
) -> None:
    target.write([put(orders, 1, 10**30, a="from nowhere", b="more"), put(orders, 2, 10**30, a="x")])
    seen, other = stored(target, orders, 1), stored(target, orders, 2)
    assert seen is not None
    assert other is not None
    assert target.write([put(orders, 1, 7, a="held back")]) == [Result(STALE)]
    assert target.replace(put(orders, 1, 7, a="mended"), seen) == Result(APPLIED)
    assert document_of(target, orders, 1) == {"id": 1, "a": "mended"}
    assert target.replace(put(orders, 1, 8, a="again"), seen) == Result(STALE)
    assert write(target, put(orders, 1, 8, a="a later change")) == [APPLIED]

    assert target.replace(delete(orders, 2, 7), other) == Result(APPLIED)
    tombstone = stored(target, orders, 2)
    assert tombstone is not None
    assert (tombstone.document, tombstone.version) == (None, 7)
    assert target.replace(put(orders, 3, 7, a="x"), replace(other, key=(3,))) == Result(STALE)
    assert stored(target, orders, 3) is None

    large = target.replace(put(orders, 2, 9, a="x" * 500_000), tombstone)
    assert isinstance(large.error, ItemTooLarge)
    target.raise_floor(orders, 100)
    assert target.replace(put(orders, 2, 99, a="x"), tombstone) == Result(STALE)


def test_an_item_that_docferry_did_not_write_is_replaced(place: Place, target: Target, orders: Collection) -> None:
    place.put_foreign(orders, 1)
    seen = stored(target, orders, 1)
    assert seen is not None
    assert target.replace(put(orders, 1, 7, a="ours"), seen) == Result(APPLIED)
    assert document_of(target, orders, 1) == {"id": 1, "a": "ours"}


@pytest.mark.parametrize("version", [{"S": "seven"}, {"N": "7.5"}, {"BOOL": True}, {"L": []}], ids=str)
def test_a_version_that_is_none_is_replaced(ministack_options: dict[str, str], version: dict[str, Any]) -> None:
    target = DynamoDBTarget(ministack_options, Retry(first=0.005, longest=0.1))
    collection = Collection(new_name(), (KeyAttribute("id", KeyKind.NUMBER),))
    target.create(collection)
    options: dict[str, Any] = ministack_options
    client = boto3.client("dynamodb", **options)
    client.put_item(TableName=collection.name, Item={"id": {"N": "1"}, "_v": version, "a": {"S": "foreign"}})
    client.close()
    seen = stored(target, collection, 1)
    assert seen is not None
    assert seen.version == -1
    assert write(target, put(collection, 1, 7, a="ours")) == [REFUSED]
    assert target.replace(put(collection, 1, 7, a="ours"), seen) == Result(APPLIED)
    assert document_of(target, collection, 1) == {"id": 1, "a": "ours"}
    target.drop(collection)
    target.close()
