"""Trace where packets differ: by protocol and ports, by size, by what came before, and by what follows them."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator

import pytest

from linkspan.diagnose.trace.trace import Trace
from support.netns.traced_host import Host, made


@pytest.fixture(params=[False, True], ids=["bridge", "routed"])
def host(request: pytest.FixtureRequest) -> Iterator[Host]:
    """Make the host in both modes."""
    yield from made(routed=request.param)


@pytest.fixture
def routed() -> Iterator[Host]:
    """Make the host with routed networks."""
    yield from made(routed=True)


B = "10.77.0.3"
SERVER = """
import socket, sys
listener = socket.create_server((sys.argv[1], 80))
print(flush=True)
while True:
    one, _ = listener.accept()
    one.sendall(b"hello")
    one.close()
"""
CLIENT = f"""
import socket, sys
with socket.create_connection(("{B}", 80), timeout=1) as one:
    sys.exit(one.recv(5) != b"hello")
"""


@contextlib.contextmanager
def serving(host: Host, address: str = "") -> Iterator[None]:
    """Let b serve port 80 for a while, at one of its addresses or all."""
    argv = ["ip", "netns", "exec", host.world.named("b"), "python3", "-c", SERVER, address]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            yield
        finally:
            process.kill()


def served(host: Host) -> bool:
    """Return whether a gets what b serves."""
    argv = ["ip", "netns", "exec", host.world.named("a"), "python3", "-c", CLIENT]
    return subprocess.run(argv, capture_output=True, check=False).returncode == 0


def chain(hook: str, *rules: str, kind: str = "filter", priority: int = 0) -> str:
    """Return commands that make a chain of somebody else's."""
    lines = [f"add table inet x; add chain inet x {hook} {{ type {kind} hook {hook} priority {priority}; }}"]
    lines += [f"add rule inet x {hook} {rule}" for rule in rules]
    return "nft -f - <<'END'\n" + "\n".join(lines) + "\nEND"


def named(script: str) -> str:
    """Return a script's name among tests: its last line, without what makes the chain."""
    return script.removesuffix("\nEND").rpartition("\n")[2].partition("add rule")[2] or script


def told(found: Trace) -> str:
    """Return all that a trace says of why."""
    return "; ".join((found.reason, *(f"{one.at}: {one.why}" for one in found.unknown)))


STOPS = [
    ("b", "ip rule add ipproto icmp pref 50 blackhole", "h1/b", "ipproto icmp blackhole"),
    ("b", "ip rule add ipproto icmp to 10.77.0.2 pref 50 prohibit", "h1/b", "ipproto icmp prohibit"),
    ("a", chain("input", "ct status seen-reply drop"), "h1/a/eth0", "ct status seen-reply"),
    ("b", "ip link add mv0 link eth0 type macvlan mode passthru", "h1/b/eth0", "has the macvlan mv0 in mode passthru"),
    ("b", "ip link add br0 type bridge; ip link set eth0 master br0", "h1/b/eth0", "is a port of bridge br0"),
    ("a", "ip link set lo up; ip addr add 10.9.9.9/32 dev lo; ip route add 10.77.0.3/32 dev eth0 src 10.9.9.9",
     "h1/", "10.9.9.9"),
    ("a", "sysctl -qw net.ipv4.neigh.eth0.mcast_solicit=0 net.ipv4.neigh.eth0.ucast_solicit=0; ip neigh flush all",
     "h1/a/eth0", "mcast_solicit=0"),
]  # fmt: skip


@pytest.mark.parametrize(("where", "script", "at", "words"), STOPS, ids=[named(s[1]) for s in STOPS])
def test_what_stops_a_ping_is_found(host: Host, where: str, script: str, at: str, words: str) -> None:
    """Rules for its protocol, its connection's status, its route's source, and who takes it from the link."""
    if "10.9.9.9" in script and host.networks["demo"].routed:
        script = script.replace("dev eth0 src", "via 10.77.0.1 dev eth0 onlink src")
    assert host.world.reaches("a", B)
    host.sh(script, where)
    assert not host.world.pings("a", B)
    found = host.trace("a", "b")
    assert found.verdict == "broken", told(found)
    assert words in found.reason
    assert str(found.broken_at).startswith(at)


