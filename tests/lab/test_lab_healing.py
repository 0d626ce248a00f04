"""Healing across hosts: whatever somebody undoes is back within two seconds, and what is others' is left alone."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest

from linkspan.core.addresses import prefix
from linkspan.core.states.host import ROUTE_PROTOCOL
from support.lab.cluster_runs import ClusterRun
from support.polling import HEALED_WITHIN, until

pytestmark = pytest.mark.alone


@pytest.fixture(scope="module")
def vxlan() -> Iterator[ClusterRun]:
    """Give two hosts with VXLAN."""
    found = ClusterRun()
    try:
        found.run("up", "--backend vxlan --hosts 2")
        yield found
    finally:
        found.run("down")


@pytest.fixture(scope="module")
def ipip() -> Iterator[ClusterRun]:
    """Give two hosts with IPIP."""
    found = ClusterRun()
    try:
        found.run("up", "--backend ipip --hosts 2")
        yield found
    finally:
        found.run("down")


def _device(cluster: ClusterRun) -> str:
    (link,) = json.loads(cluster.ip("h1", "-j link show type vxlan"))
    return str(link["ifname"])


def _kernel(cluster: ClusterRun, device: str) -> list[str]:
    """Return all that linkspan has on a device: link, addresses, neighbours, FDB, routes by it, rules."""
    link = json.loads(cluster.ip("h1", f"-j -d link show {device}"))[0]
    addresses = json.loads(cluster.ip("h1", f"-j addr show {device}"))[0]["addr_info"]
    return [
        f"{link['mtu']} {link['address']} {'UP' in link['flags']} {link['linkinfo']['info_data'].get('df')}",
        *sorted(
            f"{one['local']} {one.get('address')} {one['scope']}"
            for one in addresses
            if one["family"] == "inet" or one["scope"] == "global"
        ),
        *sorted(cluster.ip("h1", f"neigh show dev {device} nud permanent").split("\n")),
        *sorted(
            line
            for line in cluster.inside("h1", f"bridge fdb show dev {device}").split("\n")
            if "dst" in line
        ),
        *sorted(cluster.ip("h1", f"route show proto {ROUTE_PROTOCOL}").split("\n")),
        *sorted(cluster.ip("h1", "route show type unreachable").split("\n")),
        str(cluster.inside("h1", "nft list ruleset").count("\n")),
    ]


def _mended(cluster: ClusterRun, device: str, before: list[str]) -> bool:
    """Return whether linkspan has on a device what it had before."""
    try:
        return _kernel(cluster, device) == before
    except AssertionError:  # the device is not there
        return False


@pytest.mark.parametrize(
    "damage",
    [
        "ip link set DEV down",
        "ip link set DEV address 02:00:00:00:00:99",
        "ip link set DEV mtu 1300",
        "ip link set DEV arp off",
        "ip link set DEV protodown on",
        "ip link set DEV mode dormant",
        "ip link set DEV type vxlan ttl 1",
        "ip link set DEV type vxlan df set",
        "ip link property del dev DEV altname linkspan:DEV",
        "tc qdisc add dev DEV root pfifo limit 1",
        "ip link delete DEV",
        "ip addr flush dev DEV",
        "ip addr del OWN/32 dev DEV; ip addr add OWN peer FAR/32 dev DEV",
        "ip addr add OWN peer FAR/32 dev DEV",
        "ip addr del OWN/32 dev DEV; ip addr add OWN/32 dev DEV scope host",
        "ip neigh replace PEER dev DEV nud failed",
        "ip neigh replace PEER dev DEV nud incomplete",
        "ip neigh flush dev DEV nud permanent",
        f"ip route flush proto {ROUTE_PROTOCOL}",
        "nft flush ruleset",
    ],
)
def test_what_is_undone_is_back_and_told(vxlan: ClusterRun, damage: str) -> None:
    """All states of the tunnel are as they were within two seconds, and the heal log has the repair."""
    device = _device(vxlan)
    before, heals = _kernel(vxlan, device), len(vxlan.call("h1", "GET", "/v1/status")["heals"])
    own, peer = (prefix(vxlan.blocks(host, "demo")[0]).at(1).address for host in ("h1", "h2"))
    names = {"DEV": device, "OWN": own, "PEER": peer, "FAR": vxlan.address("c2")}
    for command in damage.split("; "):
        vxlan.inside("h1", re.sub("[A-Z]{3,}", lambda word: names[word[0]], command))
    until(lambda: _mended(vxlan, device, before), f"{damage} is mended", HEALED_WITHIN)
    # Twenty are kept; the repair is told when all of it is done.
    until(lambda: len(vxlan.status("h1")["heals"]) > min(heals, 19), "the repair is told")
    until(lambda: vxlan.pings("c1", vxlan.address("c2")), "c1 reaches c2", HEALED_WITHIN)


def test_an_fdb_entry_that_was_removed_is_back(vxlan: ClusterRun) -> None:
    """The peer's FDB entry is put again."""
    device = _device(vxlan)
    before = _kernel(vxlan, device)
    vxlan.run("break", "h1", "fdb-flush")
    until(lambda: _kernel(vxlan, device) == before, "the entry is back", HEALED_WITHIN)


