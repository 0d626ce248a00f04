"""The metrics that an agent serves are those of docs/metrics.md."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from linkspan import __version__
from support.agent.agent_host import Host, World

PAGE = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
SUFFIXES = re.compile(r"_(created|bucket|sum|count)$")


@pytest.fixture(scope="module")
def served() -> Iterator[str]:
    """Give the metrics of an agent with a network and a container."""
    world = World()
    host = Host(world)
    host.start()
    try:
        host.network("demo", "10.201.0.0/24")
        host.attach(world.namespace(), name="web")
        yield str(host.client.call("GET", "/metrics"))
    finally:
        host.close()
        world.remove()


def _table() -> set[str]:
    rows = [line for line in PAGE.splitlines() if line.startswith("| `linkspan_")]
    return {name for row in rows for name in re.findall(r"`(linkspan_\w+)`", row.split(" | ")[0])}


def test_the_page_has_every_metric_that_is_served(served: str) -> None:
    """Every metric that the agent serves is on the page, and no other."""
    types = re.findall(r"^# TYPE (\w+) \w+$", served, re.M)
    assert {name for name in types if not SUFFIXES.search(name)} == _table()


def test_store_version_and_hosts_are_measured(served: str) -> None:
    """A host that is alone and has no problem shows its version, its store and its state."""
    lines = served.splitlines()
    for line in (
        f'linkspan_info{{version="{__version__}"}} 1.0',
        "linkspan_ok 1.0",
        "linkspan_store_up 1.0",
        "linkspan_store_records_lost 0.0",
        'linkspan_hosts{state="alive"} 1.0',
        'linkspan_hosts{state="silent"} 0.0',
        'linkspan_hosts{state="unknown"} 0.0',
    ):
        assert line in lines
    assert re.search(r"^linkspan_store_answer_seconds 0\.\d+$", served, re.M)
