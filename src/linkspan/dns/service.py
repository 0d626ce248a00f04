"""DNS service of this host's networks: starts and stops the servers, and keeps their names up to date.

The names come from the endpoints that hosts publish, and from the hosts' liveness, so no records store them. A host
whose liveness record is gone counts as dead, and its containers have no names any more (`remote_names`). While the
store itself does not answer, no host counts as dead.

Containers in several networks have views (`zone`), which depend on the containers' namespaces.

Until the store has answered a new agent, and until the agent has read the other hosts' endpoints of a network, their
names stay as the last agent has left them in the file.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from linkspan.cluster.networks import Networks
from linkspan.cluster.remote_endpoints import RemoteEndpoints
from linkspan.core import dns_names
from linkspan.core.addresses import Prefix, prefix
from linkspan.core.clock import loop_time
from linkspan.core.config import Config
from linkspan.core.desired import Source
from linkspan.core.errors import LinkspanError
from linkspan.core.event_log import EventLog, Once
from linkspan.core.model import Endpoint, Network
from linkspan.core.states.host import NftElement, State
from linkspan.core.states.programs import Dnsmasq, Zones
from linkspan.core.supervise import LATE, ended, lasting, until_whole, woken
from linkspan.dns import zone
from linkspan.dns.remote_names import RemoteNames
from linkspan.dns.zone import PORT, Named, Server
from linkspan.kernel.probe import conntrack, dnsmasq, port_owners
from linkspan.kernel.worker import Worker
from linkspan.store.replica import Replica

log = logging.getLogger("linkspan.dns.service")

SETTLE = 0.05
"""Seconds from the first change to the update: a burst of containers causes one reload."""
REST, LONGEST_REST = 0.15, 0.4
"""Shortest and longest seconds between two updates: names must exist within a second, and must not slow attaches
down."""
SHARE = 40
"""The pause after an update, as a multiple of its duration: with a thousand hosts an update takes longer."""
TICK = 1.0
"""Seconds between two checks of inputs without events, while there are servers: resolv.conf, a port that is in use."""
LINGER = 10.0
"""Seconds that a server runs after the last container: another one may come soon."""
PROTOCOLS = ("udp", "tcp")
BEAT, HUNG = 1.0, 3
"""Seconds between two questions to each server, and the number of missed ones after which an idle server hangs."""
AGAIN = 2.0
"""Seconds between two searches for the process that uses a port."""
RESOLVERS = 2.0
"""Seconds between two readings of the files that name the host's resolvers: they change rarely, and have no events."""
INSTALLED = 5.0
"""Seconds between two checks that dnsmasq is installed, and may run as its own user."""
LONGEST = 1 << 16
"""Bytes of a resolv.conf that are read."""
RESOLVED = "/run/systemd/resolve/resolv.conf"
PUBLIC = ("8.8.8.8", "8.8.4.4", "2001:4860:4860::8888", "2001:4860:4860::8844")
"""Resolvers that Docker gives containers if the host's are on its loopback (moby's libnetwork/resolvconf)."""


FOR_EVER = float("inf")

Places = dict[Zones, tuple[list[Prefix], int]]
"""By server: the addresses at which it listens, and the port."""


class _Seen(NamedTuple):
    """Inputs of the servers besides this host's endpoints."""

    dnsmasq: Dnsmasq | None
    resolvers: tuple[str, str]
    """The text of the host's resolv.conf, and of the one with the servers that systemd-resolved asks."""
    networks: tuple[Network, ...]
    listed: bool
    """True if the store's records were listed since the start."""
    others: int
    """The number of the other hosts' names (``RemoteNames.look``)."""


