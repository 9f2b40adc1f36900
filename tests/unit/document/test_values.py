"""The mapping of every type is checked against a server in tests/integration/test_values_oracle.py."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest

from docferry.change.model import PgType, TypeKind
from docferry.document.model import KeyKind
from docferry.document.values import _BASE, _WITH_NUMBERS, compiled, holds_number_as_text, key_kind

NUMERIC = PgType(1700, "numeric")
INT4 = PgType(23, "int4")
TEXT = PgType(25, "text")
JSONB = PgType(3802, "jsonb")
DOMAIN = PgType(1, "price", TypeKind.DOMAIN, PgType(2, "amount", TypeKind.DOMAIN, NUMERIC))
LONG = b"9" * 39


def array_of(of: PgType) -> PgType:
    return PgType(0, f"_{of.name}", TypeKind.ARRAY, of)


def test_an_unknown_type_is_its_text() -> None:
    assert compiled(PgType(99999, "no_such_type"))(b"x y") == "x y"


def test_domains_are_what_they_stand_for() -> None:
    assert compiled(DOMAIN)(b"1.50") == Decimal("1.5")
    assert compiled(array_of(DOMAIN))(b"{1.5,NULL}") == [Decimal("1.5"), None]


def test_unusual_bounds_are_kept() -> None:
    assert compiled(array_of(INT4))(b"[0:1]={5,6}") == {"bounds": "[0:1]", "values": [5, 6]}


def test_bytea_in_its_older_form() -> None:
    assert compiled(PgType(17, "bytea"))(b"a\\\\b\\000\\377") == b"a\\b\0\xff"


@pytest.mark.parametrize(
    ("of", "raw"),
    [
        (PgType(16, "bool"), b"yes"),
        (INT4, b"x"),
        (PgType(17, "bytea"), b"\\xzz"),
        (array_of(INT4), b"1"),
        (PgType(5, "pair", TypeKind.COMPOSITE, fields=(("a", INT4), ("b", INT4))), b"(1)"),
        (TEXT, b"\xff"),
        (PgType(6, "hstore"), b"a"),
    ],
)
def test_text_that_is_not_of_the_type(of: PgType, raw: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the kind is what callers rely on
        compiled(of)(raw)


@pytest.mark.parametrize(
    ("of", "kind"),
    [
        (INT4, KeyKind.NUMBER),
        (DOMAIN, KeyKind.NUMBER),
        (PgType(17, "bytea"), KeyKind.BINARY),
        (TEXT, KeyKind.TEXT),
        (PgType(701, "float8"), KeyKind.TEXT),
        (array_of(INT4), KeyKind.TEXT),
        (PgType(2950, "uuid"), KeyKind.TEXT),
    ],
)
def test_key_kinds(of: PgType, kind: KeyKind) -> None:
    assert key_kind(of) is kind


RANGE = PgType(3906, "numrange", TypeKind.RANGE, NUMERIC)


@pytest.mark.parametrize(
    ("of", "raw", "found"),
    [
        (NUMERIC, LONG, True),
        (NUMERIC, b"NaN", True),
        (NUMERIC, b"1.5", False),
        (DOMAIN, LONG, True),
        (PgType(701, "float8"), b"1e300", True),
        (TEXT, LONG, False),
        (array_of(NUMERIC), b"{{1},{" + LONG + b"}}", True),
        (array_of(NUMERIC), b"[0:0]={" + LONG + b"}", True),
        (array_of(TEXT), b"{" + LONG + b"}", False),
        (RANGE, b"[1," + LONG + b")", True),
        (RANGE, b"empty", False),
        (PgType(4532, "nummultirange", TypeKind.MULTIRANGE, RANGE), b"{[1," + LONG + b")}", True),
        (PgType(7, "c", TypeKind.COMPOSITE, fields=(("t", TEXT), ("n", NUMERIC))), b"(x," + LONG + b")", True),
        (PgType(7, "c", TypeKind.COMPOSITE, fields=(("t", TEXT), ("n", NUMERIC))), LONG.join([b"(", b",1)"]), False),
        (JSONB, b'{"a": [' + LONG + b"]}", True),
        (JSONB, b'{"a": "' + LONG + b'"}', False),
        (array_of(JSONB), b'{"[' + LONG + b']"}', True),
        (NUMERIC, None, False),
    ],
)
def test_numbers_carried_as_text_are_found(of: PgType, raw: bytes | None, found: bool) -> None:
    assert holds_number_as_text(of, raw) is found


def test_every_type_with_a_mapping_of_its_own_is_on_the_page() -> None:
    page = (Path(__file__).parents[3] / "docs" / "types.md").read_text(encoding="utf-8")
    assert [name for name in [*_BASE, *_WITH_NUMBERS] if f"`{name}`" not in page] == []
