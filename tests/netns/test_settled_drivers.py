"""Settled drivers on the real kernel: they are not asked again for what did not change, and see each change."""

from __future__ import annotations

import time

import pytest

from linkspan.core.addresses import prefix
from linkspan.core.states.host import (
    FdbEntry,
    LinkSysctl,
    Neighbour,
    NftElement,
    NftSet,
    NftTable,
    Route,
    State,
    Vxlan,
)
from linkspan.kernel.drivers.neighbours_and_fdb import NeighbourDriver
from linkspan.kernel.drivers.nftables_objects import FirewallDriver
from linkspan.kernel.drivers.routes import RouteDriver
from linkspan.kernel.drivers.sysctl import SysctlDriver
from linkspan.kernel.machine import Machine
from support.netns.machine_fixtures import run

PEER = bytes.fromhex("020000000009")
WANTED: list[State] = [
    Vxlan("lsx64", 100, bytes.fromhex("020000000001"), 1450, 4789, prefix("192.0.2.1").packed),
    LinkSysctl("net/ipv4/conf/lsx64/rp_filter", "2"),
    LinkSysctl("net/ipv4/conf/lsx64/send_redirects", "0"),
    Neighbour("lsx64", prefix("10.77.1.0").packed, PEER),
    Neighbour("lsx64", prefix("fd00:77::1").packed, PEER),
    FdbEntry("lsx64", PEER, prefix("192.0.2.9").packed),
    Route(prefix("10.77.1.0/24"), "lsx64"),
    Route(prefix("fd00:77::/64"), "lsx64"),
    NftTable("inet", "linkspan"),
    NftSet("inet", "linkspan", "macs", "ether_addr"),
    NftElement("inet", "linkspan", "macs", ("02:00:00:00:00:09",)),
]
CHANGES = {
    "LinkSysctl": "sysctl -qw net/ipv4/conf/lsx64/send_redirects=1",
    "Neighbour": "ip neigh replace 10.77.1.0 lladdr 02:00:00:00:00:08 dev lsx64 nud permanent",
    "FdbEntry": "bridge fdb replace 02:00:00:00:00:09 dev lsx64 dst 192.0.2.8 self permanent",
    "Route": "ip route del 10.77.1.0/24",
    "NftElement": "nft delete element inet linkspan macs { 02:00:00:00:00:09 }",
}


def test_what_is_right_is_not_listed_again_and_each_change_is_seen(
    host: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long it has been there: the kernel reports with an entry since when it is there."""
    reconciler = host.reconciler
    assert reconciler.change(("demo",), WANTED) == {}
    for _ in range(2):  # the first look lists the rules, and the second finds that the list is still valid
        reconciler.resync(log=False)
    for kind, command in CHANGES.items():
        with monkeypatch.context() as patch:
            for driver in (NeighbourDriver, RouteDriver, FirewallDriver, SysctlDriver):
                patch.delattr(driver, "observe")
            time.sleep(0.02)  # two ticks of the kernel's slowest clock, in which it reports times
            assert reconciler.resync().heals == []
        run(*command.split())
        assert [heal.kind for heal in reconciler.resync().heals] == [kind]
        reconciler.resync()
