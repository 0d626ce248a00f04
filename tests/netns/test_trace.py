"""Trace: what it tells of a way that works, and the hop and the reason it names where one does not."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator

import msgspec
import pytest

from linkspan.core.errors import Conflict, Invalid, NotFound
from linkspan.diagnose.trace.trace import Trace
from support.netns import sample
from support.netns.traced_host import OUTSIDE, PORT, Host, leads_outside, made
from support.netns.world import World


@pytest.fixture(params=[False, True], ids=["bridge", "routed"])
def host(request: pytest.FixtureRequest) -> Iterator[Host]:
    """Make the host in both modes."""
    yield from made(routed=request.param)


@pytest.fixture
def bridged() -> Iterator[Host]:
    """Make the host with bridges."""
    yield from made(routed=False)


def actions(found: Trace) -> list[str]:
    """Return what happens at each hop, there and back."""
    return [hop.action for hop in (*found.hops, *found.reply_hops)]


@pytest.mark.parametrize(("a", "b"), [("a", "b"), ("10.77.0.2", "10.77.0.3"), ("fd77::2", "fd77::3")])
def test_two_containers_of_a_network_reach_each_other(host: Host, a: str, b: str) -> None:
    """On a bridge they are bridged, else routed; the path's MTU is theirs; a ping agrees."""
    found = host.trace(a, b)
    assert (found.reachable, found.path_mtu, found.broken_at, found.reason) == (True, sample.MTU, None, "")
    middle = "routed" if host.networks["demo"].routed else "bridged"
    assert actions(found) == ["sent", middle, "delivered"] * 2
    assert [hop.namespace for hop in found.hops] == ["a", "host", "b"]
    assert host.world.reaches("a", b if ":" in b else "10.77.0.3")


@pytest.mark.parametrize("family", [4, 6])
def test_the_outside_is_reached_by_masquerade(host: Host, family: int) -> None:
    """The source becomes the host's own address on the way, and is put back on an answer."""
    found = host.trace("a" if family == 4 else "fd77::2", OUTSIDE[family])
    assert leads_outside(found), found.reason
    assert {"routed", "masqueraded", "left"} <= {hop.action for hop in found.hops}
    assert [hop.action for hop in found.reply_hops][:2] == ["received", "translated"]
    assert found.reply_hops[-1].namespace == "a"
    assert host.world.reaches("a", OUTSIDE[family])


def test_what_is_outside_is_never_called_reachable_by_the_walk_alone(host: Host) -> None:
    """Neither on the way out nor on the way in, whether a host answers or not: the walk asks no host outside."""
    beyond = "198.51.100.9"
    for source, target, other in (("a", OUTSIDE[4], OUTSIDE[4]), ("a", beyond, beyond), (beyond, "a", beyond)):
        found = host.trace(source, target)
        assert (found.verdict, found.reachable) == ("unknown", False), (source, target)
        assert [(one.at, one.beyond) for one in found.unknown] == [("h1/host/up0", True)]
        assert found.reason == f"beyond up0 of host h1 nobody was asked: {other} is on no host of linkspan's"
    assert host.world.reaches("a", OUTSIDE[4])
    assert not host.world.pings("a", beyond)


def test_an_answer_by_an_unknown_way_is_not_made_up(host: Host) -> None:
    """A packet that leaves by a foreign interface goes to an unknown place: no way back is reported."""
    host.sh("ip link add own0 type veth peer name own1; ip link set own0 up; ip link set own1 up", "a")
    host.sh("ip addr add 203.0.113.1/24 dev own0", "a")
    found = host.trace("a", "203.0.113.9")
    assert leads_outside(found)
    assert found.reply_hops == ()
    assert found.reason.startswith("beyond own0 of a on h1 nobody was asked")


