"""The pages that a worker answers with, over real connections."""

from __future__ import annotations

import http.client
import importlib
import json
import re
import socket
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families as plain

from docferry.capture.contract import StreamState
from docferry.config import ListenAddress, parse_address
from docferry.errors import ConfigError, DocferryError, MissingExtra, SourceUnavailable
from docferry.metrics import Metrics
from docferry.operate.exposition import MetricsPage
from docferry.operate.health import Check, Health, HealthLimits
from docferry.operate.listen import Listener

from .test_health import Pipeline

OUTBOX = StreamState(0, 7, active=True, retained=900, health="", unit="changes", oldest_seconds=12.0)


class Answers:
    def __init__(self) -> None:
        self.alive = [Check("loop")]
        self.well = [Check("stream"), Check("source", "no answer", "Start it.")]

    def live(self) -> list[Check]:
        return self.alive

    def ready(self) -> list[Check]:
        return self.well


@pytest.fixture
def listener() -> Iterator[Listener]:
    listening = Listener(ListenAddress("127.0.0.1", 0))
    yield listening
    listening.close()


def ask(listener: Listener, path: str, method: str = "GET", accept: str = "*/*") -> tuple[int, str, str]:
    with closing(http.client.HTTPConnection(listener.address.host, listener.address.port, timeout=10)) as connection:
        connection.request(method, path, headers={"Accept": accept})
        answer = connection.getresponse()
        return answer.status, answer.headers["Content-Type"], answer.read().decode()


def test_while_the_worker_starts(listener: Listener) -> None:
    assert ask(listener, "/livez")[0] == 200
    status, kind, body = ask(listener, "/readyz")
    assert (status, kind) == (503, "application/json")
    assert json.loads(body)["checks"][0]["why"] == "the worker is starting"
    assert ask(listener, "/metrics")[0] == 503
    assert ask(listener, "/")[0] == 404
    assert ask(listener, "/livez", "POST")[0] == 501


def test_what_the_checks_say(listener: Listener) -> None:
    answers = Answers()
    listener.show(answers, lambda accept: ("text/plain", f"for {accept}".encode()))
    assert ask(listener, "/livez")[0] == 200
    status, _, body = ask(listener, "/readyz?verbose")
    assert status == 503
    assert json.loads(body) == {
        "ready": False,
        "checks": [
            {"check": "stream", "ok": True},
            {"check": "source", "ok": False, "why": "no answer", "remedy": "Start it."},
        ],
    }
    assert ask(listener, "/readyz", "HEAD") == (503, "application/json", "")
    answers.well.pop()
    assert ask(listener, "/readyz")[0] == 200
    answers.alive = [Check("loop", "it hangs")]
    assert ask(listener, "/livez")[0] == 503
    assert ask(listener, "/metrics", accept="a/b") == (200, "text/plain", "for a/b")


def test_those_who_only_hold_connections_do_not_use_it_up(listener: Listener) -> None:
    held = [socket.create_connection((listener.address.host, listener.address.port)) for _ in range(20)]
    for one in held:
        one.close()
    for _ in range(50):
        try:
            if ask(listener, "/livez")[0] == 200:
                return
        except OSError:
            continue
    pytest.fail("nobody answers any more")


def test_an_address_that_cannot_be_had(listener: Listener) -> None:
    with pytest.raises(ConfigError, match=f"cannot listen on {re.escape(str(listener.address))}") as caught:
        Listener(listener.address)
    assert "--listen" in caught.value.remedy
    with pytest.raises(ConfigError, match="cannot listen on"):
        Listener(ListenAddress("192.0.2.1", 0))


def test_every_address() -> None:
    every = Listener(ListenAddress("", 0))
    try:
        with closing(socket.create_connection(("127.0.0.1", every.address.port), timeout=10)):
            pass
    finally:
        every.close()


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:9187", ListenAddress("127.0.0.1", 9187)),
        ("db.example.com:0", ListenAddress("db.example.com", 0)),
        (":9187", ListenAddress("", 9187)),
        ("[::1]:9187", ListenAddress("::1", 9187)),
        ("::1:9187", None),
        ("9187", None),
        (":", None),
        (":65536", None),
        ("host:-1", None),
        ("http://host:1", None),
    ],
)
def test_addresses(text: str, address: ListenAddress | None) -> None:
    assert parse_address(text) == address
    assert address is None or str(address) == text


