"""`docferry demo`: the article's three statements, from a PostgreSQL to a DynamoDB, on this machine alone."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import click

from docferry.cli.frame import ExitCode, Session, define

if TYPE_CHECKING:
    from docferry.cli.demo_carrier import Carrier
    from docferry.cli.demo_check import Both, Ends
    from docferry.cli.demo_process import Signals
    from docferry.cli.demo_show import Screen
    from docferry.cli.demo_stage import Stage

__all__ = ["command"]

_PATIENCE: Final = 60.0


@dataclass(frozen=True, slots=True)
class Step:
    """One step as --json shows it. `seconds`: from the commit's return until the items were as the rows, None if they
    never were. `different`: the ids that were not."""

    step: str
    statement: str | None
    affected: int
    rows: int
    items: int
    tombstones: int
    seconds: float | None
    identical: bool
    different: list[int]


@define("demo", config=False)
@click.option("--once", is_flag=True, help="End after the three statements instead of mirroring on.")
@click.option(
    "--capture",
    type=click.Choice(["replication", "outbox", "lambda"]),
    default="replication",
    help="How changes are captured, and so who carries them.",
)
def command(session: Session, once: bool, capture: str) -> int:
    """Show docferry at work, on this machine alone.

    Starts a PostgreSQL and a DynamoDB of its own on free ports, creates a table of orders with an XML column, mirrors
    it, and runs an UPDATE, a DELETE and an INSERT, with rows and items side by side after each. Then it mirrors on, for
    you to try, until Ctrl-C; all of it goes when it ends. Nothing of your AWS configuration is read. The exit code is 0
    only if rows and items were the same.
    """
    # Loaded late: these need the extra.
    from docferry.cli.demo_carrier import WorkerFromLog, WorkerFromOutbox
    from docferry.cli.demo_function import Function
    from docferry.cli.demo_process import Signals, quiet
    from docferry.cli.demo_show import Screen
    from docferry.cli.demo_stage import require

    carrier = next(one for one in (WorkerFromLog(), WorkerFromOutbox(), Function()) if one.capture == capture)
    require(carrier.modules)
    screen, signals = Screen(as_json=session.json), Signals()
    with signals.noted(), quiet(verbose=session.verbose):
        return _play(session, screen, carrier, signals, once=once)


def _play(session: Session, screen: Screen, carrier: Carrier, signals: Signals, *, once: bool) -> int:
    from docferry.cli.demo_check import Ends
    from docferry.cli.demo_stage import raise_stage

    began = time.monotonic()
    screen.say("Starting a PostgreSQL and a DynamoDB of our own ...")
    with raise_stage(carrier, signals) as stage, closing(Ends(stage.servers.dsn, stage.servers.client_options)) as ends:
        up = f"{stage.servers.dsn} and {stage.servers.endpoint_url}"
        screen.say(f"Both are up after {time.monotonic() - began:.1f} s: {up}")
        screen.say(f"Changes go: {carrier.road}")
        stage.fill(ends)
        with stage.mirrored():
            steps = _steps(screen, stage, ends)
            identical = all(step.identical for step in steps)
            document = _document(stage, ends, steps, identical=identical, mirroring_on=not once)
            screen.say(f"\n{account}" if (account := carrier.account()) else "")
            verdict = f"Rows and items are {'the same' if identical else 'NOT the same'} after every statement."
            session.answer(document, verdict)
            if not once:
                _mirror_on(screen, stage, signals)
    screen.say("Both servers and all they held are gone.")
    return ExitCode.DONE if identical else ExitCode.DIFFERENT


def _steps(screen: Screen, stage: Stage, ends: Ends) -> list[Step]:
    from docferry.cli.demo_orders import STATEMENTS

    began = time.monotonic()
    screen.say(f"\nThe table is there, with its orders. {stage.carrier.populating}", "bold")
    now, seconds = _settled(stage, ends, began)
    screen.show(now, None)
    steps = [_step("backfill", None, len(now.rows), now, seconds)]
    screen.say(_took("The collection was populated", seconds))
    for statement in STATEMENTS:
        stage.check()
        screen.say(f"\n{statement}", "bold")
        affected = ends.connection.execute(statement.encode()).rowcount
        before = now
        now, seconds = _settled(stage, ends, time.monotonic())
        screen.show(now, before)
        steps.append(_step(statement.partition(" ")[0].lower(), statement, affected, now, seconds))
        screen.say(_took(f"{affected} row{'s' * (affected != 1)} committed, items the same", seconds))
    return steps


def _settled(stage: Stage, ends: Ends, began: float) -> tuple[Both, float | None]:
    """Both ends as soon as they agree, with the seconds since `began`; or as they are when patience has run out."""
    from docferry.cli.demo_check import expected_item

    rows = ends.rows()
    expected = {one: expected_item(row) for one, row in rows.items()}
    while True:
        stage.check()
        now = ends.look(rows, expected)
        waited = time.monotonic() - began
        if not now.different:
            return now, waited
        if waited > _PATIENCE:
            return now, None


def _step(name: str, statement: str | None, affected: int, now: Both, seconds: float | None) -> Step:
    return Step(
        name,
        statement,
        affected,
        len(now.rows),
        len(now.items),
        len(now.tombstones),
        None if seconds is None else round(seconds, 4),
        not now.different,
        now.different,
    )


def _took(what: str, seconds: float | None) -> str:
    if seconds is None:
        return f"{what}: not within {_PATIENCE:.0f} s."
    return f"{what} after {seconds * 1000:.0f} ms."


def _document(stage: Stage, ends: Ends, steps: list[Step], *, identical: bool, mirroring_on: bool) -> dict[str, Any]:
    version = ends.connection.info.parameter_status("server_version")
    return {
        "capture": stage.carrier.capture,
        "steps": steps,
        "identical": identical,
        "mirroring_on": mirroring_on,
        "source": {"version": version, "dsn": stage.servers.dsn, "command": stage.servers.psql},
        "target": {"endpoint_url": stage.servers.endpoint_url, "command": stage.scan},
        **stage.carrier.document(),
        "config": stage.servers.config_path,
    }


def _mirror_on(screen: Screen, stage: Stage, signals: Signals) -> None:
    screen.say("\nMirroring on, until Ctrl-C.", "bold")
    for heading, lines in stage.commands():
        screen.say(heading, "bold")
        for line in lines:
            screen.say(f"  {line}")
    while not signals.wait(0.5):
        stage.check()
