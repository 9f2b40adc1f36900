"""An application with the triggers of mode `lambda`, and a listener in the place of Lambda's endpoint."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import psycopg

from docferry.capture.builtin_types import TypeLookup
from docferry.capture.ledger import PostgresLedger
from docferry.capture.outbox import OutboxCapture
from docferry.capture.trigger_functions import TriggerSettings
from docferry.capture.trigger_setup import TriggerSetup
from docferry.change.model import Change
from docferry.change.wire import Event, decode_event
from docferry.embedded.aws_lambda import LambdaGateway
from docferry.retry import Retry

__all__ = ["LIMIT", "Listener", "Road", "key_of"]

LIMIT = 20_000
"""Bytes of an event in these tests."""


class Listener:
    """Keeps the events that it is sent."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        listener = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                listener.bodies.append(body)
                self.send_response(202)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def documents(self) -> list[dict[str, Any]]:
        return [json.loads(body) for body in self.bodies]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class Road:
    """An application, the triggers, the stand-in and the listener. `app` is the application's connection."""

    def __init__(self, dsn: str, gateway: LambdaGateway, listener: Listener) -> None:
        self.dsn = dsn
        self.gateway = gateway
        self.listener = listener
        self.app = psycopg.connect(dsn, autocommit=True)
        self.keys: dict[str, tuple[str, ...]] = {}
        ledger = PostgresLedger(dsn, Retry(), by_triggers=True)
        ledger.create()
        ledger.begin_epoch("test", 1, "lambda")
        ledger.close()

    def mirror(self, table: str, *key: str, **settings: Any) -> TriggerSetup:
        self.keys[table] = key
        values: dict[str, Any] = {"payload_limit": LIMIT, "function": "ferry", "region": "us-east-1", "timeout": 5.0}
        setup = TriggerSetup(self.dsn, TriggerSettings("lambda", **values | settings), lambda: self.keys)
        setup.check()
        setup.prepare(list(self.keys))
        return setup

    def events(self) -> list[Event]:
        types = TypeLookup(self.dsn)
        return [decode_event(document, types) for document in self.listener.documents()]

    def sent_keys(self) -> list[str]:
        """The first column of every new row, sorted."""
        return sorted(key_of(change) for change in self.sent() if change.row is not None)

    def sent(self) -> list[Change]:
        return [change for event in self.events() for change in event.changes]

    def waiting(self) -> list[Change]:
        """What waits in the outbox; nothing is confirmed."""
        capture = OutboxCapture(self.dsn, most_changes=100_000, most_bytes=1 << 30, wakes=False)
        try:
            return capture.read(0.2).changes
        finally:
            capture.close()

    def breaker(self) -> tuple[int, bool]:
        row = self.app.execute(
            "SELECT CASE WHEN f.is_called THEN f.last_value ELSE 0 END,"
            " a.last_value > extract(epoch FROM clock_timestamp()) * 1000"
            " FROM docferry.send_failures f, docferry.send_after a"
        ).fetchone()
        assert row is not None
        return int(row[0]), bool(row[1])


def key_of(change: Change) -> str:
    assert change.row is not None
    assert isinstance(change.row[0], bytes)
    return change.row[0].decode()
