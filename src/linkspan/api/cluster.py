"""API routes about the whole cluster: the schema of records, reclaiming, and conflicts."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from aiohttp import web

from linkspan import SCHEMA
from linkspan.agent.agent import Agent
from linkspan.api.host_condition import disputes
from linkspan.api.responses import answer, body, doing
from linkspan.cluster.host_settings import change_cluster
from linkspan.core.errors import Conflict
from linkspan.core.model import Host


class SettingsBody(msgspec.Struct, frozen=True):
    """Changes of settings; ``reclaim_after`` in seconds, 0: never."""

    reclaim_after: float


class ClusterRoutes:
    """Routes over the agent's replica."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    def routes(self) -> list[web.RouteDef]:
        """Return the routes."""
        return [
            web.get("/v1/cluster", self._show),
            web.patch("/v1/cluster", self._set),
            web.post("/v1/cluster/schema", self._finalize),
        ]

    def _told(self) -> dict[str, object]:
        agent = self._agent
        settings, hosts = agent.replica.settings, agent.hosts.all().values()
        return {
            "id": agent.replica.store.cluster,
            "schema": {"reads": SCHEMA, "writes": settings.writes},
            "reclaim_after": settings.reclaim_after,
            "settings": agent.hosts.common(),
            "hosts": [
                {"name": h.name, "version": h.version, "reads": h.reads, "withdraws": h.withdraws}
                for h in sorted(hosts, key=lambda host: host.name)
            ],
            "disputes": disputes(agent),
        }

    async def _show(self, request: web.Request) -> web.Response:
        return answer(self._told())

    async def _set(self, request: web.Request) -> web.Response:
        wanted = await body(request, SettingsBody)
        with doing("change reclaim_after"):
            await change_cluster(self._agent.replica, reclaim_after=wanted.reclaim_after)
        return answer(self._told())

    async def _finalize(self, request: web.Request) -> web.Response:
        """Make all hosts write the newest schema that all of them can read, if there is a newer one."""
        now = self._agent.replica.settings.writes
        wanted = next_schema(self._agent.hosts.all().values(), now)
        if wanted > now:
            with doing(f"write schema {wanted}"):
                await change_cluster(self._agent.replica, writes=wanted)
        return answer(self._told())


def next_schema(hosts: Iterable[Host], now: int) -> int:
    """Return the newest schema that all hosts can read, ``now`` if none of them can read a newer one.

    Raises Conflict if some can and others cannot.
    """
    hosts = [*hosts]
    if max((host.reads for host in hosts), default=now) <= now:
        return now
    if behind := sorted(host.name for host in hosts if host.reads <= now):
        raise Conflict(
            f"the cluster writes schema {now}, and {', '.join(behind)} can read no newer one",
            "upgrade these hosts first, or remove those that are gone",
        )
    return min(host.reads for host in hosts)
