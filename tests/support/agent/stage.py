"""A stage for many tests: one host with its agent, an outside, and two networks of either mode."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from support.agent.agent_host import Host, World, first_ip, run

MODES = [pytest.param(mode, id=mode) for mode in ("bridged", "br_netfilter", "routed")]
"""On a bridge, on one whose frames pass the IP hooks as well (what Docker and Kubernetes turn on), and routed."""
FAMILIES = [pytest.param(4, id="ipv4"), pytest.param(6, id="ipv6")]
POOLS = {"demo": ("10.201.0.0/16", "fd00:201::/64"), "other": ("10.202.0.0/16", "fd00:202::/64")}
INTERNAL = ("10.203.0.0/16", "fd00:203::/64")
UPLINK = {4: "198.51.100.1", 6: "2001:db8::1"}
OUTSIDE = {4: "198.51.100.2", 6: "2001:db8::2"}
SECOND = {4: ("203.0.113.1", "203.0.113.2", 24), 6: ("2001:db8:2::1", "2001:db8:2::2", 64)}
SETTINGS = {4: "net.ipv4.ip_forward", 6: "net.ipv6.conf.all.forwarding"}

Addresses = dict[int, tuple[str, str, int]]


def options(mode: str) -> dict[str, str]:
    """Return the network options of a mode."""
    return {"mode": "routed"} if mode == "routed" else {}


def port(host_port: int, port: int, protocol: str = "tcp", host_ip: str = "") -> dict[str, Any]:
    """Return a published port as the API has it."""
    return {"host_ip": host_ip, "host_port": host_port, "port": port, "protocol": protocol}


class Stage:
    """Networks demo and other on one host, and a namespace beyond its uplink that has no route to any pool."""

    def __init__(self, world: World, mode: str) -> None:
        self.world = world
        self.mode = mode
        self.host = Host(world)
        self.outside = self.host.outside()
        calls = int(mode == "br_netfilter")
        settings = [f"net.bridge.bridge-nf-call-{tables}={calls}" for tables in ("iptables", "ip6tables")]
        settings += [
            "net.ipv4.icmp_ratelimit=0",
            "net.ipv6.icmp.ratelimit=0",
        ]  # else six errors, then one a second
        run("sysctl", "-qw", *settings, netns=self.host.netns)

    def start(self) -> None:
        """Start the agent and make the networks."""
        self.host.start()
        self.networks = {
            name: self.host.network(name, *pools, options=options(self.mode)) for name, pools in POOLS.items()
        }

    def attach(self, network: str = "demo", **more: Any) -> Container:
        """Attach one more container."""
        return Container(self.host, self.world.namespace(), network, **more)

    def internal(self, name: str = "secret") -> None:
        """Make an internal network."""
        self.networks[name] = self.host.network(name, *INTERNAL, options=options(self.mode), internal=True)

    def gateway(self, network: str, family: int) -> str:
        """Return a network's gateway."""
        return next(str(g) for g in self.networks[network]["gateways"] if (":" in g) == (family == 6))


class Container:
    """A namespace that is attached."""

    def __init__(self, host: Host, netns: str, network: str, **more: Any) -> None:
        self.netns = netns
        self.endpoint = host.attach(netns, network, **more)
        self.port = str(self.endpoint["host_ifname"])
        self.mac = str(self.endpoint["mac"])

    def ip(self, family: int = 4) -> str:
        """Return its address of a family."""
        return first_ip(self.endpoint, family)


@contextlib.contextmanager
def staged(mode: str, *, started: bool = True) -> Iterator[Stage]:
    """Set the stage, with the agent running unless told otherwise, and strike it at the end."""
    world = World()
    try:
        stage = Stage(world, mode)
        try:
            if started:
                stage.start()
            yield stage
        finally:
            stage.host.close()
    finally:
        world.remove()


def cable(host: Host, device: str, addresses: Addresses, master: str = "") -> str:
    """Join one more namespace to the host by a pair, whose end on the host (or its bridge) has the first addresses."""
    there = host.world.namespace()
    port = f"v-{device}" if master else device
    words = f"link add {port} netns {host.netns} type veth peer name eth0 netns {there}"
    run("ip", *words.split())
    run("ip", "link", "set", port, "up", *(("master", master) if master else ()), netns=host.netns)
    run("ip", "link", "set", "eth0", "up", netns=there)
    for here, other, length in addresses.values():
        nodad = ("nodad",) if ":" in here else ()
        run("ip", "addr", "replace", f"{here}/{length}", "dev", device, *nodad, netns=host.netns)
        run("ip", "addr", "add", f"{other}/{length}", "dev", "eth0", *nodad, netns=there)
        run("ip", "route", "add", "default", "via", here, netns=there)
    return there
