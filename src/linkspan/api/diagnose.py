"""API routes of `trace` and `doctor`."""

from __future__ import annotations

import msgspec
from aiohttp import web

from linkspan.agent.agent import Agent


class Tracing:
    """GET reads; POST sends packets (a live trace, probes between hosts), and only root may use it."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    def routes(self) -> list[web.RouteDef]:
        """Return the routes."""
        return [
            web.get("/v1/trace", self._trace),
            web.post("/v1/trace", self._trace),
            web.get("/v1/doctor", self._doctor),
            web.post("/v1/doctor/peers", self._peers),
        ]

    async def _trace(self, request: web.Request) -> web.Response:
        words = (request.query.get(name, "") for name in ("source", "target", "port"))
        found = await self._agent.tracer.trace(*words, alive=request.method == "POST")
        return web.Response(body=msgspec.json.encode(found), content_type="application/json")

    async def _doctor(self, request: web.Request) -> web.Response:
        from linkspan.agent import agent_checks  # 0.3 MB with the checks, and few agents are asked

        found = await agent_checks.checks(self._agent)
        return web.Response(body=msgspec.json.encode(found), content_type="application/json")

    async def _peers(self, request: web.Request) -> web.Response:
        found = await self._agent.survey.checks()
        return web.Response(body=msgspec.json.encode(found), content_type="application/json")
