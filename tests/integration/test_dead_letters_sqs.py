"""Dead letters in a queue: nothing leaves it before it is durable elsewhere, whatever breaks in between."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from botocore.awsrequest import AWSResponse

from docferry.change.model import Op, PgType
from docferry.change.wire import decode_event
from docferry.deadletter import held as held_module
from docferry.deadletter.contract import DeadLetter, StoredDeadLetter
from docferry.deadletter.queue import MAX_MESSAGE_BYTES
from docferry.deadletter.sqs import SqsDeadLetters
from docferry.document.mirror import Mirror
from docferry.document.model import Collection, Delete, KeyAttribute, KeyKind, MirrorSpec, Put
from docferry.embedded.dynamodb import EmbeddedDynamoDB
from docferry.errors import ConfigError, TargetRefused, TargetUnavailable
from docferry.operate.letters import Selection, count, discard, replay
from docferry.operate.reread import Replay
from docferry.retry import Retry
from docferry.target.dynamodb import DynamoDBTarget
from docferry.target.memory import MemoryTarget

from ..waiting import until

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient

TYPES = {20: PgType(20, "int8"), 25: PgType(25, "text")}
RELATION = {"oid": 7, "columns": ["id", "doc"], "types": [20, 25], "key": ["id"]}


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedDynamoDB]:
    with EmbeddedDynamoDB(services=("dynamodb", "sqs")) as running:
        yield running


class Bench:
    """A queue, what lies in it, and the stores that look at it."""

    def __init__(self, server: EmbeddedDynamoDB) -> None:
        self.options = server.client_options()
        self.client: SQSClient = boto3.client("sqs", **self.options)  # type: ignore[call-overload]
        self.url = self.client.create_queue(QueueName=f"dead-{uuid.uuid4().hex}")["QueueUrl"]
        self._stores: list[SqsDeadLetters] = []

    def store(self, *, visibility: int = 120, wait: int = 0, attempts: int = 4) -> SqsDeadLetters:
        retry = Retry(first=0.01, longest=0.1, attempts=attempts)
        self._stores.append(SqsDeadLetters(self.url, self.options, retry, visibility=visibility, wait=wait))
        return self._stores[-1]

    def send(self, body: Any, **attributes: str) -> None:
        text = body if isinstance(body, str) else json.dumps(body)
        named: Any = {name: {"DataType": "String", "StringValue": value} for name, value in attributes.items()}
        self.client.send_message(QueueUrl=self.url, MessageBody=text, MessageAttributes=named)

    def messages(self) -> int:
        """Visible or not."""
        answer = self.client.get_queue_attributes(QueueUrl=self.url, AttributeNames=["All"])["Attributes"]
        return int(answer["ApproximateNumberOfMessages"]) + int(answer["ApproximateNumberOfMessagesNotVisible"])

    def left(self) -> list[StoredDeadLetter]:
        """All that the next process would find."""
        store = self.store()
        found = everything(store)
        self.close(store)
        return found

    def close(self, store: SqsDeadLetters) -> None:
        self._stores.remove(store)
        store.close()

    def end(self) -> None:
        for store in list(self._stores):
            self.close(store)
        self.client.delete_queue(QueueUrl=self.url)
        self.client.close()


@pytest.fixture
def bench(server: EmbeddedDynamoDB) -> Iterator[Bench]:
    made = Bench(server)
    yield made
    made.end()


def change(number: int, version: int, doc: str | None = "x", op: str = "UPDATE", **extra: Any) -> dict[str, Any]:
    literal = {} if doc is None else {"OLD" if op == "DELETE" else "NEW": f"({number},{doc})"}
    return {"TG_OP": op, "table": "public.t", "version": str(version), **literal, **extra}


def event(*changes: Mapping[str, Any], at: datetime | None = None) -> dict[str, Any]:
    sent = (at or datetime.now(UTC)).isoformat()
    head = {"docferry": 1, "epoch": 1, "transaction": "700", "at": sent, "relations": {"public.t": RELATION}}
    return {**head, "changes": list(changes)}


def everything(store: SqsDeadLetters) -> list[StoredDeadLetter]:
    return [stored for page in Selection().pages(store) for stored in page]


def facts(letters: list[StoredDeadLetter]) -> list[tuple[str, int]]:
    return sorted((stored.letter.key.get("id", ""), stored.letter.version) for stored in letters)


def broken(*_: object, **__: object) -> Any:
    raise KeyboardInterrupt


# -- the messages of Lambda -------------------------------------------------------------------------------------------


def test_events_and_records_are_read(bench: Bench) -> None:
    bench.send(event(change(1, 10), change(2, 11)), RequestID="r", ErrorCode="200", ErrorMessage="it broke")
    context = {"condition": "RetriesExhausted", "requestId": "q", "approximateInvokeCount": 3}
    bench.send({"requestContext": context, "requestPayload": event(change(3, 12)), "responsePayload": None})
    bench.send("nonsense")
    store = bench.store()
    assert {(one.table, one.cause, one.count) for one in store.groups()} == {
        ("public.t", "function-failed", 2),
        ("public.t", "retries-exhausted", 1),
        ("", "unreadable", 1),
    }
    found = everything(store)
    assert facts(found) == [("", 0), ("1", 10), ("2", 11), ("3", 12)]
    assert all(datetime.now(UTC) - one.first_at < timedelta(hours=1) for one in found)
    first, second = (stored for stored in found if stored.letter.cause == "function-failed")
    assert second.id == first.id + 1
    assert "it broke (request r, status 200)" in first.letter.problem


def test_a_message_goes_when_all_its_letters_are_settled(bench: Bench) -> None:
    bench.send(event(change(1, 10), change(2, 11)))
    store = bench.store()
    assert store.remove(store.find()) == 2
    assert bench.messages() == 0


def test_of_a_message_that_is_settled_in_part_the_rest_stays(bench: Bench) -> None:
    bench.send(event(*(change(number, 10 + number) for number in range(1, 26))), ErrorMessage="it broke")
    store = bench.store()
    found = everything(store)
    done = [stored for stored in found if int(stored.letter.key["id"]) % 2]
    assert store.remove(done) == 13
    left = [stored for stored in found if stored not in done]
    here = everything(store)
    bench.close(store)
    for again in (here, bench.left()):
        assert facts(again) == facts(left)
        assert [one.letter for one in sorted(again, key=lambda one: one.letter.version)] == [one.letter for one in left]
        assert {one.first_at for one in again} == {one.first_at for one in left}


def test_nothing_is_deleted_before_the_rest_is_sent(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.send(event(change(1, 10), change(2, 11)))
    store = bench.store()
    monkeypatch.setattr(store._queue, "send", broken)
    with pytest.raises(KeyboardInterrupt):
        store.remove(store.find()[:1])
    bench.close(store)
    assert facts(bench.left()) == [("1", 10), ("2", 11)]


def test_a_death_between_sending_the_rest_and_deleting_leaves_duplicates(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.send(event(change(1, 10, "one"), change(2, 11, "two")))
    store = bench.store()
    monkeypatch.setattr(store._queue, "delete", broken)
    with pytest.raises(KeyboardInterrupt):
        store.remove(store.find()[:1])
    bench.close(store)
    assert facts(bench.left()) == [("1", 10), ("2", 11), ("2", 11)]
    world = World(bench.store())
    assert world.replay() == {"applied": 2, "superseded": 1}
    assert world.items() == {1: (10, "one"), 2: (11, "two")}
    assert bench.messages() == 0


# -- holding and letting go -------------------------------------------------------------------------------------------


def test_what_was_only_looked_at_is_there_again_at_once(bench: Bench) -> None:
    for number in range(25):
        bench.send(event(change(number, 10)))
    store = bench.store()
    assert len(everything(store)) == 25
    other = bench.store()
    assert other.groups() == []
    assert "25 messages of the queue are held by another process" in other.unread
    bench.close(store)
    assert len(bench.left()) == 25


def test_counting_hides_nothing(bench: Bench) -> None:
    for number in range(3):
        bench.send(event(change(number, 10)))
    assert bench.store().messages() == 3
    assert len(bench.store().find()) == 3
    assert bench.store().messages() == 3


def test_messages_are_held_for_as_long_as_it_takes(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.send(event(change(1, 10)))
    store = bench.store(visibility=6)
    prolonged: list[object] = []
    prolong = store._queue.set_visibility

    def counted(*arguments: Any, **settings: Any) -> Any:
        prolonged.append(arguments)
        return prolong(*arguments, **settings)

    monkeypatch.setattr(store._queue, "set_visibility", counted)
    assert len(store.find()) == 1
    until(lambda: len(prolonged) > 3, "the hold has been prolonged beyond its time")
    assert bench.store().find() == []
    assert store.remove(store.find()) == 1
    assert bench.messages() == 0


def test_a_hold_that_ended_while_replaying(bench: Bench) -> None:
    """The process was frozen for longer than its hold: another has the message, and keeps it."""
    bench.send(event(change(1, 10, "one")))
    frozen = bench.store(visibility=1)
    world = World(frozen)
    held = frozen.find()
    frozen._closing.set()  # nobody keeps the hold
    other = bench.store()

    def found() -> bool:
        nonlocal other
        if other.find():
            return True
        bench.close(other)
        other = bench.store()
        return False

    until(found, "the hold is over")
    assert world.replay() == {"applied": 1}
    assert frozen.remove(held) == 0
    assert bench.messages() == 1
    again = World(other, world.target)
    assert again.replay() == {"superseded": 1}
    assert world.items() == {1: (10, "one")}
    assert bench.messages() == 0


def test_a_message_that_is_received_twice_is_one(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        bench.send(event(change(number, 10)))
    store = bench.store()
    receive = store._queue.receive
    # Visible again at once, as a queue of many servers may show it.
    monkeypatch.setattr(store._queue, "receive", lambda wait, **_: receive(visibility=0, wait=wait))
    found = everything(store)
    assert facts(found) == [(str(number), 10) for number in range(5)]
    assert store.remove(found) == 5
    assert bench.messages() == 0


def test_one_that_comes_after_it_was_deleted_is_deleted_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQS may keep a copy on a server that did not hear of the delete."""
    bench.send(event(change(1, 10)))
    store = bench.store()
    delete = store._queue.delete
    # The server that answers the next receive has it still, and visible.
    monkeypatch.setattr(store._queue, "delete", lambda receipts: store._queue.set_visibility(receipts, 0))
    assert store.remove(store.find()) == 1
    monkeypatch.setattr(store._queue, "delete", delete)
    store.add([letter(2)])
    assert facts(store.find()) == [("2", 10)]
    assert bench.messages() == 1


