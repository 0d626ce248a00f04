"""Faults that stop a ping from c1 to c2, what undoes each, and at which place a trace should find it.

Scripts run by bash in a namespace of the lab (h1, h2, c1, c2; of the bridge's lab h1 and h2 are one host). They may
use: {c1} {c2} the containers' addresses, {p1} {p2} their host links, {m1} {m2} their MACs, {next1} {next2} whom each
asks for its first hop, {u1} {u2} the hosts' underlay addresses. Places are prefixes of HOST/NAMESPACE/DEVICE.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from linkspan.kernel.io.namespaces import Namespaces, inode, open_namespace
from support.lab import bpf_programs

WRONG = "02:00:00:00:00:99"


class Fault(msgspec.Struct, frozen=True):
    """A fault in a namespace; ``places`` are where a trace may find it, ``only`` the backends that it is for.

    ``forget`` says that neighbours are forgotten first, so that they must be asked for. ``served`` says that the fault
    stops a client of c2's port 8000, and no ping. ``live`` is the verdict of a trace with a packet. ``healed`` says
    that the fault is at an object of linkspan's: the agent may heal it before a packet is lost.
    """

    name: str
    at: str
    do: str
    undo: str
    places: tuple[str, ...]
    only: tuple[str, ...] = ()
    forget: bool = False
    program: str = ""
    served: bool = False
    live: str = "broken"
    healed: bool = False


def _nft(
    name: str, at: str, hook: str, rule: str, *places: str, family: str = "inet", only: tuple[str, ...] = (),
    forget: bool = False, served: bool = False, live: str = "broken",
) -> Fault:  # fmt: skip
    """Return a fault that is one chain with one rule, in a table of its own."""
    table = f"{family} faulty"
    do = f"nft -f - <<< 'add table {table}; add chain {table} f {{{{ type {hook}; }}}}; add rule {table} f {rule}'"
    undo = f"nft delete table {table}"
    return Fault(name, at, do, undo, places or (_place(at),), only, forget, served=served, live=live)


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
          "tc qdisc del dev {p1} root", ("h1/host/{p1}",), healed=True),
    Fault("XDP", "h1", "", "", ("h1/host/{p1}",), program="xdp {p1}"),
    Fault("tcx", "h1", "", "", ("h1/host/{p1}",), program="tcx {p1}"),
    Fault("neighbour poisoned, of the answer", "h1",
          f"ip neigh replace {{c1}} lladdr {WRONG} dev {{p1}} nud permanent",
          "ip neigh del {c1} dev {p1}", ("h1/host/{p1}",), _ROUTED, healed=True),
    Fault("master of somebody else's", "h1",
          "ip link add br9 type bridge; ip link set br9 up; ip link set {p1} master br9",
          "ip link set {p1} nomaster; ip link del br9", ("h1/host/{p1}",), _ROUTED, healed=True),
    Fault("arp off", "h1", "ip link set {p1} arp off", "ip link set {p1} arp on",
          ("h1/host/{p1}", "h1/c1/eth0"), _ROUTED, forget=True, healed=True),
    Fault("forwarding off", "h1", "sysctl -qw net.ipv4.conf.{p1}.forwarding=0",
          "sysctl -qw net.ipv4.conf.{p1}.forwarding=1", ("h1/host/{p1}",), _ROUTED, healed=True),
]  # fmt: skip

ON_THE_UNDERLAY = [
    Fault("neighbour poisoned on the underlay", "h1", f"ip neigh replace {{u2}} lladdr {WRONG} dev eth0 nud permanent",
          "ip neigh del {u2} dev eth0", ("h1/host/eth0",), _ROUTED),
    Fault("neighbour poisoned on the underlay, of the answer", "h2",
          f"ip neigh replace {{u1}} lladdr {WRONG} dev eth0 nud permanent",
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
    Fault("tbf of nothing at the uplink", "h1", "tc qdisc add dev eth0 root tbf rate 8bit burst 10 limit 10",
          "tc qdisc del dev eth0 root", ("h1/host/eth0",), _ROUTED),
    Fault("XDP at the uplink", "h2", "", "", ("{h2}/host/eth0", "h1/host/eth0"), _ROUTED, program="xdp eth0"),
    Fault("tcx at the uplink, of the answer", "h1", "", "", ("h1/host/eth0",), _ROUTED, program="tcx eth0"),
]  # fmt: skip

ON_BRIDGES = [
    Fault("ports isolated", "h1", "bridge link set dev {p1} isolated on; bridge link set dev {p2} isolated on",
          "bridge link set dev {p1} isolated off; bridge link set dev {p2} isolated off",
          ("h1/host/{p2}", "h1/host/{p1}"), _BRIDGE, healed=True),
    Fault("port locked", "h1",
          "bridge link set dev {p1} learning off locked on; bridge fdb del {m1} dev {p1} master || true",
          "bridge link set dev {p1} locked off learning on", ("h1/host/{p1}",), _BRIDGE, healed=True),
    Fault("port that learns nothing and is not flooded", "h1",
          "bridge link set dev {p2} learning off flood off; bridge fdb del {m2} dev {p2} master || true",
          "bridge link set dev {p2} learning on flood on", ("h1/host/{p2}",), _BRIDGE, healed=True),
    Fault("port not forwarding", "h1", "bridge link set dev {p2} state 0", "bridge link set dev {p2} state 3",
          ("h1/host/{p2}",), _BRIDGE, healed=True),
    Fault("FDB entry of another port", "h1", "bridge fdb replace {m2} dev {p1} master static sticky",
          "bridge fdb del {m2} dev {p1} master", ("h1/host",), _BRIDGE, healed=True),
    Fault("FDB entry of the host", "h1", "bridge fdb replace {m2} dev {p2} master permanent",
          "bridge fdb del {m2} dev {p2} master", ("h1/host",), _BRIDGE, healed=True),
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

_OPENS = "unknown"
"""The verdict where a connection opens and carries nothing: the SYN that a trace sends shows only that it opens."""


def _rule(at: str, words: str, *places: str, only: tuple[str, ...] = (), served: bool = False) -> Fault:
    """Return a fault that is a policy rule."""
    do = f"ip rule add pref 50 {words}"
    return Fault(f"rule {words}", at, do, "ip rule del pref 50", places or (_place(at),), only, served=served)


BY_WHAT_A_PACKET_IS = [
    _rule("c2", "ipproto icmp blackhole"),
    _rule("c2", "ipproto tcp sport 8000 prohibit", served=True),
    _rule("h1", "ipproto tcp dport 8000 blackhole", only=_ROUTED, served=True),
    _rule("h1", "iif {p1} ipproto icmp blackhole", only=_ROUTED),
    _rule("h1", "ipproto udp dport 4789 blackhole", only=("vxlan",)),
    _rule("h1", "ipproto udp sport 32768-60999 blackhole", only=("vxlan",)),
    _rule("h1", "ipproto udp dport 51820 blackhole", only=("wireguard",)),
    _rule("h2", "ipproto udp sport 51820 prohibit", only=("wireguard",)),
    _nft("nft own port of the tunnel", "h2", "filter hook input priority 0", "udp sport 51820 drop", "{h2}/host/eth0",
         only=("wireguard",)),
    _nft("nft ports of clients", "c2", "filter hook input priority 0", "tcp sport 32768-60999 drop", served=True),
    _nft("nft length", "c2", "filter hook input priority 0", "meta length > 80 drop"),
    _nft("nft length of the tunnel's", "h2", "filter hook input priority 0",
         "udp dport 51820 udp length > 130 drop", "{h2}/host/eth0", only=("wireguard",)),
    _nft("nft mark of the way there", "h1", "filter hook forward priority 5",
         "ip saddr {c1} ct mark set 0x44; add rule inet faulty f ip daddr {c1} ct mark 0x44 drop", only=_ROUTED),
    _nft("nft status of the connection", "c1", "filter hook input priority 0", "ct status seen-reply drop"),
    _nft("nft data", "c1", "filter hook input priority 0", "tcp flags & (syn|psh) == psh drop", served=True,
         live=_OPENS),
    _nft("nft data from the server", "h1", "filter hook forward priority 5",
         "tcp sport 8000 tcp flags & (syn|psh) == psh drop", only=_ROUTED, served=True, live=_OPENS),
    _nft("nft established connections", "c2", "filter hook input priority 0", "ct state established drop",
         served=True, live=_OPENS),
    _nft("nft redirect to where nobody listens", "c2", "nat hook prerouting priority -100",
         "tcp dport 8000 redirect to :8001", served=True),
    _nft("nft synproxy", "c2", "filter hook input priority 0", "tcp dport 8000 synproxy mss 1400 wscale 7",
         served=True, live=_OPENS),
    Fault("macvlan passthru", "c2", "ip link add mv0 link eth0 type macvlan mode passthru", "ip link del mv0",
          ("{h2}/c2/eth0",)),
    Fault("source by the route", "c1",
          "ip addr add 10.9.9.9/32 dev lo; ip route add {c2}/32 via {next1} dev eth0 onlink src 10.9.9.9",
          "ip route del {c2}/32; ip addr del 10.9.9.9/32 dev lo", ("h1/",), _ROUTED),
    Fault("nobody asks for a MAC", "c1",
          "sysctl -qw net.ipv4.neigh.eth0.mcast_solicit=0 net.ipv4.neigh.eth0.ucast_solicit=0",
          "sysctl -qw net.ipv4.neigh.eth0.mcast_solicit=3 net.ipv4.neigh.eth0.ucast_solicit=3",
          ("h1/c1/eth0",), forget=True),
    Fault("the host asks for no MAC", "h2",
          "sysctl -qw net.ipv4.neigh.{p2}.mcast_solicit=0 net.ipv4.neigh.{p2}.ucast_solicit=0",
          "sysctl -qw net.ipv4.neigh.{p2}.mcast_solicit=3 net.ipv4.neigh.{p2}.ucast_solicit=3",
          ("{h2}/host/{p2}",), _ROUTED, forget=True),
    Fault("sysctl icmp_ratemask", "c2", "sysctl -qw net.ipv4.icmp_ratemask=1 net.ipv4.icmp_ratelimit=600000",
          "sysctl -qw net.ipv4.icmp_ratemask=6168 net.ipv4.icmp_ratelimit=1000", ("{h2}/c2",)),
]  # fmt: skip

HARMLESS = [
    _nft("nft one port of clients", "c2", "filter hook input priority 0", "tcp sport 40000 drop", served=True),
    _nft("nft own SNAT", "c2", "nat hook input priority 100", "ip saddr {c1} snat ip to 10.244.99.99"),
    _rule("c1", "ipproto udp dport 8001 blackhole"),
    _nft("nft new flows of the tunnel", "h1", "filter hook output priority 0",
         "oifname eth0 udp dport 51820 ct state new drop", only=("wireguard",)),
    Fault("uplink in a bridge that is up", "h2",
          "ip neigh change {u1} dev eth0 nud permanent; "
          "ip link add brz type bridge; ip link set brz up; ip link set eth0 master brz",
          "ip link set eth0 nomaster; ip link del brz; ip neigh del {u1} dev eth0", (), ("vxlan",)),
]  # fmt: skip
"""What stops nothing, and looks as if it did: the walk does not say "broken", and a packet shows that it arrives."""

FAULTS = [*BY_WHAT_A_PACKET_IS, *IN_CONTAINERS, *ON_HOSTS, *ON_THE_UNDERLAY, *ON_BRIDGES]
_BETWEEN_HOSTS = (*ON_THE_UNDERLAY, *HARMLESS)
"""Faults for every backend that has them: the ways between hosts are all that differs in routed networks."""


def of(backend: str, faults: Sequence[Fault] = FAULTS) -> list[Fault]:
    """Return the faults to try with a backend: first those for which neighbours are forgotten.

    A fault in a container, or where a host routes, is the same in all routed networks, so it is tried with one of their
    backends, in turn; and with the bridge, if bridges have it.

    A ``served`` fault leaves connections half open. When it is undone, c2 sends their SYN-ACKs again for up to a
    minute, and asks for a MAC before. Who is asked learns c2's MAC from the request, and need not ask any more.
    """
    found = [fault for fault in faults if backend in _tried_with(fault)]
    return sorted(found, key=lambda fault: not fault.forget)


def _tried_with(fault: Fault) -> tuple[str, ...]:
    """Return the backends that a fault is tried with."""
    if fault in _BETWEEN_HOSTS or fault.only not in ((), _ROUTED):
        return fault.only or (*_BRIDGE, *_ROUTED)
    alike = [one for one in FAULTS if one.only in ((), _ROUTED) and one not in _BETWEEN_HOSTS]
    routed = _ROUTED[alike.index(fault) % len(_ROUTED)]
    return (routed,) if fault.only else (*_BRIDGE, routed)


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
