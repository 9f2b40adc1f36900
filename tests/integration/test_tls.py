"""Connections to the source over TLS, against a server with a certificate of a CA of the test's own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from unittest.mock import MagicMock

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from docferry.config import Config, parse
from docferry.embedded.postgres import EmbeddedPostgres
from docferry.embedded.postgres_binaries import server_identity
from docferry.errors import SourceRefused
from docferry.source.iam import iam_dsn
from docferry.source.login import source_dsn
from docferry.source.session import connect
from docferry.source.transport import source_warnings, target_warnings

from ..waiting import until
from .harness import Ferry

pytestmark = pytest.mark.skipif(
    shutil.which("openssl") is None, reason="openssl, which makes the certificates, is missing"
)

_CURVE = "ec_paramgen_curve:prime256v1"
HBA = """
hostssl all certified 127.0.0.1/32 cert
hostssl all tokened 127.0.0.1/32 password
hostssl all scrambled 127.0.0.1/32 scram-sha-256
hostnossl all only_tls 127.0.0.1/32 reject
host all all 127.0.0.1/32 trust
host replication all 127.0.0.1/32 trust
"""


class Authority:
    """A CA in a directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir()
        self.certificate = directory / "ca.crt"
        _openssl(directory, "req", "-x509", "-newkey", "ec", "-pkeyopt", _CURVE, "-nodes", "-days", "2",
                 "-subj", "/CN=test CA", "-keyout", "ca.key", "-out", "ca.crt")  # fmt: skip

    def issue(self, name: str) -> tuple[Path, Path]:
        """Certificate and key for a host or a user."""
        (self.directory / "extensions").write_text(f"subjectAltName = DNS:{name}\n")
        _openssl(self.directory, "req", "-newkey", "ec", "-pkeyopt", _CURVE, "-nodes", "-subj", f"/CN={name}",
                 "-keyout", f"{name}.key", "-out", f"{name}.csr")  # fmt: skip
        _openssl(self.directory, "x509", "-req", "-in", f"{name}.csr", "-days", "2", "-CA", "ca.crt",
                 "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "extensions", "-out", f"{name}.crt")  # fmt: skip
        key = self.directory / f"{name}.key"
        key.chmod(0o600)
        return self.directory / f"{name}.crt", key


def _openssl(directory: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls") / "ca")


@pytest.fixture(scope="module")
def server(authority: Authority) -> Iterator[EmbeddedPostgres]:
    with EmbeddedPostgres() as server:
        identity = server_identity()
        for source, name in zip(
            (*authority.issue("localhost"), authority.certificate), ("crt", "key", "ca"), strict=True
        ):
            file = server.data_directory / f"server.{name}"
            shutil.copy(source, file)
            file.chmod(0o600)
            if identity.user is not None and identity.group is not None:
                os.chown(file, identity.user, identity.group)
        (server.data_directory / "pg_hba.conf").write_text(HBA)
        with psycopg.connect(server.dsn(), autocommit=True) as connection:
            for statement in (
                "CREATE ROLE certified LOGIN", "CREATE ROLE only_tls LOGIN",
                "CREATE ROLE tokened LOGIN", "CREATE ROLE trusted LOGIN SUPERUSER",
                "CREATE ROLE scrambled LOGIN PASSWORD 'geheim'",
                "ALTER SYSTEM SET ssl = on", "ALTER SYSTEM SET ssl_cert_file = 'server.crt'",
                "ALTER SYSTEM SET ssl_key_file = 'server.key'", "ALTER SYSTEM SET ssl_ca_file = 'server.ca'",
            ):  # fmt: skip
                connection.execute(statement.encode())
        server.restart()
        yield server


def dsn(server: EmbeddedPostgres, host: str = "localhost", **words: str) -> str:
    return make_conninfo(server.dsn(), host=host, hostaddr="127.0.0.1", **words)


def encrypted(words: str, *, replication: bool = False) -> bool:
    with closing(connect(words, purpose="test", replication=replication)) as connection:
        pid = connection.info.backend_pid
        with psycopg.connect(words) as other:
            row = other.execute("SELECT ssl FROM pg_stat_ssl WHERE pid = %s", [pid]).fetchone()
    assert row is not None
    return bool(row[0])


def refusal(words: str) -> SourceRefused:
    with pytest.raises(SourceRefused) as caught:
        connect(words, purpose="test").close()
    return caught.value


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("disable", False),
        ("allow", False),
        ("prefer", True),
        ("require", True),
        ("verify-ca", True),
        ("verify-full", True),
    ],
)
def test_every_mode(server: EmbeddedPostgres, authority: Authority, mode: str, *, expected: bool) -> None:
    root = {"sslrootcert": str(authority.certificate)} if mode.startswith("verify") else {}
    words = dsn(server, sslmode=mode, **root)
    assert encrypted(words) is expected
    assert encrypted(words, replication=True) is expected


