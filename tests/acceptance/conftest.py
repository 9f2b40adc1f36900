"""docferry as people run it: its command line in processes of its own, against real servers at both ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner, Result
from psycopg.conninfo import make_conninfo

from docferry.app import App
from docferry.cli import docferry
from docferry.config import load
from docferry.embedded.dynamodb import EmbeddedDynamoDB
from docferry.errors import ConfigError, SourceUnavailable

from ..waiting import PATIENCE, until

IMMEDIATE = "received immediate shutdown request"
"""In the server's log, when a fast stop took too long."""

_IN_THIS_PROCESS = ("apply", "deadletters", "status", "verify", "wait")
"""Commands that many tests need: to start a process takes longer than what they do. What they are like in processes of
their own is seen where something of the environment or the input is given, and with `start`."""

LAMBDA_SERVICES = ("dynamodb", "lambda", "sqs", "logs")
LAMBDA_SETTINGS = {"LAMBDA_ACCOUNT_CONCURRENCY": "3", "LAMBDA_ASYNC_RETRY_BASE_SECONDS": "0.1"}
"""Of the emulator: so many processes of functions at once, and seconds before an event is tried again."""


@pytest.fixture(scope="session")
def dynamodb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedDynamoDB]:
    """The target all tests of this worker share, with Lambda and its queues. Tests which stop it start one of their
    own."""
    with EmbeddedDynamoDB(
        tmp_path_factory.mktemp("dynamodb"), services=LAMBDA_SERVICES, settings=LAMBDA_SETTINGS
    ) as server:
        yield server


@pytest.fixture
def ferry(database: str, dynamodb: EmbeddedDynamoDB, tmp_path: Path) -> Iterator[Ferry]:
    """docferry between the test's own database and collections of its own."""
    helper = Ferry(database, dynamodb, tmp_path)
    yield helper
    helper.close()


