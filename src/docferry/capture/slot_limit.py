"""How far docferry may have confirmed its slot: what tells a slot that somebody else moved.

A slot carries no identity: dropped and created again under its name, or advanced by hand, it looks like before, only
further ahead, and the changes in between are never sent. So the ledger keeps a limit which the slot's confirmed
position never passes by docferry's doing: it is raised before a position beyond it is confirmed, in steps, because a
transaction for each confirmation would be too many, and lowered to the exact position when the worker ends in good
order.
"""

from __future__ import annotations

import logging
import time
from typing import Any, Final, TypeAlias

import psycopg

from docferry.change.model import lsn
from docferry.errors import SourceUnavailable
from docferry.failpoints import failpoint
from docferry.source.statements import load

__all__ = ["SlotLimit", "forget_limit", "moved", "read_limit"]

_log = logging.getLogger(__name__)
_SQL: Final = load("slots.sql")
_SMALLEST_STEP: Final = 1 << 16
_LARGEST_STEP: Final = 1 << 26

_Connection: TypeAlias = psycopg.Connection[tuple[Any, ...]]


def is_kept(connection: _Connection) -> bool:
    """Whether there is a ledger, and one that keeps limits. Raises psycopg.Error."""
    return connection.execute(_SQL["is_kept"].encode()).fetchone() == (True,)


def read_limit(connection: _Connection, slot: str) -> int | None:
    """The recorded limit; None where nothing is known of the slot. Raises psycopg.Error."""
    if not is_kept(connection):
        return None
    row = connection.execute(_SQL["limit"].encode(), (slot,)).fetchone()
    return None if row is None else int(row[0])


def forget_limit(connection: _Connection, slot: str) -> None:
    """Nothing is known of the slot any more: it is made anew. Raises psycopg.Error."""
    if is_kept(connection):
        connection.execute(_SQL["forget_limit"].encode(), (slot,))


def moved(slot: str, confirmed: int, limit: int) -> str:
    """What happened to a slot that stands beyond its limit, in words."""
    return (
        f"the replication slot {slot} stands at {lsn(confirmed)}, and docferry has confirmed {lsn(limit)} at most: "
        "somebody advanced it, or dropped it and created it again"
    )


class SlotLimit:
    """The limit of the slot that is streamed from, over a connection of the streaming thread."""

    def __init__(self, slot: str) -> None:
        self._slot = slot
        self._kept = True
        self._recorded: int | None = None
        self._known = 0
        self._upto = 0
        self._step = _SMALLEST_STEP
        self._raised_at = 0.0

    def check(self, connection: _Connection) -> str | None:
        """To be called once the slot is streamed from, when nobody else can move it. Returns what is wrong with it, in
        words. Raises psycopg.Error."""
        connection.execute(_SQL["local_commits"].encode())
        row = connection.execute(_SQL["confirmed"].encode(), (self._slot,)).fetchone()
        confirmed = 0 if row is None or row[0] is None else int(row[0])
        self._kept = is_kept(connection)
        if not self._kept:
            _log.warning("the ledger was made by an earlier docferry; `docferry apply` brings it up to date")
        recorded = read_limit(connection, self._slot)
        # What this process has confirmed itself is exact, unless another worker has streamed since; the ledger's limit
        # is a step ahead.
        exact = self._known > 0 and recorded == self._recorded
        limit = self._known if exact else recorded
        if limit is not None and confirmed > limit:
            self._recorded = recorded
            self._lower(connection, limit)  # `apply` must find it too, and knows no more than the ledger
            return moved(self._slot, confirmed, limit)
        self._recorded = recorded
        self._known = self._upto = max(confirmed, self._known)
        return None

    def permitted(self, connection: _Connection, position: int) -> int:
        """The position that may be confirmed now of a wish for `position`: less than it only when the limit cannot be
        raised, and then it is asked for again."""
        if position > self._upto and self._kept:
            now = time.monotonic()
            # About what a second brings: a killed worker leaves little that could be skipped unnoticed.
            faster = now - self._raised_at < 1.0
            self._step = min(self._step * 2, _LARGEST_STEP) if faster else max(self._step // 2, _SMALLEST_STEP)
            try:
                with failpoint("confirm.limit"):
                    connection.execute(_SQL["raise_limit"].encode(), (self._slot, position + self._step))
            except (psycopg.Error, SourceUnavailable) as error:
                _log.debug("the limit of slot %s could not be raised: %s", self._slot, error)
            else:
                self._recorded = self._upto = position + self._step
                self._raised_at = now
        granted = min(position, self._upto) if self._kept else position
        self._known = max(self._known, granted)
        return granted

    def settle(self, connection: _Connection) -> None:
        """The last thing: nothing more will be confirmed."""
        if self._kept:
            try:
                self._lower(connection, self._known)
            except psycopg.Error as error:
                _log.debug("the limit of slot %s could not be settled: %s", self._slot, error)

    def _lower(self, connection: _Connection, limit: int) -> None:
        if self._recorded is not None and limit < self._recorded:
            connection.execute(_SQL["lower_limit"].encode(), (limit, self._slot, self._recorded))
            self._recorded = self._upto = limit
