"""What this host needs to reach each of the others: one source of states, ``("peer", NETWORK, HOST)``, for each.

A changed record costs the states of the peers that it names.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

import msgspec

from linkspan import migration
from linkspan.addresses import Prefix, prefix
from linkspan.backends import backend
from linkspan.backends.crossing import reached
from linkspan.disputes import Disputes
from linkspan.errors import LinkspanError
from linkspan.happenings import Happenings
from linkspan.kernel.routes import learnt_routes
from linkspan.leases import Leases
from linkspan.machine import Worker
from linkspan.model import HostView, Lease, Network, Peer
from linkspan.networks import Networks
from linkspan.segment import Segment, Ways
from linkspan.state import LEARNT_METRIC
from linkspan.stations import Stations

log = logging.getLogger("linkspan.peers")

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
        if everything or any(k == record or k.startswith(("networks/", "settings/", "gone/")) for k in changed):
            return others
        words = [key.split("/") for key in changed]
        named = {(w[1], w[2]) for w in words if w[0] == "leases" and len(w) == 3}
        hosts = {w[1] for w in words if w[0] in ("hosts", "endpoints")}
        exact = {w[1] for w in words if w[0] == "addresses"}
        own = {w[1] for w in words if w[0] == "leases" and w[-1] == here}
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
        hosts = self._leases.hosts()
        exact: dict[Pair, list[Prefix]] = {}
        for name in {name for name, _ in wanted}:
            for address, record in self._leases.exact(name).items():
                if record.host:
                    exact.setdefault((name, record.host), []).append(address)
        peers: dict[Pair, Peer | None] = {}
        for pair in wanted:
            name, other = pair
            lease = self._leases.of(name, other)
            if self.withdrawn or name not in networks or other not in hosts or lease is None:
                peers[pair] = None
                continue
            astray = self._disputes.astray(name, other)
            addresses = sorted({*exact.get(pair, ()), *astray})
            host = self._leases.whole(hosts[other])
            lease, macs = self._undisputed(lease, astray), self._stations.of(host)
            peers[pair] = Peer(host, lease, exact=tuple(addresses), macs=macs)
        told = await self._worker.run(self._put, networks, peers)
        self._segment.look()
        for pair, error in told.items():
            if error and self.unreachable.get(pair) != error:
                log.warning("%s", error)
                self._happenings.add("peer", error, network=pair[0], host=self._leases.name(pair[1]))
            self.unreachable.pop(pair, None)
            if error:
                self.unreachable[pair] = error

    def _undisputed(self, lease: Lease, astray: set[Prefix]) -> Lease:
        """Return the lease without blocks that its host has lost to another, and addresses of its own in them.

        Where the host has no address of its own left, that of one of its containers stands for it.
        """
        lost = {prefix(text) for text in self._disputes.lost_by(lease.network, lease.host)}
        if not lost:
            return lease
        own = [a for a in lease.addresses if not any(b.holds(prefix(a).single()) for b in lost)]
        for family in {a.family for a in astray} - {prefix(text).family for text in own}:
            own.append(str(min(a for a in astray if a.family == family)))
        blocks = tuple(str(block) for block in lease.blocks if block not in lost)
        return msgspec.structs.replace(lease, prefixes=blocks, addresses=tuple(own))

    def _put(self, networks: dict[str, Network], peers: dict[Pair, Peer | None]) -> dict[Pair, str]:
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
