"""Sits between a client and a DynamoDB, and makes of requests and answers whatever a test says."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

Json = dict[str, Any]


@dataclass(frozen=True)
class Request:
    """`number`: counts the requests of this operation from 0."""

    operation: str
    number: int
    body: Json
    raw: bytes
    headers: dict[str, str]


@dataclass(frozen=True)
class Cut:
    """The connection ends without an answer; with `applied`, after the server has done its work."""

    applied: bool = False


@dataclass(frozen=True)
class Answer:
    """An answer of our own; with `applied`, after the server has done its work."""

    status: int
    code: str = ""
    applied: bool = False
    raw: bytes | None = None


@dataclass(frozen=True)
class Rewrite:
    """The server's request, its answer, or both, changed."""

    request: Callable[[Json], Json] | None = None
    answer: Callable[[Json], Json] | None = None


Fault = Cut | Answer | Rewrite
Script = Callable[[Request], Fault | None]


@dataclass
class DynamoDBProxy:
    """`script` says what happens to a request; None lets it through."""

    upstream: int
    script: Script = field(default=lambda _: None)
    seen: list[Request] = field(default_factory=list)

    def __enter__(self) -> DynamoDBProxy:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                proxy._handle(self)

            def log_message(self, *_: object) -> None:
                """Tests are quiet."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: object, client_address: object) -> None:
                """A client that went away is what these tests are about."""

        self._lock = threading.Lock()
        self._server = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def options(self) -> dict[str, str]:
        return {
            "endpoint_url": f"http://127.0.0.1:{self._server.server_port}",
            "region_name": "us-east-1",
            "aws_access_key_id": "test",
            "aws_secret_access_key": "test",
        }

    def count(self, operation: str) -> int:
        return sum(request.operation == operation for request in self.seen)

    def _handle(self, handler: BaseHTTPRequestHandler) -> None:
        raw = handler.rfile.read(int(handler.headers["Content-Length"]))
        operation = handler.headers["X-Amz-Target"].split(".")[-1]
        with self._lock:
            request = Request(operation, self.count(operation), json.loads(raw), raw, dict(handler.headers.items()))
            self.seen.append(request)
        match self.script(request):
            case Cut(applied):
                if applied:
                    self._forward(request, request.body)
                handler.close_connection = True
                handler.connection.shutdown(socket.SHUT_RDWR)
            case Answer(status, code, applied, body):
                if applied:
                    self._forward(request, request.body)
                _reply(handler, status, body if body is not None else _error(code))
            case Rewrite(change_request, change_answer):
                status, body = self._forward(request, change_request(request.body) if change_request else request.body)
                _reply(handler, status, json.dumps(change_answer(json.loads(body))).encode() if change_answer else body)
            case None:
                _reply(handler, *self._forward(request, request.body))

    def _forward(self, request: Request, body: Json) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.upstream, timeout=20)
        try:
            names = ("X-Amz-Target", "Content-Type", "Authorization", "X-Amz-Date")
            headers = {name: request.headers[name] for name in names if name in request.headers}
            connection.request("POST", "/", json.dumps(body), headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()


def _error(code: str) -> bytes:
    return json.dumps({"__type": f"com.amazonaws.dynamodb.v20120810#{code}", "message": "injected"}).encode()


def _reply(handler: BaseHTTPRequestHandler, status: int, body: bytes) -> None:
    handler.send_response(status)
    handler.send_header("Content-Type", "application/x-amz-json-1.0")
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)
