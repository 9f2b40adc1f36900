"""A collection is populated from its table, whatever happens beside it."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pytest

from docferry.capture import ledger
from docferry.capture.contract import BackfillState
from docferry.capture.running import RUNNING, running
from docferry.capture.snapshot import TableReader
from docferry.change.model import EPOCH_STEP, make_version
from docferry.config import RunConfig
from docferry.document.model import Collection, Put, Write
from docferry.errors import Interrupted, SourceUnavailable
from docferry.operate.backfill import Progress
from docferry.retry import Retry
from docferry.target.contract import Result
from docferry.target.memory import MemoryTarget

from ..waiting import PATIENCE, until
from .harness import BY_BOTH, Ferry, MemoryApp

CAPTURES = BY_BOTH


class Watched(MemoryTarget):
    """Calls `before_write` with what is about to be written."""

    before_write: Callable[[Sequence[Write]], None] = staticmethod(lambda _: None)

    def write(self, writes: Sequence[Write]) -> list[Result]:
        self.before_write(writes)
        return super().write(writes)


@pytest.fixture
def ferry(ferry: Ferry) -> Ferry:
    ferry.target = Watched(control=ferry.control)
    ferry.run = RunConfig(backfill_page=7, backfill_workers=3)
    return ferry


@pytest.fixture
def things(ferry: Ferry) -> Ferry:
    """public.things with 500 rows, applied and not yet populated."""
    ferry.execute("CREATE TABLE things (id int PRIMARY KEY, name text)")
    ferry.execute("INSERT INTO things SELECT g * 3, 'n' || g FROM generate_series(1, 500) AS g")
    ferry.mirror("public.things")
    ferry.apply()
    return ferry


def backfill(ferry: Ferry, *, anew: bool = False, on_progress: Callable[[Progress], None] = lambda _: None) -> None:
    with ferry.app() as app:
        app.backfill("public.things", anew=anew, on_progress=on_progress)


@dataclass
class Background:
    """Something in a thread of its own, joined and asked for its failure on leaving."""

    work: Callable[[], None]
    failures: list[BaseException] = field(default_factory=list)

    def __enter__(self) -> Background:
        def run() -> None:
            try:
                self.work()
            except BaseException as error:  # noqa: BLE001 - handed to the test
                self.failures.append(error)

        self._thread = threading.Thread(target=run)
        self._thread.start()
        return self

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def __exit__(self, *_: object) -> None:
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()

    def raise_failure(self) -> None:
        for failure in self.failures:
            raise failure


def test_without_a_worker(things: Ferry) -> None:
    seen: list[Progress] = []
    backfill(things, on_progress=seen.append)
    things.assert_same("public.things")
    assert seen[-1] == Progress("public.things", 500, 500, done=True)
    assert things.backfills()[0].state is BackfillState.DONE


def test_an_empty_table(things: Ferry) -> None:
    things.execute("TRUNCATE things")
    backfill(things)
    assert things.documents("things") == {}


# -- L0 ----------------------------------------------------------------------------------------------------------------


def test_the_start_version_is_between_the_changes_before_and_after_it(things: Ferry) -> None:
    """Also where a record ends at the end of a page of the log, hence the many sizes."""
    bounds: list[tuple[int, int]] = []
    with things.app() as app:
        epoch = app.admin().check_applied().number
        ledger = app._ledger(epoch)
        for number in range(10_000, 10_300):
            low = ledger.take_start_version()
            things.connection.execute("INSERT INTO things VALUES (%s, %s)", [number, "x" * (number * 7 % 900)])
            bounds.append((low, ledger.take_start_version()))
    assert all(low // EPOCH_STEP == epoch for low, _ in bounds)
    things.start()
    things.wait()
    versions = {item.key[0]: item.version for item in things.target.scan(_collection(things))}
    # Those were populated as well, with a later version than their changes; then the changes are told by their bounds.
    things.execute("UPDATE things SET name = name || '!' WHERE id = 10000")
    things.wait()
    assert len(versions) == 800
    later = [versions[number] for number in range(10_000, 10_300)]
    assert all(version > high for version, (_, high) in zip(later, bounds, strict=True))


def test_a_change_has_a_version_between_the_start_versions_around_it(things: Ferry) -> None:
    things.start()
    things.wait()
    bounds: dict[int, tuple[int, int]] = {}
    with things.app() as app:
        ledger = app._ledger(app.admin().check_applied().number)
        for number in range(10_000, 10_300):
            low = ledger.take_start_version()
            things.connection.execute("INSERT INTO things VALUES (%s, %s)", [number, "x" * (number * 7 % 900)])
            bounds[number] = low, ledger.take_start_version()
    things.wait()
    versions = {item.key[0]: item.version for item in things.target.scan(_collection(things))}
    for number, (low, high) in bounds.items():
        assert low < versions[number] < high


def _collection(ferry: Ferry) -> Collection:
    return ferry.target._collections["things"].collection


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set when docferry has found transactions in progress."""
    found = threading.Event()

    def seen(*arguments: Any) -> list[str]:
        numbers = running(*arguments)
        if numbers:
            found.set()
        return numbers

    monkeypatch.setattr(ledger, "running", seen)
    return found


