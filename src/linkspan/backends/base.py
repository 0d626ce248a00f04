"""Base class of all backends, with the defaults.

A backend is a class with only its differences, an instance of it, and its import and a line in ``backends``
(or, in a package of its own, an entry point).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from linkspan.core.addresses import FAMILIES
from linkspan.core.backend_contract import HostPhase
from linkspan.core.host_view import Facts, HostView, Peer
from linkspan.core.model import Endpoint, Host, Lease, Network
from linkspan.core.needs import Need
from linkspan.core.program import Program
from linkspan.core.states.host import State


class BaseBackend:
    """Defaults: no options to complete, no traffic across hosts, no program needed."""

    name: str
    summary = ""
    crosses_hosts = False
    overhead: Mapping[int, int] = {4: 0, 6: 0}
    families: tuple[int, ...] = FAMILIES
    neighbours = False
    learns = False
    encrypts = False
    no_exit = "it carries packets between containers only"
    host_phase: HostPhase = "before networks"
    programs: tuple[tuple[str, str], ...] = ()
    has_settings = False
    watches: tuple[type[Program], ...] = ()

    def check(self, network: Network) -> None:
        """Accept the network."""

    def check_settings(self, host: Host) -> None:
        """Accept the host: it has no settings of this backend."""

    def check_host(self, host: Host) -> None:
        """Accept the host: its record has nothing of this backend."""

    def completed(self, network: Network, others: Iterable[Network]) -> Network:
        """Return the network unchanged."""
        return network

    def claims(self, network: Network) -> tuple[str, ...]:
        """Return no claims: the network needs nothing for itself alone."""
        return ()

    def announce(self, view: HostView, network: Network) -> Mapping[str, str] | None:
        """Return no offer: no traffic crosses hosts."""
        return None

    def check_offer(self, lease: Lease, offer: Mapping[str, str]) -> None:
        """Accept the offer: the backend uses nothing of it."""

    def lacks(self, facts: Facts) -> str:
        """Return nothing: the kernel carries the packets."""
        return ""

    def troubles(self, view: HostView) -> Iterable[str]:
        """Return nothing: the backend knows no problem."""
        return ()

    def host(self, view: HostView) -> Iterable[State]:
        """Return no states: no process serves all networks."""
        return ()

    def network(self, view: HostView, network: Network) -> Iterable[State]:
        """Return no states."""
        return ()

    def peer(self, view: HostView, network: Network, peer: Peer) -> Iterable[State]:
        """Return no states: no traffic crosses hosts."""
        return ()

    def needs(self, view: HostView, network: Network, peer: Peer) -> Iterable[Need]:
        """Return no needs: no traffic crosses hosts."""
        return ()

    def fast_device(self, network: Network) -> str:
        """Return no device: no packet takes a fast path."""
        return ""

    def endpoint(self, network: Network, endpoint: Endpoint) -> Iterable[State]:
        """Return no states."""
        return ()
