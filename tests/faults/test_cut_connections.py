"""Connections that are cut at any moment, answers that get lost: the items equal the rows in the end."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import pytest

from docferry.embedded.dynamodb import EmbeddedDynamoDB
from docferry.embedded.postgres import EmbeddedPostgres

from ..acceptance.comparison import Mirrored, assert_same
from ..acceptance.conftest import IMMEDIATE, Ferry
from ..acceptance.workload import SCHEMA, Workload
from .tcp_proxy import TcpProxy

SECONDS = 8.0


@pytest.fixture
def ferry(database: str, ministack: EmbeddedDynamoDB, tmp_path: Path) -> Iterator[Ferry]:
    """Two thousand rows, to be populated beside the workload."""
    with closing(Ferry(database, ministack, tmp_path)) as made:
        made.execute(
            SCHEMA.format(table="orders"),
            "INSERT INTO orders (id, status, order_data)"
            " SELECT n, 'old', xmlelement(name o, xmlelement(name n, n)) FROM generate_series(1, 2000) n",
        )
        yield made


def test_the_way_to_the_source_is_cut(ferry: Ferry, postgres: EmbeddedPostgres) -> None:
    with TcpProxy(postgres.port) as proxy:
        ferry.write_config("public.orders", source={"dsn": through(proxy, ferry.dsn)})
        work_amid_faults(ferry, proxy, chance=0.01)


def test_the_way_to_the_target_is_cut(ferry: Ferry, ministack: EmbeddedDynamoDB) -> None:
    with TcpProxy(ministack.port) as proxy:
        ferry.write_config("public.orders", target={"endpoint_url": f"http://127.0.0.1:{proxy.port}"})
        work_amid_faults(ferry, proxy, chance=0.03)


def test_a_source_can_be_stopped_while_the_target_is_away(
    postgres_server: EmbeddedPostgres, ministack: EmbeddedDynamoDB, tmp_path: Path
) -> None:
    """A server that shuts down waits for the receivers of its slots."""
    with closing(Ferry(postgres_server.dsn(), ministack, tmp_path)) as ferry:
        ferry.execute(SCHEMA.format(table="orders"))
        with TcpProxy(ministack.port) as proxy:
            ferry.write_config("public.orders", target={"endpoint_url": f"http://127.0.0.1:{proxy.port}"})
            ferry.run("apply")
            worker = ferry.start_worker()
            ferry.run("wait")
        Workload(ferry.dsn, seconds=1).run()
        worker.wait_for("DynamoDB does not take it")

        postgres_server.stop("fast")
        assert IMMEDIATE not in postgres_server.log_tail(200), worker.text


def through(proxy: TcpProxy, dsn: str) -> str:
    parts = urlsplit(dsn)
    return urlunsplit(parts._replace(netloc=f"postgres@127.0.0.1:{proxy.port}"))


def work_amid_faults(ferry: Ferry, proxy: TcpProxy, *, chance: float) -> None:
    seed = random.randrange(2**32)
    print(f"cuts: seed={seed}")  # noqa: T201 - shown by pytest when the test fails
    ferry.run("apply")
    worker = ferry.start_worker()

    def enough(_: object) -> bool:
        return min(proxy.cuts, proxy.swallowed) >= 5

    with proxy.faults(chance=chance, every=0.3, seed=seed):
        Workload(ferry.dsn, seconds=SECONDS, seed=seed, enough=enough).run()
    print(f"cuts: {proxy.cuts}, answers swallowed: {proxy.swallowed}")  # noqa: T201 - the same

    done = ferry.run("wait", check=False)
    assert done.returncode == 0, f"{done.stderr}\n{worker.text}"
    assert_same(ferry.dsn, ferry.client(), Mirrored("orders", f"{ferry.prefix}orders"))
    assert ferry.json("deadletters", "list")["total"] == 0, "an outage makes no dead letters"
    assert enough(None), f"{proxy.cuts} cuts, {proxy.swallowed} answers swallowed"
    assert worker.stop() == 0, worker.text