def test_bodies_go_to_disk_when_they_are_many(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_module, "BODIES_IN_MEMORY", 1000)
    for number in range(30):
        bench.send(event(change(number, 10, "y" * 2000)))
    store = bench.store()
    found = everything(store)
    assert facts(found) == sorted((str(number), 10) for number in range(30))
    assert store._held._bodies._rolled  # type: ignore[attr-defined]
    assert all("y" * 2000 in str(stored.letter.payload) for stored in found)


def test_a_page_is_bounded_by_its_bytes(bench: Bench) -> None:
    for number in range(12):
        bench.send(event(change(number, 10, "y" * 900_000)))
    store = bench.store()
    first = store.find()
    assert 5 < len(first) < 12
    assert len(everything(store)) == 12


def test_messages_of_one_id_keep_apart(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("docferry.deadletter.held.hashlib.blake2b", lambda *_, **__: Same())
    for number in range(4):
        bench.send(event(change(number, 10), change(number, 11)))
    found = everything(bench.store())
    assert len({stored.id for stored in found}) == 8
    assert max(stored.id for stored in found) < 2**53


class Same:
    def digest(self) -> bytes:
        return b"\xff" * 8


# -- docferry's own ---------------------------------------------------------------------------------------------------


def letter(key: int, doc: str = "x", version: int = 10) -> DeadLetter:
    payload = event(change(key, version, doc))
    return DeadLetter("public.t", {"id": str(key)}, version, Op.UPDATE, "too-large", "too large", payload=payload)


def test_large_letters_are_sent_in_several_requests(bench: Bench) -> None:
    letters = [letter(number, "z" * 400_000) for number in range(7)]
    bench.store().add(letters)
    assert [one.letter for one in sorted(bench.left(), key=lambda one: one.letter.key["id"])] == letters


def test_a_letter_that_is_too_long_goes_without_its_event(bench: Bench) -> None:
    bench.store().add([letter(1, "z" * MAX_MESSAGE_BYTES), letter(2)])
    found = {stored.letter.key["id"]: stored.letter.payload for stored in bench.left()}
    assert found["1"] is None
    assert found["2"] is not None


def test_a_queue_that_takes_only_shorter_messages(bench: Bench) -> None:
    bench.client.set_queue_attributes(QueueUrl=bench.url, Attributes={"MaximumMessageSize": "2000"})
    bench.store().add([letter(1, "z" * 5000), letter(2)])
    found = {stored.letter.key["id"]: stored.letter.payload for stored in bench.left()}
    assert found["1"] is None
    assert found["2"] is not None
    bench.client.set_queue_attributes(QueueUrl=bench.url, Attributes={"MaximumMessageSize": "1024"})
    with pytest.raises(TargetRefused, match="takes no message of") as refused:
        bench.store().add([DeadLetter("public.t", {"id": "k" * 2000}, 1, Op.UPDATE, "c", "p")])
    assert "MaximumMessageSize" in refused.value.remedy


# -- what the service says --------------------------------------------------------------------------------------------


def answers(store: SqsDeadLetters, *codes: str) -> list[str]:
    """The next answers of the service are these errors; returns those that are still to come."""
    coming = list(codes)

    def answer(request: Any, **_: object) -> AWSResponse | None:
        if not coming:
            return None
        body = json.dumps({"__type": f"com.amazonaws.sqs#{coming.pop(0)}", "message": "so be it"}).encode()
        headers: Any = {"content-type": "application/x-amz-json-1.0"}
        return AWSResponse(request.url, 400, headers, Raw(body))

    events: Any = store._queue._client.meta.events
    events.register("before-send.sqs", answer)
    return coming


class Raw:
    def __init__(self, body: bytes) -> None:
        self.body = body

    def stream(self, **_: object) -> Iterator[bytes]:
        yield self.body


@pytest.mark.parametrize("code", ["ThrottlingException", "RequestThrottled", "KmsThrottled", "InternalFailure"])
def test_throttling_is_waited_out(bench: Bench, code: str) -> None:
    store = bench.store()
    left = answers(store, code, code)
    store.add([letter(1)])
    assert left == []
    left += [code, code]
    assert len(store.find()) == 1
    left += [code, code]
    assert store.remove(store.find()) == 1


def test_after_the_attempts_of_a_command_it_is_an_error(bench: Bench) -> None:
    store = bench.store()
    answers(store, *["RequestThrottled"] * 5)
    with pytest.raises(TargetUnavailable, match="RequestThrottled"):
        store.find()


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        ("AccessDeniedException", "sqs:ReceiveMessage"),
        ("KmsAccessDenied", "kms:Decrypt"),
        ("QueueDoesNotExist", "queue's URL"),
        ("AWS.SimpleQueueService.NonExistentQueue", "queue's URL"),
        ("ExpiredToken", "credentials"),
        ("InvalidSecurity", "queue's URL"),
    ],
)
def test_what_no_patience_helps_is_said(bench: Bench, code: str, remedy: str) -> None:
    store = bench.store()
    for ask in (store.find, store.groups, partial(store.add, [letter(1)])):
        left = answers(store, code)
        with pytest.raises(TargetRefused, match="dead-letter queue") as refused:
            ask()
        assert remedy in refused.value.remedy
        assert left == []


