"""deadletters list, show, replay and discard over the table and a queue, with the source and without."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import boto3
import pytest

from docferry.embedded.dynamodb import EmbeddedDynamoDB

from .conftest import Ferry

NOWHERE = "postgresql://nobody@127.0.0.1:1/none?connect_timeout=5"


@pytest.fixture(scope="module")
def dynamodb() -> Iterator[EmbeddedDynamoDB]:
    """In place of the shared one: with a queue service."""
    with EmbeddedDynamoDB(services=("dynamodb", "sqs")) as server:
        yield server


class Queue:
    """The queue of dead letters that the test's docferry knows."""

    def __init__(self, ferry: Ferry) -> None:
        self._client: Any = boto3.client("sqs", **ferry.dynamodb.client_options())  # type: ignore[call-overload]
        self.url = self._client.create_queue(QueueName=f"dead-{uuid.uuid4().hex}")["QueueUrl"]
        ((self.oid,),) = ferry.query("SELECT 'orders'::regclass::oid::int")
        ferry.environment["DOCFERRY_DEAD_LETTERS_QUEUE"] = self.url

    def send(self, body: Any) -> None:
        self._client.send_message(QueueUrl=self.url, MessageBody=body if isinstance(body, str) else json.dumps(body))

    def failed(self, *changes: Mapping[str, Any]) -> None:
        """An event as a failure destination has it."""
        relation = {"oid": self.oid, "columns": ["id", "body"], "types": [23, 25], "key": ["id"]}
        event = {
            "docferry": 1,
            "epoch": 1,
            "transaction": "1",
            "at": datetime.now(UTC).isoformat(),
            "relations": {"public.orders": relation},
            "changes": [{"table": "public.orders", **change} for change in changes],
        }
        context = {"condition": "RetriesExhausted", "requestId": "r-1", "approximateInvokeCount": 3}
        self.send({"requestContext": context, "requestPayload": event, "responsePayload": None})

    def count(self) -> int:
        answer = self._client.get_queue_attributes(QueueUrl=self.url, AttributeNames=["All"])["Attributes"]
        return int(answer["ApproximateNumberOfMessages"]) + int(answer["ApproximateNumberOfMessagesNotVisible"])

    def close(self) -> None:
        self._client.delete_queue(QueueUrl=self.url)
        self._client.close()


@pytest.fixture
def orders(ferry: Ferry) -> Ferry:
    """Rows 1 to 3 are at the target; 4 is too large, and a dead letter in the table."""
    ferry.execute(
        "CREATE TABLE orders (id int PRIMARY KEY, body text)",
        "INSERT INTO orders VALUES (1, '<a>1</a>'), (2, '<a>2</a>'), (3, '<a>3</a>')",
        "INSERT INTO orders VALUES (4, '<a>' || repeat('x', 500000) || '</a>')",
    )
    ferry.write_config({"table": "public.orders", "collection": "orders", "documents": {"body": {"format": "xml"}}})
    ferry.run("apply")
    ferry.run("run", "--once")
    return ferry


@pytest.fixture
def queue(orders: Ferry) -> Iterator[Queue]:
    made = Queue(orders)
    yield made
    made.close()


def version(position: int, epoch: int = 1) -> str:
    return str(epoch * 2**96 + position * 2**32)


def ids(ferry: Ferry, **environment: Any) -> dict[str, int]:
    """Key, or cause where there is none -> ID."""
    answer = json.loads(ferry.run("deadletters", "list", "--all", "--json", **environment).stdout)
    return {one["key"].get("id", one["cause"]): one["id"] for one in answer["dead_letters"]}


def bodies(ferry: Ferry) -> dict[int, Any]:
    return {int(item["id"]): item["body"] for item in ferry.items("orders")}


def test_the_table_and_the_queue_are_shown_as_one(orders: Ferry, queue: Queue) -> None:
    queue.failed(
        {"TG_OP": "UPDATE", "version": version(1), "NEW": "(1,<old/>)"},
        {"TG_OP": "UPDATE", "version": version(2**50), "NEW": "(2,<new/>)"},
    )
    queue.send("nonsense")
    shown = orders.run("deadletters", "list").stdout
    assert "public.orders: too-large: 1, " in shown
    assert "public.orders: retries-exhausted: 2, " in shown
    assert "superseded: 1 of them" in shown
    assert "(no table): unreadable: 1, " in shown
    document = orders.json("deadletters", "list", "--table", "orders")
    assert (document["total"], document["unread"]) == (3, "")
    assert {group["cause"]: group["superseded"] for group in document["groups"]} == {
        "retries-exhausted": 1,
        "too-large": 0,
    }
    unasked = orders.json("deadletters", "list", "--no-superseded")["groups"]
    assert {group["superseded"] for group in unasked} == {None}

    page = orders.json("deadletters", "list", "--all", "--limit", "1")
    assert page["more"] is True
    rest = orders.json("deadletters", "list", "--all", "--after", str(page["dead_letters"][0]["id"]))
    assert [one["superseded"] for one in rest["dead_letters"] if one["key"]] == [True, False]

    found = ids(orders)
    assert "event:   at hand" in orders.run("deadletters", "show", str(found["2"])).stdout
    shown = orders.run("deadletters", "show", str(found["unreadable"])).stdout
    assert "nonsense" in shown
    assert "version" not in shown
    assert orders.json("deadletters", "discard", str(found["unreadable"]), "--yes") == {"discarded": 1, "kept": 0}
    assert ids(orders).keys() == {"1", "2", "4"}
    assert queue.count() == 1


