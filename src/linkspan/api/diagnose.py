"""API routes of `trace` and `doctor`.

Both ask the kernel in a thread of their own, with sockets of their own: a live trace waits for its packet,
and must not delay an attach.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

import msgspec
from aiohttp import web

from linkspan.agent import status, store_health
from linkspan.agent.agent import Agent
from linkspan.backends import BACKENDS
from linkspan.backends.multi_host import is_unchecked
from linkspan.cluster import control_plane, controller_status
from linkspan.core import namesakes
from linkspan.core.addresses import FAMILIES
from linkspan.diagnose.doctor import doctor, host_checks
from linkspan.diagnose.doctor.checks import Check, Status, Surroundings

_RECORDS = "docs/clusters.md (Checks of records) explains each, with the fix"
_HOSTS = "`linkspan status` on that host shows its state, `linkspan doctor --peers` what the underlay lets through"


_SHOWN = 6
"""Places named in one line."""


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
        agent, machine = self._agent, self._agent.worker.machine
        here, state_dir = agent.leases.host.underlay, Path(agent.config.state_dir)
        around = Surroundings(agent.networks.all(), state_dir, underlay=here, backends=BACKENDS)
        found = await asyncio.to_thread(doctor.examine, machine.namespaces, around)
        await agent.cluster.observe_routes()
        unknown = await agent.worker.run(machine.sysctls.unknown)
        found = [*found, *self._forwarding(), *_settings(unknown), *self._control(), *await store_health.checks(agent)]
        found += [*self._stations(), *self._owners(), *self._records(), *self._hosts(), *self._views()]
        found += await agent.peerings.checks()
        found += await controller_status.checks(agent.replica, agent.networks.all(), agent.ask)
        return web.Response(body=msgspec.json.encode(found), content_type="application/json")

    async def _peers(self, request: web.Request) -> web.Response:
        found = await self._agent.survey.checks()
        return web.Response(body=msgspec.json.encode(found), content_type="application/json")

    def _views(self) -> list[Check]:
        """Return why containers in several networks do not find all names; examine() covers single networks."""
        problems = self._agent.naming.problems.items()
        return [Check(f"names of {' and '.join(zones)}", "warn", why) for zones, why in problems if len(zones) > 1]

    def _forwarding(self) -> list[Check]:
        """Return between which links the host still does not forward, though linkspan enabled forwarding."""
        facts = self._agent.view().facts
        found = []
        for family in FAMILIES if self._agent.networks.all() else ():
            closed, old = (
                sorted(n for f, n in links if f == family) for links in (facts.closed_links, facts.old_links)
            )
            if closed and len(old) > 1:
                setting = host_checks.FORWARDING[family].replace("/", ".")
                names = f"{', '.join(closed[:_SHOWN])}{', ...' if len(closed) > _SHOWN else ''}"
                detail = (
                    f"{setting} was 0, and linkspan set it to 1 for containers: as before, the host "
                    "forwards no packets "
                    f"from {names} to links that existed then; links that other programs make later are not restricted"
                )
                fix = f"to forward there as well: sysctl -w {setting}=1 (the agent notices the write)"
                standing: Status = "ok"
                if problem := self._agent.worker.machine.sysctls.watch.problem:
                    standing = "warn"
                    detail += f". The agent cannot notice that somebody enables forwarding: inotify says {problem}"
                    fix = "raise fs.inotify.max_user_instances, and restart the agent"
                found.append(Check(f"routing IPv{family}", standing, detail, fix))
        return found

    def _control(self) -> list[Check]:
        """Return from which places containers are kept away, and whether the store authenticates its clients."""
        agent = self._agent
        places = [control_plane.text(where) for where in agent.control.closed().places]
        if not places:
            return [Check("control plane", "ok", "the store is a folder: containers cannot reach it over the network")]
        more = f" and {len(places) - _SHOWN} more" if len(places) > _SHOWN else ""
        detail = f"containers are kept from {', '.join(places[:_SHOWN])}{more}"
        found = [Check("control plane", "ok", detail)]
        if agent.config.store.startswith("etcd://") and "user=" not in agent.config.store:
            why = "etcd has no user: anybody else who reaches it can change every host's routes"
            found.append(Check("store access", "warn", why, "docs/security.md: give etcd TLS and a password"))
        return found

    def _stations(self) -> list[Check]:
        """Return the peers whose plain packets are accepted from any MAC."""
        agent = self._agent
        networks = {way.name: way for network in agent.networks.all() for way in network.ways}
        known = agent.cluster.peers.known.items()
        names = {
            peer.host.name for (name, _), peer in known if name in networks and is_unchecked(networks[name], peer)
        }
        if not names:
            return []
        detail = (
            f"{', '.join(sorted(names))} do not announce their MACs: any machine on the segment can send "
            "with addresses of "
            "their containers"
        )
        return [Check("MACs of peers", "warn", detail, "upgrade linkspan there: older versions do not announce them")]

    def _owners(self) -> list[Check]:
        """Return whether every block and address has one owner."""
        found = status.disputes(self._agent)
        if not found:
            return [Check("owners", "ok", "no block and no address is claimed by two hosts")]
        return [Check("owners", "fail", str(dispute["why"]), str(dispute["fix"])) for dispute in found]

    def _records(self) -> list[Check]:
        """Return the records of the store that are not used completely."""
        found = status.not_used(self._agent)
        if not found:
            return [Check("records", "ok", "every record of the store is used completely")]
        return [Check("records", "fail", f"record {one['key']}: {one['why']}", _RECORDS) for one in found]

    def _hosts(self) -> list[Check]:
        """Return the problems between hosts that `status` shows, and hosts that share a name."""
        found = [
            Check("hosts", "fail" if one["network"] else "warn", f"host {one['host']}: {one['why']}", _HOSTS)
            for one in status.unreachable(self._agent)
        ]
        shared = namesakes.shared(self._agent.leases.names()).items()
        return found + [Check("host names", "warn", namesakes.told(*one), namesakes.FIX) for one in shared]


def _settings(unknown: Mapping[str, str]) -> list[Check]:
    """Return the settings that linkspan could not restore: ``unknown``, by path, with what linkspan set."""
    if not unknown:
        return []
    names = ", ".join(f"{path.replace('/', '.')}={value}" for path, value in sorted(unknown.items()))
    detail = f"linkspan set {names}, and the earlier value is lost: uninstall keeps linkspan's value"
    fix = "after `linkspan uninstall` set each to what you want (sysctl -w)"
    return [Check("settings before linkspan", "warn", detail, fix)]