def test_a_queue_that_is_not_there_and_a_host_that_does_not_answer(bench: Bench) -> None:
    retry = Retry(first=0.01, longest=0.02, attempts=2)
    absent = SqsDeadLetters(bench.url + "-absent", bench.options, retry)
    with pytest.raises(TargetRefused, match="does not exist"):
        absent.find()
    absent.close()
    silent = SqsDeadLetters(bench.url, {**bench.options, "endpoint_url": "http://127.0.0.1:1"}, retry)
    with pytest.raises(TargetUnavailable):
        silent.add([letter(1)])
    silent.close()
    with pytest.raises(ConfigError, match="FIFO"):
        SqsDeadLetters(bench.url + ".fifo", bench.options, retry)


def test_an_entry_of_a_batch_that_fails_is_sent_again(bench: Bench) -> None:
    store = bench.store()
    client: Any = store._queue._client
    send = client.send_message_batch
    refused = [2]

    def half(QueueUrl: str, Entries: list[Any]) -> Any:  # noqa: N803 - boto3's names
        if not refused:
            return send(QueueUrl=QueueUrl, Entries=Entries)
        refused.pop()
        answer = send(QueueUrl=QueueUrl, Entries=Entries[:3])
        failed = [{"Id": one["Id"], "Code": "InternalError", "SenderFault": False} for one in Entries[3:]]
        return {**answer, "Failed": failed}

    client.send_message_batch = half
    store.add([letter(number) for number in range(8)])
    assert facts(bench.left()) == [(str(number), 10) for number in range(8)]


