"""The agent's HTTP API on its unix socket. Members of the socket's group may read; only root may change anything."""

from __future__ import annotations

import operator
import os
from collections.abc import AsyncIterator, Iterable, Iterator

import msgspec
from aiohttp import web

from linkspan.agent.agent import Agent
from linkspan.agent.warnings import KERNEL, cautions, data_path, dropped
from linkspan.api.bgp import BgpRoutes
from linkspan.api.cluster import ClusterRoutes
from linkspan.api.diagnose import DiagnoseRoutes
from linkspan.api.founding import FoundingRoutes
from linkspan.api.hosts import HostRoutes
from linkspan.api.middleware import errors_and_rights, with_news
from linkspan.api.peer_credentials import peer
from linkspan.api.policy import PolicyRoutes
from linkspan.api.recovery import RecoveryRoutes
from linkspan.api.responses import answer, body, doing, streamed
from linkspan.api.runtimes import routes
from linkspan.api.status import StatusRoutes
from linkspan.cluster.endpoint_records import by_container
from linkspan.cluster.network_plans import NetworkRequest
from linkspan.core.addresses import prefix
from linkspan.core.errors import Conflict, Invalid, NotFound
from linkspan.core.model import Allowance, AttachRequest, Endpoint, Network, NetworkPolicy
from linkspan.endpoints import attach, detach
from linkspan.endpoints.update import relabel
from linkspan.kernel.io.namespaces import open_namespace

LARGEST = 2 << 20
"""Largest request in bytes: a runtime's configuration may have 1 MiB."""


class AttachBody(AttachRequest, frozen=True, kw_only=True):
    """A request, with the number of the caller's descriptor of the container's namespace, and its path."""

    namespace_fd: int = -1
    namespace_path: str = ""


class DetachBody(msgspec.Struct, frozen=True):
    """Endpoints to detach: one interface, those of one network, or all of a container.

    If ``named``, ``id`` may also be a container's name, or NAME@NETWORK. Endpoints that an engine manages
    need ``force``.
    """

    id: str
    named: bool = False
    force: bool = False
    ifname: str = ""
    network: str = ""


class LabelsBody(msgspec.Struct, frozen=True):
    """Labels to set, and keys of labels to remove."""

    set: dict[str, str] = {}
    remove: tuple[str, ...] = ()


class UpdateBody(msgspec.Struct, frozen=True):
    """Changes of a network."""

    add_pools: tuple[str, ...] = ()
    mtu: int = 0
    options: dict[str, str] = {}
    policy: NetworkPolicy | None = None
    egress: tuple[str, ...] | None = None


class MigrationBody(msgspec.Struct, frozen=True):
    """The backend to which a network migrates."""

    backend: str
    options: dict[str, str] = {}


class ReservationBody(msgspec.Struct, frozen=True):
    """Addresses of a network to reserve."""

    network: str
    cidr: str


_PUBLIC = tuple(
    name
    for name in Endpoint.__struct_fields__
    if name not in ("netns_path", "netns_cookie", "metric")
)
_PublicEndpoint = msgspec.defstruct("_PublicEndpoint", _PUBLIC, frozen=True, gc=False)
_public_fields = operator.attrgetter(*_PUBLIC)


def public(endpoint: Endpoint) -> msgspec.Struct:
    """Return an endpoint as documented: without the fields that only the agent needs."""
    return _PublicEndpoint(*_public_fields(endpoint))  # a quarter of a dictionary's time: there may be 100,000


async def _told(hosts: AsyncIterator[Iterable[Endpoint]]) -> AsyncIterator[list[msgspec.Struct]]:
    """Yield endpoints by host as documented: a container is on one host, and its endpoints follow each other."""
    async for endpoints in hosts:
        yield [public(endpoint) for endpoint in by_container(endpoints)]


def _refuse_managed(endpoints: Iterable[Endpoint]) -> None:
    """Raise Conflict with the engine's own commands if an engine attached one of these to a network of its own."""
    managed = [e for e in endpoints if e.managed]
    if managed:
        whose = ", ".join(f"{e.ifname} of {e.called} on network {e.network} is {e.managed.title()}'s" for e in managed)
        commands = [f"{e.managed} network disconnect {e.network} {e.name or 'CONTAINER'}" for e in managed]
        raise Conflict(
            f"{whose}, and would not learn that it is gone", f"{'; '.join(commands)} (or --force: cut it off here)"
        )


