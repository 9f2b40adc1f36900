"""What an application does to its tables arrives at the target: PostgreSQL is real, the target is in memory."""

from __future__ import annotations

import random
from string import ascii_letters

import psycopg
import pytest

from ..waiting import until
from .harness import BY_BOTH, Ferry

CAPTURES = BY_BOTH
IN_FLIGHT = "SELECT FROM docferry.workers WHERE (state->>'in_flight')::int > 0"

BIG = "(SELECT string_agg(md5(g::text), '') FROM generate_series(1, 400) AS g)"
"""More than a page holds, and not compressible: it goes to the TOAST table."""


@pytest.fixture
def things(ferry: Ferry) -> Ferry:
    """public.things, mirrored, with a worker at it."""
    ferry.execute("CREATE TABLE things (id int PRIMARY KEY, name text, doc text)")
    ferry.execute("INSERT INTO things VALUES (1, 'one', '<a/>'), (2, 'two', NULL)")
    ferry.begin("public.things")
    return ferry


def test_rows_that_were_there_before_are_populated(things: Ferry) -> None:
    things.assert_same("public.things")
    assert things.documents("things")[1,] == {"id": 1, "name": "one", "doc": "<a/>"}


def test_insert_update_delete(things: Ferry) -> None:
    things.execute(
        "INSERT INTO things VALUES (3, 'three', '')",
        "UPDATE things SET name = 'ONE' WHERE id = 1",
        "DELETE FROM things WHERE id = 2",
    )
    things.wait()
    things.assert_same("public.things")
    assert set(things.documents("things")) == {(1,), (3,)}


def test_a_changed_key_moves_the_item(things: Ferry) -> None:
    things.execute("UPDATE things SET id = 10 WHERE id = 1")
    things.wait()
    things.assert_same("public.things")
    assert set(things.documents("things")) == {(10,), (2,)}


@pytest.mark.parametrize("identity", ["DEFAULT", "FULL"])
def test_two_rows_swap_their_keys_in_one_transaction(things: Ferry, identity: str) -> None:
    things.execute(f"ALTER TABLE things REPLICA IDENTITY {identity}", f"UPDATE things SET doc = {BIG} WHERE id = 1")
    things.transaction(
        "UPDATE things SET id = -1 WHERE id = 1",
        "UPDATE things SET id = 1 WHERE id = 2",
        "UPDATE things SET id = 2 WHERE id = -1",
    )
    things.wait()
    things.assert_same("public.things")
    assert things.documents("things")[2,]["name"] == "one"


def test_a_key_is_taken_by_another_row_at_once(things: Ferry) -> None:
    things.transaction("DELETE FROM things WHERE id = 1", "UPDATE things SET id = 1 WHERE id = 2")
    things.wait()
    things.assert_same("public.things")
    things.transaction("UPDATE things SET id = 2 WHERE id = 1", "INSERT INTO things VALUES (1, 'new', 'x')")
    things.wait()
    things.assert_same("public.things")


def test_truncate_of_several_tables_at_once(ferry: Ferry) -> None:
    ferry.execute(
        "CREATE TABLE parents (id int PRIMARY KEY)",
        "CREATE TABLE children (id int PRIMARY KEY, parent int REFERENCES parents)",
        "CREATE TABLE others (id int PRIMARY KEY)",
        "INSERT INTO parents SELECT generate_series(1, 50)",
        "INSERT INTO children SELECT g, g FROM generate_series(1, 50) AS g",
        "INSERT INTO others VALUES (1)",
    )
    tables = ["public.parents", "public.children", "public.others"]
    ferry.begin(*tables)
    ferry.assert_same(*tables)
    ferry.transaction(
        "INSERT INTO parents VALUES (100)",
        "TRUNCATE parents, children",
        "INSERT INTO parents VALUES (7)",
        "INSERT INTO children VALUES (8, 7)",
    )
    ferry.wait()
    ferry.assert_same(*tables)
    assert [len(ferry.documents(table)) for table in tables] == [1, 1, 1]
    ferry.execute("TRUNCATE parents CASCADE")
    ferry.wait()
    ferry.assert_same(*tables)


