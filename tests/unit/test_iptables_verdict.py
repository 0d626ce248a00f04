"""iptables: what another's FORWARD chain would do with a packet, read from its rules."""

from __future__ import annotations

import shlex

import pytest

from linkspan.addresses import prefix
from linkspan.tell.iptables import forwarded
from linkspan.tell.questions import Packet
from linkspan.tell.rules import Frame

DOCKER = """
-P FORWARD DROP
-N DOCKER-USER
-N DOCKER
-A FORWARD -j DOCKER-USER
-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -i docker0 ! -o docker0 -j ACCEPT
-A FORWARD -o docker0 -j DOCKER
-A DOCKER-USER -j RETURN
"""
NEW = Frame(Packet(prefix("10.0.0.2").packed, prefix("192.0.2.1").packed, "tcp", 443), "ls-demo", "eth0")
ANSWER = Packet(prefix("192.0.2.1").packed, prefix("10.0.0.2").packed, "tcp", 4, established=True)
REPLY = Frame(ANSWER, "eth0", "ls-demo")
USER = "-A DOCKER-USER -s 10.0.0.0/24 -j ACCEPT\n-A DOCKER-USER -j"


def tables(*texts: str) -> list[list[tuple[str, ...]]]:
    """Split ``iptables -S`` outputs into words."""
    return [[tuple(shlex.split(line)) for line in text.strip().splitlines()] for text in texts]


@pytest.mark.parametrize(
    ("rules", "frame", "passes", "rule"),
    [
        ("-P FORWARD ACCEPT", NEW, True, ""),
        ("-P FORWARD DROP", NEW, False, "policy DROP"),
        (DOCKER, NEW, False, "policy DROP"),
        (DOCKER.replace("-A DOCKER-USER -j", USER), NEW, True, ""),
        (DOCKER.replace("-o docker0 -m", "-m"), REPLY, True, ""),
        (DOCKER.replace("-o docker0 -m", "-m"), NEW, False, "policy DROP"),
        ("-A FORWARD -p tcp -m tcp --dport 400:500 -j REJECT --reject-with tcp-reset", NEW, False,
         "-p tcp -m tcp --dport 400:500 -j REJECT --reject-with tcp-reset"),
        ("-A FORWARD -p udp -m udp --dport 443 -j DROP", NEW, True, ""),
        ("-A FORWARD -i ls+ -j DROP", NEW, False, "-i ls+ -j DROP"),
        ("-A FORWARD ! -i ls+ -j DROP", NEW, True, ""),
        ("-A FORWARD ! -d 192.0.2.0/24 -j DROP", NEW, True, ""),
        ("-N X\n-A FORWARD -g X\n-A FORWARD -j DROP\n-A X -s 10.9.0.0/16 -j DROP", NEW, True, ""),
        ("-N X\n-A FORWARD -j X\n-A FORWARD -j DROP", NEW, False, "-j DROP"),
        ("-N X\n-A FORWARD -j X\n-A X -j X", NEW, True, ""),
        ("-A FORWARD -m comment --comment 'a -j DROP of old' -j ACCEPT\n-P FORWARD DROP", NEW, True, ""),
    ],
)  # fmt: skip
def test_the_forward_chains_are_worked_through_as_the_kernel_does(
    rules: str, frame: Frame, passes: bool, rule: str
) -> None:
    """Jumps, gotos, returns, negations, states, ports and policies."""
    found = forwarded(tables(rules), frame)
    assert found.passes is passes
    assert found.rule == rule


def test_one_table_that_drops_is_enough() -> None:
    """Of nftables' and the legacy tables each sees the packet."""
    assert not forwarded(tables("-P FORWARD ACCEPT", "-P FORWARD DROP"), NEW).passes


def test_a_match_that_is_not_understood_decides_nothing() -> None:
    """Neither drop nor accept is claimed on a guess: the rule is told instead."""
    rules = "-A FORWARD -m set --match-set bad src -j DROP\n-A FORWARD -m physdev --physdev-is-bridged -j DROP"
    found = forwarded(tables(rules), NEW)
    assert found.passes
    assert len(found.unsure) == 2
    assert "--match-set bad src" in found.unsure[0]
    assert "--physdev-is-bridged" in found.unsure[1]
