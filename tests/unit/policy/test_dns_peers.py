"""DNS names as peers: which names they mean, and what becomes of them in judge and rules."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from linkspan.core.addresses import prefix
from linkspan.core.errors import Invalid
from linkspan.core.states.host import NftChain, NftElement, NftSet
from linkspan.policy import document, name_rules, names, rules
from linkspan.policy.endpoint_elements import of_endpoint
from linkspan.policy.judge import Judge, Party, Probe
from linkspan.policy.model import Peer, Policy, Ports, Rule, Selector, Subject, checked
from linkspan.policy.regime import Regime
from linkspan.policy.regime_difference import difference
from support.policies import states

OUT = Policy(
    name="out",
    select=Selector(labels={"app": "web"}),
    egress=(Rule(peers=(Peer(dns=("api.example.com", "*.example.org")),), ports=(Ports("tcp", 443, 443),), line=4),),
    line=1,
)
TEXT = """
policy: out
select:
  labels: {app: web}
egress:
- to: [{dns: [API.example.com., "*.Example.org", api.example.com]}]
  ports: [443]
"""
CLUSTER = """
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: out}
spec:
  tier: Admin
  priority: 10
  subject: {pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: web}}}}
  egress:
  - action: Accept
    to: [{domainNames: [api.example.com, "*.example.org"]}]
"""
labels = st.lists(st.from_regex(r"[a-z]{1,3}", fullmatch=True), min_size=2, max_size=5)


def test_a_file_says_names_as_dns_has_them() -> None:
    """Small letters, no final dot, none twice; what is printed is read as the same again."""
    (policy,) = document.parsed(TEXT, "f").policies
    assert policy.egress is not None
    assert policy.egress[0].peers == (Peer(dns=("api.example.com", "*.example.org")),)
    (again,) = document.parsed(document.printed(policy), "f").policies
    assert again.egress is not None
    assert again.egress[0].peers == policy.egress[0].peers
    assert policy.names == {"api.example.com", "*.example.org"}


def test_a_cluster_policy_names_them_too() -> None:
    """Kubernetes' domainNames mean the same."""
    (policy,) = document.parsed(CLUSTER, "f").policies
    assert policy.tier == "admin"
    assert policy.names == {"api.example.com", "*.example.org"}


@pytest.mark.parametrize(
    "text",
    ["", "*", "*.", "api", "*.com", "*.*.com", "a.*.com", "192.0.2.7", "a..b", "-a.b", "a b.c", "bücher.example",
     f"{'a' * 64}.com", ".".join(["abcdefgh"] * 29), "a.localhost", "a.b; drop", 'a.b"'],
)  # fmt: skip
def test_what_is_no_name_is_refused(text: str) -> None:
    """By itself, and in a record."""
    with pytest.raises(Invalid):
        names.name(text)
    with pytest.raises(Invalid):
        checked(Policy(name="p", egress=(Rule(peers=(Peer(dns=(text,)),)),)))


@given(st.text(max_size=40) | st.from_regex(r"[*.a-zA-Z0-9_-]{1,40}", fullmatch=True))
def test_any_text_is_refused_or_a_name_in_its_one_form(text: str) -> None:
    """Nothing else comes into a record, and so into a question to a name server."""
    try:
        found = names.name(text)
    except Invalid:
        return
    assert re.fullmatch(r"(\*\.)?[a-z0-9_-]+(\.[a-z0-9_-]+)+", found)
    assert names.name(found) == found


def test_a_record_has_names_in_one_form_only() -> None:
    """Otherwise two policies with one name would have two sets."""
    with pytest.raises(Invalid, match="not as DNS has it"):
        checked(Policy(name="p", egress=(Rule(peers=(Peer(dns=("API.example.com",)),)),)))


def test_each_name_is_a_line_of_nftables() -> None:
    """A policy may become so many lines, and a peer with names is as many."""
    many = tuple(f"n{number}.example.com" for number in range(256))
    spans = tuple(Ports("tcp", port, port) for port in range(1, 34, 2))
    with pytest.raises(Invalid, match="4352 pairs"):
        checked(Policy(name="p", egress=(Rule(peers=(Peer(dns=many),), ports=spans),)))


