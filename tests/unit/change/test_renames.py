"""Which column a renamed key column is now."""

from __future__ import annotations

import pytest

from docferry.change.renames import current_names

COLUMNS = ("id", "org", "name")


@pytest.mark.parametrize(
    ("key", "identity", "former", "expected"),
    [
        (("org", "id"), (), (), ("org", "id")),
        (("tenant", "id"), ("org", "id"), (), ("org", "id")),
        (("id", "tenant"), ("org", "id"), (), ("id", "org")),
        (("tenant", "id"), ("org", "id"), ("tenant", "id", "name"), ("org", "id")),
        (("tenant", "id"), ("org", "id"), ("tenant", "id", "org"), None),
        (("tenant", "number"), ("org", "id"), (), None),
        (("tenant",), ("org", "id"), (), None),
        (("tenant", "id"), ("org",), (), None),
        (("tenant", "id"), (), (), None),
    ],
)
def test_names_are_found_again_or_not_at_all(
    key: tuple[str, ...], identity: tuple[str, ...], former: tuple[str, ...], expected: tuple[str, ...] | None
) -> None:
    assert current_names(key, COLUMNS, identity, former=former) == expected
