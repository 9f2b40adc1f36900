"""Writing under the fence: what to send for a write, and what each answer means.

    INSERT --DuplicateItem--> UPDATE --condition failed--> LOOK --nothing there--> INSERT
                                                            |--an older version--> UPDATE
                                                            |--as new or newer---> stale
                                                            '--no version at all-> REPLACE

DuplicateItem never means stale by itself, not even after an UPDATE that found nothing: two batches in flight may both
find nothing, and the older one may be the first to insert. Only a version that has been read, or the condition of
REPLACE, settles it. Every turn of the loop is caused by a write of somebody else, and versions only grow, so it ends.

REPLACE is one conditional PutItem. It is the sure road: for items that carry no version, for tombstones that still
carry attributes nobody knew of, for statements that would be too long, and for whatever PartiQL does not take. Only
what PutItem refuses too is refused.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from docferry.document.model import Collection, Delete, Put, Write
from docferry.errors import RowRefused, Verdict, WriteRefused
from docferry.target.contract import Item, Outcome, Result
from docferry.target.dynamodb_entry import Entry, Step, batches
from docferry.target.dynamodb_errors import CONDITION_FAILED, DUPLICATE, THROTTLED, Fault, fault_of_statement
from docferry.target.dynamodb_items import META, VERSION, binary_text, decode_item, decode_key, encode, key_texts
from docferry.target.dynamodb_reading import read_items
from docferry.target.dynamodb_shapes import Shapes

if TYPE_CHECKING:
    from docferry.target.dynamodb_connection import Connection

__all__ = ["Writer"]

_log = logging.getLogger("docferry.target")

_DOING = "a write"


class Writer:
    """Carries out the writes of one call after another, from several threads at once."""

    def __init__(self, connection: Connection, lifetime: float, clock: Callable[[], float]) -> None:
        self._connection = connection
        self._lifetime = lifetime
        self._clock = clock
        self.shapes = Shapes()
        self._warned: set[str] = set()

    def write(self, writes: Sequence[Write], floors: dict[str, int]) -> list[Result]:
        results: list[Result | None] = []
        entries: list[tuple[int, Entry]] = []
        for place, write in enumerate(writes):
            if floors and write.version < floors.get(write.collection.name, -1):
                results.append(Result(Outcome.STALE))
                continue
            try:
                entries.append((place, self._entry(write)))
                results.append(None)
            except RowRefused as error:
                results.append(Result(Outcome.REFUSED, error))
        self._settle([entry for _, entry in entries])
        for place, entry in entries:
            results[place] = entry.result
        return [result for result in results if result is not None]

    def replace(self, write: Write, seen: Item, floors: dict[str, int]) -> Result:
        """See Target.replace."""
        collection = write.collection
        if write.version < floors.get(collection.name, -1):
            return Result(Outcome.STALE)
        # The version as it is stored, which need not be a number.
        stored = next(read_items(self._connection, collection, [write.key]), None)
        if stored is None or decode_item(collection, stored) != seen:
            return Result(Outcome.STALE)
        try:
            text = self._entry(write).replacement_of(stored.get(VERSION))
            self._connection.send_until_answered("PutItem", text, _DOING, collection.name, CONDITION_FAILED)
        except RowRefused as error:
            return Result(Outcome.REFUSED, error)
        except Fault:
            return Result(Outcome.STALE)
        return Result(Outcome.APPLIED)

    def _entry(self, write: Write) -> Entry:
        version = f'{{"N":"{write.version}"}}'
        if isinstance(write, Delete):
            keys = key_texts(write.collection, write.key)
            expiry = int(self._clock() + self._lifetime)
            meta = [version, '{"BOOL":true}', f'{{"N":"{expiry}"}}']
            return Entry(write, self.shapes.tombstone(write.collection), keys, "", meta)
        encoded = encode(write.collection, write.key, write.document)
        shape = self.shapes.put(write.collection, tuple(write.document))
        texts = encoded.texts
        columns = "".join([texts[name] + "," for name in shape.columns])
        entry = Entry(write, shape, encoded.keys, columns, [version, binary_text(encoded.hash)])
        entry.encoded = encoded
        return entry

    def _settle(self, entries: list[Entry]) -> None:
        attempt = 0
        while entries:
            fault = self._round(entries)
            left = [entry for entry in entries if entry.result is None]
            if len(left) < len(entries):
                self._connection.observer.moved()
            entries = left
            if fault is None:
                attempt = 0
            elif entries:
                attempt = self._connection.wait(attempt, fault, _DOING, entries[0].write.collection.name)

    def _round(self, entries: list[Entry]) -> Fault | None:
        """One step for each entry. Returns a fault that is worth a wait, if any entry met one."""
        waits: list[Fault] = []
        for batch in batches([entry for entry in entries if entry.step in (Step.INSERT, Step.UPDATE)]):
            self._execute(batch, waits)
        for entry in entries:
            if entry.step is Step.REPLACE and entry.result is None:
                self._replace(entry, waits)
        looking = [entry for entry in entries if entry.step is Step.LOOK]
        if looking:
            self._look(looking)
        return waits[0] if waits else None

    def _execute(self, batch: list[tuple[Entry, str]], waits: list[Fault]) -> None:
        text = '{"Statements":[' + ",".join([statement for _, statement in batch]) + "]}"
        self._connection.observer.requested(len(batch))
        try:
            answers = self._connection.send("BatchExecuteStatement", text)["Responses"]
        except Fault as fault:
            if fault.verdict is not Verdict.DEAD_LETTER:
                self._failed([entry for entry, _ in batch], fault, waits)
            elif len(batch) == 1:
                self._take_sure_road(batch[0][0], fault)
            else:
                # One bad statement may sink a whole request. Nothing of it was applied: find the bad one by halves.
                middle = len(batch) // 2
                self._execute(batch[:middle], waits)
                self._execute(batch[middle:], waits)
            return
        for (entry, _), answer in zip(batch, answers, strict=True):
            if "Error" in answer:
                self._after_error(entry, fault_of_statement(answer["Error"]), waits)
            else:
                self._after_success(entry, answer.get("Item"))

    def _after_success(self, entry: Entry, item: dict[str, Any] | None) -> None:
        collection = entry.write.collection
        self._connection.seen(collection.name)
        if isinstance(entry.write, Put) or entry.step is Step.INSERT:
            entry.settle(Outcome.APPLIED)
            return
        left = _beside_key(collection, item) if item is not None else None
        if left == set():
            entry.settle(Outcome.APPLIED)
            return
        self.shapes.learn(collection, left or ())
        entry.sent = True  # the tombstone stands already
        entry.step = Step.REPLACE

    def _after_error(self, entry: Entry, fault: Fault, waits: list[Fault]) -> None:
        if fault.code in DUPLICATE:
            entry.step = Step.UPDATE
        elif fault.code in CONDITION_FAILED:
            entry.step = Step.LOOK
        elif fault.verdict is Verdict.DEAD_LETTER:
            self._take_sure_road(entry, fault)
        else:
            self._failed([entry], fault, waits)

    def _take_sure_road(self, entry: Entry, fault: Fault) -> None:
        name = entry.write.collection.name
        if name not in self._warned:
            self._warned.add(name)
            _log.warning("%s: a statement was refused (%s); this item goes by PutItem", name, fault)
        entry.sure = True
        entry.step = Step.REPLACE

    def _failed(self, entries: list[Entry], fault: Fault, waits: list[Fault]) -> None:
        """A fault that is no row's: the entries stay where they are for the next round, or all of it ends here."""
        for entry in entries:
            entry.sent = True
            self._connection.check(fault, _DOING, entry.write.collection.name)
            if fault.code in THROTTLED:
                self._connection.observer.throttled(entry.write.collection.name)
        waits.append(fault)

    def _replace(self, entry: Entry, waits: list[Fault]) -> None:
        self._connection.observer.requested(1)
        try:
            self._connection.send("PutItem", entry.replacement())
        except Fault as fault:
            if fault.code in CONDITION_FAILED:
                if entry.sent and isinstance(entry.write, Put):
                    entry.step = Step.LOOK
                else:
                    entry.settle(Outcome.STALE)
            elif fault.verdict is Verdict.DEAD_LETTER:
                entry.settle(Outcome.REFUSED, WriteRefused(f"DynamoDB refused the item: {fault}"))
            else:
                self._failed([entry], fault, waits)
        else:
            self._connection.seen(entry.write.collection.name)
            entry.settle(Outcome.APPLIED)

    def _look(self, entries: list[Entry]) -> None:
        by_collection: dict[str, list[Entry]] = defaultdict(list)
        for entry in entries:
            by_collection[entry.write.collection.name].append(entry)
        for alike in by_collection.values():
            collection = alike[0].write.collection
            keys = [entry.write.key for entry in alike]
            found = {
                decode_key(collection, item): item
                for item in read_items(self._connection, collection, keys, (VERSION,))
            }
            for entry in alike:
                entry.after_look(found.get(entry.write.key))


def _beside_key(collection: Collection, item: dict[str, Any]) -> set[str]:
    return item.keys() - {attribute.name for attribute in collection.key} - META
