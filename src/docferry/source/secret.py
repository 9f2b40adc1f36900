"""The source's connection string from AWS Secrets Manager."""

from __future__ import annotations

import json

from docferry.errors import ConfigError, MissingExtra

__all__ = ["dsn_from_secret"]


def dsn_from_secret(secret: str, region: str | None, endpoint_url: str | None, profile: str | None) -> str:
    """The connection string that an RDS secret of Secrets Manager holds: username, password, host, port, dbname."""
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
