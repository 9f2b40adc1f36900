"""The frame of the command line: common options, answers, failures, exit codes."""

from __future__ import annotations

import dataclasses
import errno
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from types import ModuleType

import click
import pytest
from click.testing import CliRunner, Result

import docferry.cli as cli
from docferry.cli.frame import Command, CommandGroup, ExitCode, Ferry, Session, define
from docferry.errors import ConfigError, KeyRefused, SourceUnavailable

Body = Callable[[Session], int | None]
DOCS = Path(__file__).parents[3]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run `docferry probe ARGUMENTS` with a body of the test's own."""

    def run(body: Body, *arguments: str, input: str | None = None, **env: str) -> Result:  # noqa: A002
        module = ModuleType("docferry.cli.probe")
        module.command = define("probe", confirms=True)(body)  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "docferry.cli.probe", module)
        root = Ferry("docferry", {"probe": "A probe."})
        return CliRunner().invoke(root, ["probe", *arguments], input=input, env=env)

    return run


Run = Callable[..., Result]


def fail_with(error: BaseException) -> Body:
    def body(session: Session) -> int | None:
        raise error

    return body


class TestExitCodes:
    def test_none_is_done(self, run: Run) -> None:
        assert run(lambda _session: None).exit_code == 0

    def test_a_command_may_return_one(self, run: Run) -> None:
        assert run(lambda _session: ExitCode.DIFFERENT).exit_code == 3

    @pytest.mark.parametrize(
        ("error", "code"),
        [
            (SourceUnavailable("no answer"), 1),
            (ConfigError("no such key"), 2),
            (KeyRefused("empty", table="public.t", key="id="), 1),
            (ValueError("oh"), 1),
            (KeyboardInterrupt(), 130),
            (click.Abort(), 130),
            (click.UsageError("no"), 2),
            (click.ClickException("no"), 1),
            (BrokenPipeError(errno.EPIPE, "gone"), 1),
            (SystemExit(5), 5),
            (click.exceptions.Exit(4), 4),
        ],
    )
    def test_of_errors(self, run: Run, error: BaseException, code: int) -> None:
        assert run(fail_with(error)).exit_code == code

    def test_wrong_usage(self, run: Run) -> None:
        result = run(lambda _session: None, "--nonsense")
        assert result.exit_code == 2
        assert result.stderr == "error: No such option '--nonsense'.\nremedy: See `docferry probe --help`.\n"

    @pytest.mark.parametrize("group", [(), ("deadletters",)])
    def test_an_option_before_the_command(self, group: tuple[str, ...]) -> None:
        result = CliRunner().invoke(cli.docferry, [*group, "-c", "docferry.toml", "plan"])
        assert result.exit_code == 2
        path = " ".join(["docferry", *group])
        assert result.stderr == (
            "error: No such option '-c'.\n"
            f"remedy: Give options after the command: `{path} COMMAND -c ...`. See `{path} --help`.\n"
        )

    def test_unknown_command(self) -> None:
        result = CliRunner().invoke(cli.docferry, ["nonsense"])
        assert result.exit_code == 2
        assert "No such command 'nonsense'" in result.stderr


class TestFailures:
    def test_message_and_remedy(self, run: Run) -> None:
        result = run(fail_with(ConfigError("the key is wrong", remedy="Mend it.")))
        assert result.stderr == "error: the key is wrong\nremedy: Mend it.\n"
        assert result.stdout == ""

    def test_as_json(self, run: Run) -> None:
        result = run(fail_with(SourceUnavailable("no answer")), "--json")
        error = json.loads(result.stdout)["error"]
        assert error["class"] == "SourceUnavailable"
        assert error["message"] == "no answer"
        assert error["remedy"].startswith("Check that the server is up")
        assert error["exit_code"] == 1
        assert "error: no answer" in result.stderr

    def test_as_json_by_environment(self, run: Run) -> None:
        assert "error" in json.loads(run(fail_with(ConfigError("x")), DOCFERRY_JSON="1").stdout)

    def test_wrong_usage_as_json(self, run: Run) -> None:
        assert json.loads(run(lambda _session: None, "--json", "--nonsense").stdout)["error"]["exit_code"] == 2

    def test_internal_errors_are_one_line(self, run: Run) -> None:
        result = run(fail_with(ZeroDivisionError("division\nby zero")))
        assert result.stderr.splitlines() == [
            "error: internal error: ZeroDivisionError: division",
            "remedy: Run it again with --debug, and report what that shows.",
        ]

    def test_a_traceback_with_debug_only(self, run: Run) -> None:
        assert "Traceback" not in run(fail_with(ConfigError("x"))).stderr
        result = run(fail_with(ConfigError("x")), "--debug")
        assert "Traceback" in result.stderr
        assert "in body" in result.stderr
        assert result.stderr.endswith("error: x\n")
        assert "Traceback" in run(fail_with(ConfigError("x")), DOCFERRY_DEBUG="true").stderr

    @pytest.mark.parametrize(
        "secret", ["postgresql://app:s3cret@db/shop", "host=db password=s3cret", "postgres://app:s3cr@s3cret@db"]
    )
    def test_no_password_is_shown(self, run: Run, secret: str) -> None:
        def body(session: Session) -> None:
            logging.getLogger("docferry.test").warning("connecting to %s", secret)
            raise ValueError(f'missing "=" after "{secret}" in connection info string')

        result = run(body, "--debug", "--json")
        assert "s3cret" not in result.output
        assert "***" in result.stderr

    def test_an_interrupt_says_nothing(self, run: Run) -> None:
        result = run(fail_with(KeyboardInterrupt()), "--json")
        assert result.stdout == ""
        assert result.stderr.strip() == ""


