"""Durations and sizes as people write them."""

from __future__ import annotations

import math
import re

__all__ = ["LONGEST_SECONDS", "parse_duration", "parse_size"]

_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
_BYTES = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9}
_NUMBER = re.compile(r"(?P<number>[0-9]{1,12}(?:\.[0-9]{1,6})?)\s*(?P<unit>[A-Za-z]*)")

LONGEST_SECONDS = 3650 * 86400


def parse_duration(value: object) -> float | None:
    """Seconds from a number, or from text such as "500ms", "30s", "5m", "12h", "7d". None for anything else."""
    seconds = _number(value, _SECONDS, "s")
    return None if seconds is None or seconds > LONGEST_SECONDS else seconds


def parse_size(value: object) -> int | None:
    """Bytes from a whole number, or from text such as "512KiB", "1MiB", "10MB". None for anything else."""
    if isinstance(value, float):
        return None
    size = _number(value, _BYTES, "B")
    return None if size is None or size > 2**50 else int(size)


def _number(value: object, units: dict[str, float] | dict[str, int], plain: str) -> float | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return float(value) if value >= 0 and value <= 2**60 and math.isfinite(value) else None
    if not isinstance(value, str):
        return None
    match = _NUMBER.fullmatch(value.strip())
    factor = units.get(match["unit"] or plain) if match else None
    return float(match["number"]) * factor if match and factor else None
