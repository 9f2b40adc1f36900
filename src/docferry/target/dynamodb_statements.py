"""The PartiQL statements that carry writes, as ready JSON text up to their parameters. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from docferry.document.model import Collection
from docferry.target.dynamodb_items import EXPIRY, GONE, HASH, VERSION, quoted

__all__ = ["Shape", "delete_at_version", "delete_below", "put_shape", "tombstone_shape"]

MAX_STATEMENT_CHARACTERS = 8_192


@dataclass(frozen=True, slots=True)
class Shape:
    """How items of one set of attributes are written. `columns`: the attributes beside key and meta, in the order of
    their parameters. `insert` and `update`: the request's text up to the parameters, None when the statement would be
    longer than DynamoDB takes. Parameters of `insert`: key, columns, meta; of `update`: columns, meta, key, version."""

    columns: tuple[str, ...]
    insert: str | None
    update: str | None


def put_shape(collection: Collection, names: Iterable[str], retired: Iterable[str]) -> Shape:
    """For items that carry `names` and must lose the attributes `retired`."""
    keys = _key_names(collection)
    columns = tuple(sorted(set(names).difference(keys)))
    written = (*columns, VERSION, HASH)
    removed = (GONE, EXPIRY, *sorted(set(retired).difference(columns, keys)))
    update = _update(collection, written, removed)
    return Shape(columns, _begin(_insert(collection, written)), _begin(update))


def tombstone_shape(collection: Collection, known: Iterable[str]) -> Shape:
    """For tombstones over items that carry the attributes `known`. The update answers with what is left of the item."""
    written = (VERSION, GONE, EXPIRY)
    removed = (HASH, *sorted(set(known).difference(_key_names(collection))))
    update = _update(collection, written, removed) + " RETURNING ALL NEW *"
    return Shape((), _begin(_insert(collection, written)), _begin(update))


def delete_below(collection: Collection) -> str:
    """Removes an item below a version. Parameters: key, version."""
    return _begin_delete(collection, f"{_name(VERSION)} < ?")


def delete_at_version(collection: Collection) -> str:
    """Removes a tombstone that still has exactly a version. Parameters: key, version, true."""
    return _begin_delete(collection, f"{_name(VERSION)} = ? AND {_name(GONE)} = ?")


def _insert(collection: Collection, written: tuple[str, ...]) -> str:
    members = ", ".join("'" + name.replace("'", "''") + "': ?" for name in (*_key_names(collection), *written))
    return f"INSERT INTO {_name(collection.name)} VALUE {{{members}}}"


def _update(collection: Collection, written: tuple[str, ...], removed: tuple[str, ...]) -> str:
    # One keyword for each attribute: DynamoDB's parser takes no list after REMOVE.
    changes = " ".join([*(f"SET {_name(name)}=?" for name in written), *(f"REMOVE {_name(name)}" for name in removed)])
    return f"UPDATE {_name(collection.name)} {changes} WHERE {_where_key(collection)} AND {_name(VERSION)} < ?"


def _begin_delete(collection: Collection, condition: str) -> str:
    table, key = _name(collection.name), _where_key(collection)
    text = _begin(f"DELETE FROM {table} WHERE {key} AND {condition}")  # noqa: S608 - names are quoted, values parameters
    assert text is not None, "two key names of 255 characters do not fill a statement"
    return text


def _begin(statement: str) -> str | None:
    if len(statement) > MAX_STATEMENT_CHARACTERS:
        return None
    return f'{{"Statement":{quoted(statement)},"Parameters":['


def _where_key(collection: Collection) -> str:
    return " AND ".join(f"{_name(name)}=?" for name in _key_names(collection))


def _key_names(collection: Collection) -> tuple[str, ...]:
    return tuple(attribute.name for attribute in collection.key)


def _name(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
