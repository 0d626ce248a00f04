"""SDN on the kernel's data path of Open vSwitch: a real controller's flows, and what they do to packets."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import struct
from collections.abc import Iterator

import pytest

from linkspan.backends.sdn.backend import BACKEND, gateway
from linkspan.core.addresses import mac, prefix
from linkspan.kernel.io.packets import checksum
from linkspan.kernel.io.probe_frames import question
from support.kernels.kernel_switch import KernelSwitch, macs, programmed
from support.kernels.underlay_stranger import Wire
from support.netns.forgery import Listener, datagram
from support.netns.machine_fixtures import run
from support.netns.overlay import MTU, Cluster, network
from support.netns.traced_cluster import address
from support.polling import until

pytestmark = pytest.mark.skipif(
    shutil.which("ovs-vswitchd") is None, reason="needs Open vSwitch: apt install openvswitch-switch"
)

DEMO = BACKEND.completed(network("demo", 77, "sdn", (4, 6)), ())
GATEWAY = mac(DEMO.options["mac"])
AT = {4: (b"\x08\x00", 8, 16), 6: (b"\x86\xdd", 7, 24)}
"""EtherType, and where in the IP header the TTL and the target are."""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Make two hosts with a container each; the switch between them is ``switch``'s."""
    cluster = Cluster(2, tmp_path_factory.mktemp("ovs"))
    try:
        yield cluster
    finally:
        cluster.close()


@pytest.fixture(scope="module")
def switch(pair: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KernelSwitch]:
    """Give the hosts' switch, with the flows that a controller found to be needed."""
    run("modprobe", "openvswitch")
    found = KernelSwitch(pair, tmp_path_factory.mktemp("switch") / "ovs")
    try:
        macs(pair)
        pair.joined([DEMO])
        asyncio.run(programmed(found, DEMO))
        yield found
    finally:
        found.close()


def own(cluster: Cluster, number: int) -> bytes:
    """Return a host's MAC on the segment."""
    underlay = cluster.hosts[number - 1].host.underlay
    assert underlay is not None
    return mac(underlay.mac)


def opened(cluster: Cluster, number: int) -> socket.socket:
    """Return a socket for whole frames at a host's port."""
    with cluster.world.entered(f"h{number}"):
        found = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))  # ETH_P_ALL
    found.bind(("eth0", 3))
    found.settimeout(5)
    return found


@pytest.mark.parametrize("family", [4, 6])
def test_a_packet_gets_both_macs_and_a_lower_ttl(pair: Cluster, switch: KernelSwitch, family: int) -> None:
    """Full-sized packets that must not be fragmented pass, and are intact before and behind the switch."""
    target = address(pair, 2, DEMO, family)
    assert pair.world.reaches("c1", target, 30)
    kind, ttl, to = AT[family]
    wire = Wire(pair)
    assert pair.world.pings("c1", target, MTU - (28 if family == 4 else 48))
    packed = prefix(target).packed
    frames = [f for f in wire.frames() if f[12:14] == kind and f[14 + to : 14 + to + len(packed)] == packed]
    wire.close()
    assert {(f[:6], f[6:12], f[14 + ttl]) for f in frames} == {
        (GATEWAY, own(pair, 1), 63),
        (own(pair, 2), GATEWAY, 62),
    }


def test_tcp_passes_whose_checksums_are_left_to_the_card(pair: Cluster, switch: KernelSwitch) -> None:
    """The kernel's data path takes large segments unchanged: hosts need not compute checksums themselves."""
    text = b"linkspan" * 100_000
    with pair.world.entered("c2"):
        listening = socket.create_server((address(pair, 2, DEMO), 5001))
    with pair.world.entered("c1"):
        out = socket.create_connection((address(pair, 2, DEMO), 5001), 30)
    with listening, out:
        taken, _ = listening.accept()
        with taken:
            taken.settimeout(30)
            out.setblocking(False)
            sent = got = 0
            while got < len(text):
                with contextlib.suppress(BlockingIOError):
                    sent += out.send(text[sent : sent + 65536])
                piece = taken.recv(1 << 20)
                assert piece == text[got : got + len(piece)]
                got += len(piece)


