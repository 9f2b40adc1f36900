"""Sits between docferry and a server and does to connections what networks do."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

__all__ = ["TcpProxy"]

_CHUNK = 1 << 16
_HELD_UP = 0.2
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class TcpProxy:
    """Forwards connections to `port` of this machine. Without faults, byte for byte.

    `cuts`: connections cut so far. `swallowed`: those among them whose server had answered, and whose client was never
    told: applied, then reported as a failure.
    """

    def __init__(self, port: int) -> None:
        self._upstream = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.cuts = 0
        self.swallowed = 0
        self._rng = random.Random()
        self._chance = 0.0
        self._delay = 0.0
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []

    @contextmanager
    def faults(self, *, chance: float, every: float, seed: int, delay: float = 0.0) -> Iterator[None]:
        """Inside, every piece of data is with `chance` the last of its connection, and about `every` seconds one
        connection, idle or not, is cut. One piece in five is held up for up to `delay` seconds."""
        self._rng.seed(seed)
        stop = threading.Event()

        def cut_sometimes() -> None:
            while not stop.wait(self._rng.uniform(0, 2 * every)):
                self.cut_one()

        cutter = threading.Thread(target=cut_sometimes)
        self._chance, self._delay = chance, delay
        cutter.start()
        try:
            yield
        finally:
            self._chance = self._delay = 0.0
            stop.set()
            cutter.join()

    def cut_one(self) -> None:
        """Cut some connection, if there is any."""
        with self._lock:
            if self._open:
                self._cut(self._rng.choice(sorted(self._open, key=socket.socket.fileno)))

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for connection in self._open:
                _shut(connection)
        for thread in self._threads:
            thread.join()

    def _start(self, target: object, *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self._upstream))
            except OSError:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
                client.close()
                continue
            for one in (client, server):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._open.add(client)
            self._start(self._serve, client, server)

    def _serve(self, client: socket.socket, server: socket.socket) -> None:
        back = threading.Thread(target=self._pump, args=(server, client), kwargs={"answers": True}, daemon=True)
        back.start()
        self._pump(client, server, answers=False)
        back.join()
        with self._lock:
            self._open.discard(client)
        client.close()
        server.close()

    def _pump(self, source: socket.socket, sink: socket.socket, *, answers: bool) -> None:
        try:
            while data := source.recv(_CHUNK):
                if self._delay and self._rng.random() < _HELD_UP:
                    time.sleep(self._rng.uniform(0, self._delay))
                if self._chance and self._rng.random() < self._chance:
                    if answers:
                        self.swallowed += 1
                    else:
                        sink.sendall(data[: self._rng.randrange(len(data) + 1)])
                        time.sleep(0.001)
                    self._cut(sink if answers else source)
                    break
                sink.sendall(data)
        except OSError:
            pass
        finally:
            _shut(source)
            _shut(sink)

    def _cut(self, client: socket.socket) -> None:
        """The client sees a reset or an end, as chance has it."""
        self.cuts += 1
        if self._rng.random() < 0.5:
            with contextlib.suppress(OSError):
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        _shut(client)


def _shut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
