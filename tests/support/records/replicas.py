"""Hosts that share one store in memory, for tests of its users."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

import msgspec

from linkspan.cluster.address_usage import AddressUsage
from linkspan.cluster.allocator import Allocator
from linkspan.cluster.allowances import Allowances
from linkspan.cluster.conflicts import Conflicts
from linkspan.cluster.endpoint_records import EndpointRecords
from linkspan.cluster.exact_addresses import ExactAddresses
from linkspan.cluster.exact_claims import ExactClaims
from linkspan.cluster.hosts import Hosts
from linkspan.cluster.interest import Interest
from linkspan.cluster.leases import Leases
from linkspan.cluster.networks import Networks
from linkspan.cluster.own_record import OwnRecord
from linkspan.cluster.participation import Participation
from linkspan.cluster.readiness import Readiness
from linkspan.cluster.remote_endpoints import RemoteEndpoints
from linkspan.cluster.reservations import Reservations
from linkspan.core.addresses import Prefix
from linkspan.core.errors import Exhausted
from linkspan.core.event_log import EventLog
from linkspan.core.model import AttachRequest, Endpoint, Host, Network
from linkspan.store.memory import Memory, MemoryStore
from linkspan.store.replica import Replica


class Raced(MemoryStore):
    """A connection on which another host is always quicker: it puts ``theirs`` just before each transaction."""

    def __init__(self, memory: Memory, theirs: dict[str, bytes]) -> None:
        super().__init__(memory)
        self._other, self._theirs = MemoryStore(memory), theirs

    async def transaction(self, puts: Mapping[str, bytes], *args: Any, **more: Any) -> int:
        """Carry it out after the other's."""
        await self._other.transaction(self._theirs)
        return await super().transaction(puts, *args, **more)


class Member:
    """One host's replica and leases."""

    def __init__(
        self,
        memory: Memory,
        folder: Path,
        name: str,
        store: MemoryStore | None = None,
        overdue: Callable[[str], bool] = lambda _host: False,
    ) -> None:
        self.name = name
        self.second = ""
        """The error text while another agent uses this host's id."""
        self.stalled = ""
        """Why this host was silent for too long."""
        self.memory = memory
        self.store = store or MemoryStore(memory)
        self.seen: list[frozenset[str]] = []
        self.given_up: list[Prefix] = []
        """The addresses that may have been other hosts' before."""
        self.told: Callable[[frozenset[str]], object] = lambda _keys: None
        self.remote = RemoteEndpoints(self.store, name, self._changed)
        self.replica = Replica(self.store, folder / f"{name}.json", name, self._changed, self.remote)
        self.endpoints: dict[tuple[str, str], Endpoint] = {}
        self.interest = Interest(self.replica, self.remote, self.endpoints)
        self.endpoint_records = EndpointRecords(
            self.replica, name, self.endpoints, self.remote, self.interest, self
        )
        self.own_record = OwnRecord(Host(id=name, name=name))
        self.hosts = Hosts(self.replica, self.own_record)
        self.leases = Leases(self.replica, self.hosts, self.endpoint_records.living, overdue)
        self.networks = Networks(self.replica)
        self.allowances = Allowances(self.replica, self.networks)
        self.reservations = Reservations(self.replica, self.networks)
        self.event_log = EventLog(folder / f"{name}.events")
        self.conflicts = Conflicts(self.replica, self.hosts, self.leases, self.endpoint_records, self.event_log)
        self.exact_addresses = ExactAddresses(
            self.replica,
            self.hosts,
            self.leases,
            self.networks,
            self.endpoints,
            self.endpoint_records.withholds,
            self.endpoint_records.held,
        )
        self.blocks = AddressUsage(
            self.networks, self.reservations, self.hosts, self.leases, self.conflicts, cooldown=0
        )
        self.readiness = Readiness(self.hosts, self.leases, lambda _since: self.stalled, self)
        self.allocator = Allocator(
            self.networks,
            self.leases,
            self.blocks,
            ExactClaims(name, self.leases, self.reservations, self.conflicts, 0, self.exact_addresses.note),
            self.readiness,
            self.endpoint_records.holder,
            self._take_part,
            self._give_up,
        )
        self.participation = Participation(self.hosts, self.leases, self.networks, self.allowances, self.endpoints)

    async def _changed(self, keys: frozenset[str]) -> None:
        self.seen.append(keys)
        self.interest.changed(keys)
        self.endpoint_records.changed(keys)
        self.exact_addresses.changed(keys)
        self.told(keys)

    async def _take_part(self, net: Network) -> None:
        await self.leases.claim(net, {})
        self.blocks.refresh()

    async def _give_up(self, _net: str, address: Prefix) -> None:
        self.given_up.append(address)

    async def join(self) -> None:
        """Follow the store, as a host that it knows."""
        await self.replica.start()
        await self.replica.write({f"hosts/{self.name}": self.hosts.here})

    async def start(self) -> None:
        """Begin as an agent does."""
        await self.replica.start()
        self.networks.refresh()
        self.interest.start()
        self.endpoint_records.start()
        self.exact_addresses.start()

    async def stop(self) -> None:
        """End as an agent does."""
        await self.exact_addresses.stop()
        await self.endpoint_records.stop()
        await self.interest.stop()
        await self.replica.stop()

    async def converge(self, net: Network) -> None:
        """Do what an agent's cluster does after a change."""
        self.networks.refresh()
        self.conflicts.look([net.name])
        await self.conflicts.settle(net)
        with contextlib.suppress(Exhausted):
            await self.leases.claim(net, {})
        self.conflicts.look([net.name])
        self.blocks.refresh()

    async def attach(self, net: Network, id_: str, ip: str = "") -> str:
        """Attach a container, but for the kernel; returns its address."""
        request = AttachRequest(id=id_, network=net.name, ifname="eth0", ips=(ip,) if ip else ())
        (given,) = await self.allocator.allocate(net, request)
        self.holds(net, id_, str(given.address))
        return given.address.address

    def holds(self, net: Network, id_: str, address: str) -> None:
        """Have a container, as after an agent's restart."""
        made = (address,)
        endpoint = Endpoint(id=id_, ifname="eth0", name=id_, network=net.name, host=self.name, addresses=made)
        self.endpoints[endpoint.identity] = endpoint
        self.endpoint_records.note(endpoint.identity)
        self.interest.note(endpoint.identity)

    async def detach(self, net: Network, id_: str) -> None:
        """Take a container away."""
        endpoint = self.endpoints.pop((id_, "eth0"))
        self.endpoint_records.note(endpoint.identity)
        self.interest.note(endpoint.identity)
        await self.allocator.release(net.name, endpoint.prefixes)


def network(name: str = "demo", pool: str = "10.244.0.0/16", length: int = 24, **more: object) -> Network:
    """Return a network that crosses hosts."""
    fields: dict[str, object] = {
        "name": name,
        "pools": (pool,),
        "subnet_len": {"4": length},
        "backend": "vxlan",
        "gateways": ("10.244.0.1",),
        **more,
    }
    if fields["backend"] == "vxlan":
        fields.setdefault("options", {"vni": "100"})
    return msgspec.convert(fields, Network)


def together(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a test's coroutine."""
    asyncio.run(work())


