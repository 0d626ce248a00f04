"""Conntrack: flush connections that a changed mapping translated, or that belonged to an address.

Otherwise packets of a UDP client that keeps sending go to the old target forever: each packet renews its
entry, and a mapping is looked up only for an entry's first packet.

Entries are found by a dump that the kernel filters (CTA_FILTER, Linux 5.8), so only matching ones are copied,
and each is deleted by its own tuple. (Only newer kernels can delete by a filter, in one message, and they
walk the same table.) An older kernel dumps everything; so each entry is compared here, too.

The kernel must not filter by IPv6 addresses: it passes exactly those that differ (6.18 does;
``!ipv6_addr_cmp(...)`` in ctnetlink_filter_match_tuple). So all IPv6 entries are dumped, and compared here.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

import msgspec

from linkspan.core import icmp
from linkspan.core.addresses import BITS, FAMILIES, SOCKET_FAMILY, Prefix
from linkspan.core.errors import KernelError
from linkspan.kernel.io.netlink import NETFILTER, Message, Socket, attr, attributes, u32

# linux/netfilter/nfnetlink.h, nfnetlink_conntrack.h
_GET, _DELETE = 1 << 8 | 1, 1 << 8 | 2
_NESTED = 0x8000
_ORIGINAL, _REPLY, _ID, _ZONE, _FILTER = 1, 2, 12, 18, 25
_PROTOCOL_INFO, _TCP_INFO, _TCP_STATE, _TCP_FLAGS = 4, 1, 1, 4  # CTA_PROTOINFO and what is in it
# TCP_CONNTRACK_ESTABLISHED and IP_CT_TCP_FLAG_..., nf_conntrack_tcp.h
_TCP_ESTABLISHED = b"\3"
_WINDOW_SCALE, _BE_LIBERAL = 1 << 0, 1 << 3
_TUPLE_IP, _TUPLE_PROTO = 1, 2
_PROTO_NUMBER, _PROTO_FROM_PORT, _PROTO_TO_PORT = 1, 2, 3
_PROTO_ICMP = {4: 5, 6: 8}  # CTA_PROTO_ICMP_TYPE, CTA_PROTO_ICMPV6_TYPE
_FILTER_FLAGS = {_ORIGINAL: 1, _REPLY: 2}
_FLAG_FROM, _FLAG_TO, _FLAG_PROTO, _FLAG_TO_PORT = 1 << 0, 1 << 1, 1 << 3, 1 << 5
_FROM, _TO = {4: 1, 6: 3}, {4: 2, 6: 4}
_FAMILY = {int(SOCKET_FAMILY[family]): family for family in FAMILIES}
BUCKET, ENTRY = 35, 9000
"""Nanoseconds of a dump for each bucket of the table, full or empty, and of this code for each entry.

Measured: 9 ms for a dump of the usual 262,144 buckets, whatever the filter. So one dump of everything is
cheaper than several filtered ones as long as there are few entries.
"""
PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132}
PROTOCOL_NAMES = {6: "tcp", 17: "udp", 132: "sctp", 1: "icmp", 58: "icmp"}
"""Names of protocols by their numbers, as policies have them."""


class Flow(msgspec.Struct, frozen=True):
    """A flow as it is forwarded: from its first sender, to where a translation sends it (port 0: it has none).

    A protocol that no policy names is its number, as text. Of icmp the port is the number of its request
    (``core/icmp.py``).
    """

    source: Prefix
    target: Prefix
    protocol: str
    port: int
    translated: Prefix | None = None
    """What its source is replaced by, None if nothing replaces it."""


class _Way(msgspec.Struct, frozen=True):
    """One way to match: the attributes for parts of a direction's tuple."""

    direction: int
    want: tuple[tuple[int, tuple[tuple[int, bytes], ...]], ...]
    flags: int

    def filter(self, family: int) -> bytes:
        """Return the attributes by which the kernel filters a dump; none if it cannot."""
        if family == 6 and any(part == _TUPLE_IP for part, _ in self.want):
            return b""
        parts = (attr(part | _NESTED, b"".join(attr(*one) for one in want)) for part, want in self.want)
        flags = u32(_FILTER_FLAGS[self.direction], self.flags)
        return attr(self.direction | _NESTED, b"".join(parts)) + attr(_FILTER | _NESTED, flags)

    def matches(self, entry: dict[int, bytes]) -> bool:
        """Return whether an entry really matches, for a kernel that does not filter."""
        there = attributes(entry.get(self.direction, b""))
        found = ((attributes(there.get(part, b"")), want) for part, want in self.want)
        return all(has.get(kind) == value for has, want in found for kind, value in want)


