"""What becomes of an event, and of each of its changes."""

from __future__ import annotations

from collections.abc import Collection as AnyOf
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import cast

import pytest

from docferry.applier import Applier
from docferry.capture.contract import Ledger, MirrorRecord, RowReader, TransactionState
from docferry.change.model import UNCHANGED, Change, Column, Op, PgType, Relation, Row
from docferry.change.wire import Event
from docferry.deadletter.contract import DeadLetter, DeadLetters
from docferry.document.mirror import Mirror
from docferry.document.model import Collection, Key, KeyAttribute, KeyKind, MirrorSpec
from docferry.errors import ConfigError, NeedsReread, SourceRefused, TransactionPending, Verdict
from docferry.metrics import Metrics
from docferry.operate.drain import Telling
from docferry.operate.receive import Fate, Receipt, Receiver
from docferry.retry import Retry
from docferry.target.floors_shared import control_collection
from docferry.target.memory import MemoryStore, MemoryTarget

TEXT = PgType(25, "text")
AT = datetime(2026, 11, 25, tzinfo=UTC)
CONTROL = control_collection("docferry")
COMMITTED, ABORTED, OPEN, UNKNOWN = (
    TransactionState.COMMITTED,
    TransactionState.ABORTED,
    TransactionState.IN_PROGRESS,
    TransactionState.UNKNOWN,
)


def relation(name: str, oid: int) -> Relation:
    return Relation(oid, "public", name, (Column("id", TEXT, is_key=True), Column("doc", TEXT)))


T, U, STRANGE = relation("t", 7), relation("u", 8), relation("strange", 9)
ITEMS = {one.table: Collection(one.name, (KeyAttribute("id", KeyKind.TEXT),)) for one in (T, U)}


class Rows:
    """contract.RowReader."""

    def __init__(self) -> None:
        self.rows: dict[str, str] = {}
        self.transactions: list[int] = []

    def read_rows(
        self,
        _table: str,
        _key: Sequence[str],
        keys: Sequence[tuple[str, ...]],
        transactions: AnyOf[int],
        _max_bytes: int,
    ) -> tuple[list[tuple[Relation, Row]], bool]:
        self.transactions.extend(transactions)
        return [(T, (key.encode(), self.rows[key].encode())) for (key,) in keys if key in self.rows], True


class Remembering:
    """contract.Ledger."""

    def __init__(self) -> None:
        self.floors: list[int] = []
        self.backfills: list[str] = []

    def mirrors(self) -> dict[str, MirrorRecord]:
        return {}

    def raise_floor(self, _table: str, version: int) -> None:
        self.floors.append(version)

    def request_backfill(self, table: str, _reason: str, *, anew: bool) -> None:
        assert anew
        self.backfills.append(table)


class Letters:
    """contract.DeadLetters."""

    def __init__(self) -> None:
        self.kept: list[DeadLetter] = []

    def add(self, letters: Sequence[DeadLetter]) -> None:
        self.kept.extend(letters)


class Gate:
    """contract.TransactionGate: the states it tells of, one after another; the last one for ever."""

    def __init__(self, *states: TransactionState) -> None:
        self.states = list(states)
        self.undone: set[int] = set()
        self.asked: list[int] = []

    def state(self, transaction: int) -> TransactionState:
        self.asked.append(transaction)
        return self.states.pop(0) if len(self.states) > 1 else self.states[0]

    def rolled_back(self, subtransactions: AnyOf[int]) -> set[int]:
        self.asked.extend(sorted(subtransactions))
        return self.undone & set(subtransactions)


class Setting:
    """A receiver and everything it works with. `database`: whether it can be reached."""

    def __init__(self, *states: TransactionState, database: bool = True, now: datetime = AT) -> None:
        self.rows, self.ledger, self.letters = Rows(), Remembering(), Letters()
        self.gate = Gate(*states) if states else None
        self.slept: list[float] = []
        self.target = MemoryTarget(MemoryStore(), control=CONTROL)
        for collection in (*ITEMS.values(), CONTROL):
            self.target.create(collection)
        self.mirrors = {one.table: Mirror(MirrorSpec(one.table, ("id",), ITEMS[one.table]), one.oid) for one in (T, U)}
        self.applier = Applier(
            self.mirrors,
            cast("RowReader", self.rows) if database else None,
            self.target,
            cast("DeadLetters", self.letters),
            cast("Ledger", self.ledger) if database else None,
            Metrics(),
            Retry(),
            trusted_age=15 * 86400.0,
            clock=now.timestamp,
        )
        self.receiver = Receiver(self.applier, self.mirrors, self.gate, patience=2.0, sleep=self.slept.append)

    def receive(self, *changes: Change, reread: bool = False) -> list[tuple[str, int, Fate]]:
        receipts = self.receiver.receive(Event(1, 7421, AT, list(changes)), reread=reread)
        return [(one.key.get("id", ""), one.version, one.fate) for one in receipts]

    def stored(self, table: str = "public.t") -> dict[Key, tuple[int, object]]:
        return {
            item.key: (item.version, item.document and item.document["doc"]) for item in self.target.scan(ITEMS[table])
        }