# -- replay by the events alone ---------------------------------------------------------------------------------------


class World:
    """A store without its source, and a target."""

    def __init__(self, store: SqsDeadLetters, target: MemoryTarget | DynamoDBTarget | None = None) -> None:
        self.store = store
        self.items_of = Collection("items", (KeyAttribute("id", KeyKind.NUMBER),))
        self.target = target or MemoryTarget()
        self.target.create(self.items_of)
        self.told: list[tuple[str, Mapping[str, Any]]] = []

    def specify(self, table: str, described: Mapping[str, Any]) -> Mirror | None:
        self.told.append((table, described))
        return Mirror(MirrorSpec(table, ("id",), self.items_of), 7) if table == "public.t" else None

    def replay(self, *, dry_run: bool = False, rate: float = 1e9, selection: Selection | None = None) -> dict[str, int]:
        decode: Callable[[Mapping[str, Any]], Any] = partial(decode_event, types=TYPES.__getitem__)
        replayer = Replay(
            {}, None, self.target, self.store, None, rate, decode=decode, specify=self.specify, event_lifetime=86400
        )
        return replay(replayer, selection or Selection(), dry_run=dry_run).counts

    def items(self) -> dict[Any, tuple[int, Any]]:
        return {
            item.key[0]: (item.version, None if item.document is None else item.document["doc"])
            for item in self.target.scan(self.items_of)
        }


