"""View of one host's kernel, as a trace asks for it: this machine's (`kernel_answers`), or a test's.

Every method is about the present state of the kernel and changes nothing. ``netns`` is a namespace's inode,
0 the host's own; addresses and MACs are bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from linkspan.core.wire import ADDED, ESP, IPIP, VXLAN, Encapsulation, Wire
from linkspan.kernel.probe.path_mtu import Passed
from linkspan.kernel.probe.policies import Rule, XfrmPolicy

LOCAL, UNICAST, BLACKHOLE, UNREACHABLE, PROHIBIT = 2, 1, 6, 7, 8
"""Types of route, RTN_* of linux/rtnetlink.h."""

BIRD = 12
"""A route's origin, RTPROT_BIRD of linux/rtnetlink.h."""

NUD_INCOMPLETE, NUD_FAILED = 0x01, 0x20
"""States of a neighbour in which its MAC is not known, linux/neighbour.h."""


FLOWING = "flowing"
"""The state of a connection that is new or established: a tunnel's flow outlives the packets inside it."""
_STATES = {"?": ("new", "established", "related", "invalid", "untracked"), FLOWING: ("new", "established")}
_WITH_PORTS_IN = frozenset({"tcp", "udp", "sctp"})

Span = tuple[int, int]
"""The first and the last of the ports that may be meant."""
_ANY_CLIENT: Span = (1024, 65535)
"""Client ports if the client's kernel cannot be asked (RFC 6056, section 3.2)."""

ACK, DATA = "ack", "data"
"""Segments of a TCP connection after its handshake: one that only acknowledges, and one with data."""
_FLAGS = {ACK: frozenset({"ack"}), DATA: frozenset({"ack", "psh"})}


def within(span: Span, first: int, last: int) -> bool | None:
    """Return whether a port is from ``first`` to ``last``; None if that holds for some ports of the span only."""
    if first <= span[0] and span[1] <= last:
        return True
    return None if span[0] <= last and first <= span[1] else False


class Packet(msgspec.Struct, frozen=True):
    """A packet on its way. ``established`` is a reply, ``translated`` one of a connection with DNAT.

    ``ttl_by`` is the rule that has set the TTL, '' if none has. ``mark`` and ``ct_mark`` are the packet's and
    its connection's mark, None if unknown. ``ct`` is the connection's state if it does not follow from
    ``established``: ``untracked``, FLOWING, or ``?`` if unknown.

    The client's port (``source_port``, in a reply ``port``) is one example of those that its kernel may
    choose: ``client``, (0, 0) if it is exactly that port. ``later`` is ACK or DATA for a segment after the
    handshake, '' for the first one each way. ``bound``: the sender insists on the source; else its route may
    set another.
    """

    source: bytes
    target: bytes
    protocol: str = "icmp"
    port: int = 0
    source_port: int = 40000
    established: bool = False
    translated: bool = False
    ttl: int = 64
    ttl_by: str = ""
    mark: int | None = 0
    ct: str = ""
    ct_mark: int | None = 0
    client: Span = (0, 0)
    later: str = ""
    bound: bool = False

    @property
    def family(self) -> int:
        """Return 4 or 6."""
        return 4 if len(self.target) == 4 else 6

    @property
    def has_ports(self) -> bool:
        """Return whether its protocol has ports."""
        return self.protocol in _WITH_PORTS_IN

    @property
    def source_ports(self) -> Span:
        """Return the possible source ports."""
        return self.client if any(self.client) and not self.established else (self.source_port, self.source_port)

    @property
    def target_ports(self) -> Span:
        """Return the possible destination ports."""
        return self.client if any(self.client) and self.established else (self.port, self.port)

    @property
    def states(self) -> tuple[str, ...]:
        """Return the possible states of its connection for connection tracking, by nft's names."""
        plain = "established" if self.established or self.later else "new"
        return _STATES.get(self.ct, (self.ct or plain,))

    @property
    def flags(self) -> frozenset[str]:
        """Return the flags of a TCP segment."""
        return _FLAGS.get(self.later, frozenset({"syn", "ack"} if self.established else {"syn"}))

    def sent_by(self, client: Span = _ANY_CLIENT) -> Packet:
        """Return the packet with the ports from which the client's kernel chooses."""
        if not self.has_ports or self.established or client[0] == client[1]:
            return self
        port = self.source_port if within((self.source_port, self.source_port), *client) else client[0]
        return msgspec.structs.replace(self, client=client, source_port=port)


def towards(address: bytes, mark: int | None = 0) -> Packet:
    """Return a packet that only asks where an address is: it has no protocol, so rules for one do not match."""
    return Packet(b"", address, "", mark=mark)


