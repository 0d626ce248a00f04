"""Published ports: their syntax, and which endpoint uses which port of the host."""

from __future__ import annotations

import contextlib
import ipaddress
import re
from collections.abc import Awaitable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Protocol as Contract
from typing import TypeVar

import msgspec

from linkspan.core.addresses import prefix
from linkspan.core.errors import Conflict, Exhausted, Invalid
from linkspan.core.model import Endpoint, Port, PortRange, Protocol

_PUBLISH = re.compile(
    r"(?:(?P<ip>\[[0-9a-fA-F:.]+\]|[0-9.]+):)?(?P<host>\d+)(?:-(?P<host_end>\d+))?"
    r":(?P<port>\d+)(?:-(?P<port_end>\d+))?(?:/(?P<protocol>tcp|udp|sctp))?"
)
_FROM = "from="
MOST_SOURCES = 64
"""CIDRs of one published port: each is an element in the kernel for each of its families."""
_ANY = {"": (4, 6), "0.0.0.0": (4,), "::": (6,)}
"""Host addresses that mean all addresses, with their families."""
_PROTOCOLS: dict[str, Protocol] = {"tcp": "tcp", "udp": "udp", "sctp": "sctp"}

Identity = tuple[str, str]
P = TypeVar("P", Port, PortRange)


class Listeners(Contract):
    """The processes that listen at the host's ports. Both methods take a while, and raise LinkspanError."""

    def holders(self, ports: Sequence[Port]) -> Awaitable[Mapping[Port, str]]:
        """Return a description of who listens at each of the ports; free ports are left out."""

    def first_free(self, ports: Sequence[Port]) -> Awaitable[Port | None]:
        """Return the first of the ports at which nobody listens, None if there is none."""


def parse(text: str) -> tuple[tuple[Port, ...], tuple[PortRange, ...]]:
    """Parse ``[HOSTIP:]PORT[-END]:PORT[-END][/tcp|udp|sctp]``.

    Ranges of the same length map port by port. A range to a single port asks for one free port of the range.
    """
    found = _PUBLISH.fullmatch(text)
    if not found:
        raise Invalid(
            f"published port {text!r} is not understood", "write it like 8080:80, or 127.0.0.1:8000-8010:80/udp"
        )
    host_ip = (found["ip"] or "").strip("[]")
    first, port = int(found["host"]), int(found["port"])
    last, port_last = int(found["host_end"] or first), int(found["port_end"] or port)
    protocol = _PROTOCOLS[found["protocol"] or "tcp"]
    for number in (first, last, port, port_last):
        if not 1 <= number <= 65535:
            raise Invalid(f"published port {text!r}: {number} is not a port", "ports are 1 to 65535")
    if last < first or port_last < port:
        raise Invalid(f"published port {text!r}: the range goes backwards", "write the lower port first")
    if last > first and port_last == port:
        return (), (spelled(PortRange(host_ip, first, last, port, protocol)),)
    if last - first != port_last - port:
        raise Invalid(
            f"published port {text!r}: the ranges have different lengths",
            "give as many host as container ports",
        )
    return tuple(spelled(Port(host_ip, first + n, port + n, protocol)) for n in range(last - first + 1)), ()


def parse_list(text: str) -> tuple[tuple[Port, ...], tuple[PortRange, ...]]:
    """Parse ports, separated by commas; ``from=CIDR`` after a port limits from where clients come in by it."""
    exact: list[Port] = []
    ranges: list[PortRange] = []
    word = ""
    sources: list[str] = []
    for part in (*filter(None, map(str.strip, text.split(","))), ""):
        if part.startswith(_FROM):
            if not word:
                raise Invalid(f"published port {text!r}: {part} has no port", "write it behind one: 8080:80,from=CIDR")
            sources.append(part.removeprefix(_FROM))
            continue
        if word:
            some, wishes = parse(word)
            exact += [spelled(msgspec.structs.replace(one, sources=tuple(sources))) for one in some]
            ranges += [spelled(msgspec.structs.replace(one, sources=tuple(sources))) for one in wishes]
        word, sources = part, []
    return tuple(exact), tuple(ranges)