def test_all_connections_of_a_worker_are_encrypted(server: EmbeddedPostgres, authority: Authority) -> None:
    words = dsn(server, sslmode="verify-full", sslrootcert=str(authority.certificate))
    with closing(Ferry(words)) as ferry:
        ferry.execute("CREATE TABLE notes (id int PRIMARY KEY)", "INSERT INTO notes VALUES (1)")
        ferry.begin("public.notes")
        found = ferry.query(
            "SELECT a.application_name, s.ssl FROM pg_stat_activity a JOIN pg_stat_ssl s USING (pid) "
            "WHERE a.application_name LIKE 'docferry%'"
        )
        assert {"docferry stream", "docferry ledger", "docferry worker"} <= {name for name, _ in found}
        assert [name for name, ssl in found if not ssl] == []
        ferry.stop()
        with ferry.app() as app:
            app.admin().destroy(keep_collections=False)


def test_another_ca_is_refused(server: EmbeddedPostgres, tmp_path: Path) -> None:
    for mode in ("verify-ca", "verify-full"):
        words = dsn(server, sslmode=mode, sslrootcert=str(Authority(tmp_path / mode).certificate))
        error = refusal(words)
        assert "certificate verify failed" in str(error)
        assert "sslrootcert" in error.remedy
        assert "global-bundle.pem" in error.remedy


def test_another_host_name_is_refused(server: EmbeddedPostgres, authority: Authority) -> None:
    root = str(authority.certificate)
    error = refusal(dsn(server, "127.0.0.1", sslmode="verify-full", sslrootcert=root))
    assert 'does not match host name "127.0.0.1"' in str(error)
    assert "hostaddr" in error.remedy
    assert encrypted(dsn(server, "127.0.0.1", sslmode="verify-ca", sslrootcert=root))


def test_a_missing_ca_file(server: EmbeddedPostgres, tmp_path: Path) -> None:
    error = refusal(dsn(server, sslmode="verify-full", sslrootcert=str(tmp_path / "nowhere.pem")))
    assert "sslrootcert=system" in error.remedy


