"""`docferry verify`: did everything arrive?"""

from __future__ import annotations

import signal
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from docferry.cli.frame import ExitCode, Session, define
from docferry.cli.progress import Progress as Bar
from docferry.cli.verify_show import document, found_lines, mended_lines
from docferry.errors import Interrupted
from docferry.operate.verification import Checked, Verification
from docferry.operate.verify import VerifyProgress
from docferry.verify_app import VerifyApp

__all__ = ["command"]

_LAMBDA = (
    "With capture by Lambda nobody knows which events are still on their way: what differs was looked at {looks} times "
    "over {patience:g} s. Give a longer --patience when in doubt."
)


@define("verify", confirms=True)
@click.argument("table", required=False)
@click.option("--repair", is_flag=True, help="Mend what differs, after asking; then look again.")
@click.option(
    "--limit", type=click.IntRange(min=0), default=20, metavar="N", help="List N findings of a table at most."
)
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE.jsonl",
    help="Write every finding there, one JSON object a line.",
)
@click.option(
    "--sample", type=click.IntRange(min=1), metavar="N", help="A quick look: N random rows and N random items of each."
)
@click.option("--anew", is_flag=True, help="Start over instead of going on with an interrupted one.")
@click.option(
    "--patience",
    type=click.FloatRange(min=0),
    default=60.0,
    metavar="SECONDS",
    help="Wait so long for a watermark that does not move.",
)
def command(
    session: Session,
    table: str | None,
    repair: bool,
    limit: int,
    output: Path | None,
    sample: int | None,
    anew: bool,
    patience: float,
) -> int:
    """Compare the rows of TABLE, or of all mirrors, with their items: did everything arrive?

    \b
    missing     a row without an item
    stale       an item of an older state of its row
    different   an item that somebody else wrote or changed
    orphaned    an item without a row

    Everything is compared, by content, beside live traffic: what does not fit is looked at again once everything
    committed by then has arrived, so what is merely on its way is not reported. That takes a `docferry run`, or one
    that was stopped with nothing left to do. Rows that cannot be stored are counted apart; they are dead letters.

    --repair lists what it would mend and asks; --yes answers. It writes the rows as they are, and removes items without
    a row, under a version that any later change exceeds. Ctrl-C keeps the progress of a comparison for a
    day: the same command goes on, unless settings or columns have changed.

    \b
    Examples:
      docferry verify
      docferry verify orders --output findings.jsonl
      docferry verify orders --repair --yes
      docferry verify --sample 1000

    Exits with 0 when everything is identical, 3 when something differs, 1 when that could not be found out.
    """
    shown = _Shown(session)
    with (
        VerifyApp(session.load_config(), patient=True) as app,
        app.stop_on(signal.SIGINT, signal.SIGTERM, at_once=True),
        app.verification(
            table, patience=patience, output=output, limit=limit, anew=anew, on_progress=shown
        ) as verification,
    ):
        compared = False
        try:
            with shown:
                checked = verification.run() if sample is None else verification.sample(sample)
            compared = True
            lines = [line for one in checked for line in found_lines(one, verification.findings.shown, limit)]
            if app.config.source.capture == "lambda":
                lines.append(_LAMBDA.format(looks=app.looks, patience=patience))
            if repair and any(one.counts.differences for one in checked):
                for line in lines:
                    session.note(line)
                _repair(session, verification, checked)
                lines = [line for one in checked for line in mended_lines(one)]
        except Interrupted:
            if not app.stopping.is_set():
                raise
            if compared:
                session.note("Stopped. What is mended is mended; the same command compares anew, and mends the rest.")
                session.answer(_answer(verification, done=False), "Not everything has been mended yet.")
            else:
                session.note("Stopped. What has been compared is remembered: the same command goes on from there.")
                session.answer(_answer(verification, done=False), "Not everything has been compared yet.")
            return ExitCode.INTERRUPTED
    session.answer(_answer(verification, done=True), "\n".join(lines))
    if any(one.differences for one in checked):
        return ExitCode.DIFFERENT
    return ExitCode.FAILED if any(one.unsettled for one in checked) else ExitCode.DONE


def _repair(session: Session, verification: Verification, checked: list[Checked]) -> None:
    total = sum(one.counts.differences for one in checked)
    session.confirm(f"Mend {total:,} item{'s' if total != 1 else ''} by the rows as they are now?")
    done: dict[str, int] = {}
    with session.progress("mending", total=total, unit="items") as bar:

        def show(table: str, count: int) -> None:
            done[table] = count
            bar.update(sum(done.values()))

        verification.repair(show)


def _answer(verification: Verification, *, done: bool) -> dict[str, Any]:
    checked = verification.checked
    return {
        "done": done,
        "identical": done and all(one.clean for one in checked),
        "differences": sum(one.differences for one in checked),
        "unsettled": sum(one.unsettled for one in checked),
        "mirrors": [document(one, verification.findings.shown) for one in checked],
    }


class _Shown:
    """A bar for each table's rows, and then one for its items."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._open = ExitStack()
        self._bar: Bar | None = None
        self._of: tuple[str, str] | None = None

    def __enter__(self) -> None:
        self._open.__enter__()

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def __call__(self, progress: VerifyProgress) -> None:
        if self._of != (progress.table, progress.phase):
            self._open.close()
            self._of = (progress.table, progress.phase)
            bar = self._session.progress(
                f"verifying {progress.phase} of {progress.table}",
                total=progress.total,
                done=progress.done,
                unit=progress.phase,
            )
            self._bar = self._open.enter_context(bar)
        assert self._bar is not None
        self._bar.update(progress.done)
