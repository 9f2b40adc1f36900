"""PostgreSQL's text forms of arrays, composites, ranges and hstore, taken apart into raw element texts.

Everything works on bytes: the marks are ASCII, and no byte of a multi-byte UTF-8 character is. Each function raises
ValueError for text that is not of its form.
"""

from __future__ import annotations

import re
from typing import Final, TypeAlias

__all__ = ["Nested", "parse_array", "parse_composite", "parse_hstore", "parse_multirange", "parse_range"]

Nested: TypeAlias = "bytes | list[Nested] | None"
"""An array's raw elements: text, SQL NULL, or a further dimension."""

_MAX_DIMENSIONS: Final = 6  # PostgreSQL's MAXDIM
_QUOTED: Final = rb'"(?:[^"\\]|\\.)*"'
_BOUNDS: Final = re.compile(rb"((?:\[[+-]?[0-9]+:[+-]?[0-9]+\])+)=")
_BOUND: Final = re.compile(rb"\[([+-]?[0-9]+):")
_ESCAPED: Final = re.compile(rb"\\(.)", re.DOTALL)
# In composites and ranges a quote inside quotes may also be doubled, and quoted and bare parts may follow each other.
_FIELD: Final = re.compile(rb'(?:"(?:[^"\\]++|\\.|"")*+"|[^",()\\]++|\\.)*', re.DOTALL)
_BOUND_TEXT: Final = re.compile(rb'(?:"(?:[^"\\]|\\.|"")*"|[^",()\[\]\\]|\\.)*', re.DOTALL)
_FIELD_PART: Final = re.compile(rb'"((?:[^"\\]++|\\.|"")*+)"|((?:[^"\\]++|\\.)++)', re.DOTALL)
_FIELD_ESCAPE: Final = re.compile(rb'\\(.)|"(")', re.DOTALL)
_RANGE: Final = re.compile(rb'empty|[\[(](?:"(?:[^"\\]|\\.|"")*"|[^",()\[\]{}\\]|\\.|,)*[\])]', re.DOTALL)
_PAIR: Final = re.compile(
    rb'\s*("(?:[^"\\]|\\.)*"|[^\s"=,]+)\s*=>\s*("(?:[^"\\]|\\.)*"|[^\s"=,]+)\s*(?:,|\Z)', re.DOTALL
)


def _array_tokens(delimiter: bytes) -> re.Pattern[bytes]:
    mark = re.escape(delimiter)
    return re.compile(_QUOTED + rb"|[{}]|" + mark + rb"|(?:[^{}\"\\" + mark + rb"]|\\.)+", re.DOTALL)


_TOKENS: Final = {mark: _array_tokens(mark) for mark in (b",", b";")}


def parse_array(raw: bytes, delimiter: bytes = b",") -> tuple[bytes, list[Nested]]:
    """(bounds, elements). `bounds`: the prefix such as b"[0:1][2:3]" if a dimension does not start at 1, else b""."""
    bounds = b""
    if raw[:1] == b"[":
        match = _BOUNDS.match(raw)
        if match is None:
            raise ValueError("not an array")
        bounds = match.group(1)
        raw = raw[match.end() :]
        if all(int(lower) == 1 for lower in _BOUND.findall(bounds)):
            bounds = b""
    if raw[:1] != b"{" or raw[-1:] != b"}":
        raise ValueError("not an array")
    inside = raw[1:-1]
    if not inside:
        return bounds, []
    if b'"' not in inside and b"{" not in inside and b"}" not in inside and b"\\" not in inside:
        elements = inside.split(delimiter)
        if b"" in elements:
            raise ValueError("not an array")
        return bounds, [None if element == b"NULL" else element for element in elements]
    return bounds, _nested(raw, delimiter)