class Outer(msgspec.Struct, frozen=True):
    """The headers around a packet on the wire; ``mac`` and ``to_mac`` are those of the frame inside a VXLAN.

    ``key`` is the sender's public key if it is encrypted, and ESP's SPI. ``ports`` are the possible source
    ports, (0, 0) if it has none.
    """

    kind: Encapsulation
    source: bytes
    target: bytes
    port: int = 0
    vni: int = 0
    mac: bytes = b""
    to_mac: bytes = b""
    key: str = ""
    ports: Span = (0, 0)

    def packet(self) -> Packet:
        """Return the outer packet.

        A VXLAN's flow has one direction, because the source port is a hash: it stays new. The others' flows
        have answers, and are established.
        """
        protocol = self.kind if self.kind == IPIP or (self.kind == ESP and not self.port) else "udp"
        found = Packet(self.source, self.target, protocol, self.port, self.ports[0])
        if self.kind != VXLAN:
            return msgspec.structs.replace(found, ct=FLOWING, ct_mark=None)
        return msgspec.structs.replace(found, source_port=40000).sent_by(self.ports)

    @property
    def overhead(self) -> int:
        """Return the number of bytes that it adds."""
        return ADDED[self.kind] + (20 if len(self.target) == 4 else 40)


REJECT_AFTER = 180
"""Seconds after which WireGuard ends a session; a new one is asked for after 120 (its paper, 6.1)."""


class Secured(msgspec.Struct, frozen=True):
    """An encrypting device's entry for an address: it belongs to the peer with ``key``, at ``remote``, ``port``.

    ``own`` is the device's own public key, and ``own_port`` where it listens. ``since`` is how many seconds
    ago the peer proved that it has its key, -1: never. ``keepalive`` is the number of seconds of silence
    after which a keepalive is sent, 0: never.
    """

    own: str
    key: str
    remote: bytes = b""
    port: int = 0
    since: float = -1
    keepalive: int = 0
    own_port: int = 0

    @property
    def proven(self) -> bool:
        """Return whether the peer still has the key: with keepalives there would otherwise be another session."""
        return self.since >= 0 and (not self.keepalive or self.since <= REJECT_AFTER + self.keepalive)


class Associated(msgspec.Struct, frozen=True):
    """A pair of ESP associations: with which host (its id), to ``remote`` and (in UDP) ``port``, else 0; SPIs in hex.

    ``mark`` is on packets that come out of it, 0 if there is none.
    """

    host: str
    remote: bytes
    port: int
    spi_in: str
    spi_out: str
    cipher: str
    mark: int = 0


class Lookup(msgspec.Struct, frozen=True):
    """The kernel's answer to a route lookup; ``matched`` is the route's destination, ``error`` an errno.

    ``hops`` is the route's TTL for local packets, 0 for the usual one. ``learnt`` is the BGP peer from which
    the route came, or why none was learnt; '' if BGP is not involved.
    """

    kind: int = 0
    device: str = ""
    gateway: bytes = b""
    source: bytes = b""
    mtu: int = 0
    matched: str = ""
    error: int = 0
    learnt: str = ""
    hops: int = 0


class Port(msgspec.Struct, frozen=True):
    """A bridge port's settings (bridge(8)): ``floods`` unicast to an unknown MAC, ``broadcasts`` ARP's requests."""

    forwards: bool = True
    isolated: bool = False
    locked: bool = False
    learns: bool = True
    floods: bool = True
    broadcasts: bool = True
    multicasts: bool = True


class Device(msgspec.Struct, frozen=True):
    """A link; ``carrier`` says that its other end is up too, ``port`` has its settings as a bridge's port.

    ``group`` is its device group, ``silent`` says that it neither asks nor answers for MACs (``arp off``),
    and ``filters`` that it is a bridge with VLAN filtering.
    """

    name: str
    kind: str
    up: bool
    carrier: bool
    mtu: int
    mac: bytes
    master: str = ""
    port: Port | None = None
    group: int = 0
    silent: bool = False
    filters: bool = False


class Attached(msgspec.Struct, frozen=True):
    """Programs, filters and queueing at a device that trace cannot read, in words, for each direction."""

    ingress: tuple[str, ...] = ()
    egress: tuple[str, ...] = ()


class Forwarding(msgspec.Struct, frozen=True):
    """A bridge's FDB entry: the port behind which a MAC is; ``own``: the host itself receives its frames."""

    port: str
    own: bool = False


IN, OUT, FORWARD = 0, 1, 2
"""Directions of XFRM policies, linux/xfrm.h."""


class IptablesTable(msgspec.Struct, frozen=True):
    """A table of iptables: ``chains`` have rules, as words of iptables-save, and ``policies`` those of its own."""

    name: str
    chains: Mapping[str, tuple[tuple[str, ...], ...]]
    policies: Mapping[str, str]
    legacy: bool = False


