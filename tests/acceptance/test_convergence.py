"""Whatever the application, the network and the operator do meanwhile: in the end the items equal the rows."""

from __future__ import annotations

import functools
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest

from docferry.embedded.dynamodb import EmbeddedDynamoDB
from docferry.embedded.postgres import EmbeddedPostgres

from .comparison import Mirrored, assert_same
from .conftest import IMMEDIATE, Ferry, WorkerProcess
from .road import Road
from .workload import SCHEMA, Workload, big_xml

OUTAGE = float(os.environ.get("DOCFERRY_TEST_OUTAGE", "30"))
"""Seconds that the DynamoDB API is away."""

WITHIN = 40.0
"""Seconds in which everything is to be at the target once the application rests."""


CAPTURES = ("replication", "outbox", "lambda")

every_capture = pytest.mark.parametrize("way", CAPTURES, indirect=True)


class Way:
    """docferry in one capture mode: applied, run and waited for as that mode wants it. Use as a context manager."""

    def __init__(self, capture: str, ferry: Ferry) -> None:
        self.capture = capture
        self.ferry = ferry
        self.road = Road(ferry) if capture == "lambda" else None
        self.workers: list[WorkerProcess] = []
        ferry.source["capture"] = capture
        self._open = ExitStack()

    def __enter__(self) -> Way:
        if self.road is not None:
            self._open.enter_context(self.road)
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def apply(self, *, run: dict[str, Any] | None = None, **source: Any) -> None:
        """Configure and apply; in mode lambda the function as well."""
        if self.road is not None:
            # So small that a transaction takes several events, and large documents are read again.
            source["lambda"] = {
                "function": self.road.name,
                "region": self.ferry.dynamodb.region,
                "payload_limit": "16KB",
            }
        self.ferry.write_config("public.orders", source=source, run=run)
        self.ferry.run("apply")
        if self.road is not None:
            self.road.create()

    def start(self) -> None:
        """The worker; in mode lambda it populates the collection, and then the function is alone."""
        if self.road is not None:
            self.ferry.run("run", "--once")
        else:
            self.workers.append(self.ferry.start_worker())

    def workload(self, seconds: float, **settings: Any) -> Workload:
        """So many seconds with replication, at most 5 with the others; with as many writers and at the pace that an
        emulator keeps up with."""
        if self.capture != "replication":
            seconds = min(seconds, 5)
        if self.road is not None:
            settings = {"pause": 0.04, "documents": (4000, 16000), **settings}
        return Workload(self.ferry.dsn, seconds=seconds, **settings)

    def settle(self) -> None:
        """The items equal the rows in time, which is more where an emulator runs the function; with a worker, at the
        moment when `docferry wait` returns."""
        within = WITHIN if self.capture == "replication" else 60.0
        if self.road is None:
            settle(self.ferry, within=within)
        else:
            self.road.settle(Mirrored("orders", f"{self.ferry.prefix}orders"), within=within)
            assert self.road.dead() == 0, self.ferry.json("deadletters", "list")

    def stop(self) -> None:
        """Everything ends as it should."""
        for worker in self.workers:
            assert worker.stop() == 0, worker.text


@pytest.fixture
def way(request: pytest.FixtureRequest, ferry: Ferry) -> Iterator[Way]:
    """docferry in a capture mode; its table is there, nothing is applied yet."""
    with Way(request.param, ferry) as way:
        ferry.execute(SCHEMA.format(table="orders"))
        yield way


@pytest.fixture
def orders(ferry: Ferry) -> Ferry:
    """docferry, applied to the table that the workload works on."""
    return prepared(ferry)


@pytest.fixture
def bare_source(postgres_server: EmbeddedPostgres, dynamodb: EmbeddedDynamoDB, tmp_path: Path) -> Iterator[Ferry]:
    """A table in a PostgreSQL of the test's own; nothing is applied yet."""
    with closing(Ferry(postgres_server.dsn(), dynamodb, tmp_path)) as ferry:
        ferry.execute(SCHEMA.format(table="orders"))
        yield ferry


@pytest.fixture
def lone_source(bare_source: Ferry) -> Ferry:
    """The same, applied."""
    return applied(bare_source)


