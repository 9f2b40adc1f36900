"""Rows and items held against each other: what is found, mended, and what is never mistaken for a difference."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest

from docferry.capture.contract import BackfillState
from docferry.cli.verify_show import document, found_lines
from docferry.config import RunConfig
from docferry.config.model import ItemKeyAttribute
from docferry.document.model import Collection, Key
from docferry.errors import ConfigError, Interrupted, SourceRefused, TableGone
from docferry.operate.backfill import Progress
from docferry.operate.settle import Settler
from docferry.operate.verification import Checked, Verification
from docferry.operate.verify import VerifyProgress
from docferry.target.contract import Item

from ..waiting import PATIENCE, until
from .harness import BY_BOTH, Ferry

CAPTURES = BY_BOTH

BOGUS = 10**37


@contextmanager
def verifying(ferry: Ferry, **settings: Any) -> Iterator[Verification]:
    settings.setdefault("patience", PATIENCE)
    with ferry.app() as app, app.verification(settings.pop("table", None), **settings) as verification:
        yield verification


def verified(ferry: Ferry, **settings: Any) -> Checked:
    with verifying(ferry, **settings) as verification:
        (checked,) = verification.run()
        return checked


def found(checked: Checked) -> dict[str, int]:
    return {kind.value: count for kind, count in checked.counts.by_kind().items() if count}


class Hand:
    """Somebody who writes to the items beside docferry."""

    def __init__(self, ferry: Ferry, collection: str) -> None:
        stored = ferry.target._collections[collection]
        self._items = stored.items
        self.collection: Collection = stored.collection

    def change(self, *key: Any, version: int | None = None, **attributes: Any) -> None:
        item = self._items[key]
        document = {**(item.document or {}), **attributes}
        self._items[key] = replace(item, document=document, version=item.version if version is None else version)

    def put(self, item: Item) -> None:
        self._items[item.key] = item

    def remove(self, *key: Any) -> None:
        del self._items[key]

    def item(self, *key: Any) -> Item:
        return self._items[key]


def some_orders(ferry: Ferry, count: int = 60) -> Hand:
    ferry.run = RunConfig(backfill_page=7, backfill_workers=3, stop_grace=10.0)
    ferry.execute(
        "CREATE TABLE orders (id int PRIMARY KEY, note text, doc jsonb)",
        f"""INSERT INTO orders SELECT n, 'note ' || n, '{{"a": [1, 2.50]}}' FROM generate_series(1, {count}) n""",
    )
    ferry.begin("public.orders")
    return Hand(ferry, "orders")


def spoil(hand: Hand) -> None:
    """One of each kind, and more of some."""
    old = hand.item(1)
    hand.remove(2)
    hand.remove(3)
    hand.put(replace(old, key=(4,), document={"id": 4, "note": "older", "doc": None}, hash=b""))
    hand.change(5, note="by hand")
    hand.change(6, added="attribute")
    hand.put(replace(hand.item(7), document={"id": 7}))
    hand.put(replace(old, key=(1000,), document={**(old.document or {}), "id": 1000}))
    hand.put(Item((1001,), -1, {"id": 1001}))
    hand.change(8, version=BOGUS)
    hand.put(Item((9,), -1, {"id": 9, "note": "no version"}))


KEYS = [
    ("timestamptz", ["'2024-01-01 10:00+02'", "'0044-03-15 12:00 BC'", "'infinity'", "'2024-01-01 10:00:00.123456'"]),
    ("timestamp", ["'2024-01-01 10:00'", "'0044-03-15 12:00 BC'", "'-infinity'"]),
    ("date", ["'2024-01-01'", "'0044-03-15 BC'", "'infinity'"]),
    ("time", ["'10:00'", "'24:00'"]),
    ("timetz", ["'10:00+02'"]),
    ("interval", ["'1 year 2 days -3 seconds'", "'0'"]),
    ("numeric", ["1.50", "'NaN'", "1e100"]),
    ("float8", ["1.5", "'NaN'", "1e300"]),
    ("bool", ["true", "false"]),
    ("bytea", [r"'\x00ff'", "'text'"]),
    ("uuid", ["'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'"]),
    ("inet", ["'10.0.0.1/8'"]),
    ("bpchar", ["'a'", "'b '"]),
    ("text", ["'a'", "'A'", "'\u00e4'", r"E'tab\t\n'", "'{x}'"]),
    ("jsonb", ["""'{"b": 1.50, "a": [true]}'""", """'"text"'"""]),
    ("int4range", ["'[1,5)'", "'empty'"]),
    ("money", ["12.50"]),
    ("bit(3)", ["'101'"]),
]
"""Types that a key column may have."""

SPOILT = {"missing": 2, "different": 6, "orphaned": 2}


def test_identical_is_remembered_with_its_position(ferry: Ferry) -> None:
    some_orders(ferry)
    checked = verified(ferry)
    assert found(checked) == {}
    assert checked.clean
    assert (checked.counts.rows, checked.counts.items) == (60, 60)
    with ferry.app() as app:
        (mirror,) = app.status().mirrors
        assert mirror.verified is not None
        assert mirror.verified.position == checked.position
        assert mirror.verified.clean


def test_findings_that_cannot_be_written(ferry: Ferry, tmp_path: Path) -> None:
    some_orders(ferry)
    output = tmp_path / "no" / "findings.jsonl"
    with pytest.raises(ConfigError, match=f"{output} cannot be written: No such file"), verifying(ferry, output=output):
        pass


def test_every_kind_is_found_mended_and_verified_again(ferry: Ferry, tmp_path: Path) -> None:
    hand = some_orders(ferry)
    spoil(hand)
    output = tmp_path / "findings.jsonl"
    with verifying(ferry, output=output, limit=3) as verification:
        (checked,) = verification.run()
        assert found(checked) == SPOILT
        assert len(verification.findings.shown) == 3
        lines = [json.loads(line) for line in output.read_text().splitlines()]
        kinds = {(line["item"]["id"], line["kind"]) for line in lines}
        assert kinds == {
            *((str(id_), "missing") for id_ in (2, 3)),
            *((str(id_), "different") for id_ in (4, 5, 6, 7, 8, 9)),
            *((str(id_), "orphaned") for id_ in (1000, 1001)),
        }
        verification.repair()
        assert checked.repaired is not None
        assert checked.repaired.mended == 10
        assert checked.clean
    ferry.assert_same("public.orders")
    assert verified(ferry).clean
    # The fence is healthy again: what changes now arrives.
    ferry.execute("UPDATE orders SET note = 'later' WHERE id IN (8, 9)", "DELETE FROM orders WHERE id = 5")
    ferry.wait()
    ferry.assert_same("public.orders")


def test_stale_is_what_docferry_wrote_of_an_older_row(ferry: Ferry) -> None:
    hand = some_orders(ferry)
    old = hand.item(3)
    ferry.execute("UPDATE orders SET note = 'new' WHERE id = 3")
    ferry.wait()
    hand.put(old)
    checked = verified(ferry)
    assert found(checked) == {"stale": 1}
    assert not checked.clean


def test_a_row_that_cannot_be_stored_is_counted_apart(ferry: Ferry) -> None:
    some_orders(ferry)
    ferry.execute(
        "UPDATE orders SET note = repeat('x', 500000) WHERE id = 3",
        "INSERT INTO orders SELECT 900, repeat('y', 500000)",
    )
    ferry.wait()
    with verifying(ferry) as verification:
        (checked,) = verification.run()
        assert (found(checked), checked.counts.refused, checked.counts.unlettered) == ({}, 2, 0)
        assert {shown["dead_letter"] for shown in verification.findings.shown} == {True}
        assert checked.clean
    ferry.execute("DELETE FROM docferry.dead_letters")
    with verifying(ferry) as verification:
        (checked,) = verification.run()
        assert (checked.counts.refused, checked.counts.unlettered, checked.clean) == (2, 2, False)
        verification.repair()
        assert checked.repaired is not None
        assert (checked.repaired.lettered, checked.clean) == (2, True)
    assert ferry.query("SELECT count(*) FROM docferry.dead_letters") == [(2,)]


@pytest.mark.parametrize("paused", [False, True], ids=["streaming", "restarted"])
def test_live_traffic_raises_no_false_alarm(ferry: Ferry, paused: bool) -> None:
    some_orders(ferry, 300)
    ending = threading.Event()
    writers = [threading.Thread(target=_write, args=(ferry.dsn, number, ending)) for number in range(3)]
    for writer in writers:
        writer.start()
    runs = 0
    try:
        end = time.monotonic() + 2
        while time.monotonic() < end or runs < 2:
            if paused:
                ferry.kill()
                starter = threading.Timer(0.3, ferry.start)
                starter.start()
            with verifying(ferry) as verification:
                (checked,) = verification.run()
            if paused:
                starter.join()
            assert verification.findings.shown == []
            assert checked.clean, checked.counts
            runs += 1
    finally:
        ending.set()
        for writer in writers:
            writer.join()
    ferry.wait()
    ferry.assert_same("public.orders")
    checked = verified(ferry)
    assert (checked.clean, checked.counts.in_motion) == (True, 0)


def _write(dsn: str, seed: int, ending: threading.Event) -> None:
    """Updates, flips between two contents, deletes and inserts, key changes, at full speed."""
    turn = 0
    with psycopg.connect(dsn, autocommit=True) as connection:
        while not ending.is_set():
            turn += 1
            id_ = (turn * 7 + seed * 13) % 300 + 1
            connection.execute("UPDATE orders SET note = %s WHERE id = %s", ["ab"[turn % 2], id_])
            connection.execute("UPDATE orders SET note = note || 'x' WHERE id = %s", [seed + 1])
            connection.execute("DELETE FROM orders WHERE id = %s", [id_ + 1])
            connection.execute("INSERT INTO orders VALUES (%s, 'back') ON CONFLICT DO NOTHING", [id_ + 1])
            connection.execute(
                "UPDATE orders SET id = -id WHERE id = %s AND NOT EXISTS (SELECT FROM orders WHERE id = %s)",
                [id_ + 2, -id_ - 2],
            )
            connection.execute("DELETE FROM orders WHERE id = %s", [-(turn % 300)])


def test_a_commit_that_waits_for_a_standby_is_no_difference(ferry: Ferry) -> None:
    """Its change is in the log, and so at the target, while nobody sees its row."""
    ferry.only_replication()
    some_orders(ferry)
    ferry.execute("UPDATE orders SET note = 'seen before' WHERE id = 2")
    ferry.wait()
    system = psycopg.connect(ferry.dsn, autocommit=True)
    other = psycopg.connect(ferry.dsn, autocommit=True)
    try:
        system.execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
        system.execute("SELECT pg_reload_conf()")
        until(lambda: other.execute("SHOW synchronous_standby_names").fetchall() == [("nobody",)], "it is waited for")
        other.pgconn.send_query(b"UPDATE orders SET note = 'new' WHERE id = 3")
        until(lambda: ferry.documents("orders")[3,]["note"] == "new", "the change is at the target")
        assert system.execute("SELECT note FROM orders WHERE id = 3").fetchall() == [("note 3",)]
        checked = verified(ferry)
        assert (checked.differences, checked.counts.unsettled) == (0, 1)
        assert "synchronous standby" in checked.counts.why
    finally:
        system.execute("ALTER SYSTEM RESET synchronous_standby_names")
        system.execute("SELECT pg_reload_conf()")
        until(lambda: system.execute("SHOW synchronous_standby_names").fetchall() == [("",)], "nothing is waited for")
        while (result := other.pgconn.get_result()) is not None:
            assert result.status == psycopg.pq.ExecStatus.COMMAND_OK, result.error_message
        other.close()
        system.close()
    assert verified(ferry).clean


def test_an_interrupted_run_goes_on(ferry: Ferry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hand = some_orders(ferry)
    spoil(hand)
    monkeypatch.setattr("docferry.operate.verify._SAVE_SECONDS", 0.0)
    output = tmp_path / "findings.jsonl"

    def interrupt(progress: VerifyProgress) -> None:
        if progress.done >= 30:
            raise Interrupted("stopped")

    with pytest.raises(Interrupted), verifying(ferry, output=output, on_progress=interrupt) as verification:
        verification.run()
    assert len(output.read_text().splitlines()) == 8

    seen: list[VerifyProgress] = []
    with verifying(ferry, output=output, on_progress=seen.append) as verification:
        (checked,) = verification.run()
    assert seen[0].done > 20
    assert found(checked) == SPOILT
    assert checked.counts.rows == 60
    assert len(output.read_text().splitlines()) == 10
    assert len(verification.findings.shown) == 10
    # With the findings gone, or when asked to, it starts over; and a finished one is not gone on with.
    for anew in (True, False):
        seen.clear()
        assert found(verified(ferry, anew=anew, on_progress=seen.append)) == SPOILT
        assert seen[0].done <= 14


def interrupted(ferry: Ferry, monkeypatch: pytest.MonkeyPatch, at: int = 42, **settings: Any) -> None:
    """A run that is stopped among the rows."""
    monkeypatch.setattr("docferry.operate.verify._SAVE_SECONDS", 0.0)

    def interrupt(progress: VerifyProgress) -> None:
        if progress.done >= at:
            raise Interrupted("stopped")

    with pytest.raises(Interrupted), verifying(ferry, on_progress=interrupt, **settings) as verification:
        verification.run()


def test_a_run_does_not_go_on_in_another_collection(ferry: Ferry, monkeypatch: pytest.MonkeyPatch) -> None:
    some_orders(ferry)
    interrupted(ferry, monkeypatch)
    ferry.mirrors[0] = replace(ferry.mirrors[0], collection="orders_v2")
    ferry.apply()
    ferry.failure()
    ferry.start()
    ferry.wait()
    hand = Hand(ferry, "orders_v2")
    hand.remove(2)
    hand.remove(3)
    assert found(verified(ferry)) == {"missing": 2}


def some_words(ferry: Ferry) -> None:
    """No two collations of the embedded server differ in their order, so it is their change that is looked for."""
    ferry.run = RunConfig(backfill_page=8, backfill_workers=1, stop_grace=10.0)
    ferry.execute(
        'CREATE TABLE words (id text COLLATE "POSIX" PRIMARY KEY, n int)',
        "INSERT INTO words SELECT 'word ' || n, n FROM generate_series(1, 100) n",
    )
    ferry.mirror("public.words")
    ferry.apply()


def populated_again(ferry: Ferry) -> bool:
    return [(one.reason, one.state) for one in ferry.backfills()] == [("schema change", BackfillState.DONE)]


def test_a_run_does_not_go_on_in_another_order(ferry: Ferry, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page ends at one key, and what follows it under another collation is not what was left to compare."""
    ferry.only_replication()  # the type of a column that a trigger names cannot be altered
    some_words(ferry)
    ferry.start()
    ferry.wait()
    interrupted(ferry, monkeypatch)
    ferry.execute('ALTER TABLE words ALTER id TYPE text COLLATE "C"')
    until(lambda: populated_again(ferry), "the change is noticed")
    checked = verified(ferry)
    assert (checked.resumed, checked.clean, checked.counts.rows) == (False, True, 100)


