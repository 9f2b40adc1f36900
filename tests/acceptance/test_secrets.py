"""No secret is shown, logged or kept: not by a command that succeeds, nor by one that fails."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner
from psycopg import sql

from docferry.cli import docferry
from docferry.embedded.dynamodb import EmbeddedDynamoDB
from docferry.embedded.postgres import EmbeddedPostgres

from .conftest import Ferry

PASSWORD = "Sentinel-P@ss w/rd'7"
ENCODED = "Sentinel-P%40ss%20w%2Frd%277"
QUOTED = "Sentinel-P@ss w/rd\\'7"
AWS_SECRET = "SentinelAwsSecretKey/abc+def"
KEY_PASSWORD = "SentinelKeyPassword"

COMMANDS = [
    ["plan"], ["plan", "--grants"], ["apply"], ["run", "--once"], ["status"], ["wait", "--timeout", "1"],
    ["backfill", "orders"], ["deadletters", "list"], ["deadletters", "replay", "--yes"], ["destroy", "--yes"],
    ["bench", "load", "1", "1", "1", "1", "--seconds", "0.1"],
]  # fmt: skip


def traces(text: str) -> list[str]:
    """Any part of a secret in any of its spellings."""
    return [secret for secret in ("Sentinel", "P@ss", "ss w", "P%40ss", "rd'7", "rd%277") if secret in text]


@pytest.fixture
def server(postgres_server: EmbeddedPostgres) -> EmbeddedPostgres:
    """A server that wants the password of role `secretive`."""
    with psycopg.connect(postgres_server.dsn(), autocommit=True) as connection:
        statement = sql.SQL("CREATE ROLE secretive LOGIN SUPERUSER PASSWORD {}").format(PASSWORD)
        connection.execute(statement)
        connection.execute("CREATE TABLE orders (id int PRIMARY KEY, body text, more json)")
        connection.execute("INSERT INTO orders VALUES (1, '<a/>'), (2, '<a>')")
        hba = postgres_server.data_directory / "pg_hba.conf"
        hba.write_text("host all secretive 127.0.0.1/32 scram-sha-256\n" + hba.read_text())
        connection.execute("SELECT pg_reload_conf()")
    return postgres_server


@pytest.fixture
def secretive(server: EmbeddedPostgres, dynamodb: EmbeddedDynamoDB, tmp_path: Path) -> Iterator[Ferry]:
    with closing(Ferry(server.dsn(), dynamodb, tmp_path)) as ferry:
        ferry.environment["AWS_SECRET_ACCESS_KEY"] = AWS_SECRET
        yield ferry


def _configure(ferry: Ferry, dsn: str, **target: Any) -> None:
    mirror = {"table": "public.orders", "collection": "orders", "documents": {"body": {"format": "xml"}}}
    ferry.write_config(mirror, source={"dsn": dsn}, target=target)


def test_where_all_goes_well(secretive: Ferry, server: EmbeddedPostgres) -> None:
    ferry = secretive
    url = f"postgresql://secretive:{ENCODED}@127.0.0.1:{server.port}/postgres?sslpassword={KEY_PASSWORD}"
    _configure(ferry, url)
    said = []
    for command in COMMANDS[:5]:
        done = ferry.run(*command, "--verbose", "--debug", check=False)
        assert done.returncode in (0, 3), done.stderr
        said += [done.stdout, done.stderr]
    worker = ferry.start_worker("--verbose")
    command_line = Path(f"/proc/{worker.pid}/cmdline")
    if command_line.exists():
        said.append(command_line.read_text())
    ferry.execute("INSERT INTO orders VALUES (3, '<a>')")
    ferry.run("wait")
    for command in COMMANDS[5:9]:
        done = ferry.run(*command, "--json", check=False)
        said += [done.stdout, done.stderr]
    assert worker.stop() == 0
    said += [worker.text, *worker.output]
    ((kept,),) = ferry.query("SELECT schema_to_xml('docferry', true, false, '')::text")
    said.append(kept)
    assert "document-invalid" in kept
    ((shown,),) = ferry.query("SELECT string_agg(application_name || query, ' ') FROM pg_stat_activity")
    said += [str(shown), repr(ferry.items("orders", meta=True))]
    done = ferry.run("init", "-o", "-", DOCFERRY_SOURCE_DSN=url)
    said += [done.stdout, done.stderr]
    done = ferry.run("destroy", "--yes")
    said += [done.stdout, done.stderr]
    assert [text for text in said if traces(text)] == []


def _dsns(host: str, port: int, password: str, encoded: str, quoted: str) -> dict[str, str]:
    """The same place in every form."""
    words = f"host={host} port={port} user=secretive dbname=postgres connect_timeout=3"
    return {
        "url": f"postgresql://secretive:{encoded}@{host}:{port}/postgres?connect_timeout=3",
        "parameter": f"postgresql://secretive@{host}:{port}/postgres?password={encoded}&sslpassword={KEY_PASSWORD}",
        "not encoded": f"postgresql://secretive:{password}@{host}:{port}/postgres",
        "slash": f"postgresql://secretive:{password.replace('@', '/')}@{host}:{port}/postgres",
        "percent": f"postgresql://secretive:Sentinel%zz@{host}:{port}/postgres",
        "space": f"postgresql://secretive:Sentinel Sentinel@{host}:{port}/postgres",
        "space in a parameter": f"postgresql://secretive@{host}:{port}/postgres?password={password}",
        "percent in a parameter": f"postgresql://secretive@{host}:{port}/postgres?password=Sentinel%zz",
        "no at": f"postgresql://secretive:Sentinel/postgres?host={host}",
        "words": f"{words} password='{quoted}' sslpassword={KEY_PASSWORD}",
        "not quoted": f"{words} password=Sentinel Sentinel",
        "broken": f"{words} password='{quoted}",
        "environment": words,
    }


def test_where_it_fails(secretive: Ferry, server: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, for speed. Every command meets every kind of failure, the forms take turns."""
    ferry = secretive
    monkeypatch.chdir(ferry.directory)
    for name, value in ferry.environment.items():
        if name.startswith(("AWS_", "COLUMNS")):
            monkeypatch.setenv(name, value)
    monkeypatch.setenv("PGPASSWORD", f"{PASSWORD} wrong")
    places = {
        "wrong password": ("127.0.0.1", server.port),
        "nobody there": ("127.0.0.1", 1),
        "no host": ("no.invalid", 5432),
    }
    wrong = (f"{PASSWORD} wrong", f"{ENCODED}%20wrong", f"{QUOTED} wrong")
    forms = itertools.cycle(_dsns("h", 1, *wrong))
    failures = set()
    for (place, command), form in zip(itertools.product(places.values(), COMMANDS), forms, strict=False):
        _configure(ferry, _dsns(*place, *wrong)[form])
        for more in (["--debug", "--verbose"], ["--json"]):
            done = CliRunner().invoke(docferry, [*command, *more])
            assert done.exit_code in (1, 2), (command, form, done.output)
            assert traces(done.output) == [], (command, form, done.output)
            failures.add(done.stderr.partition("\n")[0] if not more else done.stderr)
    said = " ".join(failures)
    assert "password authentication failed" in said
    assert "Connection refused" in said
    assert "no.invalid" in said


