"""The names of this host's networks, kept as they are: which servers there should be, and what they are told.

Names follow from the endpoints that hosts publish (`published`), and from which hosts live; so nothing is stored for
them. A host whose agent says nothing for a while is taken to be dead, and its containers are named no more
(`elsewhere`): the store's own word for that would come too late. Where the store itself tells nothing, nobody is.

While an agent that has just started has not heard from the store, the other hosts' names stay as they stand in the
file: it is what the last agent knew.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

from linkspan import names
from linkspan.addresses import Prefix, prefix
from linkspan.config import Config
from linkspan.desired import Source
from linkspan.elsewhere import Elsewhere
from linkspan.errors import LinkspanError
from linkspan.happenings import Happenings, Once
from linkspan.kernel import dnsmasq, sockets
from linkspan.kernel.dnsmasq import PORT
from linkspan.lasting import lasting, woken
from linkspan.machine import Worker
from linkspan.model import Endpoint, Network
from linkspan.names import Named, Server
from linkspan.networks import Networks
from linkspan.programs import Dnsmasq
from linkspan.replica import Replica
from linkspan.state import State

log = logging.getLogger("linkspan.naming")

SETTLE = 0.05
"""Seconds from a first change to the work: a burst of containers is one reload."""
REST = 0.15
"""Seconds between two works: names are to be there within a second, and attaches are not to wait for them."""
TICK = 0.5
"""Seconds between looks at what tells nothing by itself: who is silent, resolv.conf, a port that is held."""
LINGER = 10.0
"""Seconds that a server outlasts the last container: another one may come at once."""
BEAT, HUNG = 1.0, 3
"""Seconds between two questions to each server, and how many may be missed by one that does nothing at all."""
AGAIN = 2.0
"""Seconds between two searches for who holds a port."""
RESOLVED = "/run/systemd/resolve/resolv.conf"
PUBLIC = ("8.8.8.8", "8.8.4.4", "2001:4860:4860::8888", "2001:4860:4860::8844")
"""What Docker gives containers where the host's resolvers are on its own loopback (moby's libnetwork/resolvconf)."""


class Naming:
    """Follows endpoints, hosts and resolvers, and puts the servers' states where they changed."""

    def __init__(
        self,
        worker: Worker,
        networks: Networks,
        replica: Replica,
        host: str,
        endpoints: Mapping[tuple[str, str], Endpoint],
        config: Config,
        happenings: Happenings,
    ) -> None:
        self._worker = worker
        self._networks = networks
        self._replica = replica
        self._endpoints = endpoints
        self._resolv_conf = Path(config.resolv_conf)
        self._folder = Path(config.socket).parent / "names"
        self._wanted = config.names
        self._happenings = happenings
        self.problems: dict[str, str] = {}
        """By network: why it has no names on this host."""
        self._served: dict[str, list[State]] = {}
        self._others = Elsewhere(replica, host)
        self._used: dict[str, tuple[float, frozenset[Prefix]]] = {}
        """By network: when it had a container here last, and of which pools."""
        self._remembered: dict[str, bytes] = {}
        self._own: dict[tuple[str, str], tuple[Endpoint, Named]] = {}
        self._texts: dict[str, tuple[int, bytes]] = {}
        self._told = Once()
        self._spent: dict[str, tuple[int, int]] = {}
        """By network: its server's process, and the time it had used when it first missed a question."""
        self._searched = self._asked = float("-inf")
        self._pulse = dnsmasq.Pulse()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    # What others ask

    def nameservers(self, endpoint: Endpoint) -> tuple[str, ...]:
        """Return the addresses of its network's server for a container, none where there is none here."""
        found = self._networks.get(endpoint.network)
        if not self._wanted or endpoint.network in self.problems or dnsmasq.found(self._folder) is None:
            return ()
        return tuple(gateway.address for _, gateway in names.own(names.served(found), endpoint))

    def standing(self, network: str) -> Literal["answers", "awaited", "refused", "none"]:
        """Return whether a network has names here: none without a container, or where they are not to be had."""
        if network in self._served:
            return "answers"
        if network in self.problems:
            return "refused"
        used = (endpoint for endpoint in self._endpoints.values() if endpoint.network == network)
        return "awaited" if any(map(self.nameservers, used)) else "none"

    def holder(self, protocol: str, host_ip: str, port: int) -> str:
        """Return who listens at a port of the host; servers of names are not in the way of who publishes port 53."""
        ours = self._addresses() if port == PORT and not host_ip else frozenset()
        return sockets.holder(protocol, host_ip, port, ours)

    def _addresses(self) -> frozenset[bytes]:
        networks = [n for n in self._networks.all() if n.name in self._served]
        return frozenset(gateway.packed for n in networks for gateway in self._gateways(n))

    def _gateways(self, network: Network) -> list[Prefix]:
        """Return where a network's server is to listen: at the gateways of the pools that are used here."""
        _, used = self._used.get(network.name, (0, frozenset()))
        return [gateway for pool, gateway in names.served(network) if pool in used]

    def note(self, identity: tuple[str, str]) -> None:
        """Take note that an endpoint of this host came, changed or went."""
        if (endpoint := self._endpoints.get(identity)) is not None:
            self._caution(endpoint)
        self._wake.set()

    def changed(self, keys: frozenset[str]) -> None:
        """Take note of records that changed."""
        if self._others.changed(keys) or any(key.startswith("networks/") for key in keys):
            self._wake.set()

    # Running

    async def take_over(self) -> None:
        """Desire what should be, before anything is made so: servers that run are to go on."""
        self._others.everything()
        for source, states in (await self._plan()).items():
            await self._worker.run(self._worker.machine.reconciler.desired.replace, source, states)
            self._served[source[1]] = states

    def start(self) -> None:
        """Begin to follow."""
        self._task = lasting("following names", self._follow)

    async def stop(self) -> None:
        """End; the servers go on."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._pulse.close()

    async def _follow(self) -> None:
        while True:
            if await woken(self._wake, TICK):
                await asyncio.sleep(SETTLE)
            self._wake.clear()
            await self._put()
            await self._revive()
            await asyncio.sleep(REST)

    async def _put(self) -> None:
        plans = {source[1]: states for source, states in (await self._plan()).items()}
        gone: dict[str, list[State]] = {name: [] for name in self._served.keys() - plans.keys()}
        for name, states in {**gone, **plans}.items():
            if states == self._served.get(name):
                continue
            try:  # what is refused is told as drift, and tried again by healing
                await self._worker.run(self._worker.machine.reconciler.change, ("names", name), states)
            except LinkspanError as error:
                log.warning("%s", error.message)
            self._served[name] = states
        for name in gone:
            del self._served[name]

    async def _plan(self) -> dict[Source, list[State]]:
        """Return the states of each network that has a server here now."""
        now = time.monotonic()
        there = {network.name: network for network in self._networks.all() if names.served(network)}
        self._note_used(there, now)
        self._texts = {n: text for n, text in self._texts.items() if n in there}
        self._remembered = {n: text for n, text in self._remembered.items() if n in there}
        found = dnsmasq.found(self._folder) if self._wanted and self._used else None
        if found is None:
            self.problems.clear()
            if self._wanted and self._used:
                self._tell("dnsmasq is not installed: containers have no names (apt install dnsmasq-base)")
            return {}
        networks = [there[name] for name in sorted(self._used)]
        await self._search(networks, now)
        server = self._server(found)
        local, remote = self._here(), self._others.named()
        return {
            ("names", n.name): list(
                names.states(
                    n,
                    server,
                    names.hosts(n, local.get(n.name, ())),
                    self._elsewhere(n, remote, found.folder),
                    self._used[n.name][1],
                )
            )
            for n in networks
            if n.name not in self.problems
        }

    def _note_used(self, there: Mapping[str, Network], now: float) -> None:
        """Take note of which networks have containers here, with addresses of which pools."""
        served = {name: names.served(network) for name, network in there.items()}
        used: dict[str, set[Prefix]] = {}
        for endpoint in self._endpoints.values():
            if pools := names.own(served.get(endpoint.network, ()), endpoint):
                used.setdefault(endpoint.network, set()).update(pool for pool, _ in pools)
        self._used |= {name: (now, frozenset(pools)) for name, pools in used.items()}
        self._used = {n: (at, pools) for n, (at, pools) in self._used.items() if n in there and now - at < LINGER}

    def _here(self) -> dict[str, list[Named]]:
        """Return by network what there is on this host; each endpoint is looked at once."""
        before, self._own = self._own, {}
        found: dict[str, list[Named]] = {}
        for identity, endpoint in self._endpoints.items():
            known = before.get(identity)
            self._own[identity] = known if known and known[0] is endpoint else (endpoint, names.named(endpoint))
            found.setdefault(endpoint.network, []).append(self._own[identity][1])
        return found

    def _elsewhere(self, network: Network, remote: Mapping[str, list[Named]], folder: str) -> bytes:
        if not names.crosses(network):
            return b""
        if self._replica.listed:
            if self._texts.get(network.name, (-1,))[0] != self._others.number:
                self._texts[network.name] = self._others.number, names.hosts(network, remote.get(network.name, ()))
            return self._texts[network.name][1]
        if network.name not in self._remembered:
            path = Path(names.elsewhere(folder, network.name))
            self._remembered[network.name] = path.read_bytes() if path.exists() else b""
        return self._remembered[network.name]

    # The machine

    def _server(self, found: Dnsmasq) -> Server:
        ours = {g.address for n in self._networks.all() for _, g in names.served(n)}
        resolvers = dnsmasq.upstream(_text(self._resolv_conf), ours)
        given = dict.fromkeys((*resolvers, *dnsmasq.upstream(_text(Path(RESOLVED)), ours)))
        asked = tuple(one for one in given if "%" not in one and not _is_loopback(one))
        forwarders = names.forwarders(self._endpoints.values())
        return Server(found, resolvers, asked or PUBLIC, forwarders, names.nowhere(self._networks.all()))

    async def _search(self, networks: list[Network], now: float) -> None:
        """Look whether another process has the port of a server that does not run."""
        self.problems = {n: why for n, why in self.problems.items() if n in self._used}
        fresh = [n for n in networks if n.name not in self._served]
        if not fresh or (now - self._searched < AGAIN and not any(n.name not in self.problems for n in fresh)):
            return
        self._searched = now
        for network, why in (await self._worker.run(self._held, fresh)).items():
            if not why:
                self.problems.pop(network, None)
            elif self.problems.get(network) != why:
                self.problems[network] = why
                self._tell(why)

    def _held(self, networks: list[Network]) -> dict[str, str]:
        """Return for each network who has its port, '' for nobody (worker thread)."""
        running = self._worker.machine.processes.pid
        return {n.name: "" if running(names.process(n.name)) else _held(n, self._gateways(n)) for n in networks}

    async def _revive(self) -> None:
        """Replace a server that does not answer and does nothing: healing starts one that has died."""
        now = time.monotonic()
        if now - self._asked < BEAT:
            return
        self._asked = now
        networks = [n for n in self._networks.all() if n.name in self._served]
        self._pulse.beat({n.name: gateways[0].address for n in networks if (gateways := self._gateways(n))})
        missed = {name: count for name, count in self._pulse.missed.items() if count}
        pids = await self._worker.run(self._pids, list(missed)) if missed else {}
        self._spent = {name: self._spent.get(name, (pid, dnsmasq.spent(pid))) for name, pid in pids.items()}
        for name in missed:
            pid = pids.get(name, 0)
            if not pid or self._spent[name][0] != pid:  # it is dead, or has a successor: nothing is known of that yet
                self._forget(name)
            elif missed[name] >= HUNG and self._spent[name] == (pid, dnsmasq.spent(pid)):
                what = f"the names' server of network {name} hung, and is replaced"
                self._happenings.add("names", what, network=name)
                os.kill(pid, signal.SIGKILL)
                self._forget(name)

    def _forget(self, name: str) -> None:
        self._pulse.forget(name)
        self._spent.pop(name, None)

    def _pids(self, networks: list[str]) -> dict[str, int]:
        found = {name: self._worker.machine.processes.pid(names.process(name)) for name in networks}
        return {name: pid for name, pid in found.items() if pid}

    def _caution(self, endpoint: Endpoint) -> None:
        for name in names.unspeakable(endpoint):
            who = endpoint.name or endpoint.id
            self._tell(f"{name!r} of container {who} is no name for DNS, and is not answered", endpoint=endpoint.id)

    def _tell(self, what: str, **about: str) -> None:
        """Tell of it, once."""
        if self._told.first(what):
            log.warning("%s", what)
            self._happenings.add("names", what, **about)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _is_loopback(address: str) -> bool:
    found = prefix(address)
    return any(prefix(one).holds(found.single()) for one in ("127.0.0.0/8", "::1/128"))


def _held(network: Network, gateways: Iterable[Prefix]) -> str:
    for gateway in gateways:
        for protocol in ("udp", "tcp"):
            try:
                holder = sockets.holder(protocol, gateway.address, PORT)
            except LinkspanError:  # the address is not there yet
                continue
            if holder:
                return (
                    f"network {network.name} has no names: port {PORT}/{protocol} of its gateway {gateway.address} "
                    f"is held by {holder}; end it, or let it listen at other addresses only"
                )
    return ""
