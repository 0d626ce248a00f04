"""State of the page: what an agent's answers say, in the page's form, and the difference of two states. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from linkspan.core import namesakes
from linkspan.core.sentences import Sentences
from linkspan.core.translation import LANGUAGES

MOST = 5000
"""Containers in the state. If there are more, it has only their numbers, and the page asks for lists in parts."""

_OF_CONTAINER = (
    *("id", "ifname", "name", "host", "network", "addresses", "mac", "mtu", "ports", "labels", "host_ifname"),
    "managed",
)
"""What the page gets of an endpoint."""

State = Mapping[str, Mapping[str, Any]]
"""Sections of the state: the items of each by their keys."""


class Answers(msgspec.Struct, frozen=True, kw_only=True):
    """An agent's answers, each as docs/json.md has it; ``problems`` say which of them are old."""

    status: dict[str, Any]
    hosts: list[dict[str, Any]]
    networks: list[dict[str, Any]]
    endpoints: list[dict[str, Any]]
    problems: list[str] = []


class SectionChange(msgspec.Struct, frozen=True):
    """Items of a section that are new or different, and keys of those that are gone."""

    put: dict[str, Any]
    drop: list[str]


def view(answers: Answers, about: Mapping[str, Any]) -> State:
    """Return the state. ``about`` is what the server knows beside the agent's answers.

    In the state's own ``about`` the agent is ``away`` or ``waiting`` for a reason, which ``said`` has in other
    languages.
    """
    status, containers = answers.status, answers.endpoints
    counts = Counter((one["host"], one["network"]) for one in containers)
    on_host, in_network = Counter[str](), Counter[str]()
    for (host, network), count in counts.items():
        on_host[host] += count
        in_network[network] += count
    agent, store = status["agent"], status["store"]
    own = {
        "here": agent.get("host", ""),
        "version": agent["version"],
        "started": agent["started"],
        "ok": status["ok"],
        "waiting": status.get("waiting", ""),
        "said": _said(status.get("waiting", "")),
        "store": {"state": store.get("state", ""), "why": "; ".join(filter(None, _store_problem(store)))},
        "total": len(containers),
        "complete": len(containers) <= MOST,
        "away": "",
    }
    free = {one["name"]: one for one in status["networks"]}
    return {
        "about": {**about, **own},
        "hosts": {one["id"]: _host(one, counts, on_host[one["name"]]) for one in answers.hosts},
        "networks": {
            one["name"]: _network(one, free.get(one["name"], {}), in_network[one["name"]]) for one in answers.networks
        },
        "containers": {container_key(one): container(one) for one in containers} if len(containers) <= MOST else {},
        "routers": {one["peer"]: one for one in status["bgp"].get("routers", ())},
        "problems": {f"{number:03}": one for number, one in enumerate(problems(status, answers.problems))},
        "repairs": {f"{number:03}": one for number, one in enumerate(status["heals"])},
    }


def away(state: State, why: str) -> State:
    """Return the same state, of an agent that does not answer any more."""
    return {**state, "about": {**state["about"], "away": why, "ok": False, "said": _said(why)}}


def unknown(about: Mapping[str, Any], why: str) -> State:
    """Return the state of an agent that has not answered yet."""
    nothing: dict[str, Any] = {}
    own = {"here": "", "version": "", "started": 0, "ok": False, "waiting": "", "said": _said(why), "total": 0}
    sections = dict.fromkeys(("hosts", "networks", "containers", "routers", "problems", "repairs"), nothing)
    store = {"state": "", "why": ""}
    return {"about": {**about, **own, "store": store, "complete": True, "away": why}, **sections}


def difference(before: State, after: State) -> dict[str, SectionChange]:
    """Return the sections that differ; both states have the same sections."""
    found = {}
    for name, items in after.items():
        old = before[name]
        put = {key: item for key, item in items.items() if key not in old or old[key] != item}
        drop = [key for key in old if key not in items]
        if put or drop:
            found[name] = SectionChange(put, drop)
    return found


