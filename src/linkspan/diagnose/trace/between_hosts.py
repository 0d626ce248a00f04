"""Walk between hosts: where a packet leaves one host for another, and where it arrives.

Out: a device that encapsulates finds its far end by the neighbour table and its FDB (VXLAN), the route's next
hop (IPIP) or the helper's table. Then the outer packet is routed, and the walk asks whether the next hop on
the underlay answers. In: the outer packet passes the underlay's link and the input chain, the device unwraps,
and the inner packet continues like any that the host routes: first comes the guard of its source.
"""

from __future__ import annotations

import msgspec

from linkspan.core.addresses import BITS, Prefix, mac, mac_text
from linkspan.core.model import CONTROLLER
from linkspan.core.states.host import HOST
from linkspan.core.states.wireguard import key_id
from linkspan.core.wire import ESP, VXLAN, WIREGUARD, Wire
from linkspan.diagnose.trace import netfilter_hooks
from linkspan.diagnose.trace.hops import OUTSIDE, Broken, Map, Translation, show
from linkspan.diagnose.trace.kernel_view import IN, LOCAL, OUT, Device, KernelView, Secured, client_ports
from linkspan.diagnose.trace.packet import Outer, Packet, towards
from linkspan.diagnose.trace.parts import Entry, Part
from linkspan.diagnose.trace.verdict import Frame
from linkspan.diagnose.trace.walk import Walk

_SIZES = (100, 576, 1000, 1200, 1280, 1300, 1350, 1380, 1400, 1420, 1450, 1472, 1480, 1492, 1500, 4000, 8950)
"""Sizes in bytes to try if full-sized packets do not pass: between the usual MTUs of links and tunnels."""


def part(asked: KernelView, known: Map, entry: Entry) -> Part:
    """Walk through this host."""
    return walked(Crossing(asked, known, entry.translation), entry)


def walked(walk: Crossing, entry: Entry) -> Part:
    """Take a walk that begins at an entry."""
    broken = ""
    try:
        if entry.netns not in (OUTSIDE, HOST):
            walk.from_container(entry.netns, entry.packet)
        elif entry.netns == HOST:
            walk.from_host(entry.packet)
        elif entry.at:
            walk.from_peer(entry.at, entry.outer, entry.packet, entry.macs)
        else:
            walk.from_outside(entry.device or walk.expected(entry.packet), entry.packet)
    except Broken as error:
        broken = error.reason
    return Part(
        tuple(walk.hops), walk.mtu, walk.end, walk.exit, entry.translation, walk.last or entry.packet,
        walk.to, walk.at, walk.left_in, walk.frame, broken, walk.silent, tuple(walk.unknown), walk.listens,
    )  # fmt: skip


