"""One collection takes nothing, the one beside it everything: readiness names the first, and the second goes on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from docferry.embedded.dynamodb import EmbeddedDynamoDB

from ..acceptance.conftest import Ferry
from ..acceptance.test_health import LISTEN, Probe, attention
from .dynamodb_proxy import Answer, DynamoDBProxy, Fault, Request

_WRITES = ("BatchExecuteStatement", "BatchWriteItem", "PutItem", "UpdateItem")


@pytest.fixture
def ferry(database: str, ministack: EmbeddedDynamoDB, tmp_path: Path) -> Iterator[Ferry]:
    with closing(Ferry(database, ministack, tmp_path)) as made:
        yield made


def _holds(ferry: Ferry, collection: str, items: int) -> bool:
    return len(ferry.items(collection)) == items


def test_readiness_names_it_and_the_other_goes_on(ferry: Ferry, proxy: DynamoDBProxy) -> None:
    ferry.execute("CREATE TABLE stuck (id int PRIMARY KEY, n int)", "CREATE TABLE well (id int PRIMARY KEY, n int)")
    path = ferry.write_config("public.stuck", "public.well", target={"endpoint_url": proxy.options["endpoint_url"]})
    path.write_text(path.read_text() + '[health]\nstuck_after = "1s"\n')
    ferry.run("apply")
    probe = Probe(ferry.start_worker(*LISTEN))
    ferry.run("wait")
    ferry.eventually(lambda: not probe.wrong(), what="readiness")

    collection = f"{ferry.prefix}stuck"

    def refuse(request: Request) -> Fault | None:
        refused = request.operation in _WRITES and collection.encode() in request.raw
        return Answer(400, "ProvisionedThroughputExceededException") if refused else None

    proxy.script = refuse
    ferry.execute("INSERT INTO stuck VALUES (1, 1)")
    ferry.eventually(lambda: "target" in probe.wrong(), what="a collection that takes nothing")
    for there in range(1, 6):
        ferry.execute(f"INSERT INTO well VALUES ({there}, {there})")
        ferry.eventually(partial(_holds, ferry, "well", there), what="the other's item")
        why = probe.wrong()["target"]
        assert f"nothing has become durable in {collection} for " in why
        assert "ProvisionedThroughputExceededException" in why
    assert probe.live()
    assert not ferry.items("stuck")
    ferry.eventually(lambda: f"nothing has become durable in {collection}" in attention(ferry))
    found = probe.metrics()
    assert found["docferry_retries_total", "public.stuck"] > 0
    assert ("docferry_retries_total", "public.well") not in found

    proxy.script = lambda _: None
    ferry.run("wait")
    ferry.eventually(lambda: not probe.wrong(), what="readiness")
    assert len(ferry.items("stuck")) == 1
