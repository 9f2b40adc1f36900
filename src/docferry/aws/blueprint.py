"""What a template is made from: the tables behind the mirrors, and the configuration that the function gets."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from docferry.config import Config
from docferry.errors import ConfigError

__all__ = ["Blueprint", "Table", "blueprint", "config_for_function", "keys_from_config", "parse_keys", "policy_size"]

MOST_MIRRORS: Final = 100
"""Each has two resources and an output, of which a stack holds 500 and 200. Long names leave room for fewer."""

FUNCTION_OWNER: Final = "docferry_triggers"
"""The role that the stack's host makes for the trigger functions, unless the configuration names one. They run with its
rights, which would otherwise be the administrator's: that is who applies there."""

_MOST_OF_POLICIES: Final = 10_240
"""Characters of all inline policies of one role, without spaces: a limit of IAM's that cannot be raised."""

_REST_OF_POLICIES: Final = 2_200
"""What the larger role, HostRole, has of them besides the tables; a test compares it with the template."""

_LONGEST_REGION: Final = "ap-northeast-1"

_KEY = re.compile(r"(?P<table>[^=]+)=(?P<attributes>.+)")
_UNSAFE = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")
_LETTERS = ("S", "N", "B")

KeyAttributes = tuple[tuple[str, str], ...]
"""Name and type letter (S, N, B) of the partition key and, if there is one, the sort key."""


@dataclass(frozen=True)
class Table:
    """One DynamoDB table. `mirrored`: the source's table, None for the control table. `logical`: its name within the
    template."""

    name: str
    key: KeyAttributes
    mirrored: str | None
    logical: str


@dataclass(frozen=True)
class Blueprint:
    """`function`: its name. `config`: the TOML that host and function read, without connection strings."""

    tables: tuple[Table, ...]
    function: str
    config: str

    @property
    def mirrored(self) -> tuple[Table, ...]:
        """The tables of mirrors."""
        return tuple(table for table in self.tables if table.mirrored is not None)


def blueprint(config: Config, text: str, keys: Mapping[str, KeyAttributes]) -> Blueprint:
    """`text`: that of the configuration file. `keys`: of each mirror, by source table. Raises ConfigError."""
    if config.source.capture == "replication":
        raise ConfigError(
            'the serverless road needs a capture mode with triggers, and capture is "replication"',
            remedy='Set capture = "lambda" in [source].',
        )
    if len(config.mirrors) > MOST_MIRRORS:
        raise ConfigError(
            f"{len(config.mirrors)} mirrors in one stack; it has room for {MOST_MIRRORS}",
            remedy="Divide them among several configurations, each with a stack and a function of its own.",
        )
    prefix = config.target.table_prefix
    taken: set[str] = set()
    tables = [
        Table(prefix + one.collection, keys[one.table], one.table, _logical(one.collection, taken))
        for one in config.mirrors
    ]
    control = Table(config.target.control, (("name", "S"),), None, _logical("control", taken))
    tables.append(control)
    _check_policies(tables, config.target.region or "")
    function = config.source.lambda_.function
    if function.startswith("arn:"):
        function = function.split(":function:", 1)[1]
    return Blueprint(tuple(tables), function.partition(":")[0], config_for_function(text))


def policy_size(tables: Sequence[Table], region: str) -> int:
    """Characters of the inline policies of the role that has most of them, which name each table by its ARN. The region
    may still be another one, so its name counts as the longest."""
    partition = next((name for name in ("cn", "us-gov", "us-iso") if region.startswith(f"{name}-")), "")
    arn = f"arn:aws{'-' * bool(partition)}{partition}:dynamodb:{_LONGEST_REGION}:{'0' * 12}:table/"
    quotes_and_comma = 3
    return _REST_OF_POLICIES + sum(len(arn) + len(table.name) + quotes_and_comma for table in tables)


