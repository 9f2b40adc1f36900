"""`docferry trace` as people run it: what it says of a row in each state."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from click.testing import CliRunner

from docferry.cli import docferry
from docferry.embedded.postgres import EmbeddedPostgres

from .conftest import Ferry

OWNED = "\x1b]0;owned\x07\x9b31m"


@pytest.fixture(scope="session")
def postgres() -> Iterator[EmbeddedPostgres]:
    """In place of the shared one: it keeps the time of commits."""
    with EmbeddedPostgres({"track_commit_timestamp": "on"}) as server:
        yield server


def verdict(ferry: Ferry, *arguments: str, code: int = 3) -> Any:
    done = ferry.call("trace", "orders", *arguments, "--json")
    assert done.exit_code == code, done.output
    return json.loads(done.stdout)


def test_what_it_says_of_a_row(ferry: Ferry) -> None:
    ferry.execute(
        "CREATE TABLE orders (id text PRIMARY KEY, n int, body xml)",
        f"INSERT INTO orders SELECT g, 0, '<a/>' FROM unnest('{{1,2,3,4,5}}'::text[] || '{OWNED}'::text) AS g",
    )
    ferry.write_config("public.orders")
    ferry.run("apply")
    assert verdict(ferry, "1")["verdict"]["kind"] == "backfill"
    ferry.run("run", "--once")

    shown = ferry.run("trace", "orders", "1").stdout
    assert "public.orders id=1" in shown
    assert "last written by transaction " in shown
    assert "committed 20" in shown
    assert "nothing of it in the slot" in shown
    assert "written by docferry, in a backfill, not before 20" in shown
    assert "row's document | item: the same at every path" in shown
    assert shown.endswith("\nverdict: identical\n")
    assert ferry.call("trace", "orders", "99").stdout.endswith("verdict: no such row and no item\n")

    # What is hostile stays text.
    ferry.execute(f"UPDATE orders SET body = '<a>{chr(0x9B)}x</a>', n = 1 WHERE n = 0 AND id LIKE '%owned%'")
    done = ferry.run("trace", "orders", OWNED, check=False)
    assert done.returncode == 3
    assert r"id=\x1b]0;owned\x07\x9b31m" in done.stdout
    assert r'"\x9bx"' in done.stdout
    assert "! n: 1 | 0" in done.stdout
    assert "the row is waiting in the slot (1 change since 20" in done.stdout
    assert "start `docferry run`" in done.stdout
    raw = ferry.call("trace", "orders", OWNED, "--json").stdout
    assert not {"\x1b", "\x07", "\x9b"} & {*done.stdout, *raw}
    assert json.loads(raw)["key"] == {"id": OWNED}

    # A worker runs.
    worker = ferry.start_worker()
    ferry.execute(
        "UPDATE orders SET n = 1 WHERE id = '1'",
        "DELETE FROM orders WHERE id = '2'",
        "UPDATE orders SET body = xmlelement(name a, repeat('x', 500000)) WHERE id = '3'",
    )
    found = verdict(ferry, "1", code=0)
    assert found["verdict"] == {"kind": "identical", "right": True, "sentence": found["verdict"]["sentence"]}
    assert found["capture"]["worker"] is True
    assert found["waiting"] is None
    ferry.run("wait")
    deleted = verdict(ferry, "2", code=0)
    assert deleted["verdict"]["sentence"].startswith("deleted; a tombstone stands until 20")
    assert deleted["item"]["deleted_at"] < deleted["item"]["expires_at"]
    dead = verdict(ferry, "3")
    assert dead["verdict"]["kind"] == "dead-letter"
    assert dead["dead_letters"][0]["cause"] == "too-large"
    assert f"`docferry deadletters replay {dead['dead_letters'][0]['id']}`" in dead["verdict"]["sentence"]
    assert "too-large since 20" in ferry.call("trace", "orders", "3").stdout

    table = f"{ferry.prefix}orders"
    client = ferry.client()
    client.update_item(
        TableName=table,
        Key={"id": {"S": "4"}},
        UpdateExpression="SET n = :n, odd = :o",
        ExpressionAttributeValues={":n": {"N": "7"}, ":o": {"S": OWNED}},
    )
    client.delete_item(TableName=table, Key={"id": {"S": "5"}})
    foreign = ferry.call("trace", "orders", "4", "--all").stdout
    assert "written last by somebody else" in foreign
    assert "! n: 0 | 7" in foreign
    assert r'- odd: "\u001b]0;owned\u0007\x9b31m"' in foreign
    assert "verdict: the item was changed outside docferry" in foreign
    missing = verdict(ferry, "5")
    assert missing["verdict"]["kind"] == "missing"
    assert "`docferry verify public.orders --repair`" in missing["verdict"]["sentence"]
    assert worker.stop() == 0


def test_a_key_of_several_columns_by_triggers(ferry: Ferry) -> None:
    ferry.execute(
        "CREATE TABLE orders (id int, line int, n int, PRIMARY KEY (id, line))",
        "INSERT INTO orders VALUES (7, -2, 0), (7, 3, 0)",
    )
    ferry.write_config("public.orders", source={"capture": "outbox"})
    ferry.run("apply")
    ferry.run("run", "--once")
    ferry.execute("UPDATE orders SET n = 1 WHERE line = 3")
    by_name = verdict(ferry, "--key", "line=-2", "--key", "id=7", code=0)
    assert (by_name["key"], by_name["verdict"]["kind"]) == ({"id": "7", "line": "-2"}, "identical")
    waiting = verdict(ferry, "7", "3")
    assert waiting["verdict"]["kind"] == "waiting"
    assert waiting["verdict"]["sentence"].startswith("the row is waiting in the outbox (1 change since 20")
    assert [one["op"] for one in waiting["waiting"]["changes"]] == ["update"]
    assert waiting["differences"] == [{"path": "n", "row": 1, "item": 0}]
    assert waiting["capture"]["unit"] == "changes"
    for arguments in (["7"], ["7", "3", "1"], ["--key", "id=7"], ["7", "--key", "line=3"], ["7", "x"]):
        assert ferry.call("trace", "orders", *arguments).exit_code == 2
    assert ferry.call("trace", "orders", "--", "7", "-2").exit_code == 0


def test_help_teaches() -> None:
    shown = CliRunner().invoke(docferry, ["trace", "--help"]).stdout
    assert "docferry trace order_lines 7 2" in shown
    assert "DOCFERRY_TRACE_WAIT" in shown
