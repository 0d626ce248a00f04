"""Reservations: addresses of networks that endpoints get only if they ask for them."""

from __future__ import annotations

from linkspan.cluster.networks import Networks
from linkspan.core.addresses import prefix
from linkspan.core.errors import Invalid, NotFound
from linkspan.core.model import Reservation
from linkspan.store.replica import Replica


class Reservations:
    """The reservations in this host's replica of the store."""

    def __init__(self, replica: Replica, networks: Networks) -> None:
        self._replica = replica
        self._networks = networks

    def all(self) -> tuple[Reservation, ...]:
        """Return all reservations, sorted."""
        return tuple(sorted(self._replica.read("reservations/", Reservation).values()))

    async def reserve(self, name: str, cidr: str) -> Reservation:
        """Reserve addresses of a network, and return the reservation. Raises Invalid if they are in no pool."""
        wanted = prefix(cidr).network()
        network = self._networks.get(name)
        if not any(p.holds(wanted) for p in network.prefixes):
            raise Invalid(f"{cidr} is in no pool of network {name}", f"its pools: {', '.join(network.pools)}")
        reservation = Reservation(name, str(wanted))
        await self._replica.write({_key(reservation): reservation})
        return reservation

    async def unreserve(self, name: str, cidr: str) -> None:
        """Remove a reservation. Raises NotFound if there is none."""
        reservation = Reservation(self._networks.get(name).name, str(prefix(cidr).network()))
        if reservation not in self.all():
            raise NotFound(
                f"{cidr} of network {name} is not reserved", "`linkspan address list` shows reservations"
            )
        await self._replica.write({}, deletes=[_key(reservation)])


def _key(r: Reservation) -> str:
    return f"reservations/{r.network}/{r.cidr}"
