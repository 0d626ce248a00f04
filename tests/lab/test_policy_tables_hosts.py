"""Truth tables of policies across three hosts: each network, and each label, has a container on every host."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import subprocess
import time
from collections.abc import Iterator

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings

from linkspan.kernel.io.namespaces import open_namespace
from linkspan.policy import document
from linkspan.policy.model import Policy
from support.agent import cells
from support.agent.cells import Cell
from support.agent.yard import NETWORKS, PODS, PORTS, PROTOCOLS
from support.lab.cluster_runs import ClusterRun
from support.policy_cases import ALL, END, EVERY, Case, peer_cases, port_cases, rule_cases
from support.policy_tables import Expected, both_wrong, disagreements, play, policies
from support.polling import SHARED, until

pytestmark = pytest.mark.skipif(shutil.which("etcd") is None, reason="needs etcd: apt install etcd-server")

HOSTS = ("h1", "h2", "h3")
SETTLED = 4.0 * SHARED
"""Seconds until all hosts know what changed on one."""
RIGHT: dict[int, list[Cell]] = {4: [], 6: []}


def host_of(name: str) -> str:
    """Return a container's host: neighbours of one network are on three hosts, and so are namesakes of three."""
    return HOSTS[("xyz".index(name[0]) + "abc".index(name[2])) % 3]


class Grid(ClusterRun):
    """Three hosts with three VXLAN networks that may reach each other; a ``policy_tables.Grid``."""

    def __init__(self) -> None:
        super().__init__()
        self.servers = contextlib.ExitStack()
        self.netns = {name: f"{self.name}-{name}" for name in PODS}
        self.ips: dict[str, dict[int, str]] = {}

    def up(self) -> None:
        """Build it."""
        self.run("up", "--backend vxlan --store etcd")
        for host in HOSTS:
            for name in ("ipv4.icmp_ratelimit", "ipv6.icmp.ratelimit"):
                self.inside(host, f"sysctl -qw net.{name}=0")
        for name, pools in NETWORKS.items():
            wish = {"name": name, "pools": pools, "backend": "vxlan", "subnet_len": [24, 80]}
            self.call("h1", "POST", "/v1/networks", wish)
        for name in NETWORKS:
            self.joined(name)
        for one, other in itertools.permutations(NETWORKS, 2):
            self.call("h1", "POST", "/v1/allowances", {"source": one, "target": other})
        for name in PODS:
            self._attach(name)
        self.servers.enter_context(cells.servers(self.netns.values(), PORTS))
        assert both_wrong(self, lambda _family: lambda *_cell: True) == RIGHT

    def _attach(self, name: str) -> None:
        netns = self.netns[name]
        subprocess.run(["ip", "netns", "add", netns], check=True)
        self.servers.callback(subprocess.run, ["ip", "netns", "delete", netns], check=True)
        fd = open_namespace(f"/run/netns/{netns}")
        try:
            body = {
                "id": name, "name": name, "network": name[0], "labels": {"pod": name[2], "ns": name[0]},
                "namespace_fd": fd, "namespace_path": f"/run/netns/{netns}",
            }  # fmt: skip
            made = self.call(host_of(name), "POST", "/v1/attach", body)
        finally:
            os.close(fd)
        found = [str(text).partition("/")[0] for text in made["addresses"]]
        self.ips[name] = {6 if ":" in text else 4: text for text in found}

    def enforce(self, *wanted: Policy) -> None:
        """Make these the only policies, and return when each host has the rules of what it knows."""
        said = msgspec.to_builtins(wanted)
        self.call("h1", "PUT", "/v1/policies", {"policies": said})
        names = {policy.name for policy in wanted}
        for one in self.call("h1", "GET", "/v1/policies"):
            if one["name"] not in names:
                self.call("h1", "DELETE", f"/v1/policies/{one['name']}")
        recorded = self.call("h1", "GET", "/v1/policies")
        for host in HOSTS[1:]:
            until(lambda host=host: self.call(host, "GET", "/v1/policies") == recorded, f"{host} knows the policies")
            self.call(host, "PUT", "/v1/policies", {"policies": said})  # nothing new; it returns when they are enforced

    def wrong(self, family: int, expected: Expected) -> list[Cell]:
        """Return the cells that are not as expected, once hosts have had time to learn of each other's containers."""
        wanted = {
            (source, target, port, protocol): expected(source, target, port, protocol)
            for source, target in itertools.permutations(PODS, 2)
            for port, protocol in itertools.product(PORTS, PROTOCOLS)
        }
        addresses = {name: ips[family] for name, ips in self.ips.items()}
        end = time.monotonic() + SETTLED
        while (found := cells.wrong(wanted, self.netns, addresses)) and time.monotonic() < end:
            wanted = {cell: wanted[cell] for cell in found}
        return found


@pytest.fixture(scope="module")
def grid() -> Iterator[Grid]:
    """Give the three hosts."""
    made = Grid()
    try:
        made.up()
        yield made
    finally:
        made.servers.close()
        made.run("down")


def _on(host: str) -> dict[int, frozenset[str]]:
    return dict.fromkeys((4, 6), frozenset(name for name in ALL if host_of(name) == host))


def test_every_cell_is_what_the_tables_say(grid: Grid) -> None:
    """Peers, lists of ports and rules that meet, as on one host; and peers by their hosts, which need several."""
    by_host = [
        Case(f"{action} {hosts}, {direction}", direction, ({"action": action, END: [{"host": hosts}]},), _on("h1"))
        for direction in ("ingress", "egress")
        for action, hosts in (("allow", ["h1"]), ("deny", ["h2", "h3"]))
    ]
    peers = [case for case in peer_cases() if case.ports == EVERY]
    assert play(grid, [*by_host, *peers, *port_cases(), *rule_cases()]) == []


@settings(
    max_examples=4,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(made=policies)
def test_the_kernels_and_the_judge_agree_on_random_policies(grid: Grid, made: list[Policy]) -> None:
    """The sender's host and the receiver's together do what the judge says."""
    assert disagreements(grid, made, host_of) == RIGHT, "---\n".join(map(document.printed, made))
