from __future__ import annotations

from decimal import Decimal, localcontext

import pytest
from hypothesis import given
from hypothesis import strategies as st

from docferry.document.limits import number


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("-0", 0),
        ("-0.00", 0),
        ("007", 7),
        ("+5", 5),
        ("12.50", Decimal("12.5")),
        ("1.", 1),
        (".5", Decimal("0.5")),
        ("1e3", 1000),
        ("-1.5E-3", Decimal("-0.0015")),
        ("9" * 38, 10**38 - 1),
        ("9" * 39, "9" * 39),
        ("-" + "9" * 39, "-" + "9" * 39),
        ("1" + "0" * 100, 10**100),
        ("9.99e125", 999 * 10**123),
        ("1e126", "1e126"),
        ("1e-130", Decimal("1E-130")),
        ("0.1e-130", "0.1e-130"),
        ("1e999999999999", "1e999999999999"),
        ("1" * 5000, "1" * 5000),
        ("0" * 5000 + "1", 1),
        ("0e99999999", 0),
        ("NaN", "NaN"),
        ("Infinity", "Infinity"),
        ("-Infinity", "-Infinity"),
        ("", ""),
        (".", "."),
        ("-", "-"),
        ("1_000", "1_000"),
        (" 1", " 1"),
        ("١", "١"),  # noqa: RUF001 - digits of other scripts are text
        ("²", "²"),
        ("1\n", "1\n"),
    ],
)
def test_number(text: str, expected: object) -> None:
    result = number(text)
    assert result == expected
    assert isinstance(result, str) == isinstance(expected, str)


@given(st.decimals(allow_nan=False, allow_infinity=False))
def test_no_digit_is_lost(value: Decimal) -> None:
    result = number(str(value))
    if isinstance(result, str):
        assert result == str(value)
    else:
        assert result == value
        with localcontext(prec=38, Emin=-999999, Emax=999999) as context:
            assert context.plus(Decimal(result)) == value
            assert not context.flags[__import__("decimal").Inexact]


@given(st.text(alphabet="0123456789+-.eEnaIf ", max_size=50))
def test_never_fails(text: str) -> None:
    assert isinstance(number(text), int | Decimal | str)
