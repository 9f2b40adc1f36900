"""Two stores of dead letters as one: the table in the source, and the queue."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from docferry.deadletter.contract import (
    QUEUE_IDS,
    REFUSED,
    DeadLetter,
    DeadLetterGroup,
    DeadLetters,
    StoredDeadLetter,
)
from docferry.deadletter.groups import Groups
from docferry.errors import NotApplied, SourceUnavailable
from docferry.retry import Retry

__all__ = ["JoinedDeadLetters", "open_dead_letters"]

_log = logging.getLogger(__name__)
_T = TypeVar("_T")
_SILENT_FOR = 30.0


class _Audited(DeadLetters, Protocol):
    def tell(self, letters: Sequence[StoredDeadLetter], outcomes: Mapping[int, str] | None) -> None: ...


class JoinedDeadLetters:
    """contract.DeadLetters over two others. `first`: with ids below QUEUE_IDS, where new ones go, and with the audit;
    `second`: with ids from there on, where they go while the first does not answer.

    While the first does not answer, the second is read alone, and `unread` says so. `clock`: monotonic seconds.
    """

    def __init__(self, first: _Audited, second: DeadLetters, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._first = first
        self._second = second
        self._clock = clock
        self._silent = ""
        self._silent_since = 0.0

    @property
    def unread(self) -> str:
        """See the contract."""
        return "; ".join(why for why in (self._silent, self._first.unread, self._second.unread) if why)

    def add(self, letters: Sequence[DeadLetter]) -> None:
        """See the contract."""
        try:
            self._first.add(letters)
        except SourceUnavailable as error:
            _log.warning("dead letters go to the queue: %s", error)
            self._second.add(letters)

    def groups(self) -> list[DeadLetterGroup]:
        """See the contract."""
        groups = Groups()
        nothing: list[DeadLetterGroup] = []
        for group in [*self._ask(self._first.groups, nothing), *self._second.groups()]:
            groups.merge(group)
        return groups.sorted()

    def find(
        self,
        *,
        table: str | None = None,
        cause: str | None = None,
        ids: Sequence[int] | None = None,
        keys: Sequence[Mapping[str, str]] | None = None,
        after: int = 0,
        limit: int = 1000,
    ) -> list[StoredDeadLetter]:
        """See the contract. All of the first come before any of the second."""
        found: list[StoredDeadLetter] = []
        if after < QUEUE_IDS and (ids is None or any(id_ < QUEUE_IDS for id_ in ids)):
            found = self._ask(
                lambda: self._first.find(table=table, cause=cause, ids=ids, keys=keys, after=after, limit=limit), found
            )
        if found or (ids is not None and all(id_ < QUEUE_IDS for id_ in ids)):
            return found
        behind = after if after >= QUEUE_IDS else 0
        return self._second.find(table=table, cause=cause, ids=ids, keys=keys, after=behind, limit=limit)

    def count(self) -> dict[str, int]:
        """See the contract."""
        counts: dict[str, int] = {}
        counts.update(self._ask(self._first.count, counts))
        for table, count in self._second.count().items():
            counts[table] = counts.get(table, 0) + count
        return counts

    def remove(self, letters: Sequence[StoredDeadLetter], outcomes: Mapping[int, str] | None = None) -> int:
        """See the contract. Those of the second are in the audit before they go; one that only moves to the first,
        because it was refused again, is not."""
        ours = [one for one in letters if one.id < QUEUE_IDS]
        theirs = [one for one in letters if one.id >= QUEUE_IDS]
        going = [one for one in theirs if outcomes is None or outcomes.get(one.id) != REFUSED]
        if going:
            try:
                self._ask(lambda: self._first.tell(going, outcomes), None)
            except NotApplied as error:
                _log.warning("not in the audit: %s", error)
        return (self._first.remove(ours, outcomes) if ours else 0) + (self._second.remove(theirs) if theirs else 0)

    def close(self) -> None:
        """See the contract."""
        try:
            self._second.close()
        finally:
            self._first.close()

    def _ask(self, question: Callable[[], _T], without: _T) -> _T:
        """The first store's answer; once it did not answer, it is not asked again for a while: each time would cost a
        timeout."""
        if self._silent and self._clock() - self._silent_since < _SILENT_FOR:
            return without
        try:
            answer = question()
        except SourceUnavailable as error:
            self._silent, self._silent_since = f"those in the source could not be read: {error}", self._clock()
            return without
        self._silent = ""
        return answer


def open_dead_letters(
    dsn: Callable[[], str] | None,
    queue: str | None,
    options: Mapping[str, Any],
    retry: Retry,
    *,
    payload: bool = True,
    retention: float = 90 * 86400.0,
) -> DeadLetters:
    """The dead letters of a configuration: in the source, in the queue, or both.

    `dsn`: gives the source's connection string, None where there is no access to the source. `options`: for boto3's
    client. `payload`: what goes to the queue holds the change itself, where that is at hand. `retention`: seconds that
    the audit's entries stand. One of the two is there.
    """
    from docferry.deadletter.postgres import PostgresDeadLetters

    first = None if dsn is None else PostgresDeadLetters(dsn(), retention=retention)
    if queue is None:
        assert first is not None, "dead letters need the source or a queue"
        return first
    from docferry.deadletter.sqs import SqsDeadLetters

    second = SqsDeadLetters(queue, options, retry, payload=payload)
    return second if first is None else JoinedDeadLetters(first, second)
