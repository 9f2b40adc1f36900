"""Cases that a review found to go wrong: the order of commits, changes that no row tells of, rows in doubt."""

from __future__ import annotations

import random
import re
import string
from collections.abc import Sequence

import psycopg
import pytest

from docferry.config import RunConfig
from docferry.document.model import Put, Write
from docferry.errors import ConfigError, DocferryError, HistoryChanged
from docferry.target.contract import Result
from docferry.target.memory import MemoryTarget

from ..waiting import until
from .harness import Ferry


def converges(ferry: Ferry, *tables: str, key: Sequence[str] = ("id",)) -> None:
    """Both ends become the same, by a backfill if need be."""

    def same() -> bool:
        ferry.wait()
        try:
            ferry.assert_same(*tables, key=key)
        except AssertionError:
            return False
        return True

    until(same, "the same rows at both ends")


# -- the order of commits ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("apart", [True, False])
def test_an_insert_logged_before_the_delete_that_made_room_for_it(ferry: Ferry, *, apart: bool) -> None:
    """The INSERT waits at the index that is checked first, its row already logged, while the DELETE commits."""
    ferry.execute(
        "CREATE TABLE things (id int NOT NULL, u int, name text, CONSTRAINT first UNIQUE (u))",
        "ALTER TABLE things ADD PRIMARY KEY (id)",
        "INSERT INTO things VALUES (5, 100, 'old')",
    )
    ferry.begin("public.things")
    with ferry.another() as blocking, ferry.another() as other:
        blocking.execute("INSERT INTO things VALUES (1, 1, 'never')")
        other.execute("BEGIN")
        other.pgconn.send_query(b"INSERT INTO things VALUES (5, 1, 'new')")
        pid = other.info.backend_pid
        until(
            lambda: ferry.query("SELECT FROM pg_stat_activity WHERE pid = %s AND wait_event_type = 'Lock'", pid),
            "the INSERT waits",
        )
        ferry.execute("DELETE FROM things WHERE id = 5")
        if apart:
            ferry.wait()
            assert ferry.documents("things") == {}
        blocking.rollback()
        while (result := other.pgconn.get_result()) is not None:
            assert result.status == psycopg.pq.ExecStatus.COMMAND_OK, result.error_message
        other.commit()
    ferry.wait()
    ferry.assert_same("public.things")
    assert ferry.documents("things") == {(5,): {"id": 5, "u": 1, "name": "new"}}


# -- changes that no row tells of --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statement", "left"),
    [
        ("TRUNCATE parts_eu", 10),
        ("ALTER TABLE parts DETACH PARTITION parts_eu", 10),
        ("DROP TABLE parts_eu", 10),
        ("ALTER TABLE parts ATTACH PARTITION parts_ap FOR VALUES IN ('ap')", 30),
        ("TRUNCATE parts_us_1", 10),
    ],
)
def test_partitions_come_go_and_are_emptied(ferry: Ferry, statement: str, left: int) -> None:
    ferry.execute(
        "CREATE TABLE parts (id int, region text, name text, PRIMARY KEY (id, region)) PARTITION BY LIST (region)",
        "CREATE TABLE parts_eu PARTITION OF parts FOR VALUES IN ('eu')",
        "CREATE TABLE parts_us PARTITION OF parts FOR VALUES IN ('us') PARTITION BY RANGE (id)",
        "CREATE TABLE parts_us_1 PARTITION OF parts_us FOR VALUES FROM (0) TO (100)",
        "CREATE TABLE parts_ap (LIKE parts)",
        "INSERT INTO parts SELECT g, 'eu', 'n' || g FROM generate_series(1, 10) AS g",
        "INSERT INTO parts SELECT g, 'us', 'n' || g FROM generate_series(11, 20) AS g",
        "INSERT INTO parts_ap SELECT g, 'ap', 'n' || g FROM generate_series(21, 30) AS g",
    )
    ferry.begin("public.parts")
    assert len(ferry.documents("parts")) == 20
    ferry.execute(statement)
    converges(ferry, "public.parts", key=("id", "region"))
    assert len(ferry.documents("parts")) == left
    ferry.execute("INSERT INTO parts VALUES (50, 'us', 'fifty')")
    ferry.wait()
    ferry.assert_same("public.parts", key=("id", "region"))


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE things ALTER COLUMN amount TYPE numeric(10, 1)",
        "ALTER TABLE things DROP COLUMN name, ADD COLUMN name text DEFAULT 'another'",
        "ALTER TYPE mood RENAME VALUE 'glad' TO 'happy'",
    ],
)
def test_rows_change_without_a_change(ferry: Ferry, change: str) -> None:
    ferry.execute(
        "CREATE TYPE mood AS ENUM ('glad', 'sad')",
        "CREATE DOMAIN temper AS mood",
        "CREATE TABLE things (id int PRIMARY KEY, name text DEFAULT 'one', amount numeric(10, 2), m mood, t temper)",
        "INSERT INTO things (id, amount, m, t) SELECT g, g + 0.26, 'glad', 'glad' FROM generate_series(1, 20) AS g",
    )
    ferry.begin("public.things")
    ferry.assert_same("public.things")
    ferry.execute(change)
    converges(ferry, "public.things")


