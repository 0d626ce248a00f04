"""API routes that only read: status, events, metrics, plan, diff, addresses."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

import msgspec
from aiohttp import web

from linkspan.agent import status
from linkspan.agent.agent import Agent
from linkspan.core.addresses import prefix
from linkspan.core.desired import Change
from linkspan.core.errors import Invalid, NotFound
from linkspan.core.event_log import KEPT
from linkspan.core.model import Endpoint
from linkspan.core.states.host import HOST, Address, Key, State, Veth
from linkspan.diagnose.plan import plan
from linkspan.dns import zone
from linkspan.endpoints import address_audit, multihoming


class Telling:
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
        await self._agent.cluster.observe_routes()
        return _json(status.told(self._agent))

    async def metrics(self, request: web.Request) -> web.Response:
        """Answer with all metrics, in Prometheus' text format."""
        await status.look(self._agent)
        return web.Response(body=self._agent.metrics.text(status.gauges(self._agent)), content_type="text/plain")

    async def _events(self, request: web.Request) -> web.StreamResponse:
        """Answer with a line of JSON for each of the ``last`` events ``since`` a time; with ?follow, go on."""
        try:
            last, since = int(request.query.get("last", KEPT)), float(request.query.get("since", 0))
        except ValueError as error:
            raise Invalid("events: last must be a number, and since seconds since 1970") from error
        if last < 0:
            raise Invalid(f"events: last is {last}", "give 0 or more")
        if "follow" not in request.query:
            lines = [msgspec.json.encode(h) + b"\n" for h in self._agent.happenings.kept(last=last, since=since)]
            return web.Response(body=b"".join(lines), content_type="application/x-ndjson")
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        async for happening in self._agent.happenings.follow(last, since):
            try:
                await response.write(msgspec.json.encode(happening) + b"\n")
            except ConnectionError:
                break
        return response

    def _inside(self) -> frozenset[int]:
        """Return the namespaces that contain objects of ours."""
        return frozenset(e.netns for e in self._agent.endpoints().values() if e.netns)

    def _difference(self, inside: frozenset[int]) -> tuple[Change, dict[Key, str]]:
        """Observe everything (worker thread)."""
        machine = self._worker.machine
        try:
            change, words = machine.reconciler.difference(None, inside)
        finally:
            machine.sockets.release()
        return change, words

    async def _diff(self, request: web.Request) -> web.Response:
        await self._agent.cluster.caught_up()  # what the agent is applying at this moment is no drift
        change, words = await self._worker.run(self._difference, self._inside())
        wanted = [state for state in change.put if not self._agent.healer.orphaned(state.key)]
        put, delete = ([self._differing(s, words[s.key]) for s in states] for states in (wanted, change.delete))
        return _json({"put": put, "delete": delete})

    def _differing(self, state: State, what: str) -> dict[str, str]:
        """Return a difference, with the container that contains it: healing looks only at the host."""
        netns = getattr(state, "netns", HOST)
        called = (e.called for e in self._agent.endpoints().values() if e.netns == netns != HOST)
        return {"kind": type(state).__name__, "key": state.label, "what": what, "inside": next(called, "")}

    async def _plan(self, request: web.Request) -> web.Response:
        wanted = request.query.get("network", "")
        if wanted:
            self._agent.network(wanted)
        change, _ = await self._worker.run(self._difference, self._inside())
        absent = {state.key for state in change.put}
        reconciler = self._worker.machine.reconciler
        names = self._sources(wanted)
        states = {k: s for name in names for k, s in reconciler.desired.sources().get(name, {}).items()}
        meanwhile = self._agent.cluster.migrating.reasons()
        state_dir = shlex.quote(self._agent.config.state_dir)
        lines = []
        for state in plan.ordered(states.values()):
            owners = [plan.why(owner) for owner in reconciler.desired.owners(state.key) if owner in names]
            why = f"{plan.purpose(state)}, for {' and '.join(owners)}"
            why += f" ({meanwhile[state.key]})" if state.key in meanwhile else ""
            for command in plan.commands(state, self._worker.machine.namespaces.path, state_dir):
                lines.append(
                    {
                        "kind": type(state).__name__,
                        "key": state.label,
                        "command": command,
                        "why": why,
                        "present": state.key not in absent,
                    }
                )
        for kind, command, why in plan.endings(states.values(), state_dir):
            present = not any(key[0] == kind for key in absent)
            lines.append({"kind": kind, "key": "all", "command": command, "why": why, "present": present})
        return _json(lines)

    def _sources(self, network: str) -> list[tuple[str, ...]]:
        """Return the sources of one network (with its peers, and its firewall), or all sources."""
        every = list(self._worker.machine.reconciler.desired.sources())
        if not network:
            return every
        there = [e for e in self._agent.endpoints().values() if e.network == network]
        mine = {("attachment", *e.identity) for e in there} | {multihoming.source(e) for e in there}
        return [
            s
            for s in every
            if s[0] == "host"
            or s[:2] in (("network", network), ("peer", network))
            or (s[0] == "names" and network in s[1:])
            or s == ("names", *zone.LEADS)
            or s in mine
        ]

    async def _addresses(self, request: web.Request) -> web.Response:
        network = request.query.get("network", "")
        if network:
            self._agent.network(network)
        return _json(self._holdings(network))

    def _holdings(self, network: str = "") -> list[address_audit.Holding]:
        """Return the owner of each address in use, in one network or in all."""
        networks, leases = self._agent.networks, self._agent.leases
        hosts = [(leases.name(lease.host), lease) for lease in leases.all(network)]
        of = [one for one in networks.all() if network in ("", one.name)]
        reservations = [one for one in networks.reservations if network in ("", one.network)]
        return address_audit.holdings(of, self._agent.published.everywhere(network), reservations, hosts)

    async def _address(self, request: web.Request) -> web.Response:
        wanted = prefix(request.match_info["address"])
        found = [h for h in self._holdings() if prefix(h.address).network().holds(wanted.single())]
        if found:
            return _json(found)
        for network in self._agent.networks.all():
            if any(pool.holds(wanted.single()) for pool in network.prefixes):
                return _json([address_audit.Holding(wanted.address, network.name, "free", "")])
        raise NotFound(
            f"address {wanted.address} is in no network's pool", "`linkspan network list` shows the pools"
        )

    async def _check(self, request: web.Request) -> web.Response:
        return _json(await self._checked())

    async def _checked(self) -> address_audit.Check:
        seen = await self._worker.run(self._seen, self._inside())
        return address_audit.check(self._agent.endpoints().values(), seen)

    def _seen(self, namespaces: frozenset[int]) -> address_audit.Seen:
        """Observe links and containers' addresses (worker thread)."""
        machine = self._worker.machine
        veths = {s.name: s for s in machine.links.observe(0) if isinstance(s, Veth)}
        inside: dict[int, tuple[Address, ...]] = {}
        try:
            for netns in namespaces:
                try:
                    inside[netns] = tuple(
                        s for s in machine.reconciler.observed((Address,), netns) if isinstance(s, Address)
                    )
                except NotFound:
                    continue
        finally:
            machine.sockets.release()
        return address_audit.Seen(veths, inside)

    async def _fix(self, request: web.Request) -> web.Response:
        """Free leaked addresses, remove orphans and duplicates; return the problems that remain."""
        endpoints = list(self._agent.endpoints().values())
        found = address_audit.check(endpoints, await self._worker.run(self._seen, self._inside()))
        leaked = {(f.address, f.network) for f in found.leaked}
        for endpoint in endpoints:
            if any((p.address, endpoint.network) in leaked for p in endpoint.prefixes):
                await self._agent.detach(*endpoint.identity)
        await self._worker.run(self._remove_doubles, found, tuple(self._agent.endpoints().values()))
        await self._agent.orphans.remove()
        await self._worker.run(self._worker.machine.reconciler.resync)
        return _json(await self._checked())

    def _remove_doubles(self, found: address_audit.Check, endpoints: Sequence[Endpoint]) -> None:
        """Remove addresses from containers that belong to others (worker thread)."""
        machine = self._worker.machine
        doubled = {f.address for f in found.duplicate}
        holders = {(e.netns, e.ifname, p.address) for e in endpoints for p in e.prefixes}
        try:
            for addresses in self._seen(frozenset(e.netns for e in endpoints if e.netns)).inside.values():
                extra = [
                    a
                    for a in addresses
                    if a.prefix.address in doubled and (a.netns, a.device, a.prefix.address) not in holders
                ]
                machine.reconciler.apply(Change((), tuple(extra)))
        finally:
            machine.sockets.release()


def _json(value: object) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), content_type="application/json")
