"""The application changes its tables while they are mirrored."""

from __future__ import annotations

from contextlib import closing

import pytest

from docferry.document.model import Key
from docferry.errors import ConfigError, DocferryError, SourceRefused

from ..waiting import PATIENCE, until
from .harness import BY_BOTH, Ferry

CAPTURES = BY_BOTH

LARGE = "(SELECT string_agg(md5(g::text), '') FROM generate_series(1, 400) AS g)"


@pytest.fixture
def things(ferry: Ferry) -> Ferry:
    ferry.execute("CREATE TABLE things (id int PRIMARY KEY, name text, doc text)")
    ferry.execute(f"INSERT INTO things SELECT g, 'n' || g, {LARGE} FROM generate_series(1, 30) AS g")
    ferry.begin("public.things")
    return ferry


def converges(ferry: Ferry, table: str = "public.things") -> None:
    """Every item gets the table's columns: a backfill that the change of schema brings about sees to that."""

    def same() -> bool:
        ferry.wait()
        try:
            ferry.assert_same(table)
        except AssertionError:
            return False
        return True

    until(same, "the same rows at both ends", PATIENCE)


def test_a_renamed_primary_key_beside_an_index_of_another_consumer(database: str) -> None:
    """By triggers, nothing depends on the replica identity."""
    with closing(Ferry(database, "outbox")) as ferry:
        ferry.execute(
            "CREATE TABLE things (id int PRIMARY KEY, other uuid NOT NULL UNIQUE, name text, doc text)",
            "ALTER TABLE things REPLICA IDENTITY USING INDEX things_other_key",
            f"INSERT INTO things SELECT g, gen_random_uuid(), 'n' || g, {LARGE} FROM generate_series(1, 9) AS g",
        )
        ferry.begin("public.things")
        ferry.execute(
            "ALTER TABLE things RENAME COLUMN id TO number",
            "UPDATE things SET name = 'x' WHERE number = 2",
            f"UPDATE things SET number = 70, doc = {LARGE} || 'x' WHERE number = 3",
        )
        until(lambda: _names(ferry) == _keyed(ferry, "number"), "the same rows at both ends")
        ferry.stop()


@pytest.mark.parametrize("with_a_write", [True, False])
@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE things ADD COLUMN extra int NOT NULL DEFAULT 7",
        "ALTER TABLE things ADD COLUMN extra text",
        "ALTER TABLE things DROP COLUMN name",
        "ALTER TABLE things RENAME COLUMN name TO title",
        "ALTER TABLE things ALTER COLUMN name TYPE int USING length(name)",
        "ALTER TABLE things DROP COLUMN doc, ADD COLUMN doc int DEFAULT 5",
    ],
)
def test_columns_come_go_and_change(things: Ferry, change: str, *, with_a_write: bool) -> None:
    things.execute("UPDATE things SET id = id + 1000 WHERE id % 7 = 0")
    if with_a_write:
        things.transaction(change, "UPDATE things SET id = id + 2000 WHERE id % 5 = 0")
        things.execute("DELETE FROM things WHERE id = 3", "INSERT INTO things (id) VALUES (500)")
    else:
        things.execute(change)
    converges(things)


def test_a_column_changes_in_the_midst_of_many_reads_again(things: Ferry) -> None:
    """Statements that read rows have long been prepared by then."""
    for number in range(12):
        things.execute(f"UPDATE things SET name = 'a{number}' WHERE id = 1")
        things.wait()
    things.execute("ALTER TABLE things ADD COLUMN extra int DEFAULT 7")
    for number in range(12):
        things.execute(f"UPDATE things SET name = 'b{number}' WHERE id = 1")
        things.wait()
    things.execute("ALTER TABLE things ALTER COLUMN name TYPE varchar(20)")
    things.execute("UPDATE things SET name = 'c' WHERE id = 1")
    things.wait()
    converges(things)


