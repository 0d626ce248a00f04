"""Containers on different hosts reach each other, by states alone; what is flushed comes back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from linkspan.core.model import Network
from support.netns.overlay import MTU, Cluster, network

Make = Callable[..., Cluster]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Make]:
    """Make clusters, and remove them."""
    made: list[Cluster] = []

    def make(count: int = 2, families: Sequence[int] = (4, 6)) -> Cluster:
        made.append(Cluster(count, tmp_path / str(len(made)), families))
        return made[-1]

    yield make
    for one in made:
        one.close()


VXLAN = network("demo", 77, "vxlan", (4, 6), vni="100")
WAYS = [
    pytest.param(VXLAN, (4, 6), 50, id="vxlan"),
    pytest.param(network("demo", 77, "vxlan", (4,), vni="100", port="4800"), (4,), 50, id="vxlan-ipv4"),
    pytest.param(VXLAN, (6,), 70, id="vxlan-over-ipv6"),
    pytest.param(network("demo", 77, "vxlan", (4, 6), vni="100", direct="true"), (4, 6), 0, id="vxlan-direct"),
    pytest.param(network("demo", 77, "host-gw", (4, 6)), (4, 6), 0, id="host-gw"),
    pytest.param(network("demo", 77, "ipip"), (4, 6), 20, id="ipip"),
    pytest.param(network("demo", 77, "ipip", direct="true"), (4,), 0, id="ipip-direct"),
]


@pytest.mark.parametrize(("demo", "underlay", "overhead"), WAYS)
def test_containers_of_two_hosts_reach_each_other(
    cluster: Make, demo: Network, underlay: Sequence[int], overhead: int
) -> None:
    """Both families pass by every way, and a second pass on either host changes nothing."""
    pair = cluster(2, underlay)
    pair.joined([demo])
    assert pair.pings(1, 2, demo)
    assert pair.pings(2, 1, demo)
    target = pair.hosts[1].container(demo).prefixes[0]
    room = min(pair.hosts[0].container(demo).mtu, MTU - overhead) - 28
    assert pair.world.pings("c1", target.address, room)
    assert not pair.world.pings("c1", target.address, room + 1)
    for host in pair.hosts:
        assert host.differs() == []


@pytest.mark.parametrize("demo", [VXLAN, network("demo", 77, "ipip")], ids=["vxlan", "ipip"])
def test_a_packet_that_is_too_big_for_the_tunnel_is_answered(cluster: Make, demo: Network) -> None:
    """A container whose link has a larger MTU gets the tunnel's MTU by ICMP, and then uses it."""
    pair = cluster()
    pair.joined([demo])
    pair.world.sh("c1", "ip link set eth0 mtu 1500")
    pair.world.sh("h1", "for i in /sys/class/net/lsr*; do ip link set ${i##*/} mtu 1500; done")
    assert not pair.world.pings("c1", "10.77.2.5", 1472)
    mtu = {"vxlan": 1450, "ipip": 1480}[demo.backend]
    assert f"mtu {mtu}" in pair.world.sh("c1", "ip route get 10.77.2.5")


def test_the_host_itself_reaches_remote_containers(cluster: Make) -> None:
    """Packets from the host itself have its own address in the network, which peers accept from the tunnel."""
    pair = cluster()
    networks = [VXLAN, network("plain", 78, "host-gw", (4, 6)), network("wrapped", 79, "ipip")]
    pair.joined(networks)
    for number in (77, 78, 79):
        assert f"src 10.{number}.1.0" in pair.world.sh("h1", f"ip route get 10.{number}.2.5")
    # The container has one eth0, that of the network joined last.
    assert pair.world.pings("h1", "10.79.2.0")
    assert pair.world.pings("h1", "10.77.2.0")
    assert pair.world.pings("h1", "fd77:0:0:2::")


def test_three_hosts_form_a_full_mesh(cluster: Make) -> None:
    """Every container reaches every other."""
    three = cluster(3, (4,))
    demo = network("demo", 77, "vxlan", (4,), vni="100")
    three.joined([demo])
    pairs = [(a, b) for a in (1, 2, 3) for b in (1, 2, 3) if a != b]
    assert [pair for pair in pairs if not three.pings(*pair, demo)] == []


def test_two_networks_do_not_reach_each_other(cluster: Make) -> None:
    """A container of one VXLAN gets nothing through to the pool of another, on another host."""
    pair = cluster()
    other = network("other", 78, "vxlan", (4,), vni="101")
    pair.joined([VXLAN, other], attached=[["demo"], ["other"]])
    assert pair.world.pings("c1", "10.77.2.0")
    assert not pair.world.pings("c1", "10.78.2.5")
    assert not pair.world.pings("c2", "10.77.1.5")


