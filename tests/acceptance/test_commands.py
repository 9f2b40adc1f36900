"""plan, apply and destroy as people run them, and what is refused, with the remedy."""

from __future__ import annotations

import json
import os
import re
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from click.testing import CliRunner
from psycopg.conninfo import make_conninfo

from docferry.cli import COMMANDS, docferry
from docferry.embedded.postgres import EmbeddedPostgres

from .conftest import Ferry

TABLE = "CREATE TABLE orders (id int PRIMARY KEY, body xml, total numeric)"
ROWS = "INSERT INTO orders SELECT n, '<order><item>pen</item></order>', n * 1.50 FROM generate_series(1, 20) n"


class TestPlan:
    def test_before_apply_it_shows_what_apply_would_do_and_does_nothing(self, ferry: Ferry) -> None:
        ferry.execute(TABLE, ROWS)
        ferry.write_config("public.orders", source={"dsn": ferry.dsn})
        shown = ferry.run("plan").stdout
        assert "create publication docferry for public.orders" in shown
        assert f"create collection {ferry.prefix}orders (key id number)" in shown
        assert "all 20 rows examined, every one can be stored" in shown
        assert "Next: `docferry apply`." in shown
        assert ferry.collections() == []
        assert ferry.query("SELECT count(*) FROM pg_publication") == [(0,)]
        assert ferry.query("SELECT to_regnamespace('docferry')") == [(None,)]

    def test_after_apply_nothing_is_left_to_do(self, ferry: Ferry) -> None:
        ferry.execute(TABLE, ROWS)
        ferry.write_config("public.orders")
        ferry.run("apply")
        assert "nothing to do" in ferry.run("plan").stdout
        assert ferry.json("plan")["steps"] == []

    def test_rows_that_would_be_refused_are_grouped_with_keys_limit_and_remedy(self, ferry: Ferry) -> None:
        ferry.execute(
            "CREATE TABLE texts (id int PRIMARY KEY, body text, n numeric)",
            "INSERT INTO texts SELECT n, '<a/>' FROM generate_series(1, 9) n",
            "UPDATE texts SET body = '<a>' WHERE id IN (3, 5)",
            "UPDATE texts SET body = '<a>' || repeat('x', 500000) || '</a>' WHERE id = 7",
            "UPDATE texts SET n = 1234567890123456789012345678901234567890123 WHERE id = 8",
        )
        ferry.write_config(
            {"table": "public.texts", "collection": "texts", "documents": {"body": {"format": "xml"}}},
        )
        done = ferry.run("plan", check=False)
        assert done.returncode == 3
        assert "all 9 rows examined, 3 would become dead letters" in done.stdout
        assert "document-invalid: 2 rows (id=3, id=5)" in done.stdout
        assert "too-large: 1 row (id=7)" in done.stdout
        assert re.search(r"limit: .*409,?600", done.stdout)
        assert "remedy: Shrink the row" in done.stdout
        assert "note: number-as-text n: 1 row (id=8)" in done.stdout

        document = json.loads(ferry.run("plan", "texts", "--json", check=False).stdout)
        assert document["refused"] == 3
        findings = document["tables"][0]["findings"]
        assert [(one["cause"], one["severity"], one["count"]) for one in findings] == [
            ("document-invalid", "refused", 2),
            ("too-large", "refused", 1),
            ("number-as-text n", "note", 1),
        ]
        assert findings[0]["examples"] == ["id=3", "id=5"]

        assert ferry.run("plan", "--no-rows").returncode == 0
        few = ferry.json("plan", "--rows", "2")
        assert few["refused"] == 0

    def test_numbers_that_become_text_are_notes_only(self, ferry: Ferry) -> None:
        ferry.execute("CREATE TABLE t (id int PRIMARY KEY, n numeric)", "INSERT INTO t VALUES (1, 'NaN')")
        ferry.write_config("public.t")
        assert "note: number-as-text n: 1 row (id=1)" in ferry.run("plan").stdout

    def test_a_table_that_is_no_mirror(self, ferry: Ferry) -> None:
        ferry.execute(TABLE)
        ferry.write_config("public.orders")
        done = ferry.run("plan", "customers", check=False)
        assert done.returncode == 2
        assert "table public.customers is not a mirror" in done.stderr
        assert "Choose one of: public.orders." in done.stderr

    def test_rows_and_no_rows_exclude_each_other(self, ferry: Ferry) -> None:
        assert ferry.run("plan", "--rows", "3", "--no-rows", check=False).returncode == 2


