"""What a comparison stands on: the epoch that is in force, and the table that is there under its name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from docferry.capture.contract import RowReader
from docferry.capture.history import superseded
from docferry.document.batch import renamed
from docferry.document.mirror import Mirror
from docferry.errors import TableGone
from docferry.operate.admin import AdminLedger

__all__ = ["check_epoch", "table_needed"]


def check_epoch(ledger: AdminLedger, number: int) -> None:
    """Raises HistoryChanged when another epoch is in force. To be asked behind the reading of items: an epoch begins
    before its first write, so what was read is of this one then."""
    error = superseded(number, ledger.epoch())
    if error is not None:
        raise error


@contextmanager
def table_needed(mirror: Mirror, reader: RowReader) -> Iterator[None]:
    """A table that is gone says nothing of its rows. Raises SourceRefused with its new name, or TableGone."""
    try:
        yield
    except TableGone as error:
        name = reader.current_name(mirror.oid)
        if name is not None and name != mirror.table:
            raise renamed(mirror, name) from error
        raise TableGone(
            f"{error}; its items stay as they are",
            remedy="Once the table is there again, run `docferry apply`. If it is gone for good, remove its mirror.",
        ) from error