def test_an_attribute_of_a_composite_type_is_renamed(ferry: Ferry) -> None:
    ferry.execute(
        "CREATE TYPE pair AS (a int, b text)",
        "CREATE TABLE things (id int PRIMARY KEY, p pair, ps pair[])",
        "INSERT INTO things SELECT g, ROW(g, 'x')::pair, ARRAY[ROW(g, 'y')::pair] FROM generate_series(1, 5) AS g",
    )
    ferry.begin("public.things")
    assert ferry.documents("things")[1,] == {"id": 1, "p": {"a": 1, "b": "x"}, "ps": [{"a": 1, "b": "y"}]}
    ferry.execute("ALTER TYPE pair RENAME ATTRIBUTE b TO c")
    expected = {"id": 1, "p": {"a": 1, "c": "x"}, "ps": [{"a": 1, "c": "y"}]}
    until(lambda: ferry.documents("things")[1,] == expected, "the items have the new name")


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM things WHERE id = 3",
        "UPDATE things SET id = 103 WHERE id = 3",
        "UPDATE things SET id = 103, code = 'other' WHERE id = 3",
    ],
)
def test_changes_that_came_without_their_key(ferry: Ferry, statement: str) -> None:
    """The replica identity was another index for a while."""
    ferry.execute(
        "CREATE TABLE things (id int PRIMARY KEY, code text NOT NULL CONSTRAINT codes UNIQUE, name text)",
        "INSERT INTO things SELECT g, 'c' || g, 'n' || g FROM generate_series(1, 10) AS g",
    )
    ferry.begin("public.things")
    ferry.execute("ALTER TABLE things REPLICA IDENTITY USING INDEX codes", statement)
    ferry.execute("ALTER TABLE things REPLICA IDENTITY DEFAULT", "UPDATE things SET name = 'later' WHERE id = 4")
    converges(ferry, "public.things")
    ferry.execute("DELETE FROM things WHERE id = 5", "UPDATE things SET id = 106 WHERE id = 6")
    ferry.wait()
    ferry.assert_same("public.things")
    ferry.stop()


# -- rows in doubt -----------------------------------------------------------------------------------------------------


