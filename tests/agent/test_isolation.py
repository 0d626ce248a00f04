"""Isolation of networks from each other and from the outside, and the source addresses seen there."""

from __future__ import annotations

import errno
import json
import socket
from collections.abc import Iterator

import pytest

from support.agent.agent_host import Host, World, first_ip, pings, run
from support.agent.stage import FAMILIES, MODES, OUTSIDE, UPLINK, Container, Stage, options, port, staged
from support.agent.traffic import answers, asked, capturing, echoes, inside, refusal, serving
from support.polling import until

REJECTED = {4: errno.EHOSTUNREACH, 6: errno.EACCES}
"""What a socket makes of "communication administratively prohibited" (ICMP 3/13, ICMPv6 1/1)."""
ASK = {4: "tcp", 6: "udp"}
"""How to ask for a refusal: TCP over IPv6 takes the error only for its second SYN, after a second (tcp_v6_err)."""


@pytest.fixture(scope="module", params=MODES)
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    """Return a host for this file's tests, also with an internal network."""
    with staged(request.param) as made:
        made.internal()
        yield made


@pytest.fixture(scope="module")
def one(stage: Stage) -> Container:
    """Return a container of network demo."""
    return stage.attach()


@pytest.fixture(scope="module")
def two(stage: Stage) -> Container:
    """Return a container of network other."""
    return stage.attach("other")


@pytest.fixture(scope="module")
def hidden(stage: Stage) -> Container:
    """Return a container of the internal network."""
    return stage.attach("secret")


@pytest.mark.parametrize("family", FAMILIES)
def test_networks_are_isolated_by_an_answer(
    stage: Stage, one: Container, two: Container, family: int
) -> None:
    """A connection to another network is refused at once with an ICMP error, in both directions."""
    for client, server in ((one, two), (two, one)):
        with serving(server.netns, 80, ASK[family]):
            assert refusal(client.netns, server.ip(family), 80, ASK[family]) == REJECTED[family]


@pytest.mark.parametrize("family", FAMILIES)
def test_an_allowed_network_is_reached_and_does_not_reach_back(
    stage: Stage, one: Container, two: Container, family: int
) -> None:
    """After `network allow demo other` demo's containers open connections to other's, and not the other way."""
    stage.host.cli("network", "allow", "demo", "other")
    try:
        with serving(two.netns, 80), serving(one.netns, 80):
            assert asked(one.netns, two.ip(family), 80) == (one.ip(family), two.netns), "without translation"
            assert refusal(two.netns, one.ip(family), 80, ASK[family]) == REJECTED[family]
        assert pings(one.netns, two.ip(family))
        assert not echoes(two.netns, one.ip(family))
    finally:
        stage.host.cli("network", "disallow", "demo", "other")
    with serving(two.netns, 80, ASK[family]):
        assert refusal(one.netns, two.ip(family), 80, ASK[family]) == REJECTED[family]
    assert stage.host.differences() == []


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_allowed_port_is_that_port_alone(
    stage: Stage, one: Container, two: Container, family: int, protocol: str
) -> None:
    """`network allow demo other --port 80/PROTOCOL` opens neither another port nor the other protocol."""
    stage.host.cli("network", "allow", "demo", "other", "--port", f"80/{protocol}")
    try:
        other = "udp" if protocol == "tcp" else "tcp"
        with (
            serving(two.netns, 80, protocol),
            serving(two.netns, 80, other),
            serving(two.netns, 81, protocol),
        ):
            assert asked(one.netns, two.ip(family), 80, protocol)[1] == two.netns
            assert not answers(one.netns, two.ip(family), 81, protocol)
            assert not answers(one.netns, two.ip(family), 80, other)
            assert not answers(two.netns, one.ip(family), 80, protocol)
    finally:
        stage.host.cli("network", "disallow", "demo", "other", "--port", f"80/{protocol}")
    with serving(two.netns, 80, protocol):
        assert not answers(one.netns, two.ip(family), 80, protocol)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_internal_network_reaches_itself(stage: Stage, hidden: Container, family: int) -> None:
    """Containers of an internal network reach each other."""
    another = stage.attach("secret")
    with serving(another.netns, 80):
        assert asked(hidden.netns, another.ip(family), 80) == (hidden.ip(family), another.netns)
    assert pings(hidden.netns, another.ip(family))
    stage.host.detach(another.netns)


