"""Every fault on the way to DynamoDB: nothing is lost, nothing is written twice, the greatest version stands."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from docferry.document.model import Collection, Delete, KeyAttribute, KeyKind, Put, Value, Write
from docferry.embedded.dynamodb import EmbeddedDynamoDB
from docferry.errors import Interrupted, TargetRefused
from docferry.metrics import Metrics
from docferry.retry import Retry
from docferry.target.contract import Outcome
from docferry.target.dynamodb import DynamoDBTarget

from ..waiting import PATIENCE
from .dynamodb_proxy import Answer, Cut, DynamoDBProxy, Fault, Json, Request, Rewrite

APPLIED, STALE, REFUSED = Outcome.APPLIED, Outcome.STALE, Outcome.REFUSED
BATCH = "BatchExecuteStatement"
_names = iter(range(1_000_000))


def through(proxy: DynamoDBProxy, retry: Retry | None = None) -> DynamoDBTarget:
    return DynamoDBTarget(proxy.options, retry or Retry(first=0.001, longest=0.01))


@pytest.fixture
def orders(ministack: EmbeddedDynamoDB) -> Iterator[Collection]:
    collection = Collection(f"faults-{next(_names)}", (KeyAttribute("id", KeyKind.NUMBER),))
    target = DynamoDBTarget(ministack.client_options())
    target.create(collection)
    yield collection
    target.drop(collection)
    target.close()


@pytest.fixture
def target(proxy: DynamoDBProxy) -> Iterator[DynamoDBTarget]:
    made = through(proxy)
    yield made
    made.close()


def put(collection: Collection, number: int, version: int, *, new: bool = False, **document: Value) -> Put:
    return Put(collection, (number,), version, {"id": number, **document}, new)


def write(target: DynamoDBTarget, *writes: Write) -> list[Outcome]:
    return [result.outcome for result in target.write(writes)]


def raw_items(ministack: EmbeddedDynamoDB, collection: Collection) -> dict[int, dict[str, Any]]:
    client = boto3.client("dynamodb", **ministack.client_options())  # type: ignore[call-overload]
    items = client.scan(TableName=collection.name)["Items"]
    client.close()
    return {int(item["id"]["N"]): item for item in items}


first_two = {
    "connection cut before": Cut(),
    "connection cut after": Cut(applied=True),
    "500": Answer(500, "InternalServerError"),
    "500 after it was applied": Answer(500, "InternalServerError", applied=True),
    "503 from something in between": Answer(503, raw=b"<html>no healthy upstream</html>"),
    "429": Answer(429, "TooManyRequests"),
    "throttled": Answer(400, "ThrottlingException"),
    "over the throughput": Answer(400, "ProvisionedThroughputExceededException"),
    "over the limit": Answer(400, "RequestLimitExceeded"),
    "half an answer": Answer(200, raw=b'{"Responses":[{"Tab'),
}


@pytest.mark.parametrize("fault", first_two.values(), ids=first_two.keys())
@pytest.mark.parametrize("new", [True, False])
def test_a_write_survives(
    fault: Fault, new: bool, target: DynamoDBTarget, proxy: DynamoDBProxy, orders: Collection
) -> None:
    target.write([put(orders, number, 3, old=1) for number in (2, 4)])
    proxy.script = lambda request: fault if request.number in (1, 2) else None
    writes: list[Write] = [put(orders, number, 5, new=new, a=number) for number in range(4)]
    assert write(target, *writes, Delete(orders, (4,), 5), put(orders, 5, 5, a=1)) == [APPLIED] * 6
    items = {item.key[0]: item for item in target.scan(orders)}
    assert {number: item.version for number, item in items.items()} == dict.fromkeys(range(6), 5)
    assert items[2].document == {"id": 2, "a": 2}
    assert items[4].document is None
    assert write(target, *writes) == [STALE] * 4


@pytest.mark.parametrize("fault", first_two.values(), ids=first_two.keys())
def test_everything_else_survives(
    fault: Fault, target: DynamoDBTarget, proxy: DynamoDBProxy, orders: Collection
) -> None:
    proxy.script = lambda request: fault if request.number in (0, 2) else None
    target.write([put(orders, number, number) for number in range(10)])
    assert [item and item.version for item in target.read(orders, [(1,), (99,), (3,)])] == [1, None, 3]
    target.write([Delete(orders, (9,), 20)])
    target.sweep(orders, [((9,), 20)])
    target.truncate(orders, 5)
    assert {item.version for item in target.scan(orders)} == {5, 6, 7, 8}
    other = Collection(f"{orders.name}-2", orders.key)
    target.create(other)
    assert target.exists(other)
    target.drop(other)
    assert not target.exists(other)


def test_only_the_throttled_statements_are_sent_again(
    target: DynamoDBTarget, proxy: DynamoDBProxy, orders: Collection
) -> None:
    def throttle(request: Request) -> Fault | None:
        """The first 20, then 10 of these, are throttled instead of being carried out."""
        count = {0: 20, 1: 10}.get(request.number, 0)
        if request.operation != BATCH or not count:
            return None
        error = {"Error": {"Code": "ThrottlingError" if request.number else "ProvisionedThroughputExceeded"}}
        return Rewrite(
            lambda body: {"Statements": body["Statements"][count:]},
            lambda answer: {"Responses": [error] * count + answer["Responses"]},
        )

    proxy.script = throttle
    assert write(target, *[put(orders, number, 1, new=True) for number in range(25)]) == [APPLIED] * 25
    assert [len(request.body["Statements"]) for request in proxy.seen] == [25, 20, 10]
    assert len(list(target.scan(orders))) == 25


def test_statements_that_were_applied_and_then_reported_as_failed(
    target: DynamoDBTarget, proxy: DynamoDBProxy, orders: Collection, ministack: EmbeddedDynamoDB
) -> None:
    through_another = through(proxy)
    through_another.write([put(orders, 2, 1, secret="x")])
    through_another.close()

    def lie(request: Request) -> Fault | None:
        if request.operation != BATCH or request.number > 2:
            return None
        return Rewrite(
            answer=lambda answer: {"Responses": [{"Error": {"Code": "InternalServerError"}}] * len(answer["Responses"])}
        )

    proxy.script = lie
    assert write(target, put(orders, 1, 5), Delete(orders, (2,), 5), put(orders, 3, 5, new=True)) == [APPLIED] * 3
    items = raw_items(ministack, orders)
    assert items[2].keys() == {"id", "_v", "_gone", "_ttl"}
    assert {number: item["_v"] for number, item in items.items()} == {number: {"N": "5"} for number in (1, 2, 3)}


def test_a_newer_write_in_between_is_not_overwritten(
    target: DynamoDBTarget, proxy: DynamoDBProxy, orders: Collection
) -> None:
    """Applied, the answer lost, and somebody newer was there before the second attempt."""
    other = through(proxy)

    def lose(request: Request) -> Fault | None:
        if request.operation == BATCH and request.number == 0:
            proxy.script = lambda _: None
            assert write(other, put(orders, 1, 9, who="newer")) == [APPLIED]
            return Cut()
        return None

    proxy.script = lose
    assert write(target, put(orders, 1, 5, who="older")) == [STALE]
    (item,) = target.read(orders, [(1,)])
    assert item is not None
    assert item.document == {"id": 1, "who": "newer"}
    other.close()


def test_an_older_writer_that_inserts_first_does_not_win(
    target: DynamoDBTarget, proxy: DynamoDBProxy, orders: Collection
) -> None:
    """Both find nothing. The older one inserts just before the newer one does, which so meets a DuplicateItem."""
    other = through(proxy)
    inserts = 0

    def meddle(request: Request) -> Fault | None:
        nonlocal inserts
        if request.operation == BATCH and request.body["Statements"][0]["Statement"].startswith("INSERT"):
            inserts += 1
            if inserts == 1:
                assert write(other, put(orders, 1, 5, new=True, who="older")) == [APPLIED]
        return None

    proxy.script = meddle
    assert write(target, put(orders, 1, 9, who="newer")) == [APPLIED]
    (item,) = target.read(orders, [(1,)])
    assert item is not None
    assert (item.version, item.document) == (9, {"id": 1, "who": "newer"})
    other.close()


def test_one_bad_statement_does_not_hurt_the_others(
    target: DynamoDBTarget, proxy: DynamoDBProxy, orders: Collection
) -> None:
    """DynamoDB refuses a whole request for some faults of one statement."""

    def bad(body: Json) -> bool:
        return "poison" in str(body)

    proxy.script = lambda request: Answer(400, "ValidationException") if bad(request.body) else None
    writes = [put(orders, number, 1, text="poison" if number == 17 else "fine") for number in range(25)]
    results = target.write(writes)
    assert [result.outcome for result in results] == [APPLIED] * 17 + [REFUSED] + [APPLIED] * 7
    error = results[17].error
    assert error is not None
    assert "ValidationException: injected" in str(error)
    assert error.remedy
    assert proxy.count(BATCH) < 30


@pytest.mark.parametrize("code", ["ValidationError", "NeverHeardOf"])
def test_what_partiql_does_not_take_goes_by_put_item(
    code: str, target: DynamoDBTarget, proxy: DynamoDBProxy, orders: Collection, ministack: EmbeddedDynamoDB
) -> None:
    target.write([put(orders, 1, 1, a=1), put(orders, 2, 9), put(orders, 3, 1, a=1)])

    def refuse(body: Json) -> Json:
        return {"Responses": [{"Error": {"Code": code, "Message": "no"}}] * len(body["Responses"])}

    proxy.script = lambda request: Rewrite(_harmless, refuse) if request.operation == BATCH else None
    writes = (put(orders, 1, 5, b=[1]), put(orders, 2, 5), Delete(orders, (3,), 5), put(orders, 4, 5, new=True))
    assert write(target, *writes) == [APPLIED, STALE, APPLIED, APPLIED]
    items = raw_items(ministack, orders)
    assert items[1].keys() == {"id", "b", "_v", "_h"}
    assert items[3].keys() == {"id", "_v", "_gone", "_ttl"}
    assert target.sweep(orders, [((3,), 5), ((3,), 4)]) == 1
    assert target.truncate(orders, 6) == 2
    assert raw_items(ministack, orders).keys() == {2}


def _harmless(body: Json) -> Json:
    """As many statements, none of which does anything."""
    return {"Statements": [{"Statement": "SELECT * FROM nothing", "Parameters": []} for _ in body["Statements"]]}


def test_a_scan_takes_a_page_at_a_time(target: DynamoDBTarget, proxy: DynamoDBProxy, orders: Collection) -> None:
    target.write([put(orders, number, 1) for number in range(1100)])
    proxy.seen.clear()
    assert sorted(item.key for item in target.scan(orders)) == [(number,) for number in range(1100)]
    pages = [request for request in proxy.seen if request.operation == "Scan"]
    assert len(pages) == 2
    assert all(request.body["Limit"] == 1000 for request in pages)


def test_unprocessed_keys_are_read_again(target: DynamoDBTarget, proxy: DynamoDBProxy, orders: Collection) -> None:
    target.write([put(orders, number, 1) for number in range(150)])

    def leave_some(request: Request) -> Fault | None:
        if request.operation != "BatchGetItem":
            return None
        asked = request.body["RequestItems"][orders.name]
        kept = 0 if request.number % 3 == 0 else 40

        def only(keys: list[Json]) -> Json:
            return {"RequestItems": {orders.name: {**asked, "Keys": keys}}}

        left = asked["Keys"][kept:]
        return Rewrite(
            lambda _: only(asked["Keys"][:kept] or [{"id": {"N": "-1"}}]),
            lambda answer: {**answer, "UnprocessedKeys": only(left)["RequestItems"] if left else {}},
        )

    proxy.script = leave_some
    assert sum(item is not None for item in target.read(orders, [(number,) for number in range(160)])) == 150


def test_an_outage_is_waited_out_until_told_to_stop(proxy: DynamoDBProxy, orders: Collection) -> None:
    stop = threading.Event()
    target = through(proxy, Retry(first=0.001, longest=0.005, stop=stop))

    def cut(request: Request) -> Fault:
        if request.number == 20:
            stop.set()
        return Cut()

    proxy.script = cut
    with pytest.raises(Interrupted):
        target.write([put(orders, 1, 1)])
    assert len(proxy.seen) == 21
    target.close()


@pytest.mark.parametrize(
    ("code", "hint"),
    [("AccessDeniedException", "dynamodb:PartiQLUpdate"), ("UnrecognizedClientException", "credentials")],
)
def test_a_no_that_is_no_rows_fault_stops(
    code: str, hint: str, target: DynamoDBTarget, proxy: DynamoDBProxy, orders: Collection
) -> None:
    proxy.script = lambda _: Answer(400, code)
    for attempt in (
        lambda: target.write([put(orders, 1, 1)]),
        lambda: target.read(orders, [(1,)]),
        lambda: target.sweep(orders, [((1,), 1)]),
        lambda: target.create(orders),
    ):
        with pytest.raises(TargetRefused, match=code) as caught:
            attempt()
        assert hint in caught.value.remedy
    assert len(proxy.seen) == 4


def test_a_table_that_vanishes_for_a_while_is_an_outage(
    target: DynamoDBTarget, proxy: DynamoDBProxy, orders: Collection
) -> None:
    target.write([put(orders, 1, 1, new=True)])
    proxy.script = lambda request: Answer(400, "ResourceNotFoundException") if request.number in (1, 2, 3) else None
    assert write(target, put(orders, 1, 2)) == [APPLIED]
    assert proxy.count(BATCH) == 5


def test_a_truncate_waits_for_writes_on_their_way(
    target: DynamoDBTarget, proxy: DynamoDBProxy, orders: Collection
) -> None:
    """A write below the floor that was sent before it was set must not land after it."""
    arrived, go = threading.Event(), threading.Event()

    def hold(request: Request) -> Fault | None:
        if request.operation == BATCH and request.number == 0:
            arrived.set()
            go.wait(PATIENCE)
        return None

    proxy.script = hold
    writer = threading.Thread(target=target.write, args=([put(orders, 1, 5, new=True)],))
    writer.start()
    assert arrived.wait(PATIENCE)
    removed: list[int] = []
    begun = threading.Event()

    def truncate() -> None:
        begun.set()
        removed.append(target.truncate(orders, 50))

    truncater = threading.Thread(target=truncate)
    truncater.start()
    assert begun.wait(PATIENCE)
    truncater.join(0.2)
    waited = truncater.is_alive()
    go.set()
    writer.join()
    truncater.join()
    assert waited
    assert removed == [1]
    assert list(target.scan(orders)) == []


def test_items_of_other_writers(target: DynamoDBTarget, orders: Collection, ministack: EmbeddedDynamoDB) -> None:
    client = boto3.client("dynamodb", **ministack.client_options())  # type: ignore[call-overload]
    for number in (1, 2, 3, 4):
        client.put_item(TableName=orders.name, Item={"id": {"N": str(number)}, "theirs": {"SS": ["x"]}})
    client.put_item(TableName=orders.name, Item={"id": {"N": "5"}, "_v": {"S": "one"}})
    client.close()
    (item,) = target.read(orders, [(1,)])
    assert item is not None
    assert (item.version, item.document, item.hash) == (-1, {"id": 1, "theirs": ["x"]}, None)
    results = target.write([put(orders, 1, 0), put(orders, 2, 0, new=True), Delete(orders, (3,), 0), put(orders, 5, 1)])
    assert [result.outcome for result in results] == [APPLIED, APPLIED, APPLIED, REFUSED]
    assert "_v" in str(results[3].error)
    items = raw_items(ministack, orders)
    assert [items[number].keys() for number in (1, 2, 3)] == [{"id", "_v", "_h"}] * 2 + [{"id", "_v", "_gone", "_ttl"}]
    assert target.truncate(orders, 1) == 3, "a TRUNCATE of our table is none of theirs"
    assert raw_items(ministack, orders).keys() == {4, 5}


def test_a_tombstone_keeps_nothing_and_expires(
    proxy: DynamoDBProxy, orders: Collection, ministack: EmbeddedDynamoDB
) -> None:
    """Also when another process wrote attributes that this one has never heard of: it finds out, then knows them."""
    writer = through(proxy)
    writer.write([put(orders, number, 1, a=1, b={"c": 1}) for number in range(40)])
    writer.close()
    fresh = DynamoDBTarget(proxy.options, tombstone_lifetime=60, clock=lambda: 1000.5)
    assert write(fresh, *[Delete(orders, (number,), 2) for number in range(40)]) == [APPLIED] * 40
    items = raw_items(ministack, orders)
    assert {tuple(sorted(item)) for item in items.values()} == {("_gone", "_ttl", "_v", "id")}
    assert items[0]["_ttl"] == {"N": "1060"}
    assert proxy.count("PutItem") <= 25 + 15
    fresh.close()


def test_wide_tables_go_by_put_item(target: DynamoDBTarget, proxy: DynamoDBProxy, orders: Collection) -> None:
    document: dict[str, Any] = {f"a_rather_long_column_name_{number}": number for number in range(400)}
    assert write(target, put(orders, 1, 1, **document), put(orders, 2, 1)) == [APPLIED] * 2
    assert write(target, put(orders, 1, 1, **document)) == [STALE]
    assert write(target, put(orders, 1, 2, a_rather_long_column_name_7=1)) == [APPLIED]
    (item,) = target.read(orders, [(1,)])
    assert item is not None
    assert item.document == {"id": 1, "a_rather_long_column_name_7": 1}


def test_the_signature_covers_the_text_that_is_sent(
    target: DynamoDBTarget, proxy: DynamoDBProxy, orders: Collection
) -> None:
    """The text replaces the client's own request; a service that checks signatures must still accept it."""
    target.write([put(orders, 1, 1, text="ü")])
    target.read(orders, [(1,)])
    for request in proxy.seen:
        signed = request.headers["Authorization"].split("SignedHeaders=")[1].split(",")[0].split(";")
        headers = {name: value for name, value in request.headers.items() if name.lower() in signed}
        again = AWSRequest("POST", proxy.options["endpoint_url"] + "/", headers=headers, data=request.raw)
        again.context["timestamp"] = request.headers["X-Amz-Date"]
        auth = SigV4Auth(Credentials("test", "test"), "dynamodb", "us-east-1")
        signature = auth.signature(auth.string_to_sign(again, auth.canonical_request(again)), again)
        assert request.headers["Authorization"].endswith(signature)
        assert "Content-Encoding" not in request.headers


