"""The Lambda function: events that triggers really sent, a real PostgreSQL, DynamoDB and SQS."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import boto3
import psycopg
import pytest

from docferry.app import App
from docferry.aws.function import Function
from docferry.config import parse
from docferry.embedded.aws_lambda import LambdaGateway, install_standin
from docferry.embedded.dynamodb import EmbeddedDynamoDB
from docferry.errors import ConfigError, EventRefused, HistoryChanged, TransactionPending

from .road import Listener

CONFIG = """
[source]
capture = "lambda"
dsn = "{dsn}"
[source.lambda]
function = "ferry"
region = "us-east-1"
payload_limit = 20000
timeout = "5s"
patience = "200ms"
[target]
region = "us-east-1"
endpoint_url = "{url}"
table_prefix = "{prefix}"
[[mirrors]]
table = "public.things"
[mirrors.documents.doc]
format = "xml"
[dead_letters]
queue = "{queue}"
"""


@pytest.fixture(scope="module")
def aws() -> Iterator[EmbeddedDynamoDB]:
    with EmbeddedDynamoDB(services=("dynamodb", "sqs", "ssm")) as server:
        yield server


class Chain:
    """A table with triggers whose events are kept, and the function that is given them when the test says so."""

    def __init__(self, dsn: str, aws: EmbeddedDynamoDB, gateway: LambdaGateway, listener: Listener) -> None:
        self.dsn = dsn
        self.aws = aws
        self.gateway = gateway
        self.listener = listener
        self.prefix = dsn.rpartition("/")[2].replace("?", "-").replace("=", "-")[-40:] + "-"
        self.options: dict[str, Any] = dict(aws.client_options())
        self.sqs = boto3.client("sqs", **self.options)
        self.queue = self.sqs.create_queue(QueueName=self.prefix + "dead")["QueueUrl"]
        self.dynamodb = boto3.client("dynamodb", **self.options)
        self.text = CONFIG.format(dsn=dsn, url=aws.endpoint_url, prefix=self.prefix, queue=self.queue)
        self.connection = psycopg.connect(dsn, autocommit=True)
        self.receipts: list[Any] = []
        self.given = 0

    def function(self, *, source: bool = True, **environ: str) -> Function:
        known = {"DOCFERRY_SOURCE_DSN": self.dsn} if source else {"DOCFERRY_DEAD_LETTERS_QUEUE": self.queue}
        return Function.from_environment(
            {"DOCFERRY_CONFIG_TEXT": self.text, **known, **environ}, on_receipt=self.receipts.append
        )

    def sent(self) -> list[dict[str, Any]]:
        """The events since the last look."""
        documents = self.listener.documents()[self.given :]
        self.given += len(documents)
        return documents

    def item(self, key: int) -> dict[str, Any] | None:
        answer = self.dynamodb.get_item(
            TableName=self.prefix + "things", Key={"id": {"N": str(key)}}, ConsistentRead=True
        )
        found = answer.get("Item")
        return None if found is None or "_gone" in found else dict(found)

    def letters(self) -> list[dict[str, Any]]:
        found = self.sqs.receive_message(QueueUrl=self.queue, MaxNumberOfMessages=10, VisibilityTimeout=0)
        return [json.loads(message["Body"]) for message in found.get("Messages", [])]

    def close(self) -> None:
        self.connection.close()
        self.sqs.close()
        self.dynamodb.close()


@pytest.fixture
def chain(database: str, aws: EmbeddedDynamoDB, monkeypatch: pytest.MonkeyPatch) -> Iterator[Chain]:
    options = aws.client_options()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", options["aws_access_key_id"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", options["aws_secret_access_key"])
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    listener = Listener()
    with LambdaGateway(listener.url) as gateway:
        install_standin(database, gateway)
        made = Chain(database, aws, gateway, listener)
        made.connection.execute("CREATE TABLE things (id int PRIMARY KEY, name text, doc text)")
        with App(parse(made.text, environ={})) as app:
            app.admin().apply()
        try:
            yield made
        finally:
            made.close()
            listener.close()


def test_an_event_is_applied_once_however_often_it_comes(chain: Chain) -> None:
    function = chain.function()
    try:
        chain.connection.execute("INSERT INTO things VALUES (1, 'one', '<a><b>2</b></a>'), (2, 'two', NULL)")
        chain.connection.execute("DELETE FROM things WHERE id = 2")
        insert, delete = chain.sent()
        assert function.receive(delete).answer() == {"changes": 1, "applied": 1}
        assert function.receive(insert).answer() == {"changes": 2, "applied": 1, "stale": 1}
        assert function.receive(insert).answer() == {"changes": 2, "stale": 2}
        item = chain.item(1)
        assert item is not None
        assert item["doc"] == {"M": {"a": {"M": {"b": {"S": "2"}}}}}
        assert chain.item(2) is None
        first = chain.receipts[0]
        assert (first["table"], first["key"], first["op"], first["outcome"]) == (
            "public.things",
            {"id": "2"},
            "delete",
            "applied",
        )
    finally:
        function.close()


def test_events_of_transactions_that_did_not_commit(chain: Chain) -> None:
    function = chain.function()
    try:
        chain.connection.execute("BEGIN")
        chain.connection.execute("INSERT INTO things VALUES (1, 'never', NULL)")
        chain.connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
        chain.connection.execute("SET CONSTRAINTS docferry.send_to_lambda IMMEDIATE")
        (event,) = chain.sent()
        with pytest.raises(TransactionPending):
            function.receive(event)
        chain.connection.execute("ROLLBACK")
        assert function.receive(event).answer() == {"changes": 1, "rolled back": 1}
        assert chain.item(1) is None
    finally:
        function.close()


def test_a_large_row_is_read_or_becomes_a_dead_letter_where_it_cannot(chain: Chain) -> None:
    function, blind = chain.function(), chain.function(source=False)
    try:
        chain.connection.execute("INSERT INTO things VALUES (1, repeat('x', 50000), '<a/>')")
        (event,) = chain.sent()
        assert event["changes"][0]["key"] == ["1"]
        assert blind.receive(event).answer() == {"changes": 1, "dead": 1}
        (letter,) = chain.letters()
        assert (letter["cause"], letter["key"]) == ("needs-reread", {"id": "1"})
        assert letter["payload"]["changes"] == event["changes"]
        assert function.receive(event).answer() == {"changes": 1, "applied": 1}
        item = chain.item(1)
        assert item is not None
        assert item["name"] == {"S": "x" * 50000}
    finally:
        function.close()
        blind.close()


def test_without_the_database_events_speak_for_themselves(chain: Chain) -> None:
    blind = chain.function(source=False)
    try:
        chain.connection.execute("INSERT INTO things VALUES (1, 'one', '<a/>'), (2, 'two', '<a/>')")
        chain.connection.execute("UPDATE things SET id = 3 WHERE id = 2")
        chain.connection.execute("TRUNCATE things")
        chain.connection.execute("INSERT INTO things VALUES (4, 'four', '<a/>')")
        insert, move, truncate, last = chain.sent()
        assert blind.receive(insert).applied == 2
        # Whether another row has taken the old key meanwhile, only the table knows.
        assert blind.receive(move).answer() == {"changes": 2, "applied": 1, "dead": 1}
        assert blind.receive(last).applied == 1
        assert blind.receive(truncate).applied == 1
        assert [chain.item(key) is not None for key in (1, 2, 3, 4)] == [False, False, False, True]
        assert blind.receive(insert).stale == 2
        assert chain.item(1) is None
        with pytest.raises(ConfigError, match="not told where the database is"):
            blind.drain(30)
    finally:
        blind.close()


def test_a_type_that_only_the_database_knows(chain: Chain) -> None:
    chain.connection.execute("CREATE DOMAIN price AS numeric; ALTER TABLE things ADD COLUMN price price")
    chain.connection.execute("INSERT INTO things VALUES (1, 'one', '<a/>', 12.50)")
    (event,) = chain.sent()
    function, blind = chain.function(), chain.function(source=False)
    try:
        with pytest.raises(EventRefused, match="only the database says"):
            blind.receive(event)
        assert function.receive(event).applied == 1
        item = chain.item(1)
        assert item is not None
        assert item["price"] == {"N": "12.5"}
    finally:
        function.close()
        blind.close()


def test_a_row_that_can_never_be_stored_goes_to_the_queue_and_the_others_arrive(chain: Chain) -> None:
    function = chain.function()
    try:
        chain.connection.execute("INSERT INTO things VALUES (1, 'one', '<a/>'), (2, 'two', '<a'), (3, 'three', NULL)")
        (event,) = chain.sent()
        summary = function.receive(event)
        assert (summary.applied, summary.dead) == (2, 1)
        (letter,) = chain.letters()
        assert (letter["table"], letter["key"], letter["cause"]) == ("public.things", {"id": "2"}, "document-invalid")
        assert [one["version"] for one in letter["payload"]["changes"]] == [letter["version"]]
        outcome = next(receipt for receipt in chain.receipts if receipt["outcome"] == "dead")
        assert outcome["remedy"]
        # A message of the queue, brought by an event source mapping, fails the same way and stays one letter.
        chain.receipts.clear()
        assert function.receive_message(json.dumps(letter), {}).dead == 1
        (receipt,) = chain.receipts
        assert (receipt["key"], receipt["version"], receipt["outcome"]) == ({"id": "2"}, str(letter["version"]), "dead")
        assert receipt["latency_ms"] > 0, "since the event was sent"
    finally:
        function.close()


@pytest.mark.parametrize("document", [{}, {"docferry": 7, "changes": []}, {"hello": "world"}])
def test_what_is_no_event_is_refused(chain: Chain, document: dict[str, Any]) -> None:
    function = chain.function()
    try:
        with pytest.raises(EventRefused):
            function.receive(document)
        with pytest.raises(EventRefused):
            function.receive_message(json.dumps(document), {})
    finally:
        function.close()


def test_the_schedule_drains_what_could_not_be_sent(chain: Chain) -> None:
    chain.gateway.fail = "refuse"
    (began,) = chain.connection.execute("SELECT now()").fetchone() or ()
    chain.connection.execute("INSERT INTO things SELECT g, 'x', '<a/>' FROM generate_series(1, 300) AS g")
    chain.connection.execute("DELETE FROM things WHERE id > 290")
    function = chain.function()
    try:
        summary = function.drain(60)
        assert (summary.changes, summary.oldest_seconds) == (310, 0.0)
        told = {(one["op"], one["key"]["id"]): one for one in chain.receipts}
        assert len(told) == len(chain.receipts) == 310, "each is told of"
        one = told["insert", "7"]
        assert (one["table"], one["outcome"]) == ("public.things", "applied")
        recorded = chain.connection.execute("SELECT now() - %s::timestamptz", (began,)).fetchone()
        assert recorded is not None
        assert all(0 < one["latency_ms"] <= recorded[0].total_seconds() * 1000 for one in told.values())
        assert chain.connection.execute("SELECT count(*) FROM docferry.outbox").fetchone() == (0,)
        assert chain.item(1) is not None
        assert chain.item(300) is None
        assert function.drain(60).answer() == {"changes": 0}
        chain.connection.execute("UPDATE docferry.epochs SET timeline = timeline + 7")
        with pytest.raises(HistoryChanged):
            function.drain(60)
    finally:
        function.close()


def test_the_schedule_looks_for_changed_columns_and_tells_what_has_to_be_populated(chain: Chain) -> None:
    function = chain.function()
    try:
        assert function.drain(60).backfills_due == ("public.things",), "it is new"
        with App(parse(chain.text, environ={})) as app:
            app.backfill("things", anew=False, on_progress=lambda _: None)
        assert function.drain(60).backfills_due == ()
        # Every row has it, and no trigger fires.
        chain.connection.execute("ALTER TABLE things ADD COLUMN colour text DEFAULT 'red'")
        assert function.drain(60).backfills_due == ("public.things",)
        with App(parse(chain.text, environ={})) as app:
            with app.ledger.backfilling("public.things") as ours:
                assert ours
                assert function.drain(60).backfills_due == (), "somebody is at it"
            app.backfill("things", anew=False, on_progress=lambda _: None)
        assert function.drain(60).backfills_due == ()
    finally:
        function.close()


def test_the_configuration_may_be_a_parameter(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", chain.aws.endpoint_url)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    ssm = boto3.client("ssm", **chain.options)
    ssm.put_parameter(Name=f"/{chain.prefix}config", Value=chain.text, Type="SecureString")
    ssm.close()
    function = chain.function(DOCFERRY_CONFIG_TEXT="", DOCFERRY_CONFIG_PARAMETER=f"/{chain.prefix}config")
    try:
        chain.connection.execute("INSERT INTO things VALUES (1, 'one', NULL)")
        (event,) = chain.sent()
        assert function.receive(event).applied == 1
    finally:
        function.close()
    with pytest.raises(ConfigError, match="has no configuration"):
        chain.function(DOCFERRY_CONFIG_TEXT="")
    with pytest.raises(ConfigError, match="neither the database nor a queue"):
        chain.function(source=False, DOCFERRY_DEAD_LETTERS_QUEUE="")


# -- the handler, in a process of its own as in Lambda ----------------------------------------------------------------

_LAMBDA = """
import json, sys
from types import SimpleNamespace
from docferry.aws.handler import handler

