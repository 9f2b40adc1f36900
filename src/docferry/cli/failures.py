"""How a command fails: one message, one exit code, no traceback unless asked for, no secret in either."""

from __future__ import annotations

import errno
import json
import os
import sys
import traceback
from collections.abc import Sequence
from enum import IntEnum

import click

from docferry.cli.logs import json_line
from docferry.config.dsn import hide_secrets
from docferry.errors import DocferryError
from docferry.printable import printable, printable_json

__all__ = ["ExitCode", "report"]

_TRUE = ("1", "true", "t", "yes", "y", "on")


class ExitCode(IntEnum):
    """What `docferry` exits with."""

    DONE = 0
    FAILED = 1
    WRONG_USAGE = 2
    DIFFERENT = 3
    INTERRUPTED = 130


def report(error: BaseException, arguments: Sequence[str]) -> int:
    """Say what went wrong and return the exit code. `arguments`: the command line, for --json and --debug.

    They are looked for in the arguments themselves: the error may be that these could not be parsed.
    """
    match error:
        case SystemExit():
            return error.code if isinstance(error.code, int) else int(error.code is not None)
        case click.exceptions.Exit():
            return error.exit_code
        case KeyboardInterrupt() | click.Abort():
            # The shell's own ^C stays on its line.
            if not _logs_are_json(arguments):
                click.echo(err=True)
            return ExitCode.INTERRUPTED
        case OSError(errno=errno.EPIPE):
            return _reader_left()
        case click.UsageError() if type(error).__name__ == "NoArgsIsHelpError":
            # `docferry` alone: the help is the message. Older clicks have no such class.
            click.echo(error.format_message(), err=True)
            return ExitCode.WRONG_USAGE
    trace = hide_secrets("".join(traceback.format_exception(error))) if _asked(arguments, "--debug") else ""
    message, remedy, code = _described(error)
    try:
        if _logs_are_json(arguments):
            extra = {"cause": type(error).__name__, "remedy": remedy or None, "exception": trace or None}
            click.echo(json_line("ERROR", "docferry", message, extra), err=True)
        else:
            click.echo(printable(trace), err=True, nl=False)
            click.echo(printable(f"error: {message}"), err=True)
            if remedy:
                click.echo(printable(f"remedy: {remedy}"), err=True)
        if _asked(arguments, "--json"):
            kind = type(error).__name__ if isinstance(error, DocferryError | click.ClickException) else "InternalError"
            answer = {"error": {"class": kind, "message": message, "remedy": remedy, "exit_code": code}}
            click.echo(printable_json(json.dumps(answer, indent=2)))
    except BrokenPipeError:
        _reader_left()
    return code


def _described(error: BaseException) -> tuple[str, str, int]:
    match error:
        case DocferryError():
            return hide_secrets(str(error)), hide_secrets(error.remedy), error.exit_code
        case click.UsageError():
            name = error.ctx.command_path if error.ctx is not None else "docferry"
            remedy = f"See `{name} --help`."
            if isinstance(error, click.NoSuchOption) and error.ctx and isinstance(error.ctx.command, click.Group):
                remedy = f"Give options after the command: `{name} COMMAND {error.option_name} ...`. {remedy}"
            return hide_secrets(error.format_message()), remedy, ExitCode.WRONG_USAGE
        case click.ClickException():
            return hide_secrets(error.format_message()), "", error.exit_code
        case _:
            first_line = str(error).strip().partition("\n")[0]
            message = f"internal error: {type(error).__name__}: {first_line}".rstrip(": ")
            return hide_secrets(message), "Run it again with --debug, and report what that shows.", ExitCode.FAILED


def _asked(arguments: Sequence[str], flag: str) -> bool:
    variable = f"DOCFERRY_{flag.strip('-').upper()}"
    return flag in arguments or os.environ.get(variable, "").strip().lower() in _TRUE


def _logs_are_json(arguments: Sequence[str]) -> bool:
    """The last one given counts, as for click."""
    chosen = os.environ.get("DOCFERRY_LOG_FORMAT", "")
    for one, following in zip(arguments, [*arguments[1:], ""], strict=True):
        if one == "--log-format":
            chosen = following
        elif one.startswith("--log-format="):
            chosen = one.partition("=")[2]
    return chosen == "json"


def _reader_left() -> int:
    """`docferry status | head -1`: nobody reads on, which is no failure worth words, but not everything was said."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (BrokenPipeError, ValueError):
            # The interpreter flushes once more when it exits, and would complain then.
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return ExitCode.FAILED
