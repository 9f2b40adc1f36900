"""What is known of PostgreSQL's own types without asking it is what its catalog says."""

from __future__ import annotations

import psycopg
import pytest

from docferry.capture.builtin_types import builtin_type
from docferry.capture.catalog import Types
from docferry.change.wire import WireError


def test_as_the_catalog_says(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        types = Types(connection)
        oids = [
            oid
            for (oid,) in connection.execute(
                "SELECT oid FROM pg_type WHERE typnamespace = 'pg_catalog'::regnamespace AND typtype IN ('b', 'r', 'm')"
                # Nobody's columns are of these.
                " AND typname !~ '^_?(pg_|reg|any|aclitem|cid|gtsvector|refcursor|xid8?|txid_snapshot|cstring)'"
                " AND typname !~ '^_?(int2vector|oidvector)'"
            )
        ]
        known = 0
        for oid in oids:
            try:
                found = builtin_type(oid)
            except WireError:
                continue
            assert found == types(oid)
            known += 1
        assert known > 100


def test_others_are_refused(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("CREATE TYPE mood AS ENUM ('well')")
        (oid,) = connection.execute("SELECT 'mood'::regtype::oid").fetchone() or (0,)
    with pytest.raises(WireError, match="not one of PostgreSQL's own"):
        builtin_type(oid)
