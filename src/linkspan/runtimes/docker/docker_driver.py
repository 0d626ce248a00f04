"""Docker: the remote network and IPAM drivers, by which `docker run --network` uses a linkspan network.

The engine asks for an address before the endpoint is known. The address is held in memory until
CreateEndpoint names it; from then on the journal's row of the endpoint has it. If the engine forgets an
address in between, it is released after a while. (Pools come before their networks, too: docker_pools.)

The engine moves the container's end into the container and sets it up itself. So the pair is made with that
end in the host's namespace (`Endpoint.delivered`), and the agent finds out afterwards where it went, for
`trace` and `address check`.

A restarted engine does not announce its networks again, so they are kept in a file. Every call may come
twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from pathlib import Path

import msgspec

from linkspan.backends import bridge
from linkspan.core.addresses import Prefix, prefix
from linkspan.core.errors import Conflict, Invalid, LinkspanError, NotFound, Unavailable
from linkspan.core.model import AttachRequest, Endpoint, Network
from linkspan.core.ports import limited
from linkspan.core.supervise import lasting
from linkspan.endpoints import attach, delivery, detach, rename, update
from linkspan.endpoints.registry import Registry
from linkspan.kernel.io.durable_files import Memory
from linkspan.runtimes import wishes
from linkspan.runtimes.base import Service
from linkspan.runtimes.docker.docker_engine import Engine, Listed
from linkspan.runtimes.docker.docker_networks import AGAIN, DockerNetworks
from linkspan.runtimes.docker.docker_pools import DockerNetwork, Pools
from linkspan.runtimes.docker.docker_types import (
    ADDRESS_TYPE,
    FROM,
    GATEWAY,
    IFNAME,
    IPAM_DRIVER,
    NETWORK_DRIVER,
    NETWORK_OPTIONS,
    SPACE,
    Call,
    Interface,
    decoded,
    ports,
    sources,
)

log = logging.getLogger("linkspan.docker")

HOLDER = ("docker", "pending")
"""The identity that holds an address until then."""
STARTING = "a container that Docker starts on this host"
HELD = 60.0
"""Seconds for which an address is kept between RequestAddress and CreateEndpoint, which follow at once."""
PATIENCE = 5.0
"""Seconds for requests to the engine while it waits for our answer."""
TAKEN = (0.05, 600)
"""Seconds between attempts to find a container's namespace, and their number: a container starts within 30 s,
or not at all."""

Answer = Mapping[str, object]


class Docker(Service):
    """Both drivers."""

    def __init__(self, registry: Registry, api: str, record: Path) -> None:
        """Take ``api``, the engine's own socket, and ``record``, the file that remembers its networks."""
        self._registry = registry
        self._worker = registry.worker
        self._allocator = registry.allocator
        self._ours = registry.networks
        self._ports = registry.ports
        self._event_log = registry.event_log
        self._engine = Engine(api)
        self.exposed = DockerNetworks(self._ours, self._engine, self._lives)
        self._networks: Memory[DockerNetwork] = Memory(record, DockerNetwork)
        self._pools = Pools(self._ours, self._networks)
        self._held: dict[tuple[str, str], asyncio.TimerHandle] = {}
        self._unpublished: dict[str, str] = {}
        """Ports that a container wants, as text, by its endpoint's id in an internal network."""
        self._naming = asyncio.Lock()
        """Lets one task at a time read and store a name: an older name must not come last."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._verbs: dict[str, Callable[[Call], Awaitable[Answer]]] = {
            f"{NETWORK_DRIVER}.CreateNetwork": self._create_network,
            f"{NETWORK_DRIVER}.DeleteNetwork": self._delete_network,
            f"{NETWORK_DRIVER}.CreateEndpoint": self._create_endpoint,
            f"{NETWORK_DRIVER}.DeleteEndpoint": self._delete_endpoint,
            f"{NETWORK_DRIVER}.EndpointOperInfo": self._tell_endpoint,
            f"{NETWORK_DRIVER}.Join": self._join,
            f"{NETWORK_DRIVER}.Leave": self._leave,
            f"{NETWORK_DRIVER}.ProgramExternalConnectivity": self._publish,
            f"{NETWORK_DRIVER}.RevokeExternalConnectivity": self._withdraw,
            f"{IPAM_DRIVER}.RequestPool": self._request_pool,
            f"{IPAM_DRIVER}.RequestAddress": self._request_address,
            f"{IPAM_DRIVER}.ReleaseAddress": self._release_address,
        }
        self._constant: dict[str, Answer] = {
            "Plugin.Activate": {"Implements": [NETWORK_DRIVER, IPAM_DRIVER]},
            f"{NETWORK_DRIVER}.GetCapabilities": {"Scope": "local", "ConnectivityScope": "global"},
            f"{NETWORK_DRIVER}.DiscoverNew": {},
            f"{NETWORK_DRIVER}.DiscoverDelete": {},
            f"{IPAM_DRIVER}.GetCapabilities": {"RequiresMACAddress": False, "RequiresRequestReplay": False},
            f"{IPAM_DRIVER}.GetDefaultAddressSpaces": {
                "LocalDefaultAddressSpace": SPACE,
                "GlobalDefaultAddressSpace": SPACE,
            },
            f"{IPAM_DRIVER}.ReleasePool": {},
        }

    @property
    def problems(self) -> Iterable[str]:
        """Yield what the engine refuses of the exposed networks."""
        yield from self.exposed.problems.values()
        if self.exposed.retired:
            yield "`linkspan uninstall` has begun: no networks are made in Docker until the agent starts again"

    async def start(self) -> None:
        """Start to keep the engine's networks equal to the exposed ones, and to follow containers' names."""
        self.exposed.start()
        if self._engine.socket:
            self._tasks.add(lasting("following Docker's container names", self._follow_names))

    async def stop(self) -> None:
        """Stop that, and stop waiting for containers to start."""
        await self.exposed.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for timer in self._held.values():
            timer.cancel()

    async def retire(self) -> None:
        """Leave the engine's networks alone: `uninstall` removes those that are exposed."""
        await self.exposed.retire()

    def look(self) -> None:
        """Compare the engine's networks soon."""
        self.exposed.look()

    async def answer(self, path: str, body: bytes, pid: int, uid: int) -> tuple[int, bytes]:  # noqa: ARG002 - root's
        """Answer a call of the engine. An error is a field of the answer; only an unknown verb has another status."""
        verb = path.removeprefix("/")
        try:
            answer = await self.call(verb, decoded(body, pid))
        except LinkspanError as error:
            answer = _failure(verb, f"linkspan: {error.told}")
        except Exception:  # the engine repeats a call that has no answer for half a minute
            log.exception("Docker's %s failed because of a defect in linkspan", verb)
            answer = _failure(verb, "linkspan: the agent failed; its log has the details")
        return (404, b"") if answer is None else (200, msgspec.json.encode(answer))

    async def call(self, verb: str, call: Call) -> Answer | None:
        """Answer a call of the engine; None: the verb does not exist. Raises LinkspanError."""
        if verb in self._constant:
            return self._constant[verb]
        known = self._verbs.get(verb)
        if call.endpoint_id:
            await rename.recognise(self._registry, call.endpoint_id)
        return None if known is None else await known(call)

    # ---- networks

    async def _create_network(self, call: Call) -> Answer:
        if unknown := sorted(set(call.options or {}) - NETWORK_OPTIONS):
            raise Invalid(f"option {', '.join(unknown)} is unknown to driver linkspan", "create the network without it")
        options = call.chosen
        name = options.pop("network", "")
        wishes.check_options(options)
        if not call.pools or any(pool.address_space != SPACE for pool in call.pools):
            raise Invalid(
                "driver linkspan needs its own IPAM driver",
                f"docker network create -d linkspan --ipam-driver linkspan -o network={name or 'NAME'} NAME",
            )
        ids = [self._pools.id_of(pool.pool, pool.gateway) for pool in call.pools]
        of_pools = set(filter(None, map(self._pools.named, ids)))
        name = name or next(iter(of_pools), "")
        if not name:
            raise Invalid(
                "the name of the linkspan network is missing",
                "docker network create -d linkspan --ipam-driver linkspan -o network=NAME NAME",
            )
        network = self._ours.get(name)
        if of_pools - {name}:
            raise Conflict(
                f"the subnet is of linkspan network {(of_pools - {name}).pop()}, and not of {name}",
                f"its pools: {', '.join(network.pools)}",
            )
        if network.on_host:
            raise Invalid(f"network {name} shares the host's network", "docker run --network host does that")
        _check_wishes(network, call)
        self._networks.entries[call.network_id] = DockerNetwork(name, tuple(ids))
        self._networks.save()
        return {}

    async def _delete_network(self, call: Call) -> Answer:
        if self._networks.entries.pop(call.network_id, None) is not None:
            self._networks.save()
        return {}

    def _known(self, network_id: str) -> Network:
        found = self._networks.entries.get(network_id)
        if found is None:
            raise NotFound(
                f"Docker's network {network_id[:12]} is not known to linkspan",
                "remove it and create it again: docker network rm, docker network create",
            )
        return self._ours.get(found.network)

    # ---- addresses

    async def _request_pool(self, call: Call) -> Answer:
        return self._pools.requested(call)

    async def _request_address(self, call: Call) -> Answer:
        if (call.options or {}).get(ADDRESS_TYPE) == GATEWAY:  # the user gave it by --gateway
            raise Invalid(
                f"the gateway {call.address} cannot be chosen here",
                "leave --gateway out: the linkspan network has one",
            )
        name, family = self._pools.network_of(call.pool_id)
        network = self._ours.get(name)
        ips = (call.address,) if call.address else ()
        wish = AttachRequest(id=HOLDER[0], ifname=HOLDER[1], name=STARTING, network=name, ips=ips)
        await self._allocator.take_part(network)
        given = await self._allocator.allocate(network, wish, families=(family,))
        if not given:  # the engine asks for no family that CreateNetwork has refused
            raise Invalid(f"network {name} has no pool of IPv{family}", "remove Docker's network and create it again")
        address = given[0].address
        self._held[name, address.address] = asyncio.get_running_loop().call_later(
            HELD, self._forgotten, name, address
        )
        return {"Address": str(_with_length(network, address))}

    def _forgotten(self, name: str, address: Prefix) -> None:
        if self._held.pop((name, address.address), None):
            self._begin(self._allocator.release(name, [address]))

    def waits(self, identity: tuple[str, str]) -> bool:
        """Return whether addresses are held by this identity for future endpoints."""
        return identity == HOLDER and bool(self._held)

    async def _release_address(self, call: Call) -> Answer:
        """Release an address that no endpoint took; an endpoint's own was released with it."""
        try:
            name, _ = self._pools.network_of(call.pool_id)
        except NotFound:
            return {}
        address = prefix(call.address).single()
        if timer := self._held.pop((name, address.address), None):
            timer.cancel()
            await self._allocator.release(name, [address])
        return {}

    # ---- endpoints

    async def _create_endpoint(self, call: Call) -> Answer:
        network, given = self._known(call.network_id), call.interface or Interface()
        cidrs, options = sources(call.options), (call.options or {}).items()
        own = {k: v for k, v in options if k == IFNAME or not k.startswith("com.docker.")}
        own.pop(FROM, None)
        limits = wishes.limits(own)
        if network.internal and (wanted := ports(call.options)) != ((), ()):
            self._unpublished[call.endpoint_id] = ", ".join(f"{p.port}/{p.protocol}" for some in wanted for p in some)
        end = delivered(call.endpoint_id)
        known = self._registry.endpoints.get((call.endpoint_id, end))
        if known is None:
            ips = [prefix(a).single() for a in (given.address, given.address_ipv6) if a]
            for address in ips:  # from here on the endpoint's row has it
                if timer := self._held.pop((network.name, address.address), None):
                    timer.cancel()
                    await self._allocator.release(network.name, [address])
            request = AttachRequest(
                id=call.endpoint_id,
                network=network.name,
                ifname=end,
                ips=tuple(address.address for address in ips),
                mac=given.mac_address,
                labels={FROM: ",".join(cidrs)} if cidrs else {},
                bandwidth=limits,
                engine="docker",
            )
            known = await attach.attach(self._registry, request, -1, "", delivered=True)
        return {"Interface": _missing(given, network, known)}

    async def _delete_endpoint(self, call: Call) -> Answer:
        self._unpublished.pop(call.endpoint_id, None)
        await detach.detach(self._registry, call.endpoint_id)
        return {}

    async def _lives(self, endpoint_id: str) -> bool:
        await rename.recognise(self._registry, endpoint_id)
        return (endpoint_id, delivered(endpoint_id)) in self._registry.endpoints

    def _endpoint(self, call: Call) -> Endpoint:
        found = self._registry.endpoints.get((call.endpoint_id, delivered(call.endpoint_id)))
        if found is None:
            raise NotFound(f"endpoint {call.endpoint_id[:12]} is not known", "start the container again")
        return found

    async def _tell_endpoint(self, call: Call) -> Answer:
        self._endpoint(call)
        return {"Value": {}}

    async def _join(self, call: Call) -> Answer:
        network, endpoint = self._known(call.network_id), self._endpoint(call)
        namespace = f"/proc/{call.pid}/root{call.sandbox_key}"
        if endpoint.id in self._unpublished and await self._has_internal_only(call.network_id, namespace):
            raise Invalid(
                f"network {network.name} is internal, so port {self._unpublished[endpoint.id]} is not published",
                "leave -p out, or give the container a network that is not internal, too",
            )
        self._begin(self._follow(endpoint.identity, call.network_id, namespace))
        gateways = {family: gateway.address for family, gateway in bridge.gateways(network, endpoint).items()}
        # The engine gives the default route to one of those of a container's networks that have a gateway.
        default = {} if network.internal else gateways
        return {
            "InterfaceName": {"SrcName": endpoint.delivered, "DstPrefix": "eth"},
            "Gateway": default.get(4, ""),
            "GatewayIPv6": default.get(6, ""),
            "StaticRoutes": _static_routes(network, endpoint, gateways),
            "DisableGatewayService": network.internal,
        }

    async def _has_internal_only(self, network_id: str, namespace: str) -> bool:
        """Return whether a container that joins an internal network certainly has no network that publishes ports.

        Docker gives a container's ports to each of its networks, but no container's name to a driver. So the
        question is whether a container that may be starting has another network, also one that it joins
        later. (Its namespace has no interface yet, or Docker makes it only after Join; a running container
        that joins one more network has another namespace.) In doubt the answer is False, and
        `_tell_unpublished` reports it afterwards.
        """
        machine = self._worker.machine
        if not self._engine.socket or await self._worker.run_brief(delivery.has_interface, machine, namespace):
            return False
        try:
            async with asyncio.timeout(PATIENCE):
                named = {known.id: known.name for known in await self._engine.networks()}
                every = await self._engine.containers()
        except (Unavailable, TimeoutError):
            return False
        internal = {name for id_, name in named.items() if self._is_internal(id_)}
        return starts_within(named.get(network_id, ""), internal, every)

    def _is_internal(self, network_id: str) -> bool:
        """Return whether a network of the engine is an internal one of ours."""
        found = self._networks.entries.get(network_id)
        return found is not None and any(n.name == found.network and n.internal for n in self._ours.all())

    async def _leave(self, call: Call) -> Answer:
        await delivery.returned(self._registry, (call.endpoint_id, delivered(call.endpoint_id)))
        return {}

    async def _publish(self, call: Call) -> Answer:
        endpoint = self._endpoint(call)
        fixed, ranges = ports(call.options)
        known = tuple(filter(None, endpoint.labels.get(FROM, "").split(",")))
        await update.publish(self._registry, endpoint.identity, limited(fixed, known), limited(ranges, known))
        return {}

    async def _withdraw(self, call: Call) -> Answer:
        identity = (call.endpoint_id, delivered(call.endpoint_id))
        if identity in self._registry.endpoints:
            await update.publish(self._registry, identity, (), ())
        return {}

    def _begin(self, work: Awaitable[None]) -> None:
        async def logged() -> None:
            try:
                await work
            except LinkspanError as error:
                log.warning("%s", error.message)

        task = asyncio.create_task(logged())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _follow(self, identity: tuple[str, str], network_id: str, namespace: str) -> None:
        """Find the container's end in its namespace, and its name: both are known only after Join."""
        pause, times = TAKEN
        for _ in range(times):
            if identity not in self._registry.endpoints:
                return
            if await delivery.taken(self._registry, identity, namespace):
                break
            await asyncio.sleep(pause)
        if self._engine.socket:
            async with self._naming:
                container = await self._engine.container(network_id, identity[0])
                self._tell_unpublished(identity, await self._name(container))

    def _tell_unpublished(self, identity: tuple[str, str], attachments: Iterable[str]) -> None:
        """Report a container whose ports no network publishes, because all its networks are internal."""
        wanted, endpoint = self._unpublished.pop(identity[0], ""), self._registry.endpoints.get(identity)
        if not wanted or endpoint is None:
            return
        all_ours = [self._registry.endpoints.get((one, delivered(one))) for one in attachments]
        if all(one is not None and self._ours.get(one.network).internal for one in all_ours):
            what = f"port {wanted} of {endpoint.called} is not published: network {endpoint.network} is internal"
            log.warning("%s", what)
            self._event_log.add("network", what, endpoint=endpoint.id, network=endpoint.network)

    async def _follow_names(self) -> None:
        """Follow `docker rename`, and read all names whenever the engine is connected again."""
        while True:
            with contextlib.suppress(Unavailable):
                async with contextlib.aclosing(self._engine.renames()) as renames:
                    async for container in renames:
                        for one in [container] if container else await self._engine.running():
                            async with self._naming:
                                await self._name(one)
            await asyncio.sleep(AGAIN)

    async def _name(self, container: str) -> Iterable[str]:
        """Read a container's name, aliases and labels, by its id, for its endpoints; return the endpoints' ids."""
        if not container:
            return ()
        name, attachments, labels = await self._engine.names(container)
        for endpoint_id, aliases in attachments.items():
            identity = (endpoint_id, delivered(endpoint_id))
            await update.named(self._registry, identity, name, aliases, labels)
            if endpoint := self._registry.endpoints.get(identity):
                self._ports.restore(endpoint)  # by its name from now on
        return attachments


