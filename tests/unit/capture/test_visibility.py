"""Whether a snapshot sees a transaction of which only the lower 32 bits are known."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from docferry.capture.snapshot import is_visible

WRAP = 2**32


@pytest.mark.parametrize(
    ("transaction", "snapshot", "visible"),
    [
        (0, "100:100:", True),  # no transaction to wait for
        (99, "100:100:", True),
        (100, "100:100:", False),  # not yet begun when the snapshot was taken
        (100, "100:101:100", False),
        (100, "99:102:99,101", True),  # between two that run
        (101, "99:102:99,101", False),
        (102, "99:102:99,101", False),
        (10, "9:12:9,11", True),  # a number is not found in a longer one
        (1, "11:12:11", True),
        # Beyond 32 bits.
        (5, f"{WRAP + 5}:{WRAP + 6}:{WRAP + 5}", False),
        (4, f"{WRAP + 5}:{WRAP + 6}:{WRAP + 5}", True),
        (WRAP - 1, f"{WRAP + 5}:{WRAP + 6}:{WRAP + 5}", True),  # before the wrap, long visible
        (WRAP - 1, f"{WRAP - 1}:{WRAP + 6}:{WRAP - 1}", False),  # before the wrap, still running after it
        (3, f"{WRAP - 1}:{WRAP + 6}:{WRAP - 1},{WRAP + 3}", False),
        (4, f"{WRAP - 1}:{WRAP + 6}:{WRAP - 1},{WRAP + 3}", True),
        (3, f"{WRAP - 2}:{WRAP - 1}:{WRAP - 2}", False),  # after the wrap, the snapshot before it
        (7, f"{9 * WRAP + 7}:{9 * WRAP + 8}:{9 * WRAP + 7}", False),
    ],
)
def test_visibility(transaction: int, snapshot: str, *, visible: bool) -> None:
    assert is_visible(transaction, snapshot) is visible


@given(
    xmax=st.integers(2**31, 2**48),
    running=st.sets(st.integers(1, 50)),
    age=st.integers(-1000, 2**31 - 1),
)
@settings(derandomize=True, print_blob=True)
def test_as_the_whole_number_would_say(xmax: int, running: set[int], age: int) -> None:
    full = xmax - age
    ids = sorted(xmax - one for one in running)
    snapshot = f"{min(ids, default=xmax)}:{xmax}:{','.join(map(str, ids))}"
    lower = full & 0xFFFFFFFF
    if lower:
        assert is_visible(lower, snapshot) is (full < xmax and full not in ids)