def change(
    op: Op,
    version: int,
    row: tuple[str, str] | None = None,
    old: tuple[str, str] | None = None,
    of: Relation = T,
    *,
    large: bool = False,
) -> Change:
    def raw(values: tuple[str, str] | None) -> Row | None:
        return None if values is None else (values[0].encode(), UNCHANGED if large else values[1].encode())

    return Change(op, of, raw(row), raw(old), version, 7421, AT, 1, large)


def insert(version: int, key: str, doc: str = "d", of: Relation = T) -> Change:
    return change(Op.INSERT, version, (key, doc), of=of)


def update(version: int, key: str, doc: str, old: str | None = None, *, large: bool = False) -> Change:
    return change(Op.UPDATE, version, (key, doc), None if old is None else (old, "o"), large=large)


def delete(version: int, key: str) -> Change:
    return change(Op.DELETE, version, None, (key, "o"))


def truncate(version: int, of: Relation = T) -> Change:
    return change(Op.TRUNCATE, version, of=of)


def test_each_change_has_its_outcome() -> None:
    setting = Setting(COMMITTED)
    setting.receive(insert(20, "3", "newer"))
    changes = insert(11, "1"), update(12, "1", "e"), delete(13, "2"), update(14, "3", "older")
    assert setting.receive(*changes) == [
        ("1", 11, Fate.APPLIED),
        ("1", 12, Fate.APPLIED),
        ("2", 13, Fate.APPLIED),
        ("3", 14, Fate.STALE),
    ]
    assert setting.stored() == {("1",): (12, "e"), ("2",): (13, None), ("3",): (20, "newer")}
    assert {fate for _, _, fate in setting.receive(*changes)} == {Fate.STALE}


def test_outcomes_come_in_the_order_of_the_changes() -> None:
    setting = Setting(COMMITTED)
    assert setting.receive(update(12, "1", "last"), insert(11, "1", "first")) == [
        ("1", 12, Fate.APPLIED),
        ("1", 11, Fate.APPLIED),
    ]
    assert setting.stored() == {("1",): (12, "last")}


def test_what_a_savepoint_took_back_is_not_applied_although_its_transaction_was_committed() -> None:
    setting = Setting(COMMITTED)
    assert setting.gate is not None
    setting.gate.undone = {7423}
    changes = [insert(11, "1"), insert(12, "2"), truncate(13), insert(14, "3")]
    event = Event(1, 7421, AT, changes, subtransactions={11: 7422, 12: 7423, 13: 7423})
    fates = [receipt.fate for receipt in setting.receiver.receive(event)]
    assert fates == [Fate.APPLIED, Fate.ROLLED_BACK, Fate.ROLLED_BACK, Fate.APPLIED]
    assert set(setting.stored()) == {("1",), ("3",)}
    assert setting.gate.asked == [7421, 7422, 7423]


def test_nothing_of_a_transaction_that_was_rolled_back_is_applied() -> None:
    setting = Setting(ABORTED)
    assert setting.receive(insert(11, "1"), truncate(12)) == [("1", 11, Fate.ROLLED_BACK), ("", 12, Fate.ROLLED_BACK)]
    assert setting.stored() == {}
    assert setting.gate is not None
    assert setting.gate.asked == [7421]


def test_a_transaction_gets_some_time_to_end() -> None:
    setting = Setting(OPEN, OPEN, COMMITTED)
    assert setting.receive(insert(11, "1")) == [("1", 11, Fate.APPLIED)]
    assert len(setting.slept) == 2


def test_an_event_whose_transaction_stays_open_must_come_again() -> None:
    setting = Setting(OPEN)
    with pytest.raises(TransactionPending, match="transaction 7421") as caught:
        setting.receive(insert(11, "1"))
    assert caught.value.verdict is Verdict.RETRY
    assert caught.value.remedy
    assert sum(setting.slept) == pytest.approx(2.0)
    assert setting.stored() == {}