def _failure(verb: str, what: str) -> Answer:
    """Return an error: the network driver expects it in Err, all others in Error."""
    return {"Err" if verb.startswith(NETWORK_DRIVER) else "Error": what}


def _check_wishes(network: Network, call: Call) -> None:
    """Raise Invalid if a user asks the engine for something that the linkspan network is not."""
    name = network.name
    wishes.check(
        network,
        internal="--internal (internal: true)" if call.internal else "",
        ipv6="--ipv6 (enable_ipv6: true)" if call.ipv6_data else "",
    )
    if call.without_ipv4 and any(pool.family == 4 for pool in network.prefixes):
        raise Invalid(
            f"network {name} has an IPv4 pool, of which each container gets an address",
            "leave --ipv4=false out, or use a linkspan network with IPv6 pools only",
        )
    if call.ipv4_data and not any(pool.family == 4 for pool in network.prefixes):
        raise Invalid(
            f"network {name} has no IPv4 pool, and Docker asks for an IPv4 address for every container",
            f"add a pool: linkspan network update {name} --add-pool PREFIX",
        )
    for pool in call.pools:
        subnet = prefix(pool.pool)
        if subnet.length and subnet not in network.prefixes:
            whole = " or ".join(str(one) for one in network.prefixes if one.family == subnet.family)
            part = "only a part of a" if any(one.holds(subnet) for one in network.prefixes) else "no"
            raise Invalid(
                f"subnet {subnet} is {part} pool of network {name}, which uses all of its own",
                f"give the whole pool, --subnet {whole}, and choose each container's address by --ip",
            )
    reserved = sorted(address for pool in call.pools for address in (pool.aux_addresses or {}).values())
    if reserved:
        raise Invalid(
            f"--aux-address {', '.join(reserved)} is not known to IPAM driver linkspan",
            f"linkspan address reserve {name} does that, for all hosts",
        )


