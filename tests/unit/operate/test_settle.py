"""Suspects looked at again, against the target in memory: what moves is no difference, what stays is one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import cast

import pytest

from docferry.capture.contract import CaptureSetup, CommitGate, KeyReader, KeyTexts, MirrorRecord, StreamState
from docferry.change.model import Column, PgType, Relation, Row, make_version
from docferry.document.mirror import Mirror
from docferry.document.model import Collection, Delete, KeyAttribute, KeyKind, MirrorSpec
from docferry.errors import HistoryChanged
from docferry.operate import passing as passing_module
from docferry.operate.admin import AdminLedger, EpochRecord
from docferry.operate.compare import Kind
from docferry.operate.findings import Counts, Finding, Findings, Suspect
from docferry.operate.grounds import Grounds
from docferry.operate.passing import Passing, Watermark
from docferry.operate.settle import Rows, Settled, Settler
from docferry.target.contract import Item
from docferry.target.memory import MemoryTarget

TABLE = "public.orders"
ORDERS = Collection("orders", (KeyAttribute("id", KeyKind.NUMBER),))
RELATION = Relation(
    1, "public", "orders", (Column("id", PgType(23, "int4"), is_key=True), Column("a", PgType(25, "text")))
)
EPOCH = 1


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
    """Both ends, and what happens at each step of a round."""

    rows: dict[str, str] = field(default_factory=dict)
    target: MemoryTarget = field(default_factory=MemoryTarget)
    mirror: Mirror = field(default_factory=lambda: Mirror(MirrorSpec(TABLE, ("id",), ORDERS), 1))
    stop: threading.Event = field(default_factory=threading.Event)
    position: int = 100
    confirmed: int = 10**6
    active: bool = True
    drained: bool = False
    visible: bool = True
    truncated: int = 0
    held: int = 0
    in_force: Epoch = field(default_factory=lambda: Epoch(EPOCH))
    settings: str = "as they were"
    registered: str = "as they were"
    at_gate: Callable[[], object] = nothing
    at_mark: Callable[[], object] = nothing

    def __post_init__(self) -> None:
        self.target.create(ORDERS)

    # The reader, the ledger, the gate and the setup, as far as settling asks them.

    def read_rows(
        self, _table: str, _key: object, keys: Sequence[KeyTexts], _transactions: object, _max_bytes: int
    ) -> tuple[list[tuple[Relation, Row]], bool]:
        found: list[tuple[Relation, Row]] = [
            (RELATION, (text.encode(), self.rows[text].encode())) for (text,) in keys if text in self.rows
        ]
        return found[:2], len(found) <= 2

    def read_keys(self, table: str, key: Sequence[str], keys: Sequence[KeyTexts]) -> list[tuple[Relation, Row]]:
        return [one for text in keys for one in self.read_rows(table, key, [text], (), 1)[0]]

    def epoch(self) -> EpochRecord | None:
        return cast("EpochRecord", self.in_force)

    def mirrors(self) -> dict[str, MirrorRecord]:
        return {TABLE: MirrorRecord(TABLE, "orders", self.registered)}

    def floor(self, _table: str) -> int:
        return self.truncated

    @contextmanager
    def old_writes(self) -> Iterator[Callable[[], None]]:
        self.held += 1
        yield nothing
        self.held -= 1

    def wait_for_commits(self, _seconds: float) -> bool:
        self.at_gate()
        return self.visible

    def mark(self) -> int:
        assert self.held == 1, "no tombstone may be swept meanwhile"
        self.at_mark()
        self.position += 1
        return self.position

    def state(self) -> StreamState:
        return StreamState(self.confirmed, self.confirmed, self.active, 0, "reserved")

    def idle(self) -> bool:
        return self.drained

    def settle(self, *suspects: Suspect, patience: float = 0.05, looks: int = 1) -> Settled:
        settler = Settler(
            self.mirror,
            cast("KeyReader", self),
            self.target,
            cast("AdminLedger", self),
            cast("CommitGate", self),
            self.passing(patience),
            grounds=Grounds(
                cast("AdminLedger", self), EPOCH, {TABLE: self.settings}, "this comparison", "Begin again."
            ),
            letters=lambda texts: {one for one in texts if one == ("9",)},
            stop=self.stop,
            looks=looks,
        )
        return settler.settle(suspects)

    def passing(self, patience: float) -> Passing:
        return Passing(Watermark(cast("CaptureSetup", self)), patience, self.stop)

    def write(self, id_: int, text: str, version: int = 5) -> None:
        self.target.write([self.mirror.converter.put(RELATION, (str(id_).encode(), text.encode()), version)])


def suspect(id_: int) -> Suspect:
    return Suspect((str(id_),), (id_,))


def kinds(settled: Settled) -> dict[object, Kind]:
    return {one.suspect.key: one.kind for one in settled.findings}


def test_what_stays_is_a_difference() -> None:
    world = World(rows={"1": "new", "2": "x", "3": "x"})
    world.write(1, "old")
    world.write(4, "orphan")
    world.write(3, "x")
    found = world.settle(*(suspect(id_) for id_ in (1, 2, 3, 4, 5)), Suspect(None, (4,)))
    assert kinds(found) == {(1,): Kind.STALE, (2,): Kind.MISSING, (4,): Kind.ORPHANED}
    assert (found.moving, found.unsettled) == (0, 0)


def test_what_arrives_while_the_watermark_passes_is_none() -> None:
    world = World(rows={"1": "new"})
    world.write(1, "old")
    world.at_mark = lambda: world.write(1, "new", 6)
    assert world.settle(suspect(1)) == Settled()


def test_an_item_newer_than_the_row_that_was_read_is_looked_at_again() -> None:
    """The commit was in the log, and its item written, before others could see the row (R5)."""
    world = World(rows={"1": "old"})
    world.write(1, "new", 6)
    world.at_gate = lambda: world.rows.update({"1": "new"})
    assert world.settle(suspect(1)) == Settled()
    world = World(rows={"1": "old"}, visible=False)
    world.write(1, "new", 6)
    found = world.settle(suspect(1))
    assert (found.findings, found.unsettled) == ([], 1)
    assert "synchronous standby" in found.why


def test_a_key_that_moves_at_every_look_is_in_motion() -> None:
    world = World(rows={"1": "x"})
    versions = iter(range(10, 100))
    world.at_mark = lambda: world.write(1, "not yet", next(versions))
    found = world.settle(suspect(1))
    assert (found.findings, found.moving) == ([], 1)


def test_somebody_who_changes_the_content_at_every_look_is_not_docferry() -> None:
    world = World(rows={"1": "x"})
    world.write(1, "x")
    items = world.target._collections["orders"].items
    contents = iter(range(100))

    def change() -> None:
        items[1,] = Item((1,), 5, {"id": 1, "a": str(next(contents))}, items[1,].hash)

    world.at_mark = change
    assert kinds(world.settle(suspect(1))) == {(1,): Kind.DIFFERENT}


def test_a_truncate_in_between_makes_a_look_void() -> None:
    world = World(rows={"1": "x"})

    def truncate() -> None:
        world.at_mark = nothing
        world.truncated = 50
        world.rows.clear()

    world.at_mark = truncate
    assert world.settle(suspect(1)) == Settled()


def test_a_version_above_the_mark_is_made_up() -> None:
    world = World(rows={"1": "x", "2": "x"})
    world.write(1, "x", 10**30)
    world.write(2, "x", 5)
    assert kinds(world.settle(suspect(1), suspect(2))) == {(1,): Kind.DIFFERENT}


@pytest.mark.parametrize("active", [True, False])
def test_a_watermark_that_does_not_move_settles_nothing(active: bool) -> None:
    world = World(rows={"1": "x"}, confirmed=0, active=active)
    found = world.settle(suspect(1), suspect(2))
    assert (found.findings, found.unsettled) == ([], 2)
    assert ("start docferry run" in found.why) is not active


def test_an_idle_source_needs_no_worker() -> None:
    world = World(rows={"1": "x"}, confirmed=0, active=False, drained=True)
    assert kinds(world.settle(suspect(1))) == {(1,): Kind.MISSING}


class Meanwhile(threading.Event):
    """Nobody stops; each time that is waited for, something happens instead."""

    def __init__(self, what: Callable[[float], object]) -> None:
        super().__init__()
        self._what = what

    def wait(self, timeout: float | None = None) -> bool:
        self._what(timeout or 0.0)
        return False


def test_patience_is_for_a_watermark_that_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(confirmed=0)
    now = 1000.0

    def pass_time(seconds: float) -> None:
        nonlocal now
        now += seconds
        world.confirmed += 40

    world.stop = Meanwhile(pass_time)
    monkeypatch.setattr(passing_module, "time", SimpleNamespace(monotonic=lambda: now))
    assert world.passing(0.05).wait(500)
    assert now > 1000.05


def test_nothing_is_said_of_items_once_another_epoch_is_in_force() -> None:
    world = World(rows={"1": "x"})
    world.write(1, "x")

    def begin() -> None:
        world.in_force = Epoch(EPOCH + 1)
        world.write(1, "x", make_version(EPOCH + 1, 7))

    world.at_gate = begin
    with pytest.raises(HistoryChanged, match="has begun epoch 2; this comparison is of epoch 1"):
        world.settle(suspect(1))


def test_items_of_other_settings_are_not_judged() -> None:
    world = World(rows={"1": "x"})
    world.write(1, "by other settings")

    def change() -> None:
        world.registered = "others"

    world.at_mark = change
    with pytest.raises(HistoryChanged, match="settings of the mirror of"):
        world.settle(suspect(1))


def test_a_worker_that_goes_on_makes_no_progress_of_what_it_does_not_do() -> None:
    """Behind a session idle in transaction a population waits for ever; the worker's heartbeats go on."""
    world = World()
    looks = 0

    def held_up() -> str:
        nonlocal looks
        looks += 1
        assert looks < 1000, "it waits for ever"
        world.confirmed += 1
        return "the backfill is not done"

    passing = Passing(Watermark(cast("CaptureSetup", world)), 0.05, world.stop, held_up)
    assert not passing.wait(100)
    assert passing.why == "the backfill is not done"


