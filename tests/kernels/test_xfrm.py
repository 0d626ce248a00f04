"""IPsec by the kernel's XFRM: the driver, hosts of both kinds in one network, guards, and what is on the wire."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator

import msgspec
import pytest

from linkspan.agent.ipsec_sessions import Memory, missing, stepped, wanted_of
from linkspan.core.addresses import prefix
from linkspan.core.host_view import Facts
from linkspan.core.states.host import LinkSysctl, Route, State
from linkspan.core.states.ipsec import IpsecChild, IpsecConnection, IpsecLink, Strongswan
from linkspan.kernel.io import vici
from linkspan.kernel.machine import Machine
from support.kernels.underlay_stranger import KNOWN, Wire, is_taken_once, known_sent, sends_its_own_only
from support.netns.forgery import Listener
from support.netns.overlay import MTU, Cluster, network
from support.netns.traced_cluster import address
from support.polling import until

DEMO = network("demo", 77, "ipsec")
ROOM = MTU - 100
BY_THE_KERNEL, BY_THE_DAEMON = (1, 3), (2,)
"""The hosts of ``trio``."""
PAIRS = [(1, 2), (2, 1), (1, 3), (3, 1), (2, 3), (3, 2)]
KEY = "a-key-that-all-hosts-of-the-trio-share"


def asks(cluster: Cluster, number: int) -> vici.Session:
    """Return the way to a host's daemon."""
    machine = cluster.hosts[number - 1].machine
    return vici.session(machine.ike, lambda: bool(machine.processes.pid("charon")))


MEMORIES = {number: Memory() for number in (1, 2, 3)}


def standing(cluster: Cluster, number: int) -> list[str]:
    """Return the connections of a host that carry all they should; the others are begun, as the agent would."""
    wanted = wanted_of(cluster.hosts[number - 1].machine.reconciler.desired)
    with asks(cluster, number) as asked:
        found = stepped(asked, wanted, MEMORIES[number])
    names = [one.connection.name for one in wanted]
    return [
        name
        for name, one in zip(names, wanted, strict=True)
        if not missing(one, [association for association in found if association.connection == name])
    ]


@pytest.fixture(scope="module")
def trio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Make three hosts, the second with IPsec in user space, and a stranger on their segment."""
    folder = tmp_path_factory.mktemp("ips")
    key = folder / "psk"
    key.touch(mode=0o600)
    key.write_text(KEY + "\n")
    cluster = Cluster(3, folder, (4,))
    try:
        cluster.world.add("x")
        cluster.plugged("x", 9)
        for host in cluster.hosts:
            with cluster.world.entered(host.name):
                found = host.machine.program(Strongswan)
            assert found is not None
            assert found.kernel, "Debian's kernel has XFRM interfaces"
            by = msgspec.structs.replace(found, kernel=host.number in BY_THE_KERNEL)
            host.facts = Facts(programs=(by,))
            host.host = msgspec.structs.replace(host.host, settings={"ipsec.psk-file": str(key)})
        cluster.joined([DEMO])
        for number in (1, 2, 3):
            until(lambda n=number: len(standing(cluster, n)) == 2, f"host {number} has both peers", 60)
        yield cluster
    finally:
        cluster.close()


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_containers_reach_each_other_whatever_their_hosts_have(trio: Cluster, one: int, other: int) -> None:
    """With packets of the network's MTU that must not be fragmented, and not with larger ones."""
    target = address(trio, other, DEMO)
    until(lambda: trio.world.pings(f"c{one}", target, ROOM - 28), "a packet of the MTU passes", 30)
    assert not trio.world.pings(f"c{one}", target, ROOM - 27)
    assert trio.world.pings(f"h{one}", target), "and the host itself, by its own address in the network"


def test_a_second_pass_changes_nothing(trio: Cluster) -> None:
    """Kernel and daemon report what was put; between two kernels there is one child, else one per pair."""
    for host in trio.hosts:
        assert host.differs() == []
    names = {s.name for s in trio.hosts[0].states() if isinstance(s, IpsecChild)}
    assert names == {"0.0.0.0/0=0.0.0.0/0", "10.77.1.0/24=10.77.2.0/24"}


BREAKS: list[tuple[str, set[type[State]]]] = [
    ("ip link set lsipsec down", {IpsecLink, Route}),
    ("ip link set lsipsec mtu 1300", {IpsecLink}),
    ("ip link del lsipsec", {IpsecLink, Route, LinkSysctl}),
    ("ip addr flush dev lsipsec", {Route}),
    ("ip route replace 10.77.3.0/24 dev lsipsec proto 76", {Route}),
    ("nft flush set inet linkspan marks4", set()),
]


@pytest.mark.parametrize(("command", "kinds"), BREAKS, ids=[command for command, _ in BREAKS])
def test_what_somebody_broke_is_mended(trio: Cluster, command: str, kinds: set[type[State]]) -> None:
    """By one resync, after which packets pass to both kinds of host, and another one finds nothing to do."""
    trio.world.sh("h1", command)
    report = trio.hosts[0].resync()
    assert report.failed == {}
    assert {kind.__name__ for kind in kinds} <= {heal.kind for heal in report.heals}
    assert trio.hosts[0].differs() == []
    for other in (2, 3):
        assert trio.pings(1, other, DEMO, ROOM - 28)


