"""`docferry bench load`: what it measures, and what it leaves behind."""

from __future__ import annotations

import json
import signal
from typing import Any

import psycopg
import pytest

from .conftest import Ferry

OWN = "public.docferry_load"
CAPTURED = f"""
    SELECT 'published', pubname, '' FROM pg_publication_tables WHERE tablename = 'docferry_load'
     UNION ALL SELECT 'trigger', tgname, tgenabled FROM pg_trigger WHERE tgrelid = '{OWN}'::regclass
     ORDER BY 1, 2"""
# True once the table is filled and the run proper has begun.
UPDATED = f"SELECT 1 FROM {OWN} WHERE order_status <> 'new' LIMIT 1"
SHORT = ("--seconds", "0.5", "--connections", "2")
ORDERS = """CREATE TABLE orders (
    id uuid DEFAULT gen_random_uuid() PRIMARY KEY, order_status text NOT NULL, order_data xml NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(), updated_at timestamptz NOT NULL DEFAULT now())"""
THEIRS = "INSERT INTO orders (order_status, order_data) SELECT 'theirs', '<order/>' FROM generate_series(1, 50)"


def _load(ferry: Ferry, *arguments: str) -> Any:
    return ferry.json("bench", "load", *arguments, *SHORT)


def _mirror(ferry: Ferry, capture: str = "replication") -> None:
    """Create the generator's table and mirror it."""
    ferry.write_config({"table": OWN, "collection": "load"}, source={"capture": capture})
    ferry.run("bench", "load", "1", "0", "0", "0", *SHORT)
    ferry.run("apply")


def _published(ferry: Ferry) -> list[tuple[Any, ...]]:
    return ferry.query("SELECT schemaname || '.' || tablename FROM pg_publication_tables WHERE pubname = 'docferry'")


