"""Connections to the source: one text form, and one table from PostgreSQL's error classes to ours."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

import psycopg
from psycopg import errors as pg

from docferry.errors import DocferryError, NotApplied, SourceRefused, SourceUnavailable, TableGone
from docferry.source.conninfo import parsed
from docferry.source.refusals import remedy_for
from docferry.source.renewed import RenewedDsn
from docferry.source.statements import load

__all__ = ["close_shared", "connect", "translated", "translation"]

_CREDENTIALS = "Check user and password in [source] dsn, and pg_hba.conf."
_RIGHTS = (
    "Grant the right that the message names: reading needs SELECT on the table, apply needs CREATE on the database and "
    "ownership of the tables, replication needs the REPLICATION attribute (on RDS and Aurora: GRANT rds_replication)."
)
_STANDBY = (
    "It has to be promoted, or [source] dsn has to lead to the primary: name all hosts in it, with "
    "target_session_attrs=read-write."
)
# They only look, or say more exactly what is wrong.
_MAY_SEE_A_STANDBY: Final = ("setup", "init")
# Seconds.
_MOMENT, _CANCELLING = 1.0, 5.0
_SETTINGS = "Set it in postgresql.conf (on RDS and Aurora in the parameter group) and restart the server."

# From the more exact class to the more general; the first that fits decides.
_CLASSES: Final[tuple[tuple[type[psycopg.Error], type[DocferryError], str | None], ...]] = (
    (pg.InvalidPassword, SourceRefused, _CREDENTIALS),
    (pg.InvalidAuthorizationSpecification, SourceRefused, _CREDENTIALS),
    (pg.InvalidCatalogName, SourceRefused, "Check the database's name in [source] dsn."),
    (pg.InsufficientPrivilege, SourceRefused, _RIGHTS),
    (pg.ConfigurationLimitExceeded, SourceRefused, _SETTINGS),
    (pg.InvalidSchemaName, NotApplied, None),
    (pg.TooManyConnections, SourceUnavailable, "Raise max_connections or lower [run] workers."),
    (pg.AdminShutdown, SourceUnavailable, None),
    (pg.CrashShutdown, SourceUnavailable, None),
    (pg.CannotConnectNow, SourceUnavailable, None),
    (pg.QueryCanceled, SourceUnavailable, None),
    (pg.SerializationFailure, SourceUnavailable, None),
    (pg.DeadlockDetected, SourceUnavailable, None),
    (pg.LockNotAvailable, SourceUnavailable, None),
    (pg.InsufficientResources, SourceUnavailable, "The server is out of disk, memory or connections."),
    (pg.ObjectNotInPrerequisiteState, SourceRefused, ""),
)


# Classes of SQLSTATE whose errors pass: connection, rollback, resources, object state, operator, system, internal.
_PASSING: Final = frozenset({"08", "40", "53", "55", "57", "58", "XX"})


def translation(error: psycopg.Error) -> DocferryError:
    """The error of ours that a driver's error means."""
    message = (error.diag.message_primary or str(error)).strip().replace("\n", "; ")
    for theirs, ours, remedy in _CLASSES:
        if isinstance(error, theirs):
            return ours(f"source: {message}", remedy=remedy)
    if isinstance(error, pg.UndefinedTable):
        return NotApplied(f"source: {message}") if "docferry." in message else TableGone(f"source: {message}")
    if isinstance(error, psycopg.OperationalError | psycopg.InterfaceError) and not error.sqlstate:
        # No SQLSTATE: the server did not answer at all. Authentication failures over libpq carry none either.
        if (remedy := remedy_for(message)) is not None:
            return SourceRefused(f"source: {message}", remedy=remedy)
        if "database" in message and "does not exist" in message:
            return SourceRefused(f"source: {message}", remedy="Check the database's name in [source] dsn.")
        if "role" in message and "does not exist" in message:
            return SourceRefused(f"source: {message}", remedy=_CREDENTIALS)
        return SourceUnavailable(f"source: {message}")
    if isinstance(error, psycopg.OperationalError) and (error.sqlstate or "")[:2] in _PASSING:
        return SourceUnavailable(f"source: {message}")
    return SourceRefused(f"source: {message} (SQLSTATE {error.sqlstate or 'unknown'})")


@contextmanager
def translated() -> Iterator[None]:
    """Run driver calls, raising our errors instead of the driver's."""
    try:
        yield
    except psycopg.Error as error:
        raise translation(error) from error


def connect(dsn: str, *, purpose: str, replication: bool = False) -> psycopg.Connection[tuple[Any, ...]]:
    """An autocommit connection with docferry's text form. `purpose` shows in pg_stat_activity as `docferry <purpose>`.

    A RenewedDsn gives each connection its words; when its password is refused, it may know a newer one.
    Raises SourceUnavailable, also where a standby answers that may be promoted soon, SourceRefused; ConfigError for a
    dsn that is none.
    """
    if not isinstance(dsn, RenewedDsn):
        return _connect(dsn, purpose=purpose, replication=replication)
    words = dsn.current()
    try:
        connection = _connect(words, purpose=purpose, replication=replication)
    except SourceRefused as refusal:
        if "password authentication failed" not in str(refusal):
            raise
        newer = dsn.after_refusal(words)
        if newer is None and dsn.has_worked:
            # While a secret is rotated, the server knows the new password a moment before the secret does.
            raise SourceUnavailable(str(refusal), remedy="If it stays so, see the rotation of the secret.") from refusal
        if newer is None:
            raise
        connection = _connect(newer, purpose=purpose, replication=replication)
    dsn.has_worked = True
    return connection


def _connect(dsn: str, *, purpose: str, replication: bool) -> psycopg.Connection[tuple[Any, ...]]:
    options: dict[str, Any] = {
        "application_name": f"docferry {purpose}",
        "client_encoding": "UTF8",
        "keepalives_idle": 30,
        "keepalives_interval": 10,
        "keepalives_count": 3,
    }
    if replication:
        options["replication"] = "database"
    if "connect_timeout" not in parsed(dsn):
        options["connect_timeout"] = 10
    with translated():
        connection = psycopg.connect(dsn, autocommit=True, **options)
        try:
            if connection.info.parameter_status("in_hot_standby") == "on" and purpose not in _MAY_SEE_A_STANDBY:
                where = f"{connection.info.host}:{connection.info.port}"
                raise SourceUnavailable(f"source: the server at {where} is a standby", remedy=_STANDBY)
            settings = load("session.sql")["text_form"].encode()
            if replication:
                # A replication connection takes simple queries only.
                connection.pgconn.exec_(settings)
            else:
                connection.execute(settings)
        except BaseException:
            connection.close()
            raise
    return connection


def close_shared(
    lock: threading.Lock | threading.RLock, connection: psycopg.Connection[tuple[Any, ...]] | None
) -> None:
    """Close a connection that is used under `lock`. A thread that holds the lock for longer than a moment waits for an
    answer that may never come, of a standby for example, and is told not to; if even that takes too long, the
    connection is left to the end of the process."""
    if connection is None:
        return
    held = lock.acquire(timeout=_MOMENT)
    if not held:
        with suppress(psycopg.Error):
            connection.cancel_safe(timeout=_CANCELLING)
        held = lock.acquire(timeout=_CANCELLING)
    if held:
        connection.close()
        lock.release()
