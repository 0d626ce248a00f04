"""Kernel answers for traces on this machine: the kernel's, the drivers', and the firewalls' (`firewall_answers`)."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from linkspan.core.addresses import Prefix, prefix
from linkspan.core.errors import Invalid, KernelError, LinkspanError
from linkspan.core.states.host import HOST, State, TunnelExit, TunnelPrefix
from linkspan.core.states.ipsec import NAT, PREFIX
from linkspan.core.wire import Wire
from linkspan.diagnose.trace.bgp_routes import Learning
from linkspan.diagnose.trace.firewall_answers import FirewallAnswers
from linkspan.diagnose.trace.hops import show
from linkspan.diagnose.trace.kernel_view import (
    UNREACHABLE,
    Associated,
    Attached,
    Device,
    Forwarding,
    Lookup,
    Neighbour,
    Port,
    Secured,
)
from linkspan.diagnose.trace.packet import Packet
from linkspan.kernel.drivers import ipip_table, ipsec, wireguard
from linkspan.kernel.io import address_messages, link_messages, neighbour_messages, vici
from linkspan.kernel.io.link_messages import IFF_NOARP, MACVLANS
from linkspan.kernel.io.namespaces import Namespaces
from linkspan.kernel.io.neighbour_messages import PERMANENT
from linkspan.kernel.io.route_messages import BIRD
from linkspan.kernel.io.sockets import Sockets
from linkspan.kernel.kinds import kinds
from linkspan.kernel.local_host import LocalHost
from linkspan.kernel.probe import arp, device_filters, port_owners, route_lookup, xfrm_and_rules
from linkspan.kernel.probe.path_mtu import Passed, passing
from linkspan.kernel.probe.route_lookup import Question
from linkspan.kernel.probe.xfrm_and_rules import Rule, XfrmPolicy

_ASKED = {(4, "icmp"): 1, (6, "icmp"): 58, (4, "tcp"): 6, (6, "tcp"): 6, (4, "udp"): 17, (6, "udp"): 17}
"""The protocols for which a route may be looked up."""
# linux/if_link.h
_NF_CALL = {4: 36, 6: 37}  # IFLA_BR_NF_CALL_IPTABLES and IP6TABLES, linux/if_link.h
_VLAN_FILTERING = 7
_PORT_STATE, _FORWARDING = 1, 3
_LEARNING, _FLOOD, _BROADCASTS, _ISOLATED, _LOCKED = 8, 9, 30, 33, 39
_WITH_PORTS = frozenset({"bridge", "bond", "team"})
_STACKED = frozenset({"vlan", "macvlan", "ipvlan", "macsec"})
_IFF_LOWER_UP = 0x10000  # linux/if.h
_HARMLESS = frozenset({"noqueue", "pfifo_fast", "fq_codel", "fq", "mq", "mqprio", "multiq", "sfq"})
"""Queueing disciplines that drop packets only if a link is full."""
_OWN_BUCKET = "tbf", 1 << 16
"""A bandwidth limit of linkspan's (``kernel/drivers/shaper``): its kind and handle."""


NO_FOLDER = Path("/nonexistent")
"""Instead of a state folder, for questions about no helper: no such folder ever exists (Debian Policy, 9.2.3)."""


