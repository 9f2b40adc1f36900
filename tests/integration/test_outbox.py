"""The triggers and the outbox: what they record is exact, complete, and never in the application's way."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import sql

from docferry.capture.contract import Delivery
from docferry.capture.ledger import PostgresLedger
from docferry.capture.outbox import OutboxCapture
from docferry.capture.trigger_functions import CHANGES, KEY_CHANGE, NESTED, TRUNCATE, TriggerSettings
from docferry.capture.trigger_setup import TriggerSetup
from docferry.change.model import UNCHANGED, Change, Op, make_version, split_version
from docferry.config import Capture
from docferry.document.model import Put
from docferry.embedded.postgres import EmbeddedPostgres
from docferry.errors import HistoryChanged, SourceRefused, SourceUnavailable
from docferry.retry import Retry
from docferry.source.session import connect
from docferry.target.contract import Outcome

from ..waiting import PATIENCE, until
from .harness import Ferry
from .test_values_oracle import CASES, DDL

SMALL_LIMIT = 20_000


class Outbox:
    """A source with triggers, by hand: `app` is the application's connection."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.app = psycopg.connect(dsn, autocommit=True)
        self.keys: dict[str, tuple[str, ...]] = {}
        self.ledger = PostgresLedger(dsn, Retry(), by_triggers=True)
        self.ledger.create()
        self.ledger.begin_epoch("test", 1, "outbox")
        self.captures: list[OutboxCapture] = []

    def setup(self, **settings: Any) -> TriggerSetup:
        return TriggerSetup(self.dsn, TriggerSettings("outbox", SMALL_LIMIT, **settings), lambda: self.keys)

    def mirror(self, table: str, *key: str, **settings: Any) -> TriggerSetup:
        self.keys[table] = key
        setup = self.setup(**settings)
        setup.prepare(list(self.keys))
        return setup

    def capture(self, **limits: Any) -> OutboxCapture:
        made = OutboxCapture(self.dsn, **limits)
        self.captures.append(made)
        return made

    def waiting(self) -> int:
        row = self.app.execute("SELECT count(*) FROM docferry.outbox").fetchone()
        assert row is not None
        return int(row[0])

    def changes(self) -> list[Change]:
        """Everything that waits, in the order of its versions; nothing is confirmed."""
        capture = self.capture(most_changes=10_000, most_bytes=1 << 30)
        try:
            return capture.read(1).changes
        finally:
            capture.close()

    def close(self) -> None:
        for capture in self.captures:
            capture.close()
        self.ledger.close()
        self.app.close()


@pytest.fixture
def outbox(database: str) -> Iterator[Outbox]:
    made = Outbox(database)
    yield made
    made.close()


@pytest.fixture
def things(outbox: Outbox) -> Outbox:
    outbox.app.execute("CREATE TABLE things (id int PRIMARY KEY, name text, doc text)")
    outbox.mirror("public.things", "id")
    return outbox


def row_of(change: Change) -> dict[str, Any]:
    assert change.row is not None
    return {column.name: value for column, value in zip(change.relation.columns, change.row, strict=True)}


def old_of(change: Change) -> dict[str, Any]:
    assert change.old is not None
    return {column.name: value for column, value in zip(change.relation.columns, change.old, strict=True)}


# -- what is recorded -------------------------------------------------------------------------------------------------


def test_every_type_is_recorded_as_the_server_writes_it(outbox: Outbox) -> None:
    """The same bytes as a reader of the table gets, whatever the settings of the application's session (R9)."""
    outbox.app.execute(DDL.encode())
    columns = [(f"c{index}", of, expression) for index, (of, expression, _) in enumerate(CASES)]
    listed = sql.SQL(", ").join(sql.SQL(f"{name} {of}") for name, of, _ in columns)
    outbox.app.execute(sql.SQL("CREATE TABLE every (id int PRIMARY KEY, {})").format(listed))
    outbox.mirror("public.every", "id")
    outbox.app.execute(
        "SET datestyle = 'German'; SET intervalstyle = 'postgres_verbose'; SET timezone = 'Asia/Kolkata';"
        "SET bytea_output = 'escape'; SET extra_float_digits = -3; SET search_path = public, pg_catalog"
    )
    given = [sql.SQL(f"({expression})::{of}") for _, of, expression in columns]
    values = sql.SQL(", ").join(given)
    outbox.app.execute(sql.SQL("INSERT INTO every SELECT 1, {}").format(values))
    outbox.app.execute("INSERT INTO every (id) VALUES (2)")
    full, empty = outbox.changes()
    with connect(outbox.dsn, purpose="test") as reader:
        texts = sql.SQL(", ").join(sql.SQL(f"format('%s', {name})") for name, _, _ in columns)
        expected = reader.execute(sql.SQL("SELECT {} FROM public.every WHERE id = 1").format(texts)).fetchone()
    assert expected is not None
    recorded = row_of(full)
    for (name, of, expression), text in zip(columns, expected, strict=True):
        assert recorded[name] == text.encode(), (of, expression)
    assert set(row_of(empty).values()) == {b"2", None}


