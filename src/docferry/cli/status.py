"""`docferry status`: how everything stands."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import click

from docferry.app import App
from docferry.capture.contract import BREAKER_OPEN, BackfillState, StreamState
from docferry.change.model import lsn
from docferry.cli.frame import Session, define
from docferry.cli.retention import wal_line
from docferry.cli.verify_show import verified_document, verified_line
from docferry.errors import DocferryError
from docferry.operate.standing import MirrorStatus, Status, WorkerState, WorkerStatus
from docferry.printable import one_line, printable

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["command"]


@define("status")
@click.option("-w", "--watch", is_flag=True, help="Show it again every second until Ctrl-C.")
def command(session: Session, watch: bool) -> None:
    """Show how everything stands: watermark, lag, rates, dead letters, backfills, and what needs attention.

    \b
    watermark     every change up to this position of the source's log is at the target
    lag           how far the watermark is behind, in bytes of log and in seconds
    outbox        with capture by triggers: changes that wait there, and for how long
    applied       changes written since the worker began; `stale` ones found something newer, `dead` ones failed
    dead letters  changes that could not be applied and wait for `docferry deadletters replay`
    backfill      how much of the table has been read, by the planner's estimate
    verified      up to where `docferry verify` last found everything identical, or what it found

    Only the source is asked, so it answers while the target is down. Counts are those of the worker's last heartbeat.

    \b
    Examples:
      docferry status --watch
      docferry status --json | jq .lag_bytes
    """
    if watch and session.json:
        raise click.UsageError("--watch and --json exclude each other: --json gives exactly one document.")
    with App(session.load_config()) as app:
        if watch:
            _watch(app)
            return
        status = app.status()
    session.answer(_document(status), "" if session.json else _rendered(status), styled=True)


def _watch(app: App) -> None:
    from rich.console import Console
    from rich.live import Live

    console = Console()
    if not console.is_terminal:
        while True:
            console.print(_now(app))
            sys.stdout.flush()
            time.sleep(1)
    with Live(console=console, auto_refresh=False) as live:
        while True:
            live.update(_now(app), refresh=True)
            time.sleep(1)


def _now(app: App) -> RenderableType:
    from rich.text import Text

    try:
        return _view(app.status())
    except DocferryError as error:
        # It may be back in a second, and what was shown before is out of date.
        return Text(printable(f"error: {error}\nremedy: {error.remedy}"))


def _document(status: Status) -> dict[str, Any]:
    stream = status.stream
    return {
        "applied": status.applied,
        "capture": status.capture,
        "epoch": status.epoch,
        "watermark": _position(status.watermark, stream),
        "lag_bytes": status.lag_bytes,
        "lag_changes": status.lag_changes,
        "lag_seconds": status.lag_seconds,
        "outbox": None
        if stream is None or stream.unit != "changes"
        else {
            "drained": stream.active,
            "health": stream.health,
            "waiting": stream.lag,
            "oldest_seconds": stream.oldest_seconds,
            "bytes": stream.retained,
        },
        "slot": None
        if stream is None or stream.unit != "bytes"
        else {
            "active": stream.active,
            "wal_status": stream.health,
            "retained_bytes": stream.retained,
            "confirmed": lsn(stream.confirmed),
            "current": lsn(stream.current),
        },
        "retention": status.retention,
        "retention_seen": status.retention_seen,
        "worker": status.worker,
        "mirrors": [_mirror(mirror, stream) for mirror in status.mirrors],
        "dead_letters": status.dead_letters,
        "attention": status.attention,
    }


def _mirror(mirror: MirrorStatus, stream: StreamState | None) -> dict[str, Any]:
    record = mirror.backfill
    through = None if mirror.verified is None else _position(mirror.verified.position, stream)
    return {
        "table": mirror.table,
        "collection": mirror.collection,
        "registered": mirror.registered,
        "published": mirror.published,
        "applied": mirror.applied,
        "stale": mirror.stale,
        "dead": mirror.dead,
        "reread": mirror.reread,
        "rate": mirror.rate,
        "dead_letters": mirror.dead_letters,
        "backfill": None
        if record is None
        else {
            "state": record.state,
            "reason": record.reason,
            "rows_done": record.rows_done,
            "rows_estimate": record.rows_estimate,
            "percent": mirror.percent,
            "started_at": record.started_at,
            "finished_at": record.finished_at,
        },
        "verified": verified_document(mirror.verified, through),
        "drift": mirror.drift,
        "mended": mirror.mended,
    }


def _rendered(status: Status) -> str:
    from rich.console import Console

    console = Console(file=sys.stdout)
    with console.capture() as capture:
        console.print(_view(status))
    return capture.get().rstrip("\n")


def _view(status: Status) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = [Text(one_line(_worker(status.worker)))]
    if status.stream is not None:
        parts += [Text(one_line(line)) for line in _stream(status, status.stream)]
    if status.retention is not None:
        parts += [Text(f"wal        {one_line(wal_line(status.retention))}")]
    elif status.retention_seen:
        parts += [Text(f"wal        {one_line(status.retention_seen)}")]
    parts += [Text(""), _table(status)]
    parts += [Text(one_line(line)) for line in _verified(status)]
    if status.attention:
        parts += [Text(""), Text("Needs attention:", style="bold")]
        for one in status.attention:
            parts.append(Text(one_line(f"  - {one.problem}")))
            if one.remedy:
                parts.append(Text(one_line(f"    remedy: {one.remedy}")))
    return Group(*parts)


def _stream(status: Status, stream: StreamState) -> list[str]:
    if stream.unit == "changes":
        reader = "drained" if stream.active else "nobody drains it now"
        health = f", {stream.health}" if stream.health == BREAKER_OPEN else ""
        oldest = f", the oldest for {stream.oldest_seconds:.1f} s" if stream.lag else ""
        waits = f"{stream.lag:,} change{'s' * (stream.lag != 1)} wait{'s' * (stream.lag == 1)}"
        return [f"outbox     {waits}{oldest}; {reader}{health}, {_size(stream.retained)} on disk"]
    lag = "unknown" if status.lag_seconds is None else f"{status.lag_seconds:.1f} s"
    reader = "active" if stream.active else "nobody reads it"
    return [
        f"watermark  {_position(status.watermark, stream)}, lag {_size(stream.lag)}, {lag}",
        f"slot       {reader}, {stream.health}, {_size(stream.retained)} of WAL retained",
    ]


def _verified(status: Status) -> list[str]:
    lines = []
    for mirror in status.mirrors:
        through = None if mirror.verified is None else _position(mirror.verified.position, status.stream)
        line = verified_line(mirror.table, mirror.verified, through)
        lines += [] if line is None else [line]
        if mirror.drift:
            kinds = ", ".join(f"{count:,} {kind}" for kind, count in mirror.drift.items())
            lines.append(f"drift      {mirror.table}: {kinds} found by the worker, {mirror.mended:,} items mended")
    return lines


def _position(position: int | None, stream: StreamState | None) -> str | None:
    """An LSN, or a number of the sequence."""
    if position is None:
        return None
    return str(position) if stream is not None and stream.unit == "changes" else lsn(position)


def _table(status: Status) -> RenderableType:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("mirror", overflow="fold")
    for name in ("applied", "stale", "dead", "changes/s", "dead letters", "backfill"):
        table.add_column(name, justify="right")
    for mirror in status.mirrors:
        table.add_row(
            Text(one_line(f"{mirror.table} -> {mirror.collection}")),
            f"{mirror.applied:,}",
            f"{mirror.stale:,}",
            f"{mirror.dead:,}",
            f"{mirror.rate:,.1f}",
            f"{mirror.dead_letters:,}",
            _backfill(mirror),
        )
    return table


def _worker(worker: WorkerStatus) -> str:
    text = f"worker     {worker.state}"
    if worker.age is None or worker.state is WorkerState.NEVER:
        return text
    who = f"pid {worker.pid} on {worker.host}, docferry {worker.version}"
    since = f" since {worker.started_at:%Y-%m-%d %H:%M:%S %Z}" if worker.started_at else ""
    return (
        f"{text} ({who}){since}, heartbeat {worker.age:.1f} s ago, {worker.in_flight:,} in flight, "
        f"{worker.tombstones:,} tombstones"
    )


def _backfill(mirror: MirrorStatus) -> str:
    record = mirror.backfill
    if record is None:
        return "-"
    if record.state is BackfillState.DONE:
        return f"done, {record.rows_done:,} rows"
    if record.state is BackfillState.REQUESTED:
        return "requested"
    return f"{mirror.percent:.1f}%, {record.rows_done:,} rows"


def _size(count: int) -> str:
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:,.0f} {unit}" if unit == "B" else f"{size:,.1f} {unit}"
        size /= 1024
    return f"{size:,.1f} TiB"