@pytest.mark.parametrize("prepared", [False, True])
def test_it_waits_for_transactions_that_are_open(things: Ferry, waits: threading.Event, *, prepared: bool) -> None:
    """What they wrote may lie before L0, and no page shows it."""
    with things.another() as other:
        other.execute("UPDATE things SET name = 'open' WHERE id <= 300")
        other.execute("DELETE FROM things WHERE id = 600")
        if prepared:
            other.execute("PREPARE TRANSACTION 'waiting'")
        things.start()
        assert waits.wait(PATIENCE), "L0 has been taken"
        assert things.documents("things") == {}
        assert things.backfills()[0].state is BackfillState.REQUESTED
        if prepared:
            things.execute("COMMIT PREPARED 'waiting'")
        else:
            other.commit()
    things.wait()
    things.assert_same("public.things")


def test_it_lives_while_the_table_is_locked(things: Ferry) -> None:
    """Behind a long ALTER TABLE, say: a new process could do no more."""
    backfill(things)
    things.execute("UPDATE docferry.backfills SET state = 'running', done_key = NULL, rows_done = 0")
    with things.another() as other:
        other.execute("LOCK TABLE things IN ACCESS EXCLUSIVE MODE")
        things.start()
        until(lambda: _is_blocked(things), "a page is waited for")
        assert things._app is not None
        pulses = things._app.metrics.pulses
        before = pulses.all()["backfills"].beat
        until(lambda: pulses.all()["backfills"].beat > before, "a turn")
        assert _is_blocked(things)
        assert things.backfills()[0].state is BackfillState.RUNNING
    until(lambda: things.backfills()[0].state is BackfillState.DONE, "the backfill is done")


@pytest.mark.parametrize("begun", [False, True])
def test_it_stops_while_the_table_is_locked(things: Ferry, *, begun: bool) -> None:
    """Also when nobody lets go of the lock, and before the first page."""
    if begun:
        backfill(things)
        things.execute("UPDATE docferry.backfills SET state = 'running', done_key = NULL, rows_done = 0")
    with things.another() as other:
        other.execute("LOCK TABLE things IN ACCESS EXCLUSIVE MODE")
        stop = threading.Event()

        def work() -> None:
            with things.app() as app, contextlib.suppress(Interrupted):
                stopping.append(app.retry.stop)
                stop.set()
                app.backfill("public.things", anew=False, on_progress=lambda _: None)

        stopping: list[threading.Event] = []
        with Background(work) as background:
            assert stop.wait(PATIENCE)
            if begun:
                until(lambda: _is_blocked(things), "a page is waited for")
            stopping[0].set()
            until(lambda: not background.running, "it has stopped")
            background.raise_failure()
    backfill(things)
    things.assert_same("public.things")


def _is_blocked(ferry: Ferry) -> bool:
    return bool(
        ferry.query(
            "SELECT FROM pg_stat_activity WHERE application_name = 'docferry backfill' "
            "AND datname = current_database() AND cardinality(pg_blocking_pids(pid)) > 0"
        )
    )


@pytest.mark.parametrize("which", ["newest", "among others"])
def test_every_transaction_that_wrote_before_is_running(things: Ferry, which: str) -> None:
    """Also the newest of all, which a snapshot does not list."""

    def execute(statement: str) -> list[tuple[Any, ...]]:
        return things.query(RUNNING[statement])

    with things.another() as other:
        other.execute("UPDATE things SET name = 'open'")
        ((number,),) = other.execute("SELECT pg_current_xact_id()::text").fetchall()
        if which == "among others":
            things.execute("DELETE FROM docferry.workers", "SELECT pg_current_xact_id()")
        assert number in running(execute)
        other.commit()
    assert number not in running(execute)


def test_it_does_not_wait_for_transactions_of_other_databases(things: Ferry) -> None:
    with psycopg.connect(things.dsn.rpartition("/")[0] + "/postgres") as elsewhere:
        elsewhere.execute("SELECT pg_current_xact_id()")
        backfill(things)
        elsewhere.rollback()
    things.assert_same("public.things")


