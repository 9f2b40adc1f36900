"""The text of a first docferry.toml, made of what was found in a database."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from docferry.capture.findings import DocumentColumn, TableFinding
from docferry.config.dsn import without_password
from docferry.config.names import COLLECTION, RESERVED, quoted_table, template_columns

__all__ = ["Proposal", "propose"]

_BARE: Final = re.compile(r"[A-Za-z0-9_-]+")
_HEAD: Final = """\
# docferry.toml, written by `docferry init`. docs/configuration.md describes every key.
# Next: `docferry plan` shows what would be created, `docferry apply` creates it, `docferry run` mirrors.
"""
_TARGET: Final = """\
[target]
kind = "dynamodb"
# region = "us-east-2"                      # default: what the AWS SDK finds (AWS_REGION, the profile)
# endpoint_url = "http://127.0.0.1:4566"    # an emulator; leave it out on AWS
# table_prefix = "prod-"
"""


@dataclass(frozen=True, slots=True)
class Proposal:
    """A configuration file. `mirrored`: the tables it mirrors; `commented`: those it holds as comments only, because
    they lack something or because their documents are only supposed."""

    text: str
    mirrored: tuple[str, ...]
    commented: tuple[str, ...]


def propose(dsn: str, findings: Sequence[TableFinding]) -> Proposal:
    """A commented docferry.toml. `config.parse` takes it if `mirrored` is not empty."""
    parts = [_HEAD, _source(dsn), _TARGET]
    taken: set[str] = set()
    mirrored, commented = [], []
    for finding in findings:
        collection = _collection(finding, taken)
        taken.add(collection)
        problems = [*finding.problems, *_unwritable(finding)]
        supposed = all(document.sampled for document in finding.documents)
        table = f"{finding.schema}.{finding.name}"
        block = _mirror(finding, collection)
        if problems or supposed:
            reasons = [line for problem, remedy in problems for line in (f"{problem}.", f"Remedy: {remedy}")]
            if not problems:
                reasons = ["Its documents are in text columns; take the comment signs away if that is right."]
            block = _comment(reasons) + _commented_out(block)
            commented.append(table)
        else:
            mirrored.append(table)
        parts.append(block)
    return Proposal("\n".join(parts), tuple(mirrored), tuple(commented))


def _source(dsn: str) -> str:
    kept = without_password(dsn)
    lines = ["[source]", f"dsn = {_text(kept)}"]
    if kept != dsn:
        lines.append("# The password was left out: set DOCFERRY_SOURCE_DSN, use ~/.pgpass, or name a `secret` instead.")
    lines.append('capture = "replication"')
    return "\n".join(lines) + "\n"


def _mirror(finding: TableFinding, collection: str) -> str:
    columns = ", ".join(f"{document.name} {document.type}" for document in finding.documents)
    rows = f"about {finding.rows:,} rows" if finding.rows else "no statistics yet"
    key = ", ".join(finding.key) or "none"
    lines = [
        *_comment([f"{finding.schema}.{finding.name}: {rows}; key: {key}; documents: {columns}"]).splitlines(),
        "[[mirrors]]",
        f"table = {_text(quoted_table(finding.schema, finding.name))}",
        f"collection = {_text(collection)}",
    ]
    if finding.key and not finding.key_is_primary:
        lines.append(f"key = [{', '.join(map(_text, finding.key))}]")
    if len(finding.key) > 2:
        lines.append(_item_key(finding))
    reserved = [name for name in finding.columns if name in RESERVED]
    if reserved:
        lines.append(f"exclude = [{', '.join(map(_text, reserved))}]  # names of docferry's own attributes")
    for document in finding.documents:
        if document.sampled:
            lines += ["", *_supposed(document)]
    return "\n".join(lines) + "\n"


def _supposed(document: DocumentColumn) -> Iterable[str]:
    yield from _comment(
        [f"All {document.sampled} sampled values of {document.name} are {document.format.upper()}:"]
    ).splitlines()
    yield f"# [mirrors.documents.{_key(document.name)}]"
    yield f'# format = "{document.format}"'


def _item_key(finding: TableFinding) -> str:
    """An item has two key attributes at most: the first column, and the rest joined."""
    partition, sort = _unused("pk", finding.columns), _unused("sk", finding.columns)
    rest = "#".join(f"{{{name}}}" for name in finding.key[1:])
    return f"item_key = {{ {partition} = {_text(f'{{{finding.key[0]}}}')}, {sort} = {_text(rest)} }}"


def _unwritable(finding: TableFinding) -> Iterable[tuple[str, str]]:
    for name in finding.key:
        if not name.strip():
            yield "a key column's name is blank, which the configuration does not take", "Rename the column."
        if name in RESERVED:
            yield f"the key column {name} has the name of an attribute of docferry's own", "Rename the column."
        if len(finding.key) > 2 and template_columns(f"{{{name}}}") != (name,):
            yield f"the key column {name} cannot be written in a template", "Rename the column."


def _collection(finding: TableFinding, taken: set[str]) -> str:
    if COLLECTION.fullmatch(finding.name) and finding.name not in taken:
        return finding.name
    whole = re.sub(r"[^A-Za-z0-9_.-]", "-", f"{finding.schema}-{finding.name}")
    candidate, number = whole, 1
    while candidate in taken:
        number += 1
        candidate = f"{whole}-{number}"
    return candidate


def _unused(name: str, columns: Sequence[str]) -> str:
    while name in columns:
        name += "_"
    return name


def _commented_out(block: str) -> str:
    lines = block.removesuffix("\n").split("\n")
    return "".join(f"{line if line.startswith('#') else f'# {line}'.rstrip()}\n" for line in lines)


def _comment(lines: Sequence[str]) -> str:
    # Names may hold anything, line ends included, and must not get out of the comment.
    return "".join(f"# {''.join(letter if letter.isprintable() else '?' for letter in line)}\n" for line in lines)


def _key(name: str) -> str:
    return name if _BARE.fullmatch(name) else _text(name)


def _text(text: str) -> str:
    """A basic string of TOML: JSON's escapes, but only where they are needed, and one more."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007F")
