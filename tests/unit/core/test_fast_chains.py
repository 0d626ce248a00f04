"""Chains of the fast path: when a host or an endpoint may use it, and what each network has of its own."""

from __future__ import annotations

import msgspec
import pytest

from linkspan.core import fast_path
from linkspan.core.addresses import prefix
from linkspan.core.host_view import Facts, HostView
from linkspan.core.model import Host, Migration, Port, Underlay
from linkspan.core.states.host import NftChain, NftElement, NftExit, NftLinkChain, State
from linkspan.kernel.drivers import nftables_objects
from support.records.fast_network import CONTAINER, DEVICE, NETWORK

OVERHEAD = 50


def view(facts: Facts | None = None, mtu: int = 1500, control: tuple[tuple[str, int], ...] = ()) -> HostView:
    """Return a host that sees one network."""
    host = Host(id="h1", name="h1", underlay=Underlay("eth0", ("192.0.2.1/24",), mtu))
    return HostView((NETWORK,), facts=facts or Facts(early=True), host=host, control=control)


@pytest.mark.parametrize(
    ("of", "why"),
    [
        (view(), ""),
        (view(Facts()), "this kernel or its nftables cannot"),
        (view(mtu=1499), "MTU 1499"),
        (view(control=(("10.77.9.9", 2379),)), "control plane"),
        (view(control=(("192.0.2.9", 2379),)), ""),
        (view(Facts(early=True, translated=frozenset({(4, "IPVS")}))), "translates"),
    ],
)
def test_an_obstacle_closes_the_path_of_a_host(of: HostView, why: str) -> None:
    """It is said in words, and then no chain has a rule."""
    told = fast_path.obstacle(of, NETWORK, OVERHEAD)
    assert (why in told) if why else told == ""
    states = list(fast_path.network_states(of, NETWORK, DEVICE, OVERHEAD))
    rules = [rule for one in states if isinstance(one, NftChain) and not one.hook for rule in one.rules]
    assert bool(rules) == (not why)


def test_a_kernel_that_cannot_gets_no_object() -> None:
    """It would refuse each, again and again."""
    of = view(Facts())
    assert list(fast_path.network_states(of, NETWORK, DEVICE, OVERHEAD)) == []
    assert list(fast_path.peer_states(of, DEVICE, "02::", [prefix("10.77.2.0/24")], {4: "10.77.2.0"})) == []


def test_a_network_that_migrates_is_not_fast() -> None:
    """Its peers answer by either way."""
    moving = msgspec.structs.replace(NETWORK, migration=Migration(backend="host-gw", mtu=1500, number=1))
    assert "migrates" in fast_path.obstacle(view(), moving, OVERHEAD)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({}, ""),
        ({"mtu": 1400}, "MTU"),
        ({"path_mtu": 1400}, "MTU"),
        ({"ports": (Port("", 8080, 80, "tcp"),)}, "publishes"),
    ],
)
def test_an_endpoint_may_be_unfit(change: dict[str, object], why: str) -> None:
    """The reason is for people."""
    told = fast_path.unfit(NETWORK, msgspec.structs.replace(CONTAINER, **change))
    assert (why in told) if why else told == ""


def _uses(states: list[State]) -> set[str]:
    """Return the names of all sets and chains that states are in, or that their rules use."""
    found = {one.set for one in states if isinstance(one, NftElement)}
    for one in states:
        for rule in one.rules if isinstance(one, NftChain) else ():
            words = rule.split()
            found |= {word[1:] for word in words if word.startswith("@")}
            found |= {words[i + 1] for i, word in enumerate(words) if word == "goto"}
    return found


@pytest.mark.parametrize("family", [4, 6])
def test_a_gateway_is_this_hosts_own_though_a_peer_has_its_block(family: int) -> None:
    """The chain leaves it to the host before it asks which peer has the address."""
    states = fast_path.network_states(view(), NETWORK, DEVICE, OVERHEAD)
    (sent,) = [one.rules for one in states if isinstance(one, NftChain) and one.name == f"out{family}_{DEVICE}"]
    (gateway,) = [one.address for one in map(prefix, NETWORK.gateways) if one.family == family]
    assert sent[0] == f"{'ip' if family == 4 else 'ip6'} daddr {gateway} accept"
    assert all("fwd" in rule for rule in sent[1:])


def test_networks_share_nothing() -> None:
    """So no sender of one reaches the other."""
    sets = []
    for device in (DEVICE, "lsx65"):
        own = fast_path.network_states(view(), NETWORK, device, OVERHEAD)
        sets.append(_uses([*own, *fast_path.endpoint_states(CONTAINER, device)]))
    assert sets[0].isdisjoint(sets[1])


def test_an_endpoint_sends_and_receives_by_it_or_neither() -> None:
    """For each address: what admits its packets, and what leads to it; and its link is in the chain of its network."""
    states = list(fast_path.endpoint_states(CONTAINER, DEVICE))
    senders = {one.parts[2] for one in states if type(one) is NftElement}
    ends = {one.parts[0] for one in states if isinstance(one, NftExit)}
    assert senders == ends == {"10.77.1.2", "fd77:0:0:1::2"}
    (link,) = [one for one in states if isinstance(one, NftLinkChain)]
    assert (link.name, link.rules) == ("lsr1", ("goto out_lsx64",))


def test_a_peer_is_sent_to_and_admitted_or_neither() -> None:
    """By block, and by address where it has one of its own."""
    targets = [prefix("10.77.2.0/24"), prefix("10.77.9.9/32")]
    states = fast_path.peer_states(view(), DEVICE, "02:00:00:00:00:02", targets, {4: "10.77.2.0"})
    found = {(one.set, *one.parts, *one.data) for one in states if isinstance(one, NftElement)}
    assert found == {
        ("vteps4_lsx64", "02:00:00:00:00:02", "10.77.2.0"),
        ("hops4_lsx64", "10.77.2.0", "10.77.2.0"),
        ("vteps_exact4_lsx64", "02:00:00:00:00:02", "10.77.9.9"),
        ("hops_exact4_lsx64", "10.77.9.9", "10.77.2.0"),
    }


def test_no_part_of_it_comes_alone_when_an_agent_starts() -> None:
    """Elements that hurry would put one direction on the path before the other."""
    states = [
        *fast_path.endpoint_states(CONTAINER, DEVICE),
        *fast_path.peer_states(view(), DEVICE, "02:00:00:00:00:02", [prefix("10.77.2.0/24")], {4: "10.77.2.0"}),
    ]
    assert not any(map(nftables_objects.alone, states))