class Ferry:
    """A directory with a docferry.toml, and the command line run in it.

    The commands connect as `role`, a role made with exactly the rights that `docferry plan --grants` prints; `dsn` is
    that of the tables' owner, for the tests' own statements, and for `docferry bench`, which makes tables.

    `prefix`: what the names of this test's collections begin with; `write_config` puts it in [target] table_prefix.
    `source`: what `write_config` puts into [source]. `environment`: of the child processes.
    """

    def __init__(self, dsn: str, dynamodb: EmbeddedDynamoDB, directory: Path) -> None:
        self.dsn = dsn
        self.dynamodb = dynamodb
        self.directory = directory
        self.prefix = f"t{uuid.uuid4().hex[:10]}-"
        # A slot's name belongs to the whole server.
        self.slot = f"docferry_{uuid.uuid4().hex[:10]}"
        self.role = f"ferry_{uuid.uuid4().hex[:10]}"
        self._granted = False
        self.source: dict[str, Any] = {
            "dsn": make_conninfo(dsn, user=self.role),
            "slot": self.slot,
            "heartbeat_interval": 1,
        }
        options = dynamodb.client_options()
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("DOCFERRY_", "AWS_", "PG"))},
            "AWS_ACCESS_KEY_ID": options["aws_access_key_id"],
            "AWS_SECRET_ACCESS_KEY": options["aws_secret_access_key"],
            "AWS_EC2_METADATA_DISABLED": "true",
            "DOCFERRY_WAIT_TIMEOUT": f"{PATIENCE:.0f}",
            "PYTHONWARNINGS": "error",
            "COLUMNS": "200",
        }
        self._workers: list[WorkerProcess] = []

    # -- configuration ------------------------------------------------------------------------------------------------

    def write_config(
        self,
        *mirrors: str | Mapping[str, Any],
        source: Mapping[str, Any] | None = None,
        target: Mapping[str, Any] | None = None,
        run: Mapping[str, Any] | None = None,
        dead_letters: Mapping[str, Any] | None = None,
    ) -> Path:
        """Write docferry.toml. A mirror is a table's name (the collection is named like it) or a mapping of its
        settings; `source`, `target` and `run` win over the defaults here."""
        sections = {
            "source": {**self.source, **(source or {})},
            "target": {
                "region": self.dynamodb.region,
                "endpoint_url": self.dynamodb.endpoint_url,
                "table_prefix": self.prefix,
                **(target or {}),
            },
            "run": dict(run or {}),
            "dead_letters": dict(dead_letters or {}),
        }
        lines: list[str] = []
        for name, settings in sections.items():
            lines += [f"[{name}]", *_toml_lines(settings), ""]
        for mirror in mirrors:
            settings = (
                {"table": mirror, "collection": mirror.rpartition(".")[2]} if isinstance(mirror, str) else dict(mirror)
            )
            lines += ["[[mirrors]]", *_toml_lines(settings), ""]
        path = self.directory / "docferry.toml"
        path.write_text("\n".join(lines))
        return path

    # -- the command line ---------------------------------------------------------------------------------------------

    def run(
        self,
        *arguments: str,
        check: bool = True,
        input: str | None = None,  # noqa: A002 - subprocess calls it so
        timeout: float = 1.5 * PATIENCE,
        **environment: str,
    ) -> subprocess.CompletedProcess[str]:
        """Run `docferry ARGUMENTS` to its end. With `check`, anything but exit code 0 fails the test."""
        plain = not environment and input is None
        environment = self._prepared(arguments, environment)
        if plain and arguments[0] in _IN_THIS_PROCESS:
            result = self.call(*arguments)
            done = subprocess.CompletedProcess(arguments, result.exit_code, result.stdout, result.stderr)
        else:
            done = subprocess.run(
                _command(arguments),
                cwd=self.directory,
                env={**self.environment, **environment},
                input=input,
                stdin=subprocess.DEVNULL if input is None else None,
                capture_output=True,
                text=True,
                timeout=timeout,
                check=False,
            )
        if check and done.returncode != 0:
            pytest.fail(
                f"docferry {' '.join(arguments)} exited with {done.returncode}\n{done.stdout}\n{done.stderr}",
                pytrace=False,
            )
        return done

    def json(self, *arguments: str, check: bool = True, input: str | None = None) -> Any:  # noqa: A002
        """Run `docferry ARGUMENTS --json` and return the one document of its standard output."""
        return json.loads(self.run(*arguments, "--json", check=check, input=input).stdout)

    def call(self, *arguments: str, **environment: str) -> Result:
        """The same in this process: sooner done, for what does not depend on a process of its own."""
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(self.directory)
            for name in os.environ:
                patch.delenv(name)
            for name, value in {**self.environment, **environment}.items():
                patch.setenv(name, value)
            return CliRunner().invoke(docferry, arguments)

    def start_worker(self, *arguments: str, ready: bool = True, **environment: str) -> WorkerProcess:
        """Start `docferry run` and, with `ready`, return when it streams."""
        worker = self.start("run", *arguments, **environment)
        if ready:
            worker.wait_for("ready: ")
        return worker

    def start(self, *arguments: str, **environment: str) -> WorkerProcess:
        """Start `docferry ARGUMENTS` and return at once. The test's end kills it."""
        environment = self._prepared(arguments, environment)
        worker = WorkerProcess(_command(arguments), self.directory, {**self.environment, **environment})
        self._workers.append(worker)
        return worker

    def _prepared(self, arguments: tuple[str, ...], environment: dict[str, str]) -> dict[str, str]:
        """The environment of a command, and the rights for it."""
        if arguments[0] == "bench" and "DOCFERRY_SOURCE_DSN" not in environment:
            return {"DOCFERRY_SOURCE_DSN": self.dsn, **environment}
        self._grant(arguments, environment)
        return environment

    def _grant(self, arguments: tuple[str, ...], environment: Mapping[str, str]) -> None:
        """What the owner of the tables does before whatever plans or applies, and once before anything else: run the
        printed script. A configuration that names another role, or is none, is left as it is."""
        if self._granted and arguments[0] not in ("plan", "apply", "aws"):
            return
        try:
            config = load(environment.get("DOCFERRY_CONFIG", self.directory / "docferry.toml"), {})
        except ConfigError:
            return
        if config.source.dsn != self.source["dsn"]:
            return
        with App(replace(config, source=replace(config.source, dsn=self.dsn))) as app:
            try:
                script = app.grants(self.role).script
            except SourceUnavailable:
                return
        self.execute(script)
        self._granted = True

    def _drop_role(self) -> None:
        """A role belongs to the whole server, which may have gone."""
        with suppress(psycopg.OperationalError):
            if self.query(f"SELECT FROM pg_roles WHERE rolname = '{self.role}'"):
                self.execute(f"DROP OWNED BY {self.role} CASCADE", f"DROP ROLE {self.role}")

    # -- both ends ----------------------------------------------------------------------------------------------------

    def execute(self, *statements: str) -> None:
        """Run statements in the source, each in a transaction of its own."""
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement.encode())

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        """The rows that a query gives in the source."""
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            return connection.execute(statement.encode()).fetchall()

    def client(self) -> Any:
        """A boto3 client of the target."""
        import boto3

        return boto3.client("dynamodb", **self.dynamodb.client_options())  # type: ignore[call-overload]

    def items(self, collection: str, *, tombstones: bool = False, meta: bool = False) -> list[dict[str, Any]]:
        """The items of a collection as boto3 shows them, in no order, without meta attributes unless asked for."""
        import boto3

        table = boto3.resource("dynamodb", **self.dynamodb.client_options()).Table(self.prefix + collection)  # type: ignore[call-overload]
        found: list[dict[str, Any]] = []
        start: dict[str, Any] = {}
        while True:
            page = table.scan(ConsistentRead=True, **start)
            found.extend(page["Items"])
            if "LastEvaluatedKey" not in page:
                break
            start = {"ExclusiveStartKey": page["LastEvaluatedKey"]}
        return [
            item if meta else {name: value for name, value in item.items() if name not in ("_v", "_h", "_gone", "_ttl")}
            for item in found
            if tombstones or not item.get("_gone")
        ]

    def collections(self) -> list[str]:
        """The names of this test's collections, without the prefix."""
        names: list[str] = []
        for page in self.client().get_paginator("list_tables").paginate():
            names += [name.removeprefix(self.prefix) for name in page["TableNames"] if name.startswith(self.prefix)]
        return sorted(names)

    @staticmethod
    def eventually(condition: Callable[[], object], timeout: float = PATIENCE, *, what: str = "the condition") -> None:
        """Wait until `condition()` is true; fails the test when that takes too long."""
        until(condition, what, timeout, pause=0.05)

    def close(self) -> None:
        """Kill what still runs and drop this test's collections; the database's fixture drops slots."""
        for worker in self._workers:
            worker.close()
        self._drop_role()
        for name in self.collections():
            self.client().delete_table(TableName=self.prefix + name)


