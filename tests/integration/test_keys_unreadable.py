"""A key's text need not be one: what asks for it gets no row, and everything else goes on."""

from __future__ import annotations

import psycopg
import pytest

from docferry.capture.snapshot import TableReader
from docferry.config import RunConfig
from docferry.config.model import ItemKeyAttribute
from docferry.errors import Interrupted, KeyUnreadable, SourceRefused
from docferry.operate.backfill import Progress
from docferry.operate.letters import Selection, replay
from docferry.retry import Retry
from docferry.target.contract import Item

from ..waiting import until
from .harness import BY_BOTH, Ferry
from .test_schema_changes import LARGE
from .test_verify import Hand, found, verifying

CAPTURES = BY_BOTH
IS_A = """
    CREATE FUNCTION is_a(text) RETURNS boolean LANGUAGE plpgsql
    AS $$ BEGIN IF $1 = 'a' THEN RETURN true; END IF; RAISE 'not a'; END $$
"""
UUID = "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"

FOREIGN = {
    "int4": ("7", "one"),
    "bytea": (r"\x01", r"\xzz"),
    "timestamptz": ("2024-01-01 00:00:00+00", "2024-01-01 Mars/X"),
    "interval": ("1 day", "99999999999 years"),
    "int4range": ("[1,2)", "[5,1)"),
    "tsvector": ("'a'", "'"),
    "bit(3)": ("101", "102"),
    "inet": ("10.0.0.1", "10.0.0.1/99"),
    "int4[]": ("{1}", "[1:999999999]={}"),
    "pg_lsn": ("0/1", "zz"),
    "few": ("5", "11"),
    "checked": ("a", "b"),
    "text": ("a", "b\x00"),
}


@pytest.mark.parametrize("of", FOREIGN)
def test_a_text_that_is_none_of_its_type_has_no_row(database: str, of: str) -> None:
    """Whatever the server calls what is wrong with it."""
    right, wrong = FOREIGN[of]
    with psycopg.connect(database, autocommit=True) as connection:
        for statement in (
            "CREATE DOMAIN few AS int CHECK (VALUE < 10)",
            IS_A,
            "CREATE DOMAIN checked AS text CHECK (is_a(VALUE))",
            f"CREATE TABLE keyed (k {of}, n int, PRIMARY KEY (n, k))",
        ):
            connection.execute(statement.encode())
        connection.execute(f"INSERT INTO keyed VALUES (%s::text::{of}, 1)".encode(), (right,))
    reader = TableReader(database, Retry(), purpose="test", table="public.keyed", key=("n", "k"))
    try:
        keys = [("1", wrong), ("2", right), ("1", right), ("x", right), ("1", wrong)]
        rows, complete = reader.read_rows("public.keyed", ("n", "k"), keys, (), 1 << 20)
        assert ([row[1] for _, row in rows], complete) == ([b"1"], True)
        assert len(reader.read_keys("public.keyed", ("n", "k"), keys)) == 1
        assert reader.read_keys("public.keyed", ("n", "k"), [("1", wrong)]) == []
        with pytest.raises(KeyUnreadable):
            reader.boundary(("1", wrong), 10)
    finally:
        reader.close()


def test_an_error_that_is_no_key_s_is_not_taken_for_one(database: str) -> None:
    """A row that cannot be read is not one that is gone."""
    with psycopg.connect(database, autocommit=True) as connection:
        for statement in (
            "CREATE TABLE real (id int PRIMARY KEY, n int)",
            "INSERT INTO real VALUES (1, 0)",
            "CREATE VIEW keyed AS SELECT id, 1 / n AS n FROM real",
        ):
            connection.execute(statement.encode())
    reader = TableReader(database, Retry(), purpose="test", table="public.keyed", key=("id",))
    try:
        for keys in ([("1",)], [("1",), ("2",)], [("1",), ("two",)]):
            with pytest.raises(SourceRefused, match="division by zero"):
                reader.read_rows("public.keyed", ("id",), keys, (), 1 << 20)
        with pytest.raises(SourceRefused, match="division by zero"):
            reader.read_page(("0",), None, 1 << 20)
    finally:
        reader.close()


def test_a_key_is_another_row_s_type_by_now(ferry: Ferry) -> None:
    """What was on its way under the old type leaves the old item."""
    ferry.only_replication()  # triggers on a column keep its type
    ferry.execute(
        "CREATE TABLE things (id text PRIMARY KEY, name text)",
        "INSERT INTO things SELECT gen_random_uuid()::text, 'n' FROM generate_series(1, 3)",
        "INSERT INTO things VALUES ('legacy-1', 'old'), ('legacy-2', 'old')",
    )
    ferry.begin("public.things")
    ferry.stop()
    ferry.execute(
        "UPDATE things SET id = gen_random_uuid()::text WHERE id LIKE 'legacy%'",
        "ALTER TABLE things ALTER id TYPE uuid USING id::uuid",
        "ALTER TABLE things ALTER name TYPE varchar(10)",
    )
    ferry.start()

    def same() -> bool:
        ferry.wait()
        expected = {(str(id_),): name for id_, name in ferry.query("SELECT id::text, name FROM things")}
        return {key: document["name"] for key, document in ferry.documents("public.things").items()} == expected

    until(same, "the same rows at both ends")
    ferry.stop()