@pytest.mark.parametrize("family", FAMILIES)
def test_of_the_host_an_internal_network_reaches_dns_and_icmp(
    stage: Stage, hidden: Container, family: int
) -> None:
    """Port 53 by udp and tcp and ping work; any other port is refused by an ICMP error, at every host address."""
    for address in (stage.gateway("secret", family), UPLINK[family]):
        for protocol in ("tcp", "udp"):
            with (
                serving(stage.host.netns, 53, protocol, address),
                serving(stage.host.netns, 54, protocol, address),
            ):
                assert asked(hidden.netns, address, 53, protocol)[0] == hidden.ip(family)
                assert answers(stage.host.netns, address, 54, protocol)
                assert refusal(hidden.netns, address, 54, protocol)
        assert pings(hidden.netns, address)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_host_reaches_an_internal_network(stage: Stage, hidden: Container, family: int) -> None:
    """A connection that the host opens is answered."""
    with serving(hidden.netns, 80):
        assert asked(stage.host.netns, hidden.ip(family), 80)[1] == hidden.netns


@pytest.mark.parametrize("family", FAMILIES)
def test_an_internal_network_and_the_outside_do_not_meet(
    stage: Stage, hidden: Container, one: Container, family: int
) -> None:
    """Nothing goes out, to the outside or to another network, and nothing comes in from one with a route."""
    gateway = stage.gateway("secret", family)
    run("ip", "route", "replace", gateway, "via", UPLINK[family], netns=stage.outside)
    run("ip", "route", "replace", hidden.ip(family), "via", UPLINK[family], netns=stage.outside)
    with (
        serving(stage.outside, 80, ASK[family]),
        serving(hidden.netns, 80, ASK[family]),
        serving(one.netns, 80, ASK[family]),
        capturing(stage.outside, "eth0") as seen,
    ):
        assert refusal(hidden.netns, OUTSIDE[family], 80, ASK[family]) == REJECTED[family]
        assert refusal(hidden.netns, one.ip(family), 80, ASK[family]) == REJECTED[family]
        packed = socket.inet_pton(socket.AF_INET6 if family == 6 else socket.AF_INET, hidden.ip(family))
        assert not [frame for frame in seen.frames() if packed in frame]
        assert refusal(one.netns, hidden.ip(family), 80, ASK[family]) == REJECTED[family]
        assert refusal(stage.outside, hidden.ip(family), 80, ASK[family]) == REJECTED[family]


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_internal_network_does_not_reach_published_ports(
    stage: Stage, hidden: Container, family: int, protocol: str
) -> None:
    """A port that another network publishes is one of the host's, and neither DNS nor ICMP."""
    number = 8000 + 2 * family + (protocol == "udp")
    web = stage.attach(ports=[port(number, 80, protocol)])
    with serving(web.netns, 80, protocol):
        assert asked(stage.outside, UPLINK[family], number, protocol)[1] == web.netns
        for address in (UPLINK[family], stage.gateway("secret", family)):
            assert not answers(hidden.netns, address, number, protocol)


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_outside_sees_the_hosts_address(stage: Stage, one: Container, family: int, protocol: str) -> None:
    """A container reaches an outside that has no route back, and is seen there by the uplink's address."""
    with serving(stage.outside, 80, protocol):
        assert asked(one.netns, OUTSIDE[family], 80, protocol) == (UPLINK[family], stage.outside)
    assert pings(one.netns, OUTSIDE[family])


@pytest.mark.parametrize("family", FAMILIES)
def test_without_masquerade_the_source_is_kept(stage: Stage, family: int) -> None:
    """Of a --no-masquerade network the outside sees the container's own address, and needs a route to answer."""
    network = stage.host.network(
        "plain", "10.205.0.0/16", "fd00:205::/64", masquerade=False, options=options(stage.mode)
    )
    container = stage.attach("plain")
    with serving(stage.outside, 80):
        assert not answers(container.netns, OUTSIDE[family], 80)
        pool = next(pool for pool in network["pools"] if (":" in pool) == (family == 6))
        run("ip", "route", "replace", pool, "via", UPLINK[family], netns=stage.outside)
        assert asked(container.netns, OUTSIDE[family], 80) == (container.ip(family), stage.outside)
    with serving(container.netns, 80):
        assert asked(stage.outside, container.ip(family), 80) == (OUTSIDE[family], container.netns)
    stage.host.detach(container.netns)
    stage.host.cli("network", "delete", "plain")


@pytest.mark.parametrize("family", FAMILIES)
def test_outside_cannot_send_from_a_pools_address(
    stage: Stage, one: Container, two: Container, family: int
) -> None:
    """A packet from the uplink that claims a pool's address is dropped."""
    kind = socket.AF_INET6 if family == 6 else socket.AF_INET
    run("ip", "addr", "add", one.ip(family), "dev", "lo", netns=stage.outside)
    run("ip", "route", "replace", two.ip(family), "via", UPLINK[family], netns=stage.outside)
    stage.host.cli("network", "allow", "demo", "other")
    try:
        with inside(stage.outside), capturing(two.netns, "eth0") as seen:
            with socket.socket(kind, socket.SOCK_DGRAM) as forger:
                forger.bind((OUTSIDE[family], 0))
                forger.sendto(b"from the outside's own address", (two.ip(family), 9))
            with socket.socket(kind, socket.SOCK_DGRAM) as forger:
                forger.setsockopt(*((socket.IPPROTO_IP, 15) if family == 4 else (socket.IPPROTO_IPV6, 78)), 1)
                forger.bind((one.ip(family), 0))
                forger.sendto(b"from an address of the pool's", (two.ip(family), 9))
            frames = seen.frames()
        assert not any(b"an address of the pool's" in frame for frame in frames)
    finally:
        stage.host.cli("network", "disallow", "demo", "other")
        run("ip", "addr", "del", one.ip(family), "dev", "lo", netns=stage.outside)


