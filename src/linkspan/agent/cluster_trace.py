"""Traces over the whole cluster: walks this host's parts in a thread, and asks the other agents for theirs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Container, Iterable, Mapping
from pathlib import Path

from linkspan.backends.sdn import backend as sdn
from linkspan.cluster.endpoint_records import EndpointRecords
from linkspan.cluster.hosts import Hosts
from linkspan.cluster.leases import Leases
from linkspan.cluster.networks import Networks
from linkspan.cluster.questions import Ask, Walked
from linkspan.core.addresses import Prefix, mac, prefix
from linkspan.core.errors import Unavailable
from linkspan.core.model import CONTROLLER, Endpoint, Host, Lease, Network
from linkspan.diagnose.trace import live
from linkspan.diagnose.trace.bgp_routes import Learning
from linkspan.diagnose.trace.hops import Gateway, Map, Other
from linkspan.diagnose.trace.live import Heard, Listen
from linkspan.diagnose.trace.live_packet import new_mark
from linkspan.diagnose.trace.packet import Packet
from linkspan.diagnose.trace.parts import Entry, Part
from linkspan.diagnose.trace.result import Local
from linkspan.diagnose.trace.trace import Place, Trace, Unanswered, trace
from linkspan.kernel.io.namespaces import Namespaces


def gateways(networks: Iterable[Network]) -> tuple[Gateway, ...]:
    """Return the gateways that are switches of an underlay, for each way by which the networks receive packets."""
    steered = ((way, sdn.gateway(way)) for network in networks for way in network.ways)
    return tuple(
        Gateway(way.prefixes, tuple(one.packed for one in found), mac(way.options["mac"]))
        for way, found in steered
        if found
    )


def others(
    hosts: Iterable[Host], leases: Iterable[Lease], endpoints: Iterable[tuple[str, Endpoint]]
) -> dict[str, Other]:
    """Return the hosts by id, in the form that a trace needs."""
    addresses: dict[str, dict[str, tuple[bytes, ...]]] = {}
    held: dict[str, list[Endpoint]] = {}
    for lease in leases:
        own = tuple(prefix(text).packed for text in lease.addresses)
        addresses.setdefault(lease.host, {})[lease.network] = own
    for host_id, endpoint in endpoints:
        held.setdefault(host_id, []).append(endpoint)
    return {
        host.id: Other(
            host.name, {"": _underlay(host), **addresses.get(host.id, {})}, tuple(held.get(host.id, ()))
        )
        for host in hosts
    }


def _underlay(host: Host) -> tuple[bytes, ...]:
    if host.underlay is None:
        return ()
    return tuple(prefix(text).packed for text in (*host.underlay.advertise, *host.underlay.addresses))


class ClusterTrace:
    """Makes traces for this host's users, and parts of traces for other hosts."""

    def __init__(
        self,
        namespaces: Namespaces,
        state_dir: Path,
        hosts: Hosts,
        leases: Leases,
        networks: Networks,
        endpoints: Mapping[tuple[str, str], Endpoint],
        endpoint_records: EndpointRecords,
        learning: Callable[[], Learning | None],
        silent: Callable[[], Awaitable[Mapping[tuple[str, str, int], str]]],
        ask: Ask,
    ) -> None:
        self._namespaces = namespaces
        self._state_dir = state_dir
        self._hosts = hosts
        self._leases = leases
        self._networks = networks
        self._endpoints = endpoints
        self._endpoint_records = endpoint_records
        self._learning = learning
        self._silent = silent
        self._ask = ask

    async def _known(self, *words: str) -> Map:
        """Return the map of the known endpoints: complete ones that ``words`` may mean, and sketches of other hosts'.

        A sketch says which host has an address. At its two ends a trace needs the complete record.
        """
        silent = await self._silent()
        own = self._hosts.here
        hosts = [host for host in self._hosts.all().values() if host.id != own.id]
        networks = {network.name: network for network in self._networks.all()}
        leases = [lease for lease in self._leases.all() if lease.network in networks]
        counting = [self._leases.grant(networks[lease.network], lease).lease for lease in leases]
        found = others(hosts, counting, await self._endpoint_records.met(*words))
        peers = {address: id_ for id_, other in found.items() for address in other.addresses[""]}
        keys = {
            public: host.id for host in hosts for public in (*host.keys.values(), *host.next_keys.values())
        }
        here = tuple(self._endpoints.values())
        steered = gateways(networks.values())
        return Map(own.name, here, networks, peers, own.underlay, own.id, found, keys, silent, steered)

    def _local(self, known: Map) -> Local:
        return Local(self._namespaces, known, self._state_dir, self._learning())

    async def answer(self, question: Walked | Listen) -> Part | Heard:
        """Return this host's part of a trace that another host makes."""
        if isinstance(question, Listen):
            return await asyncio.to_thread(self._local(await self._known()).hear, question)
        local = self._local(await self._known(*self._strange(question.entry.packet)))
        return await asyncio.to_thread(local.part, question.entry)

    def _strange(self, packet: Packet) -> list[str]:
        """Return the packet's addresses in pools that no known endpoint has: the caller asks the store for them."""
        pools = [pool for network in self._networks.all() for pool in network.prefixes]
        own = {one.packed for endpoint in self._endpoints.values() for one in endpoint.prefixes}
        found = []
        for address in (packet.source, packet.target):
            single = Prefix(address, len(address) * 8)
            if address and address not in own and any(pool.holds(single) for pool in pools):
                found += [] if self._endpoint_records.keeps(single) else [single.address]
        return found

    async def trace(self, source: str, target: str, to: str = "", *, alive: bool = False) -> Trace:
        """Trace between two ends anywhere; ``alive`` adds a real packet.

        Raises NotFound, Conflict or Invalid if the arguments do not say what to trace.
        """
        known = await self._known(source, target)
        local = self._local(known)
        first, last, packet = await asyncio.to_thread(local.begin, source, target, to)
        going = trace(known, first, last, packet)
        silent = set()
        answer: Part | Unanswered | None = None
        while True:
            try:
                host, entry = going.send(answer) if answer is not None else next(going)
            except StopIteration as end:
                found: Trace = end.value
                break
            answer = await self._part(local, host, entry)
            if isinstance(answer, Unanswered):
                silent.add(host)
        return await self._live(known, first, last, packet, found, silent) if alive else found

    async def _live(
        self, known: Map, source: Place, target: Place, packet: Packet, found: Trace, silent: Container[str]
    ) -> Trace:
        """Send an echo request or a TCP SYN; the other hosts listen for it, except ``silent`` ones."""
        mark, goal = new_mark(), live.goal(known, target)
        asked = []
        for id_, other in known.others.items():
            if id_ in silent:
                continue
            wanted = live.listening(found, goal, other.name, mark, packet.protocol)
            if wanted.there or wanted.back:
                asked.append(asyncio.create_task(self._heard(id_, other.name, wanted)))

        def going() -> bool:
            return not all(task.done() for task in asked)

        try:
            here = live.listening(found, goal, known.host, mark, packet.protocol)
            local, size = self._local(known), live.unproven(found)
            own = await asyncio.to_thread(local.send, source, packet, here, live.end(found), going, size)
            heard = dict(await asyncio.gather(*asked))
        finally:
            for task in asked:
                task.cancel()
        return live.marked(found, {known.host: own, **heard}, known.host, goal)

    async def _heard(self, host: str, name: str, wanted: Listen) -> tuple[str, Heard]:
        try:
            return name, await self._ask.ask(host, wanted, Heard)
        except Unavailable:
            return name, Heard()

    async def _part(self, local: Local, host: str, entry: Entry) -> Part | Unanswered:
        if not host:
            return await asyncio.to_thread(local.part, entry)
        if host == CONTROLLER and host not in self._hosts.alive():
            return Unanswered("no controller is active, and only the controller knows the switches")
        try:
            return await self._ask.ask(host, Walked(entry), Part)
        except Unavailable as error:
            return Unanswered(error.message)
