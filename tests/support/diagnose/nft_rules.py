"""A host whose kernel has the chains of nft that it is given, and what such chains are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from linkspan.core.addresses import prefix
from linkspan.core.errors import KernelError
from linkspan.diagnose.trace.kernel_view import LOCAL, UNICAST, Chain, Device, IptablesTable, Lookup
from linkspan.diagnose.trace.packet import Packet
from support.diagnose.empty_host import EmptyHost

SOURCE, TARGET = prefix("10.0.0.2").packed, prefix("192.0.2.1").packed
Rule = tuple[Mapping[str, Any], ...]
DROP: Mapping[str, Any] = {"drop": None}
ACCEPT: Mapping[str, Any] = {"accept": None}


PORTS: Mapping[str, Sequence[Any]] = {
    "ports": [53, {"elem": {"val": 443}}],
    "some": [53, {"range": [40000, 40010]}],
    "all": [{"range": [1024, 65535]}],
    "pairs": [{"concat": ["10.9.9.9", 40000]}, {"concat": ["192.0.2.1", {"range": [40000, 40010]}]}],
}


class Kernel(EmptyHost):
    """A host with these chains, sets of PORTS and one of addresses, ``known``, and a route to everywhere by eth1."""

    def __init__(self, *chains: Chain) -> None:
        self._chains = chains

    def chains(self, netns: int) -> tuple[Chain, ...]:
        """Return them."""
        return self._chains

    def iptables(self, netns: int, family: int) -> tuple[IptablesTable, ...]:
        """Return none."""
        return ()

    def holds(self, netns: int, chain: Chain, name: str, key: tuple[str, ...]) -> bool:
        """Look into the one set; another one cannot be asked."""
        if name != "known":
            raise KernelError("there is no such set")
        return key == ("10.0.0.2",)

    def elements(self, netns: int, chain: Chain, name: str) -> Sequence[Any]:
        """Return what sets of ports have."""
        if name not in PORTS:
            raise KernelError("there is no such set")
        return PORTS[name]

    def mapping(self, netns: int, chain: Chain, name: str) -> Sequence[Any]:
        """Return the one set's verdicts."""
        return [["10.9.9.9", ACCEPT], [{"prefix": {"addr": "10.0.0.0", "len": 30}}, DROP]]

    def route(self, netns: int, packet: Packet, arriving: str = "") -> Lookup:
        """Send everything by eth1; 192.0.2.1 is the host's own."""
        return Lookup(LOCAL if packet.target == TARGET else UNICAST, "eth1", source=prefix("192.0.2.9").packed)

    def device(self, netns: int, name: str) -> Device:
        """Return a link of group 3; a tunnel has no MAC."""
        mac = b"" if name == "tun0" else b"\x02\0\0\0\0\7"
        return Device(name, "veth", up=True, carrier=True, mtu=1500, mac=mac, group=3)


def base(*rules: Rule, hook: str = "forward", priority: int = 0, kind: str = "filter", **more: Any) -> Chain:
    """Return a base chain."""
    return Chain(more.pop("family", "inet"), "t", more.pop("name", "c"), kind, hook, priority, rules=rules, **more)


def match(left: Any, right: Any, op: str = "==") -> Mapping[str, Any]:
    """Return a match."""
    return {"match": {"op": op, "left": left, "right": right}}


def meta(key: str) -> Mapping[str, Any]:
    """Return a packet's property."""
    return {"meta": {"key": key}}


def field(protocol: str, name: str) -> Mapping[str, Any]:
    """Return a header's field."""
    return {"payload": {"protocol": protocol, "field": name}}


def mark(value: int) -> Mapping[str, Any]:
    """Return a statement that marks."""
    return {"mangle": {"key": meta("mark"), "value": value}}
