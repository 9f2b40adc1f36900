"""`docferry bench`: measuring a source of one's own."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import click

from docferry.app import App
from docferry.cli.frame import CommandGroup, ExitCode, Session, define
from docferry.errors import AlreadyRunning, ConfigError
from docferry.operate.load import KindReport, Load, LoadReport, Mix
from docferry.operate.load_table import OWN_TABLE, Capture, LoadTable

__all__ = ["command"]

_COUNT = click.IntRange(min=0, max=100_000)


@define("load")
@click.argument("insert", type=_COUNT, default=100)
@click.argument("select", type=_COUNT, default=20)
@click.argument("update", type=_COUNT, default=200)
@click.argument("delete", type=_COUNT, default=20)
@click.option("--mirror", type=click.Choice(["on", "off"]), help="Insist that the table is mirrored, or keep it out.")
@click.option("--table", default=OWN_TABLE, metavar="TABLE", help="A table with the article's columns.")
@click.option("--seconds", type=click.FloatRange(min=0, min_open=True), default=30.0, metavar="S", help="How long.")
@click.option(
    "--connections", type=click.IntRange(1, 1000), default=8, metavar="N", help="How many, each with one thread."
)
@click.option("--size", type=click.IntRange(200, 10**7), default=2400, metavar="BYTES", help="Of each XML document.")
@click.option("--seed", type=int, default=1, metavar="N", help="Repeats documents and the order of statements.")
@click.option("--keep", is_flag=True, help="Leave the rows that it inserted.")
def load(
    session: Session,
    insert: int,
    select: int,
    update: int,
    delete: int,
    mirror: str | None,
    table: str,
    seconds: float,
    connections: int,
    size: int,
    seed: int,
    keep: bool,
) -> int:
    """Load a table with INSERT, SELECT, UPDATE and DELETE statements in this mix, and measure.

    Each connection runs rounds of so many statements of each kind in random order, each one a transaction of its own,
    one after the other without a pause. Only rows that the run inserted are read, changed and deleted, and at the end
    they are removed. Without --table the load is on public.docferry_load, which is created and stays, empty.

    The table is mirrored if the configuration says so and `apply` has been run. --mirror on refuses to run when it is
    not. --mirror off takes docferry_load out of the mirror for as long as the run takes, and is for a baseline; with
    any other table that is mirrored it refuses, because other people's changes would be lost to the mirror meanwhile.

    \b
    Examples:
      docferry bench load 100 20 200 20 --mirror off      the baseline
      docferry bench load 100 20 200 20 --mirror on       the same with docferry, when docferry_load is a mirror
      docferry bench load 100 20 200 20 --table orders    a table of your own with the article's columns

    Ctrl-C ends it early, with an answer; a second one leaves the rows. Errors of statements are counted and stop
    nothing.
    """
    mix = Mix(insert, select, update, delete)
    with App(session.load_config()) as app, app.stop_on(signal.SIGINT, signal.SIGTERM):
        target = LoadTable(app.dsn, table, app.config.source.publication)
        target.prepare()
        capture = target.capture()
        if mirror == "on" and not capture:
            raise _not_mirrored(target)
        with _kept_out(app, target, capture, keep=keep) if mirror == "off" and capture else _as_it_is():
            run = Load(
                app.dsn,
                target,
                mix,
                connections=connections,
                size=size,
                seed=seed,
                stopping=app.stopping,
                at_once=app.retry.stop,
            )
            with session.progress(f"load on {target.name}", total=None, unit="statements") as bar:
                report = run.run(seconds, keep=keep, on_progress=bar.update)
        interrupted = app.stopping.is_set()
    mirrored = bool(capture) and mirror != "off"
    if not keep:
        _say_what_is_left(session, target, report, was_kept_out=bool(capture) and not mirrored)
    document = {"table": target.name, "mirrored": mirrored, "mix": mix, "connections": connections, "report": report}
    session.answer(document, _text(target, report, mirrored=mirrored, connections=connections))
    if interrupted:
        return ExitCode.INTERRUPTED
    return ExitCode.DONE if report.total.done else ExitCode.FAILED


command = CommandGroup(
    "bench",
    help="Measure a source of your own: the article's load generator.\n\nExample: docferry bench load 100 20 200 20",
)
command.add_command(load)


@contextmanager
def _as_it_is() -> Iterator[None]:
    yield


@contextmanager
def _kept_out(app: App, target: LoadTable, capture: Capture, *, keep: bool) -> Iterator[None]:
    """Without capture while inside, and without a worker. Raises ConfigError, AlreadyRunning."""
    if target.name != OWN_TABLE:
        raise ConfigError(
            f"--mirror off would lose to the mirror what others change in {target.name} meanwhile",
            remedy=f"Leave --table out: {OWN_TABLE} has the same columns, and nobody else writes to it.",
        )
    if keep:
        raise ConfigError(
            "--mirror off and --keep exclude each other: the mirror would not have the rows",
            remedy="Leave one of them out.",
        )
    recent = 3 * app.config.source.heartbeat_interval
    if any(beat.state.get("running") and beat.age < recent for beat in app.ledger.workers()):
        raise AlreadyRunning(
            "--mirror off while a docferry worker runs: it would find a table that is not captured, and stop",
            remedy=f"Stop `docferry run` first. One that was killed counts for {recent:.0f} s.",
        )
    # Where there can be one worker only, this also keeps it from starting meanwhile.
    with app.ledger.working(), target.unmirrored(capture):
        yield


def _not_mirrored(target: LoadTable) -> ConfigError:
    return ConfigError(
        f"--mirror on: no change of {target.name} is captured",
        remedy=f"Add `[[mirrors]]` with `table = '{target.name}'` to the configuration, then `docferry apply` and "
        "`docferry run`.",
    )


def _say_what_is_left(session: Session, target: LoadTable, report: LoadReport, *, was_kept_out: bool) -> None:
    rows = report.left + report.unsure
    if not rows:
        return
    session.note(f"up to {rows:,} rows of this run are left in {target.name}")
    if was_kept_out:
        session.note(f"remedy: the mirror does not know them; run `docferry backfill {target.name}`.")


def _text(target: LoadTable, report: LoadReport, *, mirrored: bool, connections: int) -> str:
    state = "mirrored" if mirrored else "not mirrored"
    lines = [
        f"{target.name}, {state}: {connections} connections, {report.seconds:.1f} s",
        "",
        f"{'':8}{'done':>12}{'failed':>10}{'per second':>14}{'p50 ms':>10}{'p95 ms':>10}{'p99 ms':>10}",
        *(_line(kind, one) for kind, one in report.kinds.items() if one.done or one.failed),
        _line("total", report.total),
        *(f"SQLSTATE {one.sqlstate}: {one.count:,} times, first: {one.message}" for one in report.errors),
    ]
    return "\n".join(lines)


def _line(name: str, one: KindReport) -> str:
    quantiles = "".join(f"{'-' if value is None else f'{value:.2f}':>10}" for value in (one.p50, one.p95, one.p99))
    return f"{name:8}{one.done:>12,}{one.failed:>10,}{one.per_second:>14,.1f}{quantiles}"
