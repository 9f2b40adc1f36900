"""What the value model allows, and the one way a number's text becomes a number.

The bounds are DynamoDB's for numbers; they are part of `document.model.Value`, so every target gets the same documents.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal
from typing import Final, TypeAlias

from docferry.errors import DocumentTooDeep, ItemTooLarge

__all__ = [
    "MAX_BYTES",
    "MAX_DEPTH",
    "MAX_DIGITS",
    "MAX_YAML_BYTES",
    "ParseNumber",
    "check_size",
    "number",
    "too_deep",
]

ParseNumber: TypeAlias = "Callable[[str], int | Decimal | str]"
"""What `number` is, and what may stand in for it."""

MAX_DIGITS: Final = 38
"""Significant digits of a number; leading and trailing zeros do not count."""

MAX_DEPTH: Final = 200
"""Levels of nesting that are read at all. No target stores as many (DynamoDB: 32), and everything behind the readers
may recurse without fear for the interpreter's stack."""

MAX_BYTES: Final = 8 << 20
"""Bytes of a document's text that are read at all. What is read takes a multiple of it in memory, of which a worker has
256 MiB (R10), and no target stores as much (DynamoDB: 400 KB)."""

MAX_YAML_BYTES: Final = 2 << 20
"""The same for YAML, which takes ten times as long to read."""

_SMALLEST: Final = -130
_LARGEST: Final = 125
_NUMBER: Final = re.compile(r"([+-]?)(?=[0-9.])([0-9]*)(?:\.([0-9]*))?(?:[eE]([+-]?[0-9]+))?", re.ASCII)


def too_deep() -> DocumentTooDeep:
    """The error for a document nested deeper than MAX_DEPTH."""
    return DocumentTooDeep("the document nests too deep", limit=f"{MAX_DEPTH} levels")


def check_size(raw: bytes, most: int = MAX_BYTES) -> None:
    """Raises ItemTooLarge for a document's text of more than `most` bytes."""
    if len(raw) > most:
        raise ItemTooLarge(f"the document has {len(raw):,} bytes of text", limit=f"{most:,} bytes of a document's text")


def number(text: str) -> int | Decimal | str:
    """`text` (a decimal number, exponent allowed) as an exact number, or as it is when it cannot be one.

    It stays text when it has more than 38 significant digits, when its magnitude is outside 1E-130..9.99E+125, and when
    it is `NaN`, `Infinity` or no number at all. Zero has no sign.
    """
    if len(text) <= MAX_DIGITS:
        if text.isdecimal() and text.isascii():
            return int(text)
        if text[:1] == "-" and text[1:].isdecimal() and text.isascii():
            return int(text)
    match = _NUMBER.fullmatch(text)
    if match is None:
        return text
    sign, whole, fraction, exponent = match.groups(default="")
    if not whole and not fraction:
        return text
    return _scaled(text, sign, whole + fraction, len(fraction), exponent)


def _scaled(text: str, sign: str, written: str, decimals: int, exponent: str) -> int | Decimal | str:
    digits = written.lstrip("0")
    significant = digits.rstrip("0")
    if not significant:
        return 0
    # An exponent of more than six digits is out of range whatever it multiplies, and slow or refused to compute with.
    if len(significant) > MAX_DIGITS or len(exponent) > 7:
        return text
    power = int(exponent or "0") - decimals + len(digits) - len(significant)
    if not _SMALLEST <= power + len(significant) - 1 <= _LARGEST:
        return text
    sign = "-" if sign == "-" else ""
    if power >= 0:
        return int(f"{sign}{significant}{'0' * power}")
    return Decimal(f"{sign}{significant}E{power}")
