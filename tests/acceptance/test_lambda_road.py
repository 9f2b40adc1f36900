"""The serverless road in bad times: the function broken, Lambda away, transactions that take back what was sent."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, get_args

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from docferry.embedded.aws_lambda import Fault
from docferry.embedded.dynamodb import EmbeddedDynamoDB
from docferry.embedded.postgres import EmbeddedPostgres

from .comparison import Mirrored
from .conftest import LAMBDA_SERVICES, LAMBDA_SETTINGS, Ferry
from .road import LOGGED, Road
from .workload import SCHEMA, Workload

_STACK_SERVICES = (
    "cloudformation",
    "cloudwatch",
    "ec2",
    "events",
    "iam",
    "kms",
    "monitoring",
    "rds",
    "s3",
    "secretsmanager",
    "ssm",
    "sts",
)
_BOUND = 0.3
"""[source.lambda] timeout: seconds that docferry may add to a transaction."""
_GRACE = 0.2
"""Seconds that the stand-in gives its gateway beyond the timeouts, for the case that it is stuck."""
_PAUSE = 0.4
_FAILURES = 3
NOTES = "CREATE TABLE notes (id integer PRIMARY KEY, body text)"


@contextmanager
def made_by_hand(ferry: Ferry, *, attempts: int = 2, **settings: Any) -> Iterator[Road]:
    """Tables orders and notes, both mirrored by the road; the collections are populated."""
    ferry.execute(SCHEMA.format(table="orders"), NOTES)
    with Road(ferry) as road:
        function = {"function": road.name, "region": ferry.dynamodb.region, "timeout": "20s", **settings}
        ferry.write_config("public.orders", "public.notes", source={"capture": "lambda", "lambda": function})
        ferry.run("apply")
        road.create(attempts=attempts)
        ferry.run("run", "--once")
        yield road


def mirrors(road: Road) -> tuple[Mirrored, Mirrored]:
    return (
        Mirrored("orders", f"{road.ferry.prefix}orders"),
        Mirrored("notes", f"{road.ferry.prefix}notes"),
    )


# -- dead letters -----------------------------------------------------------------------------------------------------


@pytest.fixture
def deployed(database: str, tmp_path: Path) -> Iterator[Road]:
    """The same road by `docferry aws deploy`, around a database that is there already."""
    (folder := tmp_path / "shop").mkdir()
    services = (*LAMBDA_SERVICES, *_STACK_SERVICES)
    with EmbeddedDynamoDB(tmp_path / "cloud", region="us-east-2", services=services, settings=LAMBDA_SETTINGS) as cloud:
        ferry = Ferry(database, cloud, folder)
        ferry.execute(SCHEMA.format(table="orders"), NOTES)
        with Road(ferry, "docferry") as road:
            function = {"function": "docferry", "region": cloud.region, "timeout": "20s"}
            source = {"capture": "lambda", "lambda": function}
            ferry.write_config("public.orders", "public.notes", source=source)
            where = conninfo_to_dict(database)
            secret = road.client("secretsmanager").create_secret(
                Name="shop",
                SecretString=json.dumps(
                    {"username": where["user"], "password": where.get("password") or "none", **where}
                ),
            )
            parameters = {"ExistingSecretArn": secret["ARN"], "MaximumRetryAttempts": "1", "ReservedConcurrency": ""}
            given = [word for name, value in parameters.items() for word in ("-p", f"{name}={value}")]
            done = ferry.run("aws", "deploy", "--without-dependencies", "-p", "Host=false", *given, "--json")
            road.queue = json.loads(done.stdout)["outputs"]["DeadLetterQueueUrl"]
            # The test drains when it wants to.
            for rule in road.client("events").list_rules()["Rules"]:
                road.client("events").disable_rule(Name=rule["Name"])
            road.configure(**LOGGED)
            ferry.write_config("public.orders", "public.notes", source=source, dead_letters={"queue": road.queue})
            ferry.run("run", "--once")
            yield road
            for worker in ferry._workers:
                worker.close()


def test_a_deployed_stack_loses_nothing_to_a_broken_function_nor_to_a_missing_table(deployed: Road) -> None:
    road, ferry = deployed, deployed.ferry
    ferry.execute(
        "INSERT INTO orders (id, status) SELECT n, 'new' FROM generate_series(1001, 1010) n",
        "INSERT INTO notes SELECT n, 'first' FROM generate_series(1, 5) n",
    )
    Workload(ferry.dsn, seconds=2, pause=0.04).run()
    road.settle(*mirrors(road))
    assert road.dead() == 0

    with road.broken():
        ferry.execute(
            "UPDATE orders SET status = 'paid' WHERE id IN (1001, 1002)",
            "DELETE FROM orders WHERE id = 1003",
            "UPDATE orders SET id = 1100 WHERE id = 1004",
        )
        ferry.eventually(lambda: road.dead() == 3, what="dead letters of a broken function")
    with road.exhausted():
        ferry.execute("INSERT INTO orders (id, status) VALUES (1011, 'new'), (1012, 'new')")
        ferry.eventually(lambda: road.dead() == 4, what="dead letters for want of concurrency")
    ferry.client().update_table(TableName=(name := f"{ferry.prefix}notes"), DeletionProtectionEnabled=False)
    ferry.client().delete_table(TableName=name)
    ferry.execute("INSERT INTO notes VALUES (6, 'unheard')", "DELETE FROM notes WHERE id = 1")
    ferry.eventually(lambda: road.dead() == 6, what="dead letters for want of a table")
    assert "requested a backfill of public.notes" in ferry.run("apply").stdout
    # One of them is overtaken.
    ferry.execute("UPDATE orders SET status = 'shipped' WHERE id = 1001")
    ferry.eventually(
        lambda: any(item["id"] == 1001 and item["status"] == "shipped" for item in ferry.items("orders")),
        what="the newer change",
    )

    groups = {(one["table"], one["cause"]): one for one in ferry.json("deadletters", "list")["groups"]}
    assert {name: (one["count"], one["superseded"]) for name, one in groups.items()} == {
        # The change of a key is recorded twice, the second time with the old key.
        ("public.orders", "runtime-handler-error"): (5, 1),
        ("public.orders", "retries-exhausted"): (2, 0),
        ("public.notes", "runtime-handler-error"): (2, 0),
    }
    shown = ferry.run("deadletters", "list").stdout
    assert "public.orders: retries-exhausted: 2, " in shown
    assert "superseded: 1 of them" in shown

    ferry.run("deadletters", "replay", "--yes")

    assert road.dead() == 0
    assert "There are no dead letters." in ferry.run("deadletters", "list").stdout
    ferry.run("run", "--once")  # of the collection that had to be made again
    road.settle(*mirrors(road))


# -- an outage of Lambda ----------------------------------------------------------------------------------------------


def test_no_transaction_fails_nor_waits_long_while_lambda_is_away(ferry: Ferry) -> None:
    settings: dict[str, Any] = {
        "timeout": f"{_BOUND * 1000:.0f}ms",
        "breaker_failures": _FAILURES,
        "breaker_pause": f"{_PAUSE}s",
    }
    with made_by_hand(ferry, payload_limit="16KB", **settings) as road:
        ferry.execute("CREATE TABLE plain (LIKE notes INCLUDING ALL)")
        with psycopg.connect(ferry.dsn, autocommit=True) as application:
            for number, fault in enumerate(get_args(Fault)):
                _an_outage(road, application, fault, 1000 * number)
        road.settle(*mirrors(road))
        assert len(ferry.items("notes")) == ferry.query("SELECT count(*) FROM plain")[0][0]
        assert road.dead() == 0


def _an_outage(road: Road, application: psycopg.Connection[Any], fault: Fault, first: int) -> None:
    """Transactions during an outage, each beside the same one on a table that docferry knows nothing of."""
    plain: list[float] = []
    mirrored: list[float] = []
    tried: list[int] = []
    large = "x" * 12_000
    began = time.monotonic()
    road.gateway.fail = fault
    for number in range(25):
        # The first one would take several invocations.
        rows = 20 if number == 0 else 1
        values = [(first + 20 * number + row, large) for row in range(rows)]
        calls = road.gateway.calls
        for times, table in ((plain, "plain"), (mirrored, "notes")):
            at = time.monotonic()
            with application.transaction(), application.cursor() as cursor:
                cursor.executemany(f"INSERT INTO {table} VALUES (%s, %s)".encode(), values)
            times.append(time.monotonic() - at)
        tried.append(road.gateway.calls - calls)
        time.sleep(0.02)
    lasted = time.monotonic() - began
    added = [more - without for more, without in zip(mirrored, plain, strict=True)]
    before_it_opened = next((number for number, calls in enumerate(tried) if not calls), len(tried))
    print(  # noqa: T201 - shown by pytest when the test fails, and with -s
        f"{fault}: added to a transaction: median {statistics.median(added) * 1000:.1f} ms, "
        f"maximum {max(added) * 1000:.1f} ms; the breaker opened after {before_it_opened} transactions, "
        f"{sum(tried)} of {len(tried)} called in {lasted:.1f} s"
    )
    assert before_it_opened >= _FAILURES
    assert 0 in tried[_FAILURES:]
    assert max(tried) == 1, "after a failure, a transaction does not try again"
    assert sum(tried) <= _FAILURES + lasted / _PAUSE + 1
    # A machine that has other things to do may hold one up for long; without a bound of ours, each would take 3 s.
    called = [more for more, calls in zip(added, tried, strict=True) if calls]
    assert statistics.median(called) < _BOUND + _GRACE + 1 + 5 * max(plain), (fault, added)
    assert road.waiting() > 20

    road.gateway.fail = None
    accepted = road.gateway.calls - road.gateway.failures
    row = first + 900

    def gets_through() -> bool:
        nonlocal row
        row += 1
        application.execute("INSERT INTO plain VALUES (%s, 'after')", (row,))
        application.execute("INSERT INTO notes VALUES (%s, 'after')", (row,))
        return road.gateway.calls - road.gateway.failures > accepted

    road.ferry.eventually(gets_through, what="a transaction that closes the breaker")
    calls = road.gateway.calls
    row += 1
    application.execute("INSERT INTO plain VALUES (%s, 'after')", (row,))
    application.execute("INSERT INTO notes VALUES (%s, 'after')", (row,))
    assert road.gateway.calls == calls + 1, "the breaker is closed again"


# -- transactions that take back what they said -----------------------------------------------------------------------


@pytest.fixture
def road(ferry: Ferry) -> Iterator[Road]:
    """A function that does not wait long for a transaction to end."""
    with made_by_hand(ferry, attempts=1, patience="0.5s") as made:
        ferry.execute("INSERT INTO notes VALUES (1, 'first')")
        made.settle(*mirrors(made))
        yield made


def test_a_rollback_before_the_sending_sends_nothing(road: Road) -> None:
    road.ferry.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " RAISE EXCEPTION 'refused by the application'; END $$",
        "CREATE CONSTRAINT TRIGGER zz_refuse AFTER INSERT OR UPDATE ON notes DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW WHEN (NEW.body = 'wrong') EXECUTE FUNCTION refuse()",
    )
    calls = road.gateway.calls
    for statement in ("INSERT INTO notes VALUES (2, 'wrong')", "UPDATE notes SET body = 'wrong'"):
        with pytest.raises(psycopg.errors.RaiseException):
            road.ferry.execute(statement)
    assert road.gateway.calls == calls
    road.ferry.execute("INSERT INTO notes VALUES (3, 'right')")
    road.settle(*mirrors(road))
    assert road.gateway.calls == calls + 1
    assert road.dead() == 0


def test_a_rollback_behind_the_sending_leaves_nothing_wrong(road: Road) -> None:
    """The application's check is deferred from within a deferred trigger, so that it comes in a later round."""
    road.ferry.execute(
        "CREATE TABLE audit (id integer, body text)",
        "CREATE FUNCTION audit() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " INSERT INTO audit VALUES (NEW.id, NEW.body); RETURN NULL; END $$",
        "CREATE CONSTRAINT TRIGGER zz_audit AFTER INSERT OR UPDATE ON notes DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION audit()",
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " RAISE EXCEPTION 'refused by the application'; END $$",
        "CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON audit DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW WHEN (NEW.body = 'wrong') EXECUTE FUNCTION refuse()",
    )
    calls = road.gateway.calls
    for statement in ("INSERT INTO notes VALUES (2, 'wrong')", "UPDATE notes SET body = 'wrong' WHERE id = 1"):
        with pytest.raises(psycopg.errors.RaiseException):
            road.ferry.execute(statement)
    assert road.gateway.calls == calls + 2, "they are meant to be sent"
    road.ferry.eventually(
        lambda: sorted(id_ for id_, outcome in road.outcomes("public.notes") if outcome == "rolled back") == [1, 2],
        what="the function's answer",
    )
    road.ferry.execute("INSERT INTO notes VALUES (3, 'right')")
    road.settle(*mirrors(road))
    assert road.dead() == 0


