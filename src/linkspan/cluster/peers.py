"""Peers: this host's states for reaching each other host, one source, ``("peer", NETWORK, HOST)``, for each.

After a change of a record only the states of the peers that it names are computed again.
"""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Set

import msgspec

from linkspan.backends import backend, migration
from linkspan.backends.migration import Meeting
from linkspan.backends.multi_host import reached
from linkspan.cluster.claims import RETRY
from linkspan.cluster.conflicts import Conflicts
from linkspan.cluster.hosts import Hosts
from linkspan.cluster.leases import Leases
from linkspan.cluster.networks import Networks
from linkspan.cluster.onlink_peers import Located, Neighbour, Segment, Ways, located, path
from linkspan.cluster.participation import Participation
from linkspan.cluster.underlay_macs import Stations
from linkspan.core.addresses import Prefix, prefix
from linkspan.core.desired import Source
from linkspan.core.errors import Invalid, LinkspanError
from linkspan.core.event_log import EventLog
from linkspan.core.host_view import HostView, Peer, Standing
from linkspan.core.model import Lease
from linkspan.core.states.host import LEARNT_METRIC, State
from linkspan.kernel.drivers.routes import learnt_routes
from linkspan.kernel.machine import Machine
from linkspan.kernel.worker import Worker

log = logging.getLogger("linkspan.cluster.peers")

Pair = tuple[str, str]
"""A network's name, and the id of another host in it."""


