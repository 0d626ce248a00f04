"""Flows of the switches, as a pure function of records and host locations: the switches act as one router.

A packet for the gateway's MAC meets, at the switch where it comes in:

    table 0    GATE     accepts packets to the gateway; all others continue below, at the flows that the switch
                        has anyway for the hosts' own traffic
    table 101  SOURCES  is it from a host's port and MAC, and from a prefix of that host? One flow for each prefix.
                        It writes the network into the metadata
    table 102  TARGETS  by network and destination: one flow for each prefix. It sets TTL and both MACs, and sends
                        to the host's port, or to the port towards the host's switch
    table 104  TRANSIT  at any further switch: by the host's MAC alone, one flow for each host (and by prefix if
                        several hosts have that MAC). Packets with the gateway's MAC as source are accepted only
                        from other switches' ports, so they were checked

Besides these, table 100 has the switch's notes (``fabric``), and 103 the second half of the answer to
neighbour solicitation. A prefix costs two flows at its own switch, and one at each other. The longest prefix
wins, by priority.

The edge is closed: each table's last flows drop all other packets, and count them. Table 0 also drops a pool's
packets that were not sent to the gateway, from all and to all. Otherwise a host could avoid the checks by
sending to another host's MAC. There are two exceptions: while the network migrates (host-gw sends exactly
so), and a network without masquerade (its packets leave by the real gateway with their own addresses, and the
answers come in so).

Networks with an allowance have flows both ways. The hosts, which track connections, decide which of the two
may open one, and to which port.

OpenFlow 1.3 cannot answer two cases, and no packet goes to the controller for them. A packet whose TTL
expires here is dropped silently (traceroute shows the switches as one hop that does not answer). No packet is
too big, because all links of the underlay have the hosts' MTU. Containers' packets never reach the
controller, so no container can flood it.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping

from linkspan.core.addresses import Prefix
from linkspan.core.states.openflow import Claim, Flow, Held, Map, Spot, cookie, flow

NOTES, SOURCES, TARGETS, ADVERTS, TRANSIT = 100, 101, 102, 103, 104
"""Tables; lower numbers are free for other programs."""
_TOP = 42000
"""Priority of our first flow in table 0; other programs' flows with more get packets before ours."""
MOST_NOTES = 256
"""Notes of one port: a host that answers with ever new MACs can fill neither the table nor the room of other
ports. A host that was found stays found."""
NOTE_LASTS = 30
"""Seconds for which a switch remembers the port of a host."""
LINK_LASTS = 5
"""The same for another switch, which sends its LLDP frame in each round. A silently dead link is noticed
after this time, and a link between busy machines is not taken for dead. A link whose port is down needs no
waiting."""
LLDP = 0x88CC
"""IEEE 802.1AB."""
FROM_SWITCH = "from a switch"
"""Subject of the flows that accept packets checked by other switches."""
_IP = {4: "ip", 6: "ipv6"}
_SRC = {4: "nw_src", 6: "ipv6_src"}
_DST = {4: "nw_dst", 6: "ipv6_dst"}
_OVERRIDE = 0xA0000000
"""RFC 4861 4.4: an advertisement's flags router and override."""


def number(network: str) -> int:
    """Return a network's number in the metadata, made from its name, so that every controller uses the same."""
    return int.from_bytes(hashlib.blake2b(network.encode(), digest_size=4).digest(), "big") | 1


def switches(held: Held, where: Map) -> dict[str, list[Flow]]:
    """Return the flows of every switch."""
    ways = {switch: where.ways(switch) for switch in where.switches}
    return {switch: _flows(held, where, switch, ways) for switch in where.switches}


def _flows(held: Held, where: Map, switch: str, ways: Mapping[str, Mapping[str, int]]) -> list[Flow]:
    if not held.networks:
        return []
    gateway = held.networks[0].mac
    places, macs = dict(where.places), dict(held.macs)
    found = [*_gate(held, where, switch, gateway), *_ends(held)]
    out: dict[str, int] = {}
    for host, (there, number_) in places.items():
        if there == switch:
            out[host] = number_
        elif (port := ways[there].get(switch)) is not None:
            out[host] = port
    if where.trunks(switch):
        found += _transits(held, out)
    allowed = {one.name: one.allowed for one in held.networks}
    for claim in held.claims:
        spot: Spot | None = places.get(claim.host)
        if spot is not None and spot[0] == switch and claim.host in macs:
            found.append(_source(claim, spot, macs[claim.host]))
        if claim.host in out and claim.host in macs:
            for about, name in _abouts(claim, allowed).items():
                found.append(_target(claim, about, name, gateway, macs[claim.host], out[claim.host]))
    return found