@pytest.fixture
def lone_target(database: str, tmp_path: Path) -> Iterator[Ferry]:
    """The same with a DynamoDB of its own."""
    with EmbeddedDynamoDB(tmp_path / "dynamodb") as server, closing(Ferry(database, server, tmp_path)) as ferry:
        yield prepared(ferry)


def prepared(ferry: Ferry) -> Ferry:
    ferry.execute(SCHEMA.format(table="orders"))
    return applied(ferry)


def applied(ferry: Ferry) -> Ferry:
    ferry.write_config("public.orders")
    ferry.run("apply")
    return ferry


def populate(ferry: Ferry, rows: int) -> None:
    """Rows from before docferry."""
    ferry.execute(
        "INSERT INTO orders (id, status, total, order_data)"
        f" SELECT n, 'old', n / 7.0, xmlelement(name o, xmlelement(name n, n)) FROM generate_series(1, {rows}) n",
        "ANALYZE orders",
    )


def forgets_nothing(ferry: Ferry) -> bool:
    """Whether the server can be made to remember, through a crash, a transaction that has sent its event."""
    with psycopg.connect(ferry.dsn) as connection:
        return connection.info.server_version >= 170000


def insist(ferry: Ferry, statement: str) -> None:
    """Run a transaction again when it was the victim of a deadlock with the application."""
    while True:
        with suppress(psycopg.errors.DeadlockDetected):
            ferry.execute(statement)
            return


def settle(ferry: Ferry, *, within: float = WITHIN) -> None:
    """`docferry wait` returns in time, and at that moment the items equal the rows."""
    done = ferry.run("wait", "--timeout", f"{within:.0f}", timeout=within + 10, check=False)
    assert done.returncode == 0, f"{done.stderr}\nThe worker's log:\n{ferry._workers[-1].text[-6000:]}"
    assert_same(ferry.dsn, ferry.client(), Mirrored("orders", f"{ferry.prefix}orders"))


@every_capture
def test_a_busy_table(way: Way) -> None:
    way.apply()
    way.start()

    least = 10 if way.capture == "replication" else 2
    kinds = ("insert", "beside", "document", "delete", "move", "rolled back")
    done = way.workload(10, enough=lambda done: min(done[kind] for kind in kinds) > least).run()

    way.settle()
    assert min(done[kind] for kind in kinds) > least, done
    if way.road is not None:
        outcomes = {outcome for _, outcome in way.road.outcomes("public.orders")}
        assert "applied" in outcomes
        assert outcomes <= {"applied", "stale", "rolled back"}
    way.stop()


@every_capture
def test_truncate_amid_writes_and_after_them(way: Way) -> None:
    # Deferred triggers would have PostgreSQL refuse a TRUNCATE behind other changes of its transaction.
    way.apply(**({"triggers": {"deferred": False}} if way.capture == "lambda" else {}))
    way.start()

    with way.workload(3):
        time.sleep(1)
        way.ferry.execute("TRUNCATE orders")
        time.sleep(1)
        insist(way.ferry, "BEGIN; DELETE FROM orders WHERE id < 50; TRUNCATE orders; COMMIT")
    way.settle()

    way.ferry.execute("TRUNCATE orders")
    way.settle()
    assert way.ferry.items("orders") == []

    way.workload(1).run()
    way.settle()
    way.stop()


@every_capture
def test_truncate_amid_a_backfill(way: Way) -> None:
    ferry = way.ferry
    populate(ferry, 10_000)
    # Many large pages, so that rows which were read before the TRUNCATE are still on their way after it.
    way.apply(run={"backfill_workers": 8, "backfill_page": 500})

    way.workers.append(ferry.start_worker())
    with ledger_watched(ferry) as seen:
        ferry.eventually(lambda: seen and seen[-1][2] > 0, what="progress of the backfill")
        ferry.execute(
            "TRUNCATE orders", "INSERT INTO orders (id, status) SELECT n, 'after' FROM generate_series(1, 50) n"
        )
        way.workload(2).run()
        ferry.eventually(lambda: seen[-1][1] == "done", what="the end of the backfill")
        way.settle()

    assert any(0 < done < 10_000 for _, state, done in seen if state == "running"), "it was not amid the backfill"
    way.stop()


