"""A packet's walk through one host, one way, by the kernels' own answers.

In the container: is the source address there, where does the route lead, is the link up. On the host: the
port and its bridge, the guard; then either the bridge's FDB (bridged), or translation, route, the forward
hooks of everybody's tables, masquerade (routed); then the next container, the host itself, or outside.
The first answer that stops the packet ends the walk with ``Broken``.
"""

from __future__ import annotations

import errno
import socket

import msgspec

from linkspan.addresses import SOCKET_FAMILY, mac_text
from linkspan.model import Endpoint, Network
from linkspan.state import HOST
from linkspan.tell import iptables, rules
from linkspan.tell.hops import OUTSIDE, Broken, Hop, Map, Translation, forwarding_off, headers, meaning, show
from linkspan.tell.questions import (
    BLACKHOLE,
    LOCAL,
    PROHIBIT,
    UNREACHABLE,
    Device,
    Lookup,
    Outer,
    Packet,
    Questions,
)
from linkspan.tell.rules import Frame, Verdict

_REFUSING = {BLACKHOLE: "blackhole", UNREACHABLE: "unreachable", PROHIBIT: "prohibit"}


class Walk:
    """One way of one packet; ``hops`` grows as it goes, ``mtu`` is the least on the way.

    ``end`` is the namespace in which it arrived, or OUTSIDE, where it left by ``exit``.
    """

    def __init__(self, asked: Questions, known: Map, translation: Translation) -> None:
        self.hops: list[Hop] = []
        self.mtu = 65535
        self.exit = ""
        self.end = OUTSIDE
        self._asked = asked
        self._known = known
        self._translation = translation
        self._outer: Outer | None = None
        self._mark = 0

    # Where a packet starts.

    def from_container(self, netns: int, packet: Packet) -> None:
        """Send from a container's namespace."""
        self._require_source(netns, packet)
        # A link that is down takes its routes along.
        self._usable(netns, self._asked.addresses(netns)[packet.source], packet)
        lookup = self._asked.route(netns, packet)
        self._require_route(netns, "", packet, lookup)
        if lookup.kind == LOCAL:
            self._delivered(netns, lookup.device or "lo", packet)
            return
        device = self._usable(netns, lookup.device, packet)
        self._narrow(device.mtu, lookup.mtu)
        self._hop(netns, device.name, "sent", _way(lookup), packet)
        endpoint = self._known.at(netns, device.name)
        if endpoint is None:
            self._hop(netns, device.name, "left", "by an interface that is not linkspan's", packet)
            return
        self._into_host(endpoint, device, lookup.gateway or packet.target, packet)

    def from_host(self, packet: Packet) -> None:
        """Send from the host itself."""
        self._require_source(HOST, packet)
        kinds = ("filter",) if packet.established else ("filter", "nat")
        found = rules.decide(self._asked, rules.families(packet), kinds, "output", Frame(packet))
        self._require_pass(found, "", packet)
        packet = self._translated(found, packet, "")
        lookup = self._asked.route(HOST, packet)
        self._require_route(HOST, "", packet, lookup)
        if lookup.kind == LOCAL:
            self._delivered(HOST, lookup.device or "lo", packet)
            return
        device = self._usable(HOST, lookup.device, packet)
        self._narrow(device.mtu, lookup.mtu)
        self._hop(HOST, device.name, "sent", _way(lookup), packet)
        self._out_of_host(device, lookup, self._masked(Frame(packet, "", device.name), device))

    def from_outside(self, arriving: str, packet: Packet) -> None:
        """Let a packet come in by one of the host's own links."""
        device = self._usable(HOST, arriving, packet)
        self._narrow(device.mtu)
        self._hop(HOST, arriving, "received", "from outside", packet)
        self._route(arriving, b"", packet)

    # The host's side of a container's link.

    def _into_host(self, endpoint: Endpoint, device: Device, following: bytes, packet: Packet) -> None:
        link = self._usable(HOST, endpoint.host_ifname, packet)
        self._narrow(link.mtu)
        network = self._known.networks.get(endpoint.network)
        if network is not None and network.routed:
            if following not in self._asked.addresses(HOST):
                raise self._broken(
                    HOST, link.name, packet, f"nobody answers for {show(following)} on {link.name}"
                )
            self._route(link.name, device.mac, packet)
            return
        bridge = self._bridge_of(link, network, packet)
        frame = Frame(packet, link.name, mac=device.mac)
        self._require_pass(
            rules.decide(self._asked, ("bridge",), ("filter",), "prerouting", frame), link.name, packet
        )
        mac = self._mac(endpoint.netns, device.name, following, bridge, packet)
        if mac == bridge.mac:
            self._hop(HOST, bridge.name, "received", f"by port {link.name}, for the host to route", packet)
            self._route(bridge.name, device.mac, packet)
        else:
            self._bridged(bridge, mac, following, packet)

    def _bridge_of(self, link: Device, network: Network | None, packet: Packet) -> Device:
        expected = network.bridge if network else link.master
        if expected and self._asked.device(HOST, expected) is None:
            raise self._broken(HOST, expected, packet, f"bridge {expected} does not exist")
        if not link.master or (expected and link.master != expected):
            where = f"in {link.master}" if link.master else "in no bridge"
            raise self._broken(
                HOST, link.name, packet, f"port {link.name} is {where}; it belongs in {expected}"
            )
        bridge = self._usable(HOST, link.master, packet)
        if not link.forwards:
            raise self._broken(
                HOST, link.name, packet, f"port {link.name} of bridge {link.master} is not forwarding"
            )
        return bridge

    def _mac(self, netns: int, device: str, following: bytes, bridge: Device, packet: Packet) -> bytes:
        """Return the MAC that the next hop has: by the neighbour table, or who would answer."""
        entry = self._asked.neighbour(netns, device, following)
        if entry is not None and entry.known:
            return entry.mac
        if self._asked.addresses(HOST).get(following) == bridge.name:
            return bridge.mac
        owner = self._known.holding(following)
        if owner is not None and following in self._asked.addresses(owner.netns):
            found = self._asked.device(owner.netns, owner.ifname)
            if found is not None:
                return found.mac
        if owner is not None:
            name = self._known.name(owner.netns)
            why = f"its address is missing in {name}, or the interface {owner.ifname} is"
        else:
            why = f"no container has it and it is not on {bridge.name}"
        raise self._broken(netns, device, packet, f"nobody answers for {show(following)}: {why}")

    def _bridged(self, bridge: Device, mac: bytes, following: bytes, packet: Packet) -> None:
        frame = Frame(packet, bridge.name, bridge.name, mac)
        call = {4: "bridge-nf-call-iptables", 6: "bridge-nf-call-ip6tables"}[packet.family]
        if self._asked.setting(HOST, f"net/bridge/{call}") == "1":
            self._require_forward(frame, bridge.name)
        owner = self._known.holding(following)
        learnt = self._asked.bridge_port(bridge.name, mac)
        port = learnt or (owner.host_ifname if owner else "")
        endpoint = self._known.behind(port)
        if endpoint is None:
            told = f"port {port}, behind which is no container" if port else "no port"
            raise self._broken(HOST, bridge.name, packet, f"the bridge's FDB leads {mac_text(mac)} to {told}")
        link = self._usable(HOST, port, packet)
        self._bridge_of(link, self._known.networks.get(endpoint.network), packet)
        how = "FDB" if learnt else "flooded, not learnt yet"
        self._narrow(bridge.mtu, link.mtu)
        self._hop(
            HOST, bridge.name, "bridged", f"{mac_text(mac)} is behind port {port} ({how})", packet, port
        )
        self._into_container(endpoint, packet)

    # The host as a router.

    def _route(self, arriving: str, mac: bytes, packet: Packet) -> None:
        frame = Frame(packet, arriving, mac=mac, mark=self._mark)
        kinds = ("filter",) if packet.established else ("filter", "nat")
        found = rules.decide(self._asked, rules.families(packet), kinds, "prerouting", frame)
        self._require_pass(found, arriving, packet)
        packet = self._restored(self._translated(found, packet, arriving), arriving)
        lookup = self._asked.route(HOST, packet, arriving)
        self._require_route(HOST, arriving, packet, lookup)
        if lookup.kind == LOCAL:
            hook = rules.decide(
                self._asked, rules.families(packet), ("filter",), "input", Frame(packet, arriving, mac=mac)
            )
            self._require_pass(hook, arriving, packet)
            self._delivered(HOST, arriving, self._unpublished(packet, arriving))
            return
        if packet.family == 6 and self._asked.setting(HOST, "net/ipv6/conf/all/forwarding") == "0":
            raise self._broken(HOST, arriving, packet, forwarding_off(6, "all"))
        device = self._usable(HOST, lookup.device, packet)
        self._narrow(device.mtu, lookup.mtu)
        frame = Frame(packet, arriving, device.name, mac)
        allowed = self._require_forward(frame, device.name)
        self._hop(HOST, device.name, "routed", _way(lookup) + (f"; {allowed}" if allowed else ""), packet)
        packet = self._masked(frame, device)
        self._out_of_host(device, lookup, self._unpublished(packet, device.name))

    def _require_forward(self, frame: Frame, device: str) -> str:
        found = rules.decide(self._asked, rules.families(frame.packet), ("filter",), "forward", frame)
        self._require_pass(found, device, frame.packet)
        others = iptables.forwarded(self._asked.iptables(frame.packet.family), frame)
        self._require_pass(others, device, frame.packet)
        unsure = found.unsure + others.unsure
        return f"not understood: {unsure[0]}" if unsure else ""

    def _out_of_host(self, device: Device, lookup: Lookup, packet: Packet) -> None:
        last = Frame(packet, "", device.name)
        found = rules.decide(self._asked, rules.families(packet), ("filter",), "postrouting", last)
        self._require_pass(found, device.name, packet)
        following = lookup.gateway or packet.target
        if device.kind == "bridge" and any(n.bridge == device.name for n in self._known.networks.values()):
            mac = self._mac(HOST, device.name, following, device, packet)
            self._bridged(device, mac, following, packet)
            return
        endpoint = self._known.behind(device.name)
        if endpoint is not None:
            self._into_container(endpoint, packet)
            return
        self._leave(device, following, packet)

    def _leave(self, device: Device, following: bytes, packet: Packet) -> None:
        """Send it by a link that leads out of the host."""
        entry = self._asked.neighbour(HOST, device.name, following)
        if entry is not None and not entry.known and not packet.established:
            raise self._broken(
                HOST, device.name, packet, f"{show(following)} does not answer on {device.name}"
            )
        self.exit = device.name
        self._arrived(packet)
        self._hop(HOST, device.name, "left", f"towards {show(following)}, outside this host", packet)

    def _into_container(self, endpoint: Endpoint, packet: Packet) -> None:
        netns = endpoint.netns
        device = self._usable(netns, endpoint.ifname, packet)
        self._narrow(device.mtu)
        if packet.target not in self._asked.addresses(netns):
            where = f"{device.name} of {self._known.name(netns)}"
            raise self._broken(
                netns, device.name, packet, f"address {show(packet.target)} is missing on {where}"
            )
        lookup = self._asked.route(netns, packet, device.name)
        self._require_route(netns, device.name, packet, lookup)
        self._delivered(netns, device.name, packet)

    # Translation, both ways.

    def _translated(self, found: Verdict, packet: Packet, device: str) -> Packet:
        if not found.to:
            return packet
        target = socket.inet_pton(SOCKET_FAMILY[packet.family], found.to[0])
        port = int(found.to[1]) if len(found.to) > 1 else packet.port
        changed = msgspec.structs.replace(packet, target=target, port=port, translated=True)
        self._translation.dnat = packet
        self._hop(HOST, device, "translated", f"published port: now to {found.to[0]} port {port}", changed)
        return changed

    def _masked(self, frame: Frame, device: Device) -> Packet:
        packet = frame.packet
        if packet.established:
            return packet
        found = rules.decide(self._asked, rules.families(packet), ("nat",), "postrouting", frame)
        if not found.masked:
            return packet
        own = self._asked.route(HOST, msgspec.structs.replace(packet, source=b"")).source
        if not own:
            why = f"masquerade has no address to use: {device.name} has none"
            raise self._broken(HOST, device.name, packet, why)
        changed = msgspec.structs.replace(packet, source=own)
        self._translation.masked = (packet.source, own)
        self._hop(HOST, device.name, "masqueraded", f"the source is {show(own)} now ({found.where})", changed)
        return changed

    def _restored(self, packet: Packet, device: str) -> Packet:
        """Undo on a reply what was done on the way there, as connection tracking does before routing."""
        if not packet.established:
            return packet
        if self._translation.masked and packet.target == self._translation.masked[1]:
            packet = msgspec.structs.replace(packet, target=self._translation.masked[0])
            self._hop(HOST, device, "translated", f"masquerade undone: to {show(packet.target)}", packet)
        return packet

    def _unpublished(self, packet: Packet, device: str) -> Packet:
        """Give a reply, after routing, the source that the client asked."""
        dnat = self._translation.dnat
        if not packet.established or dnat is None or packet.source == dnat.target:
            return packet
        packet = msgspec.structs.replace(packet, source=dnat.target, source_port=dnat.port)
        self._hop(HOST, device, "translated", f"published port undone: from {show(dnat.target)}", packet)
        return packet

    # What stops a packet.

    def _require_source(self, netns: int, packet: Packet) -> None:
        if packet.source and packet.source not in self._asked.addresses(netns):
            name = self._known.name(netns)
            owner = self._known.holding(packet.source)
            device = owner.ifname if owner and netns != HOST else ""
            where = f" on {device}" if device else ""
            raise self._broken(
                netns, device, packet, f"address {show(packet.source)} is missing in {name}{where}"
            )

    def _usable(self, netns: int, name: str, packet: Packet) -> Device:
        found = self._asked.device(netns, name)
        where = self._known.name(netns)
        if found is None:
            raise self._broken(netns, name, packet, f"link {name} does not exist in {where}")
        if not found.up:
            raise self._broken(netns, name, packet, f"link {name} in {where} is down")
        if not found.carrier and found.kind != "bridge":
            raise self._broken(
                netns, name, packet, f"link {name} in {where} has no carrier: its other end is down"
            )
        return found

    def _require_route(self, netns: int, arriving: str, packet: Packet, lookup: Lookup) -> None:
        where, target = self._known.name(netns), show(packet.target)
        why = f": {lookup.learnt}" if lookup.learnt else ""
        if lookup.kind in _REFUSING:
            reason = f"{target} meets the {_REFUSING[lookup.kind]} route {lookup.matched} in {where}"
            raise self._broken(netns, arriving, packet, reason + (why or ": nobody holds this address"))
        if not lookup.error:
            return
        if arriving and packet.family == 4:
            self._require_forwarding(netns, arriving, packet, lookup)
        if lookup.error in (errno.EHOSTUNREACH, errno.EACCES):
            raise self._broken(netns, arriving, packet, f"{target} meets an unreachable route in {where}{why}")
        if lookup.error == errno.ENETUNREACH:
            raise self._broken(netns, arriving, packet, f"{where} has no route to {target}")
        words = errno.errorcode.get(lookup.error, str(lookup.error))
        refused = f"the kernel refuses to route to {target} in {where} ({words})"
        raise self._broken(netns, arriving, packet, refused)

    def _require_forwarding(self, netns: int, arriving: str, packet: Packet, lookup: Lookup) -> None:
        """Say which setting makes the kernel refuse an IPv4 packet that arrives."""
        where = self._known.name(netns)
        if lookup.error == errno.EHOSTUNREACH:
            local = self._asked.route(netns, msgspec.structs.replace(packet, source=b""))
            if not local.error and self._asked.setting(netns, f"net/ipv4/conf/{arriving}/forwarding") == "0":
                raise self._broken(netns, arriving, packet, forwarding_off(4, arriving))
        if lookup.error in (errno.EINVAL, errno.EXDEV):
            back = self._asked.route(netns, Packet(b"", packet.source))
            levels = [self._asked.setting(netns, f"net/ipv4/conf/{n}/rp_filter") for n in ("all", arriving)]
            if back.kind == LOCAL:
                raise self._broken(
                    netns, arriving, packet, f"{show(packet.source)} is an address of {where} itself"
                )
            way = f"by {back.device}" if back.device else "nowhere"
            reason = f"the way back to {show(packet.source)} leads {way}, not by {arriving}"
            mode = "strict" if max(levels) == "1" else "loose"
            raise self._broken(
                netns, arriving, packet, f"rp_filter ({mode}) on {arriving} drops it: {reason}"
            )

    def _require_pass(self, found: Verdict, device: str, packet: Packet) -> None:
        if not found.passes:
            raise self._broken(
                HOST, device, packet, f"{meaning(found.rule, packet)} ({found.where}: {found.rule})"
            )

    def _broken(self, netns: int, device: str, packet: Packet, reason: str) -> Broken:
        self._hop(netns, device, "dropped", reason, packet)
        return Broken(self.hops[-1], reason)

    # What is told.

    def _delivered(self, netns: int, device: str, packet: Packet) -> None:
        self.end = netns
        self._arrived(packet)
        detail = "the packet has arrived"
        if not packet.established and not self._asked.listens(netns, packet):
            detail += f"; nothing listens on {packet.port}/{packet.protocol}, so the answer is a refusal"
        self._hop(netns, device, "delivered", detail, packet)

    def _arrived(self, packet: Packet) -> None:
        if not packet.established:
            self._translation.arrived = packet

    def _hop(self, netns: int, device: str, action: str, detail: str, packet: Packet, port: str = "") -> None:
        name = self._known.name(netns)
        told = headers(packet, self._outer)
        self.hops.append(Hop(self._known.host, name, device, action, detail, told, port, mtu=self.mtu))

    def _narrow(self, *mtus: int) -> None:
        self.mtu = min(self.mtu, *(m for m in mtus if m)) if any(mtus) else self.mtu


def _way(lookup: Lookup) -> str:
    via = f" via {show(lookup.gateway)}" if lookup.gateway else ""
    return f"route {lookup.matched or '?'}{via} dev {lookup.device}" + (f", {lookup.learnt}" if lookup.learnt else "")
