"""Claims of this host: a lease in each network across hosts in which it takes part, and the conflicts about leases."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection

from linkspan.backends import migration
from linkspan.cluster.address_usage import AddressUsage
from linkspan.cluster.conflicts import Conflicts
from linkspan.cluster.hosts import Hosts
from linkspan.cluster.leases import Leases
from linkspan.cluster.networks import Networks, crosses
from linkspan.cluster.participation import Participation
from linkspan.core.errors import Conflict, LinkspanError
from linkspan.core.host_view import HostView
from linkspan.core.model import Network
from linkspan.store.records import EPHEMERAL

log = logging.getLogger("linkspan.cluster.claims")

OWN = ("networks/", "allowances/", "hosts/", "gone/hosts/", "settings/")
"""Kinds of records that this host's claims depend on."""
RETRY = "again/"
"""A key of no record: it leads to this host's unfinished claims, and to the peers of networks that migrate."""
OF_NETWORKS = ("leases/", "blocks/", "addresses/")
"""Kinds of records that concern only hosts that take part in their network."""


class Claims:
    """Claims what this host needs, and gives back what it lost."""

    def __init__(
        self,
        hosts: Hosts,
        leases: Leases,
        networks: Networks,
        conflicts: Conflicts,
        participation: Participation,
        blocks: AddressUsage,
        view: Callable[[], HostView],
    ) -> None:
        self._hosts = hosts
        self._leases = leases
        self._networks = networks
        self._conflicts = conflicts
        self.participation = participation
        self._blocks = blocks
        self._view = view
        self.refused: dict[str, str] = {}
        """By network: why this host has no lease in it."""

    def concerned(self, keys: Collection[str], near: Callable[[], Collection[str]]) -> set[str]:
        """Return those of the changed keys that this host must follow.

        It need not follow records about networks in which it takes no part, has no peer (``near`` returns those in
        which it has) and lost no lease.
        """
        found = {key for key in keys if not key.startswith(EPHEMERAL) or self._conflicts.concern(key)}
        if not any(key.startswith(OF_NETWORKS) for key in found):
            return found
        taking, own = self.participation.all().union(near()), f"/{self._hosts.here.id}"
        return {
            key
            for key in found
            if not key.startswith(OF_NETWORKS) or key.split("/", 2)[1] in taking or key.endswith(own)
        }

    async def follow(self, changed: Collection[str], *, everything: bool, alone: bool) -> None:
        """Find conflicts in what changed, and claim what this host lacks.

        ``alone``: no other agent uses this host's id. If there is one, both would correct their common leases forever.
        """
        taking = self.participation.all()
        depends = everything or any(key.startswith(OWN) for key in changed)
        if depends:
            self._conflicts.look(taking)
        elif about := {key.split("/", 2)[1] for key in changed if key.startswith(("leases/", "blocks/"))}:
            self._conflicts.look(taking, about)
        # A late write of this host, or somebody else's, may have changed its own lease and blocks.
        mine = alone and any(self._is_own(key) for key in changed)
        if depends or self._conflicts.fresh or mine or RETRY in changed:
            await self._claim()
            self._conflicts.look(self.participation.all())
        self._blocks.refresh()

    def followed(self) -> None:
        """Record that the peers concerned by new and settled conflicts were followed."""
        self._conflicts.fresh.clear()

    async def _claim(self) -> None:
        """Make sure that this host has a lease in every network across hosts in which it takes part."""
        if self._hosts.removed():
            return
        await self._leave()
        taking = self.participation.all()
        for network in self._networks.all():
            if network.name not in taking or not crosses(network):
                continue
            try:
                await self._claim_in(network)
                self.refused.pop(network.name, None)
            except LinkspanError as error:
                if self.refused.get(network.name) != error.told:
                    log.warning("%s", error.within(f"network {network.name}").told)
                self.refused[network.name] = error.told
        for name in self.refused.keys() - (taking & {network.name for network in self._networks.all()}):
            del self.refused[name]

    async def _claim_in(self, network: Network) -> None:
        await self._conflicts.settle(network)
        mine = self._leases.mine(network.name)
        await self._leases.claim(network, migration.offers(self._view(), network, mine))

    async def _leave(self) -> None:
        try:
            await self._leases.leave(self._networks.all())
        except LinkspanError as error:
            log.warning("claims in deleted networks stay for now: %s", error.message)

    async def first(self, network: Network) -> None:
        """Claim a lease in a network, unless this host has one.

        Raises what ``Leases.claim`` raises, and Conflict if this host was removed from the cluster.
        """
        if self._hosts.removed():
            raise self._hosts.gone()
        for last in (False, True):
            try:
                if self._leases.mine(network.name) is None:
                    await self._claim_in(network)
            except Conflict:  # the network was changed at this moment, perhaps
                if last:
                    raise
            else:
                return

    def _is_own(self, key: str) -> bool:
        """Return whether a record is a lease of this host, or of a block that it lists."""
        kind, _, rest = key.partition("/")
        network, _, last = rest.partition("/")
        if kind == "blocks":
            lease = self._leases.mine(network)
            return lease is not None and last in lease.prefixes
        return kind == "leases" and last == self._hosts.here.id

    @property
    def pending(self) -> bool:
        """Return whether this host lacks a lease, or has something to give back."""
        if self.refused or self._conflicts.pending:
            return True
        wanted = () if self._hosts.removed() else self.participation.wanted()
        if any(self._leases.mine(name) is None for name in wanted):  # of a container that was found again
            return True
        here = self._hosts.here.id
        return any(self._conflicts.lost_by(network.name, here) for network in self._networks.all())
