from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal

import pytest

from docferry.change.model import UNCHANGED, Column, PgType, RawValue, Relation, TypeKind
from docferry.document.convert import RESERVED_ATTRIBUTES, Converter
from docferry.document.model import (
    Collection,
    Delete,
    DocumentFormat,
    DocumentSpec,
    KeyAttribute,
    KeyKind,
    MirrorSpec,
    Put,
)
from docferry.errors import ConfigError, DocumentInvalid, KeyRefused, RowRefused, ValueRefused

INT = PgType(23, "int4")
NUMERIC = PgType(1700, "numeric")
TEXT = PgType(25, "text")
XML = PgType(142, "xml")
BYTEA = PgType(17, "bytea")
BOOL = PgType(16, "bool")
INTS = PgType(1007, "_int4", TypeKind.ARRAY, INT)
XML_DOMAIN = PgType(1, "order_doc", TypeKind.DOMAIN, XML)


def relation(key: tuple[str, ...] = ("id",), /, **types: PgType) -> Relation:
    return Relation(1, "public", "t", tuple(Column(name, of, name in key) for name, of in types.items()))


def mirror(
    *attributes: tuple[str, KeyKind],
    key: tuple[str, ...] = ("id",),
    templates: tuple[str | None, ...] = (),
    include: frozenset[str] | None = None,
    exclude: frozenset[str] = frozenset(),
    documents: Mapping[str, DocumentSpec] | None = None,
) -> Converter:
    collection = Collection(
        "t", tuple(KeyAttribute(*attribute) for attribute in attributes or (("id", KeyKind.NUMBER),))
    )
    return Converter(MirrorSpec("public.t", key, collection, templates, include, exclude, documents or {}))


ORDERS = relation(id=INT, order_data=XML, note=TEXT)


def test_put_carries_every_column_and_the_key() -> None:
    put = mirror().put(ORDERS, (b"7", b"<o><q>1</q></o>", None), 5, new=True)
    assert isinstance(put, Put)
    assert put.key == (7,)
    assert put.version == 5
    assert put.new
    assert put.document == {"id": 7, "order_data": {"o": {"q": "1"}}, "note": None}


def test_delete_needs_the_key_only() -> None:
    converter = mirror()
    assert converter.delete(ORDERS, (b"7", UNCHANGED, None), 5) == Delete(converter.spec.collection, (7,), 5)


def test_include_and_exclude() -> None:
    row: tuple[RawValue, ...] = (b"7", b"<o/>", b"x")
    assert mirror(exclude=frozenset({"note"})).put(ORDERS, row, 1).document.keys() == {"id", "order_data"}
    assert mirror(include=frozenset({"note"})).put(ORDERS, row, 1).document == {"note": "x"}


def test_domains_over_xml_are_documents() -> None:
    assert mirror().put(relation(id=INT, d=XML_DOMAIN), (b"1", b"<a/>"), 1).document["d"] == {"a": None}


@pytest.mark.parametrize(
    ("format_", "text", "value"),
    [
        (DocumentFormat.XML, b"<a>1</a>", {"a": "1"}),
        (DocumentFormat.JSON, b'{"a": 1.50}', {"a": Decimal("1.5")}),
        (DocumentFormat.YAML, b"a: no", {"a": "no"}),
        (DocumentFormat.XML, b"", None),
        (DocumentFormat.JSON, b"", None),
        (DocumentFormat.YAML, b"", None),
        (DocumentFormat.JSON, None, None),
    ],
)
def test_text_columns_hold_documents_when_configured(
    format_: DocumentFormat, text: bytes | None, value: object
) -> None:
    converter = mirror(documents={"d": DocumentSpec(format_)})
    assert converter.put(relation(id=INT, d=TEXT), (b"1", text), 1).document["d"] == value


def test_shapes_apply() -> None:
    converter = mirror(documents={"d": DocumentSpec(DocumentFormat.XML, frozenset({"b"}), frozenset({"b"}))})
    assert converter.put(relation(id=INT, d=XML), (b"1", b"<a><b>1</b></a>"), 1).document["d"] == {"a": {"b": [1]}}


@pytest.mark.parametrize("of", [XML, INT, BYTEA, INTS])
def test_a_format_that_does_not_fit_the_type_is_refused(of: PgType) -> None:
    converter = mirror(documents={"d": DocumentSpec(DocumentFormat.JSON)})
    with pytest.raises(ConfigError, match='column "d"') as refused:
        converter.put(relation(id=INT, d=of), (b"1", b""), 1)
    assert refused.value.remedy


