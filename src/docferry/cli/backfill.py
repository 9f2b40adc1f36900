"""`docferry backfill`: populate a collection again."""

from __future__ import annotations

import signal
from contextlib import ExitStack

import click

from docferry.app import App
from docferry.cli.frame import ExitCode, Session, define
from docferry.cli.progress import Progress as Bar
from docferry.errors import Interrupted
from docferry.operate.backfill import Progress

__all__ = ["command"]


@define("backfill")
@click.argument("table")
@click.option("--anew", is_flag=True, help="Start over from the first row if one is unfinished.")
def command(session: Session, table: str, anew: bool) -> int:
    """Populate the collection of TABLE again from its rows, beside live traffic.

    Rows are read in the order of the key and written with the version of the start: what changed since wins, whatever
    arrives first. Items without a row are removed at the end. A worker may run meanwhile, and none has to; when the
    worker is the one that does it, its progress is shown here.

    An unfinished backfill goes on from the last page that is at the target, also after a kill or a crash: run the same
    command again. `docferry run` does so by itself. Ctrl-C loses nothing.

    \b
    Examples:
      docferry backfill orders
      docferry backfill sales.orders --anew

    Next: `docferry status` shows it, `docferry wait` waits for it and for later changes.
    """
    shown = _Shown(session)
    # Patient: outages of an hour must not end a backfill of a day.
    with App(session.load_config(), patient=True) as app, app.stop_on(signal.SIGINT, signal.SIGTERM, at_once=True):
        app.trace()
        name = app.mirror(table).table
        try:
            with shown:
                app.backfill(table, anew=anew, on_progress=shown)
        except Interrupted:
            if not app.stopping.is_set():
                raise
            session.note(
                f"Stopped; nothing is lost. Run `docferry backfill {name}` again to go on from there; a running "
                "`docferry run` goes on by itself."
            )
            done = {"table": name, "rows": shown.rows, "done": False}
            session.answer(done, f"The backfill of {name} is not done yet: {shown.rows:,} rows so far.")
            return ExitCode.INTERRUPTED
    session.answer({"table": name, "rows": shown.rows, "done": True}, f"Backfill of {name} done: {shown.rows:,} rows.")
    return ExitCode.DONE


class _Shown:
    """Progress on the screen, from the moment it is known where the backfill begins."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._open = ExitStack()
        self._bar: Bar | None = None
        self.rows = 0

    def __enter__(self) -> None:
        self._open.__enter__()

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def __call__(self, progress: Progress) -> None:
        self.rows = progress.rows
        if self._bar is None:
            name = f"backfill of {progress.table}"
            self._bar = self._open.enter_context(self._session.progress(name, total=progress.total, done=progress.rows))
        self._bar.update(progress.rows, progress.total)
