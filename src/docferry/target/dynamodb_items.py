"""Documents as DynamoDB's JSON text, and back. Pure: no client, no network.

A document is rendered once, straight into the text that goes over the wire. The text is canonical - names sorted,
numbers in the one form in which DynamoDB returns them - so that the hash over it does not depend on the order of a map,
and can be computed again from an item read back.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from hashlib import blake2b
from json.encoder import encode_basestring
from typing import Any, cast

from docferry.document.model import Collection, Key, KeyAttribute, KeyKind, KeyValue, Value
from docferry.errors import DocumentTooDeep, ItemTooLarge, KeyRefused, ValueRefused, WriteRefused
from docferry.target.contract import Item

__all__ = [
    "EXPIRY",
    "GONE",
    "HASH",
    "MAX_ITEM_BYTES",
    "MAX_LEVELS",
    "META",
    "TYPE_LETTERS",
    "VERSION",
    "Encoded",
    "attribute_text",
    "binary_text",
    "decode_item",
    "decode_key",
    "decode_value",
    "encode",
    "item_size",
    "key_text",
    "key_texts",
    "number_text",
    "quoted",
    "stored_document",
]

VERSION, HASH, GONE, EXPIRY = "_v", "_h", "_gone", "_ttl"
META = frozenset((VERSION, HASH, GONE, EXPIRY))
TYPE_LETTERS = {KeyKind.TEXT: "S", KeyKind.NUMBER: "N", KeyKind.BINARY: "B"}

MAX_ITEM_BYTES = 409_600
MAX_LEVELS = 32
MAX_DIGITS = 38
MAX_PARTITION_KEY_BYTES = 2_048
MAX_SORT_KEY_BYTES = 1_024
# What the meta attributes add at most: names, a number of 38 digits, 16 bytes of hash.
_META_BYTES = len(VERSION) + 21 + len(HASH) + 16

quoted = encode_basestring
"""A JSON string literal; characters beyond ASCII stay as they are (the C implementation, where there is one)."""


def number_text(number: int | Decimal) -> str:
    """The plain decimal form that DynamoDB returns: no exponent, no trailing zeros, no negative zero."""
    if isinstance(number, int):
        return str(number)
    text = format(number, "f")
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def binary_text(data: bytes) -> str:
    """The AttributeValue of bytes."""
    return f'{{"B":"{binascii.b2a_base64(data, newline=False).decode("ascii")}"}}'


def attribute_text(value: Value, level: int = 1) -> str:
    """The AttributeValue of `value` as canonical JSON text. `level`: how deep it stands; an attribute stands at 1."""
    if type(value) is str:
        return '{"S":' + quoted(value) + "}"
    pieces: list[str] = []
    _render(value, level, pieces.append)
    return "".join(pieces)


class _Names(dict[str, str]):
    """What a member's text begins with, by its name, since a few names make most of a table's documents. Bounded; only
    ever a shortcut."""

    def __init__(self, ending: str) -> None:
        self._ending = ending

    def __missing__(self, name: str) -> str:
        text = quoted(name) + self._ending
        if len(self) < 4096 and len(name) <= 64:
            self[name] = text
        return text


_any_member = _Names(":")
_text_member = _Names(':{"S":')


def _render(value: Value, level: int, put: Callable[[str], None]) -> None:
    """Append the pieces of a value's text. One flat list of pieces costs two thirds of nested strings, and text, which
    most values are, is put without a call of this function."""
    if type(value) is dict:
        if level >= MAX_LEVELS:
            raise _too_deep()
        if "" in value:
            raise WriteRefused("a map with an empty name", limit="a name has at least 1 character")
        before = '{"M":{'
        for name in sorted(value) if len(value) > 1 else value:
            member = value[name]
            if type(member) is str:
                put(f"{before}{_text_member[name]}{quoted(member)}}}")
            else:
                put(before + _any_member[name])
                _render(member, level + 1, put)
            before = ","
        put("}}" if value else '{"M":{}}')
    elif type(value) is list:
        if level >= MAX_LEVELS:
            raise _too_deep()
        before = '{"L":['
        for entry in value:
            put(before)
            _render(entry, level + 1, put)
            before = ","
        put("]}" if value else '{"L":[]}')
    else:
        put(_scalar_text(value))


def _too_deep() -> DocumentTooDeep:
    return DocumentTooDeep("nests too deep", limit=f"{MAX_LEVELS} levels")


def _scalar_text(value: Value) -> str:
    if value is None:
        return '{"NULL":true}'
    if isinstance(value, bool):
        return '{"BOOL":true}' if value else '{"BOOL":false}'
    if isinstance(value, int | Decimal):
        return '{"N":"' + number_text(value) + '"}'
    if isinstance(value, bytes):
        return binary_text(value)
    if isinstance(value, str):
        return '{"S":' + quoted(value) + "}"
    raise TypeError(f"{type(value).__name__} is not a Value")


def stored_document(collection: Collection, key: Key, document: Mapping[str, Value]) -> dict[str, Value]:
    """Every attribute but the meta ones, as the item will carry them. The key attributes win over columns of their
    name: with a template such as `ORDER#{id}` they are not the column's value."""
    whole = dict(document)
    for attribute, value in zip(collection.key, key, strict=True):
        whole[attribute.name] = value
    return whole


