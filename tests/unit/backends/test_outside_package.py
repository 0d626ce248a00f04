"""A package outside the tree: its kinds and its backend need nothing in linkspan's sources."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from support.outside_package import install

PLAN = """
import json
from linkspan.backends import BACKENDS
from linkspan.core.host_view import Facts, HostView, Peer
from linkspan.core.model import Host, Lease, Network, Offer, Underlay
from linkspan.core.ruleset import admission, skeleton
from linkspan.diagnose.plan.plan import commands, ordered
from linkspan.kernel.kinds import kinds

def host(name, address):
    return Host(id=name, name=name, underlay=Underlay("eth0", (address,)))

network = Network(
    name="over", pools=("10.90.0.0/16",), subnet_len={"4": 24}, backend="overlay", mtu=1450, gateways=("10.90.0.1",)
)
way, h1, h2 = BACKENDS["overlay"], host("h1", "192.0.2.1/24"), host("h2", "192.0.2.2/24")
way.check(network)
view, offer = HostView((network,), host=h1), Offer(dict(way.announce(HostView((network,), host=h2), network)))
addresses = {"prefixes": ("10.90.2.0/24",), "addresses": ("10.90.2.0",)}
peer = Peer(h2, Lease(network="over", host="h2", endpoints={"overlay": offer}, **addresses))
rules = [*skeleton(Facts(), kinds()), *(admission(pool, 24, kinds()) for pool in network.prefixes)]
states = [*rules, *way.network(view, network), *way.peer(view, network, peer)]
print(json.dumps([command for state in ordered(states) for command in commands(state, str)]))
"""


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Give the commands of a network of the package's backend, on a host with a peer."""
    folder = tmp_path_factory.mktemp("packages")
    install(folder)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *sys.path])}
    done = subprocess.run([sys.executable, "-c", PLAN], capture_output=True, text=True, env=env, check=True)
    found: list[str] = json.loads(done.stdout)
    return found


def test_its_kinds_are_planned_in_the_order_of_their_ranks(plan: list[str]) -> None:
    """The device comes before the objects on it, and the policy rule last."""
    (made,) = [number for number, command in enumerate(plan) if command.startswith("ip link add lsy")]
    assert "dstport 8473 local 192.0.2.1 nolearning" in plan[made]
    name = plan[made].split()[3]
    on_it = [number for number, command in enumerate(plan) if f"dev {name}" in command or f"/{name}/" in command]
    assert made < min(on_it)
    assert plan[-1] == "ip -4 rule add pref 30077 from 10.90.0.0/16 lookup main protocol 77"


def test_the_rules_take_its_device_for_a_tunnel_of_ours(plan: list[str]) -> None:
    """Only peers reach its port, and what comes out of it is taken by the peer's MAC."""
    assert """nft 'add rule inet linkspan ours iifname "lsy*" goto tunnels'""" in plan
    assert "nft 'add element inet linkspan tunnel_ports { udp . 8473 }'" in plan
    assert "nft 'add element inet linkspan tunnel_peers4 { 192.0.2.2 . udp . 8473 }'" in plan
    assert any('add element inet linkspan stations4 { "lsy' in command for command in plan)


def test_entries_on_its_device_are_those_of_a_tunnel(plan: list[str]) -> None:
    """They have no protocol number, for nobody else has entries there."""
    (neighbour,) = [command for command in plan if command.startswith("ip neigh replace")]
    assert neighbour.endswith("nud permanent")
    assert any(command.startswith("bridge fdb replace") for command in plan)
