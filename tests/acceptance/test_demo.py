"""`docferry demo` as people call it: a process of its own, which must leave nothing behind however it ends."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import pwd
import shutil
import signal
import site
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import psycopg
import pytest

import docferry
from docferry import cli
from docferry.cli import demo, demo_check
from docferry.cli.demo_check import expected_item
from docferry.cli.demo_orders import ORDERS, STATEMENTS

from ..waiting import PATIENCE, until

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for leftovers in /proc")

_MODES = ("replication", "outbox", "lambda")
_IMPORTABLE = [str(Path(docferry.__file__).parents[1]), *site.getsitepackages()]


class Place(NamedTuple):
    """A directory for everything that a demo may write, and the user it runs as."""

    directory: Path
    user: str | None = None
    python: str = sys.executable

    @property
    def temporary(self) -> Path:
        return self.directory / "tmp"

    def popen(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [self.python, "-m", "docferry", "demo", *arguments],
            env={
                **({} if self.python == sys.executable else {"PYTHONPATH": os.pathsep.join(_IMPORTABLE)}),
                "PATH": os.environ["PATH"],
                "HOME": str(self.directory),
                "TMPDIR": str(self.temporary),
                "PYTHONUTF8": "1",
                **environment,
            },
            cwd=self.directory,
            user=self.user,
            group=None if self.user is None else pwd.getpwnam(self.user).pw_gid,
            extra_groups=None if self.user is None else [],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def processes(self) -> list[int]:
        """Those that work for this demo: the directory is in what they were started with."""
        return [pid for pid in _pids() if _mentions(pid, str(self.directory))]

    def leftovers(self) -> list[str]:
        """Processes, temporary files and shared memory that should be gone."""
        return [
            *(f"process {pid}: {_read(pid, 'cmdline')}" for pid in self.processes()),
            *(str(path) for path in self.temporary.rglob("*")),
        ]


def _pids() -> list[int]:
    return [int(path.name) for path in Path("/proc").glob("[0-9]*")]


def _read(pid: int, name: str) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/{name}").read_text(errors="replace").replace("\0", " ")
    return ""


def _mentions(pid: int, text: str) -> bool:
    return text in _read(pid, "environ") or text in _read(pid, "cmdline")


def _shared_memory() -> set[tuple[str, str]]:
    """(segment, creator) of the System V segments there are."""
    lines = Path("/proc/sysvipc/shm").read_text().splitlines()[1:]
    return {(line.split()[1], line.split()[4]) for line in lines}


def _python_for(user: str) -> str:
    """An interpreter that the user can start: a root user's own may lie under /root."""
    system = f"/usr/bin/python{sys.version_info[0]}.{sys.version_info[1]}"
    for python in (sys.executable, system):
        with contextlib.suppress(OSError):
            if subprocess.run([python, "-c", ""], user=user, env={}, check=False).returncode == 0:
                return python
    return pytest.skip(f"{user} can start neither {sys.executable} nor {system}")


def _make_place(user: str | None) -> Iterator[Place]:
    python = sys.executable if user is None else _python_for(user)
    # Not pytest's directory: that is closed to other users, and the demo may have to run its server as one.
    directory = Path(tempfile.mkdtemp(prefix="docferry-test-"))
    directory.chmod(0o755)
    (directory / "tmp").mkdir()
    if user is not None:
        for path in (directory, directory / "tmp"):
            shutil.chown(path, user)
    yield Place(directory, user, python)
    shutil.rmtree(directory)


@pytest.fixture
def place() -> Iterator[Place]:
    yield from _make_place(None)


@pytest.fixture
def place_of_nobody() -> Iterator[Place]:
    if os.geteuid() != 0:
        pytest.skip("the other tests ran as an ordinary user already")
    yield from _make_place("nobody")


def _finished(running: subprocess.Popen[str]) -> tuple[int, str, str]:
    try:
        out, err = running.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        running.kill()
        out, err = running.communicate()
        pytest.fail(f"the demo did not end:\n{out}\n{err}")
    return running.returncode, out, err