def spelled(wish: P) -> P:
    """Return a port or range with its host address and its sources in the one spelling; two clash only then.

    Raises Invalid if one of them is no address.
    """
    if not wish.host_ip and not wish.sources:
        return wish
    host_ip = prefix(wish.host_ip).single().address if wish.host_ip else ""
    try:
        sources = joined_sources(wish.sources)
        if strange := [one for one in sources if host_ip and prefix(one).family != prefix(host_ip).family]:
            fix = "leave it out, or publish the port at an address of its family"
            raise Invalid(f"from={strange[0]} is of another family than {host_ip}", fix)
    except Invalid as error:
        raise error.within(f"published port {wish.port}/{wish.protocol}") from error
    return msgspec.structs.replace(wish, host_ip=host_ip, sources=sources)


def joined_sources(texts: Collection[str]) -> tuple[str, ...]:
    """Return CIDRs as few as possible, in order: those within others left out, and halves joined. Raises Invalid."""
    if len(texts) > MOST_SOURCES:
        raise Invalid(f"it has {len(texts)} CIDRs in from=, and may have {MOST_SOURCES}", "give larger ones")
    found = []
    for text in texts:
        one = prefix(text)
        if one.network() != one:
            raise Invalid(f"from={text} has bits after its length", f"write from={one.network()}")
        found.append(ipaddress.ip_network(str(one)))
    fours = ipaddress.collapse_addresses(one for one in found if isinstance(one, ipaddress.IPv4Network))
    sixes = ipaddress.collapse_addresses(one for one in found if isinstance(one, ipaddress.IPv6Network))
    return tuple(map(str, (*fours, *sixes)))


def key_of(port: Port) -> tuple[str, tuple[str, ...]]:
    """Return how sets and maps of rules know packets to a published port: by the end of their names, and a key.

    The end is ``_at`` for a port at one address of the host, else "". The key is protocol and port, after the address.
    """
    key = (port.protocol, str(port.host_port))
    return ("_at", (prefix(port.host_ip).address, *key)) if is_fixed(port) else ("", key)


def is_fixed(port: Port) -> bool:
    """Return whether a published port is at one address of the host, not at all of a family."""
    return port.host_ip not in _ANY


def families_of(port: Port) -> tuple[int, ...]:
    """Return the families by whose addresses of the host a published port is reached."""
    return _families(port.host_ip)


def limited(found: Iterable[P], sources: Sequence[str]) -> tuple[P, ...]:
    """Return ports or requests by which clients come in from these CIDRs only; without any they stay as they are.

    One at an address of a family that has none of them is left out, because nobody may come in by it.
    """
    if not sources:
        return tuple(found)
    made = []
    for one in found:
        family = prefix(one.host_ip).family if one.host_ip else 0
        if mine := tuple(text for text in sources if not family or prefix(text).family == family):
            made.append(msgspec.structs.replace(one, sources=mine))
    return tuple(made)


