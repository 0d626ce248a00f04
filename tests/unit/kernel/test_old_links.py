"""Between which links a host is kept from forwarding, where linkspan turned that on."""

from __future__ import annotations

import pytest

from linkspan.core.host_view import Facts
from linkspan.core.ruleset import element, skeleton
from linkspan.core.states.host import NftChain
from linkspan.kernel.facts import _closed, _old
from linkspan.kernel.kinds import kinds
from support.links import made

LINKS = [
    made(2, "eth0", ""),
    made(3, "eth1", ""),
    made(4, "br-lan", "bridge"),
    made(9, "mynet0", "bridge"),
    made(10, "veth1", "veth"),
    made(11, "eth2", ""),
]


BEFORE = {1: False, 2: False, 3: True, 4: False}
"""The links as they were: eth0 to br-lan were there, and what came in by eth1 was forwarded."""


def test_what_was_there_and_hardware_is_old_and_of_that_what_forwarded_is_not_closed() -> None:
    """Links that other programs made later are neither; a card that was plugged in later is both."""
    assert {link.name for link in _old(LINKS, BEFORE)} == {"eth0", "eth1", "br-lan", "eth2"}
    assert set(_closed(LINKS, BEFORE)) == {"eth0", "br-lan", "eth2"}


@pytest.mark.parametrize("forwarding", [frozenset({4, 6}), frozenset()])
def test_a_host_that_forwarded_before_is_closed_for_nothing(forwarding: frozenset[int]) -> None:
    """Rules exist only if it did not forward, and they drop nothing for links on no list."""
    facts = Facts(forwarding=forwarding, closed_links=frozenset({(4, "eth0")}), old_links=frozenset({(4, "eth0")}))
    states = list(skeleton(facts, kinds()))
    chains = {state.name: state.rules for state in states if isinstance(state, NftChain)}
    assert ("outsiders" in chains) == (element("closed4", "eth0") in states) == (not forwarding)
    drops = [rule for rule in chains.get("outsiders", ()) if rule.endswith("drop")]
    assert all("iifname @closed" in rule and "oifname @old" in rule for rule in drops)
    assert len(drops) == (0 if forwarding else 2)
