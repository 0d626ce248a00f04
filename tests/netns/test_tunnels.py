"""Tunnel devices, their entries, their events, and the user-space IPIP endpoint, on the real kernel."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from linkspan.core.addresses import mac, prefix
from linkspan.core.errors import KernelError
from linkspan.core.states.host import (
    Address,
    FdbEntry,
    Ipip,
    Neighbour,
    Route,
    State,
    Sysctl,
    TunnelPrefix,
    Vxlan,
)
from linkspan.core.states.programs import Process
from linkspan.diagnose.plan.plan import commands, ordered
from linkspan.ipip_endpoint import drops
from linkspan.kernel.events import RouteEvents
from linkspan.kernel.kinds import kinds
from linkspan.kernel.machine import Machine
from support.netns.machine_fixtures import run
from support.netns.overlay import MTU, Cluster, network
from support.polling import until

MAC, OTHER = mac("02:00:00:00:00:01"), mac("02:00:00:00:00:02")
LOCAL, REMOTE = prefix("192.0.2.1").packed, prefix("192.0.2.2").packed
SIX = prefix("fd02::2").packed
DEVICE = Vxlan("lsx64", 100, MAC, 1450, 4789, LOCAL)
ENTRIES: list[State] = [
    Neighbour("lsx64", prefix("10.77.2.0").packed, OTHER),
    Neighbour("lsx64", prefix("fd77:0:0:2::").packed, OTHER),
    FdbEntry("lsx64", OTHER, REMOTE),
    Route(prefix("10.77.2.0/24"), "lsx64", prefix("10.77.2.0").packed, onlink=True),
    Route(prefix("fd77:0:0:2::/64"), "lsx64", prefix("fd77:0:0:2::").packed, onlink=True),
]


@pytest.fixture
def host(machine: str, tmp_path: Path) -> Iterator[Machine]:
    """Make a machine in a namespace that is this process's own for the test."""
    made = Machine(tmp_path)
    yield made
    for source in list(made.reconciler.desired.sources()):
        made.reconciler.change(source, ())
    made.close()
    made.processes.close()


@pytest.mark.parametrize(
    "device",
    [
        DEVICE,
        Vxlan("lsx64", 100, MAC, 1430, 8472, SIX),
        Vxlan("lsxffffff", (1 << 24) - 1, MAC, 8950, 1, LOCAL),
        Ipip("lsipip", 1480, b"", tun=True),
    ],
)
def test_a_device_is_observed_as_it_was_put(host: Machine, device: Vxlan | Ipip) -> None:
    """And again after a second put; deleted twice, it is gone without an error."""
    for _ in range(2):
        assert host.tunnels.apply([device], []) == {}
        assert list(host.tunnels.observe(0)) == [device]
    for _ in range(2):
        assert host.tunnels.apply([], [device]) == {}
    assert list(host.tunnels.observe(0)) == []


def test_what_can_change_in_place_does(host: Machine) -> None:
    """MAC and MTU keep the device and what is on it; another VNI, port or address recreates it."""
    host.tunnels.apply([DEVICE], [])
    index = host.sockets.index(0, "lsx64")
    assert host.tunnels.apply([Vxlan("lsx64", 100, OTHER, 1400, 4789, LOCAL)], []) == {}
    assert host.sockets.index(0, "lsx64") == index
    for changed in (
        Vxlan("lsx64", 101, OTHER, 1400, 4789, LOCAL),
        Vxlan("lsx64", 101, OTHER, 1400, 4790, LOCAL),
        Vxlan("lsx64", 101, OTHER, 1400, 4790, REMOTE),
    ):
        assert host.tunnels.apply([changed], []) == {}
        assert list(host.tunnels.observe(0)) == [changed]
        assert host.sockets.index(0, "lsx64") != index
        index = host.sockets.index(0, "lsx64")


def test_a_vni_that_another_device_has_is_named(host: Machine) -> None:
    """The kernel takes one device for a VNI and port; the error says which device was to be made."""
    run("ip", "link", "add", "vx0", "type", "vxlan", "id", "100", "dstport", "4789")
    (error,) = host.tunnels.apply([DEVICE], []).values()
    assert isinstance(error, KernelError)
    assert error.message.startswith("add vxlan device lsx64: it exists already")


