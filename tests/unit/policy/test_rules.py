"""Rules: what policies are in nftables, and that they do not grow with containers."""

from __future__ import annotations

from linkspan.core.addresses import prefix
from linkspan.core.states.host import NftChain, NftElement, NftSet
from linkspan.policy import rules
from linkspan.policy.judge import Judge
from linkspan.policy.model import Peer, Policy, Ports, Rule, Selector, Subject

PROXY = Selector(labels={"app": "proxy"})
WEB = Policy(
    name="web",
    select=Selector(labels={"app": "web"}),
    ingress=(
        Rule(
            peers=(Peer(select=PROXY), Peer(cidr="192.0.2.0/24", excepts=("192.0.2.7/32",))),
            ports=(Ports("tcp", 443, 443), Ports("tcp", 80, 90), Ports("tcp", 85, 100), Ports("icmp")),
            line=5,
        ),
    ),
    line=2,
)


def test_a_rule_is_one_line_for_each_peer_and_protocol() -> None:
    """Spans that meet are one, and each line has the policy's name and line; IPv6 has no IPv4 address."""
    judge = Judge([WEB])
    chains = {one.name: one.rules for one in rules.states(judge, [4, 6]) if isinstance(one, NftChain)}
    (name,) = (one for one in chains if one.startswith("policy_in4_"))
    chosen, said = f"ip saddr @chosen4_{PROXY.digest}", 'accept comment "policy web line 5"'
    assert chains[name] == (
        f"{chosen} meta l4proto icmp {said}",
        f"{chosen} tcp dport {{ 80-100, 443 }} {said}",
        f"ip saddr 192.0.2.0/24 ip saddr != 192.0.2.7 meta l4proto icmp {said}",
        f"ip saddr 192.0.2.0/24 ip saddr != 192.0.2.7 tcp dport {{ 80-100, 443 }} {said}",
    )
    assert len(chains[name.replace("in4", "in6")]) == 2
    assert "policy_out" not in chains, "there is no policy on egress"


def test_an_endpoint_is_elements_and_a_peer_elsewhere_is_fewer() -> None:
    """Of another host's endpoint only those count that make it a peer."""
    judge = Judge([WEB], ["x"])
    web, proxy = (Subject(app, "x", "h1", {"app": app}) for app in ("web", "proxy"))
    address = prefix("10.1.0.2")

    def sets(subject: Subject, *, policed: bool) -> set[str]:
        found = rules.elements(judge, judge.chosen(subject), [address], policed=policed)
        return {one.set.partition("_")[0] if one.set.startswith("chosen") else one.set for one in found}

    assert sets(web, policed=True) == {"policy_known4", "chosen4", "policed_in4"}
    assert sets(web, policed=False) == {"policy_known4"}
    assert sets(proxy, policed=False) == {"policy_known4", "chosen4"}


def test_without_policies_there_is_nothing() -> None:
    """No packet pays for what nobody uses, and a default-deny network alone is a policy."""
    assert [*rules.states(Judge(), [4])] == []
    assert [*rules.elements(Judge(), frozenset(), [prefix("10.1.0.2")], policed=True)] == []
    assert [*rules.states(Judge([WEB]), [])] == []
    assert [*rules.states(Judge((), ["x"]), [4])] != []


def test_policies_that_select_alike_share_a_set() -> None:
    """A selector is one set for each family, however many rules use it."""
    ingress = (Rule(peers=(Peer(select=PROXY),)),)
    more = [Policy(name=f"p{number}", select=PROXY, ingress=ingress) for number in range(9)]
    sets = [one for one in rules.states(Judge(more), [4]) if isinstance(one, NftSet)]
    assert sum(one.name.startswith("chosen4") for one in sets) == 1
    assert all(isinstance(one, NftElement) for one in rules.elements(Judge(more), frozenset(), [], policed=True))
