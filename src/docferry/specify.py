"""From the configuration of a mirror and its table to its specification. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

from docferry.capture.catalog import TableInfo
from docferry.change.model import PgType, Relation
from docferry.change.wire import EventDecoder, WireError
from docferry.config import Config, MirrorConfig
from docferry.document.convert import RESERVED_ATTRIBUTES
from docferry.document.mirror import Mirror
from docferry.document.model import Collection, DocumentFormat, DocumentSpec, KeyAttribute, KeyKind, MirrorSpec
from docferry.document.values import key_kind
from docferry.errors import ConfigError, EventRefused

__all__ = ["EventMirrors", "column_problems", "fingerprint", "mirror_spec"]


def mirror_spec(mirror: MirrorConfig, relation: Relation, key: tuple[str, ...], prefix: str) -> MirrorSpec:
    """The specification of a mirror of `relation`. Raises ConfigError."""
    types = {column.name: column.type for column in relation.columns}
    if mirror.item_key is not None:
        attributes = tuple(KeyAttribute(one.name, KeyKind.TEXT) for one in mirror.item_key)
        templates: tuple[str | None, ...] = tuple(one.template for one in mirror.item_key)
    elif len(key) > 2:
        raise ConfigError(
            f"the key of {mirror.table} has {len(key)} columns ({', '.join(key)}); an item's key has two at most",
            remedy=f'Give a template: item_key = {{ pk = "{"#".join("{" + name + "}" for name in key)}" }}.',
        )
    else:
        attributes = tuple(KeyAttribute(name, key_kind(types[name])) for name in key)
        templates = (None,) * len(key)
    documents = {
        name: DocumentSpec(DocumentFormat(document.format), document.lists, document.numbers)
        for name, document in mirror.documents.items()
    }
    return MirrorSpec(
        mirror.table,
        key,
        Collection(prefix + mirror.collection, attributes),
        templates,
        mirror.include,
        mirror.exclude,
        documents,
        frozenset(types),
    )


def column_problems(mirror: MirrorConfig, info: TableInfo) -> list[tuple[str, str]]:
    names = {column.name for column in info.relation.columns}
    asked = {
        "include": mirror.include or frozenset(),
        "exclude": mirror.exclude,
        "documents": frozenset(mirror.documents),
    }
    problems = []
    for setting, columns in asked.items():
        for name in sorted(columns - names):
            if name in info.generated:
                why = f"column {name} of {mirror.table} is generated, so changes do not carry it"
                problems.append((why, f"Remove it from {setting}."))
            else:
                why = f"{setting} of the mirror names column {name}, which {mirror.table} does not have"
                problems.append((why, f"Choose from: {', '.join(sorted(names))}."))
    carried = names - mirror.exclude if mirror.include is None else mirror.include
    problems.extend(
        (
            f"column {name} of {mirror.table} has the name of an attribute that docferry keeps in every item",
            f'Add exclude = ["{name}"] to the mirror of {mirror.table}, or rename the column.',
        )
        for name in sorted(carried & RESERVED_ATTRIBUTES)
    )
    return problems


def fingerprint(spec: MirrorSpec) -> str:
    """Of the settings that shape a mirror's items."""
    settings = {
        "key": spec.key,
        "collection": spec.collection.name,
        "attributes": [(one.name, one.kind) for one in spec.collection.key],
        "templates": spec.templates,
        "include": None if spec.include is None else sorted(spec.include),
        "exclude": sorted(spec.exclude),
        "documents": {
            name: (one.format, sorted(one.lists), sorted(one.numbers)) for name, one in sorted(spec.documents.items())
        },
    }
    return hashlib.blake2b(json.dumps(settings).encode(), digest_size=16).hexdigest()


class EventMirrors(dict[str, Mirror]):
    """Mirrors by table, made from what events say of their tables, where the catalog cannot be asked. `types`: finds a
    type by oid."""

    def __init__(self, config: Config, types: Callable[[int], PgType]) -> None:
        super().__init__()
        self._config = config
        self._decoder = EventDecoder(types)

    def learn(self, relations: Mapping[str, Any]) -> None:
        """The tables of an event. Raises ConfigError, and EventRefused for types that only the catalog knows."""
        for table, description in relations.items():
            mirror = self.by(table, description)
            if mirror is not None:
                self[table] = mirror

    def by(self, table: str, description: Mapping[str, Any]) -> Mirror | None:
        """The mirror of a table as an event describes it; None when it is not configured. Raises as `learn`."""
        configured = next((one for one in self._config.mirrors if one.table == table), None)
        if configured is None:
            return None
        key = configured.key or tuple(description["key"])
        columns, types = description["columns"], description["types"]
        try:
            relation = self._decoder.layout(table, int(description["oid"]), columns, types, key).relation
        except WireError as error:
            raise EventRefused(str(error)) from error
        spec = mirror_spec(configured, relation, key, self._config.target.table_prefix)
        known = self.get(table)
        return known if known is not None and known.spec == spec else Mirror(spec, relation.oid)
