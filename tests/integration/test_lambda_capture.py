"""What the triggers of mode `lambda` send, and that sending is never in the application's way.

A listener in the place of Lambda's endpoint keeps what it is sent; in tests/acceptance the function itself runs.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from docferry.capture.contract import TransactionState
from docferry.capture.transactions import PostgresTransactions
from docferry.capture.trigger_functions import CHANGES, KEY_CHANGE, NESTED, TRUNCATE
from docferry.change.model import Op
from docferry.embedded.aws_lambda import LambdaGateway, install_standin

from ..waiting import until
from .road import LIMIT, Listener, Road, key_of


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


@pytest.fixture
def things(road: Road) -> Road:
    road.app.execute("CREATE TABLE things (id int PRIMARY KEY, name text, doc text)")
    road.mirror("public.things", "id")
    return road


def test_the_triggers_are_the_articles(things: Road) -> None:
    rows = things.app.execute(
        "SELECT t.tgname, t.tgdeferrable, t.tginitdeferred, t.tgconstraint <> 0, p.oid::regproc::text, t.tgtype"
        "  FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid"
        " WHERE t.tgrelid = 'things'::regclass AND NOT t.tgisinternal ORDER BY 1"
    ).fetchall()
    function = "docferry.sync_to_dynamodb"
    row, insert, delete, update, truncate = 1, 4, 8, 16, 32
    assert rows == [
        (CHANGES, True, True, True, function, row | insert | delete | update),
        (KEY_CHANGE, True, True, True, function, row | update),
        (NESTED, False, False, False, function, row | insert | delete | update),
        (TRUNCATE, False, False, False, function, truncate),
    ]
    definer, config = things.app.execute(
        "SELECT prosecdef, proconfig FROM pg_proc WHERE oid = 'docferry.sync_to_dynamodb'::regproc"
    ).fetchone() or (None, None)
    assert definer is True
    assert "search_path=pg_catalog, pg_temp" in config


def test_one_event_a_transaction_with_all_that_it_did(things: Road) -> None:
    with things.app.transaction():
        things.app.execute("INSERT INTO things VALUES (1, 'one', '<a b=\"1\"/>'), (2, 'two', NULL)")
        things.app.execute("UPDATE things SET id = 3 WHERE id = 2")
        things.app.execute("DELETE FROM things WHERE id = 1")
    (document,) = things.listener.documents()
    assert document["docferry"] == 1
    assert document["relations"]["public.things"]["columns"] == ["id", "name", "doc"]
    operations = [
        (one["TG_OP"], one["table"], sorted(set(one) - {"TG_OP", "table", "version", "subtransaction"}))
        for one in document["changes"]
    ]
    assert operations == [
        ("INSERT", "public.things", ["NEW"]),
        ("INSERT", "public.things", ["NEW"]),
        ("UPDATE", "public.things", ["NEW"]),
        ("UPDATE", "public.things", ["NEW", "OLD"]),
        ("DELETE", "public.things", ["OLD"]),
    ]
    (event,) = things.events()
    assert event.changes[0].row == (b"1", b"one", b'<a b="1"/>')
    versions = [change.version for change in event.changes]
    assert versions == sorted(set(versions))
    assert things.waiting() == []


def test_ten_thousand_rows_are_a_few_events(things: Road) -> None:
    things.mirror("public.things", "id", payload_limit=1_000_000, timeout=60.0)
    things.app.execute("INSERT INTO things SELECT g, 'row ' || g, repeat('x', 100) FROM generate_series(1, 10000) AS g")
    assert things.waiting() == []
    assert sorted(map(int, things.sent_keys())) == list(range(1, 10001))
    assert things.gateway.calls < 10
    assert max(len(body) for body in things.listener.bodies) <= 1_000_000


def test_one_row_one_call_is_an_option(things: Road) -> None:
    things.mirror("public.things", "id", group=False)
    things.app.execute("INSERT INTO things SELECT g, 'x', NULL FROM generate_series(1, 7) AS g")
    assert [len(event.changes) for event in things.events()] == [1] * 7
    assert things.waiting() == []


def test_once_its_time_is_used_up_a_transaction_does_nothing_more_for_sending(things: Road) -> None:
    """Ten thousand rows, each with a call of its own, add up otherwise."""
    if things.app.info.server_version < 150000:
        pytest.skip("statistics cannot be asked for at once")
    things.mirror("public.things", "id", group=False, timeout=0.05)
    rows = 2000
    things.app.execute("INSERT INTO things SELECT g, 'x', NULL FROM generate_series(1, %s::int) AS g", (rows,))
    things.app.execute("SELECT pg_stat_force_next_flush()")
    (looked,) = things.app.execute(
        "SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_user_tables WHERE relid = 'docferry.outbox'::regclass"
    ).fetchone() or (0,)
    assert looked < rows / 2
    assert len(things.waiting()) + len(things.sent()) >= rows


def test_no_event_is_larger_than_the_limit_and_a_large_row_goes_by_its_key(things: Road) -> None:
    things.app.execute("INSERT INTO things SELECT g, 'x', repeat('\"', 900) FROM generate_series(1, 40) AS g")
    things.app.execute("INSERT INTO things VALUES (100, 'large', repeat('y', 30000))")
    things.app.execute("UPDATE things SET id = 101 WHERE id = 100")
    assert max(len(body) for body in things.listener.bodies) <= LIMIT
    partial = [change for change in things.sent() if change.partial]
    assert [(change.op, change.row and change.row[0], change.old and change.old[0]) for change in partial] == [
        (Op.INSERT, b"100", None),
        (Op.UPDATE, b"101", None),
        (Op.UPDATE, b"101", b"100"),
    ]
    assert len(things.sent()) == 43


def test_two_tables_and_two_layouts_of_one(road: Road) -> None:
    road.app.execute("CREATE TABLE things (id int PRIMARY KEY, name text); CREATE TABLE others (code text PRIMARY KEY)")
    road.mirror("public.things", "id", deferred=False)
    road.mirror("public.others", "code", deferred=False)
    with road.app.transaction():
        road.app.execute("INSERT INTO things VALUES (1, 'one'); INSERT INTO others VALUES ('a')")
        road.app.execute("ALTER TABLE things ADD COLUMN more int DEFAULT 7")
        road.app.execute("INSERT INTO things VALUES (2, 'two', 8)")
    first, second = road.events()
    assert [(change.relation.table, change.row) for change in first.changes] == [
        ("public.things", (b"1", b"one")),
        ("public.others", (b"a",)),
    ]
    assert [change.row for change in second.changes] == [(b"2", b"two", b"8")]


def test_deferred_triggers_forbid_truncate_behind_a_change_which_plan_says_and_a_setting_mends(things: Road) -> None:
    setup = things.mirror("public.things", "id")
    with pytest.raises(psycopg.errors.ObjectInUse, match="pending trigger events"), things.app.transaction():
        things.app.execute("INSERT INTO things VALUES (1, 'one', NULL); TRUNCATE things")
    things.app.execute("DROP TRIGGER sync_truncate_to_dynamodb ON things")
    assert any("deferred = false" in step for step in setup.missing(["public.things"]))
    setup = things.mirror("public.things", "id", deferred=False)
    with things.app.transaction():
        things.app.execute("INSERT INTO things VALUES (1, 'one', NULL); TRUNCATE things")
    assert [change.op for change in things.sent()] == [Op.INSERT, Op.TRUNCATE]
    assert setup.missing(["public.things"]) == []


# -- rolled back ------------------------------------------------------------------------------------------------------

RAISES = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'refused'; END $$;
CREATE CONSTRAINT TRIGGER {name} AFTER INSERT ON things DEFERRABLE INITIALLY DEFERRED FOR EACH ROW WHEN (NEW.id < 0)
EXECUTE FUNCTION refuse();
"""


