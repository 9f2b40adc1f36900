"""From an item's key back to the text of the key columns: which row could have made it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from decimal import Decimal

from docferry.change.model import PgType
from docferry.document.keys import template_columns
from docferry.document.model import Key, KeyValue, MirrorSpec
from docferry.document.values import base_type

__all__ = ["is_reversible", "source_key"]


def is_reversible(types: Sequence[PgType]) -> bool:
    """Whether an item's key tells its row's key columns, which are of these types. A string in jsonb loses its quotes
    on the way, so the same text may stand for several values."""
    return all(base_type(of).name != "jsonb" for of in types)


def source_key(spec: MirrorSpec, types: Sequence[PgType], key: Key) -> tuple[str, ...] | None:
    """The text of each key column of the only row that can have an item of this key, as PostgreSQL reads it; None when
    no row can. `types`: of the key columns, in the order of `spec.key`.

    Whether there is such a row, and whether its own key is this one, is for the reader to find out: the text may even
    be none of the column's type.
    """
    of = dict(zip(spec.key, types, strict=True))
    texts: dict[str, str] = {}
    for position, value in enumerate(key):
        template = spec.templates[position] if spec.templates else None
        if template is None:
            name = spec.key[position]
            found: Mapping[str, str] | None = {name: _own_text(of[name], value)}
        else:
            found = _from_template(template, of, value)
        if found is None or any(texts.get(name, text) != text for name, text in found.items()):
            return None
        texts.update(found)
    if any("\0" in text for text in texts.values()):
        return None  # PostgreSQL has no such text
    return tuple(texts[name] for name in spec.key)


def _own_text(of: PgType, value: KeyValue) -> str:
    match value:
        case bytes():
            return f"\\x{value.hex()}"
        case Decimal():
            return format(value, "f")
        case int():
            return str(value)
    return _text(of, value)


def _text(of: PgType, text: str) -> str:
    return f"\\x{text}" if base_type(of).name == "bytea" else text


def _from_template(template: str, of: Mapping[str, PgType], value: KeyValue) -> dict[str, str] | None:
    """What the template was filled with. A separator does not occur in the column before it, so the shortest match is
    the one (see keys.template_part)."""
    pieces = template_columns(template)
    names = [name for _, name in pieces if name is not None]
    pattern, left = "", len(names)
    for literal, name in pieces:
        pattern += re.escape(literal)
        if name is not None:
            left -= 1
            pattern += "(.*?)" if left else "(.*)"
    matched = re.fullmatch(pattern, value, re.DOTALL) if isinstance(value, str) else None
    if matched is None:
        return None
    found: dict[str, str] = {}
    for name, text in zip(names, matched.groups(), strict=True):
        if found.setdefault(name, _text(of[name], text)) != _text(of[name], text):
            return None
    return found
