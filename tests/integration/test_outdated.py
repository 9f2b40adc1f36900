"""`apply` changes what is in force while somebody still works by what was: he stops, and what he left is put right."""

from __future__ import annotations

import threading
from dataclasses import replace
from functools import partial

import pytest

from docferry.document.model import Collection
from docferry.errors import HistoryChanged
from docferry.operate import letters
from docferry.operate.backfill import Progress
from docferry.operate.worker import WorkerSettings

from .harness import BY_BOTH, Ferry
from .test_verify import some_orders, verified, verifying

CAPTURES = BY_BOTH


def change_settings(ferry: Ferry) -> None:
    """A colleague leaves out a column."""
    ferry.mirrors[0] = replace(ferry.mirrors[0], exclude=frozenset({"note"}))
    ferry.apply()


def populate(ferry: Ferry, table: str) -> None:
    with ferry.app() as app:
        app.backfill(table, anew=False, on_progress=lambda _: None)


def with_note(ferry: Ferry) -> int:
    return sum("note" in document for document in ferry.documents("orders").values())


def test_a_worker_populates_no_former_collection(ferry: Ferry, monkeypatch: pytest.MonkeyPatch) -> None:
    """While `apply` makes the new one, which takes seconds on AWS."""
    some_orders(ferry)
    create = ferry.target.create
    looked = threading.Event()

    def slow(collection: Collection) -> bool:
        if collection.name == "orders_v2":
            # The worker's next looks for backfills come in between.
            looked.wait(2.5)
        return create(collection)

    monkeypatch.setattr(ferry.target, "create", slow)
    ferry.mirrors[0] = replace(ferry.mirrors[0], collection="orders_v2")
    ferry.apply()
    assert isinstance(ferry.failure(), HistoryChanged)
    ferry.start()
    ferry.wait()
    ferry.assert_same("public.orders")
    assert len(ferry.documents("orders")) == 60


def test_a_backfill_does_not_do_a_newer_request_by_its_own_settings(ferry: Ferry) -> None:
    some_orders(ferry)
    ferry.stop()
    began = threading.Event()

    def once(progress: Progress) -> None:
        if progress.rows >= 14 and not began.is_set():
            began.set()
            change_settings(ferry)

    with ferry.app() as app, pytest.raises(HistoryChanged, match="settings of the mirror of"):
        app.backfill("public.orders", anew=True, on_progress=once)
    assert began.is_set()
    ferry.start()
    ferry.wait()
    assert with_note(ferry) == 0


def test_a_comparison_by_former_settings_says_and_mends_nothing(ferry: Ferry) -> None:
    hand = some_orders(ferry)
    hand.remove(7)
    with verifying(ferry) as verification, verifying(ferry) as asking:
        (found,) = asking.run()  # and now it asks whether to repair
        assert found.counts.missing == 1
        change_settings(ferry)
        assert isinstance(ferry.failure(), HistoryChanged)
        ferry.start()
        ferry.wait()
        hand.remove(8)
        with pytest.raises(HistoryChanged, match="settings of the mirror of"):
            verification.run()
        with pytest.raises(HistoryChanged, match="settings of the mirror of"):
            asking.repair()
    assert with_note(ferry) == 0
    assert verified(ferry).counts.missing == 1


def test_a_replay_by_former_settings_writes_nothing(ferry: Ferry) -> None:
    some_orders(ferry)
    with ferry.app() as app:
        replayer = app.replay(rate=1000)
        change_settings(ferry)
        assert isinstance(ferry.failure(), HistoryChanged)
        ferry.start()
        ferry.wait()
        ferry.execute("UPDATE orders SET doc = to_jsonb(repeat('x', 500000)) WHERE id = 3")
        ferry.wait()
        assert ferry.query("SELECT count(*) FROM docferry.dead_letters") == [(1,)]
        with pytest.raises(HistoryChanged, match="settings of the mirror of"):
            letters.replay(replayer, letters.Selection(), dry_run=False)
    assert with_note(ferry) == 0
    assert ferry.query("SELECT count(*) FROM docferry.dead_letters") == [(1,)]


def test_changes_of_a_new_mirror_are_not_passed_over(ferry: Ferry) -> None:
    ferry.heartbeat_interval = 3600.0  # it has only the changes to go by
    ferry.execute(
        "CREATE TABLE things (id int PRIMARY KEY, name text)",
        "CREATE TABLE others (id int PRIMARY KEY, name text)",
        "INSERT INTO others VALUES (1, 'a'), (2, 'b')",
    )
    ferry.begin("public.things")
    ferry.mirror("public.others")
    ferry.apply()
    populate(ferry, "public.others")
    ferry.execute(
        "INSERT INTO others VALUES (3, 'c')",
        "UPDATE others SET name = 'new' WHERE id = 1",
        "DELETE FROM others WHERE id = 2",
    )
    error = ferry.failure()
    assert isinstance(error, HistoryChanged)
    assert "public.others" in str(error)
    ferry.start()
    ferry.wait()
    ferry.assert_same("public.others")
    # An empty table is a change, too.
    ferry.execute("CREATE TABLE more (id int PRIMARY KEY)", "INSERT INTO more VALUES (1)")
    ferry.mirror("public.more")
    ferry.apply()
    populate(ferry, "public.more")
    ferry.execute("TRUNCATE more")
    assert isinstance(ferry.failure(), HistoryChanged)
    ferry.start()
    ferry.wait()
    ferry.assert_same("public.more")


def test_changes_behind_a_population_are_not_written_by_former_settings(
    ferry: Ferry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither its heartbeat nor a request tells the worker before the change comes."""
    ferry.heartbeat_interval = 3600.0
    monkeypatch.setattr("docferry.worker_app.WorkerSettings", partial(WorkerSettings, look_for_backfills=3600.0))
    some_orders(ferry)
    change_settings(ferry)
    populate(ferry, "public.orders")
    monkeypatch.undo()
    ferry.execute("UPDATE orders SET doc = '{}' WHERE id = 1")
    assert isinstance(ferry.failure(), HistoryChanged)
    assert with_note(ferry) == 0
    ferry.start()
    ferry.wait()
    assert ferry.documents("orders")[1,] == {"id": 1, "doc": {}}
    assert with_note(ferry) == 0


def test_a_worker_notices_without_a_change(ferry: Ferry) -> None:
    some_orders(ferry)
    populated = ferry.query("SELECT count(*) FROM docferry.backfills WHERE state = 'done'")
    ferry.execute("CREATE TABLE others (id int PRIMARY KEY)")
    ferry.mirror("public.others")
    ferry.apply()
    assert "public.others" in str(ferry.failure())
    assert ferry.query("SELECT count(*) FROM docferry.backfills WHERE state = 'done'") == populated


def test_a_worker_is_not_started_without_a_mirror_that_is_set_up(ferry: Ferry) -> None:
    """Its changes would be confirmed and lost."""
    ferry.execute("CREATE TABLE things (id int PRIMARY KEY)", "CREATE TABLE others (id int PRIMARY KEY)")
    ferry.mirror("public.things", "public.others")
    ferry.apply()
    ferry.mirrors.pop()
    error = ferry.failed_start()
    assert isinstance(error, HistoryChanged)
    assert "docferry apply" in error.remedy
    ferry.apply()
    ferry.start()
    ferry.wait()
