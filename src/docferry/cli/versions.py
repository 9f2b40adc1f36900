"""Versions and positions for people."""

from __future__ import annotations

from docferry.change.model import lsn, split_version

__all__ = ["version_text"]


def version_text(version: int, *, by_triggers: bool | None = None) -> str:
    """`epoch 1, position 0/1A2B3C4D`; of a position by triggers the number. `by_triggers`: None says both."""
    if version < 0:
        return "without a version: docferry did not write it"
    epoch, position, _ = split_version(version)
    shown = {True: str(position), False: lsn(position), None: f"{lsn(position)} ({position})"}[by_triggers]
    return f"epoch {epoch}, position {shown}"
