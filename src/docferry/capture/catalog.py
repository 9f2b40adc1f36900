"""What the source's catalog says of tables and types."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import psycopg

from docferry.change.model import Column, PgType, Relation, TypeKind
from docferry.errors import TableGone
from docferry.source.session import translated
from docferry.source.statements import load

__all__ = ["TableInfo", "Types", "describe_table", "name_of", "split_table"]

_SQL: Final = load("catalog.sql")
_KINDS: Final = {
    "b": TypeKind.BASE,
    "d": TypeKind.DOMAIN,
    "e": TypeKind.ENUM,
    "r": TypeKind.RANGE,
    "m": TypeKind.MULTIRANGE,
    "c": TypeKind.COMPOSITE,
}


class Types:
    """Types by oid, read once each. One object serves one thread."""

    def __init__(self, connection: psycopg.Connection[tuple[Any, ...]]) -> None:
        self._connection = connection
        self._known: dict[int, PgType] = {}

    def __call__(self, oid: int) -> PgType:
        """The type; one that no longer exists is known as `unknown` and its text is taken as it is."""
        if oid not in self._known:
            with translated():
                self._known[oid] = self._read(oid)
        return self._known[oid]

    def _read(self, oid: int) -> PgType:
        row = self._connection.execute(_SQL["type"].encode(), (oid,)).fetchone()
        if row is None:
            return PgType(oid, "unknown")
        name, _, typtype, base, element, subscript, relation, delimiter, length = row
        # Fixed-length types such as point and name can be subscripted too and are no arrays.
        if element and length == -1 and subscript.endswith("array_subscript_handler"):
            of = self(element)
            return PgType(oid, name, TypeKind.ARRAY, of, delimiter=of.delimiter)
        match typtype:
            case "d":
                return PgType(oid, name, TypeKind.DOMAIN, self(base), delimiter=delimiter)
            case "r" | "m":
                found = self._connection.execute(_SQL["range_element"].encode(), {"oid": oid}).fetchone()
                return PgType(oid, name, _KINDS[typtype], self(found[0]) if found else None, delimiter=delimiter)
            case "c":
                rows = self._connection.execute(_SQL["composite_fields"].encode(), (relation,)).fetchall()
                fields = tuple((field, self(of)) for field, of in rows)
                return PgType(oid, name, TypeKind.COMPOSITE, fields=fields, delimiter=delimiter)
            case _:
                return PgType(oid, name, _KINDS.get(typtype, TypeKind.BASE), delimiter=delimiter)


@dataclass(frozen=True, slots=True)
class UniqueIndex:
    """A unique index over plain columns. `name`: quoted."""

    name: str
    primary: bool
    immediate: bool
    replica_identity: bool
    columns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Leaf:
    """A leaf partition, its name quoted, as far as it decides what the log carries: the identity of its root does not
    reach it."""

    table: str
    replica_identity: str
    indexes: tuple[UniqueIndex, ...]

    def holds(self, key: Sequence[str]) -> bool:
        """Whether the log of an UPDATE or DELETE in it carries the old values of these columns."""
        return self.replica_identity == "f" or set(key) <= _indexed(self.replica_identity, self.indexes)


@dataclass(frozen=True, slots=True)
class TableInfo:
    """A table as it is now. `relation` holds the columns that are in the replication stream (generated ones are not);
    `casts` the qualified type name of each column by name; `problems` why it cannot be mirrored, if so."""

    oid: int
    relation: Relation
    kind: str
    replica_identity: str
    readable: bool
    owned: bool
    hidden_rows: bool
    persistence: str
    casts: dict[str, str]
    type_names: dict[str, str]
    not_null: frozenset[str]
    generated: tuple[str, ...]
    indexes: tuple[UniqueIndex, ...]
    leaves: tuple[Leaf, ...]
    layout: str
    has_children: bool
    ancestors: frozenset[int]
    extension_columns: frozenset[str]

    @property
    def table(self) -> str:
        """Schema-qualified name."""
        return self.relation.table

    @property
    def primary_key(self) -> tuple[str, ...]:
        """Names of the primary key's columns, empty without one."""
        return next((index.columns for index in self.indexes if index.primary), ())

    @property
    def identities(self) -> tuple[tuple[str, ...], ...]:
        """The columns of the indexes that tell rows apart: of the one chosen for replica identity, of the primary key;
        those that there are."""
        return _identities(self.indexes)

    @property
    def identity_columns(self) -> frozenset[str]:
        """The columns whose old values the log of an UPDATE or DELETE carries; empty if the table has no identity."""
        if self.replica_identity == "f":
            return frozenset(column.name for column in self.relation.columns)
        return _indexed(self.replica_identity, self.indexes)


