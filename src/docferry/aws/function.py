"""What the Lambda function works with, and what it does, without the ways of Lambda."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from docferry.change.wire import EventDecoder
from docferry.config import parse
from docferry.deadletter.contract import DeadLetter, DeadLetters
from docferry.deadletter.messages import read_message
from docferry.errors import ConfigError, DocferryError, EventRefused
from docferry.function_app import FunctionApp
from docferry.operate.receive import Fate, Receipt

__all__ = ["Function", "Summary"]

# What is left of an invocation's time for ending in order.
_MARGIN = 8.0


@dataclass(slots=True)
class Summary:
    """What became of the changes of an invocation. `oldest_seconds`: how long the oldest change that is still in the
    outbox has waited; `backfills_due`: the tables that wait for a backfill, which the function does not run."""

    fates: Counter[str] = field(default_factory=Counter)
    changes: int = 0
    oldest_seconds: float = 0.0
    backfills_due: tuple[str, ...] = ()

    @property
    def applied(self) -> int:
        """At the target now."""
        return self.fates[Fate.APPLIED]

    @property
    def stale(self) -> int:
        """Older than what the target has."""
        return self.fates[Fate.STALE]

    @property
    def dead(self) -> int:
        """In the dead letters now."""
        return self.fates[Fate.DEAD]

    @property
    def rolled_back(self) -> int:
        """Of a transaction that did not commit."""
        return self.fates[Fate.ROLLED_BACK]

    def answer(self) -> dict[str, Any]:
        """For who invoked the function synchronously."""
        return {"changes": self.changes, **{str(fate): count for fate, count in sorted(self.fates.items())}}


class Function:
    """One process of the function. `on_receipt` is told what became of each change, by one thread at a time;
    `latency_ms` is there for those that are durable. Serves one invocation at a time."""

    def __init__(self, app: FunctionApp, on_receipt: Callable[[Mapping[str, Any]], None]) -> None:
        self._app = app
        self._on_receipt = on_receipt
        self._letters = _WithEvents(app.queued_dead_letters)
        self._receiver = app.receiver(self._letters)
        self._decoder = EventDecoder(app.types)

    @classmethod
    def from_environment(
        cls, environ: Mapping[str, str] | None = None, *, on_receipt: Callable[[Mapping[str, Any]], None]
    ) -> Function:
        """As the environment says (docs/aws.md). Raises ConfigError."""
        environ = os.environ if environ is None else environ
        needs_source = bool(environ.get("DOCFERRY_SOURCE_DSN") or environ.get("DOCFERRY_SOURCE_SECRET"))
        if not needs_source and not environ.get("DOCFERRY_DEAD_LETTERS_QUEUE"):
            raise ConfigError(
                "the function knows neither the database nor a queue, so it could keep no dead letters",
                remedy="Set DOCFERRY_DEAD_LETTERS_QUEUE to the queue's URL, or DOCFERRY_SOURCE_SECRET.",
            )
        config = parse(_config_text(environ), "the function's configuration", environ, needs_source=needs_source)
        return cls(FunctionApp(config), on_receipt)

    def receive(self, document: Mapping[str, Any]) -> Summary:
        """One event. Raises when it has to come again."""
        try:
            event = self._decoder.decode(document)
        except ValueError as error:
            raise EventRefused(str(error)) from error
        self._app.learn(document.get("relations") or {})
        with self._letters.of(document):
            receipts = self._receiver.receive(event)
        summary = Summary()
        self._tell(receipts, summary)
        return summary

    def receive_message(self, body: str, attributes: Mapping[str, Any]) -> Summary:
        """A message of a queue of dead letters: its event, or the one that a letter of docferry's own carries. Raises
        when it has to stay in the queue."""
        said = {name: str(one.get("stringValue", "")) for name, one in attributes.items()}
        summary = Summary()
        for found in read_message(body, said):
            if found.letter.payload is None:
                raise EventRefused(f"a message without an event: {found.letter.problem}")
            one = self.receive(found.letter.payload)
            summary.fates.update(one.fates)
            summary.changes += one.changes
        return summary

    def drain(self, seconds: float) -> Summary:
        """Carry over what waits in the outbox, and look for changed columns, for so many seconds at most; refuses, as
        `docferry run` does, when the source's history changed or changes passed unseen."""
        if not self._app.has_source:
            raise ConfigError(
                "the function is not told where the database is, so it cannot drain the outbox",
                remedy="Set DOCFERRY_SOURCE_SECRET, or let `docferry run` drain it.",
            )
        summary = Summary()
        until = time.monotonic() + seconds
        stopping = threading.Event()
        timer = threading.Timer(max(seconds - _MARGIN, 1.0), stopping.set)
        timer.daemon = True
        timer.start()
        try:
            # With objects of its own: a drain ends what it waits with.
            with FunctionApp(self._app.config) as app:
                drained = app.drain(
                    app.queued_dead_letters, stopping, until, lambda receipts: self._tell(receipts, summary)
                )
        finally:
            timer.cancel()
        summary.oldest_seconds = drained.oldest_seconds
        summary.backfills_due = drained.backfills_due
        return summary

    def close(self) -> None:
        """Release connections. In Lambda the process just ends."""
        self._app.__exit__()

    def _tell(self, receipts: Sequence[Receipt], summary: Summary) -> None:
        """Of each change, and count it."""
        now = datetime.now(UTC)
        summary.changes += len(receipts)
        for receipt in receipts:
            summary.fates[receipt.fate] += 1
            told: dict[str, Any] = {
                "table": receipt.table,
                "key": dict(receipt.key),
                "version": str(receipt.version),
                "op": str(receipt.op),
                "outcome": str(receipt.fate),
            }
            if receipt.made_at is not None and receipt.fate.is_durable:
                told["latency_ms"] = round(max((now - receipt.made_at).total_seconds(), 0.0) * 1000, 1)
            if receipt.error is not None:
                told |= {"problem": str(receipt.error), "remedy": receipt.error.remedy}
            self._on_receipt(told)


