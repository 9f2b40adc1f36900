"""Dead letters in two stores, of which one does not answer."""

from __future__ import annotations

from typing import Any, cast

from docferry.deadletter.joined import JoinedDeadLetters
from docferry.errors import SourceUnavailable


class Store:
    """As much of a store as is asked here: it counts one dead letter, or is away."""

    unread = ""

    def __init__(self) -> None:
        self.away = False
        self.asked = 0

    def count(self) -> dict[str, int]:
        self.asked += 1
        if self.away:
            raise SourceUnavailable("gone")
        return {"public.orders": 1}


def test_a_source_that_did_not_answer_is_asked_again_after_a_while() -> None:
    now = 1000.0
    source, queue = Store(), Store()
    joined = JoinedDeadLetters(cast("Any", source), cast("Any", queue), clock=lambda: now)
    source.away = True
    assert joined.count() == joined.count() == {"public.orders": 1}
    assert source.asked == 1, "each time would cost a timeout"
    assert "could not be read: gone" in joined.unread

    source.away = False
    now += 31
    assert joined.count() == {"public.orders": 2}
    assert joined.unread == ""

    source.away = True
    assert joined.count() == {"public.orders": 1}
    assert joined.unread
