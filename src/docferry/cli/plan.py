"""`docferry plan`: what apply would create, and the rows that would break a limit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from docferry.app import App
from docferry.capture.rights import Grants
from docferry.cli.frame import ExitCode, Session, define
from docferry.cli.retention import advice, as_text
from docferry.document.mirror import Mirror
from docferry.operate.plan import Finding, RowReport
from docferry.printable import one_line

__all__ = ["command"]

_SHOWN = 5


@define("plan")
@click.argument("tables", metavar="[TABLE]...", nargs=-1)
@click.option("--rows", type=click.IntRange(min=1), metavar="N", help="Examine N rows of each table at most.")
@click.option("--no-rows", is_flag=True, help="Examine no rows, only show what apply would do.")
@click.option("--grants", "only_grants", is_flag=True, help="Only print the rights that are needed, as a psql script.")
@click.option("--role", metavar="NAME", help="The role that runs, and applies unless --apply-role names another.")
@click.option("--apply-role", metavar="NAME", help="The role that applies, where it is another one.")
def command(
    session: Session,
    tables: tuple[str, ...],
    rows: int | None,
    no_rows: bool,
    only_grants: bool,
    role: str | None,
    apply_role: str | None,
) -> int:
    """Show what `docferry apply` would create, and every row that would break a limit of the target.

    Each row is read and converted as `docferry run` would do it, and held against the target's limits: item size, depth
    of nesting, digits of numbers, the key, documents that cannot be parsed. Nothing is changed at either end, so it may
    be run at any time, before `docferry apply` too.

    \b
    Examples:
      docferry plan                    all mirrors, all rows
      docferry plan orders --rows 1000
      docferry plan --grants | psql shop      as a superuser: make a role with the rights that are needed, no more

    Exits with 3 when rows would become dead letters. They stop nothing: mirror the rest, mend them later, and take them
    up with `docferry deadletters replay`. Next: `docferry apply`.
    """
    if no_rows and rows is not None:
        raise click.UsageError("--rows and --no-rows exclude each other.")
    with App(session.load_config()) as app:
        if only_grants:
            needed = app.grants(role, apply_role)
            session.answer(_grants_document(needed), needed.script)
            return ExitCode.DONE
        app.check_rights("plan")
        mirrors = list(dict.fromkeys(app.mirror(table) for table in tables)) or list(app.mirrors.values())
        steps = app.planned_steps()
        retention = app.retention()
        needed = app.grants(role, apply_role)
        warnings = app.transport_warnings()
        reports = [] if no_rows else [_examine(session, app, mirror, rows) for mirror in mirrors]
    refused = sum(report.refused for report in reports)
    lines = _text(steps, reports, at_most=rows, refused=refused, source=as_text(retention))
    session.answer(
        {
            "steps": steps,
            "tables": [_document(report) for report in reports],
            "refused": refused,
            "retention": retention,
            "source": advice(retention),
            "warnings": [{"problem": problem, "remedy": remedy} for problem, remedy in warnings],
            "grants": _grants_document(needed),
        },
        "\n".join(map(one_line, [*_notes(needed, warnings), *lines])),
    )
    return ExitCode.DIFFERENT if refused else ExitCode.DONE


def _examine(session: Session, app: App, mirror: Mirror, at_most: int | None) -> RowReport:
    total = app.estimate(mirror)
    with session.progress(f"examining {mirror.table}", total=total if at_most is None else min(total, at_most)) as bar:
        report = app.examine(mirror, at_most=at_most, on_rows=bar.update)
        # The total was the planner's guess; now it is known.
        bar.update(report.rows, report.rows)
        return report


def _grants_document(needed: Grants) -> dict[str, Any]:
    return {
        "role": needed.role,
        "apply_role": needed.apply_role,
        "connected_as": needed.connected,
        "database": needed.database,
        "rights": needed.rights,
        "script": needed.script,
    }


def _notes(needed: Grants, warnings: list[tuple[str, str]]) -> list[str]:
    """What comes before the steps: warnings, and the rights unless the connected role has them and no more."""
    lines = [line for problem, remedy in warnings for line in (f"warning: {problem}", f"  remedy: {remedy}")]
    if needed.role == needed.connected and not needed.missing:
        lines.append(f"Rights: role {needed.role} has what it needs.")
    else:
        lines.append(f"Rights: all that role {needed.role} needs (`docferry plan --grants` prints them for psql):")
        lines += [f"  {statement}" for right in needed.rights for statement in right.statements]
    return [*lines, ""]


def _document(report: RowReport) -> dict[str, Any]:
    return {
        "table": report.table,
        "rows": report.rows,
        "refused": report.refused,
        "findings": _sorted(report),
    }


def _sorted(report: RowReport) -> list[Finding]:
    """What would be refused first, most rows first."""
    return sorted(report.findings.values(), key=lambda one: (one.severity != "refused", -one.count, one.cause))


def _text(
    steps: list[str], reports: list[RowReport], *, at_most: int | None, refused: int, source: Sequence[str] = ()
) -> list[str]:
    lines = (
        ["docferry apply would:", *(f"  - {step}" for step in steps)] if steps else ["docferry apply: nothing to do."]
    )
    lines += source
    for report in reports:
        part = (
            f"the first {report.rows:,}" if at_most is not None and report.rows >= at_most else f"all {report.rows:,}"
        )
        verdict = f"{report.refused:,} would become dead letters" if report.refused else "every one can be stored"
        lines += ["", f"{report.table}: {part} rows examined, {verdict}."]
        for finding in _sorted(report):
            lines += _finding(finding)
    if refused:
        lines += ["", "Rows that cannot be stored stop nothing: they become dead letters, the others are mirrored."]
    if steps:
        lines += ["", "Next: `docferry apply`."]
    return lines


def _finding(finding: Finding) -> list[str]:
    mark = "refused" if finding.severity == "refused" else "note"
    keys = ", ".join(finding.examples[:_SHOWN])
    more = ", ..." if finding.count > _SHOWN else ""
    lines = [
        f"  {mark}: {finding.cause}: {finding.count:,} row{'s' if finding.count != 1 else ''} ({keys}{more})",
        f"    {finding.problem}",
    ]
    if finding.limit:
        lines.append(f"    limit: {finding.limit}")
    if finding.remedy:
        lines.append(f"    remedy: {finding.remedy}")
    return lines
