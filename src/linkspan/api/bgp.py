"""API routes about BGP: this host's sessions, their routes, and why one is not established."""

from __future__ import annotations

import msgspec
from aiohttp import web

from linkspan.agent.agent import Agent
from linkspan.agent.bgp_sessions import BgpSession
from linkspan.api.responses import answer
from linkspan.core.errors import Invalid
from linkspan.kernel.probe.bird_control import Route


class PeerTold(msgspec.Struct, frozen=True):
    """A session in the documented format; ``since`` is in seconds since the epoch, counts are of prefixes now."""

    peer: str
    mesh: bool
    address: str
    source: str
    local_as: int
    remote_as: int
    state: str
    since: float | None
    sent: int
    received: int
    accepted: int
    filtered: int
    filtered_by: dict[str, int]
    why: str
    fix: str


class RouteTold(msgspec.Struct, frozen=True):
    """A route as documented; ``filtered_by`` is the rule that refused it, ``unusable`` why the kernel lacks it."""

    prefix: str
    peer: str
    best: bool
    next_hops: list[dict[str, str]]
    as_path: list[str]
    origin: str
    med: int | None
    local_pref: int | None
    communities: list[str]
    filtered_by: str
    unusable: str


class BgpRoutes:
    """Read-only routes over the agent's BGP sessions."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    def routes(self) -> list[web.RouteDef]:
        """Return the routes."""
        return [
            web.get("/v1/bgp/peers", self._peers),
            web.get("/v1/bgp/routes", self._routes),
            web.get("/v1/bgp/explain/{peer}", self._explain),
        ]

    async def _peers(self, request: web.Request) -> web.Response:
        bgp_sessions = self._agent.bgp_sessions
        await bgp_sessions.look()
        refused = {} if bgp_sessions.silent else await bgp_sessions.refused_by()
        return answer([_told(peering, refused.get(peering.session.name, {})) for peering in bgp_sessions.all()])

    async def _routes(self, request: web.Request) -> web.Response:
        peer = request.query.get("peer", "")
        filtered, sent = "filtered" in request.query, "sent" in request.query
        if sent and (filtered or not peer):
            why = "--sent shows the prefixes sent to one peer, and cannot be filtered"
            raise Invalid(why, "give --peer NAME --sent")
        found = await self._agent.bgp_sessions.routes(peer, filtered=filtered, sent=sent)
        return answer([self._route(route) for route in found])

    def _route(self, route: Route) -> RouteTold:
        bare = not route.next_hops and bool(route.next_hop)
        return RouteTold(
            route.prefix,
            self._agent.bgp_sessions.name(route.protocol),
            route.best,
            [{"address": address, "device": device} for address, device in route.next_hops],
            route.as_path.split(),
            route.origin,
            route.med,
            route.local_pref,
            list(route.communities),
            route.refused,
            f"next hop {route.next_hop} is on no link of this host" if bare and not route.refused else "",
        )

    async def _explain(self, request: web.Request) -> web.Response:
        peering, evidence = await self._agent.bgp_sessions.explain(request.match_info["peer"])
        seen = msgspec.to_builtins(evidence)
        seen.pop("silent")  # this message is the reason
        seen["said"] = [line["text"] for line in seen["said"][-5:]]
        return answer(msgspec.to_builtins(_told(peering, {})) | {"seen": seen})


def _told(peering: BgpSession, refused: dict[str, int]) -> PeerTold:
    session, seen, why = peering.session, peering.seen, peering.why
    return PeerTold(
        peer=session.name,
        mesh=session.mesh,
        address=session.address,
        source=session.source,
        local_as=session.local_as,
        remote_as=session.remote_as,
        state=peering.state,
        since=seen.since if seen else None,
        sent=seen.count("sent") if seen else 0,
        received=seen.count("received") if seen else 0,
        accepted=seen.count("accepted") if seen else 0,
        filtered=seen.count("filtered") if seen else 0,
        filtered_by=refused,
        why=why.reason if why else "",
        fix=why.fix if why else "",
    )
