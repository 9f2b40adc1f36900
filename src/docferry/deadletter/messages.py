"""What the messages of a dead-letter queue say, and how docferry writes its own. Pure.

Three kinds are understood:

    {"docferry": 1, "changes": [...], ...}            an event, as the DeadLetterConfig of a Lambda function leaves it
    {"requestContext": ..., "requestPayload": <event>, "responsePayload": ...}       a failure destination's record
    {"docferry_dead_letter": 1, "table": ..., "key": ..., "payload": <event>, ...}   docferry's own: one dead letter

A body that is none of these is a dead letter without a table. It can be looked at and discarded, nothing else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from docferry.change.literals import parse_composite
from docferry.change.model import Op
from docferry.change.wire import WIRE_FORMAT, is_event
from docferry.deadletter.contract import DeadLetter, StoredDeadLetter

__all__ = ["MOST_CHANGES", "UNREADABLE", "Found", "compose", "read_message", "stored"]

MOST_CHANGES: Final = 2**14
"""Changes that one event can have: the smallest takes about 90 bytes, and a message is at most 1 MiB."""
UNREADABLE: Final = "unreadable"

_OWN: Final = "docferry_dead_letter"
_SHOWN: Final = 200
_FUNCTION: Final = "Mend what the function's log says of this request, then `docferry deadletters replay`."
_DRAIN: Final = (
    "The outbox keeps what it holds. Mend what the function's log says of this request; then `docferry deadletters "
    "discard`."
)
_DISCARD: Final = "Look at it with `docferry deadletters show`, then `docferry deadletters discard`."
# What SQS does not take in a message and JSON can say otherwise.
_NOT_TAKEN: Final = re.compile("[\ud800-\udfff\ufffe\uffff]")


@dataclass(frozen=True, slots=True)
class Found:
    """A dead letter in a message. `first_at`, `last_at`: None where only the queue knows."""

    letter: DeadLetter
    attempts: int = 1
    first_at: datetime | None = None
    last_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class _Failure:
    """What Lambda says of an event that it gave up."""

    cause: str
    problem: str
    attempts: int = 1
    last_at: datetime | None = None


def read_message(body: str, attributes: Mapping[str, str]) -> list[Found]:
    """The dead letters of a message, at least one. `attributes`: the message's own (RequestID, ErrorCode,
    ErrorMessage)."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return [_unreadable(body, "it is not JSON")]
    try:
        return _read(document, body, attributes)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        return [_unreadable(body, f"{type(error).__name__}: {error}")]


def compose(letter: DeadLetter, attempts: int, first_at: datetime, last_at: datetime, *, payload: bool = True) -> str:
    """The body of docferry's own message. `payload`: with the change itself."""
    document = {
        _OWN: 1,
        "table": letter.table,
        "key": dict(letter.key),
        "version": str(letter.version),
        "op": letter.op.value,
        "cause": letter.cause,
        "problem": letter.problem,
        "limit": letter.limit,
        "remedy": letter.remedy,
        "attempts": attempts,
        "first_at": first_at.isoformat(),
        "last_at": last_at.isoformat(),
    }
    if letter.old_key is not None:
        document["old_key"] = dict(letter.old_key)
    if payload and letter.payload is not None:
        document["payload"] = letter.payload
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    return _NOT_TAKEN.sub(lambda match: f"\\u{ord(match.group()):04x}", text)


def _read(document: Any, body: str, attributes: Mapping[str, str]) -> list[Found]:
    if not isinstance(document, dict):
        return [_unreadable(body, "it is not an object")]
    if _OWN in document:
        return [_own(document)]
    event, failure = document, _of_attributes(attributes)
    if "requestContext" in document and "requestPayload" in document:
        event, failure = document["requestPayload"], _of_record(document)
    if is_event(event):
        return _of_event(event, failure)
    if isinstance(event, dict) and event.get("docferry") == "drain":
        problem = f"a scheduled draining of the outbox failed: {failure.problem}"
        letter = DeadLetter("", {}, 0, Op.UPDATE, "drain-failed", problem, remedy=_DRAIN)
        return [Found(letter, failure.attempts, last_at=failure.last_at)]
    return [_unreadable(body, "it is no event of docferry")]