def test_waiting_can_be_stopped(things: Ferry, waits: threading.Event) -> None:
    with things.another() as other:
        other.execute("DELETE FROM things WHERE id = 3")
        things.start()
        assert waits.wait(PATIENCE), "L0 has been taken"
        things.stop()
        other.rollback()
    backfill(things)
    things.assert_same("public.things")


# -- interruptions -----------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """As if the process had ended here."""


@pytest.mark.parametrize("gracefully", [True, False])
def test_it_resumes_wherever_it_was_interrupted(things: Ferry, *, gracefully: bool) -> None:
    assert isinstance(things.target, Watched)
    rng = random.Random(1)
    done: list[int] = []
    starts: list[int] = []
    while True:
        left = rng.randint(1, 14)
        with things.app() as app:

            def count_down(_: Sequence[Write], app: MemoryApp = app) -> None:
                nonlocal left
                left -= 1
                if left == 0 and gracefully:
                    app.retry.stop.set()
                elif left == 0:
                    raise Killed

            things.target.before_write = count_down
            try:
                app.backfill("public.things", anew=False, on_progress=lambda progress: starts.append(progress.rows))
            except (Interrupted, Killed):
                pass
            else:
                break
        (record,) = things.backfills()
        done.append(record.rows_done)
        # Time passes: the record moves now and then, however short the pages are.
        things.execute(f"UPDATE things SET name = name || '.' WHERE id = {rng.randint(1, 500) * 3}")
        if not gracefully and len(done) > 25:
            things.target.before_write = lambda _: None
            backfill(things)
            break
    assert done == sorted(done)
    if gracefully:
        assert len(set(done)) > 5, "it went on from where it was"
    (record,) = things.backfills()
    assert (record.state, record.rows_done) == (BackfillState.DONE, 500)
    things.start()
    things.wait()
    things.assert_same("public.things")


def test_beside_live_writes(things: Ferry) -> None:
    stop = threading.Event()

    def write() -> None:
        rng = random.Random(2)
        with psycopg.connect(things.dsn, autocommit=True) as connection:
            while not stop.is_set():
                id_ = rng.randint(1, 520) * 3
                statement = rng.choice(
                    [
                        "INSERT INTO things VALUES (%(id)s, 'new') ON CONFLICT (id) DO UPDATE SET name = 'upserted'",
                        "UPDATE things SET name = name || '+' WHERE id = %(id)s",
                        "DELETE FROM things WHERE id = %(id)s",
                        "UPDATE things SET id = -id WHERE id = %(id)s",
                    ]
                )
                # A negative key may be taken already.
                with contextlib.suppress(psycopg.errors.UniqueViolation), connection.transaction():
                    connection.execute(statement.encode(), {"id": id_})
                    if rng.random() < 0.2:
                        raise psycopg.Rollback

    with Background(write) as writer:
        try:
            things.start()
            things.wait()
            for _ in range(3):
                backfill(things, anew=True)
        finally:
            stop.set()
    writer.raise_failure()
    things.wait()
    things.assert_same("public.things")


def test_truncate_while_pages_are_written(things: Ferry) -> None:
    """Rows of a page that was read before the TRUNCATE are written after it."""
    assert isinstance(things.target, Watched)
    reached, go_on = threading.Event(), threading.Event()

    def hold_up(writes: Sequence[Write]) -> None:
        if any(isinstance(write, Put) and write.key[0] == 600 for write in writes):
            reached.set()
            assert go_on.wait(PATIENCE)

    things.target.before_write = hold_up
    things.start()
    assert reached.wait(PATIENCE)
    things.execute("TRUNCATE things", "INSERT INTO things VALUES (1, 'new'), (600, 'new')")
    until(lambda: things.query("SELECT FROM docferry.mirrors WHERE floor > 0"), "the worker has seen the TRUNCATE")
    go_on.set()
    things.wait()
    things.assert_same("public.things")
    assert len(things.documents("things")) == 2


def test_again_it_removes_items_without_a_row(things: Ferry) -> None:
    backfill(things)
    collection = _collection(things)
    (low,) = {item.version for item in things.target.scan(collection)}
    things.target.write([Put(collection, (-1,), low - 5, {"id": -1, "name": "left behind"})])
    things.target.write([Put(collection, (-2,), make_version(9, 1), {"id": -2, "name": "of a later epoch"})])
    things.execute("DELETE FROM things WHERE id = 3")
    backfill(things, anew=True)
    assert set(things.documents("things")) == {(row["id"],) for row in things.rows("public.things")} | {(-2,)}


