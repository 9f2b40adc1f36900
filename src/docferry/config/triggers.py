"""[source.triggers] and [source.lambda]: what the capture modes `outbox` and `lambda` need beside the database."""

from __future__ import annotations

import re
from typing import Final

from docferry.config.model import Capture, LambdaConfig, TriggerConfig
from docferry.config.section import Section

__all__ = ["read_lambda", "read_triggers"]

_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}(:[A-Za-z0-9$_-]+)?")
_ARN: Final = re.compile(r"arn:aws[a-z-]*:lambda:[a-z0-9-]+:[0-9]{12}:function:[A-Za-z0-9_-]{1,64}(:[A-Za-z0-9$_-]+)?")
_FUNCTION: Final = re.compile(f"({_NAME.pattern})|({_ARN.pattern})")
_REGION: Final = re.compile(r"[a-z0-9-]{1,64}")
_LEAST_PAYLOAD, _MOST_PAYLOAD = 10_000, 1_048_576


def read_triggers(source: Section, capture: Capture) -> TriggerConfig:
    """[source.triggers]. Raises ConfigError."""
    default = TriggerConfig()
    if source.has("triggers") and capture == "replication":
        source.refuse("triggers", 'capture = "replication" has no triggers', remedy="Remove the table.")
    section = source.section("triggers")
    owner = section.text("owner", expected="the name of a role")
    if owner is not None and len(owner.encode()) > 63:
        section.unexpected("owner", "a name of at most 63 bytes")
    if section.has("deferred") and capture == "outbox":
        section.refuse("deferred", 'only the triggers of capture = "lambda" are deferred', remedy="Remove it.")
    triggers = TriggerConfig(
        enable_always=section.flag("enable_always", default.enable_always),
        deferred=section.flag("deferred", default.deferred),
        owner=owner,
    )
    section.finish()
    return triggers


def read_lambda(source: Section, capture: Capture) -> LambdaConfig:
    """[source.lambda]; the payload limit counts for the outbox as well. Raises ConfigError."""
    default = LambdaConfig()
    if source.has("lambda") and capture == "replication":
        source.refuse("lambda", 'it belongs to capture = "lambda"', remedy="Remove the table.")
    section = source.section("lambda")
    function = section.text("function", pattern=_FUNCTION, expected="a function's name or ARN")
    region = section.text("region", pattern=_REGION, expected='a region, such as "us-east-2"')
    limit = section.size("payload_limit", default.payload_limit, least=_LEAST_PAYLOAD)
    if limit > _MOST_PAYLOAD:
        section.unexpected("payload_limit", "at most 1 MiB, what an asynchronous invocation takes")
    made = LambdaConfig(
        function=function or default.function,
        region=region,
        payload_limit=limit,
        timeout=section.duration("timeout", default.timeout, least=0.01),
        group=section.flag("group", default.group),
        breaker_failures=section.whole("breaker_failures", default.breaker_failures, 1, 1_000_000),
        breaker_pause=section.duration("breaker_pause", default.breaker_pause, least=0.1),
        patience=section.duration("patience", default.patience, least=0),
    )
    section.finish()
    return made
