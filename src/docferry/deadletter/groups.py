"""Dead letters counted by table and cause, one by one or group by group."""

from __future__ import annotations

from docferry.deadletter.contract import DeadLetterGroup, StoredDeadLetter

__all__ = ["Groups"]


class Groups:
    """A count that grows."""

    def __init__(self) -> None:
        self._groups: dict[tuple[str, str], DeadLetterGroup] = {}

    def add(self, stored: StoredDeadLetter) -> None:
        """Count one dead letter."""
        letter = stored.letter
        self.merge(
            DeadLetterGroup(
                letter.table, letter.cause, 1, stored.first_at, stored.last_at, letter.problem, letter.remedy
            )
        )

    def merge(self, group: DeadLetterGroup) -> None:
        """Count those of a group; the newest gives the example."""
        known = self._groups.get((group.table, group.cause))
        if known is not None:
            newest = group if group.last_at >= known.last_at else known
            group = DeadLetterGroup(
                group.table,
                group.cause,
                known.count + group.count,
                min(known.first_at, group.first_at),
                max(known.last_at, group.last_at),
                newest.example,
                newest.remedy,
            )
        self._groups[group.table, group.cause] = group

    def sorted(self) -> list[DeadLetterGroup]:
        """The largest first."""
        return sorted(self._groups.values(), key=lambda group: (-group.count, group.table, group.cause))
