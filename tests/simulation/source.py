"""PostgreSQL, as far as a mirror can see it: transactions with locks, a log, what is visible when, a slot.

A commit reaches the stream before readers see it; locks are held until they do. TRUNCATE shuts everybody out, readers
too, until then.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, NamedTuple

from docferry.capture.snapshot import is_visible
from docferry.change.model import UNCHANGED, Column, Op, PgType, Relation, Row

__all__ = [
    "RECORD",
    "TABLES",
    "Commit",
    "Place",
    "Source",
    "Transaction",
    "Values",
    "keys_of",
    "relation_of",
    "row_of",
]

RECORD: Final = 8
TABLES: Final = {"public.orders": (1, 2, 3, 4), "public.parts": (1, 2)}
"""The keys that rows of each table may have."""
_INT, _TEXT = PgType(23, "int4"), PgType(25, "text")


class Place(NamedTuple):
    """Where a row may be."""

    table: str
    key: int


class Values(NamedTuple):
    """A row but for its key. `doc` is what a TOAST table would hold."""

    name: bytes
    doc: bytes


def relation_of(table: str) -> Relation:
    """A table as a stream or a query describes it: each anew."""
    schema, name = table.split(".")
    columns = (Column("id", _INT, is_key=True), Column("name", _TEXT), Column("doc", _TEXT))
    return Relation(list(TABLES).index(table) + 100, schema, name, columns)


def keys_of(table: str) -> Relation:
    """The same with the key alone."""
    whole = relation_of(table)
    return Relation(whole.oid, whole.schema, whole.name, whole.columns[:1])


def row_of(key: int, values: Values) -> Row:
    """A row as text."""
    return (str(key).encode(), *values)


@dataclass(frozen=True)
class Statement:
    """A row change, or a TRUNCATE (`place` has key 0). `row` lacks the document when it did not change."""

    op: Op
    place: Place
    row: Row | None
    old: Row | None
    left: Place | None = None


@dataclass(frozen=True)
class Commit:
    """A committed transaction in the log. `position` is where its commit record starts, `end` where that ends."""

    number: int
    position: int
    end: int
    at: datetime
    statements: list[Statement]


@dataclass(eq=False)
class Transaction:
    """`before`: what its places held before it touched them; they are locked until it is visible or rolled back.
    `states`: what its statements made of them, by their number."""

    number: int
    statements: list[Statement] = field(default_factory=list)
    before: dict[Place, Values | None] = field(default_factory=dict)
    truncated: set[str] = field(default_factory=set)
    states: list[tuple[int, Place, Values | None]] = field(default_factory=list)
    committed: bool = False


class Source:
    """Two tables and their log. `current` holds what every transaction so far has written, `visible` what readers see.
    `states`: what every place held from which statement on, as ((position of the commit, number), values)."""

    def __init__(self, *, full_identity: bool) -> None:
        self.full_identity = full_identity
        self.current: dict[Place, Values] = {}
        self.visible: dict[Place, Values] = {}
        self.log: list[Commit] = []
        self.open: list[Transaction] = []
        self.states: dict[Place, list[tuple[tuple[int, int], Values | None]]] = defaultdict(list)
        self.timeline = 1
        self.end = 1000
        self.slot: int | None = None
        self.slot_is_lost = False
        self.is_read = False
        self._number = 2**32 - 5  # ids wrap around soon
        self._ended = self._number - 1

    # -- the log ------------------------------------------------------------------------------------------------------

    def record(self) -> int:
        """Append a record; returns where it starts. The next one starts where it ends."""
        self.end += RECORD
        return self.end - RECORD

    def behind(self, position: int) -> int:
        """The index of the first commit of the log that ends behind this position."""
        return bisect_right(self.log, position, key=lambda one: one.end)

    def create_slot(self) -> None:
        """It begins here; transactions that are open come as a whole when they commit."""
        self.record()
        self.slot = self.end
        self.slot_is_lost = False

    # -- transactions -------------------------------------------------------------------------------------------------

    def begin(self) -> Transaction:
        self.record()
        transaction = Transaction(self._next_number())
        self.open.append(transaction)
        return transaction

    def end_a_transaction(self) -> None:
        """One that writes nothing."""
        self._ended = max(self._ended, self._next_number())

    def may_touch(self, transaction: Transaction, *places: Place) -> bool:
        """False if it would have to wait for another one."""
        others = [one for one in self.open if one is not transaction]
        return not any(
            place.table in one.truncated or place in one.before for one in others for place in places
        ) and not any(one.truncated for one in others)

    def may_truncate(self, transaction: Transaction, table: str) -> bool:
        """The same for TRUNCATE."""
        others = [one for one in self.open if one is not transaction]
        return not any(one.truncated or any(place.table == table for place in one.before) for one in others)

    def may_read(self, table: str) -> bool:
        """False if a reader would have to wait."""
        return not any(table in one.truncated for one in self.open)

    def insert(self, transaction: Transaction, place: Place, values: Values) -> None:
        self._set(transaction, place, values)
        self._log(transaction, Statement(Op.INSERT, place, row_of(place.key, values), None))

    def update(self, transaction: Transaction, place: Place, to: Place, values: Values) -> None:
        old = self.current[place]
        if to != place:
            self._set(transaction, place, None)
        self._set(transaction, to, values)
        row = row_of(to.key, values)
        if values.doc == old.doc:
            row = (*row[:2], UNCHANGED)
        before = self._identity(place, old) if self.full_identity or to != place else None
        self._log(transaction, Statement(Op.UPDATE, to, row, before, place if to != place else None))

    def delete(self, transaction: Transaction, place: Place) -> None:
        old = self.current[place]
        self._set(transaction, place, None)
        self._log(transaction, Statement(Op.DELETE, place, None, self._identity(place, old)))

    def truncate(self, transaction: Transaction, table: str) -> None:
        for place in [one for one in self.current if one.table == table]:
            self._set(transaction, place, None)
        transaction.truncated.add(table)
        self._log(transaction, Statement(Op.TRUNCATE, Place(table, 0), None, None))

    def commit(self, transaction: Transaction, at: datetime) -> None:
        """It reaches the stream; readers do not see it before `appear`."""
        transaction.committed = True
        position = self.record()
        self.log.append(Commit(transaction.number, position, self.end, at, transaction.statements))
        for number, place, values in transaction.states:
            self.states[place].append(((position, number), values))

    def appear(self, transaction: Transaction) -> None:
        for place in transaction.before:
            if place in self.current:
                self.visible[place] = self.current[place]
            else:
                self.visible.pop(place, None)
        self._close(transaction)

    def roll_back(self, transaction: Transaction) -> None:
        for place, values in transaction.before.items():
            self._put(place, values)
        self._close(transaction)

    def fail_over(self) -> None:
        """To a copy that has all that was committed."""
        for transaction in list(self.open):
            if transaction.committed:
                self.appear(transaction)
            else:
                self.roll_back(transaction)
        self.timeline += 1
        self.record()

    # -- readers ------------------------------------------------------------------------------------------------------

    def snapshot(self) -> str:
        """As PostgreSQL's: it lists nothing above the highest number that has ended."""
        above = self._ended + 1
        running = [one.number for one in self.open if one.number < above]
        return f"{min(running, default=above)}:{above}:{','.join(map(str, running))}"

    def sees(self, transactions: Collection[int]) -> bool:
        """Whether a reader sees all of them."""
        snapshot = self.snapshot()
        return all(is_visible(one, snapshot) for one in transactions)

    def rows(self, table: str) -> dict[int, Values]:
        """What a reader sees, in the order of the key."""
        return {place.key: values for place, values in sorted(self.visible.items()) if place.table == table}

    def since(self, place: Place, position: int, number: int) -> list[Values | None]:
        """What a place held after that statement and later."""
        states = self.states[place]
        behind = bisect_right(states, (position, number), key=lambda one: one[0])
        later = [values for _, values in states[max(behind - 1, 0) :]]
        return later if behind else [None, *later]

    # -- inside -------------------------------------------------------------------------------------------------------

    def _next_number(self) -> int:
        number = self._number
        self._number += 1
        while self._number & 0xFFFFFFFF < 3:  # PostgreSQL gives these to no transaction
            self._number += 1
        return number

    def _close(self, transaction: Transaction) -> None:
        self.open.remove(transaction)
        self._ended = max(self._ended, transaction.number)

    def _identity(self, place: Place, old: Values) -> Row:
        return row_of(place.key, old) if self.full_identity else (str(place.key).encode(), UNCHANGED, UNCHANGED)

    def _set(self, transaction: Transaction, place: Place, values: Values | None) -> None:
        transaction.before.setdefault(place, self.current.get(place))
        transaction.states.append((len(transaction.statements), place, values))
        self._put(place, values)

    def _put(self, place: Place, values: Values | None) -> None:
        if values is None:
            self.current.pop(place, None)
        else:
            self.current[place] = values

    def _log(self, transaction: Transaction, statement: Statement) -> None:
        self.record()
        transaction.statements.append(statement)