def test_hostile_text_arrives_as_it_is(things: Outbox) -> None:
    for index, text in enumerate(
        ['a"b', "a\\b", 'a""b\\\\', "(,)", "", " ", "\n\t", "ä€😀", '"', "\\", "a'b", "{}[]", "NULL"]
    ):
        things.app.execute("INSERT INTO things VALUES (%s, %s, %s)", (index, text, text * 3))
        change = things.changes()[-1]
        assert row_of(change) == {"id": str(index).encode(), "name": text.encode(), "doc": text.encode() * 3}


def test_insert_update_delete_truncate_and_a_changed_key(things: Outbox) -> None:
    things.app.execute("INSERT INTO things VALUES (1, 'one', 'x'), (2, 'two', 'y')")
    things.app.execute("UPDATE things SET name = 'ONE' WHERE id = 1")
    things.app.execute("UPDATE things SET id = 3 WHERE id = 2")
    things.app.execute("DELETE FROM things WHERE id = 1")
    things.app.execute("TRUNCATE things")
    found = things.changes()
    assert [change.op for change in found] == [
        Op.INSERT,
        Op.INSERT,
        Op.UPDATE,
        Op.UPDATE,
        Op.UPDATE,  # the trigger for changed keys says it again, with the old row
        Op.DELETE,
        Op.TRUNCATE,
    ]
    versions = [change.version for change in found]
    assert versions == sorted(set(versions))
    assert {split_version(version)[0] for version in versions} == {1}
    assert [change.old is not None for change in found] == [False, False, False, False, True, True, False]
    assert old_of(found[4])["id"] == b"2"
    assert row_of(found[4])["id"] == b"3"
    assert old_of(found[5])["name"] == b"ONE"


def test_a_key_that_changes_to_an_equal_one_is_recorded_with_the_old_row(outbox: Outbox) -> None:
    """What is equal for the server, by a collation, by citext or by its type, is not for the target."""
    outbox.app.execute(
        "CREATE TABLE pairs (span interval, id int, seen int, PRIMARY KEY (span, id));"
        "CREATE TABLE single (span interval PRIMARY KEY)"
    )
    outbox.mirror("public.pairs", "span", "id")
    outbox.mirror("public.single", "span")
    outbox.app.execute("INSERT INTO pairs VALUES ('1 day', 1); UPDATE pairs SET seen = 2")
    outbox.app.execute("UPDATE pairs SET span = '24 hours'")
    outbox.app.execute("INSERT INTO single VALUES ('1 day'); UPDATE single SET span = '24 hours'")
    found = outbox.changes()
    assert [(change.op, change.old is not None) for change in found] == [
        (Op.INSERT, False),
        (Op.UPDATE, False),
        (Op.UPDATE, False),
        (Op.UPDATE, True),
        (Op.INSERT, False),
        (Op.UPDATE, False),
        (Op.UPDATE, True),
    ]
    for moved in (found[3], found[6]):
        assert (old_of(moved)["span"], row_of(moved)["span"]) == (b"P1D", b"PT24H")


def test_a_trigger_as_the_server_writes_it_can_be_restored(things: Outbox) -> None:
    rows = things.app.execute("SELECT tgname, pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal").fetchall()
    assert {name for name, _ in rows} == {CHANGES, KEY_CHANGE, NESTED, TRUNCATE}
    for name, statement in rows:
        things.app.execute(f"DROP TRIGGER {name} ON things")
        things.app.execute(statement)


def test_a_row_over_the_limit_is_recorded_by_its_key(things: Outbox) -> None:
    things.app.execute("INSERT INTO things VALUES (1, 'one', repeat('x', 30000))")
    things.app.execute("UPDATE things SET id = 2")
    things.app.execute("DELETE FROM things")
    insert, update, moved, delete = things.changes()
    for change, key in ((insert, b"1"), (update, b"2"), (moved, b"2")):
        assert change.partial
        assert row_of(change) == {"id": key, "name": UNCHANGED, "doc": UNCHANGED}
    assert old_of(moved) == {"id": b"1", "name": UNCHANGED, "doc": UNCHANGED}
    assert old_of(delete)["id"] == b"2"