@pytest.mark.parametrize("name", ["aaa_first", "zzz_last"])
def test_nothing_is_sent_when_a_deferred_trigger_of_the_application_refuses(things: Road, name: str) -> None:
    """Sending waits for a second round, behind every deferred trigger that the application's statements left."""
    things.app.execute(RAISES.format(name=name).encode())
    with pytest.raises(psycopg.errors.RaiseException):
        things.app.execute("INSERT INTO things VALUES (1, 'one', NULL), (-1, 'refused', NULL)")
    assert things.gateway.calls == 0
    assert things.waiting() == []


def test_what_a_later_round_rolls_back_is_known_by_its_transaction(things: Road) -> None:
    """A deferred trigger that was left by a deferred trigger fires as late as the sending, or later."""
    things.app.execute(
        "CREATE TABLE later (id int);"
        "CREATE FUNCTION leave() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN INSERT INTO later VALUES (NEW.id); RETURN NULL; END $$;"
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'refused'; END $$;"
        "CREATE CONSTRAINT TRIGGER zzz AFTER INSERT ON things DEFERRABLE INITIALLY DEFERRED FOR EACH ROW "
        "EXECUTE FUNCTION leave();"
        "CREATE CONSTRAINT TRIGGER zzz AFTER INSERT ON later DEFERRABLE INITIALLY DEFERRED FOR EACH ROW "
        "EXECUTE FUNCTION refuse()"
    )
    gate = PostgresTransactions(things.dsn)
    with pytest.raises(psycopg.errors.RaiseException):
        things.app.execute("INSERT INTO things VALUES (1, 'one', NULL)")
    (event,) = things.events()
    assert gate.state(event.transaction) is TransactionState.ABORTED
    things.app.execute("DROP TABLE later CASCADE; DROP FUNCTION leave CASCADE")
    with things.app.transaction():
        things.app.execute("INSERT INTO things VALUES (2, 'two', NULL)")
        things.app.execute("SET CONSTRAINTS ALL IMMEDIATE")
        assert len(things.events()) == 1  # not even that sends before the end
        things.app.execute("SET CONSTRAINTS docferry.send_to_lambda IMMEDIATE")
        event = things.events()[-1]
        assert gate.state(event.transaction) is TransactionState.IN_PROGRESS
    assert gate.state(event.transaction) is TransactionState.COMMITTED
    assert gate.state(2**40) is TransactionState.UNKNOWN
    gate.close()


