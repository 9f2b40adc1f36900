"""A dead letter is settled by the row as it is now, under the version of the change that failed."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, cast

import pytest

from docferry.capture.contract import Ledger, RowReader, TransactionState
from docferry.change.model import Column, Op, PgType, Relation, Row
from docferry.deadletter.contract import DeadLetter, DeadLetters, StoredDeadLetter
from docferry.document.mirror import Mirror
from docferry.document.model import Collection as Items
from docferry.document.model import Delete, KeyAttribute, KeyKind, MirrorSpec, Put
from docferry.operate.reread import Replay, ReplayResult
from docferry.target.memory import MemoryTarget

NUMERIC, TEXT = PgType(1700, "numeric"), PgType(25, "text")
T = Relation(7, "public", "t", (Column("id", NUMERIC, is_key=True), Column("doc", TEXT)))
U = Relation(8, "public", "u", (Column("id", TEXT, is_key=True), Column("doc", TEXT)))
ITEMS = Items("t", (KeyAttribute("id", KeyKind.NUMBER),))
OTHERS = Items("u", (KeyAttribute("id", KeyKind.TEXT),))
NOW = datetime(2026, 1, 1, tzinfo=UTC)


class Rows:
    """contract.RowReader over rows by the text of their key; the database knows that 1.0 and 1.00 are equal."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, Row]] = {"public.t": {}, "public.u": {}}
        self.largest = 1 << 30
        self.on_read: Callable[[], None] = lambda: None

    def relation(self, table: str) -> Relation:
        return T if table == "public.t" else U

    def read_rows(
        self,
        table: str,
        _key: Sequence[str],
        keys: Sequence[tuple[str, ...]],
        transactions: Collection[int],
        max_bytes: int,
    ) -> tuple[list[tuple[Relation, Row]], bool]:
        assert not transactions
        wanted = {_equal(table, text) for (text,) in keys}
        found = [(self.relation(table), row) for text, row in self.rows[table].items() if _equal(table, text) in wanted]
        self.on_read()
        if sum(len(value) for _, row in found for value in row if isinstance(value, bytes)) > min(
            max_bytes, self.largest
        ):
            return found[:1], len(found) == 1
        return found, True


def _equal(table: str, text: str) -> object:
    return float(text) if table == "public.t" else text


class Letters:
    """contract.DeadLetters: one for each key."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, str], StoredDeadLetter] = {}

    def add(self, letters: Sequence[DeadLetter]) -> None:
        for letter in letters:
            place = letter.table, letter.key["id"]
            known = self.kept.get(place)
            attempts = known.attempts + 1 if known else 1
            self.kept[place] = StoredDeadLetter(known.id if known else len(self.kept) + 1, letter, attempts, NOW, NOW)

    def remove(self, letters: Sequence[StoredDeadLetter], outcomes: Mapping[int, str] | None = None) -> int:  # noqa: ARG002
        before = len(self.kept)
        for stored in letters:
            self.kept = {place: one for place, one in self.kept.items() if one != stored}
        return before - len(self.kept)


class Guard:
    """The ledger's part in it."""

    def __init__(self) -> None:
        self.held = False
        self.truncated = 0

    @contextmanager
    def old_writes(self) -> Iterator[Callable[[], None]]:
        self.held = True
        yield lambda: None
        self.held = False

    def floor(self, _table: str) -> int:
        return self.truncated


class World:
    def __init__(self) -> None:
        self.rows, self.letters, self.guard, self.target = Rows(), Letters(), Guard(), MemoryTarget()
        self.target.create(ITEMS)
        self.target.create(OTHERS)
        self.mirrors = {
            "public.t": Mirror(MirrorSpec("public.t", ("id",), ITEMS), 7),
            "public.u": Mirror(MirrorSpec("public.u", ("id",), OTHERS), 8),
        }
        self.told: list[ReplayResult] = []
        self.rate = 1e9

    def died(self, key: str, version: int, table: str = "public.t") -> None:
        self.letters.add([DeadLetter(table, {"id": key}, version, Op.UPDATE, "too-large", "too large")])

    def row(self, key: str, doc: str | None, table: str = "public.t") -> None:
        self.rows.rows[table][key] = (key.encode(), None if doc is None else doc.encode())

    def replay(self, *, dry_run: bool = False) -> dict[str, str]:
        replay = Replay(
            self.mirrors,
            cast("RowReader", self.rows),
            self.target,
            cast("DeadLetters", self.letters),
            cast("Ledger", self.guard),
            self.rate,
            self.told.append,
        )
        results = replay.run(list(self.letters.kept.values()), dry_run=dry_run)
        assert results == self.told
        assert not self.guard.held
        return {result.stored.letter.key["id"]: result.outcome for result in results}

    def items(self) -> dict[str, tuple[int, object]]:
        return {
            str(item.key[0]): (item.version, None if item.document is None else item.document["doc"])
            for collection in (ITEMS, OTHERS)
            for item in self.target.scan(collection)
        }


