"""Flows that policies forbid, and who is known at their addresses: what an agent cuts after a change."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import msgspec

from linkspan.agent.named_addresses import NamedAddresses
from linkspan.agent.policy_coverage import addresses, policed, spots_at
from linkspan.cluster.networks import Networks
from linkspan.core.addresses import Prefix, prefix
from linkspan.core.model import Endpoint
from linkspan.kernel.probe import conntrack
from linkspan.policy.judge import Judge, Party, Probe, Verdict, is_outside
from linkspan.policy.model import Ports

Source = tuple[str, ...]
"""The name under which states of policies are desired."""


class Known(msgspec.Struct, frozen=True, gc=False):
    """An endpoint at one of its addresses: the selectors that select it, and its name.

    Of another host's endpoint only selectors of peers count. One on this host's own network has no address, but ports.
    """

    address: Prefix | None
    chosen: frozenset[str]
    name: str

    @property
    def party(self) -> Party:
        """Return it as a judge sees it."""
        return Party(self.address, self.chosen)


class Flows:
    """Judge of flows, as a value for another thread: it is called with each flow, and says if it is forbidden."""

    def __init__(
        self,
        judge: Judge,
        known: Mapping[str, Known],
        here: Collection[str],
        pools: Collection[Prefix],
        local: Collection[str],
        names: Mapping[str, frozenset[str]],
    ) -> None:
        """Take the addresses of this host's endpoints as ``here``: other hosts enforce the policies of theirs.

        ``local`` are the host's own addresses. Of flows with one of them only those pass rules that lead to ports of
        containers on the host's own network. ``names`` are the DNS names of addresses outside.
        """
        self._judge = judge
        self._known = known
        self._here = here
        self._pools = pools
        self._local = local
        self._names = names

    def __call__(self, flow: conntrack.Flow) -> bool:
        """Return whether policies that this host enforces forbid a flow."""
        return self.refusal(flow) is not None

    def refusal(self, flow: conntrack.Flow) -> Verdict | None:
        """Return by which policy and line this host refuses a flow, None if it does not."""
        source, target = flow.source.address, flow.target.address
        if self._own(source):
            return None
        if self._own(target):
            return self.refusal_at_host(flow)
        probe = Probe(flow.protocol, flow.port)
        ends = self._party(flow.source), self._party(flow.target)
        if source in self._here and not (out := self._judge.judged("egress", *ends, probe)).allowed:
            return out
        if target in self._here and not (into := self._judge.judged("ingress", *ends[::-1], probe)).allowed:
            return into
        return None

    def refusal_at_host(self, flow: conntrack.Flow) -> Verdict | None:
        """Return as ``refusal`` for a flow to the host itself: a container on its network may have the port."""
        for spot in spots_at(flow.target, flow.protocol, flow.port):
            if (served := self._known.get(spot)) is not None:
                probe = Probe(flow.protocol, flow.port)
                into = self._judge.judged("ingress", served.party, self._party(flow.source), probe)
                return None if into.allowed else into
        return None

    def names(self, flow: conntrack.Flow, *, to_host: bool = False) -> tuple[str, str]:
        """Return the names of the containers at both ends of a flow, for people; of an end without one its address.

        ``to_host`` says that its target is this host, as its own addresses do. Then it is the container that has the
        port.
        """
        source, target = flow.source.address, flow.target.address
        at_host = to_host or self._own(target)
        ats = spots_at(flow.target, flow.protocol, flow.port) if at_host else (target,)
        one, *others = (self._known.get(at) for at in (source, *ats))
        return one.name if one else source, next((other.name for other in others if other), target)

    def _own(self, address: str) -> bool:
        return address in self._local or address.startswith("127.") or address == "::1"

    def _party(self, address: Prefix) -> Party:
        known = self._known.get(address.address)
        if known is not None:
            return known.party
        names = self._names.get(address.address, frozenset())
        return Party(address, outside=is_outside(address, self._pools), names=names)


class Parties:
    """The endpoints whose elements have been put, by address and by the source of the elements."""

    def __init__(
        self, networks: Networks, endpoints: Mapping[tuple[str, str], Endpoint], named: NamedAddresses
    ) -> None:
        self._networks = networks
        self._endpoints = endpoints
        self._named = named
        self._at: dict[str, Known] = {}
        self._of: dict[Source, Mapping[str, Known]] = {}

    def note(self, source: Source, found: Mapping[str, Known]) -> bool:
        """Record by address what is known of a source now; return whether flows may be older than that.

        They are if a known address means another party, and at a new port of the host: others had it before, or the
        container itself, while nothing was known of it.
        """
        before = self._of.pop(source, {})
        if found:
            self._of[source] = found
        differs = any(
            before[at].chosen != known.chosen if at in before else known.address is None for at, known in found.items()
        )
        for address in before.keys() - found.keys():
            if self._at.get(address) is before[address]:  # otherwise another source has the address now
                del self._at[address]
        self._at.update(found)
        return differs

    def change(self, source: Source, changed: Mapping[str, Known]) -> None:
        """Record what is known now at some addresses of a source; the others stay."""
        if changed:
            self._of[source] = {**self._of.get(source, {}), **changed}
            self._at.update(changed)

    def of(self, source: Source) -> Mapping[str, Known]:
        """Return by address what is known of a source."""
        return self._of.get(source, {})

    def sources(self) -> Collection[Source]:
        """Return the sources of which something is known."""
        return self._of.keys()

    def flows(self, judge: Judge, local: frozenset[str] = frozenset(), *, past: bool = False) -> Flows:
        """Return which flows of this host a judge forbids; ``local`` are the host's own addresses.

        With ``past`` a DNS name is also at addresses that it had within a week: flows that are open were allowed then.
        """
        own = filter(policed, self._endpoints.values())
        here = {address.address for endpoint in own for address in addresses(endpoint)}
        pools = [pool for network in self._networks.all() for pool in network.prefixes]
        local |= {prefix(text).address for network in self._networks.all() for text in network.gateways}
        names = self._named.by_address(past=past) if judge.names else {}
        return Flows(judge, dict(self._at), here, pools, local, names)


def port_text(flow: conntrack.Flow) -> str:
    """Return a flow's protocol, with its port if it has one, as people write it: 80/tcp, echo-request/icmp, 47."""
    if flow.protocol in ("tcp", "udp", "sctp", "icmp"):
        return str(Ports(flow.protocol, flow.port, flow.port))  # type: ignore[arg-type]
    return flow.protocol