@dataclass(frozen=True, slots=True)
class Encoded:
    """A document ready to be stored. `texts`: the AttributeValue text of every attribute but the meta ones; `keys`:
    those of the key attributes, in order; `members`: all of them as canonical JSON text without the braces."""

    keys: list[str]
    texts: dict[str, str]
    members: str
    hash: bytes


def encode(collection: Collection, key: Key, document: Mapping[str, Value]) -> Encoded:
    """Render a document. Raises the RowRefused that says which limit it breaks."""
    keys = key_texts(collection, key)
    texts = _texts(document)
    for attribute, text in zip(collection.key, keys, strict=True):
        texts[attribute.name] = text
    members = ",".join([quoted(name) + ":" + texts[name] for name in sorted(texts)])
    try:
        data = members.encode()
    except UnicodeEncodeError:
        raise ValueRefused(
            "text with half of a surrogate pair",
            limit="text is Unicode",
            remedy="Mend the text in the row; then `docferry deadletters replay`.",
        ) from None
    # The text is longer than what DynamoDB counts: the exact size is worked out only for the few that come near.
    if len(data) > MAX_ITEM_BYTES - _META_BYTES:
        _check_size(stored_document(collection, key, document))
    return Encoded(keys, texts, members, blake2b(data, digest_size=16).digest())


def _texts(document: Mapping[str, Value]) -> dict[str, str]:
    if not META.isdisjoint(document):
        reserved = ", ".join(sorted(META & document.keys()))
        raise WriteRefused(
            f"the column name {reserved} is one of docferry's own attributes",
            limit=f"{', '.join(sorted(META))} are reserved",
            remedy="Exclude or rename the column; then `docferry deadletters replay`.",
        )
    texts = {}
    name = ""
    try:
        for name, value in document.items():
            texts[name] = attribute_text(value)
    except (DocumentTooDeep, WriteRefused) as error:
        raise type(error)(f"column {name}: {error.problem}", limit=error.limit) from None
    return texts


def _check_size(document: Mapping[str, Value]) -> None:
    size = item_size(document) + _META_BYTES
    if size > MAX_ITEM_BYTES:
        largest = max(document, key=lambda name: _value_size(document[name]))
        raise ItemTooLarge(
            f"the item takes {size:,} bytes, {_value_size(document[largest]):,} of them in column {largest}",
            limit=f"{MAX_ITEM_BYTES:,} bytes",
        )


def item_size(document: Mapping[str, Value]) -> int:
    """The bytes of a document by the rules under "Item sizes and formats" in AWS's documentation."""
    return sum(len(name.encode()) + _value_size(value) for name, value in document.items())


def _value_size(value: Value) -> int:
    if isinstance(value, str):
        return len(value.encode())
    if value is None or isinstance(value, bool):
        return 1
    if isinstance(value, int | Decimal):
        return _number_size(number_text(value))
    if isinstance(value, bytes):
        return len(value)
    if isinstance(value, list):
        return 3 + sum(1 + _value_size(entry) for entry in value)
    return 3 + sum(1 + len(name.encode()) + _value_size(member) for name, member in value.items())


def _number_size(text: str) -> int:
    """One byte for each pair of significant digits, counted from the decimal point, one more, one more for a minus."""
    whole, _, fraction = text.lstrip("-").partition(".")
    pairs = "0" * (len(whole) % 2) + whole + fraction + "0" * (len(fraction) % 2)
    significant = [pairs[i : i + 2] for i in range(0, len(pairs), 2)]
    while significant and significant[0] == "00":
        significant.pop(0)
    while significant and significant[-1] == "00":
        significant.pop()
    return len(significant) + 1 + text.startswith("-")