def test_a_row_moves_between_partitions(ferry: Ferry) -> None:
    ferry.execute(
        "CREATE TABLE parts (id int, region text, name text, PRIMARY KEY (id, region)) PARTITION BY LIST (region)",
        "CREATE TABLE parts_eu PARTITION OF parts FOR VALUES IN ('eu')",
        "CREATE TABLE parts_us PARTITION OF parts FOR VALUES IN ('us') PARTITION BY RANGE (id)",
        "CREATE TABLE parts_us_1 PARTITION OF parts_us FOR VALUES FROM (0) TO (100)",
        # The columns of a partition may be in another order.
        "CREATE TABLE parts_ap (name text, region text NOT NULL, id int NOT NULL)",
        "ALTER TABLE parts ATTACH PARTITION parts_ap FOR VALUES IN ('ap')",
        "INSERT INTO parts SELECT g, 'eu', 'n' || g FROM generate_series(1, 20) AS g",
        "INSERT INTO parts SELECT g, 'ap', 'n' || g FROM generate_series(21, 40) AS g",
    )
    ferry.begin("public.parts")
    ferry.assert_same("public.parts", key=("id", "region"))
    ferry.execute(
        "UPDATE parts SET region = 'us' WHERE id % 2 = 0",
        "UPDATE parts SET region = 'ap', name = 'moved' WHERE id = 3",
        "INSERT INTO parts VALUES (50, 'us', 'fifty'), (51, 'ap', 'fifty-one')",
        "DELETE FROM parts WHERE id = 21",
    )
    ferry.wait()
    ferry.assert_same("public.parts", key=("id", "region"))
    ferry.execute("TRUNCATE parts")
    ferry.wait()
    assert ferry.documents("parts") == {}


def test_copy_in(things: Ferry) -> None:
    with things.connection.cursor() as cursor, cursor.copy("COPY things (id, name) FROM STDIN") as copy:
        for number in range(100, 2100):
            copy.write_row((number, f"copied {number}"))
    things.wait()
    things.assert_same("public.things")


def test_what_is_rolled_back_never_arrives(things: Ferry) -> None:
    with things.another() as other:
        other.execute("INSERT INTO things VALUES (3, 'never', 'x')")
        other.rollback()
        other.execute("INSERT INTO things VALUES (4, 'kept', 'x')")
        other.execute("SAVEPOINT a")
        other.execute("UPDATE things SET name = 'never' WHERE id IN (1, 4)")
        other.execute("SAVEPOINT b")
        other.execute("DELETE FROM things")
        other.execute("ROLLBACK TO b")
        other.execute("UPDATE things SET doc = 'kept' WHERE id = 2")
        other.execute("ROLLBACK TO a")
        other.execute("INSERT INTO things VALUES (5, 'kept', 'x')")
        other.execute("RELEASE SAVEPOINT a")
        other.commit()
    things.wait()
    things.assert_same("public.things")
    assert set(things.documents("things")) == {(1,), (2,), (4,), (5,)}


def test_many_statements_on_one_row_in_one_transaction(things: Ferry) -> None:
    things.transaction(
        "DELETE FROM things WHERE id = 1",
        f"INSERT INTO things VALUES (1, 'again', {BIG})",
        "UPDATE things SET name = 'and again' WHERE id = 1",
        "UPDATE things SET id = 11 WHERE id = 1",
        "UPDATE things SET name = 'at last' WHERE id = 11",
        "DELETE FROM things WHERE id = 2",
    )
    things.wait()
    things.assert_same("public.things")
    things.execute("INSERT INTO things VALUES (11, 'x', 'x') ON CONFLICT (id) DO UPDATE SET name = 'upserted'")
    things.execute(
        "MERGE INTO things USING (VALUES (11), (12)) AS v (id) ON things.id = v.id "
        "WHEN MATCHED THEN UPDATE SET name = 'merged' WHEN NOT MATCHED THEN INSERT VALUES (v.id, 'new', '')"
    )
    things.wait()
    things.assert_same("public.things")


@pytest.mark.parametrize("identity", ["DEFAULT", "FULL"])
def test_an_unchanged_large_value_stays(things: Ferry, identity: str) -> None:
    things.execute(
        f"ALTER TABLE things REPLICA IDENTITY {identity}",
        f"INSERT INTO things SELECT g, 'large', {BIG} || g FROM generate_series(10, 40) AS g",
    )
    things.wait()
    things.execute("UPDATE things SET name = 'still large' WHERE id BETWEEN 10 AND 20")
    things.execute("UPDATE things SET id = id + 100, name = 'moved' WHERE id BETWEEN 15 AND 30")
    things.execute("DELETE FROM things WHERE id IN (11, 118)")
    things.wait()
    things.assert_same("public.things")


