"""An application that works on a table from several sessions at once, as awkwardly as applications do."""

from __future__ import annotations

import base64
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import psycopg
from psycopg import sql

from ..waiting import PATIENCE

__all__ = ["SCHEMA", "Workload", "big_xml", "settings_json"]

SCHEMA = """
CREATE TABLE {table} (
    id bigint PRIMARY KEY,
    customer text,
    status text NOT NULL,
    quantity integer NOT NULL DEFAULT 0,
    total numeric(14, 4),
    changed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    order_data xml,
    settings jsonb
)
"""

Connection = psycopg.Connection[tuple[Any, ...]]

# What an application answers by rolling back: two sessions want the same key, or each other's locks.
_EXPECTED = (
    psycopg.errors.UniqueViolation,
    psycopg.errors.DeadlockDetected,
    psycopg.errors.SerializationFailure,
)
_STATUSES = ("new", "paid", "packed", "shipped", "returned")


def big_xml(rng: random.Random, size: int = 6000) -> str:
    """A document that does not compress, so that PostgreSQL stores it out of line: an update that leaves it alone does
    not bring it along."""
    noise = base64.b64encode(rng.randbytes(size * 3 // 4)).decode()
    lines = "".join(
        f'<line sku="{rng.randrange(10**6)}"><quantity>{rng.randrange(9)}</quantity></line>'
        for _ in range(rng.randrange(4))
    )
    return f'<order number="{rng.randrange(10**9)}"><note/>{lines}<blob>{noise}</blob></order>'


def settings_json(rng: random.Random) -> str:
    """A small document with nested numbers of many digits."""
    return json.dumps(
        {
            "colour": rng.choice(["red", "grün", "青"]),
            "weights": [rng.randrange(10**15), rng.randrange(100) / 8, None, True],
            "deep": {"er": {"price": rng.randrange(10**6) / 100}},
        }
    )


@dataclass
class Workload:
    """`writers` sessions work for `seconds` on keys 1 to `keys`, which overlap.

    `outages`: the server may go away meanwhile; a writer then connects again. `pause`: seconds that a writer rests
    between transactions, at most. `documents`: sizes of documents, in characters about. `enough`: they go on for longer
    until this holds of what was done. As a context manager it runs beside the block, and leaving it waits for its end.
    """

    dsn: str
    table: str = "orders"
    seconds: float = 10.0
    writers: int = 3
    keys: int = 300
    pause: float = 0.004
    outages: bool = False
    documents: Sequence[int] = (6000,)
    enough: Callable[[Counter[str]], bool] = lambda _: True
    seed: int = field(default_factory=lambda: random.randrange(2**32))
    done: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._threads: list[threading.Thread] = []
        self._failures: list[BaseException] = []
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._ends = self._latest = 0.0

    def run(self) -> Counter[str]:
        """Work, and return how often what was done and committed."""
        with self:
            pass
        return self.done

    def __enter__(self) -> Self:
        print(f"workload on {self.table}: seed={self.seed}")  # noqa: T201 - shown by pytest when the test fails
        self._ends = time.monotonic() + self.seconds
        self._latest = self._ends + PATIENCE
        for number in range(self.writers):
            thread = threading.Thread(target=self._write, args=(number,), name=f"writer-{number}")
            self._threads.append(thread)
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._stop.set()
        for thread in self._threads:
            thread.join()
        print(f"workload on {self.table}: {dict(sorted(self.done.items()))}")  # noqa: T201 - the same
        if self._failures and error is None:
            raise self._failures[0]

    def _write(self, number: int) -> None:
        rng = random.Random(self.seed * 100 + number)
        try:
            while self.going_on():
                try:
                    with psycopg.connect(self.dsn, autocommit=True, connect_timeout=5) as connection:
                        self._session(connection, rng)
                except psycopg.OperationalError:
                    if not self.outages:
                        raise
                    time.sleep(0.1)
        except BaseException as error:  # noqa: BLE001 - raised again where the workload ends
            self._failures.append(error)

    def finish(self, after: float) -> None:
        """Let it end so many seconds from now, when it was to go on for longer."""
        self._ends = self._latest = min(self._ends, time.monotonic() + after)

    def going_on(self) -> bool:
        """Whether its time is not over yet."""
        now = time.monotonic()
        return not self._stop.is_set() and now < self._latest and (now < self._ends or not self.enough(self.done))

    def _session(self, connection: Connection, rng: random.Random) -> None:
        connection.execute("SET deadlock_timeout = '50ms'")
        while self.going_on():
            kind = rng.choices(["single", "several", "rolled back", "savepoint"], [70, 15, 8, 7])[0]
            done: list[str] = []
            try:
                with connection.transaction():
                    statements = 1 if kind == "single" else rng.randrange(2, 7)
                    done.extend(self._change(connection, rng) for _ in range(statements))
                    if kind == "savepoint":
                        with connection.transaction() as inner:
                            self._change(connection, rng)
                            raise psycopg.Rollback(inner)
                    if kind == "rolled back":
                        raise psycopg.Rollback
            except _EXPECTED as error:
                done, kind = [], type(error).__name__
            except psycopg.Rollback as lost:
                # psycopg lets it out when the connection breaks while it rolls back.
                raise psycopg.OperationalError("the connection was lost in a rollback") from lost
            with self._lock:
                self.done[kind] += 1
                if kind != "rolled back":
                    self.done.update(done)
            time.sleep(rng.random() * self.pause)

    def _change(self, connection: Connection, rng: random.Random) -> str:
        """One statement; returns its kind, `... of nothing` when no row was met."""
        kind = rng.choices(["insert", "beside", "document", "delete", "move"], [25, 35, 15, 15, 10])[0]
        key = rng.randint(1, self.keys)
        match kind:
            case "insert":
                found = connection.execute(
                    self._sql(
                        "INSERT INTO {} (id, customer, status, quantity, total, order_data, settings)"
                        " VALUES (%s, %s, %s, %s, %s, %s, %s) ON CONFLICT (id) DO NOTHING"
                    ),
                    [
                        key,
                        rng.choice([None, "", "Ada Lovelace", "Ærøskøbing \N{SNOWMAN}"]),
                        rng.choice(_STATUSES),
                        rng.randrange(-5, 1000),
                        rng.randrange(10**9) / 10**4,
                        None if rng.random() < 0.05 else big_xml(rng, rng.choice(self.documents)),
                        None if rng.random() < 0.1 else settings_json(rng),
                    ],
                )
            case "beside":
                found = connection.execute(
                    self._sql("UPDATE {} SET status = %s, quantity = quantity + 1 WHERE id = %s"),
                    [rng.choice(_STATUSES), key],
                )
            case "document":
                found = connection.execute(
                    self._sql("UPDATE {} SET order_data = %s, changed_at = clock_timestamp() WHERE id = %s"),
                    [big_xml(rng, rng.choice(self.documents)), key],
                )
            case "delete":
                found = connection.execute(self._sql("DELETE FROM {} WHERE id = %s"), [key])
            case _:
                found = connection.execute(
                    self._sql("UPDATE {} SET id = %s WHERE id = %s"), [rng.randint(1, self.keys), key]
                )
        return kind if found.rowcount else f"{kind} of nothing"

    def _sql(self, statement: str) -> sql.Composed:
        return sql.SQL(statement).format(sql.Identifier(*self.table.split(".")))
