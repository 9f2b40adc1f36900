"""The stream itself: what is delivered, what is confirmed, and that a break is always told."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psycopg
import pytest

from docferry.capture.contract import Delivery
from docferry.capture.replication import Limits, ReplicationCapture
from docferry.capture.setup import ReplicationSetup
from docferry.change.model import Op, lsn, split_version
from docferry.errors import HistoryChanged, SourceRefused, SourceUnavailable

from ..waiting import until


class Source:
    """A table that is published, and a slot."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.name = f"docferry_{uuid.uuid4().hex[:10]}"
        self.connection = psycopg.connect(dsn, autocommit=True)
        self.execute("CREATE TABLE things (id int PRIMARY KEY, name text)")
        self.setup = ReplicationSetup(dsn, self.name, self.name)
        self.setup.prepare(["public.things"])

    def execute(self, *statements: str) -> None:
        for statement in statements:
            self.connection.execute(statement.encode())

    @contextmanager
    def capture(self, limits: Limits | None = None) -> Iterator[ReplicationCapture]:
        capture = ReplicationCapture(
            self.dsn, self.name, self.name, 1, self.setup.identity(), limits or Limits(linger=0.05)
        )
        try:
            yield capture
        finally:
            capture.close()

    def confirmed(self) -> int:
        slot = self.setup.slot()
        assert slot is not None
        return slot.confirmed


@pytest.fixture
def source(database: str) -> Iterator[Source]:
    source = Source(database)
    yield source
    source.connection.close()


def collect(capture: ReplicationCapture, enough: Callable[[Delivery], bool]) -> list[Delivery]:
    """Deliveries up to the one that is enough together with those before it."""
    found: list[Delivery] = []
    together = Delivery()

    def read() -> bool:
        delivery = capture.read(0.1)
        found.append(delivery)
        together.extend(delivery)
        return enough(together)

    until(read, "enough was delivered")
    return found


def so_many(count: int) -> Callable[[Delivery], bool]:
    """So many changes, and the end of their transaction."""
    return lambda delivery: len(delivery.changes) >= count and delivery.committed_at is not None


def test_changes_come_in_commit_order_with_growing_versions(source: Source) -> None:
    with psycopg.connect(source.dsn) as other, source.capture() as capture:
        other.execute("INSERT INTO things VALUES (1, 'begun first')")
        source.execute("INSERT INTO things VALUES (2, 'committed first')")
        other.execute("UPDATE things SET name = 'and again' WHERE id = 1")
        other.commit()
        source.execute("TRUNCATE things")
        changes = [change for delivery in collect(capture, so_many(4)) for change in delivery.changes]
    assert [change.op for change in changes] == [Op.INSERT, Op.INSERT, Op.UPDATE, Op.TRUNCATE]
    assert [change.row and change.row[0] for change in changes] == [b"2", b"1", b"1", None]
    versions = [change.version for change in changes]
    assert versions == sorted(set(versions))
    assert split_version(versions[1])[1] == split_version(versions[2])[1], "one transaction, one position"


def test_versions_are_the_same_when_changes_come_again(source: Source) -> None:
    source.execute(
        "INSERT INTO things SELECT g, 'x' FROM generate_series(1, 50) AS g", "DELETE FROM things WHERE id < 9"
    )

    def versions(limits: Limits) -> list[int]:
        with source.capture(limits) as capture:
            return [one.version for delivery in collect(capture, so_many(58)) for one in delivery.changes]

    assert versions(Limits()) == versions(Limits(changes=7))


def test_a_row_s_later_change_is_later_however_it_was_logged(source: Source) -> None:
    """An INSERT is logged before the unique index makes it wait for the DELETE of the row that it replaces."""
    source.execute("INSERT INTO things VALUES (1, 'old')")
    with psycopg.connect(source.dsn) as other, psycopg.connect(source.dsn, autocommit=True) as waiting:
        other.execute("UPDATE things SET name = 'being deleted' WHERE id = 1")
        waiting.pgconn.send_query(b"INSERT INTO things VALUES (1, 'new')")
        until(lambda: _is_blocked(source, waiting), "the INSERT waits")
        other.execute("DELETE FROM things WHERE id = 1")
        other.commit()
        while (result := waiting.pgconn.get_result()) is not None:
            assert result.status == psycopg.pq.ExecStatus.COMMAND_OK
    with source.capture() as capture:
        changes = [change for delivery in collect(capture, so_many(4)) for change in delivery.changes]
    assert [change.op for change in changes] == [Op.INSERT, Op.UPDATE, Op.DELETE, Op.INSERT]
    assert max(changes, key=lambda change: change.version).row == (b"1", b"new")


def _is_blocked(source: Source, waiting: psycopg.Connection) -> bool:
    row = source.connection.execute("SELECT cardinality(pg_blocking_pids(%s))", [waiting.info.backend_pid]).fetchone()
    return row is not None and row[0] > 0


def test_a_delivery_ends_at_so_many_changes_or_bytes(source: Source) -> None:
    source.execute("INSERT INTO things SELECT g, repeat('x', 1000) FROM generate_series(1, 100) AS g")
    with source.capture(Limits(changes=30, linger=1.0)) as capture:
        deliveries = collect(capture, so_many(100))
    assert max(len(delivery.changes) for delivery in deliveries) == 30
    with source.capture(Limits(bytes=20_000, linger=1.0)) as capture:
        deliveries = collect(capture, so_many(100))
    assert max(delivery.size for delivery in deliveries) < 22_000


