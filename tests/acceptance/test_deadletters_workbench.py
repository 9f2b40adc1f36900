"""Dead letters at work: looked at before they are replayed, chosen by time, and accounted for afterwards."""

from __future__ import annotations

import getpass
import json
import platform
import time
from typing import Any

import pytest

from .conftest import Ferry

TITLE = "\x1b]0;owned\x07"


@pytest.fixture
def letters(ferry: Ferry) -> Ferry:
    """Row 1 is at the target; 2 is no XML, 3 is too large, and 4 has a key that speaks to terminals."""
    ferry.execute(
        "CREATE TABLE orders (id text PRIMARY KEY, body text)",
        "INSERT INTO orders VALUES ('1', '<a>1</a>'), ('2', '<a>')",
        "INSERT INTO orders VALUES ('3', '<a>' || repeat('x', 500000) || '</a>')",
        f"INSERT INTO orders VALUES ('{TITLE}', '<b>')",
    )
    ferry.write_config({"table": "public.orders", "collection": "orders", "documents": {"body": {"format": "xml"}}})
    ferry.run("apply")
    ferry.run("run", "--once")
    return ferry


def call(ferry: Ferry, *arguments: str, code: int = 0) -> str:
    """What a command says on standard output, in this process."""
    done = ferry.call("deadletters", *arguments)
    assert done.exit_code == code, done.output
    return done.stdout


def answer(ferry: Ferry, *arguments: str, code: int = 0) -> Any:
    return json.loads(call(ferry, *arguments, "--json", code=code))


def ids(ferry: Ferry) -> dict[str, int]:
    """Key -> ID."""
    return {one["key"]["id"]: one["id"] for one in answer(ferry, "list", "--all")["dead_letters"]}


def test_a_preview_shows_what_would_be_written_beside_what_is_there(letters: Ferry) -> None:
    letters.client().put_item(
        TableName=f"{letters.prefix}orders", Item={"id": {"S": "2"}, "_v": {"N": "5"}, "old": {"S": TITLE}}
    )
    letters.execute("UPDATE orders SET body = '<a><b>2</b></a>' WHERE id = '2'")
    known = ids(letters)

    shown = letters.run("deadletters", "show", *map(str, known.values())).stdout
    assert "replay:  would be applied: the row can be stored now" in shown
    assert "2 of 3 paths differ" in shown
    assert '+ body: {"a": {"b": "2"}}' in shown
    assert r'- old: "\u001b]0;owned\u0007"' in shown
    assert '= id: "2"' in shown
    assert "would be refused again" in shown
    assert "because: " in shown
    assert r"id=\x1b]0;owned\x07" in shown
    assert "\x1b" not in shown

    (seen,) = answer(letters, "show", str(known["2"]))["dead_letters"]
    (key,) = seen["preview"]["keys"]
    assert (key["write"], key["document"]) == ("put", {"id": "2", "body": {"a": {"b": "2"}}})
    assert (key["item"], key["item_version"]) == ({"id": "2", "old": TITLE}, "5")
    assert {"path": "old", "item": TITLE} in key["differences"]

    dry = letters.run("deadletters", "replay", "--dry-run", "--show", check=False)
    assert dry.returncode == 3
    assert "1 would be applied" in dry.stdout
    assert '+ body: {"a": {"b": "2"}}' in dry.stdout
    assert "\x1b" not in dry.stdout
    assert len(answer(letters, "replay", "--dry-run", "--show", code=3)["previews"]) == 3
    assert call(letters, "replay", "--show", code=2) == ""
    assert ids(letters) == known

    # Without the target the letter itself is shown all the same.
    without = letters.run("deadletters", "show", str(known["2"]), DOCFERRY_TARGET_ENDPOINT_URL="http://127.0.0.1:1")
    assert "dead letter" in without.stdout
    assert "What a replay would do cannot be seen" in without.stdout
    assert "cannot be seen" not in call(letters, "show", str(known["2"]), "--no-preview")


def test_chosen_by_time_replayed_slowly_and_accounted_for(letters: Ferry) -> None:
    known = ids(letters)
    letters.execute(
        "UPDATE docferry.dead_letters SET first_at = now() - interval '3 h', last_at = now() - interval '2 h' "
        "WHERE key->>'id' IN ('2', '3')",
        "UPDATE orders SET body = '<a>2</a>' WHERE id = '2'",
        "DELETE FROM orders WHERE id = '3'",
    )
    assert answer(letters, "list", "--until", "1h")["total"] == 2
    assert answer(letters, "list", "--since", "1h")["total"] == 1
    (young,) = answer(letters, "list", "--all", "--since", "1h")["dead_letters"]
    assert young["id"] == known[TITLE]
    assert call(letters, "list", "--since", "yesterday", code=2) == ""
    assert call(letters, "list", "--since", "2001-01-01", "--until", "2001-01-02") == ("There are no dead letters.\n")
    assert call(letters, "discard", str(known["2"]), "--since", "1h", code=2) == ""
    assert call(letters, "audit") == "Nothing was replayed or discarded.\n"

    began = time.monotonic()
    done = letters.run("deadletters", "replay", "--until", "1h", "--rate", "1", "--yes")
    assert time.monotonic() - began > 2
    assert "1 applied" in done.stdout
    assert "1 deleted" in done.stdout
    assert "replaying: " in done.stderr
    assert "of 2 dead letters, " in done.stderr
    call(letters, "discard", "--since", "1h", "--yes")
    assert ids(letters) == {}

    entries = answer(letters, "audit")["audit"]
    assert [(one["key"]["id"], one["action"], one["outcome"]) for one in entries] == [
        (TITLE, "discarded", "discarded"),
        ("3", "replayed", "deleted"),
        ("2", "replayed", "applied"),
    ]
    assert {one["os_user"] for one in entries} == {f"{getpass.getuser()}@{platform.node()}"}
    assert {one["db_user"] for one in entries} == {letters.role}
    assert [one["dead_letter"] for one in entries] == [known[TITLE], known["3"], known["2"]]
    assert entries[1]["cause"] == "too-large"
    assert entries[1]["attempts"] == 1
    assert "xxx" not in str(entries)

    shown = call(letters, "audit", "--table", "orders", "--limit", "2")
    assert f"as {letters.role}: replayed, deleted: public.orders id=3: too-large, since " in shown
    assert r"id=\x1b]0;owned\x07" in shown
    assert "\x1b" not in shown
    assert f"go on with --before {entries[1]['id']}" in shown
    rest = answer(letters, "audit", "--before", str(entries[1]["id"]))
    assert [one["key"]["id"] for one in rest["audit"]] == ["2"]
    assert answer(letters, "audit", "--table", "other") == {"audit": [], "more": False}
