"""How long tests wait for what should happen: far longer than it takes, for a machine may be slow and busy."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["PATIENCE", "until"]

PATIENCE = 120.0
"""Seconds after which a test gives up on what should have happened long ago."""


def until(condition: Callable[[], object], what: str, timeout: float = PATIENCE, *, pause: float = 0.02) -> None:
    """Poll until `condition` holds; after so many seconds without it the test fails."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not yet after {timeout:.0f} s"
        time.sleep(pause)