@pytest.mark.parametrize("mode", _MODES)
def test_shows_every_statement_and_ends_with_0(place: Place, mode: str) -> None:
    foreign = {"AWS_PROFILE": "not-there", "AWS_ENDPOINT_URL": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"}
    code, out, err = _finished(place.popen("--once", "--capture", mode, **foreign))
    assert code == 0, err
    assert err == ""
    for statement in STATEMENTS:
        assert statement in out
    assert "malformed_order" in out
    assert "✗" not in out
    assert out.count("✓") == len(ORDERS) * 3 + 11
    assert "Rows and items are the same after every statement." in out
    assert ("3 invocations of the function docferry" in out) == (mode == "lambda")
    until(lambda: not place.leftovers(), "nothing is left")
    assert not (place.directory / ".aws").exists()


@pytest.mark.parametrize("mode", _MODES)
def test_runs_as_an_ordinary_user_and_answers_in_json(open_checkout: None, place_of_nobody: Place, mode: str) -> None:
    code, out, err = _finished(place_of_nobody.popen("--once", "--json", "--capture", mode))
    assert code == 0, err
    answer = json.loads(out)
    assert answer["capture"] == mode
    assert answer["identical"] is True
    assert ("function" in answer) == (mode == "lambda")
    assert [step["statement"] for step in answer["steps"]] == [None, *STATEMENTS]
    assert [step["affected"] for step in answer["steps"]] == [len(ORDERS), 4, 4, 1]
    assert [step["items"] for step in answer["steps"]] == [len(ORDERS), len(ORDERS), 10, 11]
    assert all(step["identical"] and step["seconds"] > 0 for step in answer["steps"])
    until(lambda: not place_of_nobody.leftovers(), "nothing is left")


@pytest.mark.parametrize("mode", _MODES)
def test_mirrors_on_until_sigterm_and_leaves_nothing(place: Place, mode: str) -> None:
    shared = _shared_memory()
    running = place.popen("--json", "--capture", mode)
    answer = _first_document(running)
    assert answer["mirroring_on"] is True
    assert Path(answer["config"]).exists()
    with psycopg.connect(answer["source"]["dsn"], autocommit=True) as connection:
        connection.execute("UPDATE orders SET order_status = 'tried' WHERE id = 9")
    until(lambda: "tried" in _aws_scan(answer["target"]["endpoint_url"]), "the row is there")
    psql = subprocess.run(
        [*answer["source"]["command"].split(), "-XAtc", "SELECT count(*) FROM orders"],
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=True,
    )
    assert psql.stdout.strip() == "11"
    ours = {str(pid) for pid in place.processes()}
    running.send_signal(signal.SIGTERM)
    code, _, err = _finished(running)
    assert code == 0, err
    until(lambda: not place.leftovers(), "nothing is left")
    assert [segment for segment, creator in _shared_memory() - shared if creator in ours] == []


def test_what_the_function_cannot_do_waits_and_is_not_lost(place: Place) -> None:
    running = place.popen("--json", "--capture", "lambda")
    answer = _first_document(running)
    function = answer["function"]
    assert (function["name"], function["invocations"]) == ("docferry", 3)
    assert "/aws/lambda/docferry" in function["command"]
    lines = _function_log(answer)
    changes = [line for line in lines if line.get("message") == "change"]
    assert [(line["key"]["id"], line["outcome"]) for line in changes] == [
        (str(one), "applied") for one in (1, 2, 3, 4, 11, 12, 13, 14, 15)
    ]
    with psycopg.connect(answer["source"]["dsn"], autocommit=True) as connection:
        connection.execute("ALTER SCHEMA aws_lambda RENAME TO broken")
        connection.execute("UPDATE orders SET order_status = 'waiting' WHERE id = 9")
        waiting = connection.execute("SELECT op, table_name FROM docferry.outbox").fetchall()
        assert waiting == [("UPDATE", "public.orders")]
        connection.execute("ALTER SCHEMA broken RENAME TO aws_lambda")
        _invoke(answer, {"docferry": "drain"})
        assert connection.execute("SELECT count(*) FROM docferry.outbox").fetchone() == (0,)
    assert "waiting" in _aws_scan(answer["target"]["endpoint_url"])
    running.send_signal(signal.SIGTERM)
    code, _, err = _finished(running)
    assert code == 0, err
    until(lambda: not place.leftovers(), "nothing is left")


@pytest.mark.parametrize(
    ("mode", "after", "number"),
    [
        ("replication", "start", signal.SIGINT),
        ("replication", "Both are up", signal.SIGTERM),
        ("replication", "UPDATE", signal.SIGINT),
        ("lambda", "start", signal.SIGTERM),
        ("lambda", "Both are up", signal.SIGINT),
        ("lambda", "UPDATE", signal.SIGTERM),
    ],
)
def test_a_signal_in_the_middle_leaves_nothing(place: Place, number: signal.Signals, after: str, mode: str) -> None:
    running = place.popen("--capture", mode, PYTHONUNBUFFERED="1")
    assert running.stdout is not None
    if after == "start":
        until(lambda: len(place.processes()) > 1, "servers run")
    else:
        assert any(after in line for line in running.stdout)
    running.send_signal(number)
    code, _, err = _finished(running)
    # Behind the last statement it is the ordinary end.
    assert code in ((128 + number, 0) if after == "UPDATE" else (128 + number,)), err
    until(lambda: not place.leftovers(), "nothing is left")


def _first_document(running: subprocess.Popen[str]) -> dict[str, Any]:
    assert running.stdout is not None
    text = ""
    for line in running.stdout:
        text += line
        if line == "}\n":
            document: dict[str, Any] = json.loads(text)
            return document
    return pytest.fail(f"no JSON document: {text} {running.stderr and running.stderr.read()}")


def _client(service: str, endpoint_url: str) -> Any:
    import boto3

    session: Any = boto3.Session("test", "test", region_name="us-east-1")
    return contextlib.closing(session.client(service, endpoint_url=endpoint_url))


def _aws_scan(endpoint_url: str) -> str:
    with _client("dynamodb", endpoint_url) as client:
        return str(client.scan(TableName="orders", ConsistentRead=True)["Items"])


def _invoke(answer: dict[str, Any], payload: dict[str, Any]) -> None:
    with _client("lambda", answer["target"]["endpoint_url"]) as client:
        done = client.invoke(FunctionName=answer["function"]["name"], Payload=json.dumps(payload))
        assert "FunctionError" not in done, done["Payload"].read()


def _function_log(answer: dict[str, Any]) -> list[dict[str, Any]]:
    """The lines that are JSON, in the order of their time."""
    with _client("logs", answer["target"]["endpoint_url"]) as client:
        found = client.filter_log_events(logGroupName=f"/aws/lambda/{answer['function']['name']}")["events"]
    return [json.loads(one["message"]) for one in found if one["message"].startswith("{")]


def test_a_difference_is_shown_and_ends_with_3(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def wrong(row: demo_check.Row) -> dict[str, Any]:
        item = expected_item(row)
        return {**item, "order_status": "?"} if row.id == 7 else item

    look, later = demo_check.Ends.look, 0.0

    def seen(*arguments: Any) -> demo_check.Both:
        nonlocal later
        now = look(*arguments)
        if now.different == [7]:
            later += 1000  # no patience is left for it
        return now

    monkeypatch.setattr(demo_check.Ends, "look", seen)
    monkeypatch.setattr(demo, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + later))
    monkeypatch.setattr(demo_check, "expected_item", wrong)
    with pytest.raises(SystemExit) as ended:
        cli.docferry.main(["demo", "--once"])
    assert ended.value.code == 3
    out = capsys.readouterr().out
    assert out.count("✗") == 1 + len(STATEMENTS)
    assert "NOT the same" in out


@pytest.mark.parametrize(("mode", "module"), [("replication", "pg0"), ("lambda", "aws_lambda_powertools")])
def test_a_missing_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], mode: str, module: str
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == module else find(name))
    with pytest.raises(SystemExit) as ended:
        cli.docferry.main(["demo", "--once", "--capture", mode])
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert module in err
    assert "pip install 'docferry[demo]'" in err
