"""Capture from the outbox: changes that triggers wrote in the application's own transactions.

Several drainers may work at once: a claim locks its rows (SKIP LOCKED) until they are deleted, which happens when they
are durable at the target (R3). A drainer that dies gives its rows back with its connection. Nothing depends on the
order of commits: what is not there yet is found by a later look.
"""

from __future__ import annotations

import logging
import select
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, TypeAlias

import psycopg

from docferry.capture.catalog import Types
from docferry.capture.contract import Delivery
from docferry.change.model import make_version
from docferry.change.renames import current_names
from docferry.change.wire import EventDecoder
from docferry.errors import SourceUnavailable
from docferry.failpoints import boundary, failpoint
from docferry.source.session import connect, translated
from docferry.source.statements import load

__all__ = ["OutboxCapture", "described_columns"]

_log = logging.getLogger(__name__)
_SQL: Final = load("outbox.sql")
_SNAPSHOT: Final = load("snapshot.sql")

_CLAIMS: Final = 4
_FETCH: Final = 50
# A claim is a transaction; while it is open, the server cannot clear dead rows, of the application's tables either.
_LONGEST_CLAIM: Final = 10.0
# After a change, others follow soon and no transaction has to wake us; later, writers do. What comes within a
# nap is one claim: for the server, a claim costs as much as thirty rows.
_AWAKE: Final = 1.0
_NAP: Final = 0.01
# Where writers cannot wake us.
_LOOK: Final = 0.1
_SLEEP: Final = 5.0

Connection: TypeAlias = psycopg.Connection[tuple[Any, ...]]


@dataclass(slots=True)
class _Claim:
    """Rows that are ours until `connection`'s transaction ends."""

    connection: Connection
    positions: list[int] = field(default_factory=list)
    ticket: int = 0
    since: float = 0.0
    held: bool = True


