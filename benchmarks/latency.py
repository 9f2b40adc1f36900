"""Commit to visible item, at a steady rate of changes, one worker.

    python benchmarks/latency.py [--rate 500] [--seconds 10] [--rounds 3]

A writer in a process of its own commits single-row updates at the given rate and notes when each commit returned. The
worker runs in this process; the moment at which the target has answered for a write is when its item is visible, so the
difference is an upper bound. Budget at 500 changes a second: p50 under 20 ms, p99 under 100 ms.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from stages import document

from docferry.config import load
from docferry.document.model import Put, Write
from docferry.embedded.dynamodb import EmbeddedDynamoDB
from docferry.embedded.postgres import EmbeddedPostgres
from docferry.target.contract import Result, Target
from docferry.worker_app import WorkerApp

ROWS = 1000

WRITER = """
import json, sys, time
import psycopg
dsn, rate, seconds = sys.argv[1], float(sys.argv[2]), float(sys.argv[3])
rows, start = int(sys.argv[4]), int(sys.argv[5])
committed = {}
with psycopg.connect(dsn, autocommit=True) as connection:
    begun = time.time()
    number = 0
    while (now := time.time()) - begun < seconds:
        due = begun + number / rate
        if due > now:
            time.sleep(due - now)
        mark = start + number
        connection.execute("UPDATE public.orders SET mark = %s WHERE id = %s", (mark, number % rows))
        committed[mark] = time.time()
        number += 1
json.dump(committed, sys.stdout)
"""


class Recording:
    """A target that notes when each mark became visible."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self.seen: dict[int, float] = {}

    def write(self, writes: Sequence[Write]) -> list[Result]:
        """Write, then note the time."""
        results = self._target.write(writes)
        now = time.time()
        for write in writes:
            if isinstance(write, Put):
                mark = write.document["mark"]
                if isinstance(mark, int):
                    self.seen[mark] = now
        return results

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target, name)


def prepare(postgres: EmbeddedPostgres, dynamodb: EmbeddedDynamoDB, folder: Path) -> WorkerApp:
    """A table of ROWS rows with 2.4 KB of XML each, and a worker's objects for it."""
    import os

    import psycopg

    options = dynamodb.client_options()
    os.environ["AWS_ACCESS_KEY_ID"] = options["aws_access_key_id"]
    os.environ["AWS_SECRET_ACCESS_KEY"] = options["aws_secret_access_key"]
    with psycopg.connect(postgres.dsn(), autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE public.orders (id int PRIMARY KEY, mark int, order_data xml)")
        # Stored inline, so that an update of `mark` carries the whole row.
        cursor.execute("ALTER TABLE public.orders ALTER COLUMN order_data SET STORAGE MAIN")
        cursor.executemany(
            "INSERT INTO public.orders VALUES (%s, 0, %s)", [(number, document(number)) for number in range(ROWS)]
        )
    path = folder / "docferry.toml"
    path.write_text(
        f'[source]\ndsn = "{postgres.dsn()}"\n[target]\nkind = "dynamodb"\nregion = "{options["region_name"]}"\n'
        f'endpoint_url = "{options["endpoint_url"]}"\n[[mirrors]]\ntable = "public.orders"\n'
    )
    app = WorkerApp(load(path), patient=True)
    app.admin().apply()
    return app


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=500)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        postgres, dynamodb = stack.enter_context(EmbeddedPostgres()), stack.enter_context(EmbeddedDynamoDB())
        with prepare(postgres, dynamodb, Path(folder)) as app:
            recording = Recording(app.target)
            app.__dict__["target"] = recording
            worker = threading.Thread(target=app.worker().run)
            worker.start()
            try:
                app.wait(60)
                p50s, p99s = [], []
                for number in range(arguments.rounds):
                    start = 1 + number * 10**6
                    command = [
                        sys.executable, "-c", WRITER, postgres.dsn(), str(arguments.rate), str(arguments.seconds),
                        str(ROWS), str(start),
                    ]  # fmt: skip
                    committed = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
                    app.wait(60)
                    # Marks that a later update of the row overtook within one batch became visible with that one.
                    waits = sorted(
                        recording.seen[int(mark)] - at for mark, at in committed.items() if int(mark) in recording.seen
                    )
                    p50, p99 = waits[len(waits) // 2] * 1000, waits[int(len(waits) * 0.99)] * 1000
                    p50s.append(p50)
                    p99s.append(p99)
                    print(f"{len(committed) / arguments.seconds:.0f} commits/s: p50 {p50:.1f} ms, p99 {p99:.1f} ms")
            finally:
                app.stopping.set()
                worker.join()
    print(f"median of rounds: p50 {statistics.median(p50s):.1f} ms, p99 {statistics.median(p99s):.1f} ms")
    return 0


if __name__ == "__main__":
    sys.exit(main())
