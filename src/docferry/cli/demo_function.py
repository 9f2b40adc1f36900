"""Capture mode `lambda` in the demo: the function, really executed, carries the changes; no worker runs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, ClassVar, Final

from docferry.app import App
from docferry.aws.clients import Clients, saying
from docferry.aws.package import build
from docferry.aws.template import RUNTIME
from docferry.cli.demo_carrier import Carrier
from docferry.cli.demo_orders import TABLE
from docferry.cli.demo_servers import Servers
from docferry.embedded.aws_lambda import LambdaGateway, install_standin

__all__ = ["Function"]

_NAME: Final = "docferry"
_QUEUE: Final = "docferry-dead-letters"
_RULE: Final = "docferry-drain"
_DRAIN: Final = json.dumps({"docferry": "drain"})
_CONFIG: Final = """\

[source.lambda]
function = "{name}"
region = "{region}"

[dead_letters]
queue = "{queue}"
"""


class Function(Carrier):
    """Deployed with as much of the template of `docferry aws` as the show needs: the function, its failure destination
    and its schedule."""

    capture = "lambda"
    modules = (*Carrier.modules, "aws_lambda_powertools")
    services = ("dynamodb", "lambda", "sqs", "events", "logs")
    settings: ClassVar = {
        "LAMBDA_ACCOUNT_CONCURRENCY": "2",  # processes at once
        "LAMBDA_ASYNC_RETRY_BASE_SECONDS": "1",  # AWS waits a minute before the second attempt
    }
    road = f"trigger -> aws_lambda.invoke, at commit -> the function {_NAME} in Lambda -> DynamoDB; no worker runs"
    populating = "`docferry backfill` populates the collection."

    @contextmanager
    def reaching(self, servers: Servers) -> Iterator[None]:
        """See Carrier: the stand-in for the extension, and the queue."""
        self._servers = servers
        clients = Clients(servers.region, servers.endpoint_url, profile=None)
        with ExitStack() as stack:
            self._gateway = stack.enter_context(LambdaGateway(servers.endpoint_url, servers.region))
            install_standin(servers.dsn, self._gateway)
            self._lambda, self._sqs, self._events = (
                stack.enter_context(closing(clients(service))) for service in ("lambda", "sqs", "events")
            )
            with saying("the queue of dead letters cannot be created"):
                self._queue = self._sqs.create_queue(QueueName=_QUEUE)["QueueUrl"]
            yield

    @property
    def config(self) -> str:
        """See Carrier."""
        return _CONFIG.format(name=_NAME, region=self._servers.region, queue=self._queue)

    def deploy(self, config: str) -> None:
        """See Carrier."""
        self._payload.write_text(_DRAIN, encoding="utf-8")
        with saying(f"the function {_NAME} cannot be created"):
            attributes = self._sqs.get_queue_attributes(QueueUrl=self._queue, AttributeNames=["QueueArn"])
            arn = self._lambda.create_function(
                FunctionName=_NAME,
                Runtime=RUNTIME,
                Role="arn:aws:iam::000000000000:role/docferry",
                Handler="docferry.aws.handler.handler",
                Code={"ZipFile": build(dependencies=False).content},
                Timeout=60,
                Environment={
                    "Variables": {
                        "DOCFERRY_CONFIG_TEXT": config,
                        "DOCFERRY_SOURCE_DSN": self._servers.dsn,
                        "POWERTOOLS_LOG_LEVEL": "INFO",
                    }
                },
            )["FunctionArn"]
            self._lambda.put_function_event_invoke_config(
                FunctionName=_NAME,
                MaximumRetryAttempts=2,
                DestinationConfig={"OnFailure": {"Destination": attributes["Attributes"]["QueueArn"]}},
            )
            self._events.put_rule(Name=_RULE, ScheduleExpression="rate(1 minute)")
            self._events.put_targets(Rule=_RULE, Targets=[{"Id": _NAME, "Arn": arn, "Input": _DRAIN}])

    def work(self, app: App) -> None:
        """See Carrier: what `docferry backfill` does; then there is nothing left to do here."""
        app.backfill(TABLE, anew=False, on_progress=lambda _: None)

    @property
    def _payload(self) -> Path:
        return self._servers.config_path.with_name("drain.json")

    @property
    def _invocations(self) -> int:
        """Those that the triggers asked for and Lambda accepted."""
        return self._gateway.calls - self._gateway.failures

    def account(self) -> str:
        """See Carrier."""
        count = self._invocations
        return f"{count} invocations of the function {_NAME} carried the changes; the first had to start it."

    def document(self) -> dict[str, Any]:
        """See Carrier."""
        return {"function": {"name": _NAME, "invocations": self._invocations, "command": self._log}}

    @property
    def _log(self) -> str:
        """The command that shows the function's log."""
        group = ("--log-group-name", f"/aws/lambda/{_NAME}")
        return self._servers.aws("logs", "filter-log-events", *group, "--query", "events[].message", "--output", "text")

    def more_commands(self) -> Sequence[tuple[str, Sequence[str]]]:
        """See Carrier."""
        aws, docferry, name = self._servers.aws, self._servers.docferry, ("--function-name", _NAME)
        # In a file, because versions of the AWS CLI differ in how they read a payload from the command line.
        drain = ("--payload", f"fileb://{self._payload}", "/dev/stdout")
        return (
            ("See what the function logged with:", [self._log]),
            (
                "Break the way to the function, in psql: changes wait in docferry.outbox. Then mend it:",
                [
                    "ALTER SCHEMA aws_lambda RENAME TO broken;",
                    "UPDATE orders SET order_status = 'waiting' WHERE id = 9;",
                    "SELECT position, op, table_name, new_row FROM docferry.outbox;",
                    "ALTER SCHEMA broken RENAME TO aws_lambda;",
                ],
            ),
            (
                "The function's schedule carries over what waits there, every minute; or at once:",
                [aws("lambda", "invoke", *name, *drain)],
            ),
            (
                "Break the function: changes end in the queue of dead letters. Then mend it and replay them:",
                [
                    aws("lambda", "put-function-concurrency", *name, "--reserved-concurrent-executions", "0"),
                    docferry("deadletters", "list"),
                    aws("lambda", "delete-function-concurrency", *name),
                    docferry("deadletters", "replay"),
                ],
            ),
        )