def test_what_nobody_remembers_is_decided_by_the_rows() -> None:
    setting = Setting(UNKNOWN)
    setting.rows.rows = {"1": "as it is"}
    assert setting.receive(update(11, "1", "as it was sent"), insert(12, "2"), delete(13, "3")) == [
        ("1", 11, Fate.APPLIED),
        ("2", 12, Fate.APPLIED),
        ("3", 13, Fate.APPLIED),
    ]
    assert setting.stored() == {("1",): (11, "as it is"), ("2",): (12, None), ("3",): (13, None)}
    assert set(setting.rows.transactions) == {0}, "ids that old may have come round"


def test_a_deleted_row_that_is_there_is_stored() -> None:
    setting = Setting(UNKNOWN)
    setting.rows.rows = {"1": "as it is"}
    setting.receive(delete(11, "1"))
    assert setting.stored() == {("1",): (11, "as it is")}


def test_a_truncate_that_nobody_remembers_is_left_to_a_backfill() -> None:
    setting = Setting(UNKNOWN)
    setting.receiver.apply([insert(5, "1")])
    assert setting.receive(truncate(11)) == [("", 11, Fate.DEFERRED)]
    assert setting.ledger.backfills == ["public.t"]
    assert setting.stored() == {("1",): (5, "d")}


def test_and_what_is_older_stays_out_meanwhile() -> None:
    """Else what comes after the backfill and was truncated would stay for good."""
    setting = Setting(UNKNOWN)
    setting.receive(truncate(11))
    (receipt,) = setting.receiver.apply([insert(5, "1")])
    assert receipt.fate is Fate.STALE
    assert setting.stored() == {}


def test_a_truncate_that_was_committed_is_in_no_doubt() -> None:
    setting = Setting(COMMITTED)
    setting.rows.rows = {"1": "as it is"}
    assert setting.receive(insert(11, "2"), truncate(12), insert(13, "1"), reread=True) == [
        ("2", 11, Fate.APPLIED),
        ("", 12, Fate.APPLIED),
        ("1", 13, Fate.APPLIED),
    ]
    assert setting.ledger.backfills == []
    assert setting.stored() == {("1",): (13, "as it is")}


def test_a_replay_may_read_again() -> None:
    setting = Setting(COMMITTED)
    setting.rows.rows = {"1": "as it is"}
    setting.receive(update(11, "1", "as it was sent"), reread=True)
    assert setting.stored() == {("1",): (11, "as it is")}
    assert set(setting.rows.transactions) == {7421}, "it may not be visible yet"


def test_no_gate_takes_every_event_for_committed() -> None:
    setting = Setting()
    assert setting.receive(insert(11, "1")) == [("1", 11, Fate.APPLIED)]


def test_a_truncate_parts_what_came_before_from_what_came_after() -> None:
    setting = Setting(COMMITTED)
    changes = [update(14, "1", "after"), truncate(13), insert(11, "1", "before"), insert(12, "2", "before")]
    assert setting.receive(*changes) == [
        ("1", 14, Fate.APPLIED),
        ("", 13, Fate.APPLIED),
        ("1", 11, Fate.APPLIED),
        ("2", 12, Fate.APPLIED),
    ]
    assert setting.stored() == {("1",): (14, "after")}
    assert setting.ledger.floors == [13]
    assert setting.receive(insert(12, "2", "late")) == [("2", 12, Fate.STALE)]


def test_only_the_table_that_was_truncated_is_emptied() -> None:
    setting = Setting(COMMITTED)
    setting.receive(insert(11, "1"), insert(12, "1", of=U), truncate(13))
    assert setting.stored() == {}
    assert setting.stored("public.u") == {("1",): (12, "d")}


def test_a_moved_row_counts_as_the_weightier_of_both_keys() -> None:
    setting = Setting(COMMITTED)
    assert setting.receive(update(11, "2", "d", old="1")) == [("2", 11, Fate.APPLIED)]
    assert setting.stored() == {("1",): (11, None), ("2",): (11, "d")}
    assert setting.receive(update(11, "2", "d", old="1")) == [("2", 11, Fate.STALE)]


def test_what_cannot_be_stored_is_dead_and_the_others_are_applied() -> None:
    setting = Setting(COMMITTED)
    large = insert(12, "2", "x" * 500_000)
    assert setting.receive(insert(11, "1"), large, insert(13, ""), update(14, "", "d", old="4")) == [
        ("1", 11, Fate.APPLIED),
        ("2", 12, Fate.DEAD),
        ("", 13, Fate.DEAD),
        ("", 14, Fate.DEAD),
    ]
    assert [(one.version, one.cause) for one in setting.letters.kept] == [
        (13, "key-refused"),
        (14, "key-refused"),
        (12, "too-large"),
    ]
    assert setting.stored() == {("1",): (11, "d"), ("4",): (14, None)}


