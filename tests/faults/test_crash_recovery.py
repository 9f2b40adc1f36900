"""PostgreSQL crashes under load and recovers: nothing is lost, nothing that the crash took back is at the target."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path

import psycopg

from docferry.embedded.dynamodb import EmbeddedDynamoDB
from docferry.embedded.postgres import EmbeddedPostgres

from ..acceptance.comparison import Mirrored, assert_same
from ..acceptance.conftest import Ferry
from ..acceptance.workload import SCHEMA, Workload
from ..waiting import PATIENCE

CRASHES = 2


def test_crashes_that_take_commits_back(ministack: EmbeddedDynamoDB, tmp_path: Path) -> None:
    """Commits are asynchronous, so each crash takes some back that other sessions had seen already."""
    settings = {"synchronous_commit": "off", "wal_writer_delay": "10s"}
    with EmbeddedPostgres(settings) as server, closing(Ferry(server.dsn(), ministack, tmp_path)) as ferry:
        ferry.execute(
            SCHEMA.format(table="orders"),
            "CREATE TABLE marks (id int PRIMARY KEY, note text)",
            "INSERT INTO orders (id, status) SELECT n, 'old' FROM generate_series(1, 2000) n",
        )
        ferry.write_config("public.orders", "public.marks", run={"backfill_page": 50})
        ferry.run("apply")
        worker = ferry.start_worker()
        lost = 0
        with Workload(ferry.dsn, seconds=PATIENCE, outages=True) as load:
            for number in range(CRASHES):
                time.sleep(1.5)
                said = mark_and_crash(server, number)
                server.start()
                (kept,) = ferry.query(f"SELECT count(*) FROM marks WHERE id / 1000 = {number}")[0]
                lost += said - kept
            load.finish(0)
        print(f"commits taken back: {lost}")  # noqa: T201 - shown by pytest when the test fails
        assert lost > 0, "the crashes took nothing back, so this shows nothing"

        ferry.run("wait")
        assert_same(
            ferry.dsn,
            ferry.client(),
            Mirrored("orders", f"{ferry.prefix}orders"),
            Mirrored("marks", f"{ferry.prefix}marks"),
        )
        assert worker.process.poll() is None, worker.text
        assert ferry.json("status")["epoch"] == 1, "a crash is no change of history"
        assert ferry.json("deadletters", "list")["total"] == 0
        assert worker.stop() == 0, worker.text


def mark_and_crash(server: EmbeddedPostgres, number: int) -> int:
    """Commit as fast as it goes, then SIGQUIT; how many commits were reported."""
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        for mark in range(200):
            connection.execute("INSERT INTO marks VALUES (%s, 'seen')", [number * 1000 + mark])
        server.stop("immediate")
    return 200
