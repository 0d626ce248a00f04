"""Backend host: no link, but the host's ports are kept apart."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from typing import Any

import pytest

from linkspan.core.errors import Conflict, Exhausted, Invalid
from support.agent.agent_host import Host, run
from support.agent.stage import FAMILIES, OUTSIDE, UPLINK, port
from support.agent.traffic import asked, inside, refusal, serving

WISH = {"host_ip": "", "first": 7000, "last": 7002, "port": 7000, "protocol": "tcp"}


@pytest.fixture
def shared(host: Host) -> Host:
    """Return a host with a network of backend host, and a bridged one."""
    host.network("demo", "10.201.0.0/16")
    host.client.call("POST", "/v1/networks", {"name": "shared", "backend": "host"})
    return host


def reserve(host: Host, name: str, **more: Any) -> list[dict[str, Any]]:
    """Attach a container of the host's network and return its ports."""
    body = {"id": name, "network": "shared", **more}
    return list(host.client.call("POST", "/v1/attach", body)["ports"])


def test_exact_ports_are_reserved_and_given_back(shared: Host) -> None:
    """The command line reserves ports without a link or a rule; after detach another may have them."""
    before = shared.links(), run("nft", "list", "ruleset", netns=shared.netns)
    made = shared.json(
        "attach", "one", "--network", "shared", "--publish", "7000-7001:7000-7001,7000:7000/udp"
    )
    assert made["ports"] == [port(7000, 7000), port(7001, 7001), port(7000, 7000, "udp")]
    assert (made["addresses"], made["mac"], made["host_ifname"]) == ([], "", "")
    assert (shared.links(), run("nft", "list", "ruleset", netns=shared.netns)) == before
    for taken in made["ports"]:
        with pytest.raises(Conflict, match="in use by endpoint one of network shared"):
            reserve(shared, "two", ports=[taken])
    assert shared.detach("one") == 1
    assert reserve(shared, "two", ports=made["ports"]) == made["ports"]
    assert shared.check()["ok"]


def test_a_range_gives_the_next_free_port(shared: Host) -> None:
    """Ports of a range go round what endpoints and sockets hold, until none is left."""
    with serving(shared.netns, 7001):
        assert [p["host_port"] for p in reserve(shared, "one", port_ranges=[WISH])] == [7000]
        assert [p["host_port"] for p in reserve(shared, "two", port_ranges=[WISH])] == [7002]
        with pytest.raises(Exhausted, match=r"no port of 7000-7002/tcp is free.*endpoint one"):
            reserve(shared, "three", port_ranges=[WISH])
    assert [p["host_port"] for p in reserve(shared, "three", port_ranges=[WISH])] == [7001]
    shared.detach("one")
    assert [p["host_port"] for p in reserve(shared, "four", port_ranges=[WISH])] == [7000]


def test_a_published_and_a_reserved_port_are_one_kind(shared: Host, container: Callable[[], str]) -> None:
    """A bridged endpoint's published port is refused to a container of the host's network, and the other way."""
    bridged = container()
    shared.attach(bridged, ports=[port(8080, 80)])
    with pytest.raises(Conflict, match=f"8080/tcp is in use by endpoint {bridged} of network demo"):
        reserve(shared, "one", ports=[port(8080, 8080)])
    reserve(shared, "one", ports=[port(8081, 8081)])
    with pytest.raises(Conflict, match="8081/tcp is in use by endpoint one of network shared"):
        shared.attach(container(), ports=[port(8081, 80)])


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@pytest.mark.parametrize("address", ["::", "0.0.0.0", "127.0.0.1", "::1"])
def test_a_listening_process_is_named(shared: Host, protocol: str, address: str) -> None:
    """A port on which any process of the host listens, at whatever address, is refused with its number and name."""
    with serving(shared.netns, 7100, protocol, address):
        with pytest.raises(Conflict, match=r"7100/.* is in use by process \d+ \(.+\)"):
            reserve(shared, "one", ports=[port(7100, 7100, protocol)])
        assert reserve(shared, "one", ports=[port(7100, 7100, "udp" if protocol == "tcp" else "tcp")])
    assert reserve(shared, "two", ports=[port(7100, 7100, protocol)])


