"""The printed rights are enough for applying and running, and each of them is needed."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import replace

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from docferry.capture.rights import Grants, quoted, quoted_table
from docferry.config import Capture, Config, TriggerConfig
from docferry.embedded.postgres import EmbeddedPostgres
from docferry.errors import HistoryChanged, SourceRefused

from .harness import BY_BOTH, Ferry

HOSTILE = "docferry; DROP TABLE x;--"
SCHEMA, TABLE = 'Odd "sch%ema"', 'docferry; DROP TABLE "orders";--\\\''
CAPTURES = BY_BOTH


class Guarded(Ferry):
    """A source whose tables belong to an ordinary role, and whose docferry is another. `owner`: a connection of the
    tables' owner; `connection` is a superuser's."""

    def __init__(self, dsn: str, capture: Capture) -> None:
        super().__init__(dsn, capture)
        self.superuser = dsn
        unique = uuid.uuid4().hex[:8]
        self.role, self.apply_role, self.owning = (f'{one} "{unique}"; --' for one in ("runs", "applies", "owns"))
        self.connection.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(self.owning)))
        grant = sql.SQL("GRANT CREATE ON DATABASE {} TO {}")
        self.connection.execute(grant.format(sql.Identifier(self.connection.info.dbname), sql.Identifier(self.owning)))
        self.owner = psycopg.connect(make_conninfo(dsn, user=self.owning), autocommit=True)
        self.owner.execute(f"CREATE SCHEMA {quoted(SCHEMA)}".encode())
        self.triggers = TriggerConfig()
        self.own(f"CREATE TABLE {self.table} (id int PRIMARY KEY, {quoted(HOSTILE)} json)")
        self.mirrors.clear()
        self.mirror(f"{SCHEMA}.{TABLE}")
        self.mirrors[0] = replace(self.mirrors[0], collection="odd")

    table = quoted(SCHEMA, TABLE)

    @property
    def config(self) -> Config:
        return replace(super().config, source=replace(super().config.source, triggers=self.triggers))

    def own(self, *statements: str) -> None:
        for statement in statements:
            self.owner.execute(statement.encode())

    def become(self, role: str) -> None:
        """docferry connects as this role."""
        self.dsn = make_conninfo(self.superuser, user=role)

    def grants(self, *, split: bool = False) -> Grants:
        self.dsn = self.superuser
        with self.app() as app:
            return app.grants(self.role, self.apply_role if split else None)

    def grant(self, *, split: bool = False) -> None:
        """Run the script."""
        self.connection.execute(self.grants(split=split).script.encode())

    def refusal(self) -> SourceRefused:
        with pytest.raises(SourceRefused) as caught, self.app() as app:
            app.check_rights("apply")
        return caught.value

    def close(self) -> None:
        self.owner.close()
        self.kill()
        for role in (self.role, self.apply_role, self.owning):
            if self.query("SELECT 1 FROM pg_roles WHERE rolname = %s", role):
                self.execute(f"DROP OWNED BY {quoted(role)} CASCADE", f"DROP ROLE {quoted(role)}")
        super().close()


@pytest.fixture
def ferry(request: pytest.FixtureRequest, database: str) -> Iterator[Guarded]:
    helper = Guarded(database, request.param)
    yield helper
    helper.close()


def _carry(ferry: Guarded) -> None:
    """Rows of before and of now arrive."""
    ferry.own(f"INSERT INTO {ferry.table} VALUES (2, '[2]'), (3, null)", f"DELETE FROM {ferry.table} WHERE id = 3")
    ferry.wait()
    assert ferry.documents(f"{SCHEMA}.{TABLE}") == {
        (1,): {"id": 1, HOSTILE: {"a": 1}},
        (2,): {"id": 2, HOSTILE: [2]},
    }


@pytest.mark.parametrize("split", [False, True], ids=["one role", "two roles"])
def test_the_script_is_enough(ferry: Guarded, *, split: bool) -> None:
    ferry.own(f"INSERT INTO {ferry.table} VALUES (1, '{{\"a\": 1}}')")
    ferry.grant(split=split)
    ferry.grant(split=split)
    ferry.become(ferry.apply_role if split else ferry.role)
    with ferry.app() as app:
        assert app.planned_steps()
        assert app.grants().missing == []
    ferry.apply()
    assert ferry.apply() == []
    ferry.become(ferry.role)
    ferry.start()
    ferry.wait()
    _carry(ferry)
    with ferry.app() as app:
        assert app.planned_steps() == []
        assert app.status().attention == []
    ferry.stop()
    ferry.become(ferry.apply_role if split else ferry.role)
    with ferry.app() as app:
        steps = app.destroyer().destroy(keep_collections=True)
    assert "dropped schema docferry" in steps
    assert ferry.query("SELECT 1 FROM pg_trigger WHERE NOT tgisinternal") == []
    left = ferry.query("SELECT 1 FROM pg_publication")
    assert bool(left) == (ferry.capture == "replication")
    assert (f"left publication {ferry.slot}, which another role owns" in steps) == bool(left)


def _revocations(ferry: Guarded) -> dict[str, str]:
    """What to take away, and the statement that gives it back."""
    role, table, schema = quoted(ferry.role), quoted_table(f"{SCHEMA}.{TABLE}"), quoted(SCHEMA)
    taken = {
        f"REVOKE USAGE ON SCHEMA {schema} FROM {role}": f"GRANT USAGE ON SCHEMA {schema} TO {role};",
        f"REVOKE SELECT ON TABLE {table} FROM {role}": f"GRANT SELECT ON TABLE {table} TO {role};",
        "ALTER SCHEMA docferry OWNER TO postgres": f"ALTER SCHEMA docferry OWNER TO {role};",
        f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY": f"ALTER ROLE {role} BYPASSRLS;",
        "DROP SCHEMA docferry": f"CREATE SCHEMA IF NOT EXISTS docferry AUTHORIZATION {role};",
    }
    if ferry.capture == "replication":
        publication = quoted(ferry.slot)
        listed = f"{publication} FOR TABLE {table} WITH (publish_via_partition_root = true);"
        everything = "publish = 'insert, update, delete, truncate', publish_via_partition_root = true"
        altered = f"ALTER PUBLICATION {publication}"
        taken |= {
            f"ALTER ROLE {role} NOREPLICATION": f"ALTER ROLE {role} REPLICATION;",
            f"DROP PUBLICATION {publication}": f"CREATE PUBLICATION {listed}",
            f"{altered} DROP TABLE {table}": f"{altered} SET TABLE {table};",
            f"{altered} SET (publish = 'insert')": f"{altered} SET ({everything});",
        }
    else:
        taken[f"REVOKE TRIGGER ON TABLE {table} FROM {role}"] = f"GRANT TRIGGER ON TABLE {table} TO {role};"
    return taken


def test_whatever_is_missing_is_named(ferry: Guarded) -> None:
    ferry.grant()
    for taking, giving in _revocations(ferry).items():
        ferry.become(ferry.role)
        with ferry.app() as app:
            app.check_rights("apply")
        ferry.execute(taking)
        refusal = ferry.refusal()
        assert giving in refusal.remedy, taking
        ferry.execute(refusal.remedy.partition(" (`docferry")[0])
    ferry.apply()


def test_what_another_role_applied_is_handed_over(ferry: Guarded) -> None:
    ferry.own(f"INSERT INTO {ferry.table} VALUES (1, '{{\"a\": 1}}')")
    ferry.apply()
    ferry.grant()
    ferry.become(ferry.role)
    ferry.apply()
    ferry.start()
    ferry.wait()
    _carry(ferry)


def test_a_publication_that_was_made_anew_is_another(ferry: Guarded) -> None:
    ferry.only_replication()
    ferry.own(f"INSERT INTO {ferry.table} VALUES (1, '{{\"a\": 1}}'), (7, '7')")
    ferry.grant()
    ferry.become(ferry.role)
    ferry.apply()
    ferry.start()
    ferry.wait()
    ferry.stop()
    ferry.execute(f"DROP PUBLICATION {quoted(ferry.slot)}")
    ferry.own(f"DELETE FROM {ferry.table} WHERE id = 7")
    ferry.grant()
    ferry.become(ferry.role)
    assert isinstance(refusal := ferry.failed_start(), HistoryChanged)
    assert "was dropped and created again" in str(refusal)
    steps = ferry.apply()
    assert f"created replication slot {ferry.slot}" in steps
    ferry.start()
    ferry.wait()
    _carry(ferry)


def test_the_owner_of_a_partitioned_table_may_go_on_making_partitions(ferry: Guarded) -> None:
    parted = quoted(SCHEMA, "parted")
    ferry.own(
        f"CREATE TABLE {parted} (id int PRIMARY KEY) PARTITION BY RANGE (id)",
        f"CREATE TABLE {quoted(SCHEMA, 'p0')} PARTITION OF {parted} FOR VALUES FROM (0) TO (10)",
    )
    ferry.mirror(f"{SCHEMA}.parted")
    ferry.grant()
    ferry.become(ferry.role)
    ferry.apply()
    ferry.start()
    ferry.own(
        f"CREATE TABLE {quoted(SCHEMA, 'p1')} PARTITION OF {parted} FOR VALUES FROM (10) TO (20)",
        f"INSERT INTO {parted} VALUES (1), (11)",
    )
    ferry.wait()
    assert sorted(ferry.documents(f"{SCHEMA}.parted")) == [(1,), (11,)]


def test_enable_always_takes_the_owner(ferry: Guarded) -> None:
    if ferry.capture == "replication":
        pytest.skip("this is about triggers")
    ferry.triggers = TriggerConfig(enable_always=True)
    script = ferry.grants().script
    assert f"GRANT {quoted(ferry.owning)} TO {quoted(ferry.role)};" in script
    assert "GRANT TRIGGER" not in script
    ferry.grant()
    ferry.become(ferry.role)
    ferry.apply()
    assert ferry.query("SELECT DISTINCT tgenabled::text FROM pg_trigger WHERE tgname LIKE 'sync%%'") == [("A",)]


def test_a_table_that_is_no_mirror_any_more(ferry: Guarded) -> None:
    """Only its owner may drop a trigger; the remedy is what the owner has to run."""
    if ferry.capture == "replication":
        pytest.skip("this is about triggers")
    ferry.own("CREATE SCHEMA plain", "CREATE TABLE plain.other (id int PRIMARY KEY)")
    ferry.mirror("plain.other")
    ferry.grant()
    ferry.become(ferry.role)
    ferry.apply()
    del ferry.mirrors[1]
    with pytest.raises(SourceRefused, match="only these may drop them") as caught:
        ferry.apply()
    ferry.own(caught.value.remedy)
    ferry.apply()


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ('a"b', '"a""b"'),
        ("a\\b", '"a\\b"'),
        ("a\nb\x1b[31m\\", 'U&"a\\000ab\\001b[31m\\\\"'),
        ("é\u202e", 'U&"é\\202e"'),
        ("%s {}", '"%s {}"'),
    ],
)
def test_names_are_quoted_for_psql_and_for_terminals(postgres: EmbeddedPostgres, name: str, shown: str) -> None:
    assert quoted(name) == shown
    with psycopg.connect(postgres.dsn()) as connection:
        cursor = connection.execute(f"SELECT 1 AS {shown}".encode())
        assert cursor.description is not None
        assert cursor.description[0].name == name