def test_a_population_does_not_go_on_in_another_order(ferry: Ferry) -> None:
    ferry.only_replication()
    some_words(ferry)
    with ferry.app() as app:

        def stop(progress: Progress) -> None:
            if progress.rows >= 63:
                app.retry.stop.set()

        with pytest.raises(Interrupted):
            app.backfill("public.words", anew=False, on_progress=stop)
    ferry.execute('ALTER TABLE words ALTER id TYPE text COLLATE "C"')
    ferry.start()
    until(lambda: populated_again(ferry), "the change is noticed")
    assert [one.rows_done for one in ferry.backfills()] == [100]
    ferry.assert_same("public.words")


def test_only_a_collation_of_its_own_shows_in_a_column(ferry: Ferry) -> None:
    """Or every table would look changed to the docferry that began to look at collations."""
    ferry.execute("CREATE TABLE words (id int, word text, name name)")
    with ferry.app() as app:
        reader = app.reader("plan")
        before = reader.layout("public.words")
        ferry.execute('ALTER TABLE words ALTER word TYPE text COLLATE "C"')
        assert reader.layout("public.words") != before
        ferry.execute('ALTER TABLE words ALTER word TYPE text COLLATE "default"')
        assert reader.layout("public.words") == before
        reader.close()
    described = "column 1 id 23 -1 \ncolumn 2 word 25 -1 \ncolumn 3 name 19 -1 "
    assert ferry.query("SELECT md5(%s)", described) == [(before,)]


