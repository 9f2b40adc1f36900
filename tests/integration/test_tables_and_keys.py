"""Tables with odd names and keys of every type: streamed, read again by key, and read in pages."""

from __future__ import annotations

import json
from decimal import Decimal

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from docferry.capture.catalog import Types
from docferry.capture.snapshot import TableReader
from docferry.change.model import Relation, Row
from docferry.config import RunConfig
from docferry.retry import Retry
from docferry.source.session import connect

from .harness import BY_BOTH, Ferry

CAPTURES = BY_BOTH

LARGE = "(SELECT string_agg(md5(g::text), '') FROM generate_series(1, 200) AS g)"


@pytest.fixture
def ferry(ferry: Ferry) -> Ferry:
    """Pages of three rows: a boundary is met often."""
    ferry.run = RunConfig(backfill_page=3)
    return ferry


KEYS = {
    "int": ("int", "g - 5"),
    "bigint": ("bigint", "(g - 5) * 1000000000000"),
    "numeric": ("numeric", "(g * 1.50 - 7)"),
    "scaled numeric": ("numeric(12, 4)", "(g / 3.0 - 2)"),
    "text": ("text", "(ARRAY['a', 'B', 'ä', 'Z', 'é', 'z', 'A b', '''q''', '\"', '\\\\', '{x,y}', 'null'])[g + 1]"),
    "collated text": (
        'text COLLATE "POSIX"',
        "(ARRAY['a', 'B', 'ä', 'Z', 'é', 'z', 'A b', '''q''', '\"', '\\\\', '{x,y}', 'null'])[g + 1]",
    ),
    "varchar": ("varchar(9)", "'v' || g"),
    "char": ("char(9)", "'c' || g"),
    "uuid": ("uuid", "md5(g::text)::uuid"),
    "enum": ("mood", "(enum_range(NULL::mood))[g + 1]"),
    "domain": ("positive", "g + 1"),
    "text domain": ("code", "'K' || g"),
    "timestamptz": ("timestamptz", "'2024-03-31 00:30+01'::timestamptz + g * interval '17 minutes 0.000001 s'"),
    "date": ("date", "'2024-02-25'::date + g"),
    "boolean and int": ("boolean", "g % 2 = 0"),
    "bytea": ("bytea", "decode(md5(g::text), 'hex')"),
    "inet": ("inet", "('10.0.0.0/24'::inet + g)"),
}


@pytest.mark.parametrize("kind", KEYS)
def test_keys_of_every_type(ferry: Ferry, kind: str) -> None:
    of, value = KEYS[kind]
    key = "k, n" if kind == "boolean and int" else "k"
    ferry.execute(
        "CREATE TYPE mood AS ENUM ('m9', 'm8', 'm7', 'm6', 'm5', 'm4', 'm3', 'm2', 'm1', 'm0', 'M', 'm''\"')",
        "CREATE DOMAIN positive AS int CHECK (VALUE > 0)",
        "CREATE DOMAIN code AS text CHECK (VALUE ~ '^K')",
        f"CREATE TABLE keyed (k {of}, n int, name text, doc text, PRIMARY KEY ({key}))",
        f"INSERT INTO keyed SELECT {value}, g, 'n' || g, {LARGE} FROM generate_series(0, 11) AS g",
    )
    ferry.begin("public.keyed")
    assert _by_number(ferry) == _rows(ferry)
    # In doubt, each of them: read again by key.
    ferry.execute("UPDATE keyed SET name = 'again'")
    ferry.execute("DELETE FROM keyed WHERE n IN (0, 5)")
    ferry.wait()
    assert _by_number(ferry) == _rows(ferry)


def _by_number(ferry: Ferry) -> dict[object, object]:
    return {document["n"]: (document["name"], document["doc"]) for document in ferry.documents("keyed").values()}


def _rows(ferry: Ferry) -> dict[object, object]:
    return {n: (name, doc) for n, name, doc in ferry.query("SELECT n, name, doc FROM keyed")}


def test_odd_names(ferry: Ferry) -> None:
    schema, table = 'My "Schema"', "Select.From %s {}"
    quoted = '"My ""Schema"""."Select.From %s {}"'
    ferry.connection.execute('CREATE SCHEMA "My ""Schema"""')
    ferry.connection.execute(
        f'CREATE TABLE {quoted} ("The Id" int, "order" text, "100%%" text, "a{{b}}" text, "q""q" text, '
        'PRIMARY KEY ("order", "The Id"))'.replace("%%", "%").encode()
    )
    ferry.connection.execute(
        f"INSERT INTO {quoted} SELECT g, 'o', 'p', 'b', {LARGE} FROM generate_series(1, 9) g".encode()
    )
    ferry.mirror(f"{schema}.{table}")
    ferry.mirrors[0] = type(ferry.mirrors[0])(f"{schema}.{table}", "odd")
    ferry.apply()
    ferry.start()
    ferry.wait()
    ferry.connection.execute(f'UPDATE {quoted} SET "100%" = \'new\' WHERE "The Id" < 5'.encode())
    ferry.connection.execute(f'DELETE FROM {quoted} WHERE "The Id" = 9'.encode())
    ferry.wait()
    rows = ferry.rows(f"{schema}.{table}")
    assert len(rows) == 8
    found = ferry.documents(f"{schema}.{table}")
    assert found == {(row["order"], row["The Id"]): row for row in rows}