PORTS = [
    ("b", "ip rule add ipproto tcp sport 80 pref 50 prohibit", "broken", "ipproto tcp sport 80 prohibit"),
    ("b", "ip rule add ipproto tcp dport 32768-60999 pref 50 blackhole", "broken", "dport 32768-60999 blackhole"),
    ("b", "ip rule add ipproto tcp dport 40000 pref 50 blackhole", "unknown", "dport 40000 blackhole"),
    ("b", "ip rule add ipproto udp dport 40000 pref 50 blackhole", "reachable", ""),
    ("b", "ip rule add ipproto icmp pref 50 blackhole", "reachable", ""),
    ("b", chain("input", "tcp sport 40000 drop"), "unknown", "tcp sport 40000"),
    ("b", chain("input", "tcp sport 32768-60999 drop"), "broken", "tcp sport 32768-60999"),
    ("a", chain("output", "tcp sport < 32768 drop"), "reachable", ""),
]


@pytest.mark.parametrize(("where", "script", "verdict", "words"), PORTS, ids=[named(p[1]) for p in PORTS])
def test_rules_for_ports_are_asked_with_those_of_the_connection(
    host: Host, where: str, script: str, verdict: str, words: str
) -> None:
    """The server's port is known, the client's is one of those that its kernel chooses from: a packet decides."""
    host.sh(script, where)
    with serving(host):
        found, works = host.trace("a", "b", "80/tcp"), served(host)
        live = host.trace("a", "b", "80/tcp", alive=True)
    assert found.verdict == verdict, told(found)
    assert words in told(found)
    assert works == (verdict != "broken")
    assert live.reachable == works, told(live)


def test_a_rule_of_the_host_for_a_port_is_named(routed: Host) -> None:
    """It is looked up as the packet comes, by its own protocol and port."""
    routed.sh("ip rule add ipproto tcp dport 80 pref 50 blackhole")
    found = routed.trace("a", "b", "80/tcp")
    assert (found.verdict, found.broken_at) == ("broken", f"h1/host/{routed.endpoints[0].host_ifname}")
    assert "ip rule 50: from all ipproto tcp dport 80 blackhole" in found.reason
    assert routed.trace("a", "b").reachable
    assert routed.trace("a", "b", "81/tcp").reachable


def test_a_mark_of_the_way_there_is_known_on_the_way_back(routed: Host) -> None:
    """Whichever hook has marked the connection."""
    rules = ("ip saddr 10.77.0.2 ct mark set 0x44", "ip daddr 10.77.0.2 ct mark 0x44 drop")
    routed.sh(chain("forward", *rules, priority=5))
    found = routed.trace("a", "b")
    assert found.verdict == "broken", told(found)
    assert "ct mark 68 drop" in found.reason
    assert not routed.world.pings("a", B)


def test_an_address_that_was_asked_for_is_the_source(host: Host) -> None:
    """A name means what a program sends, whose source is the route's; an address means that address."""
    via = "via 10.77.0.1 dev eth0 onlink" if host.networks["demo"].routed else "dev eth0"
    host.sh(f"ip link set lo up; ip addr add 10.9.9.9/32 dev lo; ip route add {B}/32 {via} src 10.9.9.9", "a")
    assert host.trace("10.77.0.2", "b", alive=True).reachable
    found = host.trace("a", "b", alive=True)
    assert not found.reachable
    assert found.hops[0].headers[1] == "ip 10.9.9.9>10.77.0.3"


@pytest.mark.parametrize(("limit", "size"), [(80, 0), (1000, 84)])
def test_no_size_is_claimed_that_was_not_proven(host: Host, limit: int, size: int) -> None:
    """A rule for sizes is left to a packet as large as a usual ping, and to one of full size."""
    assert host.trace("a", "b", alive=True).path_mtu > limit
    host.sh(chain("input", f"meta length > {limit} drop"), "b")
    assert host.trace("a", "b").verdict == "unknown"
    found = host.trace("a", "b", alive=True)
    assert (found.reachable, found.path_mtu) == (bool(size), size), told(found)
    assert host.world.pings("a", B) == bool(size)
    assert not host.world.pings("a", B, 1000)


