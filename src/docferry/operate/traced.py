"""What tracing one row found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from docferry.capture.contract import BackfillRecord, KeyTexts, StreamState
from docferry.capture.tracing import LastChange, Waiting
from docferry.deadletter.contract import StoredDeadLetter
from docferry.document.model import Key
from docferry.operate.compare import Compared, Expected
from docferry.operate.verdict import Verdict
from docferry.target.contract import Item

__all__ = ["Trace"]


@dataclass(frozen=True, slots=True)
class Trace:
    """What was found. `key`: as PostgreSQL writes it. `item_key`: None where the row's key cannot be one.

    `exists`: there is such a row; `expected`: what it makes. `last_change`: who wrote it. `is_own`: the item is what
    docferry wrote. `letters`: dead letters of the key with whether they are superseded, oldest version first.
    `unread`: why some could not be read. `backfill`: the table's newest; `has_passed`: whether it has come to the row.
    `stream`: where the capture stands. `waiting`: None where nobody can look into what waits. `settled`: whether
    everything committed before the row was read is durable, None where nobody can tell. `waited`: seconds.
    """

    table: str
    collection: str
    key: KeyTexts
    item_key: Key | None
    exists: bool
    expected: Expected
    last_change: LastChange | None
    keeps_time: bool
    item: Item | None
    compared: Compared
    is_own: bool
    is_ahead: bool
    letters: Sequence[tuple[StoredDeadLetter, bool]]
    unread: str
    backfill: BackfillRecord | None
    has_passed: bool
    stream: StreamState | None
    lag: float | None
    waiting: Waiting | None
    settled: bool | None
    waited: float
    verdict: Verdict
