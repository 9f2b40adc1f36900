"""Looks at a database for `docferry init`: which tables hold documents, and can they be mirrored?"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import closing
from typing import Any, Final

import psycopg
from psycopg import sql

from docferry.capture.catalog import TableInfo, Types, describe_table
from docferry.capture.eligibility import table_problems
from docferry.capture.findings import DocumentColumn, Format, TableFinding
from docferry.change.model import Column, PgType, TypeKind
from docferry.document import json, xml
from docferry.errors import DocferryError, RowRefused
from docferry.source.session import connect, translated
from docferry.source.statements import load

__all__ = ["inspect_documents"]

_log = logging.getLogger(__name__)
_SQL: Final = load("inspect.sql")
_OWN_FORMAT: Final[dict[str, Format]] = {"xml": "xml", "json": "json", "jsonb": "json"}
_TEXT: Final = frozenset({"text", "varchar", "bpchar"})


def inspect_documents(dsn: str) -> list[TableFinding]:
    """The tables with document columns, by name: first of all those of type xml, json and jsonb, and text columns whose
    sampled values are all XML documents or JSON objects.

    Reads the catalog and at most 1000 rows of each text column. A table that cannot be read now is left out with a
    warning. Raises SourceUnavailable, SourceRefused, ConfigError.
    """
    with closing(connect(dsn, purpose="init")) as connection:
        with translated():
            connection.execute(_SQL["careful"].encode())
            tables = connection.execute(_SQL["tables_with_documents"].encode()).fetchall()
        types = Types(connection)
        return list(_findings(connection, types, tables))


def _findings(
    connection: psycopg.Connection[tuple[Any, ...]], types: Types, tables: list[tuple[Any, ...]]
) -> Iterator[TableFinding]:
    for schema, name, rows in tables:
        try:
            info = describe_table(connection, types, f"{schema}.{name}")
        except DocferryError as error:
            if connection.closed:
                raise
            _log.warning("left out %s.%s: %s", schema, name, error)
            continue
        documents = tuple(_documents(connection, info))
        if not documents:
            continue
        key = _key(info)
        yield TableFinding(
            schema=schema,
            name=name,
            key=key,
            columns=tuple(column.name for column in info.relation.columns),
            documents=documents,
            rows=rows,
            problems=tuple(table_problems(info, key)),
            key_is_primary=key == info.primary_key,
        )


def _key(info: TableInfo) -> tuple[str, ...]:
    """The primary key; without one, the index that is the replica identity."""
    return info.primary_key or next((index.columns for index in info.indexes if index.replica_identity), ())


def _documents(connection: psycopg.Connection[tuple[Any, ...]], info: TableInfo) -> Iterator[DocumentColumn]:
    may_look = info.readable
    for column in info.relation.columns:
        base = _base(column.type)
        shown = info.type_names[column.name]
        if base in _OWN_FORMAT:
            yield DocumentColumn(column.name, shown, _OWN_FORMAT[base])
        elif base in _TEXT and may_look:
            values = _sample(connection, info, column)
            may_look = values is not None
            if values and (format_ := _format_of(values)) is not None:
                yield DocumentColumn(column.name, shown, format_, len(values))


def _base(type_: PgType) -> str:
    while type_.kind is TypeKind.DOMAIN and type_.element is not None:
        type_ = type_.element
    return type_.name if type_.kind is TypeKind.BASE else ""


def _sample(connection: psycopg.Connection[tuple[Any, ...]], info: TableInfo, column: Column) -> list[bytes] | None:
    """Values of a text column; None when the table cannot be read now."""
    statement = sql.SQL(_SQL["sample"]).format(
        column=sql.Identifier(column.name), table=sql.Identifier(info.relation.schema, info.relation.name)
    )
    try:
        with translated():
            return [value.encode() for (value,) in connection.execute(statement).fetchall()]
    except DocferryError as error:
        # Row level security or a lock: the table is still worth mentioning for its other columns.
        if connection.closed:
            raise
        _log.warning("did not look into the text columns of %s: %s", info.table, error)
        return None


def _format_of(values: list[bytes]) -> Format | None:
    """The format of all of them; there is at least one."""
    if all(map(_is_xml, values)):
        return "xml"
    if all(map(_is_json, values)):
        return "json"
    return None


def _is_xml(text: bytes) -> bool:
    if not text.lstrip().startswith(b"<"):
        return False
    try:
        document = xml.parse(text)
    except RowRefused:
        return False
    # One root element. Scraps of HTML in running text are well-formed too, and no documents.
    return isinstance(document, dict) and len(document) == 1 and not next(iter(document)).startswith("#")


def _is_json(text: bytes) -> bool:
    if not text.lstrip().startswith(b"{"):
        return False
    try:
        return isinstance(json.parse(text), dict)
    except RowRefused:
        return False
