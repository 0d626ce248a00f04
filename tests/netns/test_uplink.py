"""The uplink, as it is found in the kernel."""

from __future__ import annotations

from linkspan.kernel.drivers.routes import default_link, foreign_routes, uplink_mtu
from linkspan.kernel.io.namespaces import Namespaces
from linkspan.kernel.io.sockets import Sockets
from linkspan.kernel.probe import underlay
from support.netns.machine_fixtures import joined, run


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
    found = underlay.observe(sockets, default_link(sockets))
    assert found is not None
    assert found.ifname == "up0"
    assert uplink_mtu(sockets) == 1400


def test_of_several_default_routes_the_kernel_s_choice_leads_to_the_uplink(
    machine: str, spaces: Namespaces
) -> None:
    """That of the lowest metric; one that refuses packets leads nowhere."""
    for number, name in enumerate(("up0", "up1"), 3):
        run("ip", "link", "add", name, "type", "veth", "peer", "name", f"{name}p")
        run("ip", "link", "set", f"{name}p", "up")
        run("ip", "link", "set", name, "mtu", str(1400 + number), "up")
        run("ip", "addr", "add", f"198.18.{number}.1/24", "dev", name)
        run("ip", "route", "add", "default", "via", f"198.18.{number}.254", "metric", str(100 * number))
    run("ip", "route", "add", "unreachable", "default", "metric", "4000")
    sockets = Sockets(spaces)
    found = underlay.observe(sockets, default_link(sockets))
    assert found is not None
    assert found.ifname == "up0"
    assert uplink_mtu(sockets) == 1403


def test_the_host_s_own_routes_are_found_whatever_their_type(machine: str, spaces: Namespaces) -> None:
    """These are routes that refuse packets, and local ones by an address or by a route; not link-local ones."""
    wanted: dict[str, str] = {}
    for number, kind in enumerate(("blackhole", "unreachable", "prohibit", "throw"), 1):
        run("ip", "route", "add", kind, f"198.18.{number}.0/24")
        run("ip", "route", "add", kind, f"fd00:{number}::/64")
        wanted |= dict.fromkeys((f"198.18.{number}.0/24", f"fd00:{number}::/64"), f"of type {kind}")
    run("ip", "route", "add", "local", "198.18.9.0/24", "dev", "lo", "table", "local")
    run("ip", "addr", "add", "198.18.10.1/32", "dev", "lo")
    run("ip", "route", "add", "169.254.7.0/24", "dev", "lo")
    wanted |= dict.fromkeys(("198.18.9.0/24", "198.18.10.1/32"), "of type local")
    found = {str(destination): way for destination, way in foreign_routes(Sockets(spaces)).items()}
    assert found.items() >= wanted.items()
    assert not any(destination.startswith("169.254.") for destination in found)