@pytest.fixture
def world() -> World:
    return World()


def test_the_current_row_is_written_with_the_version_of_the_change(world: World) -> None:
    world.died("1", 50)
    world.row("1", "mended")
    assert world.replay() == {"1": "applied"}
    assert world.items() == {"1": (50, "mended")}
    assert world.letters.kept == {}


def test_a_row_that_is_gone_is_deleted(world: World) -> None:
    world.target.write([Put(ITEMS, (1,), 40, {"id": 1, "doc": "old"})])
    world.died("1", 50)
    assert world.replay() == {"1": "deleted"}
    assert world.items() == {"1": (50, None)}


@pytest.mark.parametrize("version", [50, 60])
def test_what_is_newer_at_the_target_stays(world: World, version: int) -> None:
    world.target.write([Put(ITEMS, (1,), version, {"id": 1, "doc": "newer"}), Delete(ITEMS, (2,), version)])
    world.died("1", 50)
    world.died("2", 50)
    world.row("1", "current")
    assert world.replay() == {"1": "superseded", "2": "superseded"}
    assert world.items() == {"1": (version, "newer"), "2": (version, None)}
    assert world.letters.kept == {}


def test_a_row_that_still_cannot_be_stored_is_kept(world: World) -> None:
    world.died("1", 50)
    world.died("2", 51)
    world.row("1", "x" * 500_000)
    world.row("2", "small")
    assert world.replay() == {"1": "refused", "2": "applied"}
    (stored,) = world.letters.kept.values()
    assert (stored.letter.key, stored.letter.version, stored.attempts) == ({"id": "1"}, 50, 2)


def test_a_dry_run_says_the_same_and_writes_nothing(world: World) -> None:
    world.target.write([Put(ITEMS, (4,), 99, {"id": 4, "doc": "newer"})])
    for number in range(1, 5):
        world.died(str(number), 50)
    world.row("1", "x" * 500_000)
    world.row("2", "small")
    before, letters = world.items(), dict(world.letters.kept)
    expected = {"1": "refused", "2": "applied", "3": "deleted", "4": "superseded"}
    assert world.replay(dry_run=True) == expected
    assert (world.items(), world.letters.kept) == (before, letters)
    world.told.clear()
    assert world.replay() == expected


def test_one_number_written_in_two_ways_is_one_row(world: World) -> None:
    """The column's scale has changed since: the row is there, under another text."""
    world.died("1", 50)
    world.row("1.00", "current")
    assert world.replay() == {"1": "applied"}
    assert world.items() == {"1": (50, "current")}


def test_two_letters_of_one_row_are_settled_by_the_newer(world: World) -> None:
    world.died("1.00", 60)
    world.died("1", 50)
    world.row("1.00", "current")
    assert world.replay() == {"1": "superseded", "1.00": "applied"}
    assert world.items() == {"1": (60, "current")}
    assert world.letters.kept == {}


def test_a_key_that_cannot_be_one(world: World) -> None:
    world.died("", 50, "public.u")
    world.row("", "still there", "public.u")
    assert world.replay() == {"": "refused"}
    assert len(world.letters.kept) == 1
    world.rows.rows["public.u"].clear()
    world.told.clear()
    assert world.replay() == {"": "deleted"}
    assert world.letters.kept == {}
    assert world.items() == {}


def test_a_table_that_is_not_mirrored_any_more(world: World) -> None:
    world.died("1", 50)
    world.mirrors.clear()
    assert world.replay() == {"1": "unmirrored"}
    assert world.told[0].problem
    assert world.told[0].remedy
    assert len(world.letters.kept) == 1


