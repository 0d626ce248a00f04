"""API of a controller: its status, flows, plan, diff, and metrics."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import msgspec
from aiohttp import web

from linkspan.agent.metrics import exposition
from linkspan.api.responses import answer, error_body
from linkspan.controller.controller import Controller
from linkspan.controller.devices import Device, Router, Switch
from linkspan.core.errors import Invalid, LinkspanError, NotFound, Unavailable
from linkspan.core.states.host import State
from linkspan.core.states.openflow import MEANINGS, Counted, Flow, RouterRoute, cookie
from linkspan.kernel.drivers.frr import route as frr_route
from linkspan.kernel.drivers.openflow import added

D = TypeVar("D", bound=Device[Any])
T = TypeVar("T")

DROPS = ("forged", "past", "unknown", "foreign", "isolated", "lost", "other")


class StatusRoutes:
    """Read-only routes over a controller."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller

    def application(self) -> web.Application:
        """Return the application of the controller's socket."""
        app = web.Application(middlewares=[_errors])
        app.add_routes(
            [
                web.get("/v1/controller", self._status),
                web.get("/v1/controller/flows", self._flows),
                web.get("/v1/controller/plan", self._plan),
                web.get("/v1/controller/diff", self._diff),
                web.get("/metrics", self.metrics),
            ]
        )
        return app

    async def _status(self, request: web.Request) -> web.Response:
        return answer(status(self._controller))

    async def _flows(self, request: web.Request) -> web.Response:
        chosen = self._chosen(request.query.get("switch", ""))
        return answer(await flows([one for one in chosen if isinstance(one, Switch)]))

    async def _plan(self, request: web.Request) -> web.Response:
        return answer(await plan(self._chosen(request.query.get("switch", ""))))

    async def _diff(self, request: web.Request) -> web.Response:
        return answer(await diff(self._controller.devices))

    async def metrics(self, request: web.Request) -> web.Response:
        """Answer with the metrics for Prometheus."""
        text = exposition(_gauges(self._controller))
        return web.Response(body=text, content_type="text/plain", charset="utf-8")

    def _chosen(self, name: str) -> list[Switch | Router]:
        there = self._controller.devices
        found = [one for one in there if name in ("", one.name)]
        if not found:
            names = ", ".join(one.name for one in there)
            raise NotFound(f"there is no switch {name}", f"there are {names}")
        return found


async def flows(there: Sequence[Switch]) -> dict[str, list[dict[str, Any]]]:
    """Return the flows in switches, and the switches whose flows are unknown."""
    answers, unknown = await _asked(there, lambda one: list(one.driver.dump()), first=True)
    found = [_flow(one.name, counted) for one, dump in answers for counted in sorted(dump, key=_order)]
    return {"flows": found, "unknown": unknown}


async def plan(there: Sequence[Switch | Router]) -> dict[str, list[dict[str, Any]]]:
    """Return the desired states of devices, as commands, and the devices whose state is unknown."""
    answers, unknown = await _asked(there, lambda one: set(one.driver.observe(0)))
    found = [
        {
            "device": one.name,
            "kind": type(state).__name__,
            "key": _name(state),
            "command": _line(one, state),
            "why": state.meaning if isinstance(state, Flow) else "route of a prefix to its host",
            "present": state in present,
        }
        for one, present in answers
        for state in one.reconciler.desired.states().values()
    ]
    return {"plan": found, "unknown": unknown}


async def diff(there: Sequence[Switch | Router]) -> dict[str, list[dict[str, str]]]:
    """Return the differences between desired and observed, and the devices for which they are unknown."""
    answers, unknown = await _asked(there, lambda one: one.differs())
    told: dict[str, list[dict[str, str]]] = {"put": [], "delete": [], "unknown": unknown}
    for one, change in answers:
        for word, states in (("put", change.put), ("delete", change.delete)):
            told[word] += [{"device": one.name, "kind": type(s).__name__, "key": _name(s)} for s in states]
    return told


async def _asked(
    there: Sequence[D], work: Callable[[D], T], *, first: bool = False
) -> tuple[list[tuple[D, T]], list[dict[str, str]]]:
    """Ask all devices at once; return each answer, and the reason for each missing one.

    Without ``first`` a device that had no turn yet is not asked: nobody knows its desired state.
    """

    async def answer(one: D) -> T:
        if one.away or not (one.since or first):
            raise Unavailable(one.problem)
        return await one.call(lambda: work(one))

    answers, unknown = [], []
    for one, found in zip(there, await asyncio.gather(*map(answer, there), return_exceptions=True), strict=True):
        if isinstance(found, LinkspanError):
            unknown.append({"device": one.name, "problem": found.message})
        elif isinstance(found, BaseException):
            raise found
        else:
            answers.append((one, found))
    return answers, unknown


def status(one: Controller) -> dict[str, Any]:
    """Return the status in the documented format."""
    where, held = one.where, one.holders
    places, macs = dict(where.places), dict(held.held.macs)
    wrong = one.misplaced()
    return {
        "controller": one.name,
        "active": one.election.active,
        "leader": one.election.leader,
        "store": {"url": one.settings.store.partition("?")[0], "problem": one.replica.problem},
        "switches": [_switch(one, switch) for switch in one.switches],
        "routers": [_device(router) for router in one.routers],
        "links": [
            {"switch": here, "port": _port(one, here, number), "to": there, "state": "up" if cost == 1 else "silent"}
            for (here, number), there, cost in where.links
        ],
        "hosts": [
            {
                "host": host.name,
                "mac": macs.get(host.id, ""),
                "switch": places[host.id][0] if host.id in places else "",
                "port": _port(one, *places[host.id]) if host.id in places else "",
                "problem": wrong.get(host.id, ""),
            }
            for host in held.hosts
            if one.switches
        ],
        "prefixes": _prefixes(one),
        "dropped": [
            {"switch": switch, "kind": kind, "what": MEANINGS[kind], "packets": packets}
            for (switch, kind), packets in sorted(_dropped(one).items())
        ],
        "problems": [*held.problems, *(f"host {held.name(h)}: {why}" for h, why in wrong.items())],
        "heals": [
            {"at": heal.at, "device": device.name, "kind": heal.kind, "key": heal.key, "what": heal.what}
            for device in one.devices
            for heal in list(device.heals)
        ],
    }


