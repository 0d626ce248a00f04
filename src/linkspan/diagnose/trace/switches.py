"""Walk through an underlay's switches, by their own flows: which matched, and where it ends.

The flows are read from each switch when the packet reaches it, also foreign ones: a packet meets the one with
the highest priority. If a foreign flow matches on an unknown property of the packet (a VLAN, a tunnel),
nobody can know whether it matches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from linkspan.core.addresses import Prefix, prefix
from linkspan.core.errors import Invalid
from linkspan.core.states.openflow import MEANINGS, Counted, Held, Map, Seen
from linkspan.diagnose.trace.hops import OUTSIDE, Hop, Unknown, headers, show, where
from linkspan.diagnose.trace.packet import Packet, Span, within
from linkspan.diagnose.trace.parts import Entry, Part

_MOST = 12
"""Switches on one path, and tables in one switch: more are a loop."""
_TYPES = {4: {"ip", "icmp", "tcp", "udp"}, 6: {"ipv6", "icmp6", "tcp6", "udp6"}}
_ECHO = {4: (8, 0), 6: (128, 129)}
"""Types of echo requests and replies (RFC 792, RFC 4443)."""
_PROTOCOLS = {"icmp": {"icmp", "icmp6"}, "tcp": {"tcp", "tcp6"}, "udp": {"udp", "udp6"}}


class Underlay(msgspec.Struct, frozen=True):
    """Knowledge of it: ``hosts`` are (name, underlay addresses, MTU) by id, ``away`` why a switch is not reached."""

    held: Held
    where: Map
    seen: Mapping[str, Seen]
    hosts: Mapping[str, tuple[str, tuple[bytes, ...], int]]
    away: Mapping[str, str]
    dump: Callable[[str], list[Counted]]


class _Frame(msgspec.Struct):
    port: int
    source: str
    target: str
    metadata: int = 0


class _Stopped(Exception):
    """The packet stops here, with the reason."""


def part(known: Underlay, entry: Entry) -> Part:
    """Return the switches' part of a trace: from the host whose underlay address is ``entry.at``."""
    walk = _Walk(known, entry.packet)
    broken, target = "", ""
    try:
        target = walk.go(entry.at)
    except _Stopped as stopped:
        broken = str(stopped)
    packet = entry.packet
    at = next((a for a in known.hosts[target][1]), b"") if target else b""
    same = [a for a in known.hosts[target][1] if len(a) == len(entry.at)] if target else []
    return Part(
        tuple(walk.hops), walk.mtu, OUTSIDE, "", entry.translation, packet,
        target, same[0] if same else at, None, (b"", b""), broken, "", tuple(walk.unknown),
    )  # fmt: skip


