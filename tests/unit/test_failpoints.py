"""Faults on purpose: by the environment only, at exactly the pass that was asked for, all of them documented."""

from __future__ import annotations

import ast
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import docferry
from docferry import failpoints
from docferry.app import App
from docferry.config import Config, RunConfig, SourceConfig, TargetConfig
from docferry.errors import ConfigError, DocferryError, SourceRefused, SourceUnavailable, TargetUnavailable, Verdict
from docferry.failpoints import PLACES, VARIABLE, boundary, failpoint, switch

ROOT = Path(__file__).parents[2]
PACKAGE = Path(docferry.__file__).parent


@pytest.fixture(autouse=True)
def off_again() -> Iterator[None]:
    yield
    switch({})


def on(text: str) -> None:
    switch({VARIABLE: text})


def passes(name: str, times: int) -> list[str]:
    """What became of so many passes: "-" when the action was done, "!" when it failed undone, "+!" when it was done and
    failed."""
    seen = []
    for _ in range(times):
        mark = ""
        try:
            with failpoint(name):
                mark = "+"
            mark = "-"
        except DocferryError:
            mark += "!"
        seen.append(mark)
    return seen


# -- the names --------------------------------------------------------------------------------------------------------


def call_sites() -> dict[str, set[str]]:
    """The files in which each name stands at a boundary."""
    found: dict[str, set[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Call(func=ast.Name(id="failpoint" | "boundary"), args=[ast.Constant(value=str(name))]):
                    found.setdefault(name, set()).add(path.relative_to(PACKAGE).as_posix())
                case ast.Call(func=ast.Name(id="failpoint" | "boundary")):
                    pytest.fail(f"{path}:{node.lineno}: the name of a failpoint is to be read in the source")
    return found


def test_every_name_has_a_place_and_every_place_a_name() -> None:
    assert call_sites().keys() == PLACES.keys()
    assert list(PLACES) == sorted(PLACES)


def test_the_pure_packages_have_none() -> None:
    files = {file for files in call_sites().values() for file in files}
    assert not [file for file in files if file.startswith(("change/", "document/"))]


def test_the_documentation_lists_them() -> None:
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    section = text.partition("## Failpoints\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `([\w.]+)` \| `([^|]+)` \| (\w+) \| (.+) \|$", section, re.MULTILINE)
    sites = call_sites()
    expected = [
        (name, "`, `".join(sorted(sites[name])), place.error.__name__, place.action) for name, place in PLACES.items()
    ]
    assert rows == expected, "\n".join(f"| `{a}` | `{b}` | {c} | {d} |" for a, b, c, d in expected)
    promises = (ROOT / "docs/reliability.md").read_text(encoding="utf-8")
    assert f"at each of {len(PLACES)} boundaries" in promises


def test_each_has_an_error_to_try_again_and_one_to_stop() -> None:
    for name, place in PLACES.items():
        on(f"{name}=raise:stop")
        with pytest.raises(DocferryError) as raised, failpoint(name):
            pass
        assert raised.value.verdict is Verdict.STOP
        assert place.error.verdict is Verdict.RETRY


# -- off --------------------------------------------------------------------------------------------------------------


def test_nothing_happens_unless_the_environment_says_so() -> None:
    switch({})
    assert passes("applier.apply", 3) == ["-", "-", "-"]
    assert failpoint("applier.apply") is failpoint("capture.read"), "off, there is nothing to be made"
    on("capture.read=raise")
    assert passes("applier.apply", 3) == ["-", "-", "-"]
    switch({VARIABLE: " "})
    assert passes("capture.read", 3) == ["-", "-", "-"]


def test_an_app_reads_the_environment(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    source = SourceConfig(dsn="postgresql://nobody@127.0.0.1:1/none")
    config = Config(source, TargetConfig(), (), RunConfig(), Path("docferry.toml"))
    App(config)
    assert caplog.text == ""
    monkeypatch.setenv(VARIABLE, "capture.read=raise@2")
    App(config)
    assert "FAILPOINTS ARE ON" in caplog.text
    assert {record.levelno for record in caplog.records} == {logging.WARNING}
    assert passes("capture.read", 1) == ["-"]
    App(config)
    assert passes("capture.read", 1) == ["!"], "another App of the process counts on"
    assert caplog.text.count("FAILPOINTS ARE ON") == 1
    monkeypatch.delenv(VARIABLE)
    App(config)
    assert passes("capture.read", 3) == ["-", "-", "-"]


# -- what is said -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("raise", "! ! ! ! ! !"),
        ("raise:stop@2", "- ! - - - -"),
        ("after", "+! +! +! +! +! +!"),
        ("after@3", "- - +! - - -"),
        ("after:stop@every 3", "- - +! - - +!"),
        (" raise @ every 2 ", "- ! - ! - !"),
        ("hang:0@1", "- - - - - -"),
        ("raise%1", "! ! ! ! ! !"),
    ],
)
def test_which_passes_fail(text: str, expected: str) -> None:
    on(f"target.write={text}")
    assert passes("target.write", 6) == expected.split()


def test_several_at_once_and_two_of_one_name() -> None:
    on("target.write=raise@1; target.write=after@3;capture.read=raise:stop@2;")
    assert passes("target.write", 4) == ["!", "-", "+!", "-"]
    assert passes("capture.read", 3) == ["-", "!", "-"]


def test_chance_is_repeatable_by_its_seed() -> None:
    on("target.write=raise%.3#7")
    first = passes("target.write", 200)
    assert 30 < first.count("!") < 90
    switch({})
    on("target.write=raise%.3#7")
    assert passes("target.write", 200) == first
    on("target.write=raise%.3#8")
    assert passes("target.write", 200) != first


def test_an_action_that_fails_by_itself_is_not_reported_twice() -> None:
    on("target.write=after")
    with pytest.raises(ZeroDivisionError), failpoint("target.write"):
        raise ZeroDivisionError


def test_the_error_is_the_boundary_s_own() -> None:
    on("ledger.heartbeat=raise;target.request=after;outbox.claim=raise:stop")
    with pytest.raises(SourceUnavailable, match=r"ledger\.heartbeat, nothing was done"), failpoint("ledger.heartbeat"):
        pass
    with pytest.raises(TargetUnavailable, match=r"what was asked for was done"), failpoint("target.request"):
        pass
    with pytest.raises(SourceRefused), failpoint("outbox.claim"):
        pass


def test_a_function_is_a_boundary_whenever_it_is_called() -> None:
    calls = []

    @boundary("ledger.raise_floor")
    def raise_floor(table: str, *, version: int) -> int:
        """Words."""
        calls.append(table)
        return version

    assert raise_floor("a", version=1) == 1
    assert raise_floor.__doc__ == "Words."
    on("ledger.raise_floor=after@2;ledger.raise_floor=raise@3")
    assert raise_floor("b", version=2) == 2
    with pytest.raises(SourceUnavailable):
        raise_floor("c", version=3)
    with pytest.raises(SourceUnavailable):
        raise_floor("d", version=4)
    assert calls == ["a", "b", "c"]


def test_a_hang_lasts_as_long_as_it_says() -> None:
    on("capture.read=hang:0.2@1")
    began = time.monotonic()
    assert passes("capture.read", 2) == ["-", "-"]
    assert time.monotonic() - began >= 0.2


@pytest.mark.parametrize("kind", ["hang", "after:hang"])
def test_a_hang_for_ever_does_not_end(kind: str) -> None:
    on(f"capture.read={kind}")
    thread = threading.Thread(target=passes, args=("capture.read", 1), daemon=True)
    thread.start()
    thread.join(0.3)
    assert thread.is_alive()


@pytest.mark.parametrize(("kind", "printed"), [("kill", ""), ("after:kill", "done\n")])
def test_a_kill_is_sigkill(kind: str, printed: str) -> None:
    program = (
        "from docferry.failpoints import failpoint, switch\nswitch()\n"
        "try:\n    with failpoint('target.write'):\n        print('done', flush=True)\n"
        "finally:\n    print('cleaned up', flush=True)"
    )
    environment = {**os.environ, VARIABLE: f"target.write={kind}"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, printed)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nowhere=kill", "no failpoint nowhere"),
        ("capture.read=explode", "no kind explode"),
        ("capture.read=raise:softly", "raise does not take 'softly'"),
        ("capture.read=kill:9", "kill does not take '9'"),
        ("capture.read=hang:long", "hang does not take 'long'"),
        ("capture.read", "is not of the form"),
        ("capture.read=kill@0", "is not of the form"),
        ("capture.read=kill@every 0", "is not of the form"),
        ("capture.read=kill%2", "is not of the form"),
        ("capture.read=kill@3%0.1", "is not of the form"),
        ("capture.read=raise;target.write=kil", "no kind kil"),
    ],
)
def test_what_is_refused(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as refused:
        on(text)
    assert VARIABLE in str(refused.value)
    for name in PLACES:
        assert name in refused.value.remedy
    for kind in ("raise:stop", "hang:SECONDS", "after:kill"):
        assert kind in refused.value.remedy
    assert failpoints._on is None, "nothing of it counts"
