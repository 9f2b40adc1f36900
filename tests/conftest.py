"""Servers and databases for every test that wants real ones. With pytest-xdist each worker has its own server.

DOCFERRY_TEST_POSTGRES_BIN names the directory of another PostgreSQL's programs, such as /usr/lib/postgresql/15/bin.
"""

from __future__ import annotations

import os
import signal
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from psycopg import sql

from docferry.embedded.postgres import EmbeddedPostgres

# A busy machine is no failure.
settings.register_profile("docferry", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("docferry")


def pytest_configure() -> None:
    """Started in the background by a shell without job control, programs ignore SIGINT and hand that on; the tests send
    it to programs that they start."""
    for number in (signal.SIGINT, signal.SIGQUIT):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


def _server() -> EmbeddedPostgres:
    other = os.environ.get("DOCFERRY_TEST_POSTGRES_BIN")
    return EmbeddedPostgres(version_bin=Path(other) if other else None)


@pytest.fixture(scope="session")
def postgres() -> Iterator[EmbeddedPostgres]:
    """The server all tests of this worker share. Tests which stop it take `postgres_server` instead."""
    with _server() as server:
        yield server


@pytest.fixture
def postgres_server() -> Iterator[EmbeddedPostgres]:
    """A server of the test's own, to be restarted and killed."""
    with _server() as server:
        yield server


@pytest.fixture
def database(postgres: EmbeddedPostgres) -> Iterator[str]:
    """The DSN of a fresh, empty database."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(postgres.dsn(), autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    yield postgres.dsn(name)
    with psycopg.connect(postgres.dsn(), autocommit=True) as admin:
        _drop_slots(admin, name)
        _forget_prepared(admin, postgres.dsn(name), name)
        admin.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


def _drop_slots(admin: psycopg.Connection, database: str) -> None:
    """A database with replication slots cannot be dropped, and a slot with a reader neither."""
    deadline = time.monotonic() + 10
    while slots := admin.execute(
        "SELECT slot_name, active_pid FROM pg_replication_slots WHERE database = %s", [database]
    ).fetchall():
        for name, reader in slots:
            try:
                admin.execute("SELECT pg_terminate_backend(%s)", [reader])
                admin.execute("SELECT pg_drop_replication_slot(%s)", [name])
            except (psycopg.errors.ObjectInUse, psycopg.errors.UndefinedObject):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)


def _forget_prepared(admin: psycopg.Connection, dsn: str, database: str) -> None:
    """Prepared transactions outlive their sessions, and can be ended only from within their database."""
    prepared = admin.execute("SELECT gid FROM pg_prepared_xacts WHERE database = %s", [database]).fetchall()
    if prepared:
        with psycopg.connect(dsn, autocommit=True) as connection:
            for (gid,) in prepared:
                connection.execute(sql.SQL("ROLLBACK PREPARED {}").format(sql.Literal(gid)))


@pytest.fixture
def open_checkout() -> None:
    """Skips where another user cannot reach this checkout, as below root's `mktemp -d`."""
    here = Path(__file__).resolve()
    if os.geteuid() == 0 and any(not folder.stat().st_mode & 0o001 for folder in here.parents):
        pytest.skip("an ordinary user cannot reach this checkout: a directory above it is closed")
