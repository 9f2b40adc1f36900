from __future__ import annotations

import json as standard
from contextlib import suppress
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from docferry.document import json
from docferry.document.limits import MAX_DEPTH
from docferry.errors import DocumentInvalid, DocumentTooDeep, RowRefused

_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**37), 10**37) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=15,
)


@given(_values, st.booleans())
def test_documents_come_back(value: object, ascii_only: bool) -> None:
    assert json.parse(standard.dumps(value, ensure_ascii=ascii_only).encode()) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        (" \n", None),
        ('{"a": 1, "a": 2}', {"a": 2}),
        ("0.1", Decimal("0.1")),
        ("1E400", "1E400"),
        ("-0.0", 0),
        ("9" * 39, "9" * 39),
        ("[" + "9" * 5000 + "]", ["9" * 5000]),
        ('"\\ud83d\\ude00"', "😀"),
        ('"\\u0000"', "\0"),
    ],
)
def test_mapping(text: str, value: object) -> None:
    assert json.parse(text.encode()) == value


@pytest.mark.parametrize("text", ["{", "NaN", "[Infinity]", "-Infinity", "01", "{'a': 1}", "[1,]", "1 2", '"\t"'])
def test_what_is_refused(text: str) -> None:
    with pytest.raises(DocumentInvalid, match="not JSON") as refused:
        json.parse(text.encode())
    assert refused.value.remedy


@pytest.mark.parametrize("text", ['["\\ud800"]', '{"\\udc00": 1}', '"\\uD800x"'])
def test_half_characters_are_refused(text: str) -> None:
    with pytest.raises(DocumentInvalid, match="surrogate"):
        json.parse(text.encode())


@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
def test_depth(opening: bytes) -> None:
    closing = b"]" if opening == b"[" else b"}"
    assert json.parse(opening * MAX_DEPTH + b"1" + closing * MAX_DEPTH)
    for depth in (MAX_DEPTH + 1, 900, 100_000):
        with pytest.raises(DocumentTooDeep):
            json.parse(opening * depth + b"1" + closing * depth)


def test_width_is_not_depth() -> None:
    assert len(json.parse(b"[" + b",".join([b"[]"] * 1000) + b"]")) == 1000  # type: ignore[arg-type]


@given(st.binary(max_size=40) | st.text(st.sampled_from('{}[],:"\\u0dD8a1eE.- '), max_size=40).map(str.encode))
def test_no_text_crashes(raw: bytes) -> None:
    with suppress(RowRefused):
        json.parse(raw)


def test_numbers_may_be_left_to_others() -> None:
    assert json.reader(lambda text: f"<{text}>")(b'{"a": [1, -2.50]}') == {"a": ["<1>", "<-2.50>"]}
