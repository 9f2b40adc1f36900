"""Structured logs: one object a line, whatever is logged."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from click.testing import CliRunner

from docferry.cli.frame import Ferry, Session, define
from docferry.cli.logs import json_line, logs_to_stderr
from docferry.errors import ConfigError

Lines = list[dict[str, Any]]
Run = Callable[..., Lines]
LOG = logging.getLogger("docferry.test")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run `docferry probe` with a body; the objects of its standard error."""

    def run(body: Callable[[Session], int | None], *arguments: str, **env: str) -> Lines:
        module = ModuleType("docferry.cli.probe")
        module.command = define("probe")(body)  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "docferry.cli.probe", module)
        done = CliRunner().invoke(Ferry("docferry", {"probe": "A probe."}), ["probe", *arguments], env=env)
        return [json.loads(line) for line in done.stderr.splitlines()]

    return run


def test_a_line(run: Run) -> None:
    def body(_session: Session) -> None:
        LOG.warning("%s is %s", "public.t", "late", extra={"table": "public.t", "key": {"id": "7"}, "version": 2**96})

    [line] = run(body, "--log-format", "json")
    assert line.pop("time")[-5] == "."
    assert line == {
        "level": "WARNING",
        "logger": "docferry.test",
        "message": "public.t is late",
        "thread": "MainThread",
        "table": "public.t",
        "key": {"id": "7"},
        "version": str(2**96),
    }


def test_by_environment_and_everything_else_on_standard_error(run: Run) -> None:
    def body(session: Session) -> None:
        session.note("by the way")
        with session.progress("backfill", total=2) as progress:
            progress.update(2)
        raise ConfigError("the key is wrong", remedy="Mend it.")

    lines = run(body, DOCFERRY_LOG_FORMAT="json")
    assert lines[0]["message"] == "by the way"
    assert lines[1]["message"].startswith("backfill: 2 of 2 rows")
    assert (lines[2]["level"], lines[2]["message"]) == ("ERROR", "the key is wrong")
    assert (lines[2]["remedy"], lines[2]["cause"]) == ("Mend it.", "ConfigError")


def test_what_others_wrote_into_it(run: Run) -> None:
    hostile = 'a\0b\nc\x1b[31m"} ü'

    def body(_session: Session) -> None:
        LOG.error("%s", hostile, extra={"key": hostile, hostile: 1.5, "time": "never", "limit": float("nan")})

    [line] = run(body, "--log-format=json")
    assert line["message"] == line["key"] == hostile
    assert line["time"] != "never"
    assert line["limit"] == "nan"
    half = json_line("INFO", "docferry", "half a pair: \ud800")
    assert json.loads(half)["message"] == "half a pair: \\ud800"
    assert half.isascii()
    assert half.isprintable()


def test_exceptions_and_secrets(run: Run) -> None:
    dsn = "postgresql://app:geheim@db/shop"

    def body(_session: Session) -> None:
        try:
            raise ValueError(f"cannot connect to {dsn}")
        except ValueError:
            LOG.exception("no way to %s", dsn, extra={"cause": dsn, "tried": [dsn, {"dsn": dsn}]})
        raise ConfigError(f"{dsn} is wrong")

    lines = run(body, "--log-format", "json", "--debug")
    assert "geheim" not in json.dumps(lines)
    assert "ValueError: cannot connect to postgresql://app:***@db/shop" in lines[0]["exception"]
    assert lines[0]["tried"] == ["postgresql://app:***@db/shop", {"dsn": "postgresql://app:***@db/shop"}]
    assert "Traceback" in lines[1]["exception"]


def test_text_is_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    with logs_to_stderr(verbose=False):
        LOG.info("hello", extra={"table": "public.t"})
    assert capsys.readouterr().err.endswith(" INFO docferry.test: hello\n")


def test_another_form_is_wrong_usage() -> None:
    done = CliRunner().invoke(Ferry("docferry", {"plan": "Plan."}), ["plan", "--log-format", "xml"])
    assert done.exit_code == 2