def _second_uplink(host: Host, world: World) -> str:
    """Join one more namespace, which routes to the first outside by the host."""
    there = world.namespace()
    run(
        "ip",
        "link",
        "add",
        "second",
        "netns",
        host.netns,
        "type",
        "veth",
        "peer",
        "name",
        "eth0",
        "netns",
        there,
    )
    for netns, device, last in ((host.netns, "second", 1), (there, "eth0", 2)):
        run("ip", "addr", "add", f"203.0.113.{last}/24", "dev", device, netns=netns)
        run("ip", "addr", "add", f"2001:db8:2::{last}/64", "dev", device, "nodad", netns=netns)
        run("ip", "link", "set", device, "up", netns=netns)
    run("ip", "route", "add", "default", "via", "203.0.113.1", netns=there)
    run("ip", "route", "add", "default", "via", "2001:db8:2::1", netns=there)
    return there


@pytest.mark.parametrize("before", [False, True], ids=["off-before", "on-before"])
def test_the_host_becomes_a_router_for_its_containers_only(world: World, before: bool) -> None:
    """The host forwards between two uplinks only what it forwarded before linkspan."""
    host = Host(world)
    outside = host.outside()
    second = _second_uplink(host, world)
    run("ip", "route", "add", "default", "via", UPLINK[4], netns=outside)
    run("ip", "route", "add", "default", "via", UPLINK[6], netns=outside)
    if before:
        run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1", netns=host.netns)
    host.start()
    try:
        for family in (4, 6):
            assert pings(second, OUTSIDE[family]) if before else not echoes(second, OUTSIDE[family])
        host.network("demo", "10.201.0.0/16", "fd00:201::/64")
        netns = world.namespace()
        container = host.attach(netns)
        for _ in range(2):
            for family, beyond in ((4, "203.0.113.2"), (6, "2001:db8:2::2")):
                assert run("sysctl", "-n", "net.ipv4.ip_forward", netns=host.netns) == "1\n"
                assert pings(netns, beyond)
                assert pings(second, first_ip(container, family))
                assert pings(second, OUTSIDE[family]) if before else not echoes(second, OUTSIDE[family])
            host.restart()
    finally:
        host.close()


@pytest.mark.parametrize("mode", MODES)
def test_nothing_leaves_when_the_way_is_gone(mode: str) -> None:
    """With the agent stopped and the links deleted, traffic to the pool ends at the host."""
    with staged(mode) as stage:
        web = stage.attach(ports=[port(8080, 80, "udp")])
        stage.host.stop()
        run("ip", "link", "del", web.port if mode == "routed" else "ls-demo", netns=stage.host.netns)
        for family in (4, 6):
            kind = socket.AF_INET6 if family == 6 else socket.AF_INET
            packed = socket.inet_pton(kind, web.ip(family))
            with capturing(stage.outside, "eth0") as seen:
                for netns, address, number in (
                    (stage.host.netns, web.ip(family), 80),
                    (stage.outside, UPLINK[family], 8080),
                ):
                    assert refusal(netns, address, number, "udp"), "an error, and at once"
                assert not [frame for frame in seen.frames() if packed in frame[:54]]


def test_a_port_without_its_bridge_is_no_way_in(world: World) -> None:
    """A port that was taken off its bridge while the agent was stopped does not become a routed link."""
    host = Host(world)
    outside = host.outside()
    host.start()
    try:
        host.network("demo", "10.201.0.0/16")
        netns = world.namespace()
        endpoint = host.attach(netns)
        assert pings(netns, OUTSIDE[4])
        host.stop()
        link = endpoint["host_ifname"]
        run("ip", "link", "set", link, "nomaster", netns=host.netns)
        mac = json.loads(run("ip", "-j", "link", "show", link, netns=host.netns))[0]["address"]
        run("ip", "neigh", "replace", "10.201.0.1", "lladdr", mac, "dev", "eth0", netns=netns)
        with capturing(outside, "eth0") as seen:
            assert not echoes(netns, OUTSIDE[4])
            assert not [f for f in seen.frames() if f[12:14] == b"\x08\0"]
        host.start()
        run("ip", "neigh", "flush", "dev", "eth0", netns=netns)
        until(lambda: pings(netns, OUTSIDE[4]), "the port to be back")
    finally:
        host.close()
