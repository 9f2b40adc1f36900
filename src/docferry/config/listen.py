"""The address that `run` answers health checks and Prometheus on."""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["EXPECTED_ADDRESS", "ListenAddress", "parse_address"]

EXPECTED_ADDRESS = 'HOST:PORT, such as "127.0.0.1:9187", "[::1]:9187", or ":9187" for every address of this machine'
_ADDRESS = re.compile(r"(?:\[(?P<six>[0-9A-Fa-f:.]+(?:%\w+)?)\]|(?P<host>[^\s:\[\]]*)):(?P<port>[0-9]{1,5})")


@dataclass(frozen=True, slots=True)
class ListenAddress:
    """`host`: "" for every address of this machine. `port`: 0 for one that is free."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str) -> ListenAddress | None:
    """An address from text; None when it is none."""
    match = _ADDRESS.fullmatch(text.strip())
    if match is None or int(match["port"]) > 65535:
        return None
    return ListenAddress(match["six"] or match["host"] or "", int(match["port"]))
