"""API routes about snapshots of linkspan's own etcd, and what is made from them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec
from aiohttp import web

from linkspan.agent.agent import Agent
from linkspan.api.responses import answer, body
from linkspan.core.errors import Invalid
from linkspan.store.records import GONE
from linkspan.store.snapshot import SNAPSHOT, remembered

GRAVES = f"{GONE}hosts/"
"""Prefix of the tombstones of hosts."""


class FileBody(msgspec.Struct, frozen=True):
    """The absolute path of a snapshot on this host."""

    file: str


class RecoveryRoutes:
    """Routes over the agent's cluster recovery. They also answer while the agent waits for its store."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    def routes(self) -> list[web.RouteDef]:
        """Return the routes."""
        return [web.post("/v1/cluster/snapshot", self._snapshot), *self.restoring()]

    def restoring(self) -> list[web.RouteDef]:
        """Return the routes that need no store."""
        return [
            web.post("/v1/cluster/restore", self._restore),
            web.post("/v1/cluster/recover", self._recover),
        ]

    async def _snapshot(self, request: web.Request) -> web.Response:
        file = _absolute(await body(request, FileBody))
        return answer(await self._agent.cluster_recovery.snapshot(file))

    async def _restore(self, request: web.Request) -> web.Response:
        return await self._made(_absolute(await body(request, FileBody)))

    async def _recover(self, _request: web.Request) -> web.Response:
        return await self._made(None)

    async def _made(self, snapshot: Path | None) -> web.Response:
        agent = self._agent
        cluster, known = self._known()
        host = agent.hosts.here
        made, restarts = await agent.cluster_recovery.restore(host, snapshot, cluster, known, self._gone())
        return answer(
            {
                "cluster": made.cluster,
                "host": host.name,
                "store": made.url,
                "before": made.before,
                "token": made.token,
                "join_again": _told(made.again),
                "departed": _told(made.departed),
                "started_after": agent.started if restarts else 0,
            }
        )

    def _known(self) -> tuple[str, dict[str, str]]:
        """Return this host's cluster, '' if it may be in any, and the names of the hosts that it knows."""
        agent = self._agent
        hosts = {id_: host.name for id_, host in agent.hosts.all().items()}
        if not agent.config.store and not agent.networks.every():
            return "", hosts  # it was alone, and has nothing that another cluster would not know
        cluster = agent.replica.store.cluster or remembered(Path(agent.config.state_dir) / SNAPSHOT).cluster
        return cluster, hosts

    def _gone(self) -> frozenset[str]:
        """Return the ids of the hosts that were removed from the cluster, as far as this host knows."""
        replica = self._agent.replica
        graves = {key.removeprefix(GRAVES) for key in replica.keys_under(GRAVES)}
        return frozenset(graves - self._agent.hosts.ids())


def _told(hosts: Mapping[str, str]) -> list[dict[str, str]]:
    """Return hosts, names by ids, as JSON has them."""
    return [{"id": id_, "name": name} for name, id_ in sorted((name, id_) for id_, name in hosts.items())]


def _absolute(wanted: FileBody) -> Path:
    if not wanted.file.startswith("/") or "\0" in wanted.file:
        raise Invalid(f"{wanted.file!r} is no absolute path", "give the file's whole path")
    return Path(wanted.file)
