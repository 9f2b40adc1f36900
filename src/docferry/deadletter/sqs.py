"""Dead letters in an SQS queue: those that Lambda puts there, and docferry's own."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from docferry.deadletter.contract import QUEUE_IDS, DeadLetter, DeadLetterGroup, StoredDeadLetter
from docferry.deadletter.groups import Groups
from docferry.deadletter.held import HeldMessage, HeldMessages
from docferry.deadletter.messages import compose
from docferry.deadletter.queue import MAX_MESSAGE_BYTES, Queue, TooLong
from docferry.errors import DocferryError, TargetRefused
from docferry.failpoints import failpoint
from docferry.retry import Retry

__all__ = ["SqsDeadLetters"]

_log = logging.getLogger(__name__)

MOST_HELD: Final = 100_000
"""Messages that one object holds at a time; SQS lets about 120,000 be in flight."""
_PAGE_BYTES: Final = 8 << 20
_EMPTY_RECEIVES: Final = 2
_Identity = tuple[str, tuple[tuple[str, str], ...], int]


class SqsDeadLetters:
    """contract.DeadLetters over a standard queue.

    A queue can only be received from, so the first look takes all messages, for `visibility` seconds at a time, and
    holds them until `close()`, which gives back what is left: nobody else sees them meanwhile. A process that is killed
    gives them back by that time's end. Messages that come later are seen by the next object, or after an `add`.

    `options`: for boto3's client. `wait`: seconds of a receive; two that bring nothing new mean that there is no more.
    `payload`: what is sent holds the change itself, where that is at hand.
    """

    def __init__(
        self,
        url: str,
        options: Mapping[str, Any],
        retry: Retry,
        *,
        visibility: int = 300,
        wait: int = 1,
        payload: bool = True,
    ) -> None:
        self._queue = Queue(url, options, retry)
        self._visibility = visibility
        self._wait = wait
        self._payload = payload
        self._lock = threading.RLock()
        self._held = HeldMessages()
        self._gone: set[str] = set()
        self._stale = True
        self._unread = ""
        # What the last find() gave: one of them that fails again goes on with its count and its first time.
        self._shown: dict[_Identity, StoredDeadLetter] = {}
        self._keeper: threading.Thread | None = None
        self._closing = threading.Event()

    @property
    def unread(self) -> str:
        """See the contract."""
        return self._unread

    def add(self, letters: Sequence[DeadLetter]) -> None:
        """See the contract. A message that is too long for the queue goes without the change itself."""
        now = datetime.now(UTC)
        again = []
        with self._lock:
            for letter in letters:
                before = self._shown.get(_identity(letter))
                attempts, first_at = (before.attempts + 1, before.first_at) if before else (1, now)
                again.append(StoredDeadLetter(0, letter, attempts, first_at, now))
            self._send(again)

    def groups(self) -> list[DeadLetterGroup]:
        """See the contract."""
        groups = Groups()
        with self._lock:
            self._look()
            for held in self._held.all():
                for letter in self._held.letters(held):
                    groups.add(letter)
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
        """See the contract. Those of one message come together, so that it is not taken apart without need, and a page
        ends at 8 MiB of messages."""
        found: list[StoredDeadLetter] = []
        size = 0
        wanted = None if ids is None else frozenset(ids)
        asked = None if keys is None else {frozenset(key.items()) for key in keys}
        with self._lock:
            if after < QUEUE_IDS or self._keeper is None:
                self._look()
            for held in self._candidates(wanted, after):
                page = [
                    letter
                    for letter in self._held.letters(held)
                    if letter.id > after
                    and table in (None, letter.letter.table)
                    and cause in (None, letter.letter.cause)
                    and (wanted is None or letter.id in wanted)
                    and (asked is None or any(frozenset(key.items()) in asked for key in _keys(letter.letter)))
                ]
                found += page
                size += held.length if page else 0
                if len(found) >= limit or size >= _PAGE_BYTES:
                    break
            self._shown = {_identity(one.letter): one for one in found}
        return found

    def count(self) -> dict[str, int]:
        """See the contract."""
        counts: dict[str, int] = {}
        for group in self.groups():
            counts[group.table] = counts.get(group.table, 0) + group.count
        return counts

    def remove(self, letters: Sequence[StoredDeadLetter], outcomes: Mapping[int, str] | None = None) -> int:  # noqa: ARG002 - a queue has no audit
        """See the contract. Of a message that holds others as well, those are sent first as messages of their own."""
        with self._lock:
            chosen: dict[int, set[int]] = {}
            for letter in letters:
                held = self._held.of(letter.id)
                if held is not None:
                    chosen.setdefault(held.base, set()).add(letter.id - held.base)
            messages = [held for base in chosen if (held := self._held.of(base)) is not None]
            rest: list[StoredDeadLetter] = []
            for held in messages:
                rest += [one for one in self._held.letters(held) if one.id - held.base not in chosen[held.base]]
            self._send(rest)
            # Durable elsewhere, or settled: now they may go.
            return sum(
                len(chosen[held.base])
                for held, deleted in zip(messages, self._delete(messages), strict=True)
                if deleted
            )

    def messages(self) -> int:
        """About how many messages there are; none is received. For watching, which must not hide them from others."""
        return sum(self._queue.counts())

    def close(self) -> None:
        """See the contract."""
        self._closing.set()
        if self._keeper is not None:
            self._keeper.join()
        with self._lock:
            try:
                self._queue.set_visibility(self._held.receipts(), 0)
            except DocferryError as error:
                _log.warning("messages stay invisible for up to %d s: %s", self._visibility, error)
            self._held.close()
            self._queue.close()

    # -- inside -------------------------------------------------------------------------------------------------------

    def _candidates(self, ids: frozenset[int] | None, after: int) -> Iterator[HeldMessage]:
        if ids is None:
            return self._held.behind(after)
        found = {held.base: held for id_ in ids if id_ > after and (held := self._held.of(id_)) is not None}
        return iter([found[base] for base in sorted(found)])

    def _look(self) -> None:
        """Receive until nothing new comes; only the first time, and after something was sent."""
        if not self._stale:
            return
        if self._keeper is None:
            self._keeper = threading.Thread(target=self._keep, name="dead letters", daemon=True)
            self._keeper.start()
        empty = 0
        while empty < _EMPTY_RECEIVES and len(self._held) < MOST_HELD:
            new = 0
            for message in self._queue.receive(visibility=self._visibility, wait=self._wait):
                if message.id in self._gone:
                    self._queue.delete([message.receipt])  # the first time need not have reached every server
                else:
                    new += self._held.put(message)
            empty = 0 if new else empty + 1
        self._unread = self._elsewhere()
        self._stale = False

    def _elsewhere(self) -> str:
        if len(self._held) >= MOST_HELD:
            return f"the queue holds more than the {MOST_HELD:,} messages that were looked at"
        try:
            others = self._queue.counts()[1] - len(self._held)
        except TargetRefused:  # a right that only this takes
            return ""
        if others <= 0:
            return ""
        return (
            f"about {others:,} messages of the queue are held by another process; those of one that was killed come "
            "back within minutes"
        )

    def _send(self, letters: Sequence[StoredDeadLetter]) -> None:
        """Durable when this returns."""
        if not letters:
            return
        self._stale = True
        with failpoint("deadletters.send"):
            try:
                self._queue.send([_body(one, payload=self._payload) for one in letters])
            except TooLong:
                for one in letters:  # some may have gone; twice does no harm
                    self._send_alone(one)

    def _send_alone(self, one: StoredDeadLetter) -> None:
        """The queue may be set to less than SQS allows."""
        for body in (_body(one, payload=self._payload), _body(one, payload=False)):
            try:
                return self._queue.send([body])
            except TooLong as error:
                reason, size = error, len(body.encode())
        raise TargetRefused(
            f"dead-letter queue {self._queue.url} takes no message of {size:,} bytes: {reason}",
            remedy="Raise the queue's MaximumMessageSize to 1048576.",
        )

    def _delete(self, messages: Sequence[HeldMessage]) -> list[bool]:
        if not messages:
            return []
        with failpoint("deadletters.delete"):
            deleted = self._queue.delete([held.receipt for held in messages])
        for held, done in zip(messages, deleted, strict=True):
            if done:
                self._gone.add(held.id)
            else:
                _log.warning("message %s was held for too long and is another's now; it stays", held.id)
            self._held.forget(held)
        return deleted

    def _keep(self) -> None:
        """Keep what is held invisible to others."""
        while not self._closing.wait(self._visibility / 3):
            try:
                self._queue.set_visibility(self._held.receipts(), self._visibility)
            except DocferryError as error:
                _log.warning("dead letters may be seen by others meanwhile: %s", error)


def _identity(letter: DeadLetter) -> _Identity:
    return letter.table, tuple(sorted(letter.key.items())), letter.version


def _body(one: StoredDeadLetter, *, payload: bool = True) -> str:
    text = compose(one.letter, one.attempts, one.first_at, one.last_at, payload=payload)
    if len(text.encode()) <= MAX_MESSAGE_BYTES:
        return text
    return compose(one.letter, one.attempts, one.first_at, one.last_at, payload=False)


def _keys(letter: DeadLetter) -> list[Mapping[str, str]]:
    return [letter.key] if letter.old_key is None else [letter.key, letter.old_key]
