"""Names and keys made to hurt, through every command, down to the terminal."""

from __future__ import annotations

import json
import re

import pytest

from docferry.capture.rights import quoted

from .conftest import Ferry

SCHEMA = "Odd \"s%s'{}\\"
TABLE = 'docferry; DROP TABLE "x";-- \\ \' {} %s Ünï ☃ '
TABLE += "x" * (63 - len(TABLE.encode()))
COLUMN = "docferry; DROP TABLE x;--"
OTHER = "\"q\" 'q' \\ % %s {} {0} \n\x1b[31m"
KEY = "a\nremedy: rm -rf \x1b[2J\u202e\x9b31m"
UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]")


@pytest.mark.parametrize("capture", ["replication", "outbox"])
def test_every_command(ferry: Ferry, capture: str) -> None:
    table, document, other = quoted(SCHEMA, TABLE), quoted(COLUMN), quoted(OTHER)
    ferry.execute(
        f"CREATE SCHEMA {quoted(SCHEMA)}",
        f'CREATE TABLE {table} ("Id" text, {document} json, {other} text, PRIMARY KEY ("Id"))',
        f"INSERT INTO {table} VALUES ('good', '[1]', '<x/>'), ('{KEY}', '[1]', '<a>')",
    )
    done = ferry.run("init", "-o", "-", DOCFERRY_SOURCE_DSN=ferry.dsn)
    assert "DROP TABLE" in done.stdout
    mirror = {"table": quoted(SCHEMA, TABLE), "collection": "odd", "documents": {OTHER: {"format": "xml"}}}
    ferry.write_config(mirror, source={"capture": capture}, run={"backfill_page": 1})
    shown = [ferry.run("plan", check=False)]
    assert shown[0].returncode == 3, shown[0].stderr
    shown.append(ferry.run("apply"))
    shown.append(ferry.run("run", "--once", "--verbose"))
    shown.append(ferry.run("backfill", f"{SCHEMA}.{TABLE}", "--anew"))
    shown.append(ferry.run("status"))
    shown += [ferry.run("deadletters", "list"), ferry.run("deadletters", "list", "--all")]
    ((one,),) = [tuple(ferry.json("deadletters", "list", "--all")["dead_letters"])]
    assert one["key"] == {"Id": KEY}
    shown.append(ferry.run("deadletters", "show", str(one["id"])))
    shown.append(ferry.run("deadletters", "replay", "--yes", check=False))
    ferry.execute(
        f"UPDATE {table} SET {document} = '[2]', {other} = '<b/>'", f"DELETE FROM {table} WHERE \"Id\" = 'good'"
    )
    shown.append(ferry.run("run", "--once"))
    assert ferry.items("odd") == [{"Id": KEY, COLUMN: [2], OTHER: {"b": None}}]
    shown.append(ferry.run("deadletters", "discard", "--all", "--yes"))
    raw = ferry.run("plan", "--json").stdout
    assert json.loads(raw)["tables"][0]["table"] == f"{SCHEMA}.{TABLE}"
    shown.append(ferry.run("destroy", "--yes"))
    for one in shown:
        for text in (one.stdout, one.stderr):
            assert UNSAFE.search(text) is None, text
            assert "\nremedy: rm -rf" not in text
    assert UNSAFE.search(raw) is None
    assert ferry.query(f"SELECT count(*) FROM {table}") == [(1,)]
