"""Whether what is sent to either end can be overheard on the way."""

from __future__ import annotations

import ipaddress
from typing import Final
from urllib.parse import urlsplit

from docferry.source.session import connect, translated

__all__ = ["is_loopback", "source_warnings", "target_warnings"]

_ENCRYPTED: Final = b"SELECT ssl FROM pg_catalog.pg_stat_ssl WHERE pid = pg_catalog.pg_backend_pid()"


def source_warnings(dsn: str) -> list[tuple[str, str]]:
    """(problem, remedy) when the source is another machine and the connection to it is not encrypted. Raises
    SourceUnavailable, SourceRefused."""
    with connect(dsn, purpose="setup") as connection, translated():
        info = connection.info
        if info.host.startswith(("/", "@")) or is_loopback(info.hostaddr or info.host):
            return []
        row = connection.execute(_ENCRYPTED).fetchone()
        if row is not None and row[0]:
            return []
        host = info.host
    return [
        (
            f"the connection to the source at {host} is not encrypted: rows and passwords can be overheard",
            "Set sslmode=verify-full and sslrootcert in [source] dsn, or beside [source] secret; see docs/security.md.",
        )
    ]


def target_warnings(endpoint_url: str | None) -> list[tuple[str, str]]:
    """(problem, remedy) when the target is another machine and is spoken to without TLS."""
    parts = urlsplit(endpoint_url or "")
    host = parts.hostname or ""
    if parts.scheme != "http" or is_loopback(host):
        return []
    return [
        (
            f"[target] endpoint_url is http://, and {host} is another machine: items and signatures can be overheard",
            "Use https://, or leave endpoint_url out on AWS.",
        )
    ]


def is_loopback(host: str) -> bool:
    """Whether a name or address is this machine's own for certain."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