def test_a_run_of_long_ago_is_not_gone_on_with(ferry: Ferry, monkeypatch: pytest.MonkeyPatch) -> None:
    hand = some_orders(ferry)
    interrupted(ferry, monkeypatch)
    ferry.execute("UPDATE docferry.verifications SET started_at = now() - interval '23 hours'")
    checked = verified(ferry)
    assert (checked.resumed, checked.clean) == (True, True)
    assert any("gone on with" in line for line in found_lines(checked, [], 20))
    assert document(checked, [])["resumed"] is True
    interrupted(ferry, monkeypatch)
    ferry.execute("UPDATE docferry.verifications SET started_at = now() - interval '25 hours'")
    hand.remove(2)
    checked = verified(ferry)
    assert (checked.resumed, found(checked)) == (False, {"missing": 1})
    assert not any("gone on with" in line for line in found_lines(checked, [], 20))


def some_tables(ferry: Ferry) -> None:
    ferry.run = RunConfig(backfill_page=7, backfill_workers=3, stop_grace=10.0)
    for table in "abc":
        ferry.execute(
            f"CREATE TABLE {table} (id int PRIMARY KEY, note text)",
            f"INSERT INTO {table} SELECT n, 'note ' || n FROM generate_series(1, 30) n",
        )
    ferry.begin("public.a", "public.b", "public.c")


