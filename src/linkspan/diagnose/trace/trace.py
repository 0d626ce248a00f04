"""``trace``: a packet's walk both ways, hop by hop, and the first hop that stops it."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterable

import msgspec

from linkspan.core import dns_names
from linkspan.core.addresses import FAMILIES, prefix
from linkspan.core.errors import Conflict, Invalid, NotFound, closest
from linkspan.core.model import CONTROLLER, Endpoint
from linkspan.core.namesakes import meant, missing
from linkspan.core.states.host import HOST
from linkspan.diagnose.trace.hops import OUTSIDE, Broken, Hop, Map, Translation, Unknown, where
from linkspan.diagnose.trace.kernel_view import KernelView
from linkspan.diagnose.trace.packet import Packet
from linkspan.diagnose.trace.parts import Entry, Part

_ADDRESS = re.compile(r"[0-9.]+|[0-9a-fA-F:.]*:[0-9a-fA-F:.]*")
_MOST = 8
"""Largest number of hosts on one path: two are enough, unless routes are wrong."""
_PORT = re.compile(r"(\d{1,5})(?:/(tcp|udp|sctp))?")


class Place(msgspec.Struct, frozen=True):
    """An end of a trace; ``host`` '' is this one, and ``addresses`` empty means any that the host has.

    ``bound``: a user named the address, and no other of this end's will do.
    """

    name: str
    netns: int
    addresses: tuple[bytes, ...] = ()
    host: str = ""
    network: str = ""
    bound: bool = False


class Unanswered(msgspec.Struct, frozen=True):
    """A host did not report its part, with the reason."""

    why: str


Asking = Generator[tuple[str, Entry], Part | Unanswered, "Trace"]
"""A running trace: it yields (host, where the packet's walk through it begins) and receives the findings."""


REACHABLE, BROKEN, UNKNOWN = "reachable", "broken", "unknown"
"""Verdicts."""


class Trace(msgspec.Struct, frozen=True):
    """The result; ``path_mtu`` is 0 if the path is broken or lost before its end.

    ``verdict`` is BROKEN if a hop certainly stops the packet, REACHABLE if every hop certainly lets it pass,
    else UNKNOWN; ``unknown`` are the places that trace cannot decide. ``reachable`` is true only for
    REACHABLE. A path to or from outside is UNKNOWN until a real packet is answered. ``listens``: a socket
    accepts the connection at the end, None if that is unknown or no question.
    """

    reachable: bool
    path_mtu: int
    hops: tuple[Hop, ...]
    reply_hops: tuple[Hop, ...] = ()
    broken_at: str | None = None
    reason: str = ""
    verdict: str = REACHABLE
    unknown: tuple[Unknown, ...] = ()
    listens: bool | None = None


class _Lost(Exception):
    """Nobody reports how the packet continues."""


def place(text: str, known: Map, asked: KernelView) -> Place:
    """Find what a user names: an endpoint's name, NAME@NETWORK or id, ``host:NAME``, or an IP address.

    A name that DNS answers (an alias, NAME.NETWORK, NAME.NETWORK.internal) counts if no endpoint has it as
    its own name. Raises NotFound, or Conflict with the candidates if several endpoints match.
    """
    if text.startswith("host:"):
        return _host(text.removeprefix("host:"), known)
    everywhere = [("", e) for e in known.endpoints]
    everywhere += [(id_, e) for id_, other in known.others.items() for e in other.endpoints]
    if _ADDRESS.fullmatch(text):
        return _address(prefix(text).packed, text, everywhere, known, asked)
    ways = _identified, _named, _resolved
    found = next((some for way in ways if (some := [(host, e) for host, e in everywhere if way(text, e)])), [])
    if not found:
        hint = _meant(text, [e for _, e in everywhere], known)
        raise NotFound(f"nothing has the name {text}: no endpoint or address", hint)
    if len(found) > 1:
        names = ", ".join(f"{_name(e)} ({e.id[:12]} {e.ifname})" for _, e in found)
        apart = len({_name(e) for _, e in found}) > 1
        fix = f"give {'NAME@NETWORK' if apart else 'an id'}, or an address"
        raise Conflict(f"{text} is the name of several endpoints: {names}", fix)
    host, one = found[0]
    return Place(_name(one), one.netns, tuple(p.packed for p in one.prefixes), host, one.network)


def _host(name: str, known: Map) -> Place:
    called = {known.id: known.host} | {id_: other.name for id_, other in known.others.items()}
    id_ = meant(called, name) if name else known.id
    if id_ == known.id and name in ("", id_, known.host):
        return Place(f"host:{known.host}", HOST)
    if other := known.others.get(id_):
        return Place(f"host:{other.name}", HOST, other.addresses.get("", ()), id_)
    raise missing(called, name)


def _address(
    address: bytes, text: str, everywhere: Iterable[tuple[str, Endpoint]], known: Map, asked: KernelView
) -> Place:
    for host, one in everywhere:
        if any(p.packed == address for p in one.prefixes):
            return Place(_name(one), one.netns, (address,), host, one.network, bound=True)
    if address in asked.addresses(HOST):
        return Place(text, HOST, (address,))
    for id_, other in known.others.items():
        if any(address in found for found in other.addresses.values()):
            return Place(text, HOST, (address,), id_)
    return Place(text, OUTSIDE, (address,))


def port(text: str) -> tuple[int, str]:
    """Parse ``80/tcp`` or ``80``; '' is ICMP. Raises Invalid."""
    if not text:
        return 0, "icmp"
    match = _PORT.fullmatch(text)
    if match is None or not 1 <= int(match[1]) <= 65535:
        raise Invalid(f"{text!r} is not a port", "write it like 80/tcp")
    return int(match[1]), match[2] or "tcp"


def trace(known: Map, source: Place, target: Place, packet: Packet) -> Asking:
    """Trace from source to destination and back; each host reports its part."""
    translations: dict[str, Translation] = {}
    there, back = _Way(known, translations), _Way(known, translations)
    try:
        begin = Entry(packet, source.netns, translation=Translation())
        yield from there.follow(source.host, begin)
        _require_arrival(there, target, translated=any(t.dnat for t in translations.values()))
        # it left by no link of the host's: nobody knows where answers arrive
        if there.end == OUTSIDE and not there.exit:
            return _judged(there, back)
        begin = Entry(_reply(packet, there.arrived), there.end, there.exit)
        yield from back.follow(there.host, begin)
        _require_arrival(back, source)
    except Broken as broken:
        return _judged(there, back, broken=broken)
    except _Lost:
        return _judged(there, back, lost=True)
    return _judged(there, back)


def run(going: Asking, report: Callable[[str, Entry], Part | Unanswered]) -> Trace:
    """Run a trace to its end; ``report`` returns what a host ('' is this one) reports of a walk through it."""
    try:
        host, entry = next(going)
        while True:
            host, entry = going.send(report(host, entry))
    except StopIteration as end:
        found: Trace = end.value
        return found


def _judged(there: _Way, back: _Way, *, broken: Broken | None = None, lost: bool = False) -> Trace:
    """Return the result of both directions: a certain stop counts more than an unknown place.

    Of the latter, places on a host of linkspan's come first: there somebody can check.
    """
    unknown = tuple(sorted(dict.fromkeys((*there.unknown, *back.unknown)), key=lambda one: one.beyond))
    hops, reply = tuple(there.hops), tuple(back.hops)
    if broken is not None:
        return Trace(False, 0, hops, reply, where(broken.hop), broken.reason, BROKEN, unknown, there.listens)
    mtu = 0 if lost else min(there.mtu, back.mtu)
    if unknown:
        return Trace(False, mtu, hops, reply, None, unknown[0].why, UNKNOWN, unknown, there.listens)
    return Trace(True, mtu, hops, reply, listens=there.listens)


class _Way:
    """One way, over as many hosts as needed; ``host`` is where it ended."""

    def __init__(self, known: Map, translations: dict[str, Translation]) -> None:
        """Share ``translations`` (by host) between both ways: the way back undoes those of the way there."""
        self.hops: list[Hop] = []
        self.mtu = 65535
        self.host = ""
        self.end = OUTSIDE
        self.exit = ""
        self.arrived: Packet | None = None
        self._translations = translations
        self.unknown: list[Unknown] = []
        self.listens: bool | None = None
        self._known = known

    def follow(
        self, host: str, entry: Entry
    ) -> Generator[tuple[str, Entry], Part | Unanswered, None]:
        """Continue from host to host. Raises Broken if the packet is stopped, _Lost if a host does not report."""
        silent = ""
        for _ in range(_MOST):
            translation = self._translations.setdefault(host, Translation())
            found = yield host, msgspec.structs.replace(entry, translation=translation)
            if isinstance(found, Unanswered):
                raise self._unanswered(host, found.why, silent)
            self.unknown += found.unknown
            self.listens = found.listens
            if found.broken or not silent:
                self.hops += [msgspec.structs.replace(hop, mtu=min(hop.mtu, self.mtu)) for hop in found.hops]
                self.mtu = min(self.mtu, found.mtu)
            if found.broken:  # if nobody answered on the underlay, this host knows the reason better
                raise Broken(self.hops[-1], found.broken)
            if silent:
                raise Broken(self.hops[-1], silent)
            self._translations[host] = found.translation
            self.arrived = found.translation.arrived or self.arrived
            self.host, self.end, self.exit, silent = host, found.end, found.exit, found.silent
            if not found.to:
                return
            entry = Entry(found.packet, at=found.at, outer=found.outer, macs=found.macs)
            host = "" if found.to == self._known.id else found.to
        raise Broken(self.hops[-1], f"the packet loops between hosts ({_MOST} so far)")

    def _unanswered(self, host: str, why: str, silent: str) -> Exception:
        name = self._known.others[host].name if host in self._known.others else host or self._known.host
        who = "the controller of the switches" if host == CONTROLLER else f"host {name}"
        reason = f"{who} did not report its part of the path: {why}"
        if silent:
            return Broken(self.hops[-1], f"{silent}; {reason}")
        self.hops.append(Hop(name, "host", "", "unknown", reason, mtu=self.mtu))
        self.unknown.append(Unknown(where(self.hops[-1]), reason))
        return _Lost()


def _require_arrival(way: _Way, target: Place, *, translated: bool = False) -> None:
    """Raise for a packet that ended elsewhere than it should; one to a published port may end in any container."""
    last = way.hops[-1]
    there = last.namespace if last.namespace == last.host else f"{last.namespace} of {last.host}"
    if way.end == OUTSIDE != target.netns:
        raise Broken(last, f"the packet for {target.name} leaves by {last.device}")
    # Only packets to the host's own addresses may be led into a container: by a published port.
    led = translated and target.netns == HOST
    if target.netns != OUTSIDE and (way.host, way.end) != (target.host, target.netns) and not led:
        raise Broken(last, f"the packet for {target.name} ends in {there}")
    if way.end != OUTSIDE == target.netns and not translated:
        raise Broken(last, f"the packet for {target.name} ends in {there}")


def _reply(packet: Packet, arrived: Packet | None) -> Packet:
    """Return the answer as its sender sends it: to the source as it arrived, from the address at which it arrived."""
    arrived = arrived or packet
    return Packet(
        arrived.target, arrived.source, packet.protocol, arrived.source_port, arrived.port,
        established=True, translated=arrived.translated, client=arrived.client,
    )  # fmt: skip


def chosen(asked: KernelView, known: Map, source: Place, target: Place, to: tuple[int, str]) -> Packet:
    """Choose the packet's addresses: one family for both, IPv4 first; the host's own as the kernel would.

    Raises Invalid if the two have no family in common, if neither is here, or if this host has no route to the other.
    """
    if source.netns == target.netns == OUTSIDE:
        raise Invalid(
            f"neither {source.name} nor {target.name} is on a host of linkspan's",
            "trace from or to a container",
        )
    number, protocol = to
    source, target = _addressed(known, source, target), _addressed(known, target, source)
    for family in FAMILIES:
        mine = next((a for a in source.addresses if len(a) == (4 if family == 4 else 16)), b"")
        theirs = next((a for a in target.addresses if len(a) == (4 if family == 4 else 16)), b"")
        if (source.addresses and not mine) or (target.addresses and not theirs):
            continue
        if not theirs and mine:
            theirs = asked.route(HOST, Packet(b"", mine)).source
        if not mine and theirs:
            mine = asked.route(HOST, Packet(b"", theirs)).source
        if mine and theirs:
            return Packet(mine, theirs, protocol, number, bound=source.bound)
    for end, other in ((source, target), (target, source)):
        if not end.addresses and other.addresses:
            raise Invalid(f"{end.name} has no route to {other.name}", _unrouted(other))
    raise Invalid(
        f"{source.name} and {target.name} have no address family in common",
        "give an address of a common family",
    )


def _unrouted(other: Place) -> str:
    """Return a hint for this host, which has no route to another end."""
    if not other.network:
        return "look at its routes: ip route"
    name = other.network
    return f"without a container in network {name} it takes part there only if its setting `networks` has {name} or all"


def _name(endpoint: Endpoint) -> str:
    return f"{endpoint.name or endpoint.id[:12]}@{endpoint.network}"


def _addressed(known: Map, one: Place, other: Place) -> Place:
    """Return another host, identified by its name, with its addresses in the other end's network, if it has any."""
    if not one.name.startswith("host:") or one.host not in known.others:
        return one
    inside = known.others[one.host].addresses.get(other.network)
    return msgspec.structs.replace(one, addresses=inside) if inside else one


def _identified(text: str, endpoint: Endpoint) -> bool:
    name, _, network = text.partition("@")
    return network in ("", endpoint.network) and name in (endpoint.id, endpoint.id[:12])


def _named(text: str, endpoint: Endpoint) -> bool:
    name, _, network = text.partition("@")
    return network in ("", endpoint.network) and name == endpoint.name


def _meant(text: str, endpoints: Iterable[Endpoint], known: Map) -> str:
    """Return a hint for a word that names nothing."""
    if text in (known.host, known.id, *known.others, *(other.name for other in known.others.values())):
        return f"host:{text} is the host"
    name, colon, port = text.rpartition(":")
    if colon and port.isdecimal():
        return f"to ask for a port: linkspan trace ... {name} --port {port}"
    called = {word for e in endpoints for word in (e.name, e.id[:12]) if word}
    return closest(text, called, "`linkspan endpoint list` shows all; a host is host:NAME")


def _resolved(text: str, endpoint: Endpoint) -> bool:
    """Return whether DNS answers a name with the endpoint's addresses; NAME@NETWORK asks only in that network."""
    name, _, network = text.partition("@")
    return network in ("", endpoint.network) and dns_names.answers(endpoint, name)
