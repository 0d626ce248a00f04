"""deploy/: alerts and dashboards ask for metrics that there are, and each alert fires when it should."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[3]
RULES = ROOT / "deploy" / "prometheus" / "linkspan.rules.yml"
ALERTS = {one["alert"]: one for group in yaml.safe_load(RULES.read_text())["groups"] for one in group["rules"]}
DASHBOARDS = {path.stem: json.loads(path.read_text()) for path in (ROOT / "deploy" / "grafana").glob("*.json")}
PAGE = (ROOT / "docs" / "alerts.md").read_text(encoding="utf-8")
PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed")


def _metrics() -> dict[str, set[str]]:
    """Return the labels of each metric in docs/metrics.md."""
    found: dict[str, set[str]] = {}
    for line in (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("| `linkspan_"):
            names, labels, *_ = line.removeprefix("| ").split(" | ")
            found |= {name: set(re.findall(r"`(\w+)`", labels)) for name in re.findall(r"`(\w+)`", names)}
    return found


def _promtool(*words: str | Path) -> None:
    assert PROMTOOL is not None
    done = subprocess.run([PROMTOOL, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def _checked(expression: str) -> None:
    """Assert that an expression asks for metrics of the page, and for labels that one of them has."""
    known = _metrics()
    asked = {re.sub(r"_bucket$", "", name) for name in re.findall(r"\blinkspan_\w+", expression)}
    assert asked <= known.keys(), expression
    labels = {"instance", "job", "le"}.union(*(known[name] for name in asked))
    for group in re.findall(r"by \(([^)]*)\)", expression):
        assert set(re.split(r",\s*", group)) <= labels, expression
    for selector in re.findall(r"\{([^}]*)\}", expression):
        assert set(re.findall(r"(\w+)\s*(?:=|!=|=~|!~)", selector)) <= labels, expression


@pytest.mark.parametrize("alert", ALERTS.values(), ids=ALERTS)
def test_an_alert_asks_for_metrics_that_there_are(alert: dict[str, Any]) -> None:
    """And says what happened, what to do first, and where to read on."""
    _checked(alert["expr"])
    assert alert["labels"]["severity"] in ("warning", "critical")
    assert set(alert["annotations"]) == {"summary", "do", "page"}
    assert alert["annotations"]["page"] == f"docs/alerts.md#{alert['alert'].lower()}"


@pytest.mark.parametrize("alert", ALERTS.values(), ids=ALERTS)
def test_an_alert_names_only_what_its_expression_keeps(alert: dict[str, Any]) -> None:
    """A label that an aggregation drops would be empty in the text."""
    named = set(re.findall(r"\$labels\.(\w+)", " ".join(alert["annotations"].values())))
    if re.match(r"(min|max|sum|count)\b", alert["expr"]):
        kept = re.match(r"\w+ by \(([^)]*)\)", alert["expr"])
        assert named <= (set(re.split(r",\s*", kept[1])) if kept else set())


def test_each_alert_has_a_section_with_its_meaning_and_what_to_do() -> None:
    """In the order of the rules, and no section is left of an alert that is gone."""
    _, *sections = re.split(r"^## ", PAGE, flags=re.MULTILINE)
    assert [section.splitlines()[0] for section in sections] == list(ALERTS)
    for section in sections:
        assert re.search(r"^\*\*Means:\*\* .+^\*\*Do:\*\* ", section, re.MULTILINE | re.DOTALL), section


SERIES = {
    "LinkspanAgentDown": ('up{job="linkspan", instance="h1"}', "0", "1"),
    "LinkspanStoreAway": ('linkspan_store_up{instance="h1"}', "0", "1"),
    "LinkspanStoreSlow": ('linkspan_store_answer_seconds{instance="h1"}', "1.5", "0.1"),
    "LinkspanStoreFills": ('linkspan_store_size_bytes{instance="h1", member="m1"}', "70", "50"),
    "LinkspanStoreFull": ('linkspan_store_full{instance="h1"}', "1", "0"),
    "LinkspanStoreMemberDown": ('linkspan_store_member_up{instance="h1", member="m1"}', "0", "1"),
    "LinkspanHostSilent": ('linkspan_host_silent{instance="h1", host="h2"}', "1", "_"),
    "LinkspanPeerUnreachable": ('linkspan_peer_unreachable{instance="h1", host="h2"}', "1", "_"),
    "LinkspanEgressUnheld": ('linkspan_egress_address_held{instance="h1", address="192.0.2.100"}', "0", "1"),
    "LinkspanPeerLoss": ('linkspan_peer_loss_ratio{instance="h1", host="h2"}', "0.2", "0.03"),
    "LinkspanHandshakeOld": ('linkspan_wireguard_handshake_age_seconds{instance="h1", peer="h2"}', "301", "170"),
    "LinkspanDrift": ('linkspan_drift{instance="h1"}', "1", "0"),
    "LinkspanHealsAgainAndAgain": ('linkspan_heals_total{instance="h1", kind="Route"}', "0+15", "0+1"),
    "LinkspanDisputes": ('linkspan_disputes{instance="h1"}', "1", "0"),
    "LinkspanRecordsLost": ('linkspan_store_records_lost{instance="h1"}', "3", "0"),
    "LinkspanRecordsUnreadable": ('linkspan_records_unreadable{instance="h1"}', "1", "0"),
    "LinkspanRecordsFailing": ('linkspan_records_failing{instance="h1"}', "1", "0"),
    "LinkspanAddressesLow": ('linkspan_addresses_free{instance="h1", network="demo"}', "15", "16"),
    "LinkspanBgpSessionDown": ('linkspan_bgp_session_up{instance="h1", peer="r1"}', "0", "1"),
    "LinkspanCertificateExpires": (
        'linkspan_certificate_expires_timestamp_seconds{instance="h1", certificate="host"}',
        str(10 * 86400),
        str(30 * 86400),
    ),
    "LinkspanVersionsDiffer": ('linkspan_info{instance="h1", version="0.1.0"}', "1", "_"),
}
"""Of each alert: a series, its value at which the alert fires, and one at which all is well; _: there is none."""
BESIDE = [
    {"series": 'linkspan_store_quota_bytes{instance="h1", member="m1"}', "values": "100x1500"},
    {"series": 'linkspan_info{instance="h2", version="0.2.0"}', "values": "1x1500"},
]


def _case(name: str, value: str, *, fires: bool, minutes: int) -> dict[str, Any]:
    """Return a case of promtool's: after so many minutes this alert fires alone, or none does."""
    series = [{"series": SERIES[name][0], "values": f"{value}x{minutes}"}, *BESIDE]
    expected = [{"labels": f'{{alertname="{name}"}}', "value": 1}] if fires else []
    return {
        "interval": "1m",
        "input_series": series,
        "promql_expr_test": [
            {
                "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
                "eval_time": f"{minutes}m",
                "exp_samples": expected,
            }
        ],
    }


