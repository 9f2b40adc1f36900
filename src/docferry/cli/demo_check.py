"""The demo's own look at both ends. It shares no code with the mirror, on purpose: rows are read with psycopg and their
XML with the standard library, items with boto3; what the mirror wrote must be what this makes of the rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from xml.dom import Node, minidom

import psycopg

from docferry.cli.demo_orders import COLLECTION

__all__ = ["Both", "Ends", "Row", "expected_item"]

_META = ("_v", "_h")


@dataclass(frozen=True, slots=True)
class Row:
    """A row of `orders`; `order_data` is the XML as text."""

    id: int
    order_status: str
    order_data: str
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class Both:
    """Rows and items at one moment, by id. `tombstones`: ids whose rows are gone, with the tombstone's version."""

    rows: Mapping[int, Row]
    expected: Mapping[int, dict[str, Any]]
    items: Mapping[int, dict[str, Any]]
    tombstones: Mapping[int, int]

    @property
    def different(self) -> list[int]:
        """The ids whose row and item are not the same, or which only one end has."""
        return [one for one in sorted({*self.rows, *self.items}) if not self.same(one)]

    def same(self, one: int) -> bool:
        """Whether row and item agree, which they also do when both are absent."""
        return self.expected.get(one) == self.items.get(one)


class Ends:
    """Both ends. `client_options`: for a boto3 client."""

    def __init__(self, dsn: str, client_options: Mapping[str, Any]) -> None:
        import boto3
        from boto3.dynamodb.types import TypeDeserializer

        self._deserialize = TypeDeserializer().deserialize
        self._client = boto3.session.Session().client("dynamodb", **client_options)
        self.connection = psycopg.connect(dsn, autocommit=True, application_name="docferry demo")

    def close(self) -> None:
        """Release both connections."""
        self.connection.close()
        self._client.close()

    def rows(self) -> dict[int, Row]:
        """The rows as they are now."""
        query = b"SELECT id, order_status, order_data::text, created_at, updated_at FROM orders ORDER BY id"
        return {row[0]: Row(*row) for row in self.connection.execute(query)}

    def look(self, rows: Mapping[int, Row], expected: Mapping[int, dict[str, Any]]) -> Both:
        """The items as they are now, read consistently, beside these rows."""
        items: dict[int, dict[str, Any]] = {}
        tombstones: dict[int, int] = {}
        for page in self._client.get_paginator("scan").paginate(TableName=COLLECTION, ConsistentRead=True):
            for raw in page["Items"]:
                item = {name: self._deserialize(value) for name, value in raw.items()}
                if item.get("_gone"):
                    tombstones[int(item["id"])] = int(item["_v"])
                else:
                    items[int(item["id"])] = {name: value for name, value in item.items() if name not in _META}
        return Both(rows, expected, items, tombstones)


def expected_item(row: Row) -> dict[str, Any]:
    """What docs/types.md and docs/xml.md make of a row, written a second time."""
    root = minidom.parseString(row.order_data.encode()).documentElement  # noqa: S318 - documents of our own
    assert root is not None
    return {
        "id": row.id,
        "order_status": row.order_status,
        "order_data": {root.tagName: _element(root)},
        "created_at": _timestamp(row.created_at),
        "updated_at": _timestamp(row.updated_at),
    }


def _element(element: minidom.Element) -> Any:
    content: dict[str, Any] = {f"@{name}": value for name, value in element.attributes.items()}
    text = ""
    for child in element.childNodes:
        if isinstance(child, minidom.Element):
            _append(content, child.tagName, _element(child))
        elif child.nodeType in (Node.TEXT_NODE, Node.CDATA_SECTION_NODE):
            assert isinstance(child, minidom.Text)
            text += child.data
    text = text.strip()
    if not content:
        return text or None
    if text:
        content["#text"] = text
    return content


def _append(content: dict[str, Any], name: str, value: Any) -> None:
    if name not in content:
        content[name] = value
    elif isinstance(content[name], list):
        content[name].append(value)
    else:
        content[name] = [content[name], value]


def _timestamp(moment: datetime) -> str:
    utc = moment.astimezone(UTC)
    fraction = f".{utc.microsecond:06}".rstrip("0") if utc.microsecond else ""
    return f"{utc:%Y-%m-%dT%H:%M:%S}{fraction}Z"
