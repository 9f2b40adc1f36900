"""Whether dead letters could be kept is known before there is one."""

from __future__ import annotations

import uuid

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from docferry.capture.ledger import PostgresLedger
from docferry.deadletter.postgres import PostgresDeadLetters
from docferry.errors import NotApplied, SourceRefused
from docferry.retry import Retry


def check(dsn: str) -> None:
    letters = PostgresDeadLetters(dsn)
    try:
        letters.check()
    finally:
        letters.close()


def test_what_would_keep_them_from_being_kept(database: str) -> None:
    with pytest.raises(NotApplied):
        check(database)
    ledger = PostgresLedger(database, Retry())
    ledger.create()
    ledger.close()
    check(database)
    role = f"reader_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(database, autocommit=True) as admin:
        for statement in (
            f"CREATE ROLE {role}",
            f"GRANT USAGE ON SCHEMA docferry TO {role}",
            f"GRANT SELECT, INSERT ON docferry.dead_letters TO {role}",
        ):
            admin.execute(statement.encode())
        try:
            with pytest.raises(SourceRefused, match="no right to write to docferry"):
                check(make_conninfo(database, options=f"-c role={role}"))
            admin.execute(f"GRANT UPDATE ON docferry.dead_letters TO {role}".encode())
            check(make_conninfo(database, options=f"-c role={role}"))
        finally:
            admin.execute(f"DROP OWNED BY {role}".encode())
            admin.execute(f"DROP ROLE {role}".encode())
