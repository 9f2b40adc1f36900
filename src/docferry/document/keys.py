"""From key columns to an item's key: own values and templates such as `ORDER#{id}-{line}`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from decimal import Context, Decimal
from itertools import pairwise
from string import Formatter
from typing import Final, TypeAlias

from docferry.change.model import PgType
from docferry.document.limits import MAX_DIGITS
from docferry.document.model import KeyKind, KeyValue, MirrorSpec, Value
from docferry.document.values import compiled
from docferry.errors import ConfigError, KeyRefused

__all__ = ["KeyPart", "column_part", "template_columns", "template_part"]

KeyPart: TypeAlias = Callable[[bytes], KeyValue]
"""Raw text of a key column to what it contributes to the key. Raises KeyRefused."""

_EXACT: Final = Context(prec=MAX_DIGITS)
_KINDS_REMEDY: Final = (
    "Choose a key column of another type, or put the column into a key template, which makes it text."
)


def column_part(name: str, of: PgType, kind: KeyKind) -> KeyPart:
    """A key attribute that is the column's own value."""
    convert = compiled(of)

    def part(raw: bytes) -> KeyValue:
        value = convert(raw)
        if kind is KeyKind.TEXT:
            text = _text(value, raw)
            if not text:
                raise KeyRefused(f'key column "{name}" is empty text, which cannot be a key')
            return text
        if kind is KeyKind.BINARY:
            if not isinstance(value, bytes):
                raise KeyRefused(
                    f'key column "{name}" is not binary, as the collection\'s key is', remedy=_KINDS_REMEDY
                )
            if not value:
                raise KeyRefused(f'key column "{name}" holds no bytes, which cannot be a key')
            return value
        if isinstance(value, bool) or not isinstance(value, int | Decimal):
            raise KeyRefused(
                f'key column "{name}" holds no number that can be a key',
                limit=f"finite, {MAX_DIGITS} digits",
                remedy=_KINDS_REMEDY,
            )
        return value

    return part


def _text(value: Value, raw: bytes) -> str:
    """Equal keys must give equal text: numbers lose trailing zeros, so that 1.0 and 1.00 are one key."""
    match value:
        case str():
            return value
        case bool():
            return "true" if value else "false"
        case Decimal():
            return format(value.normalize(_EXACT), "f")
        case int():
            return str(value)
        case bytes():
            return value.hex()
        case _:
            return raw.decode()


def template_columns(template: str) -> list[tuple[str, str | None]]:
    """The template as (text, column after it or None) pieces. Raises ConfigError."""
    pieces: list[tuple[str, str | None]] = []
    text = ""
    try:
        for literal, name, form, conversion in Formatter().parse(template):
            if name is not None and (not name or form or conversion):
                raise ValueError("a placeholder is a column name in braces, nothing more")
            text += literal  # a doubled brace ends a piece as well
            if name is not None:
                pieces.append((text, name))
                text = ""
    except ValueError as error:
        raise ConfigError(
            f'key template "{template}" cannot be read: {error}',
            remedy='Write it like "ORDER#{id}"; a brace that is meant as text is doubled: "{{".',
        ) from None
    if text:
        pieces.append((text, None))
    for (_, name), (literal, after) in pairwise(pieces):
        if after is not None and not literal:
            raise ConfigError(
                f'key template "{template}" joins {{{name}}} and {{{after}}}, so two rows could share a key',
                remedy=f'Put text between them that does not occur in {name}, such as "#".',
            )
    return pieces


def template_part(spec: MirrorSpec, template: str, types: Mapping[str, PgType]) -> Callable[[Mapping[str, bytes]], str]:
    """A key attribute that is made from a template; the result takes the raw text of every key column by name."""
    pieces = template_columns(template)
    convert = {}
    for _, name in pieces:
        if name is None:
            continue
        if name not in types:
            raise ConfigError(
                f'{spec.table}: key template "{template}" names "{name}", which is not a key column',
                remedy=f"Use the key columns: {', '.join(spec.key)}.",
            )
        convert[name] = compiled(types[name])
    # For each piece, the text that must not be mistaken for part of the column before it; "" when nothing follows that
    # would make a mistake matter.
    following = [
        literal if any(after for _, after in pieces[index + 1 :]) else ""
        for index, (literal, _) in enumerate([*pieces[1:], ("", None)])
    ]

    def part(raws: Mapping[str, bytes]) -> str:
        texts = []
        for (literal, name), next_literal in zip(pieces, following, strict=True):
            texts.append(literal)
            if name is None:
                continue
            text = _text(convert[name](raws[name]), raws[name])
            if next_literal and (text + next_literal).index(next_literal) < len(text):
                raise KeyRefused(
                    f'key column "{name}" contains "{next_literal}", which separates it in the template "{template}"',
                    remedy="Choose a separator that does not occur in the column, then populate again.",
                )
            texts.append(text)
        key = "".join(texts)
        if not key:
            raise KeyRefused(f'key template "{template}" gives empty text, which cannot be a key')
        return key

    return part
