"""PostgreSQL itself says whether a value is right: each one is written back as SQL and compared by the server (R9)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from decimal import Decimal

import psycopg
import pytest
from psycopg import sql

from docferry.capture.catalog import Types
from docferry.change.model import PgType, TypeKind
from docferry.document.model import Value
from docferry.document.values import base_type, compiled

SETTINGS = (
    "-c datestyle=ISO -c intervalstyle=iso_8601 -c timezone=UTC -c extra_float_digits=1 -c bytea_output=hex "
    "-c client_encoding=UTF8"
)

DDL = """
CREATE TYPE mood AS ENUM ('sad', 'ok', 'very "happy", really');
CREATE DOMAIN positive AS numeric CHECK (value > 0);
CREATE DOMAIN small_positive AS positive CHECK (value < 1e30);
CREATE DOMAIN words AS text[];
CREATE TYPE address AS (street text, "house No" int, since timestamptz, tags text[]);
CREATE TYPE person AS (name text, home address, mood mood, worth positive);
CREATE TYPE nothing AS ();
CREATE TYPE textrange AS RANGE (subtype = text);
CREATE TYPE moodrange AS RANGE (subtype = mood);
"""

LONG = "1234567890" * 6

CASES: list[tuple[str, str, Value]] = [
    # type, SQL expression, expected value
    ("bool", "true", True),
    ("bool", "false", False),
    ("int2", "-32768", -32768),
    ("int4", "2147483647", 2147483647),
    ("int8", "'-9223372036854775808'", -(2**63)),
    ("oid", "4294967295", 4294967295),
    ("numeric", "0", 0),
    ("numeric", "12.50", Decimal("12.5")),
    ("numeric", "'-0.00000000000000000001'", Decimal("-1E-20")),
    ("numeric", f"'{'9' * 38}'", 10**38 - 1),
    ("numeric", f"'{'9' * 39}'", "9" * 39),
    ("numeric", f"'1.{'0' * 60}'", 1),
    ("numeric", "'1e60'", 10**60),
    ("numeric", "'1e125'", 10**125),
    ("numeric", "'1e126'", "1" + "0" * 126),
    ("numeric", "'1e-130'", Decimal("1E-130")),
    ("numeric", "'1e-131'", "0." + "0" * 130 + "1"),
    ("numeric", f"'{LONG}'", LONG),
    ("numeric", f"'-{LONG}.{LONG}'", f"-{LONG}.{LONG}"),
    ("numeric", "'1' || repeat('7', 5000)", "1" + "7" * 5000),
    ("numeric(10,3)", "7", 7),
    ("numeric", "'NaN'", "NaN"),
    ("numeric", "'Infinity'", "Infinity"),
    ("numeric", "'-Infinity'", "-Infinity"),
    ("float8", "0.1", Decimal("0.1")),
    ("float8", "1e300", "1e+300"),
    ("float8", "'5e-324'", "5e-324"),
    ("float8", "1e20", 10**20),
    ("float8", "1e-7", Decimal("1E-7")),
    ("float8", "'-0'", "-0"),
    ("float8", "'NaN'", "NaN"),
    ("float8", "'-Infinity'", "-Infinity"),
    ("float8", "0.1::float8 + 0.2::float8", Decimal("0.30000000000000004")),
    ("float4", "'3.4028235e38'", 34028235 * 10**31),
    ("float4", "0.1", Decimal("0.1")),
    ("text", "'a''b\"\\ \n é € 😀'", "a'b\"\\ \n é € 😀"),
    ("text", "''", ""),
    ("varchar(5)", "'abc'", "abc"),
    ("char(5)", "'abc'", "abc  "),
    ('"char"', "'x'", "x"),
    ("name", "'abc'", "abc"),
    ("uuid", "'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11'", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
    ("mood", "'ok'", "ok"),
    ("bytea", "'\\x00ff5c27'", b"\x00\xff\\'"),
    ("bytea", "''", b""),
    ("date", "'2024-02-29'", "2024-02-29"),
    ("date", "'0044-03-15 BC'", "0044-03-15 BC"),
    ("date", "'infinity'", "infinity"),
    ("date", "'-infinity'", "-infinity"),
    ("date", "'12345-06-07'", "12345-06-07"),
    ("time", "'24:00:00'", "24:00:00"),
    ("time", "'01:02:03.000001'", "01:02:03.000001"),
    ("timetz", "'01:02:03.5+05:30'", "01:02:03.5+05:30"),
    ("timetz", "'01:02:03-08'", "01:02:03-08:00"),
    ("timetz", "'01:02:03+01:02:03'", "01:02:03+01:02:03"),
    ("timestamp", "'2024-01-02 03:04:05.678901'", "2024-01-02T03:04:05.678901"),
    ("timestamp", "'0044-03-15 12:00:00 BC'", "0044-03-15T12:00:00 BC"),
    ("timestamp", "'infinity'", "infinity"),
    ("timestamp", "'294276-12-31 23:59:59.999999'", "294276-12-31T23:59:59.999999"),
    ("timestamptz", "'2024-01-02 03:04:05.678901+02'", "2024-01-02T01:04:05.678901Z"),
    ("timestamptz", "'0044-03-15 12:00:00+00 BC'", "0044-03-15T12:00:00Z BC"),
    ("timestamptz", "'-infinity'", "-infinity"),
    ("timestamptz", "'12345-06-07 08:09:10+00'", "12345-06-07T08:09:10Z"),
    ("interval", "'1 year 2 mons 3 days 04:05:06.789'", "P1Y2M3DT4H5M6.789S"),
    ("interval", "'-1 day +00:00:01'", "P-1DT1S"),
    ("interval", "'0'", "PT0S"),
    ("inet", "'192.168.0.1/24'", "192.168.0.1/24"),
    ("cidr", "'2001:db8::/32'", "2001:db8::/32"),
    ("macaddr", "'08:00:2b:01:02:03'", "08:00:2b:01:02:03"),
    ("bit(3)", "'101'", "101"),
    ("varbit", "'10'", "10"),
    ("money", "'12.34'", "$12.34"),
    ("tsvector", "'a fat cat'", "'a' 'cat' 'fat'"),
    ("point", "'(1,2)'", "(1,2)"),
    ("box", "'(1,2),(0,0)'", "(1,2),(0,0)"),
    ("pg_lsn", "'16/B374D848'", "16/B374D848"),
    ("int2vector", "'1 2 3'", "1 2 3"),
    ("jsonpath", "'$.a'", '$."a"'),
    ("positive", "1.50", Decimal("1.5")),
    ("small_positive", "1.50", Decimal("1.5")),
    ("words", "'{a,NULL,\"NULL\",\"b c\"}'", ["a", None, "NULL", "b c"]),
    ("int[]", "'{}'", []),
    ("int[]", "'{1,NULL,3}'", [1, None, 3]),
    ("int[][]", "'{{1,2},{3,4}}'", [[1, 2], [3, 4]]),
    ("int[]", "'[0:1]={5,6}'", {"bounds": "[0:1]", "values": [5, 6]}),
    ("int[]", "'[2:3][-1:0]={{1,2},{3,4}}'", {"bounds": "[2:3][-1:0]", "values": [[1, 2], [3, 4]]}),
    ("text[]", "ARRAY['', 'a,b', '{x}', 'q\"q', 'b\\s', ' ', 'é', 'null', E'\\n']",
     ["", "a,b", "{x}", 'q"q', "b\\s", " ", "é", "null", "\n"]),
    ("text[]", "ARRAY[ARRAY['a\"', '}'], ARRAY[NULL, '{']]", [['a"', "}"], [None, "{"]]),
    ("bytea[]", "ARRAY['\\x00'::bytea, '\\xff'::bytea]", [b"\0", b"\xff"]),
    ("box[]", "'{(1,2),(0,0);(3,4),(1,1)}'", ["(1,2),(0,0)", "(3,4),(1,1)"]),
    ("timestamptz[]", "ARRAY['2024-01-02 03:04:05+00'::timestamptz]", ["2024-01-02T03:04:05Z"]),
    ("bool[]", "ARRAY[true, false]", [True, False]),
    ("mood[]", "ARRAY['very \"happy\", really'::mood]", ['very "happy", really']),
    ("numeric[]", f"ARRAY['{LONG}'::numeric, 'NaN', 1.5]", [LONG, "NaN", Decimal("1.5")]),
    ("address", "ROW('Main \"St\", (2)', 7, '2024-01-02 03:04:05+00', '{a,\"b c\"}')",
     {"street": 'Main "St", (2)', "house No": 7, "since": "2024-01-02T03:04:05Z", "tags": ["a", "b c"]}),
    ("address", "ROW(NULL, NULL, NULL, NULL)", {"street": None, "house No": None, "since": None, "tags": None}),
    ("address", "ROW('', 1, NULL, '{}')", {"street": "", "house No": 1, "since": None, "tags": []}),
    ("person", "ROW('A\\B', ROW('x \"y\"', 1, NULL, ARRAY['q\"'])::address, 'sad', 1.0)",
     {"name": "A\\B", "home": {"street": 'x "y"', "house No": 1, "since": None, "tags": ['q"']}, "mood": "sad",
      "worth": 1}),
    ("address[]", "ARRAY[ROW('a,b', 1, NULL, NULL)::address, NULL]",
     [{"street": "a,b", "house No": 1, "since": None, "tags": None}, None]),
    ("nothing", "ROW()", {}),
    ("int4range", "'(1,5]'", {"lower": 2, "upper": 6, "bounds": "[)"}),
    ("int4range", "'empty'", {"empty": True}),
    ("int8range", "'(,)'", {"lower": None, "upper": None, "bounds": "()"}),
    ("numrange", "'[1.5,)'", {"lower": Decimal("1.5"), "upper": None, "bounds": "[)"}),
    ("daterange", "'[-infinity,2024-01-01]'", {"lower": "-infinity", "upper": "2024-01-02", "bounds": "[)"}),
    ("tstzrange", "'[2024-01-02 03:04:05+00, infinity]'",
     {"lower": "2024-01-02T03:04:05Z", "upper": "infinity", "bounds": "[]"}),
    ("textrange", "textrange('', 'a\",]\\ b')", {"lower": "", "upper": 'a",]\\ b', "bounds": "[)"}),
    ("moodrange", "moodrange('sad', 'very \"happy\", really')",
     {"lower": "sad", "upper": 'very "happy", really', "bounds": "[)"}),
    ("int4multirange", "'{[1,3),[7,9)}'",
     [{"lower": 1, "upper": 3, "bounds": "[)"}, {"lower": 7, "upper": 9, "bounds": "[)"}]),
    ("int4multirange", "'{}'", []),
    ("tsmultirange", "'{[2024-01-01 00:00:00,2024-01-02 00:00:00)}'",
     [{"lower": "2024-01-01T00:00:00", "upper": "2024-01-02T00:00:00", "bounds": "[)"}]),
    ("int4range[]", "ARRAY['[1,3)'::int4range]", [{"lower": 1, "upper": 3, "bounds": "[)"}]),
    ("jsonb", """'{"a": [1, 2.50, null, true, "x\\u00e9"], "b": {}}'""",
     {"a": [1, Decimal("2.5"), None, True, "xé"], "b": {}}),
    ("json", "'[1e5, -0, \"\"]'", [100000, 0, ""]),
    ("jsonb", "'3'", 3),
    ("jsonb", "'null'", None),
    ("jsonb[]", "ARRAY['{\"a\": 1}'::jsonb]", [{"a": 1}]),
]  # fmt: skip


@pytest.fixture
def source(database: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(database, options=SETTINGS, autocommit=True) as connection:
        connection.execute(DDL)
        yield connection


def raw_and_type(source: psycopg.Connection, of: str, expression: str) -> tuple[bytes, PgType]:
    """The text as the output function writes it, and the type from the catalog."""
    cursor = source.execute(f"SELECT ({expression})::{of} AS value".encode())
    assert cursor.description is not None
    assert cursor.pgresult is not None
    raw = cursor.pgresult.get_value(0, 0)
    assert raw is not None
    # A query's description names the base of a domain.
    row = source.execute(f"SELECT pg_typeof(NULL::{of})::oid").fetchone()
    assert row is not None
    return raw, Types(source)(row[0])


def test_every_value_is_as_documented_and_reads_back_as_the_same(source: psycopg.Connection) -> None:
    for of, expression, expected in CASES:
        raw, type_ = raw_and_type(source, of, expression)
        value = compiled(type_)(raw)
        assert value == expected, (of, expression)
        assert type(value) is type(expected) or isinstance(value, int | Decimal), (of, expression)
        back = sql.Literal(written(value, type_)) if value is not None else sql.SQL("'null'")
        compared = "({a}) IS NOT DISTINCT FROM ({b})"
        if of.startswith("json") and of != "jsonpath":
            compared = compared.format(a="{a}::text::jsonb", b="{b}::text::jsonb")
            if of.endswith("[]"):
                compared = "({a})::jsonb[] = ({b})::jsonb[]"
        elif of not in HAVE_EQUALITY:
            compared = "({a})::text = ({b})::text"
        row = source.execute(
            sql.SQL("SELECT " + compared).format(
                a=sql.SQL(f"({expression})::{of}"),
                b=sql.SQL("{}::{}").format(back, sql.SQL(of)),
            )
        ).fetchone()
        assert row == (True,), (of, expression, value, written(value, type_))


HAVE_EQUALITY = {"numeric", "numeric(10,3)", "positive", "small_positive", "numrange", "numeric[]", "person"}
"""Types whose text may differ for equal values (12.50, 12.5); all others must read back with the very same text."""


def written(value: Value, of: PgType) -> str:
    """The value as text that PostgreSQL's input function reads."""
    of = base_type(of)
    match value:
        case bool():
            return json.dumps(value)
        case bytes():
            return "\\x" + value.hex()
        case _ if of.name in ("json", "jsonb"):
            return json.dumps(value, default=float)
        case list() if of.kind is TypeKind.MULTIRANGE:
            assert of.element
            return "{" + ",".join(written(item, of.element) for item in value) + "}"
        case list():
            return "{" + of.delimiter.join(_item(item, of) for item in value) + "}"
        case dict() if of.kind is TypeKind.COMPOSITE:
            return "(" + ",".join(_field(value[name], field) for name, field in of.fields) + ")"
        case {"bounds": str(bounds), "values": values}:
            return f"{bounds}={written(values, of)}"
        case {"empty": True}:
            return "empty"
        case {"lower": lower, "upper": upper, "bounds": str(bounds)}:
            assert of.element
            return f"{bounds[0]}{_field(lower, of.element)},{_field(upper, of.element)}{bounds[1]}"
        case _:
            return str(value)


