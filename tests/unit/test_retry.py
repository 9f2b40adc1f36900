from __future__ import annotations

import threading
import time

import pytest

from docferry.errors import Interrupted, SourceUnavailable, TimedOut
from docferry.retry import Retry


def test_delays_grow_up_to_the_longest_and_are_spread() -> None:
    retry = Retry(first=0.1, longest=2.0)
    for attempt, ceiling in [(1, 0.2), (2, 0.4), (3, 0.8), (4, 1.6), (5, 2.0), (1000, 2.0)]:
        delays = [retry.delay(attempt) for _ in range(50)]
        assert all(ceiling / 4 <= delay <= ceiling for delay in delays)
        assert len(set(delays)) > 1


def test_a_stop_ends_the_wait_at_once() -> None:
    retry = Retry(first=60.0, longest=60.0)
    timer = threading.Timer(0.05, retry.stop.set)
    timer.start()
    began = time.monotonic()
    with pytest.raises(Interrupted):
        retry.wait(1)
    assert time.monotonic() - began < 10
    timer.join()
    with pytest.raises(Interrupted):
        retry.wait(1)


def test_attempts_without_a_limit() -> None:
    retry = Retry(first=0.0, longest=0.0)
    for attempt in range(1, 200):
        retry.wait(attempt)


def test_attempts_with_a_limit_raise_the_cause() -> None:
    retry = Retry(first=0.0, longest=0.0, attempts=2)
    cause = SourceUnavailable("down")
    retry.wait(1, cause)
    retry.wait(2, cause)
    with pytest.raises(SourceUnavailable, match="down"):
        retry.wait(3, cause)
    with pytest.raises(TimedOut, match="2 attempts"):
        retry.wait(3)


def test_whoever_waits_says_so() -> None:
    waited: list[int] = []
    retry = Retry(first=0.0, longest=0.0, on_wait=lambda: waited.append(1))
    retry.wait(1)
    retry.wait(2)
    assert waited == [1, 1]
