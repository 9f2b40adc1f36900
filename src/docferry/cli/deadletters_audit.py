"""`docferry deadletters audit`: what became of dead letters that are gone, and through whom."""

from __future__ import annotations

from typing import Any

import click

from docferry.cli.deadletters_choose import qualified
from docferry.cli.deadletters_show import shown_key
from docferry.cli.frame import Session, define
from docferry.deadletter.contract import AuditEntry
from docferry.letters_app import LettersApp
from docferry.printable import one_line

__all__ = ["audit"]


@define("audit")
@click.option("--table", help="Only those of this source table.")
@click.option("--limit", type=click.IntRange(min=1), default=100, metavar="N", help="Show N of them at most.")
@click.option("--before", type=click.IntRange(min=1), default=None, metavar="ID", help="Go on with those before this.")
def audit(session: Session, table: str | None, limit: int, before: int | None) -> None:
    """List what was replayed or discarded, when, and by whom; the newest first.

    Each line says when, which user of which machine, as which role of the database, what was done with which outcome,
    the row, why it had been a dead letter, since when and how often it failed. The entries are written in the same
    transaction that removes the dead letter; that of one in a queue before it is removed there, so that it may stand
    twice or too early, and only where the source can be reached. They stand for [dead_letters] audit_retention, 90 days
    unless set, and hold keys and causes, no documents.

    \b
    Examples:
      docferry deadletters audit --table orders
      docferry deadletters audit --json --limit 1000
    """
    with LettersApp(session.load_config()) as app:
        app.check_ledger()
        entries = app.audit(table=qualified(table), before=before, limit=limit + 1)
    more = len(entries) > limit
    entries = entries[:limit]
    lines = [_line(entry) for entry in entries] or ["Nothing was replayed or discarded."]
    if more:
        lines.append(f"There are more: go on with --before {entries[-1].id}.")
    session.answer({"audit": [_document(entry) for entry in entries], "more": more}, "\n".join(lines))


def _line(entry: AuditEntry) -> str:
    done = entry.action if entry.outcome == entry.action else f"{entry.action}, {entry.outcome}"
    row = f"{entry.table or '(no table)'} {shown_key(entry.key)}".strip()
    return one_line(
        f"{entry.id}  {entry.at:%Y-%m-%d %H:%M:%S %Z}  {entry.os_user} as {entry.db_user}: {done}: {row}: "
        f"{entry.cause}, since {entry.first_at:%Y-%m-%d %H:%M:%S %Z}, failed {entry.attempts:,}x "
        f"(dead letter {entry.letter_id})"
    )


def _document(entry: AuditEntry) -> dict[str, Any]:
    return {
        "id": entry.id,
        "at": entry.at,
        "os_user": entry.os_user,
        "db_user": entry.db_user,
        "action": entry.action,
        "outcome": entry.outcome,
        "dead_letter": entry.letter_id,
        "table": entry.table,
        "key": entry.key,
        "version": str(entry.version),
        "op": entry.op.value,
        "cause": entry.cause,
        "attempts": entry.attempts,
        "first_at": entry.first_at,
    }
