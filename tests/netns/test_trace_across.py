"""Trace from host to host: the wrapping that it shows, and the hop and host that it names where the way is broken."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import pytest

from linkspan.backends import migration
from linkspan.core.host_view import Peer
from linkspan.core.model import Migration, Network, Offer
from linkspan.diagnose.trace.hops import Unknown
from support.netns.overlay import MTU, Cluster, network, network_states
from support.netns.traced_cluster import address, traced

VXLAN = network("demo", 77, "vxlan", (4, 6), vni="100")
IPIP = network("demo", 77, "ipip")
PLAIN = network("demo", 77, "host-gw", (4, 6))
OUTER4 = ("eth", "ip 192.0.2.1>192.0.2.2")
OUTER6 = ("eth", "ip6 fd02::1>fd02::2")
WAYS = [
    pytest.param(VXLAN, (4, 6), (*OUTER4, "udp 4789", "vxlan 100"), 50, id="vxlan"),
    pytest.param(VXLAN, (6,), (*OUTER6, "udp 4789", "vxlan 100"), 70, id="vxlan-over-ipv6"),
    pytest.param(IPIP, (4, 6), OUTER4, 20, id="ipip"),
    pytest.param(PLAIN, (4, 6), (), 0, id="host-gw"),
    pytest.param(network("demo", 77, "vxlan", vni="100", direct="true"), (4,), (), 0, id="vxlan-direct"),
]


@pytest.fixture
def pairs(tmp_path: Path) -> Iterator[list[Cluster]]:
    """Collect clusters, and remove them."""
    made: list[Cluster] = []
    yield made
    for one in made:
        one.close()


def joined(pairs: list[Cluster], tmp_path: Path, demo: Network, underlay: Sequence[int] = (4, 6)) -> Cluster:
    """Make two hosts that know each other."""
    pairs.append(Cluster(2, tmp_path, underlay))
    pairs[-1].joined([demo])
    return pairs[-1]


@pytest.mark.parametrize(("demo", "underlay", "outer", "overhead"), WAYS)
def test_both_ways_are_shown_with_what_is_around_the_packet(
    pairs: list[Cluster],
    tmp_path: Path,
    demo: Network,
    underlay: tuple[int, ...],
    outer: tuple[str, ...],
    overhead: int,
) -> None:
    """Containers and hosts, by each family: the outer headers are shown, and the MTU is smaller by them."""
    pair = joined(pairs, tmp_path, demo, underlay)
    for family in sorted({pool.family for pool in demo.prefixes}):
        found = traced(pair, address(pair, 1, demo, family), address(pair, 2, demo, family))
        assert (found.reachable, found.reason) == (True, "")
        assert found.path_mtu == min(MTU - overhead, pair.hosts[0].container(demo).mtu)
        assert [hop.host for hop in found.hops if hop.action == "received"] == ["h2"]
        (wire,) = [hop.headers for hop in found.hops if hop.action == "left"]
        (back,) = [hop.headers for hop in found.reply_hops if hop.action == "left"]
        assert wire[: len(outer)] == outer
        assert len(wire) == len(back)
        assert ("encapsulated" in [hop.action for hop in found.hops]) == bool(overhead)
        assert (found.hops[-1].namespace, found.reply_hops[-1].namespace) == ("c2-id", "c1-id")
    assert traced(pair, "host:h1", address(pair, 2, demo)).reachable
    assert traced(pair, address(pair, 1, demo), "host:h2").reachable
    assert traced(pair, "host:h2", address(pair, 1, demo)).reachable
    assert pair.pings(1, 2, demo)


BROKEN = [
    ("h1", "ip route del 10.77.2.0/24", "h1/host", "10.77.2.5 meets an unreachable route"),
    ("h1", "ip neigh del 10.77.2.0 dev lsx64", "h1/host/lsx64", "no neighbour entry of 10.77.2.0"),
    ("h1", "bridge fdb flush dev lsx64", "h1/host/lsx64", "no forwarding entry"),
    ("h1", "ip route add unreachable 192.0.2.2", "h1/host", "192.0.2.2 meets"),
    ("h1", "ip link set eth0 down", "h1/host", "no route to 192.0.2.2"),
    ("sw", "ip link set p2 nomaster", "h1/host/eth0", "192.0.2.2 does not answer on eth0"),
    ("h2", "ip link set eth0 down", "h2/host/eth0", "link eth0 in host is down"),
    ("h2", "ip addr del 192.0.2.2/24 dev eth0", "h2/host/eth0", "lost its underlay address 192.0.2.2"),
    ("h2", "nft flush set inet linkspan tunnel_peers4", "h2/host/eth0", "packets are accepted from peers only"),
    ("h2", "nft flush set inet linkspan vteps4", "h2/host/lsx64", "10.77.1.5 from this peer"),
    ("h2", "ip link set lsx64 address 02:00:00:00:00:01", "h2/host/lsx64", "the frame is for"),
    ("h2", "ip link del lsx64", "h2/host/eth0", "no device of this host accepts VNI 100"),
    ("h2", "ip route del 10.77.2.5/32", "h2/host/lsx64", "unreachable route"),
    ("h2", "ip route del 10.77.1.0/24", "h2/host/lsx64", "the route back to 10.77.1.5 leads nowhere"),
    ("c2", "ip addr flush dev eth0", "h2/c2-id/eth0", "address 10.77.2.5 is missing"),
    ("h1", "ip rule add ipproto udp dport 4789 pref 50 blackhole", "h1/host", "ipproto udp dport 4789 blackhole"),
    ("h1", "ip rule add ipproto udp sport 32768-60999 pref 50 blackhole", "h1/host", "sport 32768-60999 blackhole"),
    ("h2", "ip rule add iif lsx64 ipproto icmp pref 50 unreachable", "h2/host/lsx64", "ipproto icmp unreachable"),
    ("h2", "nft 'add table inet x; add chain inet x i { type filter hook input priority 0; }; "
     "add rule inet x i udp dport 4789 udp sport >= 32768 drop'", "h2/host/eth0", "udp sport >= 32768"),
    ("h1", "cd /proc/sys/net/ipv4/neigh/eth0; echo 0 > mcast_solicit; echo 0 > ucast_solicit; ip neigh flush dev eth0",
     "h1/host/eth0", "mcast_solicit=0"),
]


@pytest.mark.parametrize(("where", "what", "at", "reason"), BROKEN, ids=[f"{b[0]}-{b[1]}" for b in BROKEN])
def test_the_first_broken_hop_of_a_vxlan_is_named_with_its_host(
    pairs: list[Cluster], tmp_path: Path, where: str, what: str, at: str, reason: str
) -> None:
    """On this host, on the underlay, on the other host or on the way back; no ping gets through either."""
    pair = joined(pairs, tmp_path, VXLAN)
    pair.world.sh(where, what)
    found = traced(pair, "10.77.1.5", "10.77.2.5")
    assert not found.reachable
    assert reason in found.reason
    assert str(found.broken_at).startswith(at)
    assert not pair.world.pings("c1", "10.77.2.5")


@pytest.mark.parametrize("what", [
    "ip rule add ipproto udp sport 40000-40009 pref 50 blackhole",
    "nft 'add table inet x; add chain inet x o { type filter hook output priority 0; }; "
    "add rule inet x o udp dport 4789 udp sport 40000 drop'",
])  # fmt: skip
def test_the_source_port_of_a_vxlan_is_one_of_many(pairs: list[Cluster], tmp_path: Path, what: str) -> None:
    """It is a hash of the inner packet: a rule for some of the ports leaves the verdict open."""
    pair = joined(pairs, tmp_path, VXLAN)
    pair.world.sh("h1", what)
    found = traced(pair, "10.77.1.5", "10.77.2.5")
    assert (found.verdict, [one.at for one in found.unknown]) == ("unknown", ["h1/host/eth0"])


@pytest.mark.parametrize(
    ("demo", "where", "what", "at", "reason"),
    [
        (IPIP, "h2", "nft flush set inet linkspan ipip_peers", "h2/host/eth0", "IPIP is accepted from peers only"),
        (IPIP, "h2", "nft flush set inet linkspan ways4", "h2/host/lsipip", "does not accept 10.77.1.5"),
        (PLAIN, "h2", "nft flush set inet linkspan ways4", "h2/host/eth0", "does not accept 10.77.1.5"),
        (PLAIN, "h1", "ip route del 10.77.2.0/24", "h1/host", "unreachable route"),
        (PLAIN, "sw", "ip link set p2 nomaster", "h1/host/eth0", "does not answer"),
    ],
)
def test_the_first_broken_hop_of_other_ways_is_named_too(
    pairs: list[Cluster], tmp_path: Path, demo: Network, where: str, what: str, at: str, reason: str
) -> None:
    """The guards of IPIP and plain routes, a route that is gone, a host that is off the segment."""
    pair = joined(pairs, tmp_path, demo)
    pair.world.sh(where, what)
    found = traced(pair, "10.77.1.5", "10.77.2.5")
    assert not found.reachable
    assert str(found.broken_at).startswith(at)
    assert reason in found.reason
    assert not pair.world.pings("c1", "10.77.2.5")


def test_an_underlay_that_became_narrow_shows_in_the_mtu(pairs: list[Cluster], tmp_path: Path) -> None:
    """The least of both hosts' links, less the overhead."""
    pair = joined(pairs, tmp_path, VXLAN)
    pair.world.sh("h2", "ip link set eth0 mtu 1300")
    found = traced(pair, "10.77.1.5", "10.77.2.5")
    assert (found.reachable, found.path_mtu) == (True, 1250)
    assert [hop.mtu for hop in found.hops if hop.host == "h1"] == [1450] * 4


