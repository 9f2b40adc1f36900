"""What is said of connection strings that cannot be read."""

from __future__ import annotations

import traceback

import pytest

from docferry.errors import ConfigError
from docferry.source.conninfo import parsed


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://u:Sentinel%zzpw@h/db",
        "postgresql://u:Sentinel%00@h/db",
        "postgresql://u:Sentinel pw@h/db",
        "postgresql://u:Sentinel@pw@h/db",
        "postgresql://u:Sentinel/db",
        "postgresql://u:Sentinel,5432/db?host=h",
        "postgresql://u@h/db?password=Sentinel%zz",
        "postgresql://u@h/db?password=Sentinel pw",
        "postgresql://u@h/db?password=a&Sentinel",
        "host=h password=a Sentinel",
        "host=h password=a Sentinel=b",
        "host=h password='Sentinel",
        "postgres:/u:Sentinel@h/db",
    ],
)
def test_nothing_of_it_is_shown(dsn: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parsed(dsn)
    assert caught.value.remedy
    assert "Sentinel" not in "".join(traceback.format_exception(caught.value))
    # Nor to whoever shows more than a traceback does.
    assert caught.value.__cause__ is caught.value.__context__ is None


def test_the_parameters() -> None:
    assert parsed("postgresql://u:p%20w@h:5433,i/db?sslmode=require") == {
        "user": "u",
        "password": "p w",
        "host": "h,i",
        "port": "5433,",
        "dbname": "db",
        "sslmode": "require",
    }
    assert parsed("host=h") == {"host": "h"}
