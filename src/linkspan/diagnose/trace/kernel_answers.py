"""Kernel answers for traces on this machine, by netlink, /proc and nftables."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from linkspan.core.addresses import FAMILIES, SOCKET_FAMILY, Prefix, prefix
from linkspan.core.errors import Invalid, KernelError, LinkspanError
from linkspan.core.states.host import HOST, TunnelPrefix
from linkspan.core.states.ipsec import NAT, PREFIX
from linkspan.core.wire import Wire
from linkspan.diagnose.trace import iptables_verdict
from linkspan.diagnose.trace.bgp_routes import Learning
from linkspan.diagnose.trace.hops import show
from linkspan.diagnose.trace.kernel_view import (
    BIRD,
    UNREACHABLE,
    Associated,
    Attached,
    Chain,
    Device,
    Forwarding,
    IptablesTable,
    Lookup,
    Neighbour,
    Packet,
    Port,
    Secured,
)
from linkspan.kernel.drivers.ipip_table import TunnelTableDriver
from linkspan.kernel.io import neighbour_messages, vici
from linkspan.kernel.io.link_messages import (
    ADDRESS,
    DEVGROUP,
    IFF_UP,
    IFINFO,
    IFNAME,
    INFO_DATA,
    INFO_KIND,
    INFO_SLAVE_DATA,
    LINK_NETNSID,
    LINKINFO,
    MASTER,
    MTU,
)
from linkspan.kernel.io.namespaces import Namespaces
from linkspan.kernel.io.neighbour_messages import LLADDR, NDMSG, PERMANENT
from linkspan.kernel.io.netlink import (
    GETADDR,
    GETLINK,
    GETNEIGH,
    GETROUTE,
    Message,
    attr,
    attributes,
    string,
    text,
    u32,
)
from linkspan.kernel.io.nftables import Nft
from linkspan.kernel.io.route_messages import (
    DST,
    GATEWAY,
    IIF,
    METRIC_HOPLIMIT,
    METRIC_MTU,
    METRICS,
    OIF,
    PREFSRC,
    RTMSG,
    SRC,
    if_id,
)
from linkspan.kernel.io.sockets import Sockets
from linkspan.kernel.kinds import kinds
from linkspan.kernel.local_host import LocalHost
from linkspan.kernel.probe import arp, device_filters, nft_trace, policies, port_owners
from linkspan.kernel.probe.iptables_rules import words
from linkspan.kernel.probe.path_mtu import Passed, passing
from linkspan.kernel.probe.policies import Rule, XfrmPolicy
from linkspan.kernel.probe.wireguard_device import Table

# linux/rtnetlink.h, neighbour.h, if_link.h
_MARK, _VIA = 16, 18
_IP_PROTO, _SPORT, _DPORT = 27, 28, 29
_ASKED = {(4, "icmp"): 1, (6, "icmp"): 58, (4, "tcp"): 6, (6, "tcp"): 6, (4, "udp"): 17, (6, "udp"): 17}
"""The protocols for which a route may be looked up, rtm_getroute_parse_ip_proto in net/ipv4/fib_frontend.c."""
_FIB_MATCH = 0x2000
_NTF_SELF = 0x02
_NDA_MASTER = 9
_XDP, _XDP_ATTACHED, _XDP_ID = 43, 2, 4
_VLAN_FILTERING = 7
_PORT_STATE, _FORWARDING = 1, 3
_LEARNING, _FLOOD, _MULTICASTS, _BROADCASTS, _ISOLATED, _LOCKED = 8, 9, 27, 30, 33, 39
_LINK = 5
_MACVLANS, _MACVLAN_MODE, _PASSTHRU = ("macvlan", "macvtap"), 1, struct.pack("=I", 8)
_WITH_PORTS = frozenset({"bridge", "bond", "team"})
_STACKED = frozenset({"vlan", "macvlan", "ipvlan", "macsec"})
_IFF_NOARP, _IFF_LOWER_UP = 0x80, 0x10000
_HARMLESS = frozenset({"noqueue", "pfifo_fast", "fq_codel", "fq", "mq", "mqprio", "multiq", "sfq"})
"""Queueing disciplines that drop packets only if a link is full."""
_OWN_BUCKET = "tbf", 1 << 16
"""A bandwidth limit of linkspan's (``kernel/drivers/shaper``): its kind and handle."""
_LEGACY = {4: "ip_tables_names", 6: "ip6_tables_names"}
_IPTABLES = {4: "iptables", 6: "ip6tables"}
_TABLES = frozenset({"raw", "mangle", "nat", "filter", "security"})
_IFA_ADDRESS, _IFA_LOCAL = 1, 2