def test_what_was_confirmed_does_not_come_again(source: Source) -> None:
    source.execute("INSERT INTO things VALUES (1, 'first')", "INSERT INTO things VALUES (2, 'second')")
    with source.capture(Limits(changes=1)) as capture:
        first = collect(capture, so_many(1))
        capture.confirm(max(delivery.position or 0 for delivery in first))
    with source.capture() as capture:
        rest = [one.row for delivery in collect(capture, lambda got: len(got.changes) >= 1) for one in delivery.changes]
    assert rest == [(b"2", b"second")]


def test_what_was_not_confirmed_comes_again(source: Source) -> None:
    source.execute("INSERT INTO things VALUES (1, 'first')")
    for _ in range(2):
        with source.capture() as capture:
            assert [one.row for got in collect(capture, so_many(1)) for one in got.changes] == [(b"1", b"first")]


def test_a_confirmation_reaches_the_server(source: Source) -> None:
    with source.capture() as capture:
        source.execute("INSERT INTO things VALUES (1, 'x')")
        position = max(delivery.position or 0 for delivery in collect(capture, so_many(1)))

        def confirmed() -> bool:
            capture.confirm(position)
            capture.read(0.01)
            return source.confirmed() >= position

        until(confirmed, "the slot has moved")


@pytest.mark.parametrize("purpose", ["stream", "catalog"])
@pytest.mark.parametrize("while_reading", [True, False])
def test_a_break_is_told_exactly_once(source: Source, purpose: str, *, while_reading: bool) -> None:
    """Whoever reads has to know that what comes next has come before."""
    source.execute("INSERT INTO things VALUES (1, 'x')")
    with source.capture() as capture:
        collect(capture, so_many(1))
        source.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
            f"WHERE datname = current_database() AND application_name = 'docferry {purpose}'"
        )
        if not while_reading:
            capture.keep_alive(0.05)
            capture.keep_alive(0.05)
        told = 0
        again: list[object] = []

        def read() -> bool:
            nonlocal told
            try:
                again.extend(one.row for one in capture.read(0.1).changes)
            except SourceUnavailable:
                assert not again, "told before anything comes again"
                told += 1
            return bool(again)

        until(read, "the change has come again")
        assert told == 1


def test_another_history_is_refused(source: Source) -> None:
    identity = source.setup.identity()
    other = type(identity)(identity.system_identifier, identity.timeline + 1)
    capture = ReplicationCapture(source.dsn, source.name, source.name, 1, other, Limits())
    with pytest.raises(HistoryChanged, match="timeline"):
        capture.read(0.1)
    capture.close()


def test_a_slot_that_is_in_use_is_waited_for(source: Source) -> None:
    with source.capture() as first, source.capture() as second:
        first.read(0.05)
        with pytest.raises(SourceUnavailable, match="active"):
            second.read(0.05)


def test_a_slot_that_does_not_exist(source: Source) -> None:
    capture = ReplicationCapture(source.dsn, "no_such_slot", source.name, 1, source.setup.identity(), Limits())
    with pytest.raises(HistoryChanged) as raised:
        capture.read(0.1)
    assert "docferry apply" in raised.value.remedy
    capture.close()


def test_a_slot_of_somebody_else_is_refused(source: Source) -> None:
    name = f"other_{uuid.uuid4().hex[:10]}"
    source.execute(f"SELECT pg_create_logical_replication_slot('{name}', 'test_decoding')")
    setup = ReplicationSetup(source.dsn, name, source.name)
    with pytest.raises(SourceRefused, match="test_decoding"):
        setup.prepare(["public.things"])
    with pytest.raises(SourceRefused, match="test_decoding"):
        setup.check()


@pytest.mark.parametrize("position", [0, 1, 0xFFFFFFFF, 0x100000000, 0x16B374D848, 2**64 - 1])
def test_positions_are_written_as_the_server_does(source: Source, position: int) -> None:
    with psycopg.connect(source.dsn) as connection:
        row = connection.execute("SELECT ('0/0'::pg_lsn + %s::numeric)::text", (position,)).fetchone()
    assert row == (lsn(position),)


def test_a_slot_does_not_outlive_its_publication(source: Source) -> None:
    """What precedes a publication cannot be decoded with it."""
    source.execute(f"DROP PUBLICATION {source.name}", "INSERT INTO things VALUES (1, 'unseen')")
    assert source.setup.gap() is not None
    assert len(source.setup.missing(["public.things"])) == 2
    assert len(source.setup.prepare(["public.things"])) == 2
    assert source.setup.gap() is None
    source.execute("INSERT INTO things VALUES (2, 'seen')")
    with source.capture() as capture:
        assert [one.row for got in collect(capture, so_many(1)) for one in got.changes] == [(b"2", b"seen")]


def test_setting_up_is_idempotent(source: Source) -> None:
    assert source.setup.prepare(["public.things"]) == []
    assert source.setup.missing(["public.things"]) == []
    assert source.setup.uncaptured(["public.things", "public.nothing"]) == []
    source.execute("CREATE TABLE others (id int PRIMARY KEY)")
    assert source.setup.uncaptured(["public.things", "public.others"]) == ["public.others"]
    assert len(source.setup.prepare(["public.others"])) == 1
    assert source.setup.published() == ["public.others"]
    assert len(source.setup.remove()) == 2
    assert source.setup.remove() == []