@pytest.fixture
def dynamodb(server: EmbeddedDynamoDB) -> Iterator[DynamoDBTarget]:
    target = DynamoDBTarget(server.client_options(), Retry(first=0.01, longest=0.1, attempts=5))
    yield target
    target.drop(Collection("items", (KeyAttribute("id", KeyKind.NUMBER),)))
    target.close()


def test_replay_without_the_source(bench: Bench, dynamodb: DynamoDBTarget) -> None:
    world = World(bench.store(), dynamodb)
    dynamodb.write([Put(world.items_of, (2,), 99, {"id": 2, "doc": "newer"}), Delete(world.items_of, (3,), 99)])
    bench.send(event(change(1, 10, "one"), change(2, 11, "old"), change(3, 12, "old")))
    bench.send(event(change(4, 13, None, key=["4"]), change(5, 14, "z" * 500_000), change(6, 15, "six", "DELETE")))
    bench.send(event(change(8, 16, "eight", OLD="(7,)")))
    bench.send(event(change(9, 17, "nine"), at=datetime.now(UTC) - timedelta(days=2)))
    bench.send(
        {
            **event(change(1, 18)),
            "changes": [{**change(1, 18), "table": "public.u"}],
            "relations": {"public.u": RELATION},
        }
    )
    bench.send("nonsense")
    expected = {
        "applied": 1,
        "superseded": 2,
        "deleted": 1,
        "refused": 1,
        "unreachable": 3,
        "unmirrored": 1,
        "unreadable": 1,
    }
    assert world.replay(dry_run=True) == expected
    before = {2: (99, "newer"), 3: (99, None)}
    assert world.items() == before
    assert world.replay() == expected
    assert world.items() == {**before, 1: (10, "one"), 6: (15, None)}
    bench.close(world.store)
    left = {(one.letter.table, one.letter.key.get("id")): one for one in bench.left()}
    assert set(left) == {("public.t", key) for key in ("4", "5", "8", "9")} | {("public.u", "1"), ("", None)}
    assert (left["public.t", "5"].letter.cause, left["public.t", "5"].attempts) == ("too-large", 2)
    assert left["public.t", "5"].letter.payload is not None
    assert left["public.t", "8"].letter.old_key == {"id": "7"}


