"""By which MACs a peer's plain packets are taken: of its record, and for a while of the record before."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import msgspec
import pytest

from linkspan.agent.warnings import cautions
from linkspan.backends import host_gw, ipip, vxlan
from linkspan.backends.multi_host import is_unchecked
from linkspan.cluster import underlay_macs
from linkspan.cluster.underlay_macs import Stations
from linkspan.core.addresses import mac
from linkspan.core.backend_contract import Backend
from linkspan.core.errors import Invalid
from linkspan.core.model import Host, Network, Underlay
from linkspan.core.ruleset import element
from linkspan.kernel.probe.underlay import macs
from linkspan.store import validation
from support.links import made
from support.records.peers import network, peer, view

FIRST, SECOND, THIRD = "02:00:00:00:00:01", "02:00:00:00:00:02", "02:00:00:00:00:03"
WAYS = [element("ways4", "eth0", "10.77.2.0")]
STATIONS = [element("stations4", "eth0", one, "10.77.2.0") for one in (FIRST, SECOND)]
PLAIN: dict[str, tuple[Backend, dict[str, str]]] = {
    "host-gw": (host_gw.BACKEND, {}),
    "vxlan": (vxlan.BACKEND, {"mac": THIRD, "address": "192.0.2.2"}),
    "ipip": (ipip.BACKEND, {"address": "192.0.2.2"}),
}


def host(*known: str) -> Host:
    return Host(id="h2", name="h2", underlay=Underlay("eth0", ("192.0.2.2/24",), macs=known))


def demo(backend: str, more: Mapping[str, str]) -> Network:
    direct = {} if backend == "host-gw" else {"direct": "true"}
    vni = {"vni": "5"} if backend == "vxlan" else {}
    return msgspec.structs.replace(network(backend), options={**direct, **vni, **more})


@pytest.mark.parametrize("backend", PLAIN)
def test_plain_packets_come_by_a_mac_of_the_record(backend: str) -> None:
    """By each MAC in the record; by any if the record has none, or if the network does not check."""
    way, offer = PLAIN[backend]
    for options, known, wanted, other in (
        ({}, (FIRST, SECOND), STATIONS, WAYS),
        ({}, (), WAYS, STATIONS),
        ({"check-mac": "false"}, (FIRST, SECOND), WAYS, STATIONS),
    ):
        one = demo(backend, options)
        way.check(one)
        there = msgspec.structs.replace(peer(one, offer), macs=known)
        states = list(way.peer(view(one), one, there))
        assert all(state in states for state in wanted)
        assert not any(state in states for state in other)
        assert is_unchecked(one, there, neighbours=way.neighbours) == (not options and not known)


def test_what_is_no_switch_is_refused() -> None:
    """The option is true or false."""
    with pytest.raises(Invalid, match="check-mac=sometimes"):
        host_gw.BACKEND.check(demo("host-gw", {"check-mac": "sometimes"}))


def test_who_does_not_check_is_warned() -> None:
    """A network that takes any MAC says so when it is made."""
    (told,) = cautions(demo("host-gw", {"check-mac": "false"}), (), None)
    assert told.startswith("check-mac=false: any machine on the underlay's segment can send with addresses")


def test_an_old_mac_counts_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the asking host is reported, and the old MAC is refused; a record without a MAC allows any."""
    monkeypatch.setattr(underlay_macs, "GRACE", 0.1)

    async def go() -> None:
        ended: asyncio.Queue[str] = asyncio.Queue()
        found = Stations(ended.put)
        assert found.of(host(FIRST)) == (FIRST,)
        assert found.of(host(SECOND)) == (FIRST, SECOND)
        assert found.of(host(SECOND)) == (FIRST, SECOND)
        assert await asyncio.wait_for(ended.get(), 5) == "h2"
        assert found.of(host(SECOND)) == (SECOND,)
        assert found.of(host()) == ()
        found.stop()

    asyncio.run(go())


def test_a_mac_that_comes_back_stays() -> None:
    """A bond that fails over and back has its first MAC for as long as its record says so."""

    async def go() -> None:
        found = Stations(lambda _host: asyncio.sleep(0))
        for one in (FIRST, SECOND, FIRST):
            found.of(host(one))
        assert found._until["h2"][FIRST] == float("inf")
        found.stop()

    asyncio.run(go())


def test_a_bond_has_the_macs_of_its_ports() -> None:
    """Also below a VLAN; the ports of a bridge, and links that have no MAC, are not counted."""
    links = [
        made(1, "eth0", "", mac(FIRST), master=3),
        made(2, "eth1", "", mac(SECOND), master=3),
        made(3, "bond0", "bond", mac(FIRST)),
        made(4, "bond0.5", "vlan", mac(THIRD), lower=3),
        made(5, "br0", "bridge", mac(THIRD)),
        made(6, "veth0", "veth", mac(SECOND), master=5),
        made(7, "tunl0", "ipip", bytes(4)),
        made(8, "loop", "vlan", mac(SECOND), lower=8),
    ]
    told = {link.number: macs(links, link.number) for link in links}
    assert told[3] == (FIRST, SECOND)
    assert told[4] == (FIRST, SECOND, THIRD)
    assert told[5] == (THIRD,)
    assert told[7] == ()
    assert told[8] == (SECOND,)
    assert macs(links, 99) == ()


@pytest.mark.parametrize("known", [("nonsense",), (f"{FIRST}; drop",), (FIRST,) * (validation.MOST + 1)])
def test_macs_that_are_none_make_a_record_unreadable(known: tuple[str, ...]) -> None:
    """So the host's last readable record stays in force, and `status` names this one."""
    with pytest.raises(Invalid):
        validation.decode("hosts/h2", msgspec.json.encode(host(*known)), Host)
