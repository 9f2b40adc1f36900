"""The trigger functions and triggers of the capture modes `outbox` and `lambda`, as SQL."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import psycopg
from psycopg import sql

from docferry.capture.catalog import split_table
from docferry.source.statements import load

__all__ = [
    "CHANGES",
    "KEY_CHANGE",
    "NESTED",
    "TRUNCATE",
    "Definition",
    "TriggerSettings",
    "functions",
    "table_triggers",
]

CHANGES: Final = "sync_insert_update_delete_to_dynamodb"
TRUNCATE: Final = "sync_truncate_to_dynamodb"
KEY_CHANGE: Final = "sync_key_change_to_dynamodb"
NESTED: Final = "sync_nested_to_dynamodb"

_SQL: Final = load("triggers.sql")
# As pg_trigger.tgtype has it: 1 for each row, 4 insert, 8 delete, 16 update, 32 truncate.
_KINDS: Final = {CHANGES: 1 | 4 | 8 | 16, KEY_CHANGE: 1 | 16, NESTED: 1 | 4 | 8 | 16, TRUNCATE: 32}
# A change's row may fill so much of an event; the rest is for the description of its table.
_SHARE_OF_A_ROW: Final = 0.75
_MOST_BYTES_AS_JSON: Final = 6


@dataclass(frozen=True, slots=True)
class TriggerSettings:
    """What the functions are made of. `capture`: `outbox` or `lambda`. `timeout` and `breaker_pause`: seconds.
    `payload_limit`: bytes of an event; a row that does not fit is recorded by its key alone."""

    capture: str
    payload_limit: int = 1_000_000
    enable_always: bool = False
    deferred: bool = True
    owner: str | None = None
    function: str = "docferry"
    region: str = ""
    timeout: float = 1.0
    group: bool = True
    breaker_failures: int = 3
    breaker_pause: float = 30.0

    @property
    def sends(self) -> bool:
        """Whether the changes are sent to a function."""
        return self.capture == "lambda"


@dataclass(frozen=True, slots=True)
class Definition:
    """Something to create. `fingerprint`: kept as its comment, so that a difference is noticed. `replacing`: the
    statement for who may not drop what is there. `parts`: of a trigger, as the catalog has them: kind, deferred or not,
    arguments; they tell what a comment cannot where only the table's owner may write one."""

    name: str
    statement: sql.Composed
    fingerprint: str
    replacing: sql.Composed | None = None
    parts: tuple[int, bool, bytes] | None = None


def functions(
    settings: TriggerSettings, epoch: int, connection: psycopg.Connection[tuple[Any, ...]]
) -> list[Definition]:
    """The functions, in the order of their creation."""
    large = int(settings.payload_limit * _SHARE_OF_A_ROW)
    literals: dict[str, Any] = {
        "epoch": epoch,
        "small": large // _MOST_BYTES_AS_JSON,
        "large": large,
        "each_leads": settings.sends and not settings.group,
        "first_leads": settings.sends,
        "function": settings.function,
        "region": settings.region,
        "breaker_failures": settings.breaker_failures,
        "breaker_pause_ms": int(settings.breaker_pause * 1000),
        "payload_limit": settings.payload_limit,
        "timeout_ms": max(int(settings.timeout * 1000), 2),
        "group": settings.group,
    }
    values: dict[str, sql.Composable] = {name: sql.Literal(value) for name, value in literals.items()}
    values["once"] = sql.SQL(cast("Any", _SQL["once_lambda" if settings.sends else "once_outbox"] + ";"))
    wanted = [("sync_to_dynamodb", "sync")]
    if settings.sends:
        wanted += [("send_event", "send_event"), ("send_to_lambda", "send")]
    made = []
    for name, block in wanted:
        statement = sql.SQL(cast("Any", _SQL[block])).format(**values)
        made.append(Definition(name, statement, _fingerprint(statement.as_string(connection))))
    return made


def table_triggers(
    settings: TriggerSettings, table: str, key: Sequence[str], connection: psycopg.Connection[tuple[Any, ...]]
) -> list[Definition]:
    """The triggers of one table.

    In mode `lambda` the row triggers are the article's deferred constraint triggers. In mode `outbox`, and when asked
    not to defer, they are ordinary ones: PostgreSQL refuses TRUNCATE and ALTER TABLE of a table for which the same
    transaction has deferred events pending.
    """
    name = sql.Identifier(*split_table(table))
    arguments = sql.SQL(", ").join([sql.Literal(table), *(sql.Literal(column) for column in key)])
    deferred = settings.sends and settings.deferred
    kind = sql.SQL("CONSTRAINT TRIGGER" if deferred else "TRIGGER")
    timing = sql.SQL("DEFERRABLE INITIALLY DEFERRED FOR EACH ROW" if deferred else "FOR EACH ROW")
    old_key = sql.SQL(", ").join(sql.SQL("OLD.{}").format(sql.Identifier(column)) for column in key)
    new_key = sql.SQL(", ").join(sql.SQL("NEW.{}").format(sql.Identifier(column)) for column in key)
    # Keys that are equal for the server (by a collation, citext, interval) may be two items: their bytes are compared.
    # The operator, between two ROWs, would be applied to each column instead.
    statements = {
        CHANGES: sql.SQL(
            "CREATE {kind} {trigger} AFTER INSERT OR UPDATE OR DELETE ON {table} {timing} "
            "EXECUTE FUNCTION docferry.sync_to_dynamodb({arguments})"
        ),
        KEY_CHANGE: sql.SQL(
            "CREATE {kind} {trigger} AFTER UPDATE ON {table} {timing} "
            "WHEN (pg_catalog.record_image_ne(ROW({old}), ROW({new}))) "
            "EXECUTE FUNCTION docferry.sync_to_dynamodb({arguments})"
        ),
        # Never deferred: it tells of a statement within a statement while that is so.
        NESTED: sql.SQL(
            "CREATE TRIGGER {trigger} AFTER INSERT OR UPDATE OR DELETE ON {table} FOR EACH ROW "
            "WHEN (pg_catalog.pg_trigger_depth() > 0) EXECUTE FUNCTION docferry.sync_to_dynamodb({arguments})"
        ),
        TRUNCATE: sql.SQL(
            "CREATE TRIGGER {trigger} AFTER TRUNCATE ON {table} FOR EACH STATEMENT "
            "EXECUTE FUNCTION docferry.sync_to_dynamodb({arguments})"
        ),
    }
    made = []
    row = connection.execute(load("outbox.sql")["trigger_arguments"].encode(), ([table, *key],)).fetchone()
    assert row is not None
    for trigger, template in statements.items():
        words = {
            "trigger": sql.Identifier(trigger),
            "table": name,
            "timing": timing,
            "old": old_key,
            "new": new_key,
            "arguments": arguments,
        }
        statement = template.format(kind=kind, **words)
        # There is no OR REPLACE for constraint triggers.
        is_constraint = deferred and trigger in (CHANGES, KEY_CHANGE)
        replacing = None if is_constraint else _or_replace(template).format(kind=kind, **words)
        parts = (_KINDS[trigger], is_constraint, bytes(row[0]))
        made.append(Definition(trigger, statement, _fingerprint(statement.as_string(connection)), replacing, parts))
    return made


def _or_replace(template: sql.SQL) -> sql.SQL:
    return sql.SQL(cast("Any", template.as_string().replace("CREATE ", "CREATE OR REPLACE ", 1)))


def _fingerprint(statement: str) -> str:
    return "docferry " + hashlib.blake2b(statement.encode(), digest_size=8).hexdigest()
