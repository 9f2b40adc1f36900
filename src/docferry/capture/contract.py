"""What a capture must do, what reads the current row, and what docferry remembers in the source."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Final, Literal, Protocol

from docferry.change.model import Change, Relation, Row

__all__ = [
    "BREAKER_OPEN",
    "BackfillRecord",
    "BackfillState",
    "Capture",
    "CaptureSetup",
    "Columns",
    "CommitGate",
    "Delivery",
    "KeyReader",
    "KeyTexts",
    "Ledger",
    "MirrorRecord",
    "PageReader",
    "RowReader",
    "StreamState",
    "TransactionGate",
    "TransactionState",
    "VerificationRecord",
    "Verifications",
]

KeyTexts = tuple[str, ...]
"""The text of each key column, as PostgreSQL writes it, in the order of the mirror's key."""


Columns = tuple[tuple[str, str], ...]
"""(name, type name) of each column in order."""


@dataclass(slots=True)
class Delivery:
    """Changes in commit order. `position`: everything committed up to it is in this and earlier deliveries, None while
    inside a transaction. `committed_at`: of the newest transaction that ended in it."""

    changes: list[Change] = field(default_factory=list)
    position: int | None = None
    committed_at: datetime | None = None
    size: int = 0

    def extend(self, later: Delivery) -> None:
        """Append what was delivered next."""
        self.changes.extend(later.changes)
        self.size += later.size
        if later.position is not None:
            self.position = later.position
        self.committed_at = later.committed_at or self.committed_at


class Capture(Protocol):
    """A stream of changes, at least once. Used by one thread."""

    def read(self, timeout: float) -> Delivery:
        """What has arrived, waiting up to `timeout` seconds for the first of it; may be empty of changes.

        Raises SourceUnavailable when the stream broke; the next call opens it again behind the confirmed position.
        """

    def confirm(self, position: int) -> None:
        """Everything up to `position` is durable (R3): the source may forget it."""

    def keep_alive(self, timeout: float) -> None:
        """Tell the source that we live without reading more; returns after `timeout` seconds at the latest."""

    def look_afresh(self) -> None:
        """Ask for types again from the next change on: one has been altered, of which no change tells. From any
        thread."""

    def close(self) -> None:
        """Send the confirmed position once more and hang up."""


BREAKER_OPEN: Final = "circuit breaker open"
"""The health of an outbox whose changes are not sent for a while, because sending failed."""


@dataclass(frozen=True, slots=True)
class StreamState:
    """Where the capture stands, in bytes of the source's log, or in changes that wait in the outbox, as `unit` says.
    `retained`: bytes that the source keeps for us. `oldest_seconds`: how long the oldest change has waited, None where
    the source does not know. `safe`: bytes of log that the source may still write before it drops what the stream
    needs, None where nothing bounds them."""

    confirmed: int
    current: int
    active: bool
    retained: int
    health: str
    unit: Literal["bytes", "changes"] = "bytes"
    oldest_seconds: float | None = None
    safe: int | None = None

    @property
    def lag(self) -> int:
        """How far the confirmed position is behind, in `unit`."""
        return max(self.current - self.confirmed, 0)


class CaptureSetup(Protocol):
    """What a capture mode keeps in the source, looked at, created, removed; every step is idempotent. Raises
    SourceUnavailable, SourceRefused."""

    def check(self) -> None:
        """Raises SourceRefused, with the remedy, when the source cannot be captured this way."""

    def history(self) -> tuple[str, int]:
        """(system identifier, timeline): the history that positions belong to (R2)."""

    def gap(self) -> str | None:
        """Why changes were or would be missed, None when the stream goes on without one. Asked before `prepare`, which
        mends it, by who then makes up for it."""

    def uncaptured(self, tables: Sequence[str]) -> list[str]:
        """Those of the tables that exist and whose changes are not captured now."""

    def missing(self, tables: Sequence[str]) -> list[str]:
        """What `prepare` would do, in words."""

    def prepare(self, tables: Sequence[str]) -> list[str]:
        """Make it so that changes of exactly these tables are captured; returns what was done, in words."""

    def present(self) -> list[str]:
        """What `remove` would remove, in words."""

    def remove(self) -> list[str]:
        """Remove everything that `prepare` made. Raises AlreadyRunning while a worker uses it."""

    def mark(self) -> int:
        """Commit a mark; when the confirmed position is above the one returned, everything committed before is
        durable at the target."""

    def state(self) -> StreamState | None:
        """Where the capture stands, None before `prepare`."""

    def idle(self) -> bool:
        """Whether certainly nothing waits that was committed before the call, though no worker is there to confirm it.
        May cost the source a look into its log."""


