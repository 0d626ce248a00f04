"""Controller: follows the store, observes the devices, and keeps them in their desired state while it is active.

Each switch has turns of its own, every ROUND. In a turn the controller observes the switch (ports, flows with
counters, notes), updates the fabric, repairs what differs from the switch's flows, and asks for hosts that
were not found or not recently. A change in the store, or in what another switch has seen, starts a turn at
once if it changes flows. A switch that does not answer delays no other. A standby controller observes as
well, and changes nothing.

A controller that becomes active removes no flow that may be right for a reason which it does not know yet
(``flows.spared``): for TAKE_OVER, and for as long as a switch was never seen.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from linkspan.backends.sdn.fabric import Fabric
from linkspan.backends.sdn.flows import spared
from linkspan.backends.sdn.flows import switches as steered
from linkspan.cluster.allowances import Allowances
from linkspan.cluster.control_plane import EVERY, SWITCHES, Control, resolved, text
from linkspan.cluster.hosts import Hosts
from linkspan.cluster.leases import Leases
from linkspan.cluster.networks import Networks
from linkspan.cluster.own_record import OwnRecord
from linkspan.cluster.questions import Ask, HealthQuestion, HealthReply, Question, Reply, Walked
from linkspan.controller.devices import Device, Router, Switch, devices
from linkspan.controller.election import Election
from linkspan.controller.holders import RECORDS, Holders, holders
from linkspan.controller.settings import Settings, services
from linkspan.core.addresses import Prefix, derived_mac, mac, mac_text, prefix
from linkspan.core.errors import Invalid, Unavailable
from linkspan.core.model import CONTROLLER, Host
from linkspan.core.states.openflow import Counted, Flow, Map, RouterRoute, Seen, Spot
from linkspan.core.supervise import lasting
from linkspan.diagnose.trace import switches
from linkspan.kernel.io.probe_frames import announcement, question
from linkspan.store.factory import open_store
from linkspan.store.replica import Replica

log = logging.getLogger("linkspan.controller")

D = TypeVar("D", bound=Device[Any])

ROUND = 0.6
"""Seconds between two observations of a switch: healing must take at most 2 s."""
ROUTERS = 1.0
"""The same for routers, whose answer by ssh takes a fifth of a second."""
TAKE_OVER = 3.0
"""Seconds that hosts and links have to be found, after a takeover and after the first answer of a switch."""
SETTLE = 0.03
"""Seconds within which a host must answer before the next observation of the switch; one that was too early
is repeated."""
PATIENCE = 1.0
"""Seconds that one switch waits for the others' flows before it asks for hosts and announces itself."""
LINKS = 0.5
"""Seconds that several switches have to find each other, before hosts are asked on the other ports."""
SEEK = 10.0
"""Seconds after which a known host is asked again: it may have moved."""


