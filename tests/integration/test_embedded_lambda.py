"""Lambda functions that the embedded AWS runs: what they see, what becomes of many at once, and how they end."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import boto3
import pytest

from docferry.embedded.dynamodb import EmbeddedDynamoDB

from ..waiting import until

SERVICES = ("dynamodb", "lambda", "iam", "sts", "logs")

FUNCTION = """
import os, pathlib, time
import boto3, docferry, psycopg
def handler(event, context):
    print("here")
    if "file" in event:
        pathlib.Path(event["file"]).write_text(str(os.getpid()))
    time.sleep(event.get("seconds", 0))
    return [os.environ["AWS_ENDPOINT_URL"], os.environ.get("MINE"), docferry.__file__]
"""


def function(server: EmbeddedDynamoDB) -> Any:
    """A client of Lambda in which the function `ferry` exists."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("ferry.py", FUNCTION)
    client: Any = boto3.client("lambda", **server.client_options())  # type: ignore[call-overload]
    client.create_function(
        FunctionName="ferry",
        Runtime="python3.12",
        Role="arn:aws:iam::000000000000:role/ferry",
        Handler="ferry.handler",
        Code={"ZipFile": archive.getvalue()},
        Timeout=900,
        Environment={"Variables": {"MINE": "yes"}},
    )
    return client


def send(client: Any, **event: object) -> None:
    client.invoke(FunctionName="ferry", InvocationType="Event", Payload=json.dumps(event))


def test_a_function_sees_this_environments_packages_and_this_server() -> None:
    with EmbeddedDynamoDB(services=SERVICES) as server:
        answer = function(server).invoke(FunctionName="ferry", Payload=b"{}")
        address, mine, package = json.loads(answer["Payload"].read())
    assert (address, mine) == (server.endpoint_url, "yes")
    assert package.endswith("docferry/__init__.py")


def test_events_wait_for_a_free_execution(tmp_path: Path) -> None:
    with EmbeddedDynamoDB(services=SERVICES, settings={"LAMBDA_ACCOUNT_CONCURRENCY": "2"}) as server:
        client = function(server)
        client.put_function_event_invoke_config(FunctionName="ferry", MaximumRetryAttempts=0)
        for number in range(8):
            send(client, file=str(tmp_path / str(number)), seconds=0.2)
        until(lambda: len(list(tmp_path.iterdir())) == 8, "all eight have run")
        processes = {file.read_text() for file in tmp_path.iterdir()}
    assert len(processes) <= 2


@pytest.mark.parametrize("way", ["stop", "kill", "close"])
def test_a_function_ends_with_the_server_in_the_middle_of_its_work(tmp_path: Path, way: str) -> None:
    mark = tmp_path / "mark"
    with EmbeddedDynamoDB(services=SERVICES) as server:
        send(function(server), file=str(mark), seconds=600)
        until(lambda: mark.exists() and mark.read_text() != "", "it runs")
        getattr(server, way)()
        until(lambda: ended(int(mark.read_text())), "it has ended")


def ended(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status")
    return not status.exists() or "State:\tZ" in status.read_text()