def test_a_published_port_is_traced_from_outside(host: Host) -> None:
    """The way in is translated, the answer leaves with the address that was asked."""
    found = host.trace(OUTSIDE[4], "192.0.2.1", "8080/tcp")
    assert leads_outside(found), found.reason
    assert "translated" in [hop.action for hop in found.hops]
    assert found.hops[-1].namespace == "b"
    assert found.hops[-1].headers[1:] == ("ip 192.0.2.2>10.77.0.3", "tcp 40000>80")
    assert found.reply_hops[-1].headers[1:] == ("ip 192.0.2.1>192.0.2.2", "tcp 8080>40000")


def test_a_container_reaches_a_published_port_by_the_hosts_address(host: Host) -> None:
    """Also its own: hairpin, with the host's address as source."""
    for source in ("a", "b"):
        found = host.trace(source, "192.0.2.1", "8080")
        assert found.reachable, found.reason
        assert {"translated", "masqueraded"} <= {hop.action for hop in found.hops}
        assert found.hops[-1].namespace == "b"
        assert found.reply_hops[-1].namespace == source


def test_host_and_container_reach_each_other(host: Host) -> None:
    """Both ways, by name and by the gateway's address."""
    for source, target in (("host:h1", "a"), ("a", "host:h1"), ("a", "10.77.0.1"), ("fd77::1", "a")):
        found = host.trace(source, target)
        assert found.reachable, (source, target, found.reason)


def test_the_host_reaches_a_published_port_by_its_loopback(host: Host) -> None:
    """127.0.0.1 is masqueraded towards the container, whose answer would never leave it otherwise."""
    host.sh("ip link set lo up")
    found = host.trace("host:h1", "127.0.0.1", "8080/tcp")
    assert found.reachable, found.reason
    assert {"translated", "masqueraded", "delivered"} <= {hop.action for hop in found.hops}
    assert (found.hops[-1].namespace, found.reply_hops[-1].namespace) == ("b", "host")


def test_what_the_host_may_not_send_is_named(host: Host) -> None:
    """A rule at the output hook stops the host's own packets."""
    host.sh("nft add table inet mine")
    host.sh("nft 'add chain inet mine out { type filter hook output priority 0; policy drop; }'")
    found = host.trace("host:h1", "a")
    assert not found.reachable
    assert "inet mine out" in found.reason


def test_a_port_on_which_nobody_listens_is_no_broken_path(host: Host) -> None:
    """The packet arrives; the detail says that it will be refused."""
    found = host.trace("a", "b", "81/tcp")
    assert found.reachable
    assert "nothing listens on 81/tcp" in found.hops[-1].detail


