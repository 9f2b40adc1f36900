"""What a dead letter asks for: which keys it is about, and what its own event says of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from docferry.change.model import Op, Relation, Row
from docferry.change.wire import Event, WireError
from docferry.deadletter.contract import DeadLetter, StoredDeadLetter
from docferry.document.batch import coalesce, to_write
from docferry.document.mirror import Mirror
from docferry.document.model import Key, Write
from docferry.errors import DocferryError, RowRefused

__all__ = ["Aim", "Decode", "Identity", "aimed_keys", "aims_by_row", "aims_of_event", "identity"]

Identity: TypeAlias = "Key | tuple[str, ...]"
"""What says whether two rows are the same: the item's key, or the texts of a key that cannot be one."""

Decode: TypeAlias = Callable[[Mapping[str, Any]], Event]
"""change.wire.decode_event with what it needs to know of types."""


@dataclass(frozen=True, slots=True)
class Aim:
    """One key that a dead letter is about, and the write that settles it: None where there is nothing to write, because
    the row is gone and its key never was an item's. `error`: why there can be no write. `key`: of the item, None where
    there can be none."""

    stored: StoredDeadLetter
    identity: Identity
    key: Key | None
    write: Write | None = None
    error: RowRefused | None = None

    @property
    def version(self) -> int:
        """The fence of it."""
        return self.stored.letter.version


def aimed_keys(mirror: Mirror, relation: Relation, letter: DeadLetter) -> list[tuple[Row, Identity, Key | None]]:
    """The keys of a dead letter: that which the change took from the row, if any, and its own. The first of each: a row
    that carries nothing else; the last: None for one that cannot be a key."""
    keys = [letter.key] if letter.old_key is None else [letter.old_key, letter.key]
    aimed: list[tuple[Row, Identity, Key | None]] = []
    for texts in keys:
        row = mirror.key_row(relation, texts)
        key = item_key(mirror, relation, row)
        aimed.append((row, mirror.key_texts(relation, row) if key is None else key, key))
    return aimed


def aims_by_row(
    mirror: Mirror,
    relation: Relation,
    letters: Sequence[StoredDeadLetter],
    found: Mapping[Identity, tuple[Relation, Row]],
) -> list[Aim]:
    """What to write by the rows as they are now (R5), with the versions of the changes. Row gone means delete."""
    aims = []
    for stored in letters:
        for key_row, one, key in aimed_keys(mirror, relation, stored.letter):
            row = found.get(one)
            try:
                if row is not None:
                    aims.append(Aim(stored, one, key, mirror.converter.put(*row, stored.letter.version)))
                elif key is not None:
                    aims.append(
                        Aim(stored, one, key, mirror.converter.delete(relation, key_row, stored.letter.version))
                    )
                else:
                    aims.append(Aim(stored, one, key))
            except RowRefused as error:
                aims.append(Aim(stored, one, key, error=error))
    return aims


def aims_of_event(mirror: Mirror, stored: StoredDeadLetter, decode: Decode | None) -> list[Aim] | None:
    """What to write by the event alone; None where only the row can tell (R5): no event, one that carries the key
    alone, and the old key of a key change, which another row may have taken."""
    payload = stored.letter.payload
    if payload is None or decode is None:
        return None
    try:
        changes = decode(payload).changes
        if len(changes) != 1 or changes[0].op is Op.TRUNCATE:
            return None
        pending, refused = coalesce(changes, {mirror.table: mirror})
    except (WireError, DocferryError, ValueError):
        return None
    if any(one.in_doubt for one in pending):
        return None
    # A key that cannot be one never had an item: its delete is done.
    aims = [Aim(stored, one.key_texts, None, error=None if one.op is Op.DELETE else one.error) for one in refused]
    for one in pending:
        try:
            aims.append(Aim(stored, one.key, one.key, to_write(one)))
        except RowRefused as error:
            aims.append(Aim(stored, one.key, one.key, error=error))
    return aims


def identity(mirror: Mirror, relation: Relation, row: Row) -> Identity:
    """See Identity."""
    key = item_key(mirror, relation, row)
    return mirror.key_texts(relation, row) if key is None else key


def item_key(mirror: Mirror, relation: Relation, row: Row) -> Key | None:
    """The key of a row's item; None for one that cannot be a key."""
    try:
        return mirror.converter.key(relation, row)
    except RowRefused:
        return None
