"""What is said in time of the log that is kept for the slot, and of its standbys."""

from __future__ import annotations

import pytest

from docferry.capture.retention import Retention
from docferry.cli.retention import as_text, wal_line
from docferry.operate.foresight import hints, warnings

GIB = 1 << 30
LIMITED = Retention(10 * GIB, 0, None, exists=True, retained=GIB, safe=9 * GIB)
UNLIMITED = Retention(None, 0, None, exists=True, retained=GIB, free=100 * GIB)


def found(base: Retention, **changes: object) -> str:
    values = {name: getattr(base, name) for name in Retention.__slots__} | changes
    return "; ".join(one.problem for one in warnings(Retention(**values)))


@pytest.mark.parametrize(
    ("base", "changes", "said"),
    [
        (LIMITED, {}, ""),
        (LIMITED, {"safe": int(2.6 * GIB)}, ""),
        (LIMITED, {"safe": int(2.4 * GIB)}, "may write 2.4 GiB more, of 10.0 GiB"),
        (LIMITED, {"safe": -5}, "may write 0 B more"),
        (LIMITED, {"safe": 2 * GIB, "keep_size": 20 * GIB}, "more, of 20.0 GiB"),
        (LIMITED, {"safe": None}, ""),
        (LIMITED, {"safe": 0, "exists": False}, ""),
        (UNLIMITED, {}, ""),
        (
            UNLIMITED,
            {"retained": 26 * GIB},
            "keeps 26.0 GiB of WAL for the slot, without limit, and 100.0 GiB are free",
        ),
        (UNLIMITED, {"retained": 26 * GIB, "free": None}, ""),
        (UNLIMITED, {"idle_limit": 100.0}, ""),
        (UNLIMITED, {"idle_limit": 100.0, "idle": 49.0}, ""),
        (UNLIMITED, {"idle_limit": 100.0, "idle": 51.0}, "nobody has read the slot for 51 s; after 100 s"),
    ],
)
def test_the_log(base: Retention, changes: dict[str, object], said: str) -> None:
    assert said in found(base, **changes)
    assert bool(found(base, **changes)) is bool(said)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"failover": True}, ""),
        ({"failover": False, "standbys": 2}, ""),
        ({"failover": None, "standbys": 2}, ""),
        ({"failover": True, "standbys": 1, "synchronising": 1, "waits_for": ("a",)}, ""),
        ({"failover": True, "standbys": 1, "synchronising": None, "waits_for": ("a",)}, ""),
        ({"failover": True, "standbys": 1, "synchronising": 1}, "synchronized_standby_slots is empty"),
        ({"failover": True, "standbys": 1, "synchronising": 0, "waits_for": ("a",)}, "no standby is seen"),
        (
            {"failover": True, "waits_for": ("a", "b"), "unready": ("b",)},
            "nobody reads b of synchronized_standby_slots",
        ),
    ],
)
def test_standbys(changes: dict[str, object], said: str) -> None:
    assert said in found(LIMITED, **changes)
    assert bool(found(LIMITED, **changes)) is bool(said)


def test_hints_before_anything_runs() -> None:
    assert [one.problem.partition(":")[0] for one in hints(UNLIMITED)] == ["max_slot_wal_keep_size is unlimited"]
    assert hints(LIMITED) == []
    (idle,) = hints(Retention(GIB, 0, 86400.0))
    assert "no worker has run for 86,400 s" in idle.problem


def test_what_cannot_be_seen_is_said() -> None:
    blind = Retention(None, 0, None, pg_wal_seen="not visible: GRANT", free_seen="not visible: elsewhere")
    assert wal_line(blind) == (
        "kept for the slot: unlimited, pg_wal not visible: GRANT, free disk not visible: elsewhere"
    )
    lines = as_text(blind)
    assert lines[1].startswith("Log of the source: kept for the slot: unlimited")
    assert lines[-1].startswith("    remedy: ")
    assert as_text(None) == []
