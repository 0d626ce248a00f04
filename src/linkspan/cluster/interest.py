"""Interest: the networks and hosts whose endpoints this host has in memory.

A network matters while a container on this host is in it, and a while longer. The leases say which hosts have
containers in a network, because a host has a lease in each network in which it has a container. So no host reads all
endpoints to learn which ones matter. Under policies the networks matter, too, that may reach a network with a container
here, or be reached from it: labels of their endpoints decide.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

from linkspan.cluster.remote_endpoints import RemoteEndpoints
from linkspan.core.model import Allowance, Endpoint
from linkspan.core.supervise import ended, lasting, woken
from linkspan.store.replica import Replica

LINGER = 60.0
"""Seconds for which a network matters after its last container here, or after somebody asked about it. Its DNS
server ends earlier, and a container that is started again comes earlier."""
FOR_EVER = float("inf")


class Interest:
    """Tells ``RemoteEndpoints`` which hosts and networks matter, whenever they change."""

    def __init__(
        self, replica: Replica, remote: RemoteEndpoints, endpoints: Mapping[tuple[str, str], Endpoint]
    ) -> None:
        self._replica = replica
        self._remote = remote
        self._endpoints = endpoints
        self._leased: dict[str, tuple[int, frozenset[str]]] = {}
        """By network that matters: the hosts with a lease in it, and the number of the last change of its leases."""
        self._told: dict[str, frozenset[str]] = {}
        """By network: the hosts that matter, as ``RemoteEndpoints`` knows them."""
        self._until: dict[str, float] = {}
        """By network: the time (monotonic) until which it matters, FOR_EVER while it has a container here."""
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start to follow this host's containers, and the leases."""
        self.look()
        self._remote.start()
        self._task = lasting("following which endpoints matter", self._follow)

    async def stop(self) -> None:
        """Stop following."""
        await ended(self._task)
        await self._remote.stop()

    def note(self, _identity: tuple[str, str]) -> None:
        """Look again, because an endpoint of this host was added, changed or removed."""
        self._wake.set()

    def changed(self, keys: frozenset[str]) -> None:
        """Look again if a lease changed in a network that matters, or what may reach it."""
        if any(self._concerns(key) for key in keys):
            self.look()

    def _concerns(self, key: str) -> bool:
        if key.startswith("leases/"):
            return key.split("/", 2)[1] in self._until
        return key.startswith(("allowances/", "policies/", "staged/"))

    def networks(self) -> frozenset[str]:
        """Return the networks that matter here."""
        return frozenset(self._until)

    def ask(self, network: str) -> None:
        """Let a network matter for LINGER seconds, even if it has no container here."""
        fresh = network not in self._until
        self._until[network] = max(self._until.get(network, 0.0), time.monotonic() + LINGER)
        if fresh:
            self._wake.set()

    async def _follow(self) -> None:
        while True:
            ends = [until for until in self._until.values() if until != FOR_EVER]
            await woken(self._wake, max(min(ends) - time.monotonic(), 0.0) if ends else None)
            self._wake.clear()
            self.look()

    def look(self) -> None:
        """Find the networks and hosts that matter, and tell ``RemoteEndpoints`` if they changed.

        Every attach comes here: it must not read the leases of all hosts.
        """
        now = time.monotonic()
        here = {endpoint.network for endpoint in self._endpoints.values()}
        if self._replica.keys_under("policies/") or self._replica.keys_under("staged/"):
            allowed = [{one.source, one.target} for one in self._replica.read("allowances/", Allowance).values()]
            here = here.union(*(pair for pair in allowed if pair & here))
        past = {name: min(until, now + LINGER) for name, until in self._until.items() if name not in here}
        self._until = dict.fromkeys(here, FOR_EVER) | {name: until for name, until in past.items() if until > now}
        self._leased = {name: self._hosts_in(name) for name in self._until}
        wanted = {name: hosts for name, (_, hosts) in self._leased.items()}
        if wanted != self._told:
            self._told = wanted
            self._remote.want(wanted)

    def _hosts_in(self, network: str) -> tuple[int, frozenset[str]]:
        """Return the hosts with a lease in a network; the same value as the last time if no lease changed."""
        change = self._replica.change_in("leases", network)
        known = self._leased.get(network)
        if known is not None and known[0] == change:
            return known
        return change, frozenset(self._replica.suffixes(f"leases/{network}/"))