class TestLoad:
    def test_it_runs_the_mix_on_a_table_of_its_own_and_leaves_it_empty(self, ferry: Ferry) -> None:
        ferry.write_config(OWN)
        answer = _load(ferry, "100", "20", "200", "20")
        report = answer["report"]
        assert answer["table"] == OWN
        assert answer["mirrored"] is False
        assert report["errors"] == []
        done = {kind: one["done"] for kind, one in report["kinds"].items()}
        assert report["total"]["done"] == sum(done.values()) > 0
        assert report["total"]["per_second"] > 0
        assert 0 < report["total"]["p50"] <= report["total"]["p95"] <= report["total"]["p99"]
        # The last round of each of the two connections may be a part of one.
        for kind, share in {"insert": 100, "select": 20, "update": 200, "delete": 20}.items():
            assert abs(done[kind] / share - done["update"] / 200) <= 2
        assert ferry.query(f"SELECT count(*) FROM {OWN}") == [(0,)]

        shown = ferry.run("bench", "load", "0", "5", "5", "0", *SHORT)
        assert "public.docferry_load, not mirrored: 2 connections" in shown.stdout
        assert "insert" not in shown.stdout
        assert "statements/s" in shown.stderr

    def test_rows_that_were_there_are_never_touched(self, ferry: Ferry) -> None:
        ferry.execute(ORDERS, THEIRS)
        ferry.write_config(OWN)
        before = ferry.query("SELECT * FROM (SELECT id, xmin::text, order_status FROM orders) AS o ORDER BY id")
        answer = _load(ferry, "10", "10", "100", "10", "--table", "orders", "--size", "300")
        assert answer["report"]["kinds"]["delete"]["done"] > 0
        assert before == ferry.query("SELECT id, xmin::text, order_status FROM orders ORDER BY id")

        kept = _load(ferry, "--table", "orders", "--keep", "--size", "300")["report"]
        assert kept["left"] > 200 - 20
        assert ferry.query(
            "SELECT count(*), min(length(order_data::text)) FROM orders WHERE order_status <> 'theirs'"
        ) == [(kept["left"], 300)]

    def test_errors_are_counted_and_stop_nothing(self, ferry: Ferry) -> None:
        ferry.execute(
            ORDERS,
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE 'not today' USING ERRCODE = '23514'; END $$",
            "CREATE TRIGGER refuse BEFORE DELETE ON orders FOR EACH ROW EXECUTE FUNCTION refuse()",
        )
        ferry.write_config(OWN)
        report = _load(ferry, "10", "0", "10", "10", "--table", "orders", "--keep")["report"]
        (error,) = report["errors"]
        assert (error["sqlstate"], error["message"]) == ("23514", "not today")
        assert error["count"] == report["kinds"]["delete"]["failed"] == report["total"]["failed"] > 0
        assert report["kinds"]["delete"] | {"failed": 0} == {
            "done": 0, "failed": 0, "per_second": 0.0, "p50": None, "p95": None, "p99": None,
        }  # fmt: skip
        assert report["kinds"]["update"]["done"] > 0

    def test_it_goes_on_after_its_connections_were_cut(self, ferry: Ferry) -> None:
        ferry.write_config(OWN)
        ferry.run("bench", "load", "1", "0", "0", "0", *SHORT)
        running = ferry.start("bench", "load", "--seconds", "600", "--connections", "2", "--json")
        theirs = "FROM pg_stat_activity WHERE application_name = 'docferry load' AND datname = current_database()"
        ferry.eventually(lambda: ferry.query(UPDATED))
        pids = {pid for (pid,) in ferry.query(f"SELECT pid {theirs}")}
        ferry.query(f"SELECT pg_terminate_backend(pid) {theirs}")
        ferry.eventually(lambda: {pid for (pid,) in ferry.query(f"SELECT pid {theirs}")} - pids)
        running.stop(signal.SIGINT)
        report = json.loads("".join(running.output))["report"]
        assert {error["sqlstate"] for error in report["errors"]} <= {"57P01", "08006"}
        assert report["errors"]
        assert report["total"]["done"] > 0

    def test_a_statement_that_waits_for_a_lock_does_not_hold_it_up(self, ferry: Ferry) -> None:
        ferry.write_config(OWN)
        ferry.run("bench", "load", "1", "0", "0", "0", *SHORT)
        running = ferry.start("bench", "load", "--seconds", "600", "--connections", "2", "--json")
        ferry.eventually(lambda: ferry.query(UPDATED))
        with psycopg.connect(ferry.dsn) as connection:
            connection.execute(f"LOCK TABLE {OWN} IN EXCLUSIVE MODE".encode())
            running.process.send_signal(signal.SIGINT)
            ferry.eventually(
                lambda: ferry.query(
                    "SELECT 1 FROM pg_stat_activity WHERE application_name = 'docferry load setup' "
                    "AND datname = current_database()"
                )
            )
        assert running.wait() == 130
        report = json.loads("".join(running.output))["report"]
        assert "57014" in {error["sqlstate"] for error in report["errors"]}
        assert ferry.query(f"SELECT count(*) FROM {OWN}") == [(0,)]

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("1", "0", "0", "2"), "deletes more rows"),
            (("--table", "nowhere"), "table public.nowhere does not exist"),
            (("--table", "other"), "table public.other has no column order_status, order_data"),
            (("--table", "a.b.c"), "is not a table's name"),
            (("--mirror", "on"), "no change of public.docferry_load is captured"),
            (("--size", "10"), "'--size'"),
        ],
    )
    def test_what_cannot_be_is_refused(self, ferry: Ferry, arguments: tuple[str, ...], message: str) -> None:
        ferry.execute("CREATE TABLE other (id int PRIMARY KEY, created_at timestamptz, updated_at timestamptz)")
        ferry.write_config(OWN)
        done = ferry.run("bench", "load", *arguments, *SHORT, check=False)
        assert done.returncode == 2
        assert message in done.stderr


