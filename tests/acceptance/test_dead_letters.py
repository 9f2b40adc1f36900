"""One bad row stops nothing else, says what is wrong with it, and comes back when it is mended."""

from __future__ import annotations

import base64
import json
import random
from typing import Any

import pytest

from .comparison import Mirrored, assert_same
from .conftest import Ferry
from .workload import SCHEMA

GOOD = 500
DEEP, LARGE = 1001, 1002


@pytest.fixture
def orders(ferry: Ferry) -> Ferry:
    ferry.execute(SCHEMA.format(table="orders"))
    ferry.write_config("public.orders")
    ferry.run("apply")
    return ferry


def deep_xml(levels: int) -> str:
    return "<d>" * levels + "end" + "</d>" * levels


def large_xml() -> str:
    return "<o>" + base64.b64encode(random.Random(1).randbytes(320_000)).decode() + "</o>"


def insert_all(ferry: Ferry) -> None:
    """Five hundred good rows with two bad ones among them, in transactions of ten."""
    order = [*range(1, GOOD + 1)]
    order[200:200] = [DEEP, LARGE]
    ferry.execute(
        *(
            ";".join(
                f"INSERT INTO orders (id, status, order_data) VALUES ({number}, 'new', '{xml_of(number)}')"
                for number in order[start : start + 10]
            )
            for start in range(0, len(order), 10)
        )
    )


def xml_of(number: int) -> str:
    return {DEEP: deep_xml(60), LARGE: large_xml()}.get(number) or f"<o><n>{number}</n></o>"


def letters(ferry: Ferry) -> dict[str, dict[str, Any]]:
    """The dead letters by id of their row."""
    found = json.loads(ferry.call("deadletters", "list", "--all", "--json").stdout)["dead_letters"]
    return {letter["key"]["id"]: letter for letter in found}


def check(ferry: Ferry, *unstored: int) -> None:
    """Everything has arrived but these rows."""
    ferry.run("wait")
    mirror = Mirrored("orders", f"{ferry.prefix}orders", unstored=lambda row: row["id"] in unstored)
    assert_same(ferry.dsn, ferry.client(), mirror)


@pytest.mark.parametrize("by", ["stream", "backfill"])
def test_bad_rows_among_good_ones(orders: Ferry, by: str) -> None:
    if by == "backfill":
        insert_all(orders)
        orders.execute("SELECT pg_replication_slot_advance(slot_name, pg_current_wal_lsn()) FROM pg_replication_slots")
    worker = orders.start_worker()
    if by == "stream":
        orders.run("wait")
        insert_all(orders)
    check(orders, DEEP, LARGE)

    found = letters(orders)
    assert found.keys() == {str(DEEP), str(LARGE)}
    deep, large = found[str(DEEP)], found[str(LARGE)]
    assert {letter["table"] for letter in found.values()} == {"public.orders"}
    assert (deep["cause"], large["cause"]) == ("too-deep", "too-large")
    assert "32 levels" in deep["limit"]
    assert "409,600" in large["limit"]
    assert "Flatten" in deep["remedy"]
    assert "Shrink" in large["remedy"]
    shown = orders.run("deadletters", "show", str(deep["id"])).stdout
    for text in ("public.orders", f"id={DEEP}", "order_data", "32 levels", "Flatten", "docferry deadletters replay"):
        assert text in shown, shown

    # A mended row arrives by itself, being a change; its dead letter has nothing left to do.
    orders.execute(f"UPDATE orders SET order_data = '{deep_xml(20)}' WHERE id = {DEEP}")
    check(orders, LARGE)
    assert orders.json("deadletters", "replay", "--yes", str(deep["id"]))["superseded"] == 1
    check(orders, LARGE)

    # Not mended: it stays, and the exit code says so.
    refused = orders.run("deadletters", "replay", "--yes", check=False)
    assert refused.returncode == 3, refused.stderr
    assert letters(orders).keys() == {str(LARGE)}

    # Mended while no worker is there: the replay alone heals it.
    assert worker.stop() == 0, worker.text
    orders.execute(f"UPDATE orders SET order_data = '<o>short</o>' WHERE id = {LARGE}")
    assert orders.json("deadletters", "replay", "--yes")["applied"] == 1
    assert letters(orders) == {}
    assert_same(orders.dsn, orders.client(), Mirrored("orders", f"{orders.prefix}orders"))

    orders.start_worker()
    check(orders)


def test_a_dead_letter_whose_row_is_gone(orders: Ferry) -> None:
    orders.start_worker()
    orders.execute("INSERT INTO orders (id, status, order_data) VALUES (1, 'good', '<o/>')")
    orders.run("wait")  # two changes of a row that arrive together count as one
    orders.execute(f"UPDATE orders SET order_data = '{deep_xml(40)}'")
    orders.run("wait")
    assert letters(orders).keys() == {"1"}
    # What was there before stays there, older but whole.
    assert [item["status"] for item in orders.items("orders")] == ["good"]

    orders.execute("DELETE FROM orders")
    check(orders)
    replayed = orders.json("deadletters", "replay", "--yes")
    assert replayed["total"] == replayed["deleted"] + replayed["superseded"] == 1, replayed
    assert letters(orders) == {}
    check(orders)
