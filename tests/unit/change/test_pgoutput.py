"""Messages made by hand from the protocol's documentation."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from docferry.change.model import UNCHANGED, Change, Op, PgType, RawValue, Row, make_version, split_version
from docferry.change.pgoutput import Commit, Decoder, ProtocolError, timestamp

EPOCH = 3
OID = 16_400


def types(oid: int) -> PgType:
    return PgType(oid, {23: "int4", 25: "text"}.get(oid, "unknown"))


def text(value: str) -> bytes:
    return value.encode() + b"\0"


def relation(
    columns: Sequence[tuple[str, int, bool]], oid: int = OID, schema: str = "public", name: str = "orders"
) -> bytes:
    described = struct.pack("!h", len(columns)) + b"".join(
        struct.pack("!B", is_key) + text(column) + struct.pack("!Ii", of, -1) for column, of, is_key in columns
    )
    return b"R" + struct.pack("!I", oid) + text(schema) + text(name) + b"d" + described


def values(row: Row) -> bytes:
    written = [struct.pack("!h", len(row))]
    for value in row:
        if value is None:
            written.append(b"n")
        elif value is UNCHANGED:
            written.append(b"u")
        else:
            written.append(b"t" + struct.pack("!i", len(value)) + value)
    return b"".join(written)


def begin(committed: int = 0, transaction: int = 77, position: int = 5000) -> bytes:
    return b"B" + struct.pack("!QqI", position, committed, transaction)


def commit(end: int, committed: int = 0) -> bytes:
    return b"C" + struct.pack("!BQQq", 0, end - 8, end, committed)


def insert(row: Row, oid: int = OID) -> bytes:
    return b"I" + struct.pack("!I", oid) + b"N" + values(row)


def update(row: Row, old: Row | None = None, kind: bytes = b"K") -> bytes:
    before = b"" if old is None else kind + values(old)
    return b"U" + struct.pack("!I", OID) + before + b"N" + values(row)


def delete(old: Row, kind: bytes = b"K") -> bytes:
    return b"D" + struct.pack("!I", OID) + kind + values(old)


def truncate(*oids: int, options: int = 0) -> bytes:
    return b"T" + struct.pack("!iB", len(oids), options) + b"".join(struct.pack("!I", oid) for oid in oids)


COLUMNS = [("id", 23, True), ("name", 25, False), ("doc", 25, False)]


@pytest.fixture
def decoder() -> Decoder:
    """In a transaction, with one relation known."""
    decoder = Decoder(types, EPOCH)
    assert decoder.decode(begin()) is None
    assert decoder.decode(relation(COLUMNS)) is None
    return decoder


def decoded(decoder: Decoder, message: bytes) -> Change:
    change = decoder.decode(message)
    assert isinstance(change, Change)
    return change


def test_a_relation(decoder: Decoder) -> None:
    of = decoded(decoder, insert((b"1", None, None))).relation
    assert (of.oid, of.table) == (OID, "public.orders")
    assert of.shape == (("id", "int4"), ("name", "text"), ("doc", "text"))
    assert [column.is_key for column in of.columns] == [True, False, False]


def test_an_insert(decoder: Decoder) -> None:
    change = decoded(decoder, insert((b"1", b"\xc3\xa4", None)))
    assert (change.op, change.row, change.old) == (Op.INSERT, (b"1", b"\xc3\xa4", None), None)
    assert change.version == make_version(EPOCH, 5000)
    assert change.transaction == 77
    assert change.size > len(b"1\xc3\xa4")


def test_an_update_that_does_not_carry_a_column(decoder: Decoder) -> None:
    change = decoded(decoder, update((b"1", b"x", UNCHANGED)))
    assert (change.op, change.row, change.old) == (Op.UPDATE, (b"1", b"x", UNCHANGED), None)


def test_an_update_of_the_key_carries_the_old_one(decoder: Decoder) -> None:
    """In a key tuple, NULL stands for a column that is not in the key."""
    change = decoded(decoder, update((b"2", b"x", UNCHANGED), (b"1", None, None)))
    assert change.row == (b"2", b"x", UNCHANGED)
    assert change.old == (b"1", UNCHANGED, UNCHANGED)


def test_an_update_with_the_whole_old_row(decoder: Decoder) -> None:
    """In an old tuple, NULL is NULL."""
    change = decoded(decoder, update((b"1", b"x", UNCHANGED), (b"1", None, b"large"), b"O"))
    assert change.row == (b"1", b"x", UNCHANGED)
    assert change.old == (b"1", None, b"large")


@pytest.mark.parametrize(("kind", "rest"), [(b"K", UNCHANGED), (b"O", None)])
def test_a_delete(decoder: Decoder, kind: bytes, rest: RawValue) -> None:
    change = decoded(decoder, delete((b"1", None, None), kind))
    assert (change.op, change.row, change.old) == (Op.DELETE, None, (b"1", rest, rest))


def test_a_truncate_of_several_tables(decoder: Decoder) -> None:
    decoder.decode(relation([("id", 23, True)], oid=OID + 1, schema="", name="lines"))
    changes = decoder.decode(truncate(OID, OID + 1, options=3))
    assert isinstance(changes, list)
    assert [(one.op, one.relation.table) for one in changes] == [
        (Op.TRUNCATE, "public.orders"),
        (Op.TRUNCATE, "pg_catalog.lines"),
    ]
    assert all(one.row is None and one.old is None for one in changes)


def test_a_transaction() -> None:
    committed_at = datetime(2026, 2, 28, 23, 59, 59, 123456, tzinfo=UTC)
    microseconds = int((committed_at - datetime(2000, 1, 1, tzinfo=UTC)) / timedelta(microseconds=1))
    decoder = Decoder(types, EPOCH)
    inside = [decoder.in_transaction]
    decoder.decode(begin(microseconds, transaction=0xFFFFFFFF))
    inside.append(decoder.in_transaction)
    decoder.decode(relation(COLUMNS))
    change = decoded(decoder, insert((b"1", None, None)))
    assert (change.committed_at, change.transaction) == (committed_at, 0xFFFFFFFF)
    assert decoder.decode(commit(2**63 + 5, microseconds)) == Commit(2**63 + 5, committed_at)
    assert [*inside, decoder.in_transaction] == [False, True, False]


def test_versions_grow_within_a_transaction_and_with_its_commit() -> None:
    decoder = Decoder(types, EPOCH)
    versions = []
    for position in (5000, 5008, 2**64 - 1):
        decoder.decode(begin(position=position))
        decoder.decode(relation(COLUMNS))
        for message in (
            insert((b"1", None, None)),
            update((b"1", None, None)),
            truncate(OID),
            delete((b"1", None, None)),
        ):
            change = decoder.decode(message)
            versions.append(change[0].version if isinstance(change, list) else decoded_version(change))
        decoder.decode(commit(position))
    assert versions == sorted(set(versions))
    assert [split_version(version) for version in versions[:5]] == [
        *((EPOCH, 5000, number) for number in range(4)),
        (EPOCH, 5008, 0),
    ]


def decoded_version(change: object) -> int:
    assert isinstance(change, Change)
    return change.version


def test_a_relation_that_changes_is_another_one(decoder: Decoder) -> None:
    before = decoded(decoder, insert((b"1", None, None))).relation
    assert decoded(decoder, insert((b"1", None, None))).relation is before
    decoder.decode(relation([*COLUMNS, ("extra", 25, False)]))
    after = decoded(decoder, insert((b"1", None, None, b"e"))).relation
    assert after is not before
    assert after != before, "relations are compared by identity"
    assert len(before.columns) == 3


@pytest.mark.parametrize(
    "message",
    [
        b"O" + struct.pack("!Q", 1) + text("elsewhere"),
        b"Y" + struct.pack("!I", 99) + text("public") + text("mood"),
        b"M" + struct.pack("!BQ", 0, 1) + text("docferry") + struct.pack("!i", 0),
    ],
)
def test_messages_that_carry_no_change(decoder: Decoder, message: bytes) -> None:
    assert decoder.decode(message) is None


@pytest.mark.parametrize("kind", [b"S", b"E", b"b", b"P", b"\xff", b""])
def test_messages_that_were_not_asked_for(decoder: Decoder, kind: bytes) -> None:
    with pytest.raises(ProtocolError, match="unexpected pgoutput message"):
        decoder.decode(kind)


@pytest.mark.parametrize("message", [insert((b"1",), oid=5), truncate(OID, 5)])
def test_a_relation_that_was_not_described(decoder: Decoder, message: bytes) -> None:
    with pytest.raises(ProtocolError, match="relation 5"):
        decoder.decode(message)


def test_a_binary_value(decoder: Decoder) -> None:
    message = b"I" + struct.pack("!I", OID) + b"N" + struct.pack("!h", 1) + b"b" + struct.pack("!i", 1) + b"x"
    with pytest.raises(ProtocolError, match="binary"):
        decoder.decode(message)


def test_timestamps_are_exact() -> None:
    assert timestamp(0) == datetime(2000, 1, 1, tzinfo=UTC)
    assert timestamp(-1) == datetime(1999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)


VALUES = st.none() | st.just(UNCHANGED) | st.binary(max_size=20)


@given(
    data=st.data(), width=st.integers(0, 6), position=st.integers(0, 2**64 - 1), transaction=st.integers(0, 2**32 - 1)
)
@settings(deadline=None, derandomize=True, print_blob=True)
def test_what_is_written_is_read(data: st.DataObject, width: int, position: int, transaction: int) -> None:
    names = data.draw(
        st.lists(st.text(st.characters(exclude_characters="\0", codec="utf-8")), min_size=width, max_size=width)
    )
    keys = data.draw(st.lists(st.booleans(), min_size=width, max_size=width))
    rows: st.SearchStrategy[Row] = st.lists(VALUES, min_size=width, max_size=width).map(tuple)
    new, old = data.draw(rows), data.draw(rows)
    only_key = tuple(None if value is UNCHANGED else value for value in old)
    decoder = Decoder(types, EPOCH)
    decoder.decode(begin(transaction=transaction, position=position))
    decoder.decode(relation([(name, 25, key) for name, key in zip(names, keys, strict=True)]))
    messages = [
        (insert(new), Op.INSERT, new, None),
        (update(new), Op.UPDATE, new, None),
        (update(new, old, b"O"), Op.UPDATE, new, old),
        (update(new, only_key), Op.UPDATE, new, _not_carried(only_key)),
        (delete(old, b"O"), Op.DELETE, None, old),
        (delete(only_key), Op.DELETE, None, _not_carried(only_key)),
    ]
    for number, (message, op, row, before) in enumerate(messages):
        change = decoded(decoder, message)
        assert (change.op, change.row, change.old) == (op, row, before)
        assert (change.version, change.transaction) == (make_version(EPOCH, position, number), transaction)
        assert [(one.name, one.is_key) for one in change.relation.columns] == list(zip(names, keys, strict=True))


def _not_carried(row: Row) -> Row:
    return tuple(UNCHANGED if value is None else value for value in row)
