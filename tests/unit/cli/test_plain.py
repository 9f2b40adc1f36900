"""Values of documents on one line."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from docferry.cli.plain import shown_value
from docferry.operate.difference import ABSENT


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "null"),
        (True, "true"),
        (Decimal("1E+3"), "1000"),
        (Decimal("0.10"), "0.10"),
        (b"\x00\xff", "0x00ff"),
        ('a"\x1b', r'"a\"\u001b"'),
        ("\x9b", r'"\x9b"'),
        ({"a": [1, Decimal("2.5"), None]}, '{"a": [1, 2.5, null]}'),
        (ABSENT, "(absent)"),
    ],
)
def test_values(value: Any, expected: str) -> None:
    assert shown_value(value) == expected


def test_long_and_deep_values_are_cut() -> None:
    assert shown_value("x" * 1000).endswith("… (1,002 characters)")
    assert len(shown_value("x" * 1000, None)) == 1002
    deep: Any = 1
    for _ in range(20_000):
        deep = [deep]
    assert shown_value(deep) == "(nested too deeply to be shown)"
