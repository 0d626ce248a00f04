"""Policy records: the policies, staged policies and defaults of networks in the store, as one regime."""

from __future__ import annotations

from linkspan.cluster.networks import Networks
from linkspan.policy.model import Policy
from linkspan.policy.regime import Regime
from linkspan.store.derived import Derived
from linkspan.store.replica import Replica


class PolicyRecords:
    """Reads the records of policies (``agent/policies.py`` writes them)."""

    def __init__(self, replica: Replica, networks: Networks) -> None:
        self._replica = replica
        self._networks = networks
        self._closed = Derived(networks.all, self._read_closed)
        self._before = Regime()
        """What was recorded the last time: most policies are still the same."""
        self._regime = Derived(
            lambda: (replica.changes("policies"), replica.changes("staged"), self._closed.get()), self._read
        )

    def regime(self) -> Regime:
        """Return what is recorded now: the same object until a record changes."""
        return self._regime.get()

    def _read(self) -> Regime:
        enforced, staged = (self._replica.read(kind, Policy).values() for kind in ("policies/", "staged/"))
        self._before = Regime(enforced, staged, self._closed.get(), self._before)
        return self._before

    def _read_closed(self) -> tuple[str, ...]:
        return tuple(one.name for one in self._networks.all() if one.policy == "default-deny")

    async def save(self) -> None:
        """Save the snapshot of all records: an agent that starts while the store is away reads the policies there."""
        await self._replica.save()