def test_a_key_column_is_renamed(things: Ferry) -> None:
    """The items' key keeps the name that it was given."""
    things.execute("UPDATE things SET name = 'before' WHERE id = 1")
    things.execute("ALTER TABLE things RENAME COLUMN id TO number")
    things.execute(
        "UPDATE things SET name = 'after' WHERE number = 2",
        "UPDATE things SET number = 103 WHERE number = 3",
        "DELETE FROM things WHERE number = 4",
        "INSERT INTO things VALUES (100, 'new', 'x')",
    )

    def same() -> bool:
        expected = {(row["number"],): {**row, "id": row["number"]} for row in things.rows("public.things")}
        return _documents(things, "things") == expected

    until(same, "the same rows at both ends")


def _keyed(ferry: Ferry, *names: str) -> dict[Key, object]:
    """The rows' names by these columns."""
    return {tuple(row[name] for name in names): row["name"] for row in ferry.rows("public.things")}


def _names(ferry: Ferry) -> dict[Key, object]:
    items = ferry.target.scan(ferry.target._collections["things"].collection)
    return {item.key: item.document["name"] for item in items if item.document is not None}


def test_one_of_two_key_columns_is_renamed(ferry: Ferry) -> None:
    """The primary key has them in another order than the table."""
    ferry.execute(
        "CREATE TABLE things (id int, tenant int, name text, doc text, PRIMARY KEY (tenant, id))",
        f"INSERT INTO things SELECT g, g + 100, 'n' || g, {LARGE} FROM generate_series(1, 9) AS g",
    )
    ferry.begin("public.things")
    ferry.execute(
        "ALTER TABLE things RENAME COLUMN tenant TO org",
        "UPDATE things SET name = 'x' WHERE id = 2",
        "UPDATE things SET org = 7 WHERE id = 3",
        "DELETE FROM things WHERE id = 4",
    )
    until(lambda: _names(ferry) == _keyed(ferry, "org", "id"), "the same rows at both ends")
    with ferry.app() as app:
        until(lambda: not app.ledger.backfills(unfinished_only=True), "the table was read again")
    assert _names(ferry) == _keyed(ferry, "org", "id")
    ferry.stop()


def test_a_renamed_key_that_is_not_the_primary_key(ferry: Ferry) -> None:
    ferry.execute(
        "CREATE TABLE things (id int PRIMARY KEY, code int NOT NULL, name text, doc text)",
        "CREATE UNIQUE INDEX codes ON things (code)",
        "ALTER TABLE things REPLICA IDENTITY USING INDEX codes",
        f"INSERT INTO things SELECT g, g + 100, 'n' || g, {LARGE} FROM generate_series(1, 9) AS g",
    )
    ferry.mirror("public.things", key=("code",))
    ferry.apply()
    ferry.start()
    ferry.wait()
    ferry.execute(
        "ALTER TABLE things RENAME COLUMN code TO sku",
        "UPDATE things SET name = 'x' WHERE id = 2",
        "UPDATE things SET sku = 7 WHERE id = 3",
    )
    until(lambda: _names(ferry) == _keyed(ferry, "sku"), "the same rows at both ends")
    with ferry.app() as app:
        until(lambda: not app.ledger.backfills(unfinished_only=True), "the table was read again")
    assert _names(ferry) == _keyed(ferry, "sku")
    ferry.stop()


