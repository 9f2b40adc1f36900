"""The rights that docferry needs in the source, as the statements that give them, and which of them a role lacks.

Applying and running are two things: what runs day and night needs the least, and in the trigger modes much less than
what applies. Both may be one role.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

import psycopg

from docferry.capture.catalog import split_table
from docferry.errors import SourceRefused
from docferry.printable import UNSAFE_ON_A_LINE
from docferry.source.session import connect, translated
from docferry.source.statements import load

__all__ = ["Grants", "Right", "RightsWanted", "Stage", "check_rights", "grants", "quoted", "quoted_table"]

_SQL: Final = load("rights.sql")

Stage: TypeAlias = Literal["apply", "run"]
Connection: TypeAlias = psycopg.Connection[tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class RightsWanted:
    """What the rights are for. `function_owner`: [source.triggers] owner. `enable_always`: see [source.triggers].
    `by_token`: the roles log in with tokens of IAM."""

    capture: str
    tables: Sequence[str]
    publication: str
    function_owner: str | None = None
    enable_always: bool = False
    by_token: bool = False

    @property
    def by_triggers(self) -> bool:
        """Whether triggers capture."""
        return self.capture != "replication"

    @property
    def sends(self) -> bool:
        """Whether the function owner calls Lambda."""
        return self.capture == "lambda"


@dataclass(frozen=True, slots=True)
class Right:
    """A right and the statements that give it, each complete, with a semicolon. `stages`: what it is needed for.
    `held`: the role has it, or what it is for is there already. `optional`: docferry says less without it."""

    stages: frozenset[Stage]
    why: str
    statements: tuple[str, ...]
    held: bool
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Grants:
    """The rights of two roles, which may be one. `connected`: the role that asked."""

    database: str
    connected: str
    role: str
    apply_role: str
    rights: list[Right] = field(default_factory=list)

    @property
    def missing(self) -> list[Right]:
        """Those that are needed and not there."""
        return [right for right in self.rights if not right.held and not right.optional]

    @property
    def script(self) -> str:
        """All statements, ready for psql; whoever owns the tables, or a superuser, runs it."""
        lines = [
            "-- The rights that docferry needs in this database. Run it as a superuser (on RDS and Aurora: the master"
        ]
        lines += ["-- user), in this database. It may be run again, and must be when [[mirrors]] changes."]
        for right in self.rights:
            stages = " and ".join(f"`docferry {stage}`" for stage in ("apply", "run") if stage in right.stages)
            lines += ["", f"-- {right.why} ({'optional' if right.optional else f'for {stages}'})", *right.statements]
        return "\n".join(lines)


def quoted(*names: str) -> str:
    """An identifier, qualified or not, quoted always; what is unsafe on a terminal is written as escapes, so
    that it is shown as it is."""
    return ".".join(_quoted(name) for name in names)


def quoted_table(table: str) -> str:
    """A configured table's name as SQL."""
    return quoted(*split_table(table))


def _quoted(name: str) -> str:
    inside = name.replace('"', '""')
    if not UNSAFE_ON_A_LINE.search(name):
        return f'"{inside}"'
    inside = inside.replace("\\", "\\\\")
    return 'U&"' + UNSAFE_ON_A_LINE.sub(lambda found: f"\\{ord(found.group()):04x}", inside) + '"'


def grants(
    dsn: str, wanted: RightsWanted, *, role: str | None = None, apply_role: str | None = None, just_us: bool = False
) -> Grants:
    """What `role` needs to run and `apply_role` to apply; by default one role for both: the connected one, or
    `docferry` when that may do anything. `just_us`: the connected one in any case. Raises SourceUnavailable,
    SourceRefused."""
    with connect(dsn, purpose="setup") as connection, translated():
        connected, database, on_rds = _row(connection, "whoami")
        if role is None:
            usual = just_us or not _is_mighty(connection, str(connected), wanted)
            role = str(connected) if usual else "docferry"
        look = _Look(connection, wanted, str(database), role, apply_role or role, on_rds=bool(on_rds))
        return Grants(str(database), str(connected), role, apply_role or role, look.rights())


