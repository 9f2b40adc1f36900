"""Dead letters and collections that were there before: what a review found to go wrong with them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest

from docferry.document.model import Put, Write
from docferry.target.contract import Result
from docferry.target.memory import MemoryTarget

from .harness import Ferry

DEEP = "(repeat('[', 60) || repeat(']', 60))::jsonb"
"""Nested deeper than DynamoDB takes."""


class Updating(MemoryTarget):
    """Writes as DynamoDB's UPDATE does: an attribute that is neither set nor removed stays."""

    def write(self, writes: Sequence[Write]) -> list[Result]:
        return super().write([self._over_what_is_there(write) for write in writes])

    def _over_what_is_there(self, write: Write) -> Write:
        if not isinstance(write, Put):
            return write
        (item,) = self.read(write.collection, [write.key])
        before = item.document if item is not None and item.document is not None else {}
        left = {name: value for name, value in before.items() if name not in write.collection.retired}
        return replace(write, document={**left, **write.document})


@pytest.fixture
def ferry(database: str) -> Iterator[Ferry]:
    helper = Ferry(database)
    helper.target = Updating()
    yield helper
    helper.close()


@pytest.fixture
def things(ferry: Ferry) -> Ferry:
    """public.things, populated, without a worker."""
    ferry.execute(
        "CREATE TABLE things (id int PRIMARY KEY, doc jsonb, gone text)",
        "INSERT INTO things SELECT g, '{}', 'g' FROM generate_series(1, 10) AS g",
    )
    ferry.begin("public.things")
    ferry.stop()
    return ferry


def unseen(ferry: Ferry, *statements: str) -> None:
    """Run statements whose changes never arrive, without a word from anybody."""
    ferry.execute(*statements)
    ferry.query("SELECT pg_replication_slot_advance(%s, pg_current_wal_lsn())", ferry.slot)
    ferry.execute("UPDATE docferry.slots SET upto = pg_current_wal_lsn()")


def replayed(ferry: Ferry) -> list[str]:
    """Replay all dead letters; what became of them, oldest first. A dry run says the same."""
    with ferry.app() as app:
        letters = app.dead_letters.find()
        replay = app.replay(rate=1000.0)
        outcomes = [
            {one.stored.id: one.outcome for one in replay.run(letters, dry_run=dry_run)} for dry_run in (True, False)
        ]
        assert outcomes[0] == outcomes[1]
        return [outcomes[1][stored.id] for stored in letters]


def test_a_row_refused_by_a_repeated_backfill_comes_back_by_replay(things: Ferry) -> None:
    """The backfill removed its older item as an orphan; that must not look newer than the dead letter."""
    unseen(things, f"UPDATE things SET doc = {DEEP} WHERE id = 3")
    with things.app() as app:
        app.backfill("public.things", anew=True, on_progress=lambda _: None)
    assert (3,) not in things.documents("things")
    unseen(things, "UPDATE things SET doc = '{\"mended\": true}' WHERE id = 3")
    assert replayed(things) == ["applied"]
    things.assert_same("public.things")
    with things.app() as app:
        assert app.dead_letters.find() == []
    things.start()
    things.execute("UPDATE things SET doc = '{\"again\": 1}' WHERE id = 3")
    things.wait()
    things.assert_same("public.things")


def test_two_dead_letters_of_one_key_written_in_two_ways(ferry: Ferry) -> None:
    ferry.execute("CREATE TABLE things (id numeric PRIMARY KEY, doc jsonb)")
    ferry.begin("public.things")
    ferry.execute(f"INSERT INTO things VALUES (1.0, {DEEP}), (2, '2')")
    ferry.wait()
    ferry.execute("UPDATE things SET id = 1.00 WHERE id = 1")
    ferry.wait()
    ferry.stop()
    with ferry.app() as app:
        assert [stored.letter.key["id"] for stored in app.dead_letters.find()] == ["1.0", "1.00"]
    unseen(ferry, "UPDATE things SET doc = '{\"mended\": true}' WHERE id = 1")
    assert replayed(ferry) == ["superseded", "applied"]
    ferry.assert_same("public.things")
    with ferry.app() as app:
        assert app.dead_letters.find() == []


# -- attributes that a row does not have -------------------------------------------------------------------------------


def test_an_existing_collection_loses_attributes_that_rows_do_not_have(things: Ferry) -> None:
    with things.app() as app:
        app.destroyer().destroy(keep_collections=True)
    assert things.documents("things")[1,]["gone"] == "g"
    things.execute("ALTER TABLE things DROP COLUMN gone")
    things.apply()
    things.start()
    things.wait()
    things.assert_same("public.things")


def test_replay_removes_attributes_that_rows_do_not_have_any_more(things: Ferry) -> None:
    """The dead letter is of a change; the backfill that a dropped column asks for has not been done."""
    things.start()
    things.execute(f"UPDATE things SET doc = {DEEP} WHERE id = 3")
    things.wait()
    things.stop()
    assert things.documents("things")[3,]["gone"] == "g"
    unseen(things, "UPDATE things SET doc = '{}' WHERE id = 3", "ALTER TABLE things DROP COLUMN gone")
    assert replayed(things) == ["applied"]
    assert things.documents("things")[3,] == {"id": 3, "doc": {}}
