"""From changes in any order to one thing to do for each key."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from docferry.change.model import UNCHANGED, Change, Column, Op, PgType, RawValue, Relation, Row
from docferry.document.batch import Pending, coalesce, mirror_of, to_write
from docferry.document.mirror import Mirror
from docferry.document.model import Collection, Delete, KeyAttribute, KeyKind, MirrorSpec, Put
from docferry.errors import KeyRefused, SourceRefused

TEXT = PgType(25, "text")


def relation(name: str = "t", oid: int = 7, columns: tuple[str, ...] = ("id", "name", "doc")) -> Relation:
    return Relation(oid, "public", name, tuple(Column(column, TEXT, column == "id") for column in columns))


def mirror(table: str = "public.t", oid: int = 7) -> Mirror:
    return Mirror(MirrorSpec(table, ("id",), Collection(table, (KeyAttribute("id", KeyKind.TEXT),))), oid)


T = relation()
MIRRORS = {"public.t": mirror()}
_version = iter(range(1, 10_000))


def raw(value: str | None) -> RawValue:
    """In these tests `~` stands for a value that is not carried."""
    return UNCHANGED if value == "~" else None if value is None else value.encode()


def rows(*values: str | None) -> Row:
    return tuple(raw(value) for value in values)


def change(op: Op, row: Row | None, old: Row | None = None, of: Relation = T, transaction: int = 1) -> Change:
    return Change(op, of, row, old, next(_version), transaction, None, 1)


def insert(*values: str | None, of: Relation = T) -> Change:
    return change(Op.INSERT, rows(*values), of=of)


def update(*values: str | None, old: Row | None = None, of: Relation = T, transaction: int = 1) -> Change:
    return change(Op.UPDATE, rows(*values), old, of, transaction)


def delete(key: str) -> Change:
    return change(Op.DELETE, None, rows(key, "~", "~"))


def coalesced(*changes: Change) -> dict[str, Pending]:
    pending, refused = coalesce(changes, MIRRORS)
    assert refused == []
    found = {str(one.key[0]): one for one in pending}
    assert len(found) == len(pending), "one for each key"
    return found


def test_the_last_change_of_a_key_counts() -> None:
    first, last = insert("1", "a", "d"), update("1", "b", "e")
    (one,) = (coalesced(first, insert("2", "x", "y"), last)["1"],)
    assert (one.row, one.version, one.changes) == (last.row, last.version, 2)
    assert one.new, "the batch began with its insert"
    write = to_write(one)
    assert isinstance(write, Put)
    assert write.document == {"id": "1", "name": "b", "doc": "e"}


def test_keys_come_in_the_order_of_first_mention() -> None:
    assert list(coalesced(insert("2", "", ""), insert("1", "", ""), update("2", "", ""))) == ["2", "1"]


def test_what_was_deleted_and_inserted_again_is_stored() -> None:
    one = coalesced(delete("1"), insert("1", "a", "d"))["1"]
    assert one.row == rows("1", "a", "d")
    assert not one.new, "its item was there before"
    assert not one.in_doubt


def test_what_was_inserted_and_deleted_again_is_deleted() -> None:
    first, last = insert("1", "a", "d"), delete("1")
    one = coalesced(first, last)["1"]
    assert to_write(one) == Delete(MIRRORS["public.t"].collection, ("1",), last.version)
    assert not one.new


def test_a_column_that_is_not_carried_comes_from_the_same_batch() -> None:
    one = coalesced(insert("1", "a", "large"), update("1", "b", "~"), update("1", "c", "~"))["1"]
    assert (one.row, one.in_doubt) == (rows("1", "c", "large"), False)


def test_a_column_that_is_not_carried_comes_from_the_old_row() -> None:
    one = coalesced(update("1", "b", "~", old=rows("1", "a", "large")))["1"]
    assert (one.row, one.in_doubt) == (rows("1", "b", "large"), False)


def test_a_key_that_is_not_carried_comes_from_the_old_row() -> None:
    """One that is stored out of line: the old row comes along, though the key is as it was."""
    assert coalesced(update("~", "b", "d", old=rows("1", "~", "~")))["1"].row == rows("1", "b", "d")
    found = coalesced(insert("1", "a", "large"), update("~", "b", "~", old=rows("1", "~", "~")))
    assert (found["1"].row, found["1"].in_doubt) == (rows("1", "b", "large"), False)


def test_null_in_an_old_row_does_not_complete_a_new_one() -> None:
    """So says a partition that logs its key only, below a root with REPLICA IDENTITY FULL."""
    found = coalesced(update("2", "b", "~", old=rows("1", None, None)))
    assert (found["2"].row, found["2"].in_doubt) == (rows("2", "b", "~"), True)


def test_a_column_that_nothing_carries_leaves_the_row_in_doubt() -> None:
    first, last = update("1", "b", "~", transaction=8), update("1", "c", "~", transaction=9)
    one = coalesced(first, last)["1"]
    assert one.in_doubt
    assert (one.version, one.transaction) == (last.version, 9)
    assert one.key_texts == ("1",)


def test_a_column_that_is_not_carried_never_comes_from_a_row_that_was_deleted() -> None:
    assert coalesced(insert("1", "a", "old"), delete("1"), update("1", "b", "~"))["1"].in_doubt


def test_nor_from_a_row_with_other_columns() -> None:
    later = relation(columns=("id", "name", "other"))
    assert coalesced(insert("1", "a", "doc"), update("1", "b", "~", of=later))["1"].in_doubt


def test_a_whole_change_ends_the_doubt() -> None:
    assert not coalesced(update("1", "b", "~"), update("1", "c", "d"))["1"].in_doubt


def test_the_old_key_of_a_key_change_is_in_doubt() -> None:
    first, move = insert("1", "a", "d"), update("2", "a", "d", old=rows("1", "~", "~"))
    found = coalesced(first, move)
    assert found["1"].in_doubt
    assert found["1"].row is None
    assert found["1"].version == found["2"].version == move.version
    assert (found["2"].row, found["2"].in_doubt) == (rows("2", "a", "d"), False)


def test_the_moved_row_does_not_take_columns_from_the_one_that_had_its_key() -> None:
    """Rows 1 and 2 swap; what is not carried of one must not come from the other."""
    found = coalesced(
        insert("2", "two", "doc of two"),
        update("-1", "one", "~", old=rows("1", "~", "~")),
        update("1", "two", "~", old=rows("2", "~", "~")),
        update("2", "one", "~", old=rows("-1", "~", "~")),
    )
    assert {key for key, one in found.items() if one.in_doubt} == {"1", "2", "-1"}


def test_nor_when_nothing_said_that_the_key_was_free() -> None:
    found = coalesced(insert("2", "two", "doc of two"), update("2", "one", "~", old=rows("1", "~", "~")))
    assert found["2"].in_doubt


def test_a_taken_key_is_not_in_doubt() -> None:
    found = coalesced(update("2", "a", "d", old=rows("1", "~", "~")), insert("1", "new", "e"))
    assert (found["1"].row, found["1"].in_doubt, found["1"].new) == (rows("1", "new", "e"), False, False)


def test_the_same_old_key_is_no_key_change() -> None:
    assert list(coalesced(update("1", "b", "c", old=rows("1", "a", "c")))) == ["1"]


def test_a_row_too_large_for_an_event_takes_nothing_from_an_older_one() -> None:
    """What it does not carry may have changed, unlike what a TOAST column did not."""
    large = update("1", "~", "~")._replace(partial=True)
    assert coalesced(insert("1", "a", "old"), large._replace(version=next(_version)))["1"].in_doubt


def test_the_order_of_arrival_does_not_matter() -> None:
    first, last = insert("1", "a", "d"), update("1", "b", "~")
    assert coalesced(last, first)["1"].row == rows("1", "b", "d")
    gone, back = delete("2"), insert("2", "x", "y")
    assert (coalesced(back, gone)["2"].row, coalesced(back, gone)["2"].version) == (back.row, back.version)


def history(statements: list[tuple[str, str, int]]) -> list[Change]:
    """Changes of a table of three keys, in the order in which they happened."""
    table: dict[str, tuple[str, str]] = {}
    changes = []
    for number, (key, other, choice) in enumerate(statements):
        if key not in table:
            table[key] = (f"n{number}", f"d{number}")
            changes.append(insert(key, *table[key]))
        elif choice == 0 and other not in table:
            table[other] = (f"n{number}", table.pop(key)[1])
            doc = table[other][1] if number % 2 else "~"
            changes.append(update(other, table[other][0], doc, old=rows(key, "~", "~")))
        elif choice == 1:
            del table[key]
            changes.append(delete(key))
        else:
            table[key] = (f"n{number}", table[key][1] if choice < 5 else f"d{number}")
            changes.append(update(key, table[key][0], "~" if choice < 5 else table[key][1]))
    return changes


def essence(changes: list[Change]) -> dict[str, tuple[Any, ...]]:
    return {key: (one.row, one.version, one.in_doubt, one.op, one.key_row) for key, one in coalesced(*changes).items()}


KEYS = st.sampled_from("123")


@given(
    statements=st.lists(st.tuples(KEYS, KEYS, st.integers(0, 9)), min_size=1, max_size=12),
    order=st.randoms(use_true_random=False),
    again=st.lists(st.integers(0, 11), max_size=4),
)
@settings(max_examples=300, deadline=None, derandomize=True)
def test_any_order_and_repetition_says_the_same(
    statements: list[tuple[str, str, int]], order: Any, again: list[int]
) -> None:
    changes = history(statements)
    sent = [*changes, *(changes[index % len(changes)] for index in again)]
    order.shuffle(sent)
    assert essence(sent) == essence(changes)


@pytest.mark.parametrize("key", ["", None])
def test_a_key_that_cannot_be_one_is_refused_and_stops_nothing(key: str | None) -> None:
    bad = insert(key, "a", "b")
    pending, refused = coalesce([insert("1", "a", "b"), bad, insert("2", "a", "b")], MIRRORS)
    assert [one.key for one in pending] == [("1",), ("2",)]
    (one,) = refused
    assert (one.version, one.op, one.key_texts) == (bad.version, Op.INSERT, ("",))
    assert isinstance(one.error, KeyRefused)


def test_a_row_that_moves_to_a_key_that_cannot_be_one_still_leaves_its_old_one() -> None:
    pending, refused = coalesce([update("", "a", "b", old=rows("1", "~", "~"))], MIRRORS)
    assert [(one.key, one.in_doubt) for one in pending] == [(("1",), True)]
    assert len(refused) == 1


def test_a_row_that_moves_away_from_a_key_that_could_not_be_one_is_stored() -> None:
    pending, refused = coalesce([update("1", "a", "b", old=rows("", "~", "~"))], MIRRORS)
    assert [(one.key, one.row) for one in pending] == [(("1",), rows("1", "a", "b"))]
    assert refused == []


def test_tables_do_not_mix() -> None:
    mirrors = {**MIRRORS, "public.u": mirror("public.u", 8)}
    other = relation("u", 8)
    pending, _ = coalesce([insert("1", "a", "b"), insert("1", "c", "d", of=other)], mirrors)
    assert [(one.mirror.table, one.row) for one in pending] == [
        ("public.t", rows("1", "a", "b")),
        ("public.u", rows("1", "c", "d")),
    ]


def test_a_published_table_that_is_not_configured_is_passed_over() -> None:
    assert coalesce([insert("1", "a", "b", of=relation("unknown", 99))], MIRRORS) == ([], [])
    assert mirror_of(relation("unknown", 99), MIRRORS) is None


def test_a_renamed_table_is_not_passed_over() -> None:
    with pytest.raises(SourceRefused, match=r"public\.t is now called public\.renamed"):
        coalesce([insert("1", "a", "b", of=relation("renamed", 7))], MIRRORS)