def test_a_dead_letter_whose_key_is_none_any_more_keeps_no_other_back(ferry: Ferry) -> None:
    ferry.only_replication()
    ferry.execute("CREATE TABLE things (id text PRIMARY KEY, name text)")
    ferry.begin("public.things")
    ferry.execute(f"INSERT INTO things VALUES ('abc', repeat('x', 500000)), ('{UUID}', repeat('y', 500000))")
    ferry.wait()
    assert ferry.query("SELECT count(*) FROM docferry.dead_letters") == [(2,)]
    ferry.stop()
    ferry.execute("TRUNCATE things", "ALTER TABLE things ALTER id TYPE uuid USING id::uuid")
    ferry.execute(f"INSERT INTO things VALUES ('{UUID}', 'small')")
    with ferry.app() as app:
        assert replay(app.replay(rate=1000), Selection(), dry_run=False).counts == {"deleted": 1, "applied": 1}
    assert ferry.query("SELECT count(*) FROM docferry.dead_letters") == [(0,)]


def test_a_backfill_s_last_key_is_none_any_more(ferry: Ferry) -> None:
    """It starts over, and what it wrote under keys of the old type goes."""
    ferry.only_replication()
    ferry.run = RunConfig(backfill_page=7, backfill_workers=1, stop_grace=10.0)
    ferry.execute(
        "CREATE TABLE things (id text PRIMARY KEY, n int)",
        "INSERT INTO things SELECT 'k' || lpad(n::text, 3, '0'), n FROM generate_series(1, 100) AS n",
    )
    ferry.mirror("public.things")
    ferry.apply()
    with ferry.app() as app:

        def interrupt(progress: Progress) -> None:
            if progress.rows >= 63:
                app.retry.stop.set()

        with pytest.raises(Interrupted):
            app.backfill("public.things", anew=False, on_progress=interrupt)
    assert ferry.backfills()[0].done_key is not None
    ferry.execute("ALTER TABLE things ALTER id TYPE uuid USING lpad(n::text, 32, '0')::uuid")
    ferry.start()

    def same() -> bool:
        ferry.wait()
        return set(ferry.documents("public.things")) == {
            (id_,) for (id_,) in ferry.query("SELECT id::text FROM things")
        }

    until(same, "the same rows at both ends")
    ferry.stop()


def test_foreign_items_are_orphans(ferry: Ferry) -> None:
    """None of them keeps the others, and the table's own, from being compared."""
    kinds = {of: FOREIGN[of] for of in ("bytea", "timestamptz", "int4range")}
    for number, (of, (right, _)) in enumerate(kinds.items()):
        ferry.execute(f"CREATE TABLE t{number} (k {of} PRIMARY KEY)", f"INSERT INTO t{number} VALUES ('{right}')")
        ferry.mirror(f"public.t{number}", item_key=(ItemKeyAttribute("pk", "K#{k}"),))
    ferry.apply()
    ferry.start()
    ferry.wait()
    for number, (_, wrong) in enumerate(kinds.values()):
        key = "K#" + wrong.removeprefix("\\x")
        Hand(ferry, f"t{number}").put(Item((key,), -1, {"pk": key}))
    with verifying(ferry) as verification:
        assert [found(checked) for checked in verification.run()] == [{"orphaned": 1}] * len(kinds)


@pytest.mark.parametrize("of", ["int4[]", "text[]", "date[]"])
def test_a_key_that_is_an_array(ferry: Ferry, of: str) -> None:
    one, two, three = {
        "int4[]": ("{1}", "{1,2}", "{3}"),
        "text[]": ("{a}", '{"a,b","{\\""}', "{}"),
        "date[]": ("{}", "{2024-01-01}", "{NULL}"),
    }[of]
    ferry.execute(
        f"CREATE TABLE things (id {of} PRIMARY KEY, name text, doc text)",
        f"INSERT INTO things VALUES ('{one}', 'a', {LARGE}), ('{two}', 'b', {LARGE})",
    )
    ferry.mirror("public.things", item_key=(ItemKeyAttribute("pk", "K#{id}"),))
    ferry.apply()
    ferry.start()
    ferry.wait()
    ferry.execute(
        f"UPDATE things SET id = '{three}' WHERE id = '{one}'", f"UPDATE things SET name = 'c' WHERE id = '{two}'"
    )
    ferry.wait()
    rows = ferry.query("SELECT id::text, name FROM things")
    found = {key: document["name"] for key, document in ferry.documents("public.things").items()}
    assert found == {(f"K#{key}",): name for key, name in rows}
    ferry.stop()
