"""Backend bgp: what a host knows to states, and to a configuration that BIRD takes."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import msgspec
import pytest

from linkspan.backends.bgp import backend as bgp
from linkspan.backends.bgp import bird_config
from linkspan.core.addresses import prefix
from linkspan.core.errors import Unavailable
from linkspan.core.host_view import Facts, HostView, Peer
from linkspan.core.model import Migration, Network
from linkspan.core.ruleset import element
from linkspan.core.states.host import LEARNT_METRIC, UNREACHABLE_METRIC, Address, Route, State
from linkspan.core.states.programs import SECRET, Bird, File, LearntRoutes, Process, Secret
from support.records.peers import HERE, ONLY_6, lease, network, peer, view

BOTH = (4, 6)
BIRD = Bird("/usr/sbin/bird", "/usr/sbin/birdc", "/state/bgp")


def seen(demo: Network, *peers: Peer, **settings: str) -> HostView:
    """Return what host 1 sees, with BIRD, peers, and settings (``__`` for a dot, ``_`` for a hyphen)."""
    found = view(demo)
    assert found.host is not None
    named = {k.replace("__", ".").replace("_", "-"): v for k, v in settings.items()}
    host = msgspec.structs.replace(found.host, settings=named)
    return by(BIRD, msgspec.structs.replace(found, host=host, peers=peers))


def by(bird: Bird | None, found: HostView) -> HostView:
    """Return what the host sees with another BIRD, or with none."""
    return msgspec.structs.replace(found, facts=Facts(programs=(bird,) if bird else ()))


def files(states: list[State]) -> dict[str, str]:
    """Return the texts of files by their place in the folder."""
    texts = {s.path: s.content.decode() for s in states if isinstance(s, File)}
    texts |= {s.path: s.text for s in states if isinstance(s, Secret)}
    return {path.removeprefix("/state/bgp/"): text for path, text in texts.items()}


def speaker(demo: Network, *peers: Peer, **settings: str) -> dict[str, str]:
    """Return the files of host 1's speaker."""
    return files(list(bgp.BACKEND.host(seen(demo, *peers, **settings))))


def test_a_network_is_plain_and_its_blocks_end_here() -> None:
    """Packets to unused addresses of an own block go to no peer that announces more than the block."""
    demo = network("bgp", BOTH)
    states = list(bgp.BACKEND.network(seen(demo), demo))
    assert Address("ls-demo", prefix("10.77.1.0/32")) in states
    for block in ("10.77.0.0/16", "10.77.1.0/24", "fd77::/48", "fd77:0:0:1::/64"):
        assert Route(prefix(block), metric=UNREACHABLE_METRIC) in states
    assert not any(isinstance(state, Route) and state.gateway for state in states)


def test_a_peer_is_let_in_and_has_no_route_of_ours() -> None:
    """Routes are the speaker's."""
    demo = network("bgp", BOTH)
    assert set(bgp.BACKEND.peer(seen(demo), demo, peer(demo, {}, exact=("10.77.9.9",)))) == {
        element("ways4", "eth0", "10.77.2.0"),
        element("ways6", "eth0", "fd77:0:0:2::"),
        element("ways_exact4", "eth0", "10.77.9.9"),
    }


def test_a_peer_behind_a_router_is_refused_but_for_routers_or_when_asked_for() -> None:
    """The reason and the ways out are reported."""
    demo = network("bgp")
    far = peer(demo, {}, on_link=False)
    with pytest.raises(Unavailable, match=r"host h2 .*a router is between") as caught:
        list(bgp.BACKEND.peer(seen(demo), demo, far))
    assert "bgp.peer.NAME.address" in caught.value.hint
    assert list(bgp.BACKEND.peer(seen(demo, bgp__next_hops="any"), demo, far))
    router = {"bgp__mesh": "false", "bgp__peer__r1__address": "192.0.2.254"}
    assert list(bgp.BACKEND.peer(seen(demo, **router), demo, far))
    assert "peers/mesh_id2.conf" not in speaker(demo, far)
    assert "peers/mesh_id2.conf" in speaker(demo, far, bgp__next_hops="any")


def test_without_mesh_and_peers_nobody_is_reached_and_that_is_told() -> None:
    """Whichever of the two hosts is not in the mesh."""
    demo = network("bgp")
    with pytest.raises(Unavailable, match=r"bgp\.mesh=false on this host"):
        list(bgp.BACKEND.peer(seen(demo, bgp__mesh="false"), demo, peer(demo, {})))
    other = peer(demo, {})
    other = msgspec.structs.replace(other, host=msgspec.structs.replace(other.host, settings={"bgp.mesh": "false"}))
    with pytest.raises(Unavailable, match=r"bgp\.mesh=false on it"):
        list(bgp.BACKEND.peer(seen(demo), demo, other))
    assert "peers/mesh_id2.conf" not in speaker(demo, other)