def test_a_dead_change_says_why() -> None:
    setting = Setting(COMMITTED)
    (receipt,) = setting.receiver.apply([insert(12, "2", "x" * 500_000)])
    assert receipt.error is not None
    assert receipt.error.cause == "too-large"
    assert (receipt.table, receipt.op) == ("public.t", Op.INSERT)


def test_a_table_without_a_mirror_lets_the_event_come_again_after_the_others() -> None:
    """The function's configuration may be older than the triggers: what it does not know must not be lost."""
    setting = Setting(COMMITTED)
    with pytest.raises(ConfigError, match=r"public\.strange") as caught:
        setting.receive(insert(11, "1"), insert(12, "1", of=STRANGE))
    assert caught.value.remedy
    assert setting.stored() == {("1",): (11, "d")}


def test_what_is_older_than_tombstones_live_is_read_again() -> None:
    setting = Setting(COMMITTED, now=datetime(2026, 12, 11, tzinfo=UTC))
    setting.rows.rows = {"2": "as it is"}
    setting.receive(insert(11, "1", "gone since"), update(12, "2", "as it was"))
    assert setting.stored() == {("1",): (11, None), ("2",): (12, "as it is")}


def test_what_is_younger_is_not() -> None:
    setting = Setting(COMMITTED, now=datetime(2026, 12, 9, tzinfo=UTC))
    setting.receive(insert(11, "1"))
    assert setting.stored() == {("1",): (11, "d")}
    assert setting.rows.transactions == []


# -- without the database ----------------------------------------------------------------------------------------------


def test_without_a_database_what_has_to_be_read_is_dead() -> None:
    setting = Setting(database=False)
    assert setting.receive(insert(11, "1"), update(12, "2", "", large=True), update(13, "4", "d", old="3")) == [
        ("1", 11, Fate.APPLIED),
        ("2", 12, Fate.DEAD),
        ("4", 13, Fate.DEAD),
    ]
    assert setting.stored() == {("1",): (11, "d"), ("4",): (13, "d")}
    assert [(dict(one.key), one.version, one.cause) for one in setting.letters.kept] == [
        ({"id": "2"}, 12, "needs-reread"),
        ({"id": "3"}, 13, "needs-reread"),
    ]
    assert "docferry deadletters replay" in setting.letters.kept[0].remedy
    assert NeedsReread("").verdict is Verdict.DEAD_LETTER


def test_without_a_database_each_dead_change_names_its_own_row() -> None:
    setting = Setting(database=False)
    receipts = setting.receiver.apply([update(12, "2", "", large=True), update(13, "3", "", large=True)])
    assert [str(one.error).split(":")[0] for one in receipts] == ["public.t id=2", "public.t id=3"]


def test_without_a_database_a_truncate_works() -> None:
    setting = Setting(database=False)
    assert setting.receive(insert(11, "1"), truncate(12)) == [("1", 11, Fate.APPLIED), ("", 12, Fate.APPLIED)]
    assert setting.stored() == {}


def test_without_a_database_a_truncate_in_doubt_is_refused() -> None:
    setting = Setting(database=False)
    with pytest.raises(SourceRefused, match="cannot be reached") as caught:
        setting.receiver.apply([truncate(12)], in_doubt=True)
    assert caught.value.remedy


def test_drained_changes_have_receipts_too() -> None:
    setting = Setting()
    setting.receive(insert(20, "3", "newer"))
    receipts: list[Receipt] = []
    telling = Telling(setting.applier, setting.mirrors, receipts.extend)
    nameless = Change(Op.DELETE, T, None, (UNCHANGED, UNCHANGED), 13, 7421, AT, 1)
    telling.apply([insert(11, "1"), update(12, "3", "older"), nameless, insert(14, "9", of=STRANGE), insert(15, "")])
    telling.apply([truncate(16, of=U)])
    assert [(one.key.get("id"), one.version, one.fate, one.made_at) for one in receipts] == [
        ("1", 11, Fate.APPLIED, AT),
        ("3", 12, Fate.STALE, AT),
        ("", 13, Fate.DEFERRED, AT),
        ("", 15, Fate.DEAD, AT),
        (None, 16, Fate.APPLIED, AT),
    ]
    assert setting.ledger.backfills == ["public.t"], "who knows which row it was"