def check_rights(dsn: str, wanted: RightsWanted, stage: Stage | Literal["plan"]) -> None:
    """Raises SourceRefused when the connected role lacks something for this stage, naming what gives it. `plan` reads
    like `run`; a role that cannot do that is told all that `apply` needs."""
    found = grants(dsn, wanted, just_us=True)
    missing = [right for right in found.missing if stage in right.stages]
    if stage == "plan" and any("run" in right.stages for right in found.missing):
        stage, missing = "apply", found.missing
    if missing:
        raise SourceRefused(
            f"role {found.connected} lacks rights for `docferry {stage}`: {'; '.join(right.why for right in missing)}",
            remedy=" ".join(statement for right in missing for statement in right.statements)
            + " (`docferry plan --grants` prints all of it for psql)",
        )


def _is_mighty(connection: Connection, role: str, wanted: RightsWanted) -> bool:
    """A superuser, or the owner of a mirrored table."""
    return bool(_row(connection, "role", (role,))[0]) or any(row[-1] for row in _tables(connection, wanted, role))


class _Look:
    """One look at the catalog for two roles. Role names that do not exist have no right."""

    def __init__(
        self, connection: Connection, wanted: RightsWanted, database: str, role: str, apply_role: str, *, on_rds: bool
    ) -> None:
        self._connection = connection
        self._wanted = wanted
        self._database = database
        self._on_rds = on_rds
        self._names = {"run": role, "apply": apply_role}
        self._known = {
            name: connection.execute(_SQL["role"].encode(), (name,)).fetchone() for name in (role, apply_role)
        }

    def rights(self) -> list[Right]:
        """Everything, in an order in which it can be run."""
        found: list[Right] = []
        for name, stages in self._roles():
            found += self._of_role(name, stages)
        for name, stages in self._roles():
            found += self._of_tables(name, stages)
        found += self._of_schema()
        found += self._of_triggers() if self._wanted.by_triggers else self._of_publication()
        for name, stages in self._roles():
            found.append(
                Right(
                    stages,
                    "to see whom a backfill waits for, and how much WAL lies on the disk",
                    (f"GRANT pg_monitor TO {quoted(name)};",),
                    self._has(name, 5),
                    optional=True,
                )
            )
        return found

    def _roles(self) -> list[tuple[str, frozenset[Stage]]]:
        apply_role, role = self._names["apply"], self._names["run"]
        if apply_role == role:
            return [(role, frozenset(("apply", "run")))]
        return [(apply_role, frozenset(("apply",))), (role, frozenset(("run",)))]

    def _has(self, name: str, column: int) -> bool:
        known = self._known[name]
        return known is not None and bool(known[0] or known[column])

    def _of_role(self, name: str, stages: frozenset[Stage]) -> list[Right]:
        role = quoted(name)
        found = []
        if self._known[name] is None:
            made = f"CREATE ROLE {role} LOGIN;"
            found.append(Right(stages, "a role of its own; psql's \\password gives it a password", (made,), held=False))
        connects = f"GRANT CONNECT ON DATABASE {quoted(self._database)} TO {role};"
        found.append(Right(stages, "to log in", (connects,), self._has(name, 3)))
        if self._wanted.by_token:
            known = self._known[name]
            held = known is not None and bool(known[6])
            statement = f"GRANT rds_iam TO {role};"
            found.append(Right(stages, "to log in with a token of IAM", (statement,), held))
        if not self._wanted.by_triggers:
            statement = f"GRANT rds_replication TO {role};" if self._on_rds else f"ALTER ROLE {role} REPLICATION;"
            why = "to make and read a replication slot" + (
                "" if self._on_rds else " (on RDS and Aurora: rds_replication)"
            )
            found.append(Right(stages, why, (statement,), self._has(name, 1)))
        return found

    def _of_tables(self, name: str, stages: frozenset[Stage]) -> list[Right]:
        found: list[Right] = []
        schemas: dict[str, bool] = {}
        readable: list[Right] = []
        for shown, _, _, _, hides_rows, uses, selects, _, owns in _tables(
            self._connection, self._wanted, self._or_none(name)
        ):
            schemas[split_table(shown)[0]] = bool(uses)
            statement = f"GRANT SELECT ON TABLE {quoted_table(shown)} TO {quoted(name)};"
            readable.append(Right(stages, "to read a mirrored table", (statement,), bool(selects)))
            if hides_rows and not owns:
                statement = f"ALTER ROLE {quoted(name)} BYPASSRLS;"
                right = Right(
                    stages, "to see every row of a table with row level security", (statement,), self._has(name, 2)
                )
                found.append(right)
        found += [
            Right(
                stages, "to reach mirrored tables", (f"GRANT USAGE ON SCHEMA {quoted(one)} TO {quoted(name)};",), held
            )
            for one, held in schemas.items()
        ]
        return list(dict.fromkeys(found)) + readable

    def _of_schema(self) -> list[Right]:
        apply_role, role = self._names["apply"], self._names["run"]
        apply_only: frozenset[Stage] = frozenset(("apply",))
        schema = self._optional("schema", {"role": self._or_none(apply_role)})
        why = "a schema of docferry's own for what it remembers (or GRANT CREATE ON DATABASE, and apply makes it)"
        statement = f"CREATE SCHEMA IF NOT EXISTS docferry AUTHORIZATION {quoted(apply_role)};"
        found = []
        if schema is None:
            found.append(Right(apply_only, why, (statement,), self._has(apply_role, 4)))
        else:
            uses, creates, _ = schema
            if not (uses and creates):
                statement = f"ALTER SCHEMA docferry OWNER TO {quoted(apply_role)};"
            found.append(Right(apply_only, why, (statement,), bool(uses and creates)))
            strange = self._all("not_owned", {"role": self._or_none(apply_role)})
            if strange:
                moved = tuple(f"ALTER {kind} {name} OWNER TO {quoted(apply_role)};" for kind, name in strange)
                found.append(Right(apply_only, "to own what another role made there", moved, held=False))
        if role != apply_role:
            found.append(self._of_runner(role, apply_role))
        elif schema is not None and not self._may_write(role):
            found.append(Right(frozenset(("run",)), "to write down what it remembers", _writing(role), held=False))
        return found

    def _of_runner(self, role: str, apply_role: str) -> Right:
        schema = self._optional("schema", {"role": self._or_none(role)})
        defaults = f"ALTER DEFAULT PRIVILEGES FOR ROLE {quoted(apply_role)} IN SCHEMA docferry GRANT"
        statements = (
            *_writing(role),
            f"{defaults} SELECT, INSERT, UPDATE, DELETE ON TABLES TO {quoted(role)};",
            f"{defaults} USAGE, SELECT, UPDATE ON SEQUENCES TO {quoted(role)};",
        )
        held = schema is not None and bool(schema[0]) and self._may_write(role)
        return Right(frozenset(("run",)), "to write down what it remembers", statements, held)

    def _may_write(self, role: str) -> bool:
        return bool(self._row("may_write", {"role": self._or_none(role)})[0])

    def _of_publication(self) -> list[Right]:
        """A publication that is right already needs no right at all, and making one takes ownership of every table: so
        it is made beforehand, by their owner."""
        apply_role = self._names["apply"]
        tables = _tables(self._connection, self._wanted, self._or_none(apply_role))
        name, listed = quoted(self._wanted.publication), ", ".join(quoted_table(row[0]) for row in tables)
        owns_all = all(row[-1] for row in tables)
        parameters = {"role": self._or_none(apply_role), "publication": self._wanted.publication}
        found = self._optional("publication", parameters)
        why = "what is published; only the owner of the tables may say so"
        stages: frozenset[Stage] = frozenset(("apply",))
        if not tables:
            return []
        if found is None:
            statement = f"CREATE PUBLICATION {name} FOR TABLE {listed} WITH (publish_via_partition_root = true);"
            return [Right(stages, why, (statement,), owns_all and self._has(apply_role, 4))]
        owned, for_all, complete, published = found
        if for_all:
            return []  # somebody else's; the setup refuses it
        statements = []
        if not complete:
            everything = "publish = 'insert, update, delete, truncate', publish_via_partition_root = true"
            statements.append(f"ALTER PUBLICATION {name} SET ({everything});")
        if set(published) != {row[0] for row in tables}:
            statements.append(f"ALTER PUBLICATION {name} SET TABLE {listed};")
        if not statements:
            return []
        return [Right(stages, why, tuple(statements), bool(owned) and owns_all)]

    def _of_triggers(self) -> list[Right]:
        apply_role, wanted = self._names["apply"], self._wanted
        stages: frozenset[Stage] = frozenset(("apply",))
        role = self._or_none(apply_role)
        found = []
        for shown, oid, owner, partitioned, _, _, _, triggers, owns in _tables(self._connection, wanted, role):
            if wanted.enable_always:
                statement = f"GRANT {quoted(owner)} TO {quoted(apply_role)};"
                why = "ENABLE ALWAYS TRIGGER needs the table's owner; REVOKE it after `docferry apply`"
                found.append(Right(stages, why, (statement,), bool(owns)))
                continue
            places = [(quoted_table(shown), bool(triggers))]
            if partitioned:
                parts = self._all("partitions", {"role": role, "oid": oid})
                places += [(quoted(schema, name), bool(held)) for schema, name, held in parts]
            statements = tuple(f"GRANT TRIGGER ON TABLE {place} TO {quoted(apply_role)};" for place, _ in places)
            why = "to make docferry's triggers; it may be revoked after `docferry apply`"
            found.append(Right(stages, why, statements, all(held for _, held in places)))
        owner = wanted.function_owner
        if owner is not None:
            member, exists = self._row("role_state", {"role": role, "owner": owner})
            statements = (f"GRANT {quoted(owner)} TO {quoted(apply_role)};",)
            if not exists:
                statements = (f"CREATE ROLE {quoted(owner)} NOLOGIN;", *statements)
            found.append(Right(stages, "the role that owns the trigger functions", statements, bool(member)))
        if wanted.sends:
            found.append(self._of_lambda(owner or apply_role))
        return found

    def _of_lambda(self, invoker: str) -> Right:
        known = self._connection.execute(_SQL["role"].encode(), (invoker,)).fetchone()
        row = self._optional("lambda", {"role": None if known is None else invoker})
        statements: tuple[str, ...] = (
            f"GRANT USAGE ON SCHEMA aws_lambda TO {quoted(invoker)};",
            f"GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA aws_lambda TO {quoted(invoker)};",
        )
        if row is None:
            statements = ("CREATE EXTENSION IF NOT EXISTS aws_lambda CASCADE;", *statements)
        # A missing extension is another refusal's business: where the server offers it, `apply` may make it.
        held = row is None or bool(row[0])
        return Right(frozenset(("apply",)), "the owner of the trigger functions calls the function", statements, held)

    def _or_none(self, name: str) -> str | None:
        return None if self._known[name] is None else name

    def _row(self, name: str, parameters: Any) -> tuple[Any, ...]:
        return _row(self._connection, name, parameters)

    def _optional(self, name: str, parameters: Any) -> tuple[Any, ...] | None:
        return self._connection.execute(_SQL[name].encode(), parameters).fetchone()

    def _all(self, name: str, parameters: Any) -> list[tuple[Any, ...]]:
        return self._connection.execute(_SQL[name].encode(), parameters).fetchall()


def _writing(role: str) -> tuple[str, ...]:
    return (
        f"GRANT USAGE ON SCHEMA docferry TO {quoted(role)};",
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA docferry TO {quoted(role)};",
        f"GRANT USAGE, SELECT, UPDATE ON ALL SEQUENCES IN SCHEMA docferry TO {quoted(role)};",
    )


def _tables(connection: Connection, wanted: RightsWanted, role: str | None) -> list[tuple[Any, ...]]:
    names = [split_table(table) for table in wanted.tables]
    parameters = {
        "role": role,
        "shown": list(wanted.tables),
        "schemas": [schema for schema, _ in names],
        "names": [name for _, name in names],
    }
    return connection.execute(_SQL["tables"].encode(), parameters).fetchall()


def _row(connection: Connection, name: str, parameters: Any = None) -> tuple[Any, ...]:
    row = connection.execute(_SQL[name].encode(), parameters).fetchone()
    assert row is not None
    return row
