"""JSON text to a value, every digit kept."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Final

from docferry.document.limits import MAX_DEPTH, ParseNumber, check_size, number, too_deep
from docferry.document.model import Value
from docferry.errors import DocumentInvalid

__all__ = ["parse", "reader"]

_SURROGATE: Final = re.compile(rb"\\u[dD][89a-fA-F]")


def reader(parse_number: ParseNumber) -> Callable[[bytes], Value]:
    """A function like `parse` that leaves the numbers to `parse_number`."""
    decoder = json.JSONDecoder(parse_int=parse_number, parse_float=parse_number, parse_constant=_not_json)

    def read(raw: bytes) -> Value:
        if not raw or raw.isspace():
            return None
        check_size(raw)
        try:
            value: Value = decoder.decode(raw.decode().removeprefix("\ufeff"))
        except RecursionError:
            raise too_deep() from None
        except json.JSONDecodeError as error:
            raise DocumentInvalid(f"not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from None
        except ValueError as error:
            raise DocumentInvalid(f"not JSON: {error}") from None
        # Counting brackets is cheap, and few documents have as many.
        if raw.count(b"[") + raw.count(b"{") > MAX_DEPTH:
            _check_depth(value)
        if _SURROGATE.search(raw) is not None:
            _check_text(value)
        return value

    return read


def _not_json(text: str) -> Value:
    raise ValueError(f"{text} is not a JSON number")


_parse: Final = reader(number)


def parse(raw: bytes) -> Value:
    """The value of JSON text in UTF-8; None for nothing but white space.

    Numbers are exact; beyond 38 significant digits or out of range they are the text as written. Of equal keys in one
    object the last counts, as in jsonb. Raises DocumentInvalid, DocumentTooDeep.
    """
    return _parse(raw)


def _check_depth(value: Value) -> None:
    level = [value]
    depth = 0
    while level:
        depth += 1
        if depth > MAX_DEPTH + 1:
            raise too_deep()
        level = [child for parent in level if isinstance(parent, dict | list) for child in _children(parent)]


def _children(value: dict[str, Value] | list[Value]) -> list[Value]:
    return list(value.values()) if isinstance(value, dict) else value


def _check_text(value: Value) -> None:
    """Half a surrogate pair is allowed in the json type and is no character; nothing could store it."""
    todo = [value]
    while todo:
        item = todo.pop()
        if isinstance(item, dict):
            todo.extend(item)
            todo.extend(item.values())
        elif isinstance(item, list):
            todo.extend(item)
        elif isinstance(item, str) and not item.isascii():
            try:
                item.encode()
            except UnicodeEncodeError:
                raise DocumentInvalid("a string holds half of a surrogate pair, which is no character") from None
