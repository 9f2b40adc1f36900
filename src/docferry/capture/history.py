"""Whether the source still is on the history that an epoch began on (R2), and what to say when it is not."""

from __future__ import annotations

from typing import Final, Protocol

from docferry.errors import HistoryChanged

__all__ = ["HISTORY_REMEDY", "EpochBegin", "changed_history", "history_error", "of_history", "superseded"]

HISTORY_REMEDY: Final = (
    "Make sure that [source] dsn leads to the right server. If so, run `docferry apply`: it begins a new epoch and "
    "populates every collection again, over its items; then `docferry run`."
)


class EpochBegin(Protocol):
    """Where an epoch began."""

    @property
    def number(self) -> int:
        """Its number."""

    @property
    def system_identifier(self) -> str:
        """Of the server then."""

    @property
    def timeline(self) -> int:
        """Of that server then."""


def changed_history(number: int, before: tuple[str, int], now: tuple[str, int]) -> str | None:
    """What became of the source since epoch `number` began, in words; None when positions still compare. `before`,
    `now`: (system identifier, timeline)."""
    system, timeline = now
    if system != before[0]:
        return (
            f"this is another server or a restored copy: the source is now system {system} on timeline {timeline}; "
            f"epoch {number} began on system {before[0]}, timeline {before[1]}"
        )
    if timeline != before[1]:
        what = "a standby was promoted or a backup recovered" if timeline > before[1] else "this is an older copy"
        return f"{what}: the source is now on timeline {timeline}; epoch {number} began on timeline {before[1]}"
    return None


def of_history(epoch: EpochBegin, now: tuple[str, int]) -> str | None:
    """The same of an epoch as the ledger keeps it."""
    return changed_history(epoch.number, (epoch.system_identifier, epoch.timeline), now)


def history_error(epoch: EpochBegin, now: tuple[str, int], in_force: EpochBegin | None) -> HistoryChanged | None:
    """What stops a worker of `epoch`, None when it may go on. `in_force`: the ledger's epoch now."""
    changed = of_history(epoch, now)
    if changed is not None:
        return HistoryChanged(changed, remedy=HISTORY_REMEDY)
    return superseded(epoch.number, in_force, "this worker", "Start `docferry run` again; it loses nothing.")


def superseded(
    number: int,
    in_force: EpochBegin | None,
    who: str,
    remedy: str,
) -> HistoryChanged | None:
    """What stops somebody who began in epoch `number`, once `in_force`, the ledger's epoch now, is another."""
    if in_force is None or in_force.number == number:
        return None
    return HistoryChanged(
        f"`docferry apply` has begun epoch {in_force.number}; {who} is of epoch {number}", remedy=remedy
    )
