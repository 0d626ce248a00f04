"""Rules: what policies are in nftables, and that they do not grow with containers."""

from __future__ import annotations

import msgspec

from linkspan.core.addresses import prefix
from linkspan.core.model import Port
from linkspan.core.states.host import NftChain, NftElement, NftSet
from linkspan.policy import rules
from linkspan.policy.endpoint_elements import bridge_elements, of_endpoint, of_ports
from linkspan.policy.model import Peer, Policy, Ports, Rule, Selector, Subject
from linkspan.policy.regime import Regime
from support.policies import states

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
    regime = Regime([WEB])
    chains = {one.name: one.rules for one in states(regime, [4, 6]) if isinstance(one, NftChain)}
    (name,) = (one for one in chains if one.startswith("policy_in4_") and not one.endswith("_no"))
    chosen, said = f"ip saddr @chosen4_{PROXY.digest}", 'accept comment "policy web line 5"'
    assert len(name.removeprefix("policy_in4_")) == 32, "so many digits that nobody finds two policies with one name"
    assert chains[name] == (
        f"{chosen} meta l4proto icmp {said}",
        f"{chosen} tcp dport {{ 80-100, 443 }} {said}",
        f"ip saddr 192.0.2.0/24 ip saddr != 192.0.2.7 meta l4proto icmp {said}",
        f"ip saddr 192.0.2.0/24 ip saddr != 192.0.2.7 tcp dport {{ 80-100, 443 }} {said}",
    )
    assert len(chains[name.replace("in4", "in6")]) == 2
    assert "policy_out" not in chains, "there is no policy on egress"


def test_a_tier_that_passes_on_leads_to_a_chain_of_the_next_ones() -> None:
    """That chain accepts at its end: what comes after the policy that passed on would count otherwise."""
    admin = Policy(
        name="guard", tier="admin", line=1,
        ingress=(Rule(action="pass", ports=(Ports("tcp", 80, 80),), line=2), Rule(action="deny", line=3)),
    )  # fmt: skip
    below = Policy(name="rest", tier="baseline", ingress=(Rule(action="deny"),), line=4)
    regime = Regime([below, WEB, admin], (), ["x"])
    web = regime.chosen(Subject("w", "x", "h1", {"app": "web"}))
    other = regime.chosen(Subject("o", "y", "h1", {}))
    found = states(regime, [4])
    for number, chosen in enumerate((web, other)):
        found += of_endpoint(regime, chosen, [prefix(f"10.1.0.{number}")], policed=True)
    chains = {one.name: one.rules for one in found if isinstance(one, NftChain)}
    leading = [one for one in found if isinstance(one, NftElement) and one.data]
    ways = {(one.set, one.parts[0]): one.data[0].removeprefix("goto ") for one in leading}
    assert chains["policy_in4_after_admin"] == ("ip daddr vmap @policed_by_in4_admin", "drop")
    for number in (0, 1):
        jump, last = chains[ways["policed_by_in4", f"10.1.0.{number}"]]
        assert (jump.partition(" comment ")[2], last) == ('"policy guard"', "goto policy_in4_after_admin")
        assert chains[jump.split()[1]] == (
            'tcp dport 80 goto policy_in4_after_admin comment "policy guard line 2"',
            'counter goto policy_refused comment "policy guard line 3"',
        )
    jump, last = chains[ways["policed_by_in4_admin", "10.1.0.0"]]
    assert jump.endswith('comment "policy web"')
    assert chains[last.split()[1]] == ('counter goto policy_refused comment "policy web line 2"',)
    jump, last = chains[ways["policed_by_in4_admin", "10.1.0.1"]]
    assert (jump.partition(" comment ")[2], last) == ('"policy rest"', "accept")


def test_a_request_of_icmp_is_in_each_family_that_has_it() -> None:
    """A ping is one of both; a timestamp is asked by IPv4 alone, so IPv6 has no rule that would mean something else."""
    ping, both = Rule(ports=(Ports("icmp", 8, 8),)), Rule(ports=(Ports("icmp", 13, 13), Ports("icmp", 8, 8)))
    stamp = Rule(ports=(Ports("icmp", 13, 13), Ports("tcp", 22, 22)))
    found = states(Regime([msgspec.structs.replace(WEB, ingress=(ping, both, stamp))]), [4, 6])
    chains = {one.name: one.rules for one in found if isinstance(one, NftChain) and "_in" in one.name}
    four, six = (next(of for name, of in chains.items() if name.startswith(f"policy_in{n}_")) for n in (4, 6))
    said = 'accept comment "policy web line 2"'
    assert four == (
        f"icmp type echo-request {said}",
        f"icmp type {{ echo-request, timestamp-request }} {said}",
        f"icmp type timestamp-request {said}",
        f"tcp dport 22 {said}",
    )
    assert six == (f"icmpv6 type echo-request {said}",) * 2 + (f"tcp dport 22 {said}",)