def test_the_server_of_a_secret_is_verified(
    server: EmbeddedPostgres, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {"username": "scrambled", "password": "geheim", "host": "localhost", "port": server.port}
    session = MagicMock()
    session.client.return_value.get_secret_value.return_value = {"SecretString": json.dumps(values)}
    monkeypatch.setattr("boto3.Session", lambda **_: session)

    def words(root: Path) -> str:
        text = f"""
            [source]
            secret = "arn:aws:secretsmanager:us-east-2:123456789012:secret:shop-AbCdEf"
            sslmode = "verify-full"
            sslrootcert = "{root}"
            [[mirrors]]
            table = "notes"
        """
        return source_dsn(parse(text, environ={}))

    with closing(connect(words(authority.certificate), purpose="test")) as connection:
        assert connection.pgconn.ssl_in_use
    assert "certificate verify failed" in str(refusal(words(Authority(tmp_path / "other").certificate)))


def test_a_server_without_tls(postgres: EmbeddedPostgres) -> None:
    error = refusal(make_conninfo(postgres.dsn(), sslmode="require"))
    assert "server does not support SSL" in str(error)
    assert "ssl = on" in error.remedy


def test_a_role_that_must_use_tls(server: EmbeddedPostgres) -> None:
    error = refusal(dsn(server, user="only_tls", sslmode="disable"))
    assert "sslmode=require" in error.remedy
    assert encrypted(dsn(server, user="only_tls", sslmode="prefer"))


def test_client_certificates(server: EmbeddedPostgres, authority: Authority, tmp_path: Path) -> None:
    certificate, key = authority.issue("certified")
    words = dsn(server, user="certified", sslmode="require")
    assert encrypted(make_conninfo(words, sslcert=str(certificate), sslkey=str(key)))
    assert "sslcert" in refusal(make_conninfo(words, sslcert=str(tmp_path / "none"))).remedy
    certificate, key = authority.issue("somebody")
    error = refusal(make_conninfo(words, sslcert=str(certificate), sslkey=str(key)))
    assert "common name" in error.remedy
    key.chmod(0o644)
    assert "0600" in refusal(make_conninfo(words, sslcert=str(certificate), sslkey=str(key))).remedy


def test_channel_binding(server: EmbeddedPostgres) -> None:
    words = dsn(server, user="scrambled", password="geheim", channel_binding="require")
    assert encrypted(make_conninfo(words, sslmode="require"))
    error = refusal(make_conninfo(words, sslmode="disable"))
    assert "geheim" not in str(error)
    error = refusal(make_conninfo(dsn(server), channel_binding="require", sslmode="require"))
    assert "scram-sha-256" in error.remedy


def test_every_connection_has_a_token_of_its_own(server: EmbeddedPostgres) -> None:
    tokens: list[str] = []

    def token(host: str, port: int, user: str) -> str:
        assert (host, port, user) == ("localhost", server.port, "tokened")
        # As long as those of IAM, and no other is valid.
        tokens.append(f"{host}:{port}/?Action=connect&X-Amz-Signature={len(tokens)}{'a%20b' * 300}")
        with psycopg.connect(server.dsn(), autocommit=True) as connection:
            connection.execute(sql.SQL("ALTER ROLE tokened PASSWORD {}").format(tokens[-1]))
        return tokens[-1]

    words = iam_dsn(dsn(server, user="tokened"), token)
    for _ in range(3):
        with closing(connect(words, purpose="test")) as connection:
            assert connection.pgconn.ssl_in_use
    assert len(set(tokens)) == 3
    assert "X-Amz" not in words
    stale = iam_dsn(dsn(server, user="tokened"), lambda *_: tokens[0])
    error = refusal(stale)
    assert tokens[0] not in str(error)


def test_a_worker_reconnects_with_new_tokens(server: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens: list[str] = []

    def token(*_: object) -> str:
        tokens.append(f"token {len(tokens)}")
        return tokens[-1]

    monkeypatch.setattr("docferry.source.iam.IamTokens", lambda *_: token)

    class ByIam(Ferry):
        @property
        def config(self) -> Config:
            return replace(super().config, source=replace(super().config.source, auth="rds-iam"))

    with closing(ByIam(dsn(server, user="trusted"))) as ferry:
        ferry.execute("CREATE TABLE tokened (id int PRIMARY KEY)")
        ferry.begin("public.tokened")
        ferry.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'docferry%'")
        before = len(tokens)
        ferry.execute("INSERT INTO tokened VALUES (1)")
        ferry.wait()
        ferry.assert_same("public.tokened")
        until(lambda: len(tokens) > before + 3, "every connection has asked for a new one")
        ferry.stop()
        with ferry.app() as app:
            app.admin().destroy(keep_collections=False)
    assert len(set(tokens)) == len(tokens)


def test_what_can_be_overheard_is_said(server: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch) -> None:
    assert source_warnings(dsn(server, sslmode="disable")) == []
    monkeypatch.setattr("docferry.source.transport.is_loopback", lambda _: False)
    ((problem, remedy),) = source_warnings(dsn(server, sslmode="disable"))
    assert "not encrypted" in problem
    assert "sslmode=verify-full" in remedy
    assert source_warnings(dsn(server, sslmode="require")) == []


@pytest.mark.parametrize(
    ("url", "warned"),
    [
        (None, False), ("https://dynamodb.example", False), ("http://127.0.0.1:4566", False),
        ("http://localhost:1", False), ("http://[::1]:1", False), ("http://10.0.0.1:4566", True),
        ("http://dynamodb.example", True),
    ],
)  # fmt: skip
def test_a_target_without_tls_elsewhere(url: str | None, *, warned: bool) -> None:
    assert bool(target_warnings(url)) is warned
