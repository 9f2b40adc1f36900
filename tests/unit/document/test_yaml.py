from __future__ import annotations

import re
import sys
from contextlib import suppress
from decimal import Decimal

import pytest
import yaml as pyyaml
from hypothesis import given
from hypothesis import strategies as st

from docferry.document import yaml
from docferry.document.convert import Converter
from docferry.document.limits import MAX_DEPTH
from docferry.document.model import (
    Collection,
    DocumentFormat,
    DocumentSpec,
    KeyAttribute,
    KeyKind,
    MirrorSpec,
)
from docferry.errors import DocumentInvalid, DocumentTooDeep, MissingExtra, RowRefused


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("# only a comment\n", None),
        ("a: no\nb: on\nc: Yes\nd: 2024-01-02", {"a": "no", "b": "on", "c": "Yes", "d": "2024-01-02"}),
        ("[12:30:45, 1_000, 1e, 0b1, 0o8, +]", ["12:30:45", "1_000", "1e", "0b1", "0o8", "+"]),
        (" \t", None),
        ("[true, False, ~, null, '', 'true']", [True, False, None, None, "", "true"]),
        ("- \n- x", [None, "x"]),
        ("[0o14, 0x1F, 014, +7, -3]", [12, 31, 14, 7, -3]),
        ("[1.50, 1e3, .5, 5., -.5]", [Decimal("1.5"), 1000, Decimal("0.5"), 5, Decimal("-0.5")]),
        ("[.inf, -.INF, .nan]", ["Infinity", "-Infinity", "NaN"]),
        ("9" * 39, "9" * 39),
        ("1: a\ntrue: b\n~: c\n0x1: d", {"1": "a", "true": "b", "~": "c", "0x1": "d"}),
        ("a: &x [1]\nb: *x", {"a": [1], "b": [1]}),
        ("&k a: 1\nb: *k", {"a": 1, "b": "a"}),
        ("<<: {a: 1}\nb: 2", {"<<": {"a": 1}, "b": 2}),
        ("a\n---\nb: 1\n...", ["a", {"b": 1}]),
        ("!!str 12", "12"),
        ("! 12", "12"),
        ("!!int '12'", 12),
        ("!!binary aGk=", b"hi"),
        ("!Ref x", {"!Ref": "x"}),
        ("!Sub [a, 1]", {"!Sub": ["a", 1]}),
        ("!!set {a, b}", {"!!set": {"a": None, "b": None}}),
        ("|\n  a\n  b\n", "a\nb\n"),
        ("é: 😀", {"é": "😀"}),
    ],
)  # fmt: skip
def test_mapping(text: str, value: object) -> None:
    assert yaml.parse(text.encode()) == value


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: [", "at line 2, column 1"),
        ("a: 1\na: 2", "occurs twice"),
        ("1: a\n'1': b", "occurs twice"),
        ("? [a]\n: 1", "key that is not"),
        ("a: *b", "names nothing"),
        ("&a [*a]", "inside of what it names"),
        ("a: &x {b: *x}", "inside of what it names"),
        ("&x a\n--- *x", "names nothing"),
        ("a: \x01", "not YAML"),
        ("!!binary '*'", "base64"),
        ("\ta: 1", "line 1"),
        ("a: 'b\u2028c'", "U[+]2028"),
    ],
)
def test_what_is_refused(text: str, reason: str) -> None:
    with pytest.raises(DocumentInvalid, match=reason) as refused:
        yaml.parse(text.encode())
    assert refused.value.remedy


def test_alias_bombs_are_refused_quickly() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    with pytest.raises(DocumentInvalid, match="expand beyond measure"):
        yaml.parse("\n".join(lines).encode())


@pytest.mark.parametrize("form", ["[", "{a: ", "- "])
def test_depth(form: str) -> None:
    with pytest.raises((DocumentTooDeep, DocumentInvalid)):
        yaml.parse((form * 5_000).encode())
    closing = {"[": "]", "{a: ": "}", "- ": ""}[form]
    assert yaml.parse((form * MAX_DEPTH + "x" + closing * MAX_DEPTH).encode())
    with pytest.raises(DocumentTooDeep):
        yaml.parse((form * (MAX_DEPTH + 1) + "x" + closing * (MAX_DEPTH + 1)).encode())


# PyYAML writes YAML 1.1, where 1E5 and 0o7 are text and need no quotes; in 1.2 they are numbers.
_texts = st.text().filter(lambda text: not re.fullmatch(r"[-+.0-9]*([eE][-+]?[0-9]+)?|0o[0-7]+", text))
_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | _texts,
    lambda inner: st.lists(inner) | st.dictionaries(_texts, inner),
    max_leaves=10,
)


@given(_values)
def test_what_pyyaml_writes_comes_back(value: object) -> None:
    text = pyyaml.safe_dump(value, allow_unicode=False)
    assert yaml.parse(text.encode()) == value


@given(st.binary(max_size=40) | st.text(st.sampled_from("ab:-?[]{},&*!|>'\"#% \n1.~"), max_size=40).map(str.encode))
def test_no_text_crashes(raw: bytes) -> None:
    with suppress(RowRefused):
        yaml.parse(raw)


def test_without_pyyaml_the_mirror_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import docferry.document

    monkeypatch.setitem(sys.modules, "yaml", None)
    monkeypatch.delitem(sys.modules, "docferry.document.yaml")
    monkeypatch.delattr(docferry.document, "yaml")
    spec = MirrorSpec(
        "public.t",
        ("id",),
        Collection("t", (KeyAttribute("id", KeyKind.NUMBER),)),
        documents={"d": DocumentSpec(DocumentFormat.YAML)},
    )
    with pytest.raises(MissingExtra) as missing:
        Converter(spec)
    assert missing.value.remedy == "Install it: pip install 'docferry[yaml]'"
