from __future__ import annotations

from decimal import Decimal

import pytest

from docferry.document import json, xml
from docferry.document.model import DocumentFormat, DocumentSpec
from docferry.document.shape import shaped


def _xml(text: str, *, lists: set[str] | None = None, numbers: set[str] | None = None) -> object:
    spec = DocumentSpec(DocumentFormat.XML, frozenset(lists or ()), frozenset(numbers or ()))
    return shaped(xml.parse, spec)(text.encode())


def test_an_empty_shape_costs_nothing() -> None:
    assert shaped(xml.parse, DocumentSpec(DocumentFormat.XML)) is xml.parse


@pytest.mark.parametrize(
    ("lists", "expected"),
    [
        ({"b"}, {"a": {"b": ["1"], "c": {"b": [None]}}}),
        ({"a/b"}, {"a": {"b": ["1"], "c": {"b": None}}}),
        ({"a/c/b"}, {"a": {"b": "1", "c": {"b": [None]}}}),
        ({"/a"}, {"a": [{"b": "1", "c": {"b": None}}]}),
        ({"x", "b/a"}, {"a": {"b": "1", "c": {"b": None}}}),
    ],
)
def test_lists(lists: set[str], expected: object) -> None:
    assert _xml("<a><b>1</b><c><b/></c></a>", lists=lists) == expected


def test_a_list_stays_one_and_paths_go_through_lists() -> None:
    text = "<a><b><c>1</c></b><b><c>2</c><c>3</c></b></a>"
    assert _xml(text, lists={"b", "a/b/c"}) == {"a": {"b": [{"c": ["1"]}, {"c": ["2", "3"]}]}}


def test_numbers_of_elements_attributes_and_text_beside_attributes() -> None:
    text = '<a n="1"><n>2.50</n><m u="x">3</m><n>many</n><k>4</k></a>'
    assert _xml(text, numbers={"n", "@n", "a/m"}) == {
        "a": {"@n": 1, "n": [Decimal("2.5"), "many"], "m": {"@u": "x", "#text": 3}, "k": "4"}
    }


def test_a_number_that_is_too_long_stays_text() -> None:
    assert _xml(f"<n>{'9' * 39}</n>", numbers={"n"}) == {"n": "9" * 39}


def test_mixed_content_keeps_its_form() -> None:
    assert _xml("<a>x<b>1</b><c><b>2</b></c></a>", lists={"b"}, numbers={"b"}) == {
        "a": {"#mixed": ["x", {"b": 1}, {"c": {"b": [2]}}]}
    }


def test_json_too() -> None:
    spec = DocumentSpec(DocumentFormat.JSON, frozenset({"tags"}), frozenset({"price"}))
    assert shaped(json.parse, spec)(b'{"tags": "a", "price": ["1.5", true]}') == {
        "tags": ["a"],
        "price": [Decimal("1.5"), True],
    }
