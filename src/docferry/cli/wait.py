"""`docferry wait`: read your writes."""

from __future__ import annotations

import signal

import click

from docferry.app import App
from docferry.cli.frame import Session, define
from docferry.errors import ConfigError

__all__ = ["command"]


@define("wait")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    default=60.0,
    metavar="SECONDS",
    help="Give up after so many seconds.",
)
def command(session: Session, timeout: float) -> None:
    """Return when everything committed before the call is at the target, and every collection is populated.

    Use it between a write to the source and a read of the target, in scripts and tests, and before a cut-over. Rows
    that cannot be stored count as done once they are dead letters; `docferry status` shows how many there are.

    \b
    Example:
      psql -c "UPDATE orders SET ..." && docferry wait --timeout 10 && aws dynamodb get-item ...

    Exits with 1 when the time is up, saying what holds it up: most often no `docferry run` is running. With capture =
    "lambda" it is refused: nobody can tell which events Lambda still holds.
    """
    config = session.load_config()
    if config.source.capture == "lambda":
        raise ConfigError(
            'with capture = "lambda" nobody can tell which events Lambda still holds, so there is nothing to wait for',
            remedy='Read the item itself until it is as expected; or use capture = "outbox" or "replication".',
        )
    with App(config) as app, app.stop_on(signal.SIGTERM):
        seconds = app.wait(timeout, stop=app.stopping)
    session.answer({"seconds": round(seconds, 3)}, f"Everything is at the target ({seconds:.2f} s).")
