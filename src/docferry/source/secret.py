"""The source's connection string from AWS Secrets Manager."""

from __future__ import annotations

import json
import os

from docferry.errors import ConfigError, MissingExtra
from docferry.source.transport import is_loopback

__all__ = ["dsn_from_secret"]


def dsn_from_secret(
    secret: str,
    region: str | None,
    endpoint_url: str | None,
    profile: str | None,
    *,
    sslmode: str | None = None,
    sslrootcert: str | None = None,
) -> str:
    """The connection string that an RDS secret of Secrets Manager holds: username, password, host, port, dbname; with
    `sslmode` and `sslrootcert`. Without the former it is encrypted if the host is another machine, and verified if
    there is a certificate to do it by."""
    try:
        import boto3
        from botocore.exceptions import BotoCoreError, ClientError
    except ImportError as error:
        raise MissingExtra(
            "[source] secret needs boto3, which is not installed", remedy="Run `pip install 'docferry[dynamodb]'`."
        ) from error
    from psycopg.conninfo import make_conninfo

    try:
        session = boto3.Session(profile_name=profile, region_name=region)
        answer = session.client("secretsmanager", endpoint_url=endpoint_url).get_secret_value(SecretId=secret)
        values = json.loads(answer["SecretString"])
        return make_conninfo(
            "",
            host=values["host"],
            port=values.get("port", 5432),
            user=values["username"],
            password=values["password"],
            dbname=values.get("dbname") or values.get("dbInstanceIdentifier") or "postgres",
            **_tls(str(values["host"]), sslmode, sslrootcert),
        )
    except (BotoCoreError, ClientError) as error:
        raise ConfigError(
            f"[source] secret cannot be read: {error}",
            remedy="Grant secretsmanager:GetSecretValue on it, and check its ARN and [target] region.",
        ) from error
    except (KeyError, ValueError) as error:
        raise ConfigError(
            f"[source] secret does not hold a database secret: {type(error).__name__}",
            remedy="Its JSON needs username, password and host; port and dbname are optional.",
        ) from error


def _tls(host: str, sslmode: str | None, sslrootcert: str | None) -> dict[str, str]:
    words = {} if sslrootcert is None else {"sslrootcert": sslrootcert}
    if sslmode is None and sslrootcert is not None:
        sslmode = "verify-full"
    # What is said to libpq by its own variable holds, and may be more.
    if sslmode is None and not os.environ.get("PGSSLMODE") and not is_loopback(host) and not host.startswith("/"):
        sslmode = "require"
    return words if sslmode is None else {**words, "sslmode": sslmode}