class KernelAnswers(FirewallAnswers):
    """Asks the kernel of the namespace in which it was made, and of those of its containers.

    What linkspan's drivers observe it takes from them: tunnel devices, the user-space helper's table, WireGuard's
    peers. For everything else it asks by the readers of ``kernel/io`` and ``kernel/probe``, because a packet
    passes other programs' objects, too. For one thread and one trace.
    """

    def __init__(
        self, namespaces: Namespaces, state_dir: Path = NO_FOLDER, learning: Learning | None = None
    ) -> None:
        """Take the agent's state folder, in which its helpers have their files, and the host's BGP speaker."""
        super().__init__(namespaces)
        self._learning = learning
        self._sockets = Sockets(namespaces)
        self._host = LocalHost(state_dir, kinds(), namespaces, self._sockets)
        self._xfrm: dict[int, tuple[XfrmPolicy, ...]] = {}
        self._rules: dict[tuple[int, int], tuple[Rule, ...]] = {}

    def close(self) -> None:
        """Close the sockets, and the drivers that this trace made."""
        self._host.close()
        self._sockets.close()
        super().close()

    def route(self, netns: int, packet: Packet, arriving: str = "") -> Lookup:
        """Look up the route as the kernel would for this packet, with its checks of the source."""
        try:
            question = self._question(netns, packet, arriving)
            found = route_lookup.ask(self._sockets.at(netns), question)
        except KernelError as error:
            absent = netns == HOST and error.errno == errno.EHOSTUNREACH
            return Lookup(error=error.errno, learnt=self._absence(packet) if absent else "")
        matched = route_lookup.match(self._sockets.at(netns), question)
        device, learnt = self._name(netns, found.link) if found.link else "", ""
        if netns == HOST and found.kind == UNREACHABLE:
            learnt = self._absence(packet)
        elif matched.origin == BIRD and self._learning:
            learnt = self._learning.origin(packet.target, found.gateway)
        way = Lookup(found.kind, device, found.gateway, found.source, found.mtu, matched.destination)
        return msgspec.structs.replace(way, learnt=learnt, hops=found.hops)

    def _question(self, netns: int, packet: Packet, arriving: str) -> Question:
        protocol = _ASKED.get((packet.family, packet.protocol), 0)
        ports = (packet.source_port, packet.port) if protocol and packet.has_ports else (0, 0)
        index = self._sockets.index(netns, arriving) if arriving else 0
        return Question(packet.target, packet.source, packet.mark or 0, index, protocol, *ports)

    def rules(self, netns: int, family: int) -> tuple[Rule, ...]:
        """Return the policy rules, read once."""
        if (netns, family) not in self._rules:
            try:
                found = tuple(xfrm_and_rules.rules(self._sockets.at(netns), family))
            except KernelError:
                found = ()
            self._rules[netns, family] = found
        return self._rules[netns, family]

    def takers(self, netns: int, device: str) -> tuple[str, ...]:
        """List the macvlans; those in other namespaces are not visible."""
        socket, own = self._sockets.at(netns), self._sockets.index(netns, device)
        above = (one for kind in MACVLANS for one in link_messages.links(socket, kind))
        return tuple(one.name for one in above if one.lower == own and one.takes_all)

    def below(self, netns: int, device: str) -> tuple[str, ...]:
        """Return a stacked device's link, and the ports of one that has ports."""
        own = self._sockets.find(netns, device)
        if own is None or (kind := own.kind) not in _WITH_PORTS | _STACKED:
            return ()
        if kind in _STACKED:
            return (self._name(netns, own.lower),) if own.lower else ()
        return tuple(one.name for one in self._sockets.links(netns) if one.master == own.number)

    def attached(self, netns: int, device: str) -> Attached:
        """Ask for XDP, tcx and tc programs and filters, and for unusual queueing disciplines."""
        try:
            socket = self._sockets.at(netns)
            link = link_messages.by_name(socket, device)
            queues, ingress, egress = device_filters.queues(socket, link.number)
        except KernelError:
            return Attached()
        ingress[:0] = device_filters.xdp(link)
        with self._namespaces.entered(netns):
            ingress += device_filters.programs(link.number, "ingress")
            egress += device_filters.programs(link.number, "egress")
        foreign = [queue for queue in queues if queue[0] not in _HARMLESS and queue != _OWN_BUCKET]
        egress += [f"a foreign queueing discipline ({kind})" for kind, _ in foreign]
        return Attached(tuple(ingress), tuple(egress))

    def policies(self, netns: int) -> tuple[XfrmPolicy, ...]:
        """Return the XFRM policies, read once."""
        if netns not in self._xfrm:
            with self._namespaces.entered(netns):
                self._xfrm[netns] = tuple(xfrm_and_rules.xfrm())
        return self._xfrm[netns]

    def _absence(self, packet: Packet) -> str:
        return self._learning.absence(packet.target) if self._learning else ""

    def _name(self, netns: int, index: int) -> str:
        return link_messages.by_index(self._sockets.at(netns), index).name

    def device(self, netns: int, name: str) -> Device | None:
        """Return a link by its name."""
        try:
            found = self._sockets.link(netns, name)
        except KernelError:
            return None
        kind, port = found.kind, found.bridge_port
        return Device(
            name,
            kind,
            found.up,
            bool(found.flags & _IFF_LOWER_UP),
            found.mtu,
            found.mac,
            self._name(netns, found.master) if found.master else "",
            _port(port) if port else None,
            found.group,
            bool(found.flags & IFF_NOARP),
            kind == "bridge" and bool(found.data.get(_VLAN_FILTERING, b"\0")[0]),
            frozenset(family for family, number in _NF_CALL.items() if found.data.get(number) == b"\1")
            if kind == "bridge"
            else frozenset(),
        )

    def addresses(self, netns: int) -> Mapping[bytes, str]:
        """Return every address with its device."""
        names = self._sockets.names(netns)
        found = address_messages.held(self._sockets.at(netns))
        return {one.prefix.packed: names.get(one.link, "?") for one in found}

    def neighbour(self, netns: int, device: str, address: bytes) -> Neighbour | None:
        """Return the neighbour table's entry."""
        try:
            socket, index = self._sockets.at(netns), self._sockets.index(netns, device)
        except KernelError:
            return None
        found = neighbour_messages.neighbour(socket, index, address)
        return None if found is None else Neighbour(found.mac, found.state)

    def bridge_port(self, bridge: str, mac: bytes) -> Forwarding | None:
        """Return the FDB's entry for the MAC."""
        try:
            socket, index = self._sockets.at(HOST), self._sockets.index(HOST, bridge)
        except LinkspanError:
            return None
        found = neighbour_messages.bridge_entry(socket, index, mac)
        return None if found is None else Forwarding(self._name(HOST, found.link), own=found.state == PERMANENT)

    def tunnels(self) -> tuple[Wire, ...]:
        """Return our tunnel devices."""
        wired = [kind for kind in kinds() if kind.wire is not None]
        drivers = dict.fromkeys(self._host.driver(kind.driver) for kind in wired if kind.driver is not None)
        states = (state for driver in drivers for state in driver.observe(HOST))
        return tuple(wire(state) for state in states if (wire := kinds().of(state).wire) is not None)

    def remote(self, device: str, mac: bytes, address: bytes) -> bytes:
        """Return the FDB entry's address, or that of the helper's best row."""
        if mac:
            try:
                socket, index = self._sockets.at(HOST), self._sockets.index(HOST, device)
            except KernelError:
                return b""
            found = neighbour_messages.tunnel_entry(socket, index, mac)
            return found.address if found is not None else b""
        return self._row(TunnelPrefix, address)

    def exit(self, source: bytes) -> bytes:
        """Return the address of the helper's best row of its second table."""
        return self._row(TunnelExit, source)

    def _row(self, kind: type[TunnelPrefix | TunnelExit], address: bytes) -> bytes:
        target = Prefix(address, len(address) * 8)
        rows: Iterable[State] = self._host.driver(ipip_table.driver).observe(HOST)
        fitting = [row for row in rows if isinstance(row, kind) and row.prefix.holds(target)]
        return max(fitting, key=lambda row: row.prefix.length).remote if fitting else b""

    def secured(self, address: bytes) -> Secured | None:
        """Ask the WireGuard device, of which a host has one."""
        table = self._host.driver(wireguard.driver).device.table()
        peer = table.holder(Prefix(address, len(address) * 8)) if table is not None else None
        if table is None or peer is None:
            return None
        host, _, number = peer.endpoint.rpartition(":")
        remote = prefix(host.strip("[]")).packed if host else b""
        since = time.time() - peer.handshake if peer.handshake else -1
        return Secured(table.public, peer.public, remote, int(number or 0), since, peer.keepalive, table.port)

    def associated(self, address: bytes, spi: str = "") -> Associated | None:
        """Ask strongSwan's daemon by SPI or by its policies' addresses, and for the kernel by the route's if_id."""
        try:
            with vici.session(ipsec.control(self._host)) as asked:
                found = [one for one in vici.associations(asked) if one.established]
        except LinkspanError:
            return None
        pairs = [(one, child) for one in found for child in one.children if child.installed]
        if spi:
            return next((_associated(one, child) for one, child in pairs if child.spi_in == spi), None)
        target, way = Prefix(address, len(address) * 8), self._if_id(address)
        fitting = [
            (child.there.length, one.number, child.number, _associated(one, child))
            for one, child in pairs
            if child.there is not None and child.there.holds(target) and child.mark == way
        ]
        return max(fitting, key=lambda found: found[:3])[3] if fitting else None

    def _if_id(self, address: bytes) -> int:
        """Return the if_id with which an XFRM interface sends to an address, 0 if there is none."""
        return route_lookup.match(self._sockets.at(HOST), Question(address)).if_id

    def answering(self, netns: int, device: str, source: bytes, address: bytes) -> bytes | None:
        """Ask on the link."""
        with self._namespaces.entered(netns):
            return arp.answering(device, {address: source}).get(address)

    def passing(self, source: bytes, target: bytes, sizes: Iterable[int]) -> Passed:
        """Send a volley of pings."""
        return passing(source, target, sizes)

    def setting(self, netns: int, path: str) -> str:
        """Return the content of a file in /proc/sys."""
        with self._namespaces.entered(netns):
            try:
                return Path("/proc/sys", path).read_text().strip()
            except OSError:
                return ""

    def listens(self, netns: int, packet: Packet) -> bool:
        """Return whether the port is in use in the namespace, at the packet's destination."""
        if packet.protocol == "icmp" or not packet.port:
            return True
        with self._namespaces.entered(netns):
            try:
                return bool(port_owners.holder(packet.protocol, show(packet.target), packet.port))
            except Invalid:  # a route makes the destination local, and no link has the address
                return bool(port_owners.holder(packet.protocol, "", packet.port))


def _associated(one: vici.Association, child: vici.Child) -> Associated:
    port = NAT if child.encapsulated else 0
    host = one.connection.removeprefix(PREFIX)
    remote = prefix(one.remote).packed
    return Associated(host, remote, port, child.spi_in, child.spi_out, child.cipher, child.mark)


def _port(found: Mapping[int, bytes]) -> Port:
    forwards = found[_PORT_STATE][0] == _FORWARDING
    kinds = (_ISOLATED, _LOCKED, _LEARNING, _FLOOD, _BROADCASTS)
    isolated, locked, *rest = (bool(found.get(kind, bytes([kind not in (_ISOLATED, _LOCKED)]))[0]) for kind in kinds)
    return Port(forwards, isolated, locked, *rest)
