"""Truth tables of policies: every cell between nine containers is what the table says, routed and bridged."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings

from linkspan.policy import document
from linkspan.policy.model import Policy, Tier
from support.agent.yard import PODS, Yard, yard_in
from support.policy_cases import peer_cases, port_cases, rule_cases
from support.policy_tables import both_wrong, disagreements, play, policies

RIGHT: dict[int, list[object]] = {4: [], 6: []}


@pytest.fixture(scope="module", params=["routed", "bridged"])
def yard(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Yard]:
    """Return a host with nine containers, in routed networks or on bridges."""
    with yard_in(tmp_path_factory.mktemp("tables"), request.param) as made:
        yield made


def test_every_peer_means_whom_the_table_says(yard: Yard) -> None:
    """By labels, each operator, networks, names, addresses and exceptions, in both directions."""
    cases = peer_cases()
    assert len(cases) == 128
    assert play(yard, cases) == []


def test_every_list_of_ports_opens_what_the_table_says(yard: Yard) -> None:
    """By single ports, spans, whole protocols, and several of them."""
    cases = port_cases()
    assert len(cases) == 70
    assert play(yard, cases) == []


def test_of_several_rules_the_first_one_decides(yard: Yard) -> None:
    """Allows and denies of one policy, in either order."""
    assert play(yard, rule_cases()) == []
    assert yard.host.differences() == []


ALLOW = "{action: allow}"
CONFLICTS: tuple[tuple[str, str, str], ...] = (
    ("two isolate, one allows", "ingress: []", f"ingress: [{ALLOW}]"),
    ("both allow a part", "ingress: [{from: [{network: x}]}]", "ingress: [{from: [{network: y}]}]"),
    ("the first denies a part", "ingress: [{action: deny, from: [{network: x}]}]", f"ingress: [{ALLOW}]"),
    ("the second denies a part", f"ingress: [{ALLOW}]", "ingress: [{action: deny, from: [{network: x}]}]"),
    ("the first denies a port", "ingress: [{action: deny, ports: [81]}]", "ingress: [{from: [{network: z}]}]"),
    ("both deny", "ingress: [{action: deny, ports: [81]}]", "ingress: [{action: deny, ports: [udp]}]"),
    ("one for each direction", "ingress: [{ports: [tcp]}]", "egress: [{ports: [80]}]"),
    ("nothing out, everything in", "egress: []", f"ingress: [{ALLOW}]"),
    ("nothing at all", "ingress: []", "egress: []"),
)
OPEN: dict[str, tuple[str, str]] = {
    "two isolate, one allows": ("xyz tcp udp 80 81", "xyz tcp udp 80 81"),
    "both allow a part": ("xy tcp udp 80 81", "xyz tcp udp 80 81"),
    "the first denies a part": ("yz tcp udp 80 81", "xyz tcp udp 80 81"),
    "the second denies a part": ("xyz tcp udp 80 81", "xyz tcp udp 80 81"),
    "the first denies a port": ("z tcp udp 80 81 -81/tcp", "xyz tcp udp 80 81"),
    "both deny": ("xyz tcp 80", "xyz tcp udp 80 81"),
    "one for each direction": ("xyz tcp 80 81", "xyz tcp 80"),
    "nothing out, everything in": ("xyz tcp udp 80 81", ""),
    "nothing at all": ("", ""),
}
"""By conflict: from whom the container is reached at what, and whom it reaches."""


def _within(words: str, network: str, port: int, protocol: str) -> bool:
    networks, *rest = words.split() or [""]
    there = network in networks and protocol in rest and str(port) in rest
    return there and f"-{port}/{protocol}" not in rest


def test_policies_that_meet_are_looked_at_by_their_order(yard: Yard) -> None:
    """Two policies about each container: whichever comes first decides, and isolation adds up."""
    about = dict(zip(PODS, CONFLICTS, strict=True))
    texts = [
        f"policy: {name}-{order}\norder: {order}\nselect: {{name: {name}}}\n{said}\n"
        for name, (_, *both) in about.items()
        for order, said in enumerate(both)
    ]
    yard.apply("---\n".join(texts))

    def expected(source: str, target: str, port: int, protocol: str) -> bool:
        into, out = OPEN[about[target][0]][0], OPEN[about[source][0]][1]
        return _within(into, source[0], port, protocol) and _within(out, target[0], port, protocol)

    assert both_wrong(yard, lambda _family: expected) == RIGHT


_X, _Z = "from: [{network: x}]", "from: [{network: z}]"
TIERED: dict[str, tuple[dict[Tier, str], str]] = {
    "admin allows a part": ({"admin": f"{{{_Z}, ports: [80]}}", "normal": ""}, "z tcp 80"),
    "admin denies a part": ({"admin": f"{{action: deny, {_X}}}", "normal": "{}"}, "yz tcp udp 80 81"),
    "admin passes, nobody decides": ({"admin": f"{{action: pass, {_X}}}, {{action: deny}}"}, "x tcp udp 80 81"),
    "admin passes to a refusal": ({"admin": f"{{action: pass, {_X}}}, {{action: deny}}", "normal": ""}, ""),
    "admin passes a port": (
        {"admin": "{action: pass, ports: [tcp]}, {action: deny}", "normal": "{ports: [80, 81/udp]}"}, "xyz tcp 80",
    ),
    "baseline denies": ({"baseline": "{action: deny}"}, ""),
    "baseline is overruled": ({"normal": f"{{{_Z}}}", "baseline": "{action: deny}"}, "z tcp udp 80 81"),
    "baseline passes": ({"baseline": f"{{action: pass, {_Z}}}, {{action: deny}}"}, "z tcp udp 80 81"),
    "all three": (
        {"admin": f"{{action: pass, {_X}}}, {{action: deny, {_Z}}}", "normal": "{action: deny, ports: [81]}",
         "baseline": "{ports: [tcp]}, {action: deny}"},
        "xy tcp 80",
    ),
}  # fmt: skip
"""By what they show: the rules of ingress in each tier, and from whom the container is reached at what."""


def test_tiers_decide_above_and_below(yard: Yard) -> None:
    """Nobody changes a decision of admin, and baseline decides where nobody else does."""
    about = dict(zip(PODS, TIERED.values(), strict=True))
    texts = [
        f"policy: {name}-{tier}\ntier: {tier}\nselect: {{name: {name}}}\ningress: [{said}]\n"
        for name, (tiers, _) in about.items()
        for tier, said in tiers.items()
    ]
    yard.apply("---\n".join(texts))

    def expected(source: str, target: str, port: int, protocol: str) -> bool:
        return _within(about[target][1], source[0], port, protocol)

    assert both_wrong(yard, lambda _family: expected) == RIGHT
    refused = yard.host.json("trace", "z-a", "z-c", "--port", "80", code=3)
    assert "policy z-c-admin line" in refused["reason"]
    assert yard.host.json("policy", "can", "x-a", "z-c")["ports"] == ["1-80/tcp", "82-65535/tcp"]


def test_a_changed_label_and_a_deleted_policy_change_the_cells(yard: Yard) -> None:
    """The same cells follow labels of both ends, and everything is open again at the end."""
    yard.apply("policy: p\nselect: {labels: {pod: a}}\ningress: [{from: [{labels: {pod: b}}]}]\n")

    def between(targets: str, sources: str) -> object:
        """Return what is wrong if only these targets are closed, and only these sources reach them."""
        return both_wrong(
            yard, lambda _family: lambda s, t, _port, _protocol: t not in targets.split() or s in sources.split()
        )

    assert between("x-a y-a z-a", "x-b y-b z-b") == RIGHT
    yard.host.cli("endpoint", "label", "x-c", "pod=a")
    yard.host.cli("endpoint", "label", "y-b", "pod=c")
    try:
        assert between("x-a y-a z-a x-c", "x-b z-b") == RIGHT
    finally:
        yard.host.cli("endpoint", "label", "x-c", "pod=c")
        yard.host.cli("endpoint", "label", "y-b", "pod=b")
    yard.apply("")
    assert between("", "") == RIGHT


KUBERNETES = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: z}
spec:
  podSelector: {matchLabels: {pod: a}}
  policyTypes: [Ingress]
  ingress:
  - from:
    - podSelector: {}
    - namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: y}}
      podSelector: {matchExpressions: [{key: pod, operator: In, values: [b, c]}]}
    ports:
    - {port: 80, endPort: 81}
"""


def test_a_policy_of_kubernetes_means_the_same_here(yard: Yard) -> None:
    """A namespace is a network, and a peer without one is in the policy's own."""
    yard.apply(KUBERNETES)

    def expected(source: str, target: str, _port: int, protocol: str) -> bool:
        return target != "z-a" or (protocol == "tcp" and (source[0] == "z" or source in ("y-b", "y-c")))

    assert both_wrong(yard, lambda _family: expected) == RIGHT


@settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(made=policies)
def test_the_kernel_and_the_judge_agree_on_random_policies(yard: Yard, made: list[Policy]) -> None:
    """Each cell is what the judge says of it, by IPv4 and IPv6, under any five policies of all tiers."""
    assert disagreements(yard, made, lambda _name: "") == RIGHT, "---\n".join(map(document.printed, made))
