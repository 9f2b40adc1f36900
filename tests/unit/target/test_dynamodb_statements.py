"""Statements: quoting, removal of attributes, length."""

from __future__ import annotations

import json

from docferry.document.model import Collection, KeyAttribute, KeyKind
from docferry.target.dynamodb_shapes import Shapes
from docferry.target.dynamodb_statements import put_shape

ORDERS = Collection("orders", (KeyAttribute("id", KeyKind.NUMBER), KeyAttribute('li"ne', KeyKind.NUMBER)))


def statement(text: str | None) -> str:
    assert text is not None
    return str(json.loads(text + "]}")["Statement"])


def test_names_are_quoted() -> None:
    shape = put_shape(ORDERS, ("id", "it's", 'a "b"'), ("old",))
    assert shape.columns == ('a "b"', "it's")
    assert statement(shape.insert) == (
        """INSERT INTO "orders" VALUE {'id': ?, 'li"ne': ?, 'a "b"': ?, 'it''s': ?, '_v': ?, '_h': ?}"""
    )
    assert statement(shape.update) == (
        """UPDATE "orders" SET "a ""b\"""=? SET "it's"=? SET "_v"=? SET "_h"=? """
        """REMOVE "_gone" REMOVE "_ttl" REMOVE "old" WHERE "id"=? AND "li""ne"=? AND "_v" < ?"""
    )


def test_a_statement_that_is_too_long_is_not_made() -> None:
    shape = put_shape(ORDERS, [f"column_with_a_long_name_{i}" for i in range(241)], ())
    assert shape.insert is not None
    assert shape.update is None


def test_attributes_seen_once_are_removed_from_then_on() -> None:
    shapes = Shapes()
    assert 'REMOVE "b"' not in statement(shapes.put(ORDERS, ("id", "a")).update)
    shapes.put(ORDERS, ("id", "b"))
    assert 'REMOVE "b"' in statement(shapes.put(ORDERS, ("id", "a")).update)
    shapes.learn(ORDERS, ("c", "_ttl"))
    update = statement(shapes.tombstone(ORDERS).update)
    assert [name in update for name in ('REMOVE "a"', 'REMOVE "b"', 'REMOVE "c"')] == [True] * 3
    assert 'REMOVE "_ttl"' not in update
    assert 'REMOVE "id"' not in update


def test_a_shape_is_made_once() -> None:
    shapes = Shapes()
    assert shapes.put(ORDERS, ("id", "a")) is shapes.put(ORDERS, ("id", "a"))
