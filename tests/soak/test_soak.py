"""Long runs: `make soak`, or `pytest -m soak`."""

from __future__ import annotations

from pathlib import Path

import pytest

from .memory import LIMIT_MIB, measure

pytestmark = pytest.mark.soak


def test_a_backlog_fits_in_memory(tmp_path: Path) -> None:
    figures = measure(
        tmp_path, changes=500_000, size=2000, rows=20_000, one_transaction=False, verify=True, deadline=3600
    )
    print(figures)  # noqa: T201 - the figures are what one comes for
    assert figures.peak_mib < LIMIT_MIB
    assert figures.verify_peak_mib < LIMIT_MIB


def test_a_huge_transaction_fits_in_memory(tmp_path: Path) -> None:
    rows = 1_000_000
    figures = measure(tmp_path, changes=rows, size=200, rows=rows, one_transaction=True, verify=False, deadline=3600)
    print(figures)  # noqa: T201 - the same
    assert figures.peak_mib < LIMIT_MIB