class TestMetrics:
    def page(self, metrics: Metrics, *answers: StreamState | DocferryError) -> MetricsPage:
        """After as many looks at the source as it gives `answers`."""
        left = list(answers)

        def state() -> StreamState:
            answer = left.pop(0)
            if isinstance(answer, DocferryError):
                raise answer
            return answer

        health = Health(
            Pipeline(),
            metrics,
            HealthLimits(),
            state=state,
            count_letters=lambda: {"public.t": 2},
        )
        while left:
            health.look()
        return MetricsPage(
            metrics,
            health,
            Pipeline(in_flight=3, in_flight_bytes=300),
            collections={"items-t": "public.t"},
            lag_seconds=lambda: 1.5,
            tombstones=lambda: 4,
            running=lambda: True,
            version="1.2",
        )

    def test_names_and_labels(self) -> None:
        metrics = Metrics()
        metrics.count("public.t", applied=5, dead=1)
        metrics.durable(3, 0.015)
        metrics.durable(1, 7.0)
        metrics.requested(25)
        metrics.throttled("items-t")
        metrics.held_up("items-t", "slow down", throttled=True)
        page = self.page(metrics, StreamState(100, 150, active=True, retained=4096, health="extended", safe=77))
        kind, text = page("")
        assert kind.startswith("text/plain")
        found = {
            (sample.name, *sample.labels.values()): sample.value
            for family in plain(text.decode())
            for sample in family.samples
        }
        assert found["docferry_applied_total", "public.t"] == 5
        assert found["docferry_dead_letters_total", "public.t"] == 1
        assert found["docferry_dead_letters_kept", "public.t"] == 2
        assert found["docferry_throttled_writes_total", "public.t"] == 1
        assert found["docferry_retries_total", "throttled", "public.t"] == 1
        assert found["docferry_latency_seconds_bucket", "0.01"] == 0
        assert found["docferry_latency_seconds_bucket", "0.02"] == 3
        assert found["docferry_latency_seconds_bucket", "+Inf"] == found[("docferry_latency_seconds_count",)] == 4
        assert found[("docferry_latency_seconds_sum",)] == pytest.approx(7.045)
        assert found["docferry_job_changes_bucket", "1.0"] == 1
        assert found[("docferry_lag_bytes",)] == 50
        assert found[("docferry_slot_retained_bytes",)] == 4096
        assert found[("docferry_slot_safe_wal_bytes",)] == 77
        assert found["docferry_slot_state", "extended"] == 1
        assert found["docferry_slot_state", "reserved"] == 0
        assert found["docferry_build_info", "1.2"] == 1
        assert [name for name, *_ in found if not re.fullmatch(r"(docferry|process)_[a-z_]+", name)] == []

        kind, text = page("application/openmetrics-text; version=1.0.0")
        assert "openmetrics" in kind
        assert list(open_metrics(text.decode()))  # type: ignore[no-untyped-call]

        documented = (Path(__file__).parents[3] / "docs" / "operations.md").read_text(encoding="utf-8")
        ours = {sample.partition("_bucket")[0] for sample, *_ in found if sample.startswith("docferry_")}
        names = {name.removesuffix("_count").removesuffix("_sum") for name in ours}
        assert [name for name in sorted(names) if f"`{name}" not in documented] == []

    def test_of_an_outbox(self) -> None:
        _, text = self.page(Metrics(), OUTBOX)("")
        assert b"docferry_outbox_changes 7.0" in text
        assert b"docferry_outbox_oldest_seconds 12.0" in text
        assert b"docferry_slot" not in text

    def test_a_source_that_is_away(self) -> None:
        """What it said last would look as if all was well."""
        seen = StreamState(100, 100, active=True, retained=4096, health="reserved", safe=77)
        of_source = (b"docferry_slot_", b"docferry_lag_bytes", b"docferry_watermark", b"docferry_dead_letters_kept")
        _, text = self.page(Metrics(), seen)("")
        assert [name for name in of_source if name not in text] == []
        _, text = self.page(Metrics(), seen, SourceUnavailable("no answer"))("")
        assert [name for name in of_source if name in text] == []
        assert b"docferry_source_seen_seconds " in text

    def test_counts_that_come_later_need_nothing_here(self, monkeypatch: pytest.MonkeyPatch) -> None:
        metrics = Metrics()
        counts = {"applied": 1, "repaired": 2, "drift": {"missing": 3, "stale": 0}, "note": "text"}
        monkeypatch.setattr(metrics, "snapshot", lambda: {"public.t": counts})
        _, text = self.page(metrics, StreamState(0, 0, active=True, retained=0, health="reserved"))("")
        assert b'docferry_repaired_total{table="public.t"} 2.0' in text
        assert b'docferry_drift_total{kind="missing",table="public.t"} 3.0' in text
        assert b"note" not in text

    def test_without_the_library(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "prometheus_client", None)
        monkeypatch.delitem(sys.modules, "docferry.operate.exposition")
        with pytest.raises(MissingExtra) as caught:
            importlib.import_module("docferry.operate.exposition")
        assert "pip install 'docferry[metrics]'" in caught.value.remedy
        assert caught.value.exit_code == 2
