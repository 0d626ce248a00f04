"""The underlay between hosts: what `doctor --peers` names, and when plain routes are used."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterator
from typing import Any

import pytest

from linkspan.lab import record
from support.lab.cluster_runs import ClusterRun
from support.polling import SHARED, until

TABLE = "table bridge test { chain forward { type filter hook forward priority 0; RULE; }; }"
VXLAN, IPIP = "UDP port 4789 (VXLAN)", "IP protocol 4 (IPIP)"


@pytest.fixture(scope="module")
def lab_() -> Iterator[ClusterRun]:
    """Give three hosts on one segment, with VXLAN that may route directly."""
    found = ClusterRun()
    try:
        found.run("up", "--backend vxlan")
        yield found
    finally:
        found.run("down")


@pytest.fixture
def cluster(lab_: ClusterRun) -> Iterator[ClusterRun]:
    """Give the shared lab, and take a test's own network away."""
    yield lab_
    for network in lab_.call("h1", "GET", "/v1/networks"):
        if network["name"] != "demo":
            lab_.delete(network["name"])


@contextlib.contextmanager
def cut(cluster: ClusterRun, rule: str) -> Iterator[None]:
    """Let the switch between the hosts drop frames by a rule."""
    switch = record.load(cluster.name).switch.removeprefix(f"{cluster.name}-")
    cluster.inside(switch, f"nft {TABLE.replace('RULE', rule)}")
    try:
        yield
    finally:
        cluster.inside(switch, "nft delete table bridge test")


def examined(cluster: ClusterRun, host: str = "h3") -> dict[str, dict[str, Any]]:
    """Return what a host's doctor says of the underlay, by the checks' names."""
    return {one["check"]: one for one in cluster.call(host, "POST", "/v1/doctor/peers")}


