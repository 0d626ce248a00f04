"""The kernel's drop monitor: a live trace says for which reason the kernel dropped the packet."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from linkspan.core.errors import Unavailable
from linkspan.kernel.probe.drop_monitor import DropMonitor
from support.netns.traced_host import Host, made


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    """Make the host with bridged networks."""
    yield from made(routed=False)


def test_a_dropped_packet_is_reported_with_the_kernel_s_reason(host: Host) -> None:
    """A reverse path filter in the container, which no rule shows, is named; without it the packet is answered."""
    assert host.world.reaches("a", "10.77.0.3")  # from now on a knows b's MAC; the filter drops ARP's questions, too
    host.sh("ip route del default; ip addr flush dev eth0 scope global; ip addr add 10.77.0.3/32 dev eth0", "b")
    host.sh("sysctl -qw net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.eth0.rp_filter=1", "b")
    monitor = DropMonitor()
    try:
        assert not host.world.pings("a", "10.77.0.3")
        reasons = {lost.reason for lost in monitor.read()}
    finally:
        monitor.close()
    assert "IP_RPFILTER" in reasons


def test_there_is_one_monitor_at_a_time() -> None:
    """A second listener gets an error, and the first one still gets all drops; after its end the next one can begin."""
    first = DropMonitor()
    with pytest.raises(Unavailable, match="drop monitor"):
        DropMonitor()
    first.close()
    DropMonitor().close()