def test_nothing_is_swept_meanwhile(world: World) -> None:
    world.died("1", 50)
    seen: list[bool] = []
    world.rows.on_read = lambda: seen.append(world.guard.held)
    world.replay()
    assert seen == [True]


def test_a_table_that_is_truncated_meanwhile_stays_empty(world: World) -> None:
    """In another process, which has its floor to itself."""

    def truncate() -> None:
        world.guard.truncated = 70

    world.died("1", 50)
    world.row("1", "read before")
    world.rows.on_read = truncate
    world.replay()
    assert world.items() == {}


def test_many_letters_of_several_tables(world: World) -> None:
    for number in range(1, 131):
        world.died(str(number), number)
        world.row(str(number), f"doc {number}")
        world.died(f"u{number}", number, "public.u")
    assert set(world.replay().values()) == {"applied", "deleted"}
    assert len(world.items()) == 260


def test_rows_that_are_too_large_to_be_read_together_are_read_alone(world: World) -> None:
    world.rows.largest = 150_000
    for number in range(1, 4):
        world.died(str(number), number)
        world.row(str(number), "x" * 100_000)
    assert world.replay() == {"1": "applied", "2": "applied", "3": "applied"}


def test_the_rate_is_kept(world: World) -> None:
    world.rate = 500.0
    for number in range(60):
        world.died(str(number), 5)
    began = time.monotonic()
    world.replay()
    assert time.monotonic() - began >= 60 / 500


# -- letters that carry their event -----------------------------------------------------------------------------------


def sent(
    op: Op,
    version: int,
    key: str | None = None,
    *,
    old_key: str | None = None,
    transaction: int = 700,
    subtransaction: int | None = None,
) -> DeadLetter:
    """A letter as the queue holds it."""
    named = {} if key is None else {"id": key}
    change = {"TG_OP": op.name, "table": "public.t", "version": str(version)}
    if subtransaction is not None:
        change["subtransaction"] = str(subtransaction)
    payload = {"docferry": 1, "transaction": str(transaction), "changes": [change], "relations": {}}
    old = None if old_key is None else {"id": old_key}
    return DeadLetter("public.t", named, version, op, "function-failed", "it broke", payload=payload, old_key=old)


class Gate:
    """contract.TransactionGate."""

    def __init__(self, **states: TransactionState) -> None:
        self.states = {int(name.removeprefix("t")): state for name, state in states.items()}
        self.asked: list[int] = []

    def state(self, transaction: int) -> TransactionState:
        self.asked.append(transaction)
        return self.states.get(transaction, TransactionState.COMMITTED)

    def rolled_back(self, subtransactions: Collection[int]) -> set[int]:
        return {one for one in subtransactions if self.states.get(one) is TransactionState.ABORTED}


class Queue(Letters):
    """contract.DeadLetters: every letter apart."""

    def add(self, letters: Sequence[DeadLetter]) -> None:
        for letter in letters:
            number = len(self.kept) + 1
            self.kept["", str(number)] = StoredDeadLetter(number, letter, 1, NOW, NOW)


class Ledger_(Guard):  # noqa: N801 - `Ledger` is the contract
    """The ledger's part in a TRUNCATE."""

    def __init__(self) -> None:
        super().__init__()
        self.backfills: list[str] = []

    def raise_floor(self, _table: str, version: int) -> None:
        self.truncated = max(self.truncated, version)

    def request_backfill(self, table: str, _reason: str, *, anew: bool = False) -> None:
        assert anew
        self.backfills.append(table)


class SentWorld(World):
    def __init__(self, *letters: DeadLetter, gate: Gate | None = None) -> None:
        super().__init__()
        self.letters, self.guard = Queue(), Ledger_()
        self.ledger = self.guard
        self.letters.add(letters)
        self.gate = gate
        self.seen: list[Collection[int]] = []

    def replayer(self) -> Replay:
        return Replay(
            self.mirrors,
            cast("RowReader", self),
            self.target,
            cast("DeadLetters", self.letters),
            cast("Ledger", self.guard),
            self.rate,
            gate=self.gate,
        )

    def relation(self, table: str) -> Relation:
        return self.rows.relation(table)

    def read_rows(
        self, table: str, key: Sequence[str], keys: Sequence[tuple[str, ...]], sent_by: Any, size: int
    ) -> Any:
        self.seen.append(set(sent_by))
        return self.rows.read_rows(table, key, keys, (), size)

    def outcomes(self, *, dry_run: bool = False) -> list[str]:
        """By version."""
        results = self.replayer().run(list(self.letters.kept.values()), dry_run=dry_run)
        return [one.outcome for one in sorted(results, key=lambda result: result.stored.letter.version)]


