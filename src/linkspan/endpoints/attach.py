"""Attach: the hot path.

Allocate from memory, write the intent to the journal, apply this endpoint's few states in the worker thread,
write the result, answer. If the agent is killed at any point, the next agent finds the row. An endpoint that
was being attached is not desired, so the first resync removes what exists of it, and releases its address.
The attach starts no process. It waits for the store only if it claims something there: an exact address, or a block.
The first attach to a network on this host claims the host's first block, before it takes any lock
(`cluster/participation.py`).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping

import msgspec

from linkspan.core.addresses import mac
from linkspan.core.clock import now
from linkspan.core.errors import Conflict, Invalid, KernelError, LinkspanError, NotFound
from linkspan.core.model import AttachRequest, Endpoint, Network
from linkspan.core.states.host import HOST, State
from linkspan.endpoints.build import check_ports, checked, described, resized
from linkspan.endpoints.delivery import make_way
from linkspan.endpoints.detach import forget_connections, unplumb
from linkspan.endpoints.registry import Mates, Registry, holds_mac
from linkspan.endpoints.rename import recognise
from linkspan.endpoints.update import alter
from linkspan.kernel.drivers import routes
from linkspan.kernel.io import namespaces
from linkspan.kernel.machine import Machine
from linkspan.kernel.probe import gratuitous_arp


class Place(msgspec.Struct, frozen=True):
    """The place of an endpoint: its namespace by inode, cookie and descriptor, and a path of it.

    ``fd`` stays the caller's; -1 if there is none. If the container's end is ``delivered``, it is put into
    the host's namespace, from which the runtime takes it.
    """

    number: int
    cookie: int
    fd: int
    path: str
    delivered: bool


async def attach(
    registry: Registry, request: AttachRequest, namespace_fd: int, namespace_path: str, delivered: bool = False
) -> Endpoint:
    """Attach a container's namespace (or, to a network of backend host, only its ports) to a network.

    ``namespace_fd`` stays the caller's; -1 if there is none. With ``delivered`` the container's end is put
    into the host's namespace, as ``request.ifname``, from which the runtime takes it. Raises LinkspanError,
    and then nothing is left of the attempt.
    """
    with registry.counted("attach"):
        return await _attach(registry, request, namespace_fd, namespace_path, delivered)


async def _attach(
    registry: Registry, request: AttachRequest, namespace_fd: int, namespace_path: str, delivered: bool
) -> Endpoint:
    network = registry.networks.get(request.network)
    request = checked(request)
    await recognise(registry, request.id, request.ifname)
    machine = registry.worker.machine
    on_host = network.on_host
    if on_host and namespace_fd >= 0 and namespaces.inode(namespace_fd) != machine.namespaces.home:
        raise Invalid(
            f"{request.name or request.id} has a network namespace of its own",
            f"network {network.name} is for containers that share the host's: choose another network",
        )
    if on_host and request.bandwidth is not None:
        raise Invalid(
            f"network {network.name} shares the host's interfaces, which linkspan does not limit",
            "leave the bandwidth out, or choose another network",
        )
    number = 0 if on_host or delivered else _checked_namespace(registry, namespace_fd)
    cookie = 0
    try:
        if number:
            cookie = await registry.worker.run_brief(machine.namespaces.cookie, namespace_fd)
            await make_way(registry, number, cookie, namespace_fd)
        place = Place(number, cookie, namespace_fd, namespace_path, delivered)
        await registry.prepare(network)
        if request.ifname:
            return await _attach_one(registry, request, place)
        async with registry.one_at_a_time((request.id, "")):  # two callers that ask for the next free name get two
            await _refuse_again(registry, request, number)
            inside = await registry.worker.run_brief(_names_inside, machine, namespace_fd)
            taken = inside | registry.names(request.id)  # no pause from here until it has its name
            name = next(name for name in (f"eth{n}" for n in range(65536)) if name not in taken)
            return await _attach_one(registry, msgspec.structs.replace(request, ifname=name), place)
    except LinkspanError as error:
        raise error.within(f"attach {request.name or request.id} to {network.name}") from error


async def _refuse_again(registry: Registry, request: AttachRequest, number: int) -> None:
    """Refuse a second interface on one network without a name: a repeated command does not mean two interfaces."""
    for endpoint in list(registry.endpoints.values()):
        same = endpoint.netns and (endpoint.id == request.id or endpoint.netns == number)
        if same and endpoint.network == request.network:
            await _refuse_dead(registry, endpoint, number)
            raise Conflict(
                f"container {endpoint.called} is attached already, by {endpoint.ifname}",
                "give --ifname for one more interface on this network, or detach it first",
            )


async def _refuse_dead(registry: Registry, endpoint: Endpoint, number: int) -> None:
    """Report the conflict with an endpoint in a namespace that is gone, if it blocks the open namespace's endpoint."""
    worker = registry.worker
    if endpoint.netns not in (0, number) and not await worker.run(worker.machine.alive, endpoint):
        raise Conflict(
            f"{endpoint.ifname} of container {endpoint.id} is still attached, in a network namespace that is gone",
            f"linkspan detach --id {endpoint.id} --ifname {endpoint.ifname}, or wait until the agent detaches it",
        )


