"""A trace comes to one sentence, and the first thing to do is in it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from docferry.capture.contract import BackfillRecord, BackfillState
from docferry.capture.tracing import Waiting, WaitingChange
from docferry.change.model import Op
from docferry.deadletter.contract import DeadLetter, StoredDeadLetter
from docferry.errors import ItemTooLarge
from docferry.operate.compare import Kind
from docferry.operate.verdict import Evidence, VerdictKind, judge
from docferry.target.contract import Item

NOW = datetime(2025, 1, 20, 9, 30, tzinfo=UTC)
ITEM = Item((1,), 100, {"id": 1}, b"h")
TOMBSTONE = Item((1,), 100, None, expires=1_737_365_400)
TOO_LARGE = ItemTooLarge("the item is too large")

SOUND = Evidence(
    table="public.t",
    place="the outbox",
    kind=Kind.IDENTICAL,
    error=None,
    item=ITEM,
    is_own=True,
    is_ahead=False,
    exists=True,
    letters=(),
    old_letters=(),
    waiting=Waiting(),
    backfill=None,
    settled=None,
    active=True,
    waited=0.0,
    lag=None,
    position="0/AB",
)


def letter(id_: int, version: int) -> StoredDeadLetter:
    dead = DeadLetter("public.t", {"id": "1"}, version, Op.UPDATE, "too-large", "it is too large", remedy="Shrink it.")
    return StoredDeadLetter(id_, dead, 1, NOW, NOW)


def waiting(*versions: int) -> Waiting:
    return Waiting(tuple(WaitingChange(Op.UPDATE, version, NOW) for version in versions), len(versions))


def backfill(state: BackfillState) -> BackfillRecord:
    return BackfillRecord(1, "public.t", state, "new collection")


MISSING: dict[str, Any] = {"kind": Kind.MISSING, "item": None, "is_own": False}
STALE: dict[str, Any] = {"kind": Kind.STALE}
ORPHANED: dict[str, Any] = {"kind": Kind.ORPHANED, "exists": False}


@pytest.mark.parametrize(
    ("changes", "kind", "said"),
    [
        ({}, "identical", "identical"),
        ({"waited": 0.42}, "identical", "identical, after the worker had carried it over within 0.4 s"),
        (
            {"old_letters": [letter(3, 5), letter(4, 6)]},
            "identical",
            "identical; a dead letter is left over, `docferry deadletters replay 3 4` settles it",
        ),
        ({"exists": False, "item": None}, "absent", "no such row and no item"),
        (
            {"exists": False, "item": TOMBSTONE},
            "deleted",
            "deleted; a tombstone stands until 2025-01-20 09:30:00 UTC at the latest",
        ),
        (
            {"kind": Kind.DIFFERENT, "exists": False, "item": TOMBSTONE, "is_own": False},
            "foreign",
            (
                "the tombstone was written outside docferry, its version is that of no change, so that it would hold "
                "back later ones; `docferry verify public.t --repair` writes one in its place"
            ),
        ),
        # what waits
        (
            {**STALE, "waiting": waiting(200, 201), "lag": 3.0},
            "behind",
            "behind by 3.0 s, on its way: 2 changes waiting in the outbox since 2025-01-20 09:30:00 UTC",
        ),
        (
            {**STALE, "waiting": waiting(200), "active": False},
            "waiting",
            (
                "the row is waiting in the outbox (1 change since 2025-01-20 09:30:00 UTC) and no worker runs: "
                "start `docferry run`"
            ),
        ),
        ({**STALE, "waiting": waiting(200), "is_own": False}, "behind", ""),
        ({**STALE, "waiting": waiting(200), "letters": [letter(3, 150)]}, "behind", ""),
        ({**STALE, "waiting": waiting(140), "letters": [letter(3, 150)]}, "dead-letter", ""),
        (
            {**STALE, "waiting": waiting(200), "active": False, "sends": True},
            "waiting",
            (
                "the row is waiting in the outbox (1 change since 2025-01-20 09:30:00 UTC) and no worker runs: the "
                "function's schedule or `docferry run` carries it over"
            ),
        ),
        # dead letters
        (
            {**STALE, "letters": [letter(3, 150)]},
            "dead-letter",
            (
                "dead letter since 2025-01-20 09:30:00 UTC (too-large: it is too large); replay with "
                "`docferry deadletters replay 3`"
            ),
        ),
        (
            {"kind": Kind.REFUSED, "error": TOO_LARGE, "letters": [letter(3, 150)]},
            "dead-letter",
            (
                "dead letter since 2025-01-20 09:30:00 UTC (too-large: it is too large); the row still cannot be "
                f"stored. {TOO_LARGE.remedy} Or replay with `docferry deadletters replay 3`"
            ),
        ),
        (
            {"kind": Kind.REFUSED, "error": TOO_LARGE},
            "refused",
            f"the row cannot be stored: {TOO_LARGE}. {TOO_LARGE.remedy}",
        ),
        # others
        (
            {"kind": Kind.DIFFERENT, "is_own": False},
            "foreign",
            (
                "the item was changed outside docferry, its content is not what docferry wrote; "
                "`docferry verify public.t --repair` writes the row over it"
            ),
        ),
        (
            {"kind": Kind.DIFFERENT, "is_own": False, "item": replace(ITEM, version=-1)},
            "foreign",
            (
                "the item was written outside docferry, it carries no version; "
                "`docferry verify public.t --repair` writes the row over it"
            ),
        ),
        # backfills
        (
            {**MISSING, "backfill": backfill(BackfillState.RUNNING), "settled": True},
            "backfill",
            "the backfill of public.t (running) has not come to this row yet",
        ),
        (
            {**ORPHANED, "backfill": backfill(BackfillState.REQUESTED), "active": False},
            "backfill",
            (
                "an item without a row; the backfill of public.t (requested) removes it at its end; no worker runs: "
                "start `docferry run`"
            ),
        ),
        # on its way
        (
            {**STALE, "waited": 5.0, "lag": 12.0, "waiting": None},
            "behind",
            (
                "behind by 12 s, on its way: the worker has not passed the row's position within 5.0 s; "
                "see `docferry status`"
            ),
        ),
        (
            {**STALE, "active": False, "waiting": Waiting(unseen="it took too long")},
            "waiting",
            "no worker runs, and what waits in the outbox is unknown (it took too long): start `docferry run`",
        ),
        ({**STALE, "sends": True}, "undecided", ""),
        (
            {**STALE, "gap": "the slot is gone. Run it.", "settled": True},
            "undecided",
            "different, and changes may be missing: the slot is gone. Run it.",
        ),
        # lost
        (
            {**MISSING, "settled": True},
            "missing",
            "missing although everything up to 0/AB is durable: `docferry verify public.t --repair`",
        ),
        ({**MISSING, "item": TOMBSTONE, "settled": True}, "missing", ""),
        ({**STALE, "settled": True}, "stale", ""),
        ({**ORPHANED, "settled": True}, "orphaned", ""),
    ],
)
def test_verdicts(changes: dict[str, Any], kind: str, said: str) -> None:
    found = judge(replace(SOUND, **changes))
    assert found.kind == kind
    assert said in ("", found.sentence)
    assert found.is_right is (found.kind in (VerdictKind.IDENTICAL, VerdictKind.ABSENT, VerdictKind.DELETED))