class KernelAnswers:
    """Asks the kernel of the namespace in which it was made, and of those of its containers.

    For one thread and one trace: it reads each firewall only once.
    """

    def __init__(
        self,
        namespaces: Namespaces,
        table: Path | None = None,
        learning: Learning | None = None,
        wireguard: Callable[[], Table | None] = lambda: None,
        ike: Path | None = None,
    ) -> None:
        """Take ``table``, the file of the user-space IPIP helper, and ``learning``, the host's BGP speaker.

        ``wireguard`` returns the WireGuard device, ``ike`` is the socket of strongSwan's daemon.
        """
        self._ike = ike
        self._wireguard = wireguard
        self._namespaces = namespaces
        self._learning = learning
        self._table = table
        self._sockets = Sockets(namespaces)
        self._host = LocalHost(Path(), kinds(), namespaces, self._sockets)
        self._nft: dict[int, Nft] = {}
        self._rulesets: dict[int, tuple[Chain, ...]] = {}
        self._iptables: dict[tuple[int, int], tuple[IptablesTable, ...]] = {}
        self._xfrm: dict[int, tuple[XfrmPolicy, ...]] = {}
        self._rules: dict[tuple[int, int], tuple[Rule, ...]] = {}

    def close(self) -> None:
        """Close the sockets."""
        self._sockets.close()
        for one in self._nft.values():
            one.close()

    def route(self, netns: int, packet: Packet, arriving: str = "") -> Lookup:
        """Look up the route as the kernel would for this packet, with its checks of the source."""
        bits = len(packet.target) * 8
        family = SOCKET_FAMILY[packet.family]
        from_bits = bits if packet.source else 0
        rest = attr(DST, packet.target) + (attr(SRC, packet.source) if packet.source else b"")
        rest += u32(_MARK, packet.mark) if packet.mark else b""
        rest += _transport(packet)
        try:
            if arriving:
                rest += u32(IIF, self._sockets.index(netns, arriving))
            body = RTMSG.pack(family, bits, from_bits, 0, 0, 0, 0, 0, 0) + rest
            answer = self._sockets.at(netns).get(Message(GETROUTE, 0, body, "look up route"))
        except KernelError as error:
            absent = netns == HOST and error.errno == errno.EHOSTUNREACH
            return Lookup(error=error.errno, learnt=self._absence(packet) if absent else "")
        found = attributes(answer, 12)
        metrics = attributes(found.get(METRICS, b""))
        mtu, hops = (
            struct.unpack("=I", metrics[metric])[0] if metric in metrics else 0
            for metric in (METRIC_MTU, METRIC_HOPLIMIT)
        )
        device = self._name(netns, struct.unpack("=I", found[OIF])[0]) if OIF in found else ""
        matched, origin = self._matched(netns, family, bits, from_bits, rest)
        # A next hop of the other family is in RTA_VIA, after its address family (struct rtvia).
        gateway = bytes(found.get(GATEWAY, b"") or found.get(_VIA, b"")[2:])
        source = bytes(found.get(PREFSRC, b""))
        learnt = ""
        if netns == HOST and answer[7] == UNREACHABLE:
            learnt = self._absence(packet)
        elif origin == BIRD and self._learning:
            learnt = self._learning.origin(packet.target, gateway)
        return Lookup(answer[7], device, gateway, source, mtu, matched, learnt=learnt, hops=hops)

    def rules(self, netns: int, family: int) -> tuple[Rule, ...]:
        """Return the policy rules, read once."""
        if (netns, family) not in self._rules:
            try:
                found = tuple(policies.rules(self._sockets.at(netns), family))
            except KernelError:
                found = ()
            self._rules[netns, family] = found
        return self._rules[netns, family]

    def takers(self, netns: int, device: str) -> tuple[str, ...]:
        """List the macvlans; those in other namespaces are not visible."""
        own, found = self._sockets.index(netns, device), []
        for kind in _MACVLANS:
            only = IFINFO.pack(0, 0, 0, 0, 0) + attr(LINKINFO, text(INFO_KIND, kind))
            for payload in self._sockets.at(netns).dump(GETLINK, only, "list links"):
                told = attributes(payload, 16)
                info = attributes(told.get(LINKINFO, b""))
                mode = attributes(info.get(INFO_DATA, b"")).get(_MACVLAN_MODE)
                below = struct.unpack("=I", told[_LINK])[0] if _LINK in told and LINK_NETNSID not in told else 0
                if string(info.get(INFO_KIND, b"")) == kind and (below, mode) == (own, _PASSTHRU):
                    found.append(string(told[IFNAME]))
        return tuple(found)

    def below(self, netns: int, device: str) -> tuple[str, ...]:
        """Return a stacked device's link, and the ports of one that has ports."""
        own = self.device(netns, device)
        if own is None or own.kind not in _WITH_PORTS | _STACKED:
            return ()
        index, names = self._sockets.index(netns, device), self._sockets.names(netns)
        kind = MASTER if own.kind in _WITH_PORTS else _LINK
        found = []
        for payload in self._sockets.at(netns).dump(GETLINK, IFINFO.pack(0, 0, 0, 0, 0), "list links"):
            told, number = attributes(payload, 16), struct.unpack_from("=i", payload, 4)[0]
            other = struct.unpack("=I", told[kind])[0] if kind in told else 0
            if kind == MASTER and other == index:
                found.append(names.get(number, "?"))
            elif kind == _LINK and number == index and LINK_NETNSID not in told:
                found.append(names.get(other, "?"))
        return tuple(found)

    def attached(self, netns: int, device: str) -> Attached:
        """Ask for XDP, tcx and tc programs and filters, and for unusual queueing disciplines."""
        try:
            socket = self._sockets.at(netns)
            body = IFINFO.pack(0, 0, 0, 0, 0) + text(IFNAME, device)
            answer = socket.get(Message(GETLINK, 0, body, f"find link {device}"))
            index = struct.unpack_from("=i", answer, 4)[0]
            queues, ingress, egress = device_filters.queues(socket, index)
        except KernelError:
            return Attached()
        xdp = attributes(attributes(answer, 16).get(_XDP, b""))
        if xdp.get(_XDP_ATTACHED, b"\0")[0]:
            number = struct.unpack("=I", xdp[_XDP_ID])[0] if _XDP_ID in xdp else 0
            ingress.insert(0, f"an XDP program (id {number})")
        with self._namespaces.entered(netns):
            ingress += device_filters.programs(index, "ingress")
            egress += device_filters.programs(index, "egress")
        foreign = [queue for queue in queues if queue[0] not in _HARMLESS and queue != _OWN_BUCKET]
        egress += [f"a foreign queueing discipline ({kind})" for kind, _ in foreign]
        return Attached(tuple(ingress), tuple(egress))

    def policies(self, netns: int) -> tuple[XfrmPolicy, ...]:
        """Return the XFRM policies, read once."""
        if netns not in self._xfrm:
            with self._namespaces.entered(netns):
                self._xfrm[netns] = tuple(policies.xfrm())
        return self._xfrm[netns]

    def _absence(self, packet: Packet) -> str:
        return self._learning.absence(packet.target) if self._learning else ""

    def _matched(self, netns: int, family: int, bits: int, from_bits: int, rest: bytes) -> tuple[str, int]:
        """Return the destination of the chosen route, for people ('' if unknown), and its origin."""
        body = RTMSG.pack(family, bits, from_bits, 0, 0, 0, 0, 0, _FIB_MATCH) + rest
        try:
            answer = self._sockets.at(netns).get(Message(GETROUTE, 0, body, "look up route"))
        except KernelError:
            return "", 0
        if not answer[1]:
            return "default", answer[5]
        return str(Prefix(bytes(attributes(answer, 12)[DST]), answer[1])), answer[5]

    def _name(self, netns: int, index: int) -> str:
        body = IFINFO.pack(0, 0, index, 0, 0)
        answer = self._sockets.at(netns).get(Message(GETLINK, 0, body, f"find link {index}"))
        return string(attributes(answer, 16)[IFNAME])

    def device(self, netns: int, name: str) -> Device | None:
        """Return a link by its name."""
        body = IFINFO.pack(0, 0, 0, 0, 0) + text(IFNAME, name)
        try:
            answer = self._sockets.at(netns).get(Message(GETLINK, 0, body, f"find link {name}"))
        except KernelError:
            return None
        flags = IFINFO.unpack_from(answer)[3]
        found = attributes(answer, 16)
        info = attributes(found.get(LINKINFO, b""))
        port = attributes(info.get(INFO_SLAVE_DATA, b""))
        return Device(
            name,
            string(info.get(INFO_KIND, b"")),
            bool(flags & IFF_UP),
            bool(flags & _IFF_LOWER_UP),
            struct.unpack("=I", found[MTU])[0],
            bytes(found.get(ADDRESS, b"")),
            self._name(netns, struct.unpack("=I", found[MASTER])[0]) if MASTER in found else "",
            _port(port) if _PORT_STATE in port else None,
            struct.unpack("=I", found[DEVGROUP])[0],
            bool(flags & _IFF_NOARP),
            bool(attributes(info.get(INFO_DATA, b"")).get(_VLAN_FILTERING, b"\0")[0])
            and string(info.get(INFO_KIND, b"")) == "bridge",
        )

    def addresses(self, netns: int) -> Mapping[bytes, str]:
        """Return every address with its device."""
        names, result = self._sockets.names(netns), {}
        for payload in self._sockets.at(netns).dump(
            GETADDR, struct.pack("=BBBBI", 0, 0, 0, 0, 0), "list addresses"
        ):
            found = attributes(payload, 8)
            index = struct.unpack_from("=I", payload, 4)[0]
            result[bytes(found.get(_IFA_LOCAL) or found[_IFA_ADDRESS])] = names.get(index, "?")
        return result

    def neighbour(self, netns: int, device: str, address: bytes) -> Neighbour | None:
        """Return the neighbour table's entry."""
        family = socket.AF_INET if len(address) == 4 else socket.AF_INET6
        found = self._neighbour(netns, family, device, attr(neighbour_messages.DST, address))
        if found is None:
            return None
        return Neighbour(bytes(attributes(found, 12).get(LLADDR, b"")), NDMSG.unpack_from(found)[2])

    def bridge_port(self, bridge: str, mac: bytes) -> Forwarding | None:
        """Return the FDB's entry for the MAC."""
        try:
            master = u32(_NDA_MASTER, self._sockets.index(HOST, bridge))
        except LinkspanError:
            return None
        found = self._neighbour(HOST, socket.AF_BRIDGE, "", attr(LLADDR, mac) + master)
        if not found:
            return None
        _, index, state, *_ = NDMSG.unpack_from(found)
        return Forwarding(self._name(HOST, index), own=state == PERMANENT)

    def _neighbour(self, netns: int, family: int, device: str, rest: bytes, flags: int = 0) -> bytes | None:
        try:
            index = self._sockets.index(netns, device) if device else 0
            body = NDMSG.pack(family, index, 0, flags, 0) + rest
            return self._sockets.at(netns).get(Message(GETNEIGH, 0, body, "find neighbour"))
        except KernelError:
            return None

    def tunnels(self) -> tuple[Wire, ...]:
        """Return our tunnel devices."""
        wired = [kind for kind in kinds() if kind.wire is not None]
        drivers = dict.fromkeys(self._host.driver(kind.driver) for kind in wired if kind.driver is not None)
        states = (state for driver in drivers for state in driver.observe(HOST))
        return tuple(wire(state) for state in states if (wire := kinds().of(state).wire) is not None)

    def remote(self, device: str, mac: bytes, address: bytes) -> bytes:
        """Return the FDB entry's address, or that of the helper's best row."""
        if mac:
            found = self._neighbour(HOST, socket.AF_BRIDGE, device, attr(LLADDR, mac), _NTF_SELF)
            return bytes(attributes(found, 12).get(neighbour_messages.DST, b"")) if found else b""
        target = Prefix(address, len(address) * 8)
        rows = TunnelTableDriver(self._table).observe(HOST) if self._table else ()
        fitting = [r for r in rows if isinstance(r, TunnelPrefix) and r.prefix.holds(target)]
        return max(fitting, key=lambda r: r.prefix.length).remote if fitting else b""

    def secured(self, address: bytes) -> Secured | None:
        """Ask the WireGuard device, of which a host has one."""
        table = self._wireguard()
        peer = table.holder(Prefix(address, len(address) * 8)) if table is not None else None
        if table is None or peer is None:
            return None
        host, _, number = peer.endpoint.rpartition(":")
        remote = prefix(host.strip("[]")).packed if host else b""
        since = time.time() - peer.handshake if peer.handshake else -1
        return Secured(table.public, peer.public, remote, int(number or 0), since, peer.keepalive, table.port)

    def associated(self, address: bytes, spi: str = "") -> Associated | None:
        """Ask strongSwan's daemon by SPI or by its policies' addresses, and for the kernel by the route's if_id."""
        if self._ike is None:
            return None
        try:
            with vici.session(self._ike) as asked:
                standing = [one for one in vici.associations(asked) if one.established]
        except LinkspanError:
            return None
        pairs = [(one, child) for one in standing for child in one.children if child.installed]
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
        family = SOCKET_FAMILY[4 if len(address) == 4 else 6]
        body = RTMSG.pack(family, len(address) * 8, 0, 0, 0, 0, 0, 0, _FIB_MATCH) + attr(DST, address)
        try:
            answer = self._sockets.at(HOST).get(Message(GETROUTE, 0, body, "look up route"))
        except KernelError:
            return 0
        return if_id(attributes(answer, 12))

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

    def chains(self, netns: int) -> tuple[Chain, ...]:
        """Return the chains of nftables, read once, without tables that iptables itself lists."""
        known = {
            ("ip" if family == 4 else "ip6", table.name)
            for family in FAMILIES
            for table in self.iptables(netns, family)
            if not table.legacy
        }
        return tuple(chain for chain in self._ruleset(netns) if (chain.family, chain.table) not in known)

    def _ruleset(self, netns: int) -> tuple[Chain, ...]:
        if netns not in self._rulesets:
            self._rulesets[netns] = _chains(self._nftables(netns).json("list ruleset", terse=True))
        return self._rulesets[netns]

    def _nftables(self, netns: int) -> Nft:
        if netns not in self._nft:
            with self._namespaces.entered(netns):
                self._nft[netns] = Nft()  # its socket stays in the namespace
        return self._nft[netns]

    def holds(self, netns: int, chain: Chain, name: str, key: tuple[str, ...]) -> bool:
        """Ask for one key, which costs the same at any size."""
        parts = " . ".join(f'"{part}"' for part in key)
        try:
            with self._namespaces.entered(netns):
                self._nftables(netns).run(f"get element {chain.family} {chain.table} {name} {{ {parts} }}")
        except KernelError as error:
            if error.message.endswith(os.strerror(errno.ENOENT)):  # libnftables has no errno
                return False
            raise
        return True

    def mapping(self, netns: int, chain: Chain, name: str) -> Sequence[Any]:
        """List the map: nft answers for one key only as text, even if asked for JSON (nft 1.1.3)."""
        return self._listed(netns, "map", chain, name)

    def elements(self, netns: int, chain: Chain, name: str) -> Sequence[Any]:
        """List the set."""
        return self._listed(netns, "set", chain, name)

    def _listed(self, netns: int, kind: str, chain: Chain, name: str) -> Sequence[Any]:
        listed = self._nftables(netns).json(f"list {kind} {chain.family} {chain.table} {name}")
        elements = next((item[kind].get("elem") for item in listed if kind in item), None)
        return elements if isinstance(elements, list) else ()

    def iptables(self, netns: int, family: int) -> tuple[IptablesTable, ...]:
        """Return the tables of both variants, if they exist, read once; reading makes none."""
        if (netns, family) not in self._iptables:
            nft = any(_of_iptables(chain, family) for chain in self._ruleset(netns))
            with self._namespaces.entered(netns):
                found = (_saved(family, "nft") or ()) if nft else ()
                try:
                    legacy = Path("/proc/thread-self/net", _LEGACY[family]).read_text(encoding="ascii").split()
                except OSError:
                    legacy = []
                if legacy:
                    read = _saved(family, "legacy")
                    found += iptables_verdict.unread(legacy) if read is None else read
            self._iptables[netns, family] = found
        return self._iptables[netns, family]

    def listens(self, netns: int, packet: Packet) -> bool:
        """Return whether the port is in use in the namespace, at the packet's destination."""
        if packet.protocol == "icmp" or not packet.port:
            return True
        with self._namespaces.entered(netns):
            try:
                return bool(port_owners.holder(packet.protocol, show(packet.target), packet.port))
            except Invalid:  # a route makes the destination local, and no link has the address
                return bool(port_owners.holder(packet.protocol, "", packet.port))


