"""A mirrored table on which nothing happens, beside a busy one that is not mirrored: the source keeps little WAL."""

from __future__ import annotations

import os
import threading
import time
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

from docferry.embedded.dynamodb import EmbeddedDynamoDB
from docferry.embedded.postgres import EmbeddedPostgres

from ..acceptance.conftest import Ferry

pytestmark = pytest.mark.soak

SECONDS = float(os.environ.get("DOCFERRY_TEST_IDLE_SECONDS", "120"))
LIMIT_MIB = 32


def test_an_idle_table_keeps_little_wal(tmp_path: Path) -> None:
    with (
        EmbeddedPostgres() as server,
        EmbeddedDynamoDB() as dynamodb,
        closing(Ferry(server.dsn(), dynamodb, tmp_path)) as ferry,
    ):
        ferry.execute(
            "CREATE TABLE idle (id int PRIMARY KEY, note xml)",
            "CREATE TABLE busy (id bigint GENERATED ALWAYS AS IDENTITY, note text)",
        )
        ferry.write_config("public.idle", source={"heartbeat_interval": 10})
        ferry.run("apply")
        worker = ferry.start_worker()
        ferry.run("wait")
        stop = threading.Event()
        writer = threading.Thread(target=_write, args=(ferry.dsn, stop))
        writer.start()
        most, began = 0, _wal(ferry, "'0/0'")
        ends = time.monotonic() + SECONDS
        try:
            while time.monotonic() < ends:
                slot = f"(SELECT restart_lsn FROM pg_replication_slots WHERE slot_name = '{ferry.slot}')"
                most = max(most, _wal(ferry, slot))
                time.sleep(0.2)
        finally:
            stop.set()
            writer.join()
        written = (_wal(ferry, "'0/0'") - began) / 2**20
        print(f"{written:.0f} MiB of WAL written in {SECONDS:.0f} s, {most / 2**20:.1f} MiB kept at most")  # noqa: T201 - the figures are what one comes for
        assert worker.stop() == 0, worker.text
        assert written > 2 * LIMIT_MIB * min(1.0, SECONDS / 120)
        assert most < LIMIT_MIB * 2**20


def _write(dsn: str, stop: threading.Event) -> None:
    """About a MiB of WAL a second."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        while not stop.wait(0.05):
            connection.execute("INSERT INTO busy (note) SELECT repeat('x', 500) FROM generate_series(1, 100)")


def _wal(ferry: Ferry, since: str) -> int:
    """Bytes of WAL since there."""
    ((size,),) = ferry.query(f"SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), {since})::bigint")
    return int(size)