def test_what_is_rolled_back_is_not_recorded(things: Outbox) -> None:
    with things.app.transaction():
        things.app.execute("INSERT INTO things VALUES (1, 'kept', NULL)")
        try:
            with things.app.transaction():
                things.app.execute("INSERT INTO things VALUES (2, 'not kept', NULL)")
                raise ZeroDivisionError
        except ZeroDivisionError:
            pass
        things.app.execute("INSERT INTO things VALUES (3, 'kept', NULL)")
    assert [row_of(change)["id"] for change in things.changes()] == [b"1", b"3"]


def test_generated_columns_and_partitions(outbox: Outbox) -> None:
    outbox.app.execute(
        "CREATE TABLE parts (id int, day date, doc text, size int GENERATED ALWAYS AS (length(doc)) STORED, "
        "PRIMARY KEY (id, day)) PARTITION BY RANGE (day);"
        # The columns of this one stand in another order.
        "CREATE TABLE early (doc text, day date NOT NULL, id int NOT NULL, "
        "size int GENERATED ALWAYS AS (length(doc)) STORED);"
        "ALTER TABLE parts ATTACH PARTITION early FOR VALUES FROM ('2000-01-01') TO ('2001-01-01');"
        "CREATE TABLE late PARTITION OF parts FOR VALUES FROM ('2001-01-01') TO ('2002-01-01')"
    )
    outbox.mirror("public.parts", "id", "day")
    outbox.app.execute("INSERT INTO parts VALUES (1, '2000-05-05', 'x'), (2, '2001-05-05', 'y')")
    outbox.app.execute("INSERT INTO early VALUES ('z', '2000-06-06', 3)")
    outbox.app.execute("UPDATE parts SET day = '2001-07-07' WHERE id = 1")
    found = outbox.changes()
    assert {change.relation.table for change in found} == {"public.parts"}
    rows = [row_of(change) for change in found if change.row is not None]
    assert {"id": b"3", "day": b"2000-06-06", "doc": b"z"} in rows
    assert all("size" not in row for row in rows)
    # PostgreSQL moves a row between partitions by DELETE and INSERT.
    assert [(change.op, old_of(change)["day"]) for change in found if change.row is None] == [
        (Op.DELETE, b"2000-05-05")
    ]


def test_replicated_rows_are_recorded_only_when_asked(things: Outbox) -> None:
    things.app.execute("SET session_replication_role = replica")
    things.app.execute("INSERT INTO things VALUES (1, 'unseen', NULL)")
    assert things.changes() == []
    things.mirror("public.things", "id", enable_always=True)
    things.app.execute("INSERT INTO things VALUES (2, 'seen', NULL)")
    assert len(things.changes()) == 1


# -- never in the application's way (R7) ------------------------------------------------------------------------------


def test_a_transaction_may_truncate_and_alter_what_it_has_written(things: Outbox) -> None:
    """Deferred triggers would forbid it: "cannot TRUNCATE ... because it has pending trigger events"."""
    with things.app.transaction():
        things.app.execute("INSERT INTO things VALUES (1, 'one', NULL)")
        things.app.execute("TRUNCATE things")
        things.app.execute("INSERT INTO things VALUES (2, 'two', NULL)")
        things.app.execute("ALTER TABLE things ADD COLUMN more int DEFAULT 7")
        things.app.execute("INSERT INTO things VALUES (3, 'three', NULL, 8)")
    found = things.changes()
    assert [change.op for change in found] == [Op.INSERT, Op.TRUNCATE, Op.INSERT, Op.INSERT]
    assert "more" not in row_of(found[2])
    assert row_of(found[3])["more"] == b"8"


@pytest.mark.parametrize(
    "broken",
    [
        "DROP TABLE docferry.outbox",
        "REVOKE INSERT ON docferry.outbox FROM {role}",
        "ALTER TABLE docferry.outbox ADD CONSTRAINT never CHECK (false) NOT VALID",
        "DROP SEQUENCE docferry.positions CASCADE",
    ],
)
def test_a_broken_outbox_fails_no_statement_and_is_noticed(things: Outbox, broken: str) -> None:
    role = f"ferryman_{id(things)}"
    things.app.execute(f"CREATE ROLE {role}")
    try:
        setup = things.mirror("public.things", "id", owner=role)
        things.app.execute(broken.format(role=role).encode())
        things.app.execute("INSERT INTO things VALUES (1, 'one', NULL), (2, 'two', NULL)")
        with things.app.transaction():
            things.app.execute("UPDATE things SET name = 'x'")
            things.app.execute("DELETE FROM things WHERE id = 2")
        assert things.app.execute("SELECT id, name FROM things").fetchall() == [(1, "x")]
        assert setup.gap() is not None
        setup.prepare(["public.things"])
        assert setup.gap() is None
    finally:
        things.app.execute(f"DROP SCHEMA docferry CASCADE; DROP OWNED BY {role}; DROP ROLE {role}")


