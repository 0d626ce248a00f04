from __future__ import annotations

import msgspec
import pytest

from linkspan.backends.bgp.settings import FAR, in_mesh, mesh_session, number, protocol, router_id, speaker
from linkspan.core.addresses import prefix, whole
from linkspan.core.errors import Invalid, Unavailable
from linkspan.core.model import Host, Underlay
from linkspan.core.states.bgp import Span

DUAL = Underlay("eth0", ("192.0.2.1/24", "2001:db8::1/64"))
ONLY_6 = Underlay("eth0", ("2001:db8::2/64",))


def host(underlay: Underlay | None = DUAL, name: str = "h1", /, **settings: str) -> Host:
    """Describe a host; in settings ``__`` stands for a dot and ``_`` for a hyphen."""
    named = {f"bgp.{k.replace('__', '.').replace('_', '-')}": v for k, v in settings.items()}
    return Host(id=f"id-{name}", name=name, underlay=underlay, settings=named)


def peer_settings(**more: str) -> dict[str, str]:
    return {"peer__r1__address": "192.0.2.254", **{f"peer__r1__{k}": v for k, v in more.items()}}


def test_without_settings_there_is_a_mesh_of_one_private_as() -> None:
    """The defaults are the standards' own."""
    found = speaker(host())
    assert (found.asn, found.mesh, found.router_id, found.hold) == (64512, True, "192.0.2.1", 90)
    assert (found.communities, found.med, found.any_next_hop, found.sessions) == ((), None, False, ())


def test_settings_of_others_are_none_of_bgp() -> None:
    """A host has settings of other kinds."""
    drained = msgspec.structs.replace(host(), settings={"drained": "1"})
    assert speaker(drained) == speaker(host())


def test_every_setting_of_the_speaker_is_taken() -> None:
    """32 bits of AS number, both kinds of communities, a MED of 0."""
    found = speaker(
        host(
            **{"as": "4200000001"},
            mesh="false",
            router_id="10.0.0.1",
            community="64512:100, 4200000001:2:3",
            med="0",
            next_hops="any",
            hold="9",
            restart_time="30",
        )
    )
    assert (found.asn, found.mesh, found.router_id) == (4200000001, False, "10.0.0.1")
    assert (found.communities, found.med) == (((64512, 100), (4200000001, 2, 3)), 0)
    assert (found.any_next_hop, found.hold, found.restart_time) == (True, 9, 30)


def test_a_router_is_on_the_link_and_a_reflector_anywhere() -> None:
    """By the AS number: another AS is a router's, the same AS a reflector's; a setting has priority."""
    (router,) = speaker(host(**peer_settings(**{"as": "65001"}))).sessions
    assert (router.multihop, router.remote_as, router.source) == (0, 65001, "192.0.2.1")
    (reflector,) = speaker(host(**peer_settings())).sessions
    assert (reflector.multihop, reflector.remote_as) == (FAR, 64512)
    (near,) = speaker(host(**peer_settings(ttl_security="true"))).sessions
    assert (near.multihop, near.ttl_security) == (0, True)
    (far,) = speaker(host(**peer_settings(**{"as": "65001"}, multihop="2", ttl_security="true"))).sessions
    assert (far.multihop, far.ttl_security) == (2, True)


def test_a_peers_own_settings_come_before_the_speakers() -> None:
    """Hold time, source, filters, and the file with its password."""
    wish = {"hold": "3", "source": "192.0.2.9", "password_file": "/etc/r1", "export": "10.0.0.1/32"}
    wish["import"] = "default,10.0.0.0/8+"
    (found,) = speaker(host(hold="30", **peer_settings(**wish))).sessions
    assert (found.hold, found.source, found.password_file) == (3, "192.0.2.9", "/etc/r1")
    assert found.imports == (Span(whole(4)), Span(whole(6)), Span(prefix("10.0.0.0/8"), longer=True))
    assert found.exports == (Span(prefix("10.0.0.1/32")),)