def failed(found: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Return the details of what fails."""
    return {name: one["detail"] for name, one in found.items() if one["status"] == "fail"}


def test_all_is_well_between_sound_hosts(cluster: ClusterRun) -> None:
    """Exit code 0, one line for each protocol, and the network's largest packet passes."""
    done = cluster.run("exec", "h1", "--", "linkspan doctor --peers -o json")
    (found,) = [one for one in json.loads(done.stdout) if one["check"].startswith("underlay")]
    assert (found["check"], found["status"]) == (f"underlay: {VXLAN}", "ok")
    assert "6 directions, with packets of up to 1500 bytes" in found["detail"]
    assert "all hosts probe" in done.stderr


def test_a_port_that_is_blocked_one_way_and_a_silent_host_are_named(cluster: ClusterRun) -> None:
    """The way by both hosts, which name each other in `status` within ten seconds; the host once, and no pair of it."""
    cluster.run("break", "h3", "agent-kill")
    with cut(cluster, 'iifname "h1" oifname "h2" udp dport 4789 drop'):
        for host, peer in (("h1", "h2"), ("h2", "h1")):
            until(lambda h=host, p=peer: p in cluster.not_well(h), f"{host} names {peer}", 10 * SHARED)
        until(lambda: cluster.host("h3")["state"] == "silent", "h3 counts as silent")
        done = cluster.run("exec", "h2", "--", "linkspan doctor --peers -o json", code=3)
        found = {one["check"]: one for one in json.loads(done.stdout)}
        assert failed(found) == {
            f"underlay h1 to h2: {VXLAN}": "blocked: no packet from h1 arrives at h2",
            "underlay: host h3": "it does not take part: its agent has been silent for a while",
        }
        assert "UDP port 4789" in found[f"underlay h1 to h2: {VXLAN}"]["fix"]
        assert "1 direction," in found[f"underlay: {VXLAN}"]["detail"]
    cluster.run("mend", "h3")
    until(lambda: "no answer" not in cluster.not_well("h1"), "all is well again")


def test_what_the_receiving_host_s_own_rules_drop_is_told_with_the_rule(cluster: ClusterRun) -> None:
    """The packet has arrived: the underlay has no fault; nor has it if the sender's own rules drop everything."""
    rules = (
        "table inet test { chain i { type filter hook input priority 0; ip saddr 192.0.2.1 udp dport 4789 drop; };"
        " chain o { type filter hook output priority 0; ip daddr 192.0.2.3 udp dport 4789 drop; }; }"
    )
    cluster.inside("h2", f"nft {rules}")
    try:
        found = failed(examined(cluster))
        assert "it arrives at h2, where inet test i drops it" in found.pop(f"underlay h1 to h2: {VXLAN}")
        assert "h2 cannot send it: its own firewall" in found.pop(f"underlay h2 to h3: {VXLAN}")
        assert found == {}
    finally:
        cluster.inside("h2", "nft delete table inet test")


def test_a_smaller_mtu_on_one_side_is_named_with_what_passes(cluster: ClusterRun) -> None:
    """Full packets from others do not arrive there, and it cannot send its own; the error has the MTU that fits."""
    cluster.ip("h2", "link set eth0 mtu 1400")
    try:
        found = examined(cluster)
        assert set(failed(found)) == {
            f"underlay {way}: {VXLAN}" for way in ("h1 to h2", "h3 to h2", "h2 to h1", "h2 to h3")
        }
        there, back = found[f"underlay h1 to h2: {VXLAN}"], found[f"underlay h2 to h1: {VXLAN}"]
        assert "packets of 1500 bytes do not arrive at h2, those of 1400 do" in there["detail"]
        assert "its own link eth0 takes 1400 bytes" in back["detail"]
        assert "linkspan network update demo --mtu 1350" in there["fix"]
    finally:
        cluster.ip("h2", "link set eth0 mtu 1500")


def test_protocol_4_and_plain_packets_that_are_blocked_one_way_are_named(cluster: ClusterRun) -> None:
    """IPIP by its protocol; host-gw, if something on the way checks sources, by the network of the sources."""
    cluster.create("wrapped", "10.90.0.0/16", backend="ipip")
    cluster.create("bare", "10.91.0.0/16", backend="host-gw")
    ways = [(n, *pair) for n in ("wrapped", "bare") for pair in itertools.permutations(("h1", "h2", "h3"), 2)]
    until(lambda: all(way(cluster, host, n, peer) for n, host, peer in ways), "everybody knows everybody")
    rules = (
        'iifname "h2" oifname "h1" ip protocol 4 drop; iifname "h3" oifname "h1" ip saddr 10.91.0.0/16 drop'
    )
    with cut(cluster, rules):
        assert set(failed(examined(cluster))) == {
            f"underlay h2 to h1: {IPIP}",
            "underlay h3 to h1: plain IPv4 packets of network bare",
        }


# Plain routes


def way(cluster: ClusterRun, host: str, network: str, peer: str) -> str:
    """Return the device by which a host reaches a peer's block, '' where there is no way."""
    (block,) = cluster.blocks(peer, network)
    found = json.loads(cluster.ip(host, f"-j route show {block}"))
    return str(found[0].get("dev", "")) if found else ""


def test_a_direct_peer_that_ceases_to_answer_is_tunnelled_to_and_comes_back(cluster: ClusterRun) -> None:
    """h1's ARP is dropped, and the kernel knows the MAC: the tunnel serves instead of the plain route."""
    mac = json.loads(cluster.ip("h2", "-j link show eth0"))[0]["address"]
    cluster.ip("h1", f"neigh replace 192.0.2.2 lladdr {mac} nud permanent dev eth0")
    with cut(cluster, 'iifname "h1" oifname "h2" arp operation request drop'):
        cluster.create("direct", "10.90.0.0/16", options={"direct": "true"})
        cluster.run("attach", "h1", "d1", "--network direct")
        cluster.run("attach", "h2", "d2", "--network direct")
        with cluster.no_loss("d1", cluster.address("d2")):
            until(lambda: way(cluster, "h2", "direct", "h1") == "eth0", "h2 sends plainly, for h1 answers it")
            until(lambda: way(cluster, "h1", "direct", "h2").startswith("lsx"), "h1 sends by the tunnel")
            assert way(cluster, "h1", "direct", "h3") == "eth0"
    with cluster.no_loss("d1", cluster.address("d2")):
        until(lambda: way(cluster, "h1", "direct", "h2") == "eth0", "h1 sends plainly again", 60 * SHARED)
    cluster.ip("h1", "neigh del 192.0.2.2 dev eth0")
    for container in ("d1", "d2"):
        cluster.run("detach", container)


def test_a_host_gw_peer_that_never_answered_is_refused_by_name(cluster: ClusterRun) -> None:
    """With the reason; once it answers, the routes are there."""
    both = '{ "h1", "h2" }'
    with cut(cluster, f"iifname {both} oifname {both} ether type arp drop"):
        cluster.ip("h1", "neigh flush dev eth0")
        cluster.create("bare", "10.90.0.0/16", backend="host-gw")
        until(lambda: "nobody answers for 192.0.2.2 on eth0" in cluster.not_well("h1"), "h1 says why")
        assert way(cluster, "h1", "bare", "h2") == ""
        assert way(cluster, "h1", "bare", "h3") == "eth0"
    until(lambda: way(cluster, "h1", "bare", "h2") == "eth0", "h1 has the route", 60 * SHARED)
    assert "nobody answers" not in cluster.not_well("h1")


def test_a_route_to_a_peer_by_a_router_ends_the_plain_way_and_its_end_brings_it_back(
    cluster: ClusterRun,
) -> None:
    """The kernel's own answer is followed as it changes, within two seconds."""
    cluster.create("direct", "10.90.0.0/16", options={"direct": "true"})
    until(lambda: way(cluster, "h1", "direct", "h2") == "eth0", "h1 sends plainly to h2")
    cluster.ip("h1", "route add 192.0.2.2/32 via 192.0.2.3")
    try:
        until(lambda: way(cluster, "h1", "direct", "h2").startswith("lsx"), "h1 sends by the tunnel", 2.5 * SHARED)
    finally:
        cluster.ip("h1", "route del 192.0.2.2/32")
    until(lambda: way(cluster, "h1", "direct", "h2") == "eth0", "h1 sends plainly again", 2.5 * SHARED)
