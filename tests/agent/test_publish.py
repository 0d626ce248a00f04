"""Published ports: from where they are reached, as whom, and who may have them."""

from __future__ import annotations

import errno
import socket
import struct
import threading
from collections.abc import Iterator

import pytest

from linkspan.core.errors import Conflict, Exhausted, Invalid
from support.agent.agent_host import Host, World, run
from support.agent.stage import FAMILIES, MODES, OUTSIDE, POOLS, UPLINK, Container, Stage, port, staged
from support.agent.traffic import answers, asked, capturing, inside, refusal, serving
from support.polling import until

WEB = [port(8080, 80), port(8080, 80, "udp"), port(8443, 443, host_ip="127.0.0.1")]
PROTOCOLS = ["tcp", "udp"]


@pytest.fixture(scope="module", params=MODES)
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    """Return a host for this file's tests."""
    with staged(request.param) as made:
        yield made


@pytest.fixture(scope="module")
def web(stage: Stage) -> Iterator[Container]:
    """Return a container that publishes ports of tcp and udp, and serves them."""
    made = stage.attach(ports=WEB)
    with serving(made.netns, 80), serving(made.netns, 80, "udp"), serving(made.netns, 443):
        yield made


@pytest.fixture(scope="module")
def neighbour(stage: Stage) -> Container:
    """Another container of the same network."""
    return stage.attach()


@pytest.fixture(scope="module")
def stranger(stage: Stage) -> Container:
    """Return a container of another network."""
    return stage.attach("other")


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("family", FAMILIES)
def test_from_outside_the_clients_address_is_kept(
    stage: Stage, web: Container, family: int, protocol: str
) -> None:
    """A client from outside reaches the container by the host's address and is seen by its own."""
    assert asked(stage.outside, UPLINK[family], 8080, protocol) == (OUTSIDE[family], web.netns)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("family", FAMILIES)
def test_from_the_hosts_own_addresses(stage: Stage, web: Container, family: int, protocol: str) -> None:
    """The host reaches it by its uplink's address and by the network's gateway."""
    for address in (UPLINK[family], stage.gateway("demo", family)):
        assert asked(stage.host.netns, address, 8080, protocol)[1] == web.netns


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_from_127_0_0_1(stage: Stage, web: Container, protocol: str) -> None:
    """The host reaches it by 127.0.0.1."""
    assert asked(stage.host.netns, "127.0.0.1", 8080, protocol)[1] == web.netns


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_ipv6_loopback_is_refused_at_once(stage: Stage, web: Container, protocol: str) -> None:
    """A client that tries ::1 first gets an error and not silence; to publish a port there is an error, too."""
    assert refusal(stage.host.netns, "::1", 8080, protocol) == errno.ECONNREFUSED
    with pytest.raises(Invalid, match="cannot be published at ::1"):
        stage.attach(ports=[port(8081, 80, protocol, "::1")])


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("family", FAMILIES)
def test_from_other_containers_and_itself(
    stage: Stage, web: Container, neighbour: Container, stranger: Container, family: int, protocol: str
) -> None:
    """Containers of the same and of another network and the container itself reach it by the host's addresses."""
    for client in (neighbour, stranger, web):
        for address in (UPLINK[family], stage.gateway("demo", family)):
            assert asked(client.netns, address, 8080, protocol)[1] == web.netns, client.netns