def flush(
    ports: Collection[tuple[str, int]] = (),
    addresses: Collection[Prefix] = (),
    flows: Collection[tuple[Prefix, str, int]] = (),
) -> int:
    """Delete entries first sent to these (protocol, port), and those of these addresses; return how many.

    An address's entries are those from it, to it, and those with it behind a translation. Of ``flows``,
    (address, protocol, port), they are those first sent by the address to the port. It works in the calling
    thread's namespace. Raises KernelError.
    """
    ways = {
        family: [w for port in ports for w in _of_port(*port)]
        + [w for a in addresses for w in _of_address(family, a)]
        + [_of_flow(*flow) for flow in flows if flow[0].family == family]
        for family in FAMILIES
    }
    count = _number("net/netfilter/nf_conntrack_count")
    filters = {(family, way.filter(family)) for family, found in ways.items() for way in found}
    if not count or not filters:
        return 0
    if (len(filters) - 1) * _number("net/netfilter/nf_conntrack_buckets") * BUCKET > count * ENTRY:
        filters = {(socket.AF_UNSPEC, b"")}
    netlink = Socket(NETFILTER)
    try:
        doomed: dict[bytes, None] = {}
        for family, wanted in filters:
            header = struct.pack("=BBH", SOCKET_FAMILY.get(family, family), 0, 0)
            for payload in netlink.dump(_GET, header + wanted, "list connections"):
                entry = attributes(payload, 4)
                if any(way.matches(entry) for way in ways[_FAMILY[payload[0]]]):
                    doomed[_key(payload, entry)] = None
        return _delete(netlink, doomed)
    finally:
        netlink.close()


def cut(forbidden: Callable[[Flow], bool]) -> int:
    """Delete the entries of forwarded flows that are ``forbidden`` now; return how many.

    If connection tracking met a TCP connection in the middle, nobody knows which end began it. So it is judged both
    ways, and either is enough. It works in the calling thread's namespace, and takes about 10 microseconds for each
    entry. Raises KernelError.
    """
    return _with_flows(forbidden, _delete)


def count(wanted: Callable[[Flow], bool]) -> int:
    """Return the number of established TCP connections that are ``wanted``, as ``cut`` would find them.

    Raises KernelError.
    """
    return _with_flows(wanted, lambda _netlink, keys: len(keys), _established)


def _established(entry: dict[int, bytes]) -> bool:
    return _tcp(entry).get(_TCP_STATE) == _TCP_ESTABLISHED


def _tcp(entry: dict[int, bytes]) -> dict[int, bytes]:
    return attributes(attributes(entry.get(_PROTOCOL_INFO, b"")).get(_TCP_INFO, b""))


def _with_flows(
    wanted: Callable[[Flow], bool],
    what: Callable[[Socket, list[bytes]], int],
    only: Callable[[dict[int, bytes]], bool] = lambda _entry: True,
) -> int:
    """Call a function with the keys of the entries of these flows; return its result."""
    if not _number("net/netfilter/nf_conntrack_count"):
        return 0
    netlink = Socket(NETFILTER)
    try:
        keys = []
        for payload in netlink.dump(_GET, struct.pack("=BBH", socket.AF_UNSPEC, 0, 0), "list connections"):
            entry = attributes(payload, 4)
            if only(entry) and any(map(wanted, _flows(entry))):
                keys.append(_key(payload, entry))
        return what(netlink, keys)
    finally:
        netlink.close()


def _flows(entry: dict[int, bytes]) -> Iterator[Flow]:
    """Yield the flow of an entry, and the one that it is if the other end began it, as far as that may be."""
    flow = _flow(entry)
    if flow is not None:
        yield flow
        if flow.translated is None and _met_in_the_middle(entry):
            sent = attributes(entry[_ORIGINAL])
            addressed = attributes(sent[_TUPLE_IP])[_TO[flow.target.family]]
            port = attributes(sent[_TUPLE_PROTO])[_PROTO_FROM_PORT]
            if addressed == flow.target.packed:  # otherwise only the client knows the address that is translated
                yield Flow(flow.target, flow.source, flow.protocol, int.from_bytes(port, "big"))