def test_a_killed_worker_goes_on_and_so_does_its_backfill(ferry: Ferry) -> None:
    rows = 20_000
    ferry.execute(SCHEMA.format(table="orders"))
    populate(ferry, rows)
    ferry.write_config("public.orders", run={"backfill_workers": 2, "backfill_page": 100})
    ferry.run("apply")
    rng = random.Random(seed := random.randrange(2**32))
    print(f"kills: seed={seed}")  # noqa: T201 - shown by pytest when the test fails
    kills_amid_backfill = 0

    with ledger_watched(ferry) as seen:
        with (
            Workload(ferry.dsn, seconds=10, pause=0.02, seed=rng.randrange(2**32)),
            Workload(
                ferry.dsn,
                seconds=10,
                pause=0.02,
                writers=1,
                keys=rows,
                enough=lambda _: kills_amid_backfill >= 2 or seen[-1][1] == "done",
                seed=rng.randrange(2**32),
            ) as everywhere,
        ):
            while everywhere.going_on():
                worker = ferry.start_worker(ready=False)
                states = len(seen)
                time.sleep(rng.uniform(1, 2))
                # A machine that is slow to start it gets the time for one page.
                ferry.eventually(functools.partial(has_advanced, seen, states), what="progress of the backfill")
                worker.kill()
                kills_amid_backfill += 0 < seen[-1][2] < rows and seen[-1][1] == "running"
        worker = ferry.start_worker()
        settle(ferry, within=120)

    assert kills_amid_backfill >= 2
    assert len({backfill for backfill, _, _ in seen}) == 1, "another backfill was begun"
    progress = [done for _, _, done in seen]
    assert progress == sorted(progress), "the backfill went back"
    assert worker.text.count(" 0 done") == 0, "the last worker is meant to resume"
    assert worker.stop() == 0, worker.text


@pytest.mark.parametrize("way", ["outbox"], indirect=True)
def test_two_workers_at_one_outbox_of_which_one_is_always_killed(way: Way) -> None:
    ferry = way.ferry
    populate(ferry, rows := 4000)
    way.apply(run={"backfill_workers": 2, "backfill_page": 100})
    rng = random.Random(seed := random.randrange(2**32))
    print(f"kills: seed={seed}")  # noqa: T201 - shown by pytest when the test fails
    workers = [ferry.start_worker(), ferry.start_worker()]
    kills = 0

    with (
        Workload(ferry.dsn, seconds=7, seed=rng.randrange(2**32)),
        Workload(
            ferry.dsn,
            seconds=7,
            pause=0.02,
            writers=1,
            keys=rows,
            enough=lambda _: kills >= 2,
            seed=rng.randrange(2**32),
        ) as everywhere,
    ):
        time.sleep(0.5)
        ferry.execute("TRUNCATE orders")
        while everywhere.going_on():
            time.sleep(rng.uniform(0.7, 1.5))
            victim = workers.pop(rng.randrange(2))
            assert victim.process.poll() is None, victim.text
            victim.kill()
            kills += 1
            workers.append(ferry.start_worker())
    settle(ferry, within=120)

    assert [worker.stop() for worker in workers] == [0, 0], [worker.text for worker in workers]


@pytest.mark.parametrize("way", ["lambda"], indirect=True)
def test_executions_of_the_function_die(way: Way) -> None:
    assert way.road is not None
    way.apply()
    way.start()
    rng = random.Random(seed := random.randrange(2**32))
    print(f"kills: seed={seed}")  # noqa: T201 - shown by pytest when the test fails
    kills = 0

    with way.workload(5, seed=rng.randrange(2**32), enough=lambda _: kills >= 2) as writing:
        while writing.going_on():
            time.sleep(rng.uniform(0.5, 1.0))  # the emulator takes seconds to notice
            if executions := executions_of(way.ferry.dynamodb):
                with suppress(ProcessLookupError):
                    os.kill(rng.choice(executions), signal.SIGKILL)
                    kills += 1
    mirrored = Mirrored("orders", f"{way.ferry.prefix}orders")
    way.road.settle(mirrored, healing=True)

    assert kills >= 2


def executions_of(server: EmbeddedDynamoDB) -> list[int]:
    """The processes that run functions."""
    assert server._process is not None
    group = server._process.pid
    listed = subprocess.run(["ps", "-axo", "pid=,pgid=,comm="], capture_output=True, text=True, check=True).stdout
    found = [line.split(None, 2) for line in listed.splitlines()]
    return [int(pid) for pid, of, name in found if int(of) == group and int(pid) != group and "python" in name]


