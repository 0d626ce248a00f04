"""Spoofing: forged frames of any kind, made by hand, are dropped at the container's port."""

from __future__ import annotations

import json
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator

import pytest

from support.agent.agent_host import run
from support.agent.stage import MODES, OUTSIDE, UPLINK, Container, Stage, staged
from support.agent.traffic import asked, capturing, send_frame, serving

BROADCAST = b"\xff" * 6
ALL_NODES, ALL_NODES_MAC = "ff02::1", bytes.fromhex("333300000001")
FORGED = bytes.fromhex("02deadbeef01")
MARK = b"linkspan-test-mark"
ARP, IPV4, IPV6 = b"\x08\x06", b"\x08\x00", b"\x86\xdd"


def checksum(data: bytes) -> int:
    """Return the Internet checksum (RFC 1071)."""
    data += b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return 0xFFFF - total


def packed(address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


def arp(
    mac: bytes, sender: str, target: str, operation: int = 1, *, frame_mac: bytes = b"", kind: int = 1
) -> bytes:
    """Return an ARP frame; ``kind`` is the hardware type: hosts take 6 (IEEE 802) for Ethernet, too."""
    body = struct.pack("!HHBBH", kind, 0x0800, 6, 4, operation)
    return BROADCAST + (frame_mac or mac) + ARP + body + mac + packed(sender) + bytes(6) + packed(target)


def ipv4(mac: bytes, to: bytes, source: str, target: str, ports: tuple[int, int] = (9, 9)) -> bytes:
    """Return a UDP datagram with MARK."""
    udp = struct.pack("!HHHH", *ports, 8 + len(MARK), 0) + MARK
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 1, 0, 64, 17, 0) + packed(source) + packed(target)
    head = head[:10] + struct.pack("!H", checksum(head)) + head[12:]
    return to + mac + IPV4 + head + udp


def ipv6(
    mac: bytes, to: bytes, source: str, target: str, protocol: int, body: bytes, extension: bytes = b""
) -> bytes:
    """Return an IPv6 packet with an upper layer whose checksum is at its place for ICMPv6 (2) or UDP (6)."""
    at = 2 if protocol == 58 else 6
    pseudo = packed(source) + packed(target) + struct.pack("!IxxxB", len(body), protocol)
    body = body[:at] + struct.pack("!H", checksum(pseudo + body)) + body[at + 2 :]
    first = 0 if extension else protocol
    head = struct.pack("!IHBB", 6 << 28, len(extension) + len(body), first, 255)
    return to + mac + IPV6 + head + packed(source) + packed(target) + extension + body


def icmp6(kind: int, rest: bytes) -> bytes:
    return struct.pack("!BBH", kind, 0, 0) + rest


def udp6(ports: tuple[int, int] = (9, 9)) -> bytes:
    return struct.pack("!HHHH", *ports, 8 + len(MARK), 0) + MARK


@pytest.fixture(scope="module", params=MODES)
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    """Return a host for this file's tests."""
    with staged(request.param) as made:
        yield made


@pytest.fixture(scope="module")
def forger(stage: Stage) -> Container:
    """Return the container that sends forged packets."""
    return stage.attach()


@pytest.fixture(scope="module")
def victim(stage: Stage) -> Container:
    """Another container of the same network."""
    return stage.attach()


def mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def gateway_mac(stage: Stage, port: str) -> bytes:
    device = port if stage.mode == "routed" else "ls-demo"
    return mac(json.loads(run("ip", "-j", "link", "show", device, netns=stage.host.netns))[0]["address"])


