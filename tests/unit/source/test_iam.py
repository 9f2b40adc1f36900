"""Connection strings whose password is a token of IAM."""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit

import pytest
from psycopg.conninfo import conninfo_to_dict

from docferry.config import parse
from docferry.config.dsn import hide_secrets
from docferry.errors import ConfigError
from docferry.source.iam import IamTokens, iam_dsn
from docferry.source.renewed import RenewedDsn

HOST = "shop.cluster-abc.eu-west-1.rds.amazonaws.com"


def made(dsn: str) -> RenewedDsn:
    return iam_dsn(dsn, lambda host, port, user: f"{host}|{port}|{user}")


@pytest.fixture
def _credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "sentinel-secret")


@pytest.mark.usefixtures("_credentials")
def test_a_token_is_what_rds_takes() -> None:
    token = IamTokens("us-east-2", None)(HOST, 5433, "app")
    parts = urlsplit("https://" + token)
    assert (parts.hostname, parts.port) == (HOST, 5433)
    query = {name: value for name, (value, *_) in parse_qs(parts.query).items()}
    assert (query["Action"], query["DBUser"], query["X-Amz-Expires"]) == ("connect", "app", "900")
    # Of the host, not of the target.
    assert "/eu-west-1/rds-db/aws4_request" in query["X-Amz-Credential"]
    assert "sentinel-secret" not in token
    shown = hide_secrets(f"failed with {token}")
    assert query["X-Amz-Signature"] not in shown
    assert "AKIDEXAMPLE" not in shown


@pytest.mark.usefixtures("_credentials")
def test_elsewhere_the_region_is_that_of_the_target() -> None:
    assert "%2Fus-east-2%2Frds-db" in IamTokens("us-east-2", None)("db.example", 5432, "app")


def test_no_credentials_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    with pytest.raises(ConfigError, match="no IAM token") as caught:
        IamTokens("us-east-2", None)(HOST, 5432, "app")
    assert "credentials" in caught.value.remedy


@pytest.mark.parametrize("dsn", [f"postgresql://app@{HOST}:5433/shop", f"host={HOST} port=5433 user=app dbname=shop"])
def test_each_connection_gets_one(dsn: str) -> None:
    words = made(dsn)
    assert "password" not in words
    given = conninfo_to_dict(words.current())
    assert given["password"] == f"{HOST}|5433|app"
    assert given["sslmode"] == "require"
    assert words.after_refusal(words.current()) is None


def test_the_connection_is_encrypted() -> None:
    base = f"host={HOST} user=app"
    assert conninfo_to_dict(made(f"{base} sslrootcert=rds.pem"))["sslmode"] == "verify-full"
    assert conninfo_to_dict(made(f"{base} sslmode=verify-ca"))["sslmode"] == "verify-ca"
    for mode in ("disable", "allow", "prefer"):
        with pytest.raises(ConfigError, match=f"sslmode={mode}"):
            made(f"{base} sslmode={mode}")


@pytest.mark.parametrize(
    "dsn",
    ["user=app", f"host={HOST}", "host=/run user=app", f"host={HOST},b user=app", f"host={HOST} user=a password=b"],
)
def test_what_does_not_fit_is_refused(dsn: str) -> None:
    with pytest.raises(ConfigError):
        made(dsn)


def test_it_is_chosen_by_file_or_environment() -> None:
    text = '[source]\ndsn = "host=h user=u"\n{}\n[[mirrors]]\ntable = "notes"'
    assert parse(text.format(""), environ={}).source.auth == "password"
    assert parse(text.format('auth = "rds-iam"'), environ={}).source.auth == "rds-iam"
    assert parse(text.format(""), environ={"DOCFERRY_SOURCE_AUTH": "rds-iam"}).source.auth == "rds-iam"
    with pytest.raises(ConfigError, match="DOCFERRY_SOURCE_AUTH"):
        parse(text.format(""), environ={"DOCFERRY_SOURCE_AUTH": "iam"})
    secret = "arn:aws:secretsmanager:us-east-2:123456789012:secret:x"
    with pytest.raises(ConfigError, match="holds a password"):
        parse(f'[source]\nsecret = "{secret}"\nauth = "rds-iam"\n[[mirrors]]\ntable = "notes"', environ={})
    environ = {"DOCFERRY_SOURCE_SECRET": secret}
    assert parse(text.format('auth = "rds-iam"'), environ=environ).source.auth == "password"
