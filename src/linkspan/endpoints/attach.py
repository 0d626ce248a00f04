"""Attach and detach: the hot path.

Attach: allocate from memory, write the intent to the journal, put this endpoint's few states in the worker
thread, write the result, answer. Killed anywhere, the next agent finds the row: an endpoint that was being
attached or detached is not desired, so the first resync takes away what there is of it, and its address is
given back. Nothing waits for a store, and no process is started.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence

import msgspec

from linkspan.backends import backend
from linkspan.cluster.allocator import Allocator
from linkspan.cluster.networks import Networks, now
from linkspan.core.addresses import Prefix, mac, mac_text
from linkspan.core.errors import Conflict, Invalid, LinkspanError, NotFound, Unavailable
from linkspan.core.event_log import Happenings
from linkspan.core.model import AttachRequest, Endpoint, Network, checked_ifname, checked_name
from linkspan.core.ports import PortTable
from linkspan.core.reconcile import describe
from linkspan.core.states.host import Interface, Key, State
from linkspan.endpoints import multihoming, reconstruction
from linkspan.endpoints.build import check_numbers, check_ports, described, resized
from linkspan.endpoints.journal import Journal
from linkspan.kernel.drivers import routes
from linkspan.kernel.io import namespaces
from linkspan.kernel.probe import conntrack, gratuitous_arp
from linkspan.kernel.worker import Worker

log = logging.getLogger("linkspan.endpoints.attach")

Identity = tuple[str, str]


def source(endpoint: Endpoint) -> tuple[str, ...]:
    """Return the name under which an endpoint's states are desired."""
    return ("attachment", *endpoint.identity)


