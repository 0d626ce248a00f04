"""Chains of the ruleset: what every packet passes, and what no packet of a container gets around."""

from __future__ import annotations

from linkspan.core.addresses import prefix
from linkspan.core.host_view import Facts
from linkspan.core.ruleset import INET, admission, skeleton
from linkspan.core.states.host import NftChain
from linkspan.kernel.kinds import kinds

POOLS = (prefix("10.77.0.0/16"), prefix("fd77::/48"))
LENGTHS = {4: 24, 6: 64}


def _chains() -> dict[str, NftChain]:
    made = [admission(pool, LENGTHS[pool.family], kinds()) for pool in POOLS]
    found = [*skeleton(Facts(forwarding=frozenset({4, 6})), kinds()), *made]
    return {chain.name: chain for chain in found if isinstance(chain, NftChain) and chain.family == INET}


def test_what_the_guard_admits_is_kept_from_the_control_plane() -> None:
    """No rule of the guard accepts a container's packet but by the chain that closes the control plane."""
    chains = _chains()
    guards = ["guard", "ours", "routed", "tunnels", *(name for name in chains if name.startswith("from"))]
    rules = [rule for name in guards for rule in chains[name].rules]
    assert [rule for rule in rules if rule.endswith("accept")] == ['iifname "lo" accept']
    assert chains["admitted"].rules == ("tcp dport @control_ports jump refused", "accept")
    assert sum(rule.endswith("goto admitted") for rule in rules) > len(guards)


def test_every_packet_passes_few_base_chains() -> None:
    """One for each hook, and one more for queries: each costs every packet, also those of no container."""
    filters = {name: chain.hook.split()[3] for name, chain in _chains().items() if "filter hook" in chain.hook}
    assert filters == {"guard": "prerouting", "forward": "forward", "input": "input", "counted": "input"}


def test_tunnel_ports_are_looked_up_once_for_each_packet() -> None:
    """The rules for tunnels' ports are in a chain of their own, for both families."""
    chains = _chains()
    for name, target in (("forward", "outwards"), ("input", "tunnelled")):
        rules = [rule for rule in chains[name].rules if "@tunnel_ports" in rule]
        assert rules == [f"meta l4proto . th dport @tunnel_ports jump {target}"]
