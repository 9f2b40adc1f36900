"""How writes are put into requests."""

from __future__ import annotations

from docferry.document.model import Collection, KeyAttribute, KeyKind, Put
from docferry.target.dynamodb_entry import BATCH_BYTES, Entry, batches
from docferry.target.dynamodb_statements import put_shape

ORDERS = Collection("orders", (KeyAttribute("id", KeyKind.NUMBER),))


def entry(size: int) -> Entry:
    shape = put_shape(ORDERS, ("text",), ())
    return Entry(Put(ORDERS, (1,), 1, {}), shape, ['{"N":"1"}'], f'{{"S":"{"x" * size}"}},', ['{"N":"1"}', '{"B":""}'])


def sizes(*wanted: int) -> list[int]:
    return [len(batch) for batch in batches(entry(size) for size in wanted)]


def test_at_most_25_statements_in_a_request() -> None:
    assert sizes() == []
    assert sizes(*[10] * 25) == [25]
    assert sizes(*[10] * 51) == [25, 25, 1]


def test_requests_are_bounded_in_bytes_and_a_large_item_goes_alone() -> None:
    third = BATCH_BYTES // 3
    assert sizes(third, third, third, 10) == [2, 2]
    assert sizes(10, 2 * BATCH_BYTES, 10, 10) == [1, 1, 2]
