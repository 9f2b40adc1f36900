"""Who carries the demo's changes: a worker. demo_function.py has the other one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

from docferry.cli.demo_servers import Servers
from docferry.worker_app import WorkerApp

__all__ = ["Carrier", "WorkerFromLog", "WorkerFromOutbox"]


class Carrier:
    """A worker: what `docferry run` is, as a thread of this process.

    `modules`: what has to be installed. `services`, `settings`: of EmbeddedDynamoDB. `road`: how a change comes to the
    target. `populating`: who writes the first items.
    """

    capture: ClassVar[str]
    modules: ClassVar[Sequence[str]] = ("boto3", "ministack", "pg0")
    services: ClassVar[Sequence[str]] = ("dynamodb",)
    settings: ClassVar[Mapping[str, str]] = {}
    road: ClassVar[str]
    populating: ClassVar[str] = "The worker populates the collection."

    @contextmanager
    def reaching(self, servers: Servers) -> Iterator[None]:  # noqa: ARG002 - others need them
        """While inside, what lies between the two servers is there."""
        yield

    @property
    def config(self) -> str:
        """What the configuration says besides the two ends and the mirror."""
        return ""

    def deploy(self, config: str) -> None:
        """Put in place, before `apply`, what works with this configuration."""

    def work(self, app: WorkerApp) -> None:
        """What runs in the background, until `app.stopping` is set or nothing is left to do."""
        app.worker().run()

    def account(self) -> str:
        """What it did, in a line; empty when that goes without saying."""
        return ""

    def document(self) -> dict[str, Any]:
        """What --json says of it."""
        return {}

    def more_commands(self) -> Sequence[tuple[str, Sequence[str]]]:
        """What else can be tried: headings with lines below."""
        return ()


class WorkerFromLog(Carrier):
    """Capture mode `replication`."""

    capture = "replication"
    road = "write-ahead log -> the worker (`docferry run`) -> DynamoDB"


class WorkerFromOutbox(Carrier):
    """Capture mode `outbox`."""

    capture = "outbox"
    road = "trigger -> docferry.outbox, in the same transaction -> the worker (`docferry run`) -> DynamoDB"
