"""Packet of a trace: its headers, as far as rules and routes look at them, and the headers around it on the wire."""

from __future__ import annotations

import msgspec

from linkspan.core.wire import ADDED, ESP, IPIP, VXLAN, Encapsulation

NUMBERS = {"icmp": 1, "ipip": 4, "tcp": 6, "udp": 17, "esp": 50, "ipv6-icmp": 58, "icmpv6": 58, "sctp": 132}
"""IANA's protocol numbers, by the names of this package and of nft."""

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
    def number(self) -> int | None:
        """Return the number of its protocol (IANA), None if it has none."""
        six = (self.protocol, self.family) == ("icmp", 6)
        return NUMBERS.get("icmpv6" if six else self.protocol)

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
