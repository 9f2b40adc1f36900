"""What `docferry init` finds in a database: pure data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

__all__ = ["DocumentColumn", "Format", "TableFinding"]

Format: TypeAlias = Literal["xml", "json"]


@dataclass(frozen=True, slots=True)
class DocumentColumn:
    """A column that holds documents. `type`: as PostgreSQL shows it. `sampled`: 0 when the type itself says so;
    otherwise how many values of this text column were read, all of them documents."""

    name: str
    type: str
    format: Format
    sampled: int = 0


@dataclass(frozen=True, slots=True)
class TableFinding:
    """A table with at least one document column. `key`: its primary key or replica identity, empty without one.
    `columns`: every carried column's name. `rows`: the planner's estimate. `problems`: why it cannot be mirrored as it
    is, (problem, remedy) each. `key_is_primary`: the key is what docferry takes without being told."""

    schema: str
    name: str
    key: tuple[str, ...]
    columns: tuple[str, ...]
    documents: tuple[DocumentColumn, ...]
    rows: int = 0
    problems: tuple[tuple[str, str], ...] = ()
    key_is_primary: bool = True
