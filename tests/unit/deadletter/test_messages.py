"""Three kinds of message, and whatever else may lie in a queue."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from docferry.change.model import Op, PgType
from docferry.change.wire import decode_event
from docferry.deadletter.contract import DeadLetter
from docferry.deadletter.messages import compose, read_message

NOW = datetime(2026, 11, 25, 10, tzinfo=UTC)
VERSION = 3 * 2**96 + 7 * 2**32
ORDERS = {"oid": 16412, "columns": ["id", None, "doc"], "types": [20, 25, 142], "key": ["id"]}
LINES = {"oid": 16413, "columns": ["a", "b", "c"], "types": [20, 25, 25], "key": ["b", "a"]}


def event(*changes: dict[str, Any]) -> dict[str, Any]:
    return {
        "docferry": 1,
        "epoch": 3,
        "transaction": "7421",
        "at": "2026-11-25T10:00:00.123456+00:00",
        "relations": {"public.orders": ORDERS, "public.lines": LINES},
        "changes": list(changes),
    }


def change(op: str, table: str = "public.orders", **extra: Any) -> dict[str, Any]:
    return {"TG_OP": op, "table": table, "version": str(VERSION), **extra}


def record(payload: Any, **response: Any) -> dict[str, Any]:
    return {
        "version": "1.0",
        "timestamp": "2026-11-25T10:03:00.5Z",
        "requestContext": {
            "requestId": "r-1",
            "functionArn": "arn:aws:lambda:eu-west-1:1:function:docferry:$LATEST",
            "condition": "RetriesExhausted",
            "approximateInvokeCount": 3,
        },
        "requestPayload": payload,
        "responseContext": {"statusCode": 200, "executedVersion": "$LATEST", "functionError": "Unhandled"},
        "responsePayload": response or None,
    }


EVERYTHING = event(
    change("INSERT", NEW='(1,generated,"<a b=""1""/>")'),
    change("UPDATE", NEW="(2,,<b/>)", OLD="(1,,<a/>)"),
    change("DELETE", OLD="(2,,)"),
    change("TRUNCATE"),
    change("UPDATE", key=["5"], old_key=["4"]),
    change("UPDATE", key=["6"]),
    change("INSERT", "public.lines", NEW='(1,"x, ""y""",)'),
    change("DELETE", "public.lines", key=["x", "2"]),
)


def test_the_bare_event_of_a_dead_letter_queue() -> None:
    attributes = {"RequestID": "r-1", "ErrorCode": "200", "ErrorMessage": "Task timed out after 3.00 seconds"}
    found = read_message(json.dumps(EVERYTHING), attributes)
    assert [(one.letter.op, one.letter.table, one.letter.key, one.letter.old_key) for one in found] == [
        (Op.INSERT, "public.orders", {"id": "1"}, None),
        (Op.UPDATE, "public.orders", {"id": "2"}, {"id": "1"}),
        (Op.DELETE, "public.orders", {"id": "2"}, None),
        (Op.TRUNCATE, "public.orders", {}, None),
        (Op.UPDATE, "public.orders", {"id": "5"}, {"id": "4"}),
        (Op.UPDATE, "public.orders", {"id": "6"}, None),
        (Op.INSERT, "public.lines", {"b": 'x, "y"', "a": "1"}, None),
        (Op.DELETE, "public.lines", {"b": "x", "a": "2"}, None),
    ]
    assert {one.letter.version for one in found} == {VERSION}
    assert {one.letter.cause for one in found} == {"function-failed"}
    assert found[0].letter.problem == "Task timed out after 3.00 seconds (request r-1, status 200)"
    assert found[0].first_at is None


