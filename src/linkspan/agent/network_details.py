"""Details of networks that an operator changes by themselves: allowances between networks, and reserved addresses."""

from __future__ import annotations

from linkspan.cluster.address_usage import AddressUsage
from linkspan.cluster.allowances import Allowances
from linkspan.cluster.membership import Membership, raise_first
from linkspan.cluster.networks import Networks
from linkspan.cluster.reservations import Reservations
from linkspan.core.model import Allowance, Reservation


class NetworkDetails:
    """Writes allowances and reservations, and applies them here."""

    def __init__(
        self,
        networks: Networks,
        allowances: Allowances,
        reservations: Reservations,
        blocks: AddressUsage,
        membership: Membership,
    ) -> None:
        self._networks = networks
        self._allowances = allowances
        self._reservations = reservations
        self._blocks = blocks
        self._membership = membership

    async def allow(self, allowance: Allowance, allowed: bool) -> None:
        """Allow one network's endpoints to open connections to another network's, or withdraw that."""
        self._networks.get(allowance.source)
        self._networks.get(allowance.target)
        with self._membership.watched() as refused:
            await (self._allowances.allow if allowed else self._allowances.disallow)(allowance)
            await self._membership.converge({"allowances/"})
        raise_first(refused)

    async def reserve(self, network: str, cidr: str) -> Reservation:
        """Reserve addresses of a network."""
        made = await self._reservations.reserve(network, cidr)
        self._blocks.refresh()
        return made

    async def unreserve(self, network: str, cidr: str) -> None:
        """Release reserved addresses."""
        await self._reservations.unreserve(network, cidr)
        self._blocks.refresh()
