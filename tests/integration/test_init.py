"""`docferry init` on a real database."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import psycopg
import pytest
from click.testing import CliRunner, Result

from docferry.capture.findings import DocumentColumn, TableFinding
from docferry.capture.inspect import inspect_documents
from docferry.cli import docferry
from docferry.config import load
from docferry.errors import SourceRefused, SourceUnavailable

SCHEMA = """
CREATE TABLE orders (id int PRIMARY KEY, order_data xml, status text);
CREATE SCHEMA sales;
CREATE DOMAIN sales.settings AS jsonb;
CREATE TABLE sales."Customer Data" (tenant int, region text, id int, profile json, prefs sales.settings,
                                    PRIMARY KEY (tenant, region, id));
CREATE TABLE keyless (payload jsonb);
CREATE TABLE replaced (code text NOT NULL, doc xml);
CREATE UNIQUE INDEX replaced_code ON replaced (code);
ALTER TABLE replaced REPLICA IDENTITY USING INDEX replaced_code;
CREATE TABLE texts (id bigint PRIMARY KEY, as_xml text, as_json varchar(200), mixed text, html text, empty text,
                    list text, note char(40));
INSERT INTO texts SELECT n, format('<?xml version="1.0"?><o n="%s"><a/></o>', n), format('{"n": %s}', n),
       CASE WHEN n = 50 THEN 'plain' ELSE '<a/>' END, 'a <b>bold</b> word', NULL, '[1, 2]', '<?xml broken'
  FROM generate_series(1, 150) AS n;
