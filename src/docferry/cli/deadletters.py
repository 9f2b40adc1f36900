"""`docferry deadletters`: changes that could not be applied."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any, TypeVar

import click

from docferry.cli.deadletters_audit import audit
from docferry.cli.deadletters_choose import choosing, selection
from docferry.cli.deadletters_preview import preview_document, preview_lines
from docferry.cli.deadletters_show import (
    MEANING,
    WOULD,
    chosen_lines,
    counts,
    details,
    document,
    group_lines,
    line,
    outcome_lines,
    plural,
)
from docferry.cli.frame import CommandGroup, ExitCode, Session, define
from docferry.errors import DocferryError, SourceUnavailable
from docferry.letters_app import LettersApp
from docferry.operate.letters import Selection, count, count_superseded, discard, previews, replay
from docferry.operate.replayed import ReplayResult
from docferry.printable import one_line

__all__ = ["command"]

_T = TypeVar("_T")

_CHEAP = 1000
"""So many are looked up at the target unasked."""
_SHOWN = 10
"""So many are previewed by a dry run."""


@define("list")
@choosing
@click.option("--all", "each", is_flag=True, help="Show each of them instead of a count by cause.")
@click.option(
    "--limit", type=click.IntRange(min=1), default=1000, metavar="N", help="With --all, show N of them at most."
)
@click.option("--after", type=click.IntRange(min=0), default=0, metavar="ID", help="With --all, go on behind this one.")
@click.option(
    "--superseded/--no-superseded",
    "look",
    default=None,
    help="Look up at the target which are superseded. Unless said, done for 1,000 at most.",
)
def _list(session: Session, each: bool, limit: int, after: int, look: bool | None, **which: Any) -> None:
    """List them by table and cause.

    Each group says how many there are, since when, an example, the remedy, and for how many nothing is left to do,
    because the target has something newer. Those in the source and those in the queue are counted together.

    \b
    Examples:
      docferry deadletters list
      docferry deadletters list --all --table orders --since 2h

    Next: mend the rows as the remedy says, then `docferry deadletters replay`.
    """
    chosen = selection((), **which)
    with LettersApp(session.load_config()) as app:
        _check_source(app)
        lines, answer = _each(app, chosen, limit, after, look) if each else _grouped(app, chosen, look)
        unread = app.dead_letters.unread
    if not lines:
        lines = ["There are no dead letters." if not unread else "There are none that could be read."]
    if unread:
        lines.append(f"Not all are shown: {unread}.")
    session.answer({**answer, "unread": unread}, "\n".join(lines))


def _each(
    app: LettersApp, chosen: Selection, limit: int, after: int, look: bool | None
) -> tuple[list[str], dict[str, Any]]:
    letters, more = chosen.first(app.dead_letters, limit, after=after)
    superseded = _looked_up(look, len(letters), lambda: app.replay(rate=1).superseded(letters))
    lines = [line(stored, superseded=superseded is not None and stored.id in superseded) for stored in letters]
    if more:
        lines.append(f"There are more: go on with --after {letters[-1].id}.")
    documents = [
        {**document(stored), "superseded": None if superseded is None else stored.id in superseded}
        for stored in letters
    ]
    return lines, {"dead_letters": documents, "more": more}


def _grouped(app: LettersApp, chosen: Selection, look: bool | None) -> tuple[list[str], dict[str, Any]]:
    groups = chosen.groups(app.dead_letters)
    total = sum(group.count for group in groups)
    superseded = _looked_up(look, total, lambda: count_superseded(app.replay(rate=1), chosen))
    lines = []
    documents = []
    for group in groups:
        settled = None if superseded is None else superseded.get((group.table, group.cause), 0)
        lines += group_lines(group, settled)
        documents.append({**asdict(group), "superseded": settled})
    return lines, {"groups": documents, "total": total}


def _looked_up(look: bool | None, number: int, question: Callable[[], _T]) -> _T | None:
    """What the target says of superseded ones; None when it is not asked. Unasked for, its silence is no failure."""
    if look is False or not number or (look is None and number > _CHEAP):
        return None
    try:
        return question()
    except DocferryError:
        if look:
            raise
        return None


@define("show")
@click.argument("ids", metavar="ID...", nargs=-1, type=int, required=True)
@click.option("--preview/--no-preview", default=True, help="Look at what a replay would do, and at the item.")
def _show(session: Session, ids: tuple[int, ...], preview: bool) -> None:
    """Show everything about some of them.

    That is: the row, the cause with its limit and remedy, the change and its version, how often it failed; and what a
    replay would do now: the row's document beside the item that is stored, with the paths at which they differ, or the
    reason why it still cannot be stored. Nothing is written.

    \b
    Example:
      docferry deadletters show 17 18

    The IDs are those of `docferry deadletters list --all`.
    """
    chosen = Selection(ids=ids)
    with LettersApp(session.load_config()) as app:
        _check_source(app)
        _check_ids(app, ids)
        letters = [stored for page in chosen.pages(app.dead_letters) for stored in page]
        looked, why = _previewed(app, chosen, len(letters)) if preview else ({}, "")
    texts, documents = [], []
    for stored in letters:
        result = looked.get(stored.id)
        texts.append("\n".join([*details(stored), *([] if result is None else preview_lines(result))]))
        seen = None if result is None else preview_document(result)
        documents.append({**document(stored), "event": stored.letter.payload, "preview": seen})
    if why:
        texts.append(why)
    session.answer({"dead_letters": documents}, "\n\n".join(texts))


def _previewed(app: LettersApp, chosen: Selection, number: int) -> tuple[dict[int, ReplayResult], str]:
    """By id; and why there is none. Where an end does not answer, the rest is shown nevertheless."""
    try:
        return {result.stored.id: result for result in previews(app.replay(rate=1), chosen, number)}, ""
    except DocferryError as error:
        return {}, f"What a replay would do cannot be seen: {one_line(str(error))}"


@define("replay", confirms=True)
@click.argument("ids", metavar="[ID]...", nargs=-1, type=int)
@choosing
@click.option(
    "--rate",
    type=click.FloatRange(min=0, min_open=True),
    default=200.0,
    metavar="N",
    help="Replay N a second at most, so that live traffic is not held up.",
)
@click.option("--dry-run", is_flag=True, help="Only show what would happen.")
@click.option(
    "--show",
    is_flag=True,
    help=f"With --dry-run, show what would be written for the first {_SHOWN}, and what is there.",
)
def _replay(session: Session, ids: tuple[int, ...], rate: float, dry_run: bool, show: bool, **which: Any) -> int:
    """Try them again, once the rows are mended.

    Takes those with these IDs, of a table, with a cause, that failed within some time, or without any of these all. The
    current row is read and written with the version of the change that failed, so nothing newer at the target is lost,
    and a row that is gone is deleted there. Where the source cannot be reached, what the queue holds is applied as it
    was sent, with its version. First a dry run shows what would happen; then it asks, --yes answers. What is at the
    target leaves the dead letters; what is refused again stays. `docferry deadletters audit` tells of it afterwards.

    \b
    Examples:
      docferry deadletters replay --dry-run --show
      docferry deadletters replay --cause too-large --until 1h --rate 20
      docferry deadletters replay 17 18 --yes

    Exits with 3 when some stay.
    """
    if show and not dry_run:
        raise click.UsageError("--show takes --dry-run: it only looks.")
    chosen = selection(ids, **which)
    with LettersApp(session.load_config()) as app:
        _check_source(app)
        _check_ids(app, ids)
        replayer = app.replay(rate=rate)
        with session.progress("looking", total=_expected(app, chosen), unit="dead letters") as bar:
            planned = replay(replayer, chosen, dry_run=True, on_done=bar.update)
        _note_unread(session, app)
        if not planned.total or dry_run:
            text = "\n".join(outcome_lines(planned, WOULD)) or "There are no such dead letters."
            answer = {"dry_run": True, **counts(planned)}
            if show:
                looked = list(previews(replayer, chosen, _SHOWN, shown=planned.shown))
                text = "\n\n".join([text, *("\n".join([_head(one), *preview_lines(one)]) for one in looked)])
                answer["previews"] = [{**document(one.stored), "preview": preview_document(one)} for one in looked]
            session.answer(answer, text)
            return ExitCode.DIFFERENT if planned.unsettled else ExitCode.DONE
        for line in outcome_lines(planned, WOULD):
            session.note(line)
        session.confirm(f"Replay {planned.total:,} dead letter{plural(planned.total)}?")
        with session.progress("replaying", total=planned.total, unit="dead letters") as bar:
            done = replay(replayer, chosen, dry_run=False, shown=planned.shown, on_done=bar.update)
    session.answer({"dry_run": False, **counts(done)}, "\n".join(outcome_lines(done, MEANING)))
    return ExitCode.DIFFERENT if done.unsettled else ExitCode.DONE


def _head(result: ReplayResult) -> str:
    return line(result.stored, superseded=False)


def _expected(app: LettersApp, chosen: Selection) -> int | None:
    """How many there are, where that costs little to say."""
    if chosen.ids is not None:
        return len(chosen.ids)
    return None if chosen.is_dated else sum(group.count for group in chosen.groups(app.dead_letters))


@define("discard", confirms=True)
@click.argument("ids", metavar="[ID]...", nargs=-1, type=int)
@choosing
@click.option("--all", "everything", is_flag=True, help="All of them.")
def _discard(session: Session, ids: tuple[int, ...], everything: bool, **which: Any) -> None:
    """Forget them.

    Takes those with these IDs, of a table, with a cause, that failed within some time, or all with --all. It shows what
    would go and asks; --yes answers. The target keeps what it has of these rows, which may be an older version or
    nothing, until they change again. `docferry deadletters audit` tells of it afterwards.

    \b
    Examples:
      docferry deadletters discard 17
      docferry deadletters discard --table orders --cause too-large
    """
    chosen = selection(ids, **which)
    if chosen == Selection() and not everything:
        raise click.UsageError("Say which: IDs, --table, --cause, --since, --until or --all.")
    if chosen != Selection() and everything:
        raise click.UsageError("--all excludes IDs, --table, --cause, --since and --until.")
    with LettersApp(session.load_config()) as app:
        _check_source(app)
        _check_ids(app, ids)
        groups, shown = count(app.dead_letters, chosen)
        _note_unread(session, app)
        total = sum(group.count for group in groups)
        if not total:
            session.answer({"discarded": 0}, "There are no such dead letters.")
            return
        for line in chosen_lines(groups):
            session.note(line)
        session.confirm(f"Discard {total:,} dead letter{plural(total)}? The target keeps what it has of these rows.")
        with session.progress("discarding", total=total, unit="dead letters") as bar:
            removed = discard(app.dead_letters, chosen, shown, bar.update)
    kept = f" {total - removed:,} failed again meanwhile and stay." if removed < total else ""
    session.answer({"discarded": removed, "kept": total - removed}, f"Discarded {removed:,}.{kept}")


command = CommandGroup(
    "deadletters",
    commands=[_list, _show, _replay, _discard, audit],
    help="List, show, replay and discard changes that could not be applied.\n\nOne row that cannot be stored stops "
    "nothing else: it becomes a dead letter with its cause, its key and its version. Mend the row as the remedy says, "
    "then `docferry deadletters replay`.",
)


def _check_source(app: LettersApp) -> None:
    """Raises NotApplied. A source that does not answer is the dead letters' own business: a queue may hold some."""
    with suppress(SourceUnavailable):
        app.check_ledger()


def _note_unread(session: Session, app: LettersApp) -> None:
    if app.dead_letters.unread:
        session.note(f"Not all are included: {app.dead_letters.unread}.")


def _check_ids(app: LettersApp, ids: Sequence[int]) -> None:
    known = (
        {stored.id for page in Selection(ids=tuple(ids)).pages(app.dead_letters) for stored in page} if ids else set()
    )
    unknown = sorted(set(ids) - known)
    if unknown:
        raise DocferryError(
            f"no dead letter has the ID {', '.join(map(str, unknown))}",
            remedy="See `docferry deadletters list --all`; one that was replayed or discarded is gone.",
        )