@contextmanager
def held_open(road: Road, *statements: str) -> Iterator[psycopg.Connection[Any]]:
    """A transaction whose first changes have been sent; it ends with the block, by its commit unless the block ends it
    otherwise.

    The first SET CONSTRAINTS has the changes recorded, the second one has them sent.
    """
    calls = road.gateway.calls
    with psycopg.connect(road.ferry.dsn) as application:
        for statement in (*statements, "SET CONSTRAINTS ALL IMMEDIATE", "SET CONSTRAINTS ALL IMMEDIATE"):
            application.execute(statement.encode())
        assert road.gateway.calls == calls + 1
        yield application


def test_a_transaction_that_ends_soon_after_the_sending(road: Road) -> None:
    with held_open(road, "UPDATE notes SET body = 'sent' WHERE id = 1", "INSERT INTO notes VALUES (2, 'sent')") as held:
        held.execute("UPDATE notes SET body = 'and changed' WHERE id = 2")
    with held_open(
        road, "UPDATE notes SET body = 'wrong' WHERE id = 1", "INSERT INTO notes VALUES (3, 'wrong')"
    ) as held:
        held.rollback()
    road.settle(*mirrors(road))
    assert road.dead() == 0


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_transaction_that_is_held_open_for_long(road: Road, end: str) -> None:
    ferry = road.ferry
    before = ferry.items("notes")
    with held_open(road, "UPDATE notes SET body = 'sent' WHERE id = 1", "INSERT INTO notes VALUES (2, 'sent')") as held:
        ferry.eventually(lambda: road.dead() == 1, what="an event that has been tried often enough")
        assert ferry.items("notes") == before
        refused = ferry.run("deadletters", "replay", "--yes", "--json", check=False, **road.variables)
        assert refused.returncode == 3
        assert json.loads(refused.stdout)["pending"] == 2
        assert ferry.items("notes") == before
        if end == "rollback":
            held.rollback()
    done = json.loads(ferry.run("deadletters", "replay", "--yes", "--json", **road.variables).stdout)
    assert done["applied" if end == "commit" else "rolled-back"] == 2
    assert road.dead() == 0
    road.settle(*mirrors(road))