def test_findings_of_another_run_are_not_taken_for_those_of_an_interrupted_one(ferry: Ferry, tmp_path: Path) -> None:
    some_tables(ferry)
    Hand(ferry, "a").remove(2)
    for id_ in (1, 2, 3):
        Hand(ferry, "c").remove(id_)
    output = tmp_path / "findings.jsonl"

    def interrupt(progress: VerifyProgress) -> None:
        if progress.table == "public.b":
            raise Interrupted("stopped")

    with pytest.raises(Interrupted), verifying(ferry, output=output, on_progress=interrupt) as verification:
        verification.run()
    with verifying(ferry, table="c", output=output) as verification:
        assert [found(one) for one in verification.run()] == [{"missing": 3}]
    with verifying(ferry, output=output) as verification:
        checked = verification.run()
        assert [found(one) for one in checked] == [{"missing": 1}, {}, {"missing": 3}]
        verification.repair()
        assert all(one.clean for one in checked)
    ferry.assert_same("public.a", "public.b", "public.c")


def test_a_finding_that_is_gone_is_not_mended(ferry: Ferry, tmp_path: Path) -> None:
    hand = some_orders(ferry)
    for id_ in (2, 3):
        hand.remove(id_)
    output = tmp_path / "findings.jsonl"
    with verifying(ferry, output=output) as verification:
        (checked,) = verification.run()
        output.write_text(output.read_text().splitlines()[0] + "\n")
        verification.repair()
        assert checked.repaired is not None
        assert (checked.repaired.mended, checked.differences, checked.clean) == (1, 1, False)
    assert found(verified(ferry)) == {"missing": 1}


