"""Files that commands write because they were asked to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from docferry.errors import ConfigError

__all__ = ["writing"]


@contextmanager
def writing(output: Path) -> Iterator[None]:
    """Around the opening and writing of what --output names: raises ConfigError when that is not possible."""
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"{output} cannot be written: {error.strerror or error}",
            remedy="Give --output a file that can be written, in a directory that is there.",
        ) from error
