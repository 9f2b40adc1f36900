"""`docferry run`: the worker."""

from __future__ import annotations

import logging
import signal
import threading
from dataclasses import replace

import click

from docferry.cli.frame import ExitCode, Session, define
from docferry.config import EXPECTED_ADDRESS, ListenAddress, parse_address
from docferry.config.model import Reconcile
from docferry.errors import ConfigError, DocferryError, Interrupted
from docferry.worker_app import WorkerApp

__all__ = ["command"]

_log = logging.getLogger("docferry.run")


@define("run")
@click.option("--once", is_flag=True, help="End when everything committed before the start is at the target.")
@click.option(
    "--reconcile",
    is_flag=False,
    flag_value="report",
    type=click.Choice(("report", "repair")),
    help="Verify all the time, at [run] reconcile_rate; `repair` also mends what differs.",
)
@click.option("--listen", metavar="HOST:PORT", help="Answer /livez, /readyz and /metrics there; port 0: a free one.")
def command(session: Session, once: bool, reconcile: Reconcile | None, listen: str | None) -> int:
    """Mirror until stopped: changes as they are committed, and first the backfills that are due.

    One worker mirrors all tables of a source; by replication a second one is refused, by triggers any number share the
    outbox. SIGTERM or Ctrl-C finishes what is in flight and exits with 0; a second one ends at once, and loses nothing
    either: what was not confirmed is read again. Outages of source or target are waited out, whatever they take; only
    when one of them cannot be used at the very start, it fails with the reason. A line `ready: ...` on standard error
    says that it streams.

    \b
    Examples:
      docferry run
      docferry run --once        catch up and end: for cron and tests
      docferry run --reconcile=repair        verify and mend beside the mirroring
      docferry run --listen :9187 --log-format json

    --listen takes `pip install 'docferry[metrics]'`. /livez says whether the process does anything at all, /readyz
    whether it makes progress, and what is wrong if it does not; `docferry status` gives the same reasons.

    With --json the counts are given when it ends. Next: `docferry status`, and `docferry wait` to read your writes.
    """
    config = session.load_config()
    if reconcile is not None:
        config = replace(config, run=replace(config.run, reconcile=reconcile))
    with WorkerApp(config, patient=True) as app, app.stop_on(signal.SIGTERM, signal.SIGINT):
        app.trace()
        if (address := listen or config.run.listen) is not None:
            app.listen(_address(address))
        worker = app.worker(lambda: _ready(app))
        watcher = _Watcher(app) if once else None
        try:
            worker.run()
        except Interrupted as error:
            if not app.stopping.is_set():
                raise
            _log.warning("stopped at once (%s); what was in flight will be read again", error)
            return ExitCode.INTERRUPTED
        finally:
            app.stopping.set()
            if watcher is not None:
                watcher.join()
        if watcher is not None and watcher.failure is not None:
            raise watcher.failure
        counts = app.metrics.snapshot()
    _log.info("stopped")
    if session.json:
        session.answer({"watermark": worker.watermark, "tables": counts}, "")
    return ExitCode.DONE


def _address(text: str) -> ListenAddress:
    address = parse_address(text)
    if address is None:
        raise ConfigError(f"--listen {text}: expected {EXPECTED_ADDRESS}")
    return address


def _ready(app: WorkerApp) -> None:
    mirrors = ", ".join(f"{mirror.table} -> {mirror.collection.name}" for mirror in app.mirrors.values())
    _log.info("ready: mirroring %s", mirrors, extra={"tables": list(app.mirrors)})


class _Watcher:
    """Asks the worker to stop once everything that was committed before is at the target. `failure`: why it cannot."""

    def __init__(self, app: WorkerApp) -> None:
        self._app = app
        self.failure: DocferryError | None = None
        self._thread = threading.Thread(target=self._watch, name="once")
        self._thread.start()

    def join(self) -> None:
        self._thread.join()

    def _watch(self) -> None:
        try:
            self._app.wait_patiently()
        except Interrupted:
            return
        except DocferryError as error:
            self.failure = error
        finally:
            self._app.stopping.set()
