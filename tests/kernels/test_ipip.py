"""The kernel's IPIP device: the driver, hosts of both kinds in one network, guards, trace, plan."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from linkspan.core.addresses import prefix
from linkspan.core.driver_contract import Support
from linkspan.core.errors import Conflict, KernelError
from linkspan.core.host_view import Facts
from linkspan.core.states.host import Ipip, LinkSysctl, Route, State, Sysctl
from linkspan.core.states.programs import IpipHelper, Process
from linkspan.diagnose.plan.plan import commands, ordered
from linkspan.kernel.drivers.ipip_table import helper
from linkspan.kernel.machine import Machine
from support.netns.forgery import Listener, datagram, send
from support.netns.leaving import EXIT, leaving, source
from support.netns.machine_fixtures import host, machine, run, succeeds
from support.netns.overlay import MTU, Cluster, OverlayHost, network
from support.netns.traced_cluster import address, traced
from support.polling import until

__all__ = ["host", "machine"]

LOCAL, OTHER = prefix("192.0.2.1").packed, prefix("192.0.2.2").packed
DEVICE = Ipip("lsipip", 1480, LOCAL, tun=False)
TUN = Ipip("lsipip", 1480, b"", tun=True)
DEMO = network("demo", 77, "ipip")
ROOM = MTU - 20
BY_THE_KERNEL, BY_THE_HELPER = (1, 3), (2,)
"""The hosts of ``trio``."""


def test_the_kernel_is_found_to_have_ipip_and_no_helper_is_used(host: Machine) -> None:
    """The question loads the module, makes no device, and leaves nothing for a backend to know."""
    assert host.tunnels.ipip() == Support("kernel")
    assert host.program(IpipHelper) is None
    assert list(host.tunnels.observe(0)) == []


def test_a_device_is_made_changed_and_removed(host: Machine) -> None:
    """Each is done twice; a smaller MTU keeps the device, another local address makes it again."""
    indexes = []
    for wanted in (DEVICE, Ipip("lsipip", 1400, LOCAL, tun=False), Ipip("lsipip", 1400, OTHER, tun=False)):
        for _ in range(2):
            assert host.tunnels.apply([wanted], []) == {}
            assert list(host.tunnels.observe(0)) == [wanted]
            indexes.append(host.sockets.index(0, "lsipip"))
    assert indexes[0] == indexes[1] == indexes[2] == indexes[3]
    assert indexes[4] == indexes[5] != indexes[3]
    for _ in range(2):
        assert host.tunnels.apply([], [DEVICE]) == {}
        assert list(host.tunnels.observe(0)) == []


def test_a_tun_and_a_kernel_s_device_take_each_other_s_place(host: Machine) -> None:
    """Both have the same name; an existing device of the other kind is replaced."""
    for wanted in (TUN, DEVICE, TUN, DEVICE):
        assert host.tunnels.apply([wanted], []) == {}
        assert list(host.tunnels.observe(0)) == [wanted]


def test_what_others_have_made_is_named_and_left_alone(host: Machine) -> None:
    """A device of that name without our mark; a device of another name with that local address."""
    run("ip", "link", "add", "lsipip", "type", "ipip", "local", "192.0.2.9")
    (error,) = host.tunnels.apply([DEVICE], []).values()
    assert isinstance(error, Conflict)
    assert error.message == "link lsipip exists and is not linkspan's"
    run("ip", "link", "set", "lsipip", "name", "theirs", "type", "ipip", "local", "192.0.2.1")
    (error,) = host.tunnels.apply([DEVICE], []).values()
    assert isinstance(error, KernelError)
    assert error.message.startswith("add ipip device lsipip: it exists already")
    assert succeeds("ip", "link", "show", "theirs")


def by_helper(host: OverlayHost) -> None:
    """Let a host be as on a kernel without ipip."""
    host.facts = Facts(programs=(helper(host.machine.tunnel_table.path),))


@pytest.fixture(scope="module")
def trio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Make three hosts, the second with the endpoint in user space, and a stranger on their segment."""
    cluster = Cluster(3, tmp_path_factory.mktemp("trio"), (4,))
    try:
        cluster.world.add("x")
        cluster.plugged("x", 9)
        for number in BY_THE_HELPER:
            by_helper(cluster.hosts[number - 1])
        cluster.joined([DEMO])
        yield cluster
    finally:
        cluster.close()


PAIRS = [(1, 2), (2, 1), (1, 3), (3, 1), (2, 3), (3, 2)]


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_containers_reach_each_other_whatever_their_hosts_have(trio: Cluster, one: int, other: int) -> None:
    """With packets of the network's MTU that must not be fragmented, and not with larger ones."""
    target = address(trio, other, DEMO)
    until(lambda: trio.world.pings(f"c{one}", target, ROOM - 28), "a packet of the MTU passes", 30)
    assert not trio.world.pings(f"c{one}", target, ROOM - 27)
    assert trio.world.pings(f"h{one}", target), "and the host itself, by its own address in the network"