class Neighbour(msgspec.Struct, frozen=True):
    """An entry of the neighbour table; ``state`` is NUD_*."""

    mac: bytes
    state: int

    @property
    def known(self) -> bool:
        """Return whether the kernel has a MAC for it."""
        return bool(self.mac) and not self.state & (NUD_INCOMPLETE | NUD_FAILED)


class Chain(msgspec.Struct, frozen=True):
    """An nftables chain with its rules' expressions, as nft lists them in JSON; ``hook`` empty: not a base chain.

    ``devices`` are those of a chain of family netdev, or with hook ingress.
    """

    family: str
    table: str
    name: str
    kind: str = ""
    hook: str = ""
    priority: int = 0
    policy: str = "accept"
    rules: tuple[tuple[Mapping[str, Any], ...], ...] = ()
    devices: tuple[str, ...] = ()


class KernelView(Protocol):
    """The state of one host's kernel."""

    def route(self, netns: int, packet: Packet, arriving: str = "") -> Lookup:
        """Return where the packet goes next; ``arriving`` is the device by which it came, '' if it starts here."""

    def device(self, netns: int, name: str) -> Device | None:
        """Return a link, None where there is none of this name."""

    def addresses(self, netns: int) -> Mapping[bytes, str]:
        """Return every address of the namespace with its device."""

    def neighbour(self, netns: int, device: str, address: bytes) -> Neighbour | None:
        """Return the entry for the address on the device."""

    def rules(self, netns: int, family: int) -> tuple[Rule, ...]:
        """Return the policy rules (``ip rule``), in the order of evaluation."""

    def takers(self, netns: int, device: str) -> tuple[str, ...]:
        """Return the devices that take all packets of a device: macvlans on it in mode passthru."""

    def below(self, netns: int, device: str) -> tuple[str, ...]:
        """Return the devices through which a device sends: a VLAN's link, the ports of a bridge or bond."""

    def attached(self, netns: int, device: str) -> Attached:
        """Return what is attached to a device that cannot be read."""

    def policies(self, netns: int) -> tuple[XfrmPolicy, ...]:
        """Return the namespace's XFRM policies, in the order of evaluation."""

    def bridge_port(self, bridge: str, mac: bytes) -> Forwarding | None:
        """Return the FDB entry that the host's bridge has for the MAC."""

    def tunnels(self) -> tuple[Wire, ...]:
        """Return the host's devices that encapsulate."""

    def remote(self, device: str, mac: bytes, address: bytes) -> bytes:
        """Return the underlay address to which a tunnel sends: by a VXLAN's FDB, or a helper's table; b'' without."""

    def secured(self, address: bytes) -> Secured | None:
        """Return what the host's encrypting device does with an address, None if no peer of it has it."""

    def associated(self, address: bytes, spi: str = "") -> Associated | None:
        """Return the ESP associations that reach an address, or those that receive this SPI."""

    def answering(self, netns: int, device: str, source: bytes, address: bytes) -> bytes | None:
        """Ask on the link who has an address, and return its MAC (b'' on links without); None if nobody answers."""

    def passing(self, source: bytes, target: bytes, sizes: Iterable[int]) -> Passed:
        """Ping from the host with packets of these sizes, unfragmented, and return which passed."""

    def setting(self, netns: int, path: str) -> str:
        """Return a kernel setting, '' if it does not exist."""

    def chains(self, netns: int) -> tuple[Chain, ...]:
        """Return the namespace's nftables chains, except those of iptables' tables."""

    def holds(self, netns: int, chain: Chain, name: str, key: tuple[str, ...]) -> bool:
        """Return whether a set or map of the chain's table has a key. Raises KernelError if it cannot be asked."""

    def elements(self, netns: int, chain: Chain, name: str) -> Sequence[Any]:
        """Return the elements of a set of the chain's table, as nft lists them in JSON. Raises KernelError."""

    def mapping(self, netns: int, chain: Chain, name: str) -> Sequence[Any]:
        """Return a map's pairs of key and data, as nft lists them in JSON. Raises KernelError."""

    def iptables(self, netns: int, family: int) -> tuple[IptablesTable, ...]:
        """Return the namespace's tables of iptables, of both variants."""

    def listens(self, netns: int, packet: Packet) -> bool:
        """Return whether a socket in the namespace listens for the packet; always for protocols without ports."""


def client_ports(asked: KernelView, netns: int) -> Span:
    """Return the ports from which a namespace chooses one for a client (ip-sysctl, ip_local_port_range)."""
    first, _, last = asked.setting(netns, "net/ipv4/ip_local_port_range").partition("\t")
    return (int(first), int(last)) if first and last else (0, 0)
