"""Capture by logical replication: publication, slot and the COPY_BOTH stream, over psycopg's libpq layer."""

from __future__ import annotations

import logging
import select
import time
from dataclasses import dataclass
from struct import Struct
from typing import Any, Final

import psycopg
from psycopg import pq

from docferry.capture.catalog import Types
from docferry.capture.contract import Delivery
from docferry.capture.history import HISTORY_REMEDY, changed_history
from docferry.capture.slot_limit import SlotLimit
from docferry.change.model import Change, lsn
from docferry.change.pgoutput import Commit, Decoder, ProtocolError
from docferry.errors import HistoryChanged, SourceRefused, SourceUnavailable
from docferry.failpoints import boundary, failpoint
from docferry.source.session import connect, translated

__all__ = ["Limits", "ReplicationCapture", "SystemIdentity"]

_log = logging.getLogger(__name__)

_XLOG_DATA: Final = Struct("!cQQq")
_KEEPALIVE: Final = Struct("!cQqB")
_STATUS: Final = Struct("!cQQQqB")
# The server gives up a receiver after wal_sender_timeout (60 s unless set); 1 s of those may pass before it asks.
_STATUS_INTERVAL: Final = 5.0
_CONFIRM_INTERVAL: Final = 0.01


@dataclass(frozen=True, slots=True)
class Limits:
    """When a delivery is closed: so many changes, so many bytes, or `linger` seconds after its first change."""

    changes: int = 200
    bytes: int = 1 << 20
    linger: float = 0.002


@dataclass(frozen=True, slots=True)
class SystemIdentity:
    """The history that positions belong to (R2)."""

    system_identifier: str
    timeline: int

    @property
    def history(self) -> tuple[str, int]:
        """Both."""
        return self.system_identifier, self.timeline


