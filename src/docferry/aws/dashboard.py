"""The CloudWatch dashboard of a template: the road from left to right, what needs attention at the top."""

from __future__ import annotations

import json
from typing import Any

from docferry.aws.blueprint import Blueprint

__all__ = ["dashboard"]

_OURS = ("service", "docferry")
_FUNCTION = ("FunctionName", "${Function}")
_CLUSTER = ("DBClusterIdentifier", "${ClusterId}")


def dashboard(plan: Blueprint) -> str:
    """JSON for `!Sub`; ${ClusterId} has to be among its variables."""
    tables = [("TableName", f"${{{table.logical}}}") for table in plan.mirrored]
    queue = ("QueueName", "${DeadLetterQueue.QueueName}")
    rows = [
        [
            _widget("Dead letters", "Maximum", [("AWS/SQS", "ApproximateNumberOfMessagesVisible", queue)]),
            _widget("Oldest change in docferry.outbox (seconds)", "Maximum", [("docferry", "OutboxAge", _OURS)]),
            _widget(
                "Events: late, dropped, not delivered to the dead letters",
                "Maximum",
                [
                    ("AWS/Lambda", "AsyncEventAge", _FUNCTION),
                    ("AWS/Lambda", "AsyncEventsDropped", _FUNCTION),
                    ("AWS/Lambda", "DestinationDeliveryFailures", _FUNCTION),
                ],
            ),
        ],
        [
            _widget(
                "Invocations",
                "Sum",
                [("AWS/Lambda", name, _FUNCTION) for name in ("Invocations", "Errors", "Throttles")],
            ),
            _widget("Changes", "Sum", [("docferry", name, _OURS) for name in ("Applied", "Stale", "Dead", "Drained")]),
            _widget("From commit to item (ms)", "p99", [("docferry", "Latency", _OURS)]),
        ],
        [
            _widget("Duration (ms)", "p99", [("AWS/Lambda", "Duration", _FUNCTION)]),
            _widget("Invocations at once", "Maximum", [("AWS/Lambda", "ConcurrentExecutions", _FUNCTION)]),
            _widget("Backfills that are due", "Maximum", [("docferry", "BackfillsDue", _OURS)]),
        ],
        [
            _widget("Aurora CPU (%)", "Average", [("AWS/RDS", "CPUUtilization", _CLUSTER)]),
            _widget("Aurora commits a second", "Average", [("AWS/RDS", "CommitThroughput", _CLUSTER)]),
            _widget(
                "DynamoDB write capacity units",
                "Sum",
                [("AWS/DynamoDB", "ConsumedWriteCapacityUnits", table) for table in tables],
            ),
        ],
    ]
    widgets = [
        {"type": "metric", "x": 8 * column, "y": 6 * line, "width": 8, "height": 6, "properties": properties}
        for line, row in enumerate(rows)
        for column, properties in enumerate(row)
    ]
    lines = ",\n".join("  " + json.dumps(widget) for widget in widgets)
    return f'{{"widgets": [\n{lines}\n]}}\n'


def _widget(title: str, statistic: str, metrics: list[tuple[str, str, tuple[str, str]]]) -> dict[str, Any]:
    return {
        "title": title,
        "region": "${AWS::Region}",
        "stat": statistic,
        "period": 60,
        "metrics": [[namespace, name, *dimension] for namespace, name, dimension in metrics],
    }
