"""A DynamoDB of our own, for the demo and the tests: ministack as a child process, on this machine's loopback only."""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from docferry.errors import DocferryError, MissingExtra

__all__ = ["EmbeddedDynamoDB"]

_HOST = "127.0.0.1"
_PORTS_TO_TRY = 5
_LOG_TAIL = 2000
_CHILD = "from docferry.embedded.ministack_server import main; main()"


class EmbeddedDynamoDB:
    """Starts on `start()` or on entering a `with` block.

    `directory`: where state and log are kept; it stays afterwards. Without one, a temporary directory is used and
    removed by `close()`. `stop()` writes tables and items there and `start()` brings them back; `kill()` (SIGKILL)
    loses whatever was written since the last `stop()`, as the server keeps it in memory. `services`: others of AWS's
    that it answers for as well. `settings`: further environment variables of the server, which win over those set here.

    With "lambda" among the services, functions of a Python runtime run as processes of this interpreter: they import
    whatever this environment has installed, besides what their zip holds, and end with the server.
    """

    def __init__(
        self,
        directory: Path | str | None = None,
        *,
        region: str = "us-east-1",
        patience: float = 30.0,
        services: Sequence[str] = ("dynamodb",),
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self.region = region
        self._settings = dict(settings or {})
        self._patience = patience
        self._services = tuple(services)
        self._temporary = directory is None
        self.directory = Path(tempfile.mkdtemp(prefix="docferry-dynamodb-") if directory is None else directory)
        self.log = self.directory / "dynamodb.log"
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint_url(self) -> str:
        """Where it listens; the same after a stop and a start unless the port was taken in between."""
        return f"http://{_HOST}:{self.port}"

    def client_options(self) -> dict[str, str]:
        """What a boto3 client needs to talk to it. The credentials are dummies."""
        return {
            "endpoint_url": self.endpoint_url,
            "region_name": self.region,
            "aws_access_key_id": "test",
            "aws_secret_access_key": "test",
        }

    def start(self) -> EmbeddedDynamoDB:
        """Start, with the data of the last `stop()`, and wait until it answers. Does nothing when it runs already."""
        if self._process is not None and self._process.poll() is None:
            return self
        if importlib.util.find_spec("ministack") is None:
            raise MissingExtra(
                "the embedded DynamoDB needs ministack, which is not installed",
                remedy="Run `pip install 'docferry[demo]'`.",
            )
        self.directory.mkdir(parents=True, exist_ok=True)
        for attempt in range(_PORTS_TO_TRY):
            port = self.port if self.port and attempt == 0 else _free_port()
            if self._start_on(port):
                self.port = port
                return self
        raise DocferryError(
            f"the embedded DynamoDB did not start; the end of {self.log}:\n{self._log_tail()}",
            remedy="Read the log above; try again with a free port range and enough memory.",
        )

    def stop(self) -> None:
        """End the server; tables and items are kept for the next `start()`."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End the server at once, as a crash would."""
        self._end(signal.SIGKILL)

    def close(self) -> None:
        """End the server and remove its temporary directory."""
        if self._temporary:
            self.kill()
            shutil.rmtree(self.directory, ignore_errors=True)
        else:
            self.stop()

    def __enter__(self) -> EmbeddedDynamoDB:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start_on(self, port: int) -> bool:
        """Whether the server came up on `port`; False when it ended by itself, which is what a taken port does."""
        token = secrets.token_hex(8)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _CHILD],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.directory,
                env=self._environment(port, token),
                start_new_session=True,
            )
        deadline = time.monotonic() + self._patience
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                break
            if _answers(port, token):
                return True
            time.sleep(0.03)
        self.kill()
        return False

    def _environment(self, port: int, token: str) -> dict[str, str]:
        home = str(self.directory)
        return {
            **{
                name: os.environ[name]
                for name in ("PATH", "PYTHONPATH", "SYSTEMROOT", "VIRTUAL_ENV")
                if name in os.environ
            },
            "HOME": home,
            "TMPDIR": home,
            "BIND_HOST": _HOST,
            "GATEWAY_PORT": str(port),
            "SERVICES": ",".join(self._services),
            "MINISTACK_REGION": self.region,
            "MINISTACK_EDITION": token,  # shown by the health page: another server on this port is not taken for ours
            "PERSIST_STATE": "1",
            "STATE_DIR": str(self.directory / "state"),
            "SFTP_ENABLED": "0",
            "IOT_MTLS_ENABLED": "0",
            "DOCKER_HOST": f"unix://{home}/no-docker",
            "LOG_LEVEL": "WARNING",
            **self._settings,
        }

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if how is signal.SIGKILL and process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):  # it has ended by itself
                os.killpg(process.pid, how)
        process.send_signal(how)
        try:
            process.wait(self._patience)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdin is not None:
            process.stdin.close()

    def _log_tail(self) -> str:
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return text[-_LOG_TAIL:] or "(empty)"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def _answers(port: int, token: str) -> bool:
    connection = http.client.HTTPConnection(_HOST, port, timeout=1)
    try:
        connection.request("GET", "/_ministack/health")
        health = json.loads(connection.getresponse().read())
    except (OSError, http.client.HTTPException, ValueError):
        return False
    finally:
        connection.close()
    return isinstance(health, dict) and health.get("edition") == token