def test_what_is_missed_while_apply_works_is_not_forgotten(things: Outbox) -> None:
    setup = things.setup()
    assert setup.gap() is None
    things.app.execute("ALTER TABLE docferry.outbox ADD CONSTRAINT never CHECK (false) NOT VALID")
    things.app.execute("INSERT INTO things VALUES (1, 'one', NULL)")
    things.app.execute("ALTER TABLE docferry.outbox DROP CONSTRAINT never")
    setup.prepare(["public.things"])
    # Nobody knew of it, so nobody has made up for it.
    assert "could not be recorded" in (things.setup().gap() or "")
    assert setup.gap() is not None
    setup.prepare(["public.things"])
    assert setup.gap() is None


def test_an_outbox_that_is_locked_holds_nobody_up_longer_than_his_own_lock_timeout(things: Outbox) -> None:
    with psycopg.connect(things.dsn) as other:
        other.execute("LOCK TABLE docferry.outbox IN ACCESS EXCLUSIVE MODE")
        things.app.execute("SET lock_timeout = '100ms'")
        things.app.execute("INSERT INTO things VALUES (1, 'one', NULL)")
        other.rollback()
    assert things.app.execute("SELECT count(*) FROM things").fetchone() == (1,)
    assert "could not be recorded" in (things.setup().gap() or "")


