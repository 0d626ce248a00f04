"""Published ports: how users write them, and which endpoint holds which port of the host."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from linkspan.core.addresses import prefix
from linkspan.core.errors import Conflict, Exhausted, Invalid
from linkspan.core.model import Endpoint, Port, PortRange, Protocol

_PUBLISH = re.compile(
    r"(?:(?P<ip>\[[0-9a-fA-F:.]+\]|[0-9.]+):)?(?P<host>\d+)(?:-(?P<host_end>\d+))?"
    r":(?P<port>\d+)(?:-(?P<port_end>\d+))?(?:/(?P<protocol>tcp|udp|sctp))?"
)
_ANY = {"": (4, 6), "0.0.0.0": (4,), "::": (6,)}
"""Host addresses that stand for every one, with the families for which they do."""
_PROTOCOLS: dict[str, Protocol] = {"tcp": "tcp", "udp": "udp", "sctp": "sctp"}

Identity = tuple[str, str]
Holder = Callable[[str, str, int], str]
"""(protocol, host address or "", port) to the words for who listens there, or ""."""


def parse(text: str) -> tuple[tuple[Port, ...], tuple[PortRange, ...]]:
    """Parse ``[HOSTIP:]PORT[-END]:PORT[-END][/tcp|udp|sctp]``.

    Ranges of one length map port by port; a range to a single port asks for one free port of it.
    """
    found = _PUBLISH.fullmatch(text)
    if not found:
        raise Invalid(
            f"published port {text!r} is not understood", "write it as 8080:80, or 127.0.0.1:8000-8010:80/udp"
        )
    host_ip = (found["ip"] or "").strip("[]")
    if host_ip:
        host_ip = prefix(host_ip).address
    first, port = int(found["host"]), int(found["port"])
    last, port_last = int(found["host_end"] or first), int(found["port_end"] or port)
    protocol = _PROTOCOLS[found["protocol"] or "tcp"]
    for number in (first, last, port, port_last):
        if not 1 <= number <= 65535:
            raise Invalid(f"published port {text!r}: {number} is not a port", "ports are 1 to 65535")
    if last < first or port_last < port:
        raise Invalid(f"published port {text!r}: the range goes backwards", "write the lower port first")
    if last > first and port_last == port:
        return (), (PortRange(host_ip, first, last, port, protocol),)
    if last - first != port_last - port:
        raise Invalid(
            f"published port {text!r}: the ranges have different lengths",
            "give as many host as container ports",
        )
    return tuple(Port(host_ip, first + n, port + n, protocol) for n in range(last - first + 1)), ()


class PortTable:
    """Who holds which host port, over all networks of this host.

    Endpoints of one container may hold the same port: it leads to whichever of them has the default route.
    """

    def __init__(self, listening: Holder) -> None:
        self._listening = listening
        self._held: dict[tuple[Protocol, int], dict[Port, dict[Identity, Endpoint]]] = {}

    def reserve(
        self, endpoint: Endpoint, ranges: Iterable[PortRange] = (), *, bound: bool = False
    ) -> tuple[Port, ...]:
        """Hold the endpoint's ports and one free port of each range; returns all of them.

        ``bound``: it is the runtime that listens at the ports, so that only another endpoint can be in the way.

        Raises Conflict, which names the holder (another endpoint, or the process that listens), or Exhausted.
        """
        taken: list[Port] = []
        try:
            for port in endpoint.ports:
                if not self._shared(port, endpoint) and (
                    holder := self._endpoint(port) if bound else self.holder(port)
                ):
                    raise Conflict(
                        f"port {port.host_port}/{port.protocol}{_at(port)} is held by {holder}",
                        "choose another host port, or end what holds it",
                    )
                self._hold(port, endpoint)
                taken.append(port)
            for wish in ranges:
                taken.append(self._free(wish, endpoint))
        except Exception:
            self._release(taken, endpoint)
            raise
        return tuple(taken)

    def restore(self, endpoint: Endpoint) -> None:
        """Put back what an endpoint held before the agent's restart, whoever listens by now."""
        for port in endpoint.ports:
            self._hold(port, endpoint)

    def release(self, endpoint: Endpoint) -> None:
        """Give the endpoint's ports back."""
        self._release(endpoint.ports, endpoint)

    def holder(self, port: Port) -> str:
        """Return the words for who holds the port, or ""."""
        return self._endpoint(port) or self._listening(port.protocol, port.host_ip, port.host_port)

    def _endpoint(self, port: Port) -> str:
        for held, endpoints in self._held.get((port.protocol, port.host_port), {}).items():
            if _clash(held.host_ip, port.host_ip):
                endpoint = next(iter(endpoints.values()))
                return f"endpoint {endpoint.called} of network {endpoint.network}"
        return ""

    def _shared(self, port: Port, endpoint: Endpoint) -> bool:
        """Tell whether another interface of the endpoint's container publishes the very same."""
        holders = self._held.get((port.protocol, port.host_port), {}).get(port, {})
        return any(other.id == endpoint.id for other in holders.values())

    def _free(self, wish: PortRange, endpoint: Endpoint) -> Port:
        for number in range(wish.first, wish.last + 1):
            port = Port(wish.host_ip, number, wish.port, wish.protocol)
            if not self.holder(port):
                self._hold(port, endpoint)
                return port
        first = self.holder(Port(wish.host_ip, wish.first, wish.port, wish.protocol))
        raise Exhausted(
            f"no port of {wish.first}-{wish.last}/{wish.protocol} is free ({wish.first} is held by {first})",
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


def _at(port: Port) -> str:
    return f" on {port.host_ip}" if port.host_ip not in _ANY else ""


def _clash(one: str, other: str) -> bool:
    """Tell whether two host addresses share a port: the same one, or either is every address of a family of both."""
    return one == other or ((one in _ANY or other in _ANY) and bool(_families(one) & _families(other)))


def _families(host_ip: str) -> set[int]:
    return set(_ANY.get(host_ip) or (prefix(host_ip).family,))
