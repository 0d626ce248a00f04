"""Simulated hosts on a real etcd, for the scale benchmark: this is no program.

Each has what a host has in the store: its own record, a lease and a block in every network, the records of its
containers, and a record of liveness that stands by a lease of its own, which it keeps each second on a connection of
its own. They have no kernel and no watch. A thread with an event loop of its own works for all of them, in the network
namespace of etcd.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import msgspec

from linkspan import SCHEMA, __version__
from linkspan.cluster.blocks import candidates, own_address
from linkspan.cluster.presence import KEEP, STANDS
from linkspan.core.addresses import Prefix, derived_mac, mac_text, prefix
from linkspan.core.errors import Unavailable
from linkspan.core.model import Endpoint, Host, Lease, Offer, Underlay, host_ifname
from linkspan.lab import sockets
from linkspan.store import records
from linkspan.store.etcd import EtcdStore
from linkspan.store.etcd_lease import StandingLease
from linkspan.store.etcd_stream import Stream
from linkspan.store.etcd_wire import prefix_range, puts_and_deletes
from linkspan.store.records import ALIVE, BlockRecord, block_key, lease_key

T = TypeVar("T")

NETWORKS = tuple(f"net{number}" for number in range(1, 21))
EACH = 5
"""Containers of a host in each network: 100 in all."""
LENGTH = 24
SPARE = 16
"""Blocks that are left to the agent that is measured, from the place where it looks for one."""
MORE = 1024
"""The first of the blocks that hosts claim later."""
STAY = 100
"""Changes that a new container outlives before it goes again."""
AT_ONCE = 8
"""Transactions at once while the hosts come."""


def pool(network: str) -> Prefix:
    """Return the pool of a network: a /13 for 2,048 blocks."""
    return prefix(f"10.{8 * (NETWORKS.index(network) + 1)}.0.0/13")


class Status(msgspec.Struct, frozen=True):
    """A member's status: entries of raft's log so far, bytes of its database file, and of them in use."""

    entries: int = msgspec.field(default=0, name="raftIndex")
    size: int = msgspec.field(default=0, name="dbSize")
    used: int = msgspec.field(default=0, name="dbSizeInUse")


class Seen:
    """Changes that a watch of all records has told of."""

    def __init__(self) -> None:
        self.changes = 0
        self.liveness = 0
        """Those of them that are of records of liveness."""


class Blocks:
    """The blocks of each network, in the order in which simulated hosts have them."""

    def __init__(self, measured: str) -> None:
        """``measured`` is the id of the host with the real agent, which has its place among them."""
        self._blocks: dict[str, list[Prefix]] = {}
        for network in NETWORKS:
            within = pool(network)
            gateway = within.at(1).single()
            free = [one for one in candidates(within, LENGTH, measured, set()) if not one.holds(gateway)]
            self._blocks[network] = free[SPARE:]

    def of(self, network: str, number: int) -> Prefix:
        """Return block N of a network."""
        return self._blocks[network][number]


class SimulatedHosts:
    """The hosts, and the loop that works for them. Its methods may be called from any other thread."""

    def __init__(self, netns: str, url: str, measured: str) -> None:
        self.count = 0
        self.lapsed = 0
        """How often a host's lease ended although it was kept: then the machine was too busy for this benchmark."""
        self.changed = 0
        """Changes of endpoints so far."""
        self._came = 0
        self._blocks = Blocks(measured)
        self._more: dict[tuple[str, int], list[Prefix]] = {}
        """Blocks that hosts claimed later, by network and host."""
        self._names: deque[str] = deque()
        """Keys of containers that came by ``change``, the oldest first."""
        self._loop = asyncio.new_event_loop()
        self._tasks: list[asyncio.Task[None]] = []
        self._thread = threading.Thread(target=self._work, args=(netns,), name="hosts")
        self._thread.start()
        self._store = self.run(_opened(url))

    def _work(self, netns: str) -> None:
        with sockets.inside(netns):
            self._loop.run_forever()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Do something in the hosts' loop, and return its result."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def close(self) -> None:
        """End all of it: liveness ends by itself."""
        self.run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._store.close()

    # -------------------------------------------------------------- records

    def claims(self, number: int) -> dict[str, bytes]:
        """Return the records of a host, and of what it holds in every network."""
        name, address = host_id(number), prefix("198.18.0.0/15").at(number + 1).address
        underlay = Underlay("eth0", (f"{address}/15",), mac=mac_text(derived_mac("eth0", name)))
        found: dict[str, msgspec.Struct] = {
            f"hosts/{name}": Host(id=name, name=name, version=__version__, reads=SCHEMA, underlay=underlay)
        }
        for network in NETWORKS:
            block = self._blocks.of(network, number)
            found[block_key(network, block)] = BlockRecord(name, time.time())
            found[lease_key(network, name)] = self._lease(network, number, block)
        return _encoded(found)

    def _lease(self, network: str, number: int, *blocks: Prefix) -> Lease:
        name = host_id(number)
        address = prefix("198.18.0.0/15").at(number + 1).address
        return Lease(
            network=network,
            host=name,
            prefixes=tuple(map(str, blocks)),
            addresses=(str(own_address(pool(network), blocks[0])),),
            endpoints={"vxlan": Offer({"mac": mac_text(derived_mac("vtep", name, network)), "address": address})},
        )

    def endpoints(self, number: int) -> dict[str, bytes]:
        """Return the records of a host's containers."""
        made = (self._endpoint(network, number, each) for network in NETWORKS for each in range(EACH))
        return dict(made)

    def _endpoint(self, network: str, number: int, each: int, name: str = "") -> tuple[str, bytes]:
        """Return the record of a container: the key, and the value."""
        host, name = host_id(number), name or f"c{number}-{NETWORKS.index(network) + 1}-{each}"
        digest = hashlib.sha256(name.encode())
        id_, netns = digest.hexdigest(), 1 + int.from_bytes(digest.digest()[:6])
        made = Endpoint(
            id=id_,
            ifname="eth0",
            name=name,
            network=network,
            host=host,
            addresses=(str(self._blocks.of(network, number).at(2 + each).single()),),
            gateways=(pool(network).at(1).address,),
            mac=mac_text(derived_mac("container", id_)),
            mtu=1450,
            host_ifname=host_ifname(True, id_, "eth0"),
            labels={"app": f"app{number % 50}", "tier": "web"},
            netns=netns,
            netns_cookie=netns,
        )
        return f"endpoints/{host}/{id_}/eth0", records.encode(made, b"", SCHEMA)

    # -------------------------------------------------------------- life

    async def grow(self, count: int) -> None:
        """Let hosts come until there are so many: each writes its records, and lives from then on."""
        turns = asyncio.Semaphore(AT_ONCE)

        async def come(number: int) -> None:
            async with turns:
                await self._store.transaction(self.claims(number))
                await self._store.transaction(self.endpoints(number))
            self._tasks.append(asyncio.create_task(self._live(number)))

        await asyncio.gather(*map(come, range(self.count, count)))
        self.count = count

    async def _live(self, number: int) -> None:
        """Keep a host's record of liveness, as an agent does."""
        lease = StandingLease(self._store.gateway)
        try:
            await asyncio.sleep(random.uniform(0, KEEP))  # noqa: S311 - hosts have no common second
            first = True
            while True:
                with contextlib.suppress(Unavailable):
                    if not await lease.keep():
                        self.lapsed += not first
                        await self._say(number, lease)
                        first = False
                await asyncio.sleep(KEEP)
        finally:
            lease.close()

    async def _say(self, number: int, lease: StandingLease) -> None:
        key = f"{self._store.url.prefix}{ALIVE}{host_id(number)}"
        put = puts_and_deletes({key: f"{host_id(number)}:1:1".encode() + STANDS}, [], await lease.granted())
        await self._store.gateway.call("/v3/kv/txn", {"success": put})

    # -------------------------------------------------------------- changes

    @contextlib.contextmanager
    def changing(self, rate: float) -> Iterator[None]:
        """Let containers come and go in all networks alike, so many changes a second."""
        future = asyncio.run_coroutine_threadsafe(self._change_on(rate), self._loop)
        try:
            yield
        finally:
            if not future.cancel():
                future.result()  # which raises why it ended

    async def _change_on(self, rate: float) -> None:
        begun, first = self._loop.time(), self.changed
        while True:
            await self._change()
            self.changed += 1
            await asyncio.sleep(max(begun + (self.changed - first) / rate - self._loop.time(), 0.0))

    async def _change(self) -> None:
        if self.changed % 2 and len(self._names) > STAY:
            await self._store.transaction({}, deletes=[self._names.popleft()])
            return
        came, self._came = self._came, self._came + 1
        network, number = NETWORKS[came % len(NETWORKS)], came // len(NETWORKS) % self.count
        key, value = self._endpoint(network, number, EACH + came % 200, f"n{came}")
        await self._store.transaction({key: value})
        self._names.append(key)

    async def put(self, network: str, number: int, name: str) -> str:
        """Let one container come; return the key of its record."""
        key, value = self._endpoint(network, number, 240, name)
        await self._store.transaction({key: value})
        return key

    async def delete(self, key: str) -> None:
        """Let a container go."""
        await self._store.transaction({}, deletes=[key])

    async def claim(self, network: str, number: int) -> Prefix:
        """Let a host claim one more block, and return the block."""
        block = self._blocks.of(network, MORE + sum(map(len, self._more.values())))
        more = self._more.setdefault((network, number), [])
        more.append(block)
        lease = self._lease(network, number, self._blocks.of(network, number), *more)
        claimed = {block_key(network, block): BlockRecord(host_id(number), time.time())}
        await self._store.transaction(_encoded({**claimed, lease_key(network, host_id(number)): lease}))
        return block

    # -------------------------------------------------------------- etcd

    async def status(self) -> Status:
        """Return how etcd stands: the question is no entry of its log."""
        return await self._store.gateway.ask("/v3/maintenance/status", {}, Status)

    @contextlib.contextmanager
    def seeing(self) -> Iterator[Seen]:
        """Watch all records meanwhile."""
        seen = Seen()
        task = self.run(self._seeing(seen))
        try:
            yield seen
        finally:
            self.run(_ended([task]))

    async def _seeing(self, seen: Seen) -> asyncio.Task[None]:
        _, revision = await self._store.list("alive/")
        return asyncio.create_task(self._see(seen, revision))

    async def _see(self, seen: Seen, revision: int) -> None:
        async for batch in self._store.watch("", revision):
            keys = [*(record.key for record in batch.puts), *batch.deletes]
            seen.changes += len(keys)
            seen.liveness += sum(key.startswith(ALIVE) for key in keys)

    @contextlib.contextmanager
    def watching(self, count: int) -> Iterator[None]:
        """Have so many watches of all records, each on a connection of its own; what they tell is not looked at."""
        tasks = self.run(self._watches(count))
        try:
            yield
        finally:
            self.run(_ended(tasks))

    async def _watches(self, count: int) -> list[asyncio.Task[None]]:
        gateway = self._store.gateway
        body = {"create_request": prefix_range(self._store.url.prefix)}
        streams = [await gateway.stream(gateway.endpoint, "/v3/watch", body) for _ in range(count)]

        async def drain(stream: Stream) -> None:
            with contextlib.closing(stream):
                while True:
                    await stream.next()

        return [asyncio.create_task(drain(stream)) for stream in streams]


