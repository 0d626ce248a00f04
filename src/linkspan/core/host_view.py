"""View of a host: all that a backend sees, as frozen values that are never written down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, TypeVar

import msgspec

from linkspan.core.addresses import Prefix
from linkspan.core.model import Allowance, Host, Lease, Network
from linkspan.core.program import Program

P = TypeVar("P", bound=Program)


class Facts(msgspec.Struct, frozen=True):
    """Facts of the machine that a backend must know; always observed, never assumed.

    ``forward_chains`` has (family, chain) of others' iptables chains that decide on forwarding. ``firewalld``
    says whether it runs. ``forwarding`` has the families for which the host forwarded before linkspan came,
    or for which somebody else has enabled it since. ``old_links`` are the links that existed then, with their
    family, ``closed_links`` those of them that were not forwarded, and ``bridges`` the bridges among them. ``ra_links``
    are the links that take router advertisements now; ``programs`` are those that may serve this host, as the kinds of
    state found them, one of each class. ``early`` says that the kernel can forward at a link's ingress, and
    ``translated`` has (family, chain) of others that may translate the targets of packets that come in.
    """

    forward_chains: frozenset[tuple[int, str]] = frozenset()
    firewalld: bool = False
    forwarding: frozenset[int] = frozenset()
    closed_links: frozenset[tuple[int, str]] = frozenset()
    old_links: frozenset[tuple[int, str]] = frozenset()
    bridges: frozenset[str] = frozenset()
    ra_links: frozenset[str] = frozenset()
    programs: tuple[Program, ...] = ()
    early: bool = False
    translated: frozenset[tuple[int, str]] = frozenset()

    def program(self, kind: type[P]) -> P | None:
        """Return what was found of a program, None where it is not installed or not needed."""
        return next((found for found in self.programs if isinstance(found, kind)), None)


Standing = Literal["answers", "awaited", "lost", "silent"]
"""Answers of a neighbour to ARP (or ND) on the link: it answers; not known yet; it stopped answering; it
never answered."""


class Peer(msgspec.Struct, frozen=True, gc=False):
    """Another host, as a backend sees it in one network.

    ``device`` is the link by which the kernel reaches its underlay address, and ``on_link`` whether that
    needs no router (the kernel's own answer). ``standing`` is the result of asking for it on the link.
    ``exact`` are the addresses of shared blocks that belong to it, without length. ``learnt`` says, while a
    network migrates to a backend that learns routes, whether all its routes are there. ``macs`` are those
    with which its plain packets are accepted. They are empty if its record has none: then any MAC is
    accepted.
    """

    host: Host
    lease: Lease
    device: str = ""
    on_link: bool = False
    exact: tuple[Prefix, ...] = ()
    standing: Standing = "answers"
    learnt: bool = False
    macs: tuple[str, ...] = ()

    @property
    def prefixes(self) -> tuple[Prefix, ...]:
        """Return all prefixes of this peer: its blocks and the exact addresses."""
        return (*self.lease.blocks, *self.exact)


class Other(msgspec.Struct, frozen=True):
    """Another host that has keys, with the networks of an encrypting backend in which it has a lease."""

    host: Host
    networks: tuple[str, ...] = ()


class HostView(msgspec.Struct, frozen=True):
    """All that a backend sees: ``host`` is this one (None until it joins a cluster), ``leases`` are its own.

    Backends that encrypt see ``others``, which have keys, and by the public keys that several hosts have the
    hosts' names (``doubled``).

    Backends that encrypt, or whose ``host`` comes after the peers, see more if a network has one: ``peers`` of
    all networks, and (network, address) of this host's ``exact`` addresses and, while it is drained, of the
    containers ``living`` on it.

    ``control`` are the addresses with TCP ports from which containers are kept, ``control_here`` the ports
    from which they are kept at every address of this host.

    ``exits`` has the id of the host that holds a network's egress address, by (network, family).
    """

    networks: tuple[Network, ...]
    allowances: tuple[Allowance, ...] = ()
    facts: Facts = Facts()
    host: Host | None = None
    leases: tuple[Lease, ...] = ()
    others: tuple[Other, ...] = ()
    doubled: Mapping[str, Sequence[str]] = {}
    peers: tuple[Peer, ...] = ()
    exact: tuple[tuple[str, Prefix], ...] = ()
    living: tuple[tuple[str, Prefix], ...] = ()
    control: tuple[tuple[str, int], ...] = ()
    control_here: tuple[int, ...] = ()
    exits: Mapping[tuple[str, int], str] = {}

    def lease(self, network: str) -> Lease | None:
        """Return this host's lease in a network, None if it has none."""
        for lease in self.leases:
            if lease.network == network:
                return lease
        return None