def container_key(endpoint: Mapping[str, Any]) -> str:
    """Return the key of an endpoint: its container's id and its interface."""
    return f"{endpoint['id']}/{endpoint['ifname']}"


def container(endpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Return an endpoint as the page needs it."""
    return {name: endpoint.get(name) for name in _OF_CONTAINER}


def _host(one: Mapping[str, Any], counts: Mapping[tuple[str, str], int], total: int) -> dict[str, Any]:
    name, underlay = one["name"], one["underlay"]
    return {
        "id": one["id"],
        "name": name,
        "state": one["state"],
        # The time at which a living host was last seen changes all the time, and says nothing.
        "last_seen": None if one["alive"] else one["last_seen"],
        "version": one["version"],
        "underlay": underlay and {"ifname": underlay["ifname"], "addresses": underlay["addresses"]},
        "leases": [
            {
                "network": lease["network"],
                "prefixes": lease["prefixes"],
                "addresses": lease["host_address"],
                "used": counts.get((name, lease["network"]), 0),
            }
            for lease in one["leases"]
        ],
        "settings": one["settings"],
        "containers": total,
    }


def _network(one: Mapping[str, Any], own: Mapping[str, Any], total: int) -> dict[str, Any]:
    fields = ("name", "backend", "pools", "subnet_len", "options", "mtu", "internal", "masquerade", "ipam")
    return {
        **{name: one.get(name) for name in fields},
        "policy": one.get("policy", ""),
        "migration": one.get("migration"),
        "free": own.get("free"),
        "not_switched": own.get("not_switched", []),
        "containers": total,
    }


def problems(status: Mapping[str, Any], more: Iterable[str] = ()) -> list[dict[str, Any]]:
    """Return everything that is not as it should be: on which host, in which network, and why, in each language."""
    found = [_problem(one["why"], host=one["host"], network=one["network"]) for one in status["unreachable"]]
    found += [_problem(f"cannot repair: {why}") for why in status["drift"]]
    found += [_problem(one["why"], one["fix"]) for one in status["disputes"]]
    found += [
        _problem(f"record {one['key']} is not used: {one['why']}", host=one["host"])
        for one in status.get("records", ())
    ]
    found += [
        _problem(f"BGP session with {one['peer']} is down: {one['why']}", host=one["peer"] if one.get("mesh") else "")
        for one in status["bgp"]["down"]
    ]
    found += [_problem(f"BGP peer {one['peer']}: {one['why']}", one["fix"]) for one in status["bgp"].get("limited", ())]
    found += [
        _problem(namesakes.told(one["name"], one["ids"]), namesakes.FIX, host=one["name"])
        for one in status.get("namesakes", ())
    ]
    found += [_problem(f"{one['what']} is an orphan, and will be removed") for one in status.get("orphans", ())]
    found += [
        _problem(f"certificate {one['name']}: {one['problem']}", one["fix"])
        for one in status.get("certificates", ())
        if one["problem"]
    ]
    if any(told := _store_problem(status["store"])):
        found.append(_problem(f"store: {told[0]}", told[1]))
    found += map(_problem, more)
    if not (found or status["ok"] or status.get("waiting")):  # the agent may be newer than this program
        found.append(_problem("`linkspan status` shows what is wrong"))
    return found


def _problem(why: str, fix: str = "", *, host: str = "", network: str = "") -> dict[str, Any]:
    """Return a problem as the page needs it; ``said`` has why, and what to do, in other languages than English."""
    sentences = [one for one in (why, fix) if one]
    return {"host": host, "network": network, "why": "; ".join(sentences), "said": _said(*sentences)}


def _said(*sentences: str) -> dict[str, str]:
    """Return sentences in each language other than English."""
    return {code: "\uff1b".join(map(Sentences(code), sentences)) for code in LANGUAGES if code != "en"}


def _store_problem(store: Mapping[str, Any]) -> tuple[str, str]:
    """Return what is wrong with the store, and the fix; both are '' if nothing is."""
    return str(store.get("problem") or "").removeprefix("store "), str(store.get("fix") or "")
