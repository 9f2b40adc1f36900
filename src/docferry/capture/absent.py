"""Where the source's database cannot be reached: what stands in for its reader and its ledger."""

from __future__ import annotations

from typing import NoReturn

from docferry.capture.contract import BackfillRecord, MirrorRecord
from docferry.change.model import Relation, Row
from docferry.errors import NeedsReread, SourceRefused

__all__ = ["NoDatabase"]


class NoDatabase:
    """contract.RowReader, and of contract.Ledger what applying changes takes. It knows no mirrors, so nobody asks it
    whether their tables have changed."""

    def read_rows(self, *_: object) -> tuple[list[tuple[Relation, Row]], bool]:
        """Raises NeedsReread."""
        raise NeedsReread("the row has to be read again, and the source's database cannot be reached from here")

    def mirrors(self) -> dict[str, MirrorRecord]:
        """None."""
        return {}

    def raise_floor(self, table: str, version: int) -> None:
        """Nothing: the target's floor is what holds here."""

    def relation(self, table: str) -> Relation:
        """Raises SourceRefused."""
        _refuse(table)

    def layout(self, table: str) -> str:
        """Raises SourceRefused."""
        _refuse(table)

    def current_name(self, oid: int) -> str | None:
        """Raises SourceRefused."""
        _refuse(f"the table with oid {oid}")

    def remember_columns(self, table: str, *_: object) -> frozenset[str]:
        """Raises SourceRefused."""
        _refuse(table)

    def request_backfill(self, table: str, *_: object, **__: object) -> BackfillRecord:
        """Raises SourceRefused."""
        _refuse(table)


def _refuse(what: str) -> NoReturn:
    raise SourceRefused(
        f"{what}: a change of it takes a look into the source's database, which cannot be reached from here",
        remedy="Let docferry reach the database from here, or apply the change from a place that does.",
    )
