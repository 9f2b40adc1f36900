"""A DynamoDB that misbehaves on demand, with a queue service beside it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from docferry.embedded.dynamodb import EmbeddedDynamoDB

from .dynamodb_proxy import DynamoDBProxy


@pytest.fixture(scope="session")
def ministack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedDynamoDB]:
    with EmbeddedDynamoDB(tmp_path_factory.mktemp("ministack"), services=("dynamodb", "sqs")) as server:
        yield server


@pytest.fixture
def proxy(ministack: EmbeddedDynamoDB) -> Iterator[DynamoDBProxy]:
    with DynamoDBProxy(ministack.port) as between:
        yield between