def test_a_second_pass_changes_nothing(trio: Cluster) -> None:
    """The kernel reports the device as put; only the host with the helper has a process."""
    for each in trio.hosts:
        assert each.differs() == []
        helped = [state for state in each.states() if isinstance(state, Process)]
        assert bool(helped) == (each.number in BY_THE_HELPER)


@pytest.mark.parametrize("one", [1, 2])
def test_a_narrow_path_is_told_to_the_container(trio: Cluster, one: int) -> None:
    """If the underlay's route has a smaller MTU, the answer names it, less 20, on either host."""
    target, way = address(trio, 3, DEMO), "192.0.2.3/32 dev eth0"
    trio.world.sh(f"h{one}", f"ip route add {way} mtu lock 1400")
    try:
        # The kernel's device answers as of the second packet: the first one tells it of the path.
        until(lambda: not trio.world.pings(f"c{one}", target, ROOM - 28), "the large packet is refused", 40)
        until(lambda: trio.world.pings(f"c{one}", target, 1352), "what fits passes", 40)
        assert "mtu 1380" in trio.world.sh(f"c{one}", f"ip route get {target}")
    finally:
        trio.world.sh(f"h{one}", f"ip route del {way}; ip route flush cache")
        trio.world.sh(f"c{one}", "ip route flush cache")


