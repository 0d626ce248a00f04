"""The plan's commands, typed into an empty namespace, make a network that works."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from linkspan.core.model import Allowance
from linkspan.core.states.host import BridgeFilter, LinkSysctl, State, Sysctl
from linkspan.diagnose.plan.plan import commands, ordered
from linkspan.kernel.machine import Machine
from support.netns import sample
from support.netns.world import World


@pytest.fixture
def world() -> Iterator[World]:
    """Make a host and two containers, all empty."""
    made = World("h", "a", "b")
    yield made
    made.close()


def planned(world: World, routed: bool) -> list[State]:
    """All states of a network with two containers, in no useful order."""
    network = sample.network(routed=routed)
    endpoints = [sample.endpoint(world, name, network, n) for n, name in enumerate(("a", "b"), 2)]
    filters = [] if routed else [BridgeFilter(network.bridge)]
    return [*sample.states([network], endpoints), *filters][::-1]


def planned_twice(world: World, routed: bool) -> list[State]:
    """All states of two networks and two containers, of which the first is in both."""
    networks = [sample.network(n, number, routed=routed) for n, number in (("demo", 77), ("other", 78))]
    endpoints = [sample.endpoint(world, "a", network, 2, nth=n) for n, network in enumerate(networks)]
    return sample.states(networks, [*endpoints, sample.endpoint(world, "b", networks[1], 3)])[::-1]


def typed(world: World, states: list[State]) -> str:
    """Return the plan as a script."""
    return "\n".join(line for state in ordered(states) for line in commands(state, world.by_inode))


@pytest.mark.parametrize("routed", [False, True], ids=["bridge", "routed"])
def test_typed_commands_connect_two_containers(world: World, routed: bool) -> None:
    """Typed in order into an empty namespace, they let containers ping each other and their gateway."""
    assert not world.pings("a", "10.77.0.3")
    world.sh("h", typed(world, planned(world, routed)))
    for target in ("10.77.0.3", "fd77::3", "10.77.0.1", "fd77::1"):
        assert world.reaches("a", target), target
    assert world.pings("b", "10.77.0.2", sample.MTU - 28)
    assert not world.pings("b", "10.77.0.2", sample.MTU - 27)


@pytest.mark.parametrize("routed", [False, True], ids=["bridge", "routed"])
def test_typed_rules_let_a_container_use_its_second_network(world: World, routed: bool) -> None:
    """It reaches the network, and is reached, and what has an address leaves by this address's interface."""
    world.sh("h", typed(world, planned_twice(world, routed)))
    for target in ("10.78.0.3", "fd78::3", "10.77.0.1", "fd77::1"):
        assert world.reaches("a", target), target
    assert world.reaches("b", "10.78.0.2")
    for source, device in (("10.77.0.2", "eth0"), ("10.78.0.2", "eth1"), ("fd77::2", "eth0"), ("fd78::2", "eth1")):
        for target in ("192.0.2.9", "10.77.0.9", "10.78.0.9") if "." in source else ("2001:db8::9", "fd78::9"):
            assert f"dev {device} " in world.sh("a", f"ip route get {target} from {source}")


@pytest.mark.parametrize("plan", [planned, planned_twice], ids=["one", "two"])
@pytest.mark.parametrize("routed", [False, True], ids=["bridge", "routed"])
def test_the_reconciler_has_nothing_to_do_after_the_plan_was_typed(
    world: World, tmp_path: Path, routed: bool, plan: Callable[[World, bool], list[State]]
) -> None:
    """Typed by hand or made by linkspan, the objects are the same; only of settings does it keep a memory."""
    states = plan(world, routed)
    world.sh("h", typed(world, states))
    with world.entered("h"):
        machine = Machine(tmp_path)
        for name in ("a", "b"):
            machine.namespaces.register(world.inode(name), world.path(name))
        try:
            machine.reconciler.desired.replace(("all",), states)
            kinds = {type(state) for state in states} - {Sysctl, LinkSysctl}
            assert len(kinds) >= 8
            change, _ = machine.reconciler.difference(kinds, (world.inode("a"), world.inode("b")))
            assert (change.put, change.delete) == ((), ())
        finally:
            machine.close()


@pytest.mark.parametrize("routed", [False, True], ids=["bridge", "routed"])
def test_ipv6_that_the_host_forwards_works_at_once(world: World, routed: bool) -> None:
    """No packet waits for an address of the host's that is tentative still."""
    networks = [sample.network(n, number, routed=routed) for n, number in (("demo", 77), ("other", 78))]
    endpoints = [sample.endpoint(world, name, n, 2) for name, n in zip(("a", "b"), networks, strict=True)]
    allowed = (Allowance("demo", "other"),)
    world.sh("h", typed(world, sample.states(networks, endpoints, allowed)))
    assert world.pings("a", "fd78::2")


def test_typing_the_commands_twice_is_an_error_only_where_the_object_must_be_new(world: World) -> None:
    """Settings, addresses, routes, limits and set elements may be typed again; links and chains are made once."""
    states = planned(world, routed=False)
    world.sh("h", typed(world, states))
    once = ("Bridge", "Veth", "NftChain")
    again = [s for s in states if type(s).__name__ not in once]
    world.sh("h", typed(world, again))
    assert world.pings("a", "10.77.0.3")


def test_a_namespace_without_a_name_is_entered_by_its_path(world: World) -> None:
    """A container's namespace that ``ip netns`` does not list works as well, by /proc/PID/ns/net."""
    states = planned(world, routed=True)
    lines = [
        line
        for state in ordered(states)
        for line in commands(
            state, lambda n: world.by_inode(n).replace("/run/netns/", "/run/netns/../netns/")
        )
    ]
    assert any("nsenter --net=/run/netns/../netns/" in line for line in lines)
    world.sh("h", "\n".join(lines))
    assert world.pings("a", "10.77.0.3")