def test_an_application_that_sets_its_constraints_to_immediate(things: Road) -> None:
    with things.app.transaction():
        things.app.execute("SET CONSTRAINTS ALL IMMEDIATE")
        things.app.execute("INSERT INTO things VALUES (1, 'one', NULL)")
        things.app.execute("INSERT INTO things VALUES (2, 'two', NULL)")
        assert things.gateway.calls == 0
    assert [len(event.changes) for event in things.events()] == [2]


def test_changes_of_a_later_round_are_sent_as_well(things: Road) -> None:
    things.app.execute(
        "CREATE FUNCTION follow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " IF NEW.id < 3 THEN INSERT INTO things VALUES (NEW.id + 1, 'follows', NULL); END IF; RETURN NULL; END $$;"
        "CREATE CONSTRAINT TRIGGER zzz AFTER INSERT ON things DEFERRABLE INITIALLY DEFERRED FOR EACH ROW "
        "EXECUTE FUNCTION follow()"
    )
    things.app.execute("INSERT INTO things VALUES (1, 'one', NULL)")
    assert things.sent_keys() == ["1", "2", "3"]
    assert things.waiting() == []


def test_a_savepoint_that_is_rolled_back(things: Road) -> None:
    with things.app.transaction():
        try:
            with things.app.transaction():
                things.app.execute("INSERT INTO things VALUES (1, 'not kept', NULL)")
                raise ZeroDivisionError
        except ZeroDivisionError:
            pass
        things.app.execute("INSERT INTO things VALUES (2, 'kept', NULL)")
    assert [change.row and change.row[1] for change in things.sent()] == [b"kept"]


# -- failures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["refuse", "throttle", "error", "hang", "lost", "stuck"])
def test_what_could_not_be_sent_is_in_the_outbox(things: Road, fault: Any) -> None:
    things.mirror("public.things", "id", timeout=0.5)
    things.gateway.fail = fault
    began = time.monotonic()
    things.app.execute("INSERT INTO things VALUES (1, 'one', NULL), (2, 'two', NULL)")
    took = time.monotonic() - began
    assert took < 30  # bounds are measured in tests/acceptance; here, that it ends at all
    assert sorted(map(key_of, things.waiting())) == ["1", "2"]
    things.mirror("public.things", "id", timeout=20.0)
    things.gateway.fail = None
    things.app.execute("UPDATE things SET name = 'x' WHERE id = 1")
    assert things.sent()[-1].op is Op.UPDATE
    assert things.breaker() == (0, False)
    assert len(things.waiting()) == 2


