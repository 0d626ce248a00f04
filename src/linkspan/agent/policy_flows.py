"""Flows that policies forbid: what an agent cuts after a change."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from linkspan.core.addresses import Prefix
from linkspan.kernel.probe import conntrack
from linkspan.policy.judge import Judge, Party, Probe
from linkspan.policy.model import Direction


class Flows:
    """Which flows are forbidden, as a value for another thread: it is called with each flow."""

    def __init__(
        self,
        judge: Judge,
        parties: Mapping[str, Party],
        here: Collection[str],
        pools: Collection[Prefix],
        local: Collection[str],
    ) -> None:
        """Take the addresses of this host's endpoints as ``here``: other hosts enforce the policies of theirs.

        ``local`` are the host's own addresses: no flow with one of them passes the rules.
        """
        self._judge = judge
        self._parties = parties
        self._here = here
        self._pools = pools
        self._local = local

    def __call__(self, flow: conntrack.Flow) -> bool:
        """Return whether policies that this host enforces forbid a flow."""
        source, target = flow.source.address, flow.target.address
        if self._own(source) or self._own(target):
            return False
        probe = Probe(flow.protocol, flow.port)
        if source in self._here and not self._allowed("egress", flow.source, flow.target, probe):
            return True
        return target in self._here and not self._allowed("ingress", flow.target, flow.source, probe)

    def _own(self, address: str) -> bool:
        return address in self._local or address.startswith("127.") or address == "::1"

    def _allowed(self, direction: Direction, own: Prefix, other: Prefix, probe: Probe) -> bool:
        return self._judge.judged(direction, self._party(own), self._party(other), probe).allowed

    def _party(self, address: Prefix) -> Party:
        known = self._parties.get(address.address)
        return known or Party(address, outside=not any(pool.holds(address) for pool in self._pools))
