"""PostgreSQL's dates and times (DateStyle ISO) as ISO 8601 text.

PostgreSQL reads each result back as the same value. What ISO 8601 cannot say stays PostgreSQL's way: `infinity`, and
years before Christ as a trailing " BC". Every digit is kept; no datetime object is made, whose range is smaller.
"""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import Final

__all__ = ["timestamp", "timestamptz", "timetz"]

_OFFSET: Final = re.compile(r"([+-])([0-9]{2})(?::?([0-9]{2}))?(?::?([0-9]{2}))?( BC)?\Z")


def timestamp(raw: bytes) -> str:
    """`2024-01-02T03:04:05.678901`, `0044-03-15T12:00:00 BC`, `infinity`."""
    text = raw.decode()
    # One space stands between date and time, another before BC.
    return text.replace(" ", "T", 1) if text[:1].isdigit() else text


def timestamptz(raw: bytes) -> str:
    """In UTC: `2024-01-02T03:04:05.678901Z`. Text of another zone is converted, so that a session's TimeZone does not
    matter; only a year that the conversion cannot compute with keeps its offset."""
    text = timestamp(raw)
    if text.endswith("+00"):
        return text[:-3] + "Z"
    match = _OFFSET.search(text, 11)
    if match is None:
        return text
    sign, hours, minutes, seconds, era = match.groups(default="")
    local = text[: match.start()]
    offset = timedelta(hours=int(hours), minutes=int(minutes or 0), seconds=int(seconds or 0))
    if not offset:
        return f"{local}Z{era}"
    try:
        if era:
            raise ValueError
        moment = datetime.fromisoformat(local) - (offset if sign == "+" else -offset)
    except (ValueError, OverflowError):
        return local + _with_colons(sign, hours, minutes, seconds) + era
    fraction = local.partition(".")[2]
    return moment.isoformat(timespec="seconds") + (f".{fraction}" if fraction else "") + "Z"


def timetz(raw: bytes) -> str:
    """`03:04:05.678+02:00`: the offset is part of the value and is kept."""
    text = raw.decode()
    match = _OFFSET.search(text)
    if match is None:
        return text
    return text[: match.start()] + _with_colons(*match.groups(default="")[:4])


def _with_colons(sign: str, hours: str, minutes: str, seconds: str) -> str:
    return f"{sign}{hours}:{minutes or '00'}" + (f":{seconds}" if seconds else "")
