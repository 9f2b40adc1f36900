"""The slot is lost, dropped, advanced, or belongs to another server: docferry refuses, says so, and `apply` heals."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from docferry.capture.retention_reading import read_retention
from docferry.change.model import make_version
from docferry.embedded.dynamodb import EmbeddedDynamoDB
from docferry.embedded.postgres import EmbeddedPostgres
from docferry.errors import HistoryChanged

from ..acceptance.comparison import Mirrored, assert_same
from ..acceptance.conftest import Ferry
from ..acceptance.workload import SCHEMA, Workload
from ..integration.harness import Ferry as InProcess
from ..waiting import PATIENCE, until

ENDANGERED = "SELECT safe_wal_size < 16 * 1024 * 1024 FROM pg_replication_slots"


def test_the_slot_loses_its_log(ministack: EmbeddedDynamoDB, tmp_path: Path) -> None:
    settings = {"max_slot_wal_keep_size": "64MB", "min_wal_size": "32MB", "max_wal_size": "64MB"}
    with EmbeddedPostgres(settings) as server, closing(Ferry(server.dsn(), ministack, tmp_path)) as ferry:
        ferry.execute(SCHEMA.format(table="orders"))
        ferry.write_config("public.orders")
        assert "kept for the slot: 64.0 MiB" in ferry.run("plan").stdout
        ferry.run("apply")
        worker = ferry.start_worker()
        Workload(ferry.dsn, seconds=1).run()
        ferry.run("wait")
        assert worker.stop() == 0, worker.text

        warned: list[str] = []
        with Workload(ferry.dsn, seconds=PATIENCE, pause=0.03) as load:
            for _ in range(12):
                if slot_is(ferry, "lost"):
                    break
                if not warned and ferry.query(f"{ENDANGERED} WHERE slot_name = '{ferry.slot}'") == [(True,)]:
                    warned = [one["problem"] for one in ferry.json("status")["attention"]]
                ferry.execute("SELECT pg_switch_wal()", "CHECKPOINT")
            assert slot_is(ferry, "lost")
            assert any("the slot is about to be lost: the source may write" in one for one in warned), warned

            refused = ferry.run("run", check=False)
            assert refused.returncode == 1
            assert "the server dropped WAL that the replication slot" in refused.stderr
            assert "remedy: Run `docferry apply`" in refused.stderr
            said = [one["problem"] for one in ferry.json("status")["attention"]]
            assert any("the server dropped WAL that the replication slot" in one for one in said), said
            steps = ferry.json("plan", "--no-rows")["steps"]
            assert steps[0].startswith("begin epoch 2, because changes were missed: the server dropped WAL"), steps

            healed = ferry.run("apply", "--resync", "--all")
            assert "items without a row are removed at the end, nothing is removed now" in healed.stderr
            assert "created replication slot" in healed.stdout
            worker = ferry.start_worker()
            load.finish(2)
        ferry.run("wait")
        assert_same(ferry.dsn, ferry.client(), Mirrored("orders", f"{ferry.prefix}orders"))
        ferry.eventually(lambda: ferry.json("status")["attention"] == [], what="nothing needs attention")
        assert worker.stop() == 0, worker.text


def slot_is(ferry: Ferry, state: str) -> bool:
    return ferry.query(f"SELECT wal_status = '{state}' FROM pg_replication_slots WHERE slot_name = '{ferry.slot}'") == [
        (True,)
    ]


# -- in this process ---------------------------------------------------------------------------------------------------


@pytest.fixture
def things(database: str) -> Iterator[InProcess]:
    with closing(mirrored(database)) as made:
        yield made


def mirrored(dsn: str) -> InProcess:
    made = InProcess(dsn)
    made.execute("CREATE TABLE things (id int PRIMARY KEY, name text)")
    made.execute("INSERT INTO things SELECT g, 'n' || g FROM generate_series(1, 50) AS g")
    made.begin("public.things")
    return made


def assert_heals(things: InProcess, *, epoch: int = 2) -> None:
    things.apply()
    things.start()
    things.wait()
    things.assert_same("public.things")
    with things.app() as app:
        found = app.ledger.epoch()
        assert found is not None
        assert found.number == epoch
    assert things.apply() == [], "once is enough"


def refusal(things: InProcess) -> str:
    """Why a worker is refused; `status` says the same, and `plan` what is due."""
    error = things.failed_start()
    assert isinstance(error, HistoryChanged)
    assert "docferry apply" in error.remedy
    with things.app() as app:
        said = [one.problem for one in app.status().attention]
        assert any(str(error).partition(";")[0] in one for one in said), said
        assert app.planned_steps()[0].startswith("begin epoch"), app.planned_steps()
    return str(error)


def make_anew(things: InProcess) -> None:
    things.execute(
        f"SELECT pg_drop_replication_slot('{things.slot}')",
        "UPDATE things SET name = 'unseen' WHERE id = 1",
        "DELETE FROM things WHERE id = 2",
        f"SELECT pg_create_logical_replication_slot('{things.slot}', 'pgoutput')",
    )


def test_a_slot_that_was_dropped_and_created_again(things: InProcess) -> None:
    things.stop()
    make_anew(things)
    assert "somebody advanced it, or dropped it and created it again" in refusal(things)
    assert_heals(things)


def test_a_slot_that_was_created_again_after_a_kill(things: InProcess) -> None:
    """A killed worker has not settled the limit: what it might have confirmed without saying is a second's worth."""
    unsettled = limit(things)
    assert confirmed(things) < unsettled, "a worker that streams stays below its limit"
    things.kill()
    things.execute(f"UPDATE docferry.slots SET upto = '0/0'::pg_lsn + {unsettled}")  # as kill -9 leaves it
    things.execute("CREATE TABLE noise AS SELECT repeat('x', 1000) AS x FROM generate_series(1, 1000)")
    make_anew(things)
    assert "somebody advanced it" in refusal(things)
    assert_heals(things)