def test_a_connection_that_somebody_unloaded_is_loaded_again(trio: Cluster) -> None:
    """With its children; once initiated it is up again, and carries packets."""
    with asks(trio, 1) as asked:
        asked.unload_conn({"name": "ls-id-3"})
    report = trio.hosts[0].resync()
    assert {heal.kind for heal in report.heals} == {IpsecConnection.__name__, IpsecChild.__name__}
    assert trio.hosts[0].differs() == []
    until(lambda: len(standing(trio, 1)) == 2, "both peers stand", 30)
    assert trio.pings(1, 3, DEMO)


@pytest.mark.parametrize(("one", "other"), [(1, 3), (1, 2), (2, 1)])
def test_nothing_is_in_clear_on_the_wire(trio: Cluster, one: int, other: int) -> None:
    """No payload and no inner address, while keys are renewed and while no association is up; the packets are ESP."""
    wire, listener = Wire(trio), Listener(trio, other)

    def sent() -> None:
        known_sent(trio, one, other, DEMO)

    sent()
    assert listener.heard()
    name = f"ls-id-{other}"
    before = {a.number for a in _associations(trio, one)}
    with asks(trio, one) as asked:
        asked.rekey({"ike": name})
    sent()
    until(lambda: _numbers(trio, one, name).isdisjoint(before), "another one stands in its place", 30)
    sent()
    with asks(trio, one) as asked:
        list(asked.terminate({"ike": name, "timeout": "-1"}))
    until(lambda: not _numbers(trio, one, name), "it is gone", 30)
    sent()
    until(lambda: name in standing(trio, one), "it stands again", 30)
    sent()
    frames = wire.frames()
    inner = [prefix(address(trio, number, DEMO)).packed for number in (one, other)]
    assert len(frames) > 10
    assert not [frame for frame in frames if KNOWN in frame or any(address in frame for address in inner)]
    protocols = {frame[23] for frame in frames if frame[12:14] == b"\x08\x00"}
    assert (socket.IPPROTO_ESP in protocols) == (other in BY_THE_KERNEL and one in BY_THE_KERNEL)
    wire.close()
    listener.close()


def _numbers(cluster: Cluster, number: int, connection: str) -> set[int]:
    return {a.number for a in _associations(cluster, number) if a.connection == connection}


def _associations(cluster: Cluster, number: int) -> list[vici.Association]:
    with asks(cluster, number) as asked:
        return vici.associations(asked)


def test_a_peer_sends_from_its_own_blocks_only(trio: Cluster) -> None:
    """Even if it encrypts properly: a packet with a foreign source is dropped, by mark or by policy."""
    listener = Listener(trio, 1)
    until(lambda: len(standing(trio, 1)) == 2, "both peers stand", 30)
    trio.world.sh("h3", "nft delete chain inet linkspan sealed")  # a host that was broken into
    for number in (3, 2):
        sends_its_own_only(trio, number, DEMO, 77, listener)
    listener.close()
    trio.hosts[2].resync()


@pytest.mark.parametrize("one", [3, 2])
def test_replayed_packets_are_dropped(trio: Cluster, one: int) -> None:
    """A packet replayed on the wire is not delivered; one that was held back is, the first time."""
    until(lambda: len(standing(trio, 1)) == 2, "both peers stand", 30)
    listener = Listener(trio, 1)
    is_taken_once(trio, one, DEMO, listener, _is_esp)
    listener.close()


def _is_esp(frame: bytes) -> bool:
    """Return whether a frame has ESP, plain or in UDP (where four zero bytes would mean IKE, RFC 3948 section 2.2)."""
    if frame[12:14] != b"\x08\x00":
        return False
    if frame[23] == socket.IPPROTO_ESP:
        return True
    ports = struct.unpack_from("!HH", frame, 34)
    return frame[23] == socket.IPPROTO_UDP and 4500 in ports and len(frame) > 60 and frame[42:46] != bytes(4)


def test_keys_are_renewed_without_loss(trio: Cluster) -> None:
    """New associations take over while pings continue, and the old ones go."""
    until(lambda: len(standing(trio, 1)) == 2, "both peers stand", 30)
    before = {c.spi_in for a in _associations(trio, 1) for c in a.children}
    lost = 0
    for number in range(40):
        if number == 5:
            with asks(trio, 1) as asked:
                for one in vici.associations(asked):
                    for child in one.children:
                        asked.rekey({"child-id": str(child.number)})
        lost += not trio.pings(1, 3 if number % 2 else 2, DEMO)
        time.sleep(0.02)
    assert lost == 0
    until(lambda: not before & {c.spi_in for a in _associations(trio, 1) for c in a.children}, "the old go", 60)


def test_a_host_without_strongswan_or_with_other_s_ports_says_so(trio: Cluster) -> None:
    """The program that is missing, and who holds UDP port 500."""
    with trio.world.entered("x"), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("0.0.0.0", 500))
        folder = trio.hosts[0].folder.with_name("x")
        machine = Machine(folder)
        found = machine.program(Strongswan)
        machine.close()
        machine.processes.close()
    assert isinstance(found, Strongswan)
    assert [port for port, _ in found.holders] == [500]
    assert "process" in found.holders[0][1]


def test_what_linkspan_made_goes(trio: Cluster) -> None:
    """Device, associations and daemon; then all comes back."""
    host = trio.hosts[0]
    with trio.world.entered("h1"):
        for source in reversed(list(host.machine.reconciler.desired.sources())):
            assert host.machine.reconciler.change(source, ()) == {}
    assert "lsipsec" not in trio.world.sh("h1", "ip -br link")
    assert trio.world.sh("h1", "ip xfrm state; ip xfrm policy").strip() == ""
    assert not host.machine.processes.pid("charon")
    host.converge()
    until(lambda: len(standing(trio, 1)) == 2, "both peers stand", 60)
    assert trio.pings(1, 3, DEMO)