def test_several_letters_of_one_key_give_one_write(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(bench.store())
    for version in (12, 10, 14, 11, 13):
        bench.send(event(change(1, version, f"v{version}")))
    written: list[int] = []
    write = world.target.write

    def noted(writes: Any) -> Any:
        written.extend(one.version for one in writes)
        return write(writes)

    monkeypatch.setattr(world.target, "write", noted)
    assert world.replay() == {"applied": 1, "superseded": 4}
    assert written == [14]
    assert world.items() == {1: (14, "v14")}
    assert bench.messages() == 0


def test_a_truncate_is_not_replayed_without_the_source(bench: Bench) -> None:
    """Nobody can say whether it was committed, and what it took away would not come back."""
    world = World(bench.store())
    world.target.write([Put(world.items_of, (n,), v, {"id": n, "doc": "d"}) for n, v in ((1, 5), (2, 50))])
    bench.send(event(change(0, 20, None, "TRUNCATE"), change(4, 21, "after")))
    expected = {"unreachable": 1, "applied": 1}
    assert world.replay(dry_run=True) == expected
    assert world.items() == {1: (5, "d"), 2: (50, "d")}
    assert world.replay() == expected
    assert world.items() == {1: (5, "d"), 2: (50, "d"), 4: (21, "after")}
    bench.close(world.store)
    assert [one.letter.op for one in bench.left()] == [Op.TRUNCATE]


def test_discarding_what_cannot_be_read(bench: Bench) -> None:
    bench.send("nonsense")
    bench.send({"docferry": "drain"})
    bench.send(event(change(1, 10)))
    store = bench.store()
    groups, shown = count(store, Selection(cause="unreadable"))
    assert [group.count for group in groups] == [1]
    assert discard(store, Selection(cause="unreadable"), shown) == 1
    bench.close(store)
    assert {one.letter.cause for one in bench.left()} == {"drain-failed", "function-failed"}


def test_superseded_ones_are_seen_before_a_replay(bench: Bench) -> None:
    world = World(bench.store())
    world.target.write([Put(world.items_of, (1,), 99, {"id": 1, "doc": "newer"})])
    bench.send(event(change(1, 10), change(2, 11), change(3, 12, None, key=["3"])))
    decode: Callable[[Mapping[str, Any]], Any] = partial(decode_event, types=TYPES.__getitem__)
    replayer = Replay({}, None, world.target, world.store, None, decode=decode, specify=world.specify)
    found = everything(world.store)
    assert [stored.letter.key["id"] for stored in found if stored.id in replayer.superseded(found)] == ["1"]
