"""A link of ours that somebody has renamed is noticed, and made anew by its own name: it would be there twice."""

from __future__ import annotations

import pytest
from machine_fixtures import run

from linkspan.addresses import mac, prefix
from linkspan.kernel.events import RouteEvents
from linkspan.machine import Machine
from linkspan.state import Bridge, Ipip, State, Vxlan

MAC = mac("02:00:00:00:00:01")
LOCAL = prefix("192.0.2.1").packed


@pytest.mark.parametrize(
    "link",
    [
        Vxlan("lsx64", 100, MAC, 1450, 4789, LOCAL),
        Ipip("lsipip", 1480, b"", tun=True),
        Bridge("ls-64", MAC, 1500),
    ],
)
def test_a_renamed_link_is_noticed_and_made_anew(host: Machine, link: Vxlan | Ipip | Bridge) -> None:
    driver = host.links if isinstance(link, Bridge) else host.tunnels
    found: list[State] = [link]
    assert driver.apply(found, []) == {}
    events = RouteEvents()
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
