"""The lock of the one worker, when its connection is lost."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import psycopg
import pytest

from docferry.capture.ledger import PostgresLedger
from docferry.errors import AlreadyRunning, SourceUnavailable
from docferry.retry import Retry
from docferry.source.session import connect

from ..waiting import until


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[psycopg.Connection[Any]]:
    """The connections that ledgers open."""
    found: list[psycopg.Connection[Any]] = []

    def noting(*args: Any, **settings: Any) -> psycopg.Connection[Any]:
        found.append(connect(*args, **settings))
        return found[-1]

    monkeypatch.setattr("docferry.capture.ledger.connect", noting)
    return found


@contextmanager
def lost_on_our_side(connection: psycopg.Connection[Any]) -> Iterator[None]:
    """As when a router in between has forgotten it: the server is not told."""
    with ExitStack() as stack:
        kept = os.dup(connection.fileno())
        stack.callback(os.close, kept)
        ours, theirs = socket.socketpair()
        theirs.close()
        os.dup2(ours.fileno(), connection.fileno())
        ours.close()
        yield


def test_the_worker_takes_its_lock_from_its_own_dead_session(
    database: str, opened: list[psycopg.Connection[Any]]
) -> None:
    ledger = PostgresLedger(database, Retry())
    with ledger.working() as hold, lost_on_our_side(opened[0]):
        with pytest.raises(SourceUnavailable, match="our lost connection"):
            hold()

        def held() -> bool:
            try:
                hold()
            except SourceUnavailable:
                return False
            return True

        until(held, "the lock is ours again")
        hold()
        with pytest.raises(AlreadyRunning), PostgresLedger(database, Retry()).working():
            pass
    assert all(connection.closed for connection in opened)


def test_another_worker_that_took_the_lock_meanwhile_keeps_it(
    database: str, opened: list[psycopg.Connection[Any]]
) -> None:
    first, second = PostgresLedger(database, Retry()), PostgresLedger(database, Retry())
    with first.working() as hold:
        opened[0].close()
        with ExitStack() as stack:

            def taken() -> bool:
                try:
                    stack.enter_context(second.working())
                except AlreadyRunning:  # the server notices a closed connection a moment later
                    return False
                return True

            until(taken, "the second has the lock")
            for _ in range(2):
                with pytest.raises(AlreadyRunning):
                    hold()
