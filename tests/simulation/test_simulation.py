"""Whatever happens, in whatever order: items equal rows, and nothing that was confirmed is lost.

A failure says which command replays it. DOCFERRY_SIMULATION_SECONDS: how long to look for one.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import SystemRandom

import pytest

from .broken import BROKEN
from .search import Failed, for_seconds, search, story

SECONDS = 30.0
SOAK_SECONDS = 3600.0
SEARCHED = 1500
REGRESSIONS: tuple[tuple[int, dict[str, float]], ...] = (
    (214, {"verifies": 3.0}),  # verify: a change that came behind the reading of the row made it one for a dead letter
    (1016, {"verifies": 3.0}),
    (2473, {"verifies": 3.0}),
    (222492262, {}),  # somebody removes an item that a backfill has just written: verify --repair brings it back
    (723732135, {}),  # verify: rows read while they were being populated had gone before the population came to them
    (1313, {}),  # verify: a dead letter was replayed between the look at the item and the look for it
)
"""Schedules that once failed. Whoever changes how one is drawn makes them ordinary ones."""


def _seconds(otherwise: float) -> float:
    return float(os.environ.get("DOCFERRY_SIMULATION_SECONDS", otherwise))


def _look(seconds: float, capsys: pytest.CaptureFixture[str]) -> None:
    first = SystemRandom().randrange(10**9)
    number = search(for_seconds(seconds, first))
    with capsys.disabled():
        sys.stdout.write(f"\n{number} schedules from seed {first} on\n")
    assert number > seconds / 10, "so few say nothing"


def test_any_schedule_leads_to_the_rows(capsys: pytest.CaptureFixture[str]) -> None:
    _look(_seconds(SECONDS), capsys)


@pytest.mark.soak
def test_an_hour_of_schedules_leads_to_the_rows(capsys: pytest.CaptureFixture[str]) -> None:
    _look(_seconds(SOAK_SECONDS), capsys)


@pytest.mark.parametrize(("seed", "weather"), REGRESSIONS)
def test_what_failed_once_does_not_fail_again(seed: int, weather: dict[str, float]) -> None:
    search([seed], weather)


@pytest.mark.parametrize("name", BROKEN)
def test_without_any_one_rule_a_schedule_fails(name: str, record_property: Callable[[str, object], None]) -> None:
    """The tests above are worth something: each of the rules that they stand for is needed."""
    with pytest.raises(Failed) as failed:
        search(range(SEARCHED), name=name)
    record_property("seed", failed.value.seed)
    sys.stdout.write(f"{BROKEN[name].rule}, {name}: {failed.value}\n")


def test_the_documentation_lists_the_rules() -> None:
    text = (Path(__file__).parents[2] / "docs/reliability.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| (R\d+) \| (.+) \| \d+ \|$", text, re.MULTILINE)
    assert sorted(listed) == sorted((one.rule, name) for name, one in BROKEN.items())
    assert f"each of the {len(BROKEN)} variants" in text


def test_a_seed_is_a_schedule() -> None:
    """And the same one each time."""
    for seed in range(5):
        assert story(seed, {}, None) == story(seed, {}, None)
    assert story(1, {}, None) != story(2, {}, None)


def test_the_command_shows_the_same_schedule_in_any_process() -> None:
    """Whatever Python makes of hashes."""
    command = [sys.executable, "-m", "tests.simulation", "3"]
    root = Path(__file__).parents[2]
    first, again = (
        subprocess.run(
            command,
            cwd=root,
            env={**os.environ, "PYTHONPATH": str(root / "src"), "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
            timeout=300,
        ).stdout
        for seed in ("1", "2")
    )
    assert first == again
    assert b"items equal rows" in first


def test_a_schedule_that_fails_fails_again() -> None:
    name = "rows are read before the change is visible"
    with pytest.raises(Failed) as failed:
        search(range(SEARCHED), name=name)
    first, again = (story(failed.value.seed, {}, name) for _ in range(2))
    assert first[0] == again[0]
    assert str(first[1]) == str(again[1]) == str(failed.value.error)
    assert f"python -m tests.simulation {failed.value.seed} --broken" in str(failed.value)
