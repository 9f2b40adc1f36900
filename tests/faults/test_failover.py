"""The primary dies under load and its standby is promoted: nothing lost, nothing stale, with and without the guarantee
that the stream never runs ahead of the standby."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

from docferry.change.model import split_version
from docferry.embedded.dynamodb import EmbeddedDynamoDB
from docferry.embedded.postgres import EmbeddedPostgres
from docferry.embedded.postgres_standby import EmbeddedStandby
from docferry.errors import SourceUnavailable
from docferry.source.session import connect

from ..acceptance.comparison import Mirrored, assert_same
from ..acceptance.conftest import Ferry
from ..acceptance.workload import SCHEMA, Workload
from ..waiting import PATIENCE

ROWS = "INSERT INTO orders (id, status, order_data) SELECT n, 'old', '<o><n/></o>' FROM generate_series(1, 500) n"


@pytest.fixture
def primary() -> Iterator[EmbeddedPostgres]:
    with EmbeddedPostgres() as server:
        if server_version(server) < 170000:
            pytest.skip("slots follow to standbys from PostgreSQL 17 on")
        yield server


@pytest.fixture
def standby(primary: EmbeddedPostgres) -> Iterator[EmbeddedStandby]:
    with EmbeddedStandby(primary) as server:
        yield server


@pytest.fixture
def ferry(
    primary: EmbeddedPostgres, standby: EmbeddedStandby, ministack: EmbeddedDynamoDB, tmp_path: Path
) -> Iterator[Ferry]:
    """Its connection string names both servers, and takes whichever is the primary."""
    both = f"postgresql://postgres@127.0.0.1:{primary.port},127.0.0.1:{standby.port}/postgres"
    with closing(Ferry(f"{both}?target_session_attrs=read-write", ministack, tmp_path)) as made:
        made.execute(SCHEMA.format(table="orders"), ROWS)
        made.write_config("public.orders")
        yield made


def test_a_failover_under_load(ferry: Ferry, primary: EmbeddedPostgres, standby: EmbeddedStandby) -> None:
    ferry.run("apply")
    worker = ferry.start_worker()
    settle_slot(ferry, primary, standby)
    warned = [one["problem"] for one in ferry.json("status")["attention"]]
    assert any("synchronized_standby_slots is empty" in problem for problem in warned), warned
    assert not any("no standby is seen" in problem for problem in warned), warned
    wait_for_standby(primary)
    # What the worker says of itself is as old as its last heartbeat.
    ferry.eventually(lambda: ferry.json("status")["attention"] == [], what="nothing needs attention")

    with Workload(ferry.dsn, seconds=PATIENCE, pause=0.03, outages=True) as load:
        time.sleep(3)
        primary.kill()
        standby.promote()
        assert worker.wait() == 1, worker.text
        assert "a standby was promoted" in worker.text
        assert (
            "remedy: Make sure that [source] dsn leads to the right server. If so, run `docferry apply`" in worker.text
        )
        assert latest_position(ferry, epoch=1) <= switch_point(standby), "nothing ran ahead of the standby"

        assert ferry.run("run", check=False).returncode == 1, "it does not go on by itself"
        said = ferry.json("status")["attention"]
        assert any("on timeline 2; epoch 1 began on timeline 1" in one["problem"] for one in said), said
        steps = ferry.json("plan", "--no-rows")["steps"]
        assert steps[0].startswith("begin epoch 2, because a standby was promoted"), steps
        assert not any("slot" in step for step in steps), f"the slot has followed: {steps}"

        done = ferry.run("apply").stdout
        assert "began epoch 2" in done
        assert "replication slot" not in done, "the slot has followed"
        worker = ferry.start_worker()
        load.finish(2)
    ferry.run("wait")
    assert_same(ferry.dsn, ferry.client(), Mirrored("orders", f"{ferry.prefix}orders"))
    assert ferry.json("status")["epoch"] == 2
    assert ferry.json("apply")["steps"] == [], "once is enough"
    assert worker.stop() == 0, worker.text


def test_a_standby_that_was_behind(ferry: Ferry, primary: EmbeddedPostgres, standby: EmbeddedStandby) -> None:
    """The target has changes that the source has lost: they go, and what the source has comes back."""
    ferry.run("apply")
    worker = ferry.start_worker()
    ferry.run("wait")
    settle_slot(ferry, primary, standby)
    with psycopg.connect(standby.dsn(), autocommit=True) as connection:
        connection.execute("ALTER SYSTEM SET primary_conninfo = ''")
        connection.execute("SELECT pg_reload_conf()")
        ferry.eventually(lambda: connection.execute("SELECT count(*) FROM pg_stat_wal_receiver").fetchone() == (0,))
    ferry.execute(
        "INSERT INTO orders (id, status) SELECT n, 'lost' FROM generate_series(1001, 1050) n",
        "UPDATE orders SET status = 'lost' WHERE id <= 50",
        "DELETE FROM orders WHERE id BETWEEN 51 AND 100",
    )
    ferry.run("wait")
    refused = ferry.run("run", DOCFERRY_SOURCE_DSN=standby.dsn(), check=False)
    assert (refused.returncode, "the source is a standby" in refused.stderr) == (1, True), refused.stderr
    with pytest.raises(SourceUnavailable, match="is a standby"):
        connect(standby.dsn(), purpose="stream", replication=True)

    primary.kill()
    standby.promote()
    assert worker.wait() == 1, worker.text
    assert sum(item["status"] == "lost" for item in ferry.items("orders")) == 100

    ferry.run("apply")
    worker = ferry.start_worker()
    ferry.run("wait")
    assert_same(ferry.dsn, ferry.client(), Mirrored("orders", f"{ferry.prefix}orders"))
    assert ferry.query("SELECT count(*) FROM orders") == [(500,)]
    assert worker.stop() == 0, worker.text


def server_version(server: EmbeddedPostgres) -> int:
    with psycopg.connect(server.dsn()) as connection:
        return connection.info.server_version


def settle_slot(ferry: Ferry, primary: EmbeddedPostgres, standby: EmbeddedStandby) -> None:
    """Until the standby has a copy of the slot that a promotion keeps; it needs a look at running transactions."""
    with (
        psycopg.connect(primary.dsn(), autocommit=True) as there,
        psycopg.connect(standby.dsn(), autocommit=True) as here,
    ):

        def has_followed() -> bool:
            there.execute("SELECT pg_log_standby_snapshot()")
            found = here.execute(
                "SELECT synced AND NOT temporary FROM pg_replication_slots WHERE slot_name = %s", [ferry.slot]
            )
            return found.fetchone() == (True,)

        ferry.eventually(has_followed, what="the slot at the standby")


def wait_for_standby(primary: EmbeddedPostgres) -> None:
    """From now on the stream never runs ahead of the standby."""
    with psycopg.connect(primary.dsn(), autocommit=True) as connection:
        connection.execute("ALTER SYSTEM SET synchronized_standby_slots = 'standby'")
        connection.execute("SELECT pg_reload_conf()")


def latest_position(ferry: Ferry, *, epoch: int) -> int:
    """Of the items."""
    versions = [split_version(int(item["_v"])) for item in ferry.items("orders", tombstones=True, meta=True)]
    return max(position for of, position, _ in versions if of == epoch)


def switch_point(standby: EmbeddedStandby) -> int:
    """Where timeline 2 began."""
    history = (standby.data_directory / "pg_wal" / "00000002.history").read_text(encoding="ascii")
    high, low = history.split()[1].split("/")
    return (int(high, 16) << 32) + int(low, 16)
