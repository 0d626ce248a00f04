"""Network that a reader has built: the hosts of a sandbox, their containers and tunnels, as a trace needs them."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from linkspan.core.addresses import Prefix, prefix
from linkspan.core.errors import Unavailable
from linkspan.core.model import Endpoint, Network
from linkspan.core.states.bgp import Session
from linkspan.core.states.host import HOST
from linkspan.core.wire import IPIP, VXLAN, WIREGUARD, Wire
from linkspan.demo.chapter_network import CONTAINERS
from linkspan.diagnose.doctor import bgp_reasons
from linkspan.diagnose.trace.bgp_routes import Learning, Told
from linkspan.diagnose.trace.hops import Map, Other
from linkspan.kernel.probe import bird_control
from linkspan.learn import reader_switch, reader_xfrm
from linkspan.learn.reader_kernel import wireguard
from linkspan.learn.reader_switch import Plug, Switches
from linkspan.learn.reader_xfrm import Xfrm
from linkspan.learn.sandbox import NETNS, Sandbox

FIRST = "host"
"""The name of the host that is the sandbox's own namespace."""
_NAME = re.compile(r"\w[\w.-]*", re.ASCII)
"""Names that may be words of a shell command; the reader gave them."""
_BIRD = {FIRST: "bird"}
"""The names of control sockets below /run/bird, where they are not the host's name: the first has BIRD's default."""

_FALLBACK = frozenset({"gretap", "erspan"})
"""Kinds of links with MACs that a module makes in every namespace (tunl0 and others have none)."""

Links = Sequence[Mapping[str, Any]]
"""Links as `ip -d -j address show` prints them."""


class _Bridge(Network, frozen=True):
    """The network of a bridge that the reader made, under its own name."""

    @property
    def bridge(self) -> str:
        """Return the bridge's name."""
        return self.name


class _Known(Map, frozen=True):
    """A host's map, in which every host has its own name."""

    def name(self, netns: int, ifname: str = "") -> str:
        """Return a namespace's name."""
        return self.host if netns == HOST else super().name(netns, ifname)


class ReaderHost(msgspec.Struct, frozen=True):
    """One host: its namespace (HOST for the sandbox's own, with no path), what is there, tunnel devices and IPsec.

    ``switches`` are those between all hosts.
    """

    name: str
    netns: int
    path: str
    known: Map
    wires: tuple[Wire, ...]
    xfrm: Xfrm
    switches: Switches

    def speaker(self) -> Learning | None:
        """Return what the host's BIRD knows, None if none runs: why a route was not learnt."""
        control = Path("/run/bird", f"{_BIRD.get(self.name, self.name)}.ctl")
        try:
            (lines,) = bird_control.ask(control, "show protocols all")
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
        return Learning(control, sessions, [Prefix(bytes(4), 0)])


_ROUTED = Network(name="(routed)", pools=(), subnet_len={}, backend="host-gw", gateways=())
"""The network of links that are in no bridge: the host routes what they bring."""


class _Space(msgspec.Struct, frozen=True):
    """A namespace as `ip` shows it: its links, and what it calls other namespaces, by its own numbers for them."""

    name: str
    links: Links
    numbers: Mapping[int, str]

    @property
    def addresses(self) -> tuple[bytes, ...]:
        """Return all global addresses."""
        return tuple(prefix(one).packed for link in self.links for one in _addresses(link))

    @property
    def ends(self) -> dict[tuple[str, int], Mapping[str, Any]]:
        """Return the links by the other end of each: the namespace's name, and the index there."""
        return {
            (self.numbers.get(link.get("link_netnsid", -1), ""), link.get("link_index", 0)): link for link in self.links
        }

    @property
    def networks(self) -> dict[str, Network]:
        """Return the bridges as networks, and one for what is routed."""
        found: dict[str, Network] = {}
        for link in self.links:
            if _kind(link) == "bridge":
                pools = tuple(str(ipaddress.ip_interface(one).network) for one in _addresses(link))
                name = link["ifname"]
                found[name] = _Bridge(name=name, pools=pools, subnet_len={}, backend="bridge", gateways=())
        return found | {_ROUTED.name: _ROUTED}

    @property
    def wires(self) -> tuple[Wire, ...]:
        """Return how its tunnel devices wrap packets."""
        return tuple(wire for link in self.links if (wire := _wire(link)))


