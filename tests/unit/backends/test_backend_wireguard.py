"""WireGuard: what a host knows to states, and what its settings may be."""

from __future__ import annotations

import msgspec
import pytest

from linkspan.backends import migration
from linkspan.backends.wireguard import backend as wireguard
from linkspan.core.addresses import place, prefix
from linkspan.core.errors import Conflict, Invalid, Unavailable
from linkspan.core.host_view import Facts, HostView, Other, Peer
from linkspan.core.model import Host, Migration, Network, Underlay
from linkspan.core.ruleset import element
from linkspan.core.states.host import Address, NftElement, Route, Wireguard
from linkspan.core.states.programs import Process
from linkspan.core.states.wireguard import DEVICE, AllowedIp, Tools, WireguardKey, WireguardPeer, settings
from linkspan.diagnose.plan.plan import commands
from support.records.peers import HERE, ONLY_6, THERE, network, peer, view

MINE, THEIRS, NEXT, THIRD = (f"{letter}{letter * 42}=" for letter in "ABCD")
DEMO = network("wireguard", (4, 6), mtu=1440)
GO = ("wireguard-go", "-f", DEVICE)
BEHIND = Underlay("eth0", ("192.168.2.2/24",), hidden=True)


def seen(
    *others: Other, here: Underlay = HERE, tools: Tools | None = None, networks: tuple[Network, ...] = (DEMO,)
) -> HostView:
    """Return what host 1 sees, with these others."""
    found = view(networks[0], here)
    host = Host(id="id1", name="h1", underlay=here, keys={"wireguard": MINE})
    facts = Facts(programs=(tools or Tools(public=MINE, file="/state/private.key"),))
    mine = msgspec.structs.replace(found, host=host, facts=facts, networks=networks)
    return wireguard.with_others(mine, others)


def other(number: int, public: str, underlay: Underlay = THERE, **more: object) -> Other:
    """Describe host N."""
    host = Host(id=f"id{number}", name=f"h{number}", underlay=underlay, keys={"wireguard": public})
    return Other(msgspec.structs.replace(host, **more), ("demo",))


def known(one: Other, offer: dict[str, str] | None = None) -> Peer:
    """Return the same host as a peer."""
    return msgspec.structs.replace(peer(DEMO, offer or {"endpoint": ""}), host=one.host)


def test_a_host_has_one_device_and_a_peer_for_each_key() -> None:
    """The next key of a host is a peer without a keepalive: asked too early, it would be asked again only 5 s later."""
    two = other(2, THEIRS, next_keys={"wireguard": NEXT}, settings={"wireguard.port": "51999"})
    found = list(wireguard.BACKEND.host(seen(two)))
    assert Wireguard(DEVICE, 1440, tun=False) in found
    assert WireguardKey(DEVICE, MINE, 51820, 1440) in found
    assert [s for s in found if isinstance(s, WireguardPeer)] == [
        WireguardPeer(DEVICE, THEIRS, "192.0.2.2:51999", 25),
        WireguardPeer(DEVICE, NEXT, "192.0.2.2:51999", 0),
    ]
    assert element("sealing", DEVICE) in found
    assert not any(isinstance(s, Process) for s in found)


def test_in_user_space_the_device_is_a_tun_with_a_process() -> None:
    """Over an underlay of IPv6 it carries 80 bytes less."""
    tools = Tools(public=MINE, program=GO)
    found = list(wireguard.BACKEND.host(seen(other(2, THEIRS), here=ONLY_6, tools=tools)))
    assert Wireguard(DEVICE, 1420, tun=True) in found
    assert Process("wireguard", GO) in found
    assert WireguardPeer(DEVICE, THEIRS, "[fd02::2]:51820", 25) in found


def test_without_a_network_that_needs_it_there_is_nothing() -> None:
    """Nor if another backend has all networks."""
    assert list(wireguard.BACKEND.host(seen(networks=(network("ipip"),)))) == []


