"""run --listen: what a probe and Prometheus see of a worker that is well, and of one that is not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psycopg
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from prometheus_client.parser import text_string_to_metric_families

from docferry.embedded.dynamodb import EmbeddedDynamoDB
from docferry.embedded.postgres import EmbeddedPostgres

from ..waiting import PATIENCE
from .conftest import Ferry, WorkerProcess

TABLE = "CREATE TABLE orders (id int PRIMARY KEY, body xml, note text)"
ROWS = "INSERT INTO orders SELECT n, '<a><b>1</b></a>', 'row ' || n FROM generate_series(1, 20) n"
LISTEN = ("--listen", "127.0.0.1:0", "--log-format", "json")


class Probe:
    """The three pages of a worker that listens."""

    def __init__(self, worker: WorkerProcess) -> None:
        line = json.loads(worker.wait_for("/livez"))
        self._base = f"http://{line['address']}"

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(self._base + path, timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def live(self) -> bool:
        return self.get("/livez")[0] == 200

    def wrong(self) -> dict[str, str]:
        """What is wrong by check; empty when it is ready."""
        code, body = self.get("/readyz")
        answer = json.loads(body)
        assert answer["ready"] is (code == 200)
        return {one["check"]: one["why"] for one in answer["checks"] if not one["ok"]}

    def metrics(self) -> dict[tuple[str, str], float]:
        """Samples by name and the value of the label `table`, or else of the only one."""
        code, body = self.get("/metrics")
        assert code == 200
        return {
            (sample.name, sample.labels.get("table") or next(iter(sample.labels.values()), "")): sample.value
            for family in text_string_to_metric_families(body)
            for sample in family.samples
        }


def begin(ferry: Ferry, **settings: Any) -> None:
    """A table with rows, and docferry applied to it."""
    ferry.execute(TABLE, ROWS)
    configure(ferry, **settings)
    ferry.run("apply")


def configure(ferry: Ferry, **settings: Any) -> None:
    path = ferry.write_config("public.orders", **settings)
    path.write_text(path.read_text() + '[health]\nstuck_after = "1s"\n')


def attention(ferry: Ferry) -> str:
    return " | ".join(one["problem"] for one in ferry.json("status")["attention"])


def test_ready_counted_and_full_of_dead_letters(ferry: Ferry) -> None:
    begin(ferry, dead_letters={"limit": 2})
    worker = ferry.start_worker(*LISTEN, "--json", DOCFERRY_TOMBSTONE_GRACE="3600")
    probe = Probe(worker)
    ferry.eventually(lambda: not probe.wrong(), what="readiness")
    assert probe.live()
    assert probe.get("/elsewhere")[0] == 404
    ferry.run("wait")

    ferry.execute("UPDATE orders SET note = 'changed' WHERE id <= 5", "DELETE FROM orders WHERE id = 6")
    # DynamoDB stores no items above 400 KB.
    ferry.execute("UPDATE orders SET note = repeat('x', 500000) WHERE id IN (7, 8)")
    ferry.run("wait")
    ferry.eventually(lambda: "dead letters" in probe.wrong(), what="being full of dead letters")
    assert "2 dead letters are kept, the limit is 2" in probe.wrong()["dead letters"]
    assert probe.live()
    ferry.eventually(lambda: "the worker is not ready: 2 dead letters are kept" in attention(ferry))

    found = probe.metrics()
    table = "public.orders"
    assert found["docferry_applied_total", table] == 26
    assert found["docferry_stale_total", table] == 0
    assert found["docferry_dead_letters_total", table] == 2
    assert found["docferry_dead_letters_kept", table] == 2
    assert found["docferry_latency_seconds_count", ""] == 8
    assert found["docferry_latency_seconds_sum", ""] > 0
    assert found["docferry_job_changes_count", ""] >= 1
    assert found["docferry_job_changes_sum", ""] == 8
    assert found["docferry_request_items_sum", ""] == 26
    assert found["docferry_backfill_rows", table] == 20
    assert found["docferry_backfill_active", table] == 0
    assert found["docferry_slot_state", "reserved"] == 1
    assert found["docferry_slot_active", ""] == 1
    assert found["docferry_worker_state", "streaming"] == 1
    assert found["docferry_ready", ""] == 0
    assert found["docferry_check_ok", "dead_letters"] == 0
    assert found["docferry_tombstones_pending", ""] == 1
    assert found["docferry_in_flight_changes", ""] == found["docferry_in_flight_bytes", ""] == 0
    assert found["process_resident_memory_bytes", ""] > 1 << 20
    ferry.eventually(lambda: probe.metrics()["docferry_lag_bytes", ""] < 1 << 20)

    ferry.run("deadletters", "discard", "--all", "--yes")
    ferry.eventually(lambda: not probe.wrong(), what="readiness")

    assert worker.stop() == 0
    counts = json.loads("".join(worker.output))["tables"][table]
    assert (counts["applied"], counts["dead"]) == (26, 2)
    lines = [json.loads(line) for line in worker.log]
    assert all(line["time"].endswith("Z") and line["level"] and line["logger"] and line["thread"] for line in lines)
    letters = [line for line in lines if line["message"].startswith("dead letter: ")]
    assert [(one["table"], one["cause"]) for one in letters] == [(table, "too-large")] * 2
    assert {one["key"]["id"] for one in letters} == {"7", "8"}
    assert all(int(one["version"]) > 2**64 for one in letters)


def test_a_target_that_is_away(ferry: Ferry, tmp_path: Path) -> None:
    with EmbeddedDynamoDB(tmp_path / "own") as target:
        begin(ferry, target={"endpoint_url": target.endpoint_url})
        probe = Probe(ferry.start_worker(*LISTEN))
        ferry.run("wait")
        ferry.eventually(lambda: not probe.wrong(), what="readiness")
        target.stop()
        ferry.execute("UPDATE orders SET note = 'meanwhile'")
        ferry.eventually(lambda: "target" in probe.wrong(), what="a target that is away")
        why = probe.wrong()
        assert "nothing has become durable in" in why["target"]
        assert "orders" in why["target"]
        assert probe.live()
        ferry.eventually(lambda: "the worker is not ready: nothing has become durable" in attention(ferry))
        found = probe.metrics()
        assert found["docferry_in_flight_changes", ""] == 20
        changed = time.monotonic()
        ferry.eventually(lambda: time.monotonic() - changed > 2, what="a moment")
        assert probe.metrics()["docferry_lag_seconds", ""] > 2
        assert found["docferry_retries_total", "public.orders"] > 0
        target.start()
        ferry.eventually(lambda: not probe.wrong(), what="readiness")
        ferry.run("wait")
        ferry.eventually(lambda: "not ready" not in attention(ferry))


def test_a_source_that_is_away(postgres_server: EmbeddedPostgres, dynamodb: EmbeddedDynamoDB, tmp_path: Path) -> None:
    ferry = Ferry(postgres_server.dsn(), dynamodb, tmp_path)
    try:
        begin(ferry)
        probe = Probe(ferry.start_worker(*LISTEN))
        ferry.eventually(lambda: not probe.wrong(), what="readiness")
        postgres_server.kill()
        ferry.eventually(lambda: {"stream", "source"} <= set(probe.wrong()), what="a source that is away")
        assert "does not stream" in probe.wrong()["stream"]
        assert probe.live()
        found = probe.metrics()
        assert found["docferry_worker_state", "connecting"] == 1
        # What is known is old: figures that would look well are left out, and the others grow.
        assert [name for name, _ in found if name.startswith(("docferry_slot_", "docferry_lag_bytes"))] == []
        ferry.eventually(lambda: probe.metrics()["docferry_source_seen_seconds", ""] > 5, what="a long silence")
        assert probe.metrics()["docferry_lag_seconds", ""] > 5
        postgres_server.start()
        ferry.eventually(lambda: not probe.wrong(), what="readiness")
        assert probe.metrics()["docferry_slot_state", "reserved"] == 1
        ferry.eventually(lambda: probe.metrics()["docferry_lag_seconds", ""] == 0, what="everything there")
    finally:
        ferry.close()


def test_a_backlog_that_the_source_has_not_sent(ferry: Ferry) -> None:
    begin(ferry)
    probe = Probe(ferry.start_worker(*LISTEN))
    ferry.eventually(lambda: not probe.wrong(), what="readiness")
    ferry.run("wait")
    ferry.eventually(lambda: probe.metrics()["docferry_lag_seconds", ""] == 0, what="everything there")
    [(sender,)] = ferry.query(f"SELECT active_pid FROM pg_replication_slots WHERE slot_name = '{ferry.slot}'")
    os.kill(sender, signal.SIGSTOP)
    try:
        ferry.execute("UPDATE orders SET note = 'meanwhile'")
        ferry.eventually(lambda: probe.metrics()["docferry_lag_seconds", ""] > 3, what="a lag")
        assert probe.metrics()["docferry_in_flight_changes", ""] == 0
    finally:
        os.kill(sender, signal.SIGCONT)
    ferry.run("wait")
    ferry.eventually(lambda: probe.metrics()["docferry_lag_seconds", ""] == 0, what="everything there")


@pytest.mark.parametrize("prepared", [False, True])
def test_a_population_that_waits_for_a_transaction(ferry: Ferry, *, prepared: bool) -> None:
    """Of whatever table: it may have written what no page shows."""
    begin(ferry)
    ferry.execute("CREATE TABLE elsewhere (id int)")
    with psycopg.connect(ferry.dsn) as other:
        other.execute("INSERT INTO elsewhere VALUES (1)")
        ((pid,),) = other.execute("SELECT pg_backend_pid()").fetchall()
        name, remedy = f"of pid {pid} ", f"pg_terminate_backend({pid})"
        if prepared:
            name, remedy = "prepared transaction 'o''clock'", "ROLLBACK PREPARED 'o''clock'"
            other.execute("PREPARE TRANSACTION 'o''clock'")
            other.commit()
        probe = Probe(ferry.start_worker(*LISTEN))
        ferry.eventually(lambda: "backfills" in probe.wrong(), what="a population that waits")
        assert "the backfill of public.orders has waited for " in probe.wrong()["backfills"]
        assert name in probe.wrong()["backfills"]
        assert probe.live()
        assert not ferry.items("orders")
        ferry.eventually(lambda: name in attention(ferry))
        [said] = [one for one in ferry.json("status")["attention"] if name in one["problem"]]
        assert remedy in said["remedy"]
        if prepared:
            ferry.execute("ROLLBACK PREPARED 'o''clock'")
        else:
            other.rollback()
        ferry.eventually(lambda: not probe.wrong(), what="readiness")
    ferry.run("wait")
    assert len(ferry.items("orders")) == 20


def test_a_table_that_somebody_locks(ferry: Ferry) -> None:
    begin(ferry)
    ferry.run("run", "--once")
    probe = Probe(ferry.start_worker(*LISTEN))
    ferry.eventually(lambda: not probe.wrong(), what="readiness")
    with psycopg.connect(ferry.dsn) as other:
        other.execute("LOCK TABLE orders IN ACCESS EXCLUSIVE MODE")
        # The lock's transaction would be waited for before L0 is taken.
        ferry.execute("UPDATE docferry.backfills SET state = 'running', done_key = NULL, rows_done = 0")
        ferry.eventually(lambda: "backfills" in probe.wrong(), what="a page that waits")
        assert "the backfill of public.orders has got no page done for " in probe.wrong()["backfills"]
        assert probe.live()
        ferry.eventually(lambda: "has got no page done" in attention(ferry))
    ferry.eventually(lambda: not probe.wrong(), what="readiness")


def test_without_listening_nothing_of_it_is_imported(ferry: Ferry) -> None:
    begin(ferry)
    program = (
        "import atexit, sys\n"
        "names = 'prometheus_client', 'opentelemetry', 'http.server'\n"
        "found = lambda: [name for name in names if name in sys.modules]\n"
        "atexit.register(lambda: print('imported:', found(), file=sys.stderr))\n"
        "from docferry.cli import main\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "run", "--once"],
        cwd=ferry.directory,
        env=ferry.environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    assert "imported: []" in done.stderr
    assert len(ferry.items("orders")) == 20


class Collector:
    """An OTLP collector that keeps what it is sent."""

    def __init__(self) -> None:
        collector = self
        self.spans: list[Span] = []
        self.services: set[str] = set()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                raw = self.rfile.read(int(self.headers["Content-Length"]))
                for resource in ExportTraceServiceRequest.FromString(raw).resource_spans:
                    names = {one.key: one.value.string_value for one in resource.resource.attributes}
                    collector.services.add(names["service.name"])
                    collector.spans += [span for scope in resource.scope_spans for span in scope.spans]
                self.send_response(200)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Tests are quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def named(self, name: str) -> list[Span]:
        return [span for span in self.spans if span.name == f"docferry.{name}"]


def attributes(span: Span) -> dict[str, Any]:
    """By name, without the prefix."""
    return {one.key.removeprefix("docferry."): one.value for one in span.attributes}


def test_traces(ferry: Ferry) -> None:
    begin(ferry)
    # The old key of a key change is read again.
    ferry.execute("UPDATE orders SET note = 'secret' WHERE id <= 5", "UPDATE orders SET id = 100 WHERE id = 20")
    collector = Collector()
    try:
        ferry.run("run", "--once", OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint)
    finally:
        collector.close()
    assert collector.services == {"docferry"}
    jobs = {span.span_id: span for span in collector.named("job")}
    assert sum(attributes(job)["changes"].int_value for job in jobs.values()) == 6
    for job in jobs.values():
        said = attributes(job)
        assert [one.string_value for one in said["tables"].array_value.values] == ["public.orders"]
        assert said["bytes"].int_value > 0
        assert said["watermark"].int_value >= 0
        assert not job.parent_span_id
        for part in ("read", "apply", "confirm"):
            [child] = [span for span in collector.named(part) if span.parent_span_id == job.span_id]
            assert job.start_time_unix_nano <= child.start_time_unix_nano
            assert child.end_time_unix_nano <= job.end_time_unix_nano
    # The backfill may have been quicker.
    outcomes = [attributes(span)[name].int_value for span in collector.named("apply") for name in ("applied", "stale")]
    assert sum(outcomes) >= 6
    inside = {span.span_id for span in collector.named("apply")}
    assert {span.parent_span_id for span in collector.named("write")} >= inside
    assert collector.named("reread")
    assert all(span.parent_span_id in inside for span in collector.named("reread"))
    assert sum(attributes(span)["rows"].int_value for span in collector.named("backfill.page")) == 20
    assert "secret" not in str(collector.spans)
