"""What the function's schedule does beside draining."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import pytest

from docferry.applier import Applier
from docferry.capture.contract import BackfillRecord, BackfillState, Ledger
from docferry.errors import SourceRefused
from docferry.operate.drain import backfills_due, look_for_changed_columns

_ENOUGH = 60.0


class Columns:
    """Of an Applier what looks at columns. `renamed`: tables that are refused; `locked`: one that does not answer
    before `release`."""

    def __init__(self, *, renamed: str = "", locked: str = "") -> None:
        self.renamed, self.locked = renamed, locked
        self.looked: list[str] = []
        self.release, self.ended = threading.Event(), threading.Event()

    def check_columns_of(self, table: str) -> None:
        self.looked.append(table)
        if table == self.renamed:
            raise SourceRefused(f"table {table} is now called other", remedy="Set its new name.")
        if table == self.locked:
            self.release.wait(_ENOUGH)
            self.ended.set()

    def look(self, *tables: str, seconds: float = _ENOUGH) -> None:
        look_for_changed_columns(cast("Applier", self), tables, seconds)


class Requests:
    """Of a ledger the backfills: unfinished ones, and those that somebody is at."""

    def __init__(self, *unfinished: str, busy: str = "") -> None:
        self.unfinished, self.busy = unfinished, busy

    def backfills(self, *, unfinished_only: bool) -> list[BackfillRecord]:
        assert unfinished_only
        return [BackfillRecord(1, table, BackfillState.REQUESTED, "asked for") for table in self.unfinished]

    @contextmanager
    def backfilling(self, table: str) -> Iterator[bool]:
        yield table != self.busy


def test_a_table_that_cannot_be_looked_at_keeps_no_other_from_it(caplog: pytest.LogCaptureFixture) -> None:
    columns = Columns(renamed="public.b")
    with caplog.at_level(logging.WARNING):
        columns.look("public.a", "public.b", "public.c")
    assert columns.looked == ["public.a", "public.b", "public.c"]
    (record,) = caplog.records
    assert "public.b is now called other" in record.getMessage()
    assert cast("Any", record).remedy == "Set its new name."


def test_a_table_that_is_locked_for_long_does_not_hold_up_the_drain(caplog: pytest.LogCaptureFixture) -> None:
    columns = Columns(locked="public.b")
    with caplog.at_level(logging.WARNING):
        columns.look("public.a", "public.b", "public.c", seconds=0.2)
    assert not columns.ended.is_set()
    assert "not all tables" in caplog.text
    columns.release.set()
    assert columns.ended.wait(_ENOUGH)
    assert "public.c" not in columns.looked


def test_a_backfill_is_due_when_nobody_is_at_it() -> None:
    ledger = Requests("public.a", "public.b", "public.gone", busy="public.b")
    assert backfills_due(cast("Ledger", ledger), ["public.a", "public.b", "public.c"]) == ("public.a",)
