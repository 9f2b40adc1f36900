"""What `docferry aws` works on and how it shows it: the configuration, the stack's events, the outcome."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.text import Text

from docferry.app import App
from docferry.aws.blueprint import blueprint
from docferry.aws.clients import Clients
from docferry.aws.deploy import Deployed
from docferry.aws.keys import settle_keys
from docferry.aws.remote import bootstrap
from docferry.aws.stack import StackEvent
from docferry.aws.template import template
from docferry.cli.session import Session
from docferry.config import Config, parse
from docferry.errors import SourceUnavailable, TargetUnavailable
from docferry.printable import one_line
from docferry.source.session import connect

__all__ = ["Source", "apply", "event_printer", "explaining_interruption", "report"]


@dataclass(frozen=True)
class Source:
    """The configuration and its text. `named`: whether it says where the database is."""

    config: Config
    text: str
    named: bool

    @classmethod
    def read(cls, session: Session) -> Source:
        path = Path(session.config_path)
        try:
            text = path.read_text(encoding="utf-8")
            source = tomllib.loads(text).get("source", {})
        except (OSError, ValueError):
            session.load_config()  # which says what is wrong
            raise
        # It may say nothing of a database yet: the cluster may be what is to be made.
        named = any(os.environ.get(name) for name in ("DOCFERRY_SOURCE_DSN", "DOCFERRY_SOURCE_SECRET")) or (
            isinstance(source, dict) and bool(source.keys() & {"dsn", "secret"})
        )
        return cls(parse(text, path, needs_source=named), text, named)

    def template(self, keys: tuple[str, ...]) -> str:
        return template(blueprint(self.config, self.text, settle_keys(self.config, keys, reachable=self.named)))


def apply(session: Session, source: Source, done: Deployed, clients: Clients) -> list[str] | None:
    """The steps of `apply`, here or on the host; None when the database cannot be reached from here, and the host has
    run it at its creation or cannot be asked."""
    config = source.config
    if not source.named:
        config = replace(config, source=replace(config.source, dsn=None, secret=done.outputs["DatabaseSecretArn"]))
    config = replace(config, target=replace(config.target, region=done.region))
    try:
        with App(config) as app:
            connect(app.dsn, purpose="deploy").close()
            return list(app.admin(session.note).apply())
    except SourceUnavailable as error:
        session.note(f"`apply` is not run here: the database cannot be reached from here ({error})")
    host = done.outputs.get("HostInstanceId")
    if host is None or done.action == "created":
        return None
    session.note(f"The host {host} runs `docferry-bootstrap`.")
    try:
        steps = bootstrap(clients, host)
    except TargetUnavailable as error:
        session.note(str(error))
        return None
    for step in steps:
        session.note(f"  - {one_line(step)}")
    return steps


def report(done: Deployed, applied: list[str] | None, *, asked: bool) -> Iterator[str]:
    if done.action == "unchanged" and not done.steps and not applied:
        yield f"Nothing to do: stack {done.stack} in {done.region} is as it should be."
    else:
        yield f"Stack {done.stack} in {done.region}: {done.action}."
    width = max((len(name) for name in done.outputs), default=0)
    for name, value in done.outputs.items():
        yield f"  {name:<{width}}  {value}"
    if applied is None and asked:
        host = done.outputs.get("HostInstanceId")
        if host is None:
            yield "Next: `docferry apply`, from where the database can be reached."
        elif done.action == "created":
            yield "The host has run `apply`."
        else:
            yield f"Next: `sudo docferry-bootstrap` on the host (`aws ssm start-session --target {host}`)."


def event_printer() -> Callable[[StackEvent], None]:
    console = Console(stderr=True, highlight=False, soft_wrap=True)

    def show(event: StackEvent) -> None:
        style = (
            "red" if event.failed or "ROLLBACK" in event.status else "green" if "COMPLETE" in event.status else "dim"
        )
        reason = f"  {event.reason}" if event.reason else ""
        line = Text(f"{event.at:%H:%M:%S} {event.status:<20} {event.resource} ({event.type}){reason}", style=style)
        console.print(line)

    return show


@contextmanager
def explaining_interruption(session: Session, stack: str, region: str) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        session.note(
            f"\nThe stack's operation goes on without us; look at it with "
            f"`aws cloudformation describe-stack-events --stack-name {stack} --region {region}`."
        )
        raise