class Sizes(MemoryTarget):
    """Remembers how many large values each request carried."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[int] = []

    def write(self, writes: Sequence[Write]) -> list[Result]:
        puts = [write for write in writes if isinstance(write, Put)]
        self.requests.append(sum(len(str(put.document.get("doc"))) > 100_000 for put in puts))
        return super().write(writes)


def test_many_large_rows_in_doubt_are_settled_in_pieces(ferry: Ferry) -> None:
    ferry.target = target = Sizes()
    ferry.execute(
        "CREATE TABLE things (id int PRIMARY KEY, name text, doc text)",
        "ALTER TABLE things ALTER doc SET STORAGE EXTERNAL",
        "INSERT INTO things SELECT g, 'old', repeat(chr(64 + g % 26), 300000) FROM generate_series(1, 60) AS g",
    )
    ferry.begin("public.things")
    target.requests.clear()
    ferry.execute("UPDATE things SET name = 'new'")
    ferry.wait()
    ferry.assert_same("public.things")
    assert sum(target.requests) == 60
    # 2 MiB hold seven of them; an eighth may begin within.
    assert max(target.requests) <= 8


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("streamed", [True, False])
def test_a_key_too_long_for_the_target_stops_nothing(ferry: Ferry, *, streamed: bool) -> None:
    """Nor is it too long for the index of the dead letters."""
    rng = random.Random(1)
    keys = ["".join(rng.choices(string.ascii_letters + string.digits, k=2690)) for _ in range(2)]
    ferry.run = RunConfig(backfill_page=1)
    ferry.execute("CREATE TABLE things (id text PRIMARY KEY, name text)", "INSERT INTO things VALUES ('a', 'a')")
    if streamed:
        ferry.begin("public.things")
    with ferry.connection.cursor() as cursor:
        cursor.executemany("INSERT INTO things VALUES (%s, 'long')", [[key] for key in keys])
    ferry.execute("INSERT INTO things VALUES ('zz', 'z')")
    if not streamed:
        ferry.begin("public.things")
    ferry.wait()
    assert set(ferry.documents("things")) == {("a",), ("zz",)}
    with ferry.app() as app:
        assert {stored.letter.key["id"] for stored in app.dead_letters.find()} == set(keys)
    ferry.execute("DELETE FROM things WHERE name = 'long'", "UPDATE things SET name = 'b' WHERE id = 'zz'")
    ferry.wait()
    ferry.assert_same("public.things")
    ferry.stop()


def refusal(ferry: Ferry) -> str:
    with pytest.raises(DocferryError) as refused:
        ferry.apply()
    assert refused.value.remedy
    assert not ferry.query("SELECT FROM pg_replication_slots WHERE slot_name = %s", ferry.slot)
    return str(refused.value)


def test_a_key_of_an_extension_s_type_is_refused(ferry: Ferry) -> None:
    if not ferry.query("SELECT FROM pg_available_extensions WHERE name = 'citext'"):
        pytest.skip("this server does not have citext")
    ferry.execute(
        "CREATE EXTENSION citext",
        "CREATE DOMAIN code AS citext",
        "CREATE TABLE things (id citext PRIMARY KEY)",
        "CREATE TABLE others (id code PRIMARY KEY)",
    )
    ferry.mirror("public.things", "public.others")
    problem = refusal(ferry)
    assert "id of public.things is of an extension's type" in problem
    assert "id of public.others is of an extension's type" in problem


def test_a_table_with_children_is_refused(ferry: Ferry) -> None:
    ferry.execute("CREATE TABLE things (id int PRIMARY KEY)", "CREATE TABLE special (extra int) INHERITS (things)")
    ferry.mirror("public.things")
    assert "inherit" in refusal(ferry)


@pytest.mark.parametrize(
    ("key", "identities"),
    [
        ("UNIQUE (id, region)", ["parts USING INDEX parts_id_region_key"]),
        ("UNIQUE (id, region)", ["parts FULL"]),
        ("PRIMARY KEY (name, region), UNIQUE (id, region)", ["parts USING INDEX parts_id_region_key"]),
        ("PRIMARY KEY (id, region)", ["parts_eu NOTHING", "parts_us_1 NOTHING"]),
    ],
)
def test_partitions_that_do_not_log_the_key_are_refused(ferry: Ferry, key: str, identities: list[str]) -> None:
    """What is said of the root does not reach them. Published, they would refuse the application's own UPDATE."""
    ferry.execute(
        f"CREATE TABLE parts (id int NOT NULL, region text NOT NULL, name text, {key}) PARTITION BY LIST (region)",
        "CREATE TABLE parts_eu PARTITION OF parts FOR VALUES IN ('eu')",
        "CREATE TABLE parts_us PARTITION OF parts FOR VALUES IN ('us') PARTITION BY LIST (region)",
        "CREATE TABLE parts_us_1 PARTITION OF parts_us FOR VALUES IN ('us')",
        "INSERT INTO parts VALUES (1, 'eu', 'one'), (2, 'us', 'two')",
    )
    for identity in identities:
        table, _, setting = identity.partition(" ")
        ferry.execute(f"ALTER TABLE {table} REPLICA IDENTITY {setting}")
    ferry.mirror("public.parts", key=("id", "region"))
    with pytest.raises(ConfigError) as refused:
        ferry.apply()
    problems = f"{refused.value} {refused.value.remedy}"
    statements = re.findall(r"ALTER TABLE public\.parts_\w+ REPLICA IDENTITY [\w ]+", problems)
    assert [statement.split()[2] for statement in statements] == ["public.parts_eu", "public.parts_us_1"]
    # What the remedy says is enough.
    ferry.execute(*statements)
    ferry.apply()
    ferry.start()
    ferry.wait()
    ferry.execute("UPDATE parts SET id = id + 10, name = 'moved'", "DELETE FROM parts WHERE region = 'us'")
    ferry.wait()
    ferry.assert_same("public.parts", key=("id", "region"))


