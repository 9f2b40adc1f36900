"""Where changes go that could not be applied, with their cause, until they are replayed or discarded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Protocol

from docferry.change.model import Op
from docferry.errors import RowRefused

__all__ = [
    "DISCARDED",
    "QUEUE_IDS",
    "REFUSED",
    "REPLAYED",
    "AuditEntry",
    "DeadLetter",
    "DeadLetterGroup",
    "DeadLetters",
    "StoredDeadLetter",
    "fate",
]

QUEUE_IDS: Final = 2**52
"""Ids of dead letters in a queue lie from here to 2**53, those of a table, which count from 1, below."""

REPLAYED: Final = "replayed"
DISCARDED: Final = "discarded"
REFUSED: Final = "refused"
"""The outcome of a replay after which the change is a dead letter as before."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A change that could not be applied. `key`: text of each key column by name, as PostgreSQL writes it; empty for a
    TRUNCATE. `old_key`: the key that the change took from the row, if it did. `payload`: an event of wire format 1 with
    exactly this change, where one is at hand: what is replayed when the row cannot be read. `table`: "" for a message
    that is no change at all."""

    table: str
    key: Mapping[str, str]
    version: int
    op: Op
    cause: str
    problem: str
    limit: str = ""
    remedy: str = ""
    payload: Mapping[str, Any] | None = None
    old_key: Mapping[str, str] | None = None

    @classmethod
    def of(cls, table: str, key: Mapping[str, str], version: int, op: Op, error: RowRefused) -> DeadLetter:
        """The dead letter that an error makes of a change."""
        return cls(table, key, version, op, error.cause, error.problem, error.limit, error.remedy)


@dataclass(frozen=True, slots=True)
class StoredDeadLetter:
    """A dead letter as it is kept, and how often it failed. In a table one key has one, the newest version that failed;
    in a queue it may have several."""

    id: int
    letter: DeadLetter
    attempts: int
    first_at: datetime
    last_at: datetime


@dataclass(frozen=True, slots=True)
class DeadLetterGroup:
    """Dead letters of one table with one cause. `example`: the problem of the newest."""

    table: str
    cause: str
    count: int
    first_at: datetime
    last_at: datetime
    example: str
    remedy: str


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """A dead letter that is gone, and through whom. `os_user`: user@host, `db_user`: the role that was logged in.
    `action`: REPLAYED or DISCARDED; `outcome`: of the replay, or why it was discarded. `letter_id`: what was its id."""

    id: int
    at: datetime
    os_user: str
    db_user: str
    action: str
    outcome: str
    letter_id: int
    table: str
    key: Mapping[str, str]
    version: int
    op: Op
    cause: str
    attempts: int
    first_at: datetime


def fate(outcomes: Mapping[int, str] | None, id_: int) -> tuple[str, str]:
    """(action, outcome) of the audit's entry of a dead letter that is removed; see DeadLetters.remove."""
    return (DISCARDED, DISCARDED) if outcomes is None else (REPLAYED, outcomes.get(id_, ""))


class DeadLetters(Protocol):
    """A store of dead letters. Safe to call from several threads. Raises SourceUnavailable when it is kept in the
    source and that does not answer; the caller tries again."""

    @property
    def unread(self) -> str:
        """Why some of them could not be read so far; empty when all could."""

    def add(self, letters: Sequence[DeadLetter]) -> None:
        """Keep them; durable when this returns. Adding one again is harmless."""

    def groups(self) -> list[DeadLetterGroup]:
        """Counted by table and cause, largest first."""

    def find(
        self,
        *,
        table: str | None = None,
        cause: str | None = None,
        ids: Sequence[int] | None = None,
        keys: Sequence[Mapping[str, str]] | None = None,
        after: int = 0,
        limit: int = 1000,
    ) -> list[StoredDeadLetter]:
        """Those that match every condition given, with an id above `after`, by id; about `limit`. Fewer do not mean
        that there are no more, an empty answer does. `keys`: those with exactly one of these, or with it as the key
        that the change took from the row, where that is kept."""

    def count(self) -> dict[str, int]:
        """How many there are for each table that has some."""

    def remove(self, letters: Sequence[StoredDeadLetter], outcomes: Mapping[int, str] | None = None) -> int:
        """Remove those that have not failed again, been added again, since they were read. Returns how many were
        removed. The audit in the source, where that can be reached, has an entry for each: replayed with its outcome
        by id, or discarded where no `outcomes` are given."""

    def close(self) -> None:
        """Release connections, and what is held for this object only."""