def _met_in_the_middle(entry: dict[int, bytes]) -> bool:
    """Return whether a TCP connection's first packets were not tracked (nf_conntrack_tcp_loose).

    The kernel compares no windows then, and knows no scale of them. Of a connection in a flowtable it compares none
    either, but it has seen the scale.
    """
    flags = _tcp(entry).get(_TCP_FLAGS, b"\0")[0]
    return flags & (_BE_LIBERAL | _WINDOW_SCALE) == _BE_LIBERAL


def _flow(entry: dict[int, bytes]) -> Flow | None:
    """Return the flow of an entry, None if it has none.

    Who answers is the target: the reply comes from where the packets went after their translation, and goes to the
    source that they had then.
    """
    sent, replied = (attributes(entry.get(one, b"")) for one in (_ORIGINAL, _REPLY))
    ends, answers = attributes(sent.get(_TUPLE_IP, b"")), attributes(replied.get(_TUPLE_IP, b""))
    reply = attributes(replied.get(_TUPLE_PROTO, b""))
    number = reply.get(_PROTO_NUMBER, b"\0")[0]
    protocol = PROTOCOL_NAMES.get(number, str(number))
    for family in FAMILIES:
        source, target = ends.get(_FROM[family]), answers.get(_FROM[family])
        if source and target:
            port = int.from_bytes(reply.get(_PROTO_FROM_PORT, b""), "big")
            if protocol == "icmp":
                message = attributes(sent.get(_TUPLE_PROTO, b"")).get(_PROTO_ICMP[family], b"")
                port = icmp.request(family, int.from_bytes(message, "big"))
            seen = answers.get(_TO[family], source)
            translated = None if seen == source else Prefix(seen, BITS[family])
            return Flow(Prefix(source, BITS[family]), Prefix(target, BITS[family]), protocol, port, translated)
    return None


def _key(payload: bytes, entry: dict[int, bytes]) -> bytes:
    key = payload[:4] + attr(_ORIGINAL | _NESTED, entry[_ORIGINAL])
    return key + b"".join(attr(kind, entry[kind]) for kind in (_ID, _ZONE) if kind in entry)


def _delete(netlink: Socket, keys: Iterable[bytes]) -> int:
    errors = netlink.batch([Message(_DELETE, 0, key, "forget a connection") for key in keys])
    refused = [e for e in errors if isinstance(e, KernelError) and e.errno != errno.ENOENT]
    if refused:
        raise refused[0]
    return len(errors)


def _of_port(protocol: str, port: int) -> list[_Way]:
    return [_Way(_ORIGINAL, (_to_port(protocol, port),), _FLAG_PROTO | _FLAG_TO_PORT)]


def _to_port(protocol: str, port: int) -> tuple[int, tuple[tuple[int, bytes], ...]]:
    return _TUPLE_PROTO, ((_PROTO_NUMBER, bytes([PROTOCOLS[protocol]])), (_PROTO_TO_PORT, struct.pack("!H", port)))


def _of_flow(address: Prefix, protocol: str, port: int) -> _Way:
    source = (_TUPLE_IP, ((_FROM[address.family], address.packed),))
    return _Way(_ORIGINAL, (source, _to_port(protocol, port)), _FLAG_FROM | _FLAG_PROTO | _FLAG_TO_PORT)


def _of_address(family: int, address: Prefix) -> list[_Way]:
    if family != address.family:
        return []
    source, target = ((_TUPLE_IP, ((kinds[family], address.packed),)) for kinds in (_FROM, _TO))
    return [
        _Way(_ORIGINAL, (source,), _FLAG_FROM),
        _Way(_ORIGINAL, (target,), _FLAG_TO),
        _Way(_REPLY, (source,), _FLAG_FROM),
    ]


def _number(path: str) -> int:
    try:
        return int(Path("/proc/sys", path).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 0  # this kernel tracks nothing
