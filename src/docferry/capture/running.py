"""Which transactions are in progress: what they wrote may be in the log already, and nobody sees it yet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from docferry.source.statements import load

__all__ = ["RUNNING", "holder", "running"]

RUNNING: Final = load("running.sql")
"""The statements that `running` needs."""


def running(execute: Callable[[str], Sequence[tuple[Any, ...]]]) -> list[str]:
    """The ids of all transactions that had written something before the call and have not ended visibly.

    `execute`: runs one of the statements RUNNING in a transaction of its own. Some of the ids may be of transactions
    that began later, or of other databases.

    A snapshot alone would not do: it lists only what is below `xmax`, one past the highest id that has *ended*, and
    takes everything from there on for not begun (https://www.postgresql.org/docs/current/functions-info.html, "Snapshot
    Components"). So a transaction with a higher id than all others that wrote has to end first.
    """
    execute("end_a_transaction")
    ((snapshot,),) = execute("snapshot")
    return [one for one in str(snapshot).split(":")[2].split(",") if one]


def holder(xid: str, pid: str, gid: str, application: str, _database: str, since: str | None) -> tuple[str, str]:
    """Who holds a transaction, and what to do about it; of a row of the statement `in_progress`, whose texts are empty
    where the server does not tell."""
    if gid:
        quoted = "'" + gid.replace("'", "''") + "'"
        return (
            f"the prepared transaction {quoted}, open since {since}",
            f"Ask its transaction manager; then COMMIT PREPARED {quoted} or ROLLBACK PREPARED {quoted}.",
        )
    if not pid:
        return (
            f"transaction {xid} of a session that docferry's role may not see",
            "GRANT pg_monitor to docferry's role, and it is named here; end it with COMMIT or ROLLBACK.",
        )
    return (
        f"transaction {xid} of pid {pid} ({application or 'no application name'}), open since {since}",
        f"End it with COMMIT or ROLLBACK in its session, or by pg_terminate_backend({pid}) from another one.",
    )
