"""Populating collections again over what they hold, whatever that is: `docferry apply --resync`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from docferry.capture.contract import Ledger
from docferry.change.model import make_version, split_version
from docferry.document.model import Collection
from docferry.target.contract import Target

__all__ = ["RESYNC", "later_than", "to_resync"]

RESYNC = "resync"
"""The reason of a backfill that was asked for by `apply --resync`. It removes items without a row at its end."""

_log = logging.getLogger(__name__)


def later_than(
    target: Target,
    collections: Sequence[Collection],
    epoch: int,
    position: Callable[[], int],
    floor_of: Callable[[Collection], int] = lambda _: 0,
) -> int:
    """The latest epoch that must be outdone: 0, or of items that are later than the source is, or of a floor that is:
    after a TRUNCATE there may be no item. `position`: asks for the source's. Reads every item of the collections."""
    latest = 0
    for collection in collections:
        _log.info("looking for items of %s that are later than the source", collection.name)
        latest = max([latest, floor_of(collection), *(item.version for item in target.scan(collection))])
    # Asked for afterwards: a worker goes on writing meanwhile.
    return split_version(latest)[0] if latest > make_version(epoch, position()) else 0


def to_resync(ledger: Ledger, tables: Sequence[str]) -> dict[str, str]:
    """Those tables whose resync has still to be requested, with the reason: one that is under way goes on."""
    under_way = {one.table for one in ledger.backfills(unfinished_only=True) if one.reason == RESYNC}
    for table in sorted(under_way & set(tables)):
        _log.info("the resync of %s is under way already", table)
    return {table: RESYNC for table in tables if table not in under_way}
