"""The outside as one process of docferry meets it: slow, broken at times, and still there after a kill."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from docferry.capture.contract import Delivery, KeyTexts, StreamState
from docferry.change.model import Change, Relation, Row, make_version
from docferry.document.model import Collection as Items
from docferry.document.model import Key, Write
from docferry.errors import HistoryChanged, Interrupted, SourceUnavailable, TargetUnavailable
from docferry.retry import Retry
from docferry.target.contract import Item, Outcome, Result
from docferry.target.memory import MemoryStore, MemoryTarget, _Stored

from .checks import Checks
from .ledger import Epoch
from .scheduler import Event, Killed, Process, Scheduler
from .source import TABLES, Commit, Place, Source, keys_of, relation_of, row_of
from .weather import Weather

__all__ = ["Outside", "Pages", "Rows", "Setup", "Stream", "Table", "Target", "contents"]

_SYSTEM = "7000000000000000001"


class Outside:
    """What the calls of one process go through. `stop`: its retry policy's."""

    def __init__(self, scheduler: Scheduler, process: Process, weather: Weather, say: Callable[[str], None]) -> None:
        self.scheduler = scheduler
        self.process = process
        self.weather = weather
        self.stop = Event(scheduler)
        self.retry = Retry(first=0.05, longest=1.0, stop=self.stop)  # type: ignore[arg-type]
        self._say = say

    @property
    def random(self) -> Any:
        return self.scheduler.random

    def say(self, text: str) -> None:
        self._say(f"{self.process}: {text}")

    def take_time(self) -> None:
        self.scheduler.pause(self.weather.latency(self.random))

    def happens(self, how_often: float) -> bool:
        return bool(how_often) and self.random.random() < how_often

    def call(self, name: str) -> None:
        """See ledger.Call."""
        self.take_time()
        if self.happens(self.weather.source_fails):
            self.say(f"{name} fails")
            raise SourceUnavailable(f"source: the connection broke at {name}")


class Stream:
    """capture.contract.Capture: a slot, read by one process under one epoch."""

    def __init__(self, outside: Outside, source: Source, checks: Checks, epoch: Epoch) -> None:
        self._outside = outside
        self._source = source
        self._checks = checks
        self._epoch = epoch
        self._opened_on: int | None = None
        self._next = (0, 0)
        self._confirmed = self._told = 0
        self._relations: dict[str, Relation] = {}

    def read(self, timeout: float) -> Delivery:
        outside, source = self._outside, self._source
        if self._opened_on is None:
            outside.take_time()
            self._open()
        elif self._opened_on != source.timeline or outside.happens(outside.weather.stream_breaks):
            self._opened_on = None
            source.is_read = False
            outside.say("the stream breaks")
            raise SourceUnavailable("source: the replication stream ended")
        until = outside.scheduler.now + timeout
        while self._next[0] >= len(source.log):
            if outside.scheduler.now >= until:
                # Everything has been sent: a keepalive says how far that is.
                return Delivery(position=source.end) if outside.happens(0.3) else Delivery()
            outside.scheduler.pause(min(timeout, 0.25) + 0.001)
        outside.scheduler.pause(0.001)
        delivery = Delivery()
        for _ in range(outside.random.randint(1, 6)):
            if self._next[0] >= len(source.log):
                break
            self._take(source.log[self._next[0]], delivery)
        outside.say(f"reads {len(delivery.changes)} changes up to {delivery.position}, next {self._next}")
        return delivery

    def confirm(self, position: int) -> None:
        self._checks.confirms(position, self._epoch.number)
        self._confirmed = max(self._confirmed, position)
        self._tell()

    def keep_alive(self, timeout: float) -> None:
        self._tell()
        self._outside.scheduler.pause(timeout)

    def look_afresh(self) -> None:
        pass

    def close(self) -> None:
        self._tell()
        self._source.is_read = False

    def _open(self) -> None:
        source = self._source
        if source.timeline != self._epoch.timeline:
            raise HistoryChanged(f"timeline {source.timeline} instead of {self._epoch.timeline}")
        if source.slot is None or source.slot_is_lost:
            raise HistoryChanged("the replication slot is gone")
        self._opened_on = source.timeline
        source.is_read = True
        self._next = (source.behind(max(source.slot, self._confirmed)), 0)
        self._relations = {}

    def _take(self, commit: Commit, delivery: Delivery) -> None:
        index, number = self._next
        if number < len(commit.statements):
            statement = commit.statements[number]
            table = statement.place.table
            relation = self._relations.setdefault(table, relation_of(table))
            version = make_version(self._epoch.number, commit.position, number)
            delivery.changes.append(
                Change(
                    statement.op,
                    relation,
                    statement.row,
                    statement.old,
                    version,
                    commit.number & 0xFFFFFFFF,
                    commit.at,
                    100,
                )
            )
            delivery.size += 100
            self._next = index, number + 1
        if self._next[1] == len(commit.statements):
            self._next = index + 1, 0
            delivery.position = commit.end
            delivery.committed_at = commit.at

    def _tell(self) -> None:
        """The server hears of it a moment later, even from a process that is killed meanwhile."""
        if self._opened_on is None or self._confirmed <= self._told or self._outside.process.dead:
            return
        position, slot_of = self._confirmed, self._opened_on
        self._told = position

        def arrives() -> None:
            source = self._source
            if source.timeline == slot_of and source.slot is not None and not source.slot_is_lost:
                source.slot = max(source.slot, position)

        self._outside.scheduler.at(self._outside.weather.latency(self._outside.random), arrives)


