"""One write on its way to DynamoDB: which step comes next, and the request text of that step. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from enum import Enum, auto
from typing import Any

from docferry.document.model import Delete, Put, Write
from docferry.errors import RowRefused, WriteRefused
from docferry.target.contract import Outcome, Result
from docferry.target.dynamodb_items import EXPIRY, GONE, HASH, VERSION, Encoded, key_text, quoted
from docferry.target.dynamodb_statements import Shape

__all__ = ["BATCH_BYTES", "BATCH_STATEMENTS", "Entry", "Step", "batches"]

BATCH_STATEMENTS = 25
BATCH_BYTES = 4 * 1024 * 1024


class Step(Enum):
    INSERT = auto()
    UPDATE = auto()
    LOOK = auto()
    REPLACE = auto()


class Entry:
    """A write on its way. `keys`, `columns`, `meta`: texts of the parameters; `encoded`: None for a tombstone."""

    __slots__ = ("columns", "encoded", "keys", "meta", "result", "sent", "shape", "step", "sure", "write")

    def __init__(self, write: Write, shape: Shape, keys: list[str], columns: str, meta: list[str]) -> None:
        self.write = write
        self.shape = shape
        self.keys = ",".join(keys)
        self.columns = columns
        self.meta = meta
        self.encoded: Encoded | None = None
        self.result: Result | None = None
        self.sent = False  # an attempt failed in a way that leaves open whether it was applied
        self.sure = shape.insert is None or shape.update is None
        self.step = self._first(isinstance(write, Put) and write.new)

    def _first(self, new: bool) -> Step:
        if self.sure:
            return Step.REPLACE
        return Step.INSERT if new else Step.UPDATE

    def statement(self) -> str:
        """The statement of this step as JSON text."""
        meta = ",".join(self.meta)
        if self.step is Step.INSERT:
            return f"{self.shape.insert}{self.keys},{self.columns}{meta}]}}"
        return f"{self.shape.update}{self.columns}{meta},{self.keys},{self.meta[0]}]}}"

    def replacement(self) -> str:
        """PutItem's text: the whole item under the same fence. A tombstone may also take the place of itself."""
        condition = "attribute_not_exists(#v) OR #v < :v"
        names, values = f'"#v":"{VERSION}"', f'":v":{self.meta[0]}'
        if self.encoded is None:
            condition += " OR (#v = :v AND #g = :true)"
            names, values = f'{names},"#g":"{GONE}"', f'{values},":true":{{"BOOL":true}}'
        return self._put_item(condition, names, values)

    def replacement_of(self, stored: Mapping[str, Any] | None) -> str:
        """PutItem's text: the whole item in place of one whose version is exactly that AttributeValue, or not there.
        Of kinds that no version has ever had, the kind is compared."""
        names = f'"#v":"{VERSION}"'
        if stored is None:
            return self._put_item("attribute_exists(#k) AND attribute_not_exists(#v)", f'{names},"#k":{self._key}', "")
        ((letter, content),) = stored.items()
        if letter in ("N", "S"):
            return self._put_item("#v = :seen", names, f'":seen":{{"{letter}":{quoted(content)}}}')
        return self._put_item("attribute_type(#v, :kind)", names, f'":kind":{{"S":"{letter}"}}')

    @property
    def _key(self) -> str:
        return quoted(self.write.collection.key[0].name)

    def _put_item(self, condition: str, names: str, values: str) -> str:
        collection = self.write.collection
        if self.encoded is None:
            members = key_text(collection, self.write.key)[1:-1]
            meta: tuple[str, ...] = (VERSION, GONE, EXPIRY)
        else:
            members, meta = self.encoded.members, (VERSION, HASH)
        item = ",".join([members, *(f'"{name}":{text}' for name, text in zip(meta, self.meta, strict=True))])
        given = f',"ExpressionAttributeValues":{{{values}}}' if values else ""
        return (
            f'{{"TableName":{quoted(collection.name)},"Item":{{{item}}},"ConditionExpression":"{condition}",'
            f'"ExpressionAttributeNames":{{{names}}}{given}}}'
        )

    def settle(self, outcome: Outcome, error: RowRefused | None = None) -> None:
        self.result = Result(outcome, error)

    def after_look(self, item: dict[str, Any] | None) -> None:
        """`item`: what stands under the key, None for nothing."""
        if item is None:
            self.step = Step.REPLACE if self.sure else Step.INSERT
            return
        stored = item.get(VERSION)
        if stored is None:
            self.step = Step.REPLACE
        elif not stored.get("N", "").lstrip("-").isdigit():
            self.settle(Outcome.REFUSED, _foreign_version())
        else:
            self._after_version(int(stored["N"]))

    def _after_version(self, stored: int) -> None:
        if stored < self.write.version:
            self.step = Step.REPLACE if self.sure else Step.UPDATE
        elif stored > self.write.version or not self.sent:
            self.settle(Outcome.STALE)
        elif isinstance(self.write, Delete):
            self.step = Step.REPLACE  # the answer that named the attributes left behind was lost
        else:
            self.settle(Outcome.APPLIED)


def _foreign_version() -> WriteRefused:
    return WriteRefused(
        f"an item that docferry did not write has another kind of {VERSION}",
        remedy=f"Remove that item, or its attribute {VERSION}; then `docferry deadletters replay`.",
    )


def batches(entries: Iterable[Entry]) -> Iterator[list[tuple[Entry, str]]]:
    """Entries with their statements, as many as go into one request. A large item goes alone."""
    batch: list[tuple[Entry, str]] = []
    size = 0
    for entry in entries:
        statement = entry.statement()
        if batch and (len(batch) == BATCH_STATEMENTS or size + len(statement) > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append((entry, statement))
        size += len(statement)
    if batch:
        yield batch
