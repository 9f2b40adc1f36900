"""Servers restart, slots vanish, workers meet: what was committed arrives, or docferry says why it cannot."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import psycopg
import pytest

from docferry.capture import retention_reading
from docferry.capture.retention import Retention
from docferry.capture.setup import ReplicationSetup
from docferry.change.model import split_version
from docferry.cli.status import _rendered
from docferry.config import RunConfig
from docferry.document.model import Write
from docferry.embedded.postgres import EmbeddedPostgres, StopMode
from docferry.errors import AlreadyRunning, DocferryError, HistoryChanged, SourceRefused
from docferry.target.contract import Outcome, Result
from docferry.target.memory import MemoryTarget

from ..waiting import PATIENCE, until
from .harness import Ferry


@pytest.fixture
def things(ferry: Ferry) -> Ferry:
    ferry.execute("CREATE TABLE things (id int PRIMARY KEY, name text)")
    ferry.execute("INSERT INTO things SELECT g, 'n' || g FROM generate_series(1, 50) AS g")
    ferry.begin("public.things")
    return ferry


# -- the slot ----------------------------------------------------------------------------------------------------------


def test_an_idle_source_keeps_no_log(things: Ferry) -> None:
    """Other tables are busy, the mirrored ones are not: the heartbeat moves the slot (R7)."""
    things.execute("CREATE TABLE busy AS SELECT repeat('x', 100) AS x FROM generate_series(1, 50000)")
    with things.app() as app:
        setup = app.setup
        assert isinstance(setup, ReplicationSetup)
        busy_until = setup.slot()
        assert busy_until is not None

        def has_moved() -> bool:
            slot = setup.slot()
            return slot is not None and slot.confirmed >= busy_until.current

        until(has_moved, "the slot has moved past what it does not need")


def test_a_stopped_worker_has_confirmed_what_it_did(things: Ferry) -> None:
    things.execute("UPDATE things SET name = 'last'")
    things.wait()
    position = things.query("SELECT (pg_current_wal_lsn() - '0/0')::bigint")[0][0]
    things.execute("UPDATE things SET name = 'very last'")
    things.wait()
    things.stop()
    (confirmed,) = things.query(
        "SELECT (confirmed_flush_lsn - '0/0')::bigint FROM pg_replication_slots WHERE slot_name = %s", things.slot
    )
    assert confirmed[0] > position


def test_a_worker_that_is_killed_repeats_itself_harmlessly(things: Ferry) -> None:
    for number in range(5):
        things.execute(
            f"UPDATE things SET name = 'round {number}' WHERE id % 2 = 0", f"DELETE FROM things WHERE id = {number}"
        )
        things.kill()
        things.execute(f"INSERT INTO things VALUES ({1000 + number}, 'while away')")
        things.start()
    things.wait()
    things.assert_same("public.things")


def test_a_slot_that_was_dropped_is_noticed_and_apply_heals(things: Ferry) -> None:
    things.stop()
    things.execute(f"SELECT pg_drop_replication_slot('{things.slot}')")
    things.execute("UPDATE things SET name = 'unseen' WHERE id = 1", "DELETE FROM things WHERE id = 2")
    error = things.failed_start()
    assert isinstance(error, HistoryChanged)
    assert "docferry apply" in error.remedy
    assert any("backfill" in step for step in things.apply())
    things.start()
    things.wait()
    things.assert_same("public.things")


def test_a_slot_that_is_dropped_under_a_worker_stops_it(things: Ferry) -> None:
    until(things.slot_is_dropped, "the slot is dropped between two of its readers")
    assert isinstance(things.failure(), HistoryChanged)
    things.execute("UPDATE things SET name = 'unseen' WHERE id = 1")
    things.apply()
    things.start()
    things.wait()
    things.assert_same("public.things")


# -- R2: histories -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["timeline = timeline + 1", "system_identifier = '1'"])
def test_another_history_begins_another_epoch(things: Ferry, change: str) -> None:
    """As after a failover, or when the dsn leads to a copy of the database."""
    things.stop()
    things.execute(f"UPDATE docferry.epochs SET {change}", "DELETE FROM things WHERE id = 7")
    error = things.failed_start()
    assert isinstance(error, HistoryChanged)
    assert "docferry apply" in error.remedy
    things.apply()
    things.start()
    things.wait()
    things.assert_same("public.things")
    with things.app() as app:
        items = list(things.target.scan(app.mirror("public.things").collection))
    assert {split_version(item.version)[0] for item in items if item.document is not None} == {2}
    assert things.apply() == [], "once is enough"


def test_collections_of_an_earlier_setup_are_outdone(things: Ferry) -> None:
    """The schema was dropped, its epochs with it; the items it left must not look newer than what comes."""
    things.stop()
    things.execute("UPDATE docferry.epochs SET timeline = timeline + 1")
    things.apply()
    things.start()
    things.wait()
    things.stop()
    things.execute(
        "DROP SCHEMA docferry CASCADE", "UPDATE things SET name = 'since'", "DELETE FROM things WHERE id = 9"
    )
    things.apply()
    things.start()
    things.wait()
    things.assert_same("public.things")


@pytest.mark.parametrize("step", range(12))
def test_an_apply_that_was_cut_short_is_finished_by_the_next(things: Ferry, step: int) -> None:
    """After every statement that changes something, at either end."""
    things.stop()
    things.execute(
        f"SELECT pg_drop_replication_slot('{things.slot}')", "UPDATE things SET name = 'unseen' WHERE id < 9"
    )
    things.execute("CREATE TABLE others (id int PRIMARY KEY)", "INSERT INTO others VALUES (1)")
    things.mirror("public.others")
    things.target._collections.clear()
    left = step

    class CutShort(Exception):
        pass

    def counting(what: object, name: str) -> None:
        method = getattr(what, name)

        def run(*args: object, **options: object) -> object:
            nonlocal left
            result = method(*args, **options)
            left -= 1
            if left < 0:
                raise CutShort
            return result

        setattr(what, name, run)

    with things.app() as app:
        for name in ("register_mirror", "request_backfill", "begin_epoch"):
            counting(app.ledger, name)
        for name in ("create_publication", "create_slot"):
            counting(app.setup, name)
        counting(app.target, "create")
        with contextlib.suppress(CutShort):
            app.admin().apply()
    del things.target.create
    things.apply()
    things.start()
    things.wait()
    things.assert_same("public.things", "public.others")


# -- one worker --------------------------------------------------------------------------------------------------------


def test_a_second_worker_is_refused(things: Ferry) -> None:
    with things.app() as app, pytest.raises(AlreadyRunning, match="another docferry worker"):
        app.worker().run()
    things.execute("UPDATE things SET name = 'still mirrored'")
    things.wait()
    things.assert_same("public.things")


def test_destroy_is_refused_while_a_worker_runs(things: Ferry) -> None:
    with things.app() as app, pytest.raises(AlreadyRunning):
        app.admin().destroy(keep_collections=False)
    things.stop()
    with things.app() as app:
        app.admin().destroy(keep_collections=False)
        assert app.admin().destroy(keep_collections=False) == []
    assert things.query("SELECT FROM pg_replication_slots WHERE slot_name = %s", things.slot) == []
    assert things.query("SELECT FROM pg_namespace WHERE nspname = 'docferry'") == []
    assert things.target._collections == {}


def test_a_figure_that_is_only_shown_decides_nothing(
    postgres_server: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> Retention:
        raise SourceRefused("source: could not stat pg_wal (SQLSTATE 58P01)")

    monkeypatch.setattr(retention_reading, "read_retention", fails)
    things = Ferry(postgres_server.dsn())
    with contextlib.closing(things):
        things.execute("ALTER SYSTEM SET max_slot_wal_keep_size = '1GB'", "SELECT pg_reload_conf()")
        things.execute("CREATE TABLE things (id int PRIMARY KEY)")
        things.mirror("public.things")
        things.apply()
        with things.app() as app:
            status = app.status()
            assert "wal        not visible from here: source: could not stat pg_wal" in _rendered(status)
            worker = app.worker()
            assert worker._health is not None
            worker._health.look()
            assert worker._health._source().ok
            assert worker._health.stream is not None
            assert 2**29 < (worker._health.stream.safe or 0) < 2**31


# -- a standby that is away --------------------------------------------------------------------------------------------


def test_a_standby_that_is_away_holds_up_neither_the_worker_nor_the_end(postgres_server: EmbeddedPostgres) -> None:
    things = Ferry(postgres_server.dsn())
    with contextlib.closing(things), psycopg.connect(things.dsn, autocommit=True) as system:
        things.execute("CREATE TABLE things (id int PRIMARY KEY)", "INSERT INTO things VALUES (1)")
        things.begin("public.things")
        system.execute("SET synchronous_commit = local")
        system.execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
        system.execute("SELECT pg_reload_conf()")
        until(lambda: things.query("SHOW synchronous_standby_names") == [("nobody",)], "a standby is waited for")
        # The heartbeat notices, and has the table populated again.
        system.execute("ALTER TABLE things ADD COLUMN name text DEFAULT 'new'")
        until(lambda: things.documents("public.things")[1,].get("name"), "backfills and heartbeats go on")
        (before,) = things.query("SELECT updated_at FROM docferry.workers")
        until(lambda: things.query("SELECT updated_at FROM docferry.workers") > [before], "heartbeats go on")
        things.stop()
        assert things.query("SELECT state->>'running' FROM docferry.workers") == [("false",)]

        with things.app() as app:
            ledger = app.ledger
            asks = threading.Thread(target=lambda: ledger.request_backfill("public.things", "test"), daemon=True)
            asks.start()
            waits = "SELECT FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
            until(lambda: things.query(waits), "whoever applies does wait for the standby")
        asks.join(PATIENCE)
        assert not asks.is_alive(), "but not when the process ends"


# -- the server --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_the_server_restarts(postgres_server: EmbeddedPostgres, mode: StopMode) -> None:
    things = Ferry(postgres_server.dsn())
    try:
        things.execute("CREATE TABLE things (id int PRIMARY KEY, name text)")
        things.execute("INSERT INTO things SELECT g, 'n' || g FROM generate_series(1, 2000) AS g")
        things.run = RunConfig(backfill_page=50)
        things.mirror("public.things")
        things.apply()
        things.start()
        for number in range(2):
            things.execute(f"UPDATE things SET name = 'before {number}' WHERE id % 3 = 0")
            things.connection.close()
            postgres_server.restart(mode)
            things.connection = psycopg.connect(things.dsn, autocommit=True)
            things.execute(
                f"UPDATE things SET name = 'after {number}' WHERE id % 5 = 0", f"DELETE FROM things WHERE id = {number}"
            )
        things.wait()
        things.assert_same("public.things")
    finally:
        things.close()


def test_connections_are_cut_again_and_again(things: Ferry) -> None:
    stop = threading.Event()

    def cut() -> None:
        with psycopg.connect(things.dsn, autocommit=True) as connection:
            while not stop.wait(0.15):
                connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND application_name LIKE 'docferry%' "
                    "AND application_name NOT IN ('docferry setup', 'docferry wait') AND random() < 0.5"
                )

    cutting = threading.Thread(target=cut)
    cutting.start()
    try:
        for number in range(60):
            things.transaction(
                f"UPDATE things SET name = 'cut {number}' WHERE id % 7 = {number % 7}",
                f"DELETE FROM things WHERE id = {number}",
                f"INSERT INTO things VALUES ({1000 + number}, 'new')",
                f"UPDATE things SET id = id + 5000 WHERE id = {1000 + number // 2}",
            )
            if number == 30:
                things.execute("TRUNCATE things", "INSERT INTO things SELECT g, 'x' FROM generate_series(1, 99) AS g")
    finally:
        stop.set()
        cutting.join(PATIENCE)
    things.wait()
    things.assert_same("public.things")


# -- R10 ---------------------------------------------------------------------------------------------------------------


class Counting(MemoryTarget):
    """Keeps nothing but the number of writes."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def write(self, writes: Sequence[Write]) -> list[Result]:
        self.count += len(writes)
        return [Result(Outcome.APPLIED) for _ in writes]


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_large_transaction_in_bounded_memory(ferry: Ferry) -> None:
    ferry.target = Counting()
    ferry.execute("CREATE TABLE things (id int PRIMARY KEY, name text)")
    ferry.begin("public.things")
    before = _resident()
    peak, stop = before, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not stop.wait(0.02):
            peak = max(peak, _resident())

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        ferry.execute("INSERT INTO things SELECT g, repeat('x', 300) FROM generate_series(1, 300000) AS g")
        ferry.wait()
    finally:
        stop.set()
        watching.join(PATIENCE)
    assert isinstance(ferry.target, Counting)
    assert ferry.target.count == 300_000
    # The text alone is 90 MB.
    assert peak - before < 64 << 20, f"{(peak - before) >> 20} MiB more"


def test_errors_of_the_worker_are_ours(things: Ferry) -> None:
    """Whatever stops it, the operator is told what to do."""
    things.execute("DROP SCHEMA docferry CASCADE")
    things.execute("UPDATE things SET name = 'x'")
    error = things.failure()
    assert isinstance(error, DocferryError)
    assert "docferry apply" in error.remedy