def test_a_port_of_127_0_0_1_is_the_hosts_alone(stage: Stage, web: Container, neighbour: Container) -> None:
    """A port published at 127.0.0.1 is reached there, and neither by other addresses nor from elsewhere."""
    assert asked(stage.host.netns, "127.0.0.1", 8443)[1] == web.netns
    assert not answers(stage.host.netns, UPLINK[4], 8443)
    for client in (stage.outside, neighbour.netns):
        assert refusal(client, UPLINK[4], 8443)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_containers_do_not_reach_what_listens_on_the_hosts_127_0_0_1(
    stage: Stage, web: Container, protocol: str
) -> None:
    """A container with a route for 127.0.0.1 by the host is dropped, though route_localnet is on (CVE-2020-8558)."""
    gateway = stage.gateway("demo", 4)
    device = web.port if stage.mode == "routed" else "ls-demo"
    assert run("sysctl", "-n", f"net.ipv4.conf.{device}.route_localnet", netns=stage.host.netns) == "1\n"
    run("sysctl", "-qw", "net.ipv4.conf.eth0.route_localnet=1", netns=web.netns)
    run("ip", "addr", "del", "127.0.0.1/8", "dev", "lo", netns=web.netns, check=False)
    run("ip", "route", "replace", "127.0.0.1/32", "via", gateway, "src", web.ip(), netns=web.netns)
    with (
        serving(stage.host.netns, 6000, protocol, "127.0.0.1"),
        capturing(stage.host.netns, web.port) as seen,
    ):
        assert answers(stage.host.netns, "127.0.0.1", 6000, protocol)
        assert not answers(web.netns, "127.0.0.1", 6000, protocol)
        assert any(frame[30:34] == bytes([127, 0, 0, 1]) for frame in seen.frames()), "it was sent"


@pytest.fixture(scope="module")
def limited(stage: Stage) -> Iterator[str]:
    """Return a container with a port for the outside alone, and one for another network's containers alone."""
    netns = stage.world.namespace()
    outside, other = ("".join(f",from={cidr}" for cidr in some) for some in (OUTSIDE.values(), POOLS["other"]))
    published = f"8090:80{outside},8090:80/udp{outside},8091:80{other}"
    said = stage.host.cli("attach", netns, "--network", "demo", "--publish", published)
    assert "8091->80/tcp from 10.202.0.0/16 from fd00:202::/64" in said
    with serving(netns, 80), serving(netns, 80, "udp"):
        yield netns
    stage.host.cli("detach", netns)


@pytest.mark.parametrize("family", FAMILIES)
def test_only_named_sources_come_in_by_a_port(
    stage: Stage, limited: str, neighbour: Container, stranger: Container, family: int
) -> None:
    """`from=` is about clients outside and containers, by their own addresses; the host itself always comes in."""
    at = UPLINK[family]
    for protocol in PROTOCOLS:
        assert asked(stage.outside, at, 8090, protocol) == (OUTSIDE[family], limited)
    assert asked(stranger.netns, at, 8091)[1] == limited
    refused = [(stranger.netns, 8090, "tcp"), (stranger.netns, 8090, "udp"), (neighbour.netns, 8090, "tcp")]
    for client, number, protocol in (*refused, (stage.outside, 8091, "tcp"), (limited, 8090, "tcp")):
        assert refusal(client, at, number, protocol) in (errno.EHOSTUNREACH, errno.EACCES), (client, number, protocol)
    for number in (8090, 8091):
        for address in (at, *(["127.0.0.1"] if family == 4 else [])):
            assert asked(stage.host.netns, address, number)[1] == limited


@pytest.mark.parametrize("family", FAMILIES)
def test_the_reason_why_a_source_does_not_come_in_is_shown(stage: Stage, limited: str, family: int) -> None:
    """Trace names it, the listing has it, and plan has nothing to do."""
    found = stage.host.json("trace", OUTSIDE[family], UPLINK[family], "--port", "8091", code=3)
    assert f"the port is published, but not for {OUTSIDE[family]}" in found["reason"]
    (endpoint,) = stage.host.json("endpoint", "show", limited)
    assert {one["host_port"]: one["sources"][family == 6] for one in endpoint["ports"]} == {
        8090: f"{OUTSIDE[family]}/{32 if family == 4 else 128}", 8091: POOLS["other"][family == 6],
    }  # fmt: skip
    assert f"permitted{family}" in stage.host.cli("plan")
    why = stage.host.json("policy", "can", OUTSIDE[family], limited, "--port", "80")["why"]
    assert why.endswith("may come in by port 8091/tcp of the host")
    assert "8090" not in why
    assert stage.host.differences() == []