class NameService:
    """Follows endpoints, hosts and resolvers, and applies the servers' states when they change."""

    def __init__(
        self,
        worker: Worker,
        networks: Networks,
        replica: Replica,
        remote: RemoteEndpoints,
        host: str,
        endpoints: Mapping[tuple[str, str], Endpoint],
        config: Config,
        event_log: EventLog,
    ) -> None:
        self._worker = worker
        self._networks = networks
        self._replica = replica
        self._endpoints = endpoints
        self._resolv_conf = Path(config.resolv_conf)
        self._folder = Path(config.socket).parent / "names"
        self._wanted = config.names
        self._event_log = event_log
        self.problems: dict[Zones, str] = {}
        """By server: why it does not run on this host."""
        self._served: dict[Zones, list[State]] = {}
        self._places: Places = {}
        self._views: dict[Zones, float] = {}
        """By view: its end (monotonic clock), FOR_EVER while a container is in all of its networks."""
        self._others = RemoteNames(replica, remote, host)
        self._used: dict[str, tuple[float, frozenset[Prefix]]] = {}
        """By network: the end of its server (FOR_EVER while it has a container here), and the pools in use here."""
        self._remembered: dict[str, bytes] = {}
        self._own: dict[tuple[str, str], tuple[Endpoint, Named]] = {}
        self._told = Once()
        self._spent: dict[Zones, tuple[int, int]] = {}
        """By server: its process id, and the processor time it had used when it first missed a question."""
        self._searched = self._asked = self._looked = self._read = float("-inf")
        self._dnsmasq: Dnsmasq | None = None
        self._texts = "", ""
        self._pulse = dnsmasq.Pulse()
        self._wake = asyncio.Event()
        self._putting = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    # Queries of other parts

    def nameservers(self, endpoint: Endpoint) -> tuple[str, ...]:
        """Return the addresses of the network's server for a container; none if this host has no such server."""
        found = self._networks.get(endpoint.network)
        if (endpoint.network,) in self.problems or self._program() is None:
            return ()
        return tuple(gateway.address for _, gateway in zone.own(zone.served(found), endpoint))

    def standing(self, network: str) -> Literal["answers", "awaited", "refused", "none"]:
        """Return the state of a network's names on this host.

        - "answers": its server runs, and so do the views of its containers in several networks.
        - "awaited": not all of them run yet.
        - "refused": a problem keeps its server from running.
        - "none": no container needs it, or names are switched off or unavailable.
        """
        if (network,) in self._served:
            views = self._seen()
            missing = (zones for zones in views if network in zones and zones not in {*self._served, *self.problems})
            return "awaited" if any(missing) else "answers"
        if (network,) in self.problems:
            return "refused"
        used = (endpoint for endpoint in self._endpoints.values() if endpoint.network == network)
        return "awaited" if any(map(self.nameservers, used)) else "none"

    def listening(self) -> frozenset[tuple[bytes, int]]:
        """Return the addresses (packed) and ports at which this host's DNS servers listen now."""
        running = (at for zones, at in self._places.items() if zones in self._served)
        return frozenset((gateway.packed, port) for gateways, port in running for gateway in gateways)

    def _gateways(self, network: Network) -> list[Prefix]:
        """Return the addresses at which a network's server must listen: the gateways of the pools in use here."""
        _, used = self._used.get(network.name, (0, frozenset()))
        return [gateway for pool, gateway in zone.served(network) if pool in used]

    def _seen(self) -> dict[Zones, list[Endpoint]]:
        """Return the views that this host's containers need, with their endpoints."""
        there = {network for network in self._used if (network,) not in self.problems}
        return zone.views(self._endpoints.values(), there)

    def note(self, identity: tuple[str, str]) -> None:
        """Record that an endpoint of this host was added, changed or removed."""
        if (endpoint := self._endpoints.get(identity)) is not None:
            self._caution(endpoint)
        self._wake.set()

    def changed(self, keys: frozenset[str]) -> None:
        """Wake the task if changed keys concern names."""
        if self._others.changed(keys) or any(key.startswith("networks/") for key in keys):
            self._wake.set()

    # Lifecycle

    async def take_over(self) -> None:
        """Make the servers desired before the first resync, so that running ones keep running."""
        for source, states in (await self._plan(self._look())).items():
            await self._worker.run(self._worker.machine.reconciler.desired.replace, source, states)
            self._served[source[1:]] = states

    def start(self) -> None:
        """Start the task that applies changes."""
        self._task = lasting("following names", self._follow)

    async def stop(self) -> None:
        """Stop; the servers keep running."""
        await ended(self._task)
        self._pulse.close()

    async def leave(self, network: str) -> None:
        """End the servers of a deleted network now: another program may get its gateway's address at once."""
        async with self._putting:  # an update that runs may be about to start one
            if any(network in zones for zones in self._served):
                await self._apply(self._look())

    async def _follow(self) -> None:
        seen: _Seen | None = None
        while True:
            serving = self._wanted and (self._used or self._served)
            if noted := await woken(self._wake, until_whole(TICK) if serving else None):
                await asyncio.sleep(SETTLE)
            self._wake.clear()
            before, seen = seen, self._look()
            put, begun = noted or seen != before or not self._settled(), time.monotonic()
            if put:
                await self._put(seen)
            took = time.monotonic() - begun
            await self._revive()
            if put:
                await asyncio.sleep(min(max(REST, SHARE * took), LONGEST_REST))

    def _look(self) -> _Seen:
        """Read the inputs that have no events: they are cheap to read, and change rarely."""
        if loop_time() - self._read >= RESOLVERS - LATE:
            self._read, self._texts = loop_time(), (_text(self._resolv_conf), _text(Path(RESOLVED)))
        return _Seen(self._program(), self._texts, self._networks.all(), self._replica.listed, self._others.look())

    def _program(self) -> Dnsmasq | None:
        """Return dnsmasq as the last check has found it, None if names are not wanted: to look takes 0.2 ms."""
        if self._wanted and time.monotonic() - self._looked >= INSTALLED:
            self._looked, self._dnsmasq = time.monotonic(), dnsmasq.found(self._folder)
        return self._dnsmasq

    def _settled(self) -> bool:
        """Return whether nothing waits for the end of a server, or for another process's port."""
        ends = {*self._views.values(), *(until for until, _ in self._used.values())}
        return ends <= {FOR_EVER} and not self.problems and self._places.keys() <= self._served.keys()

    async def _put(self, seen: _Seen) -> None:
        async with self._putting:
            await self._apply(seen)

    async def _apply(self, seen: _Seen) -> None:
        """Start, change and end servers; one caller at a time (``_putting``)."""
        plans = {source[1:]: states for source, states in (await self._plan(seen)).items()}
        gone: dict[Zones, list[State]] = {zones: [] for zones in self._served.keys() - plans.keys()}
        before, after = (set(found.get(zone.LEADS, ())) for found in (self._served, plans))
        for zones, states in {**gone, **plans}.items():
            if states == self._served.get(zones):
                continue
            try:  # an error is visible as drift, and the healer retries
                if not await self._worker.run(self._change, zones, states):
                    continue
            except LinkspanError as error:
                log.warning("%s", error.message)
            self._served[zones] = states
        for zones in gone:
            del self._served[zones]
        await self._forget_questions(before ^ after)

    def _change(self, zones: Zones, states: list[State]) -> bool:
        """Apply a server's states, and return True (worker thread).

        A server that does not run yet waits while an address is missing at which it must listen: the last container
        may have gone since the plan, and the gateway's address with it.
        """
        gateways, _ = self._places.get(zones, ([], PORT))
        if zones not in self._served and not all(dnsmasq.can_listen(gateway.address) for gateway in gateways):
            return False
        self._worker.machine.reconciler.change(("names", *zones), states)
        return True

    async def _forget_questions(self, changed: set[State]) -> None:
        """Flush connections of addresses that are redirected now: a client that keeps its socket would not notice."""
        addresses = sorted({one.parts[0] for one in changed if isinstance(one, NftElement)})
        flows = [(prefix(address), protocol, PORT) for address in addresses for protocol in PROTOCOLS]
        if flows:
            try:
                await asyncio.to_thread(conntrack.flush, flows=flows)
            except LinkspanError as error:
                log.warning("forget questions of containers in several networks: %s", error.message)

    async def _plan(self, seen: _Seen) -> dict[Source, list[State]]:
        """Return the states of each server that this host needs now, by source."""
        now = time.monotonic()
        there = {network.name: network for network in seen.networks if zone.served(network)}
        self._note_used(there, now)
        self._others.keep(frozenset(self._used))
        self._remembered = {n: text for n, text in self._remembered.items() if n in there}
        if seen.dnsmasq is None or not self._used:
            self.problems.clear()
            self._places.clear()
            if self._wanted and self._used:
                self._tell("dnsmasq is not installed: containers have no names (apt install dnsmasq-base)")
            return {}
        askers = self._note_views(now)
        self._places = self._listening(there)
        await self._search(now)
        server = self._server(seen.dnsmasq, seen)
        local = self._here()
        plans: dict[Source, list[State]] = {}
        leads: list[State] = []
        for zones, (_, port) in self._places.items():
            if zones in self.problems or any((name,) in self.problems for name in zones):
                continue
            networks = [there[name] for name in zones]
            used = frozenset[Prefix]().union(*(self._used[name][1] for name in zones))
            if len(zones) > 1:
                states = zone.view(networks, server, used, port)
                leads += zone.leads(networks, used, port, askers.get(zones, ()))
            else:
                own = zone.hosts(networks[0], local.get(zones[0], ()))
                others = self._elsewhere(networks[0], seen)
                states = zone.states(networks[0], server, own, others, used)
            plans["names", *zones] = list(states)
        plans["names", *zone.LEADS] = leads
        return plans

    def _note_views(self, now: float) -> dict[Zones, list[Endpoint]]:
        """Record the views that this host needs, and return the endpoints of the containers that ask each."""
        askers = self._seen()
        usable = {network for network in self._used if (network,) not in self.problems}
        past = {zones: min(until, now + LINGER) for zones, until in self._views.items() if zones not in askers}
        self._views = dict.fromkeys(askers, FOR_EVER)
        self._views |= {z: until for z, until in past.items() if usable.issuperset(z) and self._lingers(z, until, now)}
        return askers

    def _lingers(self, zones: Zones, until: float, now: float) -> bool:
        """Return whether a server that no container needs stays until ``until``: only if it runs.

        One that has not started, or died, cannot start: the gateway's address may have gone with the last container.
        """
        runs = zones in self._served and self._worker.machine.reconciler.unwell(("names", *zones)) is None
        return runs and now < until

    def _listening(self, there: Mapping[str, Network]) -> Places:
        """Return where servers must listen: first the networks' own, because views read the files of those."""
        own: Places = {(name,): (self._gateways(there[name]), PORT) for name in sorted(self._used)}
        views: Places = {
            zones: ([gateway for name in zones for gateway in own[name,][0]], port)
            for zones, port in zone.ports(self._views).items()
        }
        return own | views

    def _note_used(self, there: Mapping[str, Network], now: float) -> None:
        """Record the networks that have containers here, and the pools of their addresses."""
        served = {name: zone.served(network) for name, network in there.items()}
        used: dict[str, set[Prefix]] = {}
        for endpoint in self._endpoints.values():
            if pools := zone.own(served.get(endpoint.network, ()), endpoint):
                used.setdefault(endpoint.network, set()).update(pool for pool, _ in pools)
        past = {n: (min(until, now + LINGER), pools) for n, (until, pools) in self._used.items() if n not in used}
        self._used = {name: (FOR_EVER, frozenset(pools)) for name, pools in used.items()}
        past = {n: one for n, one in past.items() if n in there and self._lingers((n,), one[0], now)}
        self._used |= past

    def _here(self) -> dict[str, list[Named]]:
        """Return the named endpoints of this host by network; each endpoint is converted once."""
        before, self._own = self._own, {}
        found: dict[str, list[Named]] = {}
        for identity, endpoint in self._endpoints.items():
            known = before.get(identity)
            self._own[identity] = known if known and known[0] is endpoint else (endpoint, zone.named(endpoint))
            found.setdefault(endpoint.network, []).append(self._own[identity][1])
        return found

    def _elsewhere(self, network: Network, seen: _Seen) -> bytes:
        if not zone.crosses(network):
            return b""
        if seen.listed and (text := self._others.text(network)) is not None:
            self._remembered.pop(network.name, None)
            return text
        if network.name not in self._remembered:
            path = Path(zone.elsewhere(str(self._folder), network.name))
            self._remembered[network.name] = path.read_bytes() if path.exists() else b""
        return self._remembered[network.name]

    # The machine

    def _server(self, found: Dnsmasq, seen: _Seen) -> Server:
        ours = {g.address for n in seen.networks for _, g in zone.served(n)}
        resolvers, beyond = (dnsmasq.upstream(text, ours) for text in seen.resolvers)
        given = dict.fromkeys((*resolvers, *beyond))
        asked = tuple(one for one in given if "%" not in one and not _is_loopback(one))
        forwarders = zone.forwarders(self._endpoints.values())
        return Server(found, resolvers, asked or PUBLIC, forwarders, zone.nowhere(seen.networks))

    async def _search(self, now: float) -> None:
        """Check whether another process uses the port of a server that does not run."""
        self.problems = {zones: why for zones, why in self.problems.items() if zones in self._places}
        fresh = [zones for zones in self._places if zones not in self._served]
        if not fresh or (now - self._searched < AGAIN and not any(zones not in self.problems for zones in fresh)):
            return
        self._searched = now
        for zones, why in (await self._worker.run(self._held, {z: self._places[z] for z in fresh})).items():
            if not why:
                self.problems.pop(zones, None)
            elif self.problems.get(zones) != why:
                self.problems[zones] = why
                self._tell(why)

    def _held(self, places: Places) -> dict[Zones, str]:
        """Return for each server the problem that another process uses its port, '' if none does (worker thread)."""
        running = self._worker.machine.processes.pid
        return {z: "" if running(zone.process(z)) else _held(z, *at) for z, at in places.items()}

    async def _revive(self) -> None:
        """Kill a server that hangs, so that the healer starts another one."""
        now = time.monotonic()
        if now - self._asked < BEAT - LATE:
            return
        self._asked = now
        asked = {zones: at for zones, at in self._places.items() if zones in self._served and at[0]}
        self._pulse.beat({zones: (gateways[0].address, port) for zones, (gateways, port) in asked.items()})
        missed = {zones: count for zones, count in self._pulse.missed.items() if count}
        pids = await self._worker.run(self._pids, list(missed)) if missed else {}
        self._spent = {zones: self._spent.get(zones, (pid, dnsmasq.spent(pid))) for zones, pid in pids.items()}
        for zones in missed:
            pid = pids.get(zones, 0)
            if not pid or self._spent[zones][0] != pid:  # it died, or another process has replaced it: count again
                self._forget(zones)
            elif missed[zones] >= HUNG and self._spent[zones] == (pid, dnsmasq.spent(pid)):
                what = f"the names' server of {_of(zones)} hung, and is replaced"
                self._event_log.add("names", what, network=", ".join(zones))
                os.kill(pid, signal.SIGKILL)
                self._forget(zones)

    def _forget(self, zones: Zones) -> None:
        self._pulse.forget(zones)
        self._spent.pop(zones, None)

    def _pids(self, servers: list[Zones]) -> dict[Zones, int]:
        found = {zones: self._worker.machine.processes.pid(zone.process(zones)) for zones in servers}
        return {zones: pid for zones, pid in found.items() if pid}

    def _caution(self, endpoint: Endpoint) -> None:
        for name in dns_names.unspeakable(endpoint):
            who = endpoint.name or endpoint.id
            self._tell(f"{name!r} of container {who} is no name for DNS, and is not answered", endpoint=endpoint.id)

    def _tell(self, what: str, **about: str) -> None:
        """Log a text and add it to the events, once."""
        if self._told.first(what):
            log.warning("%s", what)
            self._event_log.add("names", what, **about)


def _text(path: Path) -> str:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        return os.read(fd, LONGEST).decode(errors="replace")
    except OSError:
        return ""
    finally:
        os.close(fd)


def _is_loopback(address: str) -> bool:
    found = prefix(address)
    return any(prefix(one).holds(found.single()) for one in ("127.0.0.0/8", "::1/128"))


def _of(zones: Zones) -> str:
    return f"network {zones[0]}" if len(zones) == 1 else f"networks {', '.join(zones[:-1])} and {zones[-1]}"


def _held(zones: Zones, gateways: Iterable[Prefix], port: int) -> str:
    lacks = (
        f"{_of(zones)} has no names"
        if len(zones) == 1
        else f"containers in {_of(zones)} find the names of one of them only"
    )
    for gateway in gateways:
        for protocol in PROTOCOLS:
            try:
                holder = port_owners.holder(protocol, gateway.address, port)
            except LinkspanError:  # the address is not there yet
                continue
            if holder:
                return (
                    f"{lacks}: port {port}/{protocol} of {'its' if len(zones) == 1 else 'their'} gateway "
                    f"{gateway.address} is in use by {holder}; stop it, or restrict it to other addresses"
                )
    return ""
