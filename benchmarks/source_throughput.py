"""Source throughput kept in each capture mode: the article's mix of INSERT, SELECT, UPDATE and DELETE, with and without
docferry.

    python benchmarks/source_throughput.py [--rounds 5] [--seconds 10] [--connections 8] [--only NAME ...]
                                           [--mix 100 20 200 20] [--shared] [--no-fsync] [--dynamodb]
                                           [--commit-ms 2] [--invoke-ms 0] [--bulk 10000]

Each configuration has a PostgreSQL of its own, all with the same settings but wal_level, and runs the real command
line: `docferry apply`, `docferry run` (where the mode has a worker) and `docferry bench load`. Rounds are interleaved,
A B A B; before each measurement the mirror has caught up. The medians of the statements a second, of the ratio to the
round's own baseline and of the server's CPU are printed. Budgets: 97% kept with `replication`, 90% with `outbox`; the
article kept 69%. Each round also times one UPDATE of --bulk rows, where `lambda` groups and `lambda-rows` does not.

What is measured is what docferry costs the *source*: its triggers, its log, its walsender, its readers. The worker and
the target run elsewhere in any deployment, so the server and the load generator have the first half of the CPUs here
and everything else the other half (`--shared` lets all compete for all). Commits wait `--commit-ms` besides what this
machine's disk takes, as they do on Aurora and on network storage. With `--commit-ms 0`, and all the more with
`--no-fsync`, the CPU is the only limit: then whatever docferry makes the server do shows as throughput, one to one.

The worker writes to a target in its own memory, because one that cannot keep up spares the source: the slot's reader
stands still. `--dynamodb` takes the embedded DynamoDB instead. `aws_lambda.invoke` is the stand-in, and every event is
accepted after `--invoke-ms`; no function runs, as what it does is not the source's concern.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from docferry.embedded.aws_lambda import LambdaGateway, install_standin
from docferry.embedded.dynamodb import EmbeddedDynamoDB
from docferry.embedded.lambda_http import Answer, Call, LambdaConnection
from docferry.embedded.postgres import EmbeddedPostgres
from docferry.embedded.postgres_processes import children_of

BASELINE = "none"

# `docferry run`, with another target.
WORKER = """
import signal
from docferry.worker_app import WorkerApp
from docferry.config import load
from docferry.target.memory import MemoryTarget
with WorkerApp(load("docferry.toml"), patient=True) as app, app.stop_on(signal.SIGTERM):
    app.__dict__["target"] = target = MemoryTarget(control=getattr(app, "control", None))
    for mirror in app.mirrors.values():
        target.create(mirror.collection)
    if getattr(app, "control", None) is not None:
        target.create(app.control)
    app.worker().run()
