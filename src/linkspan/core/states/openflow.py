"""Controller states on an underlay: a switch's flows, a router's routes.

A flow is ours by its cookie: the first 16 bits are OWNER, then follow the kind of flow, and a hash of its
subject. So the switch alone shows both. A router's route is ours by its tag.
"""

from __future__ import annotations

import hashlib
import heapq

import msgspec

from linkspan.core.addresses import Prefix
from linkspan.core.states.host import Key, State

OWNER = 0x4C53  # "LS"
OWN_COOKIE = f"cookie={OWNER << 48:#x}/{0xFFFF << 48:#x}"
"""Argument of ovs-ofctl that selects our flows."""
KINDS = {
    "sighting": 1,
    "answer": 2,
    "gateway": 3,
    "source": 4,
    "forward": 5,
    "transit": 6,
    "forged": 7,
    "past": 8,
    "unknown": 9,
    "foreign": 10,
    "lost": 11,
    "isolated": 12,
    "other": 13,
    "seen": 255,
}
"""Kinds of flows, in the order in which a packet meets them; ``seen`` are the switch's own notes."""
_NAMES = {number: name for name, number in KINDS.items()}

MEANINGS = {
    "sighting": "notes at which port a host or another switch is",
    "answer": "answers ARP and neighbour solicitation for the gateway",
    "gateway": "accepts packets to the gateway",
    "source": "accepts packets of a host from its own prefix",
    "forward": "sends a prefix's packets towards its host",
    "transit": "forwards packets that another switch has checked",
    "forged": "drops packets that claim to come from the gateway",
    "past": "drops containers' packets that were not sent to the gateway",
    "unknown": "drops packets to an address that nobody has",
    "foreign": "drops packets from an address that the host at that port does not have",
    "lost": "drops packets to a host to which no path leads",
    "isolated": "drops packets between networks without an allowance",
    "other": "drops packets to the gateway that are not IP",
    "seen": "the switch's note of a host or switch at a port",
}


class Flow(State, frozen=True, gc=False):
    """An OpenFlow entry; ``match`` has its parts in ovs-ofctl's words, sorted, ``actions`` as ovs-ofctl prints them."""

    table: int
    priority: int
    match: tuple[str, ...]
    actions: str
    cookie: int

    @property
    def key(self) -> Key:
        return ("Flow", self.table, self.priority, *self.match)

    @property
    def kind(self) -> str:
        """Return the kind of flow."""
        return _NAMES.get(self.cookie >> 40 & 0xFF, "unknown")

    @property
    def meaning(self) -> str:
        """Return what one of our flows does; a "gateway" flow with a source accepts packets from another switch."""
        passed_on = self.kind == "gateway" and any(part.startswith("dl_src=") for part in self.match)
        return "accepts packets that another switch has checked" if passed_on else MEANINGS[self.kind]

    @property
    def text(self) -> str:
        """Return what identifies it: table, priority and match, as ovs-ofctl accepts them."""
        return ",".join((f"table={self.table}", f"priority={self.priority}", *self.match))


class RouterRoute(State, frozen=True, gc=False):
    """A static route of a router: a prefix, through a host's underlay address."""

    destination: Prefix
    gateway: bytes

    @property
    def key(self) -> Key:
        return ("RouterRoute", self.destination.packed, self.destination.length)


class Port(msgspec.Struct, frozen=True):
    """A switch's port: its OpenFlow number, its name, and whether its link is up."""

    number: int
    name: str
    up: bool


class Counted(msgspec.Struct, frozen=True):
    """A flow as it is in a switch, with its counters; ``ours`` by its cookie."""

    flow: Flow
    packets: int
    octets: int
    ours: bool
    age: float = 0


Spot = tuple[str, int]
"""A switch and the number of one of its ports."""


class Seen(msgspec.Struct, frozen=True):
    """An observed switch: its ports, and the MACs that it has noted at each of them."""

    ports: tuple[Port, ...] = ()
    notes: tuple[tuple[int, str], ...] = ()

    def up(self, number: int) -> bool:
        """Return whether a port exists and its link is up."""
        return any(port.number == number and port.up for port in self.ports)


class Map(msgspec.Struct, frozen=True):
    """Inputs of paths: where hosts are, and the cost of each link from a port to the switch behind it."""

    switches: tuple[str, ...] = ()
    places: tuple[tuple[str, Spot], ...] = ()
    """(host, where it is), sorted."""
    links: tuple[tuple[Spot, str, int], ...] = ()
    """(port, switch behind it, cost), sorted."""
    ports: tuple[tuple[str, tuple[int, ...]], ...] = ()
    """The numbers of each switch's ports, up or not."""

    def trunks(self, switch: str) -> tuple[int, ...]:
        """Return the ports of a switch that lead to others."""
        return tuple(sorted({number for (here, number), _, _ in self.links if here == switch}))

    def reached(self, switch: str) -> set[str]:
        """Return the switches that any path reaches from one, including itself."""
        found, queue = {switch}, [switch]
        while queue:
            here = queue.pop()
            new = {there for (name, _), there, _ in self.links if name == here} - found
            found |= new
            queue += new
        return found

    def ways(self, target: str) -> dict[str, int]:
        """Return the port by which each switch sends to another one; unreachable switches are left out."""
        into: dict[str, list[tuple[str, int, int]]] = {}
        for (here, number), there, cost in self.links:
            into.setdefault(there, []).append((here, number, cost))
        found: dict[str, int] = {}
        best = {target: 0}
        queue = [(0, target)]
        while queue:
            far, name = heapq.heappop(queue)
            if far > best[name]:
                continue
            for here, number, cost in sorted(into.get(name, ())):
                if far + cost < best.get(here, far + cost + 1):
                    best[here], found[here] = far + cost, number
                    heapq.heappush(queue, (far + cost, here))
        return found


class Claim(msgspec.Struct, frozen=True, order=True):
    """An undisputed prefix of a host in a network."""

    network: str
    prefix: Prefix
    host: str


class Served(msgspec.Struct, frozen=True):
    """A network that the switches carry. ``closed``: its packets have no other way than the gateway."""

    name: str
    pools: tuple[Prefix, ...]
    gateways: tuple[Prefix, ...]
    mac: str
    closed: bool
    allowed: tuple[str, ...] = ()
    """Other networks with which it may exchange packets."""


class Held(msgspec.Struct, frozen=True):
    """Prefixes and their hosts: ``macs`` are the hosts' underlay MACs by id."""

    networks: tuple[Served, ...] = ()
    claims: tuple[Claim, ...] = ()
    macs: tuple[tuple[str, str], ...] = ()


def cookie(kind: str, about: str) -> int:
    """Return the cookie of a flow of a kind with a subject."""
    digest = hashlib.blake2b(about.encode(), digest_size=5).digest()
    return OWNER << 48 | KINDS[kind] << 40 | int.from_bytes(digest, "big")


def flow(kind: str, about: str, table: int, priority: int, match: str, actions: str) -> Flow:
    """Return a flow; its match is given as ovs-ofctl accepts it."""
    parts = tuple(sorted(part for part in match.split(",") if part))
    return Flow(table, priority, parts, actions, cookie(kind, about))
