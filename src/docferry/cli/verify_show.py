"""What `docferry verify` and `docferry status` show of verifications."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from docferry.operate.compare import DIFFERENCES, Kind
from docferry.operate.findings import Counts
from docferry.operate.verification import Checked
from docferry.operate.verified import Verified

__all__ = ["document", "found_lines", "mended_lines", "verified_document", "verified_line"]

_MEANING = {
    Kind.MISSING: "a row without an item",
    Kind.STALE: "an item of an older state of its row",
    Kind.DIFFERENT: "an item that somebody else wrote",
    Kind.ORPHANED: "an item without a row",
}


def document(checked: Checked, shown: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One mirror for --json."""
    counts = checked.counts
    repaired = checked.repaired
    return {
        "table": checked.mirror.table,
        "collection": checked.mirror.collection.name,
        "identical": checked.clean,
        "sampled": checked.sampled,
        "position": str(checked.position),
        "started_at": checked.started_at,
        "resumed": checked.resumed,
        **counts.as_dict(),
        "findings": [one for one in shown if one["table"] == checked.mirror.table],
        "repaired": None
        if repaired is None
        else {"mended": repaired.mended, "dead_letters": repaired.lettered, "left": repaired.left.as_dict()},
    }


def found_lines(checked: Checked, shown: Sequence[dict[str, Any]], limit: int) -> list[str]:
    """What was found in one mirror."""
    counts, table = checked.counts, checked.mirror.table
    what = "a sample of " if checked.sampled else ""
    head = f"{table} -> {checked.mirror.collection.name}: {what}{counts.rows:,} rows, {counts.items:,} items: "
    if not counts.differences and not counts.unsettled:
        lines = [head + "identical"]
    else:
        parts = [f"{counts.by_kind()[kind]:,} {kind}" for kind in DIFFERENCES if counts.by_kind()[kind]]
        parts += [f"{counts.unlettered:,} refused without a dead letter"] if counts.unlettered else []
        lines = [head + (", ".join(parts) or "no difference as far as could be seen")]
    ours = [one for one in shown if one["table"] == table and not _is_lettered(one)]
    for kind in (*DIFFERENCES, Kind.REFUSED):
        alike = [one for one in ours if one["kind"] == kind]
        if alike:
            lines.append(f"  {kind}: {_MEANING.get(kind, 'a row that cannot be stored, and no dead letter says so')}")
            lines += [f"    {_key(one)}" for one in alike]
    if len(ours) >= limit and counts.differences > len(ours):
        lines.append(
            f"  ... and more: --limit N shows N of them, --output FILE.jsonl has all ({counts.differences:,})."
        )
    if counts.refused > counts.unlettered:
        lines.append(
            f"  {counts.refused - counts.unlettered:,} rows cannot be stored and are dead letters: see "
            "`docferry deadletters list`."
        )
    if checked.resumed and checked.started_at is not None:
        began = checked.started_at.astimezone(UTC)
        lines.append(
            f"  begun {began:%Y-%m-%d %H:%M} UTC, interrupted and gone on with: a part was compared back then."
        )
    if counts.in_motion:
        lines.append(f"  {counts.in_motion:,} keys were in motion: their items changed at every look, so they arrive.")
    if counts.unsettled:
        lines.append(f"  unsettled: {counts.unsettled:,} keys; {counts.why}")
    return lines


def mended_lines(checked: Checked) -> list[str]:
    """What a repair did in one mirror."""
    repaired = checked.repaired
    if repaired is None:
        return []
    line = f"{checked.mirror.table}: mended {repaired.mended:,} item{_s(repaired.mended)}"
    if repaired.lettered:
        line += f", kept {repaired.lettered:,} dead letter{_s(repaired.lettered)}"
    left = repaired.left
    if left.differences:
        return [f"{line}; {left.differences:,} are still different"]
    if left.unsettled:
        return [f"{line}; unsettled: {left.unsettled:,} keys; {left.why}"]
    return [f"{line}; verified again: identical"]


def verified_document(verified: Verified | None, position: str | None) -> dict[str, Any] | None:
    """Of one mirror, for the --json of status. `position`: as status shows positions."""
    if verified is None:
        return None
    return {
        "through": position,
        "at": verified.at,
        "identical": verified.clean,
        "ended_at": verified.ended_at,
        "found": _counted(verified.counts),
        "running": _counted(verified.running),
    }


def verified_line(table: str, verified: Verified | None, position: str | None) -> str | None:
    """Of one mirror, for status; None when it was never verified."""
    if verified is None:
        return None
    parts = []
    if verified.counts is not None and not verified.clean:
        found = verified.counts.differences
        what = f"{found:,} difference{_s(found)} found" if found else f"{verified.counts.unsettled:,} keys unsettled"
        parts.append(f"{what} {_ago(verified.ended_at)}")
    if verified.position is not None:
        parts.append(f"verified through {position}, {_ago(verified.at)}, identical")
    if verified.running is not None:
        parts.append(f"{verified.running.rows:,} rows of a verification under way")
    return f"verified   {table}: {'; '.join(parts)}"


def _counted(counts: Counts | None) -> dict[str, Any] | None:
    return None if counts is None else {**counts.as_dict(), "differences": counts.differences}


def _is_lettered(one: dict[str, Any]) -> bool:
    return bool(one["kind"] == Kind.REFUSED and one["dead_letter"])


def _key(one: dict[str, Any]) -> str:
    key = one["key"] if one["key"] is not None else one["item"]
    text = ",".join(f"{name}={value}" for name, value in key.items())
    if one["kind"] == Kind.REFUSED:
        return f"{text}: {one['problem']}"
    return f"{text} (there is a dead letter of it)" if one["dead_letter"] else text


def _ago(at: datetime | None) -> str:
    if at is None:
        return "some time ago"
    seconds = max((datetime.now(UTC) - at).total_seconds(), 0)
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def _s(count: int) -> str:
    return "" if count == 1 else "s"