def test_rows_with_a_dead_letter_take_no_place_from_what_is_shown(ferry: Ferry) -> None:
    hand = some_orders(ferry)
    ferry.execute("UPDATE orders SET note = repeat('x', 500000) WHERE id < 6")
    ferry.wait()
    hand.remove(50)
    hand.remove(51)
    with verifying(ferry, limit=1) as verification:
        (checked,) = verification.run()
        lines = found_lines(checked, verification.findings.shown, 1)
    assert "    id=50" in lines
    assert any("... and more" in line for line in lines)
    assert len(verification.findings.shown) == 2


@pytest.mark.parametrize(
    ("away", "error", "told"),
    [
        ("DROP TABLE orders", TableGone, "its items stay"),
        ("ALTER TABLE orders RENAME TO former", SourceRefused, "is now called public.former"),
    ],
    ids=["dropped", "renamed"],
)
@pytest.mark.parametrize("phase", ["compared", "mended"])
def test_a_table_that_is_gone_says_nothing_of_its_rows(
    ferry: Ferry, phase: str, away: str, error: type[Exception], told: str
) -> None:
    hand = some_orders(ferry)
    hand.remove(2)
    before = dict(hand._items)
    ferry.stop()
    with verifying(ferry, patience=2) as verification:
        if phase == "mended":
            verification.run()
        ferry.execute(away)
        with pytest.raises(error, match=told):
            (verification.repair if phase == "mended" else verification.run)()
    assert hand._items == before


