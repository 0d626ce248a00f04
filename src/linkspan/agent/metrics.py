"""Prometheus metrics of the agent."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

_SECONDS = (0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0, 5.0)

Gauge = tuple[str, str, str, dict[str, float]]
"""A gauge: its name, help, label, and values by the label's; one without a label has the key ''."""


class Metrics:
    """Counters of what happened. The caller gives the gauges, which are read at each request."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._operations = Counter(
            "linkspan_operations", "Attach and detach, by result", ["verb", "result"], registry=self._registry
        )
        self._seconds = Histogram(
            "linkspan_operation_seconds",
            "Time an operation took",
            ["verb"],
            registry=self._registry,
            buckets=_SECONDS,
        )
        self.heals = Counter(
            "linkspan_heals", "Repairs, by kind of object", ["kind"], registry=self._registry
        )
        self._upkeep = Counter(
            "linkspan_store_upkeep", "What this agent did for the store, by verb", ["verb"], registry=self._registry
        )
        self.session_drops = Counter(
            "linkspan_bgp_session_drops", "BGP sessions that went down", ["peer"], registry=self._registry
        )
        self.speaker_restarts = Counter(
            "linkspan_bgp_speaker_restarts", "Starts of the BGP speaker after its first", registry=self._registry
        )

    def count_upkeep(self, verb: str) -> None:
        """Count one thing that was done for the store: compact, defragment, disarm."""
        self._upkeep.labels(verb).inc()

    def operation(self, verb: str, result: str, seconds: float) -> None:
        """Count an attach or a detach."""
        self._operations.labels(verb, result).inc()
        self._seconds.labels(verb).observe(seconds)

    def text(self, gauges: Iterable[Gauge]) -> bytes:
        """Return the counters and these gauges in Prometheus' text format."""
        return generate_latest(self._registry) + exposition(map(_table, gauges))


Table = tuple[str, str, tuple[str, ...], dict[tuple[str, ...], float]]
"""A gauge with any number of labels: its name, help, the labels' names, and values by the labels'."""


def _table(gauge: Gauge) -> Table:
    name, help_, label, values = gauge
    labels: tuple[str, ...] = (label,) if label else ()
    return name, help_, labels, {(one,) * len(labels): value for one, value in values.items()}


class _Tables(Collector):
    def __init__(self, tables: Iterable[Table]) -> None:
        self._tables = list(tables)

    def collect(self) -> Iterable[GaugeMetricFamily]:
        for name, help_, labels, values in self._tables:
            gauge = GaugeMetricFamily(name, help_, labels=labels)
            for one, value in values.items():
                gauge.add_metric(one, value)
            yield gauge


def exposition(tables: Iterable[Table]) -> bytes:
    """Return gauges in Prometheus' text format."""
    registry = CollectorRegistry()
    registry.register(_Tables(tables))
    return generate_latest(registry)
