"""Traces: nothing unless asked for, and then what OpenTelemetry's own exporter sees."""

from __future__ import annotations

import sys

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from docferry.tracing import NO_TRACES, OpenTelemetryTracer, tracer_of_environment

ASKED = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"OTEL_SERVICE_NAME": "x"},
        {**ASKED, "OTEL_SDK_DISABLED": "true"},
        {**ASKED, "OTEL_TRACES_EXPORTER": "none"},
    ],
)
def test_off(environ: dict[str, str]) -> None:
    assert tracer_of_environment(environ) is NO_TRACES


def test_off_costs_nothing_and_can_be_used() -> None:
    span = NO_TRACES.begin("a", changes=1)
    with NO_TRACES.span("b", parent=span, items=3) as inner:
        inner.set(applied=1)
        assert inner is span
    span.end()
    NO_TRACES.close()
    assert not NO_TRACES.enabled


def test_on(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ASKED.items():
        monkeypatch.setenv(name, value)
    tracer = tracer_of_environment()
    assert tracer.enabled
    tracer.close()


def test_asked_for_in_vain(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    assert tracer_of_environment({"OTEL_TRACES_EXPORTER": "zipkin"}) is NO_TRACES
    assert "may be otlp, console or none, not zipkin" in caplog.text
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    assert tracer_of_environment(ASKED) is NO_TRACES
    assert "pip install 'docferry[otel]'" in caplog.text


def test_spans() -> None:
    memory = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(memory))
    tracer = OpenTelemetryTracer(provider)
    job = tracer.begin("job", at=1_000, changes=2, tables=["public.t"])
    with tracer.span("apply", parent=job), tracer.span("write", items=1) as write:
        write.set(applied=1)
    with pytest.raises(ValueError, match="secret"), tracer.span("reread", parent=job):
        raise ValueError("secret")
    job.end(at=9_000)
    tracer.close()
    found: dict[str, ReadableSpan] = {span.name: span for span in memory.get_finished_spans()}
    assert (found["job"].start_time, found["job"].end_time, found["job"].parent) == (1_000, 9_000, None)
    assert dict(found["job"].attributes or {}) == {"docferry.changes": 2, "docferry.tables": ("public.t",)}
    assert found["apply"].parent == found["job"].get_span_context()
    assert found["write"].parent == found["apply"].get_span_context()
    assert dict(found["write"].attributes or {}) == {"docferry.items": 1, "docferry.applied": 1}
    assert not found["reread"].status.is_ok
    assert found["reread"].status.description == "ValueError"
    assert "secret" not in found["reread"].to_json()