def test_hosts_reach_each_other_as_before(pair: Cluster, switch: KernelSwitch) -> None:
    """Their own traffic is not linkspan's."""
    assert pair.world.reaches("h1", "192.0.2.2", 30)
    assert pair.world.reaches("h2", "fd02::1", 30)


def test_the_gateway_answers_arp(pair: Cluster, switch: KernelSwitch) -> None:
    """From the switch: with its MAC, to who has asked."""
    (asked,) = (one for one in gateway(DEMO) if one.family == 4)
    here = own(pair, 1)
    with opened(pair, 1) as port:
        port.send(question(here, GATEWAY, asked.packed))
        while (frame := port.recv(2048))[12:14] != b"\x08\x06" or frame[:6] != here:
            pass
    assert frame[6:12] == GATEWAY
    assert frame[20:42] == b"\x00\x02" + GATEWAY + asked.packed + here + bytes(4)


def test_the_gateway_answers_neighbour_solicitation(pair: Cluster, switch: KernelSwitch) -> None:
    """With an advertisement whose checksum is right: RFC 4861 4.4."""
    (asked,) = (one for one in gateway(DEMO) if one.family == 6)
    here = own(pair, 1)
    with opened(pair, 1) as port:
        port.send(question(here, GATEWAY, asked.packed))
        while (frame := port.recv(2048))[12:14] != b"\x86\xdd" or frame[54:55] != b"\x88" or frame[:6] != here:
            pass
    source, target, body = frame[22:38], frame[38:54], frame[54:]
    assert frame[6:12] == GATEWAY
    assert source == asked.packed
    assert body[8:24] == asked.packed
    assert body[24:] == b"\x02\x01" + GATEWAY
    assert body[4:8] == b"\xa0\x00\x00\x00"
    assert checksum(source + target + struct.pack("!II", len(body), 58) + body) == 0


def test_a_forged_source_is_dropped_and_counted(pair: Cluster, switch: KernelSwitch) -> None:
    """Packets of host 1 from its own prefix pass; from host 2's, an outsider's and past the gateway none do."""
    listener = Listener(pair, 2)
    here = own(pair, 1)
    with opened(pair, 1) as port:

        def passes(source: str, to: bytes = GATEWAY, by: bytes = here) -> bool:
            port.send(to + by + b"\x08\x00" + datagram(source))
            return listener.heard()

        until(lambda: passes("10.77.1.5"), "its own passes", 30)
        before, past, forged = (switch.counted(kind) for kind in ("foreign", "past", "forged"))
        assert not passes("10.77.2.9")
        assert not passes("198.51.100.1")
        assert not passes("10.77.1.5", by=own(pair, 2))
        until(lambda: switch.counted("foreign") == before + 3, "all three are counted", 30)
        assert not passes("10.77.1.5", to=own(pair, 2))
        until(lambda: switch.counted("past") == past + 1, "what went past the gateway is counted", 30)
        assert not passes("10.77.1.5", by=GATEWAY)
        until(lambda: switch.counted("forged") == forged + 1, "who claims to be the gateway is counted", 30)
        assert passes("10.77.1.5")
    listener.close()


def test_the_data_path_is_the_kernel_s(pair: Cluster, switch: KernelSwitch) -> None:
    """The daemon says so, and the kernel itself has the flow: with MACs, TTL and port, and packets that it took."""
    assert "system@ovs-system:" in switch.asked("dpif/show")
    for _ in range(4):
        assert pair.world.pings("c1", address(pair, 2, DEMO))
    found = [
        line
        for line in switch.run("ovs-dpctl", "dump-flows", "system@ovs-system").splitlines()
        if "dst=10.77.2.0/255.255.255.0" in line and "eth_type(0x0800)" in line
    ]
    assert any("set(eth(" in line and "ttl=62" in line and "packets:0," not in line for line in found), found
