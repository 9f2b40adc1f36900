"""Looking for schedules that fail, showing one, making it smaller."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from itertools import count

from .broken import broken
from .weather import Weather
from .world import simulate

__all__ = ["Failed", "command", "for_seconds", "search", "shrink", "story"]

_SMALLER = {
    "transactions": (2, 4, 10),
    "writers": (1,),
    "rows_before": (0, 3),
    "workers": (1,),
    "page": (500,),
    "batch": (200,),
}
_TRIES = 40


class Failed(AssertionError):
    """A schedule failed. `seed`: which; `world`: as it ended."""

    def __init__(self, seed: int, given: Mapping[str, float], name: str | None, error: BaseException) -> None:
        super().__init__(f"{type(error).__name__}: {error}\nreplay it with:  {command(seed, given, name)}")
        self.seed = seed
        self.error = error


def command(seed: int, given: Mapping[str, float], name: str | None) -> str:
    """What replays a schedule."""
    words = [f"python -m tests.simulation {seed}", *(f"{what}={value:g}" for what, value in given.items())]
    return " ".join([*words, *([f'--broken "{name}"'] if name else [])])


def search(seeds: Iterable[int], given: Mapping[str, float] | None = None, name: str | None = None) -> int:
    """Run these schedules; returns how many. `name`: of the rule that is missing. Raises Failed."""
    number = 0
    with broken(name) as weather:
        for number, seed in enumerate(seeds, 1):  # noqa: B007 - it is the answer
            try:
                simulate(seed, {**weather, **(given or {})})
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException as error:
                raise Failed(seed, given or {}, name, error) from error
    return number


def for_seconds(seconds: float, first: int) -> Iterator[int]:
    """Seeds from `first` on, until the time is used up."""
    deadline = time.monotonic() + seconds
    for seed in count(first):
        if time.monotonic() > deadline:
            return
        yield seed


def story(seed: int, given: Mapping[str, float], name: str | None) -> tuple[list[str], BaseException | None]:
    """What happens in a schedule, and what fails."""
    with broken(name) as weather:
        try:
            world = simulate(seed, {**weather, **given}, trace=True)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # noqa: BLE001 - it is what was asked for
            return error.world.lines, error  # type: ignore[attr-defined]
    assert world.lines is not None
    return world.lines, None


def shrink(seed: int, given: Mapping[str, float], name: str | None) -> tuple[int, dict[str, float]]:
    """A calmer schedule that fails, too: a seed and its weather. Other weather is another schedule, so that some seeds
    are tried with each."""
    found = seed, dict(given)
    for what, values in {**_SMALLER, **dict.fromkeys(Weather.CALM, (0.0,))}.items():
        for value in values:
            calmer = {**found[1], what: value}
            try:
                search([found[0], *range(_TRIES)], calmer, name)
            except Failed as failed:
                found = failed.seed, calmer
                break
    return found