def test_the_speaker_is_one_helper_that_outlives_the_agent() -> None:
    """It gets a signal for changed files and sessions, and is started again if it dies."""
    demo = network("bgp")
    states = list(bgp.BACKEND.host(seen(demo, peer(demo, {}))))
    assert [s for s in states if isinstance(s, Process)] == [
        Process(
            "bird",
            ("/usr/sbin/bird", "-f", "-c", "/state/bgp/bird.conf", "-s", "/state/bgp/bird.ctl"),
            ("/usr/sbin/birdc", "-s", "/state/bgp/bird.ctl", "configure"),
            ("/state/bgp/bird.conf", "/state/bgp/peers"),
            ("-R",),
        )
    ]
    assert LearntRoutes(LEARNT_METRIC, "bird", 120) in states
    assert element("bgp_peers4", "192.0.2.2") in states
    assert {s.mode for s in states if isinstance(s, File)} == {0o600}


def test_no_speaker_without_a_network_that_needs_it() -> None:
    """A network that migrates needs it on both sides of the way."""
    plain = network("host-gw")
    assert list(bgp.BACKEND.host(seen(plain))) == []
    moving = msgspec.structs.replace(plain, migration=Migration(backend="bgp", mtu=1500, number=1))
    assert list(bgp.BACKEND.host(seen(moving)))


def test_a_host_without_bird_is_told_which_package_it_needs() -> None:
    """Its guards exist all the same."""
    demo = network("bgp")
    with pytest.raises(Unavailable, match="needs BIRD") as caught:
        list(bgp.BACKEND.host(by(None, seen(demo))))
    assert "bird2" in caught.value.hint
    assert list(bgp.BACKEND.network(by(None, seen(demo)), demo))


@pytest.mark.parametrize(
    ("address", "refused"), [("0.0.0.0", True), ("::", True), ("192.0.2.1", True), ("10.1.1.1", False)]
)
def test_another_speaker_at_our_port_is_named(address: str, refused: bool) -> None:
    """But one that listens only at another address is not in the way."""
    demo = network("bgp")
    bird = msgspec.structs.replace(BIRD, listeners=((address, "process 12 (bgpd)"),))
    if refused:
        with pytest.raises(Unavailable, match=r"port 179 of .* is in use by process 12 \(bgpd\)"):
            list(bgp.BACKEND.host(by(bird, seen(demo))))
    else:
        assert list(bgp.BACKEND.host(by(bird, seen(demo))))


def test_a_pool_without_a_next_hop_of_its_family_is_refused() -> None:
    """IPv6 needs an IPv6 underlay; IPv4 goes by an IPv6 one too (RFC 8950)."""
    demo = network("bgp", BOTH)
    assert bgp.next_hops(HERE) == {4: "192.0.2.1", 6: "fd02::1"}
    assert bgp.next_hops(ONLY_6) == {4: "fd02::1", 6: "fd02::1"}
    found = seen(demo)
    assert found.host is not None
    only_4 = msgspec.structs.replace(HERE, addresses=HERE.addresses[:1])
    host = msgspec.structs.replace(found.host, underlay=only_4)
    with pytest.raises(Unavailable, match="needs an underlay address of IPv6"):
        list(bgp.BACKEND.host(msgspec.structs.replace(found, host=host)))


def test_a_host_of_the_mesh_may_give_its_leases_and_nothing_else() -> None:
    """Another host's block, in whichever network, is no matter of its."""
    text = speaker(network("bgp", BOTH), peer(network("bgp", BOTH), {}, exact=("10.77.9.9",)))["peers/mesh_id2.conf"]
    accepted = re.findall(r"if net ~ (.*) then accept;", text)
    assert accepted == ["[ 10.77.2.0/24+, 10.77.9.9/32+ ]", "[ fd77:0:0:2::/64+ ]"]
    assert text.count("reject;") == 8
    assert text.count('if bgp_path ~ [= * 0 * =] then { ls_refused = "AS 0 in its path"; reject; }') == 2
    assert "multihop 1;\n  ttl security on;" in text


