"""Two documents beside each other."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from docferry.document.model import Collection, KeyAttribute, KeyKind, Put
from docferry.operate.difference import ABSENT, Pair, differences, pairs, whole_document


def shown(row: dict[str, Any], item: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    return [(pair.path, pair.row, pair.item) for pair in differences(row, item)]


@pytest.mark.parametrize(
    ("row", "item", "expected"),
    [
        ({"a": 1}, {"a": 1}, []),
        ({"a": 1}, {"a": Decimal("1.0")}, []),
        ({"a": 1}, {"a": True}, [("a", 1, True)]),
        ({"a": "1"}, {"a": 1}, [("a", "1", 1)]),
        ({"a": None}, {}, [("a", None, ABSENT)]),
        ({}, {"a": b"x"}, [("a", ABSENT, b"x")]),
        ({"a": {}}, {"a": []}, [("a", {}, [])]),
        ({"a": {}}, {"a": {}}, []),
        ({"a": []}, {"a": [1]}, [("a[0]", ABSENT, 1)]),
        ({"a": {"b": [{"c": 1}, 2]}}, {"a": {"b": [{"c": 2}, 2, 3]}}, [("a.b[0].c", 1, 2), ("a.b[2]", ABSENT, 3)]),
        ({"a": {"b.c": 1}}, {"a": {"b.c": 2}}, [('a["b.c"]', 1, 2)]),
        ({"a\x1b": 1}, {}, [('["a\\u001b"]', 1, ABSENT)]),
        ({"a": {"b": {"c": 1}}}, {"a": "text"}, [("a", {"b": {"c": 1}}, "text")]),
        ({"b": 1, "a": 1}, {"z": 1, "a": 2}, [("b", 1, ABSENT), ("a", 1, 2), ("z", ABSENT, 1)]),
    ],
)
def test_differences(row: dict[str, Any], item: dict[str, Any], expected: list[tuple[str, Any, Any]]) -> None:
    assert shown(row, item) == expected


def test_pairs_hold_what_is_the_same_too() -> None:
    assert list(pairs({"a": {"b": 1}, "c": [1]}, {"a": {"b": 1}, "c": [2]})) == [
        Pair("a.b", 1, 1),
        Pair("c[0]", 1, 2),
    ]


def test_the_deepest_document_is_looked_through() -> None:
    deep: Any = 1
    for _ in range(20_000):
        deep = [deep]
    other: Any = 2
    for _ in range(20_000):
        other = [other]
    (pair,) = differences({"a": deep}, {"a": other})
    assert (pair.row, pair.item) == (1, 2)


def test_the_keys_attributes_belong_to_the_document() -> None:
    collection = Collection("c", (KeyAttribute("pk", KeyKind.TEXT),))
    assert whole_document(Put(collection, ("ORDER#7",), 1, {"id": 7})) == {"id": 7, "pk": "ORDER#7"}