def test_a_listener_is_seen(host: Host) -> None:
    """With a socket listening there, there is no warning."""
    listener = subprocess.Popen(
        ["ip", "netns", "exec", host.world.named("b"), "python3", "-c",
         "import socket, sys\ns = socket.create_server(('', 81)); print(flush=True); sys.stdin.read()"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert listener.stdin is not None
    assert listener.stdout is not None
    try:
        listener.stdout.readline()
        assert "nothing listens" not in host.trace("a", "b", "81/tcp").hops[-1].detail
    finally:
        listener.stdin.close()
        listener.stdout.close()
        listener.wait()


def test_an_allowed_port_opens_the_way_to_another_network(bridged: Host) -> None:
    """That port only, and the answers to it."""
    assert not bridged.trace("a", "c", "80").reachable
    pools = [n.pools[0] for n in (bridged.networks["demo"], bridged.networks["other"])]
    bridged.sh(f"nft 'add element inet linkspan allowed_ports4 {{ {' . '.join(pools)} . tcp . 80 }}'")
    assert bridged.trace("a", "c", "80").reachable
    assert not bridged.trace("a", "c", "81").reachable
    assert not bridged.trace("c", "a", "80").reachable


def test_the_smallest_mtu_on_the_way_is_the_paths(host: Host) -> None:
    """A device with less counts, on the way back too."""
    host.sh("ip link set up0 mtu 1300")
    assert host.trace("a", OUTSIDE[4]).path_mtu == 1300


def in_container(command: str) -> Callable[[Host], None]:
    """Break something inside container b."""
    return lambda host: host.sh(command, "b")


def on_host(command: str) -> Callable[[Host], None]:
    """Break something on the host; {b} is b's port."""
    return lambda host: host.sh(
        command.replace("{b}", next(e.host_ifname for e in host.endpoints if e.name == "b"))
    )


EVERYWHERE = [
    ("container link down", in_container("ip link set eth0 down"), "h1/b/eth0", "link eth0 in b is down"),
    ("host link down", on_host("ip link set {b} down"), "h1/b/eth0", "has no carrier: its other end is down"),
    ("address missing", in_container("ip addr flush dev eth0 scope global"), "h1/b/eth0", "10.77.0.3 is missing in b"),
    ("link gone", on_host("ip link del {b}"), "h1/b/", "missing in b"),
    (
        "FORWARD dropped by another",
        on_host("iptables -P FORWARD DROP"),
        "h1/host/up0",
        "policy of a foreign FORWARD chain drops it (iptables FORWARD: policy DROP)",
    ),
    (
        "a rule of another's",
        on_host("nft 'add table inet x; add chain inet x f { type filter hook forward priority 10; }; "
                "add rule inet x f ip saddr 10.77.0.0/24 tcp dport 80 drop; add rule inet x f ip saddr 10.77.0.3 drop"
                "'"),
        "h1/host/up0",
        "a firewall drops it (inet x f: ip saddr 10.77.0.3 drop)",
    ),
    ("no route to the outside", on_host("ip route del default; ip route del 192.0.2.0/24"), "h1/host/", "no route to"),
    ("uplink down", on_host("ip link set up0 down"), "h1/host/", "no route to 192.0.2.2"),
    ("uplink without carrier", lambda host: host.sh("ip link set eth0 down", "o"), "h1/host/up0", "no carrier"),
    ("default route missing", in_container("ip route del default"), "h1/b", "b has no route to 192.0.2.2"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("break_it", "at", "words"), [c[1:] for c in EVERYWHERE], ids=[c[0] for c in EVERYWHERE]
)
def test_the_broken_hop_towards_the_outside_is_named(
    host: Host, break_it: Callable[[Host], None], at: str, words: str
) -> None:
    """The same fault gives the same place and reason on a bridge and routed, and the ping fails, too."""
    break_it(host)
    found = host.trace("b", OUTSIDE[4])
    assert not found.reachable
    assert words in found.reason
    assert (found.broken_at or "").startswith(at)
    assert found.path_mtu == 0
    assert not host.world.pings("b", OUTSIDE[4])


def test_forwarding_that_is_off_is_named(host: Host) -> None:
    """For IPv4 and IPv6, with the setting."""
    host.sh("sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0")
    for source, target, family in (("a", OUTSIDE[4], 4), ("fd77::2", OUTSIDE[6], 6)):
        found = host.trace(source, target)
        assert not found.reachable
        assert "forwarding is off" in found.reason
        assert f"net.ipv{family}.conf" in found.reason
        assert not host.world.pings("a", target)


@pytest.mark.parametrize(("level", "named"), [("1", True), ("0", False)], ids=["strict", "off"])
def test_a_strict_rp_filter_is_named_where_the_way_back_leads_elsewhere(
    host: Host, level: str, named: bool
) -> None:
    """With the filter the packet is dropped where it arrives; without it, the reply takes the wrong way.

    A routed container is not even told its gateway's MAC: its address is another link's for the host.
    """
    host.sh("ip link add x0 type veth peer name x1; ip link set x0 up; ip link set x1 up")
    host.sh("ip addr add 198.51.100.1/24 dev x0; ip route replace 10.77.0.2/32 dev x0")
    device = next(e.host_ifname if host.networks["demo"].routed else "ls-demo" for e in host.endpoints)
    host.sh(f"sysctl -qw net.ipv4.conf.all.rp_filter={level} net.ipv4.conf.{device}.rp_filter={level}")
    found = host.trace("a", OUTSIDE[4])
    assert not found.reachable
    assert not host.world.pings("a", OUTSIDE[4])
    if host.networks["demo"].routed:
        assert f"arp_filter on {device} in host: the route back to 10.77.0.2 leads by x0" in found.reason
    elif named:
        assert found.broken_at == f"h1/host/{device}"
        assert f"rp_filter (strict) on {device}" in found.reason
        assert "the route back to 10.77.0.2 leads by x0" in found.reason
    else:
        assert found.hops[-1].action == "left"
        assert found.reply_hops[-1].device == "x0"


def test_isolation_between_networks_is_named(host: Host) -> None:
    """The rule and the way to open it are in the reason."""
    found = host.trace("a", "c")
    assert not found.reachable
    assert "networks are isolated from each other" in found.reason
    assert "inet linkspan forward" in found.reason
    assert not host.world.pings("a", "10.78.0.2")


@pytest.mark.parametrize(("source", "target"), [("d", OUTSIDE[4]), ("fd79::2", OUTSIDE[6]), ("d", "a")])
def test_an_internal_network_reaches_neither_outside_nor_others(host: Host, source: str, target: str) -> None:
    """To the outside the reason is that it is internal, to another network that they are isolated."""
    found = host.trace(source, target)
    assert not found.reachable
    assert ("internal" if target in OUTSIDE.values() else "isolated") in found.reason


def test_an_internal_network_asks_the_host_for_dns_and_icmp_only(host: Host) -> None:
    """The host's input chain is worked through, too."""
    assert host.trace("d", "10.79.0.1").reachable
    assert host.trace("d", "10.79.0.1", "53/udp").reachable
    found = host.trace("d", "10.79.0.1", "22/tcp")
    assert not found.reachable
    assert "only DNS and ICMP" in found.reason


def test_a_guard_without_the_containers_address_is_named(host: Host) -> None:
    """One element missing of the set stops what that container sends, and the rule is shown."""
    routed = host.networks["demo"].routed
    table, link = ("inet", "lsr") if routed else ("bridge", "lsp")
    name, mac = next((e.host_ifname, e.mac) for e in host.endpoints if e.name == "a")
    assert name.startswith(link)
    host.sh(f"nft 'delete element {table} linkspan senders4 {{ \"{name}\" . {mac} . 10.77.0.2 }}'")
    found = host.trace("a", "b")
    assert not found.reachable
    assert "the guard does not allow 10.77.0.2 at this port" in found.reason
    assert found.broken_at == f"h1/host/{name}"
    assert not host.world.pings("a", "10.77.0.3")
    assert host.trace("fd77::2", "fd77::3").reachable


def test_a_bridge_that_was_deleted_is_named(bridged: Host) -> None:
    """Its ports are left behind without a master; the reason is the bridge, not the port."""
    bridged.sh("ip link del ls-demo")
    found = bridged.trace("a", "b")
    assert (found.reachable, found.broken_at) == (False, "h1/host/ls-demo")
    assert found.reason == "bridge ls-demo does not exist"


@pytest.mark.parametrize("victim", ["a", "b"])
def test_a_port_that_is_in_no_bridge_is_named(bridged: Host, victim: str) -> None:
    """On the sender's side and on the receiver's."""
    bridged.sh(f"ip link set {PORT[victim]} nomaster")
    found = bridged.trace("a", "b")
    assert (found.reachable, found.broken_at) == (False, f"h1/host/{PORT[victim]}")
    assert found.reason == f"port {PORT[victim]} is in no bridge; it belongs in ls-demo"
    assert not bridged.world.pings("a", "10.77.0.3")


def test_a_bridge_that_is_down_is_named(bridged: Host) -> None:
    """Containers on it do not reach each other either."""
    bridged.sh("ip link set ls-demo down")
    found = bridged.trace("a", "b")
    assert (found.reachable, found.reason) == (False, "link ls-demo in host is down")


def test_a_gateway_address_that_is_missing_is_named(host: Host) -> None:
    """Nobody answers for the gateway, so nothing leaves the container's own link."""
    demo = host.networks["demo"]
    device = next(e.host_ifname for e in host.endpoints if e.name == "a") if demo.routed else demo.bridge
    for one in [device] if not demo.routed else [e.host_ifname for e in host.endpoints]:
        host.sh(f"ip addr flush dev {one} scope global")
    found = host.trace("a", OUTSIDE[4])
    assert not found.reachable
    assert "nobody answers for 10.77.0.1" in found.reason
    assert not host.world.pings("a", OUTSIDE[4])


def test_an_address_of_the_pool_that_nobody_has_is_named(host: Host) -> None:
    """It does not leave by the default route."""
    found = host.trace("a", "10.77.0.99")
    assert not found.reachable
    assert "10.77.0.99" in found.reason
    assert "left" not in actions(found)


def test_names_are_resolved_or_their_candidates_listed(host: Host) -> None:
    """NAME@NETWORK selects one of several endpoints with a name; an unknown name is an error that says so."""
    host.endpoints[2] = msgspec.structs.replace(host.endpoints[2], name="a")
    with pytest.raises(Conflict, match=r"a@demo .*a@other"):
        host.trace("a", "b")
    assert host.trace("a@demo", "b").reachable
    with pytest.raises(NotFound, match="nothing has the name"):
        host.trace("nobody", "b")
    with pytest.raises(NotFound, match="host 'h9' does not exist"):
        host.trace("host:h9", "b")
    with pytest.raises(Invalid, match="neither"):
        host.trace("192.0.2.2", "192.0.2.3")
    with pytest.raises(Invalid, match="no address family in common"):
        host.trace("10.77.0.2", "fd77::3")


def test_containers_of_one_name_are_told_apart_in_the_hops(host: Host) -> None:
    """Their namespaces have the network's name, too."""
    host.endpoints[1] = msgspec.structs.replace(host.endpoints[1], name="a", network="demo")
    host.endpoints[2] = msgspec.structs.replace(host.endpoints[2], name="a")
    found = host.trace("10.78.0.2", OUTSIDE[4])
    assert leads_outside(found)
    assert found.hops[0].namespace == "a@other"


@pytest.mark.parametrize("on", ["1", "0"])
def test_a_forward_drop_meets_bridged_frames_where_br_netfilter_is_on(bridged: Host, on: str) -> None:
    """Frames within a bridge pass iptables then, and only then; a ping agrees."""
    bridged.sh(f"iptables -P FORWARD DROP; sysctl -qw net.bridge.bridge-nf-call-iptables={on}")
    found = bridged.trace("a", "b")
    assert found.reachable is (on == "0")
    assert bridged.world.pings("a", "10.77.0.3") is (on == "0")
    assert ("policy DROP" in found.reason) is (on == "1")


def test_a_rule_of_which_nobody_knows_whether_it_applies_makes_the_verdict_unknown(host: Host) -> None:
    """A drop that depends on a rate: the way is neither called broken nor reachable, and the rule is named."""
    host.sh(
        "nft 'add table inet x; add chain inet x f { type filter hook forward priority 10; }; "
        "add rule inet x f limit rate over 100/second drop'"
    )
    found = host.trace("a", OUTSIDE[4])
    assert (found.verdict, found.reachable, found.broken_at) == ("unknown", False, None)
    doubts = [one for one in found.unknown if not one.beyond]
    assert [one.at for one in doubts] == ["h1/host/up0", f"h1/host/{back(host)}"]
    assert all("inet x f: limit rate over 100/second drop" in one.why for one in doubts)
    assert found.reason == doubts[0].why


def back(host: Host) -> str:
    """Return the device by which the host sends to container a."""
    return host.endpoints[0].host_ifname if host.networks["demo"].routed else "ls-demo"


def test_a_rule_that_is_not_understood_is_told_only_where_it_matters(host: Host) -> None:
    """An accept by rate before an accept by policy changes nothing; before a drop it decides."""
    host.sh(
        "nft 'add table inet x; add chain inet x f { type filter hook forward priority 10; }; "
        "add rule inet x f limit rate 100/second accept; add rule inet x f meta mark 0x77 drop'"
    )
    assert leads_outside(host.trace("a", OUTSIDE[4]))
    host.sh("nft add rule inet x f drop")
    found = host.trace("a", OUTSIDE[4])
    assert found.verdict == "unknown"
    assert "unless this applies: inet x f: limit rate 100/second accept" in found.reason


def test_a_route_with_a_smaller_mtu_limits_the_path(host: Host) -> None:
    """Not only links limit it: a container's route may have a smaller MTU, too."""
    host.sh("ip route change default via 10.77.0.1 dev eth0 mtu 1200", "a")
    assert host.trace("a", OUTSIDE[4]).path_mtu == 1200


UPLINK_IN_BRIDGE = """
ip link add br0 type bridge; ip link set br0 up; ip addr flush dev up0; ip link set up0 master br0
ip addr add 192.0.2.1/24 dev br0; ip route add default via 192.0.2.2
"""


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("", ""),
        ("add table bridge x; add chain bridge x f { type filter hook postrouting priority 0; }; "
         "add rule bridge x f oifname up0 ip daddr 192.0.2.2 drop", "bridge x f drops it where it goes by up0"),
        ("add table netdev x; add chain netdev x f { type filter hook ingress device up0 priority 0; }; "
         "add rule netdev x f ip saddr 192.0.2.2 icmp type echo-reply drop",
         "netdev x f drops it where it goes by up0"),
    ],
    ids=["well", "bridge", "netdev"],
)  # fmt: skip
def test_the_ports_of_an_uplink_that_is_somebody_elses_bridge_are_looked_at(
    host: Host, rule: str, words: str
) -> None:
    """Nobody knows for certain which port it uses, so a drop at a port makes the verdict unknown; ping agrees."""
    host.sh(UPLINK_IN_BRIDGE + (f"nft '{rule}'" if rule else ""))
    found = host.trace("a", OUTSIDE[4])
    assert found.verdict == "unknown"
    assert leads_outside(found) is not bool(rule), found.reason
    assert words in found.reason
    assert host.world.pings("a", OUTSIDE[4]) is not bool(rule)


def test_a_bandwidth_limit_of_linkspans_is_no_reason_to_doubt(host: Host) -> None:
    """Only foreign queueing disciplines are named, with their device and kind."""
    port = host.endpoints[1].host_ifname
    host.sh(f"tc qdisc add dev {port} root handle 1: tbf rate 8mbit burst 32k latency 25ms")
    assert host.trace("a", "b").reachable
    host.sh(f"tc qdisc del dev {port} root; tc qdisc add dev {port} root tbf rate 8mbit burst 32k latency 25ms")
    found = host.trace("a", "b")
    assert (found.verdict, [one.at for one in found.unknown]) == ("unknown", [f"h1/host/{port}"])
    assert "tbf" in found.reason


IPV6 = [
    ("container's rule", "nft 'add table ip6 x; add chain ip6 x i { type filter hook input priority 0; }; "
     "add rule ip6 x i icmpv6 type echo-request drop'", "b", "h1/b/eth0", "ip6 x i"),
    ("ip6tables", "ip6tables-nft -t raw -A PREROUTING -p icmpv6 --icmpv6-type echo-request -j DROP", "b", "h1/b/eth0",
     "ip6tables -t raw PREROUTING"),
    ("no echo", "sysctl -qw net.ipv6.icmp.echo_ignore_all=1", "b", "h1/b/eth0", "answers no ping"),
    ("policy rule", "ip -6 rule add to fd77::3 pref 90 blackhole", "a", "h1/a", "ip -6 rule 90"),
    ("xfrm", "ip -6 xfrm policy add src ::/0 dst fd77::3/128 dir out action block", "a", "h1/a/eth0", "XFRM policy"),
    ("poisoned neighbour", "ip -6 neigh replace {hop} lladdr 02:00:00:00:00:99 dev eth0 nud permanent", "a",
     "h1/a/eth0", "02:00:00:00:00:99"),
]  # fmt: skip


@pytest.mark.parametrize(("what", "where", "at", "words"), [c[1:] for c in IPV6], ids=[c[0] for c in IPV6])
def test_faults_of_ipv6_are_named(host: Host, what: str, where: str, at: str, words: str) -> None:
    """As those of IPv4; a ping agrees."""
    hop = "fd77::1" if host.networks["demo"].routed else "fd77::3"
    assert host.world.reaches("a", "fd77::3")
    host.sh(what.replace("{hop}", hop), where)
    found = host.trace("fd77::2", "fd77::3")
    assert (found.verdict, str(found.broken_at).startswith(at)) == ("broken", True), found
    assert words in found.reason
    assert not host.world.pings("a", "fd77::3")


ON_PORTS = [
    ("isolated", False, "bridge link set dev {a} isolated on; bridge link set dev {b} isolated on", "h1/host/{b}",
     "isolated from each other"),
    ("locked", False, "bridge link set dev {a} learning off locked on; bridge fdb del {mac_a} dev {a} master || true",
     "h1/host/{a}", "is locked"),
    ("not flooded", False, "bridge link set dev {b} learning off flood off; "
     "bridge fdb del {mac_b} dev {b} master || true", "h1/host/{b}", "floods nothing to port"),
    ("not forwarding", False, "bridge link set dev {b} state 0", "h1/host/{b}", "is not forwarding"),
    ("FDB of another port", False, "bridge fdb replace {mac_b} dev {a} master static sticky", "h1/host/ls-demo",
     "which leads to a"),
    ("FDB of the host's own", False, "bridge fdb replace {mac_b} dev {b} master permanent", "h1/host/ls-demo",
     "as the host's own"),
    ("another's bridge", True, "ip link add br9 type bridge; ip link set br9 up; ip link set {a} master br9",
     "h1/host/{a}", "is a port of bridge br9"),
    ("poisoned neighbour", True, "ip neigh replace 10.77.0.3 lladdr 02:00:00:00:00:99 dev {b} nud permanent",
     "h1/host/{b}", "whose MAC is {mac_b}"),
    ("arp off", True, "ip link set {b} arp off; ip neigh flush dev {b}", "h1/host/{b}", "ARP is off on {b}"),
    ("forwarding off", True, "sysctl -qw net.ipv4.conf.{a}.forwarding=0", "h1/host/{a}", "forwarding is off"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("routed", "what", "at", "words"), [c[1:] for c in ON_PORTS], ids=[c[0] for c in ON_PORTS]
)
def test_faults_at_ports_are_named(routed: bool, what: str, at: str, words: str) -> None:
    """No agent heals them here; a ping agrees."""
    world = World("h", "a", "b", "c", "d", "o")
    try:
        host = Host(world, routed=routed)
        assert world.reaches("a", "10.77.0.3")
        names = {e.name: e.host_ifname for e in host.endpoints} | {f"mac_{e.name}": e.mac for e in host.endpoints}
        host.sh(what.format(**names))
        assert not world.pings("a", "10.77.0.3")
        found = host.trace("a", "b")
        assert (found.verdict, found.broken_at) == ("broken", at.format(**names)), found.reason
        assert words.format(**names) in found.reason
    finally:
        world.close()
