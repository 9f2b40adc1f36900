"""A minute of bad network at both ends at once, a target that throttles: the items equal the rows in the end."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from docferry.embedded.dynamodb import EmbeddedDynamoDB
from docferry.embedded.postgres import EmbeddedPostgres

from ..acceptance.comparison import Mirrored, assert_same
from ..acceptance.conftest import Ferry, WorkerProcess
from ..acceptance.workload import SCHEMA, Workload
from .dynamodb_proxy import Answer, DynamoDBProxy, Fault, Request
from .tcp_proxy import TcpProxy
from .test_cut_connections import through

SECONDS = float(os.environ.get("DOCFERRY_TEST_BAD_MINUTE", "60"))
THROTTLED = 0.3


@pytest.fixture(params=["replication", "outbox"])
def ferry(
    request: pytest.FixtureRequest, database: str, ministack: EmbeddedDynamoDB, tmp_path: Path
) -> Iterator[Ferry]:
    """Two thousand rows, to be populated beside the workload."""
    with closing(Ferry(database, ministack, tmp_path)) as made:
        made.source["capture"] = request.param
        made.execute(
            SCHEMA.format(table="orders"),
            "INSERT INTO orders (id, status, order_data)"
            " SELECT n, 'old', xmlelement(name o, xmlelement(name n, n)) FROM generate_series(1, 2000) n",
        )
        yield made


def test_both_ways_are_cut_delayed_and_reset(ferry: Ferry, postgres: EmbeddedPostgres) -> None:
    # The minute is for the default mode, a third of it for the other.
    seconds = SECONDS if ferry.source["capture"] == "replication" else SECONDS / 3
    seed = random.randrange(2**32)
    print(f"seed={seed}")  # noqa: T201 - shown by pytest when the test fails
    with TcpProxy(postgres.port) as source, TcpProxy(ferry.dynamodb.port) as target:
        ferry.write_config("public.orders")
        ferry.run("apply")
        ferry.write_config(
            "public.orders",
            source={"dsn": through(source, ferry.dsn)},
            target={"endpoint_url": f"http://127.0.0.1:{target.port}"},
        )

        def enough(_: object) -> bool:
            return min(source.cuts, target.cuts) >= seconds / 12 and source.swallowed + target.swallowed > 0

        worker = ferry.start_worker()
        with (
            source.faults(chance=0.005, every=1, seed=seed, delay=0.05),
            target.faults(chance=0.01, every=1, seed=seed + 1, delay=0.05),
        ):
            Workload(ferry.dsn, seconds=seconds, seed=seed, pause=0.02, enough=enough).run()
        for name, proxy in (("source", source), ("target", target)):
            print(f"{name}: {proxy.cuts} cuts, {proxy.swallowed} answers swallowed")  # noqa: T201 - the same
        assert enough(None)
        settled(ferry, worker)


def test_the_target_throttles_a_third_of_all_requests(ferry: Ferry) -> None:
    rng = random.Random(seed := random.randrange(2**32))
    print(f"seed={seed}")  # noqa: T201 - the same

    def throttle(_request: Request) -> Fault | None:
        code = rng.choice(["ThrottlingException", "ProvisionedThroughputExceededException"])
        return Answer(400, code) if rng.random() < THROTTLED else None

    ferry.write_config("public.orders")
    ferry.run("apply")
    with DynamoDBProxy(ferry.dynamodb.port, throttle) as proxy:
        ferry.write_config("public.orders", target={"endpoint_url": proxy.options["endpoint_url"]})
        worker = ferry.start_worker()
        Workload(ferry.dsn, seconds=SECONDS / 8, seed=seed).run()
        settled(ferry, worker)
        assert proxy.count("BatchExecuteStatement") > SECONDS / 2


def settled(ferry: Ferry, worker: WorkerProcess) -> None:
    done = ferry.run("wait", check=False)
    assert done.returncode == 0, f"{done.stderr}\n{worker.text}"
    assert_same(ferry.dsn, ferry.client(), Mirrored("orders", f"{ferry.prefix}orders"))
    assert ferry.json("deadletters", "list")["total"] == 0, "an outage makes no dead letters"
    assert worker.stop() == 0, worker.text
