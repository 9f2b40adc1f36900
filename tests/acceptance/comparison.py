"""Do the items say what the rows say? Judged by a conversion of the tests' own, which shares no code with docferry:
docs/types.md, docs/xml.md and docs/documents.md, written down a second time with other libraries."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import psycopg
import psycopg.types.json
import xmltodict
import yaml
from psycopg import sql
from psycopg.rows import dict_row

__all__ = ["Mirrored", "assert_same", "differences", "items", "rows"]

_META = {"_v", "_h"}
_SHOWN = 12
_XML_OID = 142

Row = dict[str, Any]
Key = tuple[Any, ...]


@dataclass(frozen=True)
class Mirrored:
    """What is compared with what. `formats`: of the text columns that are documents. `item_key`: the key attributes
    that an item has instead of its row's key columns."""

    table: str = "orders"
    collection: str = "orders"
    key: tuple[str, ...] = ("id",)
    formats: Mapping[str, str] = field(default_factory=dict)
    exclude: frozenset[str] = frozenset()
    item_key: Callable[[Row], Row] | None = None
    unstored: Callable[[Row], bool] = lambda _: False
    """Rows that have become dead letters."""


def assert_same(dsn: str, client: Any, *mirrors: Mirrored) -> None:
    """Items equal rows; otherwise the failure says which do not, and in what."""
    found = [difference for mirror in mirrors for difference in differences(dsn, client, mirror)]
    if found:
        shown = "\n".join(f"  {one}" for one in found[:_SHOWN])
        more = f"\n  ... and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise AssertionError(f"items differ from rows in {len(found)} places:\n{shown}{more}")


def differences(dsn: str, client: Any, mirror: Mirrored) -> list[str]:
    """What is missing, orphaned or different, in words; nothing when all is well."""
    expected = rows(dsn, mirror)
    actual = items(client, mirror, expected)
    name = mirror.collection
    found = [f"{name} {_key_text(key)}: MISSING item" for key in expected if key not in actual]
    found += [
        f"{name} {_key_text(key)}: ORPHANED item, _v={item['_v']}"
        for key, item in actual.items()
        if key not in expected
    ]
    for key in expected.keys() & actual.keys():
        item = dict(actual[key])
        version = item.pop("_v", None)
        digest = item.pop("_h", None)
        if not isinstance(version, Decimal) or not isinstance(digest, bytes) or len(digest) != 16:
            found.append(f"{name} {_key_text(key)}: meta attributes _v={version!r} _h={digest!r}")
        found += [f"{name} {_key_text(key)} (_v={version}): {one}" for one in _unlike(expected[key], item, "")]
    return found


def rows(dsn: str, mirror: Mirrored) -> dict[Key, Row]:
    """The rows as their items should be, by item key."""
    result: dict[Key, Row] = {}
    with psycopg.connect(dsn, row_factory=dict_row) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        exact = functools.partial(json.loads, parse_float=Decimal, parse_int=Decimal)
        psycopg.types.json.set_json_loads(exact, connection)
        found = connection.execute(sql.SQL("SELECT * FROM {}").format(sql.Identifier(*mirror.table.split("."))))
        assert found.description is not None
        formats = {column.name: "xml" for column in found.description if column.type_code == _XML_OID}
        formats.update(mirror.formats)
        for row in found:
            if mirror.unstored(row):
                continue
            item = {
                name: _document(formats[name], value) if name in formats else _value(value)
                for name, value in row.items()
                if name not in mirror.exclude
            }
            key = mirror.item_key(row) if mirror.item_key else {name: _key_value(row[name]) for name in mirror.key}
            item.update(key)
            result[tuple(key.values())] = item
    return result


def items(client: Any, mirror: Mirrored, expected: Mapping[Key, Row] | None = None) -> dict[Key, Row]:
    """The living items by key, meta attributes included. Tombstones are passed over, after a look at their form."""
    description = client.describe_table(TableName=mirror.collection)["Table"]
    names = [part["AttributeName"] for part in sorted(description["KeySchema"], key=lambda part: part["KeyType"])]
    result: dict[Key, Row] = {}
    for item in _scan(client, mirror.collection):
        key = tuple(item[name] for name in names)
        assert key not in result, f"{key} was returned twice"
        if item.get("_gone"):
            assert item.keys() == {*names, "_v", "_gone", "_ttl"}, f"a tombstone carries more than it should: {item}"
            continue
        result[key] = item
    return result


