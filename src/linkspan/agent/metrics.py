"""Prometheus metrics: what an agent counts, and its text.

prometheus_client brings a web server and an HTTP client along: 1 MB in the memory of each agent. So it is loaded with
the first request for metrics, and events are counted without it.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prometheus_client.core import Metric

_SECONDS = (0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0, 5.0, math.inf)
"""Upper bounds of the histogram's buckets."""

Gauge = tuple[str, str, str, dict[str, float]]
"""A gauge: its name, help, label, and values by the label's; one without a label has the key ''."""

Table = tuple[str, str, tuple[str, ...], dict[tuple[str, ...], float]]
"""A gauge with any number of labels: its name, help, the labels' names, and values by the labels'."""


class Counter:
    """A number of events for each combination of the labels' values; without labels it begins at 0."""

    def __init__(self, name: str, help_: str, *labels: str) -> None:
        self._name, self._help, self._labels = name, help_, labels
        self._values: dict[tuple[str, ...], float] = {} if labels else {(): 0.0}

    def count(self, *values: str) -> None:
        """Count one event with these values of the labels."""
        self.add(1, *values)

    def add(self, number: int, *values: str) -> None:
        """Count several events with these values of the labels."""
        self._values[values] = self._values.get(values, 0.0) + number

    def metric(self) -> Metric:
        """Return it as Prometheus has it."""
        from prometheus_client.core import CounterMetricFamily

        found = CounterMetricFamily(self._name, self._help, labels=self._labels)
        for values, number in self._values.items():
            found.add_metric(values, number)
        return found


class _Histogram:
    """Durations in seconds, in buckets, for each value of one label."""

    def __init__(self, name: str, help_: str, label: str) -> None:
        self._name, self._help, self._label = name, help_, label
        self._buckets: dict[str, list[int]] = {}
        self._sums: dict[str, float] = {}

    def add(self, value: str, seconds: float) -> None:
        """Add a duration for this value of the label."""
        self._buckets.setdefault(value, [0] * len(_SECONDS))[bisect.bisect_left(_SECONDS, seconds)] += 1
        self._sums[value] = self._sums.get(value, 0.0) + seconds

    def metric(self) -> Metric:
        """Return it as Prometheus has it."""
        from prometheus_client.core import HistogramMetricFamily
        from prometheus_client.utils import floatToGoString

        found = HistogramMetricFamily(self._name, self._help, labels=(self._label,))
        bounds = list(map(floatToGoString, _SECONDS))
        for value, counts in self._buckets.items():
            found.add_metric((value,), [*zip(bounds, itertools.accumulate(counts), strict=True)], self._sums[value])
        return found


class Metrics:
    """Counters of what happened. The caller gives the gauges, which are read at each request."""

    def __init__(self) -> None:
        self._operations = Counter("linkspan_operations", "Attach and detach, by result", "verb", "result")
        self._seconds = _Histogram("linkspan_operation_seconds", "Time an operation took", "verb")
        self.heals = Counter("linkspan_heals", "Repairs, by kind of object", "kind")
        self.upkeep = Counter("linkspan_store_upkeep", "What this agent did for the store, by verb", "verb")
        self.session_drops = Counter("linkspan_bgp_session_drops", "BGP sessions that went down", "peer")
        self.speaker_restarts = Counter("linkspan_bgp_speaker_restarts", "Starts of the BGP speaker after its first")
        what = "Packets that policies refused, or would refuse if they were not staged"
        self.refusals = Counter("linkspan_policy_refused_packets", what, "policy", "direction", "effect")

    def operation(self, verb: str, result: str, seconds: float) -> None:
        """Count an attach or a detach."""
        self._operations.count(verb, result)
        self._seconds.add(verb, seconds)

    def text(self, gauges: Iterable[Gauge]) -> bytes:
        """Return the counters and these gauges in Prometheus' text format."""
        counted = (
            self._operations, self._seconds, self.heals, self.upkeep, self.session_drops, self.speaker_restarts,
            self.refusals,
        )  # fmt: skip
        return _text(one.metric() for one in counted) + exposition(map(_table, gauges))


def _table(gauge: Gauge) -> Table:
    name, help_, label, values = gauge
    labels: tuple[str, ...] = (label,) if label else ()
    return name, help_, labels, {(one,) * len(labels): value for one, value in values.items()}


def exposition(tables: Iterable[Table]) -> bytes:
    """Return gauges in Prometheus' text format."""
    return _text(_gauge(*table) for table in tables)


def _gauge(name: str, help_: str, labels: tuple[str, ...], values: dict[tuple[str, ...], float]) -> Metric:
    from prometheus_client.core import GaugeMetricFamily

    found = GaugeMetricFamily(name, help_, labels=labels)
    for one, value in values.items():
        found.add_metric(one, value)
    return found


class _Once:
    """Collector of Prometheus, with metrics that have been read already."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        """Yield them, for the only request."""
        yield from self._metrics


def _text(metrics: Iterable[Metric]) -> bytes:
    from prometheus_client import generate_latest

    return generate_latest(_Once(metrics))