class Attacher:
    """The endpoints of this host."""

    def __init__(
        self,
        worker: Worker,
        journal: Journal,
        networks: Networks,
        allocator: Allocator,
        ports: PortTable,
        happenings: Happenings,
        host: str,
    ) -> None:
        self._worker = worker
        self._journal = journal
        self._networks = networks
        self._allocator = allocator
        self._ports = ports
        self._happenings = happenings
        self._host = host
        self._locks: dict[Identity, tuple[asyncio.Lock, int]] = {}
        self._unforgotten: list[Endpoint] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self.endpoints: dict[Identity, Endpoint] = {}
        self.attached_ns: dict[Identity, int] = {}
        self.pools: dict[str, tuple[str, ...]] = {}
        """The networks' pools that the endpoints' routes lead to."""
        self.changed: Callable[[Identity], None] = lambda _identity: None
        """Called with each endpoint that came, changed or went."""

    @contextlib.asynccontextmanager
    async def _one_at_a_time(self, identity: Identity) -> AsyncIterator[None]:
        """Serialise what is done to one endpoint: a DEL may come while its ADD is under way."""
        lock, users = self._locks.get(identity, (asyncio.Lock(), 0))
        self._locks[identity] = lock, users + 1  # those who wait count: a lock that is let go has waiters still
        try:
            async with lock:
                yield
        finally:
            _, users = self._locks.pop(identity)
            if users > 1:
                self._locks[identity] = lock, users - 1

    async def recognise(self, container: str, ifname: str = "") -> None:
        """Go on by the container's id with those of its endpoints that are known by their pair's name only.

        After the journal was lost, a runtime's call may be the first that says the id.
        """
        for endpoint in [e for e in self.endpoints.values() if reconstruction.is_unnamed(e)]:
            if container != endpoint.id and reconstruction.may_be(endpoint, container, ifname):
                await self.rename(endpoint.identity, msgspec.structs.replace(endpoint, id=container))

    async def rename(self, identity: Identity, named: Endpoint) -> None:
        """Go on with an endpoint that stands as what it is known to be by now; nothing changes for its container."""
        async with self._one_at_a_time(identity), self._one_in(named.netns):
            old = self.endpoints.get(identity)
            if old is None or named.identity in self.endpoints:
                return
            self._journal.adopt(named, instead=identity)
            before = self._without(old)
            self._ports.release(old)
            self._ports.restore(named)
            del self.endpoints[identity]
            self.attached_ns.pop(identity, None)
            self.admit(named, 0)
            await self._worker.run(self._desire_instead, before, named)
            self.changed(identity)
        who = f"{named.called} of network {named.network}"
        self._happenings.add("recover", f"{who} is what was known as {old.id}", endpoint=named.id)

    def _desire_instead(self, before: dict[tuple[str, ...], list[State]], named: Endpoint) -> None:
        """Desire an endpoint's states under its new name (worker thread); a resync mends what is not so yet."""
        desired = self._worker.machine.reconciler.desired
        for one, states in (before | self.states(self._networks.get(named.network), named)).items():
            desired.replace(one, states)

    def busy(self, identity: Identity) -> bool:
        """Tell whether an attach or detach of an identity is under way."""
        return identity in self._locks

    async def attach(
        self, request: AttachRequest, namespace_fd: int, namespace_path: str, delivered: bool = False
    ) -> Endpoint:
        """Attach a container's namespace (or, to a network of backend host, only its ports) to a network.

        ``namespace_fd`` stays the caller's; -1 where there is none. With ``delivered`` the container's end is
        put in the host's namespace, as ``request.ifname``, for the runtime to take it from there.
        Raises LinkspanError, and then nothing is left of the attempt.
        """
        network = self._networks.get(request.network)
        checked_name(request.id, "container id")
        await self.recognise(request.id, request.ifname)
        if request.name:
            checked_name(request.name, "container name")
        check_numbers(request)
        on_host = network.backend == "host"
        if (
            on_host
            and namespace_fd >= 0
            and namespaces.inode(namespace_fd) != self._worker.machine.namespaces.home
        ):
            raise Invalid(
                f"{request.name or request.id} has a network namespace of its own",
                f"network {network.name} is for containers that share the host's: choose another network",
            )
        number = 0 if on_host or delivered else self._checked_namespace(namespace_fd)
        cookie = 0
        try:
            if number:
                cookie = await self._worker.run_brief(self._worker.machine.namespaces.cookie, namespace_fd)
                await self.make_way(number, cookie, namespace_fd)
            if request.ifname:
                checked_ifname(request.ifname)
                return await self._attach_one(
                    request, number, cookie, namespace_fd, namespace_path, delivered
                )
            async with self._one_at_a_time((request.id, "")):  # two that ask for the next free name get two
                await self._refuse_again(request, number)
                name = await self._worker.run_brief(self._free_ifname, request.id, namespace_fd)
                request = msgspec.structs.replace(request, ifname=name)
                return await self._attach_one(request, number, cookie, namespace_fd, namespace_path)
        except LinkspanError as error:
            raise error.within(f"attach {request.name or request.id} to {network.name}") from error

    async def _refuse_again(self, request: AttachRequest, number: int) -> None:
        """A command that is typed twice does not mean two interfaces on one network, whoever made the first."""
        for endpoint in list(self.endpoints.values()):
            same = endpoint.netns and (endpoint.id == request.id or endpoint.netns == number)
            if same and endpoint.network == request.network:
                await self._refuse_dead(endpoint, number)
                raise Conflict(
                    f"container {endpoint.called} is attached already, by {endpoint.ifname}",
                    "give --ifname for one more interface on this network, or detach it first",
                )

    async def _refuse_dead(self, endpoint: Endpoint, number: int) -> None:
        """Say of an endpoint that is in the way of the open namespace's that its own namespace is gone, where it is."""
        if endpoint.netns not in (0, number) and not await self._worker.run(self._worker.machine.alive, endpoint):
            raise Conflict(
                f"{endpoint.ifname} of container {endpoint.id} is attached still, in a network namespace that is gone",
                f"linkspan detach --id {endpoint.id} --ifname {endpoint.ifname}, or wait until the agent does that",
            )

    async def _attach_one(
        self, request: AttachRequest, number: int, cookie: int, fd: int, path: str, delivered: bool = False
    ) -> Endpoint:
        async with self._one_at_a_time((request.id, request.ifname)):
            network = self._networks.get(request.network)  # as it is now: it may have been made anew
            endpoint = await self._attach(request, network, number, cookie, fd, path, delivered)
        now_ = self._networks.get(network.name)
        if endpoint.host_ifname and now_.mtus != network.mtus:  # it began or ended to migrate meanwhile
            return await self.alter(endpoint.identity, resized)
        return self.endpoints.get(endpoint.identity, endpoint)

    async def make_way(self, number: int, cookie: int, fd: int, but: Identity | None = None) -> None:
        """Detach endpoints of a namespace that is gone and whose inode this open one has now; ``but`` not this one.

        States know a namespace by its inode, so endpoints of two must not be there together. While the descriptor is
        open, no other namespace has the inode: the caller keeps it open until the endpoint that comes is known.
        """
        if not cookie:  # an old kernel
            return
        machine = self._worker.machine
        for endpoint in list(self.endpoints.values()):
            if endpoint.netns != number or endpoint.netns_cookie == cookie or endpoint.identity == but:
                continue
            name = endpoint.host_ifname
            if not endpoint.netns_cookie and await self._worker.run_brief(machine.links.leads_into, name, fd):
                with contextlib.suppress(NotFound):  # detached meanwhile
                    await self.alter(endpoint.identity, lambda _, e: msgspec.structs.replace(e, netns_cookie=cookie))
            else:
                await self.detach(*endpoint.identity)
        machine.namespaces.renew(number, cookie)

    def _checked_namespace(self, fd: int) -> int:
        if fd < 0:
            raise Invalid(
                "no network namespace was given", "name the container's namespace, netns:NAME for example"
            )
        number = namespaces.inode(fd)
        if number == self._worker.machine.namespaces.home:
            raise Invalid(
                "the network namespace is the host's own",
                "a container on the host's network needs a network of --backend host",
            )
        return number

    def _free_ifname(self, container: str, fd: int) -> str:
        """Return the first ethN that neither the namespace nor the container's endpoints have (worker thread)."""
        taken = {ifname for id_, ifname in list(self.endpoints) if id_ == container}
        if fd >= 0:
            machine = self._worker.machine
            with machine.namespaces.holding(fd) as number:
                taken |= set(machine.sockets.names(number).values())
                machine.sockets.release()
        return next(name for name in (f"eth{n}" for n in range(65536)) if name not in taken)

    def _one_in(self, number: int) -> contextlib.AbstractAsyncContextManager[None]:
        """Serialise what is done to the endpoints of one namespace: some of their states follow from all of them."""
        # No container has such an id. Whoever holds an identity may wait for a namespace, and never the other way.
        return self._one_at_a_time(("/netns", str(number))) if number else contextlib.nullcontext()

    def _one_with(self, request: AttachRequest) -> contextlib.AbstractAsyncContextManager[None]:
        """Serialise who asks for one MAC: of two at the same time one must see that the other has it."""
        if not request.mac:
            return contextlib.nullcontext()
        return self._one_at_a_time((f"/mac/{request.network}", mac_text(mac(request.mac))))

    async def _attach(
        self,
        request: AttachRequest,
        network: Network,
        number: int,
        cookie: int,
        fd: int,
        path: str,
        delivered: bool,
    ) -> Endpoint:
        async with self._one_in(number), self._one_with(request):
            return await self._attach_alone(request, network, number, cookie, fd, path, delivered)

    async def _attach_alone(
        self,
        request: AttachRequest,
        network: Network,
        number: int,
        cookie: int,
        fd: int,
        path: str,
        delivered: bool,
    ) -> Endpoint:
        await self._refuse_known(request, number)
        token = self._networks.token(network.name)
        allocations = await self._allocator.allocate(network, request)
        ports: Endpoint | None = None
        try:
            addresses = [allocation.address for allocation in allocations]
            handed = request.ifname if delivered else ""
            tuned = {other.mac for other in self.endpoints.values() if other.born_mac}
            endpoint = described(request, network, addresses, number, path, cookie, self._host, handed, tuned)
            held = self._ports.reserve(endpoint, request.port_ranges, bound=request.ports_bound)
            ports = endpoint = msgspec.structs.replace(endpoint, ports=held)
            check_ports(network, endpoint)
            self._journal.begin(endpoint)
            try:
                if endpoint.host_ifname:
                    reused = any(allocation.reused for allocation in allocations)
                    endpoint = await self._worker.run_brief(self._plumb, network, endpoint, fd, reused)
                    await self._forget_connections(endpoint, [])
                if self._networks.token(network.name) is not token:
                    raise NotFound(f"network {network.name} was deleted meanwhile", "create it again")
                self._journal.attached(endpoint)
            except BaseException:
                await self._worker.run(self._unplumb, endpoint)
                self._forget(endpoint)
                raise
        except BaseException:
            await self._allocator.release(network.name, [allocation.address for allocation in allocations])
            if ports is not None:
                self._ports.release(ports)
            raise
        self.admit(endpoint, time.clock_gettime_ns(time.CLOCK_BOOTTIME))
        where = ", ".join(endpoint.addresses) or "the host's address"
        what = f"{endpoint.called} has {where} on network {network.name}"
        self._happenings.add(
            "attach", what, endpoint=endpoint.id, ifname=endpoint.ifname, network=network.name
        )
        return endpoint

    async def _refuse_known(self, request: AttachRequest, number: int) -> None:
        if known := self.endpoints.get((request.id, request.ifname)):
            await self._refuse_dead(known, number)
            raise Conflict(
                f"interface {request.ifname} of container {request.id} is attached already",
                f"linkspan detach --id {request.id} --ifname {request.ifname}",
            )
        wanted = mac_text(mac(request.mac)) if request.mac else ""
        for other in self.endpoints.values():
            if number and (other.netns, other.ifname) == (number, request.ifname):
                raise Conflict(
                    f"interface {request.ifname} of this namespace is {other.called}'s, on network {other.network}",
                    "choose another --ifname, or leave it out",
                )
            if wanted and other.network == request.network and other.mac == wanted:
                raise Conflict(
                    f"MAC {wanted} is used by {other.name or other.id}", "choose another, or leave it out"
                )

    def _plumb(self, network: Network, endpoint: Endpoint, fd: int, reused: bool) -> Endpoint:
        """Put the endpoint's states (worker thread); raises the first error, after nothing is left of them."""
        machine = self._worker.machine
        if endpoint.delivered:
            self._put(network, endpoint)
            return endpoint
        machine.enter(endpoint)
        with machine.namespaces.holding(fd, endpoint.netns_cookie):
            others = routes.default_metrics(machine.sockets, endpoint.netns)
            endpoint = self.ranked(network, endpoint, others)
            self._put(network, endpoint)
            if reused and not network.routed:
                with machine.namespaces.entered(endpoint.netns):
                    gratuitous_arp.announce(
                        endpoint.ifname, mac(endpoint.mac), [p.single() for p in endpoint.prefixes]
                    )
        return endpoint

    def ranked(self, network: Network, endpoint: Endpoint, others: Iterable[int] = ()) -> Endpoint:
        """Return the endpoint with a metric behind those of its container's other interfaces, and behind ``others``."""
        first = multihoming.first_metric(network, endpoint)
        taken = [m for m in others if m < multihoming.LAST] + [mate.metric for mate in self._mates(endpoint)]
        within = [m for m in taken if (m >= multihoming.INTERNAL) == network.internal]
        return msgspec.structs.replace(endpoint, metric=max(within, default=first - 1) + 1)

    def _mates(self, endpoint: Endpoint) -> list[Endpoint]:
        return multihoming.mates(endpoint, self.endpoints.values())

    def _together(self, endpoint: Endpoint, mates: Sequence[Endpoint]) -> list[State]:
        """Return the states of the endpoint's container that follow from all its interfaces."""
        # Of a network that is gone the endpoints are about to go, too.
        homes = [(self._networks.get(e.network), e) for e in (*mates, endpoint) if self._networks.has(e)]
        return list(multihoming.container_states(homes))

    def states(self, network: Network, endpoint: Endpoint) -> dict[tuple[str, ...], list[State]]:
        """Return what should be with an endpoint as it is here, by source: its own, and its container's."""
        return {
            source(endpoint): list(backend(network.backend).endpoint(network, endpoint)),
            multihoming.source(endpoint): self._together(endpoint, self._mates(endpoint)),
        }

    def _without(self, endpoint: Endpoint) -> dict[tuple[str, ...], list[State]]:
        """Return what should be without an endpoint, by source."""
        first, *rest = self._mates(endpoint) or (None,)
        left = self._together(first, rest) if first else []
        return {multihoming.source(endpoint): left, source(endpoint): []}

    def _put(self, network: Network, endpoint: Endpoint) -> None:
        """Put the endpoint's states (worker thread); raises the first error."""
        failed = self._worker.machine.reconciler.changes(self.states(network, endpoint))
        if failed:
            raise next(iter(failed.values()))

    def _unplumb(self, endpoint: Endpoint) -> list[LinkspanError]:
        """Take the endpoint's states away (worker thread); go on past errors and return them."""
        machine = self._worker.machine
        errors = list(machine.reconciler.changes(self._without(endpoint)).values())
        machine.leave(endpoint, list(self.endpoints.values()))
        return errors

    async def _forget_connections(self, endpoint: Endpoint, addresses: Sequence[Prefix]) -> None:
        """Flush conntrack where a mapping came or went: a stale UDP entry would send datagrams past it.

        In a thread of its own: a dump walks the whole table, 9 ms and more (measured), and no attach waits for it
        but one that publishes such a port.
        """
        every = [port for one in (endpoint, *self._mates(endpoint)) for port in one.ports]
        ports = [(p.protocol, p.host_port) for p in every if p.protocol != "tcp"]
        if not ports and not addresses:
            return
        try:
            await asyncio.to_thread(conntrack.flush, ports, addresses)
        except LinkspanError as error:
            log.warning("forget connections of %s: %s", endpoint.id, error.message)

    async def detach(self, container: str, ifname: str = "", network: str = "") -> int:
        """Detach a container's interfaces (all, or one, or those of one network); returns how many there were.

        Goes on past errors, which are logged: what is left in the kernel then is no longer desired, and the
        next resync takes it away.
        """
        await self.recognise(container, ifname)
        for identity in [i for i in self._locks if i[0] == container and ifname in ("", i[1])]:
            async with self._one_at_a_time(identity):  # its ADD may be under way
                pass
        found = [
            endpoint
            for (id_, name), endpoint in self.endpoints.items()
            if id_ == container and ifname in ("", name) and network in ("", endpoint.network)
        ]
        for endpoint in found:
            async with self._one_at_a_time(endpoint.identity):
                if self.endpoints.get(endpoint.identity) is endpoint:
                    async with self._one_in(endpoint.netns):
                        await self._detach(endpoint)
        return len(found)

    async def _detach(self, endpoint: Endpoint) -> None:
        with self._logged("journal"):  # a full disk must not keep a container's network standing
            self._journal.detaching(endpoint.identity)
        if endpoint.host_ifname:
            for error in await self._worker.run_brief(self._unplumb, endpoint):
                log.warning("detach %s: %s", endpoint.id, error.message)
            if endpoint.ports or any(mate.ports for mate in self._mates(endpoint)):
                task = asyncio.create_task(self._forget_connections(endpoint, endpoint.prefixes))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        self._forget(endpoint)
        with self._logged("store"):
            await self._allocator.release(endpoint.network, endpoint.prefixes)
        self._ports.release(endpoint)
        self.endpoints.pop(endpoint.identity, None)
        self.attached_ns.pop(endpoint.identity, None)
        self.changed(endpoint.identity)
        what = f"{endpoint.called} left network {endpoint.network}"
        about = {"endpoint": endpoint.id, "ifname": endpoint.ifname, "network": endpoint.network}
        self._happenings.add("detach", what, **about)

    @contextlib.contextmanager
    def _logged(self, what: str) -> Iterator[None]:
        try:
            yield
        except Unavailable as error:
            log.warning("%s", error.within(what).message)

    def _forget(self, endpoint: Endpoint) -> None:
        """Drop the row; where the disk does not take that now, ``retry_forgetting`` does it later."""
        try:
            self._journal.forget(endpoint, now())
        except Unavailable as error:
            log.warning("forget %s: %s", endpoint.id, error.message)
            self._unforgotten.append(endpoint)

    def retry_forgetting(self) -> None:
        """Drop the rows that a full disk kept."""
        waiting, self._unforgotten = self._unforgotten, []
        for endpoint in waiting:
            if endpoint.identity not in self.endpoints:
                self._forget(endpoint)

    def checkpoint(self) -> None:
        """Keep the journal's log short; waits for the disk, so not on the loop."""
        with self._logged("journal"):
            self._journal.checkpoint()

    def admit(self, endpoint: Endpoint, at: int) -> None:
        """Count an endpoint among those that stand; ``at`` is when it was attached (CLOCK_BOOTTIME, ns)."""
        self._worker.machine.enter(endpoint)  # again: a detach from the same namespace may have come between
        self.endpoints[endpoint.identity] = endpoint
        self.attached_ns[endpoint.identity] = at
        self.changed(endpoint.identity)

    async def alter(
        self,
        identity: Identity,
        altered: Callable[[Network, Endpoint], Endpoint],
        there: tuple[type[State], ...] = (),
    ) -> Endpoint:
        """Change an endpoint that stands, from what it and its network are now; returns what it is then.

        States of the kinds ``there`` are so in the kernel already: the endpoint follows what somebody else did.
        Raises NotFound where it is gone, and the first error of the kernel, by which nothing is taken back: what
        was wanted stays desired.
        """
        async with self._one_at_a_time(identity):
            endpoint = self.endpoints.get(identity)
            if endpoint is None:
                raise NotFound(
                    f"endpoint {identity[0]} does not exist", "`linkspan endpoint list` shows them"
                )
            network = self._networks.get(endpoint.network)
            changed = altered(network, endpoint)
            if changed == endpoint:
                return endpoint
            async with self._one_in(changed.netns or endpoint.netns):
                return await self._alter(network, endpoint, changed, there)

    async def _alter(
        self, network: Network, endpoint: Endpoint, changed: Endpoint, there: tuple[type[State], ...]
    ) -> Endpoint:
        machine = self._worker.machine
        sources: dict[tuple[str, ...], list[State]] = {}
        # A runtime took its end, or gives it back. A cookie that is only learnt by now is the same namespace's.
        moved = changed.netns != endpoint.netns or endpoint.netns_cookie not in (0, changed.netns_cookie)
        if moved:
            if changed.netns:
                changed = self.ranked(network, changed)
                machine.enter(changed)
            sources = self._without(endpoint)
        sources |= self.states(network, changed)
        failed = await self._worker.run_brief(machine.reconciler.changes, sources, there)
        if moved and changed.netns == endpoint.netns:  # states as before, and another namespace, which has none of them
            look = await self._worker.run(machine.reconciler.resync, None, (changed.netns,), log=False)
            own = {state.key for states in sources.values() for state in states}
            failed = failed | {key: error for key, error in look.failed.items() if key in own}
        if moved:
            machine.leave(endpoint, list(self.endpoints.values()))
        self._journal.attached(changed)
        self.admit(changed, self.attached_ns[endpoint.identity])
        for error in failed.values():
            raise error
        return changed

    async def refresh(self, identity: Identity) -> dict[Key, LinkspanError]:
        """Put an endpoint's states as its network is now; returns what failed.

        One that is gone needs nothing. One whose pool the network has no more keeps what it has: a store that was
        restored from a backup does not know of a pool that was added since.
        """
        async with self._one_at_a_time(identity):
            endpoint = self.endpoints.get(identity)
            if endpoint is None or not endpoint.host_ifname or not self._networks.has(endpoint):
                return {}
            async with self._one_in(endpoint.netns):
                sources = self.states(self._networks.get(endpoint.network), endpoint)
                return await self._worker.run_brief(self._worker.machine.reconciler.changes, sources)

    async def check(self, endpoint: Endpoint, namespace_fd: int, hardware: str, mtu: int) -> list[str]:
        """Return what of an endpoint is not as it should be, in words; empty where all is well.

        Its interface is compared with what the caller knows of it, a MAC and an MTU; "" and 0 are not known.
        """
        network = self._networks.get(endpoint.network)
        missing = await self._worker.run(self._missing, network, endpoint, namespace_fd, hardware, mtu)
        return [f"{type(state).__name__} {describe(state)} is not as it should be" for state in missing]

    def _missing(self, network: Network, endpoint: Endpoint, fd: int, hardware: str, mtu: int) -> list[State]:
        """Compare (worker thread), by the caller's descriptor: the path may lead nowhere in our mount namespace."""
        machine = self._worker.machine
        with machine.namespaces.holding(fd) as number:
            states = []
            for state in itertools.chain.from_iterable(self.states(network, endpoint).values()):
                if isinstance(state, Interface):
                    found = machine.links.interface(number, state.name)
                    known = mac(hardware) if hardware else state.mac
                    state = msgspec.structs.replace(state, mac=known, mtu=mtu or (found or state).mtu)
                states.append(state)
            return machine.reconciler.missing(states, number)
