"""Events of wire format 1: decoded exactly, or refused as a whole."""

from __future__ import annotations

import copy
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from docferry.change.model import UNCHANGED, Op, PgType, make_version
from docferry.change.wire import EventDecoder, WireError, decode_event, is_event


def types(oid: int) -> PgType:
    return PgType(oid, f"type{oid}")


def event(*changes: dict[str, Any], columns: list[str | None] | None = None) -> dict[str, Any]:
    columns = ["id", "doc"] if columns is None else columns
    return {
        "docferry": 1,
        "epoch": 3,
        "transaction": str(2**33 + 7),
        "at": "2026-11-25T10:00:00.123456+00:00",
        "relations": {
            "public.orders": {"oid": 16412, "columns": columns, "types": [20] * len(columns), "key": ["id"]},
        },
        "changes": [{"table": "public.orders", "version": str(make_version(3, 5)), **change} for change in changes],
    }


def literal(values: list[str | None]) -> str:
    """As PostgreSQL's record output writes it."""
    fields = []
    for value in values:
        if value is None:
            fields.append("")
        elif value == "" or any(mark in value for mark in '"\\(), \t\n\r\v\f'):
            escaped = value.replace("\\", "\\\\").replace('"', '""')
            fields.append(f'"{escaped}"')
        else:
            fields.append(value)
    return f"({','.join(fields)})"


def test_a_change_names_the_subtransaction_that_recorded_it() -> None:
    changes = [
        {"TG_OP": "INSERT", "NEW": "(1,x)", "subtransaction": str(2**33 + 8)},
        {"TG_OP": "INSERT", "NEW": "(2,x)", "version": str(make_version(3, 6))},
    ]
    decoded = decode_event(event(*changes), types)
    assert decoded.subtransactions == {make_version(3, 5): 2**33 + 8}
    with pytest.raises(WireError):
        decode_event(event({"TG_OP": "INSERT", "NEW": "(1,x)", "subtransaction": "seven"}), types)


def test_what_is_left_of_a_change_that_cannot_be_read_carries_nothing() -> None:
    layout = EventDecoder(types).layout("public.orders", 16412, ["id", "doc"], [20, 142], ["id"])
    left = layout.unreadable(make_version(3, 5), None)
    assert (left.op, left.row, left.old, left.version) == (Op.DELETE, None, (UNCHANGED, UNCHANGED), make_version(3, 5))


def test_one_of_each() -> None:
    decoded = decode_event(
        event(
            {"TG_OP": "INSERT", "NEW": "(1,x)"},
            {"TG_OP": "UPDATE", "NEW": "(2,)", "OLD": '(1,"a ""b"" \\\\")'},
            {"TG_OP": "DELETE", "OLD": "(2,y)"},
            {"TG_OP": "TRUNCATE"},
        ),
        types,
    )
    assert (decoded.epoch, decoded.transaction) == (3, 2**33 + 7)
    assert decoded.at == datetime(2026, 11, 25, 10, 0, 0, 123456, tzinfo=UTC)
    assert decoded.tables == {"public.orders"}
    assert [(one.op, one.row, one.old) for one in decoded.changes] == [
        (Op.INSERT, (b"1", b"x"), None),
        (Op.UPDATE, (b"2", None), (b"1", b'a "b" \\')),
        (Op.DELETE, None, (b"2", b"y")),
        (Op.TRUNCATE, None, None),
    ]
    first = decoded.changes[0]
    assert first.version == make_version(3, 5)
    assert first.transaction == 7  # as snapshots are asked about it
    assert [column.is_key for column in first.relation.columns] == [True, False]


def test_a_large_row_is_known_by_its_key_alone() -> None:
    decoded = decode_event(
        event(
            {"TG_OP": "INSERT", "key": ["1"]},
            {"TG_OP": "UPDATE", "key": ["2"], "old_key": ["1"]},
            {"TG_OP": "DELETE", "key": ["2"]},
        ),
        types,
    )
    insert, update, delete = decoded.changes
    assert (insert.row, insert.old, insert.partial) == ((b"1", UNCHANGED), None, True)
    assert (update.row, update.old, update.partial) == ((b"2", UNCHANGED), (b"1", UNCHANGED), True)
    assert (delete.row, delete.old, delete.partial) == (None, (b"2", UNCHANGED), False)


def test_generated_columns_are_left_out() -> None:
    document = event({"TG_OP": "INSERT", "NEW": "(1,gone,x)"}, columns=["id", None, "doc"])
    (change,) = decode_event(document, types).changes
    assert change.row == (b"1", b"x")
    assert [column.name for column in change.relation.columns] == ["id", "doc"]


def test_the_same_description_is_the_same_relation() -> None:
    decoder = EventDecoder(types)
    first = decoder.decode(event({"TG_OP": "INSERT", "NEW": "(1,x)"})).changes[0]
    again = decoder.decode(event({"TG_OP": "INSERT", "NEW": "(2,x)"})).changes[0]
    other = decoder.decode(event({"TG_OP": "INSERT", "NEW": "(2,x)"}, columns=["id", "text"])).changes[0]
    assert first.relation is again.relation
    assert first.relation is not other.relation


@given(st.lists(st.none() | st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0")), min_size=2))
def test_any_row(values: list[str | None]) -> None:
    columns: list[str | None] = [f"c{index}" for index in range(len(values))]
    columns[0] = "id"
    (change,) = decode_event(event({"TG_OP": "INSERT", "NEW": literal(values)}, columns=columns), types).changes
    assert change.row == tuple(None if value is None else value.encode() for value in values)


BROKEN: list[dict[str, Any]] = [
    {"docferry": 2},
    {"transaction": "x"},
    {"at": "yesterday"},
    {"relations": {}},
    {"relations": {"public.orders": {"oid": 1, "columns": ["id"], "types": [], "key": ["id"]}}},
    {"changes": [{"TG_OP": "INSERT", "table": "public.orders", "version": "1"}]},
    {"changes": [{"TG_OP": "MERGE", "table": "public.orders", "version": "1", "NEW": "(1,x)"}]},
    {"changes": [{"TG_OP": "INSERT", "table": "public.orders", "version": "1", "NEW": "(1)"}]},
    {"changes": [{"TG_OP": "INSERT", "table": "public.orders", "version": "1", "NEW": "1,x"}]},
    {"changes": [{"TG_OP": "DELETE", "table": "public.orders", "version": "1", "NEW": "(1,x)"}]},
    {"changes": [{"TG_OP": "INSERT", "table": "public.orders", "version": None, "NEW": "(1,x)"}]},
    {"changes": [{"TG_OP": "INSERT", "table": "public.orders", "version": "1", "key": ["1", "2"]}]},
    {"changes": "none"},
    {"changes": [7]},
]


@pytest.mark.parametrize("wrong", BROKEN)
def test_what_is_no_event_is_refused(wrong: dict[str, Any]) -> None:
    good = event({"TG_OP": "INSERT", "NEW": "(1,x)"})
    decode_event(good, types)
    with pytest.raises(WireError):
        decode_event({**copy.deepcopy(good), **wrong}, types)


def test_what_looks_like_an_event() -> None:
    assert is_event(event())
    others: list[Any] = [{}, [], "x", None, {"docferry": "drain"}, {"changes": []}]
    for other in others:
        assert not is_event(other)
        with pytest.raises(WireError):
            decode_event(other, types)