def test_reserved_ports_outlive_the_agent(shared: Host) -> None:
    """The next agent keeps them, though the container itself listens on its port by now."""
    reserve(shared, "one", ports=[port(7000, 7000)])
    with serving(shared.netns, 7000):
        shared.restart()
        with pytest.raises(Conflict, match="in use by endpoint one of network shared"):
            reserve(shared, "two", ports=[port(7000, 7000)])
        assert [e["id"] for e in shared.json("endpoint", "list")] == ["one"]
    assert shared.detach("one") == 1
    assert reserve(shared, "two", ports=[port(7000, 7000)])


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@pytest.mark.parametrize("family", FAMILIES)
def test_only_named_sources_come_in_by_a_port_of_the_hosts_network(shared: Host, family: int, protocol: str) -> None:
    """`from=` counts where the process has the port itself, over a restart, also for what is sent to everybody."""
    outside, at, here = shared.outside(), UPLINK[family], OUTSIDE[family]
    run("sysctl", "-qw", "net.ipv4.icmp_ratelimit=0", "net.ipv6.icmp.ratelimit=0", netns=shared.netns)
    published = f"7000:7000/{protocol},from={here},7001:7001/{protocol},from=203.0.113.0/24"
    shared.cli("attach", "pid:1", "--id", "one", "--network", "shared", "--publish", published)
    with serving(shared.netns, 7000, protocol), serving(shared.netns, 7001, protocol):
        for _ in range(2):
            assert asked(outside, at, 7000, protocol)[0] == here
            assert refusal(outside, at, 7001, protocol) in (errno.EHOSTUNREACH, errno.EACCES)
            assert asked(shared.netns, at, 7001, protocol)[1] == shared.netns, "the host itself always comes in"
            assert shared.differences() == []
            shared.restart()
        found = shared.json("trace", here, at, "--port", f"7001/{protocol}", code=3)
        assert "is published, but not for" in found["reason"]
        shared.detach("one")
        assert asked(outside, at, 7001, protocol)[0] == here


@pytest.mark.parametrize("family", FAMILIES)
def test_a_flow_from_before_the_attach_is_limited_as_a_new_one(shared: Host, family: int) -> None:
    """Of a UDP client that goes on sending: rules of `from=` see a flow's first packet only."""
    outside, kind = shared.outside(), {4: socket.AF_INET, 6: socket.AF_INET6}[family]
    run("sysctl", "-qw", "net.ipv4.icmp_ratelimit=0", "net.ipv6.icmp.ratelimit=0", netns=shared.netns)
    with inside(outside):
        client = socket.socket(kind, socket.SOCK_DGRAM)
    with client:
        client.settimeout(10)
        client.connect((UPLINK[family], 7001))
        client.send(b"?")
        with pytest.raises(ConnectionRefusedError):  # nobody listens yet
            client.recv(2048)
        published = "7001:7001/udp,from=203.0.113.0/24"
        shared.cli("attach", "pid:1", "--id", "one", "--network", "shared", "--publish", published)
        with serving(shared.netns, 7001, "udp"):
            client.send(b"?")
            with pytest.raises(OSError, match=r"No route to host|Permission denied"):
                client.recv(2048)


def test_what_a_network_of_the_host_is_not(shared: Host) -> None:
    """A pool, an option or an address asked of it is an error that says why."""
    with pytest.raises(Invalid, match="takes no pool and no option"):
        shared.client.call(
            "POST", "/v1/networks", {"name": "odd", "backend": "host", "pools": ["10.9.0.0/16"]}
        )
    with pytest.raises(Invalid, match="in no pool"):
        reserve(shared, "one", ips=["10.9.0.1"])
