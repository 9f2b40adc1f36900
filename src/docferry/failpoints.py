"""Faults on purpose, at the boundaries of the work, for tests: what is left when it fails exactly here?

Only the environment variable DOCFERRY_FAILPOINTS switches them on, read when an App is made, with a warning in the log:

    applier.apply=kill@3;capture.confirm=hang:2;deadletters.add=after

Each fault is `NAME=KIND`, then `@3` for the third pass alone, `@every 3` for each third, `%0.1` for a tenth of all by
chance (`%0.1#7`: with the seed 7), or nothing for each pass. The names are those of PLACES. The kinds:

    raise         the boundary's passing error instead of the action; `raise:stop` one with the verdict to stop
    hang:2        two seconds before the action; `hang` for ever
    kill          SIGKILL of this process before the action
    after         the action is carried out and its failure reported: `after:stop`, `after:hang` and `after:kill` too

A boundary is `with failpoint("NAME"):` around the action, or `@boundary("NAME")` above the function that is one. With
nothing switched on, either costs a function call.
"""

from __future__ import annotations

import functools
import logging
import os
import random
import re
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Final, NamedTuple, ParamSpec, TypeVar

from docferry.errors import (
    ConfigError,
    DocferryError,
    SourceRefused,
    SourceUnavailable,
    TargetRefused,
    TargetUnavailable,
)

__all__ = ["PLACES", "VARIABLE", "Place", "boundary", "failpoint", "switch"]

_log = logging.getLogger(__name__)
_P = ParamSpec("_P")
_T = TypeVar("_T")

VARIABLE: Final = "DOCFERRY_FAILPOINTS"


class Place(NamedTuple):
    """A boundary: the passing error that belongs there, and the action."""

    error: type[DocferryError]
    action: str


PLACES: Final[Mapping[str, Place]] = {
    "applier.apply": Place(TargetUnavailable, "a job is applied"),
    "applier.reread": Place(SourceUnavailable, "current rows are read by key"),
    "apply.step": Place(SourceUnavailable, "`apply` says that it has done a step"),
    "backfill.orphans": Place(TargetUnavailable, "items without a row are removed, a batch each time"),
    "backfill.read": Place(SourceUnavailable, "a piece of a page is read"),
    "backfill.write": Place(TargetUnavailable, "a piece of a page is written"),
    "capture.confirm": Place(SourceUnavailable, "the confirmed position is sent to the slot"),
    "capture.read": Place(SourceUnavailable, "changes are read from the stream"),
    "confirm.limit": Place(SourceUnavailable, "the limit of what the slot may have confirmed is raised"),
    "deadletters.add": Place(SourceUnavailable, "dead letters are kept in the source"),
    "deadletters.delete": Place(TargetUnavailable, "messages leave the dead-letter queue"),
    "deadletters.remove": Place(SourceUnavailable, "dead letters leave the source"),
    "deadletters.send": Place(TargetUnavailable, "dead letters are sent to the queue"),
    "ledger.advance_backfill": Place(SourceUnavailable, "the last durable key is recorded"),
    "ledger.begin_epoch": Place(SourceUnavailable, "an epoch begins"),
    "ledger.finish_backfill": Place(SourceUnavailable, "a backfill is recorded as done"),
    "ledger.heartbeat": Place(SourceUnavailable, "the worker's state is recorded"),
    "ledger.raise_floor": Place(SourceUnavailable, "a TRUNCATE is recorded"),
    "ledger.register_mirror": Place(SourceUnavailable, "a mirror is recorded"),
    "ledger.remember_columns": Place(SourceUnavailable, "a schema change is recorded"),
    "ledger.request_backfill": Place(SourceUnavailable, "a backfill is requested"),
    "ledger.start_backfill": Place(SourceUnavailable, "L0 is recorded"),
    "ledger.take_start_version": Place(SourceUnavailable, "L0 is taken, and older transactions are waited for"),
    "outbox.claim": Place(SourceUnavailable, "rows of the outbox are claimed"),
    "outbox.commit": Place(SourceUnavailable, "their deletion is committed"),
    "outbox.delete": Place(SourceUnavailable, "claimed rows are deleted"),
    "pipeline.submit": Place(SourceUnavailable, "a job is handed to the pool"),
    "replay.write": Place(TargetUnavailable, "what a replay has read is written"),
    "target.create": Place(TargetUnavailable, "a collection is created"),
    "target.request": Place(TargetUnavailable, "a request with items is sent and answered"),
    "target.sweep": Place(TargetUnavailable, "tombstones are removed"),
    "target.truncate": Place(TargetUnavailable, "what is below a floor is removed; the floor stands"),
    "target.write": Place(TargetUnavailable, "writes are carried out, with as many requests as it takes"),
}
"""Every boundary that has a name."""

_STOPPING: Final[Mapping[type[DocferryError], type[DocferryError]]] = {
    SourceUnavailable: SourceRefused,
    TargetUnavailable: TargetRefused,
}
_ARGUMENTS: Final[Mapping[str, str]] = {
    "raise": "|stop",
    "hang": r"|\d+(\.\d+)?",
    "kill": "",
    "after": "|stop|kill|hang",
}
_FAULT: Final = re.compile(
    r"(?P<name>[\w.]+)\s*=\s*(?P<kind>\w+)(:(?P<argument>[\w.]+))?\s*"
    r"(@\s*every\s+(?P<every>[1-9]\d*)|@\s*(?P<nth>[1-9]\d*)|%\s*(?P<chance>0?\.\d+|1)(#(?P<seed>\d+))?)?"
)