@pytest.mark.parametrize(("source", "target", "limits"), [
    ("a", "b", "net.ipv4.icmp_ratemask=1 net.ipv4.icmp_ratelimit=600000"),
    ("fd77::2", "fd77::3", "net.ipv6.icmp.ratemask=0-1,3-255 net.ipv6.icmp.ratelimit=600000"),
])  # fmt: skip
def test_a_limit_of_answers_to_pings_is_told(host: Host, source: str, target: str, limits: str) -> None:
    """The trace says that the answer depends on the pings before; the usual limits are for errors only."""
    assert host.trace(source, target).reachable
    host.sh(f"sysctl -qw {limits}", "b")
    found = host.trace(source, target)
    assert found.verdict == "unknown"
    assert "b limits its answers to pings" in told(found)


AFTER = [
    ("a", chain("input", "tcp flags & (syn|psh) == psh drop"), "tcp flags & syn|psh psh"),
    ("b", chain("input", "tcp flags & (syn|ack) == ack drop"), "tcp flags"),
    ("b", chain("input", "ct state established drop"), "ct state established"),
    ("b", "iptables-legacy -I INPUT -p tcp ! --syn -j DROP", "-p tcp"),
]


@pytest.mark.parametrize(("where", "script", "words"), AFTER, ids=[named(a[1]) for a in AFTER])
def test_a_connection_that_opens_and_carries_nothing_is_not_called_reachable(
    host: Host, where: str, script: str, words: str
) -> None:
    """Neither by the walk nor by a SYN that is answered: what follows it is reported with its rule."""
    host.sh(script, where)
    with serving(host):
        assert not served(host)
        for alive in (False, True):
            found = host.trace("a", "b", "80/tcp", alive=alive)
            assert found.verdict == "unknown", told(found)
            assert found.unknown[0].at == f"h1/{where}/eth0"
            assert "a connection's first segment passes, and a later one is dropped" in found.reason
            assert words in found.reason
    assert host.trace("a", "b").reachable


def test_a_refusal_by_another_port_is_not_the_target_s(host: Host) -> None:
    """A connection that is led elsewhere is refused there, though the port itself is served."""
    host.sh(chain("prerouting", "tcp dport 80 redirect to :81", kind="nat", priority=-100), "b")
    with serving(host):
        assert not served(host)
        assert host.trace("a", "b", "80/tcp").verdict == "unknown"
        found = host.trace("a", "b", "80/tcp", alive=True)
    assert found.verdict == "broken", told(found)
    assert "refused, though a socket listens there" in found.reason


def test_a_socket_at_another_address_does_not_listen(host: Host) -> None:
    """The refusal is the target's own, and shows that packets pass."""
    host.sh("ip link set lo up", "b")
    with serving(host, "127.0.0.1"):
        found = host.trace("a", "b", "80/tcp", alive=True)
    assert found.reachable, told(found)
    assert "nothing listens on 80/tcp" in found.hops[-1].detail


ARRIVES = [
    ("b", chain("input", "ip saddr 10.77.0.2 snat ip to 10.77.0.99", kind="nat", priority=100), "change its source"),
    ("b", "ip link add br0 type bridge; ip link set br0 up; ip link set eth0 master br0", "may pass it on"),
    ("b", "ip link add mv0 link eth0 type macvlan mode passthru; ip link set mv0 up", "may pass it on"),
]


@pytest.mark.parametrize(("where", "script", "words"), ARRIVES, ids=[named(a[1]) for a in ARRIVES])
def test_what_may_arrive_all_the_same_is_not_called_broken(host: Host, where: str, script: str, words: str) -> None:
    """The walk does not know, and the packet shows what a ping does."""
    assert host.world.reaches("a", B)  # who answers for an address is known then
    host.sh(script, where)
    found = host.trace("a", "b")
    assert found.verdict == "unknown", told(found)
    assert words in told(found)
    assert host.trace("a", "b", alive=True).reachable == host.world.pings("a", B)
