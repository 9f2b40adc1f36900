"""Rows that do not carry every column, and how an older row completes them."""

from __future__ import annotations

from docferry.change.model import UNCHANGED, Row

__all__ = ["is_whole", "merge"]


def is_whole(row: Row) -> bool:
    """Whether the row carries every column."""
    return UNCHANGED not in row


def merge(older: Row, newer: Row) -> Row:
    """`newer`, with the columns it does not carry taken from `older`, an earlier state of the same row.

    Both belong to one relation. What `older` does not carry either stays UNCHANGED, and so does what is NULL there: a
    column that is not carried is stored out of line, which NULL never is. (The old row of a partition that logs its key
    only, below a root with REPLICA IDENTITY FULL, says NULL for all the rest.) Raises ValueError when they have
    different numbers of columns.
    """
    return tuple(
        [
            before if after is UNCHANGED and before is not None else after
            for before, after in zip(older, newer, strict=True)
        ]
    )