class TestApplyAndDestroy:
    def test_both_are_idempotent(self, ferry: Ferry) -> None:
        ferry.execute(TABLE, ROWS)
        ferry.write_config("public.orders")
        first = ferry.json("apply")
        assert f"created replication slot {ferry.slot}" in first["steps"]
        assert ferry.run("apply").stdout == "Nothing to do: it is all there.\n"
        assert ferry.collections() == ["orders"]

        assert ferry.json("destroy", "--yes")["changed"] is True
        assert ferry.collections() == []
        assert ferry.query("SELECT to_regnamespace('docferry')") == [(None,)]
        assert ferry.query(f"SELECT 1 FROM pg_replication_slots WHERE slot_name = '{ferry.slot}'") == []
        assert ferry.query("SELECT count(*) FROM orders") == [(20,)]
        assert "Nothing to do" in ferry.run("destroy").stdout
        assert ferry.json("destroy") == {"steps": [], "changed": False}

    def test_destroy_shows_and_asks(self, ferry: Ferry) -> None:
        ferry.execute(TABLE)
        ferry.write_config("public.orders")
        ferry.run("apply")
        nobody = ferry.run("destroy", check=False)
        assert nobody.returncode == 2
        assert f"replication slot {ferry.slot}" in nobody.stderr
        assert "--yes" in nobody.stderr
        no = ferry.run("destroy", check=False, input="n\n")
        assert no.returncode == 1
        assert "nothing was changed" in no.stderr
        assert ferry.collections() == ["orders"]
        ferry.run("destroy", input="y\n")
        assert ferry.collections() == []

    def test_destroy_may_keep_the_collections(self, ferry: Ferry) -> None:
        ferry.execute(TABLE)
        ferry.write_config("public.orders")
        ferry.run("apply")
        ferry.run("destroy", "--keep-collections", "--yes")
        assert ferry.collections() == ["orders"]
        assert ferry.query("SELECT to_regnamespace('docferry')") == [(None,)]

    def test_destroy_leaves_a_table_that_apply_never_saw(self, ferry: Ferry) -> None:
        ferry.execute(TABLE)
        ferry.write_config("public.orders")
        ferry.client().create_table(
            TableName=f"{ferry.prefix}orders",
            KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
            AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "N"}],
            BillingMode="PAY_PER_REQUEST",
        )
        ferry.run("destroy", "--yes")
        assert ferry.collections() == ["orders"]

    def test_destroy_works_when_the_table_is_gone(self, ferry: Ferry) -> None:
        ferry.execute(TABLE)
        ferry.write_config("public.orders")
        ferry.run("apply")
        ferry.execute("DROP TABLE orders")
        ferry.run("destroy", "--yes")
        assert ferry.query(f"SELECT 1 FROM pg_replication_slots WHERE slot_name = '{ferry.slot}'") == []
        assert ferry.query("SELECT to_regnamespace('docferry')") == [(None,)]

    def test_apply_follows_the_configuration(self, ferry: Ferry) -> None:
        ferry.execute(TABLE, "CREATE TABLE customers (id int PRIMARY KEY)")
        ferry.write_config("public.orders")
        ferry.run("apply")
        ferry.write_config("public.customers")
        steps = ferry.json("apply")["steps"]
        assert "registered mirror public.customers" in " ".join(steps)
        assert "forgot mirror public.orders" in " ".join(steps)
        assert ferry.query("SELECT tablename::text FROM pg_publication_tables WHERE pubname = 'docferry'") == [
            ("customers",)
        ]