def hosts(names: Iterable[str]) -> list[ReaderHost]:
    """Return the sandbox's own host and those of these names that exist; the other namespaces are their containers.

    Must run inside the sandbox.
    """
    named = [path.name for path in sorted(NETNS.iterdir()) if _NAME.fullmatch(path.name)] if NETNS.is_dir() else []
    there = [FIRST, *(name for name in names if name in named)]
    spaces = _spaces([FIRST, *named])
    endpoints = _endpoints([spaces[name] for name in there], [spaces[name] for name in named if name not in there])
    keys = {key: name for name in there for key in _keys(spaces[name])}
    between = _switches(spaces)
    return [
        _host(spaces[name], [spaces[other] for other in there if other != name], endpoints, keys, between)
        for name in there
    ]


def lacking(name: str) -> str:
    """Return why no packet can begin or end in a container, '' if one can, or if the name is an address.

    Must run inside the sandbox.
    """
    if not _NAME.fullmatch(name) or not (NETNS / name).exists():
        return ""
    plugged = _ethers(*_parsed([f"ip {_into(name)}-d -j address show"]))
    if not plugged:
        return "it has no link besides lo"
    return "" if any(map(_addresses, plugged)) else "it has no address"


def _switches(spaces: Mapping[str, _Space]) -> Switches:
    """Find the ports of switches at which links end."""
    ((_, printed),) = Sandbox(0).results([reader_switch.PORTS])
    known = reader_switch.ports(printed)
    links: dict[tuple[str, str], Plug] = {}
    addresses: dict[bytes, Plug] = {}
    for one in spaces.values() if known else ():
        for link in one.links:
            place = one.numbers.get(link.get("link_netnsid", -1), "")
            there = spaces[place].links if place in spaces else ()
            name = next((far["ifname"] for far in there if far["ifindex"] == link.get("link_index")), "")
            if name in known:
                plug = Plug(place, known[name][0], name, known[name][1])
                links[one.name, link["ifname"]] = plug
                addresses |= {prefix(address).packed: plug for address in _addresses(link)}
    return Switches(links, addresses)


def _spaces(names: Sequence[str]) -> dict[str, _Space]:
    """Look at namespaces."""
    links = _parsed(f"ip {_into(name)}-d -j address show" for name in names)
    numbers = _parsed(f"ip {_into(name)}-j netns list-id" for name in names)
    return {
        name: _Space(name, found, {one["nsid"]: one.get("name", "") for one in known})
        for name, found, known in zip(names, links, numbers, strict=True)
    }


def _endpoints(there: Sequence[_Space], containers: Sequence[_Space]) -> dict[str, list[Endpoint]]:
    """Return the containers' links by the host to which they lead; those that lead nowhere are the first host's."""
    ends, networks = {one.name: one.ends for one in there}, {one.name: one.networks for one in there}
    found: dict[str, list[Endpoint]] = {one.name: [] for one in there}
    for one in containers:
        for link in _plugged(one.links):
            place = one.name, link.get("ifindex", 0)
            holder = next((name for name in ends if place in ends[name]), FIRST)
            found[holder].append(_endpoint(one, link, ends[holder].get(place, {}), networks[holder]))
    return found


def _host(
    own: _Space,
    others: Sequence[_Space],
    endpoints: Mapping[str, Sequence[Endpoint]],
    keys: Mapping[str, str],
    switches: Switches,
) -> ReaderHost:
    known = _Known(
        own.name,
        endpoints[own.name],
        own.networks,
        {address: one.name for one in others for address in one.addresses},
        id=own.name,
        others={one.name: Other(one.name, {"": one.addresses}, endpoints[one.name]) for one in others},
        keys=keys,
    )
    path = "" if own.name == FIRST else str(NETNS / own.name)
    netns = Path(path).stat().st_ino if path else HOST
    return ReaderHost(own.name, netns, path, known, own.wires, _xfrm(own), switches)