"""

FILL = (
    "INSERT INTO public.docferry_load (order_status, order_data) "
    "SELECT 'bulk', xmlparse(DOCUMENT '<order><note>' || repeat(md5(n::text), 72) || '</note></order>') "
    "FROM generate_series(1, %s) AS n"
)


@dataclass(frozen=True)
class Configuration:
    """`source`: lines of [source] and its tables, after the dsn; None runs without docferry. `stand_in`: the source has
    the stand-in for `aws_lambda`, and a function answers it."""

    name: str
    source: str | None
    wal_level: str = "replica"
    budget: float | None = None
    stand_in: bool = False


CONFIGURATIONS = (
    Configuration(BASELINE, None),
    Configuration("replication", 'capture = "replication"', wal_level="logical", budget=0.97),
    Configuration("outbox", 'capture = "outbox"', budget=0.90),
    Configuration("lambda", 'capture = "lambda"\n[source.lambda]\ngroup = true', stand_in=True),
    Configuration("lambda-rows", 'capture = "lambda"\n[source.lambda]\ngroup = false', stand_in=True),
)


class Cpus:
    """Who runs where. Both halves are all CPUs when they are shared or cannot be split."""

    def __init__(self, *, shared: bool) -> None:
        every = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        self.split = not shared and len(every) > 1
        half = (len(every) + 1) // 2
        self.source, self.others = (set(every[:half]), set(every[half:])) if self.split else (set(every), set(every))

    def to_source(self) -> None:
        """This process, and those that it starts from now on, belong to the source."""
        self._move(self.source)

    def to_others(self) -> None:
        """The opposite."""
        self._move(self.others)

    def _move(self, cpus: set[int]) -> None:
        if self.split:
            os.sched_setaffinity(0, cpus)


class Bench:
    """One configuration, set up. `folder`: where its docferry.toml is."""

    def __init__(
        self, configuration: Configuration, postgres: EmbeddedPostgres, folder: Path, environment: dict[str, str]
    ) -> None:
        self.configuration = configuration
        self.postgres = postgres
        self.folder = folder
        self.environment = environment
        self.gateway: Accepting | None = None

    def docferry(self, *arguments: str) -> str:
        """Run the command line and return its answer."""
        done = subprocess.run(
            [sys.executable, "-m", "docferry", *arguments],
            cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise SystemExit(f"{self.configuration.name}: docferry {' '.join(arguments)} failed:\n{done.stderr}")
        return done.stdout

    def load(self, mix: Sequence[int], seconds: float, connections: int) -> dict[str, Any]:
        """Run the load and return its report."""
        answer = json.loads(
            self.docferry(
                "bench", "load", *map(str, mix), "--json", "--mirror", "off" if self.plain else "on",
                "--seconds", str(seconds), "--connections", str(connections),
            )
        )  # fmt: skip
        report: dict[str, Any] = answer["report"]
        if report["errors"]:
            print(f"  {self.configuration.name}: errors {report['errors']}", file=sys.stderr)
        return report

    @property
    def plain(self) -> bool:
        """Whether it runs without docferry."""
        return self.configuration.source is None

    @contextmanager
    def mirrored(self, cpus: Cpus, *, dynamodb: bool) -> Iterator[None]:
        """While inside, a worker runs, and it has caught up."""
        if self.plain or self.configuration.stand_in:
            # Mode `lambda` needs no worker: the function is called by the source.
            yield
            return
        cpus.to_others()
        command = ["-m", "docferry", "run"] if dynamodb else ["-c", WORKER]
        with (self.folder / "run.log").open("ab") as log:
            worker = subprocess.Popen(
                [sys.executable, *command],
                cwd=self.folder, env=self.environment, stdout=log, stderr=log,
            )  # fmt: skip
        try:
            self.catch_up(cpus)
            yield
        finally:
            worker.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                worker.wait(60)
            worker.kill()
            worker.wait()

    def catch_up(self, cpus: Cpus) -> float:
        """Seconds until the mirror has caught up."""
        if self.plain or self.configuration.stand_in:
            return 0.0
        cpus.to_others()
        began = time.monotonic()
        self.docferry("wait", "--timeout", "1800")
        return time.monotonic() - began

    def bulk(self, rows: int) -> tuple[float, int]:
        """One UPDATE of so many rows: milliseconds, and invocations."""
        with psycopg.connect(self.postgres.dsn(), autocommit=True) as connection:
            found = connection.execute("SELECT count(*) FROM public.docferry_load").fetchone()
            if found is not None and found[0] < rows:
                connection.execute(FILL, (rows - found[0],))
            calls = self.calls
            began = time.monotonic()
            connection.execute("UPDATE public.docferry_load SET order_status = 'pending'")
            return (time.monotonic() - began) * 1000, self.calls - calls

    @property
    def calls(self) -> int:
        """Invocations so far."""
        return 0 if self.gateway is None else self.gateway.calls

    def server_cpu(self) -> float:
        """CPU seconds of the server so far, all its processes; 0 where /proc does not tell."""
        lock = self.postgres.data_directory / "postmaster.pid"
        postmaster = int(lock.read_text(encoding="utf-8").splitlines()[0])
        ticks = 0
        for process in (postmaster, *children_of(postmaster)):
            with suppress(OSError):
                fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
                # utime and stime; those of children that have ended are the postmaster's cutime and cstime.
                ticks += sum(int(field) for field in fields[11 : 15 if process == postmaster else 13])
        return ticks / os.sysconf("SC_CLK_TCK")

    def mean_commit(self) -> float:
        """Milliseconds that a single commit takes; how slow the disk is says what the ratios mean."""
        with psycopg.connect(self.postgres.dsn(), autocommit=True) as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS public.tick (n int)")
            began = time.monotonic()
            for _ in range(50):
                connection.execute("INSERT INTO public.tick VALUES (1)")
            return (time.monotonic() - began) / 50 * 1000


def prepare(
    stack: ExitStack,
    configuration: Configuration,
    dynamodb: EmbeddedDynamoDB,
    arguments: argparse.Namespace,
    cpus: Cpus,
) -> Bench:
    """A server with the load's table, and docferry applied to it."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    settings = {
        "wal_level": configuration.wal_level,
        "fsync": "off" if arguments.no_fsync else "on",
        "full_page_writes": "on",
        "commit_delay": str(round(arguments.commit_ms * 1000)),
        "commit_siblings": "0",
        "shared_buffers": "256MB",
        "max_wal_size": "8GB",
        "checkpoint_timeout": "1h",
        "max_connections": "300",
    }
    cpus.to_source()
    postgres = stack.enter_context(EmbeddedPostgres(settings))
    options = dynamodb.client_options()
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("DOCFERRY_", "AWS_", "PG"))},
        "AWS_ACCESS_KEY_ID": options["aws_access_key_id"],
        "AWS_SECRET_ACCESS_KEY": options["aws_secret_access_key"],
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    (folder / "docferry.toml").write_text(
        f'[source]\ndsn = "{postgres.dsn()}"\n{configuration.source or ""}\n'
        f'[target]\nregion = "{options["region_name"]}"\nendpoint_url = "{options["endpoint_url"]}"\n'
        f'table_prefix = "{configuration.name}-"\n[[mirrors]]\ntable = "public.docferry_load"\n'
    )
    bench = Bench(configuration, postgres, folder, environment)
    # Creates the table, and warms everything up.
    bench.docferry("bench", "load", "--seconds", "2")
    if configuration.stand_in:
        cpus.to_others()
        bench.gateway = Accepting(arguments.invoke_ms / 1000)
        stack.callback(bench.gateway.close)
        bench.gateway.start()
        install_standin(postgres.dsn(), bench.gateway)
    if not bench.plain:
        bench.docferry("apply")
    return bench


