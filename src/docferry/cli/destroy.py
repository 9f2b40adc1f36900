"""`docferry destroy`: remove what apply created."""

from __future__ import annotations

import click

from docferry.app import App
from docferry.cli.frame import Session, define
from docferry.printable import one_line

__all__ = ["command"]


@define("destroy", confirms=True)
@click.option("--keep-collections", is_flag=True, help="Leave the target tables and their items as they are.")
def command(session: Session, keep_collections: bool) -> None:
    """Remove what `docferry apply` created: replication slot, publication, target tables, schema docferry.

    It shows what would go and asks before anything does; --yes answers. The rows of the source are not touched. It can
    be run again, after a failure half-way for example. While a worker runs it refuses: stop `docferry run` first.

    \b
    Examples:
      docferry destroy
      docferry destroy --keep-collections --yes     the items stay

    Only target tables that `docferry apply` has registered are removed. Next: `docferry apply` sets everything up
    again; collections that stayed are then populated again.
    """
    with App(session.load_config()) as app:
        admin = app.destroyer(session.note if session.json else lambda step: click.echo(one_line(step)))
        steps = admin.destroy_steps(keep_collections=keep_collections)
        if not steps:
            session.answer({"steps": [], "changed": False}, "Nothing to do: nothing of docferry is there.")
            return
        session.note("This would be removed:")
        for step in steps:
            session.note(f"  - {one_line(step)}")
        session.confirm("Remove all this?")
        done = admin.destroy(keep_collections=keep_collections)
    session.answer({"steps": done, "changed": bool(done)}, f"Done: {len(done)} step{'s' if len(done) != 1 else ''}.")
