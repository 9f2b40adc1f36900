"""The article's load generator: INSERT, SELECT, UPDATE and DELETE in a fixed mix, on several connections.

One process is enough: prepared statements over libpq cost the client some 16 µs each, and a thread that waits for the
server holds nothing that the others need.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from random import Random
from typing import Final

from docferry.errors import ConfigError, DocferryError
from docferry.operate.load_client import KINDS, Client, LoadError, Tally
from docferry.operate.load_table import LoadTable

__all__ = ["KindReport", "Load", "LoadReport", "Mix", "document"]

_FIRST_ROWS: Final = 100
_DOCUMENTS: Final = 64
_LOOK_SECONDS: Final = 0.2
_GRACE_SECONDS: Final = 5.0

_FRAME: Final = '<order number="{number}"><customer id="{customer}"/><items>{items}</items><note>{note}</note></order>'
_ITEM: Final = (
    '<item sku="SKU-{sku:06}" quantity="{quantity}"><name>Article {name:04}, stainless steel</name>'
    '<price currency="USD">{price:.2f}</price></item>'
)
_WORDS: Final = ("leave", "it", "with", "the", "neighbour", "call", "customer", "first", "fragile", "signature")


@dataclass(frozen=True, slots=True)
class Mix:
    """How many statements of each kind a connection runs in one round, in random order. Raises ConfigError for a mix
    that cannot go on."""

    insert: int = 100
    select: int = 20
    update: int = 200
    delete: int = 20

    def __post_init__(self) -> None:
        if not any(self.counts):
            raise ConfigError("the mix has no statement at all", remedy="Give at least one count above 0.")
        if self.delete > self.insert:
            raise ConfigError(
                f"the mix deletes more rows ({self.delete}) than it inserts ({self.insert}): they would run out",
                remedy="Raise INSERT or lower DELETE.",
            )

    @property
    def counts(self) -> tuple[int, int, int, int]:
        """In the order of KINDS."""
        return self.insert, self.select, self.update, self.delete


@dataclass(frozen=True, slots=True)
class KindReport:
    """One kind of statement, or all: those that succeeded and failed, and how long the former took, in milliseconds;
    None where there was none."""

    done: int
    failed: int
    per_second: float
    p50: float | None
    p95: float | None
    p99: float | None


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What a run gave. `seconds`: how long it really went on. `left`: rows of its own that it could not remove, or
    was asked to keep. `unsure`: inserts whose connection broke before the answer; their rows may be there too."""

    seconds: float
    kinds: dict[str, KindReport]
    total: KindReport
    errors: list[LoadError]
    left: int
    unsure: int


class Load:
    """One run. `stopping` ends it early, `at_once` also ends the removal of its rows."""

    def __init__(
        self,
        dsn: str,
        table: LoadTable,
        mix: Mix,
        *,
        connections: int,
        size: int,
        seed: int,
        stopping: threading.Event,
        at_once: threading.Event,
    ) -> None:
        random = Random(seed)  # noqa: S311 - to be repeated, not to be secret
        documents = [document(random, size).encode() for _ in range(_DOCUMENTS)]
        self._table = table
        self._mix = mix
        self._stopping = stopping
        self._at_once = at_once
        self._clients = [
            Client(dsn, table, mix.counts, documents, Random(f"{seed}/{number}"))  # noqa: S311 - the same
            for number in range(connections)
        ]

    def run(
        self, seconds: float, *, keep: bool = False, on_progress: Callable[[int], None] = lambda _: None
    ) -> LoadReport:
        """Fill, run for `seconds`, remove the rows again unless they are to be kept.

        Errors of statements are counted and stop nothing. Raises SourceUnavailable, SourceRefused when it cannot even
        begin; rows are removed then, too.
        """
        try:
            for client in self._clients:
                client.open()
                client.fill(max(_FIRST_ROWS, self._mix.delete))
            elapsed = self._work(seconds, on_progress)
        except BaseException:
            self._remove()
            raise
        finally:
            for client in self._clients:
                client.close()
        left = self._rows() if keep else self._remove()
        return self._report(elapsed, left)

    def _work(self, seconds: float, on_progress: Callable[[int], None]) -> float:
        stop = threading.Event()
        threads = [threading.Thread(target=client.work, args=(stop,), name="load") for client in self._clients]
        began = time.monotonic()
        for thread in threads:
            thread.start()
        try:
            while (left := began + seconds - time.monotonic()) > 0 and not self._stopping.wait(
                min(left, _LOOK_SECONDS)
            ):
                on_progress(sum(client.done for client in self._clients))
        finally:
            stop.set()
            elapsed = time.monotonic() - began
            self._join(threads)
        on_progress(sum(client.done for client in self._clients))
        return elapsed

    def _join(self, threads: Sequence[threading.Thread]) -> None:
        """A statement that waits for somebody's lock is cancelled after a while."""
        deadline = time.monotonic() + _GRACE_SECONDS
        for thread in threads:
            thread.join(max(deadline - time.monotonic(), 0))
        while any(thread.is_alive() for thread in threads):
            for client, thread in zip(self._clients, threads, strict=True):
                if thread.is_alive():
                    client.cancel()
                    thread.join(1)

    def _rows(self) -> int:
        return sum(len(client.ids) for client in self._clients)

    def _remove(self) -> int:
        """Returns how many could not be removed."""
        ids = [one for client in self._clients for one in client.ids]
        removed = 0
        # When the source does not answer any more, the report says how many rows are left.
        with suppress(DocferryError):
            for gone in self._table.remove(ids):
                removed = gone
                if self._at_once.is_set():
                    break
        return len(ids) - removed

    def _report(self, elapsed: float, left: int) -> LoadReport:
        tallies = [Tally.of(client.tallies[number] for client in self._clients) for number in range(len(KINDS))]
        return LoadReport(
            seconds=round(elapsed, 3),
            kinds={kind: _kind_report(tally, elapsed) for kind, tally in zip(KINDS, tallies, strict=True)},
            total=_kind_report(Tally.of(tallies), elapsed),
            errors=LoadError.summed(error for client in self._clients for error in client.errors.values()),
            left=left,
            unsure=sum(client.unsure for client in self._clients),
        )


def _kind_report(tally: Tally, elapsed: float) -> KindReport:
    p50, p95, p99 = (tally.quantile(share) for share in (0.50, 0.95, 0.99))
    return KindReport(tally.done, tally.failed, round(tally.done / max(elapsed, 1e-9), 1), p50, p95, p99)


def document(random: Random, size: int) -> str:
    """An order as XML of exactly `size` bytes (at least 200): as many items as fit, and a note for the rest."""
    head = _FRAME.format(
        number=f"A-{random.randrange(10**6):06}", customer=random.randrange(1000, 10**4), items="{items}", note="{note}"
    )
    room = size - len(head.format(items="", note=""))
    items = ""
    while len(items) + len(item := _item(random)) <= room:
        items += item
    note = ""
    while len(note) < room - len(items):
        note += random.choice(_WORDS) + " "
    return head.format(items=items, note=note[: room - len(items)])


def _item(random: Random) -> str:
    return _ITEM.format(
        sku=random.randrange(10**6),
        quantity=random.randrange(1, 10),
        name=random.randrange(10**4),
        price=random.randrange(100, 10**5) / 100,
    )
