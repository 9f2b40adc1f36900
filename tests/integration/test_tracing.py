"""One row from end to end, in every state that it can be in."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from docferry.change.model import make_version
from docferry.document.model import Put, Write
from docferry.errors import ConfigError
from docferry.operate.compare import Kind
from docferry.operate.traced import Trace
from docferry.operate.verdict import VerdictKind
from docferry.target.contract import Item, Result
from docferry.target.memory import MemoryTarget

from ..waiting import PATIENCE, until
from .harness import BY_BOTH, Ferry

CAPTURES = BY_BOTH


class Gate(MemoryTarget):
    """A target that can be made to wait."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.open = threading.Event()
        self.open.set()
        self.arrived = threading.Event()

    def write(self, writes: Sequence[Write]) -> list[Result]:
        self.arrived.set()
        assert self.open.wait(PATIENCE)
        return super().write(writes)


@pytest.fixture
def things(ferry: Ferry) -> Iterator[Ferry]:
    """Rows 1 to 3, populated; no worker runs."""
    ferry.execute(
        "CREATE TABLE things (id int PRIMARY KEY, n int, body json)",
        "INSERT INTO things SELECT g, 0, '{}' FROM generate_series(1, 3) AS g",
    )
    ferry.begin("public.things")
    ferry.stop()
    yield ferry
    ferry.kill()


def trace(ferry: Ferry, *texts: str, table: str = "things", patience: float = PATIENCE) -> Trace:
    with ferry.app() as app:
        return app.row_tracing(table, patience=patience, queue=True).trace(texts)


def verdict(ferry: Ferry, *texts: str, patience: float = PATIENCE) -> VerdictKind:
    return trace(ferry, *texts, patience=patience).verdict.kind


@contextmanager
def items(ferry: Ferry, table: str = "things") -> Iterator[dict[Any, Item]]:
    """What is stored, to be tampered with."""
    with ferry.target.store.lock:
        yield ferry.target.store.collections[table].items


def test_as_it_should_be(things: Ferry) -> None:
    found = trace(things, "1")
    assert found.verdict.kind is VerdictKind.IDENTICAL
    assert (found.exists, found.is_own, found.letters, found.has_passed) == (True, True, [], True)
    assert isinstance(found.expected, Put)
    ((transaction,),) = things.query("SELECT xmin::text::bigint FROM things WHERE id = 1")
    assert found.last_change is not None
    assert found.last_change.transaction == transaction
    assert found.last_change.committed_at is None
    assert found.waiting is not None
    assert (found.waiting.count, found.waiting.unseen) == (0, "")
    assert trace(things, " 01 ").key == ("1",)

    absent = trace(things, "99")
    assert (absent.verdict.kind, absent.exists, absent.item) == (VerdictKind.ABSENT, False, None)
    things.start()
    things.execute("DELETE FROM things WHERE id = 2")
    things.wait()
    deleted = trace(things, "2")
    assert deleted.verdict.kind is VerdictKind.DELETED
    assert "a tombstone stands until" in deleted.verdict.sentence
    things.stop()


def test_a_change_that_waits_and_nobody_carries(things: Ferry) -> None:
    things.execute(
        "UPDATE things SET n = 1 WHERE id = 1",
        "UPDATE things SET n = 2 WHERE id = 1",
        "UPDATE things SET n = 2 WHERE id = 3",
        "DELETE FROM things WHERE id = 2",
        "INSERT INTO things VALUES (4, 0, '{}')",
    )
    found = trace(things, "1")
    assert found.verdict.kind is VerdictKind.WAITING
    assert "(2 changes since 20" in found.verdict.sentence
    assert "no worker runs: start `docferry run`" in found.verdict.sentence
    assert found.waiting is not None
    assert [one.op for one in found.waiting.changes] == ["update", "update"]
    assert found.waiting.changes[0].version < found.waiting.changes[1].version
    assert found.waiting.changes[0].since is not None
    assert [verdict(things, id_) for id_ in ("2", "3", "4")] == [VerdictKind.WAITING] * 3
    # Looking takes nothing away.
    assert trace(things, "1").waiting == found.waiting
    things.start()
    assert verdict(things, "1") is VerdictKind.IDENTICAL
    things.wait()
    things.assert_same("public.things")
    things.stop()


def test_a_key_that_changed_waits_under_both(things: Ferry) -> None:
    things.execute("UPDATE things SET id = 30 WHERE id = 3")
    assert verdict(things, "3") is verdict(things, "30") is VerdictKind.WAITING
    assert verdict(things, "1") is VerdictKind.IDENTICAL


