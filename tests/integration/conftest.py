"""What the tests of mirroring share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .harness import Ferry


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    captures = getattr(metafunc.module, "CAPTURES", None)
    if captures is not None and "ferry" in metafunc.fixturenames:
        metafunc.parametrize("ferry", captures, indirect=True)


@pytest.fixture
def ferry(request: pytest.FixtureRequest, database: str) -> Iterator[Ferry]:
    """A module that says `CAPTURES = BY_BOTH` runs its tests once for each capture mode."""
    helper = Ferry(database, getattr(request, "param", "replication"))
    yield helper
    helper.close()