def test_a_peer_is_an_allowed_ip_and_a_route_for_each_prefix() -> None:
    """With the host's own address as source, and what lets its packets in."""
    two = other(2, THEIRS)
    four, six = prefix("10.77.2.0/24"), prefix("fd77:0:0:2::/64")
    assert set(wireguard.BACKEND.peer(seen(two), DEMO, known(two))) == {
        AllowedIp(DEVICE, four, THEIRS),
        AllowedIp(DEVICE, six, THEIRS),
        Route(four, DEVICE, source=prefix("10.77.1.0").packed),
        Route(six, DEVICE, source=prefix("fd77:0:0:1::").packed),
        element("ways4", DEVICE, "10.77.2.0"),
        element("ways6", DEVICE, "fd77:0:0:2::"),
    }


def test_an_advertised_place_is_sent_to_first() -> None:
    """With its port, if it has one; a hidden host gets no packet before it sends one."""
    for underlay, endpoint in (
        (Underlay("eth0", ("10.0.0.2/24",), advertise=("203.0.113.7",)), "203.0.113.7:51820"),
        (Underlay("eth0", ("10.0.0.2/24",), advertise=("203.0.113.7",), advertise_port=7), "203.0.113.7:7"),
        (BEHIND, ""),
    ):
        found = wireguard.BACKEND.host(seen(other(2, THEIRS, underlay)))
        assert [s.endpoint for s in found if isinstance(s, WireguardPeer)] == [endpoint]


def test_two_hidden_hosts_go_by_the_first_that_both_reach() -> None:
    """Both choose the same one; without one the error has the reason."""
    two, three, four = other(2, THEIRS, BEHIND), other(3, THIRD), other(4, NEXT)
    here = Underlay("eth0", ("192.168.1.2/24",), hidden=True)
    found = list(wireguard.BACKEND.peer(seen(two, four, three, here=here), DEMO, known(two)))
    assert {s.public for s in found if isinstance(s, AllowedIp)} == {THIRD}
    with pytest.raises(Unavailable, match="host h2 and this host are both behind a NAT"):
        list(wireguard.BACKEND.peer(seen(two, here=here), DEMO, known(two)))
    direct = list(wireguard.BACKEND.peer(seen(two, three), DEMO, known(two)))
    assert {s.public for s in direct if isinstance(s, AllowedIp)} == {THEIRS}


def test_two_hosts_with_one_key_are_refused_by_name() -> None:
    """No host has either as a peer, also if one of them is this host."""
    two, three = other(2, THEIRS), other(3, THEIRS)
    assert not any(isinstance(s, WireguardPeer) for s in wireguard.BACKEND.host(seen(two, three)))
    with pytest.raises(Conflict, match="hosts h2 and h3 have the same WireGuard key"):
        list(wireguard.BACKEND.peer(seen(two, three), DEMO, known(two)))
    same = other(2, MINE)
    with pytest.raises(Conflict, match="hosts h1 and h2 have the same WireGuard key"):
        list(wireguard.BACKEND.peer(seen(same), DEMO, known(same)))


@pytest.mark.parametrize(
    ("tools", "words"),
    [
        (Tools(public=MINE), ""),
        (
            Tools(public=THEIRS, file="/state/private.key"),
            "/state/private.key does not have the private key of AAAAAAAAAA",
        ),
        (Tools(unusable="it is too short", hint="make another"), "it is too short; make another"),
        (
            Tools(public=MINE, unshared="the shared one is not root's alone"),
            "the shared one is not root's alone",
        ),
        (Tools(unusable="it is too short", unshared="the shared one, too"), "the shared one, too"),
    ],
)
def test_a_key_file_that_is_no_good_is_told_and_takes_nothing_down(tools: Tools, words: str) -> None:
    """A device that has the key already keeps it."""
    told = list(wireguard.BACKEND.troubles(seen(other(2, THEIRS), tools=tools)))
    assert len(told) == bool(words) + bool(tools.unusable and tools.unshared)
    assert words in " ".join(told)
    assert WireguardKey(DEVICE, MINE, 51820, 1440) in list(wireguard.BACKEND.host(seen(tools=tools)))


