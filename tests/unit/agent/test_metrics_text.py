"""Text of the metrics: Prometheus' format, with what an agent counted."""

from __future__ import annotations

import math

from linkspan.agent.metrics import Metrics, exposition


def lines(metrics: Metrics) -> list[str]:
    """Return the lines of the counters, without gauges."""
    return metrics.text(()).decode().splitlines()


def test_a_counter_without_labels_begins_at_zero_and_one_with_labels_has_no_line() -> None:
    """Both have their type from the start."""
    told = lines(Metrics())
    assert "# TYPE linkspan_bgp_speaker_restarts_total counter" in told
    assert "linkspan_bgp_speaker_restarts_total 0.0" in told
    assert "# HELP linkspan_heals_total Repairs, by kind of object" in told
    assert "# TYPE linkspan_heals_total counter" in told
    assert not [line for line in told if line.startswith("linkspan_heals_total")]


def test_events_are_counted_by_the_values_of_the_labels() -> None:
    """Each combination has a line, in the order of the first event."""
    metrics = Metrics()
    for values in (("attach", "ok"), ("detach", "ok"), ("attach", "ok")):
        metrics.operation(*values, 0.001)
    assert [line for line in lines(metrics) if line.startswith("linkspan_operations_total")] == [
        'linkspan_operations_total{result="ok",verb="attach"} 2.0',
        'linkspan_operations_total{result="ok",verb="detach"} 1.0',
    ]


def test_a_bucket_counts_all_durations_up_to_its_bound() -> None:
    """A duration of exactly the bound is in it, and the last bucket has all."""
    metrics = Metrics()
    for seconds in (0.001, 0.0015, 7.0):
        metrics.operation("attach", "ok", seconds)
    told = lines(metrics)
    name = "linkspan_operation_seconds"
    assert f"# TYPE {name} histogram" in told
    for bound, number in (("0.001", 1), ("0.002", 2), ("5.0", 2), ("+Inf", 3)):
        assert f'{name}_bucket{{le="{bound}",verb="attach"}} {number}.0' in told
    assert f'{name}_count{{verb="attach"}} 3.0' in told
    assert f'{name}_sum{{verb="attach"}} {0.001 + 0.0015 + 7.0}' in told
    assert 'linkspan_operations_total{result="ok",verb="attach"} 3.0' in told


def test_a_value_of_a_label_cannot_end_its_line() -> None:
    """Quotes, backslashes and line ends of a name are escaped, so it makes no metric of its own."""
    text = exposition([("linkspan_x", "X", ("host",), {('a"} 1\nb\\',): math.inf})])
    assert text.decode().splitlines()[2:] == ['linkspan_x{host="a\\"} 1\\nb\\\\"} +Inf']


def test_gauges_follow_the_counters() -> None:
    """A gauge without a label has one line, and one without a value only its type."""
    text = Metrics().text([("linkspan_ok", "Ok", "", {"": 1.0}), ("linkspan_hosts", "Hosts", "state", {})]).decode()
    assert text.endswith(
        "# HELP linkspan_ok Ok\n# TYPE linkspan_ok gauge\nlinkspan_ok 1.0\n"
        "# HELP linkspan_hosts Hosts\n# TYPE linkspan_hosts gauge\n"
    )
