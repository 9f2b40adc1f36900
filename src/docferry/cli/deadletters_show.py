"""What `docferry deadletters` says: dead letters, groups and outcomes as text and as documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from docferry.cli.versions import version_text
from docferry.deadletter.contract import DeadLetterGroup, StoredDeadLetter
from docferry.operate.letters import Chosen, Outcomes
from docferry.operate.replayed import ReplayResult
from docferry.printable import one_line

__all__ = [
    "MEANING",
    "WOULD",
    "chosen_lines",
    "counts",
    "details",
    "document",
    "group_lines",
    "line",
    "outcome_lines",
    "plural",
    "shown_key",
]

MEANING: Final = {
    "applied": "applied: the row is at the target now",
    "deleted": "deleted: the row is gone, and so is its item",
    "truncated": "truncated: what is older than the TRUNCATE is gone from the target",
    "backfill": "settled by a backfill, which was requested: nobody knows whether a TRUNCATE was committed",
    "superseded": "superseded: the target has a newer version already",
    "rolled-back": "dropped: the transaction was rolled back",
    "refused": "still refused: the row has to be mended first",
    "unmirrored": "left alone: the table is not a mirror any more, or one by another key",
    "unreachable": "left alone: only the source database can settle it, and it cannot be reached",
    "pending": "left alone: the transaction has not ended yet",
    "unreadable": "left alone: no change that can be replayed",
}
WOULD: Final = {
    "applied": "would be applied: the row can be stored now",
    "deleted": "would be deleted: the row is gone",
    "truncated": "would be truncated: what is older than the TRUNCATE goes from the target",
    "backfill": "would be settled by a backfill: nobody knows whether a TRUNCATE was committed",
    "superseded": "would be dropped: the target has a newer version already",
    "rolled-back": "would be dropped: the transaction was rolled back",
    "refused": "would be refused again: the row has to be mended first",
    "unmirrored": "would be left alone: the table is not a mirror any more, or one by another key",
    "unreachable": "would be left alone: only the source database can settle it, and it cannot be reached",
    "pending": "would be left alone: the transaction has not ended yet",
    "unreadable": "would be left alone: no change that can be replayed",
}


def shown_key(key: Mapping[str, str] | None) -> str:
    """`id=7`, `a=1, b=2`."""
    return ", ".join(f"{name}={text}" for name, text in (key or {}).items())


def _key(stored: StoredDeadLetter) -> str:
    return shown_key(stored.letter.key)


def _table(table: str) -> str:
    return table or "(no table)"


def _row(stored: StoredDeadLetter) -> str:
    return one_line(f"{_table(stored.letter.table)} {_key(stored)}".strip())


def line(stored: StoredDeadLetter, *, superseded: bool) -> str:
    mark = " (superseded)" if superseded else ""
    return one_line(f"{stored.id}  {_row(stored)}: {stored.letter.cause}: {stored.letter.problem}{mark}")


def group_lines(group: DeadLetterGroup, superseded: int | None) -> list[str]:
    lines = [
        f"{_table(group.table)}: {group.cause}: {group.count:,}, {_span(group.first_at, group.last_at)}",
        f"  example: {group.example}",
    ]
    if group.remedy:
        lines.append(f"  remedy: {group.remedy}")
    if superseded:
        which = "all" if superseded == group.count else f"{superseded:,} of them"
        lines.append(f"  superseded: {which}: the target has something newer, `docferry deadletters replay` drops them")
    return [one_line(line) for line in lines]


def document(stored: StoredDeadLetter) -> dict[str, Any]:
    letter = stored.letter
    return {
        "id": stored.id,
        "table": letter.table,
        "key": letter.key,
        "old_key": letter.old_key,
        # Beyond 2**53, where many readers of JSON lose digits.
        "version": str(letter.version),
        "op": letter.op.value,
        "cause": letter.cause,
        "problem": letter.problem,
        "limit": letter.limit,
        "remedy": letter.remedy,
        "attempts": stored.attempts,
        "first_at": stored.first_at,
        "last_at": stored.last_at,
    }


def details(stored: StoredDeadLetter) -> list[str]:
    letter = stored.letter
    facts = {
        "row": _row(stored),
        "old key": shown_key(letter.old_key),
        "cause": letter.cause,
        "problem": letter.problem,
        "limit": letter.limit,
        "remedy": letter.remedy,
        "change": f"{letter.op.name}, version {letter.version} ({version_text(letter.version)})"
        if letter.table
        else "",
        "event": "at hand: it can be replayed without the source database" if letter.payload else "",
        "failed": f"{stored.attempts} time{plural(stored.attempts)}, {_span(stored.first_at, stored.last_at)}",
    }
    return [f"dead letter {stored.id}", *(f"  {name + ':':<9}{one_line(fact)}" for name, fact in facts.items() if fact)]


def _span(first: Any, last: Any) -> str:
    if first == last:
        return f"at {first:%Y-%m-%d %H:%M:%S %Z}"
    return f"first {first:%Y-%m-%d %H:%M:%S %Z}, last {last:%Y-%m-%d %H:%M:%S %Z}"


def chosen_lines(groups: Sequence[Chosen]) -> list[str]:
    lines = []
    for group in groups:
        keys = "; ".join(key for stored in group.examples if (key := _key(stored)))
        more = "; ..." if group.count > len(group.examples) else ""
        keys = f" ({keys}{more})" if keys else ""
        lines.append(one_line(f"{_table(group.table)}: {group.cause}: {group.count:,}{keys}"))
    return lines


def outcome_lines(outcomes: Outcomes, words: Mapping[str, str]) -> list[str]:
    lines = [f"{outcomes.counts[name]:,} {text}" for name, text in words.items() if outcomes.counts.get(name)]
    for result in outcomes.failed:
        lines.append(f"  {_row(result.stored)}: {result.problem}")
        if result.remedy:
            lines.append(f"    remedy: {result.remedy}")
    return [one_line(line) for line in lines]


def counts(outcomes: Outcomes) -> dict[str, Any]:
    return {
        "total": outcomes.total,
        **{name: outcomes.counts.get(name, 0) for name in MEANING},
        "examples": [_failed(result) for result in outcomes.failed],
    }


def _failed(result: ReplayResult) -> dict[str, Any]:
    return {
        "id": result.stored.id,
        "table": result.stored.letter.table,
        "key": result.stored.letter.key,
        "problem": result.problem,
        "remedy": result.remedy,
    }


def plural(number: int) -> str:
    return "" if number == 1 else "s"
