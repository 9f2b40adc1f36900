"""A stand-in for the extensions `aws_lambda` and `aws_commons` on any PostgreSQL, for development and tests.

`install_standin` creates the functions that Aurora has, with their documented signatures. They call, through `dblink`
and thus outside the transaction, a gateway in this process, which makes the HTTP request to a Lambda endpoint.
"""

from __future__ import annotations

import contextlib
import json
import socket
import socketserver
import struct
import threading
from importlib.resources import files
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import psycopg
from psycopg import sql

from docferry.embedded.lambda_http import UNREACHABLE, Answer, Call, InvokeFailed, LambdaConnection

if TYPE_CHECKING:  # an optional dependency
    from botocore.credentials import Credentials

__all__ = ["Fault", "LambdaGateway", "install_standin"]

Fault = Literal["refuse", "hang", "throttle", "error", "lost", "stuck"]
"""What a gateway may be told to do instead of its work.

`refuse`: nothing listens at the endpoint. `hang`: the endpoint accepts a connection and never answers. `throttle`: 429.
`error`: 500. `lost`: the invocation is accepted, but its answer never comes. `stuck`: the gateway does not either.
"""

_HOST = "127.0.0.1"
_PROTOCOL_3 = 196608
_NO_ENCRYPTION = (80877103, 80877104)  # SSLRequest, GSSENCRequest
_TEXT = 25
_COLUMNS = ("status_code", "payload", "executed_version", "log_result", "function_error", "failure")


class LambdaGateway:
    """Serves `aws_lambda.invoke` of any number of PostgreSQL sessions, on a free port of this machine's loopback.

    `endpoint_url`: where Lambda is, as for a boto3 client; `region`: for calls that name none. `credentials`: those of
    botocore; without them requests carry a dummy signature, which is enough for emulators.
    `fail`: set it to a Fault to break things, to None to mend them; it applies to calls that begin afterwards.
    """

    def __init__(self, endpoint_url: str, region: str = "us-east-1", *, credentials: Credentials | None = None) -> None:
        self.endpoint_url = endpoint_url
        self.region = region
        self.credentials = credentials
        self.fail: Fault | None = None
        self.closing = threading.Event()
        self._lock = threading.Lock()
        self._calls = 0
        self._failures = 0
        self._server: _Server | None = None

    @property
    def calls(self) -> int:
        """How many invocations were asked for."""
        return self._calls

    @property
    def failures(self) -> int:
        """How many of them Lambda did not accept, as far as the caller was told."""
        return self._failures

    @property
    def port(self) -> int:
        """Where it listens; 0 before the start."""
        return 0 if self._server is None else int(self._server.server_address[1])

    @property
    def sessions(self) -> int:
        """How many PostgreSQL sessions are connected."""
        return 0 if self._server is None else len(self._server.sockets)

    def start(self) -> LambdaGateway:
        """Listen. Does nothing when it does already."""
        if self._server is None:
            self.closing.clear()
            self._server = _Server(self)
            threading.Thread(
                target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, name="lambda gateway", daemon=True
            ).start()
        return self

    def close(self) -> None:
        """Stop listening and cut all sessions off."""
        server, self._server = self._server, None
        if server is not None:
            self.closing.set()
            server.shutdown()
            server.server_close()
            server.cut()

    def cut(self) -> None:
        """Break the connection of every session, as a restart of the gateway would."""
        if self._server is not None:
            self._server.cut()

    def __enter__(self) -> LambdaGateway:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def perform(self, call: Call, connection: LambdaConnection) -> Answer:
        """Make the call, or fail as `fail` says. Raises InvokeFailed."""
        with self._lock:
            self._calls += 1
        try:
            call.check()
            return self._perform(self.fail, call, connection)
        except InvokeFailed:
            with self._lock:
                self._failures += 1
            raise

    def _perform(self, fault: Fault | None, call: Call, connection: LambdaConnection) -> Answer:
        if fault == "refuse":
            raise InvokeFailed(UNREACHABLE)
        if fault == "throttle":
            raise InvokeFailed("TooManyRequestsException: Rate Exceeded.")
        if fault == "error":
            raise InvokeFailed("ServiceException: An error occurred and the request cannot be processed.")
        if fault == "stuck":
            self.closing.wait()
            raise InvokeFailed(UNREACHABLE)
        answer = connection.invoke(call) if fault != "hang" else None
        if answer is None or fault == "lost":
            self.closing.wait(call.request_timeout)
            raise InvokeFailed("Timeout was reached")
        return answer


class _Server(socketserver.ThreadingTCPServer):
    """One thread a PostgreSQL session."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, gateway: LambdaGateway) -> None:
        self.gateway = gateway
        self.sockets: set[socket.socket] = set()
        super().__init__((_HOST, 0), _Session)

    def cut(self) -> None:
        for each in list(self.sockets):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A session that ends in the middle of something is nobody's concern."""