@pytest.mark.parametrize("with_a_write", [True, False])
@pytest.mark.parametrize(
    ("table", "key", "change"),
    [
        (
            "(id int, tenant int, name text, PRIMARY KEY (tenant, id))",
            ("tenant", "id"),
            ("ALTER TABLE things RENAME tenant TO org", "ALTER TABLE things RENAME id TO number"),
        ),
        (
            "(id int PRIMARY KEY, tenant int NOT NULL UNIQUE, name text)",
            ("tenant",),
            ("ALTER TABLE things RENAME tenant TO org",),
        ),
        (
            "(id int PRIMARY KEY, tenant int NOT NULL UNIQUE, name text)",
            ("tenant",),
            ("ALTER TABLE things DROP tenant",),
        ),
    ],
    ids=["both", "one that nothing tells apart", "dropped"],
)
def test_a_key_that_nobody_can_find_again_changes_no_item(
    ferry: Ferry, table: str, key: tuple[str, ...], change: tuple[str, ...], *, with_a_write: bool
) -> None:
    """Least of all is another column taken for it."""
    if "DROP" in change[0]:
        ferry.only_replication()  # triggers on a column keep it
    ferry.execute(
        f"CREATE TABLE things {table}",
        "ALTER TABLE things REPLICA IDENTITY FULL",
        "INSERT INTO things SELECT g, g + 100, 'n' || g FROM generate_series(1, 9) AS g",
    )
    ferry.mirror("public.things", key=key)
    ferry.apply()
    ferry.start()
    ferry.wait()
    before = _names(ferry)
    ferry.transaction(*change, *(["UPDATE things SET name = 'x'"] if with_a_write else []))
    error = ferry.failure()
    assert isinstance(error, ConfigError)
    assert "docferry apply" in error.remedy
    assert _names(ferry) == before


def test_a_generated_column_becomes_an_ordinary_one(ferry: Ferry) -> None:
    """Rows that are read again after that carry it as well."""
    ferry.execute(
        "CREATE TABLE things (id int PRIMARY KEY, n int, g int GENERATED ALWAYS AS (n * 2) STORED, name text)",
        "ALTER TABLE things ADD doc text",
        f"INSERT INTO things (id, n, name, doc) SELECT g, g, 'n' || g, {LARGE} FROM generate_series(1, 3) AS g",
    )
    ferry.begin("public.things")
    ferry.execute("UPDATE things SET name = 'x' WHERE id = 1")
    ferry.wait()
    ferry.execute("ALTER TABLE things ALTER g DROP EXPRESSION")
    converges(ferry)
    ferry.execute("UPDATE things SET name = 'y' WHERE id = 1")
    ferry.wait()
    ferry.assert_same("public.things")


def test_a_key_of_a_wider_type_is_read_again(things: Ferry) -> None:
    things.only_replication()  # triggers on a column keep its type
    things.execute("UPDATE things SET name = 'x' WHERE id = 1")
    things.wait()
    things.execute("ALTER TABLE things ALTER id TYPE bigint")
    things.execute(f"INSERT INTO things VALUES (3000000000, 'big', {LARGE})")
    things.execute("UPDATE things SET name = 'y' WHERE id = 3000000000")
    things.wait()
    converges(things)


@pytest.mark.parametrize("change", ["ADD ATTRIBUTE c int", "DROP ATTRIBUTE b", "RENAME ATTRIBUTE b TO c"])
def test_a_composite_type_is_altered(ferry: Ferry, change: str) -> None:
    """No change tells of it. Rows that change before it is noticed are no dead letters, and those that change
    afterwards have its new attributes."""
    ferry.execute(
        "CREATE TYPE pair AS (a int, b text)",
        "CREATE TABLE others (id int PRIMARY KEY, p pair)",
        "CREATE TABLE things (id int PRIMARY KEY, p pair, name text)",
        "INSERT INTO things SELECT g, ROW(g, 'x')::pair, 'n' FROM generate_series(1, 3) AS g",
    )
    ferry.begin("public.others", "public.things")
    ferry.execute("UPDATE things SET name = 'm' WHERE id = 1")
    ferry.wait()
    ferry.execute(f"ALTER TYPE pair {change}")
    for number in range(5):
        ferry.execute(f"UPDATE things SET name = 'later {number}' WHERE id = 2")
        ferry.wait()
    shown = {"ADD": ("a", "b", "c"), "DROP": ("a",), "RENAME": ("a", "c")}[change.split()[0]]

    def same() -> bool:
        ferry.wait()
        rows = ferry.query("SELECT id, to_jsonb(p), name FROM things")
        documents = ferry.documents("public.things").values()
        found = {document["id"]: (document["p"], document["name"]) for document in documents}
        return found == {id_: (p, name) for id_, p, name in rows} and all(set(p) == set(shown) for _, p, _ in rows)

    until(same, "the same rows at both ends")
    ferry.execute("UPDATE things SET name = 'last'")
    ferry.wait()
    assert same()
    with ferry.app() as app:
        assert not app.dead_letters.count()
    ferry.stop()