class TestRefusals:
    """One clear message with the remedy each, and nothing half done."""

    @pytest.fixture
    def refused(self, ferry: Ferry) -> Callable[..., str]:
        def refused(code: int, *commands: str) -> str:
            """Run the commands, which must all fail alike; returns the message and remedy."""
            said = set()
            for command in commands:
                done = ferry.run(command, check=False)
                assert done.returncode == code, done.stderr
                lines = done.stderr.splitlines()
                assert [line.partition(":")[0] for line in lines] == ["error", "remedy"], done.stderr
                assert done.stdout == ""
                said.add(done.stderr)
            assert len(said) == 1
            return said.pop()

        return refused

    @pytest.mark.parametrize(
        ("mirror", "message"),
        [
            ({"table": "public.orders", "colection": "orders"}, "colection"),
            ({"table": "public.orders", "collection": "orders", "exclude": "body"}, "exclude"),
        ],
    )
    def test_a_bad_configuration(self, ferry: Ferry, mirror: dict[str, str], message: str) -> None:
        ferry.write_config(mirror)
        for command in ("apply", "run"):
            done = ferry.run(command, check=False)
            assert done.returncode == 2
            assert "docferry.toml" in done.stderr
            assert message in done.stderr

    def test_no_configuration(self, refused: Callable[..., str]) -> None:
        said = refused(2, "plan", "apply", "destroy", "run", "wait", "status")
        assert "docferry init" in said

    def test_an_unreachable_source(self, ferry: Ferry, refused: Callable[..., str]) -> None:
        ferry.write_config("public.orders", source={"dsn": "postgresql://postgres@127.0.0.1:1/shop"})
        said = refused(1, "plan", "apply", "run", "status", "wait")
        assert "127.0.0.1" in said
        assert "remedy: Check that the server is up" in said

    def test_an_unreachable_target(self, ferry: Ferry) -> None:
        ferry.execute(TABLE)
        ferry.write_config("public.orders")
        ferry.run("apply")
        ferry.write_config("public.orders", target={"endpoint_url": "http://127.0.0.1:1"})
        for command in ("plan", "run"):
            done = ferry.run(command, check=False)
            assert done.returncode == 1
            assert re.search("error: .*127.0.0.1", done.stderr)
            assert "remedy: Check that the target answers" in done.stderr
        # The source alone is asked here.
        ferry.run("status")

    def test_a_password_is_never_shown(self, ferry: Ferry) -> None:
        ferry.write_config("public.orders", source={"dsn": "postgresql://app:geheim@127.0.0.1:1/shop"})
        done = ferry.run("apply", "--debug", "--verbose", check=False)
        assert done.returncode == 1
        assert "geheim" not in done.stderr + done.stdout

    def test_a_role_without_replication(
        self, ferry: Ferry, refused: Callable[..., str], role: Callable[[str], str]
    ) -> None:
        ferry.execute(TABLE)
        ferry.write_config("public.orders", source={"dsn": role("GRANT SELECT ON orders TO {role}")})
        said = refused(1, "plan", "apply")
        assert "to make and read a replication slot" in said
        assert "REPLICATION;" in said
        assert "rds_replication" in said
        assert ferry.query("SELECT to_regnamespace('docferry')") == [(None,)]

    def test_a_role_without_select(self, ferry: Ferry, refused: Callable[..., str], role: Callable[[str], str]) -> None:
        ferry.execute(TABLE)
        ferry.write_config("public.orders", source={"dsn": role("ALTER ROLE {role} REPLICATION")})
        said = refused(1, "plan", "apply")
        assert "to read a mirrored table" in said
        assert 'GRANT SELECT ON TABLE "public"."orders" TO "role_' in said

    def test_a_role_that_may_not_create(
        self, ferry: Ferry, refused: Callable[..., str], role: Callable[[str], str]
    ) -> None:
        ferry.execute(TABLE)
        dsn = role("ALTER ROLE {role} REPLICATION; GRANT SELECT ON orders TO {role}")
        ferry.write_config("public.orders", source={"dsn": dsn})
        said = refused(1, "apply")
        assert "CREATE SCHEMA IF NOT EXISTS docferry AUTHORIZATION" in said
        assert 'CREATE PUBLICATION "docferry" FOR TABLE "public"."orders"' in said
        assert "SELECT ON TABLE" not in said
        assert ferry.query("SELECT to_regnamespace('docferry')") == [(None,)]

    def test_a_server_whose_log_is_not_logical(self, ferry: Ferry, refused: Callable[..., str]) -> None:
        other = os.environ.get("DOCFERRY_TEST_POSTGRES_BIN")
        with EmbeddedPostgres({"wal_level": "replica"}, version_bin=Path(other) if other else None) as server:
            with psycopg.connect(server.dsn(), autocommit=True) as connection:
                connection.execute(TABLE)
            ferry.write_config("public.orders", source={"dsn": server.dsn()})
            said = refused(1, "plan", "apply")
            assert "wal_level = replica" in said
            assert "rds.logical_replication = 1" in said
            with psycopg.connect(server.dsn(), autocommit=True) as connection:
                assert connection.execute("SELECT to_regnamespace('docferry')").fetchone() == (None,)

    def test_a_table_without_a_key(self, ferry: Ferry, refused: Callable[..., str]) -> None:
        ferry.execute("CREATE TABLE log (line text)")
        ferry.write_config("public.log")
        said = refused(2, "plan", "apply", "run")
        assert "table public.log has no primary key" in said
        assert "ADD PRIMARY KEY" in said

    def test_a_key_of_three_columns(self, ferry: Ferry, refused: Callable[..., str]) -> None:
        ferry.execute("CREATE TABLE t (a int, b int, c int, PRIMARY KEY (a, b, c))")
        ferry.write_config("public.t")
        assert 'item_key = { pk = "{a}#{b}#{c}" }' in refused(2, "plan")

    def test_a_table_that_does_not_exist(self, refused: Callable[..., str], ferry: Ferry) -> None:
        ferry.write_config("public.orders")
        assert "table public.orders does not exist" in refused(2, "plan", "apply", "run")

    def test_a_column_that_does_not_exist(self, ferry: Ferry, refused: Callable[..., str]) -> None:
        ferry.execute(TABLE)
        ferry.write_config({"table": "public.orders", "collection": "orders", "exclude": ["nots"]})
        said = refused(2, "plan", "apply")
        assert "names column nots, which public.orders does not have" in said
        assert "Choose from: body, id, total." in said

    def test_a_reserved_attribute(self, ferry: Ferry, refused: Callable[..., str]) -> None:
        ferry.execute("CREATE TABLE t (id int PRIMARY KEY, _v int)")
        ferry.write_config("public.t")
        said = refused(2, "plan", "apply")
        assert "column _v of public.t" in said
        assert 'exclude = ["_v"]' in said

    def test_everything_that_is_wrong_is_said_at_once(self, ferry: Ferry, refused: Callable[..., str]) -> None:
        ferry.execute("CREATE TABLE log (line text)", "CREATE TABLE t (id int PRIMARY KEY, _v int)")
        ferry.write_config("public.log", "public.t", "public.nowhere")
        said = refused(2, "plan")
        for part in ("no primary key", "column _v", "public.nowhere does not exist"):
            assert part in said

    def test_a_publication_for_all_tables(self, ferry: Ferry, refused: Callable[..., str]) -> None:
        ferry.execute(TABLE, "CREATE PUBLICATION docferry FOR ALL TABLES")
        ferry.write_config("public.orders", source={"dsn": ferry.dsn})
        said = refused(1, "plan", "apply")
        assert "FOR ALL TABLES" in said
        assert "[source] publication" in said
        assert ferry.query("SELECT to_regnamespace('docferry')") == [(None,)]

    def test_before_apply(self, ferry: Ferry) -> None:
        ferry.execute(TABLE)
        ferry.write_config("public.orders")
        for command in (["run"], ["wait"], ["backfill", "orders"], ["deadletters", "list"], ["deadletters", "replay"]):
            done = ferry.run(*command, check=False)
            assert done.returncode == 1
            assert done.stderr.endswith("remedy: Run `docferry apply`.\n")
        assert "has not been set up" in ferry.run("status").stdout

    def test_as_json(self, ferry: Ferry) -> None:
        ferry.write_config("public.orders")
        done = ferry.run("apply", "--json", check=False)
        assert json.loads(done.stdout)["error"]["class"] == "ConfigError"

    def test_an_environment_variable_for_every_flag(self, ferry: Ferry) -> None:
        ferry.execute(TABLE, ROWS)
        path = ferry.write_config("public.orders").rename(ferry.directory / "other.toml")
        done = ferry.run("plan", DOCFERRY_CONFIG=str(path), DOCFERRY_JSON="1", DOCFERRY_PLAN_ROWS="7")
        assert json.loads(done.stdout)["tables"][0]["rows"] == 7


@pytest.mark.parametrize("command", ["plan", "apply", "destroy", "run", "wait", "status", "backfill"])
def test_help_teaches(command: str) -> None:
    assert command in COMMANDS
    shown = CliRunner().invoke(docferry, [command, "--help"]).stdout
    assert "Example" in shown
    assert "DOCFERRY_CONFIG" in shown


@pytest.fixture
def role(ferry: Ferry) -> Iterator[Callable[[str], str]]:
    """Make a role of its own and run statements about it; gives the source's DSN for it."""
    name = f"role_{uuid.uuid4().hex[:10]}"

    def make(statements: str) -> str:
        ferry.execute(f"CREATE ROLE {name} LOGIN", *statements.format(role=name).split("; "))
        return make_conninfo(ferry.dsn, user=name)

    yield make
    ferry.execute(f"DROP OWNED BY {name}", f"DROP ROLE {name}")