def test_the_circuit_breaker_opens_and_one_session_tries_again(things: Road) -> None:
    things.mirror("public.things", "id", breaker_failures=2, breaker_pause=600.0, timeout=20.0)
    things.gateway.fail = "refuse"
    for index in range(6):
        things.app.execute("INSERT INTO things VALUES (%s, 'x', NULL)", (index,))
    assert things.gateway.calls == 2
    assert things.breaker() == (2, True)
    things.gateway.fail = None
    things.app.execute("SELECT setval('docferry.send_after', 1)")
    assert not things.breaker()[1], "the pause is over"
    things.app.execute("INSERT INTO things VALUES (10, 'x', NULL)")
    assert things.gateway.calls == 3
    assert things.breaker() == (0, False)
    assert len(things.waiting()) == 6


def test_while_one_session_tries_the_others_do_not_wait_for_it(things: Road) -> None:
    things.mirror("public.things", "id", breaker_failures=1, breaker_pause=0.1, timeout=20.0)
    things.gateway.fail = "refuse"
    things.app.execute("INSERT INTO things VALUES (1, 'x', NULL)")
    until(lambda: not things.breaker()[1], "the pause is over")
    with psycopg.connect(things.dsn) as other:
        other.execute("SELECT pg_advisory_xact_lock(1685021542, 5)")  # as a session does that is trying
        things.app.execute("INSERT INTO things VALUES (2, 'x', NULL)")
        other.rollback()
    assert things.gateway.calls == 1
    assert len(things.waiting()) == 2


def test_a_transaction_spends_no_more_than_its_bound_on_sending(things: Road) -> None:
    """Many events, each of them quick: what does not go in time stays in the outbox."""
    things.mirror("public.things", "id", payload_limit=10_000, timeout=0.05)
    things.app.execute("INSERT INTO things SELECT g, 'x', repeat('y', 900) FROM generate_series(1, 3000) AS g")
    waiting, sent = len(things.waiting()), len(things.sent())
    assert waiting > 0
    assert waiting + sent >= 3000
    assert things.breaker()[1] is False


def test_without_the_extension_any_more_everything_is_in_the_outbox(things: Road) -> None:
    things.app.execute("DROP SCHEMA aws_lambda CASCADE")
    things.app.execute("INSERT INTO things VALUES (1, 'one', NULL)")
    assert len(things.waiting()) == 1


def test_an_owner_with_nothing_but_what_is_needed(things: Road) -> None:
    role = f"ferryman_{id(things)}"
    things.app.execute(
        f"CREATE ROLE {role}; GRANT USAGE ON SCHEMA aws_lambda TO {role};"
        f"GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA aws_lambda TO {role}"
    )
    try:
        things.mirror("public.things", "id", owner=role)
        owners = things.app.execute(
            "SELECT DISTINCT pg_get_userbyid(proowner) FROM pg_proc WHERE pronamespace = 'docferry'::regnamespace"
        ).fetchall()
        assert owners == [(role,)]
        things.app.execute("INSERT INTO things VALUES (1, 'one', NULL)")
        things.gateway.fail = "refuse"
        for index in range(2, 7):
            things.app.execute("INSERT INTO things VALUES (%s, 'x', NULL)", (index,))
        assert len(things.sent()) == 1
        assert len(things.waiting()) == 5
        assert things.breaker()[1] is True
        # It may neither read the application's rows nor docferry's other tables.
        for table in ("things", "docferry.epochs", "docferry.dead_letters"):
            allowed = things.app.execute("SELECT has_table_privilege(%s, %s, 'SELECT')", (role, table)).fetchone()
            assert allowed == (False,)
    finally:
        things.app.execute(f"DROP SCHEMA docferry CASCADE; DROP OWNED BY {role}; DROP ROLE {role}")