@pytest.mark.parametrize("statement", ["ALTER TABLE things RENAME TO items", "ALTER TABLE things SET SCHEMA elsewhere"])
@pytest.mark.parametrize("write", ["INSERT INTO {} (id) VALUES (99)", "UPDATE {} SET name = 'x' WHERE id = 1", None])
def test_a_renamed_table_stops_the_worker(things: Ferry, statement: str, write: str | None) -> None:
    name = "public.items" if "items" in statement else "elsewhere.things"
    things.execute("CREATE SCHEMA elsewhere", statement)
    if write is not None:
        things.execute(write.format(name))
    error = things.failure()
    assert isinstance(error, SourceRefused)
    assert f"is now called {name}" in str(error)
    assert f'table = "{name}"' in error.remedy


def test_a_renamed_table_goes_on_under_its_new_name(things: Ferry) -> None:
    things.execute("ALTER TABLE things RENAME TO items", "INSERT INTO items VALUES (99, 'new', 'x')")
    assert isinstance(things.failure(), SourceRefused)
    things.mirrors.clear()
    things.mirror("public.items")
    things.apply()
    things.start()
    things.wait()
    things.assert_same("public.items")
    things.execute("DELETE FROM items WHERE id = 99")
    things.wait()
    things.assert_same("public.items")


def test_a_dropped_table_stops_nothing_else(things: Ferry) -> None:
    things.execute("CREATE TABLE others (id int PRIMARY KEY)")
    things.stop()
    things.mirror("public.others")
    things.apply()
    things.start()
    things.wait()
    things.execute("UPDATE things SET name = 'in doubt' WHERE id = 1", "DROP TABLE things")
    things.execute("INSERT INTO others VALUES (1)")
    until(lambda: (1,) in _documents(things, "others"), "the other table is mirrored")


def _documents(ferry: Ferry, collection: str) -> dict[Key, object]:
    """Without a look at the table, which may not be what the configuration says any more."""
    items = ferry.target.scan(ferry.target._collections[collection].collection)
    return {item.key: item.document for item in items if item.document is not None}


@pytest.mark.parametrize("running", [True, False])
def test_a_table_that_was_dropped_and_created_again_is_not_lost_silently(things: Ferry, *, running: bool) -> None:
    """The new one is not in the publication, although it has the name of the old one."""
    if not running:
        things.stop()
    things.execute(
        "DROP TABLE things",
        "CREATE TABLE things (id int PRIMARY KEY, name text, doc text)",
        "INSERT INTO things VALUES (1, 'another', 'x'), (77, 'new', 'y')",
    )
    error: BaseException = things.failure() if running else things.failed_start()
    assert isinstance(error, DocferryError)
    assert "docferry apply" in error.remedy
    things.apply()
    things.start()
    things.wait()
    things.assert_same("public.things")
    things.execute("UPDATE things SET name = 'seen' WHERE id = 77")
    things.wait()
    things.assert_same("public.things")


def test_a_publication_that_is_gone_is_noticed(things: Ferry) -> None:
    things.only_replication()
    things.execute(f"DROP PUBLICATION {things.slot}", "UPDATE things SET name = 'unseen' WHERE id = 1")
    error = things.failure()
    assert isinstance(error, DocferryError)
    assert "docferry apply" in error.remedy
    things.apply()
    things.start()
    things.wait()
    things.assert_same("public.things")


def test_a_publication_that_was_gone_between_two_runs_is_noticed(things: Ferry) -> None:
    things.only_replication()
    things.stop()
    things.execute(f"DROP PUBLICATION {things.slot}", "UPDATE things SET name = 'unseen' WHERE id = 1")
    error = things.failed_start()
    assert isinstance(error, DocferryError)
    assert "docferry apply" in error.remedy
    things.apply()
    things.start()
    things.wait()
    things.assert_same("public.things")
