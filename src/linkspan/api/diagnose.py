"""API routes of `trace` and `doctor`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec
from aiohttp import web

from linkspan.agent.agent import Agent
from linkspan.agent.peer_paths import HostPaths
from linkspan.api.host_condition import condition_of
from linkspan.api.responses import answer
from linkspan.backends import BACKENDS
from linkspan.core.addresses import prefix
from linkspan.core.errors import Unavailable
from linkspan.diagnose.doctor.checks import Check, Surroundings
from linkspan.kernel.probe import dnsmasq
from linkspan.runtimes import checks as checks_of_runtimes


class PathTold(msgspec.Struct, frozen=True):
    """Measurements of a host to a peer; ``round_trip`` in seconds (None: no answer yet), ``loss`` of 0 to 1."""

    host: str
    peer: str
    network: str
    address: str
    round_trip: float | None
    loss: float
    pings: int


class SilentTold(msgspec.Struct, frozen=True):
    """A host that did not say what it has measured, and why."""

    host: str
    why: str


class PathsTold(msgspec.Struct, frozen=True):
    """Paths in the documented format; ``hosts`` are those that were asked."""

    hosts: list[str]
    paths: list[PathTold]
    silent: list[SilentTold]

    @classmethod
    def of(cls, found: Iterable[HostPaths], name: Callable[[str], str]) -> PathsTold:
        """Return the hosts' answers; ``name`` returns a host's name."""
        hosts, paths, silent = [], [], []
        for one in found:
            hosts.append(host := name(one.host))
            paths += [
                PathTold(host, name(p.peer), p.network, p.address, p.round_trip, p.loss, p.pings) for p in one.paths
            ]
            silent += [SilentTold(host, one.problem)] if one.problem else []
        return cls(hosts, paths, silent)


class DiagnoseRoutes:
    """GET reads; POST sends packets or asks all hosts, each of which pays for it, and only root may use it."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    def routes(self) -> list[web.RouteDef]:
        """Return the routes."""
        return [
            web.get("/v1/trace", self._trace),
            web.post("/v1/trace", self._trace),
            web.get("/v1/doctor", self._doctor),
            web.post("/v1/doctor/peers", self._peers),
            web.get("/v1/paths", self._paths),
            web.post("/v1/paths", self._all_paths),
        ]

    async def _trace(self, request: web.Request) -> web.Response:
        words = [request.query.get(name, "") for name in ("source", "target", "port")]
        alive = request.method == "POST"
        if alive and request.query.get("pcap"):
            found, pcap = await self._agent.cluster_trace.capture(*words)
            answer = msgspec.to_builtins(found) | {"pcap": pcap}  # as base64
            return web.Response(body=msgspec.json.encode(answer), content_type="application/json")
        found = await self._agent.cluster_trace.trace(*words, alive=alive)
        return web.Response(body=msgspec.json.encode(found), content_type="application/json")

    async def _doctor(self, request: web.Request) -> web.Response:
        return web.Response(body=msgspec.json.encode(await _checks(self._agent)), content_type="application/json")

    async def _paths(self, request: web.Request) -> web.Response:
        """Answer with round trip and loss from this host to its peers."""
        return self._told([self._agent.peer_paths.own()])

    async def _all_paths(self, request: web.Request) -> web.Response:
        """Answer with those between all hosts, which are asked through the store."""
        return self._told(await self._agent.peer_paths.all())

    def _told(self, found: Iterable[HostPaths]) -> web.Response:
        return answer(PathsTold.of(found, self._agent.hosts.name))

    async def _peers(self, request: web.Request) -> web.Response:
        found = await self._agent.peer_survey.checks()
        return web.Response(body=msgspec.json.encode(found), content_type="application/json")


async def _checks(agent: Agent) -> list[Check]:
    """Return the checks of a host. A thread of its own checks the machine, so that it delays no attach."""
    from linkspan.agent import agent_checks  # 0.3 MB with the doctor, and few agents are asked
    from linkspan.diagnose.doctor import doctor

    machine, state_dir = agent.worker.machine, Path(agent.config.state_dir)
    around = Surroundings(agent.networks.all(), state_dir, underlay=agent.hosts.here.underlay, backends=BACKENDS)
    found = list(await asyncio.to_thread(doctor.examine, machine.namespaces, around, checks_of_runtimes()))
    await agent.registration.observe_routes(agent.networks)
    networks = agent.networks.all()
    unknown = await agent.worker.run(machine.sysctls.unknown)
    if networks:
        found += agent_checks.forwarding(agent.facts.last, machine.sysctls.watch.problem)
    found += agent_checks.settings(unknown)
    found += agent_checks.control(agent.control.closed().places, agent.config.store)
    found += await agent.store_health.checks()
    found += agent_checks.own_etcd(agent.founding.running_etcd(), state_dir)
    found += agent_checks.snapshots(agent.cluster_recovery.keeper, agent.started)
    found += agent_checks.stations(networks, agent.peers.known)
    found += await _of_policies(agent)
    found += agent_checks.names_of_policies(agent.policy_names.problems())
    found += agent_checks.unprotected(agent.enforcement.unenforced())
    standings = {network.name: agent.fast_endpoints.standing(network) for network in networks}
    found += agent_checks.fast({name: one for name, one in standings.items() if one is not None})
    condition = condition_of(agent)
    found += agent_checks.owners(condition.disputes)
    found += agent_checks.records(condition.records)
    found += agent_checks.hosts(condition.unreachable, agent.hosts.names())
    found += agent_checks.certificates(condition.certificates)
    found += agent_checks.views(agent.name_service.problems)
    found += await agent.bgp_sessions.checks()
    found += agent_checks.associations(**agent.ipsec_sessions.counts())
    found += await agent_checks.controller(agent.replica, networks, agent.ask)
    return found


async def _of_policies(agent: Agent) -> list[Check]:
    from linkspan.agent import agent_checks

    here, every = agent.hosts.here.id, agent.hosts.all()
    others = {id_: host for id_, host in every.items() if id_ != here}
    try:
        text = Path(agent.config.resolv_conf).read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""  # other checks name it
    resolvers = [prefix(address).single() for address in dnsmasq.upstream(text, ()) if "%" not in address]
    try:
        findings = await agent.policy_answers.review(others, resolvers)
    except Unavailable as error:
        return [Check("policies", "skip", error.message, error.hint)]
    return agent_checks.policies(len(agent.policies.all()), findings)
