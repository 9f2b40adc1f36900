"""Connection strings, read by libpq."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Final

import psycopg
from psycopg.conninfo import conninfo_to_dict

from docferry.config.dsn import has_stray_separator
from docferry.errors import ConfigError

__all__ = ["parsed"]

_ENCODE: Final = "Write @ as %40, / as %2F, : as %3A, ? as %3F, # as %23, a space as %20, and % as %25."
_FORM: Final = (
    'Write it as "postgresql://user@host:5432/database" or "host=... dbname=...". In a user or a password of the first '
    "form, write a space as %20, % as %25, @ as %40, / as %2F; in the second, put values with spaces between '...'."
)


def parsed(dsn: str) -> dict[str, Any]:
    """The parameters in `dsn` by name. Raises ConfigError for one that is none.

    What libpq says of such a string is for nobody's eyes, not as a cause or a context either: it quotes what it could
    not read, which may be the password. So the errors are raised where no error of its own is being handled.
    """
    if has_stray_separator(dsn):
        raise ConfigError(
            "[source] dsn: user or password hold a character that separates the parts of a URL (they are not shown)",
            remedy=_ENCODE,
        )
    given: dict[str, Any] | None = None
    with suppress(psycopg.ProgrammingError):
        given = conninfo_to_dict(dsn)
    if given is None:
        raise ConfigError("[source] dsn is not a PostgreSQL connection string", remedy=_FORM)
    # libpq would quote this one only when it connects: in "postgresql://user:password/database" it is the password.
    if any(port and not port.isdecimal() for port in str(given.get("port") or "").split(",")):
        raise ConfigError("[source] dsn: the port is not a number (it is not shown)", remedy=_FORM)
    return given
