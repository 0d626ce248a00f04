"""API routes that only read: status, events, metrics, plan, diff, addresses."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable
from typing import Any

import msgspec
from aiohttp import web

from linkspan.agent.agent import Agent
from linkspan.api import gauges, status_report
from linkspan.api.host_condition import condition_of
from linkspan.api.responses import answer
from linkspan.core.addresses import prefix
from linkspan.core.desired import Change, Source
from linkspan.core.errors import Invalid, NotFound
from linkspan.core.event_log import KEPT
from linkspan.core.kinds import netns_of
from linkspan.core.states.host import Key, State
from linkspan.diagnose.plan import plan
from linkspan.diagnose.plan.differences import NOT_REPAIRED, differences
from linkspan.dns import zone
from linkspan.endpoints import address_audit, address_repair, multihoming, registry


class StatusRoutes:
    """Read-only routes, and `address check --fix`."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._worker = agent.worker

    def routes(self) -> list[web.RouteDef]:
        """Return the routes."""
        return [
            web.get("/v1/status", self._status),
            web.get("/v1/events", self._events),
            web.get("/metrics", self.metrics),
            web.get("/v1/plan", self._plan),
            web.get("/v1/diff", self._diff),
            web.get("/v1/addresses", self._addresses),
            web.get("/v1/addresses/{address}", self._address),
            web.get("/v1/address-check", self._check),
            web.post("/v1/address-check", self._fix),
        ]

    async def _status(self, request: web.Request) -> web.Response:
        await self._agent.registration.observe_routes(self._agent.networks)
        return answer(status_report.as_status(self._agent, condition_of(self._agent)))

    async def metrics(self, request: web.Request) -> web.Response:
        """Answer with all metrics, in Prometheus' text format."""
        found = gauges.gauges(self._agent, condition_of(self._agent), await gauges.look(self._agent))
        return web.Response(body=self._agent.metrics.text(found), content_type="text/plain")

    async def _events(self, request: web.Request) -> web.StreamResponse:
        """Answer with a line of JSON for each of the ``last`` events ``since`` a time; with ?follow, go on."""
        try:
            last, since = int(request.query.get("last", KEPT)), float(request.query.get("since", 0))
        except ValueError as error:
            raise Invalid("events: last must be a number, and since seconds since 1970") from error
        if last < 0:
            raise Invalid(f"events: last is {last}", "give 0 or more")
        if "follow" not in request.query:
            lines = [msgspec.json.encode(h) + b"\n" for h in self._agent.event_log.kept(last=last, since=since)]
            return web.Response(body=b"".join(lines), content_type="application/x-ndjson")
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        async for event in self._agent.event_log.follow(last, since):
            try:
                await response.write(msgspec.json.encode(event) + b"\n")
            except ConnectionError:
                break
        return response

    def _inside(self) -> frozenset[int]:
        """Return the namespaces that contain objects of ours."""
        return frozenset(e.netns for e in self._agent.registry.endpoints.values() if e.netns)

    def _difference(self, inside: frozenset[int]) -> tuple[Change, dict[Key, str], dict[Key, State]]:
        """Observe everything (worker thread); the last part has what is there of each object that differs."""
        return self._worker.machine.reconciler.compared(None, inside)

    async def _diff(self, request: web.Request) -> web.Response:
        await self._agent.membership.caught_up()  # what the agent is applying at this moment is no drift
        change, words, observed = await self._worker.run(self._difference, self._inside())
        wanted = [state for state in change.put if not self._agent.reaper.orphaned(state.key)]

        def told(states: Iterable[State]) -> list[dict[str, Any]]:
            return [self._differing(state, words[state.key], observed.get(state.key)) for state in states]

        found: dict[str, Any] = {"put": told(wanted), "delete": told(change.delete)}
        if any(one["inside"] for one in (*found["put"], *found["delete"])):
            found["note"] = NOT_REPAIRED
        return answer(found)

    def _differing(self, state: State, what: str, observed: State | None) -> dict[str, Any]:
        """Return a difference, with the container that contains it: healing looks only at the host."""
        inside = self._agent.registry.inside(netns_of(state))
        differs = differences(observed, state)
        return {"kind": type(state).__name__, "key": state.label, "what": what, "inside": inside, "differs": differs}

    async def _plan(self, request: web.Request) -> web.Response:
        wanted = request.query.get("network", "")
        if wanted:
            self._agent.networks.get(wanted)
        sources = self._of_network(wanted) if wanted else None
        states, owners, absent = await self._worker.run(self._wanted, self._inside(), sources)
        found = plan.lines(
            states,
            owners,
            absent,
            self._agent.migration_runner.reasons(),
            self._worker.machine.namespaces.path,
            shlex.quote(self._agent.config.state_dir),
        )
        return answer(list(found))

    def _of_network(self, network: str) -> Callable[[Source], bool]:
        """Return a test for the sources of a network (with its peers, and its firewall)."""
        there = [e for e in self._agent.registry.endpoints.values() if e.network == network]
        own = {registry.source(e) for e in there} | {multihoming.source(e) for e in there} | {("names", *zone.LEADS)}
        return lambda source: source in own or plan.concerns(source, network)

    def _wanted(
        self, inside: frozenset[int], of: Callable[[Source], bool] | None
    ) -> tuple[list[State], dict[Key, list[Source]], set[Key]]:
        """Return the desired states of these sources, their owners, and the missing keys (worker thread)."""
        change, _, _ = self._difference(inside)
        desired = self._worker.machine.reconciler.desired
        names = dict.fromkeys(source for source in desired.sources() if of is None or of(source))
        states, owners = dict[Key, State](), dict[Key, list[Source]]()
        for name in names:
            for key, state in desired.sources()[name].items():
                states[key] = state
                owners.setdefault(key, []).append(name)
        return list(states.values()), owners, {state.key for state in change.put}

    async def _addresses(self, request: web.Request) -> web.Response:
        network = request.query.get("network", "")
        if network:
            self._agent.networks.get(network)
        return answer(await self._holdings(network))

    async def _holdings(self, network: str = "") -> list[address_audit.Holding]:
        """Return the owner of each address in use, in one network or in all."""
        hosts = [(self._agent.hosts.name(lease.host), lease) for lease in self._agent.leases.all(network)]
        of = [one for one in self._agent.networks.all() if network in ("", one.name)]
        reservations = [one for one in self._agent.reservations.all() if network in ("", one.network)]
        endpoints = [e async for some in self._agent.endpoint_records.everywhere(network) for e in some]
        return address_audit.holdings(of, endpoints, reservations, hosts)

    async def _address(self, request: web.Request) -> web.Response:
        wanted = prefix(request.match_info["address"])
        found = [h for h in await self._holdings() if prefix(h.address).network().holds(wanted.single())]
        if found:
            return answer(found)
        for network in self._agent.networks.all():
            if any(pool.holds(wanted.single()) for pool in network.prefixes):
                return answer([address_audit.Holding(wanted.address, network.name, "free", "")])
        raise NotFound(
            f"address {wanted.address} is in no network's pool", "`linkspan network list` shows the pools"
        )

    async def _check(self, request: web.Request) -> web.Response:
        return answer(await address_repair.check(self._agent.registry))

    async def _fix(self, request: web.Request) -> web.Response:
        return answer(await address_repair.repair(self._agent.registry, self._agent.orphans))
