"""`docferry aws`, as far as it needs no AWS."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

import docferry.cli as cli
from docferry.errors import ConfigError

CONFIG = """
[source]
capture = "lambda"

[[mirrors]]
table = "public.orders"
"""


@pytest.mark.parametrize(
    "arguments", [("template", "--key", "orders=id:N"), ("package", "--without-dependencies")], ids=lambda one: one[0]
)
@pytest.mark.parametrize(("where", "why"), [("no/file", "No such file"), ("docferry.toml/file", "Not a directory")])
def test_a_file_that_cannot_be_written(
    arguments: tuple[str, ...], where: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("docferry.toml").write_text(CONFIG)
    done = CliRunner().invoke(cli.docferry, ["aws", *arguments, "-o", where])
    assert done.exit_code == 2
    assert f"error: {where} cannot be written: {why}" in done.stderr
    assert "remedy: Give --output" in done.stderr


PASSWORD = "AuroraAdminPassword=not-for-everybody"
WARNING = "warning: a password in the command line"


@pytest.mark.parametrize(
    ("arguments", "variable", "warned"),
    [
        (["-p", PASSWORD], "", True),
        (["-p", "Host=false", "-p", PASSWORD], "", True),
        ([], f"Host=false {PASSWORD}", False),
        (["-p", "Host=false"], "", False),
        (["-p", "AuroraAdminPassword="], "", False),
    ],
)
def test_a_password_in_the_command_line(
    arguments: list[str], variable: str, *, warned: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command line of a process is no secret; a variable of it is one to other users."""
    monkeypatch.chdir(tmp_path)
    Path("docferry.toml").write_text(CONFIG)
    deployed: list[dict[str, str]] = []

    class Deployment:
        def __init__(self, *_: object, **_settings: object) -> None:
            pass

        def deploy(self, _template: str, _package: object, parameters: dict[str, str]) -> None:
            deployed.append(parameters)
            raise ConfigError("far enough")

    monkeypatch.setattr("docferry.cli.aws.Deployment", Deployment)
    command = ["aws", "deploy", "--without-dependencies", "--key", "orders=id:N", *arguments]
    done = CliRunner().invoke(cli.docferry, command, env={"DOCFERRY_AWS_DEPLOY_PARAMETER": variable})
    assert "error: far enough" in done.stderr
    assert (WARNING in done.stderr) == warned
    assert not warned or "DOCFERRY_AWS_DEPLOY_PARAMETER" in done.stderr
    assert "not-for-everybody" not in done.output
    given = dict(text.split("=") for text in (*arguments, *variable.split()) if "=" in text)
    assert deployed == [given]
