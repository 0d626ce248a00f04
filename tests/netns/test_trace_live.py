"""Live traces: a real packet is seen where the walk says that it goes, and not beyond where it stops."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from linkspan.core.errors import Invalid
from linkspan.diagnose.trace.live import AGAIN, PATIENCE
from linkspan.diagnose.trace.live_packet import Probe, matches, new_mark
from linkspan.kernel.io.nftables import Nft
from linkspan.kernel.probe.nft_trace import TABLE, RuleTrace
from support.netns.traced_host import OUTSIDE, Host, leads_outside, made
from support.polling import until


@pytest.fixture(params=[False, True], ids=["bridge", "routed"])
def host(request: pytest.FixtureRequest) -> Iterator[Host]:
    """Make the host in both modes."""
    yield from made(routed=request.param)


@pytest.fixture
def bridged() -> Iterator[Host]:
    """Make the host with bridged networks alone."""
    yield from made(routed=False)


@pytest.mark.parametrize(("source", "target", "to"), [
    ("a", "b", ""), ("fd77::2", "fd77::3", ""), ("a", OUTSIDE[4], ""), ("a", "b", "81/tcp"),
    ("a", "192.0.2.1", "8080/tcp"), ("host:h1", "a", ""), ("a", OUTSIDE[4], "9/tcp"), ("fd77::2", OUTSIDE[6], "9/tcp"),
])  # fmt: skip
def test_a_live_packet_is_seen_at_every_hop(host: Host, source: str, target: str, to: str) -> None:
    """Echo or SYN, translated or not: it and its answer are captured at each device of the walk."""
    host.world.reaches("a", "fd77::1")  # addresses that the kernel gave itself are past their tentative time
    host.world.reaches("a", OUTSIDE[6])
    found = host.trace(source, target, to, alive=True)
    assert found.reachable, found.reason
    blind = [h for h in (*found.hops, *found.reply_hops) if not h.seen]
    assert blind == []


def test_a_live_packet_that_is_dropped_is_seen_up_to_there(host: Host) -> None:
    """Before the hop that drops it, it is seen; after it, nowhere."""
    host.sh("iptables -P FORWARD DROP")
    found = host.trace("a", OUTSIDE[4], alive=True)
    assert not found.reachable
    assert found.hops[0].seen
    assert found.hops[-1].action == "dropped"
    assert found.hops[-1].seen is False


@pytest.mark.parametrize("to", ["", "9/tcp"])
def test_an_outside_that_answers_nothing_is_not_called_broken(host: Host, to: str) -> None:
    """Every hop here is ok and the packet is seen to leave: that it was not answered is all that is known."""
    host.sh("nft 'add table inet x; add chain inet x i { type filter hook input priority 0; policy drop; }'", "o")
    host.sh("nft 'add rule inet x i meta l4proto ipv6-icmp accept'", "o")
    found = host.trace("a", OUTSIDE[4], to, alive=True)
    assert leads_outside(found), found
    assert found.reason.endswith("; a packet left there, and no answer came")
    assert found.hops[-1].seen


def test_an_answer_from_outside_that_is_dropped_here_is_broken(host: Host) -> None:
    """A rule that only a real packet meets drops the answer on this host; so does a link without the other end."""
    host.sh("nft 'add table inet x; add chain inet x f { type filter hook forward priority 10; }'")
    host.sh("nft 'add rule inet x f icmp type echo-reply limit rate over 1/hour burst 1 packets drop'")
    host.world.pings("a", OUTSIDE[4])
    found = host.trace("a", OUTSIDE[4], alive=True)
    assert found.verdict == "broken"
    assert "the answer was dropped by rule `icmp type echo-reply limit" in found.reason
    assert host.trace("a", "192.0.2.77", alive=True).verdict == "broken"


DROPS = [
    ("b", "nft add table inet x; nft 'add chain inet x i { type filter hook input priority 0; policy drop; }'",
     "h1/b/eth0", "the packet was dropped by the policy of chain i of table inet x"),
    ("b", "nft add table netdev x; nft 'add chain netdev x i { type filter hook ingress device eth0 priority 0; }';"
     " nft add rule netdev x i icmp type echo-request drop",
     "h1/b/eth0", "the packet was dropped by rule `icmp type echo-request drop` in chain i of table netdev x"),
    ("b", "iptables -t raw -A PREROUTING -p icmp -j DROP",
     "h1/b/eth0", "the packet was dropped by rule `ip protocol icmp counter drop` in chain PREROUTING of table ip raw"),
    ("b", "iptables -A OUTPUT -p icmp -j DROP",
     "h1/b/eth0", "the answer was dropped by rule `ip protocol icmp counter drop` in chain OUTPUT of table ip filter"),
    ("a", "iptables -A INPUT -p icmp -j DROP",
     "h1/a/eth0", "the answer was dropped by rule `ip protocol icmp counter drop` in chain INPUT of table ip filter"),
    ("a", "iptables -A OUTPUT -p icmp -j REJECT",
     "h1/a/eth0",
     "the packet was dropped by rule `ip protocol icmp counter reject` in chain OUTPUT of table ip filter"),
    ("a", "iptables-legacy -A OUTPUT -p icmp -j DROP",
     "h1/a/eth0", "the rules in a do not let it send the packet (EPERM)"),
    ("a", "iptables-legacy -A INPUT -p icmp -j DROP",
     "h1/a/eth0", "the answer reached eth0, but a itself drops it there"),
]  # fmt: skip


@pytest.mark.parametrize(("where", "fault", "at", "reason"), DROPS)
def test_a_live_trace_names_the_rule_that_drops_the_packet(
    bridged: Host, where: str, fault: str, at: str, reason: str
) -> None:
    """Wherever it is: the kernel's own trace has table, chain and rule, and legacy rules show by their effect."""
    bridged.sh(fault, where)
    found = bridged.trace("a", "b", alive=True)
    assert not found.reachable
    assert found.reason == reason
    assert found.broken_at == at