def _scan(client: Any, collection: str) -> Iterator[Row]:
    for page in client.get_paginator("scan").paginate(TableName=collection, ConsistentRead=True):
        for item in page["Items"]:
            yield {name: _read(value) for name, value in item.items()}


def _read(attribute: Mapping[str, Any]) -> Any:
    """Not boto3's TypeDeserializer: it gives up at 1E+38 and above when it is written without an exponent."""
    ((letter, content),) = attribute.items()
    match letter:
        case "S" | "BOOL":
            return content
        case "B":
            return bytes(content)
        case "N":
            return Decimal(content)
        case "NULL":
            return None
        case "L":
            return [_read(entry) for entry in content]
        case "M":
            return {name: _read(entry) for name, entry in content.items()}
    raise AssertionError(f"an attribute of type {letter}")


# -- the second conversion --------------------------------------------------------------------------------------------


def _value(value: Any) -> Any:
    match value:
        case None | bool() | str() | bytes():
            return value
        case int() | Decimal():
            return _number(Decimal(value))
        case float():
            return _number(Decimal(repr(value)))
        case UUID():
            return str(value)
        case datetime():
            return _moment(value)
        case date():
            return value.isoformat()
        case time():
            return _fraction(value.isoformat())
        case timedelta():
            raise NotImplementedError("intervals: psycopg loses the months")
        case list() | tuple():
            return [_value(entry) for entry in value]
        case dict():
            return {name: _value(entry) for name, entry in value.items()}
    raise NotImplementedError(f"no expectation for {type(value).__name__}")


def _number(number: Decimal) -> Decimal | str:
    if number.is_nan():
        return "NaN"
    if number.is_infinite():
        return "Infinity" if number > 0 else "-Infinity"
    digits = "".join(map(str, number.as_tuple().digits)).strip("0")
    return number if len(digits) <= 38 else format(number, "f")


def _moment(value: datetime) -> str:
    if value.tzinfo is None:
        return _fraction(value.isoformat())
    return _fraction(value.astimezone(UTC).replace(tzinfo=None).isoformat()) + "Z"


def _fraction(text: str) -> str:
    return text.rstrip("0") if "." in text else text


def _key_value(value: Any) -> Any:
    match value:
        case bool():
            return "t" if value else "f"
        case int() | Decimal():
            return Decimal(value)
        case bytes():
            return value
    return _value(value)


def _document(form: str, value: Any) -> Any:
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    match form:
        case "xml":
            return xmltodict.parse(value)
        case "json":
            return _value(json.loads(value, parse_float=Decimal, parse_int=Decimal))
        case "yaml":
            # The documents of the tests mean the same in YAML 1.1 and 1.2; numbers go by their text.
            return _value(yaml.load(value, _Exact))
    raise NotImplementedError(form)


class _Exact(yaml.SafeLoader):
    """Floats as Decimals."""


def _exact_float(loader: _Exact, node: yaml.Node) -> Decimal:
    assert isinstance(node, yaml.ScalarNode)
    return Decimal(str(loader.construct_scalar(node)))


_Exact.add_constructor("tag:yaml.org,2002:float", _exact_float)


# -- the difference ---------------------------------------------------------------------------------------------------


def _unlike(row: Any, item: Any, path: str) -> Iterator[str]:
    """Where two values are not the same; True is not 1."""
    if isinstance(row, dict) and isinstance(item, dict):
        for name in sorted(row.keys() | item.keys(), key=str):
            here = f"{path}.{name}" if path else str(name)
            if name not in item:
                yield f"{here}: row {_short(row[name])}, item has no such attribute"
            elif name not in row:
                yield f"{here}: item {_short(item[name])}, row has no such value"
            else:
                yield from _unlike(row[name], item[name], here)
    elif isinstance(row, list) and isinstance(item, list) and len(row) == len(item):
        for index, (left, right) in enumerate(zip(row, item, strict=True)):
            yield from _unlike(left, right, f"{path}[{index}]")
    elif type(row) is not type(item) or row != item:
        yield f"{path}: row {_short(row)}, item {_short(item)}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}...{text[-12:]} ({len(text)} characters)"


def _key_text(key: Key) -> str:
    return ", ".join(str(part) for part in key)