def lies(stage: Stage, forger: Container, victim: Container) -> dict[str, bytes]:
    """Return frames that no container may send, by what they lie about."""
    own, there = mac(forger.mac), mac(victim.mac)
    to = gateway_mac(stage, forger.port) if stage.mode == "routed" else there
    v4, v6 = forger.ip(4), forger.ip(6)
    gateway4, gateway6 = stage.gateway("demo", 4), stage.gateway("demo", 6)
    link_option = b"\2\1" + own
    advert = icmp6(136, b"\x20\0\0\0" + packed(gateway6) + link_option)
    router = icmp6(134, struct.pack("!BBHII", 64, 0, 1800, 0, 0) + b"\1\1" + own)
    hop_by_hop = bytes([58, 0, 1, 4, 0, 0, 0, 0])
    return {
        "source MAC": ipv4(FORGED, to, v4, victim.ip(4)),
        "source IPv4": ipv4(own, to, "10.201.9.9", victim.ip(4)),
        "source IPv4 of the gateway": ipv4(own, to, gateway4, victim.ip(4)),
        "source IPv4 of a stranger": ipv4(own, to, "192.0.2.77", victim.ip(4)),
        "source 127.0.0.1": ipv4(own, to, "127.0.0.1", victim.ip(4)),
        "source IPv6": ipv6(own, to, "fd00:201::9:9", victim.ip(6), 17, udp6()),
        "source IPv6 unspecified": ipv6(own, to, "::", victim.ip(6), 17, udp6()),
        "source IPv6 link-local of another": ipv6(own, to, "fe80::1", victim.ip(6), 17, udp6()),
        "ARP sender address": arp(own, victim.ip(4), gateway4),
        "ARP sender MAC": arp(FORGED, v4, victim.ip(4), frame_mac=own),
        "gratuitous ARP for the gateway": arp(own, gateway4, gateway4),
        "ARP answer for the gateway": arp(own, gateway4, victim.ip(4), 2),
        "ARP answer for the gateway, hardware type 6": arp(own, gateway4, victim.ip(4), 2, kind=6),
        "NA for the gateway": ipv6(own, ALL_NODES_MAC, v6, ALL_NODES, 58, advert),
        "NA for the gateway to one": ipv6(own, to, v6, victim.ip(6), 58, advert),
        "NA behind an extension header": ipv6(own, ALL_NODES_MAC, v6, ALL_NODES, 58, advert, hop_by_hop),
        "RA": ipv6(own, ALL_NODES_MAC, link_local(own), ALL_NODES, 58, router),
        "RA behind an extension header": ipv6(
            own, ALL_NODES_MAC, link_local(own), ALL_NODES, 58, router, hop_by_hop
        ),
        "redirect": ipv6(own, to, link_local(own), victim.ip(6), 58, icmp6(137, bytes(4) + 2 * packed(v6))),
        "DHCP answer": ipv4(own, BROADCAST, v4, "255.255.255.255", (67, 68)),
        "DHCPv6 answer": ipv6(own, ALL_NODES_MAC, v6, ALL_NODES, 17, udp6((547, 546))),
        "VLAN tag": tagged(ipv4(own, to, v4, victim.ip(4))),
        "VLAN tag around a lie": tagged(arp(own, gateway4, gateway4)),
        "two VLAN tags": tagged(tagged(ipv4(own, to, v4, victim.ip(4))), 0x88A8),
        "another protocol": to + own + b"\x88\xb5" + MARK[::-1],
    }


def link_local(own: bytes) -> str:
    eui = bytes([own[0] ^ 2]) + own[1:3] + b"\xff\xfe" + own[3:]
    return socket.inet_ntop(socket.AF_INET6, b"\xfe\x80" + bytes(6) + eui)


def tagged(frame: bytes, kind: int = 0x8100) -> bytes:
    return frame[:12] + struct.pack("!HH", kind, 7) + frame[12:]


def body(frame: bytes) -> bytes:
    """Return what is behind layer 2."""
    while frame[12:14] in (b"\x81\0", b"\x88\xa8"):
        frame = frame[:12] + frame[16:]
    return frame[14:]


def test_no_lie_reaches_another_container(stage: Stage, forger: Container, victim: Container) -> None:
    """Forged MACs, addresses, ARP, ND, RA, redirects, DHCP answers, VLAN tags and other protocols all end at the port.

    Each is told by its own bytes; an honest datagram, sent last, shows that the way is open.
    """
    frames = lies(stage, forger, victim)
    own = mac(forger.mac)
    to = gateway_mac(stage, forger.port) if stage.mode == "routed" else mac(victim.mac)
    with capturing(victim.netns, "eth0") as seen, capturing(stage.host.netns, forger.port) as port:
        for frame in frames.values():
            send_frame(forger.netns, "eth0", frame)
        send_frame(forger.netns, "eth0", ipv4(own, to, forger.ip(4), victim.ip(4), (4242, 4242)))
        arrived = seen.frames(outgoing=False)
        sent = port.frames(outgoing=False)
    honest = struct.pack("!HH", 4242, 4242)
    assert any(honest in frame for frame in arrived), "the honest one"
    # A capture shows frames without their VLAN tags; the last bytes tell them.
    payloads = {name: frame[-20:] for name, frame in frames.items()}
    assert [name for name, body in payloads.items() if not any(body in frame for frame in sent)] == []
    assert [name for name, frame in frames.items() if any(body(frame) in got for got in arrived)] == []
    assert [got for got in arrived if MARK in got and honest not in got] == []
    neighbours = run("ip", "neigh", netns=victim.netns)
    assert forger.mac not in "".join(
        line
        for line in neighbours.splitlines(keepends=True)
        if forger.ip(4) not in line and forger.ip(6) not in line
    )