def test_a_tombstone_with_a_version_that_no_change_has_is_different() -> None:
    """It would hold back the row that comes."""
    world = World()
    world.target.write([Delete(ORDERS, (1,), 7), Delete(ORDERS, (2,), 10**30)])
    assert kinds(world.settle(suspect(1), suspect(2), Suspect(None, (2,)))) == {(2,): Kind.DIFFERENT}


def test_what_else_is_to_be_done_first_is_waited_for() -> None:
    world = World()
    reasons = iter(["a backfill", "a backfill"])
    passing = Passing(Watermark(cast("CaptureSetup", world)), 5, world.stop, lambda: next(reasons, ""))
    assert passing.wait(1)
    passing = Passing(Watermark(cast("CaptureSetup", world)), 0.02, world.stop, lambda: "a backfill")
    assert not passing.wait(1)
    assert passing.why == "a backfill"


def test_rows_are_read_in_pieces() -> None:
    world = World(rows={str(id_): "x" for id_ in range(7)})
    rows = Rows(world.mirror, cast("KeyReader", world))
    texts = [(text,) for text in ("1", "one", "2", "", "3", "1e9", "6", "77")]
    assert rows.keys(texts) == {(1,), (2,), (3,), (6,)}
    assert {row[0] for _, row in rows.whole(texts)} == {b"1", b"2", b"3", b"6"}