def test_a_host_is_no_peer_of_its_own() -> None:
    """A reflector that is set for all hosts may run on one of them."""
    assert speaker(host(peer__rr__address="192.0.2.1")).sessions == ()


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ("bgp.as", "0"),
        ("bgp.as", "23456"),
        ("bgp.as", "4294967296"),
        ("bgp.as", "-1"),
        ("bgp.as", "9" * 5000),
        ("bgp.community", "1:" + "9" * 5000),
        ("bgp.peer.r2.address", "192.0.2.254"),
        ("bgp.as", "\u0661"),
        ("bgp.as", "AS64512"),
        ("bgp.mesh", "yes"),
        ("bgp.router-id", "2001:db8::1"),
        ("bgp.router-id", "0.0.0.0"),
        ("bgp.community", "65536:1"),
        ("bgp.community", "1:2:3:4"),
        ("bgp.community", "1:2,"),
        ("bgp.community", "1:2); reject; #"),
        ("bgp.med", "4294967296"),
        ("bgp.next-hops", "all"),
        ("bgp.hold", "2"),
        ("bgp.hold", "65536"),
        ("bgp.restart-time", "4096"),
        ("bgp.restart-time", "0"),
        ("bgp.peer.r1.address", "router.example"),
        ("bgp.peer.r1.address", "192.0.2.0/24"),
        ("bgp.peer.r1.address", "fe80::1"),
        ("bgp.peer.r1.address", "fe80::1%eth0"),
        ("bgp.peer.r1.address", "::"),
        ("bgp.peer.r1.address", "127.0.0.1"),
        ("bgp.peer.r1.address", "::1"),
        ("bgp.peer.r1.address", "224.0.0.5"),
        ("bgp.peer.r1.source", "2001:db8::1"),
        ("bgp.peer.r1.as", "65535"),
        ("bgp.peer.r1.password-file", "secret"),
        ("bgp.peer.r1.password-file", "/a\nb"),
        ("bgp.peer.r1.ttl-security", "255"),
        ("bgp.peer.r1.multihop", "256"),
        ("bgp.peer.r1.hold", "1"),
        ("bgp.peer.r1.import", "10.0.0.1/8"),
        ("bgp.peer.r1.import", "all"),
        ("bgp.peer.r1.export", "10.0.0.0/33"),
    ],
)
def test_what_is_wrong_is_refused_by_its_field(setting: str, text: str) -> None:
    """The error names the setting."""
    settings = {"bgp.peer.r1.address": "192.0.2.254", setting: text}
    with pytest.raises(Invalid, match=setting.replace(".", r"\.")):
        speaker(Host(id="id1", name="h1", underlay=DUAL, settings=settings))


@pytest.mark.parametrize("setting", ["bgp.asn", "bgp.peer.r1.adress", "bgp.peer.r1", "bgp.peer.r1.as.x", "bgp.key"])
def test_what_is_unknown_is_refused_with_what_there_is(setting: str) -> None:
    """A misspelt setting would be a silent hole else."""
    settings = {"bgp.peer.r1.address": "192.0.2.254", setting: "1"}
    with pytest.raises(Invalid, match=f"{setting} is unknown") as caught:
        speaker(Host(id="id1", name="h1", settings=settings))
    assert "bgp." in caught.value.hint


def test_a_peer_without_an_address_is_refused() -> None:
    """And so is one whose name could not be written down."""
    with pytest.raises(Invalid, match=r"bgp\.peer\.r1\.address is missing"):
        speaker(host(peer__r1__hold="9"))
    with pytest.raises(Invalid, match="no valid peer name"):
        speaker(Host(id="id1", name="h1", settings={"bgp.peer.r 1.address": "192.0.2.254"}))



def test_a_session_of_the_mesh_is_by_a_family_that_both_have() -> None:
    """IPv4 if both have it; with each host's AS number; and TTL security only on the same link."""
    there = host(Underlay("eth0", ("192.0.2.2/24", "2001:db8::2/64")), "h2", **{"as": "64600"})
    found = mesh_session(host(), there, on_link=True)
    assert (found.address, found.source, found.local_as, found.remote_as) == ("192.0.2.2", "192.0.2.1", 64512, 64600)
    assert (found.ttl_security, found.multihop, found.name) == (True, 0, "h2")
    far = mesh_session(host(), host(ONLY_6, "h2"), on_link=False)
    assert (far.address, far.source, far.ttl_security, far.multihop) == ("2001:db8::2", "2001:db8::1", False, FAR)
    with pytest.raises(Unavailable, match="no underlay addresses of the same family"):
        mesh_session(host(Underlay("eth0", ("192.0.2.1/24",))), host(ONLY_6, "h2"), on_link=True)


def test_of_another_host_only_its_number_and_its_part_in_the_mesh_count() -> None:
    """Its other settings, perhaps of a newer version, stop nobody."""
    newer = msgspec.structs.replace(host(), settings={"bgp.as": "65000", "bgp.new": "x", "bgp.mesh": "false"})
    assert number(newer) == 65000
    assert not in_mesh(newer)


def test_a_router_id_follows_from_the_host_where_it_has_no_ipv4() -> None:
    """Two hosts have two, and the same always."""
    one, other = (router_id(host(ONLY_6, name)) for name in ("h1", "h2"))
    assert one == router_id(host(ONLY_6, "h1"))
    assert one != other


def test_names_that_differ_have_protocols_that_differ() -> None:
    """Also if they differ only by letters that a protocol's name may not have."""
    names = ["h1", "h-1", "h.1", "h_1", "x" * 40, "x" * 41]
    found = {protocol("mesh", name) for name in names}
    assert len(found) == len(names)
    assert all(word.replace("_", "").isalnum() and len(word) < 64 for word in found)
