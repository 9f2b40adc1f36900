"""Connection strings whose password does not last: IAM tokens, rotated secrets."""

from __future__ import annotations

import threading
from collections.abc import Callable

__all__ = ["RenewedDsn"]


class RenewedDsn(str):
    """A connection string, the same wherever one is handed about; `source.session.connect`, the one place where
    connections are opened, asks it for the words of each new connection.

    `renew`: makes the whole string afresh; it may ask a service and raise ConfigError, SourceUnavailable. `each_time`:
    for every connection (a token of IAM), otherwise only when the server has refused the password (a secret that was
    rotated). Safe to use from several threads.
    """

    def __new__(cls, shown: str, *_: object, **__: object) -> RenewedDsn:
        """`shown`: what the string itself says; with `each_time` it needs no password."""
        return super().__new__(cls, shown)

    def __init__(self, shown: str, renew: Callable[[], str], *, each_time: bool) -> None:
        self._current = shown
        self._renew = renew
        self._each_time = each_time
        self._lock = threading.Lock()
        self.has_worked = False
        """Whether a connection was opened with it."""

    def current(self) -> str:
        """What to open the next connection with."""
        if self._each_time:
            return self._renew()
        with self._lock:
            return self._current

    def after_refusal(self, refused: str) -> str | None:
        """The server refused the password in `refused`: another string to try, None if there is none."""
        if self._each_time:
            return None
        with self._lock:
            if self._current == refused:
                self._current = self._renew()
            return None if self._current == refused else self._current
