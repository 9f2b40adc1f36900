from __future__ import annotations

import pytest

from docferry.change.model import UNCHANGED
from docferry.change.rows import is_whole, merge


def test_a_row_with_an_uncarried_column_is_not_whole() -> None:
    assert is_whole((b"1", None))
    assert not is_whole((b"1", UNCHANGED))


def test_only_uncarried_columns_come_from_the_older_row() -> None:
    assert merge((b"1", b"old", b"x"), (b"1", UNCHANGED, None)) == (b"1", b"old", None)
    assert merge((b"1", UNCHANGED), (b"1", UNCHANGED)) == (b"1", UNCHANGED)


def test_null_never_stands_for_a_column_that_is_not_carried() -> None:
    """What is not carried is stored out of line, and NULL never is."""
    assert merge((b"1", None), (b"2", UNCHANGED)) == (b"2", UNCHANGED)


def test_rows_of_different_tables_do_not_merge() -> None:
    with pytest.raises(ValueError, match="zip"):
        merge((b"1",), (b"1", b"2"))
