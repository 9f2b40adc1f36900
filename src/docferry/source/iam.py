"""IAM database authentication of RDS and Aurora: a token, which lives for 15 minutes, as the password of each
connection."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

from docferry.errors import ConfigError, MissingExtra, SourceUnavailable
from docferry.source.renewed import RenewedDsn

__all__ = ["IamTokens", "iam_dsn"]

_REGION: Final = re.compile(r"\.([a-z]{2}(?:-[a-z]+)+-\d)\.rds\.amazonaws\.com(?:\.cn)?\.?\Z", re.IGNORECASE)
_ENCRYPTED: Final = ("require", "verify-ca", "verify-full")


class IamTokens:
    """Makes tokens by boto3, with the credentials of AWS's own search. They are signed here: no service is asked but
    for credentials. Safe to call from several threads. Raises ConfigError, SourceUnavailable once it has worked."""

    def __init__(self, region: str | None, profile: str | None) -> None:
        try:
            import boto3
        except ImportError as error:
            raise MissingExtra(
                '[source] auth = "rds-iam" needs boto3, which is not installed',
                remedy="Run `pip install 'docferry[dynamodb]'`.",
            ) from error
        self._region = region
        self._profile = profile
        self._boto3: Any = boto3
        self._client: Any = None
        self._worked = False

    def __call__(self, host: str, port: int, user: str) -> str:
        """A token for one connection."""
        from botocore.exceptions import BotoCoreError, ClientError

        found = _REGION.search(host)
        region = found.group(1).lower() if found else self._region
        try:
            if self._client is None:
                session = self._boto3.Session(profile_name=self._profile, region_name=region)
                self._client = session.client("rds")
            token = str(self._client.generate_db_auth_token(host, port, user))
        except (BotoCoreError, ClientError) as error:
            message = f"no IAM token for the source can be made: {error}"
            if self._worked:
                raise SourceUnavailable(message, remedy="Check where AWS credentials come from.") from error
            raise ConfigError(
                message,
                remedy="Give the process AWS credentials (a role, a profile, the environment) and a region: [target] "
                "region, or a host such as db.....us-east-2.rds.amazonaws.com.",
            ) from error
        self._worked = True
        return token


def iam_dsn(dsn: str, token: Callable[[str, int, str], str]) -> RenewedDsn:
    """`dsn` with a password made by `token(host, port, user)` for every connection, encrypted at least by
    sslmode=require. Raises ConfigError for a dsn that does not fit."""
    from psycopg.conninfo import make_conninfo

    from docferry.source.conninfo import parsed

    given = parsed(dsn)
    host, user = str(given.get("host") or ""), str(given.get("user") or "")
    if not host or not user or host.startswith("/") or "," in host:
        raise ConfigError(
            '[source] dsn: auth = "rds-iam" needs one host and a user in it',
            remedy="The host is the name that RDS gave the endpoint: a token is valid for that name only.",
        )
    if given.get("password") is not None:
        raise ConfigError(
            '[source] dsn holds a password, and auth = "rds-iam" makes one for each connection',
            remedy="Remove one of the two.",
        )
    mode = given.get("sslmode") or ("verify-full" if given.get("sslrootcert") else "require")
    if mode not in _ENCRYPTED:
        raise ConfigError(
            f'[source] dsn: auth = "rds-iam" sends a token that must not be overheard, and sslmode={mode} allows that',
            remedy="Set sslmode=verify-full with sslrootcert (the bundle of RDS), or sslmode=require at least.",
        )
    port = int(str(given.get("port") or 5432))
    words = make_conninfo(dsn, sslmode=str(mode))
    return RenewedDsn(words, lambda: make_conninfo(words, password=token(host, port, user)), each_time=True)