class WorkerProcess:
    """A docferry process that goes on for a while. `log`: the lines of its standard error so far."""

    def __init__(self, command: list[str], directory: Path, environment: Mapping[str, str]) -> None:
        self.process = subprocess.Popen(
            command,
            cwd=directory,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        self.log: list[str] = []
        self.output: list[str] = []
        self._threads = [
            threading.Thread(target=_collect, args=(stream, lines), daemon=True)
            for stream, lines in ((self.process.stderr, self.log), (self.process.stdout, self.output))
        ]
        for thread in self._threads:
            thread.start()

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def text(self) -> str:
        """Standard error so far."""
        return "".join(self.log)

    def wait_for(self, text: str, timeout: float = PATIENCE) -> str:
        """Wait until a line of standard error holds `text`, and return that line."""

        def found() -> str | None:
            return next((line for line in list(self.log) if text in line), None)

        def ended() -> bool:
            return self.process.poll() is not None

        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            gone = ended()
            if line := found():
                return line
            if gone:
                self._join()
                if line := found():
                    return line
                break
            time.sleep(0.01)
        pytest.fail(f"no {text!r} in the log (exit code {self.process.poll()}):\n{self.text}", pytrace=False)

    def stop(self, number: int = signal.SIGTERM, timeout: float = PATIENCE) -> int:
        """Ask it to stop and return its exit code."""
        self.process.send_signal(number)
        return self.wait(timeout)

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.wait()

    def wait(self, timeout: float = PATIENCE) -> int:
        """Wait for its end and return its exit code."""
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            pytest.fail(f"the process did not end:\n{self.text}", pytrace=False)
        self._join()
        return code

    def close(self) -> None:
        """Kill it if it still runs."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._join()
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()

    def _join(self) -> None:
        for thread in self._threads:
            thread.join(PATIENCE)


def _collect(stream: Any, lines: list[str]) -> None:
    for line in stream:
        lines.append(line)  # noqa: PERF402 - lines are looked at while they come


def _command(arguments: tuple[str, ...]) -> list[str]:
    return [sys.executable, "-m", "docferry", *arguments]


def _toml_lines(settings: Mapping[str, Any]) -> list[str]:
    """Key-value lines; mappings become inline tables."""
    return [f"{json.dumps(key)} = {_toml(value)}" for key, value in settings.items()]


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{json.dumps(key)} = {_toml(entry)}" for key, entry in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(entry) for entry in value) + "]"
    return json.dumps(value)