def _own(document: Mapping[str, Any]) -> Found:
    if not isinstance(document["table"], str) or not isinstance(document["key"], dict):
        raise ValueError("a table or a key that is none")  # noqa: TRY004 - the message is at fault, not the caller
    letter = DeadLetter(
        document["table"],
        dict(document["key"]),
        int(document["version"]),
        Op(document["op"]),
        document["cause"],
        document["problem"],
        document.get("limit", ""),
        document.get("remedy", ""),
        document["payload"] if is_event(document.get("payload")) else None,
        document.get("old_key"),
    )
    return Found(letter, int(document.get("attempts") or 1), _time(document, "first_at"), _time(document, "last_at"))


def _of_event(event: Mapping[str, Any], failure: _Failure) -> list[Found]:
    if event["docferry"] != WIRE_FORMAT:
        raise ValueError(f"an event of format {event['docferry']!r}; this version reads format {WIRE_FORMAT}")
    changes = event["changes"]
    if not 0 < len(changes) <= MOST_CHANGES:
        raise ValueError(f"an event of {len(changes)} changes")
    return [Found(_letter(event, change, failure), failure.attempts, last_at=failure.last_at) for change in changes]


def _letter(event: Mapping[str, Any], change: Mapping[str, Any], failure: _Failure) -> DeadLetter:
    table = change["table"]
    relation = event["relations"][table]
    op = Op(change["TG_OP"].lower())
    new = _key(relation, change.get("NEW"), change.get("key"))
    old = _key(relation, change.get("OLD"), change.get("old_key"))
    if op is Op.DELETE:
        new, old = old or new, None
    elif op is not Op.TRUNCATE and new is None:
        raise ValueError(f"{op} of {table} without a row")
    payload = {
        **{name: value for name, value in event.items() if name not in ("relations", "changes")},
        "relations": {table: relation},
        "changes": [change],
    }
    return DeadLetter(
        table,
        new or {},
        int(change["version"]),
        op,
        failure.cause,
        failure.problem,
        remedy=_FUNCTION,
        payload=payload,
        old_key=old if old != new else None,
    )


def _key(relation: Mapping[str, Any], row: str | None, texts: Sequence[str] | None) -> dict[str, str] | None:
    """Key texts by name, from a row literal or given alone."""
    names = relation["key"]
    if row is not None:
        values = dict(zip(relation["columns"], parse_composite(row.encode()), strict=True))
        texts = [(values[name] or b"").decode() for name in names]
    return None if texts is None else dict(zip(names, texts, strict=True))


def _of_attributes(attributes: Mapping[str, str]) -> _Failure:
    """What Lambda puts beside the event in the queue of a DeadLetterConfig."""
    message = attributes.get("ErrorMessage") or "the function failed"
    facts = {"request": attributes.get("RequestID"), "status": attributes.get("ErrorCode")}
    return _Failure("function-failed", message + _facts(facts))


def _of_record(record: Mapping[str, Any]) -> _Failure:
    context, response = record["requestContext"], record.get("responsePayload")
    said = response if isinstance(response, dict) else {}
    condition = str(context.get("condition") or "")
    message = str(said.get("errorMessage") or "the function did not take the event")
    facts = {"request": context.get("requestId"), "condition": condition}
    return _Failure(
        _dashed(str(said.get("errorType") or "") or condition) or "function-failed",
        message + _facts(facts),
        max(int(context.get("approximateInvokeCount") or 1), 1),
        _time(record, "timestamp"),
    )


def _unreadable(body: str, reason: str) -> Found:
    shown = body if len(body) <= _SHOWN else body[:_SHOWN] + "..."
    problem = f"a message that docferry cannot read ({reason}): {shown}"
    return Found(DeadLetter("", {}, 0, Op.UPDATE, UNREADABLE, problem, remedy=_DISCARD))


def stored(found: Found, id_: int, sent_at: datetime) -> StoredDeadLetter:
    """With what the queue knows."""
    first_at = found.first_at or sent_at
    return StoredDeadLetter(id_, found.letter, found.attempts, first_at, max(found.last_at or sent_at, first_at))


def _facts(facts: Mapping[str, Any]) -> str:
    known = ", ".join(f"{name} {value}" for name, value in facts.items() if value)
    return f" ({known})" if known else ""


def _dashed(name: str) -> str:
    """RetriesExhausted -> retries-exhausted, Runtime.ImportModuleError -> runtime-import-module-error."""
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", name).lower()).strip("-")


def _time(document: Mapping[str, Any], name: str) -> datetime | None:
    text = document.get(name)
    if not text:
        return None
    time = datetime.fromisoformat(text)
    return time if time.tzinfo is not None else time.replace(tzinfo=UTC)