def _check_policies(tables: Sequence[Table], region: str) -> None:
    size = policy_size(tables, region)
    if size > _MOST_OF_POLICIES:
        raise ConfigError(
            f"the policies of HostRole and FunctionRole name each of the {len(tables)} tables and would have {size:,} "
            f"characters; IAM allows a role {_MOST_OF_POLICIES:,}",
            remedy="Divide the mirrors among several configurations, each with a stack and a function of its own, or "
            "give their collections shorter names.",
        )


def keys_from_config(config: Config) -> dict[str, KeyAttributes]:
    """The keys that need no look at the database: those made by templates are text."""
    return {
        mirror.table: tuple((attribute.name, "S") for attribute in mirror.item_key)
        for mirror in config.mirrors
        if mirror.item_key is not None
    }


def parse_keys(given: Sequence[str], config: Config) -> dict[str, KeyAttributes]:
    """`public.orders=id:N` or `lines=order_id:N,line:N`, as given on the command line. Raises ConfigError."""
    tables = [mirror.table for mirror in config.mirrors]
    keys: dict[str, KeyAttributes] = {}
    for text in given:
        match = _KEY.fullmatch(text)
        attributes = [part.rpartition(":") for part in match["attributes"].split(",")] if match else []
        if not 1 <= len(attributes) <= 2 or any(not name or letter not in _LETTERS for name, _, letter in attributes):
            raise ConfigError(
                f"--key {text}: expected a table and one or two key attributes with their types S, N or B",
                remedy="Write it as --key public.orders=id:N, or --key public.lines=order_id:N,line:N.",
            )
        assert match is not None
        table = match["table"] if "." in match["table"] else f"public.{match['table']}"
        if table not in tables:
            raise ConfigError(f"--key {text}: {table} is not a mirror", remedy=f"Choose one of: {', '.join(tables)}.")
        keys[table] = tuple((name, letter) for name, _, letter in attributes)
    return keys


def config_for_function(text: str) -> str:
    """The configuration file without what belongs to this machine: connection strings and how they are protected,
    endpoints, profile, comments. With capture by triggers it always names the owner of their functions."""
    content = tomllib.loads(text)
    connection = ("dsn", "secret", "sslmode", "sslrootcert")
    source = {name: value for name, value in content.pop("source", {}).items() if name not in connection}
    if source.get("capture") in ("outbox", "lambda"):
        source["triggers"] = {"owner": FUNCTION_OWNER, **source.get("triggers", {})}
    left_out = ("endpoint_url", "profile", "region")
    target = {name: value for name, value in content.pop("target", {}).items() if name not in left_out}
    letters = {name: value for name, value in content.pop("dead_letters", {}).items() if name != "queue"}
    lines = _table("source", source) + _table("target", target) + _table("dead_letters", letters)
    for name, value in content.items():
        for entry in value if isinstance(value, list) else [value]:
            lines += _table(name, entry, array=isinstance(value, list))
    return "\n".join(lines) + "\n"


def _table(name: str, values: Mapping[str, Any], *, array: bool = False) -> list[str]:
    if not values:
        return []
    lines = [f"[[{name}]]" if array else f"[{name}]"]
    plain = {key: value for key, value in values.items() if not isinstance(value, dict)}
    lines += [f"{_name(key)} = {_value(value)}" for key, value in plain.items()]
    for key, value in values.items():
        if isinstance(value, dict):
            lines += _table(f"{name}.{_name(key)}", value)
    return lines


def _name(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _value(key)


def _value(value: Any) -> str:
    """Texts, numbers, truth values and lists of them: nothing else occurs in a configuration."""
    if isinstance(value, list):
        return "[" + ", ".join(_value(entry) for entry in value) + "]"
    # JSON's form of these is TOML's; what either TOML or YAML would take for a line's end or refuse is escaped.
    return _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", json.dumps(value, ensure_ascii=False))


def _logical(name: str, taken: set[str]) -> str:
    """`order_lines` -> OrderLinesTable, unlike all others."""
    words = re.findall(r"[A-Za-z0-9]+", name)
    base = "".join(word[0].upper() + word[1:] for word in words)[:200] or "Unnamed"
    made, number = f"{base}Table", 2
    while made in taken:
        made, number = f"{base}{number}Table", number + 1
    taken.add(made)
    return made