def test_each_letter_carries_an_event_with_its_change_alone() -> None:
    for index, one in enumerate(read_message(json.dumps(EVERYTHING), {})):
        payload = one.letter.payload
        assert payload is not None
        assert payload["changes"] == [EVERYTHING["changes"][index]]
        assert list(payload["relations"]) == [one.letter.table]
        decoded = decode_event(payload, lambda oid: PgType(oid, "text"))
        assert (decoded.transaction, len(decoded.changes)) == (7421, 1)


def test_the_record_of_a_failure_destination() -> None:
    body = json.dumps(record(EVERYTHING, errorType="TargetRefused", errorMessage="no such collection"))
    found = read_message(body, {})
    assert len(found) == 8
    assert {one.letter.cause for one in found} == {"target-refused"}
    assert found[0].letter.problem == "no such collection (request r-1, condition RetriesExhausted)"
    assert found[0].attempts == 3
    assert found[0].last_at == datetime(2026, 11, 25, 10, 3, 0, 500_000, tzinfo=UTC)


def test_an_event_that_no_function_ever_saw() -> None:
    """It expired while the function was throttled: there is no response."""
    body = record(EVERYTHING)
    body["requestContext"].update(condition="EventAgeExceeded", approximateInvokeCount=0)
    found = read_message(json.dumps(body), {})
    assert {(one.letter.cause, one.attempts) for one in found} == {("event-age-exceeded", 1)}


@pytest.mark.parametrize("body", [{"docferry": "drain"}, record({"docferry": "drain"}, errorMessage="no database")])
def test_a_schedule_that_failed_is_no_change(body: Any) -> None:
    (found,) = read_message(json.dumps(body), {})
    assert (found.letter.table, found.letter.cause, found.letter.payload) == ("", "drain-failed", None)


@pytest.mark.parametrize(
    "body",
    [
        "",
        "hello",
        "[1]",
        "17",
        "[" * 100_000,
        "{}",
        '{"docferry": 1}',
        '{"docferry": 1, "changes": []}',
        '{"docferry": 2, "changes": [1]}',
        '{"docferry": 1, "changes": [1]}',
        json.dumps(event(change("INSERT", "public.unknown", NEW="(1)"))),
        json.dumps(event(change("INSERT", NEW="(1)"))),
        json.dumps(event(change("INSERT"))),
        json.dumps(event(change("MERGE", NEW="(1,,)"))),
        json.dumps(event(change("UPDATE", key=["1", "2"]))),
        json.dumps({**event(change("INSERT", NEW="(1,,)")), "relations": None}),
        json.dumps(record("hello")),
        json.dumps({**record(EVERYTHING), "requestContext": 5}),
        '{"docferry_dead_letter": 1}',
        '{"docferry_dead_letter": 1, "table": 5, "key": {}, "version": "1", "op": "update"}',
    ],
)
def test_what_is_none_of_these_is_kept_and_shown(body: str) -> None:
    (found,) = read_message(body, {})
    assert (found.letter.table, found.letter.cause, found.letter.payload) == ("", "unreadable", None)
    assert body[:50] in found.letter.problem
    assert found.letter.remedy


_text = st.text(st.characters(codec=None))


@given(
    st.builds(
        DeadLetter,
        table=_text,
        key=st.dictionaries(_text, _text, max_size=3),
        version=st.integers(0, 2**130),
        op=st.sampled_from(Op),
        cause=_text,
        problem=_text,
        limit=_text,
        remedy=_text,
        payload=st.none() | st.just(EVERYTHING),
        old_key=st.none() | st.dictionaries(_text, _text, max_size=3),
    )
)
def test_what_docferry_writes_it_reads(letter: DeadLetter) -> None:
    body = compose(letter, 7, NOW, NOW)
    assert not set(body) & {"\ud800", "\ufffe", "\uffff", "\0", "\x0b"}
    (found,) = read_message(body, {})
    assert (found.letter, found.attempts, found.first_at, found.last_at) == (letter, 7, NOW, NOW)
    assert read_message(compose(letter, 1, NOW, NOW, payload=False), {})[0].letter.payload is None
