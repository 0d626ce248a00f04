"""Rules of policies on the kernel: nft lists them as they were put, and any policy is one transaction."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings

from linkspan.core.addresses import prefix
from linkspan.core.host_view import Facts
from linkspan.core.model import Port
from linkspan.core.ruleset import skeleton
from linkspan.core.states.host import NftChain, NftSet
from linkspan.kernel.drivers.nftables_objects import FirewallDriver
from linkspan.kernel.kinds import kinds
from linkspan.policy import document, endpoint_elements, rules
from linkspan.policy.model import Policy, Subject
from linkspan.policy.regime import Regime
from support import policies as samples
from support.netns.machine_fixtures import fresh_namespace, inside

EVERYTHING = """
policy: web
select: {network: shop, labels: {app: web}}
ingress:
- from:
  - labels: {app: proxy}
  - outside
  - {cidr: 192.0.2.0/24, except: [192.0.2.7, 192.0.2.128/25]}
  - {cidr: '2001:db8::/32'}
  ports: [80, 8000-8010, 53/udp, 132/sctp, icmp]
- {ports: [echo-request/icmp]}
- {ports: [echo-request/icmp, timestamp-request/icmp, info-request/icmp, address-mask-request/icmp]}
- {action: deny, from: [{cidr: 0.0.0.0/0}], ports: [udp, sctp]}
egress:
- to: [{cidr: '::/0', except: ['2001:db8::1']}]
  ports: [1-65535/tcp, tcp]
- {to: [{dns: [api.example.com, '*.example.org']}], ports: [443]}
---
policy: guard
tier: admin
ingress: [{action: pass, from: [outside]}, {action: deny, ports: [22]}]
---
policy: rest
tier: baseline
ingress: [{action: pass, ports: [80]}, {action: deny}]
"""


def test_a_new_agent_finds_the_rules_as_it_would_put_them() -> None:
    """It has no memory of how nft printed them, and changes nothing."""
    policies = document.parsed(EVERYTHING, "").policies
    regime = Regime(policies, policies, ["shop"])
    wanted = [*samples.states(regime, [4, 6], ports=True), *rules.bridge_states(regime, [4, 6])]
    web = regime.chosen(Subject("w", "shop", "h1", {"app": "web"}))
    addresses = [prefix("10.1.0.2"), prefix("fd00::2")]
    wanted += endpoint_elements.of_endpoint(regime, web, addresses, policed=True)
    wanted += endpoint_elements.bridge_elements(regime, web, "lsp1", addresses)
    ports = Port("", 443, 443, "tcp"), Port("192.0.2.1", 53, 53, "udp"), Port("2001:db8::1", 53, 53, "udp")
    wanted += endpoint_elements.of_ports(regime, web, ports, [4, 6])
    wanted = list(dict.fromkeys(wanted))
    with fresh_namespace() as netns, inside(netns):
        first, second = FirewallDriver(), FirewallDriver()
        try:
            assert first.apply([*skeleton(Facts(), kinds()), *wanted], ()) == {}
            observed = {state.key: state for state in second.observe(0)}
            assert [state for state in wanted if observed.get(state.key) != state] == []
            assert first.apply((), wanted[::-1]) == {}
            assert not [state for state in second.observe(0) if state in wanted]
        finally:
            first.close()
            second.close()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(samples.policies("p"))
def test_nft_reads_any_policy(policy: Policy) -> None:
    """The sets and chains of any valid policy are there after one transaction."""
    wanted = samples.states(Regime([policy], [policy]), [4, 6])
    with fresh_namespace() as netns, inside(netns):
        driver = FirewallDriver()
        try:
            assert driver.apply([*skeleton(Facts(), kinds()), *wanted], ()) == {}
            there = {state.key for state in driver.observe(0) if isinstance(state, NftChain | NftSet)}
            assert there.issuperset(state.key for state in wanted)
        finally:
            driver.close()