def test_without_a_worker_nothing_can_be_said_of_what_waits(ferry: Ferry) -> None:
    hand = some_orders(ferry)
    ferry.stop()
    hand.remove(2)
    # Nothing waits in the source: it can be said.
    assert found(verified(ferry, patience=2)) == {"missing": 1}
    ferry.execute("UPDATE orders SET note = 'waits' WHERE id = 3")
    checked = verified(ferry, patience=1)
    assert (found(checked), checked.counts.unsettled) == ({}, 2)
    assert "start docferry run" in checked.counts.why
    assert not checked.clean
    ferry.start()
    assert found(verified(ferry)) == {"missing": 1}


def test_a_schema_change_is_waited_for(ferry: Ferry) -> None:
    some_orders(ferry)
    ferry.stop()
    ferry.execute("ALTER TABLE orders ADD COLUMN kind text DEFAULT 'new'")
    checked = verified(ferry, patience=0.5)
    assert (checked.differences, checked.counts.unsettled) == (0, 60)
    ferry.start()
    assert verified(ferry).clean


def test_a_sample_is_not_remembered(ferry: Ferry) -> None:
    hand = some_orders(ferry)
    ferry.execute("ANALYZE orders")
    spoil(hand)
    with verifying(ferry) as verification:
        (checked,) = verification.sample(100)
        assert found(checked) == SPOILT
        (few,) = verification.sample(10)[1:]
        assert 0 < few.counts.rows <= 10
        assert few.counts.items <= 10
    assert ferry.query("SELECT count(*) FROM docferry.verifications") == [(0,)]


def test_a_hot_key_is_in_motion_not_different(ferry: Ferry, monkeypatch: pytest.MonkeyPatch) -> None:
    some_orders(ferry)
    number = iter(range(1000))
    wait = Settler._wanted

    def change_first(settler: Settler, suspects: Any) -> Any:
        ferry.execute(f"UPDATE orders SET note = 'hot {next(number)}' WHERE id = 3")
        ferry.wait()
        wanted = wait(settler, suspects)
        ferry.execute(f"UPDATE orders SET note = 'hot {next(number)}' WHERE id = 3")
        ferry.wait()
        return wanted

    ferry.stop()
    ferry.execute("UPDATE orders SET note = 'suspect' WHERE id = 3")
    monkeypatch.setattr(Settler, "_wanted", change_first)
    starter = threading.Timer(0.3, ferry.start)
    starter.start()
    checked = verified(ferry)
    starter.join()
    assert (checked.counts.in_motion, checked.differences, checked.clean) == (1, 0, True)


