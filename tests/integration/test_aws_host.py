"""The host's scripts, as far as they can be run here."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from importlib.resources import files
from pathlib import Path

import psycopg
import pytest
import yaml
from psycopg import sql
from psycopg.conninfo import make_conninfo

import docferry
from docferry.embedded.aws_lambda import LambdaGateway, install_standin
from docferry.embedded.postgres import EmbeddedPostgres

from .road import Listener, Road

_HOST = Path(docferry.__file__).parent / "aws" / "host"


def _psql(postgres: EmbeddedPostgres, dsn: str, *arguments: str | Path) -> None:
    """As the host's scripts call it."""
    command = [postgres.bin_dir / "psql", "--quiet", "--no-psqlrc", "--set", "ON_ERROR_STOP=1", *arguments, dsn]
    subprocess.run(command, env=postgres.environment, check=True)


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
        _psql(postgres, database, "--file", _HOST / "orders.sql")
        with psycopg.connect(database, autocommit=True) as connection:
            rows = connection.execute(
                "SELECT count(*), max(id), bool_and(order_data IS DOCUMENT), "
                "min(xpath('count(//item)', order_data)::text)"
                " FROM orders"
            ).fetchone()
        assert rows == (14, 14, True, "{1}")


def test_the_trigger_functions_belong_to_a_role_that_may_do_little(postgres: EmbeddedPostgres, database: str) -> None:
    """The administrator is none of PostgreSQL's superusers, on Aurora and here."""
    unique = uuid.uuid4().hex[:8]
    admin, owner = f"admin_{unique}", f"Owner '{unique}"
    listener = Listener()
    with psycopg.connect(database, autocommit=True) as superuser, LambdaGateway(listener.url) as gateway:
        install_standin(database, gateway)
        for statement in (
            "CREATE ROLE {admin} LOGIN CREATEROLE",
            "GRANT CREATE ON DATABASE {database} TO {admin}",
            "GRANT CREATE ON SCHEMA public TO {admin}",
            "GRANT USAGE ON SCHEMA aws_lambda TO {admin} WITH GRANT OPTION",
            "GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA aws_lambda TO {admin} WITH GRANT OPTION",
        ):
            names = {"admin": sql.Identifier(admin), "database": sql.Identifier(superuser.info.dbname)}
            superuser.execute(sql.SQL(statement).format(**names))
        dsn = make_conninfo(database, user=admin)
        for _ in range(2):
            given = ("--set", f"owner={owner}", "--set", "capture=lambda", "--file", _HOST / "owner.sql")
            _psql(postgres, dsn, *given)
        road = Road(dsn, gateway, listener)
        try:
            road.app.execute("CREATE TABLE things (id int PRIMARY KEY, name text)")
            road.mirror("public.things", "id", owner=owner)
            owners = road.app.execute(
                "SELECT DISTINCT pg_get_userbyid(proowner) FROM pg_proc WHERE pronamespace = 'docferry'::regnamespace"
            ).fetchall()
            assert owners == [(owner,)]
            road.app.execute("INSERT INTO things VALUES (1, 'one')")
            assert road.sent_keys() == ["1"]
            held = superuser.execute(
                "SELECT rolcanlogin OR rolsuper OR rolcreaterole OR rolbypassrls OR rolreplication,"
                " (SELECT count(*) FROM pg_auth_members WHERE member = r.oid),"
                " has_table_privilege(oid, 'things', 'SELECT'), has_table_privilege(oid, 'docferry.epochs', 'SELECT')"
                " FROM pg_roles r WHERE rolname = %s",
                (owner,),
            ).fetchone()
            assert held == (False, 0, False, False)
        finally:
            road.app.close()
            listener.close()
            # What the administrator granted to the owner goes with the administrator's own right to it.
            roles = [sql.Identifier(role) for role in (admin, owner)]
            for role in roles:
                superuser.execute(sql.SQL("DROP OWNED BY {} CASCADE").format(role))
            superuser.execute(sql.SQL("DROP ROLE {}, {}").format(*roles))


def test_an_owner_that_sends_nothing_may_not_send(postgres: EmbeddedPostgres, database: str) -> None:
    """In mode `outbox`; there is not even a schema aws_lambda here."""
    owner = f"owner_{uuid.uuid4().hex[:8]}"
    _psql(postgres, database, "--set", f"owner={owner}", "--set", "capture=outbox", "--file", _HOST / "owner.sql")
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(owner)))


def test_the_bootstrap_makes_the_owner_that_the_configuration_names(tmp_path: Path) -> None:
    """With the host's commands replaced by ones that write down how they are called."""
    scripts, commands = tmp_path / "scripts", tmp_path / "bin"
    commands.mkdir()
    scripts.mkdir()
    toml, called = tmp_path / "docferry.toml", tmp_path / "called"
    (scripts / "environment.sh").write_text(
        "FIRST_ROWS=false PACKAGE_PARAMETER=p CONFIG_PARAMETER=c\ndatabase() { :; }\n"
    )
    config = '[source]\ncapture = "lambda"\n\n[source.triggers]\nowner = "our own"\n'
    for name, body in {
        "aws": f"case \"$*\" in *' c '*) printf '{config}';; esac",
        "sha256sum": "exit 0",
        "psql": f'printf "%s\\n" "$*" >> {called}; echo said',
        "docferry": f'printf "docferry %s\\n" "$*" >> {called}; echo "the answer"',
        "python3.13": f'exec {sys.executable} "$@"',
    }.items():
        (commands / name).write_text(f"#!/bin/bash\n{body}\n")
        (commands / name).chmod(0o755)
    script = (_HOST / "bootstrap.sh").read_text()
    script = script.replace("/opt/docferry/package/docferry/aws/host", str(scripts))
    script = script.replace("/etc/docferry/docferry.toml", str(toml))
    done = subprocess.run(
        ["bash", "-c", script, "bootstrap", "--json"],
        env={**os.environ, "PATH": f"{commands}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "the answer\n"), done.stderr
    calls = called.read_text().splitlines()
    assert any("--set owner=our own --set capture=lambda" in call and "owner.sql" in call for call in calls)
    assert calls[-1] == "docferry apply --json"
