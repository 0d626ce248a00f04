"""Routes with our protocol number, in the main table and in those that rules of ours name; and our BGP speaker's."""

from __future__ import annotations

import errno
import functools
import shlex
import socket
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence

import msgspec

from linkspan.core.addresses import BITS, SOCKET_FAMILY, Prefix
from linkspan.core.driver_contract import Support
from linkspan.core.errors import KernelError, LinkspanError
from linkspan.core.kinds import Event, Kind, Sort, on_device
from linkspan.core.shell import Shell, address_text
from linkspan.core.states.host import (
    HOST,
    LEARNT_METRIC,
    ROUTE_PROTOCOL,
    UNREACHABLE_METRIC,
    Key,
    Route,
    State,
)
from linkspan.kernel.io import batch
from linkspan.kernel.io.link_messages import NESTED, names_of, own_of
from linkspan.kernel.io.netlink import (
    DELROUTE,
    F_CREATE,
    F_REPLACE,
    GETROUTE,
    NEWROUTE,
    Message,
    attr,
    attributes,
    u32,
)
from linkspan.kernel.io.route_messages import (
    BIRD,
    DST,
    ENCAP,
    ENCAP_TYPE,
    ENCAP_XFRM,
    GATEWAY,
    IF_ID,
    METRIC_HOPLIMIT,
    METRIC_MTU,
    METRICS,
    MULTIPATH,
    OIF,
    PREFSRC,
    PRIORITY,
    RTMSG,
    TABLE,
    TABLE_LOCAL,
    TABLE_MAIN,
    UNICAST,
    UNREACHABLE,
    if_id,
    metrics_of,
)
from linkspan.kernel.io.rule_messages import PROTOCOL, reported
from linkspan.kernel.io.rule_messages import TABLE as RULE_TABLE
from linkspan.kernel.io.sockets import Sockets
from linkspan.kernel.local_host import LocalHost

_OURS = bytes([ROUTE_PROTOCOL])
# linux/rtnetlink.h
_TYPES = {2: "local", 3: "broadcast", 4: "anycast", 5: "multicast"}  # RTN_*
_TYPES |= {6: "blackhole", 7: "unreachable", 8: "prohibit", 9: "throw"}
_NEXTHOP = struct.Struct("=HBBi")  # struct rtnexthop
_EVERY_TABLE = 0
_SCOPE_LINK = 253
_ONLINK = 4  # RTNH_F_ONLINK
_BY_PEER, _BY_PEER_KINDS = struct.Struct("=HHIHH4sHH4sHH4sHHi"), (15, DST, PREFSRC, GATEWAY, OIF)
"""The kernel's attributes of an IPv4 route to a peer, in its own order (fib_dump_info), the table first.

A host has thousands of these, and a search for each attribute takes four times as long.
"""
_TO_PEER = {n: struct.Struct(f"=BBBBBBBBIHH{n}sHH{n}sHH{n}sHHi") for n in (4, 16)}
"""A route to a peer in one go, by the length of the address; each attribute by itself takes three times as long."""
DEFAULT_MTU = 1500
_IP6_DEFAULT_METRIC = 1024  # IP6_RT_PRIO_USER in net/ipv6_route.h: the kernel's value for metric 0


