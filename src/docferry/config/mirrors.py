"""The [[mirrors]] of the file: each by itself, then all of them together."""

from __future__ import annotations

from typing import Final

from docferry.config.model import DocumentConfig, Format, ItemKeyAttribute, MirrorConfig
from docferry.config.names import COLLECTION, RESERVED, split_table, template_columns
from docferry.config.section import Section

__all__ = ["read_mirrors"]

_FORMATS: Final[tuple[Format, ...]] = ("xml", "json", "yaml")
_TEMPLATE: Final = 'a template such as "ORDER#{id}": columns in braces, with text between two of them'
_NOT_CARRIED: Final = "Add it to `include`, or take it out of `exclude`."


def read_mirrors(top: Section, table_prefix: str) -> tuple[MirrorConfig, ...]:
    """Every mirror. `table_prefix` counts towards the length of a collection's name. Raises ConfigError."""
    sections = top.sections("mirrors")
    if not sections:
        top.refuse("mirrors", "there is none", remedy='Add at least one:\n[[mirrors]]\ntable = "public.orders"')
    mirrors: list[MirrorConfig] = []
    for section in sections:
        mirror = _read_mirror(section, table_prefix)
        for index, other in enumerate(mirrors):
            if other.table == mirror.table:
                section.refuse("table", f"{mirror.table} is mirrored by mirrors[{index}] already")
            if other.collection == mirror.collection:
                remedy = "Give each mirror a `collection` of its own."
                section.refuse("collection", f"mirrors[{index}] goes into `{mirror.collection}` already", remedy=remedy)
        mirrors.append(mirror)
    return tuple(mirrors)


def _read_mirror(section: Section, table_prefix: str) -> MirrorConfig:
    table_text = section.text("table", expected='a table, such as "public.orders"')
    if table_text is None:
        section.refuse("table", 'missing, expected a table, such as "public.orders"')
    table = split_table(table_text)
    if table is None:
        section.unexpected("table", 'a table, such as "public.orders", with quotes around unusual parts')
    schema, name = table
    if "." in schema:
        section.refuse("table", f"the schema `{schema}` has a dot in its name, which docferry does not support")
    key = section.names("key", taken=RESERVED)
    include = section.names("include", taken=RESERVED)
    exclude = section.names("exclude")
    if include is not None and exclude is not None:
        section.refuse("exclude", "`include` and `exclude` exclude each other", remedy="Keep one of the two.")
    mirror = MirrorConfig(
        table=f"{schema}.{name}",
        collection=_read_collection(section, name, table_prefix),
        key=key,
        item_key=_read_item_key(section, key),
        include=None if include is None else frozenset(include),
        exclude=frozenset(exclude or ()),
        documents=_read_documents(section.section("documents")),
    )
    _refuse_contradictions(section, mirror)
    section.finish()
    return mirror


def _read_collection(section: Section, table_name: str, table_prefix: str) -> str:
    given = section.text("collection")
    collection = table_name if given is None else given
    whole = table_prefix + collection
    if not COLLECTION.fullmatch(whole):
        problem = f'"{whole}" is not a name DynamoDB takes: 3 to 255 of the characters A-Z, a-z, 0-9, _, - and .'
        section.refuse("collection", problem, remedy="Set `collection` (the default is the table's name).")
    return collection


def _read_item_key(section: Section, key: tuple[str, ...] | None) -> tuple[ItemKeyAttribute, ...] | None:
    if not section.has("item_key"):
        if key is not None and len(key) > 2:
            remedy = 'Add item_key, such as { pk = "{a}", sk = "{b}#{c}" }.'
            section.refuse("key", f"{len(key)} columns, and an item has at most 2 key attributes", remedy=remedy)
        return None
    templates = section.section("item_key")
    attributes = []
    used: list[str] = []
    for name in templates.keys():  # noqa: SIM118 - not a dict
        template = templates.text(name, expected='a template, such as "ORDER#{id}"')
        columns = None if template is None else template_columns(template)
        if template is None or columns is None:
            templates.unexpected(name, _TEMPLATE)
        if not name.strip():
            templates.refuse(name, "the attribute's name is empty")
        if name in RESERVED:
            templates.refuse_reserved(name, name)
        if name in columns and template != f"{{{name}}}":
            remedy = "Choose another attribute name: the column is carried under its own."
            templates.refuse(
                name, f"the attribute has the name of the column `{name}` and another value", remedy=remedy
            )
        attributes.append(ItemKeyAttribute(name, template))
        used.extend(columns)
    if not 1 <= len(attributes) <= 2:
        section.refuse("item_key", f"found {len(attributes)} entries, expected 1 (partition key) or 2 (and sort key)")
    _refuse_unsound_templates(section, key, used)
    return tuple(attributes)


def _refuse_unsound_templates(section: Section, key: tuple[str, ...] | None, used: list[str]) -> None:
    """Two rows must never share an item, and a delete knows nothing but the key columns."""
    if not used:
        section.refuse("item_key", "no column occurs in it, so every row would be the same item")
    for column in used if key is not None else ():
        if column not in (key or ()):
            remedy = "Use columns of `key` only: a delete brings no others."
            section.refuse("item_key", f"`{column}` is not a key column", remedy=remedy)
    for column in key or ():
        if column not in used:
            remedy = f"Use {{{column}}} in a template."
            section.refuse("item_key", f"the key column `{column}` does not occur in it", remedy=remedy)


def _read_documents(section: Section) -> dict[str, DocumentConfig]:
    documents = {}
    for column in section.keys():  # noqa: SIM118 - not a dict
        if column in RESERVED:
            section.refuse_reserved(column, column)
        document = section.section(column)
        format_ = document.choice("format", _FORMATS)
        if format_ is None:
            document.refuse("format", "missing, expected one of xml, json, yaml")
        documents[column] = DocumentConfig(
            format=format_,
            lists=frozenset(document.names("lists") or ()),
            numbers=frozenset(document.names("numbers") or ()),
        )
        document.finish()
    return documents


def _refuse_contradictions(section: Section, mirror: MirrorConfig) -> None:
    for column in mirror.key or ():
        if not _carried(mirror, column):
            section.refuse("key", f"`{column}` is a key column and is not carried", remedy=_NOT_CARRIED)
        if column in mirror.documents:
            section.refuse("key", f"`{column}` is a document column, which cannot be a key")
    for column in mirror.documents:
        if not _carried(mirror, column):
            section.refuse("documents", f"`{column}` is described and is not carried", remedy=_NOT_CARRIED)


def _carried(mirror: MirrorConfig, column: str) -> bool:
    return column not in mirror.exclude and (mirror.include is None or column in mirror.include)