def test_an_unchanged_large_value_stays_in_a_partition_that_logs_less_than_its_root(ferry: Ferry) -> None:
    """Its old rows say NULL for all but the key, and by the root's setting that reads as a value."""
    ferry.execute(
        "CREATE TABLE parts (id int, region text, doc text, PRIMARY KEY (id, region)) PARTITION BY LIST (region)",
        "CREATE TABLE parts_eu PARTITION OF parts FOR VALUES IN ('eu')",
        "ALTER TABLE parts REPLICA IDENTITY FULL",
        f"INSERT INTO parts VALUES (1, 'eu', {BIG}), (2, 'eu', NULL)",
    )
    ferry.begin("public.parts")
    ferry.execute("UPDATE parts SET id = id + 100")
    ferry.wait()
    ferry.assert_same("public.parts", key=("id", "region"))


def test_a_key_stored_out_of_line_stays(ferry: Ferry) -> None:
    """Then an UPDATE that leaves it alone carries it in the old row only."""
    keys = ["".join(random.Random(seed).choices(ascii_letters, k=size)) for seed, size in ((1, 2030), (2, 2100))]
    ferry.execute("CREATE TABLE things (id text, name text, doc text)", "ALTER TABLE things ADD PRIMARY KEY (id)")
    for key in keys:
        ferry.execute(f"INSERT INTO things VALUES ('{key}', 'a', {BIG})")
    assert ferry.query("SELECT pg_relation_size(reltoastrelid) > 0 FROM pg_class WHERE relname = 'things'") == [(True,)]
    ferry.begin("public.things")
    ferry.execute("UPDATE things SET name = 'b'")
    ferry.wait()
    items = ferry.documents("things")
    assert [(key, document["name"]) for key, document in items.items()] == [((keys[0],), "b")]
    with ferry.app() as app:
        # The other is longer than a key can be.
        assert [stored.letter.key["id"] for stored in app.dead_letters.find()] == [keys[1]]
    ferry.execute(
        f"UPDATE things SET id = 'short' WHERE id = '{keys[0]}'", f"DELETE FROM things WHERE id = '{keys[1]}'"
    )
    ferry.wait()
    ferry.assert_same("public.things")


def test_a_row_is_not_read_again_before_its_change_is_visible(things: Ferry) -> None:
    """A commit reaches the stream before other sessions see it; a synchronous standby stretches that as long as we
    like. Who read the row then would keep the old large value under the new version for good."""
    things.only_replication()
    things.execute(f"INSERT INTO things VALUES (10, 'old', {BIG})")
    things.wait()
    system = psycopg.connect(things.dsn, autocommit=True)
    other = psycopg.connect(things.dsn, autocommit=True)
    try:
        system.execute("SET synchronous_commit = local")
        system.execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
        system.execute("SELECT pg_reload_conf()")
        until(lambda: _setting(system, "synchronous_standby_names") == "nobody", "a standby is waited for")
        other.pgconn.send_query(b"UPDATE things SET name = 'new' WHERE id = 10")
        until(lambda: _waits_for_standby(system), "the commit waits for the standby")
        assert system.execute("SELECT name FROM things WHERE id = 10").fetchall() == [("old",)]
        # docferry must have the change by now, and must not act on the row as it is seen.
        until(lambda: system.execute(IN_FLIGHT).fetchall(), "docferry has the change")
        assert things.documents("things")[10,]["name"] == "old"
    finally:
        system.execute("ALTER SYSTEM RESET synchronous_standby_names")
        system.execute("SELECT pg_reload_conf()")
        until(lambda: _setting(system, "synchronous_standby_names") == "", "no standby is waited for")
        while (result := other.pgconn.get_result()) is not None:
            assert result.status == psycopg.pq.ExecStatus.COMMAND_OK, result.error_message
        other.close()
        system.close()
    things.wait()
    assert things.documents("things")[10,]["name"] == "new"
    things.assert_same("public.things")


def _setting(connection: psycopg.Connection, name: str) -> object:
    row = connection.execute("SELECT current_setting(%s)", [name]).fetchone()
    assert row is not None
    return row[0]


def _waits_for_standby(connection: psycopg.Connection) -> bool:
    return bool(connection.execute("SELECT FROM pg_stat_activity WHERE wait_event = 'SyncRep'").fetchall())
