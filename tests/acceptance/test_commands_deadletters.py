"""deadletters list, show, replay and discard as people run them."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from docferry.cli import docferry

from .conftest import Ferry


@pytest.fixture
def letters(ferry: Ferry) -> Ferry:
    """Four rows, of which 2 and 3 are no XML and 4 is too large; a worker has passed over them and ended."""
    ferry.execute(
        "CREATE TABLE orders (id int PRIMARY KEY, body text)",
        "INSERT INTO orders VALUES (1, '<a>1</a>'), (2, '<a>'), (3, '</a>')",
        "INSERT INTO orders VALUES (4, '<a>' || repeat('x', 500000) || '</a>')",
    )
    ferry.write_config({"table": "public.orders", "collection": "orders", "documents": {"body": {"format": "xml"}}})
    ferry.run("apply")
    ferry.run("run", "--once")
    assert [item["id"] for item in ferry.items("orders")] == [1]
    return ferry


def ids(ferry: Ferry) -> dict[str, int]:
    """Key -> ID."""
    return {one["key"]["id"]: one["id"] for one in ferry.json("deadletters", "list", "--all")["dead_letters"]}


def test_list_and_show(letters: Ferry) -> None:
    shown = letters.run("deadletters", "list").stdout
    assert "public.orders: document-invalid: 2, " in shown
    assert "public.orders: too-large: 1, " in shown
    assert "remedy: Mend the column's text" in shown
    groups = letters.json("deadletters", "list", "--cause", "too-large")
    assert groups["total"] == 1
    assert letters.run("deadletters", "list", "--table", "customers").stdout == "There are no dead letters.\n"

    page = letters.json("deadletters", "list", "--all", "--limit", "2")
    assert len(page["dead_letters"]) == 2
    assert page["more"] is True
    rest = letters.json("deadletters", "list", "--all", "--after", str(page["dead_letters"][-1]["id"]))
    assert len(rest["dead_letters"]) == 1
    assert rest["more"] is False

    one = ids(letters)["4"]
    shown = letters.run("deadletters", "show", str(one)).stdout
    assert "public.orders id=4" in shown
    assert "limit: " in shown
    assert "failed:  1 time" in shown
    missing = letters.run("deadletters", "show", "999999", check=False)
    assert missing.returncode == 1
    assert "no dead letter has the ID 999999" in missing.stderr

    attention = letters.json("status")
    assert attention["mirrors"][0]["dead_letters"] == 3
    assert "dead letters of public.orders, document-invalid" in letters.run("status").stdout


def test_replay_after_mending(letters: Ferry) -> None:
    letters.execute("UPDATE orders SET body = '<a>2</a>' WHERE id = 2", "DELETE FROM orders WHERE id = 3")
    dry = letters.run("deadletters", "replay", "--dry-run", check=False)
    assert dry.returncode == 3
    assert "1 would be applied" in dry.stdout
    assert "1 would be deleted" in dry.stdout
    assert "1 would be refused again" in dry.stdout
    assert "public.orders id=4" in dry.stdout

    nobody = letters.run("deadletters", "replay", check=False)
    assert nobody.returncode == 2
    assert "1 would be applied" in nobody.stderr
    assert [item["id"] for item in letters.items("orders")] == [1]
    assert len(ids(letters)) == 3

    done = letters.run("deadletters", "replay", "--yes", "--json", check=False)
    assert done.returncode == 3
    counts = json.loads(done.stdout)
    assert (counts["applied"], counts["deleted"], counts["refused"]) == (1, 1, 1)
    assert counts["examples"][0]["key"] == {"id": "4"}
    assert sorted((item["id"], item["body"]) for item in letters.items("orders")) == [(1, {"a": "1"}), (2, {"a": "2"})]
    assert list(ids(letters)) == ["4"]
    assert letters.json("deadletters", "show", str(ids(letters)["4"]))["dead_letters"][0]["attempts"] == 2

    letters.execute("UPDATE orders SET body = '<a>4</a>' WHERE id = 4")
    letters.run("run", "--once")
    done = letters.run("deadletters", "replay", "--cause", "too-large", "--rate", "10", input="y\n")
    assert "1 superseded: the target has a newer version already" in done.stdout
    assert letters.json("deadletters", "list")["total"] == 0
    assert letters.run("deadletters", "replay").stdout == "There are no such dead letters.\n"


def test_replay_of_a_row_that_now_fails_for_another_reason(letters: Ferry) -> None:
    letters.execute("UPDATE orders SET body = '</a>' WHERE id = 4")
    letters.run("deadletters", "replay", str(ids(letters)["4"]), "--yes", check=False)
    groups = {group["cause"]: group["count"] for group in letters.json("deadletters", "list")["groups"]}
    assert groups == {"document-invalid": 3}


def test_discard(letters: Ferry) -> None:
    assert letters.run("deadletters", "discard", check=False).returncode == 2
    one = ids(letters)["4"]
    nobody = letters.run("deadletters", "discard", str(one), check=False)
    assert nobody.returncode == 2
    assert "too-large: 1 (id=4)" in nobody.stderr
    assert letters.json("deadletters", "discard", str(one), "--yes") == {"discarded": 1, "kept": 0}
    assert "4" not in ids(letters)
    assert letters.run("deadletters", "discard", str(one), "--yes", check=False).returncode == 1
    assert "Discarded 2." in letters.run("deadletters", "discard", "--table", "orders", input="y\n").stdout
    assert letters.run("deadletters", "discard", "--all", "--yes").stdout == "There are no such dead letters.\n"


@pytest.mark.parametrize("command", ["list", "show", "replay", "discard"])
def test_help_teaches(command: str) -> None:
    shown = CliRunner().invoke(docferry, ["deadletters", command, "--help"]).stdout
    assert "Example" in shown
    assert "DOCFERRY_CONFIG" in shown
