"""Dead letters in the source database, beside the rows they are about."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Final

import psycopg
from psycopg.types.json import Jsonb

from docferry.change.model import Op
from docferry.deadletter.contract import AuditEntry, DeadLetter, DeadLetterGroup, StoredDeadLetter, fate
from docferry.errors import SourceRefused
from docferry.failpoints import boundary
from docferry.source.operator import operator
from docferry.source.session import close_shared, connect, translated
from docferry.source.statements import load

__all__ = ["PostgresDeadLetters"]

_SQL: Final = load("dead_letters.sql")
_RETENTION: Final = 90 * 86400.0


class PostgresDeadLetters:
    """contract.DeadLetters over one connection that is opened when needed and again after it broke. What leaves is
    told of in the audit, whose entries stand for `retention` seconds."""

    def __init__(self, dsn: str, *, retention: float = _RETENTION) -> None:
        self._dsn = dsn
        self._retention = retention
        self._lock = threading.Lock()
        self._connection: psycopg.Connection[tuple[Any, ...]] | None = None

    @property
    def unread(self) -> str:
        """See the contract."""
        return ""

    @boundary("deadletters.add")
    def add(self, letters: Sequence[DeadLetter]) -> None:
        """See the contract. Rows are read again from here: what is replayed without the database is not kept."""
        parameters = [
            (
                letter.table,
                Jsonb(dict(letter.key)),
                letter.version,
                letter.op.value,
                letter.cause,
                # PostgreSQL's text cannot hold NUL; a message that quotes the target's may.
                letter.problem.replace("\0", "\\0"),
                letter.limit,
                letter.remedy,
            )
            # In the order of their keys, so that two writers cannot deadlock.
            for letter in sorted(letters, key=lambda one: (one.table, sorted(one.key.items())))
        ]
        if not parameters:
            return
        with self._lock, translated():
            connection = self._open()
            with connection.transaction(), connection.cursor() as cursor:
                cursor.executemany(_SQL["add"].encode(), parameters)

    def groups(self) -> list[DeadLetterGroup]:
        """See the contract."""
        return [DeadLetterGroup(*row) for row in self._execute("groups", ())]

    def find(
        self,
        *,
        table: str | None = None,
        cause: str | None = None,
        ids: Sequence[int] | None = None,
        keys: Sequence[Mapping[str, str]] | None = None,
        after: int = 0,
        limit: int = 1000,
    ) -> list[StoredDeadLetter]:
        """See the contract."""
        rows = self._execute(
            "find",
            {
                "table": table,
                "cause": cause,
                "ids": None if ids is None else list(ids),
                "keys": None if keys is None else [json.dumps(dict(key)) for key in keys],
                "after": after,
                "limit": limit,
            },
        )
        return [
            StoredDeadLetter(
                id_,
                DeadLetter(where, key, int(version), Op(op), why, problem, limit_text, remedy),
                attempts,
                first_at,
                last_at,
            )
            for id_, where, key, version, op, why, problem, limit_text, remedy, attempts, first_at, last_at in rows
        ]

    def count(self) -> dict[str, int]:
        """See the contract."""
        return {table: int(count) for table, count in self._execute("count", ())}

    @boundary("deadletters.remove")
    def remove(self, letters: Sequence[StoredDeadLetter], outcomes: Mapping[int, str] | None = None) -> int:
        """See the contract. The audit's entries are of the same transaction."""
        if not letters:
            return 0
        ((removed,),) = self._execute(
            "remove",
            {
                "ids": [stored.id for stored in letters],
                "attempts": [stored.attempts for stored in letters],
                "outcomes": [fate(outcomes, stored.id)[1] for stored in letters],
                "action": fate(outcomes, 0)[0],
                "who": operator(),
                "kept": self._retention,
            },
        )
        return int(removed)

    def tell(self, letters: Sequence[StoredDeadLetter], outcomes: Mapping[int, str] | None) -> None:
        """Put entries into the audit of dead letters that another store removes."""
        entries = [
            (
                operator(),
                *fate(outcomes, stored.id),
                stored.id,
                stored.letter.table,
                Jsonb({name: text.replace("\0", "\\0") for name, text in stored.letter.key.items()}),
                stored.letter.version,
                stored.letter.op.value,
                stored.letter.cause.replace("\0", "\\0"),
                stored.attempts,
                stored.first_at,
            )
            for stored in letters
        ]
        with self._lock, translated():
            connection = self._open()
            with connection.transaction(), connection.cursor() as cursor:
                cursor.executemany(_SQL["tell"].encode(), entries)
                cursor.execute(_SQL["forget"].encode(), (self._retention,))

    def audit(self, *, table: str | None = None, before: int | None = None, limit: int = 100) -> list[AuditEntry]:
        """The newest entries of the audit, `before` an id."""
        rows = self._execute("audit", {"table": table, "before": before, "limit": limit})
        return [
            AuditEntry(id_, at, os_user, db_user, action, outcome, letter, where, key, int(version), Op(op), *rest)
            for id_, at, os_user, db_user, action, outcome, letter, where, key, version, op, *rest in rows
        ]

    def check(self) -> None:
        """Raises what would keep the next dead letter from being kept: a missing table or right, a source that is a
        standby. Nothing is written."""
        ((granted, standby),) = self._execute("check", ())
        if not granted:
            raise SourceRefused(
                "no right to write to docferry.dead_letters", remedy="Run `docferry apply` as its owner."
            )
        if standby:
            raise SourceRefused(
                "the source is a standby: it takes no writes", remedy="Point [source] dsn at the primary."
            )

    def close(self) -> None:
        """Release the connection."""
        close_shared(self._lock, self._connection)

    def _execute(self, name: str, parameters: Any) -> list[tuple[Any, ...]]:
        with self._lock, translated():
            return self._open().execute(_SQL[name].encode(), parameters).fetchall()

    def _open(self) -> psycopg.Connection[tuple[Any, ...]]:
        if self._connection is None or self._connection.closed:
            self._connection = connect(self._dsn, purpose="dead letters")
        return self._connection
