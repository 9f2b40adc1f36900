"""One tree of errors; each class says in one place what happens next and what the operator should do.

`verdict` is what the pipeline does: try again, put the row aside, or stop. `remedy` is the class's standing advice; an
instance may carry a more exact one.
"""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar

from docferry.printable import one_line

__all__ = [
    "AlreadyRunning",
    "ConfigError",
    "DocferryError",
    "DocumentInvalid",
    "DocumentTooDeep",
    "EventRefused",
    "HistoryChanged",
    "Interrupted",
    "ItemTooLarge",
    "KeyRefused",
    "MissingExtra",
    "NeedsReread",
    "NotApplied",
    "RowRefused",
    "SourceRefused",
    "SourceUnavailable",
    "TableGone",
    "TargetRefused",
    "TargetUnavailable",
    "TimedOut",
    "TransactionPending",
    "ValueRefused",
    "Verdict",
    "WriteRefused",
]


class Verdict(StrEnum):
    """What happens to the work in hand when an error of a class is met."""

    RETRY = "retry"
    DEAD_LETTER = "dead letter"
    STOP = "stop"


class DocferryError(Exception):
    """Root of the tree. `str(error)` is the message; `error.remedy` says what to do about it."""

    verdict: ClassVar[Verdict] = Verdict.STOP
    exit_code: ClassVar[int] = 1
    standing_remedy: ClassVar[str] = ""

    def __init__(self, message: str, *, remedy: str | None = None) -> None:
        super().__init__(message)
        self.remedy = remedy if remedy is not None else self.standing_remedy


class ConfigError(DocferryError):
    """The configuration or the command line asks for something impossible."""

    exit_code = 2


class MissingExtra(ConfigError):
    """An optional dependency is needed and not installed."""


class SourceUnavailable(DocferryError):
    """The source does not answer, or dropped the connection: tried again without limit."""

    verdict = Verdict.RETRY
    standing_remedy = "Check that the server is up and that host, port and credentials in [source] are right."


class TransactionPending(DocferryError):
    """An event's transaction has neither committed nor rolled back yet: the event must come again."""

    verdict = Verdict.RETRY
    standing_remedy = (
        "Nothing, as a rule: the event is delivered again. A transaction that stays open is in pg_stat_activity or "
        "pg_prepared_xacts."
    )


class EventRefused(DocferryError):
    """An event cannot be read here: it is none, of another format, or speaks of types that only the database knows."""

    standing_remedy = (
        "It ends in the dead letters. Look at it with `docferry deadletters show`; replay it from a place that reaches "
        "the source's database, with a docferry of the version that applied."
    )


class SourceRefused(DocferryError):
    """The source answers, and says no: rights, settings, missing tables."""


class TableGone(ConfigError):
    """A mirrored table does not exist (any more)."""

    standing_remedy = "Check [[mirrors]] table, and that [source] dsn names the right database."


class KeyUnreadable(SourceRefused):
    """A key from which a table is to be read on is none of its column's type: that was changed since."""

    standing_remedy = "Run the same command again: it reads the table anew."


class NotApplied(SourceRefused):
    """`docferry apply` has not been run for this configuration."""

    standing_remedy = "Run `docferry apply`."


class HistoryChanged(SourceRefused):
    """Positions of the recorded epoch no longer compare with those of the source (R2)."""


class AlreadyRunning(DocferryError):
    """Another worker holds this source."""


class TargetUnavailable(DocferryError):
    """Throttling, outage, cut connection: it slows the pipeline down and is tried again without limit."""

    verdict = Verdict.RETRY
    standing_remedy = (
        "Check that the target answers and that region, endpoint_url and credentials in [target] are right."
    )


class TargetRefused(DocferryError):
    """The target answers, and says no: rights, an unusable table."""


class TimedOut(DocferryError):
    """What the operator waited for did not happen in the time given."""


class Interrupted(DocferryError):
    """A stop was asked for while waiting. Nothing is lost: the position of unfinished work was not confirmed."""


class RowRefused(DocferryError):
    """One row cannot be stored. It becomes a dead letter with this cause; the stream goes on (R8).

    `table`: source table, schema-qualified. `key`: the key as shown to people, such as `id=7`. `limit`: what it breaks.
    """

    verdict = Verdict.DEAD_LETTER
    cause: ClassVar[str] = "refused"

    def __init__(
        self, problem: str, *, table: str = "", key: str = "", limit: str = "", remedy: str | None = None
    ) -> None:
        # It may quote the document.
        problem = one_line(problem)
        super().__init__(problem, remedy=remedy)
        self.problem = problem
        self.table = table
        self.key = key
        self.limit = limit

    def at(self, table: str, key: str) -> RowRefused:
        """The same error, saying where. Raising code deep in a document knows the limit, its caller knows the row."""
        self.table = self.table or table
        self.key = self.key or key
        return self

    def __str__(self) -> str:
        where = f"{self.table} {self.key}".strip()
        text = f"{where}: {self.problem}" if where else self.problem
        return f"{text} (limit: {self.limit})" if self.limit else text


class DocumentInvalid(RowRefused):
    """A document column does not hold a document of its format, or one that is unsafe to read."""

    cause = "document-invalid"
    standing_remedy = "Mend the column's text in the row, or exclude the column; then `docferry deadletters replay`."


class DocumentTooDeep(RowRefused):
    """The item nests deeper than the target stores."""

    cause = "too-deep"
    standing_remedy = "Flatten the document or exclude the column; then `docferry deadletters replay`."


class ItemTooLarge(RowRefused):
    """The item is larger than the target stores."""

    cause = "too-large"
    standing_remedy = "Shrink the row or exclude its largest column; then `docferry deadletters replay`."


class KeyRefused(RowRefused):
    """The key cannot be a key of the target: empty, too long, ambiguous in a template, not a number."""

    cause = "key-refused"
    standing_remedy = "Choose other key columns or another key template for this mirror."


class NeedsReread(RowRefused):
    """The change does not say what the row is now, and the source's database cannot be reached from here."""

    cause = "needs-reread"
    standing_remedy = "Run `docferry deadletters replay` from a place that reaches the source's database."


class ValueRefused(RowRefused):
    """A column's text is not of its type. This does not happen with a healthy source."""

    cause = "value-refused"
    standing_remedy = "Mend or exclude the column; then `docferry deadletters replay`."


class WriteRefused(RowRefused):
    """The target refused this item for a reason that docferry did not foresee."""

    cause = "write-refused"
    standing_remedy = (
        "Read the target's message; mend the row or exclude the column; then `docferry deadletters replay`."
    )
