"""One call of a command: the options all commands share, and the ways to answer."""

from __future__ import annotations

import base64
import dataclasses
import json as json_library
import sys
from collections.abc import Mapping, Set
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from docferry.cli.logs import LogFormat, note
from docferry.errors import ConfigError, DocferryError
from docferry.printable import printable, printable_json

if TYPE_CHECKING:
    from docferry.cli.progress import Progress
    from docferry.config import Config

__all__ = ["Session"]


@dataclass(frozen=True)
class Session:
    """What a command is given. Standard output takes the answer and nothing else, standard error the rest."""

    config_path: Path | str = "docferry.toml"
    json: bool = False
    yes: bool = False
    verbose: bool = False
    debug: bool = False
    log_format: LogFormat = "text"

    def load_config(self) -> Config:
        """Read the configuration file. Raises ConfigError."""
        from docferry.config import load

        return load(self.config_path)

    def answer(self, document: Mapping[str, Any], text: str, *, styled: bool = False) -> None:
        """Give the command's answer: `document` with --json, `text` otherwise. Call it once. `styled`: the text is safe
        for a terminal already, escape sequences of our own included.

        Dataclasses become objects, sets lists, bytes base64, dates ISO 8601, Decimals text unless they are whole.
        """
        if not self.json:
            click.echo(text if styled else printable(text))
            return
        readable = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
        click.echo(printable_json(json_library.dumps(_plain(document), indent=2, ensure_ascii=not readable)))

    def note(self, text: str) -> None:
        """Say something that is not the answer, on standard error."""
        note(text)

    def warn_of_secret(self, instead: str) -> None:
        """Say that the command line holds a password. `instead`: how to give it."""
        self.note("warning: a password in the command line: every user of this machine can read it with `ps`.")
        self.note(f"  remedy: {instead}")

    def confirm(self, question: str) -> None:
        """Ask before something is removed or overwritten. Returns when the answer is yes, or --yes was given.

        Raises DocferryError when it is no, ConfigError when nobody is there to answer.
        """
        if self.yes:
            return
        try:
            agreed = click.confirm(printable(question), err=True)
        except click.Abort as abort:
            if isinstance(abort.__context__, EOFError):
                remedy = "Look at what it would do, then give --yes."
                raise ConfigError(
                    "this asks before it removes or overwrites, and nobody answers", remedy=remedy
                ) from None
            raise
        if not agreed:
            raise DocferryError("not confirmed, nothing was changed")

    def progress(self, description: str, *, total: int | None, done: int = 0, unit: str = "rows") -> Progress:
        """A progress bar on standard error, or lines from time to time when that is no terminal.

        `total`: how many there will be, None if that is unknown; estimates may be wrong. `done`: how many were there
        already, which do not count for the rate.
        """
        from docferry.cli.progress import Progress

        return Progress(description, total=total, done=done, unit=unit)


def _plain(value: Any) -> Any:
    """`value` as json.dumps takes it."""
    match value:
        case None | bool() | int() | float() | str():
            return value
        case Decimal():
            # Through float it would lose digits; 1E+125 would become a page of zeros.
            whole = value.is_finite() and value == value.to_integral_value() and abs(value) < Decimal(10**38)
            return int(value) if whole else str(value)
        case bytes() | bytearray() | memoryview():
            return base64.b64encode(value).decode("ascii")
        case date():
            return value.isoformat()
        case Mapping():
            return {str(key): _plain(entry) for key, entry in value.items()}
        case Set():
            return sorted((_plain(entry) for entry in value), key=str)
        case list() | tuple():
            return [_plain(entry) for entry in value]
        case _ if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        case _:
            return str(value)