@pytest.mark.parametrize("family", FAMILIES)
def test_sctp_is_translated(stage: Stage, family: int) -> None:
    """An INIT from outside arrives at the container's port, by packets made by hand: this kernel needs no SCTP."""
    container = stage.attach(ports=[port(5000, 6000, "sctp")])
    with inside(stage.outside):
        sender = socket.socket(socket.AF_INET6 if family == 6 else socket.AF_INET, socket.SOCK_RAW, 132)
    with sender, capturing(container.netns, "eth0") as seen:
        sender.sendto(_init(4000, 5000), (UPLINK[family], 0))
        assert seen.sees(struct.pack("!HHI", 4000, 6000, 0))
    assert stage.host.detach(container.netns) == 1


def _init(source: int, to: int) -> bytes:
    """Return an SCTP packet with an INIT chunk (RFC 9260 3.3.2)."""
    chunk = struct.pack("!BBHIIHHI", 1, 0, 20, 1, 65535, 1, 1, 1)
    packet = struct.pack("!HHI", source, to, 0)
    crc = 0xFFFFFFFF
    for byte in packet + bytes(4) + chunk:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)  # CRC-32C, RFC 9260 appendix A
    return packet + struct.pack("<I", crc ^ 0xFFFFFFFF) + chunk


def test_ranges_map_port_by_port(stage: Stage) -> None:
    """`9000-9002:7000-7002` leads each port to its own."""
    netns = stage.world.namespace()
    stage.host.cli("attach", netns, "--network", "demo", "--publish", "9000-9002:7000-7002,[::]:9005:7005")
    for number in (0, 1, 2):
        with serving(netns, 7000 + number):
            assert asked(stage.outside, UPLINK[4], 9000 + number)[1] == netns
    with serving(netns, 7005):
        assert asked(stage.outside, UPLINK[6], 9005)[1] == netns
        assert not answers(stage.outside, UPLINK[4], 9005), "published for IPv6 alone"
    stage.host.cli("detach", netns)
    assert refusal(stage.outside, UPLINK[4], 9000)


def test_both_unspecified_addresses_may_be_asked_for(stage: Stage) -> None:
    """0.0.0.0:9100 and [::]:9100 are two families and no conflict, of one container or of two."""
    one = stage.attach(ports=[port(9100, 80, host_ip=ip) for ip in ("0.0.0.0", "::")])
    with serving(one.netns, 80):
        for family in (4, 6):
            assert asked(stage.outside, UPLINK[family], 9100)[1] == one.netns
    stage.host.detach(one.netns)
    two = [stage.attach(ports=[port(9101, 80, host_ip=ip)]) for ip in ("0.0.0.0", "::")]
    with serving(two[0].netns, 80), serving(two[1].netns, 80):
        assert asked(stage.outside, UPLINK[4], 9101)[1] == two[0].netns
        assert asked(stage.outside, UPLINK[6], 9101)[1] == two[1].netns
    for container in two:
        stage.host.detach(container.netns)


def test_a_range_to_one_port_takes_a_free_one(stage: Stage) -> None:
    """`8000-8002:80` skips what a container, and what a process holds, and is an error when none is left."""
    held = stage.attach(ports=[port(8000, 80)])
    wish = [{"host_ip": "", "first": 8000, "last": 8002, "port": 80, "protocol": "tcp"}]
    with serving(stage.host.netns, 8001):
        taken = stage.attach(port_ranges=wish)
        assert taken.endpoint["ports"] == [port(8002, 80)]
        with serving(taken.netns, 80):
            assert asked(stage.outside, UPLINK[4], 8002)[1] == taken.netns
        with pytest.raises(Exhausted, match=f"no port of 8000-8002/tcp is free.*{held.netns}"):
            stage.attach(port_ranges=wish)
    for container in (held, taken):
        stage.host.detach(container.netns)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_port_that_another_container_has_is_an_error_that_names_it(
    stage: Stage, web: Container, protocol: str
) -> None:
    """The second to ask for a port is refused, whichever network it is on, and nothing is left of the attempt."""
    netns = stage.world.namespace()
    with pytest.raises(Conflict, match=f"8080/{protocol}.*endpoint {web.netns} of network demo"):
        stage.host.attach(netns, "other", ports=[port(8080, 81, protocol, UPLINK[4])])
    assert "eth0" not in run("ip", "link", netns=netns)
    assert stage.host.check()["ok"]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(("listens", "wanted"), [("::", ""), ("127.0.0.1", ""), ("127.0.0.1", "0.0.0.0")])
