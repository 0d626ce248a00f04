"""Flows that policies forbid: what an agent cuts after a change."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from linkspan.core.addresses import Prefix
from linkspan.kernel.probe import conntrack
from linkspan.policy.judge import Judge, Party, Probe, Verdict, is_outside


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
        return self.refusal(flow) is not None

    def refusal(self, flow: conntrack.Flow) -> Verdict | None:
        """Return by which policy and line this host refuses a flow, None if it does not."""
        source, target = flow.source.address, flow.target.address
        if self._own(source) or self._own(target):
            return None
        probe = Probe(flow.protocol, flow.port)
        ends = self._party(flow.source), self._party(flow.target)
        if source in self._here and not (out := self._judge.judged("egress", *ends, probe)).allowed:
            return out
        if target in self._here and not (into := self._judge.judged("ingress", *ends[::-1], probe)).allowed:
            return into
        return None

    def _own(self, address: str) -> bool:
        return address in self._local or address.startswith("127.") or address == "::1"

    def _party(self, address: Prefix) -> Party:
        known = self._parties.get(address.address)
        return known or Party(address, outside=is_outside(address, self._pools))