def test_a_truncate_waits_for_every_row(things: Ferry) -> None:
    things.execute("TRUNCATE things")
    found = trace(things, "1")
    assert found.verdict.kind is VerdictKind.WAITING
    assert found.waiting is not None
    assert [one.op for one in found.waiting.changes] == ["truncate"]


def test_on_its_way(things: Ferry) -> None:
    gate = Gate(store=things.target.store, control=things.target._control)
    things.target = gate
    things.start()
    gate.open.clear()
    gate.arrived.clear()
    things.execute("UPDATE things SET n = 1 WHERE id = 1")
    assert gate.arrived.wait(PATIENCE)
    found = trace(things, "1", patience=0.3)
    assert found.verdict.kind is VerdictKind.BEHIND
    assert "on its way" in found.verdict.sentence
    assert found.waited >= 0.3
    threading.Timer(0.3, gate.open.set).start()
    found = trace(things, "1")
    assert found.verdict.kind is VerdictKind.IDENTICAL
    things.stop()


def test_a_dead_letter(things: Ferry) -> None:
    things.start()
    things.execute("UPDATE things SET n = 1, body = json_build_object('a', repeat('x', 500000)) WHERE id = 1")
    things.wait()
    found = trace(things, "1")
    assert found.verdict.kind is VerdictKind.DEAD_LETTER
    ((stored, superseded),) = found.letters
    assert not superseded
    assert "the row still cannot be stored" in found.verdict.sentence
    assert f"`docferry deadletters replay {stored.id}`" in found.verdict.sentence
    assert verdict(things, "2") is VerdictKind.IDENTICAL
    things.stop()

    # What mends it waits; the dead letter is the older story.
    things.execute("UPDATE things SET body = '{\"a\": 1}' WHERE id = 1")
    assert verdict(things, "1") is VerdictKind.WAITING
    things.start()
    things.wait()
    found = trace(things, "1")
    assert found.verdict.kind is VerdictKind.IDENTICAL
    assert [superseded for _, superseded in found.letters] == [True]
    assert "a dead letter is left over" in found.verdict.sentence

    things.execute("UPDATE things SET body = json_build_object('a', repeat('x', 500000)) WHERE id = 2")
    things.wait()
    with things.app() as app:
        app.dead_letters.remove(app.dead_letters.find())
    assert verdict(things, "2") is VerdictKind.REFUSED
    things.stop()


@pytest.mark.parametrize("running", [False, True])
def test_an_item_that_is_not_as_docferry_left_it(things: Ferry, *, running: bool) -> None:
    old = things.target.read(trace_collection(things), [(1,)])[0]
    assert old is not None
    things.start()
    things.execute("UPDATE things SET n = 1 WHERE id = 1")
    things.wait()
    if not running:
        things.stop()
    with items(things) as stored:
        new = stored[(1,)]
        assert new.document is not None
        changed = {**new.document, "n": 5, "odd": "x"}

    def after(item: Item | None, key: int = 1) -> tuple[VerdictKind, str]:
        with items(things) as stored:
            if item is None:
                del stored[(key,)]
            else:
                stored[(key,)] = replace(item, key=(key,))
        found = trace(things, str(key)).verdict
        return found.kind, found.sentence

    kind, sentence = after(replace(new, document=changed))
    assert kind is VerdictKind.FOREIGN
    assert "changed outside docferry" in sentence
    kind, sentence = after(replace(new, version=-1, hash=None))
    assert kind is VerdictKind.FOREIGN
    assert "written outside docferry" in sentence
    kind, sentence = after(replace(new, version=make_version(999, 0)))
    assert kind is VerdictKind.FOREIGN
    assert "its version is greater than that of any change" in sentence
    kind, sentence = after(old)
    assert kind is VerdictKind.STALE
    assert "of an older state of the row although everything up to" in sentence
    kind, sentence = after(None)
    assert kind is VerdictKind.MISSING
    assert "missing although everything up to" in sentence
    assert "`docferry verify public.things --repair`" in sentence
    kind, sentence = after(replace(new, document=None, hash=None))
    assert kind is VerdictKind.MISSING
    assert "a tombstone stands for a row that exists" in sentence
    assert after(new)[0] is VerdictKind.IDENTICAL

    with things.app() as app:
        collection = app.mirror("things").collection
    things.target.write([Put(collection, (77,), new.version, {"id": 77, "n": 0})])
    found = trace(things, "77")
    assert (found.verdict.kind, found.compared.kind) == (VerdictKind.ORPHANED, Kind.ORPHANED)
    kind, _ = after(replace(new, document={"id": 78}), key=78)
    assert kind is VerdictKind.FOREIGN
    if running:
        things.stop()