def _transits(held: Held, out: Mapping[str, int]) -> Iterable[Flow]:
    """Yield the flows that send checked packets to hosts: by MAC, and by prefix if several hosts have that MAC."""
    counts = Counter(address for _, address in held.macs)
    macs = dict(held.macs)
    for host, port in sorted(out.items()):
        if counts[macs.get(host, "")] == 1:
            yield flow("transit", host, TRANSIT, 100, f"dl_dst={macs[host]}", f"output:{port}")
    for claim in held.claims:
        if claim.host in out and counts[macs.get(claim.host, "")] > 1:
            family = claim.prefix.family
            match = f"{_IP[family]},dl_dst={macs[claim.host]},{_DST[family]}={text(claim.prefix)}"
            about, priority = _shared(claim), 100 + claim.prefix.length
            yield flow("transit", about, TRANSIT, priority, match, f"output:{out[claim.host]}")


def _shared(claim: Claim) -> str:
    return f"{claim.host} {claim.prefix}"


def spared(
    held: Held, where: Map, switch: str, there: Iterable[Flow], wanted: Iterable[Flow], *, whole: bool
) -> list[Flow]:
    """Return the flows of a switch that stay beside the desired ones, because they may still be right.

    If the picture is not ``whole`` (a switch does not answer, or was not observed for long enough), perhaps
    only this controller does not know where a host is, or which path leads to it. Then existing flows for
    that host's prefixes stay, except those that name another MAC than it has now. Ports by which other
    switches send stay trusted, unless a host is found there, and so do flows from these ports to known hosts.
    If several hosts have one MAC, nobody knows which was seen, so their flows always stay.
    """
    counts = Counter(address for _, address in held.macs)
    unsure = [(host, address) for host, address in held.macs if not whole or counts[address] > 1]
    if not unsure:
        return []
    gateway, places = held.networks[0].mac, dict(where.places)
    near = where.reached(switch)
    lost = {host: address for host, address in unsure if host not in places or places[host][0] not in near}
    allowed = {one.name: one.allowed for one in held.networks}
    macs = {cookie("transit", host): address for host, address in lost.items()}
    for claim in held.claims:
        if claim.host in lost:
            macs.update((cookie("forward", about), lost[claim.host]) for about in _abouts(claim, allowed))
            macs[cookie("transit", _shared(claim))] = lost[claim.host]
            if claim.host not in places:
                macs[cookie("source", str(claim.prefix))] = lost[claim.host]
    keys = {one.key for one in wanted}
    here = {host: spot[1] for host, spot in places.items() if spot[0] == switch}
    hosts = {f"in_port={port}" for port in here.values()}
    out = {cookie("transit", host): f"output:{port}" for host, port in here.items()}

    def stays(one: Flow) -> bool:
        if one.cookie == cookie("gateway", FROM_SWITCH):
            return not whole and f"dl_src={gateway}" in one.match and hosts.isdisjoint(one.match)
        if one.cookie in out:
            return not whole and one.actions == out[one.cookie]
        address = macs.get(one.cookie, "")
        return bool(address) and (address in one.actions or any(part.endswith(address) for part in one.match))

    return [one for one in there if one.key not in keys and stays(one)]


def _source(claim: Claim, spot: Spot, address: str) -> Flow:
    family = claim.prefix.family
    match = f"{_IP[family]},in_port={spot[1]},dl_src={address},{_SRC[family]}={text(claim.prefix)}"
    actions = f"write_metadata:{number(claim.network):#x},goto_table:{TARGETS}"
    return flow("source", str(claim.prefix), SOURCES, 100 + claim.prefix.length, match, actions)