class RouteDriver:
    """Route."""

    def __init__(self, sockets: Sockets) -> None:
        self._sockets = sockets

    def probe(self) -> Support:
        """Return support: every kernel has routes."""
        return Support("kernel")

    def observe(self, netns: int) -> Iterable[State]:
        """Return the routes with our protocol number: in all tables, on the host in those that rules of ours name."""
        names = self._sockets.names(netns)
        return (_route(payload, names, netns) for payload in self._reported(netns))

    def stamp(self) -> object:
        """Return what stays the same as long as the kernel reports the same routes by links of the same names."""
        return frozenset(self._sockets.names(HOST).items()), hash(b"".join(self._reported(HOST)))

    def _reported(self, netns: int) -> Iterator[bytes]:
        for family in SOCKET_FAMILY.values():
            table = TABLE_MAIN if netns == HOST and not self._has_tables(family) else _EVERY_TABLE
            yield from _dump(self._sockets, netns, family, ROUTE_PROTOCOL, table)

    def _has_tables(self, family: int) -> bool:
        """Return whether rules of ours on the host name other tables; there is nothing of ours in any other."""
        try:
            found = list(reported(self._sockets.at(HOST), 4 if family == socket.AF_INET else 6))
        except KernelError:  # a kernel without rules, or without IPv6
            return False
        ours = (one for one in found if one.found.get(PROTOCOL) == _OURS)
        return any(one.number(RULE_TABLE, one.table) != TABLE_MAIN for one in ours)

    def apply(self, put: Sequence[State], delete: Sequence[State]) -> Mapping[Key, LinkspanError]:
        """Add, replace and remove routes; one whose device is gone counts as removed."""
        new, old = functools.partial(_message, kind=NEWROUTE), functools.partial(_message, kind=DELROUTE)
        gone = (errno.ESRCH, errno.ENODEV)
        failed = batch.send(self._sockets, put, new)
        # IPv6 refuses a gateway on a link if a route to it uses another link, for example a tunnel's
        # predecessor (ip6_route_check_nh_onlink): so the old route is removed first.
        again = [s for s in put if isinstance(s, Route) and s.onlink and _refused(failed.get(s.key))]
        if again:
            batch.send(self._sockets, [msgspec.structs.replace(s, device="") for s in again], old, gone)
            kept = {key: error for key, error in failed.items() if key not in {s.key for s in again}}
            failed = kept | batch.send(self._sockets, again, new)
        return failed | batch.send(self._sockets, delete, old, gone)


def _refused(error: LinkspanError | None) -> bool:
    return isinstance(error, KernelError) and error.errno == errno.EINVAL


def _dump(
    sockets: Sockets, netns: int, family: int, protocol: int = 0, table: int = TABLE_MAIN
) -> list[bytes]:
    """Return the routes of a family, of one protocol or of all (0), of one table or of all (0)."""
    body = RTMSG.pack(family, 0, 0, 0, table, protocol, 0, 0, 0)
    try:
        found = sockets.at(netns).dump(GETROUTE, body, "list routes")
    except KernelError as error:
        if error.errno == errno.ENOENT:  # a namespace that never had a route has no main table
            return []
        raise
    return [p for p in found if table in (0, p[4]) and protocol in (0, p[5])]


def _message(state: Route, index: int, kind: int, protocol: int = ROUTE_PROTOCOL) -> Message:
    destination, family = state.destination, state.destination.family
    if kind == NEWROUTE and state.gateway and state.source and index and destination.length and _is_plain(state):
        head = SOCKET_FAMILY[family], destination.length, 0, 0, TABLE_MAIN, protocol, 0, UNICAST
        size = len(destination.packed)
        to = 4 + size, DST, destination.packed
        via, source = (4 + size, GATEWAY, state.gateway), (4 + size, PREFSRC, state.source)
        flags = _ONLINK if state.onlink else 0
        body = _TO_PEER[size].pack(*head, flags, *to, *via, *source, 8, OIF, index)
        return Message(kind, F_CREATE | F_REPLACE, body, functools.partial(_what, state, kind))
    scope = _SCOPE_LINK if index and not state.gateway and family == 4 else 0
    type_ = UNICAST if state.device else UNREACHABLE
    flags = _ONLINK if state.onlink and kind == NEWROUTE else 0
    if kind == DELROUTE:
        scope, type_ = 255, 0  # RT_SCOPE_NOWHERE and RTN_UNSPEC match any
    table = 0 if state.table else TABLE_MAIN  # a number above 255 comes as an attribute
    body = RTMSG.pack(SOCKET_FAMILY[family], destination.length, 0, 0, table, protocol, scope, type_, flags)
    body += u32(TABLE, state.table) if state.table else b""
    body += attr(DST, destination.packed) if destination.length else b""
    body += u32(OIF, index) if index else b""
    body += attr(GATEWAY, state.gateway) if state.gateway and kind == NEWROUTE else b""
    body += attr(PREFSRC, state.source) if state.source and kind == NEWROUTE else b""
    body += u32(PRIORITY, state.metric) if state.metric else b""
    body += attr(METRICS, u32(METRIC_MTU, state.mtu)) if state.mtu and kind == NEWROUTE else b""
    if state.if_id and kind == NEWROUTE:
        body += attr(ENCAP_TYPE, struct.pack("=H", ENCAP_XFRM)) + attr(ENCAP | NESTED, u32(IF_ID, state.if_id))
    how = F_CREATE | F_REPLACE if kind == NEWROUTE else 0
    return Message(kind, how, body, functools.partial(_what, state, kind))