def test_an_endpoint_is_elements_and_a_peer_elsewhere_is_fewer() -> None:
    """Of another host's endpoint only those count that make it a peer."""
    regime = Regime([WEB], closed=["x"])
    web, proxy = (Subject(app, "x", "h1", {"app": app}) for app in ("web", "proxy"))
    address = prefix("10.1.0.2")

    def sets(subject: Subject, *, policed: bool) -> set[str]:
        found = of_endpoint(regime, regime.chosen(subject), [address], policed=policed)
        sets = [one.set for one in found if isinstance(one, NftElement)]
        return {name.partition("_")[0] if name.startswith("chosen") else name for name in sets}

    assert sets(web, policed=True) == {"policy_known4", "policed_in4", "policed_by_in4"}
    assert sets(web, policed=False) == {"policy_known4"}
    assert sets(proxy, policed=False) == {"policy_known4", "chosen4"}


def test_without_policies_there_is_nothing() -> None:
    """No packet pays for what nobody uses, and a default-deny network alone is a policy."""
    assert states(Regime(), [4]) == []
    assert of_endpoint(Regime(), frozenset(), [prefix("10.1.0.2")], policed=True) == []
    assert states(Regime([WEB]), []) == []
    assert states(Regime(closed=["x"]), [4]) != []


def test_policies_that_select_alike_share_a_set() -> None:
    """A selector is one set for each family, however many rules use it."""
    ingress = (Rule(peers=(Peer(select=PROXY),)),)
    more = [Policy(name=f"p{number}", select=PROXY, ingress=ingress) for number in range(9)]
    sets = [one for one in states(Regime(more), [4]) if isinstance(one, NftSet)]
    assert sum(one.name.startswith("chosen4") for one in sets) == 1


def test_a_staged_policy_has_chains_that_refuse_nothing() -> None:
    """They count in sets and accept; what is enforced keeps its own chains."""
    shut = Policy(name="shut", select=PROXY, egress=(), line=7)
    regime = Regime([WEB], [shut])
    chains = {one.name: one.rules for one in states(regime, [4]) if isinstance(one, NftChain)}
    assert "policy_out" not in chains
    (refusing,) = (one for name, one in chains.items() if name.startswith("staged_out4_"))
    assert refusing == ('counter goto staged_refused4 comment "policy shut line 7"',)
    assert not any("reject" in rule or "drop" in rule for name in chains if "staged" in name for rule in chains[name])
    assert chains["staged_refused4"][-1] == "accept"
    chosen = regime.chosen(Subject("p", "x", "h1", {"app": "proxy"}))
    found = of_endpoint(regime, chosen, [prefix("10.1.0.3")], policed=True)
    sets = {one.set for one in found if isinstance(one, NftElement)}
    assert {"watched_out4", "watched_by_out4"} <= sets
    assert not any(name.startswith("policed") for name in sets)


def test_an_endpoint_is_watched_if_a_staged_version_selects_it_no_more() -> None:
    """The version that is enforced may allow what the staged one does not."""
    moved = Policy(name="web", select=PROXY, ingress=())
    regime = Regime([WEB], [moved])
    assert regime.watched["ingress"] == {WEB.select.digest, PROXY.digest}
    assert regime.watched["egress"] == frozenset()
    assert [one.name for one in regime.trial.policies] == ["web"]
    assert regime.judge.policies == (WEB,)


def test_link_local_addresses_are_not_outside() -> None:
    """A neighbour on a bridge has one; a rule for the outside must not let it in."""
    policy = Policy(name="out", ingress=(Rule(peers=(Peer(outside=True),)),))
    chains = {one.name: one.rules for one in states(Regime([policy]), [6]) if isinstance(one, NftChain)}
    (lines,) = (one for name, one in chains.items() if name.startswith("policy_in6_") and not name.endswith("_no"))
    assert lines[0].startswith("ip6 saddr != @pools6 ip6 saddr != fe80::/10 ")
    assert "ip6 saddr fe80::/10 ip6 saddr != @policy_known6 drop" in chains["policy_in6"]


