"""What becomes of a dead letter that is replayed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from docferry.deadletter.contract import StoredDeadLetter
from docferry.document.model import Key, Put, Write
from docferry.errors import RowRefused
from docferry.target.contract import Item

__all__ = ["SETTLED", "Look", "ReplayResult"]

SETTLED: Final = frozenset(("applied", "deleted", "superseded", "truncated", "backfill", "rolled-back"))
"""The outcomes with which a dead letter is done with."""

_PROBLEMS: Final = {
    "unmirrored": (
        "its table is not a mirror any more, or one by another key",
        "Add the table to the configuration again, or `docferry deadletters discard`.",
    ),
    "unreachable": (
        "it needs the source: its event lacks the whole row, is too old to be applied unread, or may be rolled back",
        "Replay it again where the source database can be reached.",
    ),
    "pending": ("its transaction has neither committed nor rolled back yet", "Replay it again when it has ended."),
    "unreadable": ("it is no change that can be replayed", "Look at it with `docferry deadletters show`; discard it."),
}


@dataclass(frozen=True, slots=True)
class Look:
    """What a replay would write under one key, and what stands there now. `key`: None where the row has none that an
    item can have. `write`: None where there can be none. `stands`: what is there stays, being as new or newer."""

    key: Key | None
    write: Write | None
    item: Item | None
    stands: bool = False
    error: RowRefused | None = None

    @property
    def put(self) -> Put | None:
        """The document that would be written, if it is one."""
        return self.write if isinstance(self.write, Put) else None


@dataclass(frozen=True, slots=True)
class ReplayResult:
    """What became, or in a dry run would become, of one dead letter.

    `outcome`: `applied`, `deleted` (the row is gone), `superseded` (the target has something newer), `truncated` (a
    TRUNCATE was applied), `backfill` (nobody knows whether a TRUNCATE was committed: the table is read again),
    `rolled-back` (its transaction was; nothing is to be done), `refused` (it still cannot be
    stored; `error` says why), `unmirrored` (its table is not configured any more), `unreachable` (only the source could
    settle it, and cannot be read), `pending` (its transaction has not ended), `unreadable` (it is no change).
    `looks`: of a preview, one for each key that it is about; empty where it comes to no write.
    """

    stored: StoredDeadLetter
    outcome: str
    error: RowRefused | None = None
    looks: tuple[Look, ...] = ()

    @property
    def problem(self) -> str:
        """Why it is not settled."""
        return str(self.error) if self.error is not None else _PROBLEMS.get(self.outcome, ("", ""))[0]

    @property
    def remedy(self) -> str:
        """What to do about it."""
        return self.error.remedy if self.error is not None else _PROBLEMS.get(self.outcome, ("", ""))[1]