def test_a_router_may_give_what_is_in_the_pools_and_what_was_asked_for() -> None:
    """Never this host's own, and nothing that is wider than a block."""
    router = {"bgp__mesh": "false", "bgp__peer__r1__address": "192.0.2.254", "bgp__peer__r1__as": "65001"}
    demo = network("bgp")
    text = speaker(demo, **router)["peers/peer_r1.conf"]
    own, *rest = re.findall(r"^      (.*)$", text, re.M)[3:8]
    assert own == 'if own4() then { ls_refused = "own prefix"; reject; }'
    assert rest[0] == "if pool4() then accept;"
    assert rest[-1] == "reject;"
    assert [rule for line in rest for rule in bird_config.RULES if rule in line] == [
        "outside the pools",
        "wider than a block",
    ]
    assert "allow local as 1;" in text
    main = speaker(demo, **router)["bird.conf"]
    assert "net ~ [ 10.77.1.0/24+ ]" in main
    assert "net ~ [ 10.77.0.0/16{24,32} ]" in main
    asked = {"bgp__peer__r1__import": "default,192.0.2.0/24", "bgp__peer__r1__export": "198.51.100.1/32"}
    more = speaker(demo, **router, **asked)
    assert "pool4() || net ~ [ 0.0.0.0/0, 192.0.2.0/24 ]" in more["peers/peer_r1.conf"]
    assert "source = RTS_DEVICE && net ~ [ 198.51.100.1/32 ] then accept" in more["peers/peer_r1.conf"]
    assert "export where source = RTS_DEVICE && net ~ [ 198.51.100.1/32 ]" in more["bird.conf"]


def test_blocks_and_exact_addresses_are_announced_with_their_marks() -> None:
    """From a static table; the MED and both kinds of communities are on all of them."""
    demo = network("bgp", BOTH)
    found = seen(demo, bgp__community="64512:100,4200000001:1:2", bgp__med="7")
    found = msgspec.structs.replace(found, exact=(("demo", prefix("10.77.9.1/32")), ("other", prefix("10.9.9.9/32"))))
    main = files(list(bgp.BACKEND.host(found)))["bird.conf"]
    routes = re.findall(r"route (\S+) blackhole", main)
    assert routes == ["10.77.1.0/24", "10.77.9.1/32", "fd77:0:0:1::/64"]
    assert "bgp_community.add((64512, 100));" in main
    assert "bgp_large_community.add((4200000001, 1, 2));" in main
    assert "bgp_med = 7;" in main


def test_a_drained_host_announces_what_lives_on_it() -> None:
    """Blocks in which a container is, the host's own addresses else; all of them marked."""
    demo = network("bgp", BOTH)
    found = seen(demo, drained="1")
    main = files(list(bgp.BACKEND.host(found)))["bird.conf"]
    assert re.findall(r"route (\S+) blackhole", main) == ["10.77.1.0/32", "fd77:0:0:1::/128"]
    living = (("demo", prefix("10.77.1.5/32")), ("other", prefix("fd77:0:0:1::5/128")))
    main = files(list(bgp.BACKEND.host(msgspec.structs.replace(found, living=living))))["bird.conf"]
    assert re.findall(r"route (\S+) blackhole", main) == ["10.77.1.0/24", "fd77:0:0:1::/128"]
    assert "bgp_community.add((65535, 0));" in main


def test_a_peer_that_is_a_host_of_the_mesh_is_left_out() -> None:
    """Of two sessions with one neighbour BIRD keeps one idle; without the mesh it is the peer."""
    demo = network("bgp")
    wish = {"bgp__peer__rr__address": "192.0.2.2"}
    assert [session.mesh for session in bgp.sessions(seen(demo, peer(demo, {}), **wish))] == [True]
    alone = seen(demo, peer(demo, {}), bgp__mesh="false", **wish)
    assert [session.name for session in bgp.sessions(alone)] == ["rr"]


def test_a_password_is_a_place_in_a_text() -> None:
    """The session's file is a Secret, in which the value is not."""
    demo = network("bgp")
    wish = {"bgp__peer__r1__address": "192.0.2.254", "bgp__peer__r1__password_file": "/etc/r1"}
    (found,) = [s for s in bgp.BACKEND.host(seen(demo, **wish)) if isinstance(s, Secret)]
    assert (found.path, found.source) == ("/state/bgp/peers/peer_r1.secret.conf", "/etc/r1")
    assert found.text.count(SECRET) == 1


def test_a_host_of_the_mesh_with_wrong_settings_costs_its_own_session_only() -> None:
    """The speaker continues with all other hosts, because another host's record cannot be trusted."""
    demo = network("bgp")
    two = peer(demo, {})
    wrong = msgspec.structs.replace(two.host, id="id3", name="h3", settings={"bgp.mesh": "perhaps"})
    three = Peer(wrong, lease(3, demo, {}), "eth0", on_link=True)
    assert speaker(demo, two, three) == speaker(demo, two)