def _is_plain(state: Route) -> bool:
    """Return whether a route has nothing beside device, gateway and source."""
    return not (state.metric or state.mtu or state.if_id or state.table)


def _what(state: Route, kind: int) -> str:
    where = f" dev {state.device}" if state.device else ""
    via = f" via {Prefix(state.gateway, 0).address}" if state.gateway else ""
    verb = "add" if kind == NEWROUTE else "remove"
    unreachable = "" if state.device else "unreachable "
    table = f" table {state.table}" if state.table else ""
    return f"{verb} {unreachable}route {state.destination}{via}{where}{table}"


def _route(payload: bytes, names: dict[int, str], netns: int) -> Route:
    if len(payload) == 12 + _BY_PEER.size and payload[7] == UNICAST:
        values = _BY_PEER.unpack_from(payload, 12)
        if values[1::3] == _BY_PEER_KINDS:
            onlink = bool(RTMSG.unpack_from(payload)[8] & _ONLINK)
            device = names.get(values[14], "?")
            return Route(Prefix(values[5], payload[1]), device, values[11], values[8], 0, netns, onlink)
    family = 4 if payload[0] == socket.AF_INET else 6
    found = attributes(payload, 12)
    destination = Prefix(bytes(found.get(DST, bytes(BITS[family] // 8))), payload[1])
    metric = struct.unpack("=I", found[PRIORITY])[0] if PRIORITY in found else 0
    if family == 6 and metric == _IP6_DEFAULT_METRIC:
        metric = 0
    device = ""
    if payload[7] != UNREACHABLE and OIF in found:
        device = names.get(struct.unpack("=I", found[OIF])[0], "?")
    elif MULTIPATH in found:  # another program's: its first next hop represents all
        device = names.get(_NEXTHOP.unpack_from(found[MULTIPATH])[3], "?")
    gateway, source = bytes(found.get(GATEWAY, b"")), bytes(found.get(PREFSRC, b""))
    onlink = bool(RTMSG.unpack_from(payload)[8] & _ONLINK)
    metrics = metrics_of(found)
    metric &= UNREACHABLE_METRIC
    table = 0 if payload[4] == TABLE_MAIN else int(struct.unpack("=I", found[TABLE])[0])
    wrong = tuple(_amiss(payload, found, metrics, unreachable=not device))
    mtu = metrics.get(METRIC_MTU, 0)
    return Route(destination, device, gateway, source, metric, netns, onlink, mtu, if_id(found), table, wrong)


def _amiss(
    payload: bytes, found: Mapping[int, bytes], metrics: Mapping[int, int], *, unreachable: bool
) -> Iterator[str]:
    """Yield in words the properties of a route that differ from linkspan's, and may stop packets."""
    if payload[7] != (UNREACHABLE if unreachable else UNICAST):
        yield _TYPES.get(payload[7], f"type {payload[7]}")
    if metrics.get(METRIC_HOPLIMIT):
        yield "hoplimit"
    if ENCAP in found and found.get(ENCAP_TYPE) != struct.pack("=H", ENCAP_XFRM):
        yield "encap"
    if MULTIPATH in found:
        yield "multipath"


def foreign_routes(sockets: Sockets) -> dict[Prefix, str]:
    """Return the routes that are neither ours nor through our links, and how each continues: ``by eth0``.

    They are those of the main table, and those by which the host receives packets (``of type local``).
    """
    links = sockets.links(HOST)
    names, ours = names_of(links), set(own_of(links).values())
    found: dict[Prefix, str] = {}
    for table in (TABLE_MAIN, TABLE_LOCAL):
        for family in SOCKET_FAMILY.values():
            for payload in _dump(sockets, HOST, family, table=table):
                if payload[5] != ROUTE_PROTOCOL:
                    route = _route(payload, names, HOST)
                    link_local = route.destination.packed[:2] in (b"\xfe\x80", b"\xa9\xfe")
                    learnt = payload[5] == BIRD and route.metric == LEARNT_METRIC and route.destination.length
                    if route.device not in ours and not link_local and not learnt:
                        found.setdefault(route.destination, _way(payload, route.device))
    return found


def _way(payload: bytes, device: str) -> str:
    if payload[7] == UNICAST:
        return f"by {device}"
    return f"of type {_TYPES.get(payload[7], payload[7])}"


def learnt_routes(sockets: Sockets, metric: int) -> list[Route]:
    """Return the routes of a BGP speaker with this metric; one with several next hops has no device."""
    return [
        route
        for family in SOCKET_FAMILY.values()
        for payload in _dump(sockets, HOST, family, BIRD)
        if (route := _route(payload, {}, HOST)).metric == metric
    ]


def sweep(sockets: Sockets, routes: Sequence[Route]) -> None:
    """Remove routes of a BGP speaker. Raises KernelError; those that are gone count as removed."""
    messages = [_message(route, 0, DELROUTE, BIRD) for route in routes]
    for result in sockets.at(HOST).batch(messages) if messages else ():
        if result is not None and result.errno not in (errno.ESRCH, errno.ENODEV):
            raise result


def default_link(sockets: Sockets) -> str:
    """Return the link of the host's default route, '' if it has none."""
    every = (payload for family in SOCKET_FAMILY.values() for payload in _dump(sockets, HOST, family))
    found = [one for one in every if one[1] == 0 and one[7] == UNICAST and one[5] != ROUTE_PROTOCOL]
    links = sockets.links(HOST) if found else []
    names, ours = names_of(links), set(own_of(links).values())
    devices = (_route(payload, names, HOST).device for payload in found)
    return next((device for device in devices if device not in ours), "")


def uplink_mtu(sockets: Sockets) -> int:
    """Return the MTU of the default route's link, 1500 if there is none."""
    device = default_link(sockets)
    return sockets.mtu(HOST, device) if device else DEFAULT_MTU


def default_metrics(sockets: Sockets, netns: int) -> list[int]:
    """Return the metrics of a container's default routes, also foreign ones."""
    metrics = []
    for family in SOCKET_FAMILY.values():
        for payload in _dump(sockets, netns, family):
            if payload[1] == 0:
                metric = _route(payload, {}, netns).metric
                metrics.append(metric if family == socket.AF_INET else max(metric - _IP6_DEFAULT_METRIC, 0))
    return metrics


def driver(host: LocalHost) -> RouteDriver:
    """Return the driver of routes."""
    return RouteDriver(host.sockets)


def _add(state: Route, shell: Shell) -> tuple[str, ...]:
    target = str(state.destination) if state.destination.length else "default"
    words = [shell.ip(state.netns), f"-{state.destination.family}", "route replace"]
    words += [target] if state.device else ["unreachable", target]
    if state.gateway:
        words.append(f"via {address_text(state.gateway)}")
    if state.device:
        words.append(f"dev {shlex.quote(state.device)}")
    if state.onlink:
        words.append("onlink")
    if state.if_id:
        words.append(f"encap xfrm if_id {state.if_id}")
    if state.source:
        words.append(f"src {address_text(state.source)}")
    if state.metric:
        words.append(f"metric {state.metric}")
    if state.mtu:
        words.append(f"mtu {state.mtu}")
    if state.table:
        words.append(f"table {state.table}")
    return (" ".join([*words, f"proto {ROUTE_PROTOCOL}"]),)


def _typed(states: Sequence[Route]) -> list[Route]:
    """Return routes through a gateway after the direct ones, among which is the route to the gateway."""
    return sorted(states, key=lambda state: bool(state.gateway))


def _in_our_table(state: Route) -> bool:
    # Left by an agent that was killed, it would send packets by an interface that now belongs to another program.
    return bool(state.table)


KINDS = (
    Kind(
        state=Route,
        rank=60,
        driver=driver,
        known_by="protocol number 76",
        purpose="where packets to these addresses go",
        sort=Sort.PLACE,
        commands=_add,
        typed=_typed,
        on=on_device,
        falls=True,
        alone=_in_our_table,
        events=frozenset({Event.ROUTE, Event.ADDRESS_GONE}),
    ),
)
