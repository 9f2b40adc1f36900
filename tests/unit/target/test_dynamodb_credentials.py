"""The target is reached over HTTPS with the AWS SDK's own credentials; the configuration holds none."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from docferry.app import App
from docferry.config import parse
from docferry.errors import ConfigError
from docferry.target.dynamodb_connection import new_client


@pytest.fixture(autouse=True)
def _profiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    (tmp_path / "credentials").write_text("[other]\naws_access_key_id = AKIDOTHER\naws_secret_access_key = secret\n")
    (tmp_path / "config").write_text("[profile other]\nregion = eu-north-1\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def client(target: str) -> Any:
    with App(parse(f'[source]\ndsn = "host=h"\n[target]\n{target}\n[[mirrors]]\ntable = "notes"', environ={})) as app:
        return closing(new_client(connections=1, **app.aws_options))


def access_key(made: Any) -> str:
    return str(made._request_signer._credentials.access_key)


def test_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDENVIRONMENT")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_REGION", "ap-south-1")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "ap-south-1")
    with client("") as made:
        assert access_key(made) == "AKIDENVIRONMENT"
        assert made.meta.endpoint_url == "https://dynamodb.ap-south-1.amazonaws.com"


def test_by_a_profile() -> None:
    with client('profile = "other"') as made:
        assert access_key(made) == "AKIDOTHER"
        assert made.meta.endpoint_url == "https://dynamodb.eu-north-1.amazonaws.com"


def test_region_and_endpoint_win() -> None:
    with client('profile = "other"\nregion = "us-east-2"') as made:
        assert made.meta.endpoint_url == "https://dynamodb.us-east-2.amazonaws.com"
    with client('profile = "other"\nendpoint_url = "https://127.0.0.1:4566"') as made:
        assert made.meta.endpoint_url == "https://127.0.0.1:4566"
        assert made.meta.region_name == "eu-north-1"


@pytest.mark.parametrize("key", ["aws_access_key_id", "aws_secret_access_key", "secret_key"])
def test_no_credential_can_stand_in_the_file(key: str) -> None:
    with pytest.raises(ConfigError, match="unknown key") as caught:
        client(f'{key} = "geheim"')
    assert "geheim" not in str(caught.value)
