"""Routes about policies."""

from __future__ import annotations

import msgspec
from aiohttp import web

from linkspan.agent.agent import Agent
from linkspan.api.responses import answer, body, doing
from linkspan.policy.model import Case, Policy


class ApplyBody(msgspec.Struct, frozen=True):
    """Policies to record."""

    policies: tuple[Policy, ...]


class TestBody(msgspec.Struct, frozen=True):
    """Policies as if they were recorded, and the cases to answer."""

    policies: tuple[Policy, ...]
    cases: tuple[Case, ...]


class PolicyRoutes:
    """The routes over an agent's policies."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    def routes(self) -> list[web.RouteDef]:
        """Return the routes."""
        return [
            web.get("/v1/policies", self._list),
            web.put("/v1/policies", self._apply),
            web.get("/v1/policies/{name}", self._show),
            web.delete("/v1/policies/{name}", self._delete),
            web.get("/v1/policy/can", self._can),
            web.get("/v1/policy/who-can", self._who_can),
            web.post("/v1/policy/test", self._test),
        ]

    def _told(self, policy: Policy) -> dict[str, object]:
        """Return a policy as documented: every field, and warnings."""
        return {
            "name": policy.name,
            "order": policy.order,
            "select": policy.select,
            "ingress": policy.ingress,
            "egress": policy.egress,
            "file": policy.file,
            "line": policy.line,
            "warnings": list(self._agent.policies.warnings(policy)),
        }

    async def _list(self, _request: web.Request) -> web.Response:
        return answer([self._told(policy) for policy in self._agent.policies.all()])

    async def _show(self, request: web.Request) -> web.Response:
        return answer(self._told(self._agent.policies.get(request.match_info["name"])))

    async def _apply(self, request: web.Request) -> web.Response:
        wanted = await body(request, ApplyBody)
        with doing("apply policies"):
            return answer(await self._agent.policies.apply(wanted.policies))

    async def _delete(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        with doing(f"delete policy {name}"):
            await self._agent.policies.delete(name)
        return answer({"deleted": name})

    async def _can(self, request: web.Request) -> web.Response:
        ends = request.query.get("from", ""), request.query.get("to", "")
        return answer(await self._agent.policies.can(*ends, request.query.get("port", "")))

    async def _who_can(self, request: web.Request) -> web.Response:
        target, port = request.query.get("to", ""), request.query.get("port", "")
        return answer(await self._agent.policies.who_can(target, port))

    async def _test(self, request: web.Request) -> web.Response:
        wanted = await body(request, TestBody)
        failed = await self._agent.policies.test(wanted.policies, wanted.cases)
        cases = len(wanted.cases)
        return answer({"cases": cases, "ok": cases - len(failed), "failed": failed})
