"""Meaning of linkspan's own rules in a trace: from what a rule looks up, whatever its text looks like."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from linkspan.core.ruleset import TABLE
from linkspan.diagnose.trace.nft_rule import Rule
from linkspan.diagnose.trace.packet import Packet
from linkspan.diagnose.trace.rule_meanings import UNKNOWN, meaning
from support.diagnose.nft_rules import DROP, SOURCE, TARGET, field, match, meta

PACKET = Packet(SOURCE, TARGET)
REJECT = {"reject": {"type": "icmpx", "expr": "admin-prohibited"}}


def rule(*expressions: Mapping[str, Any], table: str = TABLE) -> Rule:
    """Return a rule of ours."""
    return Rule("inet", table, "forward", expressions)


@pytest.mark.parametrize(
    ("expressions", "words"),
    [
        ([match({"concat": [field("ip", "saddr"), meta("l4proto")]}, "@tunnel_peers4", "!="), DROP], "from peers only"),
        ([match({"concat": [field("ip", "saddr"), meta("l4proto")]}, "@permitted4", "!="), REJECT], "published, but"),
        ([match(field("ip", "saddr"), "@ipip_peers", "!="), DROP], "IPIP is accepted from peers only"),
        ([match(meta("oifname"), "@internal_links"), match(field("ip", "saddr"), "@internal4"), REJECT], "outside"),
        ([match(field("ip6", "saddr"), "@internal6"), match(field("ip6", "daddr"), "@pools6"), REJECT], "published"),
        ([match(field("ip", "saddr"), "@pools4"), match(field("ip", "daddr"), "@pools4"), REJECT], "network allow"),
        ([match(meta("iifname"), "lsx*"), DROP], "it is not in the peer's blocks"),
        ([match(field("ip", "daddr"), {"prefix": {"addr": "127.0.0.0", "len": 8}}), DROP], "loopback addresses"),
        ([{"vmap": {"key": field("ip", "saddr"), "data": "@sources4"}}], "belongs to a container"),
        ([DROP], "no peer has it on this path"),
        ([REJECT], "may use only DNS and ICMP of the host"),
    ],
)
def test_a_rule_is_known_by_what_it_looks_up(expressions: list[Mapping[str, Any]], words: str) -> None:
    """By its sets, links and addresses; of several that are known the most special one counts."""
    assert words in meaning(rule(*expressions), PACKET)


@pytest.mark.parametrize(
    "found",
    [
        None,
        rule(match(field("ip", "saddr"), "@pools4"), DROP, table="theirs"),
        rule(match(meta("iifname"), "eth0"), {"log": {"prefix": "@macs lsx* 127.0.0.0/8"}}, DROP),
        rule(match(field("ip", "saddr"), "@my_senders4"), DROP),
        rule(match(meta("iifname"), "xlsp*"), DROP),
        rule({"counter": {"packets": 1, "bytes": 2}}, match(meta("mark"), 7), DROP),
    ],
)
def test_nothing_is_claimed_of_any_other_rule(found: Rule | None) -> None:
    """Another's rule, and one whose text alone has a word of ours in it, is a firewall's."""
    assert meaning(found, PACKET) == UNKNOWN
