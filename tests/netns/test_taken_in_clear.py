"""Clear packets for a sealed network reach no container, whoever sends them and however they are wrapped."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from linkspan.core import seal as sealed
from linkspan.core.addresses import prefix
from linkspan.core.host_view import Facts
from linkspan.core.ruleset import admission, crossing, element, skeleton
from linkspan.core.states.host import GROUP, Address, LinkSysctl, Route, State, Wireguard
from linkspan.core.states.wireguard import AllowedIp
from linkspan.diagnose.plan.plan import commands, ordered
from linkspan.kernel.kinds import kinds
from linkspan.kernel.machine import Machine
from support.netns.listener import PORT, Ear
from support.netns.machine_fixtures import run
from support.netns.overlay import Cluster, network
from support.netns.traced_host import OUTSIDE, Host, leads_outside
from support.netns.world import World

POOLS = (prefix("10.77.0.0/16"), prefix("fd77::/48"))
INSIDE = {4: "10.77.2.5", 6: "fd77:0:0:2::5"}


def send(world: World, netns: str, target: str, source: str = "") -> None:
    """Send a datagram, also from an address that the namespace has not."""
    kind = socket.AF_INET6 if ":" in target else socket.AF_INET
    with world.entered(netns), socket.socket(kind, socket.SOCK_DGRAM) as out:
        if source:
            out.setsockopt(socket.SOL_IP, 19, 1)  # IP_TRANSPARENT in linux/in.h
            out.bind((source, 0))
        out.sendto(b"in clear", (target, PORT))


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Cluster]:
    """Make two hosts, and a third machine on their segment that is nobody's and knows the way to the containers."""
    cluster = Cluster(2, tmp_path)
    cluster.world.add("x")
    cluster.plugged("x", 9)
    cluster.joined([network("demo", 77, "host-gw", (4, 6))])
    cluster.world.sh("x", "ip route add 10.77.0.0/16 via 192.0.2.2; ip route add fd77::/48 via fd02::2")
    yield cluster
    cluster.close()


def seal(cluster: Cluster, number: int, *more: State) -> None:
    """Seal the network on a host."""
    host = cluster.hosts[number - 1]
    with cluster.world.entered(host.name):
        failed = host.machine.reconciler.change(("seal",), [*sealed.sealed(POOLS, xfrm=False), *more])
    assert failed == {}


@pytest.mark.parametrize("family", [4, 6])
def test_a_stranger_on_the_underlay_reaches_no_container(pair: Cluster, family: int) -> None:
    """Neither plainly nor by a tunnel of its own, which succeeds without encryption; all else continues."""
    world, ear = pair.world, Ear(pair.world, "c2")
    for where, here, there in (("h2", 2, 9), ("x", 9, 2)):
        world.sh(where, f"ip link add other type vxlan id 9 dstport 4799 dev eth0 remote 192.0.2.{there}")
        world.sh(where, f"ip addr add 10.9.0.{here}/24 dev other; ip addr add fd09::{here}/64 dev other nodad")
        world.sh(where, "ip link set other up")
    wrapped = {4: "ip route replace 10.77.0.0/16 via 10.9.0.2", 6: "ip route replace fd77::/48 via fd09::2"}
    plain = {4: "ip route replace 10.77.0.0/16 via 192.0.2.2", 6: "ip route replace fd77::/48 via fd02::2"}

    def passes(way: dict[int, str]) -> bool:
        world.sh("x", way[family])
        send(world, "x", INSIDE[family])
        return ear.heard()

    try:
        assert passes(plain)
        assert passes(wrapped)
        seal(pair, 2)
        assert not passes(plain)
        assert not passes(wrapped)
        assert world.reaches("c2", {4: "192.0.2.9", 6: "fd02::9"}[family]), "answers to what was masqueraded come in"
        assert world.reaches("h2", INSIDE[family]), "the host reaches its container"
    finally:
        ear.close()