def test_a_port_on_which_a_process_listens_is_an_error_that_names_it(
    stage: Stage, protocol: str, listens: str, wanted: str
) -> None:
    """A published port would cut the listener off, so it is refused with the process's number and name."""
    with serving(stage.host.netns, 6100, protocol, listens):
        with pytest.raises(Conflict, match=r"6100/.* is in use by process \d+ \(.+\)"):
            stage.attach(ports=[port(6100, 80, protocol, wanted)])
        stage.host.detach(
            stage.attach(ports=[port(6100, 80, protocol, UPLINK[4])] if listens != "::" else []).netns
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_bgp_peer_calls_is_the_hosts_whatever_is_published(stage: Stage, family: int) -> None:
    """A port 179 that was published before there was a speaker leads all others to the container, and no peer."""
    netns = stage.world.namespace()
    stage.host.attach(netns, "demo", ports=[port(179, 179, "tcp")])
    element = f"inet linkspan bgp_peers{family} {{ {OUTSIDE[family]} }}"

    def refused() -> bool:  # the agent takes away what it does not know: put again before each look
        run("nft", f"add element {element}", netns=stage.host.netns)
        return refusal(stage.outside, UPLINK[family], 179) == errno.ECONNREFUSED

    with serving(netns, 179):
        assert asked(stage.outside, UPLINK[family], 179)[1] == netns
        until(refused, "the host itself to answer")
    stage.host.detach(netns)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_udp_client_follows_a_mapping_that_comes_and_goes(stage: Stage, family: int) -> None:
    """A client that never stops sending from one port is led to the container as soon as its port is published."""
    one, two = stage.world.namespace(), stage.world.namespace()
    with inside(stage.outside):
        client = socket.socket(socket.AF_INET6 if family == 6 else socket.AF_INET, socket.SOCK_DGRAM)
    ended, heard = threading.Event(), [""]
    client.settimeout(0.02)

    def send() -> None:
        while not ended.is_set():
            try:
                client.sendto(b"?", (UPLINK[family], 5353))
                heard[0] = client.recv(2048).decode().partition(" ")[2]
            except OSError:
                heard[0] = ""

    thread = threading.Thread(target=send)
    thread.start()
    try:
        with serving(one, 53, "udp"), serving(two, 53, "udp"):
            until(lambda: _tracked(stage, 5353), "an entry of the client's, from before the mapping")
            for netns in (one, two):
                stage.host.attach(netns, "demo", ports=[port(5353, 53, "udp")])
                until(lambda netns=netns: heard[0] == netns, "the client to reach the container")
                stage.host.detach(netns)
                until(lambda: not heard[0], "the client to reach nobody")
    finally:
        ended.set()
        thread.join()
        client.close()


def _tracked(stage: Stage, number: int) -> bool:
    return any(
        f"dport={number}" in run("conntrack", "-L", "-f", f, netns=stage.host.netns) for f in ("ipv4", "ipv6")
    )


def test_published_ports_work_after_the_agents_restart(world: World) -> None:
    """The data path needs no agent, and the next agent takes over the rules without a change."""
    host = Host(world)
    outside = host.outside()
    host.start()
    try:
        host.network("demo", "10.201.0.0/16")
        netns = world.namespace()
        host.attach(netns, ports=[port(8080, 80)])
        with serving(netns, 80):
            host.stop()
            assert asked(outside, UPLINK[4], 8080)[1] == netns
            host.start()
            assert asked(outside, UPLINK[4], 8080)[1] == netns
        assert host.differences() == []
        with pytest.raises(Conflict, match=f"in use by endpoint {netns}"):
            host.attach(world.namespace(), ports=[port(8080, 80)])
    finally:
        host.close()
