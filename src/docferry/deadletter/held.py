"""Messages that this process has received and holds: slim records in memory, bodies in a file once they are many."""

from __future__ import annotations

import hashlib
import json
import tempfile
import threading
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from docferry.deadletter.contract import QUEUE_IDS, StoredDeadLetter
from docferry.deadletter.messages import MOST_CHANGES, read_message, stored
from docferry.deadletter.queue import Message

__all__ = ["HeldMessage", "HeldMessages"]

BODIES_IN_MEMORY: Final = 64 << 20
"""Bytes; what goes beyond is on disk (R10)."""


@dataclass(slots=True)
class HeldMessage:
    """A message. `base`: the id of its first dead letter, the others follow. Its body: `length` bytes from
    `offset`."""

    id: str
    base: int
    receipt: str
    sent_at: datetime
    offset: int
    length: int


class HeldMessages:
    """Those of one store, by id. For one thread at a time, but `receipts` is for any."""

    def __init__(self) -> None:
        # 64 MiB of memory, then a file that has no name and goes with the process.
        self._bodies = tempfile.SpooledTemporaryFile(max_size=BODIES_IN_MEMORY)  # noqa: SIM115 - closed by close()
        self._end = 0
        self._by_message: dict[str, HeldMessage] = {}
        self._by_base: dict[int, HeldMessage] = {}
        self._bases: list[int] = []
        self._changing = threading.Lock()

    def __len__(self) -> int:
        return len(self._by_message)

    def put(self, message: Message) -> bool:
        """Hold a message; False for one that is held already, whose newest receipt is the one that counts."""
        known = self._by_message.get(message.id)
        if known is not None:
            known.receipt = message.receipt
            return False
        raw = json.dumps([message.body, message.attributes]).encode()
        self._bodies.seek(self._end)
        self._bodies.write(raw)
        held = HeldMessage(
            message.id, self._free_base(message.id), message.receipt, message.sent_at, self._end, len(raw)
        )
        self._end += len(raw)
        with self._changing:
            self._by_message[held.id] = self._by_base[held.base] = held
        insort(self._bases, held.base)
        return True

    def letters(self, held: HeldMessage) -> list[StoredDeadLetter]:
        """The dead letters of a message."""
        self._bodies.seek(held.offset)
        body, attributes = json.loads(self._bodies.read(held.length))
        return [
            stored(found, held.base + index, held.sent_at) for index, found in enumerate(read_message(body, attributes))
        ]

    def of(self, id_: int) -> HeldMessage | None:
        """The message that a dead letter is in."""
        return self._by_base.get(id_ - id_ % MOST_CHANGES)

    def all(self) -> list[HeldMessage]:
        """By id."""
        return [self._by_base[base] for base in self._bases]

    def receipts(self) -> list[str]:
        """Of all of them."""
        with self._changing:
            return [held.receipt for held in self._by_message.values()]

    def behind(self, after: int) -> Iterator[HeldMessage]:
        """Those that may have a dead letter with an id above `after`, by id."""
        start = max(bisect_right(self._bases, after) - 1, 0)
        for base in self._bases[start:]:
            yield self._by_base[base]

    def forget(self, held: HeldMessage) -> None:
        """It is deleted, or not ours any more."""
        with self._changing:
            known = self._by_message.pop(held.id, None)
        if known is not None:
            del self._by_base[held.base]
            del self._bases[bisect_left(self._bases, held.base)]

    def close(self) -> None:
        """Let go of the bodies."""
        self._bodies.close()

    def _free_base(self, message: str) -> int:
        """Always the same for a message, unless another that came first has it: 38 bits tell them apart."""
        number = int.from_bytes(hashlib.blake2b(message.encode(), digest_size=8).digest()) % (QUEUE_IDS // MOST_CHANGES)
        base = QUEUE_IDS + number * MOST_CHANGES
        while base in self._by_base:
            base = QUEUE_IDS + (base + MOST_CHANGES - QUEUE_IDS) % QUEUE_IDS
        return base
