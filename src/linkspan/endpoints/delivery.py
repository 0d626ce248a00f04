"""Delivery: container ends that a runtime takes out of the host's namespace, and namespaces with a dead one's inode."""

from __future__ import annotations

import contextlib
import os

import msgspec

from linkspan.core.addresses import mac
from linkspan.core.errors import LinkspanError, NotFound
from linkspan.core.model import Endpoint, Network
from linkspan.core.states.host import Interface
from linkspan.endpoints.detach import detach
from linkspan.endpoints.registry import Identity, Registry
from linkspan.endpoints.update import alter
from linkspan.kernel.io import namespaces
from linkspan.kernel.machine import Machine


async def taken(registry: Registry, identity: Identity, path: str) -> bool:
    """Find out into which namespace, and as which interface, a runtime took a delivered end.

    False: it is not there yet. Raises NotFound if the endpoint is gone.
    """
    try:
        fd = namespaces.open_namespace(path)
    except LinkspanError:
        return False
    machine = registry.worker.machine
    try:
        number = namespaces.inode(fd)
        cookie = await registry.worker.run_brief(machine.namespaces.cookie, fd)
        await make_way(registry, number, cookie, fd, but=identity)
        wanted = registry.endpoints[identity].mac if identity in registry.endpoints else ""
        ifname = await registry.worker.run_brief(_interface, machine, fd, wanted)
        if not ifname:
            return False
        place = {"ifname": ifname, "netns": number, "netns_path": path, "netns_cookie": cookie}
        await alter(registry, identity, lambda _, endpoint: msgspec.structs.replace(endpoint, **place))
    finally:
        os.close(fd)
    return True


async def make_way(registry: Registry, number: int, cookie: int, fd: int, but: Identity | None = None) -> None:
    """Detach endpoints of a dead namespace whose inode this open one has now; ``but`` not this one.

    States identify a namespace by its inode, so endpoints of two must not exist together. While the
    descriptor is open, no other namespace gets the inode: the caller keeps it open until the new endpoint is
    known.
    """
    if not cookie:  # an old kernel
        return
    machine = registry.worker.machine
    for endpoint in registry.within(number):
        if endpoint.netns_cookie == cookie or endpoint.identity == but:
            continue
        name = endpoint.host_ifname
        if not endpoint.netns_cookie and await registry.worker.run_brief(machine.links.leads_into, name, fd):
            with contextlib.suppress(NotFound):  # detached meanwhile
                await alter(registry, endpoint.identity, lambda _, e: msgspec.structs.replace(e, netns_cookie=cookie))
        else:
            await detach(registry, *endpoint.identity)
    machine.namespaces.renew(number, cookie)


def has_interface(machine: Machine, path: str) -> bool:
    """Return whether a namespace exists with an interface that is up, besides lo (worker thread)."""
    try:
        fd = namespaces.open_namespace(path)
    except LinkspanError:
        return False
    try:
        with machine.namespaces.holding(fd) as number:
            found = machine.links.observe(number)
            return any(isinstance(i, Interface) and i.up and i.name != "lo" for i in found)
    finally:
        os.close(fd)


def _interface(machine: Machine, fd: int, hardware: str) -> str:
    """Return the name of the interface with this MAC in an open namespace, "" until it is up (worker thread)."""
    with machine.namespaces.holding(fd) as number:
        found = machine.links.observe(number)
        return next(
            (i.name for i in found if isinstance(i, Interface) and i.up and hardware and i.mac == mac(hardware)), ""
        )


async def returned(registry: Registry, identity: Identity) -> None:
    """Record that a runtime is about to give back what it took."""

    def back(_: Network, endpoint: Endpoint) -> Endpoint:
        return msgspec.structs.replace(
            endpoint, ifname=endpoint.delivered, netns=0, netns_path="", netns_cookie=0
        )

    with contextlib.suppress(NotFound):
        await alter(registry, identity, back)
