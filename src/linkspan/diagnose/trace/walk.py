"""Walk of a packet through one host, one way, by the kernel's own answers.

In the container: its address, route, link and own hooks. On the host: the port and its bridge, the guard;
then either the bridge's FDB (bridged), or translation, route, the forward hooks of all tables, masquerade
(routed); then the next container and its hooks, the host itself, or outside. At each step the packet passes
what ``passage`` has; the first answer that stops it ends the walk with ``Broken``.
"""

from __future__ import annotations

import socket

import msgspec

from linkspan.core.addresses import SOCKET_FAMILY, mac_text
from linkspan.core.model import Endpoint, Network
from linkspan.core.ruleset import TABLE
from linkspan.core.states.host import HOST
from linkspan.core.wire import VXLAN
from linkspan.diagnose.trace import netfilter_hooks
from linkspan.diagnose.trace.hops import OUTSIDE, Map, Translation, forwarding_off, show
from linkspan.diagnose.trace.kernel_view import (
    FORWARD,
    IN,
    LOCAL,
    OUT,
    Device,
    KernelView,
    Lookup,
    Port,
    client_ports,
)
from linkspan.diagnose.trace.packet import Packet, towards
from linkspan.diagnose.trace.passage import Passage
from linkspan.diagnose.trace.verdict import Frame, Verdict

_ECHO_REPLY = {4: 0, 6: 129}
"""Types of ICMP's answer to a ping: RFC 792, RFC 4443."""


