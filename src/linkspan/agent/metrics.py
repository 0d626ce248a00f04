"""Prometheus metrics: what an agent counts, and Prometheus' text format.

The format is a few lines for each metric. The package prometheus_client writes it, too, but brings a web server and an
HTTP client along, which would be 1 MB in the memory of each agent.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Iterable, Iterator

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
        self._values[values] = self._values.get(values, 0.0) + 1

    def lines(self) -> Iterator[str]:
        """Yield the counter's lines of text."""
        yield from _head(self._name, self._help, "counter")
        yield from (_line(self._name, self._labels, *one) for one in self._values.items())


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

    def lines(self) -> Iterator[str]:
        """Yield the histogram's lines of text."""
        yield from _head(self._name, self._help, "histogram")
        for value, counts in self._buckets.items():
            for bound, count in zip(_SECONDS, itertools.accumulate(counts), strict=True):
                yield _line(f"{self._name}_bucket", (self._label, "le"), (value, _number(bound)), count)
            yield _line(f"{self._name}_count", (self._label,), (value,), sum(counts))
            yield _line(f"{self._name}_sum", (self._label,), (value,), self._sums[value])


class Metrics:
    """Counters of what happened. The caller gives the gauges, which are read at each request."""

    def __init__(self) -> None:
        self._operations = Counter(
            "linkspan_operations_total", "Attach and detach, by result", "verb", "result"
        )
        self._seconds = _Histogram("linkspan_operation_seconds", "Time an operation took", "verb")
        self.heals = Counter("linkspan_heals_total", "Repairs, by kind of object", "kind")
        self.upkeep = Counter("linkspan_store_upkeep_total", "What this agent did for the store, by verb", "verb")
        self.session_drops = Counter("linkspan_bgp_session_drops_total", "BGP sessions that went down", "peer")
        self.speaker_restarts = Counter(
            "linkspan_bgp_speaker_restarts_total", "Starts of the BGP speaker after its first"
        )

    def operation(self, verb: str, result: str, seconds: float) -> None:
        """Count an attach or a detach."""
        self._operations.count(verb, result)
        self._seconds.add(verb, seconds)

    def text(self, gauges: Iterable[Gauge]) -> bytes:
        """Return the counters and these gauges in Prometheus' text format."""
        counted = (
            self._operations, self._seconds, self.heals, self.upkeep, self.session_drops, self.speaker_restarts
        )
        return _text(line for one in counted for line in one.lines()) + exposition(map(_table, gauges))


def _table(gauge: Gauge) -> Table:
    name, help_, label, values = gauge
    labels: tuple[str, ...] = (label,) if label else ()
    return name, help_, labels, {(one,) * len(labels): value for one, value in values.items()}


def exposition(tables: Iterable[Table]) -> bytes:
    """Return gauges in Prometheus' text format."""
    return _text(line for table in tables for line in _gauge(*table))


def _gauge(
    name: str, help_: str, labels: tuple[str, ...], values: dict[tuple[str, ...], float]
) -> Iterator[str]:
    yield from _head(name, help_, "gauge")
    yield from (_line(name, labels, *one) for one in values.items())


def _head(name: str, help_: str, type_: str) -> tuple[str, str]:
    return f"# HELP {name} {help_}", f"# TYPE {name} {type_}"


def _line(name: str, labels: tuple[str, ...], values: tuple[str, ...], number: float) -> str:
    pairs = ",".join(f'{label}="{_quoted(value)}"' for label, value in zip(labels, values, strict=True))
    return f"{name}{{{pairs}}} {_number(number)}" if pairs else f"{name} {_number(number)}"


def _quoted(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _number(number: float) -> str:
    """Return a number as Go writes it: infinity is ``+Inf``."""
    return str(float(number)) if math.isfinite(number) else {math.inf: "+Inf", -math.inf: "-Inf"}.get(number, "NaN")


def _text(lines: Iterable[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()