class Controller:
    """One of several controllers, with its knowledge."""

    def __init__(self, settings: Settings, name: str) -> None:
        self.settings = settings
        self.name = name
        folder = Path(settings.state_dir)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        store = open_store(settings.store, folder)
        self.replica = Replica(store, folder / "replica.json", f"(controller {name})", self._changed)
        self.networks = Networks(self.replica)
        self.allowances = Allowances(self.replica, self.networks)
        self.hosts = Hosts(self.replica, OwnRecord(Host(id=f"(controller {name})", name=name)))
        self.leases = Leases(self.replica, self.hosts)
        self.election = Election(self.replica, name, self._turned)
        self.switches, self.routers = devices(
            settings.switches.items(), settings.routers.items(), settings.tls, settings.ssh
        )
        self.fabric = Fabric()
        self.where = Map()
        self.holders = Holders()
        self.wanted: dict[str, list[Flow]] = {}
        self.since = 0.0
        """When this one became active, by the monotonic clock."""
        self._ask = Ask(self.replica, CONTROLLER, self._answer)
        self._newest = 0.0
        """When the last switch was seen for the first time, by the same clock."""
        self._senders: dict[str, Spot] = {}
        """The MAC of each switch's LLDP frames, which outsiders cannot know."""
        self._waiting = 0.0
        """Since when an answering switch has no flows, 0 if all have."""
        self._begun = 0.0
        """When switches began to announce themselves."""
        self._stale = True
        self._asked: dict[tuple[str, str], float] = {}
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def devices(self) -> list[Switch | Router]:
        """Return all programmed devices."""
        return [*self.switches, *self.routers]

    async def start(self) -> None:
        """Read the store, and start."""
        await self.replica.start()
        await self.election.start()
        self._tasks = [lasting("publishing the devices' addresses", self._tell_places)]
        self._tasks += [self._serve(one, self.turn) for one in self.switches]
        self._tasks += [self._serve(one, self._tell) for one in self.routers]

    def _serve(self, one: D, turn: Callable[[D], Awaitable[float]]) -> asyncio.Task[None]:
        return lasting(f"serving {one.name}", lambda: one.serve(lambda: turn(one)))

    async def stop(self) -> None:
        """Stop; flows and routes stay."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for one in self.devices:
            one.close()
        await self._ask.stop()
        await self.election.stop()
        await self.replica.stop()

    async def _changed(self, keys: frozenset[str]) -> None:
        self.election.changed(keys)
        if self.election.active:
            self._ask.changed(keys)
        if any(key.startswith(RECORDS) for key in keys):
            self._stale = True
            self._wake()

    def _turned(self) -> None:
        self.since, self._begun = time.monotonic(), 0.0
        self._wake()

    async def _tell_places(self) -> None:
        """Publish the devices' addresses to all hosts, because no container may reach them."""
        due, told = 0.0, Control()
        while True:
            await asyncio.sleep(ROUND)
            if not self.election.active:
                continue
            if time.monotonic() >= due:
                due, found = time.monotonic() + EVERY, await resolved(services(self.settings))
                places = [(address, int(one.rpartition(":")[2])) for one, all_ in found.items() for address in all_]
                told = Control(tuple(map(text, sorted(places))))
            if told.places and self.replica.value(SWITCHES, Control) != told:
                with contextlib.suppress(Unavailable):  # the next attempt may succeed
                    await self.replica.write({SWITCHES: told})

    def _wake(self) -> None:
        for one in self.devices:
            one.wake.set()

    def _read(self) -> None:
        """Adopt the store's present content."""
        if self._stale:
            self._stale = False
            self.networks.refresh()
            self.holders = holders(self.networks, self.allowances.all(), self.hosts.all(), self.leases)
            self.wanted = steered(self.holders.held, self.where)

    # Switches.

    async def turn(self, one: Switch) -> float:
        """Observe a switch, apply its flows, and ask for hosts; return the seconds until the next turn."""
        self._read()
        seen = await one.call(one.look)
        self._saw(one.name, seen)
        wanted = self.wanted.get(one.name, [])
        there = [counted.flow for counted in one.driver.counted.values()] + one.flows
        kept = spared(self.holders.held, self.where, one.name, there, wanted, whole=self._whole())
        if not self.election.active:
            await one.call(lambda: one.stand_by([*wanted, *kept]))
            return ROUND
        await one.call(lambda: one.put([*wanted, *kept]))
        return SETTLE if await self._seek(one, seen) else ROUND

    def _saw(self, name: str, seen: Seen) -> None:
        """Adopt an observed switch; apply resulting changes of other switches at once."""
        now = time.monotonic()
        if name not in self.fabric.seen:
            self._newest = now
        self._senders.update((mac_text(self._sender(name, port.number)), (name, port.number)) for port in seen.ports)
        held, before = self.holders.held, self.wanted
        where = self.fabric.take({name: seen}, dict(held.macs), self._senders, now)
        if where != self.where:
            self.where, self.wanted = where, steered(held, where)
            for one in self.switches:
                if one.name != name and before.get(one.name) != self.wanted.get(one.name):
                    one.wake.set()

    def _whole(self) -> bool:
        """Return whether all visible hosts and links have been seen: by each switch, and for long enough."""
        seen = all(one.name in self.fabric.seen for one in self.switches)
        return seen and time.monotonic() - max(self.since, self._newest) >= TAKE_OVER

    def _sender(self, switch: str, port: int) -> bytes:
        return derived_mac("link", self.replica.store.cluster, switch, str(port))

    async def _seek(self, one: Switch, seen: Seen) -> bool:
        """Ask for hosts by a switch, and announce it; return whether this was the first time."""
        held, now = self.holders.held, time.monotonic()
        if not held.networks:
            self._begun = 0.0
            return False
        if self._waits(now):
            return True
        gateway, macs = mac(held.networks[0].mac), dict(held.macs)
        # A host whose port is down may be at another one by now.
        found = {host for host, (name, port) in self.where.places if self.fabric.seen[name].up(port)}
        frames: list[bytes] = []
        lost = early = len(self.switches) > 1 and now - self._begun < LINKS
        for host in () if early else self.holders.hosts:
            asked = self._asked.get((one.name, host.id))
            every = SEEK if host.id in found else ROUND
            if host.id in macs and (asked is None or now - asked >= every * 0.9):
                self._asked[one.name, host.id] = now
                lost |= asked is None
                frames += [question(gateway, mac(macs[host.id]), a) for a in _addresses(host)[:1]]
        batch = self._batch(one.name, seen, gateway, frames)
        await one.call(lambda: one.driver.send(batch))
        return lost

    def _waits(self, now: float) -> bool:
        """Return whether an answering switch has no flows yet: it would forward what it should only note."""
        if all(one.ready or one.away for one in self.switches):
            self._waiting = 0.0
        else:
            self._waiting = self._waiting or now
        if self._waiting and now - self._waiting < PATIENCE:
            return True
        self._begun = self._begun or now
        return False

    def _batch(self, name: str, seen: Seen, gateway: bytes, frames: list[bytes]) -> list[tuple[bytes, list[int]]]:
        """Return the frames for the ports at which hosts may be, and the announcement for all others."""
        trunks, busy = self.where.trunks(name), {spot for _, spot in self.where.places}
        up = [port.number for port in seen.ports if port.up]
        batch = [(frame, [n for n in up if n not in trunks]) for frame in frames]
        if len(self.switches) > 1:
            links = [n for n in up if (name, n) not in busy]
            batch += [(announcement(gateway, self._sender(name, n), name, n), [n]) for n in links]
        return batch

    # Routers.

    async def _tell(self, one: Router) -> float:
        """Give a router its routes; return the seconds until the next time."""
        self._read()
        routes = list(_routes(self.holders))
        if self.election.active:
            await one.call(lambda: one.put(routes))
        else:
            await one.call(one.differs)  # does it answer
            one.stand_by(routes)
        return ROUTERS

    # Queries of others.

    async def _answer(self, asked: Question) -> Reply:
        if isinstance(asked, HealthQuestion):
            return HealthReply(tuple(self.problems()))
        if not isinstance(asked, Walked):
            raise Invalid("a controller answers only about switches and paths through them")
        entry = asked.entry
        if not self.switches:
            raise Unavailable("the controller has no switch, and routers cannot be asked")
        return await asyncio.to_thread(switches.part, self.view(), entry)

    def problems(self) -> list[str]:
        """Return the problems, a sentence each: devices, hosts, prefixes."""
        lines = [one.problem for one in self.devices if one.problem]
        lines += [f"host {self.holders.name(host)}: {why}" for host, why in self.misplaced().items()]
        return [*lines, *self.holders.problems]

    def misplaced(self) -> dict[str, str]:
        """Return the problems with hosts' places, by their ids."""
        places = dict(self.where.places)
        missing = [host for host, _ in self.holders.held.macs if host not in places and self.switches]
        return {**dict.fromkeys(missing, "it answers at no port"), **self.fabric.doubles, **self.holders.twins}

    def view(self) -> switches.Underlay:
        """Return the view for a trace through the switches."""
        hosts = {
            host.id: (host.name, tuple(prefix(text).packed for text in _texts(host)), host.underlay.mtu)
            for host in self.holders.hosts
            if host.underlay is not None
        }

        def dump(name: str) -> list[Counted]:
            device = next(one for one in self.switches if one.name == name)
            return list(device.driver.dump())

        away = {one.name: one.problem for one in self.switches if one.away}
        return switches.Underlay(self.holders.held, self.where, dict(self.fabric.seen), hosts, away, dump)


def _texts(host: Host) -> tuple[str, ...]:
    return (*host.underlay.advertise, *host.underlay.addresses) if host.underlay is not None else ()


def _addresses(host: Host) -> list[bytes]:
    """Return the addresses at which to ask for a host, IPv4 first."""
    return [prefix(text).packed for text in host.underlay.addresses] if host.underlay is not None else []


def _routes(held: Holders) -> Iterable[RouterRoute]:
    """Yield each prefix with its host's underlay address, if it has one of the family."""
    hosts = {host.id: host for host in held.hosts}
    for claim in held.claims:
        here = hosts[claim.host].underlay
        address: Prefix | None = here.address(claim.prefix.family) if here is not None else None
        if address is not None:
            yield RouterRoute(claim.prefix, address.packed)


