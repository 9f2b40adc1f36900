"""Asynchronous Lambda, whatever it does with the events, ends with items equal to the rows.

DOCFERRY_SIMULATION_SEED=N shows what happens in schedule N.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from .lambda_parts import Rules
from .lambda_world import SEED, Diverged, run, traced

SCHEDULES = 1250
"""In each of four parts, so that they run side by side."""
SEARCHED = 20_000


def search(seeds: Iterable[int], rules: Rules, weather: Mapping[str, float]) -> None:
    """Raises Diverged when one of the schedules does not end equal to the source."""
    chosen = os.environ.get(SEED)
    if chosen is not None:
        story = "\n".join(traced(int(chosen), rules, weather))
        if "diverged" in story:
            raise Diverged(story)
        pytest.skip(story)
    for seed in seeds:
        run(seed, rules, weather)


@pytest.mark.parametrize("part", range(4))
def test_any_schedule_leads_to_the_source(part: int) -> None:
    search(range(part * SCHEDULES, (part + 1) * SCHEDULES), Rules(), {})


@pytest.mark.soak
def test_many_more_schedules_lead_to_the_source() -> None:
    search(range(1_000_000, 1_200_000), Rules(), {})


BROKEN: dict[str, tuple[dict[str, Any], dict[str, float]]] = {
    "no fence": ({"fence": False}, {}),
    "deletes leave no tombstone": ({"tombstones": False}, {}),
    "tombstones live for a week": ({"lifetime": 7 * 24}, {"time_passes": 0.4}),
    "a change is trusted however old": ({"trusted_age": None}, {"time_passes": 0.4, "sending_fails": 0.6}),
    "nobody asks whether it committed": ({"gate": False}, {}),
    "the outbox is dropped": ({"outbox": False}, {}),
    "a row is read before the change is visible": ({"reads_wait": False}, {}),
    "each process has its own floors": ({"shares_floors": False}, {"truncates": 0.25}),
    "floors are looked for before the write": ({"looks_for_floors_afterwards": False}, {"truncates": 0.25}),
    "what another attempt wrote is left": ({"takes_back_what_it_did_not_write": False}, {"truncates": 0.25}),
    "a large row takes columns from an older one": ({"partial_is_told": False}, {}),
    "the backfill waits for no transaction": ({"backfill_waits": False}, {}),
}


@pytest.mark.parametrize(("rules", "weather"), BROKEN.values(), ids=BROKEN.keys())
def test_without_any_one_rule_a_counterexample_is_found(rules: dict[str, Any], weather: dict[str, float]) -> None:
    """The test above is worth something: each of the rules that it stands for is needed."""
    with pytest.raises(Diverged, match=SEED):
        search(range(SEARCHED), replace(Rules(), **rules), weather)


def test_a_seed_is_a_schedule() -> None:
    """And the same one each time."""
    assert traced(7, Rules(), {}) == traced(7, Rules(), {})
    assert traced(7, Rules(), {}) != traced(8, Rules(), {})
