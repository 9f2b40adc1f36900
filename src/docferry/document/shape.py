"""The frozen decisions about a document column: what is always a list, what is a number.

A name such as `item` or `@qty` means every element or attribute of that name; a path such as `order/items/item` or
`order/item/@qty` means the one at that place, counted from the root. `#text` and `#mixed` are no steps of a path.
"""

from __future__ import annotations

from collections.abc import Callable

from docferry.document.limits import number
from docferry.document.model import DocumentSpec, Value

__all__ = ["shaped"]


def shaped(parse: Callable[[bytes], Value], spec: DocumentSpec) -> Callable[[bytes], Value]:
    """`parse`, its result brought into the shape that `spec` fixes; `parse` itself when it fixes nothing."""
    if not spec.lists and not spec.numbers:
        return parse
    lists = _Names(spec.lists)
    numbers = _Names(spec.numbers)

    def reshape(value: Value, name: str, path: str) -> Value:
        if isinstance(value, dict):
            return {key: child(key, item, name, path) for key, item in value.items()}
        if isinstance(value, list):
            return [reshape(item, name, path) for item in value]
        if isinstance(value, str) and name and numbers.include(name, path):
            # What is no number stays the text it is: a decision about a column must not refuse a row.
            result = number(value.strip())
            return value if isinstance(result, str) else result
        return value

    def child(key: str, item: Value, name: str, path: str) -> Value:
        if key == "#text":
            return reshape(item, name, path)
        if key == "#mixed":
            return item if not isinstance(item, list) else [mixed(part, path) for part in item]
        below = f"{path}/{key}" if path else key
        result = reshape(item, key, below)
        if not isinstance(item, list) and lists.include(key, below):
            return [result]
        return result

    def mixed(part: Value, path: str) -> Value:
        """One node of mixed content: text stays text, and an element stands alone whatever its name."""
        if not isinstance(part, dict):
            return part
        return {key: reshape(item, key, f"{path}/{key}" if path else key) for key, item in part.items()}

    return lambda raw: reshape(parse(raw), "", "")


class _Names:
    """Names and paths, told apart once."""

    def __init__(self, given: frozenset[str]) -> None:
        self.paths = frozenset(entry.strip("/") for entry in given if "/" in entry)
        self.names = frozenset(entry for entry in given if "/" not in entry)

    def include(self, name: str, path: str) -> bool:
        return name in self.names or path in self.paths
