"""PostgreSQL's own types by oid, for where no catalog can be asked. Source: psycopg's registry of them."""

from __future__ import annotations

from functools import cache
from typing import Final

from psycopg.postgres import types as registry
from psycopg.types.multirange import MultirangeInfo
from psycopg.types.range import RangeInfo

from docferry.capture.catalog import Types
from docferry.change.model import PgType, TypeKind
from docferry.change.wire import WireError
from docferry.source.session import connect

__all__ = ["TypeLookup", "builtin_type"]

# As pg_type.typname has them, where psycopg gives the SQL name.
_NAMES: Final = {
    '"char"': "char",
    "bigint": "int8",
    "boolean": "bool",
    "character": "bpchar",
    "character varying": "varchar",
    "double precision": "float8",
    "integer": "int4",
    "real": "float4",
    "smallint": "int2",
    "time with time zone": "timetz",
    "time without time zone": "time",
    "timestamp with time zone": "timestamptz",
    "timestamp without time zone": "timestamp",
}


@cache
def builtin_type(oid: int) -> PgType:
    """The type. Raises WireError for one that is not PostgreSQL's own: an enum, a domain, an extension's."""
    info = registry.get(oid)
    if info is None:
        raise WireError(
            f"type {oid} is not one of PostgreSQL's own; what it is only the database says, which is out of reach here"
        )
    name = _NAMES.get(info.name, info.name)
    if info.array_oid == oid:
        return PgType(oid, f"_{name}", TypeKind.ARRAY, builtin_type(info.oid), delimiter=info.delimiter)
    if isinstance(info, MultirangeInfo):
        return PgType(oid, name, TypeKind.MULTIRANGE, builtin_type(info.range_oid), delimiter=info.delimiter)
    if isinstance(info, RangeInfo):
        return PgType(oid, name, TypeKind.RANGE, builtin_type(info.subtype_oid), delimiter=info.delimiter)
    return PgType(oid, name, delimiter=info.delimiter)


class TypeLookup:
    """Types by oid: PostgreSQL's own without asking, others from the catalog of `dsn`, if there is one. Raises
    WireError for a type that cannot be known, SourceUnavailable."""

    def __init__(self, dsn: str | None) -> None:
        self._dsn = dsn
        self._known: dict[int, PgType] = {}

    def __call__(self, oid: int) -> PgType:
        """The type."""
        known = self._known.get(oid)
        if known is None:
            if self._dsn is None or registry.get(oid) is not None:
                return builtin_type(oid)
            with connect(self._dsn, purpose="catalog") as connection:
                known = self._known[oid] = Types(connection)(oid)
        return known
