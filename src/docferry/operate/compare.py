"""What a row should have made of its item, held against the item. Pure: nothing is read here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

from docferry.document.model import Collection, Put
from docferry.errors import RowRefused
from docferry.target.contract import Item

__all__ = [
    "DIFFERENCES",
    "Compared",
    "Digest",
    "Expected",
    "Kind",
    "Wanted",
    "compare",
    "is_made_up",
    "is_own",
    "judge",
    "wanted_of",
]

Expected: TypeAlias = Put | RowRefused | None
"""The write that the row makes, whatever its version; why it makes none; or None where there is no row."""

Wanted: TypeAlias = bytes | RowRefused | None
"""The hash that the row's item has to have; why it can have none; or None where there is no row."""

Digest: TypeAlias = Callable[[Put], bytes]
"""See Target.digest. Raises RowRefused."""


class Kind(StrEnum):
    """What a row and its item have to do with each other."""

    IDENTICAL = "identical"
    MISSING = "missing"  # a row, no item
    STALE = "stale"  # the item is what docferry wrote, of an older state of the row
    DIFFERENT = "different"  # the item, or the tombstone, is not what docferry wrote: somebody else did
    ORPHANED = "orphaned"  # an item, no row
    REFUSED = "refused"  # a row that cannot be stored, whatever the item is


DIFFERENCES = (Kind.MISSING, Kind.STALE, Kind.DIFFERENT, Kind.ORPHANED)
"""What an item can be made right again from; in the order in which they are shown."""


@dataclass(frozen=True, slots=True)
class Compared:
    """`error`: exactly when `kind` is REFUSED."""

    kind: Kind
    error: RowRefused | None = None


def compare(expected: Expected, item: Item | None, digest: Digest, *, ceiling: int | None = None) -> Compared:
    """Hold an item, a tombstone or nothing against what the row makes.

    Content counts, not what the item says of itself: its hash is computed anew. `ceiling`: no change has a greater
    version yet; an item that has one would hold back every later change. The item must have been read before the
    ceiling was taken.
    """
    if not isinstance(expected, Put):
        return _without_content(expected, item, ceiling)
    return judge(expected.collection, wanted_of(expected, digest), item, digest, ceiling=ceiling)


def wanted_of(expected: Expected, digest: Digest) -> Wanted:
    """What of a row has to be kept to hold items against it."""
    if not isinstance(expected, Put):
        return expected
    try:
        return digest(expected)
    except RowRefused as error:
        return error


def judge(
    collection: Collection, wanted: Wanted, item: Item | None, digest: Digest, *, ceiling: int | None = None
) -> Compared:
    """Like `compare`, by what was kept of the row."""
    if not isinstance(wanted, bytes):
        return _without_content(wanted, item, ceiling)
    if item is None or item.document is None:
        return Compared(Kind.MISSING)
    if not is_own(collection, item, digest, ceiling=ceiling):
        return Compared(Kind.DIFFERENT)
    return Compared(Kind.IDENTICAL if item.hash == wanted else Kind.STALE)


def _without_content(wanted: RowRefused | None, item: Item | None, ceiling: int | None) -> Compared:
    if wanted is not None:
        return Compared(Kind.REFUSED, wanted)
    if item is None:
        return Compared(Kind.IDENTICAL)
    if item.document is not None:
        return Compared(Kind.ORPHANED)
    return Compared(Kind.DIFFERENT if is_made_up(item.version, ceiling) else Kind.IDENTICAL)


def is_made_up(version: int, ceiling: int | None) -> bool:
    """Whether docferry cannot have given an item, or a tombstone, this version. See `compare`."""
    return version < 0 or (ceiling is not None and version > ceiling)


def is_own(collection: Collection, item: Item, digest: Digest, *, ceiling: int | None = None) -> bool:
    """Whether a live item is what docferry wrote: its version is one, and its hash that of its content."""
    if item.document is None or item.hash is None or is_made_up(item.version, ceiling):
        return False
    try:
        return digest(Put(collection, item.key, item.version, item.document)) == item.hash
    except (RowRefused, TypeError):  # docferry would not, or could not, have written that
        return False
