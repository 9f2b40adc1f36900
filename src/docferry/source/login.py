"""How docferry logs in to the source: the configured connection string, with whatever renews its password."""

from __future__ import annotations

from docferry.config import Config
from docferry.errors import ConfigError, SourceUnavailable
from docferry.source.renewed import RenewedDsn
from docferry.source.secret import dsn_from_secret

__all__ = ["source_dsn"]


def source_dsn(config: Config) -> str:
    """The source's connection string; a RenewedDsn where the password does not last. Raises ConfigError."""
    source, target = config.source, config.target
    if source.secret is None:
        assert source.dsn is not None, "the configuration has one of the two"
        if source.auth != "rds-iam":
            return source.dsn
        from docferry.source.iam import IamTokens, iam_dsn

        return iam_dsn(source.dsn, IamTokens(target.region, target.profile))
    secret = source.secret

    def read() -> str:
        return dsn_from_secret(
            secret,
            target.region,
            target.endpoint_url,
            target.profile,
            sslmode=source.sslmode,
            sslrootcert=source.sslrootcert,
        )

    def read_again() -> str:
        try:
            return read()
        except ConfigError as error:
            # It could be read before.
            raise SourceUnavailable(str(error), remedy=error.remedy) from error

    return RenewedDsn(read(), read_again, each_time=False)
