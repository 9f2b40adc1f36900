"""The one mapping from a column's raw text to a value, for every PostgreSQL type: docs/types.md is its table.

`compiled(type)` makes the function once; on the hot path a column costs one call. The functions expect the text that
PostgreSQL's output functions write with DateStyle ISO, IntervalStyle iso_8601, extra_float_digits 1, bytea_output hex.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Final, TypeAlias

from docferry.change import literals
from docferry.change.model import PgType, TypeKind
from docferry.document import json, times, xml
from docferry.document.limits import MAX_DIGITS, ParseNumber, number
from docferry.document.model import KeyKind, Value

__all__ = ["Convert", "base_type", "compiled", "holds_number_as_text", "key_kind"]

Convert: TypeAlias = Callable[[bytes], Value]
"""Raw text to value. Raises errors.RowRefused, or ValueError when the text is not of the type."""

_BYTEA_ESCAPE: Final = re.compile(rb"\\(?:([0-7]{3})|(\\))")


def base_type(of: PgType) -> PgType:
    """What a domain stands for, through all its layers; any other type itself."""
    while of.kind is TypeKind.DOMAIN and of.element is not None:
        of = of.element
    return of


def compiled(of: PgType, parse_number: ParseNumber = number) -> Convert:
    """The function that converts this type's raw text. A type that is not listed is carried as its text."""
    of = base_type(of)
    if of.name in _SPACED_VECTORS:
        return _text
    match of.kind:
        case TypeKind.ARRAY if of.element is not None:
            return _array(of, compiled(of.element, parse_number))
        case TypeKind.RANGE if of.element is not None:
            return _range(compiled(of.element, parse_number))
        case TypeKind.MULTIRANGE if of.element is not None:
            return _multirange(compiled(of.element, parse_number))
        case TypeKind.COMPOSITE:
            return _composite([(name, compiled(field, parse_number)) for name, field in of.fields])
        case TypeKind.BASE if of.name in _WITH_NUMBERS:
            return _WITH_NUMBERS[of.name](parse_number)
        case TypeKind.BASE:
            return _BASE.get(of.name, _text)
        case _:
            return _text


def key_kind(of: PgType) -> KeyKind:
    """The type of a key attribute that holds a column of this type."""
    of = base_type(of)
    if of.kind is TypeKind.BASE:
        if of.name in _EXACT_NUMBERS:
            return KeyKind.NUMBER
        if of.name == "bytea":
            return KeyKind.BINARY
    return KeyKind.TEXT


def holds_number_as_text(of: PgType, raw: bytes | None) -> bool:
    """Whether a number in this column is carried as text because it has more than 38 significant digits, is out of a
    number's range, or is NaN or infinite. For `plan`: it converts the text once more."""
    if raw is None:
        return False
    found = False

    def watch(text: str) -> int | Decimal | str:
        nonlocal found
        result = number(text)
        found = found or isinstance(result, str)
        return result

    compiled(of, watch)(raw)
    return found


# --- base types -------------------------------------------------------------------------------------------------------

_text: Final[Convert] = bytes.decode


def _boolean(raw: bytes) -> bool:
    if raw == b"t" or raw == b"true":
        return True
    if raw in (b"f", b"false"):
        return False
    raise ValueError("not a boolean")


def _numeric(parse_number: ParseNumber) -> Convert:
    return lambda raw: parse_number(raw.decode())


def _float(parse_number: ParseNumber) -> Convert:
    """The shortest text that reads back as the same float, taken as an exact decimal. Negative zero, which exact
    numbers do not have, stays text."""
    return lambda raw: "-0" if raw == b"-0" else parse_number(raw.decode())


def _bytea(raw: bytes) -> bytes:
    if raw[:2] == b"\\x":
        return bytes.fromhex(raw[2:].decode())
    return _BYTEA_ESCAPE.sub(lambda match: match[2] or bytes([int(match[1], 8)]), raw)


def _hstore(raw: bytes) -> Value:
    pairs = literals.parse_hstore(raw)
    return {key.decode(): None if value is None else value.decode() for key, value in pairs.items()}


_BASE: Final[dict[str, Convert]] = {
    "bool": _boolean,
    "int2": int,
    "int4": int,
    "int8": int,
    "oid": int,
    "bytea": _bytea,
    "timestamp": times.timestamp,
    "timestamptz": times.timestamptz,
    "timetz": times.timetz,
    "xml": xml.parse_validated,
    "hstore": _hstore,
}
_WITH_NUMBERS: Final[dict[str, Callable[[ParseNumber], Convert]]] = {
    "numeric": _numeric,
    "float4": _float,
    "float8": _float,
    "json": json.reader,
    "jsonb": json.reader,
}
_SPACED_VECTORS: Final = frozenset({"int2vector", "oidvector"})  # arrays to the catalog, but written otherwise
_EXACT_NUMBERS: Final = frozenset({"int2", "int4", "int8", "oid", "numeric"})
assert len(str(2**63)) <= MAX_DIGITS  # integers need no check


# --- types made of others ---------------------------------------------------------------------------------------------


def _array(of: PgType, convert: Convert) -> Convert:
    delimiter = of.delimiter.encode()

    def items(nested: list[literals.Nested]) -> list[Value]:
        return [None if item is None else items(item) if isinstance(item, list) else convert(item) for item in nested]

    def array(raw: bytes) -> Value:
        bounds, nested = literals.parse_array(raw, delimiter)
        if bounds:
            return {"bounds": bounds.decode(), "values": items(nested)}
        return items(nested)

    return array


def _range(convert: Convert) -> Convert:
    def range_(raw: bytes) -> Value:
        parsed = literals.parse_range(raw)
        if parsed is None:
            return {"empty": True}
        lower, upper, bounds = parsed
        return {
            "lower": None if lower is None else convert(lower),
            "upper": None if upper is None else convert(upper),
            "bounds": bounds,
        }

    return range_


def _multirange(convert: Convert) -> Convert:
    def multirange(raw: bytes) -> Value:
        return [convert(part) for part in literals.parse_multirange(raw)]

    return multirange


def _composite(fields: Sequence[tuple[str, Convert]]) -> Convert:
    def composite(raw: bytes) -> Value:
        if not fields:
            return {}
        texts = literals.parse_composite(raw)
        if len(texts) != len(fields):
            raise ValueError(f"{len(texts)} fields where the type has {len(fields)}")
        return {
            name: None if text is None else convert(text) for (name, convert), text in zip(fields, texts, strict=True)
        }

    return composite
