"""iptables: what another's FORWARD chain would do with a packet, read from its rules."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

import pytest

from linkspan.core.addresses import prefix
from linkspan.diagnose.trace.iptables_verdict import tables
from linkspan.diagnose.trace.kernel_view import IptablesTable
from linkspan.diagnose.trace.netfilter_hooks import passed_iptables
from linkspan.diagnose.trace.packet import Packet
from linkspan.diagnose.trace.verdict import Frame, Verdict
from support.diagnose.empty_host import EmptyHost

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


class Kernel(EmptyHost):
    """A host that has these tables of iptables and no others; no route is special."""

    def __init__(self, found: Sequence[IptablesTable]) -> None:
        self._found = tuple(found)

    def iptables(self, netns: int, family: int) -> tuple[IptablesTable, ...]:
        """Return them."""
        return self._found


def forwarded(frame: Frame, *texts: str, table: str = "filter") -> Verdict:
    """Return what tables decide of a frame, each given as ``-P``, ``-N`` and ``-A`` lines."""
    found: list[IptablesTable] = []
    for text in texts:
        lines = text.strip().splitlines()
        policies = {"FORWARD": "ACCEPT"} | {line.split()[1]: line.split()[2] for line in lines if line.startswith("-P")}
        chains = [f":{chain} {policy}" for chain, policy in policies.items()]
        chains += [f":{line.split()[1]} -" for line in lines if line.startswith("-N")]
        saved = [f"*{table}", *chains, *(line for line in lines if line.startswith("-A")), "COMMIT"]
        found += tables(saved, shlex.split)
    return passed_iptables(Kernel(found), "forward", frame)


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
    found = forwarded(frame, rules)
    assert found.passes is passes
    assert found.rule == rule


def test_one_table_that_drops_is_enough() -> None:
    """Of nftables' and the legacy tables each sees the packet."""
    assert not forwarded(NEW, "-P FORWARD ACCEPT", "-P FORWARD DROP").passes


def test_a_match_that_is_not_understood_decides_nothing() -> None:
    """Neither drop nor accept is claimed on a guess: the rule is reported instead."""
    rules = "-A FORWARD -m set --match-set bad src -j DROP\n-A FORWARD -m physdev --physdev-is-bridged -j DROP"
    found = forwarded(NEW, rules)
    assert found.passes
    assert len(found.unsure) == 2
    assert "--match-set bad src" in found.unsure[0]
    assert "--physdev-is-bridged" in found.unsure[1]


@pytest.mark.parametrize(
    ("rules", "unsure"),
    [
        ("-A FORWARD -m set --match-set bad src -j ACCEPT", 0),
        ("-A FORWARD -m set --match-set bad src -j ACCEPT\n-A FORWARD -j DROP", 1),
        ("-A FORWARD -m set --match-set bad src -j RETURN\n-P FORWARD DROP", 0),
        ("-A FORWARD -s 10.9.0.0/16 -m set --match-set bad src -j DROP", 0),
        ("-N X\n-A FORWARD -m set --match-set bad src -j X\n-A X -s 10.0.0.0/8 -j DROP", 1),
        ("-N X\n-A FORWARD -m set --match-set bad src -j X\n-A X -s 10.9.0.0/16 -j DROP", 0),
        ("-A FORWARD -j NFQUEUE --queue-num 1", 1),
        ("-A FORWARD -j LOG --log-prefix -x", 0),
    ],
)
def test_doubt_is_told_only_where_the_packets_fate_depends_on_it(rules: str, unsure: int) -> None:
    """A possible accept matters before a drop, a possible drop before an accept, and a queue to a program always."""
    found = forwarded(NEW, rules)
    assert len(found.unsure) == unsure
    assert found.passes is (unsure > 0 or "DROP" not in rules or "10.9" in rules)


@pytest.mark.parametrize(
    ("rules", "passes"),
    [
        ("-A FORWARD -j MARK --set-xmark 0x7/0xffffffff\n-A FORWARD -m mark --mark 0x7 -j DROP", False),
        ("-A FORWARD -j MARK --set-xmark 0x10/0xf0\n-A FORWARD -m mark --mark 0x10/0xff -j DROP", False),
        ("-A FORWARD -j MARK --set-xmark 0x7/0xff\n-A FORWARD -j CONNMARK --save-mark\n"
         "-A FORWARD -m connmark --mark 0x7 -j DROP", False),
        ("-A FORWARD -m mark --mark 0x7 -j DROP", True),
        ("-A FORWARD -p tcp -m multiport --dports 80,440:450 -j DROP", False),
        ("-A FORWARD -p tcp -m multiport ! --dports 80,440:450 -j DROP", True),
        ("-A FORWARD -p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN -j DROP", False),
        ("-A FORWARD -p tcp -m tcp --tcp-flags ALL NONE -j DROP", True),
        ("-A FORWARD -m iprange --dst-range 192.0.2.0-192.0.2.9 -j DROP", False),
        ("-A FORWARD -m ttl --ttl-lt 64 -j DROP", True),
        ("-A FORWARD -j TTL --ttl-set 1\n-A FORWARD -m ttl --ttl-eq 1 -j DROP", False),
        ("-A FORWARD -p 6 -j DROP", False),
        ("-A FORWARD -p icmp -m icmp --icmp-type 8 -j DROP", True),
    ],
)  # fmt: skip
def test_marks_ports_flags_and_ttl_are_followed(rules: str, passes: bool) -> None:
    """A rule sees what an earlier one wrote into the packet."""
    found = forwarded(NEW, rules, table="mangle")
    assert (found.passes, found.unsure) == (passes, ())


CLIENT = Frame(NEW.packet.sent_by((32768, 60999)), "ls-demo", "eth0")


@pytest.mark.parametrize(
    ("rules", "passes", "unsure", "later"),
    [
        ("-A FORWARD -p tcp -m tcp --sport 40000 -j DROP", True, 1, 0),
        ("-A FORWARD -p tcp -m tcp --sport 1024:65535 -j DROP", False, 0, 0),
        ("-A FORWARD -p tcp -m multiport --ports 22,443 -j DROP", False, 0, 0),
        ("-A FORWARD -p tcp -m multiport --sports 22,53 -j DROP", True, 0, 0),
        ("-A FORWARD -p tcp -m tcp --tcp-flags SYN,PSH PSH -j DROP", True, 0, 1),
        ("-A FORWARD -p tcp -m tcp ! --syn -j DROP", True, 0, 1),
        ("-A FORWARD -m conntrack --ctstate ESTABLISHED -j DROP", True, 0, 1),
        ("-A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT\n-A FORWARD -p tcp --syn -j ACCEPT\n-P FORWARD DROP",
         True, 0, 0),
        ("-A FORWARD -p tcp --dport 443 -j SYNPROXY --mss 1400", True, 1, 1),
    ],
)  # fmt: skip
def test_the_client_s_port_and_the_segments_that_follow_are_not_claimed(
    rules: str, passes: bool, unsure: int, later: int
) -> None:
    """The port is one of many, and a SYN that passes says nothing of what comes after the handshake."""
    found = forwarded(CLIENT, rules)
    assert (found.passes, len(found.unsure), len(found.later)) == (passes, unsure, later)
