"""How often what happens in a schedule. Each has its own: what is rare in all of them meets too rarely."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import Final

__all__ = ["GRACE", "Weather"]

GRACE: Final = 12.0
"""Seconds that a tombstone outlives the watermark (a minute, really). Nothing stays on the wire for so long."""


class Weather:
    """Drawn by the seed. `given`: values that narrow a search, or make a failure smaller."""

    def __init__(self, random: Random, given: Mapping[str, float]) -> None:
        choice = random.choice
        # what the application does
        self.transactions = choice((4, 10, 20, 30))
        self.writers = choice((1, 2, 3))
        self.pace = choice((0.05, 0.3, 1.5))
        self.truncates = choice((0.0, 0.03, 0.15))
        self.keeps_document = choice((0.1, 0.5, 0.9))
        self.bad_documents = choice((0.0, 0.1, 0.4))
        self.rolls_back = choice((0.0, 0.2))
        self.full_identity = float(random.random() < 0.2)
        self.rows_before = choice((0, 3, 6))
        # the network
        self.slow = choice((0.0, 0.05, 0.25))
        self.slowest = choice((0.3, 4.0))
        self.hidden_for = choice((0.0, 0.05, 2.0))
        self.source_fails = choice((0.0, 0.0, 0.01, 0.05))
        self.stream_breaks = choice((0.0, 0.02, 0.1))
        self.cut_short = choice((0.0, 0.3))
        self.throttled = choice((0.0, 0.1, 0.5))
        self.applied_but_failed = choice((0.0, 0.05, 0.3))
        self.on_the_wire = choice((0.1, 3.0))
        self.lands_later = choice((0.0, 0.5, 1.0))
        # what goes wrong, and what people do: seconds between two of each, about; 0 for never
        self.kills = choice((0.0, 0.0, 6.0, 20.0))
        self.stops = choice((0.0, 0.0, 20.0))
        self.restarts_after = choice((0.2, 3.0))
        self.backfills = choice((0.0, 0.0, 5.0, 15.0))
        self.replays = choice((0.0, 4.0, 15.0))
        self.tools_killed = choice((0.0, 0.3))
        self.verifies = choice((0.0, 0.0, 5.0))
        self.repairs = choice((0.0, 1.0))
        self.reconciles = float(random.random() < 0.2)
        self.tampers = choice((0.0, 0.0, 0.0, 5.0))
        self.fails_over = choice((0.0, 0.0, 0.0, 0.0, 20.0))
        self.keeps_slot = choice((0.0, 0.5, 1.0))
        self.loses_slot = choice((0.0, 0.0, 0.0, 0.0, 0.0, 25.0))
        self.loses_locks = choice((0.0, 0.0, 0.0, 10.0))
        # docferry's own settings
        self.workers = choice((1, 2, 4))
        self.batch = choice((1, 4, 200))
        self.page = choice((1, 2, 500))
        for name, value in given.items():
            assert hasattr(self, name), name
            setattr(self, name, type(getattr(self, name))(value))

    CALM: Final = (
        "slow",
        "source_fails",
        "stream_breaks",
        "throttled",
        "applied_but_failed",
        "kills",
        "stops",
        "backfills",
        "replays",
        "tools_killed",
        "verifies",
        "tampers",
        "fails_over",
        "loses_slot",
        "loses_locks",
    )
    """What is over when the application has ended."""

    def calm(self) -> None:
        """From now on nothing fails."""
        for name in self.CALM:
            setattr(self, name, 0.0)

    def latency(self, random: Random) -> float:
        """Seconds that a message takes."""
        return random.uniform(0.0, self.slowest) if self.slow and random.random() < self.slow else random.random() / 500