def test_a_row_that_was_moved_is_settled_under_both_keys() -> None:
    world = SentWorld(sent(Op.UPDATE, 50, "2", old_key="1"))
    world.target.write([Put(ITEMS, (1,), 40, {"id": 1, "doc": "old"})])
    world.row("2", "moved")
    assert world.outcomes(dry_run=True) == world.outcomes() == ["applied"]
    assert world.items() == {"1": (50, None), "2": (50, "moved")}
    assert world.letters.kept == {}


def test_another_row_took_the_key_that_was_left() -> None:
    world = SentWorld(sent(Op.UPDATE, 50, "2", old_key="1"), sent(Op.INSERT, 60, "1"))
    world.row("2", "moved")
    world.row("1", "took it")
    assert world.outcomes() == ["applied", "applied"]
    assert world.items() == {"1": (60, "took it"), "2": (50, "moved")}


def test_a_moved_row_that_cannot_be_stored_stays_a_letter_and_its_old_item_goes() -> None:
    world = SentWorld(sent(Op.UPDATE, 50, "2", old_key="1"))
    world.target.write([Put(ITEMS, (1,), 40, {"id": 1, "doc": "old"})])
    world.row("2", "x" * 500_000)
    assert world.outcomes() == ["refused"]
    assert world.items() == {"1": (50, None)}
    (stored,) = world.letters.kept.values()
    assert (stored.letter.cause, stored.letter.key, stored.letter.old_key) == ("too-large", {"id": "2"}, {"id": "1"})
    assert stored.letter.payload is not None


def test_what_fails_again_is_kept_before_it_is_removed() -> None:
    """The other way round, a death in between would lose it."""
    world = SentWorld(sent(Op.UPDATE, 50, "1"))
    world.row("1", "x" * 500_000)
    calls: list[str] = []
    add, remove = world.letters.add, world.letters.remove
    world.letters.add = lambda letters: (calls.append("add"), add(letters))[1]  # type: ignore[method-assign,func-returns-value]
    world.letters.remove = lambda letters, outcomes=None: (calls.append("remove"), remove(letters, outcomes))[1]  # type: ignore
    world.outcomes()
    assert calls == ["add", "remove"]
    assert len(world.letters.kept) == 1


def test_the_read_waits_for_the_transactions_that_sent_the_events() -> None:
    world = SentWorld(sent(Op.UPDATE, 50, "1", transaction=2**32 + 5), gate=Gate())
    world.row("1", "current")
    world.outcomes()
    assert world.seen == [{5}]


def test_what_was_rolled_back_is_dropped_and_what_is_open_waits() -> None:
    gate = Gate(t1=TransactionState.ABORTED, t2=TransactionState.IN_PROGRESS, t3=TransactionState.UNKNOWN)
    letters = [sent(Op.UPDATE, 50 + number, str(number), transaction=number) for number in range(1, 5)]
    world = SentWorld(*letters, gate=gate)
    for number in range(1, 5):
        world.row(str(number), "current")
    assert world.outcomes() == ["rolled-back", "pending", "applied", "applied"]
    assert set(world.items()) == {"3", "4"}
    assert [one.letter.key for one in world.letters.kept.values()] == [{"id": "2"}]
    assert world.seen == [{4}]


def test_what_a_savepoint_took_back_is_dropped_although_its_transaction_was_committed() -> None:
    gate = Gate(t702=TransactionState.ABORTED)
    kept, undone = sent(Op.UPDATE, 51, "1", subtransaction=701), sent(Op.TRUNCATE, 52, subtransaction=702)
    world = SentWorld(kept, undone, gate=gate)
    world.row("1", "current")
    assert world.outcomes() == ["applied", "rolled-back"]
    assert world.ledger.truncated == 0


