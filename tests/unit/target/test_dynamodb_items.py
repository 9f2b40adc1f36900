"""The encoding: what goes in comes out, the hash survives the way there and back, the size is AWS's."""

from __future__ import annotations

import base64
import json
import random
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from docferry.document.model import Collection, KeyAttribute, KeyKind, Value
from docferry.errors import DocumentTooDeep, ItemTooLarge
from docferry.target.dynamodb_items import (
    MAX_ITEM_BYTES,
    attribute_text,
    decode_item,
    decode_value,
    encode,
    item_size,
    number_text,
)

ORDERS = Collection("orders", (KeyAttribute("id", KeyKind.NUMBER),))

unicode = st.characters(codec="utf-8")
texts = st.text(unicode)
names = st.text(unicode, min_size=1)
decimals = st.builds(
    lambda negative, digits, exponent: Decimal((negative, tuple(map(int, str(digits))), exponent)),
    st.integers(0, 1),
    st.integers(0, 10**38 - 1),
    st.integers(-60, 60),
)
integers = st.integers(-(10**38) + 1, 10**38 - 1)
scalars = st.none() | st.booleans() | integers | decimals | texts | st.binary()
values: st.SearchStrategy[Value] = st.recursive(
    scalars, lambda below: st.lists(below, max_size=5) | st.dictionaries(names, below, max_size=5), max_leaves=30
)
documents = st.dictionaries(names.filter(lambda name: not name.startswith("_")), values, max_size=6)


def same(one: Value, other: Value) -> bool:
    """Equal, and of the same kind: in Python True == 1."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other and isinstance(one, bool) == isinstance(other, bool)


def shuffled(value: Value, dice: random.Random) -> Value:
    """The same value, its maps in another order and its numbers written otherwise."""
    if isinstance(value, dict):
        members = list(value.items())
        dice.shuffle(members)
        return {name: shuffled(member, dice) for name, member in members}
    if isinstance(value, list):
        return [shuffled(entry, dice) for entry in value]
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**30:
        return Decimal(f"{value}.000")
    return value


@given(values)
def test_a_value_comes_back_from_its_text(value: Value) -> None:
    assert same(decode_value(json.loads(attribute_text(value))), value)


@given(documents, st.randoms(use_true_random=False))
def test_the_hash_survives_the_way_there_and_back(document: dict[str, Value], dice: random.Random) -> None:
    encoded = encode(ORDERS, (7,), document)
    item = json.loads("{" + encoded.members + "}")
    read = decode_item(ORDERS, {**item, "_v": {"N": "5"}, "_h": {"B": encoded.hash}})
    assert read.document is not None
    assert (read.key, read.version, read.hash) == ((7,), 5, encoded.hash)
    assert encode(ORDERS, read.key, read.document).hash == encoded.hash
    again = shuffled(read.document, dice)
    assert isinstance(again, dict)
    assert encode(ORDERS, (Decimal("7.0"),), again).hash == encoded.hash


@given(documents, names, values)
def test_another_document_has_another_hash(document: dict[str, Value], name: str, value: Value) -> None:
    changed = {**document, "x" + name: value}
    if not same(changed, document):
        assert encode(ORDERS, (1,), changed).hash != encode(ORDERS, (1,), document).hash


@given(documents)
def test_the_size_is_what_the_documentation_says(document: dict[str, Value]) -> None:
    """An independent reading of "DynamoDB item sizes and formats", over the text that is really sent."""

    def number(text: str) -> int:
        digits = text.lstrip("-").replace(".", "").strip("0")
        return (len(digits) + 1) // 2 + 1 + text.startswith("-")

    def size(attribute: dict[str, Any]) -> tuple[int, int]:
        """Bytes, and how many of them the documentation leaves open: one for each number."""
        ((kind, content),) = attribute.items()
        if kind == "S":
            return len(content.encode()), 0
        if kind == "B":
            return len(base64.b64decode(content)), 0
        if kind == "N":
            return number(content), 1
        if kind in ("NULL", "BOOL"):
            return 1, 0
        entries = [(b"", entry) for entry in content] if kind == "L" else [(k.encode(), v) for k, v in content.items()]
        sizes = [(1 + len(name) + size(entry)[0], size(entry)[1]) for name, entry in entries]
        return 3 + sum(s for s, _ in sizes), sum(u for _, u in sizes)

    item = json.loads("{" + encode(ORDERS, (1,), document).members + "}")
    del item["id"]
    expected = [size(attribute) for attribute in item.values()]
    least = sum(len(name.encode()) for name in item) + sum(s for s, _ in expected)
    counted = item_size({name: document[name] for name in item})
    assert least <= counted <= least + sum(u for _, u in expected)


@given(documents)
def test_the_text_is_longer_than_the_size(document: dict[str, Value]) -> None:
    """Why the exact size need not be worked out for every item."""
    encoded = encode(ORDERS, (1,), document)
    assert item_size({**document, "id": 1}) <= len(encoded.members.encode())


def test_an_item_of_exactly_the_limit_is_not_refused() -> None:
    # Names and values of key (2 + 2), text (1), _v (2 + 21) and _h (2 + 16).
    room = MAX_ITEM_BYTES - 4 - 1 - 23 - 18
    encode(ORDERS, (1,), {"a": "x" * room})
    with pytest.raises(ItemTooLarge):
        encode(ORDERS, (1,), {"a": "x" * (room + 1)})
    encode(ORDERS, (1,), {"a": [None] * 200_000})  # 2.8 MB of text, 400 kB of item


@pytest.mark.parametrize("kind", [dict, list])
def test_depth_is_refused_before_python_gives_up(kind: type) -> None:
    def wrapped(levels: int) -> Value:
        value: Value = "x"
        for _ in range(levels):
            value = {"a": value} if kind is dict else [value]
        return value

    attribute_text(wrapped(31))
    for levels in (32, 50, 900):
        with pytest.raises(DocumentTooDeep):
            attribute_text(wrapped(levels))


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (-7, "-7"),
        (Decimal("-0.00"), "0"),
        (Decimal("1.50"), "1.5"),
        (Decimal(100), "100"),
        (Decimal("1E+5"), "100000"),
        (Decimal("-1.0E-7"), "-0.0000001"),
        (Decimal("0E+5"), "0"),
        (10**20, "1" + "0" * 20),
    ],
)
def test_numbers_have_one_form(number: int | Decimal, text: str) -> None:
    assert number_text(number) == text


def test_sets_of_other_writers_are_read_as_lists() -> None:
    assert decode_value({"SS": ["a", "b"]}) == ["a", "b"]
    assert decode_value({"NS": ["1", "2.5"]}) == [1, Decimal("2.5")]
    assert decode_value({"BS": [b"x"]}) == [b"x"]
