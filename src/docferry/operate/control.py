"""The control collection beyond one configuration: others with the same table_prefix keep their floors in it, too."""

from __future__ import annotations

from collections.abc import Collection as Collection_

from docferry.document.model import Collection, Delete
from docferry.target.contract import Target
from docferry.target.floors_shared import floor_key, floored

__all__ = ["floor_of", "floors_of_others", "forget_floors"]


def floor_of(target: Target, control: Collection | None, collection: str) -> int:
    """The version of the floor of a collection, 0 without one. Whatever is below it would be stale for ever."""
    if control is None or not target.exists(control):
        return 0
    (floor,) = target.read(control, [floor_key(collection)])
    return 0 if floor is None else floor.version


def floors_of_others(target: Target, control: Collection, ours: Collection_[str]) -> list[str]:
    """The collections that are not ours and have a floor, by name."""
    names = {floored(item.key) for item in target.scan(control) if item.document is not None}
    return sorted(names.difference(ours))


def forget_floors(target: Target, control: Collection, collections: Collection_[str]) -> None:
    """Remove the floors of these collections, as if there had never been one."""
    keys = [floor_key(name) for name in sorted(collections)]
    found = [item for item in (target.read(control, keys) if keys else []) if item is not None]
    # Only a tombstone can be removed: it takes the place of what was read, and of nothing newer.
    gone = [(item.key, item.version + (item.document is not None)) for item in found]
    target.write([Delete(control, key, version) for key, version in gone])
    target.sweep(control, gone)
