"""What simulations give docferry in place of the source's side tables."""

from __future__ import annotations

from collections.abc import Sequence

from docferry.capture.contract import MirrorRecord

__all__ = ["Ledger", "NoLetters"]


class Ledger:
    """contract.Ledger, as far as applying needs it."""

    def __init__(self) -> None:
        self.truncated = 0

    def mirrors(self) -> dict[str, MirrorRecord]:
        return {}

    def raise_floor(self, _table: str, version: int) -> None:
        self.truncated = max(self.truncated, version)

    def floor(self, _table: str) -> int:
        return self.truncated


class NoLetters:
    """contract.DeadLetters: nothing in these histories can fail."""

    def add(self, letters: Sequence[object]) -> None:
        raise AssertionError(letters)
