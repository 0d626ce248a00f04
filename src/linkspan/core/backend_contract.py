"""Contract of backends: what a module that carries packets across hosts must provide."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, Protocol

from linkspan.core.host_view import Facts, HostView, Peer
from linkspan.core.model import Endpoint, Host, Lease, Network
from linkspan.core.needs import Need
from linkspan.core.program import Program
from linkspan.core.states.host import State

HostPhase = Literal["before networks", "after peers"]
"""When the states of ``Backend.host`` are put: before the networks have anything, or once the peers are known."""


class Backend(Protocol):
    """A pure function, in parts, from a host's knowledge to states. It does no I/O."""

    name: str
    summary: str
    """For people, in a sentence: how a packet crosses; '' where none does."""
    crosses_hosts: bool
    """Whether a network has endpoints on several hosts, so that hosts need leases in it."""
    overhead: Mapping[int, int]
    """Bytes off the underlay's MTU, by the family of the outer header; 0 where nothing is wrapped."""
    families: tuple[int, ...]
    """The address families of the networks that it carries."""
    neighbours: bool
    """Whether it reaches peers on the same segment only: its routes lead to their own addresses."""
    learns: bool
    """Whether a speaker adds the routes to peers, instead of ``peer``'s states."""
    encrypts: bool
    """Whether all traffic across hosts is encrypted and authenticated: its networks are sealed (``seal``)."""
    no_exit: str
    """Why its networks cannot have egress addresses, '' if they can: it carries packets of any address to a peer."""
    host_phase: HostPhase
    """When ``host`` is applied: before networks (a device for their addresses), or after peers (a speaker)."""
    programs: tuple[tuple[str, str], ...]
    """The programs that it runs, each with its Debian package."""
    has_settings: bool
    """Whether hosts have settings for it, each called ``NAME.KEY``."""
    watches: tuple[type[Program], ...]
    """Facts that change without an event: while a network of this backend is there, they are looked at each second."""

    def check(self, network: Network) -> None:
        """Refuse, by Invalid, options that this backend does not know, or pools that it cannot serve."""

    def check_settings(self, host: Host) -> None:
        """Refuse, by Invalid, a host's settings (``NAME.KEY``) that mean nothing."""

    def check_host(self, host: Host) -> None:
        """Refuse, by Invalid, what this host could not use of another's record: it was read from the store."""

    def completed(self, network: Network, others: Iterable[Network]) -> Network:
        """Return the network with values chosen that must differ from those of other networks.

        Raises Conflict with the other network's name if a given value is in use.
        """

    def claims(self, network: Network) -> tuple[str, ...]:
        """Return claims that only one network of a cluster may have, as ``kind/value``."""

    def announce(self, view: HostView, network: Network) -> Mapping[str, str] | None:
        """Return what peers need to send to this host (part of the lease); None if nothing crosses hosts."""

    def check_offer(self, lease: Lease, offer: Mapping[str, str]) -> None:
        """Refuse, by Invalid, an offer from the store that the lease's host cannot have made."""

    def lacks(self, facts: Facts) -> str:
        """Return what this machine's kernel lacks, so that a program carries the packets; '' if it lacks nothing."""

    def troubles(self, view: HostView) -> Iterable[str]:
        """Return a sentence for each thing that is wrong on this host, though what carries packets goes on."""

    def host(self, view: HostView) -> Iterable[State]:
        """Return the states that serve all networks of this backend; none if the view has none of these networks.

        They are the source ``("host", NAME)``, which is applied at ``host_phase``. They follow from ``view.peers`` only
        after the peers. Raises Unavailable if this host cannot have them.
        """

    def network(self, view: HostView, network: Network) -> Iterable[State]:
        """Return what this host needs for the network, apart from its endpoints and peers."""

    def peer(self, view: HostView, network: Network, peer: Peer) -> Iterable[State]:
        """Return what this host needs to reach one peer, and to accept its packets.

        Raises Unavailable with the peer and the reason if this backend cannot reach it.
        """

    def needs(self, view: HostView, network: Network, peer: Peer) -> Iterable[Need]:
        """Return the packets that must reach the peer over the underlay; ``doctor --peers`` tries each.

        They follow from what both hosts know of each other, so the peer expects the same. Raises Unavailable
        as ``peer`` does.
        """

    def fast_device(self, network: Network) -> str:
        """Return the tunnel device by which a network's packets may skip the rules (``core/fast_path``), '' if none."""

    def endpoint(self, network: Network, endpoint: Endpoint) -> Iterable[State]:
        """Return what one endpoint on this host needs, at both ends of its veth pair."""
