"""Faults that stop a ping from c1 to c2, what undoes each, and at which place a trace should find it.

Scripts run by bash in a namespace of the lab (h1, h2, c1, c2; of the bridge's lab h1 and h2 are one host). They may
use: {c1} {c2} the containers' addresses, {p1} {p2} their host links, {m1} {m2} their MACs, {next1} {next2} whom each
asks for its first hop, {u1} {u2} the hosts' underlay addresses. Places are prefixes of HOST/NAMESPACE/DEVICE.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import bpf_programs
import msgspec

from linkspan.kernel.namespaces import Namespaces, inode, open_namespace

WRONG = "02:00:00:00:00:99"


class Fault(msgspec.Struct, frozen=True):
    """A fault in a namespace; ``places`` are where a trace may find it, ``only`` the backends that it is for.

    ``forget`` says that neighbours are forgotten first, so that they must be asked for.
    """

    name: str
    at: str
    do: str
    undo: str
    places: tuple[str, ...]
    only: tuple[str, ...] = ()
    forget: bool = False
    program: str = ""


def _nft(
    name: str, at: str, hook: str, rule: str, *places: str, family: str = "inet", only: tuple[str, ...] = (),
    forget: bool = False,
) -> Fault:  # fmt: skip
    """Return a fault that is one chain with one rule, in a table of its own."""
    table = f"{family} faulty"
    do = f"nft -f - <<< 'add table {table}; add chain {table} f {{{{ type {hook}; }}}}; add rule {table} f {rule}'"
    return Fault(name, at, do, f"nft delete table {table}", places or (_place(at),), only, forget)


def _iptables(
    name: str, at: str, words: str, *places: str, command: str = "iptables-nft", only: tuple[str, ...] = ()
) -> Fault:
    """Return a fault that is one rule of iptables, put first."""
    table, chain, rule = words.split(" ", 2)
    do, undo = (f"{command} -t {table} -{verb} {chain} {rule}" for verb in ("I", "D"))
    return Fault(name, at, do, undo, places or (_place(at),), only)


def _place(at: str) -> str:
    return {"c1": "h1/c1", "c2": "{h2}/c2", "h1": "h1/host", "h2": "{h2}/host"}[at]


_BRIDGE = ("bridge",)
_ROUTED = ("vxlan", "bgp", "wireguard")
_OUTER = ("vxlan", "wireguard")
_DROP_ECHO = "icmp type { echo-request, echo-reply } drop".replace("{", "{{").replace("}", "}}")

IN_CONTAINERS = [
    _nft("nft output", "c1", "filter hook output priority 0; policy drop", "oifname lo accept"),
    _nft("nft input of the answer", "c1", "filter hook input priority 0", "icmp type echo-reply drop"),
    _nft("nft input", "c2", "filter hook input priority 0", _DROP_ECHO),
    _nft("nft output of the answer", "c2", "filter hook output priority 0", "icmp type echo-reply reject"),
    _nft("nft raw prerouting", "c2", "filter hook prerouting priority -300", "ip saddr {c1} drop"),
    _nft("nft postrouting", "c1", "filter hook postrouting priority 150", "ip daddr {c2} drop"),
    _nft("nft security input", "c2", "filter hook input priority 50", "ip protocol icmp drop", family="ip"),
    _nft("nft notrack, untracked dropped", "c1", "filter hook output priority -300",
         "notrack; add chain inet faulty g {{ type filter hook output priority 0; }}; "
         "add rule inet faulty g ct state untracked drop"),
    _nft("nft mark set and dropped", "c2", "filter hook prerouting priority -150",
         "meta mark set 0x77; add chain inet faulty g {{ type filter hook input priority 0; }}; "
         "add rule inet faulty g meta mark & 0xff == 0x77 drop"),
    _nft("nft limit", "c2", "filter hook input priority 0",
         "limit rate 1/hour burst 1 packets accept; add rule inet faulty f drop"),
    _nft("nft quota", "c1", "filter hook output priority 0", "quota over 1 bytes drop"),
    _nft("nft ct mark", "c2", "filter hook input priority -10",
         "ct mark set 0x5; add rule inet faulty f ct mark 0x5 drop"),
    _nft("nft set of addresses", "c2", "filter hook input priority 0",
         "ip saddr {{ 10.9.9.9, {c1} }} drop"),
    _nft("nft own DNAT", "c1", "nat hook output priority -100", "ip daddr {c2} dnat ip to 10.9.9.9"),
    _nft("nft verdict map", "c2", "filter hook input priority 0",
         "ip saddr vmap {{ 10.9.0.0/16 : accept, {c1} : drop }}"),
    _nft("nft egress of the link", "c1", "filter hook egress device eth0 priority 0", _DROP_ECHO,
         "h1/c1/eth0", family="netdev"),
    _nft("nft ingress of the link", "c2", "filter hook ingress device eth0 priority 0", "ip protocol icmp drop",
         "{h2}/c2/eth0", family="netdev"),
    _iptables("iptables input", "c2", "filter INPUT -p icmp -j DROP"),
    _iptables("iptables input, legacy", "c2", "filter INPUT -p icmp -j DROP", command="iptables-legacy"),
    _iptables("iptables raw output", "c1", "raw OUTPUT -p icmp -j DROP"),
    _iptables("iptables mangle prerouting", "c2", "mangle PREROUTING -s {c1} -j DROP"),
    _iptables("iptables mangle postrouting, legacy", "c1", "mangle POSTROUTING -d {c2} -j DROP",
              command="iptables-legacy"),
    _iptables("iptables own TTL of 1", "c1", "mangle OUTPUT -j TTL --ttl-set 1", "h1/host", only=_ROUTED),
    Fault("sysctl icmp_echo_ignore_all", "c2", "sysctl -qw net.ipv4.icmp_echo_ignore_all=1",
          "sysctl -qw net.ipv4.icmp_echo_ignore_all=0", ("{h2}/c2",)),
    Fault("sysctl ip_default_ttl", "c1", "sysctl -qw net.ipv4.ip_default_ttl=1",
          "sysctl -qw net.ipv4.ip_default_ttl=64", ("h1/host",), _ROUTED),
    Fault("sysctl arp_ignore", "c2", "sysctl -qw net.ipv4.conf.eth0.arp_ignore=8",
          "sysctl -qw net.ipv4.conf.eth0.arp_ignore=0", ("{h2}/host/{p2}", "h1/c1/eth0"), forget=True),
    _nft("nft arp input", "c2", "filter hook input priority 0", "arp operation request drop",
         "{h2}/host/{p2}", "h1/c1/eth0", family="arp", forget=True),
    _nft("nft arp output", "c1", "filter hook output priority 0", "arp operation request drop", "h1/c1/eth0",
         family="arp", forget=True),
    Fault("arp off", "c1", "ip link set eth0 arp off", "ip link set eth0 arp on", ("h1/c1/eth0",), forget=True),
    Fault("neighbour poisoned", "c1", f"ip neigh replace {{next1}} lladdr {WRONG} dev eth0 nud permanent",
          "ip neigh del {next1} dev eth0", ("h1/c1/eth0",)),
    Fault("neighbour poisoned, of the answer", "c2",
          f"ip neigh replace {{next2}} lladdr {WRONG} dev eth0 nud permanent",
          "ip neigh del {next2} dev eth0", ("{h2}/c2/eth0",)),
    Fault("rule blackhole", "c1", "ip rule add to {c2} pref 90 blackhole", "ip rule del pref 90", ("h1/c1",)),
    Fault("rule by mark, of the answer", "c2",
          "nft -f - <<< 'add table ip faulty; add chain ip faulty f {{ type route hook output priority -150; }}; "
          "add rule ip faulty f meta mark set 7'; ip rule add fwmark 7 pref 90 prohibit",
          "nft delete table ip faulty; ip rule del pref 90", ("{h2}/c2",)),
    Fault("xfrm policy out", "c1", "ip xfrm policy add src 0.0.0.0/0 dst {c2}/32 dir out action block",
          "ip xfrm policy flush", ("h1/c1",)),
    Fault("xfrm policy in", "c2", "ip xfrm policy add src {c1}/32 dst 0.0.0.0/0 dir in action block",
          "ip xfrm policy flush", ("{h2}/c2",)),
    Fault("tbf of nothing", "c1", "tc qdisc add dev eth0 root tbf rate 8bit burst 10 limit 10",
          "tc qdisc del dev eth0 root", ("h1/c1/eth0",)),
    Fault("XDP", "c2", "", "", ("{h2}/c2/eth0",), program="xdp eth0"),
]  # fmt: skip

ON_HOSTS = [
    _iptables("iptables raw prerouting", "h1", "raw PREROUTING -p icmp -j DROP"),
    _iptables("iptables mangle prerouting, legacy", "h1", "mangle PREROUTING -d {c2} -j DROP",
              command="iptables-legacy"),
    _iptables("iptables mangle forward", "h1", "mangle FORWARD -d {c2} -j DROP"),
    _iptables("iptables mangle forward by type", "h2", "mangle FORWARD -s {c1} -p icmp --icmp-type 8 -j DROP"),
    _iptables("iptables security forward", "h1", "security FORWARD -d {c2} -j DROP"),
    _iptables("iptables mangle postrouting", "h2", "mangle POSTROUTING -d {c2} -j DROP"),
    _iptables("iptables statistic", "h1", "mangle FORWARD -d {c2} -m statistic --mode random --probability 1 -j DROP"),
    _iptables("iptables length", "h1", "mangle FORWARD -d {c2} -m length --length 20:1000 -j DROP"),
    _iptables("iptables DNAT", "h1", "nat PREROUTING -d {c2} -j DNAT --to-destination 10.9.9.9"),
    _iptables("iptables DNAT, legacy", "h1", "nat PREROUTING -d {c2} -p icmp -j DNAT --to-destination 10.9.9.9",
              command="iptables-legacy"),
    _iptables("iptables TTL of 1", "h1", "mangle PREROUTING -s {c1} -j TTL --ttl-set 1", only=_ROUTED),
    _iptables("iptables TTL of 1 for the next host", "h1", "mangle POSTROUTING -s {c1} -j TTL --ttl-set 1",
              "{h2}/host", only=_ROUTED),
    _nft("nft DNAT in another table", "h1", "nat hook prerouting priority -150", "ip daddr {c2} dnat ip to 10.9.9.9"),
    _nft("nft TTL of 1", "h1", "filter hook prerouting priority -150", "ip daddr {c2} ip ttl set 1", only=_ROUTED),
    _nft("nft notrack, untracked dropped", "h1", "filter hook prerouting priority -300",
         "ip daddr {c2} notrack; add chain inet faulty g {{ type filter hook forward priority 0; }}; "
         "add rule inet faulty g ct state untracked drop"),
    _nft("nft limit", "h1", "filter hook forward priority 10",
         "ip daddr {c2} limit rate over 1/hour burst 1 packets drop"),
    _nft("nft mark", "h1", "filter hook prerouting priority -10",
         "ip daddr {c2} meta mark set 0x99; add chain inet faulty g {{ type filter hook forward priority 0; }}; "
         "add rule inet faulty g meta mark 0x99 drop"),
    _nft("nft security forward", "h2", "filter hook forward priority 50", "ip daddr {c2} drop", family="ip"),
    _nft("nft raw prerouting of the answer", "h2", "filter hook prerouting priority -300", "ip saddr {c2} drop"),
    _nft("nft ingress of the port", "h1", "filter hook ingress device {p1} priority 0", "ip daddr {c2} drop",
         "h1/host/{p1}", family="netdev"),
    _nft("nft ingress of the port, inet", "h1", "filter hook ingress device {p1} priority 0",
         "icmp type echo-request drop", "h1/host/{p1}"),
    _nft("nft egress of the port", "h1", "filter hook egress device {p1} priority 0", "ip saddr {c2} drop",
         "h1/host/{p1}", family="netdev"),
    _nft("nft fwd", "h1", "filter hook ingress device {p1} priority 0", "ip daddr {c2} fwd to lo",
         "h1/host/{p1}", family="netdev"),
    Fault("rule blackhole", "h1", "ip rule add to {c2} pref 90 blackhole", "ip rule del pref 90",
          ("h1/host",), _ROUTED),
    Fault("rule prohibit by link", "h1", "ip rule add iif {p1} pref 90 prohibit", "ip rule del pref 90",
          ("h1/host",), _ROUTED),
    Fault("rule by mark", "h1",
          "nft -f - <<< 'add table ip faulty; add chain ip faulty f {{ type filter hook prerouting priority -150; }}; "
          "add rule ip faulty f ip daddr {c2} meta mark set 7'; ip rule add fwmark 7 pref 90 blackhole",
          "nft delete table ip faulty; ip rule del pref 90", ("h1/host",), _ROUTED),
    Fault("table by mark", "h1",
          "iptables-nft -t mangle -A PREROUTING -d {c2} -j MARK --set-mark 7; "
          "ip route add blackhole default table 77; ip rule add fwmark 7 pref 90 lookup 77",
          "iptables-nft -t mangle -F PREROUTING; ip rule del pref 90; ip route flush table 77", ("h1/host",), _ROUTED),
    Fault("rule unreachable of the answer", "h2", "ip rule add to {c1} pref 90 unreachable", "ip rule del pref 90",
          ("{h2}/host",), _ROUTED),
    Fault("xfrm policy fwd", "h1", "ip xfrm policy add src 0.0.0.0/0 dst {c2}/32 dir fwd action block",
          "ip xfrm policy flush", ("h1/host",), _ROUTED),
    Fault("xfrm policy out", "h2", "ip xfrm policy add src 0.0.0.0/0 dst {c2}/32 dir out action block",
          "ip xfrm policy flush", ("{h2}/host",), _ROUTED),
    Fault("tc redirect", "h1", "tc qdisc add dev {p1} clsact; tc filter add dev {p1} ingress protocol ip u32 "
          "match ip dst {c2}/32 action mirred egress redirect dev lo",
          "tc qdisc del dev {p1} clsact", ("h1/host/{p1}",)),
    Fault("tbf of nothing", "h1", "tc qdisc add dev {p1} root tbf rate 8bit burst 10 limit 10",
          "tc qdisc del dev {p1} root", ("h1/host/{p1}",)),
    Fault("XDP", "h1", "", "", ("h1/host/{p1}",), program="xdp {p1}"),
    Fault("tcx", "h1", "", "", ("h1/host/{p1}",), program="tcx {p1}"),
    Fault("neighbour poisoned, of the answer", "h1",
          f"ip neigh replace {{c1}} lladdr {WRONG} dev {{p1}} nud permanent",
          "ip neigh del {c1} dev {p1}", ("h1/host/{p1}",), _ROUTED),
    Fault("master of somebody else's", "h1",
          "ip link add br9 type bridge; ip link set br9 up; ip link set {p1} master br9",
          "ip link set {p1} nomaster; ip link del br9", ("h1/host/{p1}",), _ROUTED),
    Fault("arp off", "h1", "ip link set {p1} arp off", "ip link set {p1} arp on",
          ("h1/host/{p1}", "h1/c1/eth0"), _ROUTED, forget=True),
    Fault("forwarding off", "h1", "sysctl -qw net.ipv4.conf.{p1}.forwarding=0",
          "sysctl -qw net.ipv4.conf.{p1}.forwarding=1", ("h1/host/{p1}",), _ROUTED),
]  # fmt: skip

ON_THE_UNDERLAY = [
    Fault("neighbour poisoned", "h1", f"ip neigh replace {{u2}} lladdr {WRONG} dev eth0 nud permanent",
          "ip neigh del {u2} dev eth0", ("h1/host/eth0",), _ROUTED),
    Fault("neighbour poisoned, of the answer", "h2", f"ip neigh replace {{u1}} lladdr {WRONG} dev eth0 nud permanent",
          "ip neigh del {u1} dev eth0", ("{h2}/host/eth0",), _ROUTED),
    _iptables("iptables input", "h2", "filter INPUT -p udp -s {u1} -j DROP", "{h2}/host/eth0", only=_OUTER),
    _iptables("iptables output, legacy", "h1", "filter OUTPUT -p udp -d {u2} -j DROP", "h1/host/eth0",
              command="iptables-legacy", only=_OUTER),
    _iptables("iptables raw prerouting", "h2", "raw PREROUTING -s {u1} -p udp -j DROP", "{h2}/host/eth0", only=_OUTER),
    _iptables("iptables mangle postrouting", "h1", "mangle POSTROUTING -d {u2} -p udp -j DROP", "h1/host/eth0",
              only=_OUTER),
    _nft("nft input, security", "h2", "filter hook input priority 50", "ip saddr {u1} ip protocol udp drop",
         "{h2}/host/eth0", only=_OUTER),
    _nft("nft ingress of the uplink", "h2", "filter hook ingress device eth0 priority 0", "ip protocol != tcp drop",
         "{h2}/host/eth0", family="netdev", only=_ROUTED),
    _nft("nft egress of the uplink", "h1", "filter hook egress device eth0 priority 0", "ip protocol != tcp drop",
         "h1/host/eth0", family="netdev", only=_ROUTED),
    Fault("xfrm policy in", "h2", "ip xfrm policy add src {u1}/32 dst 0.0.0.0/0 proto udp dir in action block",
          "ip xfrm policy flush", ("{h2}/host/eth0",), _OUTER),
    Fault("tbf of nothing", "h1", "tc qdisc add dev eth0 root tbf rate 8bit burst 10 limit 10",
          "tc qdisc del dev eth0 root", ("h1/host/eth0",), _ROUTED),
    Fault("XDP", "h2", "", "", ("{h2}/host/eth0", "h1/host/eth0"), _ROUTED, program="xdp eth0"),
    Fault("tcx of the answer", "h1", "", "", ("h1/host/eth0",), _ROUTED, program="tcx eth0"),
]  # fmt: skip

ON_BRIDGES = [
    Fault("ports isolated", "h1", "bridge link set dev {p1} isolated on; bridge link set dev {p2} isolated on",
          "bridge link set dev {p1} isolated off; bridge link set dev {p2} isolated off",
          ("h1/host/{p2}", "h1/host/{p1}"), _BRIDGE),
    Fault("port locked", "h1",
          "bridge link set dev {p1} learning off locked on; bridge fdb del {m1} dev {p1} master || true",
          "bridge link set dev {p1} locked off learning on", ("h1/host/{p1}",), _BRIDGE),
    Fault("port that learns nothing and is not flooded", "h1",
          "bridge link set dev {p2} learning off flood off; bridge fdb del {m2} dev {p2} master || true",
          "bridge link set dev {p2} learning on flood on", ("h1/host/{p2}",), _BRIDGE),
    Fault("port not forwarding", "h1", "bridge link set dev {p2} state 0", "bridge link set dev {p2} state 3",
          ("h1/host/{p2}",), _BRIDGE),
    Fault("FDB entry of another port", "h1", "bridge fdb replace {m2} dev {p1} master static sticky",
          "bridge fdb del {m2} dev {p1} master", ("h1/host",), _BRIDGE),
    Fault("FDB entry of the host", "h1", "bridge fdb replace {m2} dev {p2} master permanent",
          "bridge fdb del {m2} dev {p2} master", ("h1/host",), _BRIDGE),
    _nft("nft forward of bridges", "h1", "filter hook forward priority 0", "ip daddr {c2} drop", family="bridge",
         only=_BRIDGE),
    _nft("nft prerouting of bridges", "h1", "filter hook prerouting priority -250",
         "ether saddr {m1} ether type ip drop", family="bridge", only=_BRIDGE),
    _nft("nft postrouting of bridges", "h1", "filter hook postrouting priority 0",
         "oifname {p2} icmp type echo-request drop", family="bridge", only=_BRIDGE),
    _iptables("ebtables forward", "h1", "filter FORWARD -p IPv4 -d {m2} -j DROP", command="ebtables-nft", only=_BRIDGE),
    _iptables("ebtables nat prerouting", "h1", "nat PREROUTING -s {m1} -p IPv4 -j DROP", command="ebtables-nft",
              only=_BRIDGE),
    _iptables("ebtables forward by address", "h1", "filter FORWARD -p IPv4 --ip-dst {c2} -j DROP",
              command="ebtables-nft", only=_BRIDGE),
]  # fmt: skip

FAULTS = [*IN_CONTAINERS, *ON_HOSTS, *ON_THE_UNDERLAY, *ON_BRIDGES]


def of(backend: str) -> list[Fault]:
    """Return the faults that there can be with a backend."""
    return [fault for fault in FAULTS if not fault.only or backend in fault.only]


@contextlib.contextmanager
def attached(namespace: str, program: str) -> Iterator[None]:
    """Attach a program that drops (``xdp DEVICE``, ``tcx DEVICE``) for a while."""
    kind, device = program.split()
    namespaces = Namespaces()
    path = str(Path("/run/netns", namespace))
    opened = open_namespace(path)
    number = inode(opened)
    os.close(opened)
    namespaces.register(number, path)
    with namespaces.entered(number):
        index = socket.if_nametoindex(device)
        if kind == "xdp":
            bpf_programs.drop_by_xdp(index)
        else:
            link = bpf_programs.drop_by_tcx(index)
    try:
        yield
    finally:
        if kind == "xdp":
            with namespaces.entered(number):
                bpf_programs.no_xdp(index)
        else:
            os.close(link)
        namespaces.close()