def test_a_table_that_expires_items_otherwise_is_refused(
    target: DynamoDBTarget, orders: Collection, ministack: EmbeddedDynamoDB
) -> None:
    client = boto3.client("dynamodb", **ministack.client_options())  # type: ignore[call-overload]
    for enabled, attribute in ((False, "_ttl"), (True, "theirs")):
        client.update_time_to_live(
            TableName=orders.name, TimeToLiveSpecification={"Enabled": enabled, "AttributeName": attribute}
        )
    with pytest.raises(TargetRefused, match="attribute theirs") as caught:
        target.create(orders)
    assert "_ttl" in caught.value.remedy
    client.update_time_to_live(
        TableName=orders.name, TimeToLiveSpecification={"Enabled": False, "AttributeName": "theirs"}
    )
    assert not target.create(orders)
    setting = client.describe_time_to_live(TableName=orders.name)["TimeToLiveDescription"]
    assert setting == {"TimeToLiveStatus": "ENABLED", "AttributeName": "_ttl"}
    client.close()


def test_throttling_is_seen_and_counted(proxy: DynamoDBProxy, orders: Collection) -> None:
    """Some of it goes through with every request: that is slow, and nothing is stuck."""
    seen = Metrics()
    target = DynamoDBTarget(proxy.options, Retry(first=0.001, longest=0.01), observer=seen)
    slow = {"Code": "ThrottlingError", "Message": "slow down"}

    def all_but_one(answer: Json) -> Json:
        return {"Responses": [answer["Responses"][0], *({"Error": slow} for _ in answer["Responses"][1:])]}

    def throttle(request: Request) -> Fault | None:
        if request.operation != BATCH or request.number > 3:
            return None
        return Answer(400, "ThrottlingException") if request.number == 0 else Rewrite(answer=all_but_one)

    proxy.script = throttle
    assert write(target, *[put(orders, number, 1, new=True) for number in range(10)]) == [APPLIED] * 10
    retried, throttled = seen.retries()
    assert retried == {(orders.name, "throttled"): 4}
    # All ten, then what was left each time; the server had applied them, and each was found so.
    assert throttled[orders.name] >= 10 + 9 + 8
    counts, items = seen.request_items.snapshot()
    assert items >= 10 + 10 + 9 + 8
    assert counts[-1] >= 5
    pulse = seen.pulses.all()[threading.current_thread().name]
    assert pulse.failing is None
    assert pulse.moved >= pulse.beat
    target.close()


def test_since_when_nothing_goes_through(proxy: DynamoDBProxy, orders: Collection) -> None:
    seen, stop = Metrics(), threading.Event()
    target = DynamoDBTarget(proxy.options, Retry(first=0.001, longest=0.005, stop=stop), observer=seen)

    def refuse(request: Request) -> Fault:
        if request.number == 20:
            stop.set()
        return Answer(500, "InternalServerError")

    proxy.script = refuse
    began = time.monotonic()
    with pytest.raises(Interrupted):
        target.write([put(orders, 1, 1)])
    assert seen.retries() == ({(orders.name, "unavailable"): 21}, {})
    pulse = seen.pulses.all()[threading.current_thread().name]
    assert pulse.failing is not None
    assert began <= pulse.failing < pulse.beat
    assert (pulse.moved, pulse.collection) == (0.0, orders.name)
    assert "InternalServerError" in pulse.error
    target.close()
