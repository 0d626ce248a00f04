"""Migrations of what is not the plain case: etcd, two stacks, direct routes, exact addresses, a router in between."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from support.lab.migration_runs import HOSTS, Flows, MigratingRun

EXACT = {"pools": ["10.246.0.0/16"], "ipam": "exact", "backend": "vxlan", "options": {"direct": "true"}}


@pytest.fixture(scope="module")
def dual() -> Iterator[MigratingRun]:
    """Give three hosts with both families, etcd, VXLAN with direct routes, and a second network of exact addresses."""
    found = MigratingRun()
    try:
        found.run("up", "--backend vxlan --opt direct=true --store etcd --underlay dual")
        found.call("h1", "POST", "/v1/networks", {"name": "exact", **EXACT})
        found.joined("exact")
        for host in HOSTS:
            found.run("attach", host, f"e{host[1]}", f"--network exact --ip 10.246.9.{host[1]}")
        yield found
    finally:
        found.run("down")


@pytest.mark.skipif(shutil.which("etcd") is None, reason="needs etcd: apt install etcd-server")
@pytest.mark.parametrize(("way", "options", "mtu"), [("host-gw", {}, 1500), ("vxlan", {"direct": "true"}, 1450)])
def test_two_stacks_and_exact_addresses_migrate_together(
    dual: MigratingRun, way: str, options: dict[str, str], mtu: int
) -> None:
    """Both networks move at once, over etcd, and every pair of both families loses at most a second."""
    before = {host: dual.everything(host) for host in HOSTS}
    with Flows(dual, "c1", "c2", "c3") as flows, Flows(dual, "e1", "e2", "e3") as exact:
        dual.migrate(way, **options)
        dual.migrate(way, "h2", name="exact", **options)
        for name in ("demo", "exact"):
            dual.ended(way, name=name)
        dual.clean()
    flows.check(mtu)
    exact.check(mtu)
    assert dual.json("test")["failed"] == []
    assert all(dual.everything(host) != before[host] for host in HOSTS)


@pytest.mark.skipif(shutil.which("etcd") is None, reason="needs etcd: apt install etcd-server")
def test_a_way_that_does_not_carry_both_stacks_is_refused(dual: MigratingRun) -> None:
    """The pool is named, and nothing begins."""
    said = dual.refused("ipip")
    assert "carries IPv4 only" in said
    assert "fd00:" in said
    assert dual.network()["migration"] is None


@pytest.mark.parametrize("cluster", ["--backend vxlan --opt direct=true --segments 2"], indirect=True)
def test_over_a_router_tunnels_migrate_and_host_gw_is_refused(cluster: MigratingRun) -> None:
    """Some pairs are on one segment and have direct routes, others are not; what could not end does not begin."""
    before = {host: cluster.everything(host) for host in HOSTS}
    assert "host h2 cannot be reached by host-gw" in cluster.refused("host-gw")
    assert cluster.network()["migration"] is None
    assert {host: cluster.everything(host) for host in HOSTS} == before
    with Flows(cluster) as flows:
        cluster.migrate("ipip", direct="true")
        cluster.ended("ipip")
        cluster.clean()
    flows.check(1480)
    with Flows(cluster) as flows:
        cluster.migrate("vxlan", direct="true")
        cluster.ended("vxlan")
        cluster.clean()
    flows.check(1450)
    assert {host: cluster.everything(host) for host in HOSTS} == before


@pytest.fixture
def cluster(request: pytest.FixtureRequest) -> Iterator[MigratingRun]:
    """Give three hosts."""
    found = MigratingRun()
    try:
        found.run("up", request.param)
        yield found
    finally:
        found.run("down")
