"""Values of documents, as people are shown them."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any, Final

from docferry.operate.difference import ABSENT
from docferry.printable import one_line

__all__ = ["shown_value"]

_LONGEST: Final = 120


def shown_value(value: Any, longest: int | None = _LONGEST) -> str:
    """A document's value on one line, as JSON writes it; bytes in hexadecimal. `longest`: so many characters."""
    if value is ABSENT:
        return "(absent)"
    try:
        text = one_line(_text(value))
    except RecursionError:
        return "(nested too deeply to be shown)"
    if longest is not None and len(text) > longest:
        return f"{text[: longest - 1]}… ({len(text):,} characters)"
    return text


def _text(value: Any) -> str:
    match value:
        case Decimal():
            return format(value, "f")
        case bytes():
            return "0x" + value.hex()
        case dict():
            return "{" + ", ".join(f"{_text(name)}: {_text(entry)}" for name, entry in value.items()) + "}"
        case list():
            return "[" + ", ".join(map(_text, value)) + "]"
        case _:
            return json.dumps(value, ensure_ascii=False)