def test_a_live_trace_of_a_syn_names_the_rule(bridged: Host) -> None:
    """A SYN that is refused with a reset has no answer of the target."""
    bridged.sh("iptables -A INPUT -p tcp --dport 81 -j REJECT --reject-with tcp-reset", "b")
    found = bridged.trace("a", "b", "81/tcp", alive=True)
    assert not found.reachable
    assert "reject with tcp reset` in chain INPUT of table ip filter" in found.reason


def test_a_translation_that_comes_after_a_live_trace_is_seen(host: Host) -> None:
    """Each probe has a new id, so connection tracking does not use the entry of the one before."""
    assert host.trace("a", "b", alive=True).reachable
    host.sh("iptables -t nat -A PREROUTING -d 10.77.0.3 -p icmp -j DNAT --to 192.0.2.2")
    found = host.trace("a", "b", alive=True)
    assert not found.reachable


def traces_left(host: Host, where: str) -> str:
    """Return the tables of live traces in a namespace."""
    with host.world.entered(where):
        nft = Nft()
        listed = [line for line in nft.run("list tables").splitlines() if TABLE in line]
        nft.close()
    return "\n".join(listed)


def test_a_live_trace_leaves_no_table(bridged: Host) -> None:
    """Nothing of it stays in the namespaces of the walk."""
    bridged.trace("a", "b", alive=True)
    assert [traces_left(bridged, where) for where in "hab"] == ["", "", ""]


def test_a_trace_is_not_disturbed_by_another_one(bridged: Host) -> None:
    """The tables of a live trace that continues in the same namespace make nothing unknown."""
    with bridged.world.entered("h"):
        other = RuleTrace("x", matches("icmp", new_mark()), ["up0"])
    try:
        assert leads_outside(bridged.trace("a", OUTSIDE[4]))
    finally:
        other.close()


def test_a_killed_trace_leaves_no_table(bridged: Host) -> None:
    """The kernel removes the tables of a process that is killed while it traces."""
    script = (
        "import sys, time; from linkspan.kernel.probe.nft_trace import RuleTrace;"
        " one = RuleTrace('x', {'there': ['meta l4proto icmp']}, ['eth0']); print('traces', flush=True); time.sleep(60)"
    )
    command = ["ip", "netns", "exec", bridged.world.named("b"), sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "traces\n"
        assert traces_left(bridged, "b").count(TABLE) == 3
        process.kill()
    until(lambda: not traces_left(bridged, "b"), "the tables are gone", 5)


def test_a_link_that_goes_down_during_a_live_trace_breaks_it(
    bridged: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The walk found it up. Its packet sockets report the change, and that is no error of the trace."""
    send = Probe.send

    def late(probe: Probe) -> None:
        bridged.sh("ip link set eth0 down", "b")
        send(probe)

    monkeypatch.setattr(Probe, "send", late)
    found = bridged.trace("a", "b", alive=True)
    assert found.verdict == "broken"
    assert found.hops[-1].seen is False


def test_the_packet_is_sent_again_while_another_host_is_asked(
    bridged: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That host may begin to listen late: when the sender would no longer wait for an answer."""
    sent, send = [], Probe.send

    def counted(probe: Probe) -> None:
        sent.append(probe)
        send(probe)

    monkeypatch.setattr(Probe, "send", counted)
    enough = int(PATIENCE / AGAIN) + 3
    assert bridged.trace("a", "b", alive=True, going=lambda: len(sent) < enough).reachable
    assert len(sent) == enough


def test_a_live_trace_starts_on_this_host_only(host: Host) -> None:
    """From outside nothing can be sent, and of UDP no answer is known."""
    with pytest.raises(Invalid, match="not on this host"):
        host.trace(OUTSIDE[4], "a", alive=True)
    with pytest.raises(Invalid, match="cannot send udp"):
        host.trace("a", "b", "53/udp", alive=True)
