"""A link of ours that somebody has renamed is noticed, and made again by its own name: it would be there twice."""

from __future__ import annotations

import socket

import pytest

from linkspan.core.addresses import mac, prefix
from linkspan.core.states.host import Bridge, Ipip, State, Vxlan
from linkspan.kernel.events import RouteEvents
from linkspan.kernel.kinds import kinds
from linkspan.kernel.machine import Machine
from support.netns.machine_fixtures import run

MAC = mac("02:00:00:00:00:01")
LOCAL = prefix("192.0.2.1").packed


LINKS = [
    Vxlan("lsx64", 100, MAC, 1450, 4789, LOCAL),
    Ipip("lsipip", 1480, b"", tun=True),
    Bridge("ls-64", MAC, 1500),
]


@pytest.mark.parametrize("link", LINKS)
def test_a_link_that_lost_its_alternative_name_gets_it_back(host: Machine, link: Vxlan | Ipip | Bridge) -> None:
    """It stays the same link, so nothing on it is lost; and linkspan recognizes it for removal."""
    driver = host.links if isinstance(link, Bridge) else host.tunnels
    found: list[State] = [link]
    assert driver.apply(found, []) == {}
    index = socket.if_nametoindex(link.name)
    run("ip", "link", "property", "del", "dev", link.name, "altname", link.altname)
    assert list(driver.observe(0)) == []
    assert driver.apply(found, []) == {}
    assert list(driver.observe(0)) == found
    assert socket.if_nametoindex(link.name) == index
    if not isinstance(link, Ipip):  # a TUN of this name may be anybody's
        run("ip", "link", "property", "del", "dev", link.name, "altname", link.altname)
        assert driver.apply([], found) == {}
        assert link.name not in run("ip", "-o", "link")


@pytest.mark.parametrize("link", LINKS)
def test_a_renamed_link_is_noticed_and_made_anew(host: Machine, link: Vxlan | Ipip | Bridge) -> None:
    driver = host.links if isinstance(link, Bridge) else host.tunnels
    found: list[State] = [link]
    assert driver.apply(found, []) == {}
    events = RouteEvents(kinds())
    try:
        run("ip", "link", "set", link.name, "down")
        events.dirty()
        run("ip", "link", "set", link.name, "name", "other")
        assert type(link) in events.dirty()
    finally:
        events.socket.close()
    assert driver.apply(found, []) == {}
    assert list(driver.observe(0)) == found
    assert "other" not in run("ip", "-o", "link")