def test_a_cable_that_was_out_for_a_moment_costs_nothing_after(vxlan: ClusterRun) -> None:
    """The underlay down and up again: containers reach each other within two seconds."""
    vxlan.run("break", "h1", "link-down")
    assert vxlan.silent("c1", vxlan.address("c2"))
    vxlan.run("mend", "h1")
    until(lambda: vxlan.answers("c1", vxlan.address("c2")), "c1 reaches c2", HEALED_WITHIN)


def test_others_objects_are_left_alone(vxlan: ClusterRun) -> None:
    """A foreign route, neighbour, FDB entry's device, table and address outlast a repair."""
    for words in (
        "link add theirs type veth peer name theirs2",
        "link set theirs up",
        "link set theirs2 up",
        "addr add 203.0.113.1/24 dev theirs",
        "route add 198.18.0.0/15 dev theirs",
        "neigh add 203.0.113.9 lladdr 02:00:00:00:00:01 dev theirs nud permanent",
    ):
        vxlan.ip("h1", words)
    vxlan.inside("h1", "nft add table inet theirs")
    until(lambda: '"theirs2"' in vxlan.inside("h1", "nft list ruleset"), "the rules let the new links forward")
    device = _device(vxlan)
    before = _kernel(vxlan, device)
    vxlan.ip("h1", f"link delete {device}")
    until(lambda: _mended(vxlan, device, before), "all is back", HEALED_WITHIN)
    for where, words in (
        ("addr show theirs", "203.0.113.1"),
        ("route show", "198.18.0.0"),
        ("neigh show", "203.0.113.9"),
    ):
        assert words in vxlan.ip("h1", where)
    assert "inet theirs" in vxlan.inside("h1", "nft list tables")
    vxlan.inside("h1", "nft delete table inet theirs")
    vxlan.ip("h1", "link delete theirs")


def test_a_killed_ipip_helper_is_back(ipip: ClusterRun) -> None:
    """If IPIP runs in user space, its helper is restarted within two seconds; the kernel's has no helper."""
    done = ipip.run("break", "h1", "helper-kill", code=-1)
    if "no helper program" in done.stderr:
        pytest.skip("the kernel has ipip: no helper runs")
    until(lambda: ipip.answers("c1", ipip.address("c2")), "c1 reaches c2", HEALED_WITHIN)


@pytest.mark.parametrize(
    "damage", ["ip link delete lsipip", "ip link set lsipip down", "ip addr flush dev lsipip"]
)
def test_the_ipip_device_is_mended(ipip: ClusterRun, damage: str) -> None:
    """Deleted, down or without its address: containers reach each other again within two seconds."""
    ipip.inside("h1", damage)
    until(
        lambda: ipip.answers("c1", ipip.address("c2")) and ipip.status("h1")["drift"] == [],
        f"c1 reaches c2 after {damage}",
        HEALED_WITHIN,
    )
