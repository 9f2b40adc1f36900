"""`docferry apply`: make both ends ready."""

from __future__ import annotations

from collections.abc import Sequence

import click

from docferry.app import App
from docferry.cli.frame import Session, define
from docferry.printable import one_line

__all__ = ["command"]

_NO_TABLE = "--all"


@define("apply")
@click.option(
    "--resync",
    metavar="TABLE",
    multiple=True,
    is_flag=False,
    flag_value=_NO_TABLE,
    help="Have this table's collection populated again, whatever it holds. Can be given several times.",
)
@click.option("--all", "every", is_flag=True, help="With --resync: every table.")
@click.option("--resync-all", is_flag=True, help="The same as --resync --all.")
def command(session: Session, resync: tuple[str, ...], every: bool, resync_all: bool) -> None:
    """Create what mirroring needs at both ends: publication, replication slot, schema docferry, target tables.

    Each step is printed when it is done. What is there already stays, so it can be run again at any time: after a
    change of the configuration, after a failure half-way, or to find out that there is nothing to do. The application's
    tables are not altered.

    When the source's history changed (a standby was promoted, a backup restored) or changes were missed (a slot was
    lost, dropped, moved), it begins an epoch, mends the capture and has every collection populated again. With --resync
    it does so for the tables named, whatever the state: rows are written over their items, live traffic goes on, items
    without a row are removed at the end. No collection is emptied. `docferry run` does the work.

    \b
    Examples:
      docferry plan && docferry apply && docferry run
      docferry apply --resync orders --resync sales.invoices
      docferry apply --resync --all

    From now on the source keeps its log until docferry has read it: do not leave it without `docferry run` for long, or
    remove everything again with `docferry destroy`. Next: `docferry run`.
    """
    if _NO_TABLE in resync and not every:
        raise click.UsageError("--resync needs a table, or --all.")
    if every and not resync:
        raise click.UsageError("--all goes with --resync.")
    with App(session.load_config()) as app:
        app.check_rights("apply")

        def say(step: str) -> None:
            if session.json:
                session.note(step)
            else:
                click.echo(one_line(step))

        named = [app.mirror(table).table for table in resync if table != _NO_TABLE]
        tables = list(app.mirrors) if every or resync_all else list(dict.fromkeys(named))
        if tables:
            _announce(session, tables)
        steps = app.admin(say).apply(tables)
    done = f"Done: {len(steps)} step{'s' if len(steps) != 1 else ''}. Next: `docferry run`."
    session.answer({"steps": steps, "changed": bool(steps)}, done if steps else "Nothing to do: it is all there.")


def _announce(session: Session, tables: Sequence[str]) -> None:
    session.note(
        f"Resync of {', '.join(tables)}: every row is written again over its item, items without a row are removed at "
        "the end, nothing is removed now."
    )