class TestKeys:
    def test_composite_keys(self, ferry: Ferry) -> None:
        ferry.execute(
            "CREATE TABLE lines (a numeric, b text, c text, PRIMARY KEY (a, b))",
            "INSERT INTO lines SELECT n / 2.0, chr(65 + n % 5), 'x' FROM generate_series(1, 50) n",
        )
        ferry.begin("public.lines")
        hand = Hand(ferry, "lines")
        assert verified(ferry).clean
        self._spoil(hand)
        self._mend(ferry)
        ferry.assert_same("public.lines", key=("a", "b"))

    @pytest.mark.parametrize("exclude", [frozenset[str](), frozenset({"a", "b"})], ids=["carried", "excluded"])
    def test_template_keys(self, ferry: Ferry, exclude: frozenset[str]) -> None:
        ferry.execute(
            "CREATE TABLE lines (a int, b bytea, c text, PRIMARY KEY (a, b))",
            r"INSERT INTO lines SELECT n, decode(to_hex(n + 16), 'hex'), 'x' FROM generate_series(1, 50) n",
        )
        ferry.mirror(
            "public.lines",
            exclude=exclude,
            item_key=(ItemKeyAttribute("pk", "ORDER#{a}"), ItemKeyAttribute("sk", "LINE#{b}#{a}!")),
        )
        ferry.apply()
        ferry.start()
        ferry.wait()
        hand = Hand(ferry, "lines")
        assert verified(ferry).clean
        self._spoil(hand)
        some = next(iter(hand._items.values()))
        hand.put(replace(some, key=("no order", "at all")))
        hand.put(replace(some, key=("ORDER#none", "LINE#00#none!")))
        with verifying(ferry) as verification:
            (checked,) = verification.run()
            assert found(checked) == {"missing": 1, "different": 1, "orphaned": 3}
            verification.repair()
            assert checked.clean
        assert verified(ferry).clean

    def test_rows_are_found_by_their_items_keys(self, ferry: Ferry) -> None:
        ferry.only_replication()
        ferry.run = RunConfig(backfill_workers=1, stop_grace=10.0)
        for number, (of, values) in enumerate(KEYS):
            ferry.execute(f"CREATE TABLE k{number} (k {of} PRIMARY KEY, note text)")
            ferry.execute(*(f"INSERT INTO k{number} VALUES ({value}::{of})" for value in values))
            ferry.mirror(f"public.k{number}", item_key=(ItemKeyAttribute("pk", "K#{k}!"),))
        ferry.apply()
        ferry.start()
        ferry.wait()
        with verifying(ferry) as verification:
            for checked, (of, values) in zip(verification.run(), KEYS, strict=True):
                assert found(checked) == {}, of
                assert (checked.counts.items, checked.counts.refused) == (len(values), 0), of
                assert checked.unsettled == (len(values) if of == "jsonb" else 0), of

    @staticmethod
    def _spoil(hand: Hand) -> None:
        keys = list(hand._items)
        hand.remove(*keys[3])
        hand.change(*keys[4], c="by hand")
        absent: Key = (keys[5][0], *("Z" + str(part)[1:] for part in keys[5][1:]))
        hand.put(replace(hand.item(*keys[5]), key=absent))

    @staticmethod
    def _mend(ferry: Ferry) -> None:
        with verifying(ferry) as verification:
            (checked,) = verification.run()
            assert found(checked) == {"missing": 1, "different": 1, "orphaned": 1}
            verification.repair()
            assert checked.clean
        assert verified(ferry).clean
