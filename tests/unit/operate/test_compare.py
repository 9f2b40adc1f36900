"""A row held against its item: every kind of difference, and what is none."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from docferry.document.model import Collection, Delete, KeyAttribute, KeyKind, Put, Value
from docferry.errors import RowRefused, ValueRefused
from docferry.operate.compare import Expected, Kind, compare, is_own
from docferry.target.contract import Item
from docferry.target.dynamodb_items import decode_item
from docferry.target.memory import MemoryTarget

ORDERS = Collection("orders", (KeyAttribute("id", KeyKind.NUMBER),))
TEMPLATED = Collection("orders", (KeyAttribute("pk", KeyKind.TEXT),))
TARGET = MemoryTarget()
TARGET.create(ORDERS)


def put(version: int = 5, **document: Value) -> Put:
    return Put(ORDERS, (1,), version, {"id": 1, **document})


def item_of(write: Put | Delete) -> Item:
    target = MemoryTarget()
    target.create(write.collection)
    target.write([write])
    (item,) = target.read(write.collection, [write.key])
    assert item is not None
    return item


def kind(expected: Expected, item: Item | None, ceiling: int | None = None) -> Kind:
    return compare(expected, item, TARGET.digest, ceiling=ceiling).kind


def changed(item: Item, **document: Value) -> Item:
    """As somebody else leaves it: other content, the hash as it was."""
    return replace(item, document={**(item.document or {}), **document})


def test_what_docferry_wrote_of_the_row_is_identical_whatever_its_version() -> None:
    row = put(a="x", b=Decimal("1.50"), c={"d": [1, None, True, b"\x00"]})
    for version in (0, 5, 10**30):
        assert kind(row, item_of(replace(row, version=version))) is Kind.IDENTICAL


def test_a_row_without_a_live_item_is_missing() -> None:
    assert kind(put(a="x"), None) is Kind.MISSING
    assert kind(put(a="x"), item_of(Delete(ORDERS, (1,), 9))) is Kind.MISSING


def test_an_item_without_a_row_is_orphaned_and_a_tombstone_is_none() -> None:
    assert kind(None, item_of(put(a="x"))) is Kind.ORPHANED
    assert kind(None, Item((1,), -1, {"id": 1})) is Kind.ORPHANED
    assert kind(None, item_of(Delete(ORDERS, (1,), 9))) is Kind.IDENTICAL
    assert kind(None, None) is Kind.IDENTICAL


def test_a_tombstone_that_would_hold_back_every_change_is_not_docferrys() -> None:
    tombstone = item_of(Delete(ORDERS, (1,), 101))
    assert kind(None, tombstone, ceiling=101) is Kind.IDENTICAL
    assert kind(None, tombstone, ceiling=100) is Kind.DIFFERENT
    assert kind(None, replace(tombstone, version=-1), ceiling=100) is Kind.DIFFERENT
    assert kind(put(a="x"), tombstone, ceiling=100) is Kind.MISSING


def test_an_older_state_is_stale() -> None:
    assert kind(put(a="new"), item_of(put(a="old"))) is Kind.STALE
    assert kind(put(a="new", b="added column"), item_of(put(a="new"))) is Kind.STALE


@pytest.mark.parametrize(
    "item",
    [
        changed(item_of(put(a="x")), a="y"),
        changed(item_of(put(a="x")), added="attribute"),
        replace(item_of(put(a="x")), document={"id": 1}),
        replace(item_of(put(a="x")), hash=None),
        replace(item_of(put(a="x")), hash=b"0" * 16),
        replace(item_of(put(a="x")), version=-1),
        changed(item_of(put(a="x")), a="x" * 500_000),
        changed(item_of(put(a="x")), a={"": "an empty name"}),
        changed(item_of(put(a="old")), a="x"),
        Item((1,), -1, {"id": 1, "a": "x"}),
    ],
    ids=["changed", "added", "removed", "no hash", "wrong hash", "no version", "huge", "unstorable", "by hand", "bare"],
)
def test_what_somebody_else_wrote_is_different(item: Item) -> None:
    assert kind(put(a="x"), item) is Kind.DIFFERENT
    assert not is_own(ORDERS, item, TARGET.digest)
    assert kind(None, item) is Kind.ORPHANED


def test_the_stored_hash_is_not_believed() -> None:
    """Somebody who changes the content leaves the hash: it still is that of the row."""
    item = changed(item_of(put(a="x")), a="y")
    assert item.hash == TARGET.digest(put(a="x"))
    assert kind(put(a="x"), item) is Kind.DIFFERENT


def test_a_version_that_no_change_has_yet_is_not_docferrys() -> None:
    item = item_of(put(101, a="x"))
    assert kind(put(a="x"), item, ceiling=101) is Kind.IDENTICAL
    assert kind(put(a="x"), item, ceiling=100) is Kind.DIFFERENT


def test_a_row_that_cannot_be_stored_is_refused_with_its_cause() -> None:
    refused: RowRefused = ValueRefused("no date", table="public.orders", key="id=1")
    for item in (None, item_of(put(a="x")), item_of(Delete(ORDERS, (1,), 9))):
        compared = compare(refused, item, TARGET.digest)
        assert (compared.kind, compared.error) == (Kind.REFUSED, refused)
    large = compare(put(a="x" * 500_000), None, TARGET.digest)
    assert large.kind is Kind.REFUSED
    assert "bytes" in str(large.error)


def test_key_attributes_of_a_template_belong_to_the_content() -> None:
    row = Put(TEMPLATED, ("ORDER#1",), 5, {"id": 1, "a": "x"})
    assert kind(row, item_of(row)) is Kind.IDENTICAL
    assert kind(replace(row, document={"id": 1, "a": "y"}), item_of(row)) is Kind.STALE


@pytest.mark.parametrize(
    "foreign",
    [{"tags": {"SS": ["a", "b"]}}, {"doc": {"M": {"tags": {"L": [{"NS": ["1"]}]}}}}, {"_ttl": {"N": "2000000000"}}],
    ids=["a set for a list", "a set within", "an expiry"],
)
def test_what_only_the_target_knows_is_seen_too(foreign: dict[str, Any]) -> None:
    """A set reads like a list, and an item that expires goes one day."""
    row = put(tags=["a", "b"], doc={"tags": [[1]]})
    stored = {
        "id": {"N": "1"},
        "tags": {"L": [{"S": "a"}, {"S": "b"}]},
        "doc": {"M": {"tags": {"L": [{"L": [{"N": "1"}]}]}}},
        "_v": {"N": "5"},
        "_h": {"B": TARGET.digest(row)},
    }
    assert kind(row, decode_item(ORDERS, stored)) is Kind.IDENTICAL
    assert kind(row, decode_item(ORDERS, {**stored, **foreign})) is Kind.DIFFERENT