class Peers:
    """The other hosts in each network, and this host's states for each."""

    def __init__(
        self,
        worker: Worker,
        hosts: Hosts,
        leases: Leases,
        networks: Networks,
        conflicts: Conflicts,
        participation: Participation,
        event_log: EventLog,
        view: Callable[[], HostView],
    ) -> None:
        self._worker = worker
        self._hosts = hosts
        self._leases = leases
        self._networks = networks
        self._conflicts = conflicts
        self._participation = participation
        self._event_log = event_log
        self._view = view
        self.known: dict[Pair, Peer] = {}
        """The peers whose states were applied."""
        self.met: dict[Pair, tuple[int, str]] = {}
        """The number of the migration in which both backends work for the pair (or 0), and the backend that sends."""
        self.unreachable: dict[Pair, str] = {}
        self.withdrawn = False
        """True if this host has given up its addresses, because it was silent for ``reclaim_after``."""
        self._crossed: dict[Pair, _Crossed] = {}
        """The exact addresses that the states of a pair depend on; most pairs depend on none, and are left out.

        They are set before the snapshot goes to the worker.
        """
        self._following = asyncio.Lock()
        """Held from the snapshot for the worker until its results are recorded here."""
        self._segment = Segment(self.follow)
        self._stations = Stations(self._follow_host)
        self._looked: HostView | None = None
        """The view at the last ``look``."""
        self._followers: list[Callable[[], None]] = []

    def subscribe(self, followed: Callable[[], None]) -> None:
        """Call ``followed`` each time when peers' states were put."""
        self._followers.append(followed)

    def withdraw(self, withdrawn: bool) -> None:
        """Set whether the next ``follow`` removes all states for peers; the caller follows all pairs then."""
        self.withdrawn = withdrawn

    def networks(self) -> set[str]:
        """Return the networks in which this host has peers."""
        return {network for network, _ in self.known}

    def start(self) -> None:
        """Start to ask which peers answer on the underlay's own link."""
        self._segment.start()

    async def stop(self) -> None:
        """Stop asking, and cancel all timers."""
        self._stations.stop()
        await self._segment.stop()

    async def _follow_host(self, host: str) -> None:
        await self.follow([pair for pair in self.known if pair[1] == host])

    def concerned(self, changed: set[str], everything: bool) -> Iterable[Pair]:
        """Return the pairs whose states depend on the ``changed`` keys; all pairs for ``everything``.

        These are of networks in which this host takes part, or did.
        """
        here = self._hosts.here.id
        taking = self._participation.all()
        pairs = {(name, host) for name in taking for host in self._leases.hosts_in(name)} | self.known.keys()
        others = {pair for pair in pairs if pair[1] != here}
        record = f"hosts/{here}"
        all_ = ("networks/", "allowances/", "settings/", "gone/")
        if everything or any(k == record or k.startswith(all_) for k in changed):
            return others
        words = [key.split("/") for key in changed]
        named = {(w[1], w[2]) for w in words if w[0] == "leases" and len(w) == 3}
        hosts = {w[1] for w in words if w[0] in ("hosts", "endpoints")}
        own = {w[1] for w in words if w[0] == "leases" and w[-1] == here}
        blocks = {(w[1], "/".join(w[2:])) for w in words if w[0] == "blocks" and len(w) == 4}
        for lease in (lease for name in taking & {name for name, _ in blocks} for lease in self._leases.all(name)):
            if any((lease.network, text) in blocks for text in lease.prefixes):
                named.add((lease.network, lease.host))
        exact: dict[str, set[Prefix]] = {}
        for w in words:
            if w[0] == "addresses" and len(w) == 3:
                with contextlib.suppress(Invalid):  # of any key: somebody may have made one
                    exact.setdefault(w[1], set()).add(prefix(w[2]).single())
        hidden = self._hidden() if named or hosts else set()  # another host may relay to them now
        named |= self._conflicts.fresh | hidden
        migrating = {one.name for one in self._networks.all() if one.migration} if RETRY in changed else set()
        for name, addresses in exact.items():
            named |= self._by_exact(name, addresses, {pair for pair in others if pair[0] == name})
        return {p for p in others if p in named or p[1] in hosts or p[0] in own or p[0] in migrating}

    def _by_exact(self, network: str, addresses: Set[Prefix], pairs: Set[Pair]) -> Set[Pair]:
        """Return the pairs of a network whose states depend on these exact addresses.

        These are the present holders, and pairs whose states already contain an address: it may have had another
        holder. If the network's states contain this host's own exact addresses, a change of one of them concerns all
        pairs.
        """
        holders = {self._leases.holder(network, address) for address in addresses}
        if self._hosts.here.id in holders and any(
            name == network and address in addresses for name, address in self._view().exact
        ):
            return pairs
        return {pair for pair in pairs if pair[1] in holders or self._follows_from(pair, addresses)}

    def _follows_from(self, pair: Pair, addresses: Set[Prefix]) -> bool:
        """Return whether a pair's states depend on one of these exact addresses, or its host has one for itself."""
        if (crossed := self._crossed.get(pair)) is not None and crossed.has(addresses):
            return True
        lease = self._leases.of(*pair)
        return lease is not None and any(prefix(text).single() in addresses for text in lease.addresses)

    def _hidden(self) -> set[Pair]:
        """Return the pairs whose host is behind a NAT, if this host is behind one too."""
        here = self._hosts.here.underlay
        if here is None or not here.hidden:
            return set()
        found = ((pair, peer.host.underlay) for pair, peer in self.known.items())
        return {pair for pair, there in found if there is not None and there.hidden}

    async def follow(self, pairs: Iterable[Pair]) -> None:
        """Apply the states that these pairs need now; remove them if this host has ``withdrawn``."""
        wanted = list(pairs)
        if not wanted:
            return
        async with self._following:
            while wanted:
                found = await self._worker.run(_put, self._worker.machine, self._snapshot(wanted))
                wanted = [pair for pair, outcome in found.items() if self._take(pair, outcome)]
        self._segment.look()
        for followed in self._followers:
            followed()

    async def give_up(self, network: str, address: Prefix) -> None:
        """Take an exact address, which this host has claimed, out of the states of the peer that had it until now."""
        of_network = ((pair, peer) for pair, peer in self.known.items() if pair[0] == network)
        await self.follow([pair for pair, peer in of_network if address in peer.exact])

    async def look(self) -> None:
        """Follow the pairs whose states may differ now although no record that concerns them changed.

        The kernel may have another path to the peer, or a state that was in the kernel went and could not be put again.
        Or what counts for the peer depends on the containers of a third host, which owns the block: this host may have
        read these later, or not follow them. All pairs are followed if this host's view is another one than at the last
        look (its facts or settings changed), and while a network migrates to a backend that learns routes.
        """
        view = self._view()
        before, self._looked = self._looked, view
        if view != before or _awaits_routes(view):
            await self.follow(self.known.keys())
            return
        machine = self._worker.machine
        moved = await self._worker.run(_moved, machine, dict(self.known))
        unwell = await self._worker.run(_unwell, machine)
        await self.follow(moved | unwell | self.unreachable.keys() | self._beside_owners())

    def _beside_owners(self) -> set[Pair]:
        """Return the pairs whose host has lost a block to another host, or has an exact address in another's block.

        There are such ones only after a restore of the store.
        """
        names = {name for name, _ in self.known}
        doubtful = {one.name: self._leases.doubtful(one) for one in self._networks.all() if one.name in names}
        return {p for p in self.known if self._conflicts.lost_by(*p) or p[1] in doubtful.get(p[0], ())}

    def _snapshot(self, pairs: Sequence[Pair]) -> _Snapshot:
        """Return the snapshot of all that the worker needs for these pairs."""
        peers = {} if self.withdrawn else seen(self._hosts, self._leases, self._networks, self._conflicts, pairs)
        for pair, peer in peers.items():
            if isinstance(peer, Peer):
                peers[pair] = msgspec.structs.replace(peer, macs=self._stations.of(peer.host))
        view = self._view()
        names = {name for name, _ in pairs}
        own = {name: frozenset(address for of, address in view.exact if of == name) for name in names}
        for pair in pairs:
            self._crossed.pop(pair, None)
            if isinstance(there := peers.get(pair), Peer) and (there.exact or own[pair[0]]):
                self._crossed[pair] = _Crossed(there.exact, own[pair[0]])
        # First the hosts that have lost a block: the owner's states need the same prefix and the same own address.
        ordered = sorted(dict.fromkeys(pairs), key=lambda pair: (not self._conflicts.lost_by(*pair), pair))
        return _Snapshot(view, {pair: peers.get(pair) for pair in ordered}, self._segment.standings())

    def _take(self, pair: Pair, outcome: _Outcome) -> bool:
        """Record the worker's result for a pair; return whether the pair must be followed again."""
        again = False
        if outcome.located is not None:
            self.known[pair] = outcome.located.peer
            again = self._segment.note(pair, outcome.located)
        elif not outcome.error:
            self.known.pop(pair, None)
            self._segment.note(pair, None)
        self.met.pop(pair, None)
        if outcome.met is not None:
            self.met[pair] = outcome.met
        if outcome.error and self.unreachable.get(pair) != outcome.error:
            log.warning("%s", outcome.error)
            self._event_log.add("peer", outcome.error, network=pair[0], host=self._hosts.name(pair[1]))
        self.unreachable.pop(pair, None)
        if outcome.error:
            self.unreachable[pair] = outcome.error
        return again