class _Session(socketserver.StreamRequestHandler):
    """As much of PostgreSQL's wire protocol as dblink needs: a query is a call, and its answer is one row."""

    server: _Server
    disable_nagle_algorithm = True
    wbufsize = -1

    def handle(self) -> None:
        gateway = self.server.gateway
        connection = LambdaConnection(gateway.endpoint_url, gateway.region, gateway.credentials)
        self.server.sockets.add(self.connection)
        try:
            if self._greet():
                self._serve(gateway, connection)
        finally:
            self.server.sockets.discard(self.connection)
            connection.close()

    def _greet(self) -> bool:
        """Whether a session begins; not with a request to cancel one."""
        while True:
            length, code = struct.unpack("!ii", self._read(8))
            self._read(length - 8)
            if code in _NO_ENCRYPTION:
                self._send(b"N")
            elif code == _PROTOCOL_3:
                settings = (("server_version", "17.0"), ("client_encoding", "UTF8"), ("server_encoding", "UTF8"))
                status = b"".join(_message(b"S", _text(name) + _text(value)) for name, value in settings)
                self._send(_message(b"R", struct.pack("!i", 0)) + status + _READY)
                return True
            else:
                return False

    def _serve(self, gateway: LambdaGateway, connection: LambdaConnection) -> None:
        while True:
            kind, length = struct.unpack("!ci", self._read(5))
            body = self._read(length - 4)
            if kind == b"X":
                return
            if kind != b"Q":
                self._send(_error("the stand-in's gateway understands simple queries only") + _READY)
                continue
            try:
                call = _parse(body.removesuffix(b"\0"))
            except (KeyError, TypeError, ValueError):
                self._send(_error("the stand-in's gateway understands invocations of Lambda functions only") + _READY)
                continue
            try:
                row = _row_of(gateway.perform(call, connection))
            except InvokeFailed as error:
                row = (None, None, None, None, None, str(error))
            self._send(_DESCRIPTION + _row(row) + _message(b"C", _text("SELECT 1")) + _READY)

    def _read(self, size: int) -> bytes:
        data: bytes = self.rfile.read(size)
        if len(data) < size:
            raise ConnectionResetError
        return data

    def _send(self, data: bytes) -> None:
        self.wfile.write(data)
        self.wfile.flush()


def install_standin(dsn: str, gateway: LambdaGateway) -> None:
    """Create or replace the functions in the database of `dsn`, as a superuser, and lead them to the started `gateway`.

    Others need, as with the extension, USAGE on the schema and EXECUTE on the functions of `aws_lambda`.
    """
    text = files("docferry.embedded").joinpath("sql", "aws_lambda.sql").read_text(encoding="utf-8")
    with psycopg.connect(dsn) as connection:
        # Two that install at the same time would trip over each other's CREATE ... IF NOT EXISTS.
        connection.execute("SELECT pg_advisory_xact_lock(hashtext('docferry aws_lambda stand-in'))")
        connection.execute(text.encode())
        connection.execute(
            sql.SQL(
                "CREATE OR REPLACE FUNCTION aws_lambda.gateway_port() RETURNS integer"
                " LANGUAGE sql IMMUTABLE AS 'SELECT {}'"
            ).format(sql.Literal(gateway.port))
        )


def _parse(query: bytes) -> Call:
    """A line of JSON, and the payload as it is."""
    head, _, payload = query.partition(b"\n")
    fields = json.loads(head)
    return Call(
        function=fields["function_name"],
        region=fields["region"],
        payload=payload,
        kind=fields["invocation_type"],
        log_type=fields["log_type"],
        context=fields["context"],
        qualifier=fields["qualifier"],
        connect_timeout=fields["connect_timeout_ms"] / 1000,
        request_timeout=fields["request_timeout_ms"] / 1000,
    )


def _row_of(answer: Answer) -> tuple[str | None, ...]:
    return (str(answer.status), answer.payload, answer.version, answer.log, answer.error, None)


def _text(value: str) -> bytes:
    return value.encode() + b"\0"


def _message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!i", len(body) + 4) + body


def _row(values: tuple[str | None, ...]) -> bytes:
    parts = [struct.pack("!h", len(values))]
    for value in values:
        data = None if value is None else value.encode()
        parts.append(struct.pack("!i", -1) if data is None else struct.pack("!i", len(data)) + data)
    return _message(b"D", b"".join(parts))


def _error(text: str) -> bytes:
    fields = b"".join(code + _text(value) for code, value in ((b"S", "ERROR"), (b"C", "0A000"), (b"M", text)))
    return _message(b"E", fields + b"\0")


_READY = _message(b"Z", b"I")
_DESCRIPTION = _message(
    b"T",
    struct.pack("!h", len(_COLUMNS))
    + b"".join(_text(name) + struct.pack("!ihihih", 0, 0, _TEXT, -1, -1, 0) for name in _COLUMNS),
)