@pytest.mark.parametrize("name", sorted(RESERVED_ATTRIBUTES))
def test_reserved_attributes(name: str) -> None:
    table = relation(("id",), **{"id": INT, name: TEXT})
    with pytest.raises(ConfigError, match=name) as refused:
        mirror().put(table, (b"1", b"x"), 1)
    assert f'exclude = ["{name}"]' in refused.value.remedy
    assert mirror(exclude=frozenset({name})).put(table, (b"1", b"x"), 1).document == {"id": 1}


# --- errors name the place --------------------------------------------------------------------------------------------


def test_a_bad_document_names_table_key_and_column() -> None:
    with pytest.raises(DocumentInvalid) as refused:
        mirror().put(ORDERS, (b"7", b"<o>", None), 1)
    assert str(refused.value).startswith('public.t id=7: column "order_data": not well-formed XML: ')


def test_a_bad_value_names_its_type_and_not_itself() -> None:
    with pytest.raises(ValueRefused) as refused:
        mirror().put(relation(id=INT, n=INT), (b"7", b"secret"), 1)
    assert str(refused.value) == 'public.t id=7: column "n" is not readable as int4: ValueError'
    with pytest.raises(ValueRefused, match="key"):
        mirror().key(relation(id=INT), (b"secret",))


def test_a_row_that_is_not_whole_is_a_mistake_of_the_program() -> None:
    with pytest.raises(ValueError, match="R5"):
        mirror().put(ORDERS, (b"7", UNCHANGED, None), 1)
    with pytest.raises(ValueError, match="carry its key"):
        mirror().key(ORDERS, (UNCHANGED, None, None))


# --- keys -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("of", "kind", "raw", "key"),
    [
        (INT, KeyKind.NUMBER, b"-5", -5),
        (NUMERIC, KeyKind.NUMBER, b"1.50", Decimal("1.5")),
        (TEXT, KeyKind.TEXT, b"a", "a"),
        (BYTEA, KeyKind.BINARY, b"\\x00ff", b"\0\xff"),
        (BOOL, KeyKind.TEXT, b"t", "true"),
        (INTS, KeyKind.TEXT, b"{1,2}", "{1,2}"),
        (PgType(701, "float8"), KeyKind.TEXT, b"1.5", "1.5"),
        (PgType(1184, "timestamptz"), KeyKind.TEXT, b"2024-01-02 03:04:05+00", "2024-01-02T03:04:05Z"),
    ],
)
def test_own_values(of: PgType, kind: KeyKind, raw: bytes, key: object) -> None:
    table = relation(id=of)
    put = mirror(("id", kind)).put(table, (raw,), 1)
    assert put.key == (key,)
    assert put.document == {"id": key}, "key attributes and document must not differ"


@pytest.mark.parametrize(
    ("of", "kind", "raw"),
    [
        (NUMERIC, KeyKind.NUMBER, b"NaN"),
        (NUMERIC, KeyKind.NUMBER, b"9" * 39),
        (TEXT, KeyKind.NUMBER, b"a"),
        (BOOL, KeyKind.NUMBER, b"t"),
        (TEXT, KeyKind.TEXT, b""),
        (BYTEA, KeyKind.BINARY, b"\\x"),
        (TEXT, KeyKind.BINARY, b"a"),
        (INT, KeyKind.NUMBER, None),
    ],
)
def test_what_cannot_be_a_key(of: PgType, kind: KeyKind, raw: bytes | None) -> None:
    with pytest.raises(KeyRefused) as refused:
        mirror(("id", kind)).key(relation(id=of), (raw,))
    assert str(refused.value).startswith("public.t id=")
    assert refused.value.remedy
    with pytest.raises(KeyRefused):
        mirror(("id", kind)).put(relation(id=of), (raw,), 1)


LINES = relation(("a", "b"), b=TEXT, a=TEXT)


def test_two_columns_are_partition_and_sort_key() -> None:
    converter = mirror(("a", KeyKind.TEXT), ("b", KeyKind.TEXT), key=("a", "b"))
    assert converter.key(LINES, (b"2", b"1")) == ("1", "2")
    assert converter.key_indexes(LINES) == (1, 0)
    assert converter.show_key(LINES, (b"2", b"1")) == "a=1,b=2"


def _template(*templates: str | None, attributes: int = 1) -> Converter:
    names = [("pk", KeyKind.TEXT), ("b", KeyKind.TEXT)][:attributes]
    return mirror(*names, key=("a", "b"), templates=templates)


def test_templates() -> None:
    assert _template("ORDER#{a}-{b}").key(LINES, (b"y", b"x")) == ("ORDER#x-y",)
    assert _template("{{{a}}}/{b}").key(LINES, (b"y", b"x")) == ("{x}/y",)
    assert _template("ORDER#{a}", None, attributes=2).key(LINES, (b"y", b"x")) == ("ORDER#x", "y")
    put = _template("ORDER#{a}", None, attributes=2).put(LINES, (b"y", b"x"), 1)
    assert put.document == {"a": "x", "b": "y"}