@given(labels)
def test_a_wildcard_means_all_names_below(parts: list[str]) -> None:
    """At any depth, but not the name itself, and no name that only ends with the same letters."""
    name = ".".join(parts)
    every = {f"*.{name}", name}
    assert names.meant(name, every) == [name]
    assert names.meant(f"x.{name}", every) == [f"*.{name}"]
    assert names.meant(f"x.y.{name}", every) == [f"*.{name}"]
    assert names.meant(f"x{name}", every) == []
    assert names.meant(".".join(parts[1:]), every) == []


def test_a_judge_allows_the_addresses_that_a_name_has() -> None:
    """Outside all pools alone: an address of a pool is its container's, whatever a name says."""
    judge = Judge([OUT])
    web = Party(prefix("10.1.0.2"), judge.chosen(Subject("w", "x", "h1", {"app": "web"})))
    at = prefix("192.0.2.7")

    def allowed(party: Party, port: int = 443) -> bool:
        return judge.verdict(web, party, Probe("tcp", port)).allowed

    mine = frozenset({"*.example.org"})
    assert allowed(Party(at, outside=True, names=mine))
    assert not allowed(Party(at, outside=True, names=mine), 80)
    assert not allowed(Party(at, outside=True, names=frozenset({"other.example.com"})))
    assert not allowed(Party(at, outside=True))
    assert not allowed(Party(at, outside=False, names=mine))


def test_a_name_is_a_set_that_policies_share() -> None:
    """Its elements end by themselves; a rule lets its addresses through, and answers to the container are logged."""
    regime = Regime([OUT, Policy(name="two", egress=OUT.egress)])
    found = states(regime, [4, 6])
    sets = {one.name: one for one in found if isinstance(one, NftSet)}
    name = name_rules.named("api.example.com", 4)
    assert (sets[name].dynamic, sets[name].timeout) == (True, 3630)
    assert len([one for one in sets if one.startswith("named4_")]) == 2
    chains = {one.name: one.rules for one in found if isinstance(one, NftChain)}
    said = 'tcp dport 443 accept comment "policy out line 4"'
    assert f"ip daddr @{name} ip daddr != @pools4 {said}" in [line for some in chains.values() for line in some]
    assert "iifname @answered ip saddr @asking_names4 ip daddr != @pools4 drop" in chains["policy_refused"]
    assert len(chains["policy_answers"]) == 6
    web, other = (regime.chosen(Subject("w", "x", "h1", {"app": app})) for app in ("web", "db"))
    for chosen, asks in ((web, True), (other, True)):
        elements = of_endpoint(regime, chosen, [prefix("10.1.0.2")], policed=True)
        assert any(isinstance(one, NftElement) and one.set == "asking_names4" for one in elements) == asks
    only = Regime([OUT])
    elements = of_endpoint(only, only.chosen(Subject("o", "x", "h1", {})), [prefix("10.1.0.2")], policed=True)
    assert not any(isinstance(one, NftElement) and one.set == "asking_names4" for one in elements)


def test_without_nflog_nothing_is_logged() -> None:
    """A rule that the kernel refuses would keep all others away."""
    chains = [one for one in rules.common(Regime([OUT]), [4], logs=False) if isinstance(one, NftChain)]
    assert not [line for one in chains for line in one.rules if "log" in line]


def test_policies_without_names_have_nothing_of_it() -> None:
    """Nobody pays for names that no policy has."""
    plain = Regime([Policy(name="p", egress=(Rule(peers=(Peer(outside=True),)),))])
    found = [getattr(one, "name", "") for one in states(plain, [4, 6])]
    assert not [name for name in found if name.startswith((*name_rules.SETS, "policy_answers"))]


def test_endpoints_are_looked_at_when_a_policy_begins_to_name() -> None:
    """Their elements differ, though the policy's own chains alone seem to."""
    plain = (Rule(peers=(Peer(outside=True),), line=4),)
    before = Regime([Policy(name="out", select=OUT.select, egress=plain, line=1)])
    assert OUT.select.digest in difference(before, Regime([OUT])).concerned
    assert OUT.select.digest in difference(Regime([OUT]), before).concerned
