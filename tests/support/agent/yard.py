"""A yard for policies: one host with three networks that may reach each other, and containers a, b and c in each."""

from __future__ import annotations

import contextlib
import itertools
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from linkspan.policy import document
from linkspan.policy.model import Policy
from support.agent import cells
from support.agent.agent_host import Host, World, first_ip, run
from support.agent.cells import Cell
from support.agent.traffic import inside

NETWORKS = {
    "x": ("10.211.0.0/16", "fd00:211::/64"),
    "y": ("10.212.0.0/16", "fd00:212::/64"),
    "z": ("10.213.0.0/16", "fd00:213::/64"),
}
PORTS = (80, 81)
PROTOCOLS = ("tcp", "udp")
PODS = tuple(f"{network}-{pod}" for network, pod in itertools.product(NETWORKS, "abc"))
"""The containers' names: network and label `pod`. Label `ns` is the network once more."""
_SETTINGS = (
    "net.bridge.bridge-nf-call-iptables=0",
    "net.bridge.bridge-nf-call-ip6tables=0",  # only bridges that linkspan asks about pass the rules
    "net.ipv4.icmp_ratelimit=0",
    "net.ipv6.icmp.ratelimit=0",
    "net.ipv4.icmp_msgs_per_sec=1000000",
    "net.ipv4.icmp_msgs_burst=100000",
)


class Yard:
    """The host with its containers; all of them serve TCP and UDP at two ports."""

    def __init__(self, world: World, folder: Path, mode: str = "routed") -> None:
        self.host = Host(world)
        self.outside = self.host.outside()
        self.folder = folder
        self.mode = mode
        for setting in _SETTINGS:  # some are the machine's own on older kernels
            run("sysctl", "-qw", setting, netns=self.host.netns, check=False)
        self.host.start()
        for name, pools in NETWORKS.items():
            self.host.network(name, *pools, options={"mode": "routed"} if mode == "routed" else {})
        for one, other in itertools.permutations(NETWORKS, 2):
            self.host.cli("network", "allow", one, other)
        self.netns: dict[str, str] = {}
        self.ips: dict[str, dict[int, str]] = {}
        self.ports: dict[str, str] = {}
        for name in PODS:
            network, _, pod = name.partition("-")
            self.netns[name] = world.namespace()
            found = self.host.attach(self.netns[name], network, name=name, labels={"pod": pod, "ns": network})
            self.ips[name] = {family: first_ip(found, family) for family in (4, 6)}
            self.ports[name] = str(found["host_ifname"])
        self._servers = contextlib.ExitStack()
        self._servers.enter_context(cells.servers(self.netns.values(), PORTS))

    def close(self) -> None:
        """End servers and agent."""
        self._servers.close()
        self.host.close()

    def apply(self, text: str) -> None:
        """Make the policies of a text the only ones."""
        self.enforce(*document.parsed(text, "policies.yaml").policies)

    def enforce(self, *policies: Policy) -> None:
        """Make these the only policies, none of them staged."""
        call = self.host.client.call
        wanted = {policy.name for policy in policies}
        if policies:
            call("PUT", "/v1/policies", {"policies": msgspec.to_builtins(policies)})
        for one in call("GET", "/v1/policies"):
            if one["name"] not in wanted:
                call("DELETE", f"/v1/policies/{one['name']}")
        for one in call("GET", "/v1/policy/staged")["policies"]:
            call("DELETE", f"/v1/policies/{one['name']}?staged")

    @contextlib.contextmanager
    def connected(self, name: str, port: int = 90) -> Iterator[tuple[socket.socket, socket.socket]]:
        """Give a connection from a container to x-b: the client's socket, and the server's."""
        server = self.ips["x-b"][4], port
        with inside(self.netns["x-b"]):
            listening = socket.create_server(server)
        with listening:
            with inside(self.netns[name]):
                client = socket.create_connection(server, timeout=10)
            with client, listening.accept()[0] as accepted:
                accepted.settimeout(10)
                yield client, accepted

    def wrong(self, family: int, expected: Callable[[str, str, int, str], bool]) -> list[Cell]:
        """Ask every container from every other one, at each port by each protocol; return where that is not right."""
        wanted = {
            (source, target, port, protocol): expected(source, target, port, protocol)
            for source, target in itertools.permutations(PODS, 2)
            for port, protocol in itertools.product(PORTS, PROTOCOLS)
        }
        return cells.wrong(wanted, self.netns, {name: ips[family] for name, ips in self.ips.items()})


@contextlib.contextmanager
def yard_in(folder: Path, mode: str = "routed") -> Iterator[Yard]:
    """Make a yard, and remove it at the end."""
    world = World()
    try:
        made = Yard(world, folder, mode)
        try:
            yield made
        finally:
            made.close()
    finally:
        world.remove()