def _refuse_lengths(ips: Iterable[str]) -> None:
    """Raise Invalid for an address with a prefix length: the length is the network's own."""
    for text in ips:
        if "/" in text:
            raise Invalid(
                f"--ip {text} has a prefix length, but the network sets it", f"give the address alone: --ip "
                f"{text.partition('/')[0]}"
            )


class Api:
    """The routes over an agent."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    def application(self) -> web.Application:
        """Return the aiohttp application."""
        app = web.Application(middlewares=[errors_and_rights, with_news(self._agent.news)], client_max_size=LARGEST)
        app.on_shutdown.append(self._end_streams)
        app.add_routes(
            [
                *routes(self._agent.services),
                web.get("/v1/networks", self._list_networks),
                web.post("/v1/networks", self._create_network),
                web.get("/v1/networks/{name}", self._show_network),
                web.patch("/v1/networks/{name}", self._update_network),
                web.delete("/v1/networks/{name}", self._delete_network),
                web.post("/v1/networks/{name}/migration", self._migrate_network),
                web.post("/v1/allowances", self._allow),
                web.delete("/v1/allowances", self._allow),
                web.post("/v1/attach", self._attach),
                web.post("/v1/detach", self._detach),
                web.get("/v1/endpoints", self._list_endpoints),
                web.get("/v1/endpoints/{word}", self._show_endpoint),
                web.patch("/v1/endpoints/{word}/labels", self._label_endpoint),
                web.post("/v1/reservations", self._reserve),
                web.delete("/v1/reservations", self._unreserve),
                *StatusRoutes(self._agent).routes(),
                *DiagnoseRoutes(self._agent).routes(),
                *HostRoutes(self._agent).routes(),
                *ClusterRoutes(self._agent).routes(),
                *FoundingRoutes(self._agent).routes(),
                *RecoveryRoutes(self._agent).routes(),
                *BgpRoutes(self._agent).routes(),
                *PolicyRoutes(self._agent).routes(),
            ]
        )
        return app

    async def _end_streams(self, _app: web.Application) -> None:
        self._agent.event_log.end()
        self._agent.drop_log.end()

    async def _list_networks(self, request: web.Request) -> web.Response:
        return answer(self._agent.networks.every())

    async def _show_network(self, request: web.Request) -> web.Response:
        network = self._agent.networks.get(request.match_info["name"])
        allowed = [a for a in self._agent.allowances.all() if network.name in (a.source, a.target)]
        more = {
            "allowances": msgspec.to_builtins(allowed),
            "not_switched": self._agent.migration_runner.not_switched(network),
            "progress": msgspec.to_builtins(self._agent.migration_runner.progress(network)),
            "data_path": data_path(network, self._agent.facts.last),
            "exits": self._agent.egress.told(network),
            "fast": self._agent.fast_endpoints.told(network),
        }
        return answer(msgspec.to_builtins(network) | more)

    async def _create_network(self, request: web.Request) -> web.Response:
        wanted = await body(request, NetworkRequest)
        made = await self._agent.network_changes.create(wanted, self._agent.policies.require_default)
        if made.policy == "default-deny":
            await self._agent.enforcement.enforce()
        return answer(self._with_warnings(made), 201)

    def _with_warnings(self, network: Network) -> dict[str, object]:
        hosts = self._agent.hosts
        found = cautions(network, hosts.all().values(), hosts.here.underlay)
        return {**msgspec.to_builtins(network), "warnings": [*found, *self._slow(network)]}

    def _slow(self, network: Network) -> Iterator[str]:
        by = data_path(network, self._agent.facts.last)
        if by != KERNEL:
            yield f"a program carries packets between hosts, many times slower than the kernel: {by}"

    async def _update_network(self, request: web.Request) -> web.Response:
        change = await body(request, UpdateBody)
        name = request.match_info["name"]
        with doing(f"change network {name}"):
            if change.policy == "default-deny":
                self._agent.policies.require_default(self._agent.networks.get(name))
            changed = await self._agent.network_changes.update(
                name, change.add_pools, change.mtu, change.options, change.policy, change.egress
            )
            if change.policy is not None:
                await self._agent.enforcement.enforce()
        return answer(self._with_warnings(changed))

    async def _migrate_network(self, request: web.Request) -> web.Response:
        wanted = await body(request, MigrationBody)
        name = request.match_info["name"]
        old = self._agent.networks.get(name)
        with doing(f"migrate network {name}"):
            after = await self._agent.membership.migrate(name, wanted.backend, wanted.options)
        new = after.target or after
        return answer({**msgspec.to_builtins(after), "warnings": [*dropped(old, new), *self._slow(new)]})

    async def _delete_network(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        with doing(f"delete network {name}"):
            cut = await self._agent.network_changes.delete(name, force="force" in request.query)
        told = [{"host": e.host, "id": e.id, "name": e.name, "ifname": e.ifname, "engine": e.managed} for e in cut]
        return answer({"deleted": name, "cut_off": told}, warnings=self._agent.policies.about(name))

    async def _allow(self, request: web.Request) -> web.Response:
        allowance = await body(request, Allowance)
        allowed = request.method == "POST"
        with doing(f"{'allow' if allowed else 'disallow'} {allowance.source} to {allowance.target}"):
            await self._agent.network_details.allow(allowance, allowed)
        return answer(allowance)

    async def _attach(self, request: web.Request) -> web.Response:
        wanted = await body(request, AttachBody)
        _refuse_lengths(wanted.ips)
        pid, _ = peer(request)
        fd = open_namespace(f"/proc/{pid}/fd/{wanted.namespace_fd}") if wanted.namespace_fd >= 0 else -1
        try:
            return answer(public(await attach.attach(self._agent.registry, wanted, fd, wanted.namespace_path)), 201)
        finally:
            if fd >= 0:
                os.close(fd)

    async def _detach(self, request: web.Request) -> web.Response:
        wanted = await body(request, DetachBody)
        network = wanted.network or (wanted.id.partition("@")[2] if wanted.named else "")
        going = self._agent.endpoint_records.here(wanted.id, named=wanted.named, ifname=wanted.ifname, network=network)
        if not wanted.force:
            _refuse_managed(going)
        each = dict.fromkeys((e.id, e.identity[1] if wanted.ifname else "") for e in going)
        if not each:  # a container known only by the name of its veth pair, or whose attach is under way
            each[wanted.id, wanted.ifname] = None
        count = sum([await detach.detach(self._agent.registry, id_, ifname, network) for id_, ifname in each])
        id_, _ = next(iter(each))
        why = "" if count else await self._missing(wanted)
        return answer({"detached": count, "id": id_, "why": why})

    async def _missing(self, wanted: DetachBody) -> str:
        return await self._agent.endpoint_records.missing(wanted.id, self._agent.event_log, named=wanted.named)

    async def _list_endpoints(self, request: web.Request) -> web.StreamResponse:
        network = request.query.get("network", "")
        if network:
            self._agent.networks.get(network)
        if "local" in request.query:
            here = self._agent.registry.endpoints.values()
            return answer([public(e) for e in by_container(e for e in here if network in ("", e.network))])
        return await streamed(request, _told(self._agent.endpoint_records.everywhere(network)))

    async def _show_endpoint(self, request: web.Request) -> web.Response:
        found = await self._agent.endpoint_records.find(request.match_info["word"])
        return answer([public(e) for e in by_container(found)])

    async def _label_endpoint(self, request: web.Request) -> web.Response:
        change, word = await body(request, LabelsBody), request.match_info["word"]
        found = self._agent.endpoint_records.here(word)
        if not found:
            why = await self._agent.endpoint_records.missing(word, self._agent.event_log, to="label it")
            raise NotFound(f"endpoint {word!r} cannot be labelled here: {why}")
        registry = self._agent.registry
        changed = [await relabel(registry, one.identity, change.set, change.remove) for one in found]
        await self._agent.enforcement.enforce()  # then policies count the labels here
        policies = self._agent.policies
        return answer([public(one) for one in changed], warnings=policies.silent() if policies.all() else ())

    async def _reserve(self, request: web.Request) -> web.Response:
        wanted = await body(request, ReservationBody)
        with doing(f"reserve {wanted.cidr} of network {wanted.network}"):
            made = await self._agent.network_details.reserve(wanted.network, wanted.cidr)
        held = await self._agent.endpoint_records.holders(made.network, prefix(made.cidr))
        return answer({**msgspec.to_builtins(made), "held": [{"address": a, "holder": who} for a, who in held]}, 201)

    async def _unreserve(self, request: web.Request) -> web.Response:
        wanted = await body(request, ReservationBody)
        with doing(f"release {wanted.cidr} of network {wanted.network}"):
            await self._agent.network_details.unreserve(wanted.network, wanted.cidr)
        return answer({"unreserved": wanted.cidr})
