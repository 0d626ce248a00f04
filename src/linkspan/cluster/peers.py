"""What this host needs to reach each of the others: one source of states, ``("peer", NETWORK, HOST)``, for each.

A changed record costs the states of the peers that it names.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping

import msgspec

from linkspan.backends import backend, migration
from linkspan.backends.multi_host import reached
from linkspan.cluster.conflicts import Disputes
from linkspan.cluster.leases import Leases
from linkspan.cluster.networks import Networks
from linkspan.cluster.onlink_peers import Segment, Ways
from linkspan.cluster.underlay_macs import Stations
from linkspan.core.addresses import Prefix, prefix
from linkspan.core.errors import Invalid, LinkspanError
from linkspan.core.event_log import Happenings
from linkspan.core.model import HostView, Lease, Network, Peer
from linkspan.core.states.host import LEARNT_METRIC
from linkspan.kernel.drivers.routes import learnt_routes
from linkspan.kernel.worker import Worker

log = logging.getLogger("linkspan.cluster.peers")

Pair = tuple[str, str]
"""A network and another host in it."""


class Peers:
    """The other hosts, by network."""

    def __init__(
        self,
        worker: Worker,
        leases: Leases,
        networks: Networks,
        disputes: Disputes,
        happenings: Happenings,
        view: Callable[[], HostView],
    ) -> None:
        self._worker = worker
        self._leases = leases
        self._networks = networks
        self._disputes = disputes
        self._happenings = happenings
        self._view = view
        self.known: dict[Pair, Peer] = {}
        """Those that states were put for."""
        self.met: dict[Pair, tuple[int, str]] = {}
        """The number of the migration in which both ways serve (or 0), and the way that sends."""
        self.unreachable: dict[Pair, str] = {}
        self.withdrawn = False
        """Whether this host has given up its addresses, for the store has been away for ``reclaim_after``."""
        self._segment = Segment(lambda: worker.machine.sockets, self.follow)
        self._stations = Stations(self._follow_host)

    def start(self) -> None:
        """Begin to ask who answers on the underlay's own link."""
        self._segment.start()

    async def stop(self) -> None:
        """End it."""
        self._stations.stop()
        await self._segment.stop()

    async def _follow_host(self, host: str) -> None:
        await self.follow([pair for pair in self.known if pair[1] == host])

    def concerned(self, changed: set[str], everything: bool) -> Iterable[Pair]:
        """Return the pairs that a change of records concerns."""
        here = self._leases.host.id
        pairs = {(lease.network, lease.host) for lease in self._leases.all()} | self.known.keys()
        others = {pair for pair in pairs if pair[1] != here}
        record = f"hosts/{here}"
        all_ = ("networks/", "allowances/", "settings/", "gone/")
        if everything or any(k == record or k.startswith(all_) for k in changed):
            return others
        words = [key.split("/") for key in changed]
        named = {(w[1], w[2]) for w in words if w[0] == "leases" and len(w) == 3}
        hosts = {w[1] for w in words if w[0] in ("hosts", "endpoints")}
        exact = {w[1] for w in words if w[0] == "addresses"}
        own = {w[1] for w in words if w[0] == "leases" and w[-1] == here}
        blocks = {(w[1], "/".join(w[2:])) for w in words if w[0] == "blocks" and len(w) == 4}
        for lease in self._leases.all() if blocks else ():
            if any((lease.network, text) in blocks for text in lease.prefixes):
                named.add((lease.network, lease.host))
        hidden = self._hidden() if named or hosts else set()  # the host by which they are reached may be another now
        return {
            p
            for p in others
            if p in named | self._disputes.fresh | hidden or p[1] in hosts or p[0] in exact | own
        }

    def _hidden(self) -> set[Pair]:
        """Return the pairs that are behind a NAT each, as this host is."""
        here = self._leases.host.underlay
        if here is None or not here.hidden:
            return set()
        found = ((pair, peer.host.underlay) for pair, peer in self.known.items())
        return {pair for pair, there in found if there is not None and there.hidden}

    async def follow(self, pairs: Iterable[Pair]) -> None:
        """Put what these pairs need now; nothing where this host has ``withdrawn``."""
        wanted = list(pairs)
        if not wanted:
            return
        networks = {network.name: network for network in self._networks.all()}
        peers = {} if self.withdrawn else seen(self._leases, self._networks, self._disputes, wanted)
        for pair, peer in peers.items():
            if isinstance(peer, Peer):
                peers[pair] = msgspec.structs.replace(peer, macs=self._stations.of(peer.host))
        told = await self._worker.run(self._put, networks, dict.fromkeys(wanted) | peers)
        self._segment.look()
        for pair, error in told.items():
            if error and self.unreachable.get(pair) != error:
                log.warning("%s", error)
                self._happenings.add("peer", error, network=pair[0], host=self._leases.name(pair[1]))
            self.unreachable.pop(pair, None)
            if error:
                self.unreachable[pair] = error

    def _put(self, networks: dict[str, Network], peers: Mapping[Pair, Peer | LinkspanError | None]) -> dict[Pair, str]:
        """Put each peer's states (worker thread); returns what went wrong, '' where nothing did."""
        machine, view, told = self._worker.machine, self._view(), {}
        ways: Ways = {}
        awaited = any(new and backend(new.backend).learns for new in map(migration.target, networks.values()))
        learnt = [r.destination for r in learnt_routes(machine.sockets, LEARNT_METRIC)] if awaited else []
        # Who has lost a block lets go of what the owner needs: the same prefix, the same address of its own.
        for (name, other), peer in sorted(peers.items(), key=lambda one: not self._disputes.lost_by(*one[0])):
            source = ("peer", name, other)
            told[name, other] = ""
            try:
                if peer is None:
                    self.known.pop((name, other), None)
                    self.met.pop((name, other), None)
                    self._segment.forget((name, other))
                    machine.reconciler.change(source, ())
                    continue
                if isinstance(peer, LinkspanError):
                    raise peer
                network = networks[name]
                peer = self._segment.located(view, network, peer, ways)
                there = all(any(one.holds(target) for one in learnt) for target in reached(peer))
                peer = msgspec.structs.replace(peer, learnt=awaited and there)
                self.known[name, other] = peer
                met = migration.meet(view, network, peer)
                machine.reconciler.change(source, met.states)
                error = machine.reconciler.unwell(source)  # of an earlier change, too
                told[name, other] = error.message if error else met.problem
                number = network.migration.number if network.migration and not told[name, other] else 0
                self.met[name, other] = (number, met.by)
            except LinkspanError as error:
                self.met.pop((name, other), None)
                machine.reconciler.change(source, ())
                named = f"network {name}" in error.message
                told[name, other] = error.message if named else f"network {name}: {error.message}"
        return told


