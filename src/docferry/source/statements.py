"""Every SQL statement lives in a .sql file under capture/sql, as a named block with a comment."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files

__all__ = ["load"]

_NAME = re.compile(r"^-- name: (\w+)\s*$", re.MULTILINE)


@cache
def load(filename: str) -> dict[str, str]:
    """The statements of `sql/<filename>` by name, each without its trailing semicolon and white space."""
    text = files("docferry.capture").joinpath("sql", filename).read_text(encoding="utf-8")
    parts = _NAME.split(text)
    return {name: body.strip().rstrip(";") for name, body in zip(parts[1::2], parts[2::2], strict=True)}
