"""Route lookup: where the kernel sends a packet, by its own answer."""

from __future__ import annotations

import struct

import msgspec

from linkspan.core.addresses import SOCKET_FAMILY, Prefix
from linkspan.core.errors import KernelError
from linkspan.kernel.io import route_messages
from linkspan.kernel.io.netlink import GETROUTE, Message, Socket, attr, attributes, u32
from linkspan.kernel.io.route_messages import (
    DPORT,
    DST,
    FIB_MATCH,
    GATEWAY,
    IIF,
    IP_PROTO,
    MARK,
    METRIC_HOPLIMIT,
    METRIC_MTU,
    OIF,
    PREFSRC,
    RTMSG,
    SPORT,
    SRC,
    VIA,
)


class Question(msgspec.Struct, frozen=True):
    """The packet: its destination, and what else policy rules and source checks look at, 0 or b'' where they may not.

    ``arriving`` is the index of the link by which it came, ``protocol`` its number, for which the kernel takes
    ICMP, TCP and UDP only (rtm_getroute_parse_ip_proto in net/ipv4/fib_frontend.c).
    """

    target: bytes
    source: bytes = b""
    mark: int = 0
    arriving: int = 0
    protocol: int = 0
    source_port: int = 0
    port: int = 0

    def message(self, flags: int = 0) -> Message:
        """Return the request."""
        bits = len(self.target) * 8
        family = SOCKET_FAMILY[4 if bits == 32 else 6]
        body = RTMSG.pack(family, bits, bits if self.source else 0, 0, 0, 0, 0, 0, flags) + attr(DST, self.target)
        body += attr(SRC, self.source) if self.source else b""
        body += u32(MARK, self.mark) if self.mark else b""
        body += attr(IP_PROTO, bytes([self.protocol])) if self.protocol else b""
        for kind, port in ((SPORT, self.source_port), (DPORT, self.port)):
            body += attr(kind, struct.pack("!H", port)) if port else b""
        body += u32(IIF, self.arriving) if self.arriving else b""
        return Message(GETROUTE, 0, body, "look up route")


class Answer(msgspec.Struct, frozen=True):
    """The way: ``kind`` is RTN_*, ``link`` an index (0: none), ``gateway`` b'' if the packet needs no next hop.

    ``source`` is the source of a packet that has none yet. ``mtu`` and ``hops`` (the TTL of local packets) are
    0 if the route does not set them.
    """

    kind: int
    link: int
    gateway: bytes
    source: bytes
    mtu: int
    hops: int


class Matched(msgspec.Struct, frozen=True):
    """The route that matches: its destination, its origin (RTPROT_*), and its XFRM interface's if_id, 0 without."""

    destination: str = ""
    origin: int = 0
    if_id: int = 0


def ask(socket: Socket, question: Question) -> Answer:
    """Look up the way of a packet. Raises KernelError with the errno by which the kernel refuses it."""
    answer = socket.get(question.message())
    found = attributes(answer, RTMSG.size)
    metrics = route_messages.metrics_of(found)
    link = int(struct.unpack("=I", found[OIF])[0]) if OIF in found else 0
    # A next hop of the other family is in RTA_VIA, after its address family (struct rtvia).
    gateway = bytes(found.get(GATEWAY, b"") or found.get(VIA, b"")[2:])
    source = bytes(found.get(PREFSRC, b""))
    return Answer(answer[7], link, gateway, source, metrics.get(METRIC_MTU, 0), metrics.get(METRIC_HOPLIMIT, 0))


def match(socket: Socket, question: Question) -> Matched:
    """Return the route that a lookup finds, an empty one if it finds none."""
    try:
        answer = socket.get(question.message(FIB_MATCH))
    except KernelError:
        return Matched()
    found = attributes(answer, RTMSG.size)
    destination = str(Prefix(bytes(found[DST]), answer[1])) if answer[1] else "default"
    return Matched(destination, answer[5], route_messages.if_id(found))