class Crossing(Walk):
    """The walk through a host that has peers."""

    def __init__(self, asked: KernelView, known: Map, translation: Translation) -> None:
        super().__init__(asked, known, translation)
        self.to = ""
        self.at = b""
        self.left_in: Outer | None = None
        self.frame = (b"", b"")
        self.last: Packet | None = None
        self.silent = ""

    # Out.

    def _leave(self, device: Device, following: bytes, packet: Packet) -> None:
        self._doubt_silent(device, packet)
        if any(following in gateway.addresses for gateway in self._known.gateways):
            self._steer(device, following, packet)
            return
        tunnel = next((t for t in self._asked.tunnels() if t.device == device.name), None)
        if tunnel is not None and tunnel.kind == WIREGUARD:
            self._encrypt(device, packet)
            return
        if tunnel is not None and tunnel.kind == ESP:
            self._associate(device, packet)
            return
        if tunnel is not None:
            self._wrap(tunnel, device, following, packet)
            return
        peer = next((a for a in (following, packet.target) if a in self._known.peers), b"")
        if not peer and self._asked.route(HOST, towards(packet.target)).learnt:
            peer = self._beyond(following, packet.target)
        if not peer:
            super()._leave(device, following, packet)
            return
        source = self._asked.route(HOST, towards(peer)).source
        self._cross(device, source, following, peer, packet)

    def _doubt_silent(self, device: Device, packet: Packet) -> None:
        """Doubt the path to a host that does not answer this host's own pings in the network, which use it, too."""
        if not self._known.silent:
            return
        network, host = self._network(packet.target), self._known.elsewhere(packet.target)
        if why := self._known.silent.get((network, host, packet.family), ""):
            told = f"host {self._host(host)} does not answer this host's pings in network {network}: {why}"
            self._note(HOST, device.name, told, packet)

    def _network(self, address: bytes) -> str:
        """Return the network whose pool has an address; '' if none has."""
        one = Prefix(address, BITS[4 if len(address) == 4 else 6])
        found = (n.name for n in self._known.networks.values() if any(pool.holds(one) for pool in n.prefixes))
        return next(found, "")

    def _steer(self, device: Device, gateway: bytes, packet: Packet) -> None:
        """Send it to the gateway that is an underlay's switches: their controller continues the walk."""
        here = self._known.underlay
        self.exit, self.last = device.name, packet
        self._arrived(packet)
        self._hop(HOST, device.name, "left", f"towards the gateway {show(gateway)}, the switches", packet)
        self.to = CONTROLLER
        self.at = here.bound(here.outer) if here is not None else b""

    def _beyond(self, router: bytes, target: bytes) -> bytes:
        """Return the underlay address, of the router's family, of the host that has an address; b'' for none.

        Routers that have announced the route cannot be asked: the walk believes them.
        """
        host = self._known.elsewhere(target)
        own = self._known.others[host].addresses.get("", ()) if host else ()
        return next((a for a in own if len(a) == len(router) and a in self._known.peers), b"")

    def _wrap(self, tunnel: Wire, device: Device, following: bytes, packet: Packet) -> None:
        far, how = self._far_end(tunnel, device, following, packet)
        mac = self._mac_of_far(tunnel, device, following)
        self._tunnelled(tunnel, device, far, how, packet, (device.mac if mac else b"", mac))

    def _stretched(self, link: Device, frame: Frame) -> None:
        """Wrap a frame for the host that has its destination's MAC by the tunnel's FDB."""
        tunnel = next(one for one in self._asked.tunnels() if one.device == link.name)
        far = self._asked.remote(link.name, frame.to_mac, b"")
        if not far:
            reason = f"{link.name} has no forwarding entry (FDB) of {mac_text(frame.to_mac)}, and none for all MACs"
            raise self._broken(HOST, link.name, frame.packet, reason)
        how = f"{mac_text(frame.to_mac)} is behind {show(far)} (FDB)"
        self._tunnelled(tunnel, link, far, how, frame.packet, (frame.mac, frame.to_mac))

    def _mac(
        self, netns: int, device: Device, following: bytes, bridge: Device, source: Device | None, packet: Packet
    ) -> bytes:
        far = self._known.beyond(following)
        if far is None or not self._stretch(bridge):
            return super()._mac(netns, device, following, bridge, source, packet)
        # What asks for its MAC takes the frame's own way, which the walk follows next.
        own, entry = mac(far.mac), self._asked.neighbour(netns, device.name, following)
        if entry is not None and entry.known and entry.mac != own:
            where, told = self._known.name(netns), mac_text(entry.mac)
            reason = f"{where} has {told} as the neighbour {show(following)}, whose MAC is {far.mac}"
            raise self._broken(netns, device.name, packet, reason)
        return own

    def _tunnelled(
        self, tunnel: Wire, device: Device, far: bytes, how: str, packet: Packet, macs: tuple[bytes, bytes]
    ) -> None:
        """Wrap it for a far end; ``macs`` are those of the frame inside, b'' if there is none."""
        # A kernel device keeps the packet's mark; a program sends a packet of its own.
        mark = packet.mark if device.kind != "tun" else 0
        ports = client_ports(self._asked, HOST) if tunnel.kind == VXLAN else (0, 0)
        outer = Outer(tunnel.kind, tunnel.local, far, tunnel.port, tunnel.vni, ports=ports)
        wire = msgspec.structs.replace(outer.packet(), mark=mark)
        if tunnel.local:
            self._require_source(HOST, wire)
        lookup = self._looked_up(HOST, wire)
        if lookup.kind == LOCAL:
            raise self._broken(HOST, device.name, packet, f"{show(far)} is an address of this host itself")
        wire = msgspec.structs.replace(wire, source=tunnel.local or lookup.source)
        self._outer = msgspec.structs.replace(outer, source=wire.source, mac=macs[0], to_mac=macs[1])
        link = self._usable(HOST, lookup.device, packet)
        self._narrow(min(link.mtu, lookup.mtu or link.mtu) - self._outer.overhead)
        self._hop(HOST, device.name, "encapsulated", how, packet)
        self._emitted(link, wire)
        self._cross(link, wire.source, lookup.gateway or far, far, packet)

    def _encrypt(self, device: Device, packet: Packet) -> None:
        """Wrap it for the peer that has the destination, identified by its key, because its address may roam."""
        found = self._asked.secured(packet.target)
        if found is None:
            reason = f"no peer of {device.name} has {show(packet.target)} as an allowed IP"
            raise self._broken(HOST, device.name, packet, reason)
        host = self._known.keys.get(found.key, "")
        name = self._known.others[host].name if host in self._known.others else "an unknown host"
        key = key_id(found.key)
        if not found.remote:
            reason = f"{name}, key {key}, must contact this host from behind its NAT, and has not done so yet"
            raise self._broken(HOST, device.name, packet, reason)
        if not found.proven:
            self.silent = f"{name} has not answered WireGuard's handshake: nobody there has the key {key}"
        ports = found.own_port, found.own_port
        outer = Outer(WIREGUARD, b"", found.remote, found.port, key=found.own, ports=ports)
        how = f"by WireGuard for {name}, key {key}, {_proof(found)}{self._goes_on(host, packet.target)}"
        self._sealed(outer, device, how, packet, host)

    def _associate(self, device: Device, packet: Packet) -> None:
        """Wrap it by the ESP association that has its destination."""
        found = self._asked.associated(packet.target)
        if found is None:
            reason = f"no IPsec association is up for {show(packet.target)} (`linkspan status` shows why)"
            raise self._broken(HOST, device.name, packet, reason)
        outer = Outer(ESP, b"", found.remote, found.port, key=found.spi_out, ports=(found.port, found.port))
        how = f"by IPsec for {self._host(found.host)}, {found.cipher}, SPI {found.spi_out}"
        self._sealed(outer, device, how, packet, found.host)

    def _sealed(self, outer: Outer, device: Device, how: str, packet: Packet, host: str = "") -> None:
        """Encrypt it, and send it to the outer packet's destination; ``host`` is whose that is, if it may roam."""
        lookup = self._looked_up(HOST, outer.packet())
        self._outer = msgspec.structs.replace(outer, source=outer.source or lookup.source)
        wire = self._outer.packet()
        link = self._usable(HOST, lookup.device, packet)
        self._narrow(min(link.mtu, lookup.mtu or link.mtu) - self._outer.overhead)
        self._hop(HOST, device.name, "encrypted", how, packet)
        self._emitted(link, wire)
        self._cross(link, wire.source, lookup.gateway or outer.target, outer.target, packet, host)

    def _emitted(self, link: Device, wire: Packet) -> None:
        """Pass the outer packet through the host's hooks, and out of the underlay's link."""
        self._require_policy(HOST, OUT, link.name, wire)
        for hook in ("output", "postrouting"):
            frame = Frame(wire, "", link.name, started=True)
            found = netfilter_hooks.passed(self._asked, hook, frame)
            after = self._after(found, HOST, link.name, wire)
            if (after.source, after.target, after.port) != (wire.source, wire.target, wire.port):
                self._note(HOST, link.name, f"{found.where} translates what is around the packet", wire)
            wire = msgspec.structs.replace(wire, mark=after.mark, ct=after.ct)
        if self._outer is not None:  # without encapsulation, the packet itself has passed there
            self._egress(Frame(wire, "", link.name, link.mac))

    def _host(self, id_: str) -> str:
        return self._known.others[id_].name if id_ in self._known.others else "an unknown host"

    def _goes_on(self, host: str, target: bytes) -> str:
        """Return a note if a packet is encrypted for another host than the one that has its destination."""
        holder = self._known.elsewhere(target)
        if holder in ("", host):
            return ""
        return f"; that host forwards it to {self._host(holder)}, because NATs keep the two apart"

    def _far_end(self, tunnel: Wire, device: Device, following: bytes, packet: Packet) -> tuple[bytes, str]:
        """Return the underlay address to which the tunnel sends, and how it is found."""
        name = device.name
        if tunnel.kind == VXLAN:
            mac = self._mac_of_far(tunnel, device, following)
            if not mac:
                raise self._broken(HOST, name, packet, f"{name} has no neighbour entry of {show(following)}")
            far = self._asked.remote(name, mac, b"")
            if not far:
                reason = (
                    f"{name} has no forwarding entry (FDB) of {mac_text(mac)}, which {show(following)} has"
                )
                raise self._broken(HOST, name, packet, reason)
            return far, f"neighbour {show(following)} is {mac_text(mac)}, which is behind {show(far)} (FDB)"
        if tunnel.remote:
            return tunnel.remote, f"{name} has one far end, {show(tunnel.remote)}"
        if following != packet.target:
            return following, f"the route's next hop is the far end, {show(following)}"
        if far := self._asked.remote(name, b"", packet.target):
            return far, f"{show(packet.target)} is behind {show(far)} (the helper's table)"
        if far := self._asked.exit(packet.source):
            return far, f"{show(packet.source)} leaves to the outside by {show(far)} (the helper's table)"
        reason = f"the table of {name}'s helper has no row for {show(packet.target)}"
        raise self._broken(HOST, name, packet, reason)

    def _mac_of_far(self, tunnel: Wire, device: Device, following: bytes) -> bytes:
        if tunnel.kind != VXLAN:
            return b""
        entry = self._asked.neighbour(HOST, device.name, following)
        return entry.mac if entry is not None and entry.known else b""

    def _cross(
        self, link: Device, source: bytes, following: bytes, target: bytes, packet: Packet, host: str = ""
    ) -> None:
        """Send it, wrapped or not, over the underlay to the host that has ``target``, or is in front of it."""
        self.exit, self.left_in, self.last = link.name, self._outer, packet
        self._arrived(packet)
        self.to, self.at = host or self._known.peers.get(target, ""), target
        if host and self._known.peers.get(target) != host:
            own = self._known.others[host].addresses.get("", ())
            self.at = next((a for a in own if len(a) == len(target)), target)
        if not self.to:
            reason = f"no host of the cluster has the underlay address {show(target)}"
            raise self._broken(HOST, link.name, packet, reason)
        where = f"towards {show(target)}"
        if following == target:
            self._hop(HOST, link.name, "left", where, packet)
        answer = self._asked.answering(HOST, link.name, source, following)
        answers = answer is not None
        if following != target:
            told = self._past_router(source, following, target, packet) if answers else ""
            self._hop(HOST, link.name, "left", f"{where} through router {show(following)}{told}", packet)
        entry = self._asked.neighbour(HOST, link.name, following)
        if entry is None or not entry.known:
            entry = None
            self._require_asking(HOST, link, following, packet)
        # An answer that another device takes from the link is not received, and is not needed if the MAC is
        # known.
        taken = link.master or self._asked.takers(HOST, link.name)
        if not answers and not (entry is not None and taken):
            self.silent = self.silent or f"{show(following)} does not answer on {link.name}, the underlay"
        known = entry.mac if entry is not None else answer or b""
        if answer and known != answer:
            wrong = f"this host has {mac_text(known)} as the neighbour {show(following)}"
            reason = f"{wrong}, which itself answers with {mac_text(answer)}"
            raise self._broken(HOST, link.name, packet, reason)
        if link.silent:
            reason = f"ARP is off on {link.name} of this host, so {show(following)} is not asked for its MAC"
            raise self._broken(HOST, link.name, packet, reason)
        self.frame = (link.mac, known) if following == target else (b"", b"")

    def _past_router(self, source: bytes, router: bytes, target: bytes, packet: Packet) -> str:
        """Find out what a router, which nobody can ask, lets through; return the note about it.

        It pings the peer's own address in the packet's network: by exactly the packet's path.
        """
        sizes = [*(size for size in _SIZES if size < self.mtu), self.mtu]
        outer = self._asked.passing(source, target, _SIZES[:1])  # first: a router limits its error messages per second
        inner = self._own_addresses(packet) or (source, target)
        passed = self._asked.passing(*inner, sizes)
        if passed.largest == self.mtu:
            return ""
        if passed.largest:
            said = f" ({passed.said})" if passed.said else ""
            told = f"; packets of {self.mtu} bytes do not pass it{said}, of {passed.largest} bytes they do"
            self._narrow(passed.largest)
            return told
        what = self._outer.packet().protocol if self._outer else packet.protocol
        if outer.largest:
            self.silent = (
                f"past router {show(router)} {show(target)} answers pings, but nothing comes back by {what}"
            )
        else:
            said = (
                f": {outer.said or passed.said}" if outer.said or passed.said else ", and no router says why"
            )
            self.silent = f"past router {show(router)} {show(target)} does not answer{said}"
        return ""

    def _own_addresses(self, packet: Packet) -> tuple[bytes, bytes] | None:
        """Return this host's and the next host's own addresses in the network of the packet's destination."""
        name = self._network(packet.target)
        found = self._known.others[self.to].addresses.get(name, ()) if self.to in self._known.others else ()
        peer = next((a for a in found if len(a) == len(packet.target)), b"")
        mine = self._asked.route(HOST, towards(peer)).source if peer else b""
        return (mine, peer) if mine else None

    # In.

    def from_peer(self, at: bytes, outer: Outer | None, packet: Packet, macs: tuple[bytes, bytes]) -> None:
        """Receive a packet that another host sent to the underlay address ``at``."""
        self._outer = outer
        name, at = self._underlay(at, packet)
        link = self._usable(HOST, name, packet)
        packet = self._entered(HOST, packet)
        self._narrow(link.mtu - (outer.overhead if outer else 0))
        self._hop(HOST, name, "received", f"at {show(at)}", packet)
        sender, mac = macs if outer is None or outer.target == at else (b"", b"")  # a NAT sends frames of its own
        if mac and len(link.mac) == len(mac) and mac != link.mac:
            reason = f"the frame is for {mac_text(mac)}, and {name} is {mac_text(link.mac)}"
            raise self._broken(HOST, name, packet, reason)
        self._require_own(HOST, link, packet)
        if outer is None:
            sender = self._gateway_of(packet) or sender or self._sender(name, packet.source)
            self._route(name, sender, packet)
            return
        wire = msgspec.structs.replace(outer, target=at).packet()
        frame = Frame(wire, name, "", sender or self._sender(name, wire.source), link.mac)
        for hook in ("ingress", "prerouting", "input"):
            if hook == "ingress":
                wire = self._ingress(frame)
            else:
                found = netfilter_hooks.passed(self._asked, hook, frame)
                after = self._after(found, HOST, name, wire)
                if (after.target, after.port) != (wire.target, wire.port):
                    self._note(HOST, name, f"{found.where} translates what is around the packet", wire)
                wire = msgspec.structs.replace(wire, mark=after.mark, ct=after.ct)
            frame = msgspec.structs.replace(frame, packet=wire)
            if hook == "prerouting":
                self._looked_up(HOST, wire, name)
        self._require_policy(HOST, IN, name, wire)
        device = self._unwrapping(outer, at, name, packet)
        self._outer = None
        if outer.kind == WIREGUARD:
            self._decrypted(device, outer, packet)
        elif outer.kind == ESP:
            packet = msgspec.structs.replace(packet, mark=self._authenticated(device, outer, packet))
        else:
            if device.kind != "tun":  # the kernel unwraps the packet itself, and keeps its mark
                packet = msgspec.structs.replace(packet, mark=wire.mark)
            self._hop(HOST, device.name, "decapsulated", f"from {show(outer.source)}", packet)
        if device.port is None:
            self._route(device.name, outer.mac, packet)
            return
        bridge = self._bridge_of(device, None, packet)
        frame = self._admitted(bridge, device, Frame(packet, device.name, "", outer.mac, outer.to_mac))
        self._by_bridge(bridge, device, packet.target, frame)

    def _gateway_of(self, packet: Packet) -> bytes:
        """Return the MAC from which switches send a packet; b'' if it came through none."""
        source = Prefix(packet.source, BITS[packet.family])
        found = (g.mac for g in self._known.gateways if any(pool.holds(source) for pool in g.pools))
        return next(found, b"")

    def _decrypted(self, device: Device, outer: Outer, packet: Packet) -> None:
        host = self._known.keys.get(outer.key, "")
        name = self._known.others[host].name if host in self._known.others else "an unknown host"
        found = self._asked.secured(packet.source)
        if found is None or found.key != outer.key:
            reason = f"{show(packet.source)} is no allowed IP of {name}, key {key_id(outer.key)}"
            raise self._broken(HOST, device.name, packet, reason)
        self._hop(
            HOST, device.name, "decrypted", f"by WireGuard from {name}, key {key_id(outer.key)}", packet
        )

    def _authenticated(self, device: Device, outer: Outer, packet: Packet) -> int:
        """Return the packet's mark after authentication."""
        found = self._asked.associated(packet.source, outer.key)
        if found is None:
            why = "this host's daemon restarted, and the other host has not noticed yet"
            reason = f"no IPsec association of this host has the SPI {outer.key}: {why}"
            raise self._broken(HOST, device.name, packet, reason)
        how = f"by IPsec from {self._host(found.host)}, {found.cipher}, SPI {outer.key}"
        self._hop(HOST, device.name, "decrypted", how, packet)
        return found.mark

    def _underlay(self, at: bytes, packet: Packet) -> tuple[str, bytes]:
        """Return the link at which it arrives, and its address: behind a NAT it differs from the advertised one."""
        here = self._known.underlay
        mine = self._asked.addresses(HOST)
        if here is not None and at not in mine and show(at) in here.advertise:
            at = here.bound(4 if len(at) == 4 else 6)
        if at not in mine:
            device = here.ifname if here is not None else ""
            if device:
                self._usable(HOST, device, packet)
            raise self._broken(HOST, device, packet, f"the host has lost its underlay address {show(at)}")
        return mine[at], at

    def _unwrapping(self, outer: Outer, at: bytes, link: str, packet: Packet) -> Device:
        """Return the device that unwraps such packets."""
        fitting = [
            t
            for t in self._asked.tunnels()
            if (t.kind, t.vni) == (outer.kind, outer.vni) and t.local in (b"", at) and t.remote in (b"", outer.source)
            if t.port == outer.port or t.kind in (WIREGUARD, ESP)  # with a NAT in between the ports differ
        ]
        if not fitting:
            what = f"VNI {outer.vni} at port {outer.port}" if outer.kind == VXLAN else outer.kind
            raise self._broken(HOST, link, packet, f"no device of this host accepts {what}")
        device = self._usable(HOST, fitting[0].device, packet)
        if outer.kind == VXLAN and device.port is None and outer.to_mac != device.mac:
            reason = f"the frame is for {mac_text(outer.to_mac)}, and {device.name} is {mac_text(device.mac)}"
            raise self._broken(HOST, device.name, packet, reason)
        self._narrow(device.mtu)
        return device


def _proof(found: Secured) -> str:
    return "no handshake yet" if found.since < 0 else f"last handshake {found.since:.0f} s ago"
