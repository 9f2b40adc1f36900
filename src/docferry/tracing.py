"""Traces of jobs, backfill pages and rereads: nothing at all, or OpenTelemetry.

What is traced is asked of the standard variables alone: OTEL_EXPORTER_OTLP_ENDPOINT or OTEL_TRACES_EXPORTER switch it
on, where `docferry[otel]` is installed; the rest of OTEL_* says where to, how much and under which name.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span as TheirSpan

__all__ = ["NO_TRACES", "OpenTelemetryTracer", "Span", "Tracer", "tracer_of_environment"]

_log = logging.getLogger(__name__)
_LAST_SENDING: Final = 3.0
_TRUE: Final = ("1", "true", "t", "yes", "y", "on")


class Span:
    """A piece of work with a beginning and an end. This one is not recorded."""

    def set(self, **attributes: Any) -> None:
        """Say more about it."""

    def end(self, at: int | None = None) -> None:
        """It is over, now or `at` nanoseconds since 1970."""


_NO_SPAN: Final = Span()
_NO_CONTEXT: Final = nullcontext(_NO_SPAN)


class Tracer:
    """Makes spans. This one makes none: it costs a call. `enabled`: whether working out attributes is worth it."""

    enabled: bool = False

    # ruff: noqa: ARG002 - this one has no use for what it is told

    def begin(self, name: str, *, parent: Span | None = None, at: int | None = None, **attributes: Any) -> Span:
        """A span that some thread ends. `at`: nanoseconds since 1970, now if None."""
        return _NO_SPAN

    def span(self, name: str, *, parent: Span | None = None, **attributes: Any) -> AbstractContextManager[Span]:
        """A span around what is done inside, below `parent`, or below the one that this thread is in."""
        return _NO_CONTEXT

    def close(self) -> None:
        """Send what is left."""


NO_TRACES: Final = Tracer()


class _Recorded(Span):
    def __init__(self, theirs: TheirSpan) -> None:
        self.theirs = theirs

    def set(self, **attributes: Any) -> None:
        self.theirs.set_attributes({f"docferry.{name}": value for name, value in attributes.items()})

    def end(self, at: int | None = None) -> None:
        self.theirs.end(at)


class OpenTelemetryTracer(Tracer):
    """Spans that `provider` takes. Their attributes are called `docferry.<name>`. Keys and values of rows are none."""

    enabled = True

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("docferry")

    def begin(self, name: str, *, parent: Span | None = None, at: int | None = None, **attributes: Any) -> Span:
        """See Tracer."""
        from opentelemetry import trace

        context = trace.set_span_in_context(parent.theirs) if isinstance(parent, _Recorded) else None
        span = _Recorded(self._tracer.start_span(name, context, start_time=at))
        span.set(**attributes)
        return span

    @contextmanager
    def span(self, name: str, *, parent: Span | None = None, **attributes: Any) -> Iterator[Span]:
        """See Tracer. An error is recorded by its class; its message may quote what is nobody else's business."""
        from opentelemetry import trace

        span = self.begin(name, parent=parent, **attributes)
        assert isinstance(span, _Recorded)
        with trace.use_span(span.theirs, end_on_exit=True, record_exception=False, set_status_on_exception=False):
            try:
                yield span
            except BaseException as error:
                span.theirs.set_status(trace.StatusCode.ERROR, type(error).__name__)
                raise

    def close(self) -> None:
        """See Tracer. Without a collector that answers, a stop does not wait for long."""
        sending = threading.Thread(target=self._provider.shutdown, name="traces", daemon=True)
        sending.start()
        sending.join(_LAST_SENDING)


def tracer_of_environment(environ: Mapping[str, str] | None = None) -> Tracer:
    """The tracer that the OTEL_* variables ask for; NO_TRACES without them, or where the extra is not installed."""
    environ = os.environ if environ is None else environ
    chosen = environ.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    endpoint = environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    disabled = environ.get("OTEL_SDK_DISABLED", "").strip().lower() in _TRUE
    if disabled or chosen == "none" or not (chosen or endpoint):
        return NO_TRACES
    try:
        return OpenTelemetryTracer(_provider(chosen or "otlp", environ))
    except ImportError as error:
        _log.warning("traces are asked for by OTEL_*, and cannot be made: pip install 'docferry[otel]' (%s)", error)
    except Exception as error:  # noqa: BLE001 - whatever a setting does to the exporter, rows are more important
        _log.warning("traces are asked for by OTEL_*, and cannot be made: %s: %s", type(error).__name__, error)
    return NO_TRACES


def _provider(exporter: str, environ: Mapping[str, str]) -> TracerProvider:
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    named = "OTEL_SERVICE_NAME" in environ or "service.name" in environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    resource = Resource.create(None if named else {SERVICE_NAME: "docferry"})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(_exporter(exporter)))
    return provider


def _exporter(name: str) -> SpanExporter:
    if name == "console":
        import sys

        from opentelemetry.sdk.trace.export import ConsoleSpanExporter

        return ConsoleSpanExporter(out=sys.stderr)
    if name != "otlp":
        raise ValueError(f"OTEL_TRACES_EXPORTER may be otlp, console or none, not {name}")
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter()
