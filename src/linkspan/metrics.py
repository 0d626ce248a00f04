"""Prometheus metrics of the agent."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

_SECONDS = (0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0, 5.0)

Gauges = Callable[[], Iterable[tuple[str, str, str, dict[str, float]]]]
"""Yields (name, help, label, value by the label's); a gauge without a label has the key ''."""


class Metrics:
    """Counters kept here, and gauges read from the agent when they are asked for."""

    def __init__(self, gauges: Gauges) -> None:
        self._registry = CollectorRegistry()
        self.operations = Counter(
            "linkspan_operations", "Attach and detach, by result", ["verb", "result"], registry=self._registry
        )
        self.seconds = Histogram(
            "linkspan_operation_seconds",
            "Time an operation took",
            ["verb"],
            registry=self._registry,
            buckets=_SECONDS,
        )
        self.heals = Counter(
            "linkspan_heals", "Repairs, by kind of object", ["kind"], registry=self._registry
        )
        self.session_drops = Counter(
            "linkspan_bgp_session_drops", "BGP sessions that went down", ["peer"], registry=self._registry
        )
        self.speaker_restarts = Counter(
            "linkspan_bgp_speaker_restarts", "Starts of the BGP speaker after its first", registry=self._registry
        )
        self._registry.register(_Gauges(gauges))

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self._registry)


class _Gauges(Collector):
    def __init__(self, gauges: Gauges) -> None:
        self._gauges = gauges

    def collect(self) -> Iterable[GaugeMetricFamily]:
        for name, help_, label, values in self._gauges():
            gauge = GaugeMetricFamily(name, help_, labels=[label] if label else [])
            for one, value in values.items():
                gauge.add_metric([one] if label else [], value)
            yield gauge


Table = tuple[str, str, tuple[str, ...], dict[tuple[str, ...], float]]
"""A gauge with any number of labels: its name, help, the labels' names, and values by the labels'."""


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
