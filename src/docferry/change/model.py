"""A change: one committed row change, as pure data."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import Enum, StrEnum
from typing import Final, Literal, NamedTuple, TypeAlias

__all__ = [
    "EPOCH_STEP",
    "NUMBER_STEP",
    "UNCHANGED",
    "Change",
    "Column",
    "Op",
    "PgType",
    "RawValue",
    "Relation",
    "Row",
    "TypeKind",
    "Unchanged",
    "lsn",
    "make_version",
    "split_version",
]

NUMBER_STEP: Final = 2**32
EPOCH_STEP: Final = 2**64 * NUMBER_STEP


def make_version(epoch: int, position: int, number: int = 0) -> int:
    """The fence of a change (R2). `position`: of its transaction's commit, 64 bits; `number`: of the change within its
    transaction, 32 bits. Positions of different epochs never compare, so the epoch weighs more than any.

    The position is that of the commit, because an INSERT is logged before its unique indexes are checked: the record of
    an INSERT may precede that of the DELETE which made room for it. Commits are in the order in which row locks and
    unique indexes let them through (docs/architecture.md).
    """
    return epoch * EPOCH_STEP + position * NUMBER_STEP + number


def split_version(version: int) -> tuple[int, int, int]:
    """(epoch, position, number) of a version."""
    epoch, rest = divmod(version, EPOCH_STEP)
    return epoch, *divmod(rest, NUMBER_STEP)


def lsn(position: int) -> str:
    """A position of the log as PostgreSQL writes it: `16/B374D848`."""
    return f"{position >> 32:X}/{position & 0xFFFFFFFF:X}"


class Op(StrEnum):
    """What happened to the row. TRUNCATE happens to all rows of a table."""

    INSERT = "insert"
    UPDATE = "update"
    DELETE = "delete"
    TRUNCATE = "truncate"


class Unchanged(Enum):
    """The type of UNCHANGED: a column value that the change does not carry because it did not change (TOAST)."""

    UNCHANGED = "unchanged"

    def __repr__(self) -> str:
        return "UNCHANGED"


UNCHANGED: Final = Unchanged.UNCHANGED

RawValue: TypeAlias = "bytes | Literal[Unchanged.UNCHANGED] | None"
"""A column's text as PostgreSQL's output function wrote it (UTF-8), SQL NULL, or not carried."""

Row: TypeAlias = tuple[RawValue, ...]
"""One raw value for each column of the relation it belongs to, in the relation's order."""


class TypeKind(StrEnum):
    """pg_type.typtype, with arrays told apart."""

    BASE = "base"
    ARRAY = "array"
    DOMAIN = "domain"
    ENUM = "enum"
    RANGE = "range"
    MULTIRANGE = "multirange"
    COMPOSITE = "composite"


@dataclass(frozen=True, slots=True)
class PgType:
    """A PostgreSQL type, as far as its text form needs it.

    `element`: of an array its element, of a domain its base, of a range its subtype, of a multirange its range.
    `fields`: of a composite its attributes in order.
    `delimiter`: pg_type.typdelim of an array's element.
    """

    oid: int
    name: str
    kind: TypeKind = TypeKind.BASE
    element: PgType | None = None
    fields: tuple[tuple[str, PgType], ...] = ()
    delimiter: str = ","


@dataclass(frozen=True, slots=True)
class Column:
    """A column. `is_key`: part of the table's replica identity."""

    name: str
    type: PgType
    is_key: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Relation:
    """A table at one moment of its history. Compared by identity: a schema change makes a new one."""

    oid: int
    schema: str
    name: str
    columns: tuple[Column, ...]

    @property
    def table(self) -> str:
        """Schema-qualified name, as in the configuration."""
        return f"{self.schema}.{self.name}"

    @property
    def shape(self) -> tuple[tuple[str, str], ...]:
        """(name, type name) of each column: what a schema change changes."""
        return tuple((column.name, column.type.name) for column in self.columns)


class Change(NamedTuple):
    """One committed row change.

    `row`: the new row; None for DELETE and TRUNCATE. `old`: the old row's key columns (others None or also present),
    aligned with the relation's columns; given for DELETE and when the key changed, else None.
    `partial`: the rows carry nothing but the key; unlike UNCHANGED, what is missing may have changed (R5).
    `version`: the fence (R1, R2). `transaction`: the 64-bit id whose visibility R5 asks about, 0 when it is already
    visible. `size`: bytes this change holds in memory, about.
    """

    op: Op
    relation: Relation
    row: Row | None
    old: Row | None
    version: int
    transaction: int
    committed_at: datetime | None
    size: int
    partial: bool = False
