"""Logs go to standard error, around a progress bar if there is one, with no secret in them: as text, or one JSON object
a line."""

from __future__ import annotations

import json
import logging
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final, Literal, TypeAlias

import click

from docferry.config.dsn import hide_secrets
from docferry.printable import one_line, printable

__all__ = ["LogFormat", "json_line", "logs_to_stderr", "note", "writing_through"]

LogFormat: TypeAlias = Literal["text", "json"]

# Readers of JSON take larger whole numbers for floating-point ones.
_EXACT: Final = 2**53
_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message"}


def _to_stderr(line: str) -> None:
    click.echo(line, err=True)


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """As people read it."""
        return printable(hide_secrets(super().format(record)))

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's own name
        """A message is one line, whatever is quoted in it; what a traceback adds keeps its lines."""
        return one_line(super().formatMessage(record))


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """As collectors read it."""
        extra = {name: value for name, value in vars(record).items() if name not in _STANDARD}
        if record.exc_info and record.exc_info[1] is not None:
            extra["exception"] = "".join(traceback.format_exception(record.exc_info[1]))
        return json_line(
            record.levelname, record.name, record.getMessage(), extra, at=record.created, thread=record.threadName
        )


def json_line(
    level: str,
    logger: str,
    message: str,
    extra: Mapping[str, Any] | None = None,
    *,
    at: float | None = None,
    thread: str | None = None,
) -> str:
    """One line of JSON without secrets or control characters: time (RFC 3339, UTC, milliseconds), level, logger,
    message, thread, and what is in `extra`. `at`: seconds since 1970, now if None."""
    when = datetime.fromtimestamp(time.time() if at is None else at, UTC)
    ours = {
        "time": when.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "level": level,
        "logger": logger,
        "message": _safe(message),
        "thread": thread or threading.current_thread().name,
    }
    said = {_safe(str(name)): _plain(value) for name, value in (extra or {}).items() if value is not None}
    # Everything outside ASCII escaped: whatever the terminal's encoding is, a line is a line.
    return json.dumps({**ours, **{name: value for name, value in said.items() if name not in ours}})


def _plain(value: Any) -> Any:
    match value:
        case bool() | None:
            return value
        case int():
            return int(value) if abs(value) <= _EXACT else str(value)
        case float() if value == value and abs(value) != float("inf"):
            return value
        case Mapping():
            return {_safe(str(name)): _plain(entry) for name, entry in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_plain(entry) for entry in value]
        case bytes():
            return _safe(value.decode("utf-8", "backslashreplace"))
        case _:
            return _safe(str(value))


def _safe(text: str) -> str:
    # Half a surrogate pair is no text for most readers of JSON.
    return hide_secrets(text).encode("utf-8", "backslashreplace").decode()


_TEXT: Final = _Text("%(asctime)s %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%SZ")
_TEXT.converter = time.gmtime
_FORMATTERS: Final[Mapping[LogFormat, logging.Formatter]] = {"text": _TEXT, "json": _Json()}


class _Handler(logging.Handler):
    """`write` is replaced while a progress bar is on the screen. `chosen`: the form of the lines."""

    write: Callable[[str], None] = staticmethod(_to_stderr)
    chosen: LogFormat = "text"

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.write(_FORMATTERS[self.chosen].format(record))
        except Exception:  # noqa: BLE001 - logging's own convention: a log that fails stops nothing
            self.handleError(record)


_handler = _Handler()


@contextmanager
def logs_to_stderr(*, verbose: bool, form: LogFormat = "text") -> Iterator[None]:
    """docferry's logs from INFO on, with `verbose` from DEBUG on; those of libraries from WARNING on, always: their
    debugging logs hold requests and credentials."""
    root, ours = logging.getLogger(), logging.getLogger("docferry")
    before = ours.level
    ours.setLevel(logging.DEBUG if verbose else logging.INFO)
    _handler.chosen = form
    root.addHandler(_handler)
    try:
        yield
    finally:
        root.removeHandler(_handler)
        _handler.chosen = "text"
        ours.setLevel(before)


def note(text: str) -> None:
    """Say something on standard error that is no log line: as it is, or as a line of JSON where logs are."""
    _to_stderr(json_line("INFO", "docferry", text) if _handler.chosen == "json" else printable(text))


@contextmanager
def writing_through(write: Callable[[str], None]) -> Iterator[None]:
    """Let log lines go through `write`, which keeps them clear of what it draws."""
    _handler.write = write
    try:
        yield
    finally:
        _handler.write = _to_stderr