def test_a_slot_that_was_advanced(things: InProcess) -> None:
    things.stop()
    things.execute(
        "UPDATE things SET name = 'unseen' WHERE id = 1",
        f"SELECT pg_replication_slot_advance('{things.slot}', pg_current_wal_lsn())",
    )
    assert "and docferry has confirmed" in refusal(things)
    assert_heals(things)


def test_a_slot_that_is_made_anew_under_a_worker(things: InProcess) -> None:
    """Between two of the worker's connections."""

    def replace() -> bool:
        if not things.slot_is_dropped():
            return False
        things.execute(
            "DELETE FROM things WHERE id = 3",
            f"SELECT pg_create_logical_replication_slot('{things.slot}', 'pgoutput')",
        )
        return True

    until(replace, "the slot is replaced between two of its readers")
    assert isinstance(things.failure(), HistoryChanged)
    assert_heals(things)


def test_ordinary_life_moves_no_slot(things: InProcess) -> None:
    """Stops, kills and restarts under changes, with more log than a step of the limit: no false alarm."""
    for number in range(6):
        things.execute(
            f"UPDATE things SET name = repeat('{number}', 5000)", f"INSERT INTO things VALUES ({100 + number}, 'new')"
        )
        if number % 2:
            things.wait()
            things.stop()
        else:
            things.kill()
        assert things.apply() == []
        things.start()
    things.wait()
    things.assert_same("public.things")


def test_a_worker_of_an_earlier_epoch_ends(things: InProcess) -> None:
    """`apply` has begun one meanwhile: what the worker writes would be outdated before it is written."""
    things.execute("INSERT INTO docferry.epochs SELECT 2, system_identifier, timeline, capture FROM docferry.epochs")
    error = things.failure()
    assert isinstance(error, HistoryChanged)
    assert "has begun epoch 2; this worker is of epoch 1" in str(error)
    things.start()
    things.execute("UPDATE things SET name = 'on'")
    things.wait()
    things.assert_same("public.things")


def test_what_bounds_the_log_is_seen(things: InProcess) -> None:
    slot = things.slot
    seen = read_retention(things.dsn, slot)
    assert seen.exists
    assert seen.active
    assert seen.keep_limit is None
    assert (seen.pg_wal or 0) > 0
    assert (seen.free or 0) > 0, seen.free_seen
    role = f"plain_{slot}"
    things.execute(f"CREATE ROLE {role} LOGIN")
    try:
        blind = read_retention(make_conninfo(things.dsn, user=role), slot)
    finally:
        things.execute(f"DROP ROLE {role}")
    assert (blind.pg_wal, blind.free, blind.synchronising) == (None, None, None)
    assert "GRANT pg_monitor" in blind.pg_wal_seen
    assert "not visible from here" in blind.free_seen
    assert blind.retained > 0


def test_a_ledger_of_an_earlier_docferry(things: InProcess) -> None:
    """It keeps no limits: mirroring goes on, and `apply` brings it up to date."""
    things.stop()
    things.execute("DROP TABLE docferry.slots", "UPDATE things SET name = 'on'")
    things.start()
    things.wait()
    things.assert_same("public.things")
    things.apply()
    things.execute("UPDATE things SET name = 'and on'")
    things.wait()
    assert things.query("SELECT FROM docferry.slots") == [], "a worker that keeps no limit is not held to one"
    things.stop()
    things.start()
    things.execute("UPDATE things SET name = 'and on again'")
    things.wait()
    assert limit(things) >= confirmed(things)


