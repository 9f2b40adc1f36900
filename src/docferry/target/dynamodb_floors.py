"""The control table: where the floors that all processes share are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from docferry.document.model import Collection, Key, Put
from docferry.errors import KeyRefused
from docferry.target.dynamodb_items import VERSION, decode_item
from docferry.target.dynamodb_reading import read_items
from docferry.target.dynamodb_removal import below, remove

if TYPE_CHECKING:
    from docferry.target.dynamodb_connection import Connection
    from docferry.target.dynamodb_writing import Writer

__all__ = ["ControlTable"]


class ControlTable:
    """See floors_shared.FloorStore. Raises TargetRefused while the table does not exist."""

    def __init__(self, connection: Connection, writer: Writer, control: Collection) -> None:
        self._connection = connection
        self._writer = writer
        self._control = control

    def put_floor(self, floor: Put) -> None:
        (result,) = self._writer.write([floor], {})
        if result.error is not None:
            raise result.error

    def read_floors(self, keys: Sequence[Key]) -> Mapping[Key, int]:
        found = read_items(self._connection, self._control, keys, (VERSION,))
        items = [decode_item(self._control, attributes) for attributes in found]
        return {item.key: item.version for item in items}

    def remove_below(self, collection: Collection, keys: Sequence[Key], version: int) -> None:
        removals = []
        for key in keys:
            with suppress(KeyRefused):  # what cannot be a key has no item
                removals.append(below(collection, key, version))
        remove(self._connection, collection, removals)