class _WithEvents:
    """Keeps dead letters, each with its part of the event at hand, so that it can be replayed where the row cannot be
    read."""

    def __init__(self, letters: DeadLetters) -> None:
        self._letters = letters
        self._event: Mapping[str, Any] | None = None

    @contextmanager
    def of(self, event: Mapping[str, Any]) -> Iterator[None]:
        """While inside, letters are of this event."""
        self._event = event
        try:
            yield
        finally:
            self._event = None

    def add(self, letters: Sequence[DeadLetter]) -> None:
        """See contract.DeadLetters."""
        self._letters.add([self._with_event(letter) for letter in letters])

    def _with_event(self, letter: DeadLetter) -> DeadLetter:
        if self._event is None:
            return letter
        changes = [one for one in self._event["changes"] if int(one["version"]) == letter.version]
        if len(changes) != 1:
            return letter
        relations = {letter.table: self._event["relations"][letter.table]}
        return replace(letter, payload={**self._event, "relations": relations, "changes": changes})


def _config_text(environ: Mapping[str, str]) -> str:
    if text := environ.get("DOCFERRY_CONFIG_TEXT"):
        return text
    name = environ.get("DOCFERRY_CONFIG_PARAMETER")
    if not name:
        raise ConfigError(
            "the function has no configuration",
            remedy="Set DOCFERRY_CONFIG_TEXT, or DOCFERRY_CONFIG_PARAMETER to the name of a parameter that holds it.",
        )
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        answer = boto3.client("ssm").get_parameter(Name=name, WithDecryption=True)
    except (BotoCoreError, ClientError) as error:
        raise DocferryError(
            f"parameter {name} cannot be read: {error}", remedy="Allow the function's role ssm:GetParameter on it."
        ) from error
    return str(answer["Parameter"].get("Value", ""))