def starts_within(network: str, internal: Collection[str], containers: Iterable[Listed]) -> bool:
    """Return whether every container that may be starting in a network has only internal networks."""
    mine = [one for one in containers if one.starts and network in one.networks]
    return bool(mine) and all(one.networks <= set(internal) for one in mine)


def delivered(endpoint_id: str) -> str:
    """Return the name of a container's end in the host's namespace."""
    return "lsd" + hashlib.blake2b(endpoint_id.encode(), digest_size=6).hexdigest()


def _static_routes(network: Network, endpoint: Endpoint, gateways: Mapping[int, str]) -> list[Answer]:
    """Return the routes to the network's own pools, which the engine adds before the container starts."""
    on_link, by_gateway = 1, 0  # RouteType
    found: list[Answer] = [
        {"Destination": str(prefix(gateway).single()), "RouteType": on_link, "NextHop": ""}
        for gateway in gateways.values()
        if network.routed
    ]
    return found + [
        {"Destination": str(pool), "RouteType": by_gateway, "NextHop": gateways[pool.family]}
        for pool in network.prefixes
        if pool.family in gateways and not bridge.on_link(network, endpoint, pool)
    ]


def _with_length(network: Network, address: Prefix) -> Prefix:
    """Return an address as the container has it: without length if routed, else with its pool's."""
    if network.routed:
        return address.single()
    return Prefix(address.packed, next(p.length for p in network.prefixes if p.holds(address.single())))


def _missing(given: Interface, network: Network, endpoint: Endpoint) -> Interface:
    """Return the values that the engine did not give: it refuses to get back what it knows."""
    found = {p.family: str(_with_length(network, p.single())) for p in endpoint.prefixes}
    return Interface(
        address="" if given.address else found.get(4, ""),
        address_ipv6="" if given.address_ipv6 else found.get(6, ""),
        mac_address="" if given.mac_address else endpoint.mac,
    )
