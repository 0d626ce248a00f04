"""API routes about linkspan's own etcd: init, join, tokens, members, and hosts that are forgotten."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from aiohttp import web

from linkspan.agent.agent import Agent
from linkspan.agent.members import members
from linkspan.api.responses import answer, body
from linkspan.cluster.founding.join_token import NEW_SECONDS
from linkspan.cluster.founding.voting import LEAST_REPLACE, MOST
from linkspan.core.errors import Conflict, Unavailable, counted
from linkspan.endpoints.detach import detach


class InitBody(msgspec.Struct, frozen=True):
    """``advertise`` is the address at which the other hosts reach this one, '' for the underlay's.

    ``voters``: how many the cluster should have (0: by its number of hosts); ``replace_after``: seconds that a dead one
    is waited for. None leaves them as they are.
    """

    advertise: str = ""
    voters: Annotated[int, msgspec.Meta(ge=0, le=MOST)] | None = None
    replace_after: Annotated[float, msgspec.Meta(ge=LEAST_REPLACE, le=1e9)] | None = None


class LeaveBody(msgspec.Struct, frozen=True):
    """``force``: detach the containers that are left, and leave a cluster that does not answer, too."""

    force: bool = False


class JoinBody(msgspec.Struct, frozen=True):
    """A token, as one word."""

    token: str


class TokenBody(msgspec.Struct, frozen=True):
    """A new token: for how many seconds, for how many hosts (0: any number), and whether they may become voters."""

    seconds: float = NEW_SECONDS
    uses: int = 0
    member: bool = False


class RotationBody(msgspec.Struct, frozen=True):
    """The authorities to replace, and hosts that are not waited for, by name or id."""

    kinds: tuple[Literal["clients", "peers"], ...] = ()
    without: tuple[str, ...] = ()


class FoundingRoutes:
    """Routes over the agent's part in founding."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    def routes(self) -> list[web.RouteDef]:
        """Return the routes."""
        return [
            web.post("/v1/cluster/init", self._init),
            *self.joining(),
            web.get("/v1/cluster/members", self._members),
            web.get("/v1/cluster/tokens", self._tokens),
            web.post("/v1/cluster/tokens", self._create_token),
            web.get("/v1/cluster/tokens/{id}", self._token),
            web.delete("/v1/cluster/tokens/{id}", self._revoke_token),
            web.post("/v1/cluster/forgotten/{name}", self._forget),
            web.post("/v1/cluster/voters/{name}", self._promote),
            web.delete("/v1/cluster/voters/{name}", self._demote),
            web.post("/v1/cluster/leave", self._leave),
            web.get("/v1/cluster/rotation", self._rotation),
            web.post("/v1/cluster/rotation", self._rotate),
        ]

    def joining(self) -> list[web.RouteDef]:
        """Return the route that needs no records: a host may join again while it waits for an etcd that has moved."""
        return [web.post("/v1/cluster/join", self._join)]

    async def _init(self, request: web.Request) -> web.Response:
        wanted, agent = await body(request, InitBody), self._agent
        token, restarts = await agent.founding.init(
            agent.hosts.here, wanted.advertise, wanted.voters, wanted.replace_after
        )
        return answer(self._told(agent.replica.store.cluster, restarts=restarts) | {"token": token.text})

    def _told(self, cluster: str, *, restarts: bool) -> dict[str, object]:
        """Return what init and join answer: with the time of this agent's start the caller knows the next one."""
        agent = self._agent
        after = agent.started if restarts else 0
        return {"cluster": cluster, "host": agent.hosts.here.name, "started_after": after}

    async def _join(self, request: web.Request) -> web.Response:
        wanted, agent = await body(request, JoinBody), self._agent
        if not agent.own_cluster.own and not (agent.replica.records or agent.replica.listed):
            raise Unavailable("the agent has not read its own store yet, which may have networks", "try again")
        known = agent.replica.store.cluster if agent.networks.every() else ""
        cluster = await agent.founding.join(agent.hosts.here, wanted.token, known)
        return answer(self._told(cluster, restarts=True))

    async def _members(self, request: web.Request) -> web.Response:
        agent = self._agent
        return answer(await members(agent.replica.store, agent.hosts, own=agent.own_cluster.own))

    async def _tokens(self, request: web.Request) -> web.Response:
        return answer(await self._agent.join_tokens.all())

    async def _create_token(self, request: web.Request) -> web.Response:
        wanted = await body(request, TokenBody)
        token, told = await self._agent.join_tokens.create(wanted.seconds, wanted.uses, member=wanted.member)
        return answer({"token": token.text, **msgspec.to_builtins(told)}, 201)

    async def _token(self, request: web.Request) -> web.Response:
        return answer(await self._agent.join_tokens.get(request.match_info["id"]))

    async def _revoke_token(self, request: web.Request) -> web.Response:
        return answer(await self._agent.join_tokens.revoke(request.match_info["id"]))

    async def _rotation(self, request: web.Request) -> web.Response:
        return answer(await self._agent.founding.rotation())

    async def _rotate(self, request: web.Request) -> web.Response:
        wanted, agent = await body(request, RotationBody), self._agent
        return answer(await agent.founding.rotate(wanted.kinds, wanted.without, agent.hosts.names()), 202)

    async def _forget(self, request: web.Request) -> web.Response:
        """Shut a host out of etcd, then remove what it has in the cluster."""
        agent = self._agent

        def known(host: str) -> bool:
            return host in agent.hosts.all() or bool(agent.leases.held(host))

        word, here = request.match_info["name"], agent.hosts.here.id
        id_, name, removed = await agent.founding.forget(word, here, known, agent.leases.remove_host)
        return answer({"forgotten": name, "id": id_, "removed": removed})

    async def _promote(self, request: web.Request) -> web.Response:
        id_ = await self._agent.founding.promote(request.match_info["name"])
        return answer({"host": self._agent.hosts.name(id_), "id": id_})

    async def _demote(self, request: web.Request) -> web.Response:
        id_ = await self._agent.founding.demote(request.match_info["name"])
        return answer({"host": self._agent.hosts.name(id_), "id": id_})

    async def _leave(self, request: web.Request) -> web.Response:
        """Leave the cluster, after this host's containers were detached."""
        wanted, agent = await body(request, LeaveBody), self._agent
        there = [*agent.registry.endpoints.values()]
        if there and not wanted.force:
            names = ", ".join(sorted(one.called for one in there)[:5]) + (", ..." if len(there) > 5 else "")
            raise Conflict(
                f"{counted(len(there), 'endpoint')} of the cluster's networks live on this host ({names})",
                "detach them (or remove their containers) first; --force detaches them",
            )
        host, cluster = agent.hosts.here, agent.replica.store.cluster

        async def vacate() -> None:
            for id_ in {id_ for id_, _ in agent.registry.endpoints}:
                await detach(agent.registry, id_)
            await agent.leases.remove_host(host.id)

        await agent.founding.leave(host, vacate, force=wanted.force)
        return answer({"left": cluster, "host": host.name, "detached": len(there), "started_after": agent.started})
