"""YAML text to a value: YAML 1.2's core schema, so `no`, `on` and dates are text. Needs the extra `yaml`.

The value is built from the parser's events, one by one: nothing of PyYAML's object construction is used, depth and the
expansion of aliases are bounded while reading.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Any, Final

from docferry.document.limits import MAX_DEPTH, MAX_YAML_BYTES, check_size, number, too_deep
from docferry.document.model import Value
from docferry.errors import DocumentInvalid, MissingExtra

try:
    import yaml
except ImportError:  # pragma: no cover - depends on what is installed
    raise MissingExtra(
        "YAML documents need the package PyYAML, which is not installed",
        remedy="Install it: pip install 'docferry[yaml]'",
    ) from None

__all__ = ["parse"]

_LOADER: Final[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_CORE: Final = "tag:yaml.org,2002:"
_INT: Final = re.compile(r"[-+]?[0-9]+", re.ASCII)
_OCTAL: Final = re.compile(r"0o[0-7]+")
_HEXADECIMAL: Final = re.compile(r"0x[0-9a-fA-F]+")
_FLOAT: Final = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", re.ASCII)
_OLD_LINE_ENDS: Final = re.compile("[\\x85\\u2028\\u2029]")
_SPECIAL: Final = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF"), "Infinity"),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), "-Infinity"),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), "NaN"),
}


def parse(raw: bytes) -> Value:
    """The value of a YAML stream in UTF-8: None for no document, the document for one, a list for several.

    Raises DocumentInvalid, DocumentTooDeep. See docs/documents.md for keys, tags, anchors and numbers.
    """
    check_size(raw, MAX_YAML_BYTES)
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise DocumentInvalid("not YAML: the text is not UTF-8") from None
    if not text or text.isspace():
        return None
    if _OLD_LINE_ENDS.search(text):
        raise DocumentInvalid(
            "it holds U+0085, U+2028 or U+2029 unescaped, which YAML 1.1 takes for a line end and 1.2 for text",
            remedy=r'Write it in double quotes as "\N", "\L" or "\P".',
        )
    try:
        loader = _LOADER(text)
    except yaml.YAMLError as error:
        raise _invalid(error) from None
    try:
        documents = _Reader(_events(loader), 100_000 + 4 * len(text)).documents()
    except yaml.YAMLError as error:
        raise _invalid(error) from None
    except RecursionError:
        raise too_deep() from None
    finally:
        loader.dispose()
    if not documents:
        return None
    return documents[0] if len(documents) == 1 else documents


def _events(loader: Any) -> Iterator[Any]:
    while loader.check_event():
        yield loader.get_event()


def _invalid(error: Exception) -> DocumentInvalid:
    mark = getattr(error, "problem_mark", None)
    where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
    return DocumentInvalid(f"not YAML: {getattr(error, 'problem', None) or 'unreadable'}{where}")


class _Reader:
    """Builds values from events. `allowance`: how much aliases may add, counted in characters and nodes."""

    def __init__(self, events: Iterator[Any], allowance: int) -> None:
        self._events = events
        self._allowance = allowance
        self._anchors: dict[str, Value] = {}
        self._open: set[str] = set()

    def documents(self) -> list[Value]:
        documents: list[Value] = []
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent):
                self._anchors.clear()
                documents.append(self._node(next(self._events), 0))
        return documents

    def _node(self, event: Any, depth: int) -> Value:
        if depth > MAX_DEPTH:
            raise too_deep()
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event)
        anchor = event.anchor
        if anchor is not None:
            self._open.add(anchor)
            self._anchors.pop(anchor, None)
        value: Value
        if isinstance(event, yaml.ScalarEvent):
            value = _scalar(event)
        elif isinstance(event, yaml.SequenceStartEvent):
            value = _tagged(event, self._sequence(depth), "seq")
        else:
            value = _tagged(event, self._mapping(depth), "map")
        if anchor is not None:
            self._open.discard(anchor)
            self._anchors[anchor] = value
        return value

    def _sequence(self, depth: int) -> list[Value]:
        items: list[Value] = []
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            items.append(self._node(event, depth + 1))
        return items

    def _mapping(self, depth: int) -> dict[str, Value]:
        pairs: dict[str, Value] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            key = self._key(event)
            if key in pairs:
                raise DocumentInvalid(f'not YAML: the key "{key[:80]}" occurs twice in one map{_place(event)}')
            pairs[key] = self._node(next(self._events), depth + 1)
        return pairs

    def _key(self, event: Any) -> str:
        """A key is its text as written, so `1: x` has the key "1"."""
        if isinstance(event, yaml.ScalarEvent):
            if event.anchor is not None:
                self._anchors[event.anchor] = event.value
            return str(event.value)
        if isinstance(event, yaml.AliasEvent):
            value = self._alias(event)
            if isinstance(value, str):
                return value
        raise DocumentInvalid(f"a key that is not a single text has no place in a document{_place(event)}")

    def _alias(self, event: Any) -> Value:
        if event.anchor in self._open:
            raise DocumentInvalid(f'the alias "*{event.anchor}" stands inside of what it names{_place(event)}')
        if event.anchor not in self._anchors:
            raise DocumentInvalid(f'the alias "*{event.anchor}" names nothing{_place(event)}')
        value = self._anchors[event.anchor]
        self._allowance -= _weight(value)
        if self._allowance < 0:
            raise DocumentInvalid("its aliases expand beyond measure", limit="4 times the document's size + 100 kB")
        return value


def _place(event: Any) -> str:
    return f" at line {event.start_mark.line + 1}, column {event.start_mark.column + 1}"


def _weight(value: Value) -> int:
    if isinstance(value, dict):
        return 1 + sum(len(key) + _weight(item) for key, item in value.items())
    if isinstance(value, list):
        return 1 + sum(map(_weight, value))
    return 1 + (len(value) if isinstance(value, str | bytes) else 0)


def _tagged(event: Any, value: Value, usual: str) -> Value:
    """A tag of one's own is kept as the single key of a map: `!Ref x` is {"!Ref": "x"}."""
    tag = event.tag
    if tag is None or tag in ("!", _CORE + usual):
        return value
    return {tag.replace(_CORE, "!!", 1) if tag.startswith(_CORE) else tag: value}


def _scalar(event: Any) -> Value:
    text: str = event.value
    tag = event.tag
    if tag is None:
        return _resolved(text) if event.implicit[0] else text
    if tag in ("!", _CORE + "str"):
        return text
    name = tag.removeprefix(_CORE)
    if name in ("null", "bool", "int", "float"):
        return _resolved(text)
    if name == "binary":
        try:
            return base64.b64decode("".join(text.split()), validate=True)
        except (binascii.Error, ValueError):
            raise DocumentInvalid(f"!!binary is not base64{_place(event)}") from None
    return _tagged(event, text, "str")


def _resolved(text: str) -> bool | int | Decimal | str | None:
    """What a plain scalar is by the core schema."""
    if text in _SPECIAL:
        return _SPECIAL[text]
    if text[0] not in "+-.0123456789":
        return text
    if _INT.fullmatch(text) or _FLOAT.fullmatch(text):
        return number(text)
    if _OCTAL.fullmatch(text):
        return _integer(text, 8)
    if _HEXADECIMAL.fullmatch(text):
        return _integer(text, 16)
    return text


def _integer(text: str, base: int) -> int | Decimal | str:
    # Longer ones have more than 38 digits for certain, or so many zeros that nobody meant a number.
    return number(str(int(text, base))) if len(text) < 60 else text
