"""Amazon DynamoDB as a target."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from docferry.document.model import Collection, Delete, Key, Put, Write
from docferry.errors import MissingExtra, RowRefused
from docferry.failpoints import boundary, failpoint
from docferry.retry import Retry
from docferry.target.contract import Item, Result, TargetObserver
from docferry.target.dynamodb_floors import ControlTable
from docferry.target.dynamodb_items import decode_item, decode_key, encode, key_texts
from docferry.target.dynamodb_reading import read_items, scan_items, versions_below
from docferry.target.dynamodb_removal import below, remove, tombstone
from docferry.target.dynamodb_tables import Tables
from docferry.target.dynamodb_writing import Writer
from docferry.target.floors import Floors
from docferry.target.floors_shared import SharedFloors

if TYPE_CHECKING:
    from botocore.client import BaseClient

__all__ = ["TOMBSTONE_LIFETIME", "DynamoDBTarget"]

TOMBSTONE_LIFETIME = 7 * 24 * 3600.0
"""Seconds until a tombstone expires by itself: longer than any change of a stream stays on its way. An event of Lambda
may take 6 hours, and 14 days more in a dead-letter queue: with those it takes 16 days."""


class DynamoDBTarget:
    """See contract.Target. `options`: for boto3's client (region_name, endpoint_url, profile_name, credentials ...), or
    a client of your own. `connections`: as many as threads call this object. `kms_key`: for tables that it creates.
    `control`: the control collection, which makes TRUNCATE's floors hold for every process that has it; None: they hold
    for this object.
    """

    def __init__(
        self,
        options: Mapping[str, Any] | BaseClient,
        retry: Retry | None = None,
        *,
        connections: int = 8,
        kms_key: str | None = None,
        control: Collection | None = None,
        tombstone_lifetime: float = TOMBSTONE_LIFETIME,
        clock: Callable[[], float] = time.time,
        observer: TargetObserver | None = None,
    ) -> None:
        try:
            from docferry.target.dynamodb_connection import Connection, new_client
        except ImportError as error:
            raise MissingExtra(
                f"the target dynamodb needs boto3, which is not installed ({error})",
                remedy="Run `pip install 'docferry[dynamodb]'`.",
            ) from error
        client = new_client(connections=connections, **options) if isinstance(options, Mapping) else options
        self._connection = Connection(client, retry or Retry(), observer)
        self._tables = Tables(self._connection, kms_key)
        self._writer = Writer(self._connection, tombstone_lifetime, clock)
        self._floors = Floors()
        self._shared: SharedFloors | None = None
        if control is not None:
            store = ControlTable(self._connection, self._writer, control)
            self._shared = SharedFloors(control, store, self._floors.learn)

    @boundary("target.create")
    def create(self, collection: Collection) -> bool:
        return self._tables.create(collection)

    def exists(self, collection: Collection) -> bool:
        return self._tables.described(collection) is not None

    def drop(self, collection: Collection) -> bool:
        self._writer.shapes.forget(collection)
        return self._tables.drop(collection)

    def check(self, write: Write) -> RowRefused | None:
        try:
            if isinstance(write, Delete):
                key_texts(write.collection, write.key)
            else:
                encode(write.collection, write.key, write.document)
        except RowRefused as error:
            return error
        return None

    def digest(self, put: Put) -> bytes:
        return encode(put.collection, put.key, put.document).hash

    @boundary("target.write")
    def write(self, writes: Sequence[Write]) -> list[Result]:
        with self._floors.writing() as floors:
            results = self._writer.write(writes, floors)
            return results if self._shared is None else self._shared.enforce(writes, results)

    def replace(self, write: Write, seen: Item) -> Result:
        with self._floors.writing() as floors:
            result = self._writer.replace(write, seen, floors)
            return result if self._shared is None else self._shared.enforce([write], [result])[0]

    def raise_floor(self, collection: Collection, version: int) -> None:
        if self._shared is not None:
            self._shared.set(collection.name, version)
        self._floors.set(collection.name, version)

    def truncate(self, collection: Collection, version: int) -> int:
        self.raise_floor(collection, version)
        removed = 0
        with failpoint("target.truncate"):
            for page in versions_below(self._connection, collection, version):
                removals = [below(collection, decode_key(collection, item), version) for item in page]
                removed += remove(self._connection, collection, removals)
        return removed

    @boundary("target.sweep")
    def sweep(self, collection: Collection, tombstones: Sequence[tuple[Key, int]]) -> int:
        removals = [tombstone(collection, key, version) for key, version in dict.fromkeys(tombstones)]
        return remove(self._connection, collection, removals)

    def read(self, collection: Collection, keys: Sequence[Key]) -> list[Item | None]:
        distinct = list(dict.fromkeys(keys))
        found = {
            item.key: item
            for attributes in read_items(self._connection, collection, distinct)
            for item in [decode_item(collection, attributes)]
        }
        return [found.get(key) for key in keys]

    def scan(self, collection: Collection, *, segment: int = 0, segments: int = 1) -> Iterator[Item]:
        for attributes in scan_items(self._connection, collection, segment, segments):
            yield decode_item(collection, attributes)

    def close(self) -> None:
        self._connection.close()
