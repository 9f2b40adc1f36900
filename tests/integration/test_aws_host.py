"""The host's scripts, as far as they can be run here."""

from __future__ import annotations

import subprocess
from importlib.resources import files
from pathlib import Path

import psycopg
import pytest
import yaml

import docferry
from docferry.embedded.postgres import EmbeddedPostgres

_HOST = Path(docferry.__file__).parent / "aws" / "host"


@pytest.mark.parametrize("script", sorted(_HOST.glob("*.sh")), ids=lambda path: path.name)
def test_every_script_is_bash(script: Path) -> None:
    done = subprocess.run(["bash", "-n", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_user_data_is_bash(tmp_path: Path) -> None:
    text = (files("docferry.aws") / "cloudformation" / "host.yaml").read_text()
    start = text.index("Fn::Base64: !Sub |\n")
    block = text[start : text.index("\nOutputs:", start)]
    script = yaml.safe_load(block.replace("!Sub ", "", 1))["Fn::Base64"].replace("${", "{")
    path = tmp_path / "user-data.sh"
    path.write_text(script)
    assert script.startswith("#!/bin/bash\n")
    assert subprocess.run(["bash", "-n", path], check=False).returncode == 0


def test_the_first_table_is_made_once(postgres: EmbeddedPostgres, database: str) -> None:
    """By psql itself, as on the host; the second time it leaves the table as it is."""
    for _ in range(2):
        subprocess.run(
            [
                postgres.bin_dir / "psql",
                "--quiet",
                "--no-psqlrc",
                "--set",
                "ON_ERROR_STOP=1",
                "--file",
                _HOST / "orders.sql",
                database,
            ],
            env=postgres.environment,
            check=True,
        )
        with psycopg.connect(database, autocommit=True) as connection:
            rows = connection.execute(
                "SELECT count(*), max(id), bool_and(order_data IS DOCUMENT), "
                "min(xpath('count(//item)', order_data)::text)"
                " FROM orders"
            ).fetchone()
        assert rows == (14, 14, True, "{1}")
