"""How `apply --resync` is spelt."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from docferry.cli.apply import command
from docferry.cli.frame import Session


@pytest.mark.parametrize(
    ("arguments", "resync", "every", "resync_all"),
    [
        ([], (), False, False),
        (["--resync", "orders"], ("orders",), False, False),
        (["--resync", "orders", "--resync", "sales.invoices"], ("orders", "sales.invoices"), False, False),
        (["--resync", "--all"], ("--all",), True, False),
        (["--all", "--resync"], ("--all",), True, False),
        (["--resync-all"], (), False, True),
    ],
)
def test_its_options(arguments: list[str], resync: tuple[str, ...], every: bool, resync_all: bool) -> None:
    given = command.make_context("apply", arguments).params
    assert (given["resync"], given["every"], given["resync_all"]) == (resync, every, resync_all)


@pytest.mark.parametrize(("arguments", "said"), [(["--resync"], "needs a table"), (["--all"], "goes with --resync")])
def test_what_is_left_open_is_refused(arguments: list[str], said: str) -> None:
    refused = CliRunner().invoke(command, arguments, obj=Session())
    assert refused.exit_code == 2
    assert said in refused.output


def test_by_the_environment() -> None:
    variables = {"DOCFERRY_APPLY_RESYNC": "orders invoices"}
    given = CliRunner(env=variables)
    with given.isolation(env=variables):
        found = command.make_context("apply", [], auto_envvar_prefix="DOCFERRY_APPLY").params
    assert found["resync"] == ("orders", "invoices")