class _Crossed(msgspec.Struct, frozen=True):
    """The exact addresses that a pair's states depend on: the peer's, sorted, and this host's ``own``."""

    exact: tuple[Prefix, ...]
    own: frozenset[Prefix]

    def has(self, addresses: Set[Prefix]) -> bool:
        """Return whether one of these addresses is among them."""
        places = ((bisect.bisect_left(self.exact, one), one) for one in addresses)
        return not self.own.isdisjoint(addresses) or any(self.exact[at : at + 1] == (one,) for at, one in places)


class _Snapshot(msgspec.Struct, frozen=True):
    """A snapshot for the worker: this host's view, the peer of each pair, and the standings of neighbours on the link.

    The pairs are in the order in which their states are applied. An error instead of a peer says why it cannot be
    reached; None means that its states must be removed.
    """

    view: HostView
    peers: Mapping[Pair, Peer | LinkspanError | None]
    standings: Mapping[Neighbour, Standing]


class _Outcome(msgspec.Struct, frozen=True):
    """The worker's result for a pair: the located peer (None: the pair is gone, or an error came first), and ``error``.

    ``met`` is as in ``Peers.met``.
    """

    located: Located | None = None
    met: tuple[int, str] | None = None
    error: str = ""


def _put(machine: Machine, snapshot: _Snapshot) -> dict[Pair, _Outcome]:
    """Apply each pair's states, and return the results (worker thread)."""
    ways: Ways = {}
    standings = dict(snapshot.standings)
    networks = {network.name: network for network in snapshot.view.networks}
    awaited = _awaits_routes(snapshot.view)
    learnt = [r.destination for r in learnt_routes(machine.sockets, LEARNT_METRIC)] if awaited else []
    outcomes: dict[Pair, _Outcome] = {}
    found: dict[Pair, tuple[Located, Meeting]] = {}
    wanted: dict[Source, tuple[State, ...]] = {}
    with machine.sockets.one_look():  # otherwise each path to a peer would list all links
        for pair, peer in snapshot.peers.items():
            wanted["peer", *pair] = ()
            there: Located | None = None
            try:
                if peer is None:
                    outcomes[pair] = _Outcome()
                    continue
                if isinstance(peer, LinkspanError):
                    raise peer
                network = networks[pair[0]]
                there = located(machine.sockets, snapshot.view, network, peer, ways, standings)
                standings.update(there.standings)  # a host is the same neighbour in all networks
                learns = awaited and all(any(one.holds(target) for one in learnt) for target in reached(there.peer))
                there = msgspec.structs.replace(there, peer=msgspec.structs.replace(there.peer, learnt=learns))
                met = migration.meet(snapshot.view, network, there.peer)
                wanted["peer", *pair], found[pair] = met.states, (there, met)
            except LinkspanError as error:
                outcomes[pair] = _failed(pair, there, error)
    # In one batch: a thousand peers cost each driver one call, and WireGuard one command.
    refused = machine.reconciler.each(wanted)
    for pair, (there, met) in found.items():
        source = ("peer", *pair)
        if source in refused:
            outcomes[pair] = _failed(pair, there, refused[source])
            continue
        failed = machine.reconciler.unwell(source)  # errors of earlier changes included
        why = failed.message if failed else met.problem
        move = networks[pair[0]].migration
        outcomes[pair] = _Outcome(there, (move.number if move and not why else 0, met.by), why)
    return outcomes