def test_findings_come_back_from_their_file() -> None:
    collection = Collection("c", (KeyAttribute("p", KeyKind.BINARY), KeyAttribute("n", KeyKind.NUMBER)))
    mirror = Mirror(MirrorSpec(TABLE, ("p", "n"), collection), 1)
    findings = Findings(None, 1)
    written = [
        Finding(TABLE, Suspect(("\\x00", "1.5"), (b"\x00", 1)), Kind.STALE, 10**37),
        Finding(TABLE, Suspect(None, (b"\xff", 10**30)), Kind.ORPHANED, -1, dead_letter=True),
        Finding(TABLE, Suspect(("", "7"), None), Kind.REFUSED, None, problem="empty: \u00e4\n"),
    ]
    for one in written:
        findings.add(mirror, one)
    size = findings.size
    assert list(findings.of(mirror)) == written
    assert len(findings.shown) == 1
    findings.add(mirror, written[0])
    findings.cut(size)
    assert list(findings.of(mirror)) == written
    findings.close()


def test_counts() -> None:
    counts = Counts()
    for kind, letter in ((Kind.MISSING, False), (Kind.MISSING, True), (Kind.REFUSED, True), (Kind.REFUSED, False)):
        counts.note(Finding(TABLE, suspect(1), kind, dead_letter=letter))
    assert (counts.missing, counts.refused, counts.unlettered, counts.differences) == (2, 2, 1, 3)
    assert Counts.of_dict({**counts.as_dict(), "of another docferry": 1}) == counts


def test_a_tombstone_is_no_item() -> None:
    world = World(rows={"1": "x"})
    world.target.write([Delete(ORDERS, (1,), 7), Delete(ORDERS, (2,), 7)])
    assert kinds(world.settle(suspect(1), suspect(2))) == {(1,): Kind.MISSING}


def test_where_nobody_keeps_an_order_it_looks_several_times() -> None:
    """A late event arrives after the outbox was empty."""
    world = World(rows={"1": "new", "2": "x"})
    world.write(1, "old")
    world.stop = Meanwhile(lambda _: world.write(1, "new", 6))
    assert kinds(world.settle(suspect(1), suspect(2), looks=4)) == {(2,): Kind.MISSING}
