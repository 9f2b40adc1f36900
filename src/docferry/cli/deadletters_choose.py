"""Which dead letters a command is about."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

import click

from docferry.cli.moments import moment
from docferry.operate.letters import Selection

__all__ = ["choosing", "qualified", "selection"]


def choosing(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options --table, --cause, --since and --until, as `table`, `cause`, `since` and `until`."""
    for option in (
        click.option(
            "--until",
            callback=moment,
            metavar="TIME",
            help="Only those whose last failure was then or before: a time, UTC unless it says, or an age such as 2h.",
        ),
        click.option(
            "--since",
            callback=moment,
            metavar="TIME",
            help="Only those whose last failure was then or later: a time, UTC unless it says, or an age such as 2h.",
        ),
        click.option("--cause", help="Only those with this cause, such as too-large."),
        click.option("--table", help="Only those of this source table."),
    ):
        function = option(function)
    return function


def selection(
    ids: tuple[int, ...], table: str | None, cause: str | None, since: datetime | None, until: datetime | None
) -> Selection:
    """Those that are meant. Raises click.UsageError."""
    if ids and (table or cause or since or until):
        raise click.UsageError("IDs exclude --table, --cause, --since and --until.")
    return Selection(qualified(table), cause, ids or None, since, until)


def qualified(table: str | None) -> str | None:
    """A table's name with its schema."""
    return table if table is None or "." in table else f"public.{table}"
