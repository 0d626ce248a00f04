"""Review: what is odd about policies, given the endpoints that there are."""

from __future__ import annotations

import pytest

from linkspan.core.addresses import prefix
from linkspan.policy import document
from linkspan.policy.judge import Judge, Party
from linkspan.policy.model import Subject
from linkspan.policy.review import Known, review

APPS = ("web", "proxy", "dns")
ENDPOINTS = [
    Known(Subject(app, "shop", "h1", {"app": app}), (prefix(f"10.1.0.{n}"),)) for n, app in enumerate(APPS, 2)
]
WEB = "select: {labels: {app: web}}\n"
FINDINGS = {
    "a sound policy": (f"policy: p\n{WEB}ingress: [{{from: [{{labels: {{app: proxy}}}}]}}]", []),
    "nobody is selected": ("policy: p\nselect: {labels: {app: wbe}}\ningress: []", ["it selects no container"]),
    "nobody is a peer": (
        f"policy: p\n{WEB}ingress:\n- from: [{{labels: {{app: prxoy}}}}]\n",
        ["line 4 is about no container that there is"],
    ),
    "one of two peers is there": (
        f"policy: p\n{WEB}ingress:\n- from: [{{labels: {{app: q}}}}, {{labels: {{app: proxy}}}}]\n", []
    ),
    "an address may be anybody": (f"policy: p\n{WEB}ingress:\n- from: [{{cidr: 192.0.2.0/24}}, outside]\n", []),
    "a rule that never counts": (
        f"policy: p\n{WEB}ingress:\n- ports: [1-100]\n- {{action: deny, ports: [80]}}\n",
        ["line 5 never counts, because line 4 decides first"],
    ),
    "a rule that counts for a part": (
        f"policy: p\n{WEB}ingress:\n- {{action: deny, ports: [80]}}\n- ports: [1-100]\n", []
    ),
    "two policies say the opposite": (
        f"policy: a\n{WEB}ingress:\n- ports: [80-90]\n---\n"
        "policy: b\nselect: {network: shop}\ningress:\n- {action: deny, from: [{labels: {app: proxy}}], ports: [85]}\n",
        ["line 4 allows what policy b line 9 denies to web, and counts only because of its name"],
    ),
    "their order says which one counts": (
        f"policy: a\norder: 1\n{WEB}ingress:\n- ports: [80]\n---\n"
        f"policy: b\n{WEB}ingress:\n- {{action: deny, ports: [80]}}\n",
        [],
    ),
    "they are about different ports": (
        f"policy: a\n{WEB}ingress: [{{ports: [80]}}]\n---\n"
        f"policy: b\n{WEB}ingress: [{{action: deny, ports: [80/udp]}}]\n",
        [],
    ),
    "they are about different containers": (
        f"policy: a\n{WEB}ingress: [{{}}]\n---\npolicy: b\nselect: {{name: proxy}}\ningress: [{{action: deny}}]\n", []
    ),
    "a resolver is closed to the hosts": (
        "policy: p\nselect: {labels: {app: dns}}\ningress: [{from: [{labels: {app: web}}]}]",
        ["it refuses other hosts' DNS queries to dns, which is a resolver of hosts"],
    ),
    "a resolver is open to the hosts": (
        "policy: p\nselect: {labels: {app: dns}}\ningress: [{from: [{cidr: 192.0.2.0/24}], ports: [53/udp]}]", []
    ),
}


@pytest.mark.parametrize("case", FINDINGS)
def test_what_an_author_may_not_have_meant_is_found(case: str) -> None:
    """Each finding is a sentence about one policy, and a sound policy has none."""
    text, expected = FINDINGS[case]
    judge = Judge(document.parsed(text, "file").policies)
    askers = [Party(prefix("192.0.2.9"), outside=True)]
    assert [one.what for one in review(judge, ENDPOINTS, [prefix("10.1.0.4")], askers)] == expected


def test_a_review_of_rules_that_are_made_to_be_long_ends() -> None:
    """Anybody who may write policies, and ask `doctor`, would keep the agent busy for minutes."""
    ports = ", ".join(f"{number}/udp" for number in range(1, 257))
    head = f"order: 1\n{WEB}ingress:\n"
    deny = "".join(f"- {{action: deny, from: [{{cidr: 10.9.{n}.0/24}}], ports: [{ports}]}}\n" for n in range(16))
    allow = deny.replace("action: deny, ", "").replace("10.9", "10.8")
    judge = Judge(document.parsed(f"policy: a\n{head}{deny}---\npolicy: b\n{head}{allow}", "file").policies)
    found = [*review(judge, ENDPOINTS)]
    assert [(one.policy, one.what) for one in found] == [
        ("", "there are too many rules to compare all of them, so other things may be odd as well")
    ]


def test_a_thousand_policies_are_reviewed_within_seconds() -> None:
    """Pairs are compared only where one of them denies."""
    head = f"{WEB}ingress: [{{from: [{{labels: {{app: proxy}}}}], "
    texts = [f"policy: p{number}\n{head}ports: [{number + 1}]}}]" for number in range(999)]
    texts.append(f"policy: zz\n{WEB}ingress: [{{action: deny, ports: [7]}}]")
    judge = Judge(document.parsed("\n---\n".join(texts), "file").policies)
    assert [one.policy for one in review(judge, ENDPOINTS)] == ["p6"]