UNREADABLE = ("percent", "space", "space in a parameter", "percent in a parameter", "no at", "not quoted", "broken")


@pytest.mark.parametrize("form", UNREADABLE)
def test_a_connection_string_that_cannot_be_read(
    form: str, ferry: Ferry, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """libpq quotes what it cannot read, which may be the bare password."""
    monkeypatch.chdir(ferry.directory)
    dsn = _dsns("h", 1, PASSWORD, ENCODED, QUOTED)[form]
    _configure(ferry, dsn)
    monkeypatch.setenv("DOCFERRY_SOURCE_DSN", dsn)
    for command in (["status"], ["wait", "--timeout", "1"], ["run", "--once"], ["init", "-o", "-"]):
        for more in (["--debug"], ["--debug", "--log-format", "json"], ["--json"]):
            done = CliRunner().invoke(docferry, [*command, *more])
            assert done.exit_code == 2, (command, done.output)
            assert traces(done.output + caplog.text) == [], (command, done.output)
            assert "--debug" not in more or "Traceback" in done.output


def test_where_the_target_fails(secretive: Ferry, server: EmbeddedPostgres) -> None:
    url = f"postgresql://secretive:{ENCODED}@127.0.0.1:{server.port}/postgres"
    _configure(secretive, url, endpoint_url="http://127.0.0.1:1")
    done = secretive.run("plan", "--debug", "--verbose", check=False)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert traces(done.stdout + done.stderr) == []


def test_a_password_in_the_command_line_is_warned_of(secretive: Ferry, server: EmbeddedPostgres) -> None:
    url = f"postgresql://secretive:{ENCODED}@127.0.0.1:{server.port}/postgres"
    done = secretive.run("init", "-o", "-", "--dsn", url)
    assert "every user of this machine can read it" in done.stderr
    assert "DOCFERRY_SOURCE_DSN" in done.stderr
    assert traces(done.stdout + done.stderr) == []