class OutboxCapture:
    """contract.Capture over docferry.outbox. A delivery's position is the number of its claim.

    `most_changes`, `most_bytes`: of a delivery. `wakes`: writers notify a sleeping drainer, where the server cannot
    prepare transactions: one that has notified cannot be prepared. `former`: by table, the names of its columns when
    its key was made, as far as they are known.
    """

    def __init__(
        self,
        dsn: str,
        *,
        most_changes: int = 500,
        most_bytes: int = 1 << 20,
        wakes: bool = True,
        former: Callable[[str], Collection[str]] = lambda _: (),
    ) -> None:
        self._former = former
        self._dsn = dsn
        self._most_changes = most_changes
        self._most_bytes = most_bytes
        self._may_wake = self._wakes = wakes
        self._watch: Connection | None = None
        self._decoder: EventDecoder | None = None
        self._idle: list[Connection] = []
        self._claims: deque[_Claim] = deque()
        self._renamed: dict[tuple[int, tuple[str | None, ...]], tuple[str, ...]] = {}
        self._tickets = 0
        self._last_seen = 0.0
        self._claim_from = 0.0
        self._asleep = False
        self._outdated = False

    # -- the contract -------------------------------------------------------------------------------------------------

    def read(self, timeout: float) -> Delivery:
        """See contract.Capture."""
        deadline = time.monotonic() + timeout
        try:
            with translated():
                watch = self._open()
                while True:
                    self._let_go_of_old_claims()
                    began = time.monotonic()
                    delivery = self._claim() if began >= self._claim_from else None
                    now = time.monotonic()
                    if delivery is not None:
                        self._last_seen = now
                        self._claim_from = began if self._is_full(delivery) else began + _NAP
                        self._set_asleep(watch, asleep=False)
                        return delivery
                    if now >= deadline:
                        return Delivery()
                    look = self._claim_from if self._claim_from > now else now + self._pause(now)
                    self._wait(watch, min(deadline, look) - now)
        except SourceUnavailable:
            self._hang_up()
            raise

    def confirm(self, position: int) -> None:
        """See contract.Capture. Deletes the rows of every claim up to `position`."""
        try:
            with translated():
                while self._claims and self._claims[0].ticket <= position:
                    claim = self._claims[0]
                    release = _SQL["release" if claim.held else "release_unlocked"]
                    with failpoint("outbox.delete"):
                        claim.connection.execute(release.encode(), (claim.positions,))
                    if claim.held:
                        with failpoint("outbox.commit"):
                            claim.connection.execute("COMMIT")
                    self._claims.popleft()
                    self._idle.append(claim.connection)
        except SourceUnavailable as error:
            # What was not deleted comes again and is stale then.
            _log.warning("the outbox could not be relieved of what is durable: %s", error)
            self._hang_up()

    def keep_alive(self, timeout: float) -> None:
        """See contract.Capture."""
        try:
            with translated():
                self._let_go_of_old_claims()
        except SourceUnavailable as error:
            _log.warning("%s", error)
            self._hang_up()
        if timeout > 0:
            time.sleep(timeout)

    def look_afresh(self) -> None:
        """See contract.Capture."""
        self._outdated = True

    def close(self) -> None:
        """See contract.Capture. Claims that were not confirmed are free again."""
        self._hang_up()

    # -- pieces -------------------------------------------------------------------------------------------------------

    def _open(self) -> Connection:
        if self._watch is None:
            self._watch = connect(self._dsn, purpose="outbox")
            # A crash of this server must not take back what it has flushed; a standby need not have it (R2).
            self._watch.execute("SET synchronous_commit = local")
            self._watch.execute(_SQL["draining"].encode())
            self._wakes = self._may_wake and self._watch.execute(_SQL["may_notify"].encode()).fetchone() == (True,)
            if self._wakes:
                self._watch.execute("LISTEN docferry_outbox")
            self._decoder = EventDecoder(Types(self._watch))
            self._asleep = False
            _log.info("draining docferry.outbox")
        return self._watch

    def _pause(self, now: float) -> float:
        """Until the next look."""
        if now - self._last_seen < _AWAKE:
            return _NAP
        return _SLEEP if self._wakes else _LOOK

    def _wait(self, watch: Connection, seconds: float) -> None:
        if seconds > _NAP and self._wakes and not self._asleep:
            # Who commits from now on wakes us; one more look for those that asked before.
            self._set_asleep(watch, asleep=True)
            return
        if not self._wakes or not self._asleep:
            time.sleep(seconds)
            return
        if select.select([watch.pgconn.socket], [], [], seconds)[0]:
            for _ in watch.notifies(timeout=0):
                pass
            self._last_seen = time.monotonic()
            self._set_asleep(watch, asleep=False)

    def _set_asleep(self, watch: Connection, *, asleep: bool) -> None:
        if self._wakes and asleep is not self._asleep:
            watch.execute(_SQL["going_to_sleep" if asleep else "awake"].encode())
            self._asleep = asleep

    @boundary("outbox.claim")
    def _claim(self) -> Delivery | None:
        """The next rows that nobody is at, or None: there are none, or as many claims are open as may be."""
        if len(self._claims) >= _CLAIMS:
            return None
        connection = self._idle.pop() if self._idle else connect(self._dsn, purpose="outbox claim")
        released = [position for claim in self._claims if not claim.held for position in claim.positions]
        claim = _Claim(connection, since=time.monotonic())
        delivery = Delivery()
        try:
            connection.execute("BEGIN")
            with connection.cursor("docferry_outbox") as cursor:
                cursor.execute(_SQL["claim"].encode(), (released,))
                while not self._is_full(delivery):
                    rows = cursor.fetchmany(min(_FETCH, self._most_changes - len(claim.positions)))
                    for row in rows:
                        self._take(row, claim, delivery)
                    if len(rows) < _FETCH:
                        break
            if not claim.positions:
                connection.execute("ROLLBACK")
                self._idle.append(connection)
                return None
            self._flush()
        except BaseException:
            connection.close()
            raise
        self._tickets += 1
        claim.ticket = delivery.position = self._tickets
        self._claims.append(claim)
        return delivery

    def _flush(self) -> None:
        """Bring the log to disk up to what was claimed and further: of a transaction that committed asynchronously, a
        crash could take it back."""
        assert self._watch is not None
        self._watch.execute(_SNAPSHOT["flush_without_log"].encode())

    def _is_full(self, delivery: Delivery) -> bool:
        return len(delivery.changes) >= self._most_changes or delivery.size >= self._most_bytes

    def _take(self, row: tuple[Any, ...], claim: _Claim, delivery: Delivery) -> None:
        position, epoch, op, table, oid, described, key_names, new, old, key, old_key, recorded_at = row
        assert isinstance(recorded_at, datetime)
        if self._outdated or self._decoder is None:
            assert self._watch is not None
            self._outdated = False
            self._decoder = EventDecoder(Types(self._watch))
        columns, types = described_columns(described)
        key_names = self._current_names(table, int(oid), columns, key_names)
        layout = self._decoder.layout(table, int(oid), columns, types, key_names)
        # What can be claimed is visible: nothing has to wait for its transaction (R5).
        version = make_version(epoch, position)
        try:
            change = layout.change(op, version, 0, recorded_at, new=new, old=old, key=key, old_key=old_key)
        except ValueError as error:
            # It stops nothing else (R8); which row it is of, the table tells when it is read again.
            _log.error("a change cannot be read: %s", error, extra={"table": table, "version": version, "op": op})
            change = layout.unreadable(version, recorded_at)
        claim.positions.append(position)
        delivery.changes.append(change)
        delivery.size += change.size
        delivery.committed_at = recorded_at

    def _current_names(self, table: str, oid: int, columns: Sequence[str | None], key: Sequence[str]) -> Sequence[str]:
        """The key columns. The triggers know them by the names that they had when the triggers were made."""
        if all(name in columns for name in key):
            return key
        known = self._renamed.get((oid, tuple(columns)))
        if known is None:
            assert self._watch is not None
            there = [name for name in columns if name is not None]
            identities = self._watch.execute(_SQL["identifying"].encode(), (oid,)).fetchall()
            found = [current_names(key, there, names, former=self._former(table)) for (names,) in identities]
            fitting = [names for names in found if names is not None and set(names) <= set(there)]
            known = self._renamed[oid, tuple(columns)] = fitting[0] if fitting else tuple(key)
        return known

    def _let_go_of_old_claims(self) -> None:
        """End the transactions of claims that take long, so that they hold up no vacuum: others may deliver their rows
        as well then, which is harmless (R1), and we leave them out until they are durable."""
        for claim in self._claims:
            if claim.held and time.monotonic() - claim.since > _LONGEST_CLAIM:
                claim.connection.execute("ROLLBACK")
                claim.held = False

    def _hang_up(self) -> None:
        for connection in (self._watch, *self._idle, *(claim.connection for claim in self._claims)):
            if connection is not None:
                connection.close()
        self._watch = self._decoder = None
        self._idle.clear()
        self._claims.clear()


def described_columns(described: Sequence[str]) -> tuple[list[str | None], list[int]]:
    """Names and type oids from the outbox's description of columns."""
    columns, types = [], []
    for one in described:
        oid, _, name = one.partition(" ")
        columns.append(name or None)
        types.append(int(oid))
    return columns, types