@dataclasses.dataclass
class Point:
    x: int
    names: frozenset[str]


class TestAnswers:
    def test_text(self, run: Run) -> None:
        assert run(lambda session: session.answer({"a": 1}, "one")).stdout == "one\n"

    def test_json(self, run: Run) -> None:
        def body(session: Session) -> None:
            session.note("beside it")
            logging.getLogger("docferry.test").info("logged")
            document = {
                "point": Point(1, frozenset({"b", "a"})),
                "digits": Decimal("12345678901234567890.5"),
                "whole": Decimal("1E+3"),
                "huge": Decimal("1E+125"),
                "when": datetime(2026, 1, 2, tzinfo=UTC),
                "bytes": b"\x00\xff",
                "path": Path("a/b"),
                "ü": None,
            }
            session.answer(document, "text")

        result = run(body, "--json")
        assert json.loads(result.stdout) == {
            "point": {"x": 1, "names": ["a", "b"]},
            "digits": "12345678901234567890.5",
            "whole": 1000,
            "huge": "1E+125",
            "when": "2026-01-02T00:00:00+00:00",
            "bytes": "AP8=",
            "path": "a/b",
            "ü": None,
        }
        assert "beside it" in result.stderr
        assert "INFO docferry.test: logged" in result.stderr


class TestLogs:
    @pytest.mark.parametrize(("arguments", "shown"), [((), False), (("-v",), True)])
    def test_verbose_shows_our_debugging_and_nobody_elses(
        self, run: Run, arguments: tuple[str, ...], shown: bool
    ) -> None:
        def body(session: Session) -> None:
            logging.getLogger("docferry.test").debug("ours")
            logging.getLogger("botocore").info("theirs")

        stderr = run(body, *arguments).stderr
        assert ("ours" in stderr) is shown
        assert "theirs" not in stderr

    def test_nothing_is_left_of_them(self, run: Run) -> None:
        before = list(logging.getLogger().handlers), logging.getLogger("docferry").level
        run(lambda _session: None, "-v")
        assert (list(logging.getLogger().handlers), logging.getLogger("docferry").level) == before


class TestConfirmation:
    @staticmethod
    def body(session: Session) -> None:
        session.confirm("Remove it?")
        session.answer({}, "removed")

    def test_yes(self, run: Run) -> None:
        result = run(self.body, input="y\n")
        assert result.exit_code == 0
        assert result.stdout == "removed\n"
        assert "Remove it? [y/N]" in result.stderr

    def test_no(self, run: Run) -> None:
        result = run(self.body, input="n\n")
        assert result.exit_code == 1
        assert "nothing was changed" in result.stderr
        assert "removed" not in result.stdout

    def test_nobody_there(self, run: Run) -> None:
        result = run(self.body, input="")
        assert result.exit_code == 2
        assert "--yes" in result.stderr

    @pytest.mark.parametrize(("arguments", "env"), [(("--yes",), {}), (("-y",), {}), ((), {"DOCFERRY_YES": "1"})])
    def test_answered_beforehand(self, run: Run, arguments: tuple[str, ...], env: dict[str, str]) -> None:
        assert run(self.body, *arguments, **env).stdout == "removed\n"


class TestOptions:
    def test_config(self, run: Run) -> None:
        def body(session: Session) -> None:
            click.echo(session.config_path)

        assert run(body).stdout == "docferry.toml\n"
        assert run(body, "-c", "a.toml").stdout == "a.toml\n"
        assert run(body, DOCFERRY_CONFIG="b.toml").stdout == "b.toml\n"

    def test_config_is_loaded_when_asked_for(self, run: Run, tmp_path: Path) -> None:
        file = tmp_path / "my.toml"
        result = run(lambda session: bool(session.load_config()) and None, "-c", str(file))
        assert result.exit_code == 2
        assert f"{file}: there is no such file" in result.stderr

    def test_version(self) -> None:
        assert CliRunner().invoke(cli.docferry, ["--version"]).stdout == "docferry 0.1.0\n"