def _transport(packet: Packet) -> bytes:
    """Return the attributes for a route lookup with a packet's protocol and ports, which policy rules may match."""
    number = _ASKED.get((packet.family, packet.protocol))
    if number is None:
        return b""
    found = attr(_IP_PROTO, bytes([number]))
    ports = ((_SPORT, packet.source_port), (_DPORT, packet.port)) if packet.has_ports else ()
    return found + b"".join(attr(kind, struct.pack("!H", port)) for kind, port in ports if port)


def _associated(one: vici.Association, child: vici.Child) -> Associated:
    port = NAT if child.encapsulated else 0
    host = one.connection.removeprefix(PREFIX)
    remote = prefix(one.remote).packed
    return Associated(host, remote, port, child.spi_in, child.spi_out, child.cipher, child.mark)


def _port(found: Mapping[int, bytes]) -> Port:
    forwards = found[_PORT_STATE][0] == _FORWARDING
    kinds = (_ISOLATED, _LOCKED, _LEARNING, _FLOOD, _BROADCASTS, _MULTICASTS)
    isolated, locked, *rest = (bool(found.get(kind, bytes([kind not in (_ISOLATED, _LOCKED)]))[0]) for kind in kinds)
    return Port(forwards, isolated, locked, *rest)


def _of_iptables(chain: Chain, family: int) -> bool:
    """Return whether a chain is in a table of iptables-nft: only these name their base chains in capitals."""
    own = "ip" if family == 4 else "ip6"
    return chain.family == own and chain.table in _TABLES and bool(chain.hook) and chain.name.isupper()