@pytest.mark.parametrize("partition", ["parts_eu", "parts_us", "parts_us_1"])
def test_a_partition_beside_its_root_is_refused(ferry: Ferry, partition: str) -> None:
    """What happens in it is published as the root's: its own collection would stand still."""
    ferry.execute(
        "CREATE TABLE parts (id int, region text, name text, PRIMARY KEY (id, region)) PARTITION BY LIST (region)",
        "CREATE TABLE parts_eu PARTITION OF parts FOR VALUES IN ('eu')",
        "CREATE TABLE parts_us PARTITION OF parts FOR VALUES IN ('us') PARTITION BY RANGE (id)",
        "CREATE TABLE parts_us_1 PARTITION OF parts_us FOR VALUES FROM (0) TO (100)",
    )
    ferry.mirror(f"public.{partition}", "public.parts")
    assert f"public.{partition} is a partition of public.parts, which is mirrored too" in refusal(ferry)
    del ferry.mirrors[1]
    ferry.apply()


def test_a_mirrored_table_becomes_a_partition_of_another(ferry: Ferry) -> None:
    ferry.execute(
        "CREATE TABLE parts (id int, region text, name text, PRIMARY KEY (id, region)) PARTITION BY LIST (region)",
        "CREATE TABLE others (LIKE parts INCLUDING INDEXES)",
    )
    ferry.begin("public.parts", "public.others")
    ferry.execute("ALTER TABLE parts ATTACH PARTITION others FOR VALUES IN ('eu')")
    failure = ferry.failure()
    assert isinstance(failure, HistoryChanged)
    assert "changes of public.others are not captured" in str(failure)
    with pytest.raises(ConfigError, match="others is a partition of"):
        ferry.apply()


@pytest.mark.parametrize(
    "narrowed",
    [
        "SET (publish = 'insert')",
        "SET (publish_via_partition_root = false)",
        "SET TABLE things WHERE (id > 1)",
        "SET TABLE things (id)",
    ],
)
def test_a_publication_that_is_narrowed_is_noticed(ferry: Ferry, narrowed: str) -> None:
    if "TABLE" in narrowed and ferry.connection.info.server_version < 150000:
        pytest.skip("before PostgreSQL 15 a table is published whole")
    ferry.execute("CREATE TABLE things (id int PRIMARY KEY, name text)", "INSERT INTO things VALUES (1, 'a'), (2, 'b')")
    ferry.begin("public.things")
    ferry.execute(f"ALTER PUBLICATION {ferry.slot} {narrowed}")
    assert isinstance(ferry.failure(), HistoryChanged)
    # Asked for at once: whoever widens it by hand leaves nothing to see.
    assert "changes were not captured" in {one.reason for one in ferry.backfills()}
    ferry.execute("UPDATE things SET name = 'unseen' WHERE id = 1", "DELETE FROM things WHERE id = 2")
    with ferry.app() as app:
        assert any(f"publication {ferry.slot}" in step for step in app.admin().steps())
    ferry.apply()
    with ferry.app() as app:
        assert app.admin().steps() == []
    ferry.start()
    ferry.wait()
    ferry.assert_same("public.things")


@pytest.mark.parametrize("part", ["WHERE (id > 0)", "(id)"])
def test_a_publication_of_parts_is_refused(ferry: Ferry, part: str) -> None:
    if ferry.connection.info.server_version < 150000:
        pytest.skip("before PostgreSQL 15 a table is published whole")
    ferry.execute("CREATE TABLE things (id int PRIMARY KEY, name text)")
    ferry.execute(f"CREATE PUBLICATION {ferry.slot} FOR TABLE things {part}")
    ferry.mirror("public.things")
    assert "leaves out rows or columns of public.things" in refusal(ferry)