CREATE TABLE plain (id int PRIMARY KEY, name text, tags json[]);
INSERT INTO plain VALUES (1, 'one', NULL);
CREATE TABLE split (id int PRIMARY KEY, doc jsonb) PARTITION BY RANGE (id);
CREATE TABLE split_1 PARTITION OF split FOR VALUES FROM (0) TO (100);
CREATE UNLOGGED TABLE scratch (id int PRIMARY KEY, doc jsonb);
CREATE VIEW looking AS SELECT * FROM orders;
CREATE SCHEMA docferry;
CREATE TABLE docferry.ledger (id int PRIMARY KEY, doc jsonb);
"""


@pytest.fixture
def shop(database: str) -> str:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(SCHEMA.encode())
    return database


def init(*arguments: str, **env: str) -> Result:
    return CliRunner().invoke(docferry, ["init", *arguments], env=env)


def found(dsn: str) -> dict[str, TableFinding]:
    return {f"{finding.schema}.{finding.name}": finding for finding in inspect_documents(dsn)}


def test_findings(shop: str) -> None:
    findings = found(shop)
    assert list(findings) == [
        "public.keyless",
        "public.orders",
        "public.replaced",
        "public.scratch",
        "public.split",
        "public.texts",
        "sales.Customer Data",
    ]
    assert findings["public.orders"] == TableFinding(
        schema="public",
        name="orders",
        key=("id",),
        columns=("id", "order_data", "status"),
        documents=(DocumentColumn("order_data", "xml", "xml"),),
    )
    customers = findings["sales.Customer Data"]
    assert customers.key == ("tenant", "region", "id")
    assert [(it.name, it.format, it.sampled) for it in customers.documents] == [
        ("profile", "json", 0),
        ("prefs", "json", 0),
    ]
    assert "no primary key" in findings["public.keyless"].problems[0][0]
    assert findings["public.replaced"].key == ("code",)
    assert not findings["public.replaced"].key_is_primary
    assert findings["public.replaced"].problems == ()
    assert "not logged" in findings["public.scratch"].problems[0][0]
    assert findings["public.split"].problems == ()


def test_text_columns_are_sampled(shop: str) -> None:
    assert found(shop)["public.texts"].documents == (
        DocumentColumn("as_xml", "text", "xml", 100),
        DocumentColumn("as_json", "character varying(200)", "json", 100),
    )


def test_the_file_can_be_read(shop: str, tmp_path: Path) -> None:
    output = tmp_path / "docferry.toml"
    result = init("--dsn", shop, "--output", str(output))
    assert result.exit_code == 0, result.output
    assert result.stdout == f"Wrote {output}.\n"
    config = load(output, {})
    assert config.source.dsn == shop
    mirrors = {mirror.table: mirror for mirror in config.mirrors}
    assert list(mirrors) == ["public.orders", "public.replaced", "public.split", "sales.Customer Data"]
    # What the default key would be is the primary key; this table has none.
    assert mirrors["public.replaced"].key == ("code",)
    assert mirrors["public.orders"].key is None
    assert [it.name for it in mirrors["sales.Customer Data"].item_key or ()] == ["pk", "sk"]
    assert "# Remedy: ALTER TABLE public.keyless ADD PRIMARY KEY" in output.read_text()


def test_json(shop: str, tmp_path: Path) -> None:
    result = init("--json", "-o", str(tmp_path / "a.toml"), DOCFERRY_SOURCE_DSN=shop)
    answer = json.loads(result.stdout)
    assert answer["path"] == str(tmp_path / "a.toml")
    assert answer["commented"] == ["public.keyless", "public.scratch", "public.texts"]
    assert answer["text"] == (tmp_path / "a.toml").read_text()


def test_standard_output(shop: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = init("--dsn", shop, "-o", "-")
    assert result.stdout.startswith("# docferry.toml, written by `docferry init`")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_kept(shop: str, tmp_path: Path) -> None:
    output = tmp_path / "docferry.toml"
    output.write_text("mine")
    result = init("--dsn", shop, "-o", str(output))
    assert result.exit_code == 2
    assert "is there already" in result.stderr
    assert output.read_text() == "mine"
    assert init("--dsn", shop, "-o", str(output), "--force").exit_code == 0
    assert output.read_text() != "mine"


def test_nothing_found(database: str, tmp_path: Path) -> None:
    result = init("--dsn", database, "-o", str(tmp_path / "a.toml"))
    assert result.exit_code == 1
    assert "no table with document columns was found" in result.stderr
    assert not (tmp_path / "a.toml").exists()


def test_a_file_that_cannot_be_written(shop: str, tmp_path: Path) -> None:
    result = init("--dsn", shop, "-o", str(tmp_path / "no" / "a.toml"))
    assert result.exit_code == 2
    assert "cannot be written: No such file" in result.stderr


def test_no_database(tmp_path: Path) -> None:
    result = init("-o", str(tmp_path / "a.toml"))
    assert result.exit_code == 2
    assert "DOCFERRY_SOURCE_DSN" in result.stderr
    with pytest.raises(SourceUnavailable):
        inspect_documents("host=127.0.0.1 port=1 user=x")


def test_a_database_that_does_not_exist(database: str) -> None:
    with pytest.raises(SourceRefused):
        inspect_documents(f"{database}_not")


def test_tables_the_role_may_not_read(shop: str, database: str) -> None:
    with psycopg.connect(shop, autocommit=True) as connection:
        connection.execute(b"DROP ROLE IF EXISTS narrow")
        connection.execute(b"CREATE ROLE narrow LOGIN")
        try:
            findings = found(shop.replace("postgres@", "narrow@"))
            assert "may not read public.orders" in findings["public.orders"].problems[0][0]
            assert "public.texts" not in findings
        finally:
            connection.execute(b"DROP ROLE narrow")


def test_a_locked_table_does_not_hold_it_up(shop: str, caplog: pytest.LogCaptureFixture) -> None:
    with psycopg.connect(shop) as locking:
        locking.execute(b"LOCK TABLE texts IN ACCESS EXCLUSIVE MODE")
        began = time.monotonic()
        findings: dict[str, TableFinding] = {}
        looking = threading.Thread(target=lambda: findings.update(found(shop)))
        looking.start()
        looking.join(60)
        assert not looking.is_alive()
        assert time.monotonic() - began < 15
    assert "public.orders" in findings
    assert "public.texts" not in findings
    assert "did not look into the text columns of public.texts" in caplog.text
