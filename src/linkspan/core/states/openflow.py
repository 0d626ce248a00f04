"""What a controller does to an underlay, as states: a switch's flows, a router's routes.

A flow is ours by its cookie, whose first 16 bits are OWNER; then follow what kind of flow it is, and a hash of what it
is about, so that whoever looks at the switch alone knows both. A router's route is ours by its tag.
"""

from __future__ import annotations

import hashlib

import msgspec

from linkspan.core.addresses import Prefix
from linkspan.core.states.host import Key, State

OWNER = 0x4C53  # "LS"
OWN_COOKIE = f"cookie={OWNER << 48:#x}/{0xFFFF << 48:#x}"
"""How ovs-ofctl is told to look at our flows alone."""
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
"""Kinds of flows, in the order in which a packet meets them; ``seen`` is what the switch itself has noted down."""
_NAMES = {number: name for name, number in KINDS.items()}

MEANINGS = {
    "sighting": "notes down at which port a host or another switch is",
    "answer": "answers ARP and neighbour solicitation for the gateway",
    "gateway": "takes what is sent to the gateway",
    "source": "takes what a host sends from its own prefix",
    "forward": "sends a prefix's packets towards its host",
    "transit": "sends on what another switch has checked",
    "forged": "drops what claims to come from the gateway",
    "past": "drops containers' packets that were not sent to the gateway",
    "unknown": "drops what is for an address that nobody holds",
    "foreign": "drops what is sent from an address that the host at that port does not hold",
    "lost": "drops what is for a host to which no way leads",
    "isolated": "drops what goes from one network to another that is not allowed to it",
    "other": "drops what is sent to the gateway and is no IP",
    "seen": "the switch's note of a host or switch at a port",
}


class Flow(State, frozen=True, gc=False):
    """An OpenFlow entry; ``match`` are its parts in ovs-ofctl's own words, sorted, ``actions`` as it prints them."""

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
        """What kind of flow it is."""
        return _NAMES.get(self.cookie >> 40 & 0xFF, "unknown")

    @property
    def meaning(self) -> str:
        """What one of ours does; a "gateway" one by the sender takes what came over a link from another switch."""
        passed_on = self.kind == "gateway" and any(part.startswith("dl_src=") for part in self.match)
        return "takes what another switch has checked" if passed_on else MEANINGS[self.kind]

    @property
    def text(self) -> str:
        """What names it: table, priority and match, as ovs-ofctl takes them."""
        return ",".join((f"table={self.table}", f"priority={self.priority}", *self.match))


class RouterRoute(State, frozen=True, gc=False):
    """A static route of a router's: a prefix, by a host's underlay address."""

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
    """A flow as it stands in a switch, with what it has counted; ``ours`` by its cookie."""

    flow: Flow
    packets: int
    octets: int
    ours: bool
    age: float = 0


def cookie(kind: str, about: str) -> int:
    """Return the cookie of a flow of a kind that is about something."""
    digest = hashlib.blake2b(about.encode(), digest_size=5).digest()
    return OWNER << 48 | KINDS[kind] << 40 | int.from_bytes(digest, "big")


def flow(kind: str, about: str, table: int, priority: int, match: str, actions: str) -> Flow:
    """Return a flow, its match given as ovs-ofctl takes it."""
    parts = tuple(sorted(part for part in match.split(",") if part))
    return Flow(table, priority, parts, actions, cookie(kind, about))
