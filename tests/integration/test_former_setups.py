"""What an earlier setup left, in the source or in the collections, is seen by those that come after it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from docferry.change.model import make_version
from docferry.operate.admin import Admin
from docferry.target.floors_shared import control_collection, floor_key, floor_put
from docferry.target.memory import MemoryTarget

from .harness import Ferry

CONTROL = control_collection("docferry")


@pytest.fixture
def things(ferry: Ferry) -> Ferry:
    ferry.execute("CREATE TABLE things (id int PRIMARY KEY, name text)", "INSERT INTO things VALUES (1, 'a'), (2, 'b')")
    ferry.mirror("public.things")
    return ferry


def by_triggers(ferry: Ferry) -> None:
    ferry.capture = "outbox"
    ferry.target = MemoryTarget(ferry.target.store, control=CONTROL)
    ferry.target.create(CONTROL)


@pytest.mark.parametrize("gone", [False, True], ids=["restored", "and its ledger gone"])
def test_a_floor_that_is_later_than_the_source_is_outdone(things: Ferry, *, gone: bool) -> None:
    """The last event before a restore was a TRUNCATE: no item is later, and yet all that follows would be stale."""
    by_triggers(things)
    things.apply()
    with things.app() as app:
        collection = app.mirrors["public.things"].collection
        app.target.write([floor_put(CONTROL, collection.name, make_version(1, 2**62))])
        if gone:
            app.destroyer().destroy(keep_collections=True)
            app.target.drop(collection)
    with things.app() as app:
        app.admin().apply([] if gone else ["public.things"])
    things.start()
    things.wait()
    things.assert_same("public.things")


class Killed(Exception):
    pass


def test_destroy_removes_what_a_former_capture_mode_left(things: Ferry, monkeypatch: pytest.MonkeyPatch) -> None:
    things.apply()
    by_triggers(things)

    def die(_admin: Admin, _did: Callable[[str], None]) -> None:
        raise Killed

    with things.app() as app:
        assert f"remove replication slot {things.slot}, which the former capture mode used" in app.admin().steps()
        with monkeypatch.context() as patch:
            patch.setattr(Admin, "_remove_former", die)
            with pytest.raises(Killed):
                app.admin().apply()
    with things.app() as app:
        admin = app.destroyer()
        steps = admin.destroy_steps(keep_collections=False)
        assert {f"replication slot {things.slot}", f"publication {things.slot}"} < set(steps)
        assert f"dropped replication slot {things.slot}" in admin.destroy(keep_collections=False)
    assert things.query("SELECT FROM pg_replication_slots WHERE slot_name = %s", things.slot) == []
    assert things.query("SELECT FROM pg_publication WHERE pubname = %s", things.slot) == []


@pytest.mark.parametrize("shared", [False, True])
def test_destroy_leaves_the_floors_of_others(things: Ferry, *, shared: bool) -> None:
    by_triggers(things)
    things.apply()
    if shared:
        things.target.write([floor_put(CONTROL, "theirs", 7)])
    stays = "collection docferry stays: it holds the floors of theirs, which are not ours"
    with things.app() as app:
        admin = app.destroyer()
        shown = stays if shared else "collection docferry, which docferry's processes share"
        assert shown in admin.destroy_steps(keep_collections=False)
        assert not any("docferry's" in step for step in admin.destroy_steps(keep_collections=True))
        done = admin.destroy(keep_collections=False)
    assert (stays in done) is shared
    assert ("dropped collection docferry" in done) is not shared
    assert things.target.exists(CONTROL) is shared
    if shared:
        assert [item.key for item in things.target.scan(CONTROL)] == [floor_key("theirs")], "ours would outlast us"
