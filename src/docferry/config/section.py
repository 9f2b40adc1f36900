"""One table of the file, read key by key: each reader says what it expects, what is left over at the end is unknown."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NoReturn, TypeVar

from docferry.config.names import RESERVED
from docferry.config.quantities import parse_duration, parse_size
from docferry.errors import ConfigError

__all__ = ["Section"]

_Choice = TypeVar("_Choice", bound=str)
_BARE = re.compile(r"[A-Za-z0-9_-]+")
_SHOWN = 60


class Section:
    """A TOML table at `place` (such as `mirrors[0].documents`) of the file `name`. Its readers raise ConfigError."""

    def __init__(self, name: str, place: str, content: Mapping[str, Any]) -> None:
        self._name = name
        self._place = place
        self._content = content
        self._known: list[str] = []

    def at(self, key: str) -> str:
        """`key` of this table as messages show it."""
        shown = key if _BARE.fullmatch(key) else f'"{key}"'
        return f"{self._place}.{shown}" if self._place else shown

    def refuse(self, key: str, problem: str, *, remedy: str | None = None) -> NoReturn:
        """Raise ConfigError about `key`. `remedy`: where there is more to say than where to look it up."""
        remedy = remedy or f"Change it in {self._name}; docs/configuration.md tells what `{key}` may be."
        raise ConfigError(f"{self._name}: {self.at(key)}: {problem}", remedy=remedy)

    def unexpected(self, key: str, expected: str, *, remedy: str | None = None) -> NoReturn:
        """Raise ConfigError about the value of `key`."""
        self.refuse(key, f"found {_shown(self._content[key])}, expected {expected}", remedy=remedy)

    def finish(self) -> None:
        """Refuse every key that nobody asked for."""
        for key in self._content:
            if key in self._known:
                continue
            close = difflib.get_close_matches(key.lower(), self._known, n=1)
            guess = f"; did you mean `{close[0]}`?" if close else ""
            where = f"[{self._place}]" if self._place else "the file"
            expected = ", ".join(sorted(self._known))
            self.refuse(key, f"unknown key{guess}", remedy=f"{where} may hold: {expected}.")

    def keys(self) -> Iterable[str]:
        """The keys in the file's order."""
        return self._content.keys()

    def has(self, key: str) -> bool:
        """Whether `key` is there. Makes it a known one."""
        self._known.append(key)
        return key in self._content

    def section(self, key: str) -> Section:
        """A table; empty when it is not there."""
        value = self._content[key] if self.has(key) else {}
        if not isinstance(value, dict):
            self.unexpected(key, f"a table [{self.at(key)}]")
        return Section(self._name, self.at(key), value)

    def sections(self, key: str) -> list[Section]:
        """An array of tables."""
        value = self._content[key] if self.has(key) else []
        if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
            self.unexpected(key, f"tables [[{self.at(key)}]]")
        return [Section(self._name, f"{self.at(key)}[{index}]", entry) for index, entry in enumerate(value)]

    def secret(self, key: str) -> str | None:
        """Text that is never shown, not even when it is wrong."""
        if not self.has(key):
            return None
        value = self._content[key]
        if not isinstance(value, str) or not value.strip():
            self.refuse(key, "expected text that is not empty (what was found is not shown)")
        return value

    def text(
        self, key: str, *, pattern: re.Pattern[str] | None = None, expected: str = "text", empty: bool = False
    ) -> str | None:
        """Text, by default not empty, which fits `pattern` entirely; None when it is not there."""
        if not self.has(key):
            return None
        value = self._content[key]
        if not isinstance(value, str) or "\0" in value or not (empty or value.strip()):
            self.unexpected(key, expected)
        if pattern is not None and not pattern.fullmatch(value):
            self.unexpected(key, expected)
        return value

    def choice(self, key: str, choices: Collection[_Choice], default: _Choice | None = None) -> _Choice | None:
        """One of `choices`."""
        if not self.has(key):
            return default
        value = self._content[key]
        if (choice := next((choice for choice in choices if choice == value), None)) is not None:
            return choice
        close = difflib.get_close_matches(value.lower(), choices, n=1) if isinstance(value, str) else []
        guess = f"; did you mean `{close[0]}`?" if close else ""
        remedy = f'Write {key} = "{close[0]}".' if close else None
        expected = ", ".join(choices)
        return self.unexpected(key, (f"one of {expected}" if len(choices) > 1 else expected) + guess, remedy=remedy)

    def whole(self, key: str, default: int, least: int, most: int) -> int:
        """A whole number within bounds."""
        if not self.has(key):
            return default
        value = self._content[key]
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            self.unexpected(key, f"a whole number from {least} to {most}")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        if not self.has(key):
            return default
        value = self._content[key]
        if not isinstance(value, bool):
            self.unexpected(key, "true or false")
        return value

    def duration(self, key: str, default: float, *, least: float) -> float:
        """Seconds."""
        if not self.has(key):
            return default
        seconds = parse_duration(self._content[key])
        if seconds is None or seconds < least:
            floor = f" of at least {least:g} s" if least else ""
            self.unexpected(key, f'a duration{floor}: seconds, or text such as "500ms", "30s", "5m", "12h", "7d"')
        return seconds

    def size(self, key: str, default: int, *, least: int) -> int:
        """Bytes."""
        if not self.has(key):
            return default
        size = parse_size(self._content[key])
        if size is None or size < least:
            self.unexpected(key, f'a size of at least {least} bytes: bytes, or text such as "512KiB", "1MiB"')
        return size

    def names(self, key: str, *, taken: frozenset[str] = frozenset()) -> tuple[str, ...] | None:
        """A list of distinct names that is not empty; None when it is not there. `taken` may not be among them."""
        if not self.has(key):
            return None
        value = self._content[key]
        proper = isinstance(value, list) and value and all(isinstance(name, str) and name.strip() for name in value)
        if not proper:
            self.unexpected(key, 'a list of names, such as ["id"]')
        for index, name in enumerate(value):
            if name in value[:index]:
                self.refuse(key, f"`{name}` is listed twice")
            if name in taken:
                self.refuse_reserved(key, name)
        return tuple(value)

    def refuse_reserved(self, key: str, name: str) -> NoReturn:
        """Raise ConfigError about an attribute that is docferry's own."""
        reserved = ", ".join(f"`{taken}`" for taken in sorted(RESERVED))
        remedy = f"The attributes {reserved} hold docferry's own data. Exclude or rename the column."
        self.refuse(key, f"`{name}` is a reserved attribute name", remedy=remedy)


def _shown(value: object) -> str:
    match value:
        case bool():
            return str(value).lower()
        case str():
            return f'"{value}"' if len(value) <= _SHOWN else f'"{value[:_SHOWN]}..."'
        case int() | float():
            return repr(value) if isinstance(value, float) or abs(value) < 10**30 else "a very large number"
        case list():
            return "a list"
        case dict():
            return "a table"
        case _:
            return f"a {type(value).__name__}"