class ReplicationCapture:
    """The stream of one slot. `epoch` goes into the versions; `identity` is the history it belongs to (R2)."""

    def __init__(
        self, dsn: str, slot: str, publication: str, epoch: int, identity: SystemIdentity, limits: Limits
    ) -> None:
        self._dsn = dsn
        self._slot = slot
        self._publication = publication
        self._epoch = epoch
        self._identity = identity
        self._limits = limits
        self._slot_limit = SlotLimit(slot)
        self._confirmed = 0
        self._told = 0
        self._told_at = 0.0
        self._broke = False
        self._outdated = False
        self._stream: psycopg.Connection[tuple[Any, ...]] | None = None
        self._catalog: psycopg.Connection[tuple[Any, ...]] | None = None
        self._decoder: Decoder | None = None

    # -- the contract -------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Start streaming behind the confirmed position. Raises SourceUnavailable, SourceRefused, HistoryChanged."""
        if self._stream is not None:
            return
        try:
            self._catalog = connect(self._dsn, purpose="catalog")
            stream = connect(self._dsn, purpose="stream", replication=True)
            self._stream = stream
            found = identify_system(stream)
            changed = changed_history(self._epoch, self._identity.history, found.history)
            if changed is not None:
                raise HistoryChanged(changed, remedy=HISTORY_REMEDY)
            self._start(stream.pgconn)
            if (wrong := self._slot_limit.check(self._catalog)) is not None:
                raise HistoryChanged(
                    f"{wrong}; what was committed in between was not seen",
                    remedy="Run `docferry apply`: it begins a new epoch, creates the slot anew and populates every "
                    "collection again.",
                )
            self._outdated = False
            self._decoder = Decoder(Types(self._catalog), self._epoch)
        except BaseException:
            self._hang_up()
            raise

    def read(self, timeout: float) -> Delivery:
        """See contract.Capture. Whatever has arrived is taken at once; a delivery lingers a moment to fill up."""
        if self._broke:
            # What comes next comes again: the reader has to know (see the contract).
            self._broke = False
            raise SourceUnavailable("source: the server has ended our connections, it may be shutting down")
        try:
            with translated():
                self.open()
                return self._read(timeout)
        except SourceUnavailable:
            self._hang_up()
            raise
        except ProtocolError as error:
            self._hang_up()
            raise SourceRefused(f"source: {error}", remedy="Please report this with your server's version.") from error

    def confirm(self, position: int) -> None:
        """See contract.Capture."""
        self._confirmed = max(self._confirmed, position)
        now = time.monotonic()
        if self._stream is not None and self._confirmed > self._told and now - self._told_at >= _CONFIRM_INTERVAL:
            self._tell(now)

    def keep_alive(self, timeout: float) -> None:
        """See contract.Capture. Not reading makes the server wait, which bounds our memory (R10)."""
        now = time.monotonic()
        if self._stream is not None and self._is_dismissed():
            self._hang_up()
            self._broke = True
        if self._stream is not None and (now - self._told_at >= _STATUS_INTERVAL or self._confirmed > self._told):
            self._tell(now)
        if timeout > 0:
            time.sleep(timeout)

    def look_afresh(self) -> None:
        """See contract.Capture."""
        self._outdated = True

    def close(self) -> None:
        """See contract.Capture."""
        if self._stream is not None and self._catalog is not None:
            self._tell(time.monotonic())
            self._slot_limit.settle(self._catalog)
        self._hang_up()

    # -- the stream ---------------------------------------------------------------------------------------------------

    def _start(self, pgconn: pq.abc.PGconn) -> None:
        publication = self._publication.replace('"', '""').replace("'", "''")
        command = (
            f"START_REPLICATION SLOT {self._slot} LOGICAL {lsn(self._confirmed)} "
            f"(proto_version '1', publication_names '\"{publication}\"', messages 'true')"
        )
        result = pgconn.exec_(command.encode())
        if result.status != pq.ExecStatus.COPY_BOTH:
            raise _refusal(result, self._slot)
        pgconn.nonblocking = 1
        position = lsn(self._confirmed)
        _log.info("streaming from slot %s behind %s", self._slot, position, extra={"position": position})

    @boundary("capture.read")
    def _read(self, timeout: float) -> Delivery:
        assert self._stream is not None
        assert self._decoder is not None
        pgconn = self._stream.pgconn
        delivery = Delivery()
        deadline = time.monotonic() + timeout
        while True:
            size, data = pgconn.get_copy_data(1)
            if size > 0:
                was_empty = not delivery.changes
                if self._take(bytes(data), delivery) and self._is_full(delivery):
                    return delivery
                if was_empty and delivery.changes:
                    deadline = min(deadline, time.monotonic() + self._limits.linger)
                continue
            if size < 0:
                raise self._ended(pgconn)
            if self._is_dismissed():
                raise SourceUnavailable(
                    "source: the server has ended another connection of ours, it may be shutting down"
                )
            now = time.monotonic()
            if now - self._told_at >= _STATUS_INTERVAL:
                self._tell(now)
            if now >= deadline or (delivery.position is not None and not delivery.changes):
                return delivery
            if select.select([pgconn.socket], [], [], min(deadline - now, 1.0))[0]:
                pgconn.consume_input()

    def _is_dismissed(self) -> bool:
        """Whether the server has ended our ordinary connection. When it shuts down it ends those at once, then waits
        for the stream's receiver to confirm everything: for ever, when that takes rows which can be read no more, or a
        target that is away."""
        assert self._catalog is not None
        pgconn = self._catalog.pgconn
        try:
            while select.select([pgconn.socket], [], [], 0)[0]:
                pgconn.consume_input()
        except psycopg.Error:
            return True
        return False

    def _take(self, data: bytes, delivery: Delivery) -> bool:
        """Put one stream message into the delivery; True if it grew."""
        if data[0:1] == b"k":
            _, wal_end, _, reply = _KEEPALIVE.unpack_from(data)
            assert self._decoder is not None
            if not self._decoder.in_transaction:
                # Everything before wal_end has been sent, so when what we hold is durable, all of it is.
                delivery.position = max(delivery.position or 0, wal_end)
            if reply:
                self._tell(time.monotonic())
            return False
        assert self._decoder is not None
        if self._outdated:
            assert self._catalog is not None
            self._outdated = False
            self._decoder.look_afresh(Types(self._catalog))
        decoded = self._decoder.decode(data[_XLOG_DATA.size :])
        match decoded:
            case None:
                return False
            case Commit():
                delivery.position = decoded.position
                delivery.committed_at = decoded.committed_at
                return True
            case Change():
                delivery.changes.append(decoded)
                delivery.size += decoded.size
            case _:
                delivery.changes.extend(decoded)
        # An open transaction: what has come of it is not everything up to any later position.
        return True

    def _is_full(self, delivery: Delivery) -> bool:
        return len(delivery.changes) >= self._limits.changes or delivery.size >= self._limits.bytes

    def _ended(self, pgconn: pq.abc.PGconn) -> SourceUnavailable | SourceRefused:
        result = pgconn.get_result()
        if result is not None and result.error_field(pq.DiagnosticField.SQLSTATE):
            return _refusal(result, self._slot)
        message = pgconn.get_error_message().strip()
        return SourceUnavailable(f"source: the replication stream ended: {message or 'no reason given'}")

    def _tell(self, now: float) -> None:
        """Send a standby status update: written, flushed and applied up to the confirmed position."""
        assert self._stream is not None
        assert self._catalog is not None
        pgconn = self._stream.pgconn
        clock = int((time.time() - 946684800) * 1_000_000)
        position = self._slot_limit.permitted(self._catalog, self._confirmed)
        try:
            with failpoint("capture.confirm"):
                pgconn.put_copy_data(_STATUS.pack(b"r", position, position, position, clock, 0))
                pgconn.flush()
        except (psycopg.Error, SourceUnavailable) as error:
            _log.debug("status update not sent: %s", error)
            return  # the next read finds the broken connection and says so
        self._told = position
        self._told_at = now

    def _hang_up(self) -> None:
        for connection in (self._stream, self._catalog):
            if connection is not None:
                connection.close()
        self._stream = self._catalog = self._decoder = None
        self._told = 0


