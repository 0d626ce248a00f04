"""Egress: rules and numbers by which what leaves a network to the outside has one address, on the host that holds it.

A packet's walk, container A on host 1 to the outside, where host 2 holds the address of A's network:

1. Host 1 marks the packet (``chosen``), because it begins or continues a connection of A's to an address in no pool. An
   answer of A's to a client from outside is not marked: it leaves as it came. Only the target after all translation
   counts: another program may translate the address of a service, as kube-proxy does.
2. A policy rule leads marked packets to the network's own table. Its default route leads to host 2, by the way of the
   network. Without a holder the table has only an ``unreachable`` route.
3. Host 2 knows the packet by its guard, as any of host 1's, and forwards it. ``translated`` replaces its source by the
   address, and connection tracking keeps the port if it is free.
4. The answer comes to host 2, which sends it to A by the way of the network. Its source is no container's, so host 1's
   guard admits it only from host 2; ``answered`` lets only answers pass. By VXLAN the guard knows host 2 by its VTEP's
   MAC (the set ``egress_ways``). By IPIP it goes by the packet's mark (``egress_tunnels``): the kernel's device keeps
   the mark of what was around the packet, which ``input`` sets if host 2 sent that; the helper passes nothing else on,
   so its packets have none. Plain packets of the outside need no admission. Except for the helper, these sets do not
   tell such networks apart: a holder of one may send answers to containers of the others.

Nothing leaves by another way, whatever fails. ``leaving`` comes after all translation: a packet of such a network may
leave the host with the address as its source only while the host has the address, and with a container's address only
to the holder (plain routes). Packets to the address that belong to no connection are dropped: nothing on the host
answers there, and a new holder resets nobody's connection.

The chains exist only while a network has an egress address. Their sets have the pools of all of these networks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from linkspan.core.addresses import FAMILIES
from linkspan.core.model import Network
from linkspan.core.ruleset import INET, TABLE
from linkspan.core.states.host import NftChain, NftSet, State

MARK = 0x4C530000
"""Marks of packets that leave by another host have these upper bits, and the network's number below."""
_MASK = 0xFFFF0000
TABLES = 77_000_000
"""Routing tables of such networks are this and the network's number."""
PRIORITY = 31_000
"""Of the policy rules: before the main table."""
_IP, _TYPE = {4: "ip", 6: "ip6"}, {4: "ipv4_addr", 6: "ipv6_addr"}
_MARKED = f"meta mark & {_MASK:#010x} == {MARK:#010x}"
_FILTER = "type filter hook {} priority {}; policy accept;"


def numbers(networks: Iterable[Network]) -> dict[str, int]:
    """Return a number from 1 to 65535 for each network with an egress address, by its name: the same on all hosts."""
    found: dict[str, int] = {}
    for name in sorted(network.name for network in networks if network.egress):
        number = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=2).digest(), "big")
        while number == 0 or number in found.values():
            number = number % 65535 + 1
        found[name] = number
    return found


def chains() -> Iterable[State]:
    """Return the sets and chains that all networks with an egress address share."""
    for family in FAMILIES:
        type_ = _TYPE[family]
        for name in ("egress_at", "egress_here", "egress_hops"):
            yield NftSet(INET, TABLE, f"{name}{family}", type_)
        yield NftSet(INET, TABLE, f"egress_marks{family}", type_, "mark", interval=True)
        yield NftSet(INET, TABLE, f"egress_by{family}", type_, type_, interval=True)
    yield NftSet(INET, TABLE, "egress_links", "ifname")
    yield NftChain(INET, TABLE, "answered", _FILTER.format("prerouting", "mangle"), tuple(_answered()))
    # All translation of targets is at dstnat, whatever priority other programs' chains have.
    yield NftChain(INET, TABLE, "chosen", _FILTER.format("prerouting", "dstnat + 1"), tuple(_chosen()))
    hook = "type nat hook postrouting priority srcnat - 1; policy accept;"
    yield NftChain(INET, TABLE, "translated", hook, tuple(_translated()))
    yield NftChain(INET, TABLE, "leaving", _FILTER.format("postrouting", "srcnat + 1"), tuple(_leaving()))


def _answered() -> Iterable[str]:
    # Before a published port is translated: it would answer at the address, too.
    for family in FAMILIES:
        ip = _IP[family]
        yield f"{ip} daddr @egress_here{family} ct state invalid,new drop"
        yield f"iifname . ether saddr @egress_ways {ip} saddr != @pools{family} ct state invalid,new drop"
        yield f"iifname @egress_links {ip} saddr != @pools{family} ct state invalid,new drop"
    yield "iifname @egress_links meta mark set 0x00000000"  # it has served the guard


def _chosen() -> Iterable[str]:
    for family in FAMILIES:
        ip = _IP[family]
        outwards = f"{ip} daddr != @pools{family} fib daddr type != local"
        mark = f"meta mark set {ip} saddr map @egress_marks{family}"
        yield f'iifname "ls*" ct direction original {outwards} {mark}'


def _translated() -> Iterable[str]:
    for family in FAMILIES:
        ip = _IP[family]
        yield f'oifname != "ls*" {ip} daddr != @pools{family} snat {ip} to {ip} saddr map @egress_by{family}'


def _leaving() -> Iterable[str]:
    # A tunnel's outer packet would have the mark, too, and be led back into the tunnel.
    yield f'oifname "ls*" {_MARKED} meta mark set 0x00000000'
    yield 'oifname "ls*" accept'
    for family in FAMILIES:
        yield f"{_IP[family]} saddr @egress_at{family} fib saddr type != local drop"
    # By plain routes, to the holder itself: not by another route while somebody has removed the policy rule.
    yield from (f"{_MARKED} rt {_IP[family]} nexthop @egress_hops{family} accept" for family in FAMILIES)
    yield "ct direction reply accept"
    for family in FAMILIES:
        ip = _IP[family]
        yield f"{ip} saddr @egress_nets{family} {ip} daddr != @pools{family} drop"
