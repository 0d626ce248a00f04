"""Readiness of this host to give out addresses: what keeps it from that (drained, silent, not alone, blind)."""

from __future__ import annotations

from collections.abc import Callable

from linkspan.cluster.hosts import Hosts
from linkspan.cluster.leases import Leases
from linkspan.cluster.networks import crosses
from linkspan.cluster.presence import Namesakes
from linkspan.core.clock import now
from linkspan.core.errors import Conflict, Unavailable
from linkspan.core.model import Network


class Readiness:
    """Knows whether this host may give out an address now."""

    def __init__(
        self, hosts: Hosts, leases: Leases, stalled: Callable[[float], str], namesakes: Namesakes
    ) -> None:
        """``stalled`` returns why a silent host may give out none, '' if it may, and might at all times since then."""
        self._hosts = hosts
        self._leases = leases
        self._stalled = stalled
        self._namesakes = namesakes
        self._blind: set[str] = set()
        """Links of running containers on this host whose addresses are unknown."""

    def doubt(self, link: str) -> None:
        """Record a container's link whose addresses are in use but unknown."""
        self._blind.add(link)

    def trust(self, link: str) -> None:
        """Record that a link's addresses are known, or that it is gone."""
        self._blind.discard(link)

    def require(self, network: Network) -> None:
        """Raise Conflict or Unavailable, with the reason, if this host gives out no address now."""
        host = self._hosts.here
        if host.settings.get("drained"):
            raise Conflict(f"host {host.name} is drained", f"linkspan host undrain {host.name}")
        self.confirm(network, now())
        if self._blind and not self._leases.listed:  # once listed, the store's records name these addresses
            why = f"it does not know the addresses of {', '.join(sorted(self._blind))}, whose containers run"
            raise Unavailable(
                f"host {host.name} gives no address now: {why}", "`linkspan status` shows them, and the store"
            )

    def confirm(self, network: Network, since: float) -> None:
        """Raise Conflict or Unavailable if an address given out at ``since`` (``core.clock.now``) may be another's.

        While this agent stood still, others may have reclaimed its blocks.
        """
        host = self._hosts.here
        if not crosses(network):
            return
        if why := self._stalled(since):
            raise Unavailable(
                f"host {host.name} gives no address now: {why}", "`linkspan status` shows the store; try again"
            )
        if why := self._namesakes.second:  # it gives out addresses of the same blocks
            raise Conflict(
                f"host {host.name} gives no address now: {why}",
                "give each host an id of its own (--host-id), or stop the other agent",
            )