def test_another_s_device_with_our_name_gets_nothing(pair: Cluster) -> None:
    """Nothing leaves by it, and nothing that comes by it is believed, though sets and routes have its name."""
    world = pair.world
    world.sh("h2", f"ip link add ipsec0 type veth peer name v netns {world.named('x')}; ip link set ipsec0 up")
    world.sh("x", "ip link set v up; ip addr add 10.77.1.5/32 dev v; ip route add 10.77.2.0/24 dev v")
    world.sh("h2", "ip route replace 10.77.1.0/24 dev ipsec0 proto 76; ip route add 10.77.1.5/32 dev ipsec0")
    for where, device in (("h2", "ipsec0"), ("x", "v")):
        world.sh(where, f"sysctl -qw net.ipv4.conf.{device}.proxy_arp=1 net.ipv4.conf.{device}.rp_filter=0")
    seal(pair, 2, *sealed.encrypting("ipsec0"), element("ways4", "ipsec0", "10.77.1.0"))
    inside, outside = Ear(world, "c2"), Ear(world, "x")

    def passes() -> tuple[bool, bool]:
        send(world, "x", INSIDE[4], "10.77.1.5")
        send(world, "c2", "10.77.1.5")
        return inside.heard(), outside.heard()

    try:
        assert passes() == (False, False)
        world.sh("h2", f"ip link set ipsec0 group {GROUP}")
        assert passes() == (True, True)
    finally:
        inside.close()
        outside.close()


def test_another_s_device_in_our_group_is_as_any(pair: Cluster) -> None:
    """The number is anybody's: an underlay that an operator has put there continues, and encrypts nothing."""
    world = pair.world
    seal(pair, 2)
    world.sh("h2", f"ip link set eth0 group {GROUP}")
    world.sh("x", "ip route replace 10.77.0.0/16 via 192.0.2.2")
    ear = Ear(world, "c2")
    try:
        assert world.reaches("x", "192.0.2.2")
        assert world.reaches("c2", "192.0.2.9")
        send(world, "x", INSIDE[4])
        assert not ear.heard()
    finally:
        ear.close()


def test_what_stands_on_another_s_device_waits_until_that_is_gone(machine: str, tmp_path: Path) -> None:
    """The device is named with what to do, stays as it is, and outlives what we wanted of its name."""
    run("ip", "link", "add", "lswg", "type", "bridge")
    run("ip", "link", "set", "lswg", "up")
    target = prefix("10.77.2.0/24")
    wanted: list[State] = [
        *skeleton(Facts(), kinds()),
        admission(POOLS[0], 24, kinds()),
        crossing(POOLS[0], 24),
        Wireguard("lswg", 1440, tun=True),
        LinkSysctl("net/ipv4/conf/lswg/rp_filter", "2"),
        Address("lswg", prefix("10.77.1.0/32")),
        Route(target, "lswg", source=prefix("10.77.1.0").packed),
        AllowedIp("lswg", target, "a" * 43 + "="),
    ]
    made = Machine(tmp_path)
    try:
        failed = made.reconciler.change(("host",), wanted)
        assert {key[0] for key in failed} == {"Wireguard", "LinkSysctl", "Address", "Route", "AllowedIp"}
        for error in (*failed.values(), *made.reconciler.resync().failed.values()):
            assert "link lswg exists and is not linkspan's" in error.told
            assert "ip link del lswg" in error.told
        assert "10.77" not in run("ip", "route") + run("ip", "addr")
        made.reconciler.change(("host",), ())
        assert "lswg" in run("ip", "-br", "link")
        made.reconciler.change(("host",), [s for s in wanted if not isinstance(s, AllowedIp)])
        run("ip", "link", "del", "lswg")
        assert made.reconciler.resync().failed == {}
        assert "10.77.2.0/24 dev lswg" in run("ip", "route")
        assert f"group {GROUP}" in run("ip", "link", "show", "lswg")
        run("ip", "link", "set", "lswg", "group", "default")
        assert [heal.kind for heal in made.reconciler.resync().heals] == ["Wireguard"]
        assert f"group {GROUP}" in run("ip", "link", "show", "lswg")
        made.reconciler.change(("host",), ())
        assert "lswg" not in run("ip", "-br", "link")
    finally:
        made.close()
        made.processes.close()


def test_a_trace_says_why_and_what_is_published_is_reached() -> None:
    """On a host whose networks are sealed."""
    world = World("h", "a", "b", "c", "d", "o")
    try:
        host = Host(world, routed=True)
        states = sealed.sealed([p for n in host.networks.values() for p in n.prefixes], xfrm=False)
        host.sh("\n".join(line for state in ordered(states) for line in commands(state, world.by_inode)))
        world.sh("o", "ip route add 10.77.0.0/16 via 192.0.2.1")
        found = host.trace(OUTSIDE[4], "a")
        assert not found.reachable
        assert "nor accepted in clear" in found.reason
        assert not world.pings("o", "10.77.0.2")
        for source, target, to in ((OUTSIDE[4], "192.0.2.1", "8080/tcp"), ("a", OUTSIDE[4], "")):
            found = host.trace(source, target, to)
            assert leads_outside(found), (source, target, found.reason)
        assert host.trace("host:h1", "a").reachable
        assert world.reaches("a", OUTSIDE[4])
    finally:
        world.close()
