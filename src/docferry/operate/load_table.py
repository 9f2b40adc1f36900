"""The table that the load generator works on, and taking it out of the mirror for a while."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import psycopg
from psycopg import sql

from docferry.config.names import quoted_table, split_table
from docferry.errors import ConfigError, DocferryError, SourceRefused
from docferry.source.session import connect, translated
from docferry.source.statements import load

__all__ = ["OWN_TABLE", "Capture", "LoadTable"]

OWN_TABLE: Final = "public.docferry_load"

_SQL: Final = load("load.sql")
_COLUMNS: Final = ("id", "order_status", "order_data", "created_at", "updated_at")
_ENABLE: Final = {"O": "ENABLE", "A": "ENABLE ALWAYS", "R": "ENABLE REPLICA"}
_CHUNK: Final = 500

_Connection: TypeAlias = psycopg.Connection[tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class Capture:
    """What carries a table's changes to the mirror: the publication, and docferry's triggers with how they fire (O, A
    or R, as pg_trigger.tgenabled)."""

    publication: str | None = None
    triggers: tuple[tuple[str, str], ...] = ()

    def __bool__(self) -> bool:
        return self.publication is not None or bool(self.triggers)


class LoadTable:
    """A table with the shape of the article's. Rows that were there before are never touched.

    `name`: as people write it. `publication`: the one of the configuration. Raises ConfigError for what is no name.
    """

    def __init__(self, dsn: str, name: str, publication: str) -> None:
        parts = split_table(name)
        if parts is None:
            raise ConfigError(f"--table {name!r} is not a table's name", remedy='Write it as orders or "Shop".orders.')
        self._dsn = dsn
        self._parts = parts
        self._publication = publication
        self._identifier = sql.Identifier(*parts)
        self.name = quoted_table(*parts)

    def prepare(self) -> None:
        """Create the generator's own table where it is missing, and check the shape of any other.

        Raises ConfigError, SourceRefused, SourceUnavailable.
        """
        with self._connected() as connection:
            row = connection.execute(_SQL["columns"].encode(), self._parts).fetchone()
            if row is None and self.name == OWN_TABLE:
                connection.execute(_SQL["create"].encode())
                return
        if row is None:
            raise ConfigError(
                f"table {self.name} does not exist in the source",
                remedy=f"Leave --table out: then the load is on {OWN_TABLE}, which is created.",
            )
        missing = [column for column in _COLUMNS if column not in (row[0] or ())]
        if missing:
            raise ConfigError(
                f"table {self.name} has no column {', '.join(missing)}",
                remedy=f"The load needs the columns {', '.join(_COLUMNS)}, with defaults for id and both times.",
            )

    def statement(self, name: str) -> bytes:
        """One of the four kinds of statement, with parameters $1 and $2."""
        return sql.SQL(_SQL[name]).format(table=self._identifier).as_bytes(None)

    def remove(self, ids: Sequence[bytes]) -> Iterator[int]:
        """Remove rows, chunk by chunk; yields how many have gone each time. Raises SourceRefused, SourceUnavailable."""
        query = sql.SQL(_SQL["remove"]).format(table=self._identifier)
        with self._connected() as connection:
            for start in range(0, len(ids), _CHUNK):
                chunk = ids[start : start + _CHUNK]
                connection.execute(query, (_array(chunk),))
                yield start + len(chunk)

    def capture(self) -> Capture:
        """What carries its changes to the mirror at present."""
        with self._connected() as connection:
            row = connection.execute(_SQL["published"].encode(), (*self._parts, self._publication)).fetchone()
            triggers = connection.execute(_SQL["triggers"].encode(), self._parts).fetchall()
        return Capture(
            self._publication if row is not None and row[0] else None,
            tuple((str(name), str(fires)) for name, fires in triggers),
        )

    @contextmanager
    def unmirrored(self, capture: Capture) -> Iterator[None]:
        """While inside, `capture` is out of force. Only for a table that nobody else writes to: changes made inside
        never reach the mirror. Raises SourceRefused when it cannot be put back."""
        self._alter(capture, on=False)
        try:
            yield
        finally:
            try:
                self._alter(capture, on=True)
            except DocferryError as error:
                raise SourceRefused(
                    f"{self.name} is out of the mirror and could not be put back: {error}",
                    remedy="Run `docferry apply`, which puts it back and populates its collection again.",
                ) from error

    def _alter(self, capture: Capture, *, on: bool) -> None:
        with self._connected() as connection, connection.transaction():
            if capture.publication is not None:
                change = sql.SQL("ADD" if on else "DROP")
                connection.execute(
                    sql.SQL("ALTER PUBLICATION {} {} TABLE {}").format(
                        sql.Identifier(capture.publication), change, self._identifier
                    )
                )
            for name, fires in capture.triggers:
                switch = sql.SQL(_ENABLE[fires]) if on else sql.SQL("DISABLE")
                connection.execute(
                    sql.SQL("ALTER TABLE {} {} TRIGGER {}").format(self._identifier, switch, sql.Identifier(name))
                )

    @contextmanager
    def _connected(self) -> Iterator[_Connection]:
        with connect(self._dsn, purpose="load setup") as connection, translated():
            # Whoever waits for a strong lock makes everybody else wait, too.
            connection.execute("SET lock_timeout = '10s'")
            yield connection


def _array(ids: Sequence[bytes]) -> str:
    """An array literal, which takes the type of the column that it is compared with."""
    quoted = (one.decode().replace("\\", "\\\\").replace('"', '\\"') for one in ids)
    return "{" + ",".join(f'"{one}"' for one in quoted) + "}"
