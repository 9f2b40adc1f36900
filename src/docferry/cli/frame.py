"""What all commands share: how they are found, their common options, how they answer, fail and exit.

A command is a module of this package with an object `command`, made by `define`, and a line in `COMMANDS`:

    @define("verify", confirms=True)
    @click.argument("table", required=False)
    @click.option("--repair", is_flag=True, help="Write the differences to the target.")
    def command(session: Session, table: str | None, repair: bool) -> int | None:
        \"\"\"The help text.\"\"\"
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, Concatenate, NoReturn, ParamSpec, TypeAlias

import click

from docferry import __version__
from docferry.cli.failures import ExitCode, report
from docferry.cli.logs import logs_to_stderr
from docferry.cli.session import Session

__all__ = ["Command", "CommandGroup", "ExitCode", "Ferry", "Session", "define"]

_P = ParamSpec("_P")
_Body: TypeAlias = Callable[Concatenate[Session, _P], int | None]
_HELP_NAMES = ("-h", "--help")


class Command(click.Command):
    """A command whose options all have an environment variable, named as they are and shown in its help."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        for parameter in self.params:
            if isinstance(parameter, click.Option):
                parameter.show_envvar = True

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Names the variables first: by the option's own name, where click takes that of the function's parameter."""
        for parameter in self.params:
            if isinstance(parameter, click.Option) and parameter.envvar is None and ctx.auto_envvar_prefix:
                parameter.envvar = f"{ctx.auto_envvar_prefix}_{_own_name(parameter)}"
        return super().parse_args(ctx, args)


class CommandGroup(click.Group):
    """A group of commands within docferry, such as `docferry deadletters`."""

    command_class = Command


class Ferry(click.Group):
    """The root. `commands`: name -> one line of help; the module docferry.cli.<name> is imported when it is called."""

    def __init__(self, name: str, lines: Mapping[str, str], **settings: Any) -> None:
        context = {"auto_envvar_prefix": "DOCFERRY", "help_option_names": _HELP_NAMES, "show_default": True}
        super().__init__(name, context_settings=context, **settings)
        self._lines = lines
        self.params.append(
            click.Option(
                ["--version"],
                is_flag=True,
                is_eager=True,
                expose_value=False,
                callback=_show_version,
                help="Show the version and exit.",
            )
        )

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click calls it so
        """The names, in the order of the table."""
        return list(self._lines)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - the same
        """Import a command. None when there is none of that name."""
        if cmd_name not in self._lines:
            return None
        command = import_module(f"docferry.cli.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - the same
        """The list in --help, from the table alone."""
        with formatter.section("Commands"):
            formatter.write_dl(list(self._lines.items()))

    # click's has overloads for a mode that we do not have.
    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any) -> NoReturn:  # type: ignore[override]
        """Run one command line and exit with its code. Every failure becomes a message here, and nowhere else."""
        if "_DOCFERRY_COMPLETE" in os.environ:
            super().main(args, prog_name or "docferry", **extra)
        arguments = list(sys.argv[1:] if args is None else args)
        extra.pop("standalone_mode", None)
        code = ExitCode.FAILED.value
        try:
            code = self._run(prog_name or "docferry", arguments, extra)
            sys.stdout.flush()
        except BaseException as error:  # noqa: BLE001 - the last line of defence; `report` tells them apart
            code = report(error, arguments)
        sys.exit(code)

    def _run(self, name: str, arguments: list[str], extra: dict[str, Any]) -> int:
        with self.make_context(name, arguments, **extra) as context:
            outcome = self.invoke(context)
            return outcome if isinstance(outcome, int) else ExitCode.DONE.value


def define(name: str, *, config: bool = True, confirms: bool = False) -> Callable[[_Body[_P]], Command]:
    """Make a command of a function which takes a Session first and returns an exit code, None for 0.

    `config`: it takes --config. `confirms`: it removes or overwrites, calls `session.confirm`, and takes --yes. The
    function's docstring is the help; its name plays no part.
    """

    def decorate(function: _Body[_P]) -> Command:
        own = list(reversed(getattr(function, "__click_params__", [])))

        def callback(*positional: _P.args, **given: _P.kwargs) -> int | None:
            values: dict[str, Any] = {option: given.pop(option, None) for option in _COMMON}
            session = Session(**{option: value for option, value in values.items() if value is not None})
            with logs_to_stderr(verbose=session.verbose, form=session.log_format):
                return function(session, *positional, **given)

        return Command(
            name,
            callback=callback,
            params=[*own, *_common_options(config=config, confirms=confirms)],
            help=inspect.getdoc(function),
        )

    return decorate


_COMMON = ("config_path", "json", "yes", "verbose", "debug", "log_format")


def _common_options(*, config: bool, confirms: bool) -> list[click.Option]:
    # The variables of the common options are the same for every command, so they are named here; those of a command's
    # own options are made of its name and theirs: DOCFERRY_INIT_OUTPUT.
    options = []
    if config:
        options.append(
            click.Option(
                ["-c", "--config", "config_path"],
                type=click.Path(dir_okay=False),
                default="docferry.toml",
                envvar="DOCFERRY_CONFIG",
                help="The configuration file.",
            )
        )
    if confirms:
        options.append(_flag("-y", "--yes", help="Do not ask before removing or overwriting."))
    return [
        *options,
        _flag("--json", help="Answer with one JSON document on standard output."),
        _flag("-v", "--verbose", help="Log more to standard error."),
        _flag("--debug", help="Show tracebacks of errors."),
        click.Option(
            ["--log-format"],
            type=click.Choice(["text", "json"]),
            default="text",
            envvar="DOCFERRY_LOG_FORMAT",
            help="Of what is written to standard error: text, or one JSON object a line.",
        ),
    ]


def _own_name(option: click.Option) -> str:
    """As its variable spells it: DRY_RUN of --dry-run."""
    long = next(name for name in option.opts if name.startswith("--"))
    return long.removeprefix("--").replace("-", "_").upper()


def _flag(*names: str, help: str) -> click.Option:  # noqa: A002 - click's own name for it
    return click.Option([*names], is_flag=True, envvar=f"DOCFERRY_{names[-1].strip('-').upper()}", help=help)


def _show_version(context: click.Context, _option: click.Parameter, wanted: bool) -> None:
    if wanted:
        click.echo(f"docferry {__version__}")
        context.exit()
