"""How much memory `docferry run` takes to work off a backlog, and how fast it does; with --verify also how much
`docferry verify` takes behind it.

python -m tests.soak.memory --verify
                                    200,000 changes of 2 KB on 20,000 rows, built up while it is down
python -m tests.soak.memory --one-transaction --changes 1000000 --rows 1000000 --size 200
                                    a single transaction of a million rows; the emulator holds them in its memory
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path

from docferry.embedded.dynamodb import EmbeddedDynamoDB
from docferry.embedded.postgres import EmbeddedPostgres

from ..acceptance.comparison import Mirrored, assert_same
from ..acceptance.conftest import Ferry

__all__ = ["LIMIT_MIB", "Figures", "measure"]

LIMIT_MIB = 256
_TABLE = "CREATE TABLE orders (id bigint PRIMARY KEY, n integer NOT NULL DEFAULT 0, order_data xml)"
_SAMPLE = 0.05


@dataclass(frozen=True)
class Figures:
    """`peak_mib`: the greatest resident set. `median_mib`: of the samples. `cpu_seconds`: of the worker. `verify_...`:
    of one `docferry verify` behind it."""

    changes: int
    rows: int
    seconds: float
    changes_per_second: float
    cpu_seconds: float
    cpu_us_per_change: float
    peak_mib: float
    median_mib: float
    verify_seconds: float
    verify_peak_mib: float


def measure(
    directory: Path, *, changes: int, size: int, rows: int, one_transaction: bool, verify: bool, deadline: float
) -> Figures:
    """Build a backlog of `changes` changes of about `size` bytes on `rows` rows, start `docferry run`, and watch it
    until the backlog is gone; with `verify`, watch `docferry verify` then. Raises AssertionError when items differ from
    rows at the end, by its judgement or by the tests' own."""
    with ExitStack() as stack:
        server = stack.enter_context(EmbeddedPostgres())
        dynamodb = stack.enter_context(EmbeddedDynamoDB())
        ferry = stack.enter_context(closing(Ferry(server.dsn(), dynamodb, directory)))
        ferry.execute(_TABLE)
        ferry.write_config("public.orders")
        ferry.run("apply")
        ferry.run("run", "--once", timeout=60)
        _build_backlog(ferry, changes, size, rows, one_transaction=one_transaction)
        worker = ferry.start_worker(ready=False)
        with _Watcher(worker.pid) as watcher:
            began = time.monotonic()
            ferry.run("wait", "--timeout", str(deadline), timeout=deadline + 30)
            seconds = time.monotonic() - began
            cpu = _cpu_seconds(worker.pid)
        assert worker.stop() == 0, worker.text
        verify_seconds, verify_peak = _verify(ferry, deadline) if verify else (0.0, 0.0)
        assert_same(ferry.dsn, ferry.client(), Mirrored("orders", f"{ferry.prefix}orders"))
    return Figures(
        changes,
        rows,
        round(seconds, 1),
        round(changes / seconds),
        round(cpu, 1),
        round(cpu / changes * 1e6),
        round(watcher.peak_mib, 1),
        round(watcher.median_mib, 1),
        round(verify_seconds, 1),
        round(verify_peak, 1),
    )


def _verify(ferry: Ferry, deadline: float) -> tuple[float, float]:
    """Seconds, and the greatest resident set. The emulator answers a scan with a whole segment, where DynamoDB ends a
    page at 1 MB: what this costs grows with the collection, and is none of docferry's."""
    began = time.monotonic()
    verify = ferry.start("verify")
    with _Watcher(verify.pid) as watcher:
        assert verify.wait(deadline) == 0, verify.text
    return time.monotonic() - began, watcher.peak_mib


def _build_backlog(ferry: Ferry, changes: int, size: int, rows: int, *, one_transaction: bool) -> None:
    """First inserts, then updates of all columns, in transactions of a thousand or in one."""
    insert = f"""
        INSERT INTO orders (id, order_data)
        SELECT 1 + k % {rows}, xmlelement(name o, xmlelement(name n, k), xmlelement(name t, {_noise(size)}))
          FROM generate_series({{first}}, {{last}}) k
        ON CONFLICT (id) DO UPDATE SET n = orders.n + 1, order_data = excluded.order_data
    """
    step = min(1000, rows)
    statements = [insert.format(first=first, last=min(first + step, changes) - 1) for first in range(0, changes, step)]
    if one_transaction:
        ferry.execute(";".join(["BEGIN", *statements, "COMMIT"]))
    else:
        ferry.execute(*statements)


def _noise(size: int) -> str:
    """Text that differs from row to row, and does not compress below the size at which it would go out of line."""
    pieces = max(1, size // 32)
    return f"(SELECT string_agg(md5(k::text || '-' || p::text), '') FROM generate_series(1, {pieces}) p)"


class _Watcher:
    """Samples a process's resident set."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._samples: list[float] = []
        self.peak_mib = 0.0

    @property
    def median_mib(self) -> float:
        return sorted(self._samples)[len(self._samples) // 2]

    def __enter__(self) -> _Watcher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            status = _status(self._pid)
            if "VmRSS" in status:
                self._samples.append(status["VmRSS"])
                self.peak_mib = max(self.peak_mib, status["VmHWM"])
            if self._stop.wait(_SAMPLE):
                return


def _status(pid: int) -> dict[str, float]:
    """The sizes of /proc/PID/status in MiB."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    fields = (line.partition(":") for line in lines)
    return {name: int(value.split()[0]) / 1024 for name, _, value in fields if value.endswith("kB")}


def _cpu_seconds(pid: int) -> float:
    """User and system time so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--changes", type=int, default=200_000)
    parser.add_argument("--size", type=int, default=2000, help="bytes of a row")
    parser.add_argument("--rows", type=int, default=20_000, help="rows that the changes are spread over")
    parser.add_argument("--one-transaction", action="store_true")
    parser.add_argument("--verify", action="store_true", help="measure `docferry verify` behind it")
    parser.add_argument("--deadline", type=float, default=1800, help="seconds")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        figures = measure(
            Path(directory),
            changes=options.changes,
            size=options.size,
            rows=options.rows,
            one_transaction=options.one_transaction,
            verify=options.verify,
            deadline=options.deadline,
        )
    print(json.dumps(asdict(figures), indent=2))  # noqa: T201 - what it is for
    return 0 if max(figures.peak_mib, figures.verify_peak_mib) < LIMIT_MIB else 1


if __name__ == "__main__":
    sys.exit(main())