def _abouts(claim: Claim, allowed: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """Return the networks from which a prefix may be reached, by the subject of each one's flow."""
    others = allowed.get(claim.network, ())
    return {str(claim.prefix): claim.network} | {f"{claim.prefix} from {name}": name for name in others}


def _target(claim: Claim, about: str, source: str, gateway: str, address: str, port: int) -> Flow:
    family = claim.prefix.family
    match = f"{_IP[family]},metadata={number(source):#x},{_DST[family]}={text(claim.prefix)}"
    actions = f"dec_ttl,set_field:{gateway}->eth_src,set_field:{address}->eth_dst,output:{port}"
    return flow("forward", about, TARGETS, 100 + claim.prefix.length, match, actions)


def text(prefix: Prefix) -> str:
    """Return a prefix as ovs-ofctl prints it: without the length if it is one address."""
    single = prefix.length == len(prefix.packed) * 8
    return prefix.address if single else str(prefix)


def _gate(held: Held, where: Map, switch: str, gateway: str) -> Iterable[Flow]:
    """Yield the flows of table 0."""
    for port in dict(where.ports).get(switch, ()):
        yield from _notes(gateway, port)
    for one in sorted({g for network in held.networks for g in network.gateways}):
        yield from (_arp(one, gateway) if one.family == 4 else _neighbour(one, gateway))
    for port in where.trunks(switch):
        for family in (4, 6):
            match = f"{_IP[family]},in_port={port},dl_src={gateway}"
            yield flow("gateway", FROM_SWITCH, 0, _TOP - 20, match, f"goto_table:{TRANSIT}")
    yield flow("forged", gateway, 0, _TOP - 30, f"dl_src={gateway}", "drop")
    for family in (4, 6):
        match = f"{_IP[family]},dl_dst={gateway}"
        yield flow("gateway", "from a host", 0, _TOP - 40, match, f"goto_table:{SOURCES}")
    yield flow("other", gateway, 0, _TOP - 50, f"dl_dst={gateway}", "drop")
    for network in held.networks:
        for pool in network.pools if network.closed else ():
            for side in (_SRC, _DST):
                match = f"{_IP[pool.family]},{side[pool.family]}={text(pool)}"
                yield flow("past", network.name, 0, _TOP - 60, match, "drop")


def _notes(gateway: str, port: int) -> Iterable[Flow]:
    """Yield the flows that note who answers the controller's requests at a port; learnt flows are limited by cookie."""

    def learn(seconds: int) -> str:
        seen = cookie("seen", f"port {port}")
        what = "NXM_OF_IN_PORT[],NXM_OF_ETH_SRC[]"
        return f"learn(table={NOTES},hard_timeout={seconds},priority=1,cookie={seen:#x},limit={MOST_NOTES},{what})"

    for match, seconds in (
        (f"arp,arp_op=2,dl_dst={gateway},in_port={port}", NOTE_LASTS),
        (f"icmp6,icmp_type=136,dl_dst={gateway},in_port={port}", NOTE_LASTS),
        (f"dl_type={LLDP:#x},dl_dst={gateway},in_port={port}", LINK_LASTS),
    ):
        yield flow("sighting", match, 0, _TOP, match, learn(seconds))


def _arp(address: Prefix, gateway: str) -> Iterable[Flow]:
    """Yield the flow that answers an ARP request (RFC 826) by rewriting the request."""
    yield flow("answer", address.address, 0, _TOP, f"arp,arp_op=1,arp_tpa={address.address}", ",".join((
        "move:NXM_OF_ETH_SRC[]->NXM_OF_ETH_DST[]", f"set_field:{gateway}->eth_src", "set_field:2->arp_op",
        "move:NXM_NX_ARP_SHA[]->NXM_NX_ARP_THA[]", f"set_field:{gateway}->arp_sha",
        "move:NXM_OF_ARP_SPA[]->NXM_OF_ARP_TPA[]", f"set_field:{address.address}->arp_spa", "IN_PORT",
    )))  # fmt: skip


def _neighbour(address: Prefix, gateway: str) -> Iterable[Flow]:
    """Yield the answer to a solicitation (RFC 4861 4.4), in two steps: only an advertisement has all fields."""
    own = address.address
    yield flow("answer", own, 0, _TOP, f"icmp6,icmp_type=135,icmp_code=0,nd_target={own}", ",".join((
        "move:NXM_OF_ETH_SRC[]->NXM_OF_ETH_DST[]", f"set_field:{gateway}->eth_src",
        "move:NXM_NX_IPV6_SRC[]->NXM_NX_IPV6_DST[]", f"set_field:{own}->ipv6_src",
        "set_field:136->icmpv6_type", f"goto_table:{ADVERTS}",
    )))  # fmt: skip
    # By the stack: with the kernel's data path a switch refuses set_field for these two fields, and with it
    # the whole bundle.
    advert = ",".join((
        f"set_field:{_OVERRIDE:#x}->reg0", "push:NXM_NX_REG0[]", "pop:ERICOXM_OF_ICMPV6_ND_RESERVED[]",
        "set_field:0x2->reg0", "push:NXM_NX_REG0[0..7]", "pop:ERICOXM_OF_ICMPV6_ND_OPTIONS_TYPE[]",
        f"set_field:{gateway}->nd_tll", "IN_PORT",
    ))  # fmt: skip
    yield flow("answer", own, ADVERTS, 100, f"icmp6,icmp_type=136,icmp_code=0,nd_target={own}", advert)


def _ends(held: Held) -> Iterable[Flow]:
    """Yield the flows at each table's end that drop all other packets."""
    yield flow("foreign", "", SOURCES, 0, "", "drop")
    for network in held.networks:
        for pool in network.pools:
            match = f"{_IP[pool.family]},metadata={number(network.name):#x},{_DST[pool.family]}={text(pool)}"
            yield flow("unknown", f"{pool}", TARGETS, 10, match, "drop")
    yield flow("isolated", "", TARGETS, 0, "", "drop")
    yield flow("lost", "", TRANSIT, 0, "", "drop")