BREAKS = [
    ("ip link set lsipip down", {Ipip, Route}),
    ("ip link set lsipip mtu 1400", {Ipip}),
    ("ip link set lsipip type ipip local 192.0.2.7", {Ipip}),
    (
        "ip link del lsipip; ip link add lsipip type ipip remote 192.0.2.3 local 192.0.2.1; "
        "ip link property add dev lsipip altname linkspan:lsipip",
        {Ipip, Route},
    ),
    ("ip link del lsipip", {Ipip, Route, LinkSysctl}),
    ("ip link del lsipip; ip tuntap add dev lsipip mode tun", {Ipip, Route}),
    ("ip addr flush dev lsipip", {Route}),
    ("ip route replace 10.77.3.0/24 via 192.0.2.2 dev lsipip onlink proto 76", {Route}),
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


@pytest.mark.parametrize("to", [1, 2])
def test_forged_packets_get_nothing_through(trio: Cluster, to: int) -> None:
    """To either kind of host: the outer source must be a peer's, and the inner one in a peer's block."""
    listener = Listener(trio, to)

    def passes(netns: str, source: str) -> bool:
        inner = datagram(source, address(trio, to, DEMO))
        send(trio, netns, inner, udp=False, target=f"192.0.2.{to}")
        return listener.heard()

    assert passes("h3", "10.77.3.5"), "what host 3 says of itself passes"
    assert not passes("x", "10.77.3.5"), "a stranger's does not"
    assert not passes("h3", "198.51.100.1"), "host 3 does not speak for the outside"
    assert not passes("h3", f"10.77.{to}.7"), "nor for this host's own containers"
    assert not passes("h3", "10.77.9.5"), "nor for the block of nobody"
    assert not passes("c3", "10.77.3.5"), "a container does not speak as its host, though masqueraded"
    assert passes("h3", "10.77.3.5")
    listener.close()


def test_a_network_leaves_by_a_holder_of_either_kind(trio: Cluster) -> None:
    """From a container on either kind of host; the guard admits by the mark that the holder's packets get."""
    for holder in (3, 2):
        with leaving(trio, DEMO, holder):
            for number in (1, 2, 3):
                until(lambda n=number: source(trio, f"c{n}", "x", "192.0.2.9") == EXIT, f"c{number} leaves", 40)
                assert trio.hosts[number - 1].differs() == []
            listener = Listener(trio, 1)
            for name in ("h2", "h3"):
                send(trio, name, datagram("198.51.100.1", address(trio, 1, DEMO)), udp=False, target="192.0.2.1")
                assert not listener.heard(), f"what {name} begins in the outside's name does not come in"
            listener.close()
            assert trio.pings(2, 1, DEMO)


@pytest.mark.parametrize(("one", "other"), PAIRS[:4])
def test_a_trace_shows_the_wrapping_and_whence_the_far_end_is_known(
    trio: Cluster, one: int, other: int
) -> None:
    """By the route's next hop if the kernel encapsulates, by the table if the helper does; both ways are alike."""
    found = traced(trio, address(trio, one, DEMO), address(trio, other, DEMO), at=one)
    assert (found.reachable, found.reason, found.path_mtu) == (True, "", ROOM)
    for hops, here, there in ((found.hops, one, other), (found.reply_hops, other, one)):
        by_action = {hop.action: hop for hop in hops}
        assert by_action["left"].headers[:2] == ("eth", f"ip 192.0.2.{here}>192.0.2.{there}")
        far = f"192.0.2.{there}"
        ways = {
            True: f"the route's next hop is the far end, {far}",
            False: f"{address(trio, there, DEMO)} is behind {far} (the helper's table)",
        }
        assert by_action["encapsulated"].detail == ways[here in BY_THE_KERNEL]
        assert (by_action["encapsulated"].device, by_action["decapsulated"].device) == ("lsipip", "lsipip")
        assert by_action["decapsulated"].detail == f"from 192.0.2.{here}"


BROKEN = [
    ("h1", "ip link del lsipip", "h1/host", "unreachable route"),
    ("h1", "ip route add unreachable 192.0.2.3", "h1/host", "192.0.2.3 meets"),
    ("h3", "ip link del lsipip", "h3/host/eth0", "no device of this host accepts ipip"),
    ("h3", "ip link set lsipip down", "h3/host/lsipip", "link lsipip in host is down"),
    (
        "h3",
        "ip link set lsipip type ipip local 192.0.2.7",
        "h3/host/eth0",
        "no device of this host accepts ipip",
    ),
    ("h3", "nft flush set inet linkspan ipip_peers", "h3/host/eth0", "IPIP is accepted from peers only"),
    ("h3", "nft flush set inet linkspan ways4", "h3/host/lsipip", "does not accept 10.77.1.5"),
]


@pytest.mark.parametrize(("where", "what", "at", "reason"), BROKEN, ids=[f"{b[0]} {b[1]}" for b in BROKEN])
def test_the_first_broken_hop_is_named(trio: Cluster, where: str, what: str, at: str, reason: str) -> None:
    """Pings fail as well; a resync, and removing the route, repair it."""
    trio.world.sh(where, what)
    try:
        found = traced(trio, "10.77.1.5", "10.77.3.5")
        assert not found.reachable
        assert str(found.broken_at).startswith(at)
        assert reason in found.reason
        assert not trio.world.pings("c1", "10.77.3.5")
    finally:
        trio.world.sh("h1", "ip route del unreachable 192.0.2.3 2>/dev/null || true")
        for host in trio.hosts:
            host.resync()
    assert trio.pings(1, 3, DEMO)


def test_a_host_whose_kernel_loses_and_gains_ipip_changes_over(trio: Cluster, tmp_path: Path) -> None:
    """An agent with no memory finds the other kind of device and replaces it, with its routes, rows and process."""
    host = trio.hosts[2]
    host.machine.close()
    for helped in (True, False):
        with trio.world.entered(host.name):
            host.machine.processes.close()
            host.machine = Machine(host.folder)
        host.facts = Facts(programs=(helper(host.machine.tunnel_table.path),) if helped else ())
        with trio.world.entered(host.name):
            desired = host.machine.reconciler.desired
            host.machine.namespaces.register(trio.world.inode("c3"), trio.world.path("c3"))
            for source, states in host.sources():
                desired.replace(source, states)
        assert host.resync().failed == {}
        assert host.differs() == []
        assert [type(s) for s in host.machine.processes.observe(0)] == [Process] * helped
        assert host.machine.tunnel_table.path.exists() == helped
        for other in (1, 2):
            until(lambda other=other: trio.pings(3, other, DEMO, ROOM - 28), "packets pass", 30)
            assert trio.pings(other, 3, DEMO)


def test_what_linkspan_made_goes_and_the_kernel_s_own_stays(trio: Cluster) -> None:
    """The module adds tunl0 to every namespace: it is not linkspan's; then the network is created again."""
    host = trio.hosts[0]
    with trio.world.entered("h1"):
        for source in list(host.machine.reconciler.desired.sources()):
            assert host.machine.reconciler.change(source, ()) == {}
    links = trio.world.sh("h1", "ip -br link")
    assert "lsipip" not in links
    assert "tunl0" in links
    host.converge()
    assert trio.pings(1, 3, DEMO)


def typed(lines: list[str]) -> str:
    """Return a script of the commands in their order; those of nft that follow each other are one process's."""
    script = []
    for tool, group in itertools.groupby(lines, lambda line: line.split()[0]):
        if tool == "nft":
            given = "\n".join(" ".join(shlex.split(line)[1:]) for line in group)
            script.append(f"nft -f - <<'EOF'\n{given}\nEOF")
        else:
            script += group
    return "\n".join(script)


def test_typed_commands_join_a_bare_host(tmp_path: Path) -> None:
    """A host's plan, typed into an empty namespace, makes the same objects, and its container pings a peer's."""
    pair = Cluster(2, tmp_path, (4,))
    try:
        pair.known([DEMO])
        bare, made = pair.hosts
        made.converge()
        lines = [line for s in ordered(bare.states()) for line in commands(s, pair.world.by_inode)]
        assert "ip link add lsipip type ipip local 192.0.2.1" in lines
        pair.world.sh("h1", typed(lines))
        assert pair.pings(1, 2, DEMO, ROOM - 28)
        assert pair.pings(2, 1, DEMO, ROOM - 28)
        bare.converge()
        assert [s for s in bare.differs() if not isinstance(s, Sysctl)] == []
    finally:
        pair.close()
