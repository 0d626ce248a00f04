"""The kernel's WireGuard device: the drivers, hosts of both kinds in one network, healing, a port that is taken."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import msgspec
import pytest

from linkspan.core.addresses import prefix
from linkspan.core.driver_contract import Support
from linkspan.core.errors import Conflict
from linkspan.core.host_view import Other
from linkspan.core.states.host import Wireguard
from linkspan.core.states.programs import Process
from linkspan.core.states.wireguard import DEVICE, AllowedIp, Tools, WireguardKey, WireguardPeer
from linkspan.kernel.machine import Machine
from linkspan.kernel.probe.keys import PRIVATE
from support.kernels.underlay_stranger import KNOWN, Wire, is_taken_once, known_sent, sends_its_own_only
from support.netns.forgery import Listener
from support.netns.machine_fixtures import host, machine, run
from support.netns.overlay import MTU, Cluster, OverlayHost, network
from support.netns.traced_cluster import address
from support.polling import until

__all__ = ["host", "machine"]

DEMO = network("demo", 78, "wireguard")
ROOM = MTU - 60
BY_THE_HELPER = 2
"""The host of ``trio`` that has no WireGuard in its kernel."""
DATA = b"\x04\0\0\0"
"""How a message with a packet in it begins (section 5.4.6 of WireGuard's paper)."""
KERNELS, TUN = tuple(Wireguard(DEVICE, size, tun=False) for size in (1440, 1400)), Wireguard(DEVICE, 1440, tun=True)


def keyed(host: OverlayHost, *, helper: bool) -> None:
    """Give a host its key; with ``helper`` as on a kernel without WireGuard."""
    with host.world.entered(host.name):
        if helper:
            host.machine.tunnels._wireguard = Support("user space")
        public = host.machine.wireguard.keys.make(PRIVATE)
        host.facts = host.machine.facts()
    host.host = msgspec.structs.replace(host.host, keys={"wireguard": public})


@pytest.fixture(scope="module")
def trio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Make three hosts, the second with wireguard-go."""
    cluster = Cluster(3, tmp_path_factory.mktemp("wgtrio"), (4,))
    try:
        for host in cluster.hosts:
            keyed(host, helper=host.number == BY_THE_HELPER)
        for host in cluster.hosts:
            host.others = tuple(Other(one.host, (DEMO.name,)) for one in cluster.hosts if one is not host)
        cluster.joined([DEMO])
        yield cluster
    finally:
        cluster.close()


def test_the_kernel_is_found_to_have_wireguard(host: Machine) -> None:
    """The question loads the module, makes no device, and no program is to be started."""
    assert host.tunnels.wireguard() == Support("kernel")
    found = host.program(Tools)
    assert found is not None
    assert (found.program, found.problem) == ((), "")
    assert list(host.tunnels.observe(0)) == []


def test_a_device_is_made_changed_and_removed(host: Machine) -> None:
    """Each is done twice; a TUN and the kernel's device take each other's place."""
    for wanted in (*KERNELS, TUN, Wireguard(DEVICE, 1440, tun=False)):
        for _ in range(2):
            assert host.tunnels.apply([wanted], []) == {}
            assert list(host.tunnels.observe(0)) == [wanted]
    for _ in range(2):
        assert host.tunnels.apply([], [wanted]) == {}
        assert list(host.tunnels.observe(0)) == []


def test_a_port_that_another_holds_is_named_with_its_holder(host: Machine) -> None:
    """The kernel's error only says that the port is in use."""
    public = host.wireguard.keys.make(PRIVATE)
    assert host.tunnels.apply([Wireguard(DEVICE, 1440, tun=False)], []) == {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as holder:
        holder.bind(("0.0.0.0", 51820))
        (error,) = host.wireguard.apply([WireguardKey(DEVICE, public, 51820, 1440)], []).values()
    assert isinstance(error, Conflict)
    assert f"process {os.getpid()}" in error.message
    assert host.tunnels.apply([], [Wireguard(DEVICE, 1440, tun=False)]) == {}


@pytest.mark.parametrize(("one", "other"), [(1, 2), (2, 1), (1, 3), (3, 2)])
def test_hosts_of_both_kinds_reach_each_other(trio: Cluster, one: int, other: int) -> None:
    """By packets of all sizes up to the network's."""
    until(lambda: trio.pings(one, other, DEMO), f"c{one} reaches c{other}", 30)
    assert trio.pings(one, other, DEMO, ROOM - 28)


def test_the_kernel_has_what_should_be(trio: Cluster) -> None:
    """One host has a program, the others none; nobody would change anything."""
    for each in trio.hosts:
        programs = [state for state in each.states() if isinstance(state, Process)]
        assert len(programs) == (each.number == BY_THE_HELPER)
        assert each.differs() == []


def test_what_was_changed_by_hand_is_mended_and_who_roamed_is_let_be(trio: Cluster) -> None:
    """A prefix that was given to another peer, a peer that is gone, the whole device; an endpoint is left as it is."""
    host = trio.hosts[0]
    two, three = (f"'{trio.hosts[n].host.keys['wireguard']}'" for n in (1, 2))
    steal, gone = f"wg set {DEVICE} peer {three} allowed-ips 10.78.2.0/24", f"wg set {DEVICE} peer {two} remove"
    for change, kinds in (
        (steal, {AllowedIp}),
        (gone, {WireguardPeer, AllowedIp}),
        (f"ip link del {DEVICE}", {Wireguard, WireguardKey, WireguardPeer, AllowedIp}),
    ):
        host.world.sh("h1", change)
        assert {type(state) for state in host.differs()} >= kinds, change
        assert host.resync().failed == {}
        assert host.differs() == []
    until(lambda: trio.pings(1, 2, DEMO), "c1 reaches c2 again", 30)
    host.world.sh("h1", f"wg set {DEVICE} peer {two} endpoint 192.0.2.99:51820")
    assert host.differs() == []


@pytest.mark.parametrize(("one", "other"), [(1, 3), (3, 1)])
def test_nothing_is_in_clear_by_the_kernel(trio: Cluster, one: int, other: int) -> None:
    """No payload and no inner address: while sessions are up, while the device is gone, and while it starts again."""
    trio.hosts[0].resync()
    until(lambda: trio.pings(one, other, DEMO), f"c{one} reaches c{other}", 30)
    wire, listener = Wire(trio), Listener(trio, other, net=78)

    def sent() -> None:
        known_sent(trio, one, other, DEMO)

    sent()
    assert listener.heard()
    trio.world.sh(f"h{one}", f"ip link del {DEVICE}")
    sent()
    assert trio.hosts[one - 1].resync().failed == {}
    sent()
    until(lambda: trio.pings(one, other, DEMO), f"c{one} reaches c{other} again", 30)
    frames = wire.frames()
    inner = [prefix(address(trio, number, DEMO)).packed for number in (one, other)]
    assert any(frame[23] == socket.IPPROTO_UDP for frame in frames if frame[12:14] == b"\x08\x00")
    assert not [frame for frame in frames if KNOWN in frame or any(address in frame for address in inner)]
    wire.close()
    listener.close()


@pytest.mark.parametrize("number", [2, 3])
def test_a_key_sends_from_its_host_s_blocks_only(trio: Cluster, number: int) -> None:
    """The kernel drops a source that is not the host's own, whatever a host that was broken into encrypts."""
    listener = Listener(trio, 1, net=78)
    trio.world.sh(f"h{number}", "nft delete chain inet linkspan sealed")
    sends_its_own_only(trio, number, DEMO, 78, listener)
    listener.close()
    trio.hosts[number - 1].resync()


@pytest.mark.parametrize("number", [2, 3])
def test_replayed_packets_are_dropped_by_the_kernel(trio: Cluster, number: int) -> None:
    """A packet replayed on the wire is not delivered; one that was held back is, the first time."""
    until(lambda: trio.pings(number, 1, DEMO), f"c{number} reaches c1", 30)
    listener = Listener(trio, 1, net=78)
    is_taken_once(trio, number, DEMO, listener, lambda frame: frame[42:46] == DATA)
    listener.close()


def test_another_s_device_keeps_its_peers(host: Machine) -> None:
    """A foreign device with our name is reported, and neither changed nor removed."""
    theirs = "A" * 42 + "8="
    run("ip", "link", "add", DEVICE, "type", "wireguard")
    run("wg", "set", DEVICE, "peer", theirs, "allowed-ips", "10.9.0.0/16")
    public = host.wireguard.keys.make(PRIVATE)
    wanted = [KERNELS[0], WireguardKey(DEVICE, public, 51820, 1440), WireguardPeer(DEVICE, public)]
    failed = host.reconciler.change(("host",), wanted)
    assert failed.keys() == {state.key for state in wanted}
    assert all(isinstance(error, Conflict) for error in host.reconciler.resync().failed.values())
    for _ in range(2):
        assert run("wg", "show", DEVICE, "allowed-ips") == f"{theirs}\t10.9.0.0/16\n"
        host.reconciler.change(("host",), ())
        host.reconciler.resync()


def test_nothing_is_left(trio: Cluster) -> None:
    """With its states the device goes."""
    trio.hosts.pop().close()
    assert "lswg" not in run("ip", "-n", trio.world.named("h3"), "-br", "link")