class RowReader(Protocol):
    """Reads current rows by key (R5). Safe to call from several threads."""

    def read_rows(
        self, table: str, key: Sequence[str], keys: Sequence[KeyTexts], transactions: Collection[int], max_bytes: int
    ) -> tuple[list[tuple[Relation, Row]], bool]:
        """Those rows that exist, in no order, in one snapshot that sees every one of `transactions` (lower 32 bits). A
        text that is none of its column's type has no row.

        The second value is False when `max_bytes` was reached: there may be more rows, to be asked for again.
        Waits until they do and until what was read is flushed to disk, so that a crash cannot take it back. `table`
        schema-qualified; `key` the names of its key columns. Raises TableGone.
        """

    def relation(self, table: str) -> Relation:
        """The table as it is now, with those columns that changes carry. Raises TableGone."""

    def layout(self, table: str) -> str:
        """A fingerprint of what rows and their text are made of, beyond columns and types: a column that was dropped
        and added again, a type modifier, an enum's labels, the partitions and the file of each. Raises TableGone."""

    def current_name(self, oid: int) -> str | None:
        """What the table with this oid is called now, None once it was dropped."""


class KeyReader(RowReader, Protocol):
    """Also finds out whether rows are there."""

    def read_keys(self, table: str, key: Sequence[str], keys: Sequence[KeyTexts]) -> list[tuple[Relation, Row]]:
        """Of those rows that exist the key columns alone, otherwise like `read_rows`."""


class TransactionState(StrEnum):
    """What became of a transaction."""

    COMMITTED = "committed"
    ABORTED = "aborted"
    IN_PROGRESS = "in progress"
    UNKNOWN = "unknown"  # so long ago that the source has forgotten


class TransactionGate(Protocol):
    """Says what became of the transaction that sent an event: it is sent before the commit. Safe to call from several
    threads. Raises SourceUnavailable, SourceRefused."""

    def state(self, transaction: int) -> TransactionState:
        """`transaction`: the 64-bit id. COMMITTED only once the commit is flushed to disk, so that no crash takes it
        back; until then IN_PROGRESS."""

    def rolled_back(self, subtransactions: Collection[int]) -> set[int]:
        """Those of these that were rolled back. They are of a transaction that has ended."""


class PageReader(Protocol):
    """Reads a table in key order (R6). Each thread uses a reader of its own. Raises KeyUnreadable when a key that it is
    given is none of its column's type: the type is another one than when it was read."""

    def boundary(self, after: KeyTexts | None, rows: int) -> KeyTexts | None:
        """The key `rows` rows behind `after` (None: from the start), or None if fewer are left."""

    def read_page(
        self, after: KeyTexts | None, upto: KeyTexts | None, max_bytes: int
    ) -> tuple[list[tuple[Relation, Row]], KeyTexts | None]:
        """Rows with after < key <= upto in key order, all of them flushed to disk. The second value is None when that
        was all of them, else the key of the last one returned: `max_bytes` was reached and more may be behind it."""

    def estimate(self) -> int:
        """How many rows the planner believes the table has."""

    def sample(self, rows: int) -> list[KeyTexts]:
        """The keys of about so many rows from random places of the table, at most so many."""

    def cancel(self) -> None:
        """From another thread: have the server give up what it is asked, which then fails as an outage would."""

    def close(self) -> None:
        """Release the connection."""


class BackfillState(StrEnum):
    """Where a backfill stands."""

    REQUESTED = "requested"
    RUNNING = "running"
    DONE = "done"


@dataclass(frozen=True, slots=True)
class BackfillRecord:
    """A backfill as the ledger keeps it. `version`: L0 of R6, None until it is taken. `done_key`: everything up to and
    including it is durable at the target."""

    id: int
    table: str
    state: BackfillState
    reason: str
    version: int | None = None
    done_key: KeyTexts | None = None
    rows_done: int = 0
    rows_estimate: int | None = None
    requested_at: datetime | None = None
    started_at: datetime | None = None
    updated_at: datetime | None = None
    finished_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class MirrorRecord:
    """A mirror as `apply` registered it. `attributes`: every attribute name its items ever carried. `columns`: the
    table's when last seen, `layout` too. `floor`: version of the newest TRUNCATE. `fingerprint`: of the
    conversion settings; items written under another are outdated."""

    table: str
    collection: str
    fingerprint: str
    attributes: frozenset[str] = frozenset()
    columns: Columns = ()
    layout: str = ""
    floor: int = 0


