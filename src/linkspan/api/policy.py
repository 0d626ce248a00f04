"""Routes about policies."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Collection, Iterable, Iterator
from typing import TypeVar

import msgspec
from aiohttp import web

from linkspan.agent.agent import Agent
from linkspan.agent.policy_answers import Answer
from linkspan.agent.policy_probes import Probed
from linkspan.api.responses import answer, body, doing
from linkspan.core.errors import Invalid, Unavailable
from linkspan.policy.model import Case, Policy
from linkspan.store.contact import STALE

T = TypeVar("T")
LOOK = 1.0
"""Seconds between looks whether somebody still follows drops."""
ANSWER = 10.0
"""Seconds for an answer about two ends. While the store is away each look at it waits by itself."""
LARGEST = 16 << 20
"""Bytes of policies in a request. As JSON a rule has every field, so a file of many short rules is several times as
long there: one of less than 4 MiB may have to be divided."""
_LINES = "application/x-ndjson"


class ApplyBody(msgspec.Struct, frozen=True):
    """Policies to record; ``staged`` ones are only counted."""

    policies: tuple[Policy, ...]
    staged: bool = False


class TestBody(msgspec.Struct, frozen=True):
    """Policies as if they were recorded, and the cases to answer; ``live``: by packets, as policies are in force."""

    policies: tuple[Policy, ...]
    cases: tuple[Case, ...]
    live: bool = False


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
            web.post("/v1/policy/warnings", self._warnings),
            web.get("/v1/policy/staged", self._staged),
            web.post("/v1/policy/staged/{name}/enforce", self._enforce),
            web.get("/v1/drops", self._drops),
            web.get("/v1/policy/can", self._can),
            web.get("/v1/policy/who-can", self._who_can),
            web.post("/v1/policy/test", self._test),
        ]

    def _told(self, policy: Policy, idle: Collection[str] = ()) -> dict[str, object]:
        """Return a policy as documented: every field, and warnings; ``idle`` ones select no container."""
        return {
            "name": policy.name,
            "tier": policy.tier,
            "order": policy.order,
            "select": policy.select,
            "ingress": policy.ingress,
            "egress": policy.egress,
            "file": policy.file,
            "line": policy.line,
            "warnings": [*self._agent.policies.warnings(policy), *_selecting_nothing([policy], idle)],
        }

    async def _list(self, _request: web.Request) -> web.Response:
        policies = self._agent.policies.all()
        idle = await self._idle(policies)
        return answer([self._told(policy, idle) for policy in policies], warnings=self._from_memory())

    async def _show(self, request: web.Request) -> web.Response:
        policies, name = self._agent.policies, request.match_info["name"]
        policy = policies.get_staged(name) if "staged" in request.query else policies.get(name)
        told = self._told(policy, await self._idle([policy]))
        names = self._agent.policy_names.told(sorted(policy.names))
        return answer({**told, "names": names}, warnings=self._from_memory())

    async def _warnings(self, request: web.Request) -> web.Response:
        """Answer with what would be warned of if policies were applied."""
        wanted = await _policies(request, ApplyBody)
        return answer(await self._warned(wanted.policies))

    async def _warned(self, policies: Collection[Policy]) -> list[str]:
        found = [text for policy in policies for text in self._agent.policies.warnings(policy)]
        return list(dict.fromkeys([*found, *_selecting_nothing(policies, await self._idle(policies))]))

    async def _idle(self, policies: Collection[Policy]) -> Collection[str]:
        """Return the names of the policies that select no container; none if nobody knows all containers now."""
        return () if self._from_memory() else await self._agent.policy_answers.idle(policies)

    def _from_memory(self) -> list[str]:
        """Return a sentence if the store is away, so that answers are what this host knew last."""
        silence = self._agent.replica.contact.silence()
        if not self._agent.hosts.shared or silence <= STALE:
            return []
        since = f"for {silence:.0f} s" if silence < math.inf else "since the agent's start"
        return [f"the store has not answered {since}: this is what this host knew last"]

    async def _apply(self, request: web.Request) -> web.Response:
        wanted = await _policies(request, ApplyBody)
        with doing("apply policies"):
            applied = await self._agent.policies.apply(wanted.policies, staged=wanted.staged)
        idle = _selecting_nothing(wanted.policies, await self._idle(wanted.policies))
        told = msgspec.structs.replace(applied, warnings=(*applied.warnings, *idle))
        return answer(told, warnings=self._from_memory())

    async def _delete(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        with doing(f"delete policy {name}"):
            staged = "staged" in request.query
            await self._agent.policies.delete(name, staged=staged)
        return answer({"deleted": name}, warnings=() if staged else self._agent.policies.silent())

    async def _staged(self, _request: web.Request) -> web.Response:
        known = {policy.name for policy in self._agent.policies.all()}
        staged = self._agent.policies.staged()
        trial = await self._agent.policy_trials.trial()
        listed = [{**self._told(one), "change": "changed" if one.name in known else "created"} for one in staged]
        return answer({"policies": listed, **msgspec.structs.asdict(trial)}, warnings=self._from_memory())

    async def _enforce(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        with doing(f"enforce policy {name}"):
            return answer(await self._agent.policies.enforce(name))

    async def _can(self, request: web.Request) -> web.Response:
        source, target = request.query.get("from", ""), request.query.get("to", "")
        with doing(f"policy can {source} {target}"):
            return answer(await self._found(source, target, request.query.get("port", "")))

    async def _found(self, source: str, target: str, port: str) -> Answer:
        try:
            async with asyncio.timeout(ANSWER):
                return await self._agent.policy_answers.can(source, target, port)
        except TimeoutError as error:
            raise Unavailable(f"no answer within {ANSWER:.0f} s", "`linkspan status` shows the store") from error

    async def _who_can(self, request: web.Request) -> web.Response:
        target, port = request.query.get("to", ""), request.query.get("port", "")
        with doing(f"policy who-can {target}"):
            return answer(await self._agent.policy_answers.who_can(target, port))

    async def _test(self, request: web.Request) -> web.Response:
        wanted = await _policies(request, TestBody)
        with doing("policy test"):
            if wanted.live:
                probed = await self._agent.policy_probes.test(wanted.cases)
            else:
                failed = await self._agent.policy_answers.test(wanted.policies, wanted.cases)
                probed = Probed(failed=tuple(failed), skipped=())
        cases = len(wanted.cases)
        ok = cases - len(probed.failed) - len(probed.skipped)
        return answer({"cases": cases, "ok": ok, "failed": probed.failed, "skipped": probed.skipped})

    async def _drops(self, request: web.Request) -> web.StreamResponse:
        """Answer with a line of JSON for each refused packet that was seen; with ?follow, for new ones alone."""
        log = self._agent.drop_log
        if "follow" not in request.query:
            lines = [msgspec.json.encode(one) + b"\n" for one in log.kept()]
            return web.Response(body=b"".join(lines), content_type=_LINES)
        with log.following() as drops, contextlib.suppress(ConnectionError):
            response = web.StreamResponse(headers={"Content-Type": _LINES})
            await response.prepare(request)
            while request.transport is not None and not request.transport.is_closing():
                with contextlib.suppress(TimeoutError):  # nothing was refused: does the follower still follow?
                    async with asyncio.timeout(LOOK):
                        drop = await drops.get()
                    if drop is None:
                        break
                    await response.write(msgspec.json.encode(drop) + b"\n")
            return response
        return response


def _selecting_nothing(policies: Iterable[Policy], idle: Collection[str]) -> Iterator[str]:
    """Yield a sentence for each of the policies that is ``idle``."""
    return (f"policy {policy.name} selects no container now" for policy in policies if policy.name in idle)


async def _policies(request: web.Request, type_: type[T]) -> T:
    """Return a request with policies. Raises Invalid."""
    try:
        return await body(request, type_, LARGEST)
    except web.HTTPRequestEntityTooLarge as error:
        what = f"the policies have more than {LARGEST >> 20} MiB as JSON"
        raise Invalid(what, "give them in several files, one after the other") from error