def test_the_applications_role_needs_no_rights_on_docferry(things: Outbox) -> None:
    role = f"app_{id(things)}"
    things.app.execute(f"CREATE ROLE {role}; GRANT SELECT, INSERT, UPDATE, DELETE ON things TO {role}")
    try:
        things.app.execute(f"SET ROLE {role}")
        things.app.execute("INSERT INTO things VALUES (1, 'one', NULL)")
        for statement in ("SELECT * FROM docferry.outbox", "SELECT docferry.sync_to_dynamodb()"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                things.app.execute(statement.encode())
        things.app.execute("RESET ROLE")
        assert things.waiting() == 1
    finally:
        things.app.execute(f"RESET ROLE; DROP OWNED BY {role}; DROP ROLE {role}")


def test_objects_on_the_applications_search_path_do_not_mislead_the_triggers(things: Outbox) -> None:
    things.app.execute(
        "CREATE SCHEMA evil; CREATE FUNCTION evil.octet_length(text) RETURNS int LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'misled'; END $$; CREATE TABLE evil.pg_attribute (attname text);"
        "SET search_path = evil, public, pg_catalog; CREATE TEMP TABLE pg_attribute (attname text)"
    )
    things.app.execute("INSERT INTO things VALUES (1, 'one', NULL)")
    assert [row_of(change)["name"] for change in things.changes()] == [b"one"]


def test_ddl_on_a_busy_table_gives_up_instead_of_queueing(outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("docferry.capture.trigger_setup._LOCK_TIMEOUT", "50ms")
    monkeypatch.setattr("docferry.capture.trigger_setup._LOCK_ATTEMPTS", 2)
    outbox.app.execute("CREATE TABLE busy (id int PRIMARY KEY)")
    with psycopg.connect(outbox.dsn) as other:
        other.execute("INSERT INTO busy VALUES (1)")
        with pytest.raises(SourceUnavailable, match=r"public\.busy is in use"):
            outbox.mirror("public.busy", "id")
        other.rollback()
    outbox.mirror("public.busy", "id")


def test_ddl_on_a_busy_outbox_gives_up_instead_of_queueing(things: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the modes `outbox` and `lambda`, the outbox gets and loses a trigger."""
    monkeypatch.setattr("docferry.capture.trigger_setup._LOCK_TIMEOUT", "50ms")
    monkeypatch.setattr("docferry.capture.trigger_setup._LOCK_ATTEMPTS", 2)
    things.app.execute("CREATE SCHEMA aws_lambda")
    setups = [
        TriggerSetup(things.dsn, TriggerSettings(mode, SMALL_LIMIT, deferred=False), lambda: things.keys)
        for mode in ("lambda", "outbox")
    ]
    for row, setup in enumerate(setups):
        with psycopg.connect(things.dsn) as other:
            # Whoever waits for it all the same is to fail here, not to hang.
            other.execute(f"SET idle_in_transaction_session_timeout = '{PATIENCE:.0f}s'")
            other.execute("INSERT INTO things VALUES (%s, 'one', NULL)", (row,))
            with pytest.raises(SourceUnavailable, match=r"docferry\.outbox is in use"):
                setup.prepare(["public.things"])
            other.rollback()
        assert "created function docferry.sync_to_dynamodb" in setup.prepare(["public.things"])
        assert setup.missing(["public.things"]) == []


# -- set up and taken down --------------------------------------------------------------------------------------------


def test_setting_up_is_idempotent_and_tells_what_is_missing(outbox: Outbox) -> None:
    outbox.app.execute("CREATE TABLE things (id int PRIMARY KEY); CREATE TABLE others (id int PRIMARY KEY)")
    outbox.keys = {"public.things": ("id",), "public.others": ("id",)}
    setup = outbox.setup()
    setup.check()
    both = ["public.things", "public.others"]
    assert setup.uncaptured(both) == sorted(both)
    assert any("create docferry.outbox" in step for step in setup.missing(both))
    assert len(setup.prepare(both)) == 4
    assert setup.missing(both) == []
    assert setup.prepare(both) == []
    assert setup.uncaptured(both) == []
    assert setup.published() == sorted(both)
    outbox.app.execute(f"ALTER TABLE things DISABLE TRIGGER {CHANGES}")
    assert setup.uncaptured(both) == ["public.things"]
    assert setup.prepare(both) == ["created the triggers on public.things"]
    assert setup.prepare(["public.things"]) == ["dropped the triggers on public.others"]
    # Another limit is another function.
    other = TriggerSetup(outbox.dsn, TriggerSettings("outbox", 2 * SMALL_LIMIT), lambda: outbox.keys)
    assert other.missing(["public.things"]) == ["create or replace function docferry.sync_to_dynamodb"]
    assert setup.remove() == ["dropped the triggers on public.things"]
    assert setup.present() == ["docferry.outbox with 0 changes that have not been carried over"]


@pytest.mark.parametrize("trigger", [CHANGES, KEY_CHANGE, TRUNCATE])
def test_any_missing_trigger_is_noticed(things: Outbox, trigger: str) -> None:
    """Without that of TRUNCATE or of changed keys, items stay whose rows are gone."""
    setup = things.setup()
    things.app.execute(f"DROP TRIGGER {trigger} ON things")
    assert setup.uncaptured(["public.things"]) == ["public.things"]
    assert setup.published() == []
    assert setup.prepare(["public.things"]) == ["created the triggers on public.things"]
    assert setup.uncaptured(["public.things"]) == []


@pytest.mark.parametrize("enable_always", [False, True])
def test_a_trigger_that_is_disabled_on_a_single_partition_is_noticed(outbox: Outbox, *, enable_always: bool) -> None:
    outbox.app.execute(
        "CREATE TABLE parts (id int PRIMARY KEY) PARTITION BY RANGE (id);"
        "CREATE TABLE low PARTITION OF parts FOR VALUES FROM (0) TO (100) PARTITION BY RANGE (id);"
        "CREATE TABLE lowest PARTITION OF low FOR VALUES FROM (0) TO (10);"
        "CREATE TABLE high PARTITION OF parts FOR VALUES FROM (100) TO (200)"
    )
    setup = outbox.mirror("public.parts", "id", enable_always=enable_always)
    assert setup.missing(["public.parts"]) == []
    for trigger in (CHANGES, KEY_CHANGE):
        outbox.app.execute(f"ALTER TABLE lowest DISABLE TRIGGER {trigger}")
        assert setup.uncaptured(["public.parts"]) == ["public.parts"]
        assert setup.prepare(["public.parts"]) == ["created the triggers on public.parts"]
        assert setup.uncaptured(["public.parts"]) == []
    outbox.app.execute("INSERT INTO parts VALUES (1)")
    assert len(outbox.changes()) == 1


def test_an_owner_that_does_not_exist_is_refused(outbox: Outbox) -> None:
    with pytest.raises(SourceRefused, match="no role nobody_of_that_name"):
        outbox.setup(owner="nobody_of_that_name").check()


def test_mode_lambda_without_the_extension_is_refused(outbox: Outbox) -> None:
    setup = TriggerSetup(outbox.dsn, TriggerSettings("lambda"), lambda: outbox.keys)
    with pytest.raises(SourceRefused, match="no extension aws_lambda"):
        setup.check()


# -- draining ---------------------------------------------------------------------------------------------------------


def fill(outbox: Outbox, count: int, first: int = 1) -> None:
    outbox.app.execute(
        "INSERT INTO things SELECT g, 'x', 'y' FROM generate_series(%s::int, %s) AS g", (first, first + count - 1)
    )


def test_what_is_confirmed_leaves_and_what_is_not_comes_again(things: Outbox) -> None:
    fill(things, 30)
    capture = things.capture(most_changes=10)
    first, second = capture.read(1), capture.read(1)
    assert [len(first.changes), len(second.changes)] == [10, 10]
    assert first.position is not None
    capture.confirm(first.position)
    assert things.waiting() == 20
    capture.close()
    assert things.waiting() == 20
    again = things.capture(most_changes=100).read(1)
    assert len(again.changes) == 20


def test_several_drainers_share_the_work(things: Outbox) -> None:
    fill(things, 400)
    seen: list[list[int]] = [[], []]

    def drain(index: int) -> None:
        capture = things.capture(most_changes=20)
        while True:
            delivery = capture.read(0.3)
            if not delivery.changes:
                return
            assert delivery.position is not None
            seen[index].extend(change.version for change in delivery.changes)
            time.sleep(0.002)
            capture.confirm(delivery.position)

    threads = [threading.Thread(target=drain, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert things.waiting() == 0
    assert len(set(seen[0]) | set(seen[1])) == 400
    assert not set(seen[0]) & set(seen[1])


def test_no_default_of_the_database_holds_up_draining(things: Outbox) -> None:
    """Under REPEATABLE READ a claim fails on rows that another drainer has deleted since its snapshot."""
    settings = {"default_transaction_isolation": "repeatable read"}
    if things.app.info.server_version >= 170000:
        settings["transaction_timeout"] = "1h"
    (name,) = things.app.execute("SELECT current_database()").fetchone() or ("",)
    for setting, value in settings.items():
        things.app.execute(
            sql.SQL("ALTER DATABASE {} SET {} = {}").format(sql.Identifier(name), sql.Identifier(setting), value)
        )
    with connect(things.dsn, purpose="test") as connection:
        assert connection.execute("SHOW transaction_isolation").fetchone() == ("read committed",)
        for setting in settings.keys() - {"default_transaction_isolation"}:
            assert connection.execute(f"SHOW {setting}".encode()).fetchone() == ("0",)


def test_a_transaction_that_commits_late_is_not_passed_over(things: Outbox) -> None:
    """Positions are taken before the commit, so an older one may become visible after a newer one is gone."""
    capture = things.capture()
    with psycopg.connect(things.dsn) as slow:
        slow.execute("INSERT INTO things VALUES (1, 'slow', NULL)")
        fill(things, 3, first=10)
        delivery = capture.read(1)
        assert len(delivery.changes) == 3
        assert delivery.position is not None
        capture.confirm(delivery.position)
        slow.commit()
    late = capture.read(5)
    assert [row_of(change)["name"] for change in late.changes] == [b"slow"]
    assert late.changes[0].version < delivery.changes[0].version


def test_a_claim_that_takes_long_holds_up_no_vacuum(things: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("docferry.capture.outbox._LONGEST_CLAIM", 0.05)
    fill(things, 3)
    capture = things.capture()
    delivery = capture.read(1)
    time.sleep(0.1)
    capture.keep_alive(0)
    open_transactions = things.app.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND xact_start IS NOT NULL "
        "AND application_name = 'docferry outbox claim'"
    ).fetchone()
    assert open_transactions == (0,)
    fill(things, 2, first=10)
    # Its own rows are not delivered to it twice; what came since is.
    assert len(capture.read(1).changes) == 2
    assert delivery.position is not None
    capture.confirm(delivery.position)
    assert things.waiting() == 2


def test_two_drainers_that_let_go_do_not_wait_for_each_other(things: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a long outage of the target, each has claimed what the other let go of, and still has to delete it."""
    fill(things, 10)
    one, other = things.capture(most_changes=5), things.capture(most_changes=5)
    let_go = [capture.read(PATIENCE) for capture in (one, other)]
    with monkeypatch.context() as patch:
        patch.setattr("docferry.capture.outbox._LONGEST_CLAIM", -1.0)
        one.keep_alive(0)
        other.keep_alive(0)
    claimed = [capture.read(PATIENCE) for capture in (one, other)]
    versions = [{change.version for change in delivery.changes} for delivery in (*let_go, *claimed)]
    assert versions[2:] == [versions[1], versions[0]]

    def confirm(capture: OutboxCapture, *deliveries: Delivery) -> None:
        for delivery in deliveries:
            assert delivery.position is not None
            capture.confirm(delivery.position)

    threads = [
        threading.Thread(target=confirm, args=(one, let_go[0])),
        threading.Thread(target=confirm, args=(other, let_go[1])),
    ]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join(PATIENCE)
        assert not any(thread.is_alive() for thread in threads)
    finally:
        things.app.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "
            "AND application_name = 'docferry outbox claim' AND wait_event_type = 'Lock'"
        )
        for thread in threads:
            thread.join()
    # Who has a claim deletes its rows.
    assert things.waiting() == 10
    confirm(one, claimed[0])
    confirm(other, claimed[1])
    assert things.waiting() == 0


def test_what_a_crash_could_take_back_is_not_delivered(postgres_server: EmbeddedPostgres) -> None:
    """A transaction that commits asynchronously is visible before it is on disk."""
    outbox = Outbox(postgres_server.dsn())
    try:
        outbox.app.execute("CREATE TABLE things (id int PRIMARY KEY, name text, doc text)")
        outbox.mirror("public.things", "id")
        # Nobody else brings it there meanwhile.
        for setting in ("wal_writer_delay = '10s'", "bgwriter_delay = '10s'", "autovacuum = off"):
            outbox.app.execute(f"ALTER SYSTEM SET {setting}")
        outbox.app.close()
        postgres_server.restart()
        outbox.app = psycopg.connect(outbox.dsn, autocommit=True)
        outbox.app.execute("SET synchronous_commit = off")
        outbox.app.execute("INSERT INTO things VALUES (1, 'one', NULL)")
        (change,) = outbox.capture().read(PATIENCE).changes
        outbox.app.close()
        postgres_server.restart("immediate")
        outbox.app = psycopg.connect(outbox.dsn, autocommit=True)
        position = split_version(change.version)[1]
        assert outbox.app.execute("SELECT id, name FROM things").fetchall() == [(1, "one")]
        assert outbox.app.execute("SELECT position FROM docferry.outbox").fetchall() == [(position,)]
    finally:
        outbox.close()


def test_rows_that_fill_a_delivery_by_their_bytes(things: Outbox) -> None:
    things.app.execute("INSERT INTO things SELECT g, 'x', repeat('y', 1500) FROM generate_series(1, 400) AS g")
    capture = things.capture(most_changes=1000, most_bytes=100_000)
    sizes = []
    while delivery := capture.read(0.2):
        if not delivery.changes:
            break
        sizes.append(delivery.size)
        assert delivery.position is not None
        capture.confirm(delivery.position)
    assert len(sizes) > 3
    assert max(sizes) < 250_000


def test_a_sleeping_drainer_is_woken(postgres_server: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a server that prepares no transactions; elsewhere drainers do not sleep."""
    with psycopg.connect(postgres_server.dsn(), autocommit=True) as admin:
        admin.execute("ALTER SYSTEM SET max_prepared_transactions = 0")
    postgres_server.restart()
    things = Outbox(postgres_server.dsn())
    things.app.execute("CREATE TABLE things (id int PRIMARY KEY, name text, doc text)")
    things.mirror("public.things", "id")
    monkeypatch.setattr("docferry.capture.outbox._AWAKE", 0.05)
    monkeypatch.setattr("docferry.capture.outbox._SLEEP", 120.0)
    capture = things.capture()
    got: list[Delivery] = []

    def read() -> None:
        while not got:
            delivery = capture.read(300)
            if delivery.changes:
                got.append(delivery)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    sleeping = "SELECT last_value FROM docferry.sleeping"
    until(lambda: things.app.execute(sleeping).fetchone() == (2,), "it sleeps")
    time.sleep(0.2)
    fill(things, 1)
    thread.join(60)
    assert not thread.is_alive()
    assert things.app.execute(sleeping).fetchone() == (1,)
    things.close()


def test_a_drainer_reconnects_after_a_restart_of_the_source(postgres_server: Any) -> None:
    outbox = Outbox(postgres_server.dsn())
    try:
        outbox.app.execute("CREATE TABLE things (id int PRIMARY KEY, name text, doc text)")
        outbox.mirror("public.things", "id")
        fill(outbox, 5)
        capture = outbox.capture()
        first = capture.read(1)
        assert first.position is not None
        postgres_server.restart("immediate")
        capture.confirm(first.position)
        outbox.app.close()
        outbox.app = psycopg.connect(outbox.dsn, autocommit=True)
        try:
            again = capture.read(10)
        except SourceUnavailable:
            again = capture.read(10)
        assert len(again.changes) == 5
    finally:
        outbox.close()


def test_the_outbox_stays_small(things: Outbox) -> None:
    """Rows come and go; what they leave is cleared (here by hand, as autovacuum is told to do it early)."""
    capture = things.capture(most_changes=5000)
    sizes = []
    for _ in range(10):
        things.app.execute("INSERT INTO things SELECT g, 'x', repeat('y', 500) FROM generate_series(1, 3000) AS g")
        things.app.execute("DELETE FROM things")
        while (delivery := capture.read(0.2)).changes:
            assert delivery.position is not None
            capture.confirm(delivery.position)
        things.app.execute("VACUUM docferry.outbox")
        (size,) = things.app.execute("SELECT pg_total_relation_size('docferry.outbox')").fetchone() or (0,)
        sizes.append(int(size))
    # Pages of the index are used again with a delay.
    assert sizes[-1] <= 1.2 * max(sizes[:5]), sizes


# -- as a whole -------------------------------------------------------------------------------------------------------


def test_changes_that_could_not_be_recorded_stop_the_worker_until_apply(database: str) -> None:
    ferry = Ferry(database, "outbox")
    try:
        ferry.execute("CREATE TABLE things (id int PRIMARY KEY, name text)", "INSERT INTO things VALUES (1, 'one')")
        ferry.begin("public.things")
        ferry.execute(
            "ALTER TABLE docferry.outbox ADD CONSTRAINT never CHECK (false) NOT VALID",
            "UPDATE things SET name = 'unseen'",
            "ALTER TABLE docferry.outbox DROP CONSTRAINT never",
        )
        assert isinstance(ferry.failure(), HistoryChanged)
        assert isinstance(ferry.failed_start(), HistoryChanged)
        ferry.apply()
        ferry.start()
        ferry.wait()
        ferry.assert_same("public.things")
    finally:
        ferry.close()


def test_the_item_of_a_key_that_changed_to_an_equal_one_goes(database: str) -> None:
    ferry = Ferry(database, "outbox")
    try:
        ferry.execute("CREATE TABLE spans (span interval PRIMARY KEY, name text)")
        ferry.execute("INSERT INTO spans VALUES ('1 day', 'one')")
        ferry.begin("public.spans")
        ferry.wait()
        ferry.execute("UPDATE spans SET span = '24 hours'")
        ferry.wait()
        assert list(ferry.documents("public.spans")) == [("PT24H",)]
    finally:
        ferry.close()


def test_from_replication_to_the_outbox_and_back(database: str) -> None:
    ferry = Ferry(database)
    try:
        ferry.execute("CREATE TABLE things (id int PRIMARY KEY, name text)", "INSERT INTO things VALUES (1, 'one')")
        ferry.begin("public.things")
        modes: tuple[Capture, ...] = ("outbox", "replication")
        for capture in modes:
            ferry.stop()
            ferry.execute("UPDATE things SET name = name || '!' WHERE id = 1", "INSERT INTO things VALUES (2, 'two')")
            ferry.capture = capture
            assert isinstance(ferry.failed_start(), HistoryChanged)
            ferry.apply()
            slots = ferry.query("SELECT count(*) FROM pg_replication_slots WHERE slot_name = %s", ferry.slot)
            assert slots == [(0 if capture == "outbox" else 1,)]
            ferry.start()
            ferry.wait()
            ferry.execute("DELETE FROM things WHERE id = 2")
            ferry.wait()
            ferry.assert_same("public.things")
    finally:
        ferry.close()


def test_two_workers_drain_one_outbox(database: str) -> None:
    ferry, second = Ferry(database, "outbox"), Ferry(database, "outbox")
    second.target = ferry.target
    try:
        ferry.execute("CREATE TABLE things (id int PRIMARY KEY, name text)")
        ferry.begin("public.things")
        second.mirror("public.things")
        second.start()
        for index in range(40):
            ferry.execute(
                f"INSERT INTO things SELECT g, 'x' FROM generate_series({index * 50}, {index * 50 + 49}) AS g"
            )
            ferry.execute(
                f"UPDATE things SET name = 'y{index}' WHERE id % 3 = 0", "DELETE FROM things WHERE id % 7 = 0"
            )
        ferry.wait()
        ferry.assert_same("public.things")
    finally:
        second.close()
        ferry.close()


def test_a_late_change_of_an_earlier_epoch_stays_out(database: str) -> None:
    """Its row came and went before anybody wrote the item, so no tombstone tells of it."""
    ferry = Ferry(database, "outbox")
    try:
        ferry.execute("CREATE TABLE things (id int PRIMARY KEY, name text)", "INSERT INTO things VALUES (1, 'one')")
        ferry.begin("public.things")
        ferry.stop()
        ferry.execute("UPDATE docferry.epochs SET timeline = timeline + 1")
        ferry.apply()
        ferry.start()
        ferry.wait()
        with ferry.app() as app:
            mirror = app.mirror("things")
            late = Put(mirror.collection, (2,), make_version(1, 1_000), {"id": 2, "name": "late"})
            assert [result.outcome for result in app.target.write([late])] == [Outcome.STALE]
        ferry.assert_same("public.things")
    finally:
        ferry.close()


def test_an_epoch_is_numbered_above_a_floor_that_another_setup_left(database: str) -> None:
    ferry = Ferry(database, "outbox")
    try:
        ferry.execute("CREATE TABLE things (id int PRIMARY KEY, name text)")
        with ferry.app() as app:
            ferry.mirror("public.things")
        with ferry.app() as app:
            assert app.control is not None
            collection = app.mirror("things").collection
            for one in (app.control, collection):
                app.target.create(one)
            app.target.raise_floor(collection, make_version(7, 0))
        ferry.apply()
        ferry.start()
        ferry.execute("INSERT INTO things VALUES (1, 'one')")
        ferry.wait()
        ferry.assert_same("public.things")
        assert ferry.query("SELECT max(epoch) FROM docferry.epochs") == [(8,)]
    finally:
        ferry.close()