def test_a_container_under_egress_reaches_no_neighbour_by_an_address_of_none() -> None:
    """A broadcast is outside of all pools, and on a bridge it goes to every neighbour; what is staged ignores it."""
    policy = Policy(name="out", select=PROXY, egress=(Rule(peers=(Peer(outside=True),)),))
    regime = Regime([policy], [msgspec.structs.replace(policy, egress=())])
    chains = {one.name: one.rules for one in states(regime, [4, 6]) if isinstance(one, NftChain)}
    four, six = 'oifname "ls-*" ip daddr != @pools4', 'oifname "ls-*" ip6 daddr != @pools6 ip6 daddr != fe80::/10'
    wanted = {"policy_out4": f"{four} drop", "policy_out6": f"{six} drop", "staged_out4": f"{four} accept"}
    for name, rule in wanted.items():
        jump = next(number for number, one in enumerate(chains[name]) if " vmap " in one)
        assert rule in chains[name][:jump]


def test_a_port_on_a_bridge_gets_only_packets_for_its_container() -> None:
    """Its addresses are elements; a container that is under no ingress has none."""
    regime = Regime([WEB])
    chains = {one.name: one.rules for one in rules.bridge_states(regime, [4, 6]) if isinstance(one, NftChain)}
    assert "oifname . ip daddr != @receivers4 drop" in chains["policy_port"]
    web, other = (regime.chosen(Subject(app, "x", "h1", {"app": app})) for app in ("web", "other"))
    found = bridge_elements(regime, web, "lsp1", [prefix("10.1.0.2"), prefix("fe80::1")])
    assert [(one.set, one.parts) for one in found] == [
        ("filtered_ports", ("lsp1",)), ("receivers4", ("lsp1", "10.1.0.2")), ("receivers6", ("lsp1", "fe80::1")),
    ]  # fmt: skip
    assert [*bridge_elements(regime, other, "lsp2", [prefix("10.1.0.3")])] == []
    assert [*rules.bridge_states(Regime([Policy(name="out", egress=())]), [4])] == []


def test_ports_of_the_host_lead_to_the_chains_of_their_containers_policies() -> None:
    """Those of ingress, the same as for addresses; a port at one address is in maps of its own."""
    regime = Regime([WEB])
    web = regime.chosen(Subject("w", "x", "h1", {"app": "web"}))
    ports = Port("", 80, 80, "tcp"), Port("0.0.0.0", 53, 53, "udp"), Port("2001:db8::1", 443, 443, "tcp")
    found = list(of_ports(regime, web, ports, [4, 6]))
    ways = {(one.set, one.parts): one.data[0] for one in found if isinstance(one, NftElement) and one.data}
    assert {key for key in ways if key[0].startswith("policed_by_port4")} == {
        ("policed_by_port4", ("tcp", "80")), ("policed_by_port4", ("udp", "53")),
    }  # fmt: skip
    assert {key for key in ways if "6" in key[0]} == {
        ("policed_by_port6", ("tcp", "80")), ("policed_by_port_at6", ("2001:db8::1", "tcp", "443")),
    }  # fmt: skip
    own = of_endpoint(regime, web, [prefix("10.1.0.1")], policed=True)
    (chain,) = (one for one in own if isinstance(one, NftChain))
    assert ways["policed_by_port4", ("tcp", "80")] == f"goto {chain.name}"
    assert list(of_ports(regime, regime.chosen(Subject("o", "x", "h1", {})), ports, [4])) == []


def test_without_networks_of_the_host_no_packet_to_it_meets_a_rule() -> None:
    """Neither do its answers; there are such rules only where policies may be about such ports."""
    regime = Regime([WEB], [WEB])
    hooks = {one.name for one in states(regime, [4]) if isinstance(one, NftChain) and one.hook}
    assert hooks == {"policy_in", "staged_in"}
    every = [one for one in states(regime, [4, 6], ports=True) if isinstance(one, NftChain)]
    assert {one.name for one in every if one.hook} == hooks | {"policy_in_ports", "policy_out_ports", "staged_in_ports"}
    outgoing = Regime([msgspec.structs.replace(WEB, ingress=None, egress=())])
    assert not [one for one in states(outgoing, [4], ports=True) if isinstance(one, NftChain) and "ports" in one.name]