def has_advanced(seen: Sequence[tuple[int, str, int]], states: int) -> bool:
    """Whether the backfill has come further since that many states were seen, or is done."""
    return bool(seen) and (seen[-1][1] == "done" or (len(seen) > states and seen[-1][2] > 0))


@contextmanager
def ledger_watched(ferry: Ferry) -> Iterator[list[tuple[int, str, int]]]:
    """The states (id, state, rows_done) that the table's backfills go through."""
    seen: list[tuple[int, str, int]] = []
    stop = threading.Event()

    def watch() -> None:
        with psycopg.connect(ferry.dsn, autocommit=True) as connection:
            while not stop.wait(0.02):
                found = connection.execute("SELECT id, state, rows_done FROM docferry.backfills ORDER BY id").fetchall()
                seen.extend(row for row in found if row not in seen[-1:])

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize("capture", CAPTURES)
def test_the_source_restarts_in_mid_stream(bare_source: Ferry, postgres_server: EmbeddedPostgres, capture: str) -> None:
    with Way(capture, bare_source) as way:
        way.apply()
        way.start()
        pause = 2 if capture == "replication" else 1

        with way.workload(9, outages=True):
            time.sleep(pause)
            postgres_server.restart("fast")
            assert IMMEDIATE not in postgres_server.log_tail(200), "the server had to wait for docferry"
            time.sleep(pause)
            postgres_server.restart("immediate" if capture != "lambda" or forgets_nothing(bare_source) else "fast")

        if way.road is None:
            way.settle()
        else:
            # Events whose function could not ask for their transaction are dead letters.
            way.road.settle(Mirrored("orders", f"{bare_source.prefix}orders"), healing=True)
        for worker in way.workers:
            assert worker.process.poll() is None, "the worker is meant to live through it"
        way.stop()


def test_a_commit_that_is_streamed_before_it_is_visible(lone_source: Ferry) -> None:
    """A commit that waits for a synchronous standby is in the stream already, and no other session can see it."""
    ferry = lone_source
    document = big_xml(random.Random(1))
    ferry.execute(
        f"INSERT INTO orders (id, status, order_data) SELECT n, 'old', '{document}' FROM generate_series(1, 3) n"
    )
    ferry.start_worker()
    settle(ferry)
    ferry.execute(
        "ALTER SYSTEM SET synchronous_commit = local",
        "ALTER SYSTEM SET synchronous_standby_names = 'nobody'",
        "SELECT pg_reload_conf()",
    )

    # None of these carries the whole row: the document stays where it is, out of line.
    statements = (
        "SET synchronous_commit = on",
        "BEGIN; UPDATE orders SET status = 'new'; UPDATE orders SET id = 4 WHERE id = 2; COMMIT",
    )
    writer = threading.Thread(target=ferry.execute, args=statements)
    writer.start()
    try:
        ferry.eventually(lambda: ferry.query("SELECT FROM pg_stat_activity WHERE wait_event = 'SyncRep'"))
        in_flight = "SELECT FROM docferry.workers WHERE (state->>'in_flight')::int > 0"
        ferry.eventually(lambda: ferry.query(in_flight), what="the change at docferry")
        assert {(item["id"], item["status"]) for item in ferry.items("orders")} == {(1, "old"), (2, "old"), (3, "old")}
    finally:
        ferry.execute("ALTER SYSTEM RESET synchronous_standby_names", "SELECT pg_reload_conf()")
        writer.join()

    settle(ferry)
    assert {(item["id"], item["status"]) for item in ferry.items("orders")} == {(1, "new"), (3, "new"), (4, "new")}


def test_the_target_is_away_for_a_while(lone_target: Ferry) -> None:
    worker = lone_target.start_worker()

    with Workload(lone_target.dsn, seconds=6):
        time.sleep(2)
        lone_target.dynamodb.stop()
        began = time.monotonic()
    time.sleep(max(0.0, OUTAGE - (time.monotonic() - began)))
    assert worker.process.poll() is None, "the worker is meant to live through it"
    lone_target.dynamodb.start()

    settle(lone_target)
    assert worker.stop() == 0, worker.text