def test_a_session_that_gets_or_loses_its_password_has_another_file() -> None:
    """The old one is removed after the new one is written, and of one path that would leave none."""
    wish = {"bgp__peer__r1__address": "192.0.2.254"}
    without = {s.path for s in bgp.BACKEND.host(seen(network("bgp"), **wish)) if isinstance(s, File)}
    wish |= {"bgp__peer__r1__password_file": "/etc/r1"}
    (secret,) = [s for s in bgp.BACKEND.host(seen(network("bgp"), **wish)) if isinstance(s, Secret)]
    assert secret.path not in without


WISHES: list[dict[str, str]] = [
    {},
    {"bgp__next_hops": "any", "bgp__hold": "0", "drained": "1"},
    {
        "bgp__as": "4200000001", "bgp__community": "1:2,3:4:5", "bgp__med": "0", "bgp__restart_time": "4095",
        "bgp__peer__a__address": "192.0.2.254", "bgp__peer__a__as": "65001", "bgp__peer__a__ttl_security": "true",
        "bgp__peer__b__address": "2001:db8::9", "bgp__peer__b__multihop": "3", "bgp__peer__b__source": "fd02::1",
        "bgp__peer__a__import": "default,10.0.0.0/8+", "bgp__peer__a__export": "192.0.2.0/24,fd02::/64+",
        "bgp__peer__a__password_file": "/etc/a",
    },
]


@pytest.mark.parametrize("wishes", WISHES)
@pytest.mark.parametrize("families", [(4,), (6,), BOTH])
def test_bird_takes_every_configuration(wishes: dict[str, str], families: tuple[int, ...], tmp_path: Path) -> None:
    """Its own parser finds nothing wrong, whatever was set, on either family of underlay."""
    demo = network("bgp", families)
    for underlay in (HERE, ONLY_6):
        bird = msgspec.structs.replace(BIRD, folder=str(tmp_path))
        there = peer(demo, {}, underlay=ONLY_6 if underlay is ONLY_6 else HERE)
        found = by(bird, seen(demo, there, **wishes))
        assert found.host is not None
        found = msgspec.structs.replace(found, host=msgspec.structs.replace(found.host, underlay=underlay))
        (tmp_path / "peers").mkdir(exist_ok=True)
        for state in bgp.BACKEND.host(found):
            if isinstance(state, File):
                Path(state.path).write_bytes(state.content)
            elif isinstance(state, Secret):
                Path(state.path).write_text(state.text.replace(SECRET, '"hush"'))
        done = subprocess.run(["bird", "-p", "-c", tmp_path / "bird.conf"], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_what_a_session_may_do_does_not_follow_from_the_order_of_peers() -> None:
    """Two views of the same are one configuration."""
    demo = network("bgp")
    two = peer(demo, {})
    three = Peer(msgspec.structs.replace(two.host, id="id3", name="h3"), lease(3, demo, {}), "eth0", on_link=True)
    assert speaker(demo, two, three) == speaker(demo, three, two)


@pytest.mark.parametrize(
    ("settings", "lines"),
    [
        ({}, ["    import limit 1024 action block;"] * 2),
        ({"bgp__prefixes": "50"}, ["    import limit 50 action block;"] * 2),
        ({"bgp__prefixes": "50", "bgp__peer__r1__prefixes": "70"}, ["    import limit 70 action block;"] * 2),
        ({"bgp__peer__r1__prefixes": "0"}, []),
        ({"bgp__peer__r1__import": "192.0.2.0/24+"}, []),
        ({"bgp__peer__r1__import": "default"}, ["    import limit 1024 action block;"] * 2),
    ],
)
def test_a_peer_s_prefixes_are_limited(settings: dict[str, str], lines: list[str]) -> None:
    """By the setting, else by the prefixes known to the store; not if its import filter takes foreign prefixes."""
    demo = network("bgp", BOTH)
    text = speaker(demo, bgp__peer__r1__address="192.0.2.254", **settings)["peers/peer_r1.conf"]
    assert [line for line in text.splitlines() if "limit" in line] == lines


def test_the_limit_grows_with_what_the_other_hosts_have() -> None:
    """Twice that, and 1,000 more: up to the next power of two, so that a lease more is seldom another limit."""
    demo = network("bgp")
    many = peer(demo, {}, exact=tuple(f"10.77.{n // 250 + 3}.{n % 250}" for n in range(5000)))
    session = bgp.sessions(seen(demo, bgp__peer__r1__address="192.0.2.254"))[0]
    assert [bgp.limit(session, n) for n in (0, 12, 13, 5000)] == [1024, 2048, 2048, 16384]
    text = speaker(demo, many, bgp__peer__r1__address="192.0.2.254")["peers/peer_r1.conf"]
    assert "import limit 16384 action block;" in text
