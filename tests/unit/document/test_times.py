"""PostgreSQL's own texts are checked in tests/integration/test_values_oracle.py; here, sessions with other settings."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from docferry.document.times import timestamp, timestamptz, timetz


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"2024-01-02 03:04:05+00", "2024-01-02T03:04:05Z"),
        (b"2024-01-02T03:04:05+00:00", "2024-01-02T03:04:05Z"),
        (b"2024-01-02 03:04:05.100000-05", "2024-01-02T08:04:05.100000Z"),
        (b"2024-01-01 00:30:00+05:30", "2023-12-31T19:00:00Z"),
        (b"1890-01-01 00:00:00+00:53:28", "1889-12-31T23:06:32Z"),
        (b"0044-03-15 12:00:00+00 BC", "0044-03-15T12:00:00Z BC"),
        (b"0044-03-15 12:00:00+01 BC", "0044-03-15T12:00:00+01:00 BC"),
        (b"12345-06-07 08:09:10-02:30", "12345-06-07T08:09:10-02:30"),
        (b"infinity", "infinity"),
        (b"-infinity", "-infinity"),
    ],
)
def test_timestamptz_is_utc(raw: bytes, text: str) -> None:
    assert timestamptz(raw) == text


def test_the_others() -> None:
    assert timestamp(b"2024-01-02 03:04:05") == "2024-01-02T03:04:05"
    assert timestamp(b"0044-03-15 12:00:00 BC") == "0044-03-15T12:00:00 BC"
    assert timetz(b"03:04:05+02") == "03:04:05+02:00"
    assert timetz(b"03:04:05-02:30") == "03:04:05-02:30"


@given(st.text(max_size=30))
def test_no_text_crashes(text: str) -> None:
    for convert in (timestamp, timestamptz, timetz):
        assert isinstance(convert(text.encode()), str)
