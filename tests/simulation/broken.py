"""docferry without one of its rules, each by a change to its own code; and what narrows the search for a schedule that
shows it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Final

from docferry.applier import Applier
from docferry.capture.contract import BackfillRecord, Delivery
from docferry.change.model import UNCHANGED, Relation, Row, make_version, split_version
from docferry.document import batch
from docferry.document.convert import Converter
from docferry.document.model import Delete, Put, Write
from docferry.operate.backfill import Backfill
from docferry.operate.sweeper import Sweeper
from docferry.pipeline import Pipeline
from docferry.target.contract import Outcome, Result
from docferry.target.memory import MemoryTarget

from .ledger import Ledger
from .seams import Rows
from .source import Source

__all__ = ["BROKEN", "Broken", "broken"]

_WRITE: Final = MemoryTarget._write
_READ: Final = Pipeline._read
_CONFIRM: Final = Pipeline._confirm
_PAGE: Final = Backfill._write
_PUT: Final = Converter.put


@dataclass(frozen=True)
class Broken:
    """`rule`: which one is missing. `patches`: (class or module, name, what stands there instead)."""

    rule: str
    patches: Sequence[tuple[Any, str, Any]]
    weather: Mapping[str, float] = field(default_factory=dict)


# -- R1 ----------------------------------------------------------------------------------------------------------------


def _unfenced(self: MemoryTarget, write: Write) -> Result:
    items = self._stored(write.collection).items
    before = items.pop(write.key, None)
    result = _WRITE(self, write)
    if result.outcome is not Outcome.APPLIED and before is not None:
        items[write.key] = before
    return result


# -- R3 ----------------------------------------------------------------------------------------------------------------


def _confirm_whatever_is_done(self: Pipeline) -> None:
    for job in [one for one in self._jobs if one.result.done()]:
        self._on_confirmed(job.result.result())
        self._jobs.remove(job)
        self._in_flight_bytes -= job.size
        self.watermark = max(self.watermark, job.position or 0)
    if self.watermark:
        self._capture.confirm(self.watermark)


def _confirm_what_was_read(self: Pipeline) -> Delivery:
    delivery = _READ(self)
    self.watermark = max(self.watermark, delivery.position or 0)
    return delivery


# -- R4 ----------------------------------------------------------------------------------------------------------------


def _without_tombstones(self: MemoryTarget, write: Write) -> Result:
    result = _WRITE(self, write)
    if isinstance(write, Delete) and result.outcome is Outcome.APPLIED:
        del self._stored(write.collection).items[write.key]
    return result


def _all_that_wait(self: Sweeper) -> list[Any]:
    return [self._pending.popleft() for _ in range(len(self._pending))]


def _note_what_is_done(self: Pipeline) -> None:
    for job in self._jobs:
        if job.result.done():
            self._on_confirmed(job.result.result())
    _CONFIRM(self)


@contextmanager
def _always(_self: Ledger) -> Iterator[bool]:
    yield True


# -- R5 ----------------------------------------------------------------------------------------------------------------


def _put_with_placeholders(self: Converter, relation: Relation, row: Row, version: int, *, new: bool = False) -> Put:
    return _PUT(self, relation, tuple(b"<o/>" if one is UNCHANGED else one for one in row), version, new=new)


# -- R6 ----------------------------------------------------------------------------------------------------------------


def _page_of_the_moment(self: Backfill, record: BackfillRecord, rows: list[tuple[Relation, Row]]) -> None:
    assert record.version is not None
    ledger: Any = self._ledger
    _PAGE(self, replace(record, version=make_version(split_version(record.version)[0], ledger._source.end)), rows)


def _nothing(*_: object) -> None:
    pass


def _whatever(answer: object) -> Callable[..., Any]:
    return lambda *_: answer


_BUSY: Final = {"transactions": 30, "pace": 0.3, "writers": 3}
_UNWATCHED: Final = {"verifies": 0.0, "reconciles": 0.0, "tampers": 0.0}
_QUIET: Final = dict.fromkeys(
    ("replays", "kills", "stops", "source_fails", "stream_breaks", "fails_over", "loses_slot"), 0.0
)

BROKEN: Final[dict[str, Broken]] = {
    "no fence": Broken("R1", [(MemoryTarget, "_write", _unfenced)]),
    "confirmed in any order": Broken("R3", [(Pipeline, "_confirm", _confirm_whatever_is_done)]),
    "confirmed when read": Broken("R3", [(Pipeline, "_read", _confirm_what_was_read)]),
    "what cannot be stored is dropped": Broken("R3", [(Applier, "_bury", _nothing)], {"bad_documents": 0.4}),
    "deletes leave no tombstone": Broken("R4", [(MemoryTarget, "_write", _without_tombstones)], {"throttled": 0.5}),
    "tombstones do not wait for the watermark": Broken(
        "R4", [(Sweeper, "_due", _all_that_wait), (Pipeline, "_confirm", _note_what_is_done)], _BUSY
    ),
    "tombstones are swept without a grace": Broken(
        "R4",
        [(Sweeper, "_due", _all_that_wait)],
        {**_BUSY, **_UNWATCHED, "slow": 0.05, "slowest": 0.3},
    ),
    "tombstones are swept while old versions are written": Broken(
        "R4", [(Ledger, "sweeping", _always)], {"transactions": 30, "pace": 1.5, "backfills": 5.0, "slow": 0.25}
    ),
    "TRUNCATE sets no floor": Broken(
        "R4",
        [(MemoryTarget, "_learn", _nothing), (Ledger, "floor", _whatever(0))],
        # Few pages are on their way when a TRUNCATE is worked off, and a later backfill takes away what is left of one.
        {**_BUSY, **_QUIET, "writers": 1, "truncates": 0.3, "backfills": 2.0, "page": 1, "slow": 0.05, "slowest": 4.0},
    ),
    "what a killed worker writes late stays": Broken(
        "R4",
        [(Sweeper, "note_floor", _nothing)],
        {
            **_BUSY,
            "truncates": 0.15,
            "kills": 2.0,
            "lands_later": 1.0,
            "on_the_wire": 3.0,
            "restarts_after": 0.2,
            "slow": 0.25,
            **_UNWATCHED,
        },
    ),
    "rows are read before the change is visible": Broken(
        "R5", [(Rows, "may_count_on", _whatever(answer=True))], {"hidden_for": 2.0}
    ),
    "what did not change is left empty": Broken(
        "R5", [(batch, "is_whole", _whatever(answer=True)), (Converter, "put", _put_with_placeholders)]
    ),
    "the backfill's version is that of the moment": Broken("R6", [(Backfill, "_write", _page_of_the_moment)], _BUSY),
    "the backfill's version is not below later ones": Broken(
        "R6", [(Ledger, "start_position", staticmethod(lambda end: end + 64))], _BUSY
    ),
    "the backfill waits for no transaction": Broken(
        "R6", [(Ledger, "waits_for", _whatever(()))], {**_BUSY, "hidden_for": 2.0, "backfills": 5.0}
    ),
    "the backfill waits for those that a snapshot lists": Broken(
        "R6",
        [(Source, "end_a_transaction", _nothing)],
        {**_BUSY, **_UNWATCHED, "hidden_for": 2.0, "backfills": 5.0},
    ),
}


@contextmanager
def broken(name: str | None) -> Iterator[Mapping[str, float]]:
    """docferry without that rule, or as it is; yields the weather to search in."""
    if name is None:
        yield {}
        return
    chosen = BROKEN[name]
    before = [(where, what, vars(where)[what]) for where, what, _ in chosen.patches]
    try:
        for where, what, instead in chosen.patches:
            setattr(where, what, instead)
        yield chosen.weather
    finally:
        for where, what, was in before:
            setattr(where, what, was)
