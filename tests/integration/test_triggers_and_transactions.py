"""What the triggers record, and send, of transactions that are not plain: nested statements, savepoints, old snapshots,
strict isolation, rows of any size, renamed keys."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from docferry.capture.transactions import PostgresTransactions
from docferry.capture.trigger_setup import TriggerSetup
from docferry.change.model import UNCHANGED, Change, Op
from docferry.embedded.aws_lambda import LambdaGateway, install_standin

from .harness import Ferry
from .road import Listener, Road
from .test_outbox import Outbox, old_of, row_of


@pytest.fixture
def outbox(database: str) -> Iterator[Outbox]:
    made = Outbox(database)
    yield made
    made.close()


@pytest.fixture
def road(database: str) -> Iterator[Road]:
    listener = Listener()
    with LambdaGateway(listener.url) as gateway:
        install_standin(database, gateway)
        made = Road(database, gateway, listener)
        try:
            yield made
        finally:
            made.app.close()
            listener.close()


class Source:
    """An application with triggers of either mode, and what they recorded or sent."""

    def __init__(self, made: Outbox | Road) -> None:
        self._made = made
        self.dsn = made.dsn
        self.app = made.app

    def mirror(self, table: str, *key: str, **settings: Any) -> TriggerSetup:
        return self._made.mirror(table, *key, **settings)

    def changes(self) -> list[Change]:
        return self._made.changes() if isinstance(self._made, Outbox) else self._made.sent()


@pytest.fixture(params=["outbox", "lambda", "lambda, not deferred"])
def source(request: pytest.FixtureRequest) -> Source:
    made = Source(request.getfixturevalue("outbox" if request.param == "outbox" else "road"))
    made.app.execute("CREATE TABLE things (id int PRIMARY KEY, name text)")
    settings = {"deferred": False} if request.param == "lambda, not deferred" else {}
    made.mirror("public.things", "id", **settings)
    return made


def last_words(changes: list[Change]) -> dict[bytes, Any]:
    """Of each key: its name, None for deleted, "read" when the current row decides."""
    found: dict[bytes, Any] = {}
    for change in sorted(changes, key=lambda one: one.version):
        row = row_of(change) if change.row is not None else old_of(change)
        if change.row is None:
            found[row["id"]] = None
        else:
            found[row["id"]] = "read" if change.partial else row["name"].decode()
        if change.op is Op.UPDATE and change.old is not None and old_of(change)["id"] != row["id"]:
            found[old_of(change)["id"]] = "read"
    return found


def trigger(when: str, body: str) -> bytes:
    return (
        f"CREATE FUNCTION inner_one() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body}; RETURN NEW; END $$;"
        f"CREATE TRIGGER archive {when} ON things FOR EACH ROW EXECUTE FUNCTION inner_one()"
    ).encode()


# -- statements within statements -------------------------------------------------------------------------------------


def test_a_trigger_that_changes_the_row_which_it_is_called_for(source: Source) -> None:
    """Its change is recorded first, and is the later one."""
    source.app.execute(trigger("AFTER INSERT", "UPDATE things SET name = 'inner' WHERE id = NEW.id"))
    source.app.execute("INSERT INTO things VALUES (1, 'outer')")
    assert last_words(source.changes())[b"1"] in ("read", "inner")


def test_a_trigger_that_brings_a_deleted_row_back(source: Source) -> None:
    source.app.execute("INSERT INTO things VALUES (1, 'outer')")
    source.app.execute(trigger("AFTER DELETE", "INSERT INTO things VALUES (OLD.id, 'kept')"))
    source.app.execute("DELETE FROM things")
    assert last_words(source.changes())[b"1"] in ("read", "kept")


def test_a_trigger_that_deletes_the_row_which_it_is_called_for(source: Source) -> None:
    source.app.execute(trigger("AFTER INSERT", "DELETE FROM things WHERE id = NEW.id"))
    source.app.execute("INSERT INTO things VALUES (1, 'outer')")
    assert last_words(source.changes())[b"1"] in ("read", None)


def test_a_trigger_that_changes_other_rows_of_the_statement(source: Source) -> None:
    body = "IF NEW.name = 'default' THEN UPDATE things SET name = 'other' WHERE id <> NEW.id; END IF"
    source.app.execute(trigger("BEFORE INSERT", body))
    source.app.execute("INSERT INTO things VALUES (1, 'default'), (2, 'default')")
    found = last_words(source.changes())
    assert found[b"1"] in ("read", "other")
    assert found[b"2"] == "default"


def test_a_trigger_that_moves_a_row_whose_key_changed(source: Source) -> None:
    source.app.execute("INSERT INTO things VALUES (1, 'x')")
    body = "IF NEW.id = 2 THEN UPDATE things SET id = 3 WHERE id = 2; INSERT INTO things VALUES (1, 'new'); END IF"
    source.app.execute(trigger("AFTER UPDATE", body))
    source.app.execute("UPDATE things SET id = 2")
    found = last_words(source.changes())
    assert found[b"1"] in ("read", "new")
    assert found[b"2"] in ("read", None)
    assert found[b"3"] in ("read", "x")


def test_rows_that_are_locked_or_changed_again_go_whole_where_no_statement_is_nested(source: Source) -> None:
    """What looks like a replaced row is one only if a nested statement was there. Most applications lock and change,
    and what is read again costs the source a read or, where the function cannot read, is a dead letter."""
    source.app.execute("CREATE TABLE parts (thing int REFERENCES things)")
    with source.app.transaction():
        source.app.execute("INSERT INTO things VALUES (1, 'one'), (2, 'two')")
        source.app.execute("INSERT INTO parts VALUES (1), (1)")
    with source.app.transaction():
        source.app.execute("SELECT FROM things WHERE id = 2 FOR UPDATE")
        source.app.execute("UPDATE things SET name = 'changed' WHERE id = 2")
        source.app.execute("UPDATE things SET name = 'again' WHERE id = 2")
    with source.app.transaction():
        source.app.execute("INSERT INTO things VALUES (3, 'three')")
        source.app.execute("DELETE FROM things WHERE id = 2")
    changes = source.changes()
    assert not any(change.partial for change in changes)
    assert last_words(changes) == {b"1": "one", b"2": None, b"3": "three"}


def test_rows_that_a_cascade_deletes_go_whole(source: Source) -> None:
    source.app.execute("CREATE TABLE owners (id int PRIMARY KEY); INSERT INTO owners VALUES (1)")
    source.app.execute("ALTER TABLE things ADD owner int DEFAULT 1 REFERENCES owners ON DELETE CASCADE")
    source.app.execute("INSERT INTO things VALUES (1, 'one'), (2, 'two')")
    source.app.execute("DELETE FROM owners")
    deleted = [change for change in source.changes() if change.op is Op.DELETE]
    assert sorted(old_of(change)["id"] for change in deleted) == [b"1", b"2"]
    assert not any(change.partial for change in deleted)


def test_items_follow_nested_statements(database: str) -> None:
    ferry = Ferry(database, "outbox")
    try:
        ferry.execute("CREATE TABLE things (id int PRIMARY KEY, name text)")
        ferry.begin("public.things")
        ferry.connection.execute(
            trigger(
                "AFTER INSERT OR UPDATE OR DELETE",
                "IF TG_OP = 'DELETE' THEN INSERT INTO things VALUES (OLD.id, 'back');"
                " ELSIF pg_trigger_depth() < 4 THEN UPDATE things SET name = name || '!' WHERE id = NEW.id; END IF",
            )
        )
        ferry.execute("INSERT INTO things SELECT g, 'x' FROM generate_series(1, 20) AS g")
        ferry.execute("DELETE FROM things WHERE id % 3 = 0", "UPDATE things SET id = id + 100 WHERE id % 2 = 0")
        ferry.wait()
        ferry.assert_same("public.things")
    finally:
        ferry.close()


# -- strict isolation -------------------------------------------------------------------------------------------------


def strict(dsn: str, level: str) -> psycopg.Connection:
    connection = psycopg.connect(dsn)
    connection.execute(f"SET TRANSACTION ISOLATION LEVEL {level}".encode())
    return connection


def test_a_serialization_failure_is_the_applications_own(source: Source) -> None:
    """It repeats the transaction; nothing was missed."""
    source.app.execute("CREATE TABLE duty (id int PRIMARY KEY, v int); INSERT INTO duty VALUES (1, 0), (2, 0)")
    setup = source.mirror("public.things", "id")
    with strict(source.dsn, "SERIALIZABLE") as first, strict(source.dsn, "SERIALIZABLE") as second:
        for one in (first, second):
            one.execute("SELECT sum(v) FROM duty")
        first.execute("UPDATE duty SET v = 1 WHERE id = 1")
        second.execute("UPDATE duty SET v = 1 WHERE id = 2")
        second.execute("INSERT INTO things VALUES (2, 'y')")
        first.commit()
        with pytest.raises(psycopg.errors.SerializationFailure):
            second.commit()  # with deferred triggers, they are the first to meet it
        second.rollback()
    assert setup.gap() is None
    assert source.changes() == []


def test_serializable_transactions_do_not_come_into_each_others_way_by_sending(road: Road) -> None:
    road.app.execute("CREATE TABLE things (id int PRIMARY KEY, name text)")
    road.mirror("public.things", "id")
    # What all transactions read and write in the outbox is on one page, and each commit waits for the call.
    for number in range(0, 20, 2):
        with strict(road.dsn, "SERIALIZABLE") as first, strict(road.dsn, "SERIALIZABLE") as second:
            first.execute("INSERT INTO things VALUES (%s, 'x')", (number,))
            second.execute("INSERT INTO things VALUES (%s, 'x')", (number + 1,))
            committing = threading.Thread(target=first.commit)
            committing.start()
            second.commit()
            committing.join()
    assert road.app.execute("SELECT count(*) FROM things").fetchone() == (20,)
    assert road.gateway.calls == 0
    assert len(road.waiting()) == 20
    road.app.execute("INSERT INTO things VALUES (100, 'x')")
    assert road.sent_keys() == ["100"]


DDL = [
    "ALTER TABLE things ADD COLUMN extra text DEFAULT 'e'",
    "ALTER TABLE things RENAME COLUMN name TO title; ALTER TABLE things RENAME COLUMN doc TO name",
    "ALTER TABLE things DROP COLUMN name, DROP COLUMN doc",
    "ALTER TABLE things ALTER COLUMN name TYPE int USING 7",
    "ALTER TABLE things RENAME COLUMN id TO number",
    "ALTER TABLE things RENAME COLUMN id TO number; ALTER TABLE things ALTER COLUMN doc TYPE int USING 8",
]


@pytest.mark.parametrize("ddl", DDL)
@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_a_table_that_was_altered_behind_the_transactions_snapshot(outbox: Outbox, ddl: str, level: str) -> None:
    """Rows are of the new layout, which a catalog read under the old snapshot does not show: they go by their key."""
    outbox.app.execute("CREATE TABLE things (id int PRIMARY KEY, name text, doc text); INSERT INTO things VALUES (9)")
    setup = outbox.mirror("public.things", "id")
    with strict(outbox.dsn, level) as old:
        old.execute("SELECT FROM pg_class LIMIT 1")
        outbox.app.execute(ddl.encode())
        old.execute("INSERT INTO things VALUES (1), (2)")
    assert setup.gap() is None
    changes = outbox.changes()
    assert [change.partial for change in changes] == [True, True]
    for number, change in enumerate(changes, 1):
        names = [name for name, value in row_of(change).items() if value is not UNCHANGED]
        assert names == ["id"]
        assert row_of(change)["id"] == str(number).encode()


def test_under_a_snapshot_that_shows_the_table_as_it_is_rows_go_whole(outbox: Outbox) -> None:
    outbox.app.execute("CREATE TABLE things (id int PRIMARY KEY, gone int, name text); ALTER TABLE things DROP gone")
    outbox.app.execute("CREATE TABLE others (code text PRIMARY KEY)")
    outbox.mirror("public.things", "id")
    outbox.mirror("public.others", "code")
    with strict(outbox.dsn, "REPEATABLE READ") as old:
        old.execute("INSERT INTO things VALUES (1, 'one'), (2, 'two')")
        old.execute("INSERT INTO others VALUES ('a')")
        old.execute("ALTER TABLE things ADD COLUMN more int")
        old.execute("INSERT INTO things VALUES (3, 'three', 7)")
    assert [change.row for change in outbox.changes()] == [
        (b"1", b"one"),
        (b"2", b"two"),
        (b"a",),
        (b"3", b"three", b"7"),
    ]


def test_a_change_that_cannot_be_read_stops_nothing_and_its_table_is_read_again(database: str) -> None:
    ferry = Ferry(database, "outbox")
    try:
        ferry.execute("CREATE TABLE things (id int PRIMARY KEY, name text)", "CREATE TABLE good (id int PRIMARY KEY)")
        ferry.begin("public.things", "public.good")
        ferry.stop()
        ferry.execute("INSERT INTO things VALUES (1, 'one')")
        ferry.execute("UPDATE docferry.outbox SET new_row = '(1,one,more)'", "INSERT INTO good VALUES (1)")
        ferry.start()
        ferry.wait()
        ferry.assert_same("public.things", "public.good")
        assert ferry.query("SELECT count(*) FROM docferry.outbox") == [(0,)]
    finally:
        ferry.close()


# -- savepoints, two phases -------------------------------------------------------------------------------------------


def test_what_was_sent_within_a_savepoint_and_rolled_back_is_known_by_its_subtransaction(road: Road) -> None:
    road.app.execute("CREATE TABLE things (id int PRIMARY KEY, name text)")
    road.mirror("public.things", "id")
    gate = PostgresTransactions(road.dsn)
    early = "SET CONSTRAINTS ALL IMMEDIATE; SET CONSTRAINTS ALL DEFERRED"
    with road.app.transaction():
        road.app.execute("INSERT INTO things VALUES (1, 'kept')")
        road.app.execute("SAVEPOINT s; INSERT INTO things VALUES (2, 'never'), (3, 'never')")
        for _ in range(2):
            road.app.execute(early)
        road.app.execute("ROLLBACK TO s; SAVEPOINT r; INSERT INTO things VALUES (4, 'kept'); RELEASE r")
    sent = road.events()
    assert {row_of(change)["id"] for change in sent[0].changes} == {b"1", b"2", b"3"}
    fates: dict[Any, list[bool]] = {}
    for event in sent:
        undone = gate.rolled_back(set(event.subtransactions.values()))
        for change in event.changes:
            kept = event.subtransactions.get(change.version) not in undone
            fates.setdefault(row_of(change)["id"], []).append(kept)
    gate.close()
    assert any(fates[b"1"])
    assert fates[b"2"] == fates[b"3"] == [False]
    assert fates[b"4"] == [True]


def test_a_transaction_that_is_prepared_while_a_drainer_waits(outbox: Outbox) -> None:
    """The servers of the tests can prepare transactions. One that has notified could not be prepared."""
    outbox.app.execute("CREATE TABLE things (id int PRIMARY KEY, name text)")
    outbox.mirror("public.things", "id")
    capture = outbox.capture()
    assert capture.read(1.5).changes == []
    assert outbox.app.execute("SELECT last_value FROM docferry.sleeping").fetchone() == (1,)
    for sleeping in (1, 2):  # as one left it that was killed in his sleep
        outbox.app.execute("SELECT setval('docferry.sleeping', %s)", (sleeping,))
        with psycopg.connect(outbox.dsn) as other:
            other.execute("INSERT INTO things VALUES (%s, 'x')", (sleeping,))
            other.execute("PREPARE TRANSACTION 'docferry test'")
            other.rollback()
        outbox.app.execute("COMMIT PREPARED 'docferry test'")
        delivery = capture.read(30)
        assert [row_of(change)["id"] for change in delivery.changes] == [str(sleeping).encode()]
        assert delivery.position is not None
        capture.confirm(delivery.position)


# -- rows and keys ----------------------------------------------------------------------------------------------------


def test_a_row_whose_text_no_server_could_build_goes_by_its_key(outbox: Outbox) -> None:
    outbox.app.execute("CREATE TABLE blobs (id int PRIMARY KEY, data bytea)")
    setup = outbox.mirror("public.blobs", "id")
    huge = "convert_to(repeat('x', 560000000), 'UTF8')"
    with outbox.app.transaction():
        outbox.app.execute("INSERT INTO blobs VALUES (1, 'x')")
        outbox.app.execute(f"INSERT INTO blobs VALUES (2, {huge})".encode())
    outbox.app.execute("UPDATE blobs SET id = 3 WHERE id = 2")
    outbox.app.execute("DELETE FROM blobs WHERE id = 3")
    assert setup.gap() is None
    found = outbox.changes()
    assert [(change.op, change.partial) for change in found] == [
        (Op.INSERT, False),
        (Op.INSERT, True),
        (Op.UPDATE, True),
        (Op.UPDATE, True),
        (Op.DELETE, False),
    ]
    assert [old_of(change)["id"] for change in found[3:]] == [b"2", b"3"]


def test_a_row_that_is_small_on_disk_and_too_large_as_text_goes_by_its_key(outbox: Outbox) -> None:
    """Documents are compressed where they are stored; the limit of these tests is 20,000 bytes of an event."""
    outbox.app.execute("CREATE TABLE blobs (id int PRIMARY KEY, data text)")
    outbox.mirror("public.blobs", "id")
    with outbox.app.transaction():
        outbox.app.execute("INSERT INTO blobs SELECT g, repeat('x', 12000 * g) FROM generate_series(0, 2) AS g")
    assert [change.partial for change in outbox.changes()] == [False, False, True]


@pytest.mark.parametrize("table", ["things", "early"])
def test_a_renamed_key_column(outbox: Outbox, table: str) -> None:
    outbox.app.execute(
        "CREATE TABLE parts (doc text, id int, day date, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);"
        "CREATE TABLE early PARTITION OF parts FOR VALUES FROM ('2000-01-01') TO ('2001-01-01')"
    )
    outbox.app.execute("CREATE TABLE things (doc text, id int, day date, PRIMARY KEY (id, day))")
    setup = outbox.mirror("public.parts", "id", "day")
    outbox.mirror("public.things", "id", "day")
    for name in ("parts", "things"):
        outbox.app.execute(f"ALTER TABLE {name} RENAME COLUMN id TO number".encode())
    with outbox.app.transaction():
        outbox.app.execute(f"INSERT INTO {table} VALUES ('x', 1, '2000-01-01')".encode())
        outbox.app.execute(f"INSERT INTO {table} VALUES (repeat('x', 30000), 2, '2000-01-01')".encode())
        outbox.app.execute(f"INSERT INTO {table} VALUES ('x', 3, '2000-01-01')".encode())
    assert setup.gap() is None
    assert [row_of(change)["number"] for change in outbox.changes()] == [b"1", b"2", b"3"]
    assert [change.partial for change in outbox.changes()] == [False, True, False]


def test_a_renamed_key_column_in_an_event(road: Road) -> None:
    road.app.execute("CREATE TABLE things (doc text, id int PRIMARY KEY)")
    road.mirror("public.things", "id")
    road.app.execute("ALTER TABLE things RENAME COLUMN id TO number")
    road.app.execute("INSERT INTO things VALUES ('x', 1), (repeat('x', 30000), 2)")
    (event,) = road.events()
    assert [[column.name for column in one.relation.columns if column.is_key] for one in event.changes] == [
        ["number"],
        ["number"],
    ]
    assert [row_of(change)["number"] for change in event.changes] == [b"1", b"2"]


def test_a_cast_that_the_tables_owner_made_is_not_used(outbox: Outbox) -> None:
    """It would run with the rights of docferry's role."""
    role = f"owner_{id(outbox)}"
    outbox.app.execute(f"CREATE ROLE {role}; GRANT CREATE ON SCHEMA public TO {role}".encode())
    try:
        outbox.app.execute(
            f"SET ROLE {role}; CREATE TYPE code AS ENUM ('a', 'b'); CREATE TABLE coded (id code PRIMARY KEY, v text);"
            "CREATE TABLE proof (who text);"
            "CREATE FUNCTION row_text(coded) RETURNS text LANGUAGE plpgsql AS "
            "$$ BEGIN INSERT INTO public.proof VALUES (current_user); RETURN '(a,misled)'; END $$;"
            "CREATE CAST (coded AS text) WITH FUNCTION row_text(coded);"
            "CREATE FUNCTION code_text(code) RETURNS text LANGUAGE plpgsql AS "
            "$$ BEGIN INSERT INTO public.proof VALUES (current_user); RETURN 'misled'; END $$;"
            "CREATE CAST (code AS text) WITH FUNCTION code_text(code); RESET ROLE".encode()
        )
        outbox.mirror("public.coded", "id")
        with strict(outbox.dsn, "REPEATABLE READ") as app:
            app.execute(f"SET LOCAL ROLE {role}".encode())
            app.execute("INSERT INTO coded VALUES ('a', 'x'), ('b', repeat('x', 30000))")
            app.execute("DELETE FROM coded")
        assert outbox.app.execute("SELECT * FROM proof").fetchall() == []
        assert [row_of(change)["id"] for change in outbox.changes()[:2]] == [b"a", b"b"]
    finally:
        outbox.app.execute(f"RESET ROLE; DROP OWNED BY {role} CASCADE; DROP ROLE {role}".encode())
