"""Policies for tests: strategies of Hypothesis, and a second, naive reading of what policies mean."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection

from hypothesis import strategies as st

from linkspan.core import icmp
from linkspan.core.states.host import State
from linkspan.policy import name_rules, regime_difference
from linkspan.policy import rules as nftables
from linkspan.policy.judge import Probe
from linkspan.policy.model import TIERS, Peer, Policy, Ports, Requirement, Rule, Selector, Subject, Tier
from linkspan.policy.regime import Regime

KEYS, VALUES, NETWORKS, HOSTS = ("app", "tier"), ("web", "db", "proxy"), ("x", "y"), ("h1", "h2")
CIDRS = ("192.0.2.0/24", "192.0.2.128/25", "192.0.2.7/32", "0.0.0.0/0", "2001:db8::/32")
PORTS = (1, 79, 80, 81, 443, 8000, 65535)

several = st.lists(st.sampled_from(VALUES), min_size=1, max_size=2).map(tuple)
requirements = st.builds(Requirement, st.sampled_from(KEYS), st.sampled_from(("In", "NotIn")), several) | st.builds(
    Requirement, st.sampled_from(KEYS), st.sampled_from(("Exists", "DoesNotExist"))
)
selectors = st.builds(
    Selector,
    labels=st.dictionaries(st.sampled_from(KEYS), st.sampled_from(VALUES), max_size=2),
    expressions=st.lists(requirements, max_size=2).map(tuple),
    networks=st.sampled_from(((), (), ("x",), ("x", "y"))),
    hosts=st.sampled_from(((), (), ("h1",))),
    names=st.sampled_from(((), (), (), ("one",))),
)
peers = (
    st.builds(Peer, select=selectors)
    | st.builds(Peer, outside=st.just(value=True))
    | st.builds(Peer, cidr=st.sampled_from(CIDRS))
    | st.just(Peer(cidr="192.0.2.0/24", excepts=("192.0.2.128/25",)))
)
requests = st.sampled_from(tuple(icmp.REQUESTS))
ports = (
    st.builds(Ports, st.sampled_from(("tcp", "udp", "sctp", "icmp")))
    | st.builds(
        lambda protocol, ends: Ports(protocol, *sorted(ends)),
        st.sampled_from(("tcp", "udp")),
        st.tuples(st.sampled_from(PORTS), st.sampled_from(PORTS)),
    )
    | requests.map(lambda number: Ports("icmp", number, number))
)
Ways = tuple[tuple[Rule, ...] | None, tuple[Rule, ...] | None]


def _ways(*actions: str) -> st.SearchStrategy[Ways]:
    """Return the rules of a policy for both directions, or for one."""
    rules = st.builds(
        Rule,
        action=st.sampled_from(actions),
        peers=st.lists(peers, max_size=2).map(tuple),
        ports=st.lists(ports, max_size=3).map(tuple),
    )
    some = st.lists(rules, max_size=2).map(tuple)
    return st.tuples(some, some) | st.tuples(st.none(), some) | st.tuples(some, st.none())


ways = {"normal": _ways("allow", "allow", "deny"), "other": _ways("allow", "deny", "pass")}


def policies(name: str) -> st.SearchStrategy[Policy]:
    """Return policies of this name, half of them of the tiers above and below the usual one."""

    def made(select: Selector, said: Ways, order: int, tier: Tier = "normal") -> Policy:
        return Policy(name=name, select=select, ingress=said[0], egress=said[1], order=order, tier=tier)

    orders = st.integers(0, 2)
    return st.builds(made, selectors, ways["normal"], orders) | st.builds(
        made, selectors, ways["other"], orders, st.sampled_from(("admin", "baseline"))
    )


subjects = st.builds(
    Subject,
    name=st.sampled_from(("one", "two")),
    network=st.sampled_from(NETWORKS),
    host=st.sampled_from(HOSTS),
    labels=st.dictionaries(st.sampled_from(KEYS), st.sampled_from(VALUES), max_size=2),
)
probes = st.builds(Probe, st.sampled_from(("tcp", "udp", "sctp")), st.sampled_from(PORTS)) | st.builds(
    Probe, st.just("icmp"), requests
)

def states(regime: Regime, families: Collection[int], *, ports: bool = False) -> list[State]:
    """Return the sets and chains of all policies of a regime, with those that they have in common."""
    found = [*nftables.common(regime, families, ports=ports), *name_rules.sets(regime.names, families)]
    for part in regime_difference.parts(regime).values():
        found += nftables.states(regime, part, families)
    return list(dict.fromkeys(found))


End = Subject | str
"""An endpoint, or an address outside."""


def allows(policies_: list[Policy], closed: set[str], source: End, target: End, probe: Probe) -> bool:
    """Answer as a reader of the documentation would: go through everything, one after the other."""
    return _lets("egress", policies_, set(), source, target, probe) and _lets(
        "ingress", policies_, closed, target, source, probe
    )


def _lets(way: str, policies_: list[Policy], closed: set[str], own: End, other: End, probe: Probe) -> bool:
    if isinstance(own, str):
        return True
    for tier in TIERS:
        mine = [one for one in policies_ if one.tier == tier and chosen(one.select, own)]
        said = [one.ingress if way == "ingress" else one.egress for one in sorted(mine, key=_rank)]
        found = _said(said, other, probe)
        if found in ("allow", "deny"):
            return found == "allow"
        if found == "closed" and tier == "normal":
            return False
    return own.network not in closed


def _rank(policy: Policy) -> tuple[int, str]:
    return policy.order, policy.name


def _said(policies_: list[tuple[Rule, ...] | None], other: End, probe: Probe) -> str:
    """Return the action of the first rule that matches, else "closed" if a policy does more than to deny."""
    found = ""
    for said in policies_:
        for rule in said or ():
            if (not rule.peers or any(_is(peer, other) for peer in rule.peers)) and (
                not rule.ports or any(_at(one, probe) for one in rule.ports)
            ):
                return rule.action
        if said is not None and not (said and all(rule.action == "deny" for rule in said)):
            found = "closed"
    return found


def chosen(selector: Selector, subject: Subject) -> bool:
    """Return whether a selector selects an endpoint."""
    places = (
        (selector.networks, subject.network), (selector.hosts, subject.host), (selector.names, subject.name),
    )  # fmt: skip
    if any(words and word not in words for words, word in places):
        return False
    for key, value in selector.labels.items():
        if key not in subject.labels or subject.labels[key] != value:
            return False
    for one in selector.expressions:
        there = one.key in subject.labels
        within = there and subject.labels[one.key] in one.values
        if not {"In": within, "NotIn": not within, "Exists": there, "DoesNotExist": not there}[one.operator]:
            return False
    return True


def _is(peer: Peer, other: End) -> bool:
    if peer.select is not None:
        return isinstance(other, Subject) and chosen(peer.select, other)
    if not isinstance(other, str):
        return False  # in these tests no pool is within a CIDR, but 0.0.0.0/0
    if peer.outside:
        return True
    at = ipaddress.ip_address(other)
    return at in ipaddress.ip_network(peer.cidr) and not any(at in ipaddress.ip_network(one) for one in peer.excepts)


def _at(ports_: Ports, probe: Probe) -> bool:
    within = ports_.first == 0 or probe.port in range(ports_.first, ports_.last + 1)
    return ports_.protocol == probe.protocol and within