def test_entries_are_observed_as_they_were_put(host: Machine) -> None:
    """Neighbours, FDB entries and onlink routes of both families; a second pass changes nothing."""
    assert host.reconciler.change(("demo",), [DEVICE, *ENTRIES]) == {}
    assert host.reconciler.resync().heals == []
    moved = [FdbEntry("lsx64", OTHER, prefix("192.0.2.3").packed), Neighbour("lsx64", LOCAL, MAC)]
    assert host.reconciler.change(("demo",), [DEVICE, *moved]) == {}
    assert set(host.neighbours.observe(0)) == set(moved)
    assert host.reconciler.resync().heals == []
    assert host.reconciler.change(("demo",), []) == {}
    assert host.reconciler.resync().heals == []


def test_an_entry_on_a_device_that_is_gone_is_an_error_to_put_and_none_to_delete(host: Machine) -> None:
    """An entry that was lost with its device is deleted already."""
    entries = [s for s in ENTRIES if isinstance(s, Neighbour | FdbEntry)]
    failed = host.neighbours.apply(entries, [])
    assert set(failed) == {state.key for state in entries}
    assert host.neighbours.apply([], entries) == {}
    host.tunnels.apply([DEVICE], [])
    assert host.neighbours.apply([], entries) == {}


def test_of_a_large_batch_each_error_finds_its_message(host: Machine) -> None:
    """1,200 entries go in three sends, and the one that the kernel refuses is named."""
    host.tunnels.apply([DEVICE], [])
    pool = prefix("10.64.0.0/10")
    entries: list[State] = [Neighbour("lsx64", pool.at(n).packed, OTHER) for n in range(1200)]
    assert host.neighbours.apply(entries, []) == {}
    assert set(host.neighbours.observe(0)) == set(entries)
    routes = [
        Route(pool.at(n).single(), "lsx64", prefix("10.77.2.0").packed, onlink=True) for n in range(1200)
    ]
    bad = Route(prefix("10.1.0.0/16"), "lsx64", prefix("224.0.0.1").packed, onlink=True)
    failed = host.reconciler.changes({("demo",): [DEVICE, *routes[:700], bad, *routes[700:]]})
    assert failed.keys() == {bad.key}
    assert "route 10.1.0.0/16 via 224.0.0.1 dev lsx64" in failed[bad.key].message


@pytest.mark.parametrize(
    ("command", "kind"),
    [
        ("ip neigh flush dev lsx64 nud permanent", Neighbour),
        ("ip neigh replace 10.77.2.0 lladdr 02:00:00:00:00:09 dev lsx64 nud reachable", Neighbour),
        ("bridge fdb del 02:00:00:00:00:02 dev lsx64 dst 192.0.2.2 self", FdbEntry),
        ("bridge fdb replace 02:00:00:00:00:02 dev lsx64 dst 192.0.2.9 self permanent", FdbEntry),
        ("ip route del 10.77.2.0/24", Route),
        ("ip link set lsx64 down", Route),
        ("ip link set lsx64 address 02:00:00:00:00:07", Vxlan),
        ("ip link del lsx64", Vxlan),
    ],
)
def test_what_others_change_is_told_and_our_own_changes_are_not(
    host: Machine, command: str, kind: type[State]
) -> None:
    """The kinds to check follow from the event alone."""
    events = RouteEvents(kinds(), host.ports(), host.neighbours.own)
    assert host.reconciler.change(("demo",), [DEVICE, *ENTRIES]) == {}

    def quiet() -> bool:
        assert (
            host.reconciler.change(("demo",), [DEVICE, *ENTRIES[:2], FdbEntry("lsx64", OTHER, SIX[:4])]) == {}
        )
        assert host.reconciler.change(("demo",), [DEVICE, *ENTRIES]) == {}
        return not events.dirty()

    # The new link's state comes to be known a moment after it (linkwatch), and that is nobody's change.
    until(quiet, "our own changes of entries and routes are no events", 40)
    run(*command.split())
    assert kind in events.dirty()
    events.socket.close()


