"""What changes at endpoints that stand: their MTU, their ports, and where a runtime took them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Sequence

import msgspec

from linkspan.cluster.leases import Leases
from linkspan.cluster.networks import Networks
from linkspan.core.addresses import mac
from linkspan.core.errors import LinkspanError, NotFound
from linkspan.core.model import ALIASES, Endpoint, Network, Port, PortRange
from linkspan.core.ports import PortTable
from linkspan.core.states.host import Interface, Key
from linkspan.endpoints.attach import Attacher, Identity
from linkspan.endpoints.build import check_ports, resized
from linkspan.kernel.io import namespaces
from linkspan.kernel.probe import conntrack
from linkspan.kernel.worker import Worker

log = logging.getLogger("linkspan.endpoints.update")


def stranded(attacher: Attacher, networks: Networks, leases: Leases) -> list[Identity]:
    """Return the endpoints whose network is gone: it was deleted by force on another host, and perhaps made anew.

    One whose address is of a block that this host has is not: a store that was restored from a backup does not know of
    a pool that was added since, and containers go on.
    """
    found = []
    for endpoint in attacher.endpoints.values():
        if networks.has(endpoint):
            continue
        if endpoint.network in networks.withheld:  # which is there, though it is not in force
            continue
        there = any(network.name == endpoint.network for network in networks.all())
        blocks = leases.blocks(endpoint.network) if there else {}
        mine = [block for block, owner in blocks.items() if owner == leases.host.id]
        if not any(block.holds(address.single()) for block in mine for address in endpoint.prefixes):
            found.append(endpoint.identity)
    return found


async def follow_mtus(attacher: Attacher, networks: Networks) -> dict[Key, LinkspanError]:
    """Give running containers the MTUs that their networks have now; returns the errors of those that failed."""
    there = {network.name: network for network in networks.all()}
    failed: dict[Key, LinkspanError] = {}
    for endpoint in list(attacher.endpoints.values()):
        network = there.get(endpoint.network)
        if endpoint.host_ifname and network and resized(network, endpoint) != endpoint:
            try:
                await attacher.alter(endpoint.identity, resized)
            except NotFound:
                continue
            except LinkspanError as error:
                what = error.within(f"set MTU {resized(network, endpoint).mtu} of {endpoint.name or endpoint.id}")
                log.warning("%s", what.message)
                failed["mtu", *endpoint.identity] = what
    return failed


async def follow_pools(attacher: Attacher, networks: Networks) -> dict[Key, LinkspanError]:
    """Give running containers routes to pools that their networks were given since; returns what failed."""
    pools = {network.name: network.pools for network in networks.all()}
    changed = {name for name, before in attacher.pools.items() if pools.get(name, before) != before}
    attacher.pools = pools
    failed: dict[Key, LinkspanError] = {}
    for identity, endpoint in list(attacher.endpoints.items()):
        if endpoint.network in changed:
            failed |= await attacher.refresh(identity)
    return failed


async def publish(
    attacher: Attacher,
    table: PortTable,
    identity: Identity,
    fixed: Sequence[Port],
    wishes: Sequence[PortRange],
) -> Endpoint:
    """Publish these ports of an endpoint, and no others.

    Raises NotFound, Invalid, Conflict or Exhausted, and nothing changes then.
    """
    before: Endpoint | None = None
    after: Endpoint | None = None

    def published(network: Network, endpoint: Endpoint) -> Endpoint:
        nonlocal before, after
        table.release(endpoint)
        bare = msgspec.structs.replace(endpoint, ports=tuple(fixed))
        try:
            check_ports(network, bare)
            changed = msgspec.structs.replace(bare, ports=table.reserve(bare, wishes))
        except BaseException:
            table.restore(endpoint)
            raise
        before, after = endpoint, changed
        return changed

    try:
        endpoint = await attacher.alter(identity, published)
    except BaseException:
        if before and after and attacher.endpoints.get(identity) == before:  # a full disk took no change
            table.release(after)
            table.restore(before)
        raise
    old = before.ports if before else ()
    stale = {(p.protocol, p.host_port) for p in (*old, *endpoint.ports) if p.protocol != "tcp"}
    if stale:
        await asyncio.to_thread(conntrack.flush, sorted(stale), [])
    return endpoint


async def taken(attacher: Attacher, worker: Worker, identity: Identity, path: str) -> bool:
    """Learn into which namespace, and as which interface, a runtime took what was delivered to it.

    False: it is not there yet. Raises NotFound where the endpoint is gone.
    """
    try:
        fd = namespaces.open_namespace(path)
    except LinkspanError:
        return False
    try:
        number = namespaces.inode(fd)
        cookie = await worker.run_brief(worker.machine.namespaces.cookie, fd)
        await attacher.make_way(number, cookie, fd, but=identity)
        wanted = attacher.endpoints[identity].mac if identity in attacher.endpoints else ""
        ifname = await worker.run_brief(_interface, worker, fd, wanted)
        if not ifname:
            return False
        place = {"ifname": ifname, "netns": number, "netns_path": path, "netns_cookie": cookie}
        await attacher.alter(identity, lambda _, endpoint: msgspec.structs.replace(endpoint, **place))
    finally:
        os.close(fd)
    return True


def has_interface(worker: Worker, path: str) -> bool:
    """Tell whether a namespace is there, and has an interface that is up, beside the loopback (worker thread)."""
    try:
        fd = namespaces.open_namespace(path)
    except LinkspanError:
        return False
    machine = worker.machine
    try:
        with machine.namespaces.holding(fd) as number:
            try:
                found = machine.links.observe(number)
                return any(isinstance(i, Interface) and i.up and i.name != "lo" for i in found)
            finally:
                machine.sockets.release()
    finally:
        os.close(fd)


def _interface(worker: Worker, fd: int, hardware: str) -> str:
    """Return the name of the interface with this MAC in an open namespace, "" until it is up (worker thread)."""
    machine = worker.machine
    with machine.namespaces.holding(fd) as number:
        try:
            found = machine.links.observe(number)
            return next(
                (i.name for i in found if isinstance(i, Interface) and i.up and hardware and i.mac == mac(hardware)),
                "",
            )
        finally:
            machine.sockets.release()


async def named(attacher: Attacher, identity: Identity, name: str, aliases: Sequence[str]) -> None:
    """Learn a container's name, and its other names on this network."""

    def with_names(_: Network, endpoint: Endpoint) -> Endpoint:
        labels = {**endpoint.labels, ALIASES: ",".join(aliases)} if aliases else endpoint.labels
        return msgspec.structs.replace(endpoint, name=name, labels=labels)

    with contextlib.suppress(NotFound):
        await attacher.alter(identity, with_names)


async def returned(attacher: Attacher, identity: Identity) -> None:
    """Learn that a runtime is about to give back what it took."""

    def back(_: Network, endpoint: Endpoint) -> Endpoint:
        return msgspec.structs.replace(
            endpoint, ifname=endpoint.delivered, netns=0, netns_path="", netns_cookie=0
        )

    with contextlib.suppress(NotFound):
        await attacher.alter(identity, back)
