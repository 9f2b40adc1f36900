"""Draining: a pipeline that ends when nothing is left to be carried."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from docferry.capture.contract import Capture, Delivery

__all__ = ["Drained", "UntilEmpty"]

_LOOK = 0.05


@dataclass(frozen=True, slots=True)
class Drained:
    """What became of the changes. `oldest_seconds`: how long the oldest that is left has waited."""

    applied: int
    stale: int
    dead: int
    oldest_seconds: float

    @property
    def total(self) -> int:
        """All of them."""
        return self.applied + self.stale + self.dead

    @classmethod
    def of(cls, tables: Mapping[str, Mapping[str, Any]], oldest_seconds: float) -> Drained:
        """From the counters of each table."""
        applied, stale, dead = (sum(int(one[name]) for one in tables.values()) for name in ("applied", "stale", "dead"))
        return cls(applied, stale, dead, oldest_seconds)


class UntilEmpty:
    """A capture that sets `stopping` once it finds nothing and all that it found before is confirmed."""

    def __init__(self, capture: Capture, stopping: threading.Event) -> None:
        self._capture = capture
        self._stopping = stopping
        self._delivered = 0
        self._confirmed = 0

    def read(self, timeout: float) -> Delivery:
        """See contract.Capture."""
        delivery = self._capture.read(min(timeout, _LOOK))
        self._delivered = max(self._delivered, delivery.position or 0)
        if not delivery.changes and self._confirmed >= self._delivered:
            self._stopping.set()
        return delivery

    def confirm(self, position: int) -> None:
        """See contract.Capture."""
        self._capture.confirm(position)
        self._confirmed = max(self._confirmed, position)

    def keep_alive(self, timeout: float) -> None:
        """See contract.Capture."""
        self._capture.keep_alive(timeout)

    def look_afresh(self) -> None:
        """See contract.Capture."""
        self._capture.look_afresh()

    def close(self) -> None:
        """See contract.Capture."""
        self._capture.close()
