"""What a worker answers over HTTP: /livez, /readyz and /metrics, from a thread of its own."""

from __future__ import annotations

import json
import logging
import socket
import threading
from collections.abc import Callable, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any, Protocol
from urllib.parse import urlsplit

from docferry.config import ListenAddress
from docferry.errors import ConfigError
from docferry.operate.health import Check

__all__ = ["Answers", "Listener"]

_log = logging.getLogger(__name__)
_AT_ONCE = 16
_PATIENCE = 10.0
_STARTING = Check("started", "the worker is starting", "Wait; its log says what for.")

Page = Callable[[str], tuple[str, bytes]]
"""From an Accept header to content type and text."""


class Answers(Protocol):
    """Whose health it is: operate.health.Health."""

    def live(self) -> Sequence[Check]:
        """What must be so for the process to be left alone."""

    def ready(self) -> Sequence[Check]:
        """What must be so for it to make progress."""


class Listener:
    """Answers on `address` from its construction on: that it lives and is not ready, until `show` tells more.

    Raises ConfigError when the address cannot be listened on.
    """

    def __init__(self, address: ListenAddress) -> None:
        self._answers: Answers | None = None
        self._page: Page | None = None
        self._server = _bound(address, self._answer)
        host, port = self._server.server_address[:2]
        self.address = ListenAddress(str(host), int(port))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="listen", daemon=True)
        self._thread.start()
        _log.info("listening on %s: /livez, /readyz, /metrics", self.address, extra={"address": str(self.address)})

    def show(self, answers: Answers, page: Page) -> None:
        """From now on answer with this worker's health and metrics."""
        self._page = page
        self._answers = answers

    def close(self) -> None:
        """Hang up."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _answer(self, path: str, accept: str) -> tuple[HTTPStatus, str, bytes]:
        match path:
            case "/livez":
                return _judged("live", self._answers.live() if self._answers is not None else [])
            case "/readyz":
                return _judged("ready", self._answers.ready() if self._answers is not None else [_STARTING])
            case "/metrics" if self._page is not None:
                return HTTPStatus.OK, *self._page(accept)
            case "/metrics":
                return HTTPStatus.SERVICE_UNAVAILABLE, "text/plain; charset=utf-8", b"the worker is starting\n"
            case _:
                return HTTPStatus.NOT_FOUND, "text/plain; charset=utf-8", b"/livez, /readyz or /metrics\n"


def _judged(name: str, checks: Sequence[Check]) -> tuple[HTTPStatus, str, bytes]:
    good = all(check.ok for check in checks)
    body = json.dumps({name: good, "checks": [check.document() for check in checks]}, indent=2) + "\n"
    return HTTPStatus.OK if good else HTTPStatus.SERVICE_UNAVAILABLE, "application/json", body.encode()


class _Server(ThreadingHTTPServer):
    """A few connections at once; who holds one for long without asking is hung up on."""

    daemon_threads = True
    dual_stack = False

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        self._room = threading.BoundedSemaphore(_AT_ONCE)
        super().__init__(*arguments, **settings)

    def server_bind(self) -> None:
        """Without looking up the host's name, which takes its time where no name server answers."""
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(not self.dual_stack))
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        """In a thread, where there is room for one more."""
        if not self._room.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._room.release()  # there was no thread for it
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Gives the room back."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - the base's signature
        """Somebody hung up in the middle, as a rule."""
        _log.debug("a request was not answered", exc_info=True)


Answer = Callable[[str, str], tuple[HTTPStatus, str, bytes]]


def _bound(address: ListenAddress, answer: Answer) -> _Server:
    class Handler(BaseHTTPRequestHandler):
        timeout = _PATIENCE
        server_version = "docferry"
        sys_version = ""

        def do_GET(self) -> None:
            status, kind, body = answer(urlsplit(self.path).path, self.headers.get("Accept", ""))
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815 - the base's naming

        def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002 - the base's naming
            _log.debug("%s " + format, self.client_address[0], *arguments)

    class FourServer(_Server):
        address_family = socket.AF_INET

    class SixServer(_Server):
        address_family = socket.AF_INET6
        dual_stack = not address.host

    tries: list[tuple[type[_Server], str]] = [(SixServer if ":" in address.host else FourServer, address.host)]
    if not address.host and socket.has_dualstack_ipv6():
        tries.insert(0, (SixServer, "::"))
    for kind, host in tries:
        try:
            return kind((host, address.port), Handler)
        except (OSError, OverflowError, UnicodeError) as error:
            failure = error
    raise ConfigError(
        f"cannot listen on {address}: {failure}",
        remedy="Choose an address of this machine and a free port with --listen or [run] listen.",
    ) from failure
