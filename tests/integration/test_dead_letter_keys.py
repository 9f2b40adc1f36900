"""R5: once a change of a key is a dead letter, later changes of that key are complete nevertheless, and settle it."""

from __future__ import annotations

from docferry.deadletter.contract import StoredDeadLetter
from docferry.operate.letters import Selection, replay

from .harness import BY_BOTH, Ferry

CAPTURES = BY_BOTH

TOO_LARGE = "json_build_object('a', repeat('x', 500000))"
TOASTED = "json_build_object('a', repeat('b', 20000))"
"""Kept out of line, and so not carried by an UPDATE of other columns."""


def begin(ferry: Ferry) -> None:
    ferry.execute(
        "CREATE TABLE things (id int PRIMARY KEY, n int, body json, other text)",
        "ALTER TABLE things ALTER body SET STORAGE EXTERNAL, ALTER other SET STORAGE EXTERNAL",
        "INSERT INTO things VALUES (1, 0, '{}', repeat('o', 20000)), (2, 0, '{}', repeat('o', 20000))",
    )
    ferry.begin("public.things")


def letters(ferry: Ferry) -> list[StoredDeadLetter]:
    with ferry.app() as app:
        return app.dead_letters.find()


def superseded(ferry: Ferry) -> set[int]:
    with ferry.app() as app:
        return app.replay(rate=1000).superseded(app.dead_letters.find())


def test_later_changes_of_a_dead_letters_key_are_complete(ferry: Ferry) -> None:
    begin(ferry)
    before = ferry.documents("things")
    ferry.execute(f"UPDATE things SET body = {TOO_LARGE}, n = 1 WHERE id = 1")
    ferry.wait()
    (stored,) = letters(ferry)
    assert (stored.letter.cause, stored.letter.key, stored.attempts) == ("too-large", {"id": "1"}, 1)
    assert ferry.documents("things") == before
    assert superseded(ferry) == set()

    # A change that leaves what is too large as it is, and does not carry it, is no better.
    ferry.execute("UPDATE things SET n = 2 WHERE id = 1")
    ferry.wait()
    (again,) = letters(ferry)
    assert (again.id, again.attempts) == (stored.id, 2)
    assert again.letter.version > stored.letter.version
    assert ferry.documents("things") == before

    # Mended, by a change that does not carry the column beside it.
    ferry.execute(f"UPDATE things SET body = {TOASTED} WHERE id = 1")
    ferry.wait()
    ferry.assert_same("public.things")
    assert superseded(ferry) == {stored.id}

    # And one that carries neither.
    ferry.execute("UPDATE things SET n = 3 WHERE id = 1")
    ferry.wait()
    ferry.assert_same("public.things")
    assert superseded(ferry) == {stored.id}

    with ferry.app() as app:
        done = replay(app.replay(rate=1000), Selection(table="public.things"), dry_run=False)
        assert done.counts == {"superseded": 1}
        (entry,) = app.audit(table="public.things", before=None, limit=10)
    assert (entry.action, entry.outcome, entry.key, entry.attempts) == ("replayed", "superseded", {"id": "1"}, 2)
    assert letters(ferry) == []
    ferry.assert_same("public.things")
    ferry.stop()


def test_broken_and_mended_in_one_go(ferry: Ferry) -> None:
    """Whatever of it arrives together: nothing of the dead change is taken for the whole row."""
    begin(ferry)
    ferry.stop()
    ferry.execute(
        f"UPDATE things SET body = {TOO_LARGE} WHERE id = 1",
        f"UPDATE things SET body = {TOASTED}, n = 1 WHERE id = 1",
        "UPDATE things SET n = 2 WHERE id = 1",
    )
    ferry.transaction(
        f"UPDATE things SET body = {TOO_LARGE}, other = 'new' WHERE id = 2",
        "UPDATE things SET n = 1 WHERE id = 2",
        'UPDATE things SET body = \'{"a": "b"}\' WHERE id = 2',
    )
    ferry.start()
    ferry.wait()
    ferry.assert_same("public.things")
    assert {stored.id for stored in letters(ferry)} == superseded(ferry)
    ferry.stop()
