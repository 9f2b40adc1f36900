"""What PostgreSQL writes is checked against a server in tests/integration/test_values_oracle.py; here, all the rest."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from docferry.change.literals import (
    Nested,
    parse_array,
    parse_composite,
    parse_hstore,
    parse_multirange,
    parse_range,
)

_texts = st.binary(max_size=8) | st.text(st.sampled_from('a{}()[],;"\\ =>\n'), max_size=8).map(str.encode)
_nullable = st.none() | _texts


def _quoted(text: bytes) -> bytes:
    return b'"' + text.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'


def _doubled(text: bytes) -> bytes:
    return b'"' + text.replace(b"\\", b"\\\\").replace(b'"', b'""') + b'"'


def _array(items: Nested, delimiter: bytes) -> bytes:
    if items is None:
        return b"NULL"
    if isinstance(items, bytes):
        return _quoted(items)
    return b"{" + delimiter.join(_array(item, delimiter) for item in items) + b"}"


@given(
    st.lists(_nullable) | st.lists(st.lists(_nullable, min_size=1)) | st.just([[[b"a", None]], [[b'"', b"\\"]]]),
    st.sampled_from([b",", b";", b"|"]),
)
def test_arrays_come_back(items: list[Nested], delimiter: bytes) -> None:
    assert parse_array(_array(items, delimiter), delimiter) == (b"", items)


@given(st.lists(_nullable, min_size=1), st.sampled_from([_quoted, _doubled]))
def test_composites_come_back(fields: list[bytes | None], quote: Callable[[bytes], bytes]) -> None:
    text = b"(" + b",".join(b"" if field is None else quote(field) for field in fields) + b")"
    assert parse_composite(text) == fields


@given(_nullable, _nullable, st.sampled_from(["[]", "[)", "(]", "()"]), st.sampled_from([_quoted, _doubled]))
def test_ranges_come_back_alone_and_among_others(
    lower: bytes | None, upper: bytes | None, bounds: str, quote: Callable[[bytes], bytes]
) -> None:
    text = (
        bounds[:1].encode()
        + b",".join(b"" if bound is None else quote(bound) for bound in (lower, upper))
        + bounds[1:].encode()
    )
    assert parse_range(text) == (lower, upper, bounds)
    assert parse_multirange(b"{" + text + b",[1,2)," + text + b"}") == [text, b"[1,2)", text]


@given(st.dictionaries(_texts, _nullable))
def test_hstore_comes_back(pairs: dict[bytes, bytes | None]) -> None:
    text = b", ".join(
        _quoted(key) + b"=>" + (b"NULL" if value is None else _quoted(value)) for key, value in pairs.items()
    )
    assert parse_hstore(text) == pairs


def test_bare_and_quoted_parts_may_follow_each_other() -> None:
    assert parse_composite(rb'(a\,b,c"d,""e"f)') == [b"a,b", b'cd,"ef']
    assert parse_array(rb"{a\,b,\"c}") == (b"", [b"a,b", b'"c'])


def test_bounds_that_are_the_usual_ones_are_none() -> None:
    assert parse_array(b"[1:2]={5,6}") == (b"", [b"5", b"6"])
    assert parse_array(b"[0:1]={5,6}") == (b"[0:1]", [b"5", b"6"])


@pytest.mark.parametrize(
    "raw",
    [b"", b"{", b"}", b"{,}", b"{1,}", b"{1}2", b"{{1},}", b"{{1}{2}}", b'{"a}', b"[0:1]", b"[x]={1}", b"{1}{2}",
      b"{" * 9, b"{" * 7 + b"1" + b"}" * 7, b'{"a"b}', b'{a"b"}', b"{{1},2,}"],
)  # fmt: skip
def test_what_is_no_array(raw: bytes) -> None:
    with pytest.raises(ValueError, match="not an array"):
        parse_array(raw)


@pytest.mark.parametrize("raw", [b"", b"(", b")", b"(a(b)", b'("a)', b"a,b"])
def test_what_is_no_composite(raw: bytes) -> None:
    with pytest.raises(ValueError, match="not a composite"):
        parse_composite(raw)


@pytest.mark.parametrize("raw", [b"", b"[]", b"[1]", b"[1,2", b"1,2)", b"[1,2,3)", b'["1,2)', b"EMPTY"])
def test_what_is_no_range(raw: bytes) -> None:
    with pytest.raises(ValueError, match="not a range"):
        parse_range(raw)


@given(st.text(st.sampled_from('a1{}()[],;"\\ =>:-\n'), max_size=25).map(str.encode))
def test_no_text_crashes(raw: bytes) -> None:
    for parse in (parse_array, parse_composite, parse_hstore, parse_multirange, parse_range):
        with suppress(ValueError):
            parse(raw)