def _into(name: str) -> str:
    """Return the words that lead `ip` into a namespace."""
    return "" if name == FIRST else f"-n {name} "


def _plugged(links: Links) -> Links:
    """Return a container's links. One without any has one, so that a trace that ends in it says what is missing."""
    return _ethers(links) or [{"ifname": "eth0"}]


def _ethers(links: Links) -> Links:
    return [link for link in links if link.get("link_type") == "ether" and _kind(link) not in _FALLBACK]


def _endpoint(
    container: _Space, link: Mapping[str, Any], end: Mapping[str, Any], networks: Mapping[str, Network]
) -> Endpoint:
    """Return a container's link as an endpoint; ``end`` is the host's end of it.

    A link in no bridge is a routed one if its end has an address or the host has no bridge; else it belongs in the
    first bridge.
    """
    name, path = container.name, NETNS / container.name
    more = [one for other in container.links if other["ifname"] == "lo" for one in _addresses(other)]
    return Endpoint(
        id=name,
        name=name,
        ifname=link["ifname"],
        network=end.get("master") or (_ROUTED.name if _addresses(end) else next(iter(networks))),
        addresses=(*more, *_addresses(link)) or (f"{CONTAINERS.get(name, '127.0.0.1')}/16",),
        gateways=(),
        mac=link.get("address", "02:00:00:00:00:00"),
        mtu=link.get("mtu", 1500),
        host_ifname=end.get("ifname", ""),
        netns=path.stat().st_ino,
        netns_path=str(path),
    )


def _wire(link: Mapping[str, Any]) -> Wire | None:
    """Return how a tunnel device wraps packets, None for any other link."""
    name, data = link["ifname"], link.get("linkinfo", {}).get("info_data", {})
    local, remote = (_packed(data.get(word, "")) for word in ("local", "remote"))
    match _kind(link):
        case "vxlan":
            return Wire(name, VXLAN, local, data["port"], data["id"])
        case "ipip" if local or remote or "UP" in link["flags"]:  # else it is the module's own, tunl0
            return Wire(name, IPIP, local, remote=remote)
        case "wireguard":
            return Wire(name, WIREGUARD)
    return None


def _packed(text: str) -> bytes:
    """Return an address of `ip`'s output, b'' for ``any``."""
    return b"" if text in ("", "any") else prefix(text).packed


def _keys(host: _Space) -> list[str]:
    """Return the public keys of a host's WireGuard devices."""
    inside = [] if host.name == FIRST else ["ip", "netns", "exec", host.name]
    tables = (wireguard(one.device, inside) for one in host.wires if one.kind == WIREGUARD)
    return [table.public for table in tables if table is not None]


def _xfrm(host: _Space) -> Xfrm:
    """Return a host's IPsec."""
    shown = Sandbox(0).results([f"ip {_into(host.name)}xfrm {what}" for what in ("state", "policy list nosock")])
    states, policies = (output if not code else "" for code, output in shown)
    interfaces = (link for link in host.links if _kind(link) == "xfrm")
    ids = {link["ifname"]: int(str(link["linkinfo"].get("info_data", {}).get("if_id", 0)), 0) for link in interfaces}
    return reader_xfrm.parsed(states, policies, ids)


def _kind(link: Mapping[str, Any]) -> str:
    return str(link.get("linkinfo", {}).get("info_kind", ""))


def _addresses(link: Mapping[str, Any]) -> list[str]:
    found = [one for one in link.get("addr_info", ()) if one["scope"] == "global" and one["family"] == "inet"]
    return [f"{one['local']}/{one['prefixlen']}" for one in found]


def _parsed(commands: Iterable[str]) -> list[list[dict[str, Any]]]:
    """Run commands that print JSON; return what each printed, nothing if it failed."""
    results = Sandbox(0).results(list(commands))
    return [msgspec.json.decode(output) if output and not code else [] for code, output in results]
