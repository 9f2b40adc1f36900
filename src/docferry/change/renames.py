"""Which column a renamed key column is now. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence

__all__ = ["current_names"]


def current_names(
    key: Sequence[str], columns: Collection[str], identity: Collection[str], *, former: Collection[str] = ()
) -> tuple[str, ...] | None:
    """The names that the columns of `key` have now, in its order; None where nobody can say.

    Names that still exist are kept. One that does not is the one column of the `identity` (the primary key, or the
    replica identity) that `key` does not name, if there is exactly one on each side: of two, nobody knows which is
    which. `former`: the names of all columns when `key` was made, if known; what is among them was not renamed. If they
    are not, the `identity` has to be of as many columns as the key.
    """
    missing = [name for name in key if name not in columns]
    if not missing:
        return tuple(key)
    others = [name for name in identity if name not in key and name not in former]
    if len(missing) != 1 or len(others) != 1 or not (former or len(identity) == len(key)):
        return None
    return tuple(others[0] if name == missing[0] else name for name in key)
