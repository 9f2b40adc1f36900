"""Names: of tables as the configuration writes them, of attributes that are taken, of columns in a key template."""

from __future__ import annotations

import re
from string import Formatter

__all__ = ["COLLECTION", "RESERVED", "SLOT", "quoted_table", "split_table", "template_columns"]

RESERVED = frozenset({"_v", "_h", "_gone", "_ttl"})
"""Attributes that docferry writes itself (DESIGN section 4)."""

SLOT = re.compile(r"[a-z0-9_]{1,63}")
COLLECTION = re.compile(r"[A-Za-z0-9_.-]{3,255}")

_PART = re.compile(r'"(?P<quoted>(?:[^"\0]|"")+)"|(?P<bare>[^".\s\0]+)')


def split_table(text: str) -> tuple[str, str] | None:
    """(schema, name) of `orders`, `public.orders` or `"My schema"."my.table"`; None when it is none of these.

    Names are taken as they are written, without folding to lower case: what is in the catalog is what is meant.
    """
    parts = []
    position = 0
    while True:
        match = _PART.match(text, position)
        if match is None:
            return None
        parts.append(match["bare"] if match["quoted"] is None else match["quoted"].replace('""', '"'))
        position = match.end()
        if position == len(text):
            break
        if text[position] != "." or len(parts) == 2:
            return None
        position += 1
    if any(len(part.encode()) > 63 for part in parts):
        return None
    return (parts[0], parts[1]) if len(parts) == 2 else ("public", parts[0])


def quoted_table(schema: str, name: str) -> str:
    """The inverse of `split_table`: schema and name as the configuration writes them."""
    return ".".join(
        part if (match := _PART.fullmatch(part)) and match["bare"] else '"' + part.replace('"', '""') + '"'
        for part in (schema, name)
    )


def template_columns(template: str) -> tuple[str, ...] | None:
    """The columns named in a key template such as `ORDER#{id}`, in order; None when it is none.

    Braces pair, `{{` and `}}` are braces as text, and two columns have text between them: "1" and "23" joined are "12"
    and "3" joined.
    """
    columns = []
    previous = None
    try:
        for literal, name, form, conversion in Formatter().parse(template):
            if name is not None and (not name or form or conversion):
                return None
            if name is not None and previous is not None and not literal:
                return None
            if name is not None:
                columns.append(name)
            previous = name if name is not None else previous if not literal else None
    except ValueError:
        return None
    return tuple(columns)