def test_no_lie_changes_what_the_host_knows(stage: Stage, forger: Container, victim: Container) -> None:
    """After all of them the host has no default route, neighbour or address from the forger.

    But for the neighbour that the forger itself is, where its link is the host's own and not a bridge's: who says there
    that its own address has another MAC is heard, where an older entry is, and hurts nobody but itself.
    """
    host = stage.host.netns

    def known() -> list[str]:
        routes = run("ip", "route", netns=host) + run("ip", "-6", "route", netns=host)
        return [line for line in routes.splitlines() if not line.startswith("fe80::")]

    before = known()
    for frame in lies(stage, forger, victim).values():
        for to in (gateway_mac(stage, forger.port), BROADCAST):
            send_frame(forger.netns, "eth0", to + frame[6:])
    with serving(victim.netns, 80):
        assert asked(host, victim.ip(4), 80)[1] == victim.netns
        assert asked(host, victim.ip(6), 80)[1] == victim.netns
    assert known() == before
    own = f"{forger.ip(4)} dev {forger.port} " if stage.mode == "routed" else "-"
    neighbours = run("ip", "neigh", netns=host).splitlines()
    assert [line for line in neighbours if FORGED.hex(":") in line and not line.startswith(own)] == []


@pytest.mark.parametrize("stage", ["bridged", "br_netfilter"], indirect=True)
def test_no_frame_for_the_bridge_itself_teaches_it_anything(
    stage: Stage, forger: Container, victim: Container
) -> None:
    """No guard of forwarded packets sees frames to 802.1D's addresses: they move no MAC, and add no neighbour."""
    host, there = stage.host.netns, mac(victim.mac)
    with serving(victim.netns, 80):
        assert asked(host, victim.ip(4), 80)[1] == victim.netns
        for last in range(16):
            to = bytes.fromhex("0180c20000") + bytes([last])
            send_frame(forger.netns, "eth0", to + there + b"\x88\xcc" + bytes(46))
            send_frame(forger.netns, "eth0", to + arp(there, victim.ip(4), stage.gateway("demo", 4))[6:])
        assert f"dev {victim.port} " in run("bridge", "fdb", "get", victim.mac, "br", "ls-demo", netns=host) + " "
        assert run("ip", "neigh", "show", "dev", forger.port, netns=host) == ""
        assert asked(host, victim.ip(4), 80)[1] == victim.netns


@pytest.mark.parametrize("stage", ["routed"], indirect=True)
def test_who_asks_by_arp_with_addresses_of_others_becomes_no_neighbour(stage: Stage) -> None:
    """The kernel has 1,024 neighbours for all: a container makes one entry, its own."""
    forger, host = stage.attach(), stage.host.netns
    gateway = stage.gateway("demo", 4)
    for number in range(1, 20):
        send_frame(forger.netns, "eth0", arp(mac(forger.mac), f"198.18.0.{number}", gateway))
    run("ip", "neigh", "flush", "all", netns=forger.netns)
    run("ip", "netns", "exec", forger.netns, "ping", "-c1", "-W3", gateway)
    neighbours = run("ip", "-4", "neigh", "show", "dev", forger.port, netns=host).splitlines()
    assert [line.split()[0] for line in neighbours] == [forger.ip(4)]