def test_a_slot_is_made_to_follow_to_standbys(things: InProcess) -> None:
    if things.connection.info.server_version < 170000:
        pytest.skip("from PostgreSQL 17 on")
    follows = f"SELECT failover FROM pg_replication_slots WHERE slot_name = '{things.slot}'"
    assert things.query(follows) == [(True,)]
    things.stop()
    make_anew(things)
    things.execute(f"DELETE FROM docferry.slots WHERE slot_name = '{things.slot}'")
    assert things.query(follows) == [(False,)]
    assert things.apply() == [f"let replication slot {things.slot} follow to standbys"]
    assert things.query(follows) == [(True,)]
    assert things.apply() == []


def test_resync_of_one_table_writes_over_its_items(things: InProcess) -> None:
    """Whatever somebody did to the collection: a changed item, a missing one, one without a row."""
    things.execute("CREATE TABLE others (id int PRIMARY KEY)")
    things.mirror("public.others")
    things.stop()
    things.apply()
    things.start()
    things.wait()
    things.stop()
    with things.app() as app:
        collection = app.mirror("public.things").collection
    items = things.target._collections[collection.name].items
    keys = sorted(items)
    items[(4711,)] = replace(items[keys[0]], key=(4711,))
    del items[keys[1]]

    with things.app() as app:
        steps = app.admin().apply(["public.things"])
        assert steps == ["requested a backfill of public.things (resync); `docferry run` does it"]
        assert app.admin().apply(["public.things"]) == [], "it is under way already"
    things.start()
    things.wait()
    things.assert_same("public.things", "public.others")
    assert [one.reason for one in things.backfills() if one.table == "public.others"] == ["new collection"]


def test_resync_after_the_source_was_set_back(things: InProcess) -> None:
    """A backup was restored with the slot in it: the items are later than the source. Nothing else would tell."""
    things.stop()
    with things.app() as app:
        collection = app.mirror("public.things").collection
    stored = things.target._collections[collection.name].items
    for key in sorted(stored)[:10]:
        stored[key] = replace(stored[key], version=stored[key].version + make_version(0, 1 << 40))
    things.execute("UPDATE things SET name = 'restored'")
    with things.app() as app:
        assert any(step.startswith("began epoch 2") for step in app.admin().apply(["public.things"]))
    things.start()
    things.wait()
    things.assert_same("public.things")


def limit(things: InProcess) -> int:
    ((upto,),) = things.query("SELECT (upto - '0/0')::bigint FROM docferry.slots WHERE slot_name = %s", things.slot)
    return int(upto)


def confirmed(things: InProcess) -> int:
    ((position,),) = things.query(
        "SELECT (confirmed_flush_lsn - '0/0')::bigint FROM pg_replication_slots WHERE slot_name = %s", things.slot
    )
    return int(position)


def test_a_slot_that_nobody_read_for_too_long(postgres_server: EmbeddedPostgres) -> None:
    with closing(mirrored(postgres_server.dsn())) as things:
        if things.connection.info.server_version < 180000:
            pytest.skip("idle_replication_slot_timeout came with PostgreSQL 18")
        things.stop()
        things.execute("ALTER SYSTEM SET idle_replication_slot_timeout = '1s'", "SELECT pg_reload_conf()")
        time.sleep(1.5)
        with things.app() as app:
            said = [one.problem for one in app.status().attention]
        assert any("nobody has read the slot for" in one for one in said), said
        things.execute("UPDATE things SET name = 'unseen' WHERE id = 1", "CHECKPOINT")
        assert "longer than idle_replication_slot_timeout" in refusal(things)
        assert_heals(things)


def test_another_server_with_a_restored_dump(things: InProcess, postgres_server: EmbeddedPostgres) -> None:
    """The ledger came along, the slot did not, and the rows are those of the dump."""
    things.stop()
    things.execute("DELETE FROM things WHERE id = 7")
    dump = subprocess.run(
        [postgres_server.bin_dir / "pg_dump", things.dsn],
        env=postgres_server.environment,
        capture_output=True,
        check=True,
    )
    subprocess.run(
        [postgres_server.bin_dir / "psql", "-v", "ON_ERROR_STOP=1", "-q", postgres_server.dsn()],
        env=postgres_server.environment,
        input=dump.stdout,
        capture_output=True,
        check=True,
    )
    things.connection.close()
    things.dsn = postgres_server.dsn()
    things.connection = psycopg.connect(things.dsn, autocommit=True)
    things.execute("DELETE FROM things WHERE id = 8")
    assert "this is another server or a restored copy" in refusal(things)
    assert_heals(things)
