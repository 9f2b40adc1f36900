"""The demo as a process: what it does with signals, which environment it sees, how much it logs."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Final

__all__ = ["Signals", "environment_of_its_own", "quiet"]

_FOREIGN: Final = ("AWS_", "BOTO_", "PG", "DOCFERRY_SOURCE_", "DOCFERRY_TARGET_")
_PROXIES: Final = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")


class Signals:
    """SIGINT and SIGTERM: noted, and acted upon where nothing is left half done. A second one does not wait for that,
    unless the clearing up has begun, which nothing interrupts."""

    def __init__(self) -> None:
        self._received = 0
        self._event = threading.Event()
        self.clearing_up = False

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Whenever inside."""
        before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def check(self) -> None:
        """Raises SystemExit, with the shell's code for it, once a signal came."""
        if self._received:
            raise SystemExit(128 + self._received)

    def wait(self, seconds: float) -> bool:
        """Whether a signal has come, or comes within so many seconds."""
        return self._event.wait(seconds)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        again = self._received != 0
        self._received = self._received or number
        self._event.set()
        if again and not self.clearing_up:
            raise SystemExit(128 + number)


@contextmanager
def environment_of_its_own(client_options: Mapping[str, str]) -> Iterator[None]:
    """While inside, this process knows nothing of the user's AWS account, PostgreSQL settings and proxies: the demo
    talks to its own two servers, and to nobody else."""
    before = dict(os.environ)
    for name in before:
        if name.startswith(_FOREIGN) or name.upper() in _PROXIES:
            del os.environ[name]
    os.environ["AWS_ACCESS_KEY_ID"] = client_options["aws_access_key_id"]
    os.environ["AWS_SECRET_ACCESS_KEY"] = client_options["aws_secret_access_key"]
    os.environ["AWS_CONFIG_FILE"] = os.environ["AWS_SHARED_CREDENTIALS_FILE"] = os.devnull
    os.environ["AWS_EC2_METADATA_DISABLED"] = "true"
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def quiet(*, verbose: bool) -> Iterator[None]:
    """While inside, docferry logs only what is out of the ordinary, unless asked for more."""
    log = logging.getLogger("docferry")
    before = log.level
    if not verbose:
        log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        log.setLevel(before)
