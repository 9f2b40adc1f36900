"""What tracing one row asks of the source, beyond what mirroring does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from docferry.capture.contract import KeyTexts
from docferry.change.model import Change, Op

__all__ = ["LastChange", "RowTracer", "Waiting", "WaitingChange"]


@dataclass(frozen=True, slots=True)
class LastChange:
    """Who wrote a row as it is. `transaction`: its 64-bit id. `committed_at`: None where the server does not know."""

    transaction: int
    committed_at: datetime | None


@dataclass(frozen=True, slots=True)
class WaitingChange:
    """A change of the row that has not been carried over. `since`: of its commit, or of its recording by a trigger."""

    op: Op
    version: int
    since: datetime | None


@dataclass(frozen=True, slots=True)
class Waiting:
    """The row's changes that wait, oldest first, the first of `count`. `unseen`: why not all that waits could be looked
    through; empty when all was."""

    changes: tuple[WaitingChange, ...] = ()
    count: int = 0
    unseen: str = ""


class RowTracer(Protocol):
    """Raises SourceUnavailable, SourceRefused, TableGone; ConfigError for a text that is none of its column's type."""

    @property
    def keeps_time(self) -> bool:
        """Whether the source knows when transactions committed."""

    def canonical(self, table: str, key: Sequence[str], texts: KeyTexts) -> KeyTexts:
        """A key as PostgreSQL writes it. `key`: the names of its columns."""

    def last_change(self, table: str, key: Sequence[str], texts: KeyTexts) -> LastChange | None:
        """Of the row with this key; None where there is none."""

    def is_behind(self, table: str, key: Sequence[str], texts: KeyTexts, done_key: KeyTexts) -> bool:
        """Whether the row with this key, if there is one, comes after `done_key` in the key's order."""

    def waiting(self, table: str, texts: Sequence[KeyTexts], touches: Callable[[Change], bool]) -> Waiting:
        """Its changes that wait in the outbox, or in a slot that nobody reads. `texts`: how its key may be written;
        `touches`: says whether a change is one of its."""

    def close(self) -> None:
        """Release connections."""