class TestMirror:
    def test_on_the_load_reaches_the_target(self, ferry: Ferry) -> None:
        _mirror(ferry)
        ferry.start_worker()
        answer = _load(ferry, "2", "1", "4", "1", "--mirror", "on", "--keep", "--size", "300", "--seed", "3")
        assert answer["mirrored"] is True
        ferry.run("wait", timeout=300)
        rows = {(one, status) for one, status in ferry.query(f"SELECT id, order_status FROM {OWN}")}
        assert len(rows) == answer["report"]["left"] > 0
        assert {(int(item["id"]), item["order_status"]) for item in ferry.items("load")} == rows

    def test_off_nothing_of_it_is_captured_and_afterwards_everything_again(self, ferry: Ferry) -> None:
        _mirror(ferry)
        assert _load(ferry, "--mirror", "off")["mirrored"] is False
        assert _published(ferry) == [(OWN,)]
        ferry.execute(f"INSERT INTO {OWN} (order_status, order_data) VALUES ('after', '<order/>')")
        # With --once the worker ends when all is there; what it counted is all that came.
        counts = ferry.json("run", "--once")["tables"][OWN]
        assert counts["applied"] + counts["stale"] <= 2
        assert [item["order_status"] for item in ferry.items("load")] == ["after"]

    def test_off_is_over_after_ctrl_c(self, ferry: Ferry) -> None:
        _mirror(ferry)
        running = ferry.start("bench", "load", "--mirror", "off", "--seconds", "600", "--connections", "2", "--json")
        ferry.eventually(lambda: ferry.query(UPDATED))
        assert _published(ferry) == []
        assert running.stop(signal.SIGINT) == 130
        assert _published(ferry) == [(OWN,)]
        answer = json.loads("".join(running.output))
        assert answer["report"]["seconds"] < 600
        assert ferry.query(f"SELECT count(*) FROM {OWN}") == [(0,)]

    def test_off_switches_triggers_off_and_on_again_as_they_were(self, ferry: Ferry) -> None:
        """Any trigger whose function is docferry's, in whatever capture mode."""
        _mirror(ferry)
        ferry.execute(
            f"ALTER PUBLICATION docferry DROP TABLE {OWN}",
            "CREATE TABLE fired (n int)",
            "CREATE FUNCTION docferry.note() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN INSERT INTO public.fired VALUES (1); RETURN NULL; END $$",
            "CREATE FUNCTION theirs() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$",
            *(
                f"CREATE TRIGGER {name} AFTER INSERT ON {OWN} FOR EACH ROW EXECUTE FUNCTION {function}()"
                for name, function in (
                    ("ours", "docferry.note"),
                    ("ours_always", "docferry.note"),
                    ("ours_disabled", "docferry.note"),
                    ("theirs", "public.theirs"),
                )
            ),
            f"ALTER TABLE {OWN} ENABLE ALWAYS TRIGGER ours_always",
            f"ALTER TABLE {OWN} DISABLE TRIGGER ours_disabled",
        )
        _load(ferry, "--mirror", "off")
        assert ferry.query("SELECT count(*) FROM fired") == [(0,)]
        states = f"SELECT tgname, tgenabled FROM pg_trigger WHERE tgrelid = '{OWN}'::regclass ORDER BY tgname"
        assert ferry.query(states) == [("ours", "O"), ("ours_always", "A"), ("ours_disabled", "D"), ("theirs", "O")]
        assert _load(ferry, "--mirror", "on")["mirrored"] is True
        assert ferry.query("SELECT count(*) > 0 FROM fired") == [(True,)]

    def test_off_with_the_outbox(self, ferry: Ferry) -> None:
        _mirror(ferry, "outbox")
        before = ferry.query(CAPTURED)
        assert _load(ferry, "--mirror", "off")["mirrored"] is False
        assert ferry.query("SELECT count(*) FROM docferry.outbox") == [(0,)]
        assert ferry.query(CAPTURED) == before != []
        assert _load(ferry, "1", "0", "0", "0", "--mirror", "on")["mirrored"] is True
        assert ferry.query("SELECT count(*) > 0 FROM docferry.outbox") == [(True,)]

    @pytest.mark.parametrize("capture", ["replication", "outbox"])
    def test_off_while_a_worker_runs_is_refused(self, ferry: Ferry, capture: str) -> None:
        _mirror(ferry, capture)
        before = ferry.query(CAPTURED)
        ferry.start_worker()
        done = ferry.run("bench", "load", "--mirror", "off", *SHORT, check=False)
        assert done.returncode == 1
        assert "worker runs" in done.stderr
        assert ferry.query(CAPTURED) == before

    def test_off_with_a_mirrored_table_of_others_is_refused(self, ferry: Ferry) -> None:
        ferry.execute(ORDERS)
        ferry.write_config("public.orders")
        ferry.run("apply")
        done = ferry.run("bench", "load", "--mirror", "off", "--table", "orders", *SHORT, check=False)
        assert done.returncode == 2
        assert "would lose to the mirror what others change in public.orders" in done.stderr
        assert ferry.query("SELECT count(*) FROM orders") == [(0,)]

    def test_off_and_keep_exclude_each_other(self, ferry: Ferry) -> None:
        _mirror(ferry)
        assert ferry.run("bench", "load", "--mirror", "off", "--keep", *SHORT, check=False).returncode == 2
