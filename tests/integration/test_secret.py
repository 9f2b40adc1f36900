"""The connection string out of Secrets Manager."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import boto3
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from docferry.config import Config, parse
from docferry.embedded.dynamodb import EmbeddedDynamoDB
from docferry.embedded.postgres import EmbeddedPostgres
from docferry.errors import ConfigError, SourceRefused, SourceUnavailable
from docferry.source.login import source_dsn
from docferry.source.secret import dsn_from_secret
from docferry.source.session import connect


@pytest.fixture(scope="module")
def aws() -> Iterator[EmbeddedDynamoDB]:
    with EmbeddedDynamoDB(services=("dynamodb", "secretsmanager")) as server:
        yield server


@pytest.fixture(autouse=True)
def credentials(aws: EmbeddedDynamoDB, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", aws.client_options()["aws_access_key_id"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", aws.client_options()["aws_secret_access_key"])
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    monkeypatch.delenv("PGSSLMODE", raising=False)


def keep(aws: EmbeddedDynamoDB, name: str, text: str) -> str:
    options: dict[str, Any] = dict(aws.client_options())
    client = boto3.client("secretsmanager", **options)
    try:
        return str(client.create_secret(Name=name, SecretString=text)["ARN"])
    finally:
        client.close()


def read(aws: EmbeddedDynamoDB, secret: str, **tls: str) -> str:
    return dsn_from_secret(secret, aws.region, aws.endpoint_url, None, **tls)


def test_a_database_secret_becomes_a_connection_string(aws: EmbeddedDynamoDB) -> None:
    values = {"username": "app", "password": "p w'", "host": "db.example", "port": 5433, "dbname": "shop"}
    dsn = read(aws, keep(aws, "whole", json.dumps(values)))
    assert {"user=app", "host=db.example", "port=5433", "dbname=shop"} <= set(dsn.split())
    assert r"password='p w\''" in dsn


def test_a_secret_of_another_machine_is_not_sent_in_the_clear(
    aws: EmbeddedDynamoDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tls(host: str, **given: str) -> dict[str, Any]:
        name = f"tls{len(made)}"
        made.append(keep(aws, name, json.dumps({"username": "app", "password": "p", "host": host})))
        words = conninfo_to_dict(read(aws, made[-1], **given))
        return {key: value for key, value in words.items() if key.startswith("ssl")}

    made: list[str] = []
    assert tls("db.example") == {"sslmode": "require"}
    assert tls("db.example", sslmode="prefer") == {"sslmode": "prefer"}
    verified = {"sslmode": "verify-full", "sslrootcert": "/etc/rds.pem"}
    assert tls("db.example", sslrootcert="/etc/rds.pem") == verified
    assert tls("127.0.0.1", sslrootcert="/etc/rds.pem") == verified
    assert tls("db.example", sslrootcert="/etc/rds.pem", sslmode="verify-ca") == {**verified, "sslmode": "verify-ca"}
    for ours in ("127.0.0.1", "::1", "localhost", "/var/run/postgresql"):
        assert tls(ours) == {}
    monkeypatch.setenv("PGSSLMODE", "verify-full")
    assert tls("db.example") == {}, "libpq's own variable is not weakened"


def test_a_secret_that_is_none_of_a_database(aws: EmbeddedDynamoDB) -> None:
    for number, text in enumerate(('{"username": "app"}', "not json")):
        with pytest.raises(ConfigError, match="does not hold a database secret") as caught:
            read(aws, keep(aws, f"broken{number}", text))
        assert "username, password and host" in caught.value.remedy
        assert text not in str(caught.value)


def test_a_secret_that_cannot_be_read(aws: EmbeddedDynamoDB) -> None:
    with pytest.raises(ConfigError, match="cannot be read") as caught:
        read(aws, "arn:aws:secretsmanager:us-east-1:123456789012:secret:nowhere-AbCdEf")
    assert "secretsmanager:GetSecretValue" in caught.value.remedy


class Rotating:
    """A role and its secret."""

    def __init__(self, aws: EmbeddedDynamoDB, server: EmbeddedPostgres) -> None:
        self.server = server
        self.client: Any = boto3.client("secretsmanager", **dict(aws.client_options()))  # type: ignore[call-overload]
        self.role(password="first")
        self.arn = self.client.create_secret(Name="rotating", SecretString=self._text("first"))["ARN"]
        text = f"""
            [source]
            secret = "{self.arn}"
            [target]
            region = "{aws.region}"
            endpoint_url = "{aws.endpoint_url}"
            [[mirrors]]
            table = "notes"
        """
        self.config: Config = parse(text, environ={})

    def role(self, password: str) -> None:
        with psycopg.connect(self.server.dsn(), autocommit=True) as connection:
            connection.execute(f"ALTER ROLE rotated PASSWORD '{password}'".encode())

    def secret(self, password: str) -> None:
        self.client.put_secret_value(SecretId=self.arn, SecretString=self._text(password))

    def _text(self, password: str) -> str:
        host, port = "127.0.0.1", self.server.port
        return json.dumps({"username": "rotated", "password": password, "host": host, "port": port})


@pytest.fixture
def rotating(aws: EmbeddedDynamoDB, postgres_server: EmbeddedPostgres) -> Iterator[Rotating]:
    with psycopg.connect(postgres_server.dsn(), autocommit=True) as connection:
        connection.execute("CREATE ROLE rotated LOGIN")
        hba = postgres_server.data_directory / "pg_hba.conf"
        hba.write_text("host all rotated 127.0.0.1/32 scram-sha-256\n" + hba.read_text())
        connection.execute("SELECT pg_reload_conf()")
    rotating = Rotating(aws, postgres_server)
    yield rotating
    rotating.client.close()


def test_a_rotated_secret_is_read_again(rotating: Rotating) -> None:
    dsn = source_dsn(rotating.config)
    connect(dsn, purpose="test").close()

    rotating.role("second")
    with pytest.raises(SourceUnavailable, match="password authentication failed"):
        # The secret does not know it yet: it will in a moment.
        connect(dsn, purpose="test")
    rotating.secret("second")
    with closing(connect(dsn, purpose="test")), closing(connect(dsn, purpose="test", replication=False)):
        pass

    rotating.secret("wrong")
    other = source_dsn(rotating.config)
    with pytest.raises(SourceRefused, match="password authentication failed"):
        connect(other, purpose="test")