class Accepting(LambdaGateway):
    """A gateway that accepts every event."""

    def __init__(self, seconds: float) -> None:
        super().__init__("http://127.0.0.1:1")
        self._seconds = seconds

    def _perform(self, fault: object, call: Call, connection: LambdaConnection) -> Answer:
        del fault, call, connection
        if self._seconds:
            time.sleep(self._seconds)
        return Answer(202)


@dataclass(frozen=True)
class Measured:
    """One configuration in one round. `per_second`: statements. `cpu`: the server's, microseconds a statement."""

    per_second: float
    cpu: float
    bulk_ms: float


def measure(benches: Sequence[Bench], arguments: argparse.Namespace, cpus: Cpus) -> dict[str, list[Measured]]:
    """Round by round."""
    found: dict[str, list[Measured]] = {bench.configuration.name: [] for bench in benches}
    for number in range(arguments.rounds):
        # The order turns round, so that none always has the freshest disk.
        for bench in benches if number % 2 == 0 else reversed(benches):
            with bench.mirrored(cpus, dynamodb=arguments.dynamodb):
                cpus.to_source()
                calls, cpu = bench.calls, bench.server_cpu()
                report = bench.load(arguments.mix, arguments.seconds, arguments.connections)
                calls, cpu = bench.calls - calls, bench.server_cpu() - cpu
                behind = bench.catch_up(cpus)
                bulk_ms, bulk_calls = bench.bulk(arguments.bulk) if arguments.bulk else (0.0, 0)
            total = report["total"]
            one = Measured(total["per_second"], 1e6 * cpu / total["done"], bulk_ms)
            found[bench.configuration.name].append(one)
            latency = f"p50 {total['p50']:.2f} ms, p99 {total['p99']:.2f} ms"
            lag = f"; {calls:,} calls" if bench.gateway else f", caught up {behind:.1f} s later"
            large = f"; bulk {bulk_ms:,.0f} ms" + (f", {bulk_calls:,} calls" if bench.gateway else "")
            name = f"{number + 1} {bench.configuration.name:12}"
            print(f"  {name}{one.per_second:>8,.0f}/s, {latency}, {one.cpu:.0f} us CPU{lag}{large}", flush=True)
    return found


