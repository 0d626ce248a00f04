"""Live traces: a real packet is seen where the walk says that it goes, and not beyond where it stops."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from traced import OUTSIDE, Host
from world import World

from linkspan.errors import Invalid


@pytest.fixture(params=[False, True], ids=["bridge", "routed"])
def host(request: pytest.FixtureRequest) -> Iterator[Host]:
    """Make the host in both modes."""
    world = World("h", "a", "b", "c", "d", "o")
    try:
        yield Host(world, routed=request.param)
    finally:
        world.close()


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


def test_a_fault_that_no_hop_shows_is_found_by_a_live_packet(host: Host) -> None:
    """What drops inside the target's namespace is its own affair to a trace, and no answer to a live one."""
    host.sh(
        "nft 'add table inet x; add chain inet x i { type filter hook input priority 0; policy drop; }'", "b"
    )
    assert host.trace("a", "b").reachable
    found = host.trace("a", "b", alive=True)
    assert not found.reachable
    assert "no answer came; last seen at h1/b/eth0" in found.reason
    assert found.broken_at == "h1/b/eth0"


def test_a_live_trace_starts_on_this_host_only(host: Host) -> None:
    """From outside nothing can be sent, and of UDP no answer is known."""
    with pytest.raises(Invalid, match="not on this host"):
        host.trace(OUTSIDE[4], "a", alive=True)
    with pytest.raises(Invalid, match="cannot send udp"):
        host.trace("a", "b", "53/udp", alive=True)
