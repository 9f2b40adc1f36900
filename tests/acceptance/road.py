"""The serverless road for tests: triggers, the stand-in of `aws_lambda`, a function in the emulator, dead letters."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from docferry.aws.blueprint import config_for_function
from docferry.aws.package import build
from docferry.embedded.aws_lambda import LambdaGateway, install_standin

from ..waiting import PATIENCE
from .comparison import Mirrored, assert_same, differences
from .conftest import Ferry

LOGGED = {"POWERTOOLS_LOG_LEVEL": "INFO"}
"""The function's environment, so that its log says what became of each change."""

_ROLE = "arn:aws:iam::000000000000:role/docferry"
# Two looks in a row have to agree, so that what still is on its way has a chance to spoil it.
_LOOKS = 2
_BETWEEN_LOOKS = 0.7


class Road:
    """From `ferry`'s database, over `gateway`, to a function, which is made by `create` or was deployed. Use as a
    context manager; the stand-in is in the database from the start."""

    def __init__(self, ferry: Ferry, name: str | None = None) -> None:
        self.ferry = ferry
        self.name = name or f"docferry-{uuid.uuid4().hex[:10]}"
        self.gateway = LambdaGateway(ferry.dynamodb.endpoint_url, ferry.dynamodb.region)
        self.queue = ""
        self._clients: dict[str, Any] = {}
        self._created = False

    def __enter__(self) -> Self:
        self.gateway.start()
        install_standin(self.ferry.dsn, self.gateway)
        return self

    def __exit__(self, *_: object) -> None:
        self.gateway.close()
        if self._created:
            self.client("lambda").delete_function(FunctionName=self.name)
            self.client("sqs").delete_queue(QueueUrl=self.queue)
        for client in self._clients.values():
            client.close()

    def client(self, service: str) -> Any:
        """A boto3 client of the emulator."""
        if service not in self._clients:
            patient = Config(read_timeout=120, retries={"max_attempts": 1})
            options = self.ferry.dynamodb.client_options()
            self._clients[service] = boto3.client(service, config=patient, **options)  # type: ignore[call-overload]
        return self._clients[service]

    # -- the function -------------------------------------------------------------------------------------------------

    def create(self, *, attempts: int = 2) -> None:
        """Create the function, as the template does, for the docferry.toml that was written; and its queue."""
        sqs, functions = self.client("sqs"), self.client("lambda")
        self.queue = sqs.create_queue(QueueName=f"{self.name}-dead")["QueueUrl"]
        arn = sqs.get_queue_attributes(QueueUrl=self.queue, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
        text = (self.ferry.directory / "docferry.toml").read_text()
        functions.create_function(
            FunctionName=self.name,
            Runtime="python3.12",
            Role=_ROLE,
            Handler="docferry.aws.handler.handler",
            Code={"ZipFile": build(dependencies=False).content},
            Timeout=60,
            Environment={
                "Variables": {
                    **LOGGED,
                    "DOCFERRY_CONFIG_TEXT": config_for_function(text),
                    "DOCFERRY_SOURCE_DSN": self.ferry.source["dsn"],
                    "DOCFERRY_DEAD_LETTERS_QUEUE": self.queue,
                    "DOCFERRY_TARGET_REGION": self.ferry.dynamodb.region,
                }
            },
        )
        self._created = True
        functions.put_function_event_invoke_config(
            FunctionName=self.name,
            MaximumRetryAttempts=attempts,
            DestinationConfig={"OnFailure": {"Destination": arn}},
        )

    def configure(self, **variables: str) -> dict[str, str]:
        """Set variables of the function's environment; returns those that it had."""
        functions = self.client("lambda")
        before = functions.get_function_configuration(FunctionName=self.name)["Environment"]["Variables"]
        functions.update_function_configuration(
            FunctionName=self.name, Environment={"Variables": {**before, **variables}}
        )
        return dict(before)

    @contextmanager
    def broken(self) -> Iterator[None]:
        """While inside, the function cannot read its configuration."""
        before = self.configure(DOCFERRY_CONFIG_TEXT="[source")
        yield
        self.configure(**before)

    @contextmanager
    def exhausted(self) -> Iterator[None]:
        """While inside, no execution is free."""
        functions = self.client("lambda")
        functions.put_function_concurrency(FunctionName=self.name, ReservedConcurrentExecutions=0)
        yield
        functions.delete_function_concurrency(FunctionName=self.name)

    def drain(self) -> dict[str, Any]:
        """Invoke the function as the schedule does."""
        return self.invoke({"docferry": "drain"})

    def invoke(self, event: Mapping[str, Any], *, attempts: int = 1) -> dict[str, Any]:
        """Invoke the function, so many times at most until it does not fail, and wait for its answer; each time once an
        execution is free."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                done = self.client("lambda").invoke(FunctionName=self.name, Payload=json.dumps(event).encode())
            except ClientError as error:
                if error.response["Error"]["Code"] != "TooManyRequestsException" or time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
                continue
            answer: dict[str, Any] = json.loads(done["Payload"].read())
            attempts -= 1
            if "FunctionError" not in done:
                return answer
            assert attempts, f"{answer}\n{self.log()}"

    def log(self) -> str:
        """What the function logged."""
        try:
            pages = self.client("logs").get_paginator("filter_log_events")
            events = [one for page in pages.paginate(logGroupName=f"/aws/lambda/{self.name}") for one in page["events"]]
        except ClientError as error:
            return str(error)
        return "".join(one["message"].rstrip() + "\n" for one in events)

    def outcomes(self, table: str) -> list[tuple[int, str]]:
        """What the function logged of changes, as (id, outcome), in the order of its log."""
        lines = [json.loads(line) for line in self.log().splitlines() if line.startswith("{")]
        return [
            (int(line["key"]["id"]), line["outcome"])
            for line in lines
            if line.get("message") == "change" and line.get("table") == table and line["key"]
        ]

    @property
    def variables(self) -> dict[str, Any]:
        """The environment of a command that is to know of the queue."""
        return {"DOCFERRY_DEAD_LETTERS_QUEUE": self.queue}

    def take_events(self) -> list[dict[str, Any]]:
        """The events of the dead letters, oldest first; they are dead letters no more."""
        sqs, found = self.client("sqs"), []
        while messages := sqs.receive_message(QueueUrl=self.queue, MaxNumberOfMessages=10).get("Messages"):
            for message in messages:
                found.append(json.loads(message["Body"])["requestPayload"])
                sqs.delete_message(QueueUrl=self.queue, ReceiptHandle=message["ReceiptHandle"])
        return sorted(found, key=lambda event: str(event["at"]))

    # -- what is on its way -------------------------------------------------------------------------------------------

    def waiting(self) -> int:
        """Changes in the outbox."""
        ((count,),) = self.ferry.query("SELECT count(*) FROM docferry.outbox")
        return int(count)

    def dead(self) -> int:
        """Messages in the queue, those that somebody holds included."""
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        found = self.client("sqs").get_queue_attributes(QueueUrl=self.queue, AttributeNames=names)["Attributes"]
        return sum(int(found[name]) for name in names)

    def settle(self, *mirrors: Mirrored, within: float = 90.0, healing: bool = False) -> None:
        """Drain as the schedule would until the outbox is empty and the items equal the rows, and stay so: what Lambda
        still holds shows in nothing else. With `healing`, dead letters are replayed."""
        deadline = time.monotonic() + within
        looks = 0
        while looks < _LOOKS:
            if self.waiting():
                self.drain()
            if healing and self.dead():
                self.ferry.run("deadletters", "replay", "--yes", check=False, **self.variables)
            found = [one for mirror in mirrors for one in differences(self.ferry.dsn, self.ferry.client(), mirror)]
            left = self.waiting() + (self.dead() if healing else 0)
            looks = 0 if found or left else looks + 1
            if time.monotonic() > deadline:
                self._give_up(mirrors)
            time.sleep(_BETWEEN_LOOKS)

    def _give_up(self, mirrors: Sequence[Mirrored]) -> None:
        found = f"{self.waiting()} changes in the outbox, {self.dead()} dead letters"
        try:
            assert_same(self.ferry.dsn, self.ferry.client(), *mirrors)
        except AssertionError as error:
            found += f"; {error}"
        pytest.fail(f"{found}\nThe function's log:\n{self.log()[-6000:]}", pytrace=False)
