"""Text that people are shown: names and values come from the database and may hold anything, such as sequences that
move a terminal's cursor, lines that look like ours, or characters that reverse the order of what follows."""

from __future__ import annotations

import re
from typing import Final

__all__ = ["UNSAFE_ON_A_LINE", "one_line", "printable", "printable_json"]

# Controls but for tab and line feed, separators of lines and paragraphs, direction marks, halves of surrogate pairs.
_CHARACTERS: Final = (
    "\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff"
)
_UNSAFE: Final = re.compile(f"[{_CHARACTERS}]")
UNSAFE_ON_A_LINE: Final = re.compile(f"[\t\n{_CHARACTERS}]")
"""A character that `one_line` escapes: whoever has an escape of his own must put it in the place of each of these."""


def printable(text: str) -> str:
    """`text` with what is unsafe on a terminal escaped, as `\\x1b` and `\\u202e`. Lines and tabs stay."""
    return _UNSAFE.sub(_escaped, text)


def one_line(text: str) -> str:
    """The same on one line."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def printable_json(text: str) -> str:
    """The same for a JSON document, in which only strings can hold such characters: the document stays equal."""
    return _UNSAFE.sub(lambda found: f"\\u{ord(found.group()):04x}", text)


def _escaped(found: re.Match[str]) -> str:
    number = ord(found.group())
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"
