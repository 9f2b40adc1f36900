"""How far docferry may have confirmed a slot: never a false alarm, however workers take turns."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from types import SimpleNamespace

import psycopg
import pytest

from docferry.capture import slot_limit
from docferry.capture.ledger import PostgresLedger
from docferry.capture.slot_limit import SlotLimit, read_limit
from docferry.failpoints import VARIABLE, switch
from docferry.retry import Retry

MIB = 1 << 20


class Source:
    """A slot and a ledger; `confirm` is what a worker's status update does."""

    def __init__(self, dsn: str) -> None:
        self.connection = psycopg.connect(dsn, autocommit=True)
        self.slot = f"limit_{uuid.uuid4().hex[:10]}"
        ledger = PostgresLedger(dsn, Retry())
        ledger.create()
        ledger.close()
        self.connection.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [self.slot])

    def write(self, size: int = 1000) -> int:
        """Log of so many bytes; returns the position behind it."""
        self.connection.execute("SELECT pg_logical_emit_message(true, 'noise', repeat('x', %s))", [size])
        row = self.connection.execute("SELECT (pg_current_wal_lsn() - '0/0')::bigint").fetchone()
        assert row is not None
        return int(row[0])

    def confirm(self, limit: SlotLimit, position: int) -> None:
        self.advance(limit.permitted(self.connection, position))

    def advance(self, position: int) -> None:
        self.connection.execute(
            "SELECT pg_replication_slot_advance(%s, '0/0'::pg_lsn + %s::numeric)", [self.slot, position]
        )

    @property
    def recorded(self) -> int:
        found = read_limit(self.connection, self.slot)
        assert found is not None
        return found


@pytest.fixture
def source(database: str) -> Iterator[Source]:
    made = Source(database)
    yield made
    made.connection.close()


def test_it_is_raised_before_and_settled_behind(source: Source) -> None:
    worker = SlotLimit(source.slot)
    assert worker.check(source.connection) is None
    position = source.write()
    source.confirm(worker, position)
    assert position < source.recorded <= position + MIB
    worker.settle(source.connection)
    assert source.recorded == position
    assert SlotLimit(source.slot).check(source.connection) is None


def test_its_steps_grow_with_the_load(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slot_limit, "time", SimpleNamespace(monotonic=lambda: 100.0))  # no time passes
    worker = SlotLimit(source.slot)
    worker.check(source.connection)
    steps: list[int] = []
    for _ in range(6):
        position = source.recorded + 1 if steps else source.write()
        worker.permitted(source.connection, position)
        steps.append(source.recorded - position)
    assert steps == sorted(steps)
    assert steps[-1] > 8 * steps[0]


def test_what_cannot_be_recorded_is_not_confirmed(source: Source) -> None:
    worker = SlotLimit(source.slot)
    worker.check(source.connection)
    first = source.write()
    granted = worker.permitted(source.connection, first)
    bound = source.recorded
    source.connection.execute("SET default_transaction_read_only = on")
    assert granted == first
    assert worker.permitted(source.connection, bound + 5 * MIB) == bound
    source.connection.execute("SET default_transaction_read_only = off")
    assert worker.permitted(source.connection, bound + 5 * MIB) == bound + 5 * MIB


@pytest.mark.parametrize("kind", ["raise", "after"])
def test_what_fails_on_the_way_is_not_confirmed(source: Source, kind: str) -> None:
    """Whether the limit was raised or not: it is raised again before anything beyond the former one is confirmed."""
    worker = SlotLimit(source.slot)
    worker.check(source.connection)
    first = worker.permitted(source.connection, source.write())
    bound = source.recorded
    switch({VARIABLE: f"confirm.limit={kind}@1"})
    try:
        assert worker.permitted(source.connection, bound + 5 * MIB) == bound
        assert (source.recorded > bound) == (kind == "after")
        assert worker.permitted(source.connection, bound + 5 * MIB) == bound + 5 * MIB
    finally:
        switch({})
    assert source.recorded > bound + 5 * MIB
    assert first <= bound
    worker.settle(source.connection)
    assert SlotLimit(source.slot).check(source.connection) is None


def test_workers_that_take_turns(source: Source) -> None:
    """One loses its connection, another one streams and stops, the first comes back: no alarm."""
    first, second = SlotLimit(source.slot), SlotLimit(source.slot)
    first.check(source.connection)
    source.confirm(first, source.write())
    assert second.check(source.connection) is None
    source.confirm(second, source.write(3 * MIB))
    # The first one's last words, sent in ignorance, lower nothing.
    first.permitted(source.connection, source.recorded - 5 * MIB)
    first.settle(source.connection)
    assert second.check(source.connection) is None
    second.settle(source.connection)
    assert first.check(source.connection) is None
    source.confirm(first, source.write())


def test_a_slot_moved_between_two_connections_of_a_worker(source: Source) -> None:
    """Less than a step ahead: only the worker itself can tell, and it leaves word."""
    worker = SlotLimit(source.slot)
    worker.check(source.connection)
    position = source.write()
    source.confirm(worker, position)
    source.advance(source.write(500))
    assert "somebody advanced it" in (worker.check(source.connection) or "")
    assert source.recorded == position
    assert SlotLimit(source.slot).check(source.connection) is not None
