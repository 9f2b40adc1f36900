"""The targets that the contract is held against."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest

from docferry.document.model import Collection, KeyAttribute, KeyKind
from docferry.embedded.dynamodb import EmbeddedDynamoDB
from docferry.retry import Retry
from docferry.target.contract import Item, Target
from docferry.target.dynamodb import DynamoDBTarget
from docferry.target.floors_shared import control_collection
from docferry.target.memory import MemoryStore, MemoryTarget

from ..waiting import PATIENCE

LOCAL = "DOCFERRY_TEST_DYNAMODB_LOCAL"

MakeTarget = Callable[[], Target]
"""Each call gives another object for the same store, as another process would have."""


@dataclass
class Place:
    """One store. `target` gives another object for it, as another process would have; `put_foreign` an item with the
    key `id` that docferry did not write."""

    target: Callable[[Collection | None], Target]
    put_foreign: Callable[[Collection, int], None]


@pytest.fixture(scope="session")
def ministack_options(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with EmbeddedDynamoDB(tmp_path_factory.mktemp("ministack")) as server:
        yield server.client_options()


@pytest.fixture(scope="session")
def dynamodb_local_options() -> Iterator[dict[str, str]]:
    """Amazon's own DynamoDB Local: set DOCFERRY_TEST_DYNAMODB_LOCAL to the directory of its jar."""
    directory, java = os.environ.get(LOCAL), shutil.which("java")
    if not directory or java is None:
        pytest.skip(f"DynamoDB Local needs java and {LOCAL}, the directory of DynamoDBLocal.jar")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    home = Path(directory)
    command = [java, "-Xmx400m", "-Djava.library.path=DynamoDBLocal_lib", "-jar", "DynamoDBLocal.jar"]
    with subprocess.Popen(
        [*command, "-inMemory", "-port", str(port)], cwd=home, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            _wait_for(port, process)
            yield {
                "endpoint_url": f"http://127.0.0.1:{port}",
                "region_name": "us-east-1",
                "aws_access_key_id": "test",
                "aws_secret_access_key": "test",
            }
        finally:
            process.kill()


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    pytest.fail("DynamoDB Local did not start")


@pytest.fixture(params=["memory", "ministack", "dynamodb-local"])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    if request.param == "memory":
        yield _memory()
        return
    options = request.getfixturevalue(f"{request.param.replace('-', '_')}_options")
    made: list[DynamoDBTarget] = []

    def make(control: Collection | None) -> Target:
        made.append(DynamoDBTarget(options, Retry(first=0.005, longest=0.1), control=control))
        return made[-1]

    yield Place(make, lambda collection, number: _put_foreign(options, collection, number))
    for target in made:
        target.close()


def _memory() -> Place:
    store = MemoryStore()

    def put_foreign(collection: Collection, number: int) -> None:
        store.collections[collection.name].items[(number,)] = Item((number,), -1, {"id": number})

    return Place(lambda control: MemoryTarget(store, control=control), put_foreign)


def _put_foreign(options: dict[str, Any], collection: Collection, number: int) -> None:
    client = boto3.client("dynamodb", **options)
    client.put_item(TableName=collection.name, Item={"id": {"N": str(number)}})
    client.close()


@pytest.fixture
def make_target(place: Place) -> MakeTarget:
    return lambda: place.target(None)


@pytest.fixture
def target(make_target: MakeTarget) -> Target:
    return make_target()


_numbers = iter(range(1_000_000))


def new_name() -> str:
    """A collection name that no other test has."""
    return f"items-{os.getpid()}-{next(_numbers)}"


@pytest.fixture
def orders(target: Target) -> Iterator[Collection]:
    """An empty collection with a number as its key."""
    collection = Collection(new_name(), (KeyAttribute("id", KeyKind.NUMBER),))
    assert target.create(collection)
    yield collection
    target.drop(collection)


@pytest.fixture
def control(target: Target) -> Iterator[Collection]:
    """A control collection."""
    collection = control_collection(new_name())
    assert target.create(collection)
    yield collection
    target.drop(collection)


@pytest.fixture
def make_process(place: Place, control: Collection) -> MakeTarget:
    """Like make_target; what it gives shares floors."""
    return lambda: place.target(control)
