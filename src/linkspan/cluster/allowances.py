"""Allowances: which networks may open connections to which others, as the cluster has recorded it."""

from __future__ import annotations

from linkspan.cluster.networks import Networks
from linkspan.core.errors import Invalid, NotFound
from linkspan.core.model import Allowance
from linkspan.store.replica import Replica


class Allowances:
    """The allowances in this host's replica of the store."""

    def __init__(self, replica: Replica, networks: Networks) -> None:
        self._replica = replica
        self._networks = networks

    def all(self) -> tuple[Allowance, ...]:
        """Return all allowances, sorted."""
        return tuple(sorted(self._replica.read("allowances/", Allowance).values()))

    async def allow(self, allowance: Allowance) -> None:
        """Record an allowance. Raises NotFound if a network does not exist, and Invalid if the port is not valid."""
        wanted = ("tcp", "udp", "sctp") if allowance.port else ("",)
        if allowance.protocol not in wanted or not 0 <= allowance.port <= 65535:
            raise Invalid(
                f"{allowance.port}/{allowance.protocol} is no port to allow",
                "write it as 80/tcp, or leave it out",
            )
        self._networks.get(allowance.source)
        self._networks.get(allowance.target)
        if allowance.source == allowance.target:
            raise Invalid(f"network {allowance.source} reaches itself already")
        await self._replica.write({_key(allowance): allowance})

    async def disallow(self, allowance: Allowance) -> None:
        """Remove an allowance; without a port, all allowances from the one network to the other.

        Raises NotFound if there is none.
        """
        gone = [
            a
            for a in self.all()
            if (a.source, a.target) == (allowance.source, allowance.target)
            and (not allowance.port or (a.protocol, a.port) == (allowance.protocol, allowance.port))
        ]
        if not gone:
            raise NotFound(
                f"network {allowance.source} is not allowed to reach {allowance.target} in this way",
                f"`linkspan network show {allowance.source}` shows its allowances",
            )
        await self._replica.write({}, deletes=[_key(a) for a in gone])


def _key(a: Allowance) -> str:
    return f"allowances/{a.source}/{a.target}/{a.protocol}/{a.port}"
