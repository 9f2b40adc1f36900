"""The capture modes: from configuration to the objects that each of them takes. Part of the composition root: backends
are named here, and imported when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from docferry.capture.contract import Capture
from docferry.capture.tracing import RowTracer
from docferry.config import Config
from docferry.operate.admin import EpochRecord
from docferry.operate.standing import StatusSetup

__all__ = ["by_triggers", "make_capture", "make_setup", "make_tracer"]


def by_triggers(capture: str) -> bool:
    """Whether changes come from triggers: positions from a sequence, several workers, an order that nobody keeps."""
    return capture != "replication"


def make_setup(
    config: Config, dsn: str, keys: Callable[[], Mapping[str, Sequence[str]]], capture: str | None = None
) -> StatusSetup:
    """What a capture mode keeps in the source; of the configured mode, or of `capture`."""
    capture = capture or config.source.capture
    if not by_triggers(capture):
        from docferry.capture.setup import ReplicationSetup

        source = config.source
        return ReplicationSetup(dsn, source.slot, source.publication, failover=source.failover)
    from docferry.capture.trigger_functions import TriggerSettings
    from docferry.capture.trigger_setup import TriggerSetup

    triggers, function = config.source.triggers, config.source.lambda_
    settings = TriggerSettings(
        capture,
        function.payload_limit,
        triggers.enable_always,
        triggers.deferred,
        triggers.owner,
        function.function,
        function.region or _region_of(function.function) or config.target.region or "",
        function.timeout,
        function.group,
        function.breaker_failures,
        function.breaker_pause,
    )
    return TriggerSetup(dsn, settings, keys)


def make_capture(
    config: Config, dsn: str, epoch: EpochRecord, former: Callable[[str], Collection[str]] = lambda _: ()
) -> Capture:
    """The stream of changes, of the epoch in force. `former`: by table, its columns when its key was made."""
    run = config.run
    if by_triggers(config.source.capture):
        from docferry.capture.outbox import OutboxCapture

        wakes = config.source.capture == "outbox"
        return OutboxCapture(
            dsn, most_changes=run.batch_changes, most_bytes=run.batch_bytes, wakes=wakes, former=former
        )
    from docferry.capture.replication import Limits, ReplicationCapture, SystemIdentity

    return ReplicationCapture(
        dsn,
        config.source.slot,
        config.source.publication,
        epoch.number,
        SystemIdentity(epoch.system_identifier, epoch.timeline),
        Limits(run.batch_changes, run.batch_bytes, run.linger),
    )


def make_tracer(config: Config, dsn: str, epoch: EpochRecord) -> RowTracer:
    """The source's part in tracing a row."""
    from docferry.capture.tracer import SourceTracer

    source = config.source
    if by_triggers(source.capture):
        return SourceTracer(dsn, epoch.number, None, None)
    return SourceTracer(dsn, epoch.number, source.slot, source.publication)


def _region_of(function: str) -> str | None:
    return function.split(":")[3] if function.startswith("arn:") else None