def test_without_a_device_the_host_says_why_and_has_no_address_on_it() -> None:
    """The pools still fail closed."""
    nothing = seen(other(2, THEIRS), tools=Tools(problem="the program wg is not installed", hint="install it"))
    with pytest.raises(Unavailable, match="the program wg is not installed"):
        list(wireguard.BACKEND.host(nothing))
    states = list(wireguard.BACKEND.network(nothing, DEMO))
    assert not any(isinstance(s, Address) for s in states)
    assert any(isinstance(s, Route) and not s.device for s in states)


def sealed(network: Network) -> bool:
    """Return whether a network is sealed."""
    found = migration.network_states(seen(networks=(network,)), network)
    return any(isinstance(s, NftElement) and s.set == "sealed4" for s in found)


def test_a_network_is_sealed_where_every_way_encrypts() -> None:
    """A migration seals at its end, and unseals at its start."""
    plain = network("host-gw", mtu=1440)
    there = Migration(backend="wireguard", mtu=1440, number=1)
    back = Migration(backend="host-gw", mtu=1440, number=1)
    assert sealed(network("wireguard", mtu=1440))
    assert not sealed(plain)
    assert not sealed(msgspec.structs.replace(plain, migration=there))
    assert not sealed(msgspec.structs.replace(network("wireguard", mtu=1440), migration=back))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"wireguard.port": "0"}, "wireguard.port=0"),
        ({"wireguard.port": "65536"}, "wireguard.port=65536"),
        ({"wireguard.keepalive": "-1"}, "wireguard.keepalive=-1"),
        ({"wireguard.keepalive": "9" * 5000}, "wireguard.keepalive"),
        ({"wireguard.preshared-key-file": "here"}, "no absolute path"),
        ({"wireguard.colour": "red"}, "wireguard.colour is unknown"),
    ],
)
def test_a_setting_that_means_nothing_is_refused_by_name(given: dict[str, str], said: str) -> None:
    """Before it is written."""
    with pytest.raises(Invalid, match=said):
        settings(given)


def test_options_are_a_host_s_and_not_a_network_s() -> None:
    """One that is given is refused."""
    with pytest.raises(Invalid, match="option port=1"):
        wireguard.BACKEND.check(network("wireguard", port="1"))


@pytest.mark.parametrize(
    ("text", "address", "port"),
    [("203.0.113.7", "203.0.113.7", 0), ("203.0.113.7:51", "203.0.113.7", 51), ("fd00::7", "fd00::7", 0),
     ("[fd00::7]:51820", "fd00::7", 51820)],
)  # fmt: skip
def test_a_place_is_an_address_with_or_without_a_port(text: str, address: str, port: int) -> None:
    """Of either family."""
    assert place(text) == (prefix(address).single(), port)


@pytest.mark.parametrize("text", ["", "host:1", "203.0.113.7:", "203.0.113.7:0", "203.0.113.7:65536", "[fd00::7]"])
def test_what_is_no_place_is_refused(text: str) -> None:
    """An invalid address, or a port out of range."""
    with pytest.raises(Invalid):
        place(text)


def test_a_plan_shows_no_key_that_is_a_secret() -> None:
    """Public ones are named."""
    key, peer_, allowed = (
        WireguardKey(DEVICE, MINE, 51820, 1440),
        WireguardPeer(DEVICE, THEIRS, "192.0.2.2:51820", 25, "/etc/shared"),
        AllowedIp(DEVICE, prefix("10.77.2.0/24"), THEIRS),
    )
    lines = [line for state in (key, peer_, allowed) for line in commands(state, str)]
    assert lines == [
        f"wg set lswg listen-port 51820 private-key ***  # of {MINE[:10]}",
        f"wg set lswg peer {THEIRS} endpoint 192.0.2.2:51820 persistent-keepalive 25 preshared-key ***",
        f"wg set lswg peer {THEIRS} allowed-ips +10.77.2.0/24",
    ]