async def _attach_one(registry: Registry, request: AttachRequest, place: Place) -> Endpoint:
    async with registry.one_at_a_time((request.id, request.ifname)):
        network = registry.networks.get(request.network)  # read it again: it may have been recreated
        async with registry.one_in(place.number), _one_with(registry, request):
            endpoint = await _attach_alone(registry, request, network, place)
    now_ = registry.networks.get(network.name)
    if endpoint.host_ifname and now_.mtus != network.mtus:  # its migration may have started or ended meanwhile
        return await alter(registry, endpoint.identity, resized)
    return registry.endpoints.get(endpoint.identity, endpoint)


def _one_with(registry: Registry, request: AttachRequest) -> contextlib.AbstractAsyncContextManager[None]:
    """Serialise requests for the same MAC, in any network, so that the second of two sees the first."""
    if not request.mac:
        return contextlib.nullcontext()
    return registry.one_at_a_time(("/mac", request.mac))


def _checked_namespace(registry: Registry, fd: int) -> int:
    if fd < 0:
        raise Invalid("no network namespace was given", "name the container's namespace, for example netns:NAME")
    number = namespaces.inode(fd)
    if number == registry.worker.machine.namespaces.home:
        raise Invalid(
            "the network namespace is the host's own",
            "a container on the host's network needs a network of --backend host",
        )
    return number


def _names_inside(machine: Machine, fd: int) -> set[str]:
    """Return the names of all interfaces in a namespace; none if there is no descriptor (worker thread)."""
    if fd < 0:
        return set()
    with machine.namespaces.holding(fd) as number:
        return set(machine.sockets.names(number).values())