def every_command() -> Iterator[tuple[str, click.Command]]:
    def walk(name: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
        yield name, command
        if isinstance(command, click.Group):
            for child, inner in command.commands.items():
                yield from walk(f"{name} {child}", inner)

    context = click.Context(cli.docferry)
    for name in cli.docferry.list_commands(context):
        command = cli.docferry.get_command(context, name)
        assert command is not None, name
        yield from walk(name, command)


COMMANDS = dict(every_command())


@pytest.mark.parametrize("name", COMMANDS)
class TestEveryCommand:
    def test_has_help(self, name: str) -> None:
        assert COMMANDS[name].help

    def test_has_our_class(self, name: str) -> None:
        assert isinstance(COMMANDS[name], Command | CommandGroup)

    def test_has_options_with_help_and_variable(self, name: str) -> None:
        for parameter in COMMANDS[name].params:
            if isinstance(parameter, click.Option):
                assert parameter.help, parameter.name
        path = name.split()
        page = CliRunner().invoke(cli.docferry, [*path, "--help"])
        assert page.exit_code == 0
        options = [it for it in COMMANDS[name].params if isinstance(it, click.Option)]
        assert page.stdout.replace("\n", "").replace(" ", "").count("envvar:") == len(options)
        assert all("DOCFERRY_" in str(it.envvar or "DOCFERRY_") for it in options)

    def test_options_are_set_by_variables_of_their_own_names(self, name: str) -> None:
        context = click.Context(cli.docferry, auto_envvar_prefix="DOCFERRY")
        *groups, last = name.split()
        for group in groups:
            context = click.Context(COMMANDS[group], parent=context, info_name=group)
        command = COMMANDS[name]
        made = command.make_context(last, [], parent=context, resilient_parsing=True)
        prefix = "_".join(["DOCFERRY", *name.upper().split()])
        common = {option.name for option in define(last, confirms=True)(lambda _session: None).params}
        for option in command.params if isinstance(command, Command) else []:
            if isinstance(option, click.Option) and option.name not in common:
                long = next(one for one in option.opts if one.startswith("--"))
                variable = f"{prefix}_{long.strip('-').replace('-', '_').upper()}"
                with pytest.MonkeyPatch.context() as patch:
                    patch.setenv(variable, "given")
                    assert option.resolve_envvar_value(made) == "given", variable

    def test_is_in_the_documentation(self, name: str) -> None:
        pages = [DOCS / "docs" / "commands.md", DOCS / "README.md"]
        text = "".join(page.read_text(encoding="utf-8") for page in pages if page.exists())
        assert f"docferry {name}" in text


def test_every_module_with_a_command_is_in_the_table() -> None:
    sources = {path.stem: path.read_text(encoding="utf-8") for path in Path(cli.__path__[0]).glob("*.py")}
    # The frame's docstring shows an example.
    found = [name for name, text in sources.items() if name != "frame" and "command" in _exported(text)]
    assert sorted(found) == sorted(cli.COMMANDS)


def _exported(source: str) -> list[str]:
    _, _, rest = source.partition("__all__ = ")
    return [part.strip('"') for part in rest.partition("]")[0].lstrip("[").split(", ")]


HEAVY = """
import sys
from docferry.cli import main
try:
    main()
except SystemExit as end:
    heavy = [name for name in ("boto3", "botocore", "psycopg", "lxml", "rich", "docferry.app") if name in sys.modules]
    print(end.code, heavy)
"""


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["init", "--help"]])
def test_help_is_light(arguments: list[str]) -> None:
    command = [sys.executable, "-c", HEAVY, *arguments]
    outcome = subprocess.run(command, capture_output=True, text=True, check=True)
    assert outcome.stdout.splitlines()[-1] == "0 []"


def test_a_reader_that_leaves_early_is_no_traceback() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as closed:
        command = [sys.executable, "-c", "from docferry.cli import main; main()", "--help"]
        outcome = subprocess.run(command, stdout=closed, stderr=subprocess.PIPE, text=True, check=False)
    assert outcome.returncode == 1
    assert outcome.stderr == ""


def test_ctrl_c_is_quiet(tmp_path: Path) -> None:
    code = (
        "import os, signal\n"
        "from docferry import cli\n"
        "from docferry.cli import frame, init\n"
        "@frame.define('init')\n"
        "def command(session):\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    signal.pause()\n"
        "init.command = command\n"
        "cli.main()\n"
    )
    command = [sys.executable, "-c", code, "init"]
    outcome = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (outcome.returncode, outcome.stdout, outcome.stderr) == (130, "", "\n")
