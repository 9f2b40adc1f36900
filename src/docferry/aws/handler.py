"""The Lambda function: events of the triggers, records of a queue, and the schedule.

`handler` is what AWS calls. What it builds on its first call (configuration, clients, connections) serves the later
ones of the same process.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aws_lambda_powertools import Logger, Metrics
from aws_lambda_powertools.metrics import MetricUnit
from aws_lambda_powertools.utilities.typing import LambdaContext

from docferry.aws.function import Function, Summary
from docferry.errors import DocferryError, Verdict

__all__ = ["handler"]

logger = Logger(service="docferry", utc=True, log_record_order=["level", "message", "outcome", "table", "key"])
metrics = Metrics(namespace="docferry", service="docferry")

_RUN_BACKFILLS = (
    "Run `docferry run --once`, or `docferry backfill` for each table, where the database can be reached: the function "
    "has no time for it."
)

_function: Function | None = None


def _ready() -> Function:
    global _function
    if _function is None:
        _function = Function.from_environment(on_receipt=_log_receipt)
    return _function


@logger.inject_lambda_context(clear_state=True)
@metrics.log_metrics(capture_cold_start_metric=True)
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """Answers an event and the schedule with counts, records of SQS with {"batchItemFailures": [...]}.

    Raises when an event must come again: Lambda tries twice more, then it goes to the failure destination.
    """
    try:
        return _dispatch(_ready(), event, context)
    except DocferryError as error:
        # Known and explained; the traceback of a line that says the remedy would only be in its way.
        level = logger.warning if error.verdict is Verdict.RETRY else logger.error
        level(str(error), error=type(error).__name__, remedy=error.remedy)
        raise


def _dispatch(function: Function, event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    left = context.get_remaining_time_in_millis() / 1000
    records = event.get("Records")
    if isinstance(records, list):
        return _records(function, records)
    if event.get("docferry") == "drain":
        drained = function.drain(left)
        _count(drained)
        metrics.add_metric("OutboxAge", MetricUnit.Seconds, drained.oldest_seconds)
        metrics.add_metric("Drained", MetricUnit.Count, drained.changes)
        metrics.add_metric("BackfillsDue", MetricUnit.Count, len(drained.backfills_due))
        if drained.backfills_due:
            logger.warning("backfills are due", tables=drained.backfills_due, remedy=_RUN_BACKFILLS)
        return drained.answer()
    summary = function.receive(event)
    _count(summary)
    return summary.answer()


def _records(function: Function, records: list[Mapping[str, Any]]) -> dict[str, Any]:
    """A batch of SQS: those that failed come again, the others leave the queue."""
    failures = []
    for record in records:
        try:
            with logger.append_context_keys(message_id=record.get("messageId")):
                _count(function.receive_message(str(record["body"]), record.get("messageAttributes") or {}))
        except Exception as error:
            logger.exception("a message could not be applied", message_id=record.get("messageId"), error=str(error))
            failures.append({"itemIdentifier": str(record["messageId"])})
    return {"batchItemFailures": failures}


def _count(summary: Summary) -> None:
    for name, count in (
        ("Applied", summary.applied),
        ("Stale", summary.stale),
        ("Dead", summary.dead),
        ("RolledBack", summary.rolled_back),
    ):
        if count:
            metrics.add_metric(name, MetricUnit.Count, count)


def _log_receipt(receipt: Mapping[str, Any]) -> None:
    level = logger.error if receipt["outcome"] == "dead" else logger.info
    level("change", **receipt)
    if (latency := receipt.get("latency_ms")) is not None:
        metrics.add_metric("Latency", MetricUnit.Milliseconds, latency)