def _nested(raw: bytes, delimiter: bytes) -> list[Nested]:
    """Any array text but the bounds: one pass over its tokens, each followed by a delimiter or a closing brace."""
    top: list[Nested] = []
    stack = [top]
    expect_item = True
    end = 0
    for token in (_TOKENS.get(delimiter) or _array_tokens(delimiter)).finditer(raw):
        text = token.group()
        if token.start() != end or (end and len(stack) == 1):
            raise ValueError("not an array")
        end = token.end()
        if text == b"{" and expect_item and len(stack) <= _MAX_DIMENSIONS:
            inner: list[Nested] = []
            stack[-1].append(inner)
            stack.append(inner)
        elif text == b"}" and len(stack) > 1 and (not expect_item or not stack[-1]):
            stack.pop()
            expect_item = False
        elif text == delimiter and not expect_item:
            expect_item = True
        elif expect_item and text not in (b"{", b"}", delimiter):
            stack[-1].append(_array_item(text))
            expect_item = False
        else:
            raise ValueError("not an array")
    if len(stack) != 1 or end != len(raw) or len(top) != 1 or not isinstance(top[0], list):
        raise ValueError("not an array")
    return top[0]


def _array_item(text: bytes) -> bytes | None:
    if text[:1] == b'"':
        text = text[1:-1]
    elif text == b"NULL":
        return None
    return _ESCAPED.sub(rb"\1", text) if b"\\" in text else text


def parse_composite(raw: bytes) -> list[bytes | None]:
    """The raw field texts in order; None for SQL NULL. A composite without fields has one empty text: `()`."""
    if raw[:1] != b"(" or raw[-1:] != b")":
        raise ValueError("not a composite")
    fields: list[bytes | None] = []
    at = 1
    while True:
        match = _FIELD.match(raw, at, len(raw) - 1)
        assert match is not None
        fields.append(_unquoted(match.group()) if match.group() else None)
        at = match.end()
        if at == len(raw) - 1:
            return fields
        if raw[at : at + 1] != b",":
            raise ValueError("not a composite")
        at += 1


def _unquoted(text: bytes) -> bytes:
    if b"\\" not in text:
        if b'"' not in text:
            return text
        inner = text[1:-1].replace(b'""', b"")
        if text[:1] == text[-1:] == b'"' and b'"' not in inner:
            return text[1:-1].replace(b'""', b'"')  # as PostgreSQL writes it: quoted as a whole
    parts = []
    for quoted, bare in _FIELD_PART.findall(text):
        parts.append(_FIELD_ESCAPE.sub(rb"\1\2", quoted) if quoted else _ESCAPED.sub(rb"\1", bare))
    return b"".join(parts)


def parse_range(raw: bytes) -> tuple[bytes | None, bytes | None, str] | None:
    """(lower, upper, bounds such as "[)"), a missing bound as None; None for the empty range."""
    if raw == b"empty":
        return None
    opening, closing = raw[:1], raw[-1:]
    if len(raw) < 3 or opening not in (b"[", b"(") or closing not in (b"]", b")"):
        raise ValueError("not a range")
    lower = _BOUND_TEXT.match(raw, 1, len(raw) - 1)
    assert lower is not None
    if raw[lower.end() : lower.end() + 1] != b",":
        raise ValueError("not a range")
    upper = _BOUND_TEXT.fullmatch(raw, lower.end() + 1, len(raw) - 1)
    if upper is None:
        raise ValueError("not a range")
    return (
        _unquoted(lower.group()) if lower.group() else None,
        _unquoted(upper.group()) if upper.group() else None,
        (opening + closing).decode(),
    )


def parse_multirange(raw: bytes) -> list[bytes]:
    """The texts of its ranges."""
    if raw[:1] != b"{" or raw[-1:] != b"}":
        raise ValueError("not a multirange")
    ranges: list[bytes] = []
    at = 1
    while at < len(raw) - 1:
        match = _RANGE.match(raw, at, len(raw) - 1)
        if match is None:
            raise ValueError("not a multirange")
        ranges.append(match.group())
        at = match.end()
        if at < len(raw) - 1:
            if raw[at : at + 1] != b"," or at + 1 == len(raw) - 1:
                raise ValueError("not a multirange")
            at += 1
    return ranges


def parse_hstore(raw: bytes) -> dict[bytes, bytes | None]:
    """Its pairs; None for NULL."""
    pairs: dict[bytes, bytes | None] = {}
    at = 0
    while at < len(raw):
        match = _PAIR.match(raw, at)
        if match is None:
            raise ValueError("not an hstore")
        key, value = match.groups()
        at = match.end()
        pairs[_hstore_text(key)] = None if value.upper() == b"NULL" else _hstore_text(value)
    return pairs


def _hstore_text(text: bytes) -> bytes:
    if text[:1] == b'"':
        text = text[1:-1]
    return _ESCAPED.sub(rb"\1", text)