class Walk(Passage):
    """One way of one packet.

    ``end`` is the namespace in which it arrived, or OUTSIDE if it left by ``exit``; ``listens``: a socket
    accepts a connection there. If it is unknown whether the packet passes, the walk continues as if it did.
    """

    def __init__(self, asked: KernelView, known: Map, translation: Translation) -> None:
        super().__init__(asked, known)
        self.exit = ""
        self.end = OUTSIDE
        self.listens: bool | None = None
        self._translation = translation

    # Start of a packet.

    def from_container(self, netns: int, packet: Packet) -> None:
        """Send from a container's namespace."""
        packet = sourced(self._asked, self._known, netns, packet).sent_by(client_ports(self._asked, netns))
        self._require_source(netns, packet)
        # A link that is down loses its routes.
        self._usable(netns, self._asked.addresses(netns)[packet.source], packet)
        lookup, packet = self._started(netns, packet)
        if lookup.kind == LOCAL:
            self._looped(netns, packet)
            return
        device = self._usable(netns, lookup.device, packet)
        self._require_own(netns, device, packet)
        self._narrow(device.mtu, lookup.mtu)
        packet = self._sent(netns, device, packet)
        self._hop(netns, device.name, "sent", _way(lookup), packet)
        endpoint = self._known.at(netns, device.name)
        if endpoint is None:
            self._hop(netns, device.name, "left", "by an interface that is not linkspan's", packet)
            self._beyond_us(packet.target)
            return
        self._into_host(endpoint, device, lookup.gateway or packet.target, packet)

    def from_host(self, packet: Packet) -> None:
        """Send from the host itself."""
        packet = packet.sent_by(client_ports(self._asked, HOST))
        self._require_source(HOST, packet)
        lookup, packet = self._started(HOST, packet)
        if lookup.kind == LOCAL:
            self._looped(HOST, packet)
            return
        device = self._usable(HOST, lookup.device, packet)
        self._narrow(device.mtu, lookup.mtu)
        self._hop(HOST, device.name, "sent", _way(lookup), packet)
        self._out_of_host(device, lookup, self._posted(Frame(packet, "", device.name), device.name))

    def expected(self, packet: Packet) -> str:
        """Return the link by which a packet from outside comes: the one that leads to its source."""
        back = self._asked.route(HOST, towards(packet.source))
        if not back.device:
            source = show(packet.source)
            why = f"host has no route to {source}: no answer goes back, and its packets may come by any link"
            raise self._broken(HOST, "", packet, why)
        return back.device

    def from_outside(self, arriving: str, packet: Packet) -> None:
        """Receive a packet by one of the host's own links."""
        device = self._usable(HOST, arriving, packet)
        packet = packet.sent_by()
        self._narrow(device.mtu)
        detail = "an answer from outside, if one comes" if packet.established else "from outside"
        self._hop(HOST, arriving, "received", detail, packet)
        self._beyond_us(packet.source)
        self._route(arriving, self._sender(arriving, packet.source), self._entered(HOST, packet))

    def _sender(self, arriving: str, address: bytes) -> bytes:
        """Return the MAC with which an address's packets arrive: its own or its router's, b'' if unknown."""
        back = self._asked.route(HOST, towards(address))
        entry = self._asked.neighbour(HOST, arriving, back.gateway or address)
        return entry.mac if entry is not None and entry.known else b""

    def _started(self, netns: int, packet: Packet) -> tuple[Lookup, Packet]:
        """Pass the output hook; return the route, and the packet after it."""
        lookup = self._looked_up(netns, packet)
        packet = self._entered(netns, packet)
        packet = msgspec.structs.replace(packet, ttl=lookup.hops or self._usual_hops(netns, packet, lookup.device))
        self._require_policy(netns, OUT, lookup.device, packet)
        out = lookup.device or "lo"
        found = netfilter_hooks.passed(self._asked, "output", Frame(packet, "", out, netns=netns, started=True))
        changed = self._after(found, netns, lookup.device if netns != HOST else "", packet)
        self._remember(netns, changed)
        changed = self._translated(netns, packet, changed, "", found.where)
        if found.rerouted:
            lookup = self._looked_up(netns, changed)
        return lookup, changed

    def _looped(self, netns: int, packet: Packet) -> None:
        """Send to the namespace itself, by its loopback device."""
        frame = Frame(packet, "", "lo", netns=netns)
        packet = self._after(netfilter_hooks.passed(self._asked, "postrouting", frame), netns, "lo", packet)
        packet = self._egress(msgspec.structs.replace(frame, packet=packet))
        packet = self._ingress(Frame(packet, "lo", netns=netns))
        self._received(netns, "lo", packet)

    def _usual_hops(self, netns: int, packet: Packet, device: str) -> int:
        path = "net/ipv4/ip_default_ttl" if packet.family == 4 else f"net/ipv6/conf/{device or 'lo'}/hop_limit"
        return int(self._asked.setting(netns, path) or 64)

    def _sent(self, netns: int, device: Device, packet: Packet) -> Packet:
        """Leave a container's namespace: its postrouting hook, and programs at its link."""
        frame = Frame(packet, "", device.name, netns=netns)
        found = netfilter_hooks.passed(self._asked, "postrouting", frame)
        after = self._after(found, netns, device.name, packet)
        self._remember(netns, after)
        after = self._unmasked(netns, packet, after, device.name, found.where)
        return self._egress(msgspec.structs.replace(frame, packet=after, mac=device.mac))

    def _entered(self, netns: int, packet: Packet) -> Packet:
        """Return the packet on its entry into a namespace: without the marks and connections of the one before."""
        mark: int | None = 0
        state = ""
        if packet.established:
            mark = self._translation.marks.get(netns, 0)
            state = "?" if netns in self._translation.untracked else ""
        return msgspec.structs.replace(packet, mark=0, ct=state, ct_mark=mark)

    def _remember(self, netns: int, packet: Packet) -> None:
        """Remember the state of the answer's connection in a namespace."""
        if packet.established:
            return
        self._translation.marks[netns] = packet.ct_mark
        if packet.ct == "untracked" and netns not in self._translation.untracked:
            self._translation.untracked.append(netns)

    # The host's side of a container's link.

    def _unheard(self, link: Device, packet: Packet) -> str:
        """Return why the host does not answer a sender's ARP: its route to the sender uses another link."""
        every = ("all", link.name)
        if packet.family != 4 or all(self._asked.setting(HOST, f"net/ipv4/conf/{i}/arp_filter") != "1" for i in every):
            return ""
        way = self._asked.route(HOST, Packet(b"", packet.source)).device
        if not way or way == link.name:
            return ""
        return f"arp_filter on {link.name} in host: the route back to {show(packet.source)} leads by {way}"

    def _into_host(self, endpoint: Endpoint, device: Device, following: bytes, packet: Packet) -> None:
        packet = self._entered(HOST, packet)
        link = self._usable(HOST, endpoint.host_ifname, packet)
        self._narrow(link.mtu)
        network = self._known.networks.get(endpoint.network)
        if network is not None and network.routed:
            if following not in self._asked.addresses(HOST) and not self._answers_for(following, link):
                raise self._broken(
                    HOST, link.name, packet, f"nobody answers for {show(following)} on {link.name}"
                )
            self._require_own(HOST, link, packet, guarded=True)
            why = f"ARP is off on {link.name} in host" if link.silent else self._unheard(link, packet)
            self._require_neighbour(endpoint.netns, device, following, link.mac, packet, why, (HOST, link.name))
            self._route(link.name, device.mac, packet)
            return
        bridge = self._bridge_of(link, network, packet)
        frame = self._admitted(bridge, link, Frame(packet, link.name, mac=device.mac))
        mac = self._mac(endpoint.netns, device, following, bridge, link, frame.packet)
        self._by_bridge(bridge, link, following, msgspec.structs.replace(frame, to_mac=mac))

    def _answers_for(self, address: bytes, link: Device) -> bool:
        """Return whether the host answers a link's questions for an address that it reaches elsewhere (proxy ARP)."""
        if len(address) != 4 or self._asked.setting(HOST, f"net/ipv4/conf/{link.name}/forwarding") != "1":
            return False
        either = (self._asked.setting(HOST, f"net/ipv4/conf/{name}/proxy_arp") for name in ("all", link.name))
        return "1" in either and self._asked.route(HOST, towards(address)).device not in ("", link.name)

    def _admitted(self, bridge: Device, link: Device, frame: Frame) -> Frame:
        """Receive a frame by a port of a bridge."""
        packet = self._ingress(frame)
        if link.port is not None and link.port.locked:
            self._require_unlocked(bridge, link, frame.mac, packet)
        frame = msgspec.structs.replace(frame, packet=packet)
        found = netfilter_hooks.passed_bridge(self._asked, "prerouting", frame)
        return msgspec.structs.replace(frame, packet=self._after(found, HOST, link.name, packet))

    def _by_bridge(self, bridge: Device, link: Device, following: bytes, frame: Frame) -> None:
        """Lead a frame that came by a port to the host itself, or to another port."""
        if frame.to_mac != bridge.mac:
            self._bridged(bridge, frame.to_mac, following, frame, link)
            return
        found = netfilter_hooks.passed_bridge(self._asked, "input", frame)
        packet = self._after(found, HOST, bridge.name, frame.packet)
        self._hop(HOST, bridge.name, "received", f"by port {link.name}, for the host to route", packet)
        self._route(bridge.name, frame.mac, packet)

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
        if link.port is not None and not link.port.forwards:
            raise self._broken(
                HOST, link.name, packet, f"port {link.name} of bridge {link.master} is not forwarding"
            )
        if bridge.filters:
            self._note(HOST, bridge.name, f"{bridge.name} filters by VLAN, which trace does not read", packet)
        return bridge

    def _require_unlocked(self, bridge: Device, link: Device, mac: bytes, packet: Packet) -> None:
        """Raise for a frame whose MAC has no FDB entry at a locked port (bridge(8))."""
        entry = self._asked.bridge_port(bridge.name, mac)
        if entry is None or entry.own or entry.port != link.name:
            reason = f"port {link.name} is locked, but the bridge's FDB does not have {mac_text(mac)} at it"
            raise self._broken(HOST, link.name, packet, reason)

    def _mac(
        self, netns: int, device: Device, following: bytes, bridge: Device, source: Device | None, packet: Packet
    ) -> bytes:
        """Return the next hop's MAC: from the neighbour table, or from an answer.

        A port that keeps packets from the next hop also keeps the request for its MAC from it, so that port
        is named first.
        """
        owner = self._known.holding(following)
        own, why, at = b"", "", (HOST, bridge.name)
        if self._asked.addresses(HOST).get(following) == bridge.name:
            own = bridge.mac
        elif owner is not None and following in self._asked.addresses(owner.netns):
            found = self._asked.device(owner.netns, owner.ifname)
            own = found.mac if found is not None else b""
            port = self._usable(HOST, owner.host_ifname, packet)
            self._bridge_of(port, self._known.networks.get(owner.network), packet)
            self._require_port(bridge, port, source, own, packet, flooded=False)
            why, at = self._silent(owner, found), (owner.netns, owner.ifname)
        elif owner is not None:
            why = f"its address is missing in {self._known.name(owner.netns)}, or the interface {owner.ifname} is"
        elif far := self._known.beyond(following):
            why = f"{far.name or far.id[:12]} of another host has it, and no port of {bridge.name} leads there"
        else:
            why = f"no container has it and it is not on {bridge.name}"
        return self._require_neighbour(netns, device, following, own, packet, why, at)

    def _bridged(self, bridge: Device, mac: bytes, following: bytes, frame: Frame, source: Device | None) -> None:
        """Send a frame by a bridge's port: one that came by the port ``source``, or the host's own."""
        packet = frame.packet
        call = {4: "bridge-nf-call-iptables", 6: "bridge-nf-call-ip6tables"}[packet.family]
        every = self._asked.setting(HOST, f"net/bridge/{call}")  # '': br_netfilter is not loaded
        if source is not None and (every == "1" or (every and packet.family in bridge.calls)):
            packet = self._seen_by_ip(bridge, source, msgspec.structs.replace(frame, to_mac=mac))
        owner = self._known.holding(following)
        learnt = self._asked.bridge_port(bridge.name, mac)
        port = learnt.port if learnt is not None else owner.host_ifname if owner else self._stretch(bridge)
        endpoint = self._known.behind(port)
        leads = endpoint is not None or (bool(port) and port == self._stretch(bridge))
        if learnt is not None and learnt.own:
            raise self._broken(HOST, bridge.name, packet, f"the bridge's FDB has {mac_text(mac)} as the host's own")
        if not leads or (owner is not None and port != owner.host_ifname):
            behind = self._known.name(endpoint.netns) if endpoint else "no container"
            told = f"port {port}, which leads to {behind}" if port else "no port"
            raise self._broken(HOST, bridge.name, packet, f"the bridge's FDB leads {mac_text(mac)} to {told}")
        link = self._usable(HOST, port, packet)
        self._bridge_of(link, self._known.networks.get(endpoint.network) if endpoint else None, packet)
        self._require_port(bridge, link, source, mac, packet, flooded=learnt is None)
        frame = msgspec.structs.replace(frame, packet=packet, leaving=port, to_mac=mac)
        for hook in ("output" if source is None else "forward", "postrouting"):
            packet = self._after(netfilter_hooks.passed_bridge(self._asked, hook, frame), HOST, bridge.name, packet)
            frame = msgspec.structs.replace(frame, packet=packet)
        how = "FDB" if learnt is not None else "flooded, not learnt yet"
        self._narrow(bridge.mtu, link.mtu)
        self._hop(
            HOST, bridge.name, "bridged", f"{mac_text(mac)} is behind port {port} ({how})", packet, port
        )
        frame = msgspec.structs.replace(frame, packet=self._egress(frame))
        if endpoint is not None:
            self._into_container(endpoint, frame.packet, frame)
        else:
            self._stretched(link, frame)

    def _stretch(self, bridge: Device) -> str:
        """Return the port that is a tunnel to the same bridge of other hosts, '' if none is."""
        wires = {one.device for one in self._asked.tunnels() if one.kind == VXLAN}
        return next((port for port in self._asked.below(HOST, bridge.name) if port in wires), "") if wires else ""

    def _stretched(self, link: Device, frame: Frame) -> None:
        """Send a frame by such a port; one host alone has none."""
        raise NotImplementedError

    def _seen_by_ip(self, bridge: Device, source: Device, frame: Frame) -> Packet:
        """Pass a bridged frame through the IP hooks, as br_netfilter does: in and out by the bridge."""
        for hook in ("prerouting", "forward", "postrouting"):
            leaving = "" if hook == "prerouting" else bridge.name
            frame = msgspec.structs.replace(frame, arriving=bridge.name, leaving=leaving)
            device = source.name if hook == "prerouting" else bridge.name
            before, found = frame.packet, netfilter_hooks.passed(self._asked, hook, frame)
            after = self._after(found, HOST, device, before)
            if (after.source, after.target, after.port) != (before.source, before.target, before.port):
                self._note(HOST, device, f"{found.where} translates what the bridge passes on", before)
                after = msgspec.structs.replace(
                    after, source=before.source, target=before.target, port=before.port, translated=before.translated
                )
            frame = msgspec.structs.replace(frame, packet=after)
            self._remember(HOST, after)
        return frame.packet

    def _require_port(
        self, bridge: Device, link: Device, source: Device | None, mac: bytes, packet: Packet, *, flooded: bool
    ) -> None:
        port = link.port or Port()
        if port.isolated and source is not None and source.port is not None and source.port.isolated:
            reason = f"ports {source.name} and {link.name} of bridge {bridge.name} are isolated from each other"
            raise self._broken(HOST, link.name, packet, reason)
        if flooded and not port.floods:
            reason = f"bridge {bridge.name} has not learnt {mac_text(mac)}, and floods nothing to port {link.name}"
            raise self._broken(HOST, link.name, packet, reason)

    # The host as a router.

    def _route(self, arriving: str, mac: bytes, packet: Packet) -> None:
        before = packet
        frame = Frame(packet, arriving, mac=mac)
        packet, early = self._ingressed(frame)
        if any(early.forwarded):
            self._forwarded(arriving, early, packet)
            return
        frame = msgspec.structs.replace(frame, packet=packet)
        found = netfilter_hooks.passed(self._asked, "prerouting", frame, self._restored)
        packet = self._after(found, HOST, arriving, frame.packet)
        self._remember(HOST, packet)
        if packet.established and packet.target != before.target:
            self._hop(HOST, arriving, "translated", f"masquerade undone: to {show(packet.target)}", packet)
        else:
            packet = self._translated(HOST, before, packet, arriving, found.where)
        lookup = self._looked_up(HOST, packet, arriving)
        if lookup.kind == LOCAL:
            found = netfilter_hooks.passed(self._asked, "input", Frame(packet, arriving, mac=mac), self._unpublished)
            after = self._after(found, HOST, arriving, packet)
            self._remember(HOST, after)
            if not packet.established:
                after = self._unmasked(HOST, packet, after, arriving, found.where)
            packet = self._untranslated(packet, after, arriving)
            self._require_policy(HOST, IN, arriving, packet)
            self._delivered(HOST, arriving, packet)
            return
        if packet.family == 6 and self._asked.setting(HOST, "net/ipv6/conf/all/forwarding") == "0":
            raise self._broken(HOST, arriving, packet, forwarding_off(6, "all"))
        self._require_policy(HOST, FORWARD, arriving, packet)
        packet = self._counted_down(arriving, packet)
        self._require_policy(HOST, OUT, lookup.device, packet)
        device = self._usable(HOST, lookup.device, packet)
        self._narrow(device.mtu, lookup.mtu)
        frame = Frame(packet, arriving, device.name, mac)
        packet = self._after(netfilter_hooks.passed(self._asked, "forward", frame), HOST, device.name, packet)
        self._remember(HOST, packet)
        self._hop(HOST, device.name, "routed", _way(lookup), packet)
        packet = self._posted(Frame(packet, arriving, device.name, mac), device.name)
        self._out_of_host(device, lookup, packet)

    def _forwarded(self, arriving: str, found: Verdict, packet: Packet) -> None:
        """Send it by the link that a chain at its ingress names: no other hook of the host sees it."""
        name, to = found.forwarded
        packet = self._counted_down(arriving, packet)
        device = self._usable(HOST, name, packet)
        self._narrow(device.mtu)
        detail = f"chain {found.where} sends it to {to} by itself, before connection tracking and all rules"
        self._hop(HOST, device.name, "forwarded", detail, packet)
        following = socket.inet_pton(SOCKET_FAMILY[packet.family], to)
        self._out_of_host(device, Lookup(gateway=following), packet)

    def _counted_down(self, arriving: str, packet: Packet) -> Packet:
        """Return the packet with its TTL after one more router."""
        if packet.ttl <= 1:
            by = f", which {packet.ttl_by} has set" if packet.ttl_by else ""
            raise self._broken(HOST, arriving, packet, f"its TTL expires here{by}")
        return msgspec.structs.replace(packet, ttl=packet.ttl - 1)

    def _posted(self, frame: Frame, device: str) -> Packet:
        """Pass the host's postrouting hook, which may change the source."""
        packet = frame.packet
        found = netfilter_hooks.passed(self._asked, "postrouting", frame, self._unpublished)
        changed = self._after(found, HOST, device, packet)
        self._remember(HOST, changed)
        if packet.established:
            return self._untranslated(packet, changed, device)
        if found.masked:
            self._translation.masked = (packet.source, changed.source)
            detail = f"the source is {show(changed.source)} now ({found.where})"
            self._hop(HOST, device, "masqueraded", detail, changed)
        return changed

    def _out_of_host(self, device: Device, lookup: Lookup, packet: Packet) -> None:
        following = lookup.gateway or packet.target
        packet = self._egress(Frame(packet, "", device.name, device.mac))
        if device.kind == "bridge" and any(n.bridge == device.name for n in self._known.networks.values()):
            mac = self._mac(HOST, device, following, device, None, packet)
            self._bridged(device, mac, following, Frame(packet, "", "", device.mac, mac), None)
            return
        endpoint = self._known.behind(device.name)
        if endpoint is not None:
            there = self._asked.device(endpoint.netns, endpoint.ifname)
            if following in self._asked.addresses(endpoint.netns) and there is not None:
                why = self._silent(endpoint, there)
                at = endpoint.netns, endpoint.ifname
                self._require_neighbour(HOST, device, following, there.mac, packet, why, at)
            self._into_container(endpoint, packet, Frame(packet, "", "", device.mac))
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
        self._beyond_us(packet.target)

    def _into_container(self, endpoint: Endpoint, packet: Packet, frame: Frame) -> None:
        netns = endpoint.netns
        packet = self._entered(netns, packet)
        device = self._usable(netns, endpoint.ifname, packet)
        self._narrow(device.mtu)
        if packet.target not in self._asked.addresses(netns):
            where = f"{device.name} of {self._known.name(netns)}"
            raise self._broken(
                netns, device.name, packet, f"address {show(packet.target)} is missing on {where}"
            )
        self._require_own(netns, device, packet)
        frame = Frame(packet, device.name, "", frame.mac, device.mac, netns)
        self._received(netns, device.name, self._ingress(frame), frame.mac)

    def _received(self, netns: int, arriving: str, packet: Packet, mac: bytes = b"") -> None:
        """Receive a packet for the namespace itself: its own hooks, route and policies."""
        frame = Frame(packet, arriving, mac=mac, netns=netns)
        found = netfilter_hooks.passed(self._asked, "prerouting", frame)
        changed = self._after(found, netns, arriving, packet)
        self._remember(netns, changed)
        changed = self._translated(netns, packet, changed, arriving, found.where)
        if arriving != "lo":
            self._looked_up(netns, changed, arriving)
        before, found = (
            changed,
            netfilter_hooks.passed(self._asked, "input", msgspec.structs.replace(frame, packet=changed)),
        )
        changed = self._after(found, netns, arriving, before)
        self._remember(netns, changed)
        changed = self._unmasked(netns, before, changed, arriving, found.where)
        self._require_policy(netns, IN, arriving, changed)
        self._delivered(netns, arriving, changed)

    # Translation, both ways.

    def _translated(self, netns: int, before: Packet, after: Packet, device: str, where: str) -> Packet:
        """Report a changed destination; a container's own translation is not followed."""
        if after.target == before.target and after.port == before.port:
            return after
        if netns != HOST:
            self._note(netns, device, f"rules of its own lead it to {show(after.target)} ({where})", before)
            return msgspec.structs.replace(after, target=before.target, port=before.port, translated=before.translated)
        self._translation.dnat = before
        port = f" port {after.port}" if after.port else ""
        ours = where.split()[1:2] == [TABLE]
        what = ("a DNS query: " if where.split()[2:3] == ["asked"] else "published port: ") if ours else ""
        detail = f"{what}now to {show(after.target)}{port}" + ("" if what else f" ({where})")
        self._hop(HOST, device, "translated", detail, after)
        return after

    def _unmasked(self, netns: int, before: Packet, after: Packet, device: str, where: str) -> Packet:
        """Note a source that only the namespace's own rules change: the walk does not follow it."""
        if after.source == before.source:
            return after
        self._note(netns, device, f"rules of its own change its source to {show(after.source)} ({where})", before)
        return msgspec.structs.replace(after, source=before.source, source_port=before.source_port)

    def _restored(self, packet: Packet) -> Packet:
        """Undo masquerade on an answer, as connection tracking does before routing."""
        masked = self._translation.masked
        if packet.established and not packet.ct and masked and packet.target == masked[1]:
            return msgspec.structs.replace(packet, target=masked[0])
        return packet

    def _unpublished(self, packet: Packet) -> Packet:
        """Give an answer the source that the client asked, as connection tracking does after routing."""
        dnat = self._translation.dnat
        if not packet.established or packet.ct or dnat is None or packet.source == dnat.target:
            return packet
        return msgspec.structs.replace(packet, source=dnat.target, source_port=dnat.port)

    def _untranslated(self, before: Packet, after: Packet, device: str) -> Packet:
        """Report an answer's restored source."""
        if after.source != before.source:
            self._hop(HOST, device, "translated", f"published port undone: from {show(after.source)}", after)
        return after

    # Hops and notes.

    def _delivered(self, netns: int, device: str, packet: Packet) -> None:
        path = {4: "net/ipv4/icmp_echo_ignore_all", 6: "net/ipv6/icmp/echo_ignore_all"}[packet.family]
        if packet.protocol == "icmp" and not packet.established and self._asked.setting(netns, path) == "1":
            reason = f"{self._known.name(netns)} answers no ping ({path.replace('/', '.')}=1)"
            raise self._broken(netns, device, packet, reason)
        if packet.protocol == "icmp" and not packet.established and (limit := self._limit(netns, packet.family)):
            self._note(netns, device, f"{self._known.name(netns)} limits its answers to pings ({limit})", packet)
        self.end = netns
        self._arrived(packet)
        detail = "the packet has arrived"
        if not packet.established:
            self.listens = self._asked.listens(netns, packet) if packet.has_ports else None
        if self.listens is False:
            detail += f"; nothing listens on {packet.port}/{packet.protocol}, so the answer is a refusal"
        self._hop(netns, device, "delivered", detail, packet)

    def _limit(self, netns: int, family: int) -> str:
        """Return the settings by which a namespace limits its answers to pings, '' if it does not (ip-sysctl)."""
        if family == 4:
            limit, mask = (self._asked.setting(netns, f"net/ipv4/icmp_rate{what}") for what in ("limit", "mask"))
            limited = int(mask or 0) & 1 << _ECHO_REPLY[4]
        else:
            limit, mask = (self._asked.setting(netns, f"net/ipv6/icmp/rate{what}") for what in ("limit", "mask"))
            spans = (part.partition("-") for part in mask.split(",") if part)
            limited = any(int(first) <= _ECHO_REPLY[6] <= int(last or first) for first, _, last in spans)
        separator = "_" if family == 4 else "."
        prefix = f"net.ipv{family}.icmp{separator}"
        return f"{prefix}ratelimit={limit}, {prefix}ratemask={mask}" if limited and limit not in ("", "0") else ""

    def _arrived(self, packet: Packet) -> None:
        if not packet.established:
            self._translation.arrived = packet


def sourced(asked: KernelView, known: Map, netns: int, packet: Packet) -> Packet:
    """Return the packet with the source that a program gets without bind: the route's.

    An address of another interface of linkspan's is not used: a user who names an endpoint means its own.
    """
    if packet.bound or packet.established:
        return packet
    source = asked.route(netns, msgspec.structs.replace(packet, source=b"")).source
    own = {p.packed for e in known.endpoints if e.netns == netns for p in e.prefixes}
    return packet if not source or source in own else msgspec.structs.replace(packet, source=source)


def _way(lookup: Lookup) -> str:
    via = f" via {show(lookup.gateway)}" if lookup.gateway else ""
    return f"route {lookup.matched or '?'}{via} dev {lookup.device}" + (f", {lookup.learnt}" if lookup.learnt else "")