async def _attach_alone(
    registry: Registry, request: AttachRequest, network: Network, place: Place
) -> Endpoint:
    """Attach while no other operation runs on this endpoint or in its namespace."""
    await _refuse_known(registry, request, place.number)
    token, begun = registry.networks.token(network.name), now()
    async with contextlib.AsyncExitStack() as undo:  # in reverse order, and whatever becomes of one step
        allocations = await registry.allocator.allocate(network, request)
        addresses = [allocation.address for allocation in allocations]
        undo.push_async_callback(registry.allocator.release, network.name, addresses)
        handed = request.ifname if place.delivered else ""
        tuned = {other.mac for other in registry.endpoints.values() if other.born_mac}
        number, path, cookie = place.number, place.path, place.cookie
        endpoint = described(request, network, addresses, number, path, cookie, registry.host, handed, tuned)
        held = await registry.ports.reserve(endpoint, request.port_ranges, bound=request.ports_bound)
        endpoint = msgspec.structs.replace(endpoint, ports=held)
        undo.callback(registry.ports.release, endpoint)
        check_ports(network, endpoint)
        registry.journal.begin(endpoint)
        undo.callback(registry.forget, endpoint)
        undo.push_async_callback(unplumb, registry, endpoint)
        if endpoint.host_ifname:
            reused = any(allocation.reused for allocation in allocations)
            machine, mates = registry.worker.machine, registry.mates(endpoint)
            endpoint = await registry.worker.run_brief(_plumb, machine, mates, network, endpoint, place.fd, reused)
            await forget_connections(registry, endpoint, [])
        elif endpoint.ports:
            states = registry.states(network, endpoint)
            await registry.worker.run_brief(_put, registry.worker.machine, states)
            if endpoint.limited:
                await forget_connections(registry, endpoint, [])  # `from=` decides on a flow's first packet only
        if registry.networks.token(network.name) is not token:
            raise NotFound(f"network {network.name} was deleted meanwhile", "create it again")
        registry.allocator.readiness.confirm(network, begun)
        registry.journal.attached(endpoint)
        undo.pop_all()
    registry.admit(endpoint, time.clock_gettime_ns(time.CLOCK_BOOTTIME))
    where = ", ".join(endpoint.addresses) or "the host's address"
    what = f"{endpoint.called} has {where} on network {network.name}"
    about = {"endpoint": endpoint.id, "ifname": endpoint.ifname, "network": network.name}
    registry.event_log.add("attach", what, **about)
    return endpoint


async def _refuse_known(registry: Registry, request: AttachRequest, number: int) -> None:
    if known := registry.endpoints.get((request.id, request.ifname)):
        await _refuse_dead(registry, known, number)
        raise Conflict(
            f"interface {request.ifname} of container {request.id} is attached already",
            f"linkspan detach --id {request.id} --ifname {request.ifname}",
        )
    for other in registry.within(number):
        if other.ifname == request.ifname:
            raise Conflict(
                f"interface {request.ifname} of this namespace is {other.called}'s, on network {other.network}",
                "choose another --ifname, or leave it out",
            )
    for other in registry.endpoints.values() if request.mac else ():
        if holds_mac(other, registry.networks.get(request.network), request.mac):
            raise Conflict(f"MAC {request.mac} is used by {other.name or other.id}", "choose another, or leave it out")


def _plumb(
    machine: Machine, mates: Mates, network: Network, endpoint: Endpoint, fd: int, reused: bool
) -> Endpoint:
    """Put the endpoint's states (worker thread); on an error remove them again, and raise the first error."""
    if endpoint.delivered:
        _put(machine, mates.states(network, endpoint))
        return endpoint
    machine.enter(endpoint)
    with machine.namespaces.holding(fd, endpoint.netns_cookie):
        others = routes.default_metrics(machine.sockets, endpoint.netns)
        endpoint = mates.ranked(network, endpoint, others)
        try:
            _put(machine, mates.states(network, endpoint))
        except LinkspanError as error:
            raise _explained(machine, endpoint, error) from error
        if reused and not network.routed:
            with machine.namespaces.entered(endpoint.netns):
                gratuitous_arp.announce(endpoint.ifname, mac(endpoint.mac), [p.single() for p in endpoint.prefixes])
    return endpoint


def _explained(machine: Machine, endpoint: Endpoint, error: LinkspanError) -> LinkspanError:
    """Return the cause of an error, if that is the end of the namespace during the attach (worker thread).

    The kernel removes the pair with the namespace. What is put on the pair then fails first.
    """
    if not isinstance(error, NotFound | KernelError):
        return error
    if endpoint.host_ifname in machine.sockets.names(HOST).values() or machine.alive(endpoint):
        return error
    return NotFound(
        f"the container's network namespace {endpoint.netns} is gone: it ended during the attach",
        "start the container again, or make its namespace again, and repeat the attach",
    )


def _put(machine: Machine, sources: Mapping[tuple[str, ...], list[State]]) -> None:
    """Put an endpoint's states (worker thread); raises the first error."""
    for error in machine.reconciler.changes(sources).values():
        raise error