def moving(pair: Cluster) -> None:
    """Let h1 send by host-gw, as the network's migration wants it, and h2 by VXLAN still."""
    move = Migration(backend="host-gw", mtu=MTU, number=1)
    demo = msgspec.structs.replace(VXLAN, migration=move)
    both = {"vxlan": pair.hosts[1].lease(VXLAN).endpoints["vxlan"], "host-gw": Offer()}
    for here, other, mine in ((0, 1, both), (1, 0, {"vxlan": Offer()})):
        host, there = pair.hosts[here], pair.hosts[other]
        lease = msgspec.structs.replace(host.lease(VXLAN), endpoints=mine)
        view = msgspec.structs.replace(host.view(), networks=(demo,), leases=(lease,))
        offers = both if here == 0 else there.lease(VXLAN).endpoints | {"host-gw": Offer()}
        peer = Peer(there.host, msgspec.structs.replace(there.lease(VXLAN), endpoints=offers), "eth0", True)
        with pair.world.entered(host.name):
            change = host.machine.reconciler.change
            assert change(("network", "demo"), network_states(view, demo)) == {}
            assert change(("peer", "demo", there.name), migration.meet(view, demo, peer).states) == {}


def test_between_two_ways_each_direction_is_shown_as_it_goes(pairs: list[Cluster], tmp_path: Path) -> None:
    """In a migration one host may have switched and the other not yet: plain there, VXLAN back, and it passes."""
    pair = joined(pairs, tmp_path, VXLAN)
    moving(pair)
    for family in (4, 6):
        found = traced(pair, address(pair, 1, VXLAN, family), address(pair, 2, VXLAN, family))
        assert (found.reachable, found.reason) == (True, "")
        assert "encapsulated" not in [hop.action for hop in found.hops]
        assert "encapsulated" in [hop.action for hop in found.reply_hops]
    assert pair.pings(1, 2, VXLAN)