def test_a_truncate_raises_the_floor_and_only_the_newest_is_applied() -> None:
    world = SentWorld(
        sent(Op.TRUNCATE, 40, transaction=4),
        sent(Op.UPDATE, 45, "1"),
        sent(Op.TRUNCATE, 50, transaction=5),
        sent(Op.UPDATE, 55, "2"),
        gate=Gate(t4=TransactionState.COMMITTED, t5=TransactionState.COMMITTED),
    )
    world.target.write([Put(ITEMS, (7,), 49, {"id": 7, "doc": "old"}), Put(ITEMS, (8,), 60, {"id": 8, "doc": "later"})])
    world.row("2", "later")
    expected = ["superseded", "superseded", "truncated", "applied"]
    assert world.outcomes(dry_run=True) == expected
    assert (world.ledger.truncated, len(world.items())) == (0, 2)
    assert world.outcomes() == expected
    assert world.ledger.truncated == 50
    assert world.items() == {"2": (55, "later"), "8": (60, "later")}
    assert world.letters.kept == {}


@pytest.mark.parametrize(
    ("state", "outcome", "removed"),
    [
        (TransactionState.COMMITTED, "truncated", True),
        (TransactionState.ABORTED, "rolled-back", False),
        (TransactionState.IN_PROGRESS, "pending", False),
        (TransactionState.UNKNOWN, "backfill", False),
    ],
)
def test_a_truncate_that_was_not_committed_takes_nothing_away(
    state: TransactionState, outcome: str, *, removed: bool
) -> None:
    world = SentWorld(sent(Op.TRUNCATE, 50, transaction=9), gate=Gate(t9=state))
    world.target.write([Put(ITEMS, (1,), 40, {"id": 1, "doc": "old"})])
    assert world.outcomes(dry_run=True) == [outcome]
    assert world.ledger.backfills == []
    assert world.outcomes() == [outcome]
    assert (world.items() == {}) is removed
    assert world.ledger.backfills == (["public.t"] if outcome == "backfill" else [])
    assert (world.letters.kept == {}) is (outcome != "pending")


@pytest.mark.parametrize(
    ("kept", "gate", "ledger", "outcome"),
    [(True, None, False, "unreachable"), (True, None, True, "backfill"), (False, Gate(), True, "backfill")],
)
def test_a_truncate_of_which_nobody_can_say_whether_it_was_committed_takes_nothing_away(
    gate: Gate | None, outcome: str, *, kept: bool, ledger: bool
) -> None:
    """Where the source does not answer, or the event was not kept."""
    letter = sent(Op.TRUNCATE, 50)
    world = SentWorld(letter if kept else replace(letter, payload=None), gate=gate)
    world.target.write([Put(ITEMS, (1,), 40, {"id": 1, "doc": "old"})])
    replayer = world.replayer()
    if not ledger:
        replayer.ledger = None
    results = replayer.run(list(world.letters.kept.values()), dry_run=False)
    assert [one.outcome for one in results] == [outcome]
    assert world.items() == {"1": (40, "old")}
    assert world.ledger.backfills == (["public.t"] if outcome == "backfill" else [])
    assert (world.letters.kept == {}) is (outcome == "backfill")


def test_letters_of_a_mirror_that_had_another_key_are_left_alone() -> None:
    world = SentWorld(DeadLetter("public.t", {"number": "1"}, 50, Op.UPDATE, "c", "p"))
    assert world.outcomes() == ["unmirrored"]
    assert world.items() == {}
    assert len(world.letters.kept) == 1


def test_superseded_letters_are_known_without_reading_rows() -> None:
    world = SentWorld(
        sent(Op.UPDATE, 50, "1"),
        sent(Op.UPDATE, 51, "2"),
        sent(Op.UPDATE, 52, "3", old_key="2"),
        sent(Op.UPDATE, 53, "4", old_key="1"),
        sent(Op.TRUNCATE, 30),
        sent(Op.TRUNCATE, 60),
    )
    world.target.write([Put(ITEMS, (number,), 99, {"id": number}) for number in (1, 4)])
    world.target.write([Put(ITEMS, (2,), 50, {"id": 2})])
    world.ledger.truncated = 30
    superseded = world.replayer().superseded(list(world.letters.kept.values()))
    assert sorted(stored.letter.version for stored in world.letters.kept.values() if stored.id in superseded) == [
        30,
        50,
        53,
    ]
    assert world.seen == []
