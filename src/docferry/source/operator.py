"""Who runs this process, for the records that name who did something."""

from __future__ import annotations

import getpass
import os
import platform

__all__ = ["operator"]


def operator() -> str:
    """`user@host` of the operating system; the user's number where it has no name, as in many containers."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError, ImportError):
        user = f"uid {os.getuid()}" if hasattr(os, "getuid") else "unknown"
    return f"{user}@{platform.node() or 'unknown'}"