def test_neighbours_of_other_links_are_no_events_of_ours(host: Machine) -> None:
    """A busy host has many of them."""
    run("ip", "link", "add", "br9", "type", "bridge")
    run("ip", "link", "set", "br9", "up")
    events = RouteEvents(kinds())
    run(
        "ip", "neigh", "replace", "192.0.2.7", "lladdr", "02:00:00:00:00:09", "dev", "br9", "nud", "permanent"
    )
    run("bridge", "fdb", "add", "02:00:00:00:00:09", "dev", "br9", "self", "permanent")
    assert events.dirty() & {Neighbour, FdbEntry} == frozenset()
    events.socket.close()


def test_a_new_mac_or_mtu_of_a_link_that_is_not_ours_is_an_event(host: Machine) -> None:
    """It may be the underlay's: other hosts, and switches, learn it. A new link, or a link up, is no event."""
    run("ip", "link", "add", "br8", "type", "bridge")
    events = RouteEvents(kinds())
    run("ip", "link", "add", "br9", "type", "bridge")
    run("ip", "link", "set", "br8", "up")
    assert Address not in events.dirty()
    run("ip", "link", "set", "br8", "mtu", "1400")
    assert Address in events.dirty()
    run("ip", "link", "set", "br8", "address", "02:00:00:00:00:08")
    assert Address in events.dirty()
    run("ip", "link", "set", "br9", "address", "02:00:00:00:00:09")
    assert Address in events.dirty()
    events.socket.close()


def test_the_table_is_a_file_with_a_line_for_each_row(host: Machine) -> None:
    """Rows come, change and go, and without any the file goes."""
    table = host.tunnel_table
    rows = [TunnelPrefix(prefix("10.77.2.0/24"), REMOTE), TunnelPrefix(prefix("10.77.3.0/24"), LOCAL)]
    assert table.apply(rows, []) == {}
    assert table.path.read_text() == "10.77.2.0/24 192.0.2.2\n10.77.3.0/24 192.0.2.1\n"
    assert set(table.observe(0)) == set(rows)
    table.path.write_text("garbage\n10.77.2.0/24 192.0.2.9\n")
    assert [row.remote for row in table.observe(0) if isinstance(row, TunnelPrefix)] == [
        prefix("192.0.2.9").packed
    ]
    assert table.apply([], rows) == {}
    assert not table.path.exists()


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Cluster]:
    """Make two hosts with a container each."""
    cluster = Cluster(2, tmp_path, (4,))
    yield cluster
    cluster.close()


def test_no_packet_is_lost_while_the_table_changes(pair: Cluster) -> None:
    """The endpoint takes a new table between two packets, and what the table leaves out stops."""
    demo = network("demo", 77, "ipip")
    pair.joined([demo])
    until(lambda: pair.world.pings("c1", "10.77.2.5"), "both endpoints are there", 40)
    first = pair.hosts[0].machine.tunnel_table
    more: list[State] = [TunnelPrefix(prefix(f"10.77.{n}.0/24"), REMOTE) for n in range(100, 200)]
    with pair.world.entered("c2"):
        there = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        there.bind(("10.77.2.5", 7777))
    with pair.world.entered("c1"):
        here = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    there.settimeout(5)
    for number in range(100):
        for part in range(20):
            here.sendto(bytes([number, part]), ("10.77.2.5", 7777))
            if part == 10:  # while packets are under way
                assert first.apply(*((more, ()) if number % 2 else ((), more))) == {}
        assert [there.recv(2)[1] for _ in range(20)] == list(range(20))
    here.close()
    there.close()
    assert sum(drops(first.path).values()) == 0
    first.apply([], list(first.observe(0)))
    until(lambda: not pair.world.pings("c1", "10.77.2.5"), "the row is gone, and nothing passes", 40)
    pair.hosts[0].resync()
    until(lambda: pair.world.pings("c1", "10.77.2.5"), "the row is back", 40)


@pytest.mark.parametrize("which", [0, 1], ids=["outwards", "inwards"])
def test_an_endpoint_of_which_a_half_was_killed_ends_and_is_started_again(pair: Cluster, which: int) -> None:
    """Neither direction continues without the other; the device and its routes stay."""
    demo = network("demo", 77, "ipip")
    pair.joined([demo])
    host = pair.hosts[0]
    leader = host.machine.processes._living()["ipip"].pid
    child = int(Path(f"/proc/{leader}/task/{leader}/children").read_text())
    os.kill((leader, child)[which], signal.SIGKILL)
    until(lambda: not list(host.machine.processes.observe(0)), "the whole endpoint has ended", 40)
    assert "dev lsipip" in pair.world.sh("h1", "ip route get 10.77.2.5")
    assert [heal.kind for heal in host.resync().heals] == [Process.__name__]
    until(lambda: pair.world.pings("c1", "10.77.2.5"), "packets pass again", 40)


