"""`docferry trace`: one row from end to end."""

from __future__ import annotations

import re
from collections.abc import Sequence

import click

from docferry.cli.frame import ExitCode, Session, define
from docferry.cli.trace_show import trace_document, trace_lines
from docferry.document.mirror import Mirror
from docferry.errors import ConfigError
from docferry.verify_app import VerifyApp

__all__ = ["command"]

_SURROGATES = re.compile("[\ud800-\udfff]")  # bytes of the command line that are no UTF-8


@define("trace")
@click.argument("table", metavar="TABLE")
@click.argument("key", metavar="[KEY]...", nargs=-1)
@click.option(
    "--key",
    "named",
    metavar="COLUMN=VALUE",
    multiple=True,
    help="The value of a key column by its name, once for each, instead of KEY.",
)
@click.option(
    "--wait",
    type=click.FloatRange(min=0),
    default=5.0,
    metavar="SECONDS",
    help="Where row and item differ, wait so long for the worker to pass the row.",
)
@click.option(
    "--all",
    "everything",
    is_flag=True,
    help="Show every path of the documents, and values in full.",
)
@click.option("--queue/--no-queue", default=True, help="Look at the dead letters of the queue too, if there is one.")
def command(
    session: Session,
    table: str,
    key: tuple[str, ...],
    named: tuple[str, ...],
    wait: float,
    everything: bool,
    queue: bool,
) -> int:
    """Follow one row from end to end, and say what is the matter with it.

    KEY is the row's key as PostgreSQL shows it; a key of several columns takes several, in the mirror's order. Behind
    `--` one may begin with a dash. Nothing is changed anywhere.

    \b
    row        whether it is there, and the transaction that wrote it
    capture    whether a worker is at work, and how far everything is durable
    waiting    changes of the row in the outbox, or in a slot that nobody reads
    letters    dead letters of its key, with the remedy
    backfill   of its table, and whether it has come to the row
    item       its version, who wrote it, how long a tombstone stands
    document   what the row makes beside what the item holds, path by path

    \b
    Examples:
      docferry trace orders 90210
      docferry trace order_lines 7 2
      docferry trace order_lines --key order_id=7 --key line=2 --json

    Exits with 0 when the item is as the row says, or both are absent; with 3 when they differ.
    """
    config = session.load_config()
    with VerifyApp(config) as app:
        mirror = app.mirror(table)
        texts = _texts(mirror, key, named)
        trace = app.row_tracing(table, patience=wait, queue=queue).trace(texts)
    lifetime = config.target.tombstone_lifetime
    document = trace_document(trace, mirror.spec.key, lifetime) if session.json else {}
    text = "" if session.json else "\n".join(trace_lines(trace, mirror.spec.key, lifetime, everything=everything))
    session.answer(document, text)
    return ExitCode.DONE if trace.verdict.is_right else ExitCode.DIFFERENT


def _texts(mirror: Mirror, given: Sequence[str], named: Sequence[str]) -> tuple[str, ...]:
    """The text of each key column. Raises click.UsageError, ConfigError."""
    names = mirror.spec.key
    if given and named:
        raise click.UsageError("KEY and --key exclude each other.")
    texts = dict(zip(names, given, strict=False))
    if named:
        pairs = [text.partition("=") for text in named]
        texts = {name: value for name, _, value in pairs}
        if any(not equals for _, equals, _ in pairs) or len(texts) != len(pairs):
            raise click.UsageError("Give --key once for each key column, as COLUMN=VALUE.")
    if texts.keys() != set(names) or len(given) > len(names):
        raise ConfigError(
            f"the key of {mirror.table} is {', '.join(names)}",
            remedy="Give a value for each of these columns, in this order, or as --key COLUMN=VALUE.",
        )
    if any("\0" in text or _SURROGATES.search(text) for text in texts.values()):
        raise ConfigError("a key holds what is no text in UTF-8")
    return tuple(texts[name] for name in names)
