"""From changes in any order to at most one thing to do for each key. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter

from docferry.change.model import UNCHANGED, Change, Op, Relation, Row
from docferry.change.rows import is_whole, merge
from docferry.document.mirror import Mirror
from docferry.document.model import Key, Write
from docferry.errors import RowRefused, SourceRefused

__all__ = ["Pending", "Refused", "coalesce", "mirror_of", "renamed", "to_write"]

_by_version = attrgetter("version")


@dataclass(slots=True)
class Pending:
    """What is to be done for one key: store `row`, delete (`row` None), or, `in_doubt`, find out by reading the current
    row once `transaction` is visible (R5). `key_row` holds at least the key columns. `changes`: how many were coalesced
    into it. `new`: the item probably does not exist yet."""

    mirror: Mirror
    op: Op
    relation: Relation
    key: Key
    key_row: Row
    row: Row | None
    version: int
    transaction: int
    in_doubt: bool
    new: bool
    changes: int = 1

    @property
    def key_texts(self) -> tuple[str, ...]:
        """The text of each key column."""
        return self.mirror.key_texts(self.relation, self.key_row)


@dataclass(frozen=True, slots=True)
class Refused:
    """A change that cannot be applied, and why."""

    mirror: Mirror
    key_texts: tuple[str, ...]
    version: int
    op: Op
    error: RowRefused


def coalesce(
    changes: Sequence[Change],
    mirrors: Mapping[str, Mirror],
    on_lost_key: Callable[[Mirror, Change], object] | None = None,
) -> tuple[list[Pending], list[Refused]]:
    """The last word for each key, in the order of first mention, and the changes whose key cannot be a key.

    `changes` may come in any order, and more than once: the version says which is the last. They hold no TRUNCATE. A
    column that a change does not carry is taken from the next older one of its key: `changes` have no gap between them,
    or else they carry what they have (Change.partial is for those that do not). `on_lost_key` is told of a change that
    does not carry the key that a row left. Raises SourceRefused if a mirrored table was renamed.
    """
    pending: dict[tuple[str, Key], Pending] = {}
    refused: list[Refused] = []
    # The sort costs little where they are in order already, as those of a stream are.
    for change in sorted(changes, key=_by_version):
        mirror = mirror_of(change.relation, mirrors)
        if mirror is None:
            continue
        row = change.row if change.row is not None else change.old
        assert row is not None
        if change.old is not None and UNCHANGED in row and not change.partial:
            # REPLICA IDENTITY FULL carries all old values, every other the key, which may be stored out of line itself.
            row = merge(change.old, row)
        unsaid = change.op is Op.UPDATE and change.old is None and not mirror.converter.is_identified(change.relation)
        if unsaid and on_lost_key is not None:
            on_lost_key(mirror, change)
        try:
            old_key = _left_key(mirror, change)
        except ValueError:
            if on_lost_key is None:
                raise
            on_lost_key(mirror, change)
            old_key = None
        key: Key | None = None
        try:
            key = mirror.converter.key(change.relation, row)
        except ValueError:
            if on_lost_key is None or change.row is not None:
                raise
            on_lost_key(mirror, change)
        except RowRefused as error:
            texts = mirror.key_texts(change.relation, row)
            refused.append(Refused(mirror, texts, change.version, change.op, error))
        moved = old_key is not None and old_key != key
        if old_key is not None and moved:
            assert change.old is not None
            # Within the transaction another row may have taken the old key already; only the table knows.
            _merge(
                pending,
                Pending(
                    mirror,
                    Op.DELETE,
                    change.relation,
                    old_key,
                    change.old,
                    None,
                    change.version,
                    change.transaction,
                    in_doubt=True,
                    new=False,
                ),
            )
        if key is not None:
            earlier = None if moved else pending.get((mirror.table, key))
            _merge(pending, _pending(mirror, change, key, row, earlier))
    return list(pending.values()), refused


def mirror_of(relation: Relation, mirrors: Mapping[str, Mirror]) -> Mirror | None:
    """The mirror of a relation; None for a table that is published but not configured."""
    mirror = mirrors.get(relation.table)
    if mirror is None:
        for known in mirrors.values():
            if known.oid == relation.oid:
                raise renamed(known, relation.table)
    return mirror


def renamed(mirror: Mirror, name: str) -> SourceRefused:
    """The error for a mirrored table that has another name now."""
    return SourceRefused(
        f"table {mirror.table} is now called {name}",
        remedy=f'Set [[mirrors]] table = "{name}" (and collection = "{mirror.collection.name}" to keep the items), run '
        "`docferry apply`, then `docferry run`.",
    )


def to_write(pending: Pending) -> Write:
    """The write that a settled pending means. Raises RowRefused."""
    converter = pending.mirror.converter
    if pending.row is None:
        return converter.delete(pending.relation, pending.key_row, pending.version)
    return converter.put(pending.relation, pending.row, pending.version, new=pending.new)


def _left_key(mirror: Mirror, change: Change) -> Key | None:
    """The key before an UPDATE that carries it; None for one that could never have been a key and left no item."""
    if change.op is not Op.UPDATE or change.old is None:
        return None
    try:
        return mirror.converter.key(change.relation, change.old)
    except RowRefused:
        return None


def _pending(mirror: Mirror, change: Change, key: Key, row: Row, earlier: Pending | None) -> Pending:
    new = change.op is Op.INSERT
    if change.row is None:
        return Pending(
            mirror,
            change.op,
            change.relation,
            key,
            row,
            None,
            change.version,
            change.transaction,
            in_doubt=False,
            new=False,
        )
    whole = row
    if (
        UNCHANGED in whole
        and not change.partial
        and earlier is not None
        and earlier.row is not None
        and earlier.relation is change.relation
    ):
        whole = merge(earlier.row, whole)
    return Pending(
        mirror,
        change.op,
        change.relation,
        key,
        whole,
        whole,
        change.version,
        change.transaction,
        in_doubt=not is_whole(whole),
        new=new,
    )


def _merge(pending: dict[tuple[str, Key], Pending], later: Pending) -> None:
    place = (later.mirror.table, later.key)
    earlier = pending.get(place)
    if earlier is not None:
        # The item's existence is decided by what came first in this batch.
        later.new = earlier.new and later.row is not None
        later.changes += earlier.changes
    pending[place] = later
