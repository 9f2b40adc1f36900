"""Draining ends when nothing is left to be carried."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from docferry.capture.contract import Delivery
from docferry.change.model import Change, Op, Relation
from docferry.errors import SourceUnavailable
from docferry.operate.drain import UntilEmpty

CHANGE = Change(Op.INSERT, Relation(7, "public", "t", ()), (), None, 1, 0, None, 0)


class Capture:
    """Answers each read by the next of `answers`."""

    def __init__(self, *answers: Callable[[], Delivery]) -> None:
        self.answers = iter(answers)
        self.confirmed: list[int] = []

    def read(self, _timeout: float) -> Delivery:
        return next(self.answers)()

    def confirm(self, position: int) -> None:
        self.confirmed.append(position)

    def keep_alive(self, _timeout: float) -> None:
        """Nothing to keep."""

    def look_afresh(self) -> None:
        """There are no types."""

    def close(self) -> None:
        """Nothing to close."""


def broken() -> Delivery:
    raise SourceUnavailable("gone")


def test_it_ends_once_all_that_was_found_is_confirmed() -> None:
    stopping = threading.Event()
    capture = Capture(lambda: Delivery([CHANGE], 1), Delivery, Delivery)
    until_empty = UntilEmpty(capture, stopping)
    until_empty.read(1)
    until_empty.read(1)
    assert not stopping.is_set()
    until_empty.confirm(1)
    assert capture.confirmed == [1]
    until_empty.read(1)
    assert stopping.is_set()


def test_it_does_not_wait_for_what_a_broken_connection_gave_back() -> None:
    """Another drainer may have carried it since."""
    stopping = threading.Event()
    until_empty = UntilEmpty(Capture(lambda: Delivery([CHANGE], 1), broken, Delivery), stopping)
    until_empty.read(1)
    with pytest.raises(SourceUnavailable):
        until_empty.read(1)
    assert not stopping.is_set()
    until_empty.read(1)
    assert stopping.is_set()
