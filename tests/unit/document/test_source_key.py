"""From an item's key back to the row that could have made it."""

from __future__ import annotations

from decimal import Decimal

import pytest

from docferry.change.model import PgType, TypeKind
from docferry.document.model import Collection, Key, KeyAttribute, KeyKind, MirrorSpec
from docferry.document.source_key import is_reversible, source_key

INT, TEXT, BYTEA = PgType(23, "int4"), PgType(25, "text"), PgType(17, "bytea")
DOMAIN = PgType(99, "code", TypeKind.DOMAIN, BYTEA)


def spec(*templates: str | None, key: tuple[str, ...] = ("a", "b")) -> MirrorSpec:
    attributes = tuple(KeyAttribute(f"k{number}", KeyKind.TEXT) for number in range(len(templates)))
    return MirrorSpec("public.t", key, Collection("t", attributes), templates)


@pytest.mark.parametrize(
    ("templates", "key", "texts"),
    [
        ((None, None), (7, "x"), ("7", "x")),
        ((None, None), (Decimal("1.50"), b"\x00\xff"), ("1.50", "\\x00ff")),
        (("O#{a}", "L#{b}"), ("O#7", "L#x"), ("7", "x")),
        (("{a}#{b}#end",), ("7#x#y#end",), ("7", "x#y")),
        (("{{{a}}}-{b}",), ("{7}-",), ("7", "")),
        (("{a}", "{b}.{a}"), ("7", "x\n.7"), ("7", "x\n")),
        (("{b}|{a}",), ("x|7",), ("7", "x")),
        (("{a}", "{b}.{a}"), ("7", "x.8"), None),
        (("O#{a}", "L#{b}"), ("P#7", "L#x"), None),
        (("O#{a}", "L#{b}"), ("O#7", 5), None),
        ((None, None), ("7", "x\0"), None),
    ],
)
def test_the_text_of_each_key_column(templates: tuple[str | None, ...], key: Key, texts: object) -> None:
    assert source_key(spec(*templates), [INT, TEXT], key) == texts


@pytest.mark.parametrize("of", [BYTEA, DOMAIN])
def test_bytes_in_a_template_are_read_back_as_bytes(of: PgType) -> None:
    assert source_key(spec("B#{a}", key=("a",)), [of], ("B#00ff",)) == ("\\x00ff",)


def test_a_string_in_jsonb_cannot_be_told_from_others() -> None:
    assert is_reversible([INT, TEXT, BYTEA])
    assert not is_reversible([INT, PgType(3802, "jsonb")])