def seen(
    leases: Leases, networks: Networks, disputes: Disputes, pairs: Collection[Pair]
) -> dict[Pair, Peer | LinkspanError]:
    """Return what the records say of these pairs' hosts, as far as it counts; of a pair that is none, nothing.

    An error in a host's place says why it cannot be reached.
    """
    there = {network.name: network for network in networks.all()}
    hosts = leases.hosts()
    wanted: dict[str, set[str]] = {}
    for name, other in pairs:
        wanted.setdefault(name, set()).add(other)
    exact = {name: leases.counted(there[name], others) for name, others in wanted.items() if name in there}
    found: dict[Pair, Peer | LinkspanError] = {}
    for name, other in pairs:
        lease = leases.of(name, other)
        if name not in there or other not in hosts or lease is None:
            continue
        if covered := networks.covering(hosts[other]):
            found[name, other] = Invalid(f"host {hosts[other].name} cannot be reached: {covered}")
            continue
        astray = disputes.astray(there[name], other)
        counted = exact[name].get(other, ())
        grant = leases.grant(there[name], lease)
        addresses = tuple(sorted({*counted, *astray}))
        found[name, other] = Peer(leases.whole(hosts[other]), _reachable(grant.lease, astray), exact=addresses)
    return found


def _reachable(lease: Lease, astray: set[Prefix]) -> Lease:
    """Return the lease of a host that lost its blocks with an address by which the host itself is reached.

    Where it has none of its own left, that of one of its containers takes its place.
    """
    own = list(lease.addresses)
    for family in {a.family for a in astray} - {prefix(text).family for text in own}:
        own.append(str(min(a for a in astray if a.family == family)))
    return msgspec.structs.replace(lease, addresses=tuple(own))
