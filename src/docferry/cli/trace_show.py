"""A trace as one screen, and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from docferry.capture.contract import BackfillState
from docferry.change.model import lsn
from docferry.cli.beside import beside_lines, difference_documents
from docferry.cli.deadletters_show import document as letter_document
from docferry.cli.deadletters_show import shown_key
from docferry.cli.plain import shown_value
from docferry.cli.versions import version_text
from docferry.document.model import Put, Value
from docferry.operate.compare import Kind
from docferry.operate.difference import whole_document
from docferry.operate.traced import Trace
from docferry.printable import one_line

__all__ = ["trace_document", "trace_lines"]

_SHOWN: Final = 5


def trace_lines(trace: Trace, names: Sequence[str], lifetime: float, *, everything: bool) -> list[str]:
    """One screen. `names`: of the key columns. `lifetime`: seconds of a tombstone."""
    lines = [f"{trace.table} {shown_key(dict(zip(names, trace.key, strict=True)))}"]
    facts = (
        (
            "row",
            [_row(trace), *([] if trace.compared.error is None else [f"cannot be stored: {trace.compared.error}"])],
        ),
        ("capture", [_capture(trace)]),
        ("waiting", [*_waiting(trace)]),
        ("letters", [*_letters(trace)]),
        ("backfill", [_backfill(trace)]),
        ("item", [_item(trace, lifetime)]),
    )
    for name, texts in facts:
        lines += [f"  {name + ':' if not index else '':<10}{text}" for index, text in enumerate(texts)]
    lines = [one_line(line) for line in lines]
    lines += [f"  {line}" for line in beside_lines(_made(trace), _held(trace), everything=everything)]
    return [*lines, "", one_line(f"verdict: {trace.verdict.sentence}")]


def trace_document(trace: Trace, names: Sequence[str], lifetime: float) -> dict[str, Any]:
    """The same for --json, with both documents and every difference. Versions and positions are text."""
    change, stream, item, waiting = trace.last_change, trace.stream, trace.item, trace.waiting
    error = trace.compared.error
    return {
        "table": trace.table,
        "key": dict(zip(names, trace.key, strict=True)),
        "row": {
            "exists": trace.exists,
            "transaction": None if change is None else str(change.transaction),
            "committed_at": None if change is None else change.committed_at,
            "document": _made(trace),
            "refused": None if error is None else {"problem": str(error), "cause": error.cause, "remedy": error.remedy},
        },
        "capture": None
        if stream is None
        else {
            "worker": stream.active,
            "confirmed": str(stream.confirmed),
            "lag": stream.lag,
            "unit": stream.unit,
            "lag_seconds": trace.lag,
            "durable": trace.settled,
            "waited": round(trace.waited, 3),
        },
        "waiting": None
        if waiting is None
        else {
            "count": waiting.count,
            "unseen": waiting.unseen,
            "changes": [
                {"op": one.op.value, "version": str(one.version), "since": one.since} for one in waiting.changes
            ],
        },
        "dead_letters": [{**letter_document(stored), "superseded": superseded} for stored, superseded in trace.letters],
        "unread": trace.unread,
        "backfill": None
        if trace.backfill is None
        else {"state": trace.backfill.state.value, "reason": trace.backfill.reason, "has_passed": trace.has_passed},
        "item": None
        if item is None
        else {
            "collection": trace.collection,
            "key": trace.item_key,
            "version": str(item.version),
            "tombstone": item.document is None,
            "expires_at": _moment(item.expires),
            "deleted_at": _moment(None if item.expires is None else item.expires - lifetime),
            "not_before": _not_before(trace),
            "written_by_docferry": item.document is None or trace.is_own,
            "document": item.document,
        },
        "difference": trace.compared.kind.value,
        "differences": difference_documents(_made(trace), _held(trace)),
        "verdict": {
            "kind": trace.verdict.kind.value,
            "sentence": trace.verdict.sentence,
            "right": trace.verdict.is_right,
        },
    }


def _row(trace: Trace) -> str:
    change = trace.last_change
    if change is None:
        return "none" if not trace.exists else "there"
    if change.committed_at is not None:
        when = f"committed {_time(change.committed_at)}, {_ago(change.committed_at)} ago"
    elif trace.keeps_time:
        when = "commit time unknown: too long ago"
    else:
        when = "commit time unknown: set track_commit_timestamp = on and restart the server"
    there = "there" if trace.exists else "there, as a row with another item"
    return f"{there}, last written by transaction {change.transaction}, {when}"


def _capture(trace: Trace) -> str:
    stream = trace.stream
    if stream is None:
        return "none: run `docferry apply`"
    worker = "a worker is streaming" if stream.active else "no worker is streaming"
    if stream.unit == "changes":
        waits = f"{stream.lag:,} change{'s' if stream.lag != 1 else ''} in the outbox"
        return f"{worker}; {waits}" + (f", the oldest for {stream.oldest_seconds:.1f} s" if stream.lag else "")
    text = f"{worker}; everything up to {lsn(stream.confirmed)} is durable, {stream.lag:,} bytes of log are not read"
    return text if trace.lag is None else f"{text}, {trace.lag:.1f} s behind"


def _waiting(trace: Trace) -> Iterator[str]:
    waiting, stream = trace.waiting, trace.stream
    if stream is None:
        yield "unknown"
    elif waiting is None:
        durable = "everything committed before this look is durable" if trace.settled else "not asked for"
        if trace.settled is None and trace.waited:
            durable = f"the worker has not passed the row's position within {trace.waited:.1f} s"
        yield f"the worker reads the slot; {durable}"
    else:
        place = "the outbox" if stream.unit == "changes" else "the slot"
        if not waiting.count and not waiting.unseen:
            yield f"nothing of it in {place}"
        for one in waiting.changes[:_SHOWN]:
            since = "" if one.since is None else f", since {_time(one.since)}, {_ago(one.since)}"
            version = version_text(one.version, by_triggers=stream.unit == "changes")
            yield f"{one.op.name} in {place}{since}, {version}"
        if waiting.count > _SHOWN:
            yield f"… {waiting.count - _SHOWN:,} more"
        if waiting.unseen:
            yield f"{place} could not be looked through: {waiting.unseen}"


def _letters(trace: Trace) -> Iterator[str]:
    for stored, superseded in trace.letters:
        letter = stored.letter
        mark = ", superseded" if superseded else ""
        yield (
            f"{stored.id}: {letter.op.name}, {letter.cause} since {_time(stored.first_at)}, failed {stored.attempts:,}x"
            f"{mark}: {letter.problem}"
        )
        if letter.remedy and not superseded:
            yield f"    remedy: {letter.remedy}"
    if not trace.letters:
        yield "none"
    if trace.unread:
        yield f"not all could be read: {trace.unread}"


def _backfill(trace: Trace) -> str:
    record = trace.backfill
    if record is None:
        return "none"
    if record.state is BackfillState.DONE:
        return "done" if record.finished_at is None else f"done {_time(record.finished_at)}"
    passed = "has come to this row" if trace.has_passed else "has not come to this row yet"
    return f"{record.state} ({record.reason}), {passed}"


def _item(trace: Trace, lifetime: float) -> str:
    item = trace.item
    place = trace.collection
    if trace.item_key is not None:
        place += " " + ", ".join(shown_value(value) for value in trace.item_key)
    if item is None:
        return f"{place}: none" if trace.item_key is not None else f"{place}: none, the row's key cannot be one"
    by_triggers = trace.stream is not None and trace.stream.unit == "changes"
    version = version_text(item.version, by_triggers=by_triggers)
    if item.document is None:
        if item.expires is None:
            return f"{place}: a tombstone, {version}"
        deleted = datetime.fromtimestamp(item.expires - lifetime, UTC)
        until = datetime.fromtimestamp(item.expires, UTC)
        return f"{place}: a tombstone, {version}, written about {_time(deleted)}, until {_time(until)} at the latest"
    if trace.is_ahead:
        return f"{place}: {version}, which no change has had yet"
    if not trace.is_own:
        return f"{place}: {version}; written last by somebody else, its content is not what docferry wrote"
    filled = trace.backfill is not None and trace.backfill.version == item.version
    since = _not_before(trace)
    age = "age unknown" if since is None else f"not before {_time(since)}"
    return f"{place}: {version}; written by docferry{', in a backfill' if filled else ''}, {age}"


def _not_before(trace: Trace) -> datetime | None:
    """When the item was written at the earliest: items carry no time, but rows may."""
    if trace.last_change is None or trace.compared.kind is not Kind.IDENTICAL:
        return None
    return trace.last_change.committed_at


def _made(trace: Trace) -> Mapping[str, Value] | None:
    """The document that the row makes."""
    return whole_document(trace.expected) if isinstance(trace.expected, Put) else None


def _held(trace: Trace) -> Mapping[str, Value] | None:
    """The document that the item holds."""
    return None if trace.item is None else trace.item.document


def _time(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S %Z}"


def _ago(moment: datetime) -> str:
    return str(max(datetime.now(UTC) - moment, timedelta(0))).partition(".")[0]


def _moment(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
