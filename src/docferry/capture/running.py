"""Which transactions are in progress: what they wrote may be in the log already, and nobody sees it yet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from docferry.source.statements import load

__all__ = ["RUNNING", "running"]

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
