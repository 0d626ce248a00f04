"""Fields of a packet that rules of nftables read, in nft's words."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Any

from linkspan.core.addresses import SOCKET_FAMILY, mac_text
from linkspan.diagnose.trace.kernel_view import LOCAL, UNICAST, KernelView
from linkspan.diagnose.trace.nft_values import Ports, flag_names
from linkspan.diagnose.trace.packet import FLOWING, NUMBERS, towards
from linkspan.diagnose.trace.verdict import Frame

_MAC = 6
"""Bytes of a MAC."""
TRACKING = frozenset({"inet", "ip", "ip6"})
"""Families whose chains know connections."""


class Fields:
    """The fields of a packet at a hook."""

    def __init__(self, asked: KernelView, frame: Frame) -> None:
        self._asked = asked
        self._frame = frame

    def values(self, family: str, left: Any) -> tuple[str, ...] | None:
        """Return the values of a field: () if the packet has none, None if unknown. ``family`` is the rule's."""
        match left:
            case {"meta": {"key": key}}:
                return self._meta(str(key))
            case {"ct": {"key": key, **rest}} if not rest and family in TRACKING:
                return self._conntrack(str(key))
            case {"rt": {"key": "ipsec"}}:  # a packet with these has left the evaluated rules by then
                return ("False",)
            case {"rt": {"key": "nexthop", "family": str(of)}}:
                return self._next_hop(of)
            case {"payload": {"base": "nh", "offset": 72, "len": 8}}:  # protocol of an IPv4 header (RFC 791)
                packet = self._frame.packet
                number = NUMBERS.get(packet.protocol)
                return () if packet.family == 6 or number is None else (str(number),)
            case {"payload": {"protocol": "ether", "field": ("saddr" | "daddr") as field}}:
                return self._mac(field)
            case {"payload": {"protocol": str(protocol), "field": str(field)}}:
                return self._payload(protocol, field)
            case {"fib": {"result": "type", "flags": flags}} if list(flags) == ["daddr"] or flags == "daddr":
                return self._kind(self._frame.packet.target)
            case {"fib": {"result": "type", "flags": flags}} if list(flags) == ["saddr"] or flags == "saddr":
                return self._kind(self._frame.packet.source)
        return None

    def states(self) -> tuple[str, ...]:
        """Return the possible states of the packet's connection here."""
        states = self._frame.packet.states
        if self._frame.tracked:
            return states
        return ("untracked",) if states == ("untracked",) else ("invalid",) if "untracked" not in states else states

    def status(self, left: Mapping[str, Any], right: Any, op: str) -> bool | None:
        """Return whether a connection has these status flags (``ct status``), as far as they are known."""
        packet = self._frame.packet
        if not self._frame.tracked or packet.ct == "untracked":
            return False
        masked = flag_names(left["&"][1]) if "&" in left else None
        wanted = flag_names(right)
        if wanted is None or ("&" in left and masked is None) or packet.ct:
            return None
        answered = packet.established or bool(packet.later)
        known = dict.fromkeys(("seen-reply", "confirmed"), answered) | {"dnat": packet.translated}
        known |= {} if answered else dict.fromkeys(("assured", "snat", "expected", "dying"), False)
        if masked is not None and op in ("==", "!="):
            have = [known.get(name) for name in masked]
            return None if None in have else ({n for n in masked if known[n]} == wanted) == (op == "==")
        if op not in ("in", "!"):
            return None
        have = [known.get(name) for name in wanted]
        found = True if True in have else None if None in have else False
        return found if found is None or op == "in" else not found

    def _kind(self, address: bytes) -> tuple[str, ...] | None:
        """Return an address's type in the host's routes; make no claim about other types than these two."""
        kind = self._asked.route(self._frame.netns, towards(address)).kind
        return ("local",) if kind == LOCAL else ("unicast",) if kind in (UNICAST, 0) else None

    def _next_hop(self, family: str) -> tuple[str, ...]:
        """Return the next hop of the packet's route: its router, or its target itself."""
        packet = self._frame.packet
        if family != ("ip" if packet.family == 4 else "ip6"):
            return ()
        way = self._asked.route(self._frame.netns, packet, self._frame.arriving)
        return (socket.inet_ntop(SOCKET_FAMILY[packet.family], way.gateway or packet.target),)

    def routed_back(self, left: Any) -> bool | None:
        """Return whether a ``fib`` expression finds a route: back to the source, by the link if asked so."""
        match left:
            case {"fib": {"result": "oif" | "oifname", "flags": flags}}:
                wanted = {flags} if isinstance(flags, str) else set(flags)
                if "saddr" not in wanted or wanted - {"saddr", "iif", "mark"}:
                    return None
                mark = self._frame.packet.mark if "mark" in wanted else 0
                back = self._asked.route(self._frame.netns, towards(self._frame.packet.source, mark))
                there = not back.error and back.kind in (LOCAL, UNICAST)
                return there and ("iif" not in wanted or back.device == self._frame.arriving)
        return None

    def tcp_flags(self, left: Any, right: Any, op: str) -> bool | None:
        """Return whether a TCP segment has these flags, as far as they can be compared."""
        packet = self._frame.packet
        if packet.protocol != "tcp":
            return False
        mask, wanted = flag_names(left["&"][1]) if "&" in left else None, flag_names(right)
        if wanted is None or ("&" in left and mask is None):
            return None
        have = packet.flags
        if op == "in":
            return bool(have & wanted)
        same = (have & mask if mask is not None else have) == wanted
        return same if op == "==" else not same

    def _meta(self, key: str) -> tuple[str, ...] | None:
        frame, packet = self._frame, self._frame.packet
        arp = packet.protocol == "arp"
        match key:
            case "iifname" | "iif":
                return (frame.arriving,)
            case "oifname" | "oif":
                return (frame.leaving,)
            case "ibrname" | "obrname":
                link = self._asked.device(frame.netns, frame.arriving if key == "ibrname" else frame.leaving)
                return (link.master,) if link is not None and link.master else ()
            case "iifgroup" | "oifgroup":
                link = self._asked.device(frame.netns, frame.arriving if key == "iifgroup" else frame.leaving)
                return (str(link.group) if link.group else "default",) if link is not None else ()
            case "l4proto":
                six = packet.protocol == "icmp" and packet.family == 6
                return () if arp else ("ipv6-icmp" if six else packet.protocol,)
            case "nfproto":
                return (f"ipv{packet.family}",)
            case "protocol":
                return ("arp" if arp else "ip" if packet.family == 4 else "ip6",)
            case "mark":
                return None if packet.mark is None else (str(packet.mark),)
            case "pkttype":
                return ("host",) if not arp else None
            case "skuid" | "skgid":
                return None if frame.started else ()
        return None

    def _mac(self, field: str) -> tuple[str, ...] | None:
        """Return the frame's sender or target; a device without MACs (IPIP, WireGuard, a TUN) has no such header."""
        mac = self._frame.mac if field == "saddr" else self._frame.to_mac
        if mac:
            return (mac_text(mac),)
        link = self._asked.device(self._frame.netns, self._frame.arriving) if self._frame.arriving else None
        return () if link is not None and len(link.mac) != _MAC else None

    def _conntrack(self, key: str) -> tuple[str, ...] | None:
        packet = self._frame.packet
        match key:
            case "state":
                states = self.states()
                return states if len(states) == 1 else None
            case _ if packet.ct == "?":
                return None
            case _ if packet.ct == "untracked" or not self._frame.tracked:
                return ()
            case "direction" if packet.ct == FLOWING:
                return None
            case "direction":
                return ("reply" if packet.established else "original",)
            case "mark":
                return None if packet.ct_mark is None else (str(packet.ct_mark),)
        return None

    def _payload(self, protocol: str, field: str) -> tuple[str, ...] | None:
        packet = self._frame.packet
        arp = packet.protocol == "arp"
        match protocol, field:
            case ("ether", "type"):
                return ("arp" if arp else "ip" if packet.family == 4 else "ip6",)
            case ("arp", _) if arp:
                return self._arp(field)
            case (("ip" | "ip6"), _) if arp or protocol != ("ip" if packet.family == 4 else "ip6"):
                return ()
            case (("ip" | "ip6"), ("saddr" | "daddr")):
                packed = packet.source if field == "saddr" else packet.target
                return (socket.inet_ntop(SOCKET_FAMILY[packet.family], packed),)
            case ("ip", "protocol") | ("ip6", "nexthdr"):
                return self._meta("l4proto")
            case ("ip", "ttl") | ("ip6", "hoplimit"):
                return (str(packet.ttl),)
            case ("ip", "version"):
                return ("4",)
            case ("ip", "hdrlength"):  # the packets of a trace have no options, and are no fragments
                return ("5",)
            case ("ip", "frag-off"):
                return ("0",)
            case (("th" | "tcp" | "udp" | "sctp"), ("sport" | "dport")):
                if not packet.has_ports or protocol not in ("th", packet.protocol):
                    return ()
                first, last = packet.target_ports if field == "dport" else packet.source_ports
                return (str(first) if first == last else Ports(f"{first}-{last}"),)
            case (("icmp" | "icmpv6"), _) if packet.protocol != "icmp":
                return ()
            case ("icmp", _) if packet.family == 6:
                return ()
            case ("icmpv6", _) if packet.family == 4:
                return ()
            case (("icmp" | "icmpv6"), "type"):
                return ("echo-reply" if packet.established else "echo-request",)
            case (("icmp" | "icmpv6"), "code"):
                return ("0",)
            case (("tcp" | "udp" | "sctp"), _) if packet.protocol != protocol:
                return ()
            case (("arp" | "vlan"), _):
                return ()
            case ("icmpv6", "taddr"):  # only of a neighbour solicitation or advertisement
                return ()
        return None

    def _arp(self, field: str) -> tuple[str, ...] | None:
        frame, packet = self._frame, self._frame.packet
        match field:
            case "operation":
                return ("reply" if packet.established else "request",)
            case "saddr ip" | "daddr ip":
                packed = packet.source if field == "saddr ip" else packet.target
                return (socket.inet_ntop(socket.AF_INET, packed),)
            case "saddr ether":
                return (mac_text(frame.mac),) if frame.mac else None
            case "htype" | "hlen" | "plen":
                return ({"htype": "1", "hlen": "6", "plen": "4"}[field],)
        return None
