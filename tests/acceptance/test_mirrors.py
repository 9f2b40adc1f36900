"""Several mirrors in one configuration: every document format, every kind of key, rows from before and from now."""

from __future__ import annotations

import json
import random
from functools import partial
from typing import Any

import psycopg

from .comparison import Mirrored, Row, assert_same
from .conftest import Ferry

_TABLES = """
CREATE TYPE colour AS ENUM ('red', 'green');
CREATE TABLE events (
    id uuid PRIMARY KEY,
    at timestamptz NOT NULL,
    local_at timestamp,
    body jsonb NOT NULL,
    raw json
);
CREATE TABLE settings (
    tenant text,
    number integer,
    document text,
    colour colour,
    PRIMARY KEY (tenant, number)
);
CREATE SCHEMA shop;
CREATE TABLE shop.lines (
    region text,
    year smallint,
    number numeric(20, 2),
    form text,
    extra text,
    secret text,
    PRIMARY KEY (region, year, number)
);
CREATE TABLE "Odd names" (
    "the key" bytea PRIMARY KEY,
    "select" boolean,
    amount numeric,
    ratio double precision,
    tags text[],
    day date,
    data xml
);
"""

_CONFIG: tuple[dict[str, Any], ...] = (
    {"table": "public.events"},
    {"table": "settings", "collection": "tenant-settings", "documents": {"document": {"format": "yaml"}}},
    {
        "table": "shop.lines",
        "collection": "lines",
        "item_key": {"pk": "REGION#{region}", "sk": "{year}#{number}"},
        "exclude": ["secret"],
        "documents": {"form": {"format": "xml"}, "extra": {"format": "json"}},
    },
    {"table": 'public."Odd names"', "collection": "odd"},
)


def line_key(row: Row) -> Row:
    """A number in a template has no trailing zeros after the point."""
    number = format(row["number"], "f").rstrip("0").rstrip(".")
    return {"pk": f"REGION#{row['region']}", "sk": f"{row['year']}#{number}"}


def mirrored(prefix: str) -> list[Mirrored]:
    return [
        Mirrored("events", f"{prefix}events"),
        Mirrored("settings", f"{prefix}tenant-settings", ("tenant", "number"), formats={"document": "yaml"}),
        Mirrored(
            "shop.lines",
            f"{prefix}lines",
            formats={"form": "xml", "extra": "json"},
            exclude=frozenset({"secret"}),
            item_key=line_key,
        ),
        Mirrored("Odd names", f"{prefix}odd", ("the key",)),
    ]


def test_all_formats_and_keys(ferry: Ferry) -> None:
    rng = random.Random(seed := random.randrange(2**32))
    print(f"seed={seed}")  # noqa: T201 - shown by pytest when the test fails
    ferry.execute(*filter(str.strip, _TABLES.split(";\n")))
    with psycopg.connect(ferry.dsn, autocommit=True) as connection:
        insert_all(connection, rng, "before")
        ferry.write_config(*_CONFIG)
        ferry.run("apply")
        ferry.start_worker()
        insert_all(connection, rng, "beside")
        check(ferry)

        insert_all(connection, rng, "after")
        change_all(connection)
        check(ferry)

        for table in ("events", "settings", "shop.lines", '"Odd names"'):
            connection.execute(f"DELETE FROM {table}".encode())
        check(ferry)
        insert_all(connection, rng, "after")
        check(ferry)


def check(ferry: Ferry) -> None:
    ferry.run("wait")
    assert_same(ferry.dsn, ferry.client(), *mirrored(ferry.prefix))


def insert_all(connection: psycopg.Connection, rng: random.Random, era: str) -> None:
    """Forty rows in each table, of the same keys for the same era."""
    for number in range(40):
        insert = partial(_insert, connection)
        insert("events", f"{era}{number}", _moment(rng), f"1999-01-01 00:00:{number}", _body(era, number), _raw(number))
        yaml = _YAML.format(era=era, number=number) if number % 5 else ""
        insert("settings", f"tenant {era}", number - 20, yaml, rng.choice(["red", "green", None]))
        form = f"<form xmlns='urn:x' no='{number}'><field>a</field><field kind='t'>é &amp; b</field><none/></form>"
        insert("shop.lines", era, 2000 + number, number / 4, form, json.dumps({"n": [number]}), "hidden")
        insert(
            '"Odd names"',
            era.encode() + bytes([0, 255, number]),
            rng.choice([True, False, None]),
            rng.choice(["1.50", "-0.000001", "NaN", "1" * 50, "123456789012345678901234567890.12345678", "0", None]),
            rng.choice([0.1, 1e-20, 3.5e100, float("nan"), float("-inf"), None]),
            rng.choice([None, [], ["a", "", None, "q\"u'o,te"]]),
            f"2024-02-{number % 28 + 1}",
            f"<data><n>{number}</n></data>",
        )


_YAML = """
era: {era}
name: 'no'
size: {number}
ratio: 0.25
list:
- a
- {{b: null, c: true}}
text: |
  two
  lines
"""


def _moment(rng: random.Random) -> str:
    return f"2024-02-29 23:59:{rng.randrange(60)}.{rng.randrange(10**6):06}+05:30"


def _body(era: str, number: int) -> str:
    big = "12345678901234567890.123456789012345678"
    things = '[1, 0.5, null, true, {"x": []}, ""]'
    return f'{{"era": "{era}", "n": {number}, "big": {big}, "things": {things}, "ünï": {{"é": ""}}}}'


def _raw(number: int) -> str | None:
    return f'{{"as": {{"text": {number / 8}}}, "as": "the last counts"}}' if number % 3 else None


def _insert(connection: psycopg.Connection, table: str, *values: Any) -> None:
    first = "md5(%s)::uuid" if table == "events" else "%s"
    marks = ", ".join([first, *["%s"] * (len(values) - 1)])
    connection.execute(f"INSERT INTO {table} VALUES ({marks})".encode(), values)


def change_all(connection: psycopg.Connection) -> None:
    """Values, documents and keys."""
    connection.execute("UPDATE events SET body = body || '{\"changed\": [1.50]}' WHERE raw IS NULL")
    connection.execute("UPDATE events SET id = md5(id::text)::uuid WHERE raw IS NOT NULL")
    connection.execute("UPDATE settings SET document = 'changed: yes indeed' WHERE number % 2 = 0")
    connection.execute("UPDATE settings SET tenant = tenant || ' moved' WHERE number % 3 = 0")
    connection.execute("UPDATE shop.lines SET form = '<only/>', number = number + 0.5 WHERE year % 2 = 0")
    connection.execute(
        "UPDATE shop.lines SET secret = 'still hidden', region = 'elsewhere ' || region WHERE year < 2010"
    )
    connection.execute("""UPDATE "Odd names" SET "the key" = "the key" || '\\x00', "select" = NOT "select" """)
