"""Moments as people write them on a command line."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import click

from docferry.config.quantities import parse_duration

__all__ = ["moment"]


def moment(context: click.Context, parameter: click.Parameter, value: str | None) -> datetime | None:
    """The callback of an option that takes a time in ISO 8601, UTC unless it names its zone, or how long ago: `90s`,
    `2h`, `7d`. Gives an aware datetime."""
    if value is None:
        return None
    text = value.strip()
    ago = parse_duration(text) if text[-1:].isalpha() else None
    if ago is not None:
        return datetime.now(UTC) - timedelta(seconds=ago)
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise click.BadParameter(
            f"{text!r} is neither a time such as 2025-01-20T09:30:00Z nor an age such as 2h.", context, parameter
        ) from None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)
