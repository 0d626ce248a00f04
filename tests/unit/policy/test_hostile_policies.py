"""Hostile policies: whatever a record says, it is refused or becomes rules that nft can read, and nothing else."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from linkspan.core.errors import Invalid
from linkspan.core.states.host import NftChain
from linkspan.policy import rules
from linkspan.policy.model import Peer, Policy, Ports, Requirement, Rule, Selector
from linkspan.policy.regime import Regime
from linkspan.store import validation
from support import policies as samples

WORDS = ("", "p", "\x1b[31m", '"', "; flush ruleset", "}\n", "0.0.0.0/0", "::/0", "10.0.0.1/8", "x" * 400, "@pools4")
NUMBERS = (-1, 0, 1, 80, 65535, 65536, 1 << 40, 10**30, 0.5)
spoilt: st.SearchStrategy[Any] = st.recursive(
    st.sampled_from((*WORDS, *NUMBERS, None, True, "allow", "tcp", "In")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=3),
    max_leaves=6,
)
RULE = re.compile(
    r'[a-z0-9 .:/@_!={},()|&-]*'
    r'(?:accept|drop|reject with (?:tcp reset|icmpx admin-prohibited)|(?:jump|goto) [a-z0-9_]+|counter \})'
    r'(?: comment "(?:policy|default of network) [\w .-]+")?'
    r'|(?:i|o)ifname "ls(?:r|-)\*" [a-z0-9 @_!=:/]+(?: tcp flags [a-z&(|) !=]+)?'
    r'|limit rate [a-z0-9 /]+ log prefix "linkspan (?:refused|staged)" group 7615 snaplen 128'
)  # fmt: skip


def _spoil(data: st.DataObject, value: Any) -> Any:
    """Return a value in which one part, at any depth, is something else."""
    if isinstance(value, dict) and value and data.draw(st.booleans()):
        key = data.draw(st.sampled_from(sorted(value)))
        return {**value, key: _spoil(data, value[key])}
    if isinstance(value, list) and value and data.draw(st.booleans()):
        at = data.draw(st.integers(0, len(value) - 1))
        return [*value[:at], _spoil(data, value[at]), *value[at + 1 :]]
    return data.draw(spoilt)


@given(samples.policies("p"), st.data())
def test_a_spoilt_record_is_refused_or_becomes_rules(policy: Policy, data: st.DataObject) -> None:
    """A word of a record never becomes a word of a rule."""
    record = msgspec.json.encode(_spoil(data, msgspec.to_builtins(policy)))
    try:
        read = validation.decode("policies/p", record, Policy)
    except Invalid:
        return
    for state in rules.states(Regime([read], [read], ["demo"]), [4, 6]):
        for rule in state.rules if isinstance(state, NftChain) else ():
            assert RULE.fullmatch(rule), rule


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        (Policy(name="other"), "its name 'other' differs from that of its key, 'p'"),
        (Policy(name="p", order=-1), "its order is -1"),
        (Policy(name="p", ingress=(Rule(peers=(Peer(),)),)), "a peer is either endpoints, or a CIDR, or the outside"),
        (Policy(name="p", ingress=(Rule(peers=(Peer(cidr="10.0.0.1/8"),)),)), "has bits after its length"),
        (Policy(name="p", ingress=(Rule(peers=(Peer(outside=True, excepts=("10.0.0.0/8",)),)),)), "except belongs to"),
        (Policy(name="p", ingress=(Rule(ports=(Ports("tcp", 9, 1),)),)), "ports 9-1 are no range"),
        (Policy(name="p", ingress=(Rule(ports=(Ports("icmp", 8, 13),)),)), "8 to 13 is no type of icmp"),
        (Policy(name="p", ingress=(Rule(ports=(Ports("icmp", 3, 3),)),)), "3 to 3 is no type of icmp"),
        (Policy(name="p", ingress=(Rule(),) * 257), "it has 257 rules of ingress"),
        (Policy(name="p", egress=(Rule(peers=(Peer(outside=True),) * 99, ports=(Ports("tcp"),) * 99),)), "9801 pairs"),
        (Policy(name="p", select=Selector(labels={"a": "b" * 400})), "a label has more than 316 bytes"),
        (Policy(name="p", select=Selector(expressions=(Requirement("a", "In"),))), "In of label a needs values"),
    ],
)  # fmt: skip
def test_an_impossible_policy_is_refused_with_the_reason(policy: Policy, words: str) -> None:
    """Before any host enforces it."""
    with pytest.raises(Invalid) as refused:
        validation.check("policies/p", policy)
    assert words in refused.value.message
