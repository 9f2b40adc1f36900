"""What every store of dead letters does: the table, the queue, and both as one."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import boto3
import psycopg
import pytest

from docferry.capture.ledger import PostgresLedger
from docferry.change.model import Op
from docferry.deadletter.contract import DeadLetter, DeadLetters, StoredDeadLetter
from docferry.deadletter.joined import JoinedDeadLetters
from docferry.deadletter.postgres import PostgresDeadLetters
from docferry.deadletter.sqs import SqsDeadLetters
from docferry.embedded.dynamodb import EmbeddedDynamoDB
from docferry.errors import SourceRefused
from docferry.retry import Retry

OpenStore = Callable[[], DeadLetters]
"""Each call gives another object for the same store, as another process would have, and closes the one before."""

BIG = 2**96 + 17


@pytest.fixture(scope="session")
def sqs_options(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with EmbeddedDynamoDB(tmp_path_factory.mktemp("sqs"), services=("dynamodb", "sqs")) as server:
        yield server.client_options()


@pytest.fixture
def queue(sqs_options: dict[str, str]) -> Iterator[str]:
    client = boto3.client("sqs", **sqs_options)  # type: ignore[call-overload]
    url = client.create_queue(QueueName=f"letters-{uuid.uuid4().hex}")["QueueUrl"]
    yield url
    client.delete_queue(QueueUrl=url)
    client.close()


@pytest.fixture(params=["postgres", "sqs", "joined-postgres", "joined-sqs", "joined-silent"])
def open_store(
    request: pytest.FixtureRequest, database: str, queue: str, sqs_options: dict[str, str]
) -> Iterator[OpenStore]:
    """`joined-sqs`: what is added goes to the queue, as the function does it, and both are read. `joined-silent`: the
    source does not answer."""
    retry = Retry(first=0.01, longest=0.1, attempts=3)
    ledger = PostgresLedger(database, retry, epoch=1)
    ledger.create()
    ledger.close()
    opened: list[DeadLetters] = []

    def make() -> DeadLetters:
        if request.param == "postgres":
            return PostgresDeadLetters(database)
        sqs = SqsDeadLetters(queue, sqs_options, retry, visibility=60, wait=0)
        if request.param == "sqs":
            return sqs
        silent = request.param == "joined-silent"
        dsn = "postgresql://nobody@127.0.0.1:1/none?connect_timeout=2" if silent else database
        joined = JoinedDeadLetters(PostgresDeadLetters(dsn), sqs)
        if request.param == "joined-sqs":
            joined.add = sqs.add  # type: ignore[method-assign]
        return joined

    def open_one() -> DeadLetters:
        close()
        opened.append(make())
        return opened[-1]

    def close() -> None:
        while opened:
            opened.pop().close()

    yield open_one
    close()


def letter(number: int, version: int = BIG, *, table: str = "public.t", cause: str = "too-large") -> DeadLetter:
    return DeadLetter(
        table, {"id": str(number)}, version, Op.UPDATE, cause, f"problem {number}", "a limit", f"mend {number}"
    )


def everything(store: DeadLetters, *, limit: int = 1000) -> list[StoredDeadLetter]:
    found: list[StoredDeadLetter] = []
    while page := store.find(after=found[-1].id if found else 0, limit=limit):
        found += page
    return found


def keys(letters: list[StoredDeadLetter]) -> list[str]:
    return sorted((stored.letter.key["id"] for stored in letters), key=int)


def test_an_empty_store(open_store: OpenStore) -> None:
    store = open_store()
    store.add([])
    assert (store.groups(), store.count(), store.find(), store.remove([])) == ([], {}, [], 0)


def test_what_is_added_is_found_by_another_process(open_store: OpenStore) -> None:
    before = datetime.now(UTC)
    open_store().add([letter(1)])
    (stored,) = open_store().find()
    assert stored.letter == letter(1)
    assert stored.attempts == 1
    assert 0 < stored.id < 2**53
    assert before - timedelta(minutes=1) < stored.first_at == stored.last_at < before + timedelta(minutes=10)
    assert open_store().find()[0].id == stored.id


def test_every_text_comes_back(open_store: OpenStore) -> None:
    odd = DeadLetter(
        "public.Tä", {"a b": "é\x01\ufffe\uffff😀", "c": ""}, 2**120, Op.DELETE, "c", 'p "\\\n', "l\t", "r€"
    )
    open_store().add([odd])
    assert [stored.letter for stored in open_store().find()] == [odd]


def test_pages_by_id(open_store: OpenStore) -> None:
    open_store().add([letter(number) for number in range(25)])
    store = open_store()
    found = everything(store, limit=4)
    assert keys(found) == [str(number) for number in range(25)]
    ids = [stored.id for stored in found]
    assert ids == sorted(set(ids))
    assert store.find(after=ids[-1]) == []
    assert [stored.id for stored in store.find(ids=[ids[3], ids[20], 5_000_000])] == [ids[3], ids[20]]
    assert store.find(ids=[ids[3]], after=ids[3]) == []


def test_find_by_table_and_cause(open_store: OpenStore) -> None:
    store = open_store()
    store.add([letter(1), letter(2, cause="too-deep"), letter(3, table="public.u"), letter(4)])
    assert keys(store.find(table="public.t")) == ["1", "2", "4"]
    assert keys(store.find(cause="too-large")) == ["1", "3", "4"]
    assert keys(store.find(table="public.t", cause="too-large")) == ["1", "4"]
    assert store.find(table="public.v") == []


def test_groups_and_count(open_store: OpenStore) -> None:
    open_store().add([letter(number) for number in range(12)])
    open_store().add([letter(20, cause="too-deep"), letter(21, table="public.u")])
    store = open_store()
    groups = store.groups()
    assert [(group.table, group.cause, group.count) for group in groups] == [
        ("public.t", "too-large", 12),
        ("public.t", "too-deep", 1),
        ("public.u", "too-large", 1),
    ]
    assert groups[1].example == "problem 20"
    assert groups[1].remedy == "mend 20"
    assert groups[0].first_at <= groups[0].last_at <= groups[1].last_at
    assert store.count() == {"public.t": 13, "public.u": 1}


def test_what_is_removed_is_gone_and_the_rest_stays(open_store: OpenStore) -> None:
    open_store().add([letter(number) for number in range(12)])
    store = open_store()
    found = {stored.letter.key["id"]: stored for stored in everything(store)}
    assert store.remove([found["3"], found["7"]]) == 2
    assert store.remove([found["3"]]) == 0
    left = [str(number) for number in range(12) if number not in (3, 7)]
    assert keys(everything(store)) == left
    assert keys(everything(open_store())) == left


def test_one_that_failed_again_stays_and_counts(open_store: OpenStore) -> None:
    """In this order a replay keeps what is refused again."""
    open_store().add([letter(1), letter(2)])
    store = open_store()
    before = {stored.letter.key["id"]: stored for stored in store.find()}
    store.add([letter(1, cause="too-deep")])
    store.remove([before["1"], before["2"]])
    (stored,) = open_store().find()
    assert (stored.letter, stored.attempts) == (letter(1, cause="too-deep"), 2)
    assert stored.first_at <= before["1"].last_at <= stored.last_at


def test_adding_one_again_loses_nothing(open_store: OpenStore) -> None:
    store = open_store()
    store.add([letter(1)])
    store.add([letter(1)])
    store.add([letter(1, BIG + 1)])
    found = everything(open_store())
    assert {stored.letter.key["id"] for stored in found} == {"1"}
    assert max(stored.letter.version for stored in found) == BIG + 1


def test_found_by_key(open_store: OpenStore) -> None:
    open_store().add([letter(1), letter(2), letter(3), letter(2, table="public.other")])
    store = open_store()
    assert keys(store.find(table="public.t", keys=[{"id": "2"}, {"id": "9"}])) == ["2"]
    assert store.find(table="public.t", keys=[{"id": "9"}]) == store.find(keys=[]) == []


def test_what_leaves_is_in_the_audit(open_store: OpenStore, database: str, request: pytest.FixtureRequest) -> None:
    open_store().add([letter(1), letter(2), letter(3)])
    store = open_store()
    found = {stored.letter.key["id"]: stored for stored in everything(store)}
    store.remove([found["1"], found["2"]], {found["1"].id: "applied", found["2"].id: "superseded"})
    store.remove([found["3"]])
    source = PostgresDeadLetters(database)
    entries = source.audit()
    source.close()
    if request.node.callspec.params["open_store"] in ("sqs", "joined-silent"):
        assert entries == []
        return
    assert [(one.key["id"], one.action, one.outcome) for one in reversed(entries)] == [
        ("1", "replayed", "applied"),
        ("2", "replayed", "superseded"),
        ("3", "discarded", "discarded"),
    ]
    for one in entries:
        was = found[one.key["id"]]
        assert (one.letter_id, one.table, one.version, one.op) == (was.id, "public.t", BIG, Op.UPDATE)
        assert (one.cause, one.attempts, one.first_at) == ("too-large", 1, was.first_at)
        assert "@" in one.os_user


def test_a_mirror_that_is_removed_takes_its_dead_letters_into_the_audit(database: str) -> None:
    store = _table(database)
    store.add([letter(1), letter(2, table="public.other")])
    ledger = PostgresLedger(database, Retry())
    ledger.remove_mirror("public.t")
    ledger.close()
    assert [stored.letter.table for stored in store.find()] == ["public.other"]
    (entry,) = store.audit()
    assert (entry.action, entry.outcome, entry.key) == ("discarded", "mirror-removed", {"id": "1"})
    store.close()


def test_one_that_fails_again_has_not_left(database: str) -> None:
    store = _table(database)
    store.add([letter(1)])
    found = store.find()
    store.add([letter(1)])
    assert store.remove(found, {found[0].id: "applied"}) == 0
    assert store.audit() == []
    store.close()


def test_the_audit_is_of_the_same_transaction(database: str) -> None:
    store = _table(database)
    store.add([letter(1)])
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("ALTER TABLE docferry.dead_letter_audit ADD CHECK (cause <> 'too-large')")
    with pytest.raises(SourceRefused):
        store.remove(store.find())
    assert len(store.find()) == 1
    store.close()


def test_the_audit_is_bounded(database: str) -> None:
    store = _table(database, retention=30 * 86400)
    store.add([letter(1), letter(2), letter(3)])
    found = store.find()
    store.remove(found[:2])
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(
            "UPDATE docferry.dead_letter_audit SET at = at - make_interval(days => 26 + letter_id::int * 2)"
        )
    store.remove(found[2:])
    store.remove([])
    store.tell(found[2:], None)
    assert len(store.audit()) == 3  # of 28 days, and the two new ones
    store.close()


def test_the_table_holds_key_and_cause_alone(database: str) -> None:
    store = _table(database)
    store.add([replace(letter(1), payload={"docferry": 1, "changes": ["secret"]})])
    with psycopg.connect(database, autocommit=True) as connection:
        rows = connection.execute("SELECT d::text FROM docferry.dead_letters d").fetchall()
    assert "secret" not in str(rows)
    store.close()


@pytest.mark.parametrize("payload", [True, False])
def test_the_queue_holds_the_change_unless_told_not_to(
    queue: str, sqs_options: dict[str, str], *, payload: bool
) -> None:
    event = {"docferry": 1, "relations": {}, "changes": ["secret"]}
    for _ in range(2):  # the second time it is one that fails again
        store = SqsDeadLetters(queue, sqs_options, Retry(first=0.01), visibility=60, wait=0, payload=payload)
        found = store.find()
        store.add([replace(letter(1), payload=event)])
        store.remove(found)
        store.close()
    store = SqsDeadLetters(queue, sqs_options, Retry(first=0.01), visibility=60, wait=0)
    (stored,) = store.find()
    store.close()
    assert stored.letter.payload == (event if payload else None)
    assert stored.attempts == 2


def _table(database: str, **settings: Any) -> PostgresDeadLetters:
    ledger = PostgresLedger(database, Retry(first=0.01, longest=0.1, attempts=3), epoch=1)
    ledger.create()
    ledger.close()
    return PostgresDeadLetters(database, **settings)