def test_a_transaction_that_a_crash_takes_back(
    postgres_server: EmbeddedPostgres, dynamodb: EmbeddedDynamoDB, tmp_path: Path
) -> None:
    """Its event comes late: its id and its position must not have been handed out again."""
    with psycopg.connect(postgres_server.dsn()) as connection:
        if connection.info.server_version < 170000:
            pytest.skip("before PostgreSQL 17 nothing short of a commit brings the log to disk")
    ferry = Ferry(postgres_server.dsn(), dynamodb, tmp_path)
    with made_by_hand(ferry) as road:
        ferry.execute("INSERT INTO notes VALUES (1, 'first')")
        road.settle(*mirrors(road))
        time.sleep(1)  # until the server has written what it had to
        with road.exhausted(), closing(psycopg.connect(ferry.dsn)) as lost:
            lost.execute("INSERT INTO notes VALUES (2, 'lost')")
            (before,) = lost.execute("SELECT pg_current_xact_id()::text").fetchone() or ("",)
            lost.execute("SET CONSTRAINTS ALL IMMEDIATE; SET CONSTRAINTS ALL IMMEDIATE")
            postgres_server.restart("immediate")
            with psycopg.connect(ferry.dsn) as other:
                other.execute("INSERT INTO notes VALUES (3, 'third')")
                (after,) = other.execute("SELECT pg_current_xact_id()::text").fetchone() or ("",)
            ferry.eventually(lambda: road.dead() == 2, what="both events in the queue")
        assert before != after
        for event in road.take_events():
            road.invoke(event, attempts=3)  # connections from before the crash are broken
        road.settle(*mirrors(road))
    ferry.close()