def test_replay_reads_the_rows_again(orders: Ferry, queue: Queue) -> None:
    orders.execute("UPDATE orders SET body = '<a>current</a>' WHERE id = 2", "DELETE FROM orders WHERE id = 3")
    queue.failed(
        {"TG_OP": "UPDATE", "version": version(1), "NEW": "(1,<old/>)"},
        {"TG_OP": "UPDATE", "version": version(2**50), "NEW": "(2,<sent/>)"},
        {"TG_OP": "UPDATE", "version": version(2**50 + 1), "key": ["3"]},
    )
    queue.send("nonsense")
    done = orders.run("deadletters", "replay", "--yes", "--json", check=False)
    assert done.returncode == 3, done.stderr
    counts = json.loads(done.stdout)
    assert {name: counts[name] for name in ("superseded", "applied", "deleted", "refused", "unreadable")} == {
        "superseded": 1,
        "applied": 1,
        "deleted": 1,
        "refused": 1,
        "unreadable": 1,
    }
    assert bodies(orders) == {1: {"a": "1"}, 2: {"a": "current"}}
    assert ids(orders).keys() == {"4", "unreadable"}


def test_without_the_source_the_queue_is_listed_and_its_events_are_applied(orders: Ferry, queue: Queue) -> None:
    queue.failed(
        {"TG_OP": "UPDATE", "version": version(1), "NEW": "(1,<old/>)"},
        {"TG_OP": "UPDATE", "version": version(2**50), "NEW": "(2,<a>sent</a>)"},
        {"TG_OP": "UPDATE", "version": version(2**50 + 1), "key": ["3"]},
    )
    down: Any = {"DOCFERRY_SOURCE_DSN": NOWHERE}
    shown = orders.run("deadletters", "list", **down).stdout
    assert "retries-exhausted: 3" in shown
    assert "superseded: 1 of them" in shown
    assert "Not all are shown: those in the source could not be read" in shown
    assert ids(orders, **down).keys() == {"1", "2", "3"}

    dry = orders.run("deadletters", "replay", "--dry-run", check=False, **down)
    assert dry.returncode == 3, dry.stderr
    assert "1 would be left alone: only the source database can settle it" in dry.stdout
    assert "Not all are included" in dry.stderr
    assert bodies(orders)[2] == {"a": "2"}

    done = orders.run("deadletters", "replay", "--yes", check=False, **down)
    assert done.returncode == 3, done.stderr
    assert "1 applied" in done.stdout
    assert "1 superseded" in done.stdout
    assert "1 left alone" in done.stdout
    assert bodies(orders) == {1: {"a": "1"}, 2: {"a": "sent"}, 3: {"a": "3"}}
    assert ids(orders).keys() == {"3", "4"}


def test_without_the_source_and_without_a_queue_it_says_so(orders: Ferry) -> None:
    failed = orders.run("deadletters", "list", check=False, DOCFERRY_SOURCE_DSN=NOWHERE)
    assert failed.returncode == 1
    assert "source" in failed.stderr


def test_a_trace_shows_the_queue_s_dead_letters_of_the_row(orders: Ferry, queue: Queue) -> None:
    orders.execute("UPDATE orders SET body = '<a>new</a>' WHERE id = 2")
    # The change never arrives, without a word from anybody.
    orders.query(f"SELECT pg_replication_slot_advance('{orders.slot}', pg_current_wal_lsn())")
    orders.execute("UPDATE docferry.slots SET upto = pg_current_wal_lsn()")
    ((position,),) = orders.query("SELECT (pg_current_wal_lsn() - '0/0'::pg_lsn)::bigint")
    queue.failed(
        {"TG_OP": "UPDATE", "version": version(position), "NEW": "(2,<a>new</a>)"},
        {"TG_OP": "UPDATE", "version": version(position + 1), "NEW": "(3,<a>3</a>)"},
    )
    done = orders.call("trace", "orders", "2", "--json")
    assert done.exit_code == 3
    found = json.loads(done.stdout)
    (letter,) = found["dead_letters"]
    assert (letter["key"], letter["cause"], letter["superseded"]) == ({"id": "2"}, "retries-exhausted", False)
    assert f"`docferry deadletters replay {letter['id']}`" in found["verdict"]["sentence"]
    assert json.loads(orders.call("trace", "orders", "1", "--json").stdout)["dead_letters"] == []

    assert orders.json("deadletters", "replay", str(letter["id"]), "--yes")["applied"] == 1
    after = orders.call("trace", "orders", "2", "--no-queue", "--json")
    assert json.loads(after.stdout)["verdict"]["kind"] == "identical"
    (entry,) = orders.json("deadletters", "audit")["audit"]
    assert (entry["dead_letter"], entry["outcome"], entry["cause"]) == (letter["id"], "applied", "retries-exhausted")
