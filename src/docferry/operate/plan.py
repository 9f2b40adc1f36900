"""What every row means for the target, before anything is touched: the rows that would break a limit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from docferry.capture.contract import KeyTexts, PageReader
from docferry.document.mirror import Mirror
from docferry.errors import RowRefused
from docferry.target.contract import Target

__all__ = ["Finding", "RowReport", "examine_rows"]

_PAGE = 500
_PIECE = 2 << 20
_EXAMPLES = 20


@dataclass(slots=True)
class Finding:
    """Rows with one problem. `examples`: the first keys, as shown to people. `severity`: `refused` or `note`."""

    cause: str
    severity: str
    problem: str
    limit: str
    remedy: str
    count: int = 0
    examples: list[str] = field(default_factory=list)


@dataclass(slots=True)
class RowReport:
    """What the rows of one table would do."""

    table: str
    rows: int = 0
    findings: dict[tuple[str, str], Finding] = field(default_factory=dict)

    @property
    def refused(self) -> int:
        """How many rows would become dead letters."""
        return sum(finding.count for finding in self.findings.values() if finding.severity == "refused")


def examine_rows(
    mirror: Mirror,
    reader: PageReader,
    target: Target,
    *,
    at_most: int | None = None,
    on_rows: Callable[[int], None] = lambda _: None,
) -> RowReport:
    """Convert every row (or the first `at_most`) and hold it against the target's limits; nothing is written."""
    report = RowReport(mirror.table)
    after: KeyTexts | None = None
    while at_most is None or report.rows < at_most:
        upto = reader.boundary(after, _PAGE if at_most is None else min(_PAGE, at_most - report.rows))
        lower = after
        while True:
            rows, last = reader.read_page(lower, upto, _PIECE)
            for relation, row in rows:
                shown = mirror.converter.show_key(relation, row)
                try:
                    error = target.check(mirror.converter.put(relation, row, 1))
                except RowRefused as refusal:
                    error = refusal
                if error is not None:
                    _note(report, error.cause, "refused", error.problem, error.limit, error.remedy, shown)
                else:
                    for column in mirror.converter.numbers_as_text(relation, row):
                        _note(
                            report,
                            f"number-as-text {column}",
                            "note",
                            f'column "{column}": a number of the target cannot hold this one; it is stored as text',
                            "38 digits, 1E-130 to 9.99E+125",
                            "",
                            shown,
                        )
            report.rows += len(rows)
            on_rows(report.rows)
            if last is None:
                break
            lower = last
        if upto is None:
            break
        after = upto
    return report


def _note(report: RowReport, cause: str, severity: str, problem: str, limit: str, remedy: str, shown: str) -> None:
    finding = report.findings.setdefault((cause, limit), Finding(cause, severity, problem, limit, remedy))
    finding.count += 1
    if len(finding.examples) < _EXAMPLES:
        finding.examples.append(shown)