@needs_promtool
def test_each_alert_fires_when_it_should_and_only_then(tmp_path: Path) -> None:
    """After its time, on the value that it is about; and alone, so that one fault is one alert."""
    assert SERIES.keys() == ALERTS.keys()
    _promtool("check", "rules", RULES)
    by_interval: dict[str, list[dict[str, Any]]] = {}
    for name, (_, bad, well) in SERIES.items():
        number, unit = re.fullmatch(r"(\d+)([smhd])", ALERTS[name].get("for", "0s")).groups()  # type: ignore[union-attr]
        waits = int(number) * {"s": 0, "m": 1, "h": 60, "d": 1440}[unit]
        cases = by_interval.setdefault("1m" if waits < 1440 else "30m", [])  # each evaluation of all rules takes time
        cases += [_case(name, bad, fires=True, minutes=waits + 60 if waits >= 1440 else waits + 12)]
        cases += [_case(name, well, fires=False, minutes=12)]
    full = _case("LinkspanStoreFull", "1", fires=True, minutes=12)
    full["input_series"].append({"series": SERIES["LinkspanStoreAway"][0], "values": "0x12"})
    by_interval["1m"].append(full)  # a store that is full is not away
    for interval, cases in by_interval.items():
        file = tmp_path / f"{interval}.yml"
        tests = {"rule_files": [str(RULES)], "evaluation_interval": interval, "tests": cases}
        file.write_text(yaml.safe_dump(tests))
        _promtool("test", "rules", file)


@needs_promtool
def test_prometheus_takes_the_example_of_its_configuration() -> None:
    """With the rules that it names, and the job's name that the alerts ask for."""
    file = RULES.with_name("prometheus.yml")
    _promtool("check", "config", file)
    (job,) = yaml.safe_load(file.read_text())["scrape_configs"]
    assert job["job_name"] == "linkspan"


def _expressions(dashboard: dict[str, Any]) -> Iterator[str]:
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            yield target["expr"].replace("$instance", "h1")


@pytest.mark.parametrize("name", DASHBOARDS)
def test_a_dashboard_asks_for_metrics_that_there_are(name: str) -> None:
    """From the data source that the reader chooses, in panels that do not overlap."""
    panels = DASHBOARDS[name]["panels"]
    for expression in _expressions(DASHBOARDS[name]):
        _checked(expression)
    assert len({panel["id"] for panel in panels}) == len(panels) == len({panel["title"] for panel in panels})
    for panel in panels:
        assert panel["datasource"]["uid"] == "${datasource}"
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
    for one, other in combinations((panel["gridPos"] for panel in panels), 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        assert beside or one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]


@needs_promtool
def test_prometheus_understands_the_dashboards(tmp_path: Path) -> None:
    """Their expressions are valid PromQL."""
    asked = [expression for board in DASHBOARDS.values() for expression in _expressions(board)]
    rules = [{"record": f"panel:{number}", "expr": one} for number, one in enumerate(asked)]
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    _promtool("check", "rules", "--lint=none", file)