def _indexed(replica_identity: str, indexes: Sequence[UniqueIndex]) -> frozenset[str]:
    """The columns of the index that is the replica identity, empty without one."""
    match replica_identity:
        case "i":
            chosen = [index for index in indexes if index.replica_identity]
        case "d":
            chosen = [index for index in indexes if index.primary and index.immediate]
        case _:
            chosen = []
    return frozenset(name for index in chosen for name in index.columns)


def _identities(indexes: tuple[UniqueIndex, ...]) -> tuple[tuple[str, ...], ...]:
    chosen = [index.columns for index in indexes if index.replica_identity]
    return (*chosen, *(index.columns for index in indexes if index.primary))


def split_table(table: str) -> tuple[str, str]:
    """(schema, name) of a schema-qualified name as the configuration normalises it: the first dot separates."""
    schema, _, name = table.partition(".")
    return schema, name


def name_of(connection: psycopg.Connection[tuple[Any, ...]], oid: int) -> str | None:
    """What the table with this oid is called now, None once it was dropped."""
    with translated():
        row = connection.execute(_SQL["name_of"].encode(), (oid,)).fetchone()
    return None if row is None else str(row[0])


def describe_table(connection: psycopg.Connection[tuple[Any, ...]], types: Types, table: str) -> TableInfo:
    """Read one table. Raises TableGone if it does not exist, SourceUnavailable."""
    with translated():
        row = connection.execute(_SQL["table"].encode(), split_table(table)).fetchone()
        if row is None:
            raise TableGone(f"table {table} does not exist in the source")
        oid, schema, name, kind, persistence, identity, readable, owned, hidden, parent, ancestors = row
        columns = connection.execute(_SQL["columns"].encode(), (oid,)).fetchall()
        leaves = connection.execute(_SQL["leaves"].encode(), (oid,)).fetchall() if kind == "p" else []
        indexes: dict[int, list[UniqueIndex]] = {}
        for of, index, primary, immediate, replica, names in connection.execute(
            _SQL["unique_indexes"].encode(), ([oid, *(leaf for leaf, *_ in leaves)],)
        ):
            indexes.setdefault(of, []).append(UniqueIndex(index, primary, immediate, replica, tuple(names)))
        found = connection.execute(_SQL["layout"].encode(), {"oid": oid}).fetchone()
        extension = connection.execute(_SQL["foreign_key_types"].encode(), (oid,)).fetchall()
    own = tuple(indexes.get(oid, ()))
    identifying = next(iter(_identities(own)), ())
    relation = Relation(
        oid,
        schema,
        name,
        tuple(
            Column(column, types(type_oid), column in identifying)
            for column, type_oid, generated, *_ in columns
            if not generated
        ),
    )
    return TableInfo(
        oid=oid,
        relation=relation,
        kind=kind,
        replica_identity=identity,
        readable=readable,
        owned=owned,
        hidden_rows=hidden,
        persistence=persistence,
        casts={column: cast for column, _, _, _, cast, _ in columns},
        type_names={column: shown for column, _, _, _, _, shown in columns},
        not_null=frozenset(column for column, _, _, not_null, _, _ in columns if not_null),
        generated=tuple(column for column, _, generated, *_ in columns if generated),
        indexes=own,
        leaves=tuple(Leaf(shown, setting, tuple(indexes.get(leaf, ()))) for leaf, shown, setting in leaves),
        layout=found[0] if found else "",
        has_children=parent,
        ancestors=frozenset(ancestors),
        extension_columns=frozenset(column for (column,) in extension),
    )