def trace_collection(ferry: Ferry) -> Any:
    with ferry.app() as app:
        return app.mirror("things").collection


def test_a_backfill_that_has_not_come_to_the_row(ferry: Ferry) -> None:
    ferry.execute(
        'CREATE TABLE things (a text COLLATE "C", b int, PRIMARY KEY (a, b))',
        "INSERT INTO things SELECT x, g FROM unnest('{B,a,b}'::text[]) AS x, generate_series(1, 3) AS g",
    )
    ferry.mirror("public.things")
    ferry.apply()
    found = trace(ferry, "B", "1")
    assert found.verdict.kind is VerdictKind.BACKFILL
    assert "(requested) has not come to this row yet; no worker runs" in found.verdict.sentence
    ferry.execute("UPDATE docferry.backfills SET state = 'running', version = 1, done_key = '{a,2}'")
    assert not trace(ferry, "a", "3").has_passed
    assert not trace(ferry, "b", "1").has_passed
    assert trace(ferry, "a", "2").has_passed
    assert trace(ferry, "B", "3").has_passed
    assert trace(ferry, "a", "2").verdict.kind is VerdictKind.MISSING
    ferry.execute("UPDATE docferry.backfills SET state = 'requested', version = NULL, done_key = NULL")
    ferry.start()
    ferry.wait()
    assert verdict(ferry, "a", "3") is VerdictKind.IDENTICAL
    ferry.stop()


def test_keys_as_people_write_them(ferry: Ferry) -> None:
    ferry.execute(
        'CREATE TABLE things (a numeric, b date, "c %s" text, PRIMARY KEY (a, b))',
        "INSERT INTO things VALUES (1.50, '2025-01-31', 'it''s \"1\"')",
    )
    ferry.begin("public.things")
    ferry.stop()
    assert trace(ferry, "1.5", "Jan 31 2025").key == ("1.50", "2025-01-31")
    assert verdict(ferry, "1.5", "2025-01-31") is VerdictKind.IDENTICAL
    ferry.execute("UPDATE things SET \"c %s\" = 'x'")
    assert verdict(ferry, "1.5", "2025-01-31") is VerdictKind.WAITING
    ferry.execute("DELETE FROM things")
    assert verdict(ferry, "1.50", "2025-01-31") is VerdictKind.WAITING
    for texts in (("one", "2025-01-31"), ("1", "2025-02-31")):
        with pytest.raises(ConfigError, match=r"this cannot be a key of public\.things"):
            trace(ferry, *texts)


def test_no_false_alarm_under_live_traffic(things: Ferry) -> None:
    things.start()
    stop = threading.Event()

    def write() -> None:
        with things.another() as connection:
            connection.autocommit = True
            number = 0
            while not stop.is_set():
                number += 1
                connection.execute("UPDATE things SET n = %s WHERE id = 1", [number])
                if number % 3 == 0:
                    connection.execute("DELETE FROM things WHERE id = 2")
                if number % 3 == 1:
                    connection.execute("INSERT INTO things VALUES (2, %s, '{}') ON CONFLICT DO NOTHING", [number])

    writer = threading.Thread(target=write)
    writer.start()
    try:
        with things.app() as app:
            tracer = app.row_tracing("things", patience=PATIENCE, queue=False)
            found = [tracer.trace((id_,)).verdict for id_ in ("1", "2") * 6]
    finally:
        stop.set()
        writer.join()
    assert {one.kind for one in found} <= {
        VerdictKind.IDENTICAL,
        VerdictKind.ABSENT,
        VerdictKind.DELETED,
        VerdictKind.BEHIND,
    }, found
    things.wait()
    assert verdict(things, "1") is VerdictKind.IDENTICAL
    things.stop()


def test_a_slot_that_is_gone(things: Ferry) -> None:
    things.only_replication()
    things.execute("UPDATE things SET n = 1 WHERE id = 1")
    things.query("SELECT pg_drop_replication_slot(%s)", things.slot)
    found = trace(things, "1")
    assert found.verdict.kind is VerdictKind.UNDECIDED
    assert "Run `docferry apply`" in found.verdict.sentence
    assert verdict(things, "2") is VerdictKind.IDENTICAL


def test_the_slot_is_free_for_a_worker_again(things: Ferry) -> None:
    things.only_replication()
    things.execute("UPDATE things SET n = 1 WHERE id = 1")
    trace(things, "1")
    things.start()
    until(lambda: things.query("SELECT FROM pg_replication_slots WHERE active"), "the worker streams")
    things.wait()
    things.stop()
