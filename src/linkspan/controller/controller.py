"""The controller: follows the store, looks at the devices, and keeps them as they should be while it is the active one.

A round looks at all switches at once (ports, flows with counters, notes), takes that into the fabric, works out every
switch's flows, mends what differs, and asks for hosts that were not found or not lately. Rounds follow each other every
ROUND, and a change in the store begins one at once. A switch that does not answer keeps nobody waiting: it is
left out until it does. One that stands by looks as well, and changes nothing.

Who becomes active does not take flows away until it has found all hosts, or had TAKE_OVER to do so: what another
controller has put is right, and it is this one that does not know why yet.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

from linkspan.addresses import Prefix, derived_mac, mac, mac_text, prefix
from linkspan.ask import Ask, Question, Told, Walked
from linkspan.controller.devices import Router, Switch, devices
from linkspan.controller.election import Election
from linkspan.controller.holding import RECORDS, Holding, holding
from linkspan.controller.settings import Settings
from linkspan.errors import Invalid, Unavailable
from linkspan.fabric import Fabric, Map, Seen, Spot
from linkspan.flows import Counted, Flow, RouterRoute
from linkspan.kernel.frames import announcement, question
from linkspan.lasting import lasting, woken
from linkspan.leases import Leases
from linkspan.model import Host
from linkspan.networks import Networks
from linkspan.replica import Replica
from linkspan.steering import switches as steered
from linkspan.store.opening import open_store
from linkspan.tell import switched
from linkspan.tell.parts import CONTROLLER

log = logging.getLogger("linkspan.controller")

ROUND = 0.6
"""Seconds between two looks: healing has two."""
ROUTERS = 1.0
"""The same of routers, whose answer by ssh takes a fifth of a second."""
TAKE_OVER = 3.0
PATIENCE = 1.0
"""Seconds that a round waits for a switch."""
SETTLE = 0.03
"""Seconds that a host has to answer before the switch is looked at again; a look that was too early is repeated."""
LINKS = 1.0
"""Seconds that several switches have to find each other, before hosts are asked by ports that lead to none."""
SEEK = 10.0
"""Seconds after which a host that was found is asked again: it may have moved."""


class Controller:
    """One of several controllers, and what it knows."""

    def __init__(self, settings: Settings, name: str) -> None:
        self.settings = settings
        self.name = name
        folder = Path(settings.state_dir)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        store = open_store(settings.store, folder)
        self.replica = Replica(store, folder / "replica.json", f"(controller {name})", self._changed)
        self.networks = Networks(self.replica)
        self.leases = Leases(self.replica, Host(id=f"(controller {name})", name=name))
        self.election = Election(self.replica, name, self._turned)
        self.switches, self.routers = devices(
            settings.switches.items(), settings.routers.items(), settings.tls, settings.ssh
        )
        self.fabric = Fabric()
        self.where = Map()
        self.holding = Holding()
        self.wanted: dict[str, list[Flow]] = {}
        self.since = 0.0
        """When this one became active, by the monotonic clock."""
        self._ask = Ask(self.replica, CONTROLLER, self._answer)
        self._wake = asyncio.Event()
        self._stale = True
        self._asked: dict[str, float] = {}
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Read the store, and begin."""
        await self.replica.start()
        await self.election.start()
        self._tasks = [lasting("looking at switches", self._rounds), lasting("telling routers", self._routing)]

    async def stop(self) -> None:
        """End it; flows and routes stay."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._ask.stop()
        await self.election.stop()
        await self.replica.stop()

    async def _changed(self, keys: frozenset[str]) -> None:
        self.election.changed(keys)
        if self.election.active:
            self._ask.changed(keys)
        if any(key.startswith(RECORDS) for key in keys):
            self._stale = True
            self._wake.set()

    def _turned(self) -> None:
        self.since = time.monotonic()
        self._wake.set()

    # Rounds.

    async def _rounds(self) -> None:
        while True:
            self._wake.clear()
            lost = await self.round()
            await woken(self._wake, SETTLE if lost else ROUND)

    async def round(self) -> bool:
        """Look, put and ask once; tell whether a host was asked for that was not found before."""
        if self._stale:
            self._stale = False
            self.networks.refresh()
            self.holding = holding(self.networks, self.leases)
        seen = await self._look()
        held, now = self.holding.held, time.monotonic()
        self.where = self.fabric.take(seen, dict(held.macs), self._senders(), now)
        wanted = steered(held, self.where)
        self.wanted = wanted
        if not self.election.active:
            await self._each(seen.keys(), lambda one: asyncio.to_thread(one.stand_by, wanted.get(one.name, [])))
            return False
        found = {host for host, _ in self.where.places}
        keep = {host for host, _ in held.macs} - found and now - self.since < TAKE_OVER
        await self._each(seen.keys(), lambda one: self._put(one, wanted.get(one.name, []), keep=bool(keep)))
        return await self._seek(seen.keys(), found, now)

    async def _look(self) -> dict[str, Seen]:
        found: dict[str, Seen] = {}

        async def look(one: Switch) -> None:
            found[one.name] = await asyncio.to_thread(one.look)

        await self._each([one.name for one in self.switches if one.due], look)
        return found

    async def _put(self, one: Switch, flows: list[Flow], *, keep: bool) -> None:
        await asyncio.to_thread(one.put, flows, keep=keep)

    async def _each(self, names: Iterable[str], work: Callable[[Switch], Awaitable[None]]) -> None:
        """Do the same with several switches at once; who takes too long goes on by itself."""
        chosen = set(names)
        tasks = [
            one.begin(lambda one=one: work(one))  # type: ignore[misc]
            for one in self.switches
            if one.name in chosen and one.due
        ]
        if tasks:
            await asyncio.wait(tasks, timeout=PATIENCE)

    def _senders(self) -> dict[str, Spot]:
        """Return whose LLDP frames bear which MAC: nobody can know it who does not know the cluster."""
        return {
            mac_text(self._sender(name, port.number)): (name, port.number)
            for name, one in self.fabric.seen.items()
            for port in one.ports
        }

    def _sender(self, switch: str, port: int) -> bytes:
        return derived_mac("link", self.replica.store.cluster, switch, str(port))

    async def _seek(self, names: Iterable[str], found: set[str], now: float) -> bool:
        """Ask for hosts, and have the switches tell each other who they are; tell whether any host is not found."""
        held = self.holding.held
        if not held.networks:
            return False
        gateway = mac(held.networks[0].mac)
        if len(self.switches) > 1 and not self.where.links and now - self.since < LINKS:
            await self._announce(names, gateway, [])  # else hosts would be asked by ports that lead to switches
            return True
        frames: list[bytes] = []
        lost = False
        macs = dict(held.macs)
        for host in self.holding.hosts:
            fresh = host.id not in self._asked
            lost |= host.id in macs and fresh
            every = SEEK if host.id in found else ROUND
            if host.id in macs and now - self._asked.get(host.id, -SEEK) >= every * 0.9:
                self._asked[host.id] = now
                frames += [question(gateway, mac(macs[host.id]), a) for a in _addresses(host)[:1]]
        await self._announce(names, gateway, frames)
        return lost

    async def _announce(self, names: Iterable[str], gateway: bytes, frames: list[bytes]) -> None:
        """Ask by the ports at which hosts may be, and say by all others who is here."""
        busy = {spot for _, spot in self.where.places}

        async def send(one: Switch) -> None:
            trunks = self.where.trunks(one.name)
            up = [port.number for port in self.fabric.seen[one.name].ports if port.up]
            batch: list[tuple[bytes, list[int]]] = [(frame, [n for n in up if n not in trunks]) for frame in frames]
            if len(self.switches) > 1:
                links = [n for n in up if (one.name, n) not in busy]
                batch += [(announcement(gateway, self._sender(one.name, n), one.name, n), [n]) for n in links]
            await asyncio.to_thread(one.driver.send, batch)

        await self._each(names, send)

    # Routers.

    async def _routing(self) -> None:
        while self.routers:
            held = self.holding
            wanted = list(_routes(held))
            ready = self.replica.listed and self.election.active
            for one in self.routers if ready else ():
                if one.due:
                    one.begin(lambda one=one, wanted=wanted: self._tell(one, wanted))  # type: ignore[misc]
            await asyncio.sleep(ROUTERS)

    async def _tell(self, one: Router, routes: list[RouterRoute]) -> None:
        await asyncio.to_thread(one.put, routes, keep=False)

    # What others ask.

    async def _answer(self, asked: Question) -> Told:
        if not isinstance(asked, Walked):
            raise Invalid("a controller knows the way through switches, and nothing else")
        entry = asked.entry
        if not self.switches:
            raise Unavailable("the controller has no switch, and routers cannot be asked")
        return await asyncio.to_thread(switched.part, self.view(), entry)

    def view(self) -> switched.Underlay:
        """Return what a trace through the switches is told by."""
        hosts = {
            host.id: (host.name, tuple(prefix(text).packed for text in _texts(host)), host.underlay.mtu)
            for host in self.holding.hosts
            if host.underlay is not None
        }

        def dump(name: str) -> list[Counted]:
            device = next(one for one in self.switches if one.name == name)
            return list(device.driver.dump())

        away = {one.name: one.problem for one in self.switches if one.problem}
        return switched.Underlay(self.holding.held, self.where, dict(self.fabric.seen), hosts, away, dump)


def _texts(host: Host) -> tuple[str, ...]:
    return (*host.underlay.advertise, *host.underlay.addresses) if host.underlay is not None else ()


def _addresses(host: Host) -> list[bytes]:
    """Return the addresses at which a host may be asked, IPv4 first."""
    return [prefix(text).packed for text in host.underlay.addresses] if host.underlay is not None else []


def _routes(held: Holding) -> Iterable[RouterRoute]:
    """Yield each prefix by its host, where that has an underlay address of the family."""
    hosts = {host.id: host for host in held.hosts}
    for claim in held.claims:
        here = hosts[claim.host].underlay
        address: Prefix | None = here.address(claim.prefix.family) if here is not None else None
        if address is not None:
            yield RouterRoute(claim.prefix, address.packed)