class Ledger(Protocol):
    """What docferry remembers, in schema `docferry` of the source. Every change is committed when its call returns.
    Safe to call from several threads. Raises SourceUnavailable, or NotApplied before `docferry apply`."""

    def mirrors(self) -> dict[str, MirrorRecord]:
        """The registered mirrors by table."""

    def register_mirror(self, mirror: MirrorRecord, populate: str | None = None) -> None:
        """Insert or replace all but attributes (united with those kept) and floor (kept). `populate`: why a backfill is
        requested anew, in the same transaction: whoever sees that request sees the mirror as it is registered here."""

    def remove_mirror(self, table: str) -> None:
        """Forget a mirror, its backfills and its dead letters."""

    def remember_columns(
        self, table: str, columns: Columns, attributes: Collection[str], layout: str
    ) -> frozenset[str]:
        """Record a schema change; returns all attribute names ever carried."""

    def raise_floor(self, table: str, version: int) -> None:
        """Record a TRUNCATE; never lowers."""

    def floor(self, table: str) -> int:
        """The version of the newest TRUNCATE of the table, 0 if there was none."""

    def backfills(self, *, unfinished_only: bool = False) -> list[BackfillRecord]:
        """The newest backfill of each table, or all that are not done, oldest first."""

    def request_backfill(self, table: str, reason: str, *, anew: bool = False) -> BackfillRecord:
        """The table's unfinished backfill, or a new one. `anew`: an unfinished one starts over from the first row."""

    def start_backfill(self, backfill: BackfillRecord, version: int, rows_estimate: int) -> BackfillRecord:
        """Record L0; the backfill is running."""

    def advance_backfill(self, backfill: BackfillRecord, done_key: KeyTexts, rows_done: int) -> None:
        """Record the last durable page."""

    def finish_backfill(self, backfill: BackfillRecord, rows_done: int) -> None:
        """The backfill is done."""

    def take_start_version(self, who: str = "the backfill") -> int:
        """L0 of R6: a version above every change that happened and strictly below every later one. Returns only when
        every transaction in progress at that moment has ended and is visible; says on the log what `who` waits for."""

    def old_writes(self) -> AbstractContextManager[Callable[[], None]]:
        """Held while writing versions that may be older than a tombstone (backfill, replay): no sweeping meanwhile.
        What it yields raises SourceUnavailable if it is held no more; call it before relying on what was written."""

    def sweeping(self) -> AbstractContextManager[bool]:
        """Yields whether tombstones may be removed now; True excludes `old_writes` until it is left."""

    def backfilling(self, table: str) -> AbstractContextManager[bool]:
        """Yields whether this process is the one that runs the table's backfill."""

    def heartbeat(self, state: Mapping[str, Any]) -> None:
        """Record the worker's state; the write itself keeps an idle slot moving (R7)."""


class CommitGate(Protocol):
    """Says when a commit that others may have read from the log is to be seen by all (R5)."""

    def wait_for_commits(self, seconds: float) -> bool:
        """Wait, for so long at most, until every transaction in progress at the call has ended and is visible. What
        still runs then is an ordinary long transaction; False when one of them has committed, or may have, and waits
        for a synchronous standby. Raises Interrupted, SourceUnavailable."""


@dataclass(frozen=True, slots=True)
class VerificationRecord:
    """A verification of a table as the ledger keeps it. `run`: the same of all tables of one. `position`: of its start;
    what was committed before it is what it answers for. `phase`: rows, items or done. `done_key`: rows up to and
    including it have been compared. `counts`: by kind, so far. `output`: the file of its findings, `output_bytes` of
    which belong to what is counted. `clean`: everything was identical, None before the end. `grounds`: a hash of the
    settings and the layout that it began with."""

    id: int
    table: str
    run: str
    epoch: int
    position: int
    phase: str = "rows"
    done_key: KeyTexts | None = None
    counts: Mapping[str, Any] = field(default_factory=dict)
    output: str | None = None
    output_bytes: int = 0
    clean: bool | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    grounds: str = ""


class Verifications(Protocol):
    """What docferry remembers of verifications, in schema `docferry` of the source; committed when a call returns.
    Raises SourceUnavailable, or NotApplied before `docferry apply`."""

    def start(
        self, table: str, run: str, epoch: int, position: int, output: str | None, grounds: str
    ) -> VerificationRecord:
        """A new one, in place of an unfinished one."""

    def advance(
        self,
        record: VerificationRecord,
        phase: str,
        done_key: KeyTexts | None,
        counts: Mapping[str, Any],
        output_bytes: int,
    ) -> None:
        """Record how far it is."""

    def finish(self, record: VerificationRecord, counts: Mapping[str, Any], *, clean: bool) -> None:
        """It is complete. Of earlier ones the last clean one is kept."""

    def records(self) -> list[VerificationRecord]:
        """Those that are kept, the newest of each table first."""
