"""Linkspan beside the reader: its plan of the chapter's network, and its trace through what the reader built."""

from __future__ import annotations

import contextlib
import ipaddress
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from linkspan.core.addresses import Prefix
from linkspan.core.errors import Unavailable
from linkspan.core.model import Endpoint, Network
from linkspan.core.states.bgp import Session
from linkspan.demo.chapter_network import CONTAINERS, planned
from linkspan.diagnose.doctor import bgp_reasons
from linkspan.diagnose.plan import plan
from linkspan.diagnose.trace.bgp_routes import Learning, Told
from linkspan.diagnose.trace.hops import Hop, Map, show
from linkspan.diagnose.trace.parts import Part
from linkspan.diagnose.trace.result import Local
from linkspan.diagnose.trace.trace import Trace, Unanswered, trace
from linkspan.kernel.io.namespaces import Namespaces
from linkspan.kernel.probe import bird_control
from linkspan.learn.sandbox import Sandbox

NETNS = Path("/run/netns")
BIRD = Path("/run/bird/bird.ctl")
"""The control socket of the host's BIRD, if a lesson has one: BIRD's own default."""


def commands(kinds: Sequence[str]) -> list[str]:
    """Return the commands of linkspan's plan for these kinds of states, for the host and the first container."""
    (name, *_) = CONTAINERS
    inodes = {name: 1}  # no namespace is looked at: the plan only needs its path
    states = [one for one in planned(inodes) if type(one).__name__ in kinds]
    found = [c for state in plan.ordered(states) for c in plan.commands(state, lambda _: str(NETNS / name))]
    return [one for command in found for one in command.splitlines()]


def walked(source: str, target: str) -> Trace:
    """Trace a packet through this process's namespaces, as `linkspan trace` does; the reader's links are endpoints.

    Must run inside the sandbox. ``source`` is a namespace's name or an address. Raises LinkspanError if an end is not
    there.
    """
    with contextlib.closing(Namespaces()) as namespaces:
        networks, endpoints = _built(namespaces)
        known = Map("host", endpoints, networks)
        local = Local(namespaces, known, Path("/nonexistent"), _speaker())
        first, last, packet = local.begin(source, target)
        going = trace(known, first, last, packet)
        answer: Part | Unanswered | None = None
        while True:
            try:
                _, entry = going.send(answer) if answer is not None else next(going)
            except StopIteration as end:
                found: Trace = end.value
                return _with_holders(found, endpoints, packet.target)
            answer = local.part(entry)


def finding(found: Trace) -> str:
    """Return in one sentence what is wrong by a trace, '' if nothing is."""
    if not found.reachable:
        return f"{found.broken_at}: {found.reason}" if found.broken_at else found.reason
    if (narrower := narrow(found)) is None:
        return ""
    sender, place = narrower
    return (
        f"{sender.namespace} sends up to {sender.mtu} bytes, and only {found.path_mtu} fit through {place.device} "
        f"in {place.namespace}"
    )


def narrow(found: Trace) -> tuple[Hop, Hop] | None:
    """Return the sending hop and the first one through which packets of its size do not fit; None if all do."""
    if not found.hops:
        return None
    first = found.hops[0]
    place = next((hop for hop in (*found.hops, *found.reply_hops) if hop.mtu < first.mtu), None)
    return (first, place) if place else None


def _with_holders(found: Trace, endpoints: Sequence[Endpoint], target: bytes) -> Trace:
    """Return a trace that says so if several have the destination: whose answer comes first gets the packets."""
    holders = sorted({one.name for one in endpoints if any(p.packed == target for p in one.prefixes)})
    if found.reachable or len(holders) < 2:
        return found
    return msgspec.structs.replace(found, reason=f"{found.reason}; {show(target)} is in {' and in '.join(holders)}")


def _speaker() -> Learning | None:
    """Return what the host's BIRD knows, None if none runs: why a route was not learnt."""
    try:
        (lines,) = bird_control.ask(BIRD, "show protocols all")
    except Unavailable:
        return None
    sessions = []
    for seen in bird_control.protocols(lines):
        wanted = Session(
            name=seen.name,
            protocol=seen.name,
            mesh=False,
            address=seen.address,
            source=seen.source,
            local_as=seen.local_as,
            remote_as=seen.remote_as,
        )
        why = bgp_reasons.explain(wanted, seen, bgp_reasons.Evidence())
        sessions.append(Told(seen.address, seen.name, why.reason if why else ""))
    return Learning(BIRD, sessions, [Prefix(bytes(4), 0)])


class _Bridge(Network, frozen=True):
    """The network of a bridge that the reader made, under its own name."""

    @property
    def bridge(self) -> str:
        """Return the bridge's name."""
        return self.name


_ROUTED = Network(name="(routed)", pools=(), subnet_len={}, backend="host-gw", gateways=())
"""The network of links that are in no bridge: the host routes what they bring."""


def _built(namespaces: Namespaces) -> tuple[dict[str, Network], list[Endpoint]]:
    """Return the host's bridges as networks, and the interfaces in named namespaces as endpoints.

    A namespace without an interface has one, too, so that a trace can begin in it and say what is missing. A link in
    no bridge is a routed one if it has an address of its own or the host has no bridge; else it belongs in the first.
    """
    host = _links("")
    networks: dict[str, Network] = {}
    for link in host:
        if link.get("linkinfo", {}).get("info_kind") == "bridge":
            pools = tuple(str(ipaddress.ip_interface(one).network) for one in _addresses(link))
            networks[link["ifname"]] = _Bridge(
                name=link["ifname"], pools=pools, subnet_len={}, backend="bridge", gateways=()
            )
    first = next(iter(networks), _ROUTED.name)
    networks[_ROUTED.name] = _ROUTED
    names = {one["nsid"]: one.get("name", "") for one in _parsed("ip -j netns list-id")}
    ends = {(names.get(link.get("link_netnsid")), link.get("link_index")): link for link in host}
    endpoints = []
    for path in sorted(NETNS.iterdir()) if NETNS.is_dir() else ():
        inode = path.stat().st_ino
        namespaces.register(inode, str(path))
        links = _links(path.name)
        plugged = [link for link in links if link["ifname"] != "lo"]
        more = [one for link in links if link["ifname"] == "lo" for one in _addresses(link)]
        for link in plugged or [{"ifname": "eth0"}]:
            end = ends.get((path.name, link.get("ifindex")), {})
            endpoints.append(
                Endpoint(
                    id=path.name,
                    name=path.name,
                    ifname=link["ifname"],
                    network=end.get("master") or (_ROUTED.name if _addresses(end) else first),
                    addresses=(*more, *_addresses(link)) or (f"{CONTAINERS.get(path.name, '127.0.0.1')}/16",),
                    gateways=(),
                    mac=link.get("address", "00:00:00:00:00:00"),
                    mtu=link.get("mtu", 1500),
                    host_ifname=end.get("ifname", ""),
                    netns=inode,
                    netns_path=str(path),
                )
            )
    return networks, endpoints


def _addresses(link: Mapping[str, Any]) -> list[str]:
    found = [one for one in link.get("addr_info", ()) if one["scope"] == "global" and one["family"] == "inet"]
    return [f"{one['local']}/{one['prefixlen']}" for one in found]


def _links(netns: str) -> list[dict[str, Any]]:
    inside = f"-n {netns}" if re.fullmatch(r"[\w.-]+", netns) else ""
    return _parsed(f"ip {inside} -d -j address show")


def _parsed(command: str) -> list[dict[str, Any]]:
    ((_, output),) = Sandbox(0).results([command])
    return list(msgspec.json.decode(output or "[]"))
