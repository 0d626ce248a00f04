"""API routes about hosts: list, details, and an operator's changes."""

from __future__ import annotations

import time
from collections.abc import Iterable

import msgspec
from aiohttp import web

from linkspan.agent.agent import Agent
from linkspan.api.responses import answer, body, doing
from linkspan.cluster import host_settings
from linkspan.core import namesakes
from linkspan.core.addresses import HIDDEN
from linkspan.core.errors import Conflict, NotFound, first_of
from linkspan.core.model import Host, Lease, Underlay
from linkspan.store.records import GONE, Tombstone


class HostTold(msgspec.Struct):
    """A host in the documented format; ``alive`` is None if unknown, ``last_seen`` None if it was never seen.

    A host that was removed also has ``removed_at``.
    """

    id: str
    name: str
    state: str
    last_seen: float | None
    version: str
    underlay: dict[str, object] | None
    leases: list[dict[str, object]]
    settings: dict[str, str]
    schema: int = 1
    alive: bool | None = None
    removed_at: float | None = None


class HostRoutes:
    """Routes over the agent's hosts and leases."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    def routes(self) -> list[web.RouteDef]:
        """Return the routes."""
        return [
            web.get("/v1/hosts", self._list),
            web.patch("/v1/hosts", self._set_all),
            web.get("/v1/keys", self._keys),
            web.post("/v1/keys", self._rotate),
            web.get("/v1/hosts/{name}", self._show),
            web.patch("/v1/hosts/{name}", self._set),
            web.delete("/v1/hosts/{name}", self._remove),
        ]

    def _told(self, host: Host, known: Iterable[Lease] | None = None) -> HostTold:
        """Return a host in the documented format; ``known`` are its leases, if the caller has them."""
        hosts = self._agent.hosts
        alive = hosts.lives(host.id)
        word = {True: "alive", False: "silent", None: "unknown"}[alive]
        state = "drained" if host.settings.get("drained") else word
        held = [
            {
                "network": lease.network,
                "prefixes": list(lease.prefixes),
                "host_address": list(lease.addresses),
                "endpoints": msgspec.to_builtins(lease.endpoints),
            }
            for lease in (self._agent.leases.of_host(host.id) if known is None else known)
        ]
        underlay: dict[str, object] | None = None
        if host.underlay is not None:
            underlay = {
                "ifname": host.underlay.ifname,
                "addresses": list(host.underlay.addresses),
                "advertise": _advertised(host.underlay),
            }
        seen = time.time() if host.id == hosts.here.id else self._agent.replica.contact.seen(host.id)
        settings = dict(host.settings)
        return HostTold(host.id, host.name, state, seen, host.version, underlay, held, settings, host.reads, alive)

    def _told_removed(self, id_: str, at: float) -> HostTold:
        seen = self._agent.replica.contact.seen(id_)
        return HostTold(id_, "", "removed", seen, "", None, [], {}, alive=False, removed_at=at)

    def _find(self, name: str) -> Host:
        hosts, names = self._agent.hosts.all(), self._agent.hosts.names()
        if found := namesakes.meant(names, name):
            return hosts[found]
        raise namesakes.missing(names, name)

    async def _list(self, request: web.Request) -> web.Response:
        known = self._agent.hosts.all()
        held: dict[str, list[Lease]] = {}
        for lease in self._agent.leases.all():
            held.setdefault(lease.host, []).append(lease)
        hosts = [self._told(host, held.get(host.id, ())) for host in known.values()]
        removed = {key.removeprefix(f"{GONE}hosts/"): key for key in self._agent.replica.keys_under(f"{GONE}hosts/")}
        hosts += [
            self._told_removed(id_, tombstone.at)
            for id_, key in removed.items()
            if id_ not in known and (tombstone := self._agent.replica.value(key, Tombstone)) is not None
        ]
        return answer(sorted(hosts, key=lambda told: (told.state == "removed", told.name, told.id)))

    async def _show(self, request: web.Request) -> web.Response:
        return answer(self._told(self._find(request.match_info["name"])))

    async def _set(self, request: web.Request) -> web.Response:
        """Set (or, with an empty value, unset) settings of a host, among them ``drained``."""
        host = self._find(request.match_info["name"])
        changes = await body(request, dict[str, str])
        drains = {"1": "drain", "": "undrain"}.get(changes.get("drained", "-"), "change settings of")
        with doing(f"{drains} host {host.name}"):
            changed = await host_settings.change(self._agent.replica, self._agent.hosts, host, changes)
        return answer(self._told(changed))

    async def _set_all(self, request: web.Request) -> web.Response:
        """Set (or unset) settings that apply to every host without a value of its own."""
        changes = await body(request, dict[str, str])
        with doing("change settings of all hosts"):
            return answer(await host_settings.change_common(self._agent.replica, self._agent.hosts, changes))

    async def _keys(self, request: web.Request) -> web.Response:
        """Return the state of this host's own keys."""
        return answer(self._agent.key_rotation.stand())

    async def _rotate(self, request: web.Request) -> web.Response:
        """Start to change this host's own key; the new key comes into force once all others accept it."""
        with doing("rotate the key of this host"):
            await self._agent.membership.rotate()
        return answer(self._agent.key_rotation.stand())

    def _removable(self, name: str) -> Host:
        """Return a host that is known or, by its id, one that has records but no host record."""
        try:
            return self._find(name)
        except NotFound:
            if not self._agent.leases.held(name):
                raise
            return Host(id=name, name=name)

    async def _remove(self, request: web.Request) -> web.Response:
        host = self._removable(request.match_info["name"])
        hosts, leases = self._agent.hosts, self._agent.leases
        if hosts.lives(host.id) is not False and "force" not in request.query:
            now = "is alive" if hosts.lives(host.id) else "may be alive (the store does not answer for it now)"
            raise Conflict(
                f"host {host.name} {now}: its containers would lose their network",
                "drain it and stop its agent first, or use --force",
            )
        with doing(f"remove host {host.name}"):
            risk = await self._risk(host)
            await leases.remove_host(host.id)
        return answer({"removed": host.name, "risk": risk})

    async def _risk(self, host: Host) -> str:
        """Return the risk of a removal: nobody can distinguish a host that is off from one that is cut off."""
        found = self._agent.endpoint_records.elsewhere(host=host.id)
        names = sorted([e.name or e.id async for some in found for e in some])
        if not names:
            return ""
        return (
            f"host {host.name} had containers: {first_of(names, 5)}; if one of them still runs, another container "
            "may now get its address: "
            "make sure that the host is off"
        )


def _advertised(here: Underlay) -> list[str]:
    """Return the address that the agent was told to advertise."""
    port = f":{here.advertise_port}" if here.advertise_port else ""
    found = [f"[{text}]{port}" if port and ":" in text else f"{text}{port}" for text in here.advertise]
    return [HIDDEN] if here.hidden else found
