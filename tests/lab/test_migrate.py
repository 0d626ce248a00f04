"""Migrations of a network in use, on three hosts with real agents."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from support.lab.lab_runs import LabRun
from support.lab.migration_runs import HOSTS, OVERHEAD, Flows, MigratingRun

CONTAINERS = ("c1", "c2", "c3")
DIRECTIONS = [
    ("vxlan", "host-gw"),
    ("host-gw", "ipip"),
    ("ipip", "vxlan"),
    ("vxlan", "ipip"),
    ("ipip", "host-gw"),
    ("host-gw", "vxlan"),
    ("vxlan", "bgp"),
    ("bgp", "host-gw"),
    ("host-gw", "bgp"),
    ("bgp", "ipip"),
    ("ipip", "bgp"),
    ("bgp", "vxlan"),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[MigratingRun]:
    """Give three hosts on one segment."""
    found = MigratingRun()
    try:
        found.run("up", "--backend vxlan")
        yield found
    finally:
        found.run("down")


@pytest.fixture(scope="module")
def before() -> dict[tuple[str, str], set[str]]:
    """Give what each host had when it was first settled by a backend."""
    return {}


def settled(cluster: MigratingRun, way: str, before: dict[tuple[str, str], set[str]]) -> None:
    """Assert that everything is ok by a way, and nothing is left of another, or of an earlier migration."""
    cluster.clean()
    for host in HOSTS:
        links = " ".join(link["ifname"] for link in cluster.links(host))
        devices = {"vxlan": "lsx", "ipip": "lsipip", "host-gw": "ls-demo", "bgp": "ls-demo"}
        assert {device for device in devices.values() if device in links} == {devices[way]}
        assert ("proto bird" in cluster.inside(host, "ip route")) == (way == "bgp")
        rules = cluster.inside(host, "nft list ruleset")
        assert bool(re.search(r'"lsx[0-9a-f]+" \.', rules)) == (way == "vxlan")
        assert ('"lsipip" .' in rules) == (way == "ipip")
        now = cluster.everything(host)
        was = before.setdefault((host, way), now)
        assert (was - now, now - was) == (set(), set())
        assert "cannot heal" not in cluster.log(host)


@pytest.mark.parametrize(("old", "way"), DIRECTIONS)
def test_every_direction_loses_at_most_a_second(
    cluster: MigratingRun, before: dict[tuple[str, str], set[str]], old: str, way: str
) -> None:
    """Datagrams as large as may be and TCP streams of all pairs continue, and then nothing is left of the old way."""
    cluster.at(old)
    settled(cluster, old, before)
    with Flows(cluster) as flows:
        cluster.moved(way)
        settled(cluster, way, before)
    flows.check(1500 - OVERHEAD[way])
    assert {cluster.link(c) for c in CONTAINERS} == {(1500 - OVERHEAD[way], 0)}


def test_hosts_and_containers_reach_all_containers_after_many_migrations(cluster: MigratingRun) -> None:
    """By ping, by TCP, and by the largest packet with DF."""
    assert cluster.json("test")["failed"] == []


@pytest.mark.parametrize("way", ["bridge", "host"])
def test_what_stays_on_one_host_is_refused(cluster: MigratingRun, way: str) -> None:
    """The reason is reported, and nothing begins."""
    assert "does not cross hosts" in cluster.refused(way)
    assert cluster.network()["migration"] is None


def test_the_command_line_tells_what_it_begins(cluster: MigratingRun) -> None:
    """It names both backends, and says so if the network already has that backend."""
    way = "vxlan" if cluster.network()["backend"] != "vxlan" else "ipip"
    said = cluster.exec("h1", f"linkspan network migrate demo --backend {way}")
    assert f"to {way}" in said
    cluster.ended(way)
    again = LabRun.run(cluster, "exec", "h1", "--", f"linkspan network migrate demo --backend {way}", code=-1)
    assert f"has backend {way} already" in again.stderr + again.stdout
