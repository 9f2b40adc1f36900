"""An application that remembers what it committed, and when: at any moment it can tell whether docferry has confirmed
something that is neither at the target nor in the dead letters."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final

import psycopg

from ..acceptance.comparison import Mirrored, assert_same
from ..acceptance.conftest import Ferry
from ..acceptance.workload import big_xml

__all__ = ["MIRRORS", "Journal"]

TABLES: Final = ("orders", "carts", "archive")
MIRRORS: Final[tuple[dict[str, Any], ...]] = tuple(
    {"table": f"public.{name}", "collection": name, "documents": {"note": {"format": "json"}}} for name in TABLES
)
_SCHEMA: Final = "CREATE TABLE {} (id bigint PRIMARY KEY, seq bigint NOT NULL, note text, order_data xml)"
_KEYS: Final = 60
_ARCHIVE: Final = 1200
_BROKEN: Final = "{no JSON"

_Place = tuple[str, int]


@dataclass(frozen=True, slots=True)
class _State:
    """Of one key: the row's `seq`, None when there is none. `stored`: it can be, and is no dead letter."""

    seq: int | None
    stored: bool = True


@dataclass(slots=True)
class _Transaction:
    """`lsn` and `position`: of the log and of docferry's sequence, read behind its commit."""

    lsn: int
    position: int