def test_one_number_written_in_two_ways_is_one_key(ferry: Ferry) -> None:
    ferry.execute("CREATE TABLE keyed (k numeric PRIMARY KEY, n int, name text, doc text)")
    ferry.begin("public.keyed")
    ferry.execute("INSERT INTO keyed VALUES (1.0, 1, 'x', 'x'), (2.50, 2, 'y', 'y')")
    ferry.execute("UPDATE keyed SET k = 1.000, name = 'rewritten' WHERE n = 1")
    ferry.execute("DELETE FROM keyed WHERE k = 2.5")
    ferry.wait()
    assert list(ferry.documents("keyed")) == [(Decimal(1),)]
    assert _by_number(ferry) == _rows(ferry)


# -- the plans of the statements that read -----------------------------------------------------------------------------


class Explaining(TableReader):
    """Collects how the server would run what it is asked."""

    def __init__(self, dsn: str, key: tuple[str, ...]) -> None:
        super().__init__(dsn, Retry(), purpose="test", table="public.big", key=key)
        self.plans: list[str] = []
        self._connect()
        assert self._connection is not None
        self._connection.execute("LOAD 'auto_explain'")
        self._connection.execute("SET auto_explain.log_min_duration = 0")
        self._connection.execute("SET auto_explain.log_format = 'json'")
        self._connection.execute("SET client_min_messages = log")
        self._connection.add_notice_handler(lambda notice: self.plans.append(notice.message_primary or ""))


@pytest.mark.parametrize(
    ("columns", "key", "value"),
    [
        ("id int", ("id",), "g"),
        ("id uuid", ("id",), "md5(g::text)::uuid"),
        ('id text COLLATE "POSIX"', ("id",), "'t' || g"),
        ("id code", ("id",), "'K' || g"),
        ("id varchar(20)", ("id",), "'v' || g"),
        ("id numeric(12, 2)", ("id",), "g"),
        ("a int, b text", ("a", "b"), "g % 100, 'b' || g"),
    ],
)
@pytest.mark.parametrize("analyzed", [True, False])
def test_reading_uses_the_key_s_index(
    database: str, columns: str, key: tuple[str, ...], value: str, *, analyzed: bool
) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        for statement in (
            "CREATE DOMAIN code AS text",
            f"CREATE TABLE big ({columns}, doc text, PRIMARY KEY ({', '.join(key)})) WITH (autovacuum_enabled = off)",
            f"INSERT INTO big SELECT {value}, repeat('x', 200) FROM generate_series(1, 20000) AS g",
            "ANALYZE big" if analyzed else "SELECT 1",
        ):
            connection.execute(statement.encode())
    reader = Explaining(database, key)
    try:
        first = reader.boundary(None, 500)
        assert first is not None
        second = reader.boundary(first, 500)
        assert second is not None
        rows, last = reader.read_page(first, second, 1 << 30)
        assert len(rows) == 500
        assert last is None
        keys = [_key(reader, relation, row, key) for relation, row in rows[:250]]
        found, complete = reader.read_rows("public.big", key, keys, (), 1 << 30)
        assert (len(found), complete) == (250, True)
    finally:
        reader.close()
    assert len([plan for plan in reader.plans if '"Plan"' in plan and '"big"' in plan]) == 4
    for plan in reader.plans:
        if '"big"' in plan:
            assert _scans(json.loads(plan[plan.index("{") :])["Plan"]) <= {
                "Index Scan",
                "Index Only Scan",
                "Bitmap Heap Scan",
            }, plan


def _key(_reader: TableReader, relation: Relation, row: Row, key: tuple[str, ...]) -> tuple[str, ...]:
    names = [column.name for column in relation.columns]
    values = [row[names.index(name)] for name in key]
    return tuple(value.decode() for value in values if isinstance(value, bytes))


def _scans(plan: dict[str, object]) -> set[object]:
    """The kinds of nodes that read the table."""
    found = {plan["Node Type"]} if plan.get("Relation Name") == "big" else set()
    children = plan.get("Plans", [])
    assert isinstance(children, list)
    return found.union(*(_scans(child) for child in children))


def test_what_a_table_is_is_asked_without_waiting_for_its_locks(database: str) -> None:
    """Whoever asks holds up rereads of all tables."""
    with psycopg.connect(database, autocommit=True) as connection:
        for statement in (
            "CREATE TABLE parts (id int, region text, PRIMARY KEY (id, region)) PARTITION BY LIST (region)",
            "CREATE TABLE parts_eu PARTITION OF parts FOR VALUES IN ('eu') PARTITION BY RANGE (id)",
            "CREATE TABLE parts_eu_1 PARTITION OF parts_eu FOR VALUES FROM (1) TO (100)",
        ):
            connection.execute(statement.encode())
        impatient = make_conninfo(database, options="-c lock_timeout=5s")
        reader = TableReader(impatient, Retry(), purpose="test")
        try:
            layouts = [reader.layout("public.parts")]
            with connection.transaction():
                connection.execute("LOCK TABLE parts IN ACCESS EXCLUSIVE MODE")
                layouts.append(reader.layout("public.parts"))
            connection.execute("TRUNCATE parts_eu_1")
            layouts.append(reader.layout("public.parts"))
            connection.execute("CREATE TABLE parts_us PARTITION OF parts FOR VALUES IN ('us')")
            layouts.append(reader.layout("public.parts"))
        finally:
            reader.close()
    assert layouts[0] == layouts[1]
    assert len(set(layouts)) == 3


def test_types_are_told_apart(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as setup:
        setup.execute("CREATE DOMAIN code AS text")
    with connect(database, purpose="test") as connection:
        row = connection.execute(
            "SELECT 'public.code'::regtype::oid, 'int4[]'::regtype::oid, 'point'::regtype::oid"
        ).fetchone()
        assert row is not None
        types = Types(connection)
        assert [types(oid).kind.value for oid in row] == ["domain", "array", "base"]
        assert types(4_000_000_000).name == "unknown"
