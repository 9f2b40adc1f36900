"""A worker's figures as Prometheus reads them. docs/operations.md says what each of them means."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from docferry.errors import MissingExtra
from docferry.metrics import Histogram, Metrics
from docferry.operate.health import Health, Watched

try:
    from prometheus_client import CollectorRegistry, Metric, ProcessCollector
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
    from prometheus_client.exposition import choose_encoder
except ImportError as missing:
    raise MissingExtra(
        f"/metrics needs prometheus-client, which is not installed ({missing})",
        remedy="Run `pip install 'docferry[metrics]'`, or leave --listen and [run] listen out.",
    ) from missing

__all__ = ["MetricsPage"]

_SLOT_STATES: Final = ("reserved", "extended", "unreserved", "lost")
_COUNTED: Final = {
    "applied": "Changes written to the target.",
    "stale": "Changes that found something at least as new at the target.",
    "dead": "Changes that became dead letters.",
    "reread": "Changes settled by reading the current row.",
}
_NAMES: Final = {"dead": "dead_letters"}


class MetricsPage:
    """Renders the figures of one worker. `collections`: the mirrors' tables by collection. `lag_seconds`,
    `tombstones`: as the heartbeat has them. `running`: whether the worker has not been told to stop."""

    def __init__(
        self,
        metrics: Metrics,
        health: Health,
        pipeline: Watched,
        *,
        collections: Mapping[str, str],
        lag_seconds: Callable[[], float],
        tombstones: Callable[[], int],
        running: Callable[[], bool],
        version: str,
    ) -> None:
        self._metrics = metrics
        self._health = health
        self._pipeline = pipeline
        self._collections = collections
        self._lag_seconds = lag_seconds
        self._tombstones = tombstones
        self._running = running
        self._version = version
        self._registry = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=self._registry)
        self._registry.register(self)

    def __call__(self, accept: str) -> tuple[str, bytes]:
        """(content type, text), in the format that the Accept header asks for."""
        encoder, kind = choose_encoder(accept)
        return kind, encoder(self._registry)

    def collect(self) -> Iterator[Metric]:
        """See prometheus_client: called with every scrape."""
        yield from self._of_worker()
        yield from self._of_tables()
        yield from self._of_target()
        yield from self._of_stream()
        yield from self._of_backfills()
        yield from self._of_dead_letters()

    def _of_worker(self) -> Iterator[Metric]:
        info = GaugeMetricFamily("docferry_build_info", "1, with the version as a label.", labels=["version"])
        info.add_metric([self._version], 1)
        yield info
        ready = self._health.ready()
        streaming = self._pipeline.not_streaming is None
        state = "stopping" if not self._running() else "streaming" if streaming else "connecting"
        yield _state(
            "docferry_worker_state",
            "The worker's state, 1 at the one it is in.",
            state,
            ("streaming", "connecting", "stopping"),
        )
        yield GaugeMetricFamily("docferry_ready", "1 when /readyz says 200.", float(all(check.ok for check in ready)))
        checks = GaugeMetricFamily("docferry_check_ok", "1 for each check of /readyz that holds.", labels=["check"])
        for check in ready:
            checks.add_metric([check.name.replace(" ", "_")], float(check.ok))
        yield checks
        yield GaugeMetricFamily(
            "docferry_in_flight_changes", "Changes read and not yet durable.", float(self._pipeline.in_flight)
        )
        yield GaugeMetricFamily(
            "docferry_in_flight_bytes", "Bytes that these hold in memory.", float(self._pipeline.in_flight_bytes)
        )
        yield GaugeMetricFamily(
            "docferry_tombstones_pending", "Tombstones that wait to be removed.", float(self._tombstones())
        )
        if (peak := _peak_memory()) is not None:
            yield GaugeMetricFamily("docferry_peak_memory_bytes", "The most memory that was ever resident.", peak)
        yield _histogram("docferry_job_changes", "Changes a job.", self._metrics.job_changes)
        yield _histogram(
            "docferry_latency_seconds",
            "From commit to durable; changes of a job count with its oldest.",
            self._metrics.latency,
        )

    def _of_tables(self) -> Iterator[Metric]:
        """Whatever is counted by table, so that new counts need nothing here."""
        snapshot = self._metrics.snapshot()
        rate = GaugeMetricFamily("docferry_change_rate", "Changes a second over the last minute.", labels=["table"])
        counters: dict[str, CounterMetricFamily] = {}
        for table in sorted({*snapshot, *self._collections.values()}):
            counts: Mapping[str, Any] = snapshot.get(table, {})
            rate.add_metric([table], float(counts.get("rate", 0.0)))
            for name in [*_COUNTED, *(name for name in counts if name not in _COUNTED and name != "rate")]:
                value = counts.get(name, 0)
                nested = isinstance(value, Mapping)
                if not nested and not isinstance(value, int | float):
                    continue
                if name not in counters:
                    counters[name] = CounterMetricFamily(
                        f"docferry_{_NAMES.get(name, name)}",
                        _COUNTED.get(name, f"Counted as {name}."),
                        labels=["table", "kind"] if nested else ["table"],
                    )
                for labels, count in (
                    [([table, str(kind)], one) for kind, one in value.items()] if nested else [([table], value)]
                ):
                    counters[name].add_metric(labels, float(count))
        yield rate
        yield from counters.values()

    def _of_target(self) -> Iterator[Metric]:
        retried, throttled = self._metrics.retries()
        again = CounterMetricFamily(
            "docferry_retries", "Pauses before something is sent to the target again.", labels=["table", "reason"]
        )
        for (collection, reason), count in sorted(retried.items()):
            again.add_metric([self._collections.get(collection, collection), reason], count)
        yield again
        refused = CounterMetricFamily(
            "docferry_throttled_writes", "Writes refused for want of throughput, and sent again.", labels=["table"]
        )
        for collection, table in sorted(self._collections.items()):
            refused.add_metric([table], throttled.get(collection, 0))
        yield refused
        yield _histogram("docferry_request_items", "Items a write request.", self._metrics.request_items)

    def _of_stream(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            "docferry_lag_seconds",
            "Age of the oldest change that is not at the target, as well as it is known.",
            self._lag_seconds(),
        )
        yield GaugeMetricFamily(
            "docferry_source_seen_seconds", "Seconds since the source has last answered.", self._health.source_seen
        )
        stream = self._health.stream
        if stream is None:
            return  # old figures would say that all is well
        yield GaugeMetricFamily("docferry_watermark_position", "The confirmed position.", float(stream.confirmed))
        if stream.unit == "changes":
            yield GaugeMetricFamily("docferry_outbox_changes", "Changes that wait in the outbox.", float(stream.lag))
            yield GaugeMetricFamily("docferry_outbox_bytes", "Bytes of the outbox.", float(stream.retained))
            yield GaugeMetricFamily(
                "docferry_outbox_oldest_seconds", "How long the oldest of them waits.", stream.oldest_seconds or 0.0
            )
            return
        yield GaugeMetricFamily("docferry_lag_bytes", "Bytes of WAL behind the server's position.", float(stream.lag))
        yield _state(
            "docferry_slot_state",
            "wal_status of the replication slot, 1 at the one it is in.",
            stream.health,
            _SLOT_STATES,
        )
        yield GaugeMetricFamily("docferry_slot_active", "1 while somebody reads the slot.", float(stream.active))
        yield GaugeMetricFamily(
            "docferry_slot_retained_bytes", "WAL that the server keeps for the slot.", float(stream.retained)
        )
        if (safe := stream.safe) is not None:
            yield GaugeMetricFamily(
                "docferry_slot_safe_wal_bytes", "WAL that may still be written before the slot is lost.", float(safe)
            )

    def _of_backfills(self) -> Iterator[Metric]:
        labels = ["table"]
        rows = GaugeMetricFamily("docferry_backfill_rows", "Rows that the backfill has carried.", labels=labels)
        total = GaugeMetricFamily("docferry_backfill_rows_estimate", "Rows of the table, estimated.", labels=labels)
        active = GaugeMetricFamily("docferry_backfill_active", "1 while the backfill is under way.", labels=labels)
        for table, count in sorted(self._metrics.backfills().items()):
            rows.add_metric([table], count.rows)
            total.add_metric([table], count.total)
            active.add_metric([table], float(count.active))
        yield from (rows, total, active)

    def _of_dead_letters(self) -> Iterator[Metric]:
        if self._health.stream is None:
            return
        kept = GaugeMetricFamily("docferry_dead_letters_kept", "Dead letters in the source.", labels=["table"])
        found = self._health.kept
        for table in sorted({*found, *self._collections.values()}):
            kept.add_metric([table], found.get(table, 0))
        yield kept


def _histogram(name: str, text: str, histogram: Histogram) -> Metric:
    counts, total = histogram.snapshot()
    bounds = [*(repr(float(bound)) for bound in histogram.bounds), "+Inf"]
    return HistogramMetricFamily(name, text, list(zip(bounds, counts, strict=True)), total)


def _state(name: str, text: str, state: str, states: tuple[str, ...]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=["state"])
    for one in dict.fromkeys((*states, state)):
        family.add_metric([one], float(one == state))
    return family


def _peak_memory() -> float | None:
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak if sys.platform == "darwin" else peak * 1024)