def test_a_tun_that_was_deleted_comes_back_with_its_endpoint(pair: Cluster) -> None:
    """The endpoint ends with its device, and both are made again."""
    demo = network("demo", 77, "ipip")
    pair.joined([demo])
    host = pair.hosts[0]
    pair.world.sh("h1", "ip link del lsipip")
    until(lambda: not list(host.machine.processes.observe(0)), "the endpoint ends", 40)
    assert host.resync().failed == {}
    assert pair.world.reaches("c1", "10.77.2.5")
    assert host.differs() == []


def test_a_path_that_takes_less_is_told_to_the_container(pair: Cluster) -> None:
    """If the underlay's route has a smaller MTU, the helper answers; packets that may be fragmented still pass."""
    demo = network("demo", 77, "ipip")
    pair.joined([demo])
    pair.world.sh("h1", "ip route add 192.0.2.2/32 dev eth0 mtu lock 1400")
    assert not pair.world.pings("c1", "10.77.2.5", 1400)
    assert "mtu 1380" in pair.world.sh("c1", "ip route get 10.77.2.5")
    assert pair.world.pings("c1", "10.77.2.5", 1352)
    pair.world.sh("c1", "ip route flush cache; ping -n -c1 -W2 -M dont -s 1440 10.77.2.5")


@pytest.mark.parametrize("mtu", [MTU - 20, 1300])
def test_streams_pass_where_the_card_merges_their_segments(pair: Cluster, mtu: int) -> None:
    """The endpoint gets packets larger than any link (GRO), and they arrive, whatever the network's own MTU."""
    pair.joined([network("demo", 77, "ipip")])
    pair.world.sh("sw", "for port in p1 p2; do ethtool -K $port tso off; done")  # else veth merges nothing
    for number in (1, 2):
        pair.world.sh(f"h{number}", "ethtool -K eth0 gro on; echo 1 >/sys/class/net/eth0/threaded")
        pair.world.sh(f"h{number}", f"ip link set {host_end(pair, number)} mtu {mtu}")
        pair.world.sh(f"c{number}", f"ip link set eth0 mtu {mtu}")
    with pair.world.entered("c2"):
        server = socket.create_server(("10.77.2.5", 7777))
    with pair.world.entered("c1"):
        here = socket.create_connection(("10.77.2.5", 7777), 30)
    there, _ = server.accept()
    there.settimeout(30)
    sent = os.urandom(1 << 20) * 4
    sending = threading.Thread(target=here.sendall, args=(sent,))
    sending.start()
    got = bytearray()
    while len(got) < len(sent):
        got += there.recv(1 << 20)
    sending.join()
    assert got == sent
    (link,) = json.loads(pair.world.sh("h2", "ip -s -j link show lsipip"))
    assert link["stats64"]["rx"]["bytes"] / link["stats64"]["rx"]["packets"] > mtu, "none was merged"
    for end in (here, there, server):
        end.close()


def host_end(cluster: Cluster, number: int) -> str:
    """Return the host's end of its container's veth pair."""
    host = cluster.hosts[number - 1]
    return host.container(host.networks[0]).host_ifname


@pytest.mark.parametrize("backend", ["vxlan", "host-gw"])
def test_typed_commands_join_two_bare_hosts(pair: Cluster, backend: str) -> None:
    """The plan of each host, typed into an empty namespace, makes the same objects, and containers ping."""
    options = {"vni": "100"} if backend == "vxlan" else {}
    demo = network("demo", 77, backend, (4, 6) if backend == "vxlan" else (4,), **options)
    pair.known([demo])
    for host in pair.hosts:
        script = (line for s in ordered(host.states()) for line in commands(s, pair.world.by_inode))
        pair.world.sh(host.name, "\n".join(script))
    assert pair.pings(1, 2, demo)
    for host in pair.hosts:
        host.converge()
        assert [s for s in host.differs() if not isinstance(s, Sysctl)] == []
