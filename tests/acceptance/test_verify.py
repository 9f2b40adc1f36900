"""docferry verify as people run it, with items changed by somebody else's hand."""

from __future__ import annotations

import json
import signal
from typing import Any

import boto3
import pytest

from .conftest import Ferry


@pytest.fixture
def orders(ferry: Ferry, request: pytest.FixtureRequest) -> Ferry:
    """Mirrored, a worker running, and the names of hostile kinds."""
    ferry.execute(
        'CREATE TABLE orders (id int PRIMARY KEY, body text, "doc" xml)',
        "INSERT INTO orders SELECT n, 'row ' || n, '<a><b>1</b></a>' FROM generate_series(1, 60) n",
        "ANALYZE orders",
    )
    ferry.source["capture"] = getattr(request, "param", "replication")
    ferry.write_config("public.orders", run={"backfill_page": 10, "reconcile_rate": 1000})
    ferry.run("apply")
    return ferry


def by_hand(ferry: Ferry) -> None:
    """Two missing, one stale, three different, two orphaned."""
    table = boto3.resource("dynamodb", **ferry.dynamodb.client_options()).Table(ferry.prefix + "orders")  # type: ignore[call-overload]
    old = table.get_item(Key={"id": 3})["Item"]
    ferry.execute("UPDATE orders SET body = 'newer' WHERE id = 3")
    ferry.run("wait")
    table.put_item(Item=old)
    for id_ in (1, 2):
        table.delete_item(Key={"id": id_})
    table.update_item(Key={"id": 4}, UpdateExpression="SET body = :b", ExpressionAttributeValues={":b": "by hand"})
    table.update_item(
        Key={"id": 5},
        UpdateExpression="SET #v = :v",
        ExpressionAttributeNames={"#v": "_v"},
        ExpressionAttributeValues={":v": 10**36},
    )
    table.update_item(
        Key={"id": 6},
        UpdateExpression="SET #v = :v",
        ExpressionAttributeNames={"#v": "_v"},
        ExpressionAttributeValues={":v": "six"},
    )
    table.put_item(Item={"id": 1001, "body": "nobody's"})
    table.put_item(Item={**old, "id": 1002})


FOUND = {"missing": 2, "stale": 1, "different": 3, "orphaned": 2}


def counted(document: dict[str, Any]) -> dict[str, int]:
    (mirror,) = document["mirrors"]
    return {kind: mirror[kind] for kind in FOUND if mirror[kind]}


@pytest.mark.parametrize("orders", ["replication", "outbox"], indirect=True)
def test_what_was_done_by_hand_is_found_mended_and_verified(orders: Ferry) -> None:
    worker = orders.start_worker()
    orders.run("wait")
    clean = orders.run("verify")
    assert clean.stdout.strip() == f"public.orders -> {orders.prefix}orders: 60 rows, 60 items: identical"
    status = orders.json("status")["mirrors"][0]["verified"]
    assert (status["identical"], status["found"]["rows"]) == (True, 60)
    assert status["through"] is not None
    assert "verified through" in orders.run("status").stdout

    by_hand(orders)
    found = orders.run("verify", "orders", "--output", "findings.jsonl", "--limit", "3", check=False)
    assert found.returncode == 3
    assert "2 missing, 1 stale, 3 different, 2 orphaned" in found.stdout
    assert "... and more: --limit N shows N of them, --output FILE.jsonl has all (8)." in found.stdout
    lines = [json.loads(line) for line in (orders.directory / "findings.jsonl").read_text().splitlines()]
    assert sorted((line["item"]["id"], line["kind"]) for line in lines) == sorted(
        [("1", "missing"), ("2", "missing"), ("3", "stale"), ("1001", "orphaned"), ("1002", "orphaned")]
        + [(id_, "different") for id_ in "456"]
    )
    assert "8 differences found" in orders.run("status").stdout
    assert "verification of public.orders that ended last found 8" in orders.run("status").stdout

    nobody = orders.run("verify", "--repair", check=False)
    assert nobody.returncode == 2
    assert "2 missing" in nobody.stderr
    assert orders.run("verify", "--repair", check=False, input="n\n").returncode == 1
    document = json.loads(orders.run("verify", "--json", check=False).stdout)
    assert (document["identical"], document["differences"], counted(document)) == (False, 8, FOUND)
    assert len(document["mirrors"][0]["findings"]) == 8

    mended = orders.run("verify", "--repair", "--yes")
    assert "public.orders: mended 8 items; verified again: identical" in mended.stdout
    document = orders.json("verify")
    assert (document["identical"], counted(document)) == (True, {})
    assert {item["id"] for item in orders.items("orders")} == set(range(1, 61))
    # What changes from now on arrives, where the version had been made up too.
    orders.execute("UPDATE orders SET body = 'later' WHERE id IN (5, 6)")
    orders.run("wait")
    assert orders.json("verify", "--sample", "20")["identical"]

    assert worker.stop(signal.SIGTERM) == 0
    assert orders.run("verify").returncode == 0
    orders.execute("UPDATE orders SET body = 'waits' WHERE id = 9")
    unsettled = orders.run("verify", "--patience", "1", check=False)
    assert unsettled.returncode == 1
    assert "unsettled: 1 keys; no worker is streaming: start docferry run" in unsettled.stdout
    assert "Traceback" not in worker.text


def test_ctrl_c_keeps_the_progress(orders: Ferry) -> None:
    orders.execute("INSERT INTO orders SELECT n, repeat('x', 2000), '<a/>' FROM generate_series(100, 4000) n")
    orders.start_worker()
    orders.run("wait")
    run = orders.start("verify", "-v", "--json")
    orders.eventually(lambda: orders.query("SELECT FROM docferry.verifications"), what="its beginning")
    assert run.stop(signal.SIGINT) == 130
    document = json.loads("".join(run.output))
    assert (document["done"], document["identical"]) == (False, False)
    assert "the same command goes on" in run.text
    on = orders.run("verify")
    assert "going on with the verification" in on.stderr
    assert "identical" in on.stdout


def test_the_worker_finds_and_mends_by_itself(orders: Ferry) -> None:
    worker = orders.start_worker("--reconcile")
    orders.run("wait")
    by_hand(orders)
    worker.wait_for("drift: the item of public.orders")

    def found() -> dict[str, Any]:
        return orders.json("status")["mirrors"][0]  # type: ignore[no-any-return]

    orders.eventually(lambda: sum(found()["drift"].values()) >= 8, what="all differences in status")
    assert found()["mended"] == 0
    assert "drift      public.orders: " in orders.run("status").stdout
    assert worker.stop(signal.SIGTERM) == 0

    worker = orders.start_worker("--reconcile=repair")
    worker.wait_for("drift: mended")
    orders.eventually(lambda: (found()["verified"] or {}).get("identical"), what="a clean cycle in status")
    assert orders.json("verify")["identical"]
    assert worker.stop(signal.SIGTERM) == 0