def identify_system(stream: psycopg.Connection[tuple[Any, ...]]) -> SystemIdentity:
    """System identifier and timeline, over a replication connection."""
    result = stream.pgconn.exec_(b"IDENTIFY_SYSTEM")
    if result.status != pq.ExecStatus.TUPLES_OK:
        raise SourceUnavailable(f"source: {result.get_error_message().strip()}")
    system, timeline = result.get_value(0, 0), result.get_value(0, 1)
    assert system is not None
    assert timeline is not None
    return SystemIdentity(system.decode(), int(timeline))


def _refusal(result: pq.abc.PGresult, slot: str) -> SourceRefused | SourceUnavailable:
    state = (result.error_field(pq.DiagnosticField.SQLSTATE) or b"").decode()
    message = (result.error_field(pq.DiagnosticField.MESSAGE_PRIMARY) or b"").decode() or result.get_error_message()
    match state:
        case "55006":  # object_in_use: the server has not noticed yet that our last connection died, or a second worker
            return SourceUnavailable(f"source: {message}", remedy="Stop the other receiver of the slot.")
        case "42704":
            return HistoryChanged(
                f"the replication slot {slot} or its publication is gone ({message}); changes were missed",
                remedy="Run `docferry apply`: it creates them anew and populates every collection again.",
            )
        case "55000":
            return HistoryChanged(
                f"the replication slot {slot} cannot be used any more: {message}",
                remedy="Run `docferry apply`: it creates the slot anew and populates every collection again. Raise "
                "max_slot_wal_keep_size if the server dropped WAL that the slot still needed.",
            )
        case "42501":
            return SourceRefused(
                f"source: {message}",
                remedy="ALTER ROLE ... REPLICATION (on RDS and Aurora: GRANT rds_replication TO ...).",
            )
        case state if state[:2] in ("08", "57", "53", "58", "XX", ""):
            return SourceUnavailable(f"source: {message}")
        case _:
            return SourceRefused(f"source: {message} (SQLSTATE {state})")
