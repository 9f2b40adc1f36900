"""The program that EmbeddedDynamoDB starts: ministack, ending with its parent, and nearer to AWS in one point."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import time
from contextvars import ContextVar
from typing import Any

__all__ = ["main"]

_GRACE = 10.0  # seconds
_FIRST_PAUSE = 0.02
_LONGEST_PAUSE = 0.5
_DEFAULT_AGE = 21600


def main() -> None:
    """Serve until told to end, or until standard input closes: however our parent ends, that pipe closes."""
    atexit.register(_end_group)
    threading.Thread(target=_follow_parent, daemon=True).start()
    if "lambda" in os.environ.get("SERVICES", "").split(","):
        _let_throttled_events_wait()
    from ministack.app import main as serve

    sys.argv = ["ministack"]
    serve()


def _end_group() -> None:
    """End with all processes that run Lambda functions, also those in the middle of an invocation."""
    sys.stdout.flush()
    os.killpg(0, signal.SIGKILL)


def _follow_parent() -> None:
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_GRACE)
    _end_group()


def _let_throttled_events_wait() -> None:
    """Asynchronous invocations that find no free execution wait for one, until they are too old.

    ministack counts a throttle as one of the (three) attempts that an event has, which makes any burst end in the
    failure destination. Lambda does so only with a reserved concurrency of 0.
    """
    from ministack.services import lambda_svc

    expiry: ContextVar[float | None] = ContextVar("expiry", default=None)
    invoke, execute = lambda_svc.invoke_async_with_retry, lambda_svc._execute_function  # noqa: SLF001 - see the docstring

    def invoke_and_wait(function: dict[str, Any], event: object) -> None:
        token = expiry.set(time.monotonic() + _age_limit(function))
        try:
            invoke(function, event)  # starts a thread with a copy of this context
        finally:
            expiry.reset(token)

    def execute_when_free(function: dict[str, Any], event: object) -> Any:
        result = execute(function, event)
        until, pause = expiry.get(), _FIRST_PAUSE
        while result.get("throttle") and until is not None and time.monotonic() < until and not _is_off(function):
            time.sleep(pause)
            pause = min(_LONGEST_PAUSE, pause * 1.5)
            result = execute(function, event)
        return result

    lambda_svc.invoke_async_with_retry = invoke_and_wait
    lambda_svc._execute_function = execute_when_free  # noqa: SLF001 - the same


def _age_limit(function: dict[str, Any]) -> float:
    """Seconds that an event may wait."""
    settings = function.get("event_invoke_config") or (function.get("event_invoke_configs") or {}).get("$LATEST") or {}
    return float(settings.get("MaximumEventAgeInSeconds") or _DEFAULT_AGE)


def _is_off(function: dict[str, Any]) -> bool:
    from ministack.services import lambda_svc

    config = function.get("config") or function
    return bool(lambda_svc._reserved_concurrency(function, config) == 0)  # noqa: SLF001 - the same
