"""The uplink, as it is found in the kernel."""

from __future__ import annotations

from machine_fixtures import joined, run

from linkspan.kernel import underlay
from linkspan.kernel.namespaces import Namespaces
from linkspan.kernel.netlink import Sockets
from linkspan.kernel.routes import uplink_mtu


def test_a_default_route_with_several_ways_leads_to_the_uplink(
    machine: str, outside: str, spaces: Namespaces
) -> None:
    """As on a host with two routers, both on one link."""
    joined(outside, "up0", 3)
    run("ip", "link", "set", "up0", "mtu", "1400")
    run("ip", "addr", "add", "198.18.7.1/24", "dev", "up0")
    ways = "nexthop via 198.18.7.254 nexthop via 198.18.7.252"
    run("ip", "route", "replace", "default", *ways.split())
    sockets = Sockets(spaces)
    found = underlay.observe(sockets, "")
    assert found is not None
    assert found.ifname == "up0"
    assert uplink_mtu(sockets) == 1400
