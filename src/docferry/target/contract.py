"""What a target must do. The suite in tests/contract runs against every implementation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from docferry.document.model import Collection, Key, Put, Value, Write
from docferry.errors import RowRefused

__all__ = ["Item", "Outcome", "Result", "Target", "TargetObserver", "Unobserved"]


class Outcome(StrEnum):
    """What became of a write. All three are final and durable."""

    APPLIED = "applied"
    STALE = "stale"  # something at least as new is stored already
    REFUSED = "refused"  # this item can never be stored as it is


@dataclass(frozen=True, slots=True)
class Result:
    """`error` is set exactly when `outcome` is REFUSED."""

    outcome: Outcome
    error: RowRefused | None = None


@dataclass(frozen=True, slots=True)
class Item:
    """A document as the target stores it. `document`: None on a tombstone, else every attribute but the meta ones.
    `version`: -1 when the item carries none (docferry did not write it). `hash`: 16 bytes, of the canonical
    document; None when the item carries none, or one that docferry cannot have given it. `expires`: seconds since 1970
    from when on the target may remove it by itself, where it says so."""

    key: Key
    version: int
    document: dict[str, Value] | None
    hash: bytes | None = None
    expires: int | None = field(default=None, compare=False)


class TargetObserver(Protocol):
    """Is told how it goes, by the thread that it goes for."""

    def requested(self, items: int) -> None:
        """A write request with so many items is sent."""

    def moved(self) -> None:
        """Something was answered or became durable."""

    def throttled(self, collection: str) -> None:
        """A write was refused for want of throughput; it is sent again."""

    def held_up(self, collection: str, error: str, *, throttled: bool) -> None:
        """Everything that was not answered waits before it is sent again. `collection`: "" where it is about none."""


class Unobserved:
    """A TargetObserver that nobody asks."""

    def requested(self, items: int) -> None:
        """See TargetObserver."""

    def moved(self) -> None:
        """See TargetObserver."""

    def throttled(self, collection: str) -> None:
        """See TargetObserver."""

    def held_up(self, collection: str, error: str, *, throttled: bool) -> None:
        """See TargetObserver."""


class Target(Protocol):
    """A document store.

    Every method is safe to call from several threads at once. Throttling, cut connections and outages are retried
    inside with jittered backoff without limit, until the retry policy given at construction says stop
    (errors.Interrupted).
    Raises errors.TargetRefused when the target says no for a reason that is no row's fault.
    """

    def create(self, collection: Collection) -> bool:
        """Create the collection if it is missing; True if it was. Raises TargetRefused if it exists with another
        key."""

    def exists(self, collection: Collection) -> bool:
        """Whether the collection exists. Raises TargetRefused if it exists with another key."""

    def drop(self, collection: Collection) -> bool:
        """Remove the collection and all its items; False if it was not there."""

    def check(self, write: Write) -> RowRefused | None:
        """What would make `write` break a limit of this target; no request is sent."""

    def digest(self, put: Put) -> bytes:
        """The hash that the item of `put` carries once it is stored; no request is sent. Raises RowRefused."""

    def write(self, writes: Sequence[Write]) -> list[Result]:
        """Apply the writes, each only if its version is greater than the stored one (R1); one result for each, in
        order.

        Keys are distinct within one call. A Put replaces the whole item. When this returns, every result is durable.
        """

    def replace(self, write: Write, seen: Item) -> Result:
        """Apply the write whatever version is stored, even none or one that is no number, but only while the item still
        is what was `seen`: STALE if it is not, or below the floor. For items whose version docferry did not give: the
        fence would hold back every write for good."""

    def raise_floor(self, collection: Collection, version: int) -> None:
        """From now on answer STALE to writes below `version`, and remove what stands under their keys and is below it;
        whatever else is below it stays. So does every target with the same control collection."""

    def truncate(self, collection: Collection, version: int) -> int:
        """Raise the floor (R4), and remove every item and tombstone whose version is below it, but none that carries no
        version. Returns how many were removed."""

    def sweep(self, collection: Collection, tombstones: Sequence[tuple[Key, int]]) -> int:
        """Remove those tombstones that still stand with exactly the given version. Returns how many were removed; one
        that had expired before may count."""

    def read(self, collection: Collection, keys: Sequence[Key]) -> list[Item | None]:
        """The stored items, consistently read, in the order of `keys`."""

    def scan(self, collection: Collection, *, segment: int = 0, segments: int = 1) -> Iterator[Item]:
        """Every item and tombstone, in no order, consistently read page by page. With `segments`, those of one of so
        many parts, from 0, which together are all of them."""

    def close(self) -> None:
        """Release connections. Further calls are errors."""