def test_a_request_made_anew_replaces_the_one_that_runs(things: Ferry) -> None:
    assert isinstance(things.target, Watched)
    reached, go_on = threading.Event(), threading.Event()

    def hold_up(_: Sequence[Write]) -> None:
        reached.set()
        assert go_on.wait(PATIENCE)

    things.target.before_write = hold_up
    things.start()
    assert reached.wait(PATIENCE)
    with things.app() as app:
        first = app.ledger.backfills()[0]
        second = app.ledger.request_backfill("public.things", "asked for", anew=True)
    assert second.id != first.id
    go_on.set()
    things.wait()
    (record,) = things.backfills()
    assert (record.id, record.state) == (second.id, BackfillState.DONE)
    things.assert_same("public.things")


def test_a_request_made_anew_that_is_cut_off_leaves_the_earlier_one(
    things: Ferry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or nobody would know any more that a backfill is due."""
    with things.app() as app:
        (due,) = app.ledger.backfills(unfinished_only=True)
        with monkeypatch.context() as broken:
            broken.setitem(ledger._SQL, "request_backfill", "SELECT %s, %s, pg_terminate_backend(pg_backend_pid())")
            with pytest.raises(SourceUnavailable):
                app.ledger.request_backfill("public.things", "asked for", anew=True)
        assert [one.id for one in app.ledger.backfills(unfinished_only=True)] == [due.id]
        assert app.ledger.request_backfill("public.things", "asked for", anew=True).id != due.id


# -- rows of several megabytes -----------------------------------------------------------------------------------------


def test_rows_of_several_megabytes_come_piece_by_piece(ferry: Ferry) -> None:
    ferry.execute(
        "CREATE TABLE things (id int PRIMARY KEY, name text, scan bytea)",
        "ALTER TABLE things ALTER scan SET STORAGE EXTERNAL",
        "INSERT INTO things SELECT g, 'n' || g, convert_to(repeat('x', 3000000), 'UTF8') FROM generate_series(1, 6) g",
        "INSERT INTO things SELECT g, 'n' || g, NULL FROM generate_series(7, 20) AS g",
    )
    reader = TableReader(ferry.dsn, Retry(), purpose="test", table="public.things", key=("id",))
    try:
        rows, last = reader.read_page(None, ("20",), 2 << 20)
        assert (len(rows), last) == (1, ("1",))
        rows, last = reader.read_page(last, ("20",), 10 << 20)
        assert (len(rows), last) == (2, ("3",))
        # The connection is fit for other use although the rest of the rows was given up.
        assert reader.boundary(last, 2) == ("5",)
        rows, last = reader.read_page(("5",), ("20",), 100 << 20)
        assert (len(rows), last) == (15, None)
    finally:
        reader.close()
    ferry.mirror("public.things", exclude=frozenset({"scan"}))
    ferry.apply()
    ferry.start()
    ferry.wait()
    assert {key: document["name"] for key, document in ferry.documents("things").items()} == {
        (number,): f"n{number}" for number in range(1, 21)
    }


def test_rows_that_are_too_large_become_dead_letters_and_stop_nothing(ferry: Ferry) -> None:
    ferry.execute(
        "CREATE TABLE things (id int PRIMARY KEY, name text)",
        "INSERT INTO things SELECT g, CASE WHEN g % 10 = 0 THEN repeat('x', 500000) END FROM generate_series(1, 40) g",
    )
    ferry.mirror("public.things")
    ferry.apply()
    ferry.start()
    ferry.wait()
    ferry.execute("UPDATE things SET name = repeat('y', 600000) WHERE id IN (20, 21)")
    ferry.wait()
    with ferry.app() as app:
        letters = app.dead_letters.find()
        assert sorted(stored.letter.key["id"] for stored in letters) == ["10", "20", "21", "30", "40"]
        ferry.execute("UPDATE things SET name = 'small' WHERE id IN (10, 20)", "DELETE FROM things WHERE id = 30")
        ferry.wait()
        replay = app.replay(rate=1000.0)
        outcomes = {one.stored.letter.key["id"]: one.outcome for one in replay.run(letters, dry_run=True)}
        assert outcomes == replayed_outcomes
        outcomes = {one.stored.letter.key["id"]: one.outcome for one in replay.run(letters, dry_run=False)}
        assert outcomes == replayed_outcomes
        assert sorted(stored.letter.key["id"] for stored in app.dead_letters.find()) == ["21", "40"]


replayed_outcomes = {"10": "superseded", "20": "superseded", "21": "refused", "30": "superseded", "40": "refused"}