class PortTable:
    """Users of host ports, over all networks of this host.

    Endpoints of one container may share a port: it leads to the one with the default route.
    """

    def __init__(self, listeners: Listeners) -> None:
        self._listeners = listeners
        self._held: dict[tuple[Protocol, int], dict[Port, dict[Identity, Endpoint]]] = {}

    async def reserve(
        self,
        endpoint: Endpoint,
        ranges: Iterable[PortRange] = (),
        *,
        bound: bool = False,
        instead: Endpoint | None = None,
    ) -> tuple[Port, ...]:
        """Reserve the endpoint's ports and one free port of each range; return all of them.

        ``bound``: the runtime listens at the ports, so only another endpoint can be in the way. ``instead``:
        the endpoint as it is now, whose ports these replace. It keeps them if this raises.

        Raises Conflict with the user (another endpoint, or the process that listens), or Exhausted.
        """
        taken: list[Port] = []
        try:
            with self._aside(instead):
                fresh = self._hold_fixed(endpoint, taken)
            # Reserve first, and look up afterwards: while the processes are searched, nobody else gets a
            # port.
            for port, who in (await self._listeners.holders(fresh)).items() if fresh and not bound else ():
                raise _conflict(port, who)
            for wish in ranges:
                await self._hold_one_of(wish, endpoint, instead, taken)
        except BaseException:
            self._release(taken, endpoint)
            if instead is not None:
                self.restore(instead)
            raise
        if instead is not None:
            self._release(set(instead.ports).difference(taken), instead)
        return tuple(taken)

    def _hold_fixed(self, endpoint: Endpoint, taken: list[Port]) -> list[Port]:
        """Reserve the ports that an endpoint names, and note each in ``taken``; return those new to its container."""
        fresh: list[Port] = []
        for port in endpoint.ports:
            if not self._shared(port, endpoint):
                if who := self.holder(port):
                    raise _conflict(port, who)
                fresh.append(port)
            self._hold(port, endpoint)
            taken.append(port)
        return fresh

    @contextlib.contextmanager
    def _aside(self, endpoint: Endpoint | None, but: Collection[Port] = ()) -> Iterator[None]:
        """Ignore an endpoint's ports, ``but`` these; afterwards it has those again that nobody else reserved."""
        if endpoint is None:
            yield
            return
        left_out = [port for port in endpoint.ports if port not in but]
        self._release(left_out, endpoint)
        try:
            yield
        finally:
            for port in left_out:
                held = self._held.setdefault((port.protocol, port.host_port), {})
                held.setdefault(port, {}).setdefault(endpoint.identity, endpoint)

    def restore(self, endpoint: Endpoint) -> None:
        """Put back an endpoint's ports after the agent's restart, even if another program listens there now."""
        for port in endpoint.ports:
            self._hold(port, endpoint)

    def release(self, endpoint: Endpoint) -> None:
        """Release the endpoint's ports."""
        self._release(endpoint.ports, endpoint)

    def holder(self, port: Port) -> str:
        """Return a description of the endpoint that uses the port, or ""."""
        for held, endpoints in self._held.get((port.protocol, port.host_port), {}).items():
            if _clash(held.host_ip, port.host_ip):
                endpoint = next(iter(endpoints.values()))
                return f"endpoint {endpoint.called} of network {endpoint.network}"
        return ""

    def _shared(self, port: Port, endpoint: Endpoint) -> bool:
        """Return whether another interface of the endpoint's container publishes exactly the same port."""
        holders = self._held.get((port.protocol, port.host_port), {}).get(port, {})
        return any(other.id == endpoint.id for other in holders.values())

    async def _hold_one_of(
        self, wish: PortRange, endpoint: Endpoint, instead: Endpoint | None, taken: list[Port]
    ) -> None:
        """Reserve the first free port of a range, and note it in ``taken``; raises Exhausted if there is none."""
        numbers = range(wish.first, wish.last + 1)
        every = [Port(wish.host_ip, number, wish.port, wish.protocol, wish.sources) for number in numbers]
        while True:
            with self._aside(instead, taken):
                left = [port for port in every if not self.holder(port)]
            if not left or (found := await self._listeners.first_free(left)) is None:
                break
            with self._aside(instead, taken):
                free = not self.holder(found)
            if free:
                self._hold(found, endpoint)
                taken.append(found)
                return
            every = left[left.index(found) + 1 :]  # another program took it while the processes were searched
        first = Port(wish.host_ip, wish.first, wish.port, wish.protocol)
        who = self.holder(first) or (await self._listeners.holders([first])).get(first, "another process")
        raise Exhausted(
            f"no port of {wish.first}-{wish.last}/{wish.protocol} is free ({wish.first} is in use by {who})",
            "give a larger range",
        )

    def _hold(self, port: Port, endpoint: Endpoint) -> None:
        held = self._held.setdefault((port.protocol, port.host_port), {})
        held.setdefault(port, {})[endpoint.identity] = endpoint

    def _release(self, ports: Iterable[Port], endpoint: Endpoint) -> None:
        for port in ports:
            held = self._held.get((port.protocol, port.host_port), {})
            holders = held.get(port, {})
            holders.pop(endpoint.identity, None)
            if not holders:
                held.pop(port, None)
            if not held:
                self._held.pop((port.protocol, port.host_port), None)


def _conflict(port: Port, who: str) -> Conflict:
    return Conflict(
        f"port {port.host_port}/{port.protocol}{_at(port)} is in use by {who}",
        "choose another host port, or stop its user",
    )


def _at(port: Port) -> str:
    return f" on {port.host_ip}" if port.host_ip not in _ANY else ""


def _clash(one: str, other: str) -> bool:
    """Return whether two host addresses share a port: they are the same, or one means all of a family of both."""
    return one == other or ((one in _ANY or other in _ANY) and bool({*_families(one)} & {*_families(other)}))


def _families(host_ip: str) -> tuple[int, ...]:
    return _ANY.get(host_ip) or (prefix(host_ip).family,)
