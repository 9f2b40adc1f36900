"""What a process stands on: the epoch and the mirrors' settings that were in force when it began, and the table that is
there under its name. `apply` may change them while the process goes on; what it did then would be outdated."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from docferry.capture.contract import RowReader
from docferry.capture.history import superseded
from docferry.document.batch import renamed
from docferry.document.mirror import Mirror
from docferry.errors import HistoryChanged, TableGone
from docferry.operate.admin import AdminLedger
from docferry.operate.backfill import LEASE

__all__ = ["Grounds", "Lease", "table_needed"]


@dataclass(frozen=True, slots=True)
class Grounds:
    """`epoch`, and by table the `fingerprints` of the settings, that `who` began with. `remedy`: what to do when they
    are no longer in force.

    To be asked behind whatever must not be outdated: the reading of items that are judged, the taking of the version
    that is written, the reading of the request for a backfill. `apply` records an epoch, and a mirror's settings, in
    one transaction with the request to populate again: what it asks for has a greater version than whoever was told
    before that all is as it was.
    """

    ledger: AdminLedger
    epoch: int
    fingerprints: Mapping[str, str]
    who: str
    remedy: str

    def check(self, table: str) -> None:
        """Raises HistoryChanged when another epoch, or other settings of the table's mirror, are in force."""
        self._check([table])

    def check_all(self) -> None:
        """The same for all mirrors; and there must be no others, whose changes would be passed over."""
        added = sorted(self._check(self.fingerprints) - self.fingerprints.keys())
        if added:
            raise HistoryChanged(
                f"`docferry apply` has set up the mirror of {', '.join(added)}, which {self.who} does not know",
                remedy="Start it again with the configuration that was applied. If the mirror was taken out of it on "
                "purpose, run `docferry apply` first: it forgets the mirror.",
            )

    def of(self, table: str, layout: str) -> str:
        """What a comparison of the table stands on, to be remembered. `layout`: see contract.RowReader."""
        return hashlib.blake2b(f"{self.fingerprints[table]} {layout}".encode(), digest_size=16).hexdigest()

    def _check(self, tables: Collection[str]) -> set[str]:
        """Returns the tables of all mirrors."""
        error = superseded(self.epoch, self.ledger.epoch(), self.who, self.remedy)
        if error is not None:
            raise error
        known = self.ledger.mirrors()
        for table in tables:
            if table not in known:
                raise HistoryChanged(f"the mirror of {table} was removed by `docferry apply`", remedy=self.remedy)
            if known[table].fingerprint != self.fingerprints[table]:
                raise HistoryChanged(
                    f"the settings of the mirror of {table} were changed by `docferry apply` since {self.who} began",
                    remedy=self.remedy,
                )
        return set(known)


class Lease:
    """Asks a worker's grounds ahead of its jobs, every LEASE seconds at most: see there why that is enough."""

    def __init__(self, grounds: Grounds) -> None:
        self._grounds = grounds
        self._asked_at = float("-inf")

    def check(self, strangers: Collection[str]) -> None:
        """Raises HistoryChanged. `strangers`: tables without a mirror, of which there are changes: of them nobody else
        waits for the lease to end, so it is asked at once."""
        now = time.monotonic()
        if strangers or now - self._asked_at >= LEASE:
            self._grounds.check_all()
            self._asked_at = now


@contextmanager
def table_needed(mirror: Mirror, reader: RowReader) -> Iterator[None]:
    """A table that is gone says nothing of its rows. Raises SourceRefused with its new name, or TableGone."""
    try:
        yield
    except TableGone as error:
        name = reader.current_name(mirror.oid)
        if name is not None and name != mirror.table:
            raise renamed(mirror, name) from error
        raise TableGone(
            f"{error}; its items stay as they are",
            remedy="Once the table is there again, run `docferry apply`. If it is gone for good, remove its mirror.",
        ) from error
