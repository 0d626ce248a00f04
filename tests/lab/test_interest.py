"""A host takes part in a network with its first container there; names, lists and traces follow that."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator

import pytest

from linkspan.core.errors import LinkspanError
from support.lab.dns_runs import NamesRun
from support.polling import SHARED, until

pytestmark = [
    pytest.mark.skipif(shutil.which("dnsmasq") is None, reason="needs dnsmasq: apt install dnsmasq-base"),
    pytest.mark.skipif(shutil.which("etcd") is None, reason="needs etcd: apt install etcd-server"),
]
SERVER = "10.97.0.1"
"""The gateway of network late, where its server of names listens."""

HOSTS = ("h1", "h2", "h3")


@pytest.fixture(scope="module")
def cluster() -> Iterator[NamesRun]:
    """Give three hosts that take part where they have containers, as hosts outside of labs do."""
    found = NamesRun()
    try:
        found.run("up", "--backend vxlan --store etcd")
        found.call("h1", "PATCH", "/v1/hosts", {"networks": ""})
        found.call("h1", "POST", "/v1/networks", {"name": "late", "pools": ["10.97.0.0/16"], "backend": "vxlan"})
        for host in HOSTS:
            until(
                lambda host=host: "late" in {n["name"] for n in found.call(host, "GET", "/v1/networks")},
                f"{host} knows the network",
            )
        yield found
    finally:
        found.run("down")


def taking(cluster: NamesRun, network: str = "late") -> set[str]:
    """Return the hosts that have a lease in a network, as h3 knows them."""
    return {host for host in HOSTS if cluster.blocks(host, network, "h3")}


def routes(cluster: NamesRun, host: str) -> str:
    """Return a host's routes to blocks of the network on other hosts."""
    lines = cluster.ip(host, "route").splitlines()
    return "\n".join(line for line in lines if line.startswith("10.97.") and "via" in line)


def test_a_network_costs_a_host_nothing_before_its_first_container(cluster: NamesRun) -> None:
    """The first container gets its block with its address; both ends reach each other and know each other's names."""
    assert taking(cluster) == set()
    with cluster.container("h1", "w1", "late") as one:
        assert taking(cluster) == {"h1"}
        assert not any(routes(cluster, host) for host in HOSTS)
        free = {one["name"]: one["free"] for one in cluster.status("h3")["networks"]}
        assert free["late"] > 0
        with cluster.container("h2", "w2", "late") as two:
            ends = [endpoint["addresses"][0].partition("/")[0] for endpoint in (one, two)]
            until(lambda: cluster.pings("w1", ends[1]), "w1 reaches w2")
            until(lambda: cluster.pings("w2", ends[0]), "w2 reaches w1")
            until(lambda: cluster.knows("w1", "w2.late", SERVER), "w1 knows w2")
            until(lambda: cluster.knows("w2", "w1.late", SERVER), "w2 knows w1")
            assert routes(cluster, "h1")
            assert not routes(cluster, "h3")
            _is_seen_from_the_third(cluster)
            _reaches_by_a_setting(cluster, ends[0])
        until(lambda: not cluster.knows("w1", "w2.late", SERVER), "w1 knows w2 no more")
    assert taking(cluster) >= {"h1", "h2"}


def _is_seen_from_the_third(cluster: NamesRun) -> None:
    """Check that a host without a part lists, shows and traces what the store has."""
    until(lambda: {"w1", "w2"} <= {e["name"] for e in cluster.call("h3", "GET", "/v1/endpoints")}, "h3 lists both")
    (shown,) = cluster.call("h3", "GET", "/v1/endpoints/w2")
    assert (shown["host"], shown["network"]) == ("h2", "late")
    found = json.loads(cluster.exec("h3", "linkspan trace w1 w2 -o json"))
    assert found["reachable"], found


def _reaches_by_a_setting(cluster: NamesRun, address: str) -> None:
    """Check that a host that is named takes part, and reaches the containers itself."""
    assert not cluster.answers("h3", address)
    cluster.call("h1", "PATCH", "/v1/hosts/h3", {"networks": "late"})
    until(lambda: taking(cluster) == set(HOSTS), "h3 has a lease")
    until(lambda: cluster.answers("h3", address), "h3 reaches w1")
    cluster.call("h1", "PATCH", "/v1/hosts/h3", {"networks": ""})


def test_the_first_container_needs_the_store_and_the_next_one_does_not(cluster: NamesRun) -> None:
    """Its attach fails with the reason; another network's goes on."""
    cluster.call("h1", "POST", "/v1/networks", {"name": "later", "pools": ["10.98.0.0/16"], "backend": "vxlan"})
    until(lambda: "later" in {n["name"] for n in cluster.call("h2", "GET", "/v1/networks")}, "h2 knows the network")
    cluster.run("break", "h2", "store-cut")
    try:
        until(lambda: not cluster.status("h2")["store"]["ok"], "h2 says that its store is away", 30 * SHARED)
        with (
            pytest.raises(LinkspanError, match="claim a block of network later"),
            cluster.container("h2", "x1", "later"),
        ):
            pass
        with cluster.container("h2", "x2", "demo") as made:
            assert made["addresses"]
    finally:
        cluster.run("mend", "h2")
    until(lambda: cluster.status("h2")["store"]["ok"], "h2 has its store", 30 * SHARED)
    with cluster.container("h2", "x1", "later"):
        assert taking(cluster, "later") == {"h2"}
