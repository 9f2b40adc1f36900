"""From a row to what the target has to do: the converter of one mirror."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

from docferry.change.model import UNCHANGED, Column, PgType, Relation, Row, TypeKind
from docferry.change.renames import current_names
from docferry.document import json, xml
from docferry.document.keys import column_part, template_columns, template_part
from docferry.document.model import (
    Delete,
    DocumentFormat,
    DocumentSpec,
    Key,
    KeyKind,
    KeyValue,
    MirrorSpec,
    Put,
    Value,
)
from docferry.document.shape import shaped
from docferry.document.values import Convert, base_type, compiled, holds_number_as_text
from docferry.errors import ConfigError, KeyRefused, RowRefused, ValueRefused
from docferry.printable import one_line

__all__ = ["RESERVED_ATTRIBUTES", "Converter", "document_format"]

RESERVED_ATTRIBUTES: Final = frozenset({"_v", "_h", "_gone", "_ttl"})
"""Names of an item's meta attributes, which no carried column may have."""

_PLANS: Final = 32
_OWN_FORMAT: Final = {"xml": DocumentFormat.XML, "json": DocumentFormat.JSON, "jsonb": DocumentFormat.JSON}
_TEXT_TYPES: Final = frozenset({"text", "varchar", "bpchar", "citext"})

_MakeKey: TypeAlias = Callable[[dict[str, bytes]], KeyValue]


def document_format(of: PgType) -> DocumentFormat | None:
    """The format that a type itself stands for: xml, json, jsonb and domains over them."""
    of = base_type(of)
    return _OWN_FORMAT.get(of.name) if of.kind is TypeKind.BASE else None


@dataclass(frozen=True, slots=True)
class _Plan:
    """How rows of one relation are converted. `columns`: (attribute, index in the row, conversion) of carried columns.
    `key_columns`: (name in the specification, index). `identified`: the replica identity holds them."""

    columns: tuple[tuple[str, int, Convert], ...]
    key_columns: tuple[tuple[str, int], ...]
    make_key: tuple[_MakeKey, ...]
    key_as_stored: tuple[tuple[str, int], ...]
    identified: bool


