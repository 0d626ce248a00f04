"""Trials of staged policies: how much of what the kernel counted is judged and told."""

from __future__ import annotations

from linkspan.agent import policy_trials
from linkspan.agent.policy_flows import Flows, Known
from linkspan.core.addresses import prefix
from linkspan.kernel.probe.conntrack import Flow
from linkspan.kernel.probe.policy_counts import Tally
from linkspan.policy.judge import Judge
from linkspan.policy.model import Policy, Subject

SHUT = Judge([Policy(name="shut", line=3, ingress=())])
WEB, NEIGHBOUR = prefix("10.1.0.2"), prefix("10.1.0.3")


class Counting(Flows):
    """Flows that count how many are judged."""

    judged = 0

    def refusal(self, flow: Flow) -> object:  # type: ignore[override]
        """Count and judge."""
        self.judged += 1
        return super().refusal(flow)


def test_a_scan_of_all_ports_is_judged_in_part() -> None:
    """Those with the most packets are told, and how many are left out."""
    web = Known(WEB, SHUT.chosen(Subject("web", "x", "h1", {})), "web")
    flows = Counting(SHUT, {WEB.address: web}, {WEB.address}, [prefix("10.1.0.0/16")], (), {})
    scan = [Tally(Flow(NEIGHBOUR, WEB, "tcp", port), 1) for port in range(1, 60000)]
    often = Tally(Flow(NEIGHBOUR, WEB, "udp", 53), 9)
    refused, more = policy_trials.summed([often, *scan], flows)
    assert (len(refused), more) == (policy_trials.MOST, 60000 - policy_trials.MOST)
    assert flows.judged == policy_trials.MOST
    first = refused[0]
    assert (first.policy, first.line, first.source, first.target) == ("shut", 3, "10.1.0.3", "web")
    assert (first.port, first.packets) == ("53/udp", 9)