def key_texts(collection: Collection, key: Key) -> list[str]:
    """The AttributeValue text of each key attribute. Raises KeyRefused."""
    if len(key) != len(collection.key):
        raise KeyRefused(
            f"a key of {len(key)} values", limit=f"{collection.name} has {len(collection.key)} key attributes"
        )
    return [
        _key_text(attribute, value, place)
        for place, (attribute, value) in enumerate(zip(collection.key, key, strict=True))
    ]


def key_text(collection: Collection, key: Key) -> str:
    """The key as one JSON object."""
    texts = key_texts(collection, key)
    return "{" + ",".join(f"{quoted(part.name)}:{text}" for part, text in zip(collection.key, texts, strict=True)) + "}"


def _key_text(attribute: KeyAttribute, value: KeyValue, place: int) -> str:
    if attribute.kind is KeyKind.NUMBER and isinstance(value, int | Decimal) and not isinstance(value, bool):
        text = number_text(value)
        if len(text) > MAX_DIGITS and len(text.replace("-", "").replace(".", "").strip("0")) > MAX_DIGITS:
            raise KeyRefused(f"key attribute {attribute.name} has too many digits", limit=f"{MAX_DIGITS} digits")
        return f'{{"N":"{text}"}}'
    if attribute.kind is KeyKind.TEXT and isinstance(value, str):
        try:
            data = value.encode()
        except UnicodeEncodeError:
            raise KeyRefused(f"key attribute {attribute.name} is not Unicode", limit="text is Unicode") from None
        text = attribute_text(value)
    elif attribute.kind is KeyKind.BINARY and isinstance(value, bytes):
        data, text = value, binary_text(value)
    else:
        raise KeyRefused(
            f"key attribute {attribute.name} is {type(value).__name__}",
            limit=f"it is declared as {attribute.kind.value}",
        )
    longest = MAX_SORT_KEY_BYTES if place else MAX_PARTITION_KEY_BYTES
    if not data:
        raise KeyRefused(f"key attribute {attribute.name} is empty", limit="at least 1 byte")
    if len(data) > longest:
        raise KeyRefused(
            f"key attribute {attribute.name} has {len(data):,} bytes",
            limit=f"{longest:,} bytes for a {'sort' if place else 'partition'} key",
        )
    return text


class _Set(list["Value"]):
    """What was a set: a list to all who read it, and nothing that can be encoded, because docferry writes none."""


def decode_value(attribute: Mapping[str, Any]) -> Value:
    """An AttributeValue, from a client (binary as bytes) or from JSON (binary as base64). Sets become lists."""
    ((letter, content),) = attribute.items()
    match letter:
        case "S" | "BOOL":
            return cast("Value", content)
        case "N":
            return _decode_number(content)
        case "M":
            return {name: decode_value(member) for name, member in content.items()}
        case "L":
            return [decode_value(entry) for entry in content]
        case "NULL":
            return None
        case "B":
            return base64.b64decode(content) if isinstance(content, str) else bytes(content)
        case "SS" | "NS" | "BS":
            return _Set(decode_value({letter[0]: entry}) for entry in content)
    raise TypeError(f"{letter} is not the type of an AttributeValue")


def _decode_number(text: str) -> int | Decimal:
    try:
        return int(text)
    except ValueError:
        number = Decimal(text)
        return int(number) if number == number.to_integral_value() else number


def decode_key(collection: Collection, attributes: Mapping[str, Any]) -> Key:
    """The key of an item."""
    return tuple(cast("KeyValue", decode_value(attributes[attribute.name])) for attribute in collection.key)


def decode_item(collection: Collection, attributes: Mapping[str, Any]) -> Item:
    """An item as it was read: meta attributes apart, document decoded. Its hash is not believed when it would expire:
    docferry lets no document expire."""
    version = decode_value(attributes[VERSION]) if VERSION in attributes else -1
    stored_hash = decode_value(attributes[HASH]) if HASH in attributes else None
    expires = decode_value(attributes[EXPIRY]) if EXPIRY in attributes else None
    document: dict[str, Value] | None = None
    if attributes.get(GONE) != {"BOOL": True}:
        document = {name: decode_value(value) for name, value in attributes.items() if name not in META}
    return Item(
        key=decode_key(collection, attributes),
        version=version if type(version) is int else -1,
        document=document,
        hash=stored_hash if isinstance(stored_hash, bytes) and (document is None or EXPIRY not in attributes) else None,
        expires=expires if isinstance(expires, int) else None,
    )