class Converter:
    """Converts the rows of one mirror. Pure, and safe to use from several threads.

    A relation is looked at once, when its first row comes; ConfigError is raised then if it does not fit the mirror.
    RowRefused errors name the table and the key.
    """

    def __init__(self, spec: MirrorSpec) -> None:
        self.spec = spec
        self._plans: dict[Relation, _Plan] = {}
        _check(spec)

    def put(self, relation: Relation, row: Row, version: int, *, new: bool = False) -> Put:
        """Store the row's document. `row` carries every column; ValueError if it does not."""
        plan = self._plan(relation)
        if UNCHANGED in row:
            raise ValueError(f"a row of {relation.table} that does not carry every column cannot be converted (R5)")
        document: dict[str, Value] = {}
        name = ""
        try:
            for name, index, convert in plan.columns:
                raw = row[index]
                # UNCHANGED is no text, and was refused above.
                document[name] = None if raw is None else convert(raw)  # type: ignore[arg-type]
            name = ""
            key = self._key(plan, row)
        except RowRefused as error:
            if name:
                error.problem = f'column "{name}": {error.problem}'
            raise error.at(relation.table, self._shown(plan, row)) from None
        except (ValueError, ArithmeticError, TypeError) as error:
            raise self._misread(relation, plan, row, name, error) from error
        for attribute, position in plan.key_as_stored:
            document[attribute] = key[position]
        return Put(self.spec.collection, key, version, document, new)

    def delete(self, relation: Relation, old_row: Row, version: int) -> Delete:
        """Leave a tombstone under the old row's key. `old_row` carries at least the key columns."""
        return Delete(self.spec.collection, self.key(relation, old_row), version)

    def key(self, relation: Relation, row: Row) -> Key:
        """The item's key. `row` carries at least the key columns. Raises KeyRefused."""
        plan = self._plan(relation)
        try:
            return self._key(plan, row)
        except RowRefused as error:
            raise error.at(relation.table, self._shown(plan, row)) from None
        except (ArithmeticError, ValueError, TypeError) as error:
            raise self._misread(relation, plan, row, "", error) from error

    def key_indexes(self, relation: Relation) -> tuple[int, ...]:
        """Where the key columns stand in the relation's rows, in the order of the specification's `key`."""
        return tuple([index for _, index in self._plan(relation).key_columns])

    def is_identified(self, relation: Relation) -> bool:
        """Whether an UPDATE without an old row left the key as it was: the replica identity holds the key."""
        return self._plan(relation).identified

    def show_key(self, relation: Relation, row: Row) -> str:
        """The key columns for people: `id=7`, `a=1,b=2`."""
        return self._shown(self._plan(relation), row)

    def numbers_as_text(self, relation: Relation, row: Row) -> tuple[str, ...]:
        """The carried columns in which a number is stored as text because it is beyond what a number can be (R9). XML
        and YAML columns are not looked into. For `plan`; it converts the row once more."""
        types = {column.name: column.type for column in relation.columns}
        found = []
        for name, index, _ in self._plan(relation).columns:
            raw = row[index]
            if isinstance(raw, bytes) and name not in self.spec.documents and holds_number_as_text(types[name], raw):
                found.append(name)
        return tuple(found)

    # --- inside -------------------------------------------------------------------------------------------------------

    def _plan(self, relation: Relation) -> _Plan:
        plan = self._plans.get(relation)
        if plan is None:
            plan = _make_plan(self.spec, relation)
            if len(self._plans) >= _PLANS:
                self._plans.clear()
            self._plans[relation] = plan
        return plan

    def _key(self, plan: _Plan, row: Row) -> Key:
        raws: dict[str, bytes] = {}
        for name, index in plan.key_columns:
            raw = row[index]
            if raw is None:
                raise KeyRefused(f'key column "{name}" is NULL, which cannot be part of a key')
            if raw is UNCHANGED:
                raise ValueError(f'key column "{name}" is not carried')
            raws[name] = raw
        return tuple([make(raws) for make in plan.make_key])

    def _shown(self, plan: _Plan, row: Row) -> str:
        shown = []
        for name, index in plan.key_columns:
            raw = row[index]
            shown.append(f"{name}={raw.decode(errors='replace') if isinstance(raw, bytes) else 'NULL'}")
        return one_line(",".join(shown))

    def _misread(
        self, relation: Relation, plan: _Plan, row: Row, column: str, error: Exception
    ) -> ValueError | ValueRefused:
        if UNCHANGED in [row[index] for _, index in plan.key_columns]:
            return ValueError(f"a row of {relation.table} that does not carry its key cannot be converted")
        # The value itself stays out of the message: messages go to logs, values may be personal.
        types = {known.name: known.type.name for known in relation.columns}
        what = (
            f'column "{column}" is not readable as {types.get(column, "its type")}'
            if column
            else "the key is unreadable"
        )
        return ValueRefused(f"{what}: {type(error).__name__}", table=relation.table, key=self._shown(plan, row))


def _check(spec: MirrorSpec) -> None:
    """What can be said of a specification without a table. Raises ConfigError."""
    for document in spec.documents.values():
        _reader(document)  # a missing extra is said at once
    attributes = spec.collection.key
    templates = spec.templates or (None,) * len(attributes)
    if len(templates) != len(attributes):
        raise ConfigError(
            f"{spec.table}: {len(templates)} key templates for {len(attributes)} key attributes",
            remedy="Give one template for each key attribute.",
        )
    used: set[str] = set()
    for position, (template, attribute) in enumerate(zip(templates, attributes, strict=True)):
        if template is not None:
            used.update(name for _, name in template_columns(template) if name is not None)
            if attribute.kind is not KeyKind.TEXT:
                raise ConfigError(f'{spec.table}: key attribute "{attribute.name}" has a template, so it must be text')
        elif position < len(spec.key):
            used.add(spec.key[position])
        else:
            raise ConfigError(
                f'{spec.table}: key attribute "{attribute.name}" has no key column and no template',
                remedy="Name as many key columns as the collection has key attributes, or give templates.",
            )
    missing = [name for name in spec.key if name not in used]
    if missing:
        raise ConfigError(
            f"{spec.table}: the item's key leaves out the key column {', '.join(missing)}, so rows would share an item",
            remedy="Use every key column in a key template; an item's key has two attributes at most.",
        )


