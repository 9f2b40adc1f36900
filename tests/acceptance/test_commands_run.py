"""run, wait, status and backfill as people run them."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from pathlib import Path

import pytest

from docferry.embedded.dynamodb import EmbeddedDynamoDB

from ..waiting import PATIENCE
from .conftest import Ferry

TABLE = "CREATE TABLE orders (id int PRIMARY KEY, body text)"


def some_rows(ferry: Ferry, count: int = 20) -> None:
    ferry.execute(
        TABLE, f"INSERT INTO orders SELECT n, 'row ' || n FROM generate_series(1, {count}) n", "ANALYZE orders"
    )
    ferry.write_config("public.orders", run={"backfill_page": 10, "backfill_workers": 1})


class TestRun:
    def test_it_populates_mirrors_and_stops_at_sigterm(self, ferry: Ferry) -> None:
        some_rows(ferry)
        ferry.run("apply")
        worker = ferry.start_worker("--json")
        ferry.run("wait")
        ferry.execute("UPDATE orders SET body = 'changed' WHERE id = 3", "DELETE FROM orders WHERE id = 4")
        assert ferry.json("wait")["seconds"] < PATIENCE
        items = {item["id"]: item["body"] for item in ferry.items("orders")}
        assert len(items) == 19
        assert items[3] == "changed"

        second = ferry.run("run", check=False)
        assert second.returncode == 1
        assert "error: another docferry worker runs for this source" in second.stderr
        assert "remedy: Stop it first" in second.stderr
        refused = ferry.run("destroy", "--yes", check=False)
        assert refused.returncode == 1
        assert "worker runs" in refused.stderr
        assert ferry.collections() == ["orders"]

        assert worker.stop(signal.SIGTERM) == 0
        counts = json.loads("".join(worker.output))
        assert counts["tables"]["public.orders"]["applied"] == 22
        assert "Traceback" not in worker.text

    def test_ctrl_c_stops_too_and_nothing_is_lost(self, ferry: Ferry) -> None:
        some_rows(ferry)
        ferry.run("apply")
        assert ferry.start_worker().stop(signal.SIGINT) == 0
        ferry.execute("UPDATE orders SET body = 'while nobody was there'")
        ferry.start_worker()
        ferry.run("wait")
        assert {item["body"] for item in ferry.items("orders")} == {"while nobody was there"}

    def test_once_catches_up_and_ends(self, ferry: Ferry) -> None:
        some_rows(ferry)
        ferry.run("apply")
        ferry.run("run", "--once")
        assert len(ferry.items("orders")) == 20
        ferry.execute("DELETE FROM orders WHERE id > 5")
        counts = ferry.json("run", "--once")
        assert counts["tables"]["public.orders"]["applied"] == 15
        assert len(ferry.items("orders")) == 5

    def test_an_outage_is_waited_out_and_a_second_signal_ends_at_once(self, ferry: Ferry, tmp_path: Path) -> None:
        some_rows(ferry)
        with EmbeddedDynamoDB(tmp_path / "own") as target:
            ferry.write_config("public.orders", target={"endpoint_url": target.endpoint_url})
            ferry.run("apply")
            worker = ferry.start_worker()
            ferry.run("wait")
            target.kill()
            ferry.execute("UPDATE orders SET body = 'changed'")
            worker.wait_for("DynamoDB does not take it")
            worker.process.send_signal(signal.SIGTERM)
            # It waits for what is in flight, for as long as [run] stop_grace says.
            with pytest.raises(subprocess.TimeoutExpired):
                worker.process.wait(1)
            assert worker.stop(signal.SIGTERM) == 130
            assert "what was in flight will be read again" in worker.text
            assert "Traceback" not in worker.text

    def test_a_worker_whose_slot_is_taken_away_says_what_to_do(self, ferry: Ferry) -> None:
        some_rows(ferry)
        ferry.run("apply")
        worker = ferry.start_worker()
        ferry.run("wait")
        ferry.query(
            "SELECT pg_terminate_backend(active_pid, 5000) FROM pg_replication_slots "
            f"WHERE slot_name = '{ferry.slot}' AND active"
        )
        # The worker may have come back already: it is a race that one of us wins sooner or later.
        ferry.eventually(lambda: _drop_slot(ferry))
        assert worker.wait() == 1
        assert f"the replication slot {ferry.slot} " in worker.text
        assert "remedy: Run `docferry apply`" in worker.text
        assert "Traceback" not in worker.text
        shown = ferry.run("status").stdout
        assert f"the replication slot {ferry.slot} does not exist" in shown

    def test_new_settings_need_a_new_worker(self, ferry: Ferry) -> None:
        some_rows(ferry)
        ferry.run("apply")
        worker = ferry.start_worker()
        ferry.run("wait")
        ferry.write_config({"table": "public.orders", "collection": "orders", "exclude": ["body"]})
        assert "settings" in " ".join(ferry.json("apply")["steps"])
        assert worker.wait() == 1
        assert "settings of the mirror of public.orders were changed" in worker.text
        ferry.run("run", "--once")
        assert all(set(item) == {"id"} for item in ferry.items("orders"))


def _drop_slot(ferry: Ferry) -> bool:
    found = ferry.query(f"SELECT active_pid FROM pg_replication_slots WHERE slot_name = '{ferry.slot}'")
    if not found:
        return True
    try:
        if found[0][0] is not None:
            ferry.query(f"SELECT pg_terminate_backend({found[0][0]}, 5000)")
        ferry.query(f"SELECT pg_drop_replication_slot('{ferry.slot}')")
    except Exception:  # noqa: BLE001 - somebody reads it again
        return False
    return True


class TestWait:
    def test_without_a_worker_the_time_runs_out(self, ferry: Ferry) -> None:
        some_rows(ferry)
        ferry.run("apply")
        done = ferry.run("wait", "--timeout", "0.2", check=False)
        assert done.returncode == 1
        assert done.stderr == (
            "error: gave up after 0.2 s: no worker is streaming from this source\nremedy: Start `docferry run`.\n"
        )
        failed = ferry.run("wait", "--json", check=False, DOCFERRY_WAIT_TIMEOUT="0.1")
        assert json.loads(failed.stdout)["error"]["class"] == "TimedOut"


class TestStatus:
    def test_of_a_healthy_ferry(self, ferry: Ferry) -> None:
        some_rows(ferry)
        ferry.run("apply")
        worker = ferry.start_worker()
        ferry.run("wait")
        ferry.eventually(lambda: ferry.json("status")["mirrors"][0]["applied"] == 20)
        status = ferry.json("status")
        assert status["attention"] == []
        assert status["worker"]["state"] == "streaming"
        assert status["worker"]["pid"] == worker.pid
        assert status["slot"]["active"] is True
        assert status["slot"]["wal_status"] == "reserved"
        assert status["lag_seconds"] < 5
        mirror = status["mirrors"][0]
        assert mirror["collection"] == f"{ferry.prefix}orders"
        assert mirror["backfill"]["state"] == "done"
        assert mirror["backfill"]["percent"] == 100.0
        shown = ferry.run("status").stdout
        assert "streaming" in shown
        assert "done, 20 rows" in shown
        assert "Needs attention" not in shown

    def test_says_what_needs_attention(self, ferry: Ferry) -> None:
        some_rows(ferry)
        ferry.run("apply")
        shown = ferry.run("status").stdout
        assert "no worker has run yet" in shown
        assert "remedy: Start `docferry run`." in shown
        # A table that was created again is another table: the publication does not hold it any more.
        ferry.execute("DROP TABLE orders", TABLE)
        said = [one["problem"] for one in ferry.json("status")["attention"]]
        assert any("changes of public.orders are not captured" in one for one in said)
        ferry.execute("DROP TABLE orders")
        said = [one["problem"] for one in ferry.json("status")["attention"]]
        assert any("table public.orders does not exist" in one for one in said)

    def test_a_worker_that_was_killed(self, ferry: Ferry) -> None:
        some_rows(ferry)
        ferry.run("apply")
        worker = ferry.start_worker()
        ferry.eventually(lambda: ferry.json("status")["worker"]["state"] == "streaming")
        worker.kill()
        ferry.eventually(lambda: ferry.json("status")["worker"]["state"] != "streaming")
        assert ferry.json("status")["attention"]

    def test_watch_goes_on_until_ctrl_c(self, ferry: Ferry) -> None:
        some_rows(ferry)
        ferry.run("apply")
        watching = ferry.start("status", "--watch")
        ferry.eventually(lambda: "public.orders" in "".join(watching.output))
        assert watching.stop(signal.SIGINT) == 130
        assert "Traceback" not in watching.text
        assert ferry.run("status", "--watch", "--json", check=False).returncode == 2


class TestBackfill:
    def test_it_mends_a_collection_without_a_worker(self, ferry: Ferry) -> None:
        some_rows(ferry)
        ferry.run("apply")
        ferry.run("run", "--once")
        ferry.client().delete_item(TableName=f"{ferry.prefix}orders", Key={"id": {"N": "7"}})
        done = ferry.run("backfill", "orders")
        assert done.stdout == "Backfill of public.orders done: 20 rows.\n"
        assert "20 of 20 rows, 100.0%" in done.stderr
        assert len(ferry.items("orders")) == 20
        assert ferry.json("backfill", "public.orders", "--anew") == {
            "table": "public.orders",
            "rows": 20,
            "done": True,
        }

    def test_beside_a_worker(self, ferry: Ferry) -> None:
        some_rows(ferry)
        ferry.run("apply")
        ferry.start_worker()
        ferry.run("wait")
        ferry.client().delete_item(TableName=f"{ferry.prefix}orders", Key={"id": {"N": "7"}})
        assert "done: 20 rows" in ferry.run("backfill", "orders").stdout
        assert len(ferry.items("orders")) == 20

    def test_it_goes_on_after_ctrl_c_and_after_a_kill(self, ferry: Ferry) -> None:
        some_rows(ferry, 10_000)
        ferry.run("apply")

        def rows_done() -> int:
            found = ferry.query("SELECT rows_done FROM docferry.backfills WHERE state = 'running'")
            return int(found[0][0]) if found else 0

        running = ferry.start("backfill", "orders")
        ferry.eventually(rows_done)
        assert running.stop(signal.SIGINT) == 130
        assert "Stopped; nothing is lost." in running.text
        first = rows_done()
        assert first > 0

        running = ferry.start("backfill", "orders")
        ferry.eventually(lambda: rows_done() > first)
        running.kill()
        second = rows_done()
        assert second > first

        # From there in larger steps, to be done soon.
        ferry.write_config("public.orders")
        done = ferry.run("backfill", "orders")
        assert "done: 10,000 rows" in done.stdout
        [(rows,)] = ferry.query("SELECT rows_done FROM docferry.backfills WHERE state = 'done'")
        assert rows == 10_000
        resumed = re.search(r"about 10000 rows, (\d+) done", done.stderr)
        # The killed process's last statement may have been on its way.
        assert resumed is not None
        assert int(resumed[1]) >= second