def _device(one: Switch | Router) -> dict[str, Any]:
    state = "ok" if not one.problem else "unreachable" if not one.since or _silent(one) else "failing"
    return {"name": one.name, "address": one.address, "state": state, "problem": one.problem, "healed": one.healed}


def _silent(one: Device[Any]) -> bool:
    return time.time() - one.since > 5


def _switch(one: Controller, switch: Switch) -> dict[str, Any]:
    ports = one.fabric.seen[switch.name].ports if switch.name in one.fabric.seen else ()
    counts = {"flows": len(switch.driver.counted), "ports": len(ports), "ports_up": sum(p.up for p in ports)}
    return _device(switch) | counts


def _port(one: Controller, switch: str, number: int) -> str:
    ports = one.fabric.seen[switch].ports if switch in one.fabric.seen else ()
    return next((port.name for port in ports if port.number == number), str(number))


def _prefixes(one: Controller) -> list[dict[str, Any]]:
    """Return each prefix with its host's sent and received packets, by the flows of its own switch and of all."""
    counts: dict[int, list[int]] = {}
    for switch in one.switches:
        for counted in list(switch.driver.counted.values()):
            total = counts.setdefault(counted.flow.cookie, [0, 0])
            total[0] += counted.packets
            total[1] += counted.octets
    places = dict(one.where.places)
    told = []
    for claim in one.holders.claims:
        sent, received = (_count(counts, kind, str(claim.prefix)) for kind in ("source", "forward"))
        told.append(
            {
                "prefix": str(claim.prefix),
                "network": claim.network,
                "host": one.holders.name(claim.host),
                "switch": places[claim.host][0] if claim.host in places else "",
                "sent": {"packets": sent[0], "bytes": sent[1]},
                "received": {"packets": received[0], "bytes": received[1]},
            }
        )
    return told


def _count(counts: dict[int, list[int]], kind: str, about: str) -> list[int]:
    return counts.get(cookie(kind, about), [0, 0])


def _dropped(one: Controller) -> dict[tuple[str, str], int]:
    found: dict[tuple[str, str], int] = {}
    for switch in one.switches:
        for counted in list(switch.driver.counted.values()):
            if counted.flow.kind in DROPS:
                key = switch.name, counted.flow.kind
                found[key] = found.get(key, 0) + counted.packets
    return found


def _order(one: Counted) -> tuple[int, int, tuple[str, ...]]:
    return one.flow.table, -one.flow.priority, one.flow.match


def _flow(switch: str, one: Counted) -> dict[str, Any]:
    flow = one.flow
    return {
        "switch": switch,
        "table": flow.table,
        "priority": flow.priority,
        "match": list(flow.match),
        "actions": flow.actions,
        "cookie": f"{flow.cookie:#x}",
        "ours": one.ours,
        "what": flow.meaning if one.ours else "",
        "packets": one.packets,
        "bytes": one.octets,
    }


def _line(one: Switch | Router, state: State) -> str:
    """Return the command that a person would type."""
    if isinstance(state, Flow):
        return f"ovs-ofctl -O OpenFlow13 add-flow {one.address} '{added(state)}'"
    assert isinstance(state, RouterRoute)
    return f"vtysh -c 'configure terminal' -c '{frr_route(state)}'"


def _name(state: State) -> str:
    return state.text if isinstance(state, Flow) else str(getattr(state, "destination", state.key))


def _gauges(one: Controller) -> Iterable[tuple[str, str, tuple[str, ...], dict[tuple[str, ...], float]]]:
    told = status(one)
    yield "linkspan_controller_active", "Whether this controller is the active one", (), {(): float(told["active"])}
    switches = told["switches"]
    name = ("switch",)
    yield "linkspan_switch_up", "Whether the switch answers and has its desired flows", name, {
        (s["name"],): float(s["state"] == "ok") for s in switches
    }
    yield "linkspan_switch_flows", "Flows of linkspan's", name, {(s["name"],): s["flows"] for s in switches}
    yield "linkspan_switch_heals", "Flows that were repaired", name, {(s["name"],): s["healed"] for s in switches}
    yield "linkspan_switch_dropped_packets", "Packets that were dropped, by the kind of flow", ("switch", "kind"), {
        (d["switch"], d["kind"]): d["packets"] for d in told["dropped"]
    }
    for way in ("sent", "received"):
        for what in ("packets", "bytes"):
            yield f"linkspan_prefix_{way}_{what}", f"Traffic that a prefix has {way}", ("network", "prefix"), {
                (p["network"], p["prefix"]): p[way][what] for p in told["prefixes"]
            }
    yield "linkspan_hosts_found", "Hosts that were found at a port", (), {
        (): float(sum(bool(h["switch"]) for h in told["hosts"]))
    }


@web.middleware
async def _errors(request: web.Request, handler: Any) -> web.StreamResponse:
    try:
        answer: web.StreamResponse = await handler(request)
    except LinkspanError as error:
        code = 404 if isinstance(error, NotFound) else 400 if isinstance(error, Invalid) else 503
        return web.Response(status=code, body=msgspec.json.encode(error_body(error)), content_type="application/json")
    return answer