def test_equal_numbers_make_equal_templates() -> None:
    converter = mirror(("pk", KeyKind.TEXT), templates=("N#{id}",))
    table = relation(id=NUMERIC)
    assert converter.key(table, (b"1.0",)) == converter.key(table, (b"1.00",)) == ("N#1",)
    assert converter.key(table, (b"1000",)) == ("N#1000",)
    assert converter.key(table, (b"0.50",)) == ("N#0.5",)


@pytest.mark.parametrize(("first", "second"), [("x-y", "z"), ("x-", "z"), ("-", "z")])
def test_a_separator_inside_a_value_is_refused(first: str, second: str) -> None:
    with pytest.raises(KeyRefused, match="separates"):
        _template("{a}-{b}").key(LINES, (second.encode(), first.encode()))


def test_a_value_that_overlaps_its_separator_is_refused() -> None:
    with pytest.raises(KeyRefused):
        _template("{a}--{b}").key(LINES, (b"z", b"x-"))
    assert _template("{a}--{b}").key(LINES, (b"-z", b"x")) == ("x---z",)


def test_the_last_value_may_hold_anything() -> None:
    assert _template("{a}-{b}-").key(LINES, (b"y-z", b"x")) == ("x-y-z-",)


@pytest.mark.parametrize(
    ("templates", "attributes", "reason"),
    [
        (("{a}{b}",), 1, "joins"),
        (("{a}",), 1, "leaves out"),
        (("{a}#{b}", None, None), 2, "3 key templates"),
        (("{a", "{b}"), 2, "cannot be read"),
        (("{a!r}#{b}",), 1, "cannot be read"),
        (("{}#{a}#{b}",), 1, "cannot be read"),
        (("{a:>5}#{b}",), 1, "cannot be read"),
    ],
)
def test_impossible_templates(templates: tuple[str | None, ...], attributes: int, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as refused:
        _template(*templates, attributes=attributes)
    assert refused.value.remedy


def test_templates_name_key_columns_only() -> None:
    with pytest.raises(ConfigError, match='"c", which is not a key column'):
        _template("{a}#{b}#{c}").key(LINES, (b"1", b"2"))


def test_a_template_needs_a_text_attribute_and_a_name_of_its_own() -> None:
    with pytest.raises(ConfigError, match="must be text"):
        mirror(("pk", KeyKind.NUMBER), templates=("{id}",))
    with pytest.raises(ConfigError, match="different values"):
        mirror(("id", KeyKind.TEXT), templates=("X#{id}",)).put(relation(id=INT), (b"1",), 1)
    spared = mirror(("id", KeyKind.TEXT), templates=("X#{id}",), exclude=frozenset({"id"}))
    assert spared.put(relation(id=INT), (b"1",), 1).document == {}


def test_more_key_columns_than_attributes_need_a_template() -> None:
    with pytest.raises(ConfigError, match="leaves out the key column c"):
        mirror(("a", KeyKind.TEXT), ("b", KeyKind.TEXT), key=("a", "b", "c"))


# --- tables change ----------------------------------------------------------------------------------------------------


def test_a_renamed_key_column_is_found_by_the_replica_identity() -> None:
    converter = mirror()
    renamed = relation(("order_no",), note=TEXT, order_no=INT)
    put = converter.put(renamed, (b"x", b"7"), 1)
    assert put.key == (7,)
    assert put.document == {"note": "x", "order_no": 7}
    assert converter.key(ORDERS, (b"8", None, None)) == (8,), "the older relation is still known"


@pytest.mark.parametrize("key", [(), ("a", "b")])
def test_a_lost_key_column_is_refused(key: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match=r'public.t: key column "id"') as refused:
        mirror().key(relation(key, a=INT, b=INT), (b"1", b"2"))
    assert "a, b" in refused.value.remedy


def test_plans_of_many_relations_are_bounded() -> None:
    converter = mirror()
    for _ in range(100):
        converter.key(relation(id=INT), (b"1",))
    assert len(converter._plans) <= 32


def test_numbers_as_text_are_listed() -> None:
    table = relation(id=INT, a=NUMERIC, b=NUMERIC, c=TEXT)
    assert mirror().numbers_as_text(table, (b"1", b"9" * 39, b"1.5", b"9" * 39)) == ("a",)


def test_every_refusal_is_complete() -> None:
    with pytest.raises(RowRefused) as refused:
        mirror(exclude=frozenset({"id"})).put(ORDERS, (None, b"<", b""), 1)
    assert (refused.value.table, refused.value.key) == ("public.t", "id=NULL")