@dataclass(slots=True)
class _Fault:
    """One of those in the variable, and how often its boundary was passed."""

    name: str
    kind: str
    argument: str
    nth: int = 0
    every: int = 1
    chance: float = 1.0
    dice: random.Random = field(default_factory=random.Random)
    passes: int = 0

    def is_due(self) -> bool:
        """Whether it happens at this pass; counts it. For one thread at a time."""
        self.passes += 1
        if self.nth:
            return self.passes == self.nth
        return self.passes % self.every == 0 and (self.chance >= 1 or self.dice.random() < self.chance)

    def happen(self) -> None:
        """Raises, hangs or kills."""
        shown = f"{self.kind}:{self.argument}" if self.argument else self.kind
        _log.warning("failpoint %s: %s at pass %d", self.name, shown, self.passes)
        what = self.argument if self.kind == "after" and self.argument in ("kill", "hang") else self.kind
        if what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)  # not to go on while the signal is under way
        elif what == "hang":
            seconds = self.argument if self.kind == "hang" else ""
            threading.Event().wait(float(seconds) if seconds else None)
        else:
            error = PLACES[self.name].error
            done = "what was asked for was done" if self.kind == "after" else "nothing was done"
            raised = _STOPPING[error] if self.argument == "stop" else error
            raise raised(f"failpoint {self.name}, {done}", remedy=f"Unset {VARIABLE}.")


class _Off:
    """A boundary at which nothing happens."""

    __slots__ = ()

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        pass


class _Passage:
    """One pass of a boundary at which something happens."""

    __slots__ = ("_after", "_before")

    def __init__(self, before: list[_Fault], after: list[_Fault]) -> None:
        self._before = before
        self._after = after

    def __enter__(self) -> None:
        for fault in self._before:
            fault.happen()

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is None:
            for fault in self._after:
                fault.happen()


class _On:
    """The faults of `text`, by the name of their boundary."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._lock = threading.Lock()
        self._faults: dict[str, list[_Fault]] = defaultdict(list)
        for part in text.split(";"):
            if part.strip():
                fault = _parse(part.strip())
                self._faults[fault.name].append(fault)

    def at(self, name: str) -> AbstractContextManager[None]:
        faults = self._faults.get(name)
        if faults is None:
            return _OFF
        with self._lock:
            due = [fault for fault in faults if fault.is_due()]
        if not due:
            return _OFF
        return _Passage([one for one in due if one.kind != "after"], [one for one in due if one.kind == "after"])


_OFF: Final = _Off()
_on: _On | None = None


def failpoint(name: str) -> AbstractContextManager[None]:
    """The boundary `name`, around the action that passes it."""
    return _OFF if _on is None else _on.at(name)


def boundary(name: str) -> Callable[[Callable[_P, _T]], Callable[_P, _T]]:
    """The boundary `name`, which a call of the function passes."""

    def decorate(function: Callable[_P, _T]) -> Callable[_P, _T]:
        @functools.wraps(function)
        def passing(*positional: _P.args, **named: _P.kwargs) -> _T:
            if _on is None:
                return function(*positional, **named)
            with _on.at(name):
                return function(*positional, **named)

        return passing

    return decorate


def switch(environ: Mapping[str, str] = os.environ) -> None:
    """Switch on what the environment says, and everything else off. Raises ConfigError.

    The same once more changes nothing: passes are counted on.
    """
    global _on
    text = environ.get(VARIABLE, "").strip()
    if not text:
        _on = None
    elif _on is None or _on.text != text:
        _on = _On(text)
        _log.warning(
            "FAILPOINTS ARE ON: %s=%s makes this process fail on purpose. Unset it, unless this is a test of docferry.",
            VARIABLE,
            text,
        )


def _parse(part: str) -> _Fault:
    match = _FAULT.fullmatch(part)
    if match is None:
        raise ConfigError(
            f"{VARIABLE}: {part!r} is not of the form NAME=KIND[:ARGUMENT][@N | @every N | %CHANCE[#SEED]]",
            remedy=f"Unset it, unless this is a test of docferry. {_choices()}",
        )
    name, kind, argument = match["name"], match["kind"], match["argument"] or ""
    if name not in PLACES:
        raise ConfigError(f"{VARIABLE}: there is no failpoint {name}", remedy=_choices())
    if kind not in _ARGUMENTS:
        raise ConfigError(f"{VARIABLE}: there is no kind {kind}", remedy=_choices())
    if not re.fullmatch(_ARGUMENTS[kind], argument):
        raise ConfigError(f"{VARIABLE}: {kind} does not take {argument!r}", remedy=_choices())
    return _Fault(
        name,
        kind,
        argument,
        nth=int(match["nth"] or 0),
        every=int(match["every"] or 1),
        chance=float(match["chance"] or 1),
        dice=random.Random(int(match["seed"] or 0)),  # noqa: S311 - repeatable, not secret
    )


def _choices() -> str:
    kinds = "raise, raise:stop, hang, hang:SECONDS, kill, after, after:stop, after:hang, after:kill"
    return f"Kinds: {kinds}. Names: {', '.join(PLACES)}."