def host_id(number: int) -> str:
    """Return the id of simulated host N."""
    return f"peer{number}"


def _encoded(values: dict[str, msgspec.Struct]) -> dict[str, bytes]:
    return {key: records.encode(value, b"", SCHEMA) for key, value in values.items()}


async def _opened(url: str) -> EtcdStore:
    return EtcdStore(url)


async def _ended(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def grown(url: str, hosts: Iterable[dict[str, bytes]], changes: int, turn: int) -> list[Status]:
    """Write records and then so many changes into an etcd, compacted as agents do.

    Returns how etcd stands after each tenth of the changes. An agent compacts, each ``turn`` changes, what was before
    the turn before.
    """
    store = EtcdStore(url)
    try:
        await _answers(store)
        keys: list[str] = []
        async for written in _written(store, hosts):
            keys += written
        tenths, last, done = list[Status](), 0, 0
        while done < changes:
            some = random.sample(keys, 100)
            value = random.randbytes(470)  # noqa: S311 - any; as long as an endpoint's record
            revision = await store.transaction(dict.fromkeys(some, value))
            done += len(some)
            if done % turn < len(some):
                if last:
                    body = {"revision": str(last), "physical": True}
                    await store.gateway.at(store.gateway.endpoint, "/v3/kv/compaction", body, 60)
                last = revision
            if done % (changes // 10) == 0:
                tenths.append(await store.gateway.ask("/v3/maintenance/status", {}, Status))
        return tenths
    finally:
        await store.close()


async def _written(store: EtcdStore, hosts: Iterable[dict[str, bytes]]) -> AsyncIterator[list[str]]:
    for host in hosts:
        await store.transaction(host)
        yield list(host)


async def _answers(store: EtcdStore) -> None:
    end = time.monotonic() + 30
    while True:
        try:
            await store.gateway.ask("/v3/maintenance/status", {}, Status)
        except Unavailable:
            if time.monotonic() > end:
                raise
            await asyncio.sleep(0.2)
        else:
            return