def _item(value: Value, array: PgType) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, list):
        return written(value, array)
    assert array.element
    return _quoted(written(value, array.element))


def _field(value: Value, of: PgType) -> str:
    return "" if value is None else _quoted(written(value, of))


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def test_session_zones_do_not_matter(source: psycopg.Connection) -> None:
    expression = "'2024-07-02 03:04:05.678901+00'"
    for zone in ("Asia/Kolkata", "America/St_Johns", "UTC"):
        source.execute(f"SET timezone = '{zone}'")
        raw, type_ = raw_and_type(source, "timestamptz", expression)
        assert compiled(type_)(raw) == "2024-07-02T03:04:05.678901Z"


def test_hstore(source: psycopg.Connection) -> None:
    try:
        source.execute("CREATE EXTENSION hstore")
    except psycopg.errors.FeatureNotSupported:
        pytest.skip("this server has no hstore")
    raw, type_ = raw_and_type(source, "hstore", """'a=>1, "b \\"q\\""=>NULL, "c"=>"NULL", "é,=>"=>"x\\\\y"'""")
    assert compiled(type_)(raw) == {"a": "1", 'b "q"': None, "c": "NULL", "é,=>": "x\\y"}
    raw, type_ = raw_and_type(source, "hstore", "''")
    assert compiled(type_)(raw) == {}


def test_xml_columns_and_what_xpath_finds_in_them(source: psycopg.Connection) -> None:
    text = '<?xml version="1.0" encoding="ISO-8859-1"?><o id="7"><i>a &amp; é</i><i><![CDATA[<b>]]></i></o>'
    raw, type_ = raw_and_type(source, "xml", f"'{text}'")
    value = compiled(type_)(raw)
    assert value == {"o": {"@id": "7", "i": ["a & é", "<b>"]}}
    row = source.execute(
        f"SELECT (xpath('/o/@id', x))[1]::text, (xpath('string(/o/i[2])', x))[1]::text FROM (SELECT '{text}'::xml x) t"
    ).fetchone()
    assert row == ("7", "&lt;b&gt;")
    for fragment, expected in (
        ("a<b/>", {"#mixed": ["a", {"b": None}]}),
        ("", None),
        ("<a/><a/>", {"a": [None, None]}),
    ):
        raw, type_ = raw_and_type(source, "xml", f"'{fragment}'")
        assert compiled(type_)(raw) == expected