BREAKS = [
    "bridge fdb del {mac} dev lsx64 dst 192.0.2.2 self",
    "bridge fdb replace {mac} dev lsx64 dst 192.0.2.9 self",
    "bridge fdb append 00:00:00:00:00:00 dev lsx64 dst 192.0.2.9 self permanent",
    "ip neigh flush dev lsx64 nud permanent",
    "ip neigh replace 10.77.2.0 lladdr 02:00:00:00:00:09 dev lsx64 nud permanent",
    "ip route flush proto 76",
    "ip route replace 10.77.2.0/24 via 192.0.2.9 dev eth0 proto 76",
    "ip link set lsx64 address 02:00:00:00:00:07",
    "ip link set lsx64 mtu 1400",
    "ip link set lsx64 down",
    "ip link del lsx64",
    "ip addr flush dev lsx64",
    "ip link set lsx64 type vxlan id 100 learning",
    "ip link del lsx64; ip link add lsx64 type vxlan id 7 dstport 4790 && "
    "ip link property add dev lsx64 altname linkspan:lsx64",
    "nft flush set inet linkspan vteps4",
    "nft flush map inet linkspan sources4",
]


@pytest.mark.parametrize("command", BREAKS)
def test_what_somebody_broke_is_mended_by_a_resync(cluster: Make, command: str) -> None:
    """After one resync all is as before, packets pass, and the next one finds nothing to do."""
    pair = cluster(2, (4,))
    pair.joined([VXLAN])
    mac = pair.hosts[1].lease(VXLAN).endpoints["vxlan"].data["mac"]
    pair.world.sh("h1", command.format(mac=mac))
    report = pair.hosts[0].resync()
    assert report.failed == {}
    assert report.heals
    assert pair.hosts[0].differs() == []
    assert pair.world.pings("c1", "10.77.2.5")


def test_others_entries_are_not_touched(cluster: Make) -> None:
    """A foreign VXLAN, its entries, and neighbours of the underlay outlive everything that linkspan does."""
    pair = cluster(2, (4,))
    theirs = """ip link add vx9 type vxlan id 9 dstport 4799 local 192.0.2.1 && ip link set vx9 up
        bridge fdb replace 02:00:00:00:00:99 dev vx9 dst 192.0.2.99 self permanent
        ip neigh replace 192.0.2.77 lladdr 02:00:00:00:00:77 dev eth0 nud permanent
        ip addr add 10.9.0.1/24 dev vx9; ip route add 10.10.0.0/16 via 10.9.0.2 dev vx9"""
    show = "bridge fdb show dev vx9; ip neigh show 192.0.2.77; ip addr show vx9 | grep 'inet '; ip route show dev vx9"
    pair.world.sh("h1", theirs)
    before = pair.world.sh("h1", show)
    pair.joined([VXLAN])
    pair.hosts[0].resync()
    with pair.world.entered("h1"):
        reconciler = pair.hosts[0].machine.reconciler
        for source in list(reconciler.desired.sources()):
            assert reconciler.change(source, ()) == {}
    assert pair.world.sh("h1", show) == before
    assert "lsx" not in pair.world.sh("h1", "ip link show")


def test_a_new_port_replaces_the_device_and_keeps_the_peers(cluster: Make) -> None:
    """States lost with the old device are put on the new one, at once and without a resync."""
    pair = cluster(2, (4,))
    pair.joined([VXLAN])
    pair.joined([network("demo", 77, "vxlan", (4, 6), vni="100", port="4999")])
    assert "dstport 4999" in pair.world.sh("h1", "ip -d link show lsx64")
    assert pair.pings(1, 2, VXLAN)
    assert pair.hosts[0].differs() == []


def test_a_link_of_another_with_the_name_is_a_conflict(cluster: Make) -> None:
    """It is reported, and left alone."""
    pair = cluster(1, (4,))
    host = pair.hosts[0]
    pair.world.sh("h1", "ip link add lsx64 type bridge")
    host.networks = [VXLAN]
    with pair.world.entered("h1"):
        failed = [host.machine.reconciler.change(source, states) for source, states in host.sources()]
    errors = [error.message for found in failed for error in found.values()]
    assert "link lsx64 exists and is not linkspan's" in errors
    assert "lsx64" in pair.world.sh("h1", "ip link show type bridge")