def _moved(machine: Machine, peers: Mapping[Pair, Peer]) -> set[Pair]:
    """Return the pairs to whose host the kernel has another path now (worker thread)."""
    ways: Ways = {}
    with machine.sockets.one_look():
        found = [(pair, peer, path(machine.sockets, peer, ways)) for pair, peer in peers.items()]
    return {pair for pair, peer, way in found if way is not None and way != (peer.device, peer.on_link)}


def _unwell(machine: Machine) -> set[Pair]:
    """Return the pairs with a state that is not in the kernel (worker thread)."""
    failing, sources = machine.reconciler.failing, machine.reconciler.desired.sources()
    unwell = (source for source, states in sources.items() if failing and not failing.keys().isdisjoint(states))
    return {(source[1], source[2]) for source in unwell if source[0] == "peer"}


def _awaits_routes(view: HostView) -> bool:
    """Return whether a network migrates to a backend that learns routes: then peers' states depend on these."""
    return any(n.target is not None and backend(n.target.backend).learns for n in view.networks)


def _failed(pair: Pair, there: Located | None, error: LinkspanError) -> _Outcome:
    named = f"network {pair[0]}" in error.message
    return _Outcome(there, error=error.message if named else f"network {pair[0]}: {error.message}")


def seen(
    hosts: Hosts, leases: Leases, networks: Networks, conflicts: Conflicts, pairs: Collection[Pair]
) -> dict[Pair, Peer | LinkspanError]:
    """Return the peer of each pair, from the records as far as they count; pairs that are gone are left out.

    An error instead of a peer says why it cannot be reached.
    """
    there = {network.name: network for network in networks.all()}
    wanted: dict[str, set[str]] = {}
    for name, other in pairs:
        wanted.setdefault(name, set()).add(other)
    exact = {name: leases.counted(there[name], others) for name, others in wanted.items() if name in there}
    records = {other: host for other in set[str]().union(*wanted.values()) if (host := hosts.record(other)) is not None}
    # Of each host once: it may be in many networks, and a pool of any network may cover its address.
    covered = {other: why for other, host in records.items() if (why := networks.covering(host))}
    whole = {other: hosts.whole(host) for other, host in records.items()}
    found: dict[Pair, Peer | LinkspanError] = {}
    for name, other in pairs:
        lease, host = leases.of(name, other), whole.get(other)
        if name not in there or host is None or lease is None:
            continue
        if other in covered:
            found[name, other] = Invalid(f"host {host.name} cannot be reached: {covered[other]}")
            continue
        astray = conflicts.astray(there[name], other)
        counted = exact[name].get(other, ())
        grant = leases.grant(there[name], lease)
        addresses = tuple(sorted({*counted, *astray}))
        found[name, other] = Peer(host, _reachable(grant.lease, astray), exact=addresses)
    return found


def _reachable(lease: Lease, astray: set[Prefix]) -> Lease:
    """Return the lease with an address of the host itself in each family of ``astray``, its containers' addresses.

    If the host has lost its own address together with a block, the lowest address of its containers takes its place.
    """
    if not astray:
        return lease
    own = list(lease.addresses)
    for family in {a.family for a in astray} - {prefix(text).family for text in own}:
        own.append(str(min(a for a in astray if a.family == family)))
    return msgspec.structs.replace(lease, addresses=tuple(own))