def _make_plan(spec: MirrorSpec, relation: Relation) -> _Plan:
    key_columns = _key_columns(spec, relation)
    stored: list[tuple[str, int]] = []
    make_key: list[_MakeKey] = []
    types = {name: relation.columns[index].type for name, index in key_columns}
    carried = [
        (column.name, index, _conversion(spec, relation, column))
        for index, column in enumerate(relation.columns)
        if _is_carried(spec, relation, column)
    ]
    names = {name for name, _, _ in carried}
    for position, attribute in enumerate(spec.collection.key):
        template = spec.templates[position] if spec.templates else None
        if template is not None:
            make_key.append(template_part(spec, template, types))
            own = None
        else:
            name, index = key_columns[position]
            make_key.append(_own_value(name, types[name], attribute.kind))
            own = relation.columns[index].name
        if attribute.name not in names:
            continue
        if attribute.name != own:
            raise ConfigError(
                f'{spec.table}: key attribute "{attribute.name}" and the column of that name hold different values',
                remedy=f'Name the key attribute differently, or exclude the column "{attribute.name}".',
            )
        stored.append((attribute.name, position))
    identity = {index for index, column in enumerate(relation.columns) if column.is_key}
    identified = not identity or identity.issuperset(index for _, index in key_columns)
    return _Plan(tuple(carried), key_columns, tuple(make_key), tuple(stored), identified)


def _own_value(name: str, of: PgType, kind: KeyKind) -> _MakeKey:
    part = column_part(name, of, kind)
    return lambda raws: part(raws[name])


def _key_columns(spec: MirrorSpec, relation: Relation) -> tuple[tuple[str, int], ...]:
    """The key columns' places. After a rename the replica identity still says which they are."""
    places = {column.name: index for index, column in enumerate(relation.columns)}
    identity = [column.name for column in relation.columns if column.is_key]
    if len(identity) == len(relation.columns) > len(spec.key):
        identity = []  # with REPLICA IDENTITY FULL every column is marked, which says nothing about the key
    names = current_names(spec.key, places, identity, former=spec.columns)
    if names is not None:
        return tuple((name, places[now]) for name, now in zip(spec.key, names, strict=True))
    missing = ", ".join(f'"{name}"' for name in spec.key if name not in places)
    raise ConfigError(
        f"{relation.table}: key column {missing} does not exist (any more), and nothing says what it is called now",
        remedy="Set `key` of this mirror to the columns that are the key now "
        f"({relation.table} has {', '.join(places)}); then `docferry apply`.",
    )


def _is_carried(spec: MirrorSpec, relation: Relation, column: Column) -> bool:
    if column.name in spec.exclude or (spec.include is not None and column.name not in spec.include):
        return False
    if column.name in RESERVED_ATTRIBUTES:
        raise ConfigError(
            f'{relation.table}: column "{column.name}" has the name of an attribute that docferry keeps in every item',
            remedy=f'Add exclude = ["{column.name}"] to this mirror, or rename the column.',
        )
    return True


def _conversion(spec: MirrorSpec, relation: Relation, column: Column) -> Convert:
    wanted = spec.documents.get(column.name)
    if wanted is None:
        return compiled(column.type)
    own = document_format(column.type)
    of = base_type(column.type)
    if own is not None and own is not wanted.format:
        raise ConfigError(
            f'{relation.table}: column "{column.name}" is of type {of.name}, but format = "{wanted.format}" is set',
            remedy=f'Set format = "{own}" in [mirrors.documents.{column.name}], or leave the table out.',
        )
    if own is None and (of.kind is not TypeKind.BASE or of.name not in _TEXT_TYPES):
        raise ConfigError(
            f'{relation.table}: column "{column.name}" of type {of.name} cannot hold documents',
            remedy=f"Remove [mirrors.documents.{column.name}]; it takes a column of type xml, json, jsonb or text.",
        )
    return shaped(_reader(wanted), wanted)


def _reader(spec: DocumentSpec) -> Convert:
    match spec.format:
        case DocumentFormat.XML:
            return xml.parse
        case DocumentFormat.JSON:
            return json.parse
        case DocumentFormat.YAML:
            from docferry.document import yaml  # optional dependency, asked for only here

            return yaml.parse
