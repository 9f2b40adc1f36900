"""`docferry aws`, as far as it needs no AWS."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

import docferry.cli as cli

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