for number, line in enumerate(sys.stdin):
    context = SimpleNamespace(
        function_name="ferry", memory_limit_in_mb=512, invoked_function_arn="arn:aws:lambda:us-east-1:1:function:ferry",
        aws_request_id=f"request-{number}", get_remaining_time_in_millis=lambda: 60_000,
    )
    print(json.dumps({"answer": handler(json.loads(line), context)}), flush=True)
"""


@dataclass
class Invocation:
    """What the handler answered, and the JSON that it wrote to standard output meanwhile."""

    answer: dict[str, Any] = field(default_factory=dict)
    lines: list[dict[str, Any]] = field(default_factory=list)

    @property
    def changes(self) -> list[tuple[str, dict[str, str], str, str]]:
        """Table, key, version and outcome of each change in the log."""
        return [
            (one["table"], one["key"], one["version"], one["outcome"])
            for one in self.lines
            if one.get("message") == "change"
        ]

    @property
    def metrics(self) -> dict[str, list[float]]:
        """Every metric of the namespace, by name; each declared as embedded metrics are."""
        found: dict[str, list[float]] = {}
        for one in self.lines:
            for declared in one.get("_aws", {}).get("CloudWatchMetrics", ()):
                assert (declared["Namespace"], one["service"]) == ("docferry", "docferry")
                for metric in declared["Metrics"]:
                    found.setdefault(metric["Name"], []).extend(one[metric["Name"]])
        return found


def invoke(chain: Chain, *events: dict[str, Any]) -> list[Invocation]:
    """The answers of one process to invocations one after another."""
    environ = {**os.environ, "DOCFERRY_CONFIG_TEXT": chain.text, "DOCFERRY_SOURCE_DSN": chain.dsn}
    done = subprocess.run(
        [sys.executable, "-c", _LAMBDA],
        input="".join(json.dumps(event) + "\n" for event in events),
        env=environ,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    invocations = [Invocation()]
    for line in map(json.loads, done.stdout.splitlines()):
        if "answer" in line:
            invocations[-1].answer = line["answer"]
            invocations.append(Invocation())
        else:
            invocations[-1].lines.append(line)
    assert not invocations.pop().lines
    return invocations


def message(name: str, body: str) -> dict[str, Any]:
    """A record of an SQS event."""
    return {"messageId": name, "receiptHandle": "r", "body": body, "attributes": {}, "messageAttributes": {}}


def test_the_handler_answers_logs_and_counts(chain: Chain) -> None:
    chain.connection.execute("INSERT INTO things VALUES (1, 'redriven', NULL)")
    chain.connection.execute("INSERT INTO things VALUES (2, 'given up by Lambda', NULL)")
    chain.connection.execute("INSERT INTO things VALUES (3, 'direct', NULL)")
    chain.connection.execute("INSERT INTO things VALUES (4, 'a', NULL), (5, 'b', '<a'), (6, 'c', NULL)")
    redriven, failed, direct, group = chain.sent()
    chain.gateway.fail = "refuse"
    chain.connection.execute("INSERT INTO things VALUES (7, 'drained', NULL)")
    on_failure = {
        "version": "1.0",
        "timestamp": "2026-11-25T10:03:00.5Z",
        "requestContext": {"requestId": "r", "condition": "RetriesExhausted", "approximateInvokeCount": 3},
        "requestPayload": failed,
        "responsePayload": {"errorType": "Runtime.ExitError"},
    }
    records = {
        "Records": [
            message("good", json.dumps(redriven)),
            message("garbage", "no JSON"),
            message("on-failure", json.dumps(on_failure)),
        ]
    }
    ((position,),) = chain.connection.execute("SELECT position FROM docferry.outbox").fetchall()

    batch, one, several, drained = invoke(chain, records, direct, group, {"docferry": "drain"})

    def told(event: dict[str, Any], key: int, outcome: str = "applied", place: int = 0) -> Any:
        return "public.things", {"id": str(key)}, event["changes"][place]["version"], outcome

    assert batch.answer == {"batchItemFailures": [{"itemIdentifier": "garbage"}]}
    assert batch.changes == [told(redriven, 1), told(failed, 2)]
    assert [line["message_id"] for line in batch.lines if "message_id" in line] == ["good", "garbage", "on-failure"]
    (problem,) = [line for line in batch.lines if line.get("level") == "ERROR"]
    assert (problem["message"], problem["message_id"]) == ("a message could not be applied", "garbage")
    assert batch.metrics["Applied"] == [1, 1]
    assert len(batch.metrics["Latency"]) == 2
    assert batch.metrics["ColdStart"] == [1]

    assert one.answer == {"changes": 1, "applied": 1}
    assert one.changes == [told(direct, 3)]
    assert (one.metrics["Applied"], len(one.metrics["Latency"])) == ([1], 1)
    assert "ColdStart" not in one.metrics

    assert several.answer == {"changes": 3, "applied": 2, "dead": 1}
    assert several.changes == [told(group, 4), told(group, 5, "dead", 1), told(group, 6, place=2)]
    (dead,) = [line for line in several.lines if line.get("outcome") == "dead"]
    assert dead["level"] == "ERROR"
    assert "id=5" in dead["problem"]
    assert dead["remedy"]
    assert (several.metrics["Applied"], several.metrics["Dead"], len(several.metrics["Latency"])) == ([2], [1], 3)

    assert drained.answer == {"changes": 1, "applied": 1}
    ((table, key, version, outcome),) = drained.changes
    assert (table, key, outcome) == ("public.things", {"id": "7"}, "applied")
    assert int(version) >> 32 & 2**64 - 1 == position
    (due,) = [line for line in drained.lines if line.get("message") == "backfills are due"]
    assert (due["level"], due["tables"]) == ("WARNING", ["public.things"])
    assert "docferry backfill" in due["remedy"]
    assert (drained.metrics["Drained"], drained.metrics["OutboxAge"], drained.metrics["Applied"]) == ([1], [0], [1])
    assert drained.metrics["BackfillsDue"] == [1]
    assert len(drained.metrics["Latency"]) == 1

    for number, invocation in enumerate((batch, one, several, drained)):
        assert all(value > 0 for value in invocation.metrics["Latency"])
        logged = [line for line in invocation.lines if "_aws" not in line]
        assert {line["function_request_id"] for line in logged} == {f"request-{number}"}
    assert [chain.item(number) is not None for number in range(1, 8)] == [True] * 4 + [False] + [True] * 2
