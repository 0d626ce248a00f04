"""A CNI configuration with everything that linkspan knows, and null at each of its places."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from linkspan.runtimes.cni.cni_types import ATTACHMENTS
from support.cni.cni_calls import conf

INTERFACE = {"mtu": 1400, "socketPath": "/run/x.sock", "pciID": "0000:00:1f.6"}
PREVIOUS: dict[str, Any] = {
    "cniVersion": "1.1.0",
    "interfaces": [
        {"name": "veth0", "mac": "02:00:00:00:00:08", **INTERFACE},
        {"name": "wan0", "mac": "02:00:00:00:00:09", "sandbox": "/run/netns/web", **INTERFACE},
    ],
    "ips": [
        {"address": "192.0.2.9/24", "version": "4", "gateway": "192.0.2.1", "interface": 1},
        {"address": "2001:db8::9/64", "version": "6", "gateway": "2001:db8::1", "interface": 0},
    ],
    "routes": [
        {"dst": "198.51.100.0/24", "gw": "192.0.2.1"}
        | {"mtu": 1300, "advmss": 1260, "priority": 9, "table": 7, "scope": 0}
    ],
    "dns": {"nameservers": ["192.0.2.53"], "domain": "a.example", "search": ["b.example"], "options": ["ndots:2"]},
}
WHOLE: dict[str, Any] = {
    "type": "linkspan",
    "socket": "/run/linkspan/agent.sock",
    "capabilities": {"portMappings": True, "dns": True},
    "runtimeConfig": {
        "portMappings": [
            {"hostPort": 8080, "containerPort": 80, "protocol": "udp", "hostIP": "192.0.2.1"},
            {"hostPort": 8081, "containerPort": 81, "protocol": "tcp", "hostIP": ""},
        ],
        "ips": ["10.244.0.7", "fd00:244::7"],
        "mac": "02:00:00:00:00:0a",
        "bandwidth": {"ingressRate": 8000, "ingressBurst": 8000, "egressRate": 8000, "egressBurst": 8000},
        "dns": {"servers": ["192.0.2.54"], "searches": ["c.example"], "options": ["ndots:3"]},
        "aliases": ["db", "store"],
        "ipRanges": [],
        "io.kubernetes.cri.pod-annotations": {"linkspan/tier": "back", "linkspan/zone": "a"},
    },
    "args": {"cni": {"ips": ["10.244.0.8"], "mac": "02:00:00:00:00:0b", "labels": [{"key": "app", "value": "shop"}]}},
    "dns": {"nameservers": ["192.0.2.55"], "domain": "d.example", "search": ["e.example"], "options": ["ndots:4"]},
    "prevResult": PREVIOUS,
    ATTACHMENTS: [{"containerID": "web", "ifname": "eth0"}],
}
"""A configuration with everything that linkspan knows."""

Place = tuple[str | int, ...]


def places(value: Any, at: Place = ()) -> Iterator[Place]:
    """Yield the way to every key and list element in a value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*at, key)
        yield from places(inner, (*at, key))


def inside(whole: Any, place: Place) -> Any:
    """Return the object or list that a place is in."""
    for key in place[:-1]:
        whole = whole[key]
    return whole


def nulled(place: Place, version: str) -> dict[str, Any]:
    """Return the configuration with null at a place."""
    made = copy.deepcopy(conf(version, **WHOLE))
    inside(made, place)[place[-1]] = None
    return made


_REQUIRED = {"cniVersion", "name", "hostPort", "containerPort", "key", "value", "address", "dst"}
_REQUIRED |= {"containerID", "ifname"}


def needed(place: Place) -> bool:
    """Return whether a call is refused without what is at this place."""
    if place == ("prevResult", "interfaces"):  # its addresses say on which of them they are
        return True
    return place[-1] in _REQUIRED and place != ("prevResult", "cniVersion")
