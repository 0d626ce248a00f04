"""Update an endpoint: its MTU, its ports, its routes, its names and labels; and what follows for it from networks."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence

import msgspec

from linkspan.cluster.exact_claims import IDENTITY
from linkspan.cluster.hosts import Hosts
from linkspan.cluster.leases import Leases
from linkspan.core import bandwidth
from linkspan.core.errors import Invalid, LinkspanError, NotFound
from linkspan.core.model import ALIASES, Endpoint, Network, Port, PortRange
from linkspan.core.ports import spelled
from linkspan.core.states.host import Key, State
from linkspan.endpoints.build import check_ports, check_size, resized
from linkspan.endpoints.registry import Identity, Registry
from linkspan.kernel.probe import conntrack

log = logging.getLogger("linkspan.endpoints.update")


async def alter(
    registry: Registry,
    identity: Identity,
    altered: Callable[[Network, Endpoint], Endpoint],
    there: tuple[type[State], ...] = (),
) -> Endpoint:
    """Change an endpoint, given its present value and its network; return the new value.

    States of the kinds ``there`` are in the kernel already: the endpoint follows what somebody else did.
    Raises NotFound if it is gone, and the kernel's first error. An error takes nothing back: the new states
    stay desired.
    """
    async with _standing(registry, identity) as (network, endpoint):
        return await _changed(registry, network, endpoint, altered(network, endpoint), there)


@contextlib.asynccontextmanager
async def _standing(registry: Registry, identity: Identity) -> AsyncIterator[tuple[Network, Endpoint]]:
    """Yield an endpoint and its network while no other operation changes it. Raises NotFound if it is gone."""
    async with registry.one_at_a_time(identity):
        endpoint = registry.endpoints.get(identity)
        if endpoint is None:
            raise NotFound(f"endpoint {identity[0]} does not exist", "`linkspan endpoint list` shows them")
        yield registry.networks.get(endpoint.network), endpoint


async def _changed(
    registry: Registry, network: Network, endpoint: Endpoint, changed: Endpoint, there: tuple[type[State], ...] = ()
) -> Endpoint:
    """Set an endpoint to ``changed``, while no other operation changes it; as ``alter``."""
    if changed == endpoint:
        return endpoint
    async with registry.one_in(changed.netns or endpoint.netns):
        return await _alter(registry, network, endpoint, changed, there)


async def _alter(
    registry: Registry,
    network: Network,
    endpoint: Endpoint,
    changed: Endpoint,
    there: tuple[type[State], ...],
) -> Endpoint:
    machine = registry.worker.machine
    sources: dict[tuple[str, ...], list[State]] = {}
    # A runtime took its end, or gives it back. A cookie that is learnt only now belongs to the same
    # namespace.
    moved = changed.netns != endpoint.netns or endpoint.netns_cookie not in (0, changed.netns_cookie)
    if moved:
        if changed.netns:
            changed = registry.ranked(network, changed)
            machine.enter(changed)
        sources = registry.without(endpoint)
    sources |= registry.states(network, changed)
    failed = await registry.worker.run_brief(machine.reconciler.changes, sources, there)
    if moved and changed.netns == endpoint.netns:  # states as before, and another namespace, which has none of them
        look = await registry.worker.run(machine.reconciler.resync, None, (changed.netns,), log=False)
        own = {state.key for states in sources.values() for state in states}
        failed = failed | {key: error for key, error in look.failed.items() if key in own}
    if changed.netns != endpoint.netns:  # else the way leads into its present namespace
        machine.leave(endpoint, registry.within(endpoint.netns))
    registry.journal.attached(changed)
    registry.admit(changed, registry.attached_ns[endpoint.identity])
    for error in failed.values():
        raise error
    return changed


async def refresh(registry: Registry, identity: Identity) -> dict[Key, LinkspanError]:
    """Apply an endpoint's states for its present network; return the errors.

    An endpoint that is gone needs nothing. If the network no longer has its pool, the endpoint keeps its
    states: a store restored from a backup does not have pools that were added since.
    """
    async with registry.one_at_a_time(identity):
        endpoint = registry.endpoints.get(identity)
        if endpoint is None or not endpoint.host_ifname or not registry.networks.has(endpoint):
            return {}
        async with registry.one_in(endpoint.netns):
            sources = registry.states(registry.networks.get(endpoint.network), endpoint)
            return await registry.worker.run_brief(registry.worker.machine.reconciler.changes, sources)


def stranded(registry: Registry, hosts: Hosts, leases: Leases) -> list[Identity]:
    """Return the endpoints whose network another host deleted by force, and perhaps created again.

    An endpoint with an address in one of this host's blocks is not among them: a store restored from a backup
    does not have pools that were added since, and containers keep running.
    """
    found, networks = [], registry.networks
    for endpoint in registry.endpoints.values():
        if networks.has(endpoint):
            continue
        if endpoint.network in networks.withheld:  # which exists, though it is not in force
            continue
        there = any(network.name == endpoint.network for network in networks.all())
        blocks = leases.blocks(endpoint.network) if there else {}
        mine = [block for block, owner in blocks.items() if owner == hosts.here.id]
        if not any(block.holds(address.single()) for block in mine for address in endpoint.prefixes):
            found.append(endpoint.identity)
    return found


async def follow_mtus(registry: Registry) -> dict[Key, LinkspanError]:
    """Give running containers the present MTUs of their networks; return the errors."""
    there = {network.name: network for network in registry.networks.all()}
    failed: dict[Key, LinkspanError] = {}
    for endpoint in list(registry.endpoints.values()):
        network = there.get(endpoint.network)
        if endpoint.host_ifname and network and resized(network, endpoint) != endpoint:
            try:
                await alter(registry, endpoint.identity, resized)
            except NotFound:
                continue
            except LinkspanError as error:
                what = error.within(f"set MTU {resized(network, endpoint).mtu} of {endpoint.name or endpoint.id}")
                log.warning("%s", what.message)
                failed["mtu", *endpoint.identity] = what
    return failed


async def follow_pools(registry: Registry) -> dict[Key, LinkspanError]:
    """Give running containers routes to pools that were added to their networks; return the errors."""
    changed = registry.changed_pools()
    failed: dict[Key, LinkspanError] = {}
    for identity, endpoint in list(registry.endpoints.items()):
        if endpoint.network in changed:
            failed |= await refresh(registry, identity)
    return failed


async def publish(
    registry: Registry, identity: Identity, fixed: Sequence[Port], wishes: Sequence[PortRange]
) -> Endpoint:
    """Publish exactly these ports of an endpoint.

    Raises NotFound, Invalid, Conflict or Exhausted, and then changes nothing.
    """
    async with _standing(registry, identity) as (network, before):
        bare = msgspec.structs.replace(before, ports=tuple(map(spelled, fixed)))
        check_ports(network, bare)
        check_size(bare.labels, bare.ports)
        ports = await registry.ports.reserve(bare, map(spelled, wishes), instead=before)
        after = msgspec.structs.replace(bare, ports=ports)
        try:
            endpoint = await _changed(registry, network, before, after)
        except BaseException:
            if registry.endpoints.get(identity) == before:  # the disk was full, and the change was not made
                registry.ports.release(after)
                registry.ports.restore(before)
            raise
    stale = {(p.protocol, p.host_port) for p in (*before.ports, *endpoint.ports) if p.protocol != "tcp"}
    if stale:
        await asyncio.to_thread(conntrack.flush, sorted(stale), [])
    return endpoint


FIXED = (IDENTITY, "linkspan.runtime", "linkspan.from")
"""Labels that do not change while an endpoint exists: its addresses follow from the first, its owner from the second,
and who may come in by its published ports from the third (Docker's)."""


def labels_of_user(given: Mapping[str, str]) -> dict[str, str]:
    """Return the labels that an engine has of a container, without those that linkspan itself sets on an endpoint."""
    return {key: value for key, value in given.items() if key not in (ALIASES, *FIXED)}


async def relabel(
    registry: Registry, identity: Identity, given: Mapping[str, str], removed: Collection[str]
) -> Endpoint:
    """Set labels of an endpoint and remove others. Raises NotFound if it is gone, and Invalid for a fixed label."""
    if fixed := [key for key in (*given, *removed) if key in FIXED]:
        raise Invalid(f"label {fixed[0]} of an attached container cannot change", "attach it again with another one")

    def with_labels(_: Network, endpoint: Endpoint) -> Endpoint:
        kept = {key: value for key, value in endpoint.labels.items() if key not in removed}
        labels = {**kept, **given}
        check_size(labels, endpoint.ports)
        limits = bandwidth.followed(endpoint.labels, labels, endpoint.bandwidth)
        if limits is not None and not endpoint.host_ifname:
            raise Invalid(
                f"{endpoint.called} shares the host's interfaces, which linkspan does not limit",
                f"leave label {bandwidth.LABEL} out",
            )
        return msgspec.structs.replace(endpoint, labels=labels, bandwidth=limits)

    return await alter(registry, identity, with_labels)


async def named(
    registry: Registry, identity: Identity, name: str, aliases: Sequence[str], given: Mapping[str, str]
) -> None:
    """Store a container's name, its other names on this network, and the labels that its engine has of it.

    Labels that no record can take are left out, with a warning. A label with limits that are none changes nothing, and
    `linkspan events` says so, because the engine's user gets no answer.
    """

    def with_names(_: Network, endpoint: Endpoint) -> Endpoint:
        known = {**endpoint.labels, ALIASES: ",".join(aliases)} if aliases else endpoint.labels
        labels = {**known, **labels_of_user(given)}
        limits = endpoint.bandwidth
        try:
            check_size(labels, endpoint.ports)
        except Invalid as error:
            log.warning("labels of %s are left out: %s", name, error.message)
            labels = known
        try:
            limits = bandwidth.followed(endpoint.labels, labels, limits)
        except Invalid as error:
            log.warning("%s is not limited as its label says: %s", name, error.message)
            what = f"{name} is not limited as its label says: {error.told}"
            registry.event_log.add("network", what, endpoint=identity[0], network=endpoint.network)
        return msgspec.structs.replace(endpoint, name=name, labels=labels, bandwidth=limits)

    with contextlib.suppress(NotFound):
        await alter(registry, identity, with_names)