def _saved(family: int, variant: str) -> tuple[IptablesTable, ...] | None:
    """Return the tables of a variant that its command can read; None if it is missing or fails."""
    command = shutil.which(f"{_IPTABLES[family]}-{variant}-save")
    if command is None:
        return None
    try:
        done = subprocess.run([command], capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return iptables_verdict.tables(done.stdout.splitlines(), words, legacy=variant == "legacy")


def _chains(listed: list[dict[str, dict[str, Any]]]) -> tuple[Chain, ...]:
    rules: dict[tuple[str, str, str], list[tuple[Mapping[str, Any], ...]]] = {}
    for item in listed:
        if found := item.get("rule"):
            rules.setdefault((found["family"], found["table"], found["chain"]), []).append(
                tuple(found.get("expr", ()))
            )
    chains = []
    for item in listed:
        found = item.get("chain")
        if not found or found["table"].startswith(nft_trace.TABLE):  # another trace's, which drops nothing
            continue
        key = found["family"], found["table"], found["name"]
        base = {
            k: found[v] for k, v in (("kind", "type"), ("hook", "hook"), ("priority", "prio")) if v in found
        }
        devices = found.get("dev", ())
        devices = (devices,) if isinstance(devices, str) else tuple(devices)
        policy = found.get("policy", "accept")
        chains.append(Chain(*key, **base, policy=policy, rules=tuple(rules.get(key, ())), devices=devices))
    return tuple(chains)