@dataclass
class Journal:
    """One session that works on three tables, awkwardly: `orders`, `carts`, which is truncated now and then, and
    `archive`, which is large and is populated again and again."""

    ferry: Ferry
    seed: int = field(default_factory=lambda: random.randrange(2**32))
    excluded: frozenset[str] = frozenset()
    by_triggers: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        print(f"journal: seed={self.seed}")  # noqa: T201 - shown by pytest when the test fails
        self._rng = random.Random(self.seed)
        self._connection = psycopg.connect(self.ferry.dsn, autocommit=True)
        self._now: dict[_Place, _State] = {}
        self._history: dict[_Place, list[tuple[int, _State]]] = defaultdict(list)
        self._transactions: list[_Transaction] = [_Transaction(0, 0)]
        self._seq = 0
        self._columns = self._broken = 0
        self._fleeting: set[int] = set()
        for table in TABLES:
            self._connection.execute(_SCHEMA.format(table).encode())
        self._fill()

    def _fill(self) -> None:
        """Rows from before docferry: they belong to transaction 0."""
        self._connection.execute(
            "INSERT INTO archive SELECT n, n, '{\"n\":' || n || '}', xmlelement(name o, n)"
            " FROM generate_series(1, %s) n",
            [_ARCHIVE],
        )
        for number in range(1, _ARCHIVE + 1):
            self._note(0, ("archive", number), _State(number))
        self._seq = _ARCHIVE
        for number in range(1, _KEYS, 2):
            self._insert(0, "orders", number)

    def close(self) -> None:
        self._connection.close()

    # -- the work -----------------------------------------------------------------------------------------------------

    def step(self) -> None:
        """One transaction of the mixed kind."""
        with self._transaction() as number:
            for _ in range(self._rng.choice((1, 1, 1, 1, 4))):
                self._change(number)

    def truncate(self) -> None:
        """TRUNCATE, and some rows before and behind it."""
        for _ in range(2):
            with self._transaction() as number:
                for _ in range(3):
                    self._insert_free(number, "carts")
            with self._transaction() as number:
                self._connection.execute("TRUNCATE carts")
                for place in [place for place in self._now if place[0] == "carts"]:
                    self._note(number, place, _State(None))
                self._insert_free(number, "carts")

    def spoil(self) -> None:
        """Rows that become dead letters."""
        with self._transaction() as number:
            for _ in range(2):
                self._insert_broken(number)

    def mend(self, most: int = 1000) -> int:
        """Make some of those storable; returns how many."""
        places = [place for place, state in self._now.items() if not state.stored][:most]
        with self._transaction() as number:
            for place in places:
                self._update(number, place, note='{"mended": true}')
        return len(places)

    def delete(self) -> None:
        """Some rows go."""
        with self._transaction() as number:
            for place in self._some("orders")[:5]:
                self._delete(number, place)

    def reread(self) -> None:
        """Changes that do not carry the whole row."""
        with self._transaction() as number:
            for place in self._some("orders")[:4]:
                self._update(number, place)

    def add_column(self) -> None:
        """A change of the schema, which has the archive populated again."""
        self._columns += 1
        name = f"extra{self._columns}"
        self._connection.execute(f"ALTER TABLE archive ADD COLUMN {name} int DEFAULT {self._columns}".encode())

    @property
    def unstored(self) -> list[int]:
        """The keys of the orders that are dead letters, or will be."""
        return [key for (_, key), state in self._now.items() if not state.stored]

    def _transaction(self) -> _Committing:
        return _Committing(self)

    def _change(self, number: int) -> None:
        kind = self._rng.choices(
            ["insert", "beside", "document", "delete", "move", "archive", "broken", "mended"],
            [25, 30, 12, 12, 12, 6, 1, 1],
        )[0]
        some = self._some("orders")
        match kind:
            case "insert":
                self._insert_free(number, "orders")
            case "broken":
                self._fleeting.add(self._insert_broken(number))
            case "beside" if some:
                self._update(number, some[0])
            case "document" if some:
                self._update(number, some[0], document=big_xml(self._rng, 4000))
            case "delete" if some:
                self._delete(number, some[0])
            case "move" if some:
                self._move(number, some[0])
            case "archive":
                self._update(number, ("archive", self._rng.randint(1, _ARCHIVE)))
            case "mended":
                # Not those of spoil(): whether their dead letters are still there is asked at the end.
                for key in [key for key in self.unstored if key in self._fleeting][:1]:
                    self._update(number, ("orders", key), note='{"mended": true}')
            case _:
                pass

    def _some(self, table: str) -> list[_Place]:
        """Places with a row that can be stored, in no order."""
        places = [place for place, state in self._now.items() if place[0] == table and state.seq and state.stored]
        self._rng.shuffle(places)
        return places

    def _insert_free(self, number: int, table: str) -> None:
        free = [key for key in range(1, _KEYS) if self._now.get((table, key), _State(None)).seq is None]
        if free:
            self._insert(number, table, self._rng.choice(free))

    def _insert_broken(self, number: int) -> int:
        """Under a key that never had an item: what a key had before it could not be stored stays."""
        self._broken += 1
        self._insert(number, "orders", _KEYS + self._broken, _BROKEN)
        return _KEYS + self._broken

    def _insert(self, number: int, table: str, key: int, note: str | None = '{"a": null}') -> None:
        self._seq += 1
        document = big_xml(self._rng, 4000) if table == "orders" else None
        self._connection.execute(f"INSERT INTO {table} (id, seq, note, order_data) VALUES (%s, %s, %s, %s)".encode(),
                                 [key, self._seq, note, document])  # fmt: skip
        self._note(number, (table, key), _State(self._seq, stored=note != _BROKEN))

    def _update(self, number: int, place: _Place, *, note: str | None = None, document: str | None = None) -> None:
        self._seq += 1
        table, key = place
        statement = f"UPDATE {table} SET seq = %s, note = coalesce(%s, note)"
        parameters: list[Any] = [self._seq, note]
        if document is not None:
            statement += ", order_data = %s"
            parameters.append(document)
        self._connection.execute(f"{statement} WHERE id = %s".encode(), [*parameters, key])
        self._note(number, place, _State(self._seq))

    def _delete(self, number: int, place: _Place) -> None:
        self._connection.execute(f"DELETE FROM {place[0]} WHERE id = %s".encode(), [place[1]])
        self._note(number, place, _State(None))

    def _move(self, number: int, place: _Place) -> None:
        free = [key for key in range(1, _KEYS) if self._now.get(("orders", key), _State(None)).seq is None]
        if not free:
            return
        self._seq += 1
        to = self._rng.choice(free)
        self._connection.execute("UPDATE orders SET id = %s, seq = %s WHERE id = %s", [to, self._seq, place[1]])
        self._note(number, place, _State(None))
        self._note(number, ("orders", to), _State(self._seq))

    def _note(self, number: int, place: _Place, state: _State) -> None:
        self._now[place] = state
        self._history[place].append((number, state))

    # -- what must hold -----------------------------------------------------------------------------------------------

    def assert_nothing_confirmed_too_early(self) -> None:
        """Whatever the source was told is durable is at the target or in the dead letters."""
        confirmed = self._confirmed()
        items = {table: self._seqs(table) for table in TABLES}
        buried = {(row[0].rpartition(".")[2], int(row[1])) for row in self.ferry.query(
            "SELECT table_name, key->>'id' FROM docferry.dead_letters")}  # fmt: skip
        lost = []
        for place, history in self._history.items():
            done = [index for index, (number, _) in enumerate(history) if confirmed(place, number)]
            if not done:
                continue
            allowed = [state for _, state in history[done[-1] :]]
            item = items[place[0]].get(place[1])
            if not any(state.seq == item if state.stored else place in buried for state in allowed):
                lost.append(f"{place}: item seq={item}, dead letter: {place in buried}, confirmed: {allowed[0]}")
        assert not lost, f"{len(lost)} changes are confirmed and not durable: {lost[:8]}"

    def assert_same(self) -> None:
        """Items equal rows, and what cannot be stored is a dead letter."""
        mirrors = [
            Mirrored(
                table,
                self.ferry.prefix + table,
                formats={"note": "json"},
                exclude=self.excluded,
                unstored=lambda row: bool(row["note"] == _BROKEN),
            )
            for table in TABLES
        ]
        assert_same(self.ferry.dsn, self.ferry.client(), *mirrors)
        buried = {int(key) for (key,) in self.ferry.query("SELECT key->>'id' FROM docferry.dead_letters")}
        assert buried >= set(self.unstored)

    def _confirmed(self) -> Callable[[_Place, int], bool]:
        """Whether a transaction counts as done with by docferry, as far as a key is concerned."""
        populated = {table.rpartition(".")[2]: key for table, key in self._populated()}
        if self.ferry.source.get("capture") == "outbox":
            waiting = sorted(position for (position,) in self.ferry.query("SELECT position FROM docferry.outbox"))
            left = {n for n in range(1, len(self._transactions)) if any(self._holds(n, one) for one in waiting)}

            def is_done(number: int) -> bool:
                return number not in left
        else:
            ((told,),) = self.ferry.query(
                "SELECT (confirmed_flush_lsn - '0/0')::bigint FROM pg_replication_slots"
                f" WHERE slot_name = '{self.ferry.slot}'"
            )

            def is_done(number: int) -> bool:
                return self._transactions[number].lsn <= int(told)

        return lambda place, number: is_done(number) if number else place[1] <= populated.get(place[0], 0)

    def _holds(self, number: int, position: int) -> bool:
        """Whether a position of the sequence is one of the transaction's."""
        return self._transactions[number - 1].position < position <= self._transactions[number].position

    def _populated(self) -> Iterator[tuple[str, int]]:
        """The greatest key of each table up to which its first backfill says it is done."""
        for table, state, done_key in self.ferry.query(
            "SELECT DISTINCT ON (table_name) table_name, state, done_key[1] FROM docferry.backfills"
            " ORDER BY table_name, (state = 'done') DESC, id"
        ):
            yield table, 2**62 if state == "done" else int(done_key or 0)

    def _seqs(self, table: str) -> dict[int, int]:
        """The `seq` of each living item."""
        found = {}
        for page in self.ferry.client().get_paginator("scan").paginate(
            TableName=self.ferry.prefix + table, ConsistentRead=True
        ):  # fmt: skip
            for item in page["Items"]:
                if "_gone" not in item:
                    found[int(item["id"]["N"])] = int(Decimal(item["seq"]["N"]))
        return found


class _Committing:
    """A transaction of the journal: its number inside, its place in the source's history behind it."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._inner = journal._connection.transaction()

    def __enter__(self) -> int:
        self._inner.__enter__()
        return len(self._journal._transactions)

    def __exit__(self, *error: Any) -> None:
        self._inner.__exit__(*error)
        journal = self._journal
        with journal._connection.cursor() as cursor:
            if not journal.by_triggers:
                cursor.execute("SELECT to_regclass('docferry.positions') IS NOT NULL")
                journal.by_triggers = cursor.fetchall() == [(True,)]
            positions = "(SELECT last_value FROM docferry.positions)" if journal.by_triggers else "0"
            cursor.execute(f"SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint, {positions}".encode())
            ((lsn, position),) = cursor.fetchall()
        journal._transactions.append(_Transaction(lsn, position))