def show(found: dict[str, list[Measured]]) -> None:
    """The medians, and what is kept of the same round's baseline."""
    budgets = {one.name: one.budget for one in CONFIGURATIONS}
    base = found[BASELINE]
    print(f"{'':12}{'per second':>12}{'kept':>8}{'from':>8}{'to':>8}{'budget':>8}{'CPU us':>8}{'bulk ms':>10}")
    for name, rounds in found.items():
        kept = sorted(one.per_second / of.per_second for one, of in zip(rounds, base, strict=True))
        ratios = "".join(f"{one:>8.1%}" for one in (statistics.median(kept), kept[0], kept[-1]))
        budget = budgets[name]
        rate, cpu, bulk = (
            statistics.median(values)
            for values in zip(*((one.per_second, one.cpu, one.bulk_ms) for one in rounds), strict=True)
        )
        print(f"{name:12}{rate:>12,.0f}{ratios}{'' if budget is None else f'{budget:.0%}':>8}{cpu:>8.0f}{bulk:>10,.0f}")
    print("the article kept 69% (triggers that call Lambda row by row, on Aurora)")


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--mix", type=int, nargs=4, default=[100, 20, 200, 20])
    parser.add_argument("--only", nargs="+", choices=[one.name for one in CONFIGURATIONS], default=None)
    parser.add_argument("--shared", action="store_true", help="all compete for all CPUs")
    parser.add_argument("--no-fsync", action="store_true", help="commits do not wait for the disk")
    parser.add_argument("--dynamodb", action="store_true", help="the embedded DynamoDB instead of memory")
    parser.add_argument("--commit-ms", type=float, default=2, help="what a commit waits besides this machine's disk")
    parser.add_argument("--invoke-ms", type=float, default=0, help="until Lambda accepts an event")
    parser.add_argument("--bulk", type=int, default=10_000, help="rows of one statement; 0 leaves that out")
    arguments = parser.parse_args()
    cpus = Cpus(shared=arguments.shared)
    wanted = [one for one in CONFIGURATIONS if arguments.only is None or one.name in (BASELINE, *arguments.only)]
    with ExitStack() as stack:
        cpus.to_others()
        dynamodb = stack.enter_context(EmbeddedDynamoDB())
        benches = [prepare(stack, one, dynamodb, arguments, cpus) for one in wanted]
        print(
            f"mix {arguments.mix}, {arguments.connections} connections, {arguments.seconds:.0f} s a run; "
            f"one commit alone takes {benches[0].mean_commit():.2f} ms; CPUs "
            + (f"{sorted(cpus.source)} source, {sorted(cpus.others)} docferry and target" if cpus.split else "shared"),
            flush=True,
        )
        found = measure(benches, arguments, cpus)
    show(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
