"""docferry in this process, from a real PostgreSQL to the target in memory: composed by WorkerApp but for it."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from docferry.capture.contract import BackfillRecord
from docferry.config import Capture, Config, MirrorConfig, RunConfig, SourceConfig, TargetConfig
from docferry.document.model import Value
from docferry.errors import Interrupted
from docferry.letters_app import LettersApp
from docferry.retry import Retry
from docferry.target.contract import Target
from docferry.target.floors_shared import control_collection
from docferry.target.memory import MemoryTarget
from docferry.worker_app import WorkerApp

from ..waiting import PATIENCE

BY_BOTH: tuple[Capture, ...] = ("replication", "outbox")
"""What a mirror does is the same, however its changes are captured."""


class MemoryApp(WorkerApp, LettersApp):
    """What the commands have, with the reference target."""

    def __init__(self, config: Config, memory: MemoryTarget) -> None:
        super().__init__(config, patient=True)
        self.memory = memory

    def _target(self, _retry: Retry) -> Target:
        return self.memory


class Ferry:
    """A source with its mirrors, and at most one worker. `connection` is the application's, in autocommit mode."""

    def __init__(self, dsn: str, capture: Capture = "replication") -> None:
        self.dsn = dsn
        self.capture: Capture = capture
        self.control = None if capture == "replication" else control_collection("docferry")
        self.target = MemoryTarget(control=self.control)
        self.connection = psycopg.connect(dsn, autocommit=True)
        # A slot's name belongs to the whole server.
        self.slot = f"docferry_{uuid.uuid4().hex[:10]}"
        self.mirrors: list[MirrorConfig] = []
        self.run = RunConfig(stop_grace=10.0)
        self.heartbeat_interval = 0.2
        self._app: MemoryApp | None = None
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._ended = threading.Event()

    def only_replication(self) -> None:
        """Skip a test of what the other capture modes do not have."""
        if self.capture != "replication":
            pytest.skip("this is about the replication stream")

    # -- the application ----------------------------------------------------------------------------------------------

    def execute(self, *statements: str) -> None:
        """Run statements, each in a transaction of its own."""
        for statement in statements:
            self.connection.execute(statement.encode())

    def query(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        return self.connection.execute(statement.encode(), parameters or None).fetchall()

    def slot_is_dropped(self) -> bool:
        """Drop the worker's slot under it, between two of its readers; False if the next one was quicker."""
        try:
            self.transaction(
                f"SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = '{self.slot}'",
                f"SELECT pg_drop_replication_slot('{self.slot}')",
            )
        except psycopg.errors.ObjectInUse:
            return False
        return True

    def transaction(self, *statements: str) -> None:
        """Run statements in one transaction."""
        with self.connection.transaction():
            self.execute(*statements)

    @contextmanager
    def another(self) -> Iterator[psycopg.Connection]:
        """Another connection of the application, for a transaction beside the first one's."""
        with psycopg.connect(self.dsn) as connection:
            yield connection

    def rows(self, table: str) -> list[dict[str, Any]]:
        """The table's rows by column name. Types that are neither numbers nor text are cast in the tests' own
        queries."""
        schema, _, name = table.partition(".")
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            cursor = connection.execute(sql.SQL("SELECT * FROM {}").format(sql.Identifier(schema, name)))
            names = [column.name for column in cursor.description or ()]
            return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]

    # -- docferry -----------------------------------------------------------------------------------------------------

    @property
    def config(self) -> Config:
        source = SourceConfig(
            dsn=self.dsn,
            capture=self.capture,
            slot=self.slot,
            publication=self.slot,
            heartbeat_interval=self.heartbeat_interval,
        )
        return Config(source, TargetConfig(), tuple(self.mirrors), self.run, Path("docferry.toml"))

    def mirror(self, *tables: str, **settings: Any) -> None:
        """Configure mirrors of these tables, each into a collection of its name."""
        self.mirrors.extend(MirrorConfig(table, table.partition(".")[2], **settings) for table in tables)

    @contextmanager
    def app(self) -> Iterator[MemoryApp]:
        """What one run of a command works with."""
        app = MemoryApp(self.config, self.target)
        with app:
            yield app

    def apply(self) -> list[str]:
        with self.app() as app:
            return app.admin().apply()

    def start(self) -> None:
        """Start a worker; returns when its stream is open or it has failed."""
        assert self._thread is None, "one worker at a time"
        app = MemoryApp(self.config, self.target)
        streaming = threading.Event()
        self._ended.clear()
        self._failure = None

        def work() -> None:
            try:
                with app:
                    app.worker(streaming.set).run()
            except BaseException as error:  # noqa: BLE001 - handed to the test
                self._failure = error
            finally:
                self._ended.set()
                streaming.set()

        self._app = app
        self._thread = threading.Thread(target=work, name="worker")
        self._thread.start()
        assert streaming.wait(PATIENCE)

    def begin(self, *tables: str) -> None:
        """Mirror these tables: configure, apply, start, and wait until they are populated."""
        self.mirror(*tables)
        self.apply()
        self.start()
        self.wait()

    def stop(self) -> None:
        """Stop the worker gracefully. Raises what it failed with."""
        self._end(at_once=False)
        if self._failure is not None:
            raise self._failure

    def kill(self) -> None:
        """Stop the worker where it stands."""
        self._end(at_once=True)

    def _end(self, *, at_once: bool) -> None:
        if self._app is not None and self._thread is not None:
            self._app.stopping.set()
            if at_once:
                self._app.retry.stop.set()
            self._thread.join(PATIENCE)
            assert not self._thread.is_alive()
            self._app = self._thread = None
            self._ended.clear()

    def failure(self) -> BaseException:
        """Wait until the worker has ended by itself; what it failed with."""
        assert self._thread is not None
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "the worker should have stopped"
        self._app = self._thread = None
        self._ended.clear()
        assert self._failure is not None
        return self._failure

    def failed_start(self) -> BaseException:
        """Start a worker that is refused; why."""
        self.start()
        return self.failure()

    def wait(self, timeout: float = PATIENCE) -> float:
        """Everything committed before the call is at the target."""
        try:
            with self.app() as app:
                return app.wait(timeout, stop=self._ended)
        except Interrupted:
            raise self._failure or AssertionError("the worker ended") from None

    def backfills(self) -> list[BackfillRecord]:
        with self.app() as app:
            return app.ledger.backfills()

    def documents(self, table: str) -> dict[tuple[Any, ...], dict[str, Value]]:
        """What the target holds of a table."""
        with self.app() as app:
            items = self.target.scan(app.mirror(table).collection)
            return {item.key: item.document for item in items if item.document is not None}

    def assert_same(self, *tables: str, key: Sequence[str] = ("id",)) -> None:
        """The target holds exactly the rows of these tables."""
        for table in tables:
            expected = {tuple(row[name] for name in key): row for row in self.rows(table)}
            assert self.documents(table) == expected, table

    def close(self) -> None:
        self.kill()
        self.connection.close()