class Rows:
    """capture.contract.RowReader."""

    def __init__(self, outside: Outside, source: Source) -> None:
        self._outside = outside
        self._source = source
        self._relations = {table: relation_of(table) for table in TABLES}

    def read_rows(
        self,
        table: str,
        _key: Sequence[str],
        keys: Sequence[KeyTexts],
        transactions: Collection[int],
        _max_bytes: int,
    ) -> tuple[list[tuple[Relation, Row]], bool]:
        self._outside.take_time()
        while not self._source.may_read(table) or not self.may_count_on(transactions):
            if self._outside.stop.wait(0.02):
                raise Interrupted("stopped while waiting for a transaction to become visible")
        rows = self._source.rows(table)
        found = [(self._relations[table], row_of(int(one), rows[int(one)])) for (one,) in keys if int(one) in rows]
        self._outside.take_time()
        if len(found) > 1 and self._outside.happens(self._outside.weather.cut_short):
            return found[: len(found) // 2], False
        return found, True

    def may_count_on(self, transactions: Collection[int]) -> bool:
        """R5: only a reader that sees them."""
        return self._source.sees(transactions)

    def relation(self, table: str) -> Relation:
        self._outside.call("rows.relation")
        return self._relations[table]

    def layout(self, _table: str) -> str:
        self._outside.call("rows.layout")
        return "as ever"

    def current_name(self, oid: int) -> str | None:
        raise AssertionError(oid)


class Pages:
    """capture.contract.PageReader."""

    def __init__(self, outside: Outside, source: Source, table: str) -> None:
        self._outside = outside
        self._source = source
        self._table = table
        self._relation = relation_of(table)

    def boundary(self, after: KeyTexts | None, rows: int) -> KeyTexts | None:
        keys = [key for key in self._rows("pages.boundary") if after is None or key > int(after[0])]
        return (str(keys[rows - 1]),) if len(keys) > rows else None

    def read_page(
        self, after: KeyTexts | None, upto: KeyTexts | None, _max_bytes: int
    ) -> tuple[list[tuple[Relation, Row]], KeyTexts | None]:
        found = [
            (self._relation, row_of(key, values))
            for key, values in self._rows("pages.read_page").items()
            if (after is None or key > int(after[0])) and (upto is None or key <= int(upto[0]))
        ]
        self._outside.take_time()
        if len(found) > 1 and self._outside.happens(self._outside.weather.cut_short):
            text = found[0][1][0]
            assert isinstance(text, bytes)
            return found[:1], (text.decode(),)
        return found, None

    def estimate(self) -> int:
        self._outside.call("pages.estimate")
        return 3

    def cancel(self) -> None:
        """Nothing waits for a lock without end."""

    def close(self) -> None:
        """There is nothing to release."""

    def _rows(self, what: str) -> dict[int, Any]:
        self._outside.call(what)
        while not self._source.may_read(self._table):
            self._outside.scheduler.pause(0.02)
        return self._source.rows(self._table)


class Table(Pages):
    """operate.verify.TableAccess: reads a table in pages and by key."""

    def __init__(self, outside: Outside, source: Source, table: str) -> None:
        super().__init__(outside, source, table)
        rows = self._by_key = Rows(outside, source)
        self.read_rows, self.relation, self.layout, self.current_name = (
            rows.read_rows,
            rows.relation,
            rows.layout,
            rows.current_name,
        )
        self._keys = keys_of(table)

    def read_keys(self, table: str, key: Sequence[str], keys: Sequence[KeyTexts]) -> list[tuple[Relation, Row]]:
        rows: list[tuple[Relation, Row]] = []
        left = list(keys)
        while True:
            found, complete = self.read_rows(table, key, left, (), 0)
            rows += [(self._keys, row[:1]) for _, row in found]
            if complete:
                return rows
            left = [one for one in left if all(one[0].encode() != row[0] for _, row in rows)]

    def sample(self, rows: int) -> list[KeyTexts]:
        raise AssertionError(rows)


class Setup:
    """capture.contract.CaptureSetup: the slot."""

    def __init__(self, outside: Outside, source: Source, on_slot: Callable[[int], None]) -> None:
        self._outside = outside
        self._source = source
        self._on_slot = on_slot

    def check(self) -> None:
        self._outside.call("setup.check")

    def history(self) -> tuple[str, int]:
        self._outside.call("setup.history")
        return _SYSTEM, self._source.timeline

    def gap(self) -> str | None:
        self._outside.call("setup.gap")
        if self._source.slot is None:
            return "the replication slot does not exist"
        return "the server dropped WAL that the replication slot needed" if self._source.slot_is_lost else None

    def uncaptured(self, _tables: Sequence[str]) -> list[str]:
        self._outside.call("setup.uncaptured")
        return []

    def missing(self, tables: Sequence[str]) -> list[str]:
        raise AssertionError(tables)

    def prepare(self, _tables: Sequence[str]) -> list[str]:
        self._outside.call("setup.prepare")
        if self._source.slot is not None and not self._source.slot_is_lost:
            return []
        self._source.create_slot()
        assert self._source.slot is not None
        self._on_slot(self._source.slot)
        self._outside.call("setup.prepare done")
        return ["created the replication slot"]

    def present(self) -> list[str]:
        raise AssertionError

    def remove(self) -> list[str]:
        self._outside.call("setup.remove")
        self._source.slot = None
        return ["dropped the replication slot"]

    def mark(self) -> int:
        self._outside.call("setup.mark")
        return self._source.record()

    def state(self) -> StreamState | None:
        self._outside.call("setup.state")
        slot = self._source.slot
        if slot is None:
            return None
        return StreamState(slot, self._source.end, self._source.is_read, 0, "reserved")

    def idle(self) -> bool:
        self._outside.call("setup.idle")
        source = self._source
        usable = source.slot is not None and not source.slot_is_lost and not source.is_read
        return usable and source.behind(source.slot or 0) == len(source.log)


class Target(MemoryTarget):
    """The reference implementation behind a network: requests of a few writes each, throttled, carried out in part,
    or carried out and reported as failed. What a process had on the wire when it was killed may still arrive."""

    def __init__(self, outside: Outside, store: MemoryStore, checks: Checks) -> None:
        super().__init__(store)
        self._outside = outside
        self._checks = checks

    def write(self, writes: Sequence[Write]) -> list[Result]:
        outside = self._outside
        results: list[Result | None] = [None] * len(writes)
        left = list(range(len(writes)))
        outside.random.shuffle(left)
        ticket = object()
        places = {self._checks.place(one.collection, one.key): one.version for one in writes}
        self._checks.on_the_wire[ticket] = places
        attempt = 0
        landing = False
        try:
            while left:
                request = left[: outside.random.randint(1, 4)]
                try:
                    outside.take_time()
                except Killed:
                    landing = self._lands_later([writes[index] for index in request], ticket)
                    raise
                if outside.happens(outside.weather.throttled):
                    request = request[: outside.random.randint(0, len(request) - 1)]  # the rest was throttled
                answers = self._carry_out([writes[index] for index in request])
                outside.take_time()
                if not request or outside.happens(outside.weather.applied_but_failed):
                    attempt += 1
                    outside.retry.wait(attempt, TargetUnavailable("target: it is away"))
                    continue
                attempt = 0
                for index, answer in zip(request, answers, strict=True):
                    results[index] = answer
                left = left[len(request) :]
        finally:
            if not landing:
                del self._checks.on_the_wire[ticket]
        assert None not in results
        return [one for one in results if one is not None]

    def truncate(self, collection: Items, version: int) -> int:
        self._outside.take_time()
        removed = super().truncate(collection, version)
        self._outside.take_time()
        return removed

    def sweep(self, collection: Items, tombstones: Sequence[tuple[Key, int]]) -> int:
        self._outside.take_time()
        stored = self._stored(collection).items
        standing = [
            (key, version)
            for key, version in tombstones
            if key in stored and stored[key].document is None and stored[key].version == version
        ]
        self._checks.sweeps(collection, standing)
        removed = super().sweep(collection, tombstones)
        self._outside.say(f"sweeps {[(key[0], version >> 32) for key, version in standing]}")
        self._outside.take_time()
        return removed

    def read(self, collection: Items, keys: Sequence[Key]) -> list[Item | None]:
        self._outside.take_time()
        found = super().read(collection, keys)
        self._outside.take_time()
        return found

    def replace(self, write: Write, seen: Item) -> Result:
        self._outside.take_time()
        result = super().replace(write, seen)
        self._outside.say(f"replaces {write.key[0]!r}: {result.outcome.value}")
        if result.outcome is Outcome.APPLIED:
            self._checks.written(write, None)
        self._outside.take_time()
        return result

    def scan(self, collection: Items, *, segment: int = 0, segments: int = 1) -> Iterator[Item]:
        keys = [key for key in self._stored(collection).items if hash(key) % segments == segment]
        for key in sorted(keys, key=str):
            self._outside.take_time()
            item = self._stored(collection).items.get(key)
            if item is not None:
                yield item

    def _lands_later(self, writes: list[Write], ticket: object) -> bool:
        """What is on the wire when a worker is killed arrives all the same, or never."""
        outside = self._outside
        if not outside.process.name.startswith("worker") or not outside.happens(outside.weather.lands_later):
            return False

        memory = self._checks.memory
        epoch = memory.epoch

        def arrives() -> None:
            del self._checks.on_the_wire[ticket]
            # Not behind `apply` and a whole new population, which take longer than this.
            if memory.epoch is epoch:
                outside.say("what was on the wire arrives")
                self._carry_out(writes)

        outside.scheduler.at(outside.random.uniform(0.0, outside.weather.on_the_wire), arrives)
        return True

    def _remove_all_below(self, collection: Items, version: int) -> int:
        self._checks.truncated(collection, version)
        removed = super()._remove_all_below(collection, version)
        self._outside.say(f"empties {collection.name} below {version >> 32 & 0xFFFFFFFFFFFFFFFF}: {removed} items")
        return removed

    def _write(self, write: Write) -> Result:
        stored: _Stored | None = self.store.collections.get(write.collection.name)
        before = None if stored is None else stored.items.get(write.key)
        result = super()._write(write)
        shown = type(write).__name__.lower(), write.key[0], write.version >> 96, write.version >> 32 & (1 << 64) - 1
        self._outside.say(f"{' '.join(map(str, shown))}: {result.outcome.value}")
        if result.outcome is Outcome.APPLIED:
            self._checks.written(write, before)
        return result


def contents(store: MemoryStore, checks: Checks) -> Mapping[Place, Item]:
    """Everything stored, tombstones too."""
    return {
        checks.place(one.collection, key): item for one in store.collections.values() for key, item in one.items.items()
    }