def too_big(source: str, target: str, mtu: int) -> bytes:
    """Return the ICMP message that an echo reply from source to target was too large: no socket is needed for that."""
    if ":" in source:
        quoted = struct.pack("!IHBB", 6 << 28, 1400, 58, 64) + packed(source) + packed(target) + icmp6(129, bytes(4))
        return icmp6(2, struct.pack("!I", mtu) + quoted)
    head = struct.pack("!BBHHHBBH", 0x45, 0, 1420, 1, 0, 64, 1, 0) + packed(source) + packed(target)
    head = head[:10] + struct.pack("!H", checksum(head)) + head[12:]
    message = struct.pack("!BBHHH", 3, 4, 0, 0, mtu) + head + bytes(8)
    return message[:2] + struct.pack("!H", checksum(message)) + message[4:]


def test_no_container_makes_the_host_s_ways_narrow(stage: Stage, forger: Container) -> None:
    """No container may send an ICMP error about a flow of the host: the outward route keeps its MTU."""
    host, own = stage.host.netns, mac(forger.mac)
    to = gateway_mac(stage, forger.port)
    message = too_big(UPLINK[4], OUTSIDE[4], 552)
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(message), 1, 0, 64, 1, 0)
    head += packed(forger.ip(4)) + packed(UPLINK[4])
    head = head[:10] + struct.pack("!H", checksum(head)) + head[12:]
    run("ip", "netns", "exec", host, "ping", "-c1", "-W3", OUTSIDE[4])  # known to connection tracking, if anything is
    send_frame(forger.netns, "eth0", to + own + IPV4 + head + message)
    send_frame(forger.netns, "eth0", ipv6(own, to, forger.ip(6), UPLINK[6], 58, too_big(UPLINK[6], OUTSIDE[6], 1280)))
    for family in (4, 6):
        assert " mtu " not in run("ip", "-d", "route", "get", OUTSIDE[family], netns=host)


@pytest.mark.parametrize("family", [4, 6])
def test_a_container_s_own_errors_reach_the_host(stage: Stage, victim: Container, family: int) -> None:
    """A sender to a port that nobody uses is refused at once, and does not wait."""
    kind = "AF_INET6" if family == 6 else "AF_INET"
    code = f"import socket; s = socket.socket(socket.{kind}, socket.SOCK_DGRAM); s.settimeout(5); "
    code += f"s.connect(({victim.ip(family)!r}, 9)); s.send(b'x'); s.recv(1)"
    command = ["ip", "netns", "exec", stage.host.netns, sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "ConnectionRefusedError" in done.stderr


def test_no_lie_goes_out(stage: Stage, forger: Container) -> None:
    """A source that is not the container's own does not leave by the uplink, masqueraded or not."""
    to = gateway_mac(stage, forger.port)
    own = mac(forger.mac)
    with capturing(stage.outside, "eth0") as seen:
        for source in ("192.0.2.77", "10.201.9.9", "10.202.0.9"):
            send_frame(forger.netns, "eth0", ipv4(own, to, source, OUTSIDE[4]))
        for source in ("2001:db8:7::7", "fd00:201::9:9", "fd00:202::9"):
            send_frame(forger.netns, "eth0", ipv6(own, to, source, OUTSIDE[6], 17, udp6()))
        send_frame(forger.netns, "eth0", ipv4(own, to, forger.ip(4), OUTSIDE[4], (4243, 4243)))
        marked = [frame for frame in seen.frames(outgoing=False) if MARK in frame]
    assert len(marked) == 1
    assert marked[0][36:38] == struct.pack("!H", 4243), "the honest one alone"


@pytest.mark.parametrize("stage", ["bridged", "br_netfilter"], indirect=True)
def test_detection_of_duplicate_addresses_passes(stage: Stage) -> None:
    """An ARP probe from 0.0.0.0 and a neighbour solicitation from :: reach the network: a container may ask."""
    forger, victim = stage.attach(), stage.attach()
    own = mac(forger.mac)
    target = packed(forger.ip(6))
    group = b"\xff\x02" + bytes(9) + b"\x01\xff" + target[13:]
    solicitation = icmp6(135, bytes(4) + target)
    frames = (
        arp(own, "0.0.0.0", forger.ip(4)),
        ipv6(own, b"\x33\x33" + group[12:], "::", socket.inet_ntop(socket.AF_INET6, group), 58, solicitation),
    )
    with capturing(victim.netns, "eth0") as seen:
        for frame in frames:
            send_frame(forger.netns, "eth0", frame)
        arrived = seen.frames()
    for frame in frames:
        assert any(got.startswith(frame) for got in arrived), frame[12:14]