class _Walk:
    def __init__(self, known: Underlay, packet: Packet) -> None:
        self.hops: list[Hop] = []
        self.mtu = 65535
        self._known = known
        self._packet = packet
        self._sender = ""
        self.unknown: list[Unknown] = []

    def go(self, at: bytes) -> str:
        """Return the id of the host that it reaches."""
        known = self._known
        sender = next((host for host, (_, own, _) in known.hosts.items() if at in own), "")
        places, macs = dict(known.where.places), dict(known.held.macs)
        self.mtu = known.hosts[sender][2] if sender else self.mtu
        self._sender = sender
        if sender not in places:
            name = known.hosts[sender][0] if sender else show(at)
            self._hop("", "", "lost", f"from host {name}")
            away = "".join(f"; {problem}" for problem in known.away.values())
            raise _Stopped(f"the controller has found host {name} at no port of a switch{away}")
        switch, port = places[sender]
        frame = _Frame(port, macs[sender], known.held.networks[0].mac)
        for _ in range(_MOST):
            out = self._through(switch, frame)
            there = next((host for host, spot in places.items() if spot == (switch, out)), "")
            if there:
                return there
            link = next((one for one in known.where.links if one[0] == (switch, out)), None)
            if link is None:
                raise _Stopped(f"nobody known is behind port {self._name(switch, out)} of switch {switch}")
            back = next((s for s, to, _ in known.where.links if s[0] == link[1] and to == switch), (link[1], 0))
            switch, frame.port = link[1], back[1]
        raise _Stopped(f"the packet loops between switches ({_MOST} so far)")

    def _through(self, switch: str, frame: _Frame) -> int:
        """Return the port by which it leaves a switch."""
        if switch in self._known.away:
            self._hop(switch, self._name(switch, frame.port), "unknown", "it cannot be asked")
            raise _Stopped(self._known.away[switch])
        ingress = self._name(switch, frame.port)
        if not self._known.seen[switch].up(frame.port):
            self._hop(switch, ingress, "dropped", "the link is down")
            raise _Stopped(f"port {ingress} of switch {switch} is down")
        found = self._known.dump(switch)
        table = 0
        for _ in range(_MOST):
            one = self._match(found, table, frame, switch)
            if one is None:
                self._hop(switch, ingress, "dropped", f"no flow of table {table} matches it")
                raise _Stopped(f"switch {switch}, table {table}: no flow matches it")
            step = self._step(switch, ingress, one, frame)
            if step < 0:
                return -step
            table = step
        raise _Stopped(f"the packet loops in switch {switch}")

    def _step(self, switch: str, ingress: str, one: Counted, frame: _Frame) -> int:
        """Return the next table, or the negative number of the port by which it leaves."""
        flow = one.flow
        whose = flow.meaning if one.ours else "a foreign flow"
        told = f"{whose}: {flow.text} (cookie {flow.cookie:#x}, {one.packets} packets)"
        table, out = 0, 0
        for action in flow.actions.split(","):
            name, _, value = action.partition(":")
            if name == "goto_table":
                table = int(value)
            elif name == "write_metadata":
                frame.metadata = int(value.partition("/")[0], 16)
            elif name == "output" and value.isdigit():
                out = int(value)
            elif action.startswith("set_field:") and action.endswith("->eth_src"):
                frame.source = action[len("set_field:") : -len("->eth_src")]
            elif action.startswith("set_field:") and action.endswith("->eth_dst"):
                frame.target = action[len("set_field:") : -len("->eth_dst")]
        if out:
            name = self._name(switch, out)
            self._hop(switch, ingress, "switched", told, name)
            if not self._known.seen[switch].up(out):
                raise _Stopped(f"port {name} of switch {switch}, by which it should leave, is down")
            return -out
        self._hop(switch, ingress, "matched" if table else "dropped", told)
        if table:
            return table
        if not one.ours:
            raise _Stopped(f"switch {switch}: a foreign flow matches it: {flow.text} actions={flow.actions}")
        raise _Stopped(f"switch {switch} {self._reason(flow.kind)} (cookie {flow.cookie:#x})")

    def _reason(self, kind: str) -> str:
        packet = self._packet
        if kind == "foreign":
            return f"drops it: {self._foreign(show(packet.source))}"
        if kind == "unknown":
            return f"drops it: nobody has {show(packet.target)}, or its host is not found"
        if kind == "isolated":
            return f"drops it: the networks of {show(packet.source)} and {show(packet.target)} are isolated"
        return MEANINGS[kind]

    def _foreign(self, source: str) -> str:
        """Return why a source is not accepted: by its owner in the store."""
        single = Prefix(self._packet.source, len(self._packet.source) * 8)
        claims = [claim for claim in self._known.held.claims if claim.prefix.holds(single)]
        holder = max(claims, key=lambda claim: claim.prefix.length).host if claims else ""
        if holder and holder == self._sender:
            return f"the host at that port has {source}, but the switch has no flow for it (yet)"
        name = f"host {self._known.hosts[holder][0]}" if holder in self._known.hosts else "nobody"
        return f"the host at that port does not have {source}; {name} has it"

    def _match(self, found: list[Counted], table: int, frame: _Frame, switch: str) -> Counted | None:
        there = [(one, self._fits(one.flow.match, frame)) for one in found if one.flow.table == table]
        taken = max((one for one, fits in there if fits), key=lambda one: one.flow.priority, default=None)
        for one, fits in there:
            if fits is None and (taken is None or one.flow.priority > taken.flow.priority):
                why = f"whether this flow matches it is unknown: {one.flow.text} actions={one.flow.actions}"
                self._hop(switch, self._name(switch, frame.port), "unknown", why)
                self.unknown.append(Unknown(where(self.hops[-1]), why))
        return taken

    def _fits(self, parts: tuple[str, ...], frame: _Frame) -> bool | None:
        tests = [self._fit(part, frame) for part in parts]
        return False if False in tests else None if None in tests else True

    def _fit(self, text: str, frame: _Frame) -> bool | None:
        """Return whether a part of a match is true of the packet, None if unknown."""
        packet = self._packet
        family = packet.family
        name, given, value = text.partition("=")
        if not given:
            kinds = _TYPES[family] if name in ("ip", "ipv6") else _PROTOCOLS.get(packet.protocol, set())
            return name in kinds and name in _TYPES[family]
        match name:
            case "in_port":
                return value == str(frame.port)
            case "dl_src" | "dl_dst":
                return value == (frame.source if name == "dl_src" else frame.target)
            case "metadata":
                return int(value.partition("/")[0], 16) == frame.metadata
            case "nw_src" | "ipv6_src":
                return _holds(value, packet.source)
            case "nw_dst" | "ipv6_dst":
                return _holds(value, packet.target)
            case "dl_type":
                return int(value, 0) == (0x0800 if family == 4 else 0x86DD)
            case "tp_src" | "tcp_src" | "udp_src":
                return _is_port(value, packet.source_ports)
            case "tp_dst" | "tcp_dst" | "udp_dst":
                return _is_port(value, packet.target_ports)
            case "icmp_type" | "icmpv6_type" if packet.protocol == "icmp":
                return value == str(_ECHO[family][packet.established])
        return None

    def _name(self, switch: str, number: int) -> str:
        one = self._known.seen.get(switch, Seen())
        return next((port.name for port in one.ports if port.number == number), str(number))

    def _hop(self, switch: str, device: str, action: str, detail: str, port: str = "") -> None:
        self.hops.append(
            Hop(switch or "switches", "switch", device, action, detail, headers(self._packet), port, mtu=self.mtu)
        )


def _is_port(text: str, ports: Span) -> bool | None:
    return within(ports, int(text), int(text)) if text.isdigit() else None


def _holds(text: str, address: bytes) -> bool:
    try:
        return prefix(text).holds(Prefix(address, len(address) * 8))
    except Invalid:
        return False
