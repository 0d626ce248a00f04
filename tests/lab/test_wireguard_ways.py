"""WireGuard with other ways: migrations to it and from it, hosts behind NATs, and an underlay of IPv6."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from linkspan.lab import record
from support.lab.cluster_runs import ClusterRun
from support.lab.migration_runs import HOSTS, Flows, MigratingRun
from support.lab.underlay_capture import Capture
from support.polling import until


@pytest.fixture(scope="module")
def moving() -> Iterator[MigratingRun]:
    """Give three hosts with VXLAN and direct routes."""
    found = MigratingRun()
    try:
        found.run("up", "--backend vxlan --opt direct=true")
        yield found
    finally:
        found.run("down")


@pytest.fixture(scope="module")
def behind() -> Iterator[ClusterRun]:
    """Give three hosts, of which two are behind a NAT each."""
    found = ClusterRun()
    try:
        found.run("up", "--backend wireguard --nat h2,h3")
        yield found
    finally:
        found.run("down")


@pytest.fixture
def six() -> Iterator[ClusterRun]:
    """Give two hosts whose underlay has IPv6 alone."""
    found = ClusterRun()
    try:
        found.run("up", "--backend wireguard --hosts 2 --underlay v6")
        yield found
    finally:
        found.run("down")


def test_a_network_is_sealed_at_the_end_of_its_migration_and_unsealed_at_the_start(moving: MigratingRun) -> None:
    """There and back no pair loses more than a second; in between nothing is in clear."""
    sealed = "nft list set inet linkspan sealed4"
    before = {host: moving.everything(host) for host in HOSTS}
    found = record.load(moving.name)
    addresses = [text.partition("/")[0] for c in found.containers for text in c.addresses]
    with Flows(moving) as flows:
        moving.migrate("wireguard")
        moving.ended("wireguard")
        moving.clean()
    flows.check(1440)
    with Capture(found.switch, found.pools, addresses) as capture:
        assert moving.json("test")["failed"] == []
    assert capture.count > 0
    assert capture.clear == []
    assert all("10.244.0.0/16" in moving.inside(host, sealed) for host in HOSTS)
    with Flows(moving) as flows:
        moving.migrate("vxlan", direct="true")
        moving.ended("vxlan")
        moving.clean()
    flows.check(1450)
    assert {host: moving.everything(host) for host in HOSTS} == before


def test_two_hosts_behind_nats_reach_each_other_through_a_third(behind: ClusterRun) -> None:
    """And the trace says so; the endpoints at which they are seen are not repaired."""
    assert behind.json("test")["failed"] == []
    found: dict[str, Any] = behind.call("h2", "GET", "/v1/trace?source=c2&target=c3")
    assert found["reachable"]
    assert list(dict.fromkeys(hop["host"] for hop in found["hops"])) == ["h2", "h1", "h3"]
    detail = next(hop["detail"] for hop in found["hops"] if hop["action"] == "encrypted")
    assert "for h1" in detail
    assert "forwards it to h3" in detail
    for host in HOSTS:
        until(
            lambda host=host: behind.call(host, "GET", "/v1/diff") == {"put": [], "delete": []},
            f"no drift on {host}",
        )


def test_a_host_behind_a_nat_comes_back_after_its_relay_began_anew(behind: ClusterRun) -> None:
    """The relay's wireguard-go forgot the hosts' endpoints; the hosts did not forget the relay's."""
    behind.run("break", "h1", "helper-kill")
    until(lambda: behind.pings("c2", behind.address("c3")), "c2 reaches c3 again")


def test_over_ipv6(six: ClusterRun) -> None:
    """Both families of containers are carried, in packets of 80 bytes less."""
    assert six.json("test")["failed"] == []
    links = six.inside("c1", "ip link show eth0")
    assert "mtu 1420" in links
