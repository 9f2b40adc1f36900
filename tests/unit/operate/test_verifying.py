"""Comparing, mending and doing so over and over, against the target in memory: when nothing may be concluded."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, cast

import pytest

from docferry.capture.contract import (
    CaptureSetup,
    CommitGate,
    KeyTexts,
    MirrorRecord,
    StreamState,
    VerificationRecord,
    Verifications,
)
from docferry.change.model import NUMBER_STEP, Column, Op, PgType, Relation, Row, make_version
from docferry.deadletter.contract import DeadLetter, DeadLetters, StoredDeadLetter
from docferry.document.mirror import Mirror
from docferry.document.model import Collection as ItemCollection
from docferry.document.model import Delete, Key, KeyAttribute, KeyKind, MirrorSpec, Put
from docferry.errors import HistoryChanged, SourceRefused, TableGone
from docferry.metrics import Metrics
from docferry.operate.admin import AdminLedger
from docferry.operate.compare import Kind
from docferry.operate.grounds import Grounds
from docferry.operate.passing import Watermark
from docferry.operate.reconcile import Reconciler
from docferry.operate.verification import Checked, Verification
from docferry.operate.verify import TableAccess, VerifyLimits
from docferry.target.contract import Item
from docferry.target.memory import MemoryTarget
from docferry.verifying import Verifying

TABLE = "public.orders"
AT = datetime(2026, 1, 1, tzinfo=UTC)
MADE_UP = 10**30


def nothing() -> None:
    pass


@dataclass
class Epoch:
    """One of the ledger."""

    number: int
    system_identifier: str = "1"
    timeline: int = 1


@dataclass
class World:
    """A table with its collection, and everything else that verifying asks, in one. `rows`: id and text."""

    rows: dict[str, str] = field(default_factory=dict)
    key_type: PgType = field(default_factory=lambda: PgType(23, "int4"))
    target: MemoryTarget = field(default_factory=MemoryTarget)
    position: int = 100
    truncated: int = 0
    name: str | None = TABLE
    stalled: bool = False
    in_force: Epoch = field(default_factory=lambda: Epoch(1))
    versions: list[str] = field(default_factory=list)
    held: int = 0
    on_version: Callable[[], object] = nothing
    kept: list[VerificationRecord] = field(default_factory=list)
    letters: list[StoredDeadLetter] = field(default_factory=list)
    asked: list[Sequence[Mapping[str, str]] | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        kind = KeyKind.NUMBER if self.key_type.name == "int4" else KeyKind.TEXT
        self.collection = ItemCollection("orders", (KeyAttribute("id", kind),))
        self.mirror = Mirror(MirrorSpec(TABLE, ("id",), self.collection), 7)
        columns = (Column("id", self.key_type, is_key=True), Column("a", PgType(25, "text")))
        self._relation = Relation(7, "public", "orders", columns)
        self.target.create(self.collection)
        self.stop = threading.Event()
        self.parts = Verifying(
            self.target,
            cast("AdminLedger", self),
            cast("CommitGate", self),
            cast("Verifications", self),
            Watermark(cast("CaptureSetup", self)),
            Grounds(cast("AdminLedger", self), 1, {TABLE: "settings"}, "this comparison", "Begin again."),
            lambda _: cast("TableAccess", self),
            cast("DeadLetters", self),
            cast("DeadLetters", self),
            VerifyLimits(workers=1, page_rows=10),
            self.stop,
            patience=0.05,
        )

    def write(self, id_: str, text: str, version: int = 5) -> None:
        self.target.write([self.mirror.converter.put(self._relation, (id_.encode(), text.encode()), version)])

    def items(self) -> dict[Key, Item]:
        return {item.key: item for item in self.target.scan(self.collection)}

    def verification(self, **settings: Any) -> Verification:
        settings = {"output": None, "limit": 20, **settings}
        one = self.parts.mirror(self.mirror)
        return Verification([one], self.parts.verifications, self.parts.watermark, 1, **settings)

    def verify(self) -> Checked:
        with self.verification() as verification:
            return verification.run()[0]

    def repair(self) -> Checked:
        with self.verification() as verification:
            (checked,) = verification.run()
            verification.repair()
            return checked

    def reconciler(self, *, mending: bool = True) -> Reconciler:
        one = self.parts.mirror(self.mirror)
        given = self.parts.verifications, self.parts.watermark, Metrics()
        return Reconciler([one], *given, 1, mending=mending)

    # The reader.

    def _present(self) -> None:
        if self.name != TABLE:
            raise TableGone(f"table {TABLE} does not exist in the source")

    def read_rows(
        self, _table: str, _key: object, keys: Sequence[KeyTexts], _transactions: object, _max_bytes: int
    ) -> tuple[list[tuple[Relation, Row]], bool]:
        self._present()
        found = [(text, self.rows[text]) for (text,) in keys if text in self.rows]
        return [(self._relation, (id_.encode(), text.encode())) for id_, text in found], True

    def read_keys(self, table: str, key: Sequence[str], keys: Sequence[KeyTexts]) -> list[tuple[Relation, Row]]:
        return self.read_rows(table, key, keys, (), 1)[0]

    def read_page(self, _after: object, _upto: object, _max_bytes: int) -> tuple[list[tuple[Relation, Row]], None]:
        return self.read_rows(TABLE, (), [(text,) for text in self.rows], (), 1)[0], None

    def boundary(self, _after: object, _rows: int) -> None:
        self._present()

    def relation(self, _table: str) -> Relation:
        self._present()
        return self._relation

    def estimate(self) -> int:
        self._present()
        return len(self.rows)

    def current_name(self, oid: int) -> str | None:
        assert oid == 7
        return self.name

    def close(self) -> None:
        pass

    # The ledger, the gate, the setup, the dead letters.

    def epoch(self) -> Epoch:
        return self.in_force

    def floor(self, _table: str) -> int:
        return self.truncated

    def backfills(self, *, unfinished_only: bool) -> list[object]:
        assert unfinished_only
        return []

    def mirrors(self) -> dict[str, MirrorRecord]:
        return {TABLE: MirrorRecord(TABLE, "orders", "settings", layout="as ever")}

    def layout(self, _table: str) -> str:
        self._present()
        return "as ever"

    def take_start_version(self, who: str = "the backfill") -> int:
        assert self.held, "no tombstone of a later change may be swept"
        self.versions.append(who)
        self.on_version()
        self.position += 1
        return make_version(1, self.position, NUMBER_STEP - 1)

    @contextmanager
    def old_writes(self) -> Iterator[Callable[[], None]]:
        self.held += 1
        try:
            yield nothing
        finally:
            self.held -= 1

    def wait_for_commits(self, _seconds: float) -> bool:
        return not self.stalled

    def mark(self) -> int:
        self.position += 1
        return self.position

    def state(self) -> StreamState:
        return StreamState(10**6, 10**6, True, 0, "reserved")  # noqa: FBT003

    def find(
        self, *, table: str, keys: Sequence[Mapping[str, str]] | None = None, after: int = 0
    ) -> list[StoredDeadLetter]:
        assert table == TABLE
        self.asked.append(keys)
        return [one for one in self.letters if one.id > after and (keys is None or one.letter.key in keys)]

    def add(self, letters: Sequence[DeadLetter]) -> None:
        raise AssertionError(letters)

    # What is remembered of verifications.

    def start(
        self, table: str, run: str, epoch: int, position: int, output: str | None, grounds: str
    ) -> VerificationRecord:
        record = VerificationRecord(len(self.kept) + 1, table, run, epoch, position, output=output, grounds=grounds)
        self.kept.insert(0, record)
        return record

    def advance(self, record: VerificationRecord, phase: str, done_key: object, counts: Any, _bytes: int) -> None:
        del done_key
        self._change(record, phase=phase, counts=counts)

    def finish(self, record: VerificationRecord, counts: Mapping[str, Any], *, clean: bool) -> None:
        self._change(record, phase="done", counts=counts, clean=clean, finished_at=AT)

    def records(self) -> list[VerificationRecord]:
        return self.kept

    def _change(self, record: VerificationRecord, **values: Any) -> None:
        self.kept = [replace(one, **values) if one.id == record.id else one for one in self.kept]


def spoilt(count: int) -> World:
    """So many items that somebody changed."""
    world = World(rows={str(id_): "x" for id_ in range(count)})
    for id_ in range(count):
        world.write(str(id_), "x", MADE_UP)
    return world


class TestEpochs:
    def test_repair_writes_nothing_over_the_items_of_another_epoch(self) -> None:
        world = spoilt(1)

        def begin() -> None:
            world.in_force = Epoch(2)
            world.write("0", "x", make_version(2, 1))

        world.target._collections["orders"].items[0,] = replace(world.items()[0,], version=make_version(1, 10**6))
        world.on_version = begin
        with pytest.raises(HistoryChanged, match="has begun epoch 2"):
            world.repair()
        assert world.items()[0,].version == make_version(2, 1)

    def test_reconciling_leaves_it_to_the_workers_own_check(self, caplog: pytest.LogCaptureFixture) -> None:
        world = spoilt(1)
        world.in_force = Epoch(2)
        before = world.items()
        world.reconciler().cycle()
        assert world.items() == before
        assert "has begun epoch 2" in caplog.text


class TestTables:
    @pytest.mark.parametrize("phase", ["rows", "repair"])
    @pytest.mark.parametrize(
        ("name", "error", "told"),
        [(None, TableGone, "its items stay"), ("public.former", SourceRefused, "is now called public.former")],
    )
    def test_one_that_is_gone_says_nothing_of_its_rows(
        self, phase: str, name: str | None, error: type[Exception], told: str
    ) -> None:
        world = spoilt(3)
        world.write("3", "x")
        before = world.items()

        def lose() -> None:
            world.name = name

        if phase == "rows":
            lose()
        else:
            world.on_version = lose
        with pytest.raises(error, match=told):
            world.repair()
        assert world.items() == before
        assert not any(one.clean for one in world.kept)

    def test_reconciling_goes_on_without_it(self, caplog: pytest.LogCaptureFixture) -> None:
        world = spoilt(3)
        before = world.items()
        world.name = None
        world.reconciler().cycle()
        assert world.items() == before
        assert "its items stay" in caplog.text


class TestReconciling:
    def test_what_could_not_be_mended_is_not_clean(self) -> None:
        world = spoilt(2)
        self._stall(world)
        world.reconciler().cycle()
        (record,) = world.kept
        assert record.clean is False
        assert record.counts["unsettled"] == 2
        assert "synchronous standby" in record.counts["why"]
        world.stalled = False
        world.on_version = nothing
        world.reconciler().cycle()
        assert world.kept[0].clean is True

    def test_one_that_goes_on_counts_once_what_was_unsettled_before(self) -> None:
        world = World(rows={"1": "x"})
        world.write("1", "x")
        record = world.start(TABLE, "reconcile", 1, 50, None, world.parts.mirror(world.mirror).grounds())
        world.advance(record, "items", None, {"unsettled": 3, "why": "no worker"}, 0)
        world.reconciler().cycle()
        (record,) = world.kept
        assert (record.counts["unsettled"], record.clean) == (3, False)

    @staticmethod
    def _stall(world: World) -> None:
        def stall() -> None:
            world.stalled = True

        world.on_version = stall


class TestVersionsOfARepair:
    def test_one_serves_all_of_the_first_turn(self) -> None:
        world = spoilt(250)
        checked = world.repair()
        assert checked.clean
        assert checked.repaired is not None
        assert checked.repaired.mended == 250
        assert world.versions == [f"the repair of {TABLE}"]

    def test_a_truncate_takes_another(self, monkeypatch: pytest.MonkeyPatch) -> None:
        world = spoilt(150)
        removals: list[int] = []
        monkeypatch.setattr(world.target, "truncate", lambda _, version: removals.append(version))

        def truncate(_table: str, mended: int) -> None:
            if mended == 100:
                world.truncated = make_version(1, world.position)

        with world.verification() as verification:
            (checked,) = verification.run()
            verification.repair(truncate)
            assert checked.clean
        assert (len(world.versions), removals) == (2, [])

    def test_a_later_turn_takes_its_own(self) -> None:
        """What changed since the first may have been held back by an item whose version was made up."""
        world = spoilt(1)
        mended: list[int] = []
        replace_ = world.target.replace

        def change_first(write: Put | Delete, seen: Item) -> Any:
            if not mended:
                world.rows["0"] = "new"
            mended.append(write.version)
            return replace_(write, seen)

        world.target.replace = change_first  # type: ignore[method-assign]
        assert world.repair().clean
        assert len(world.versions) == 2
        assert world.items()[0,].document == {"id": 0, "a": "new"}


class TestTombstones:
    def test_one_that_would_hold_back_a_row_is_found_and_replaced(self) -> None:
        world = World(rows={"1": "x"})
        world.write("1", "x")
        world.target.write([Delete(world.collection, (2,), MADE_UP), Delete(world.collection, (3,), 5)])
        with world.verification() as verification:
            (checked,) = verification.run()
            assert (checked.counts.items, checked.counts.by_kind()) == (1, {**_none(), Kind.DIFFERENT: 1})
            verification.repair()
            assert checked.clean
        tombstones = {item.key: item.version for item in world.items().values() if item.document is None}
        assert tombstones[3,] == 5
        assert 5 < tombstones[2,] < make_version(1, world.position)
        world.rows["2"] = "new"
        world.write("2", "new", make_version(1, world.position + 1))
        assert world.verify().clean

    def test_one_of_a_row_is_found_once(self) -> None:
        world = World(rows={"2": "x"})
        world.target.write([Delete(world.collection, (2,), MADE_UP)])
        assert world.verify().counts.by_kind() == {**_none(), Kind.MISSING: 1}


def _none() -> dict[Kind, int]:
    return dict.fromkeys((Kind.MISSING, Kind.STALE, Kind.DIFFERENT, Kind.ORPHANED), 0)


def test_items_whose_rows_cannot_be_looked_for_are_unsettled() -> None:
    world = World(rows={'"a"': "x"}, key_type=PgType(3802, "jsonb"))
    world.write('"a"', "x")
    world.write('"b"', "orphaned")
    checked = world.verify()
    assert (checked.counts.unsettled, checked.clean, checked.differences) == (2, False, 0)
    assert "jsonb" in checked.counts.why
    assert world.kept[0].clean is False


def test_dead_letters_are_looked_up_by_key() -> None:
    world = World()
    refused = DeadLetter(TABLE, {"id": "1"}, 5, Op.UPDATE, "too-large", "it is too large")
    world.letters = [
        StoredDeadLetter(1, refused, 1, AT, AT),
        StoredDeadLetter(2, replace(refused, key={"id": "8"}), 1, AT, AT),
        StoredDeadLetter(3, replace(refused, key={"id": "9"}, old_key={"id": "2"}), 1, AT, AT),
    ]
    assert world.parts._lettered(world.mirror, [("1",), ("2",)]) == {("1",)}
    assert world.asked == [[{"id": "1"}, {"id": "2"}]] * 2