@pytest.mark.parametrize(("number", "at"), [(1, "h1/host/lsx64"), (2, "h2/host/lsx64")])
def test_a_host_that_does_not_answer_pings_is_not_called_reachable(
    pairs: list[Cluster], tmp_path: Path, number: int, at: str
) -> None:
    """The pings of either host's agent count, in their family."""
    pair = joined(pairs, tmp_path, VXLAN)
    other = 3 - number
    why = {number: f"no answer to pings of 10.77.{other}.0, its own address there, for 12 s"}
    found = traced(pair, "10.77.1.5", "10.77.2.5", unanswered=why)
    assert (found.verdict, [one.at for one in found.unknown]) == ("unknown", [at])
    assert found.reason == f"host h{other} does not answer this host's pings in network demo: {why[number]}"
    assert traced(pair, address(pair, 1, VXLAN, 6), address(pair, 2, VXLAN, 6), unanswered=why).reachable
    pair.world.sh("h2", "ip link del lsx64")
    assert traced(pair, "10.77.1.5", "10.77.2.5", unanswered=why).verdict == "broken"


def test_an_address_that_nobody_has_ends_on_its_block_s_host(pairs: list[Cluster], tmp_path: Path) -> None:
    """The packet crosses, and meets the pool's unreachable route there."""
    pair = joined(pairs, tmp_path, VXLAN)
    found = traced(pair, "10.77.1.5", "10.77.2.77")
    assert str(found.broken_at).startswith("h2/host")
    assert "unreachable" in found.reason


def test_a_host_that_does_not_tell_is_named_and_what_is_known_is_shown(
    pairs: list[Cluster], tmp_path: Path
) -> None:
    """The hops up to the underlay are shown, and the reason names the host whose part is missing."""
    pair = joined(pairs, tmp_path, VXLAN)
    found = traced(pair, "10.77.1.5", "10.77.2.5", silent=(2,))
    why = "host h2 did not report its part of the path: it is silent"
    assert (found.reachable, found.verdict, found.broken_at) == (False, "unknown", None)
    assert (found.unknown, found.reason) == ((Unknown("h2/host", why),), why)
    assert [hop.action for hop in found.hops] == ["sent", "routed", "encapsulated", "left", "unknown"]
    pair.world.sh("sw", "ip link set p2 nomaster")
    found = traced(pair, "10.77.1.5", "10.77.2.5", silent=(2,))
    assert (found.verdict, found.broken_at) == ("broken", "h1/host/eth0")
    assert "does not answer on eth0" in found.reason
    assert "h2 did not report" in found.reason
