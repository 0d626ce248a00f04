"""Migration's pure part: which states, offers and records each phase has."""

from __future__ import annotations

import itertools

import msgspec
import pytest

from linkspan.backends import backend, migration
from linkspan.core.errors import Conflict, Invalid, LinkspanError, Unavailable
from linkspan.core.host_view import HostView, Peer
from linkspan.core.model import Migration, Network, Offer
from linkspan.core.states.host import Bridge, Ipip, Route, Sysctl, Vxlan
from support.records import peers

OPTIONS = {"vxlan": {"vni": "100"}, "ipip": {}, "host-gw": {}, "bgp": {}}
DEVICES = {"vxlan": "lsx64", "ipip": "lsipip", "host-gw": "eth0"}
KINDS = {"vxlan": Vxlan, "ipip": Ipip, "host-gw": Bridge}
DIRECTIONS = list(itertools.permutations(DEVICES, 2))


def described(name: str, mtu: int) -> Network:
    """Describe a network that does not migrate."""
    return msgspec.structs.replace(peers.network(name, mtu=mtu), options=OPTIONS[name])


def moving(old: str, new: str, mtu: int = 1450, number: int = 1) -> Network:
    """Describe a network on its way."""
    move = Migration(backend=new, options=OPTIONS[new], mtu=mtu, number=number)
    return msgspec.structs.replace(described(old, mtu), migration=move)


def stage(
    old: str, new: str, here: bool, there: bool, on_link: bool = True
) -> tuple[HostView, Network, Peer]:
    """Return what this host sees where it and its peer offer the new way or not."""
    network = moving(old, new)
    view, peer = peers.view(network), peers.peer(network, None, on_link=on_link)
    mine, theirs = view.leases[0], peer.lease
    seen = msgspec.structs.replace(view, host=peer.host)
    for one, mine_too, theirs_too in zip(
        reversed(network.ways), (True, here), (True, there), strict=True
    ):
        way = backend(one.backend)
        if mine_too:
            mine.endpoints[one.backend] = Offer(dict(way.announce(view, one) or {}))
        if theirs_too:
            theirs.endpoints[one.backend] = Offer(dict(way.announce(seen, one) or {}))
    return view, network, peer


@pytest.mark.parametrize(("old", "new"), DIRECTIONS)
@pytest.mark.parametrize(("here", "there"), [(False, False), (True, False), (False, True), (True, True)])
def test_it_sends_by_the_new_way_where_both_offer_it(old: str, new: str, here: bool, there: bool) -> None:
    """All routes to the peer are of one way, and what receives is that of both."""
    view, network, peer = stage(old, new, here, there)
    met = migration.meet(view, network, peer)
    by = new if here and there else old
    assert (met.by, met.problem) == (by, "")
    assert {s.device for s in met.states if isinstance(s, Route)} == {DEVICES[by]}
    for one in network.ways:
        alone = backend(one.backend).peer(view, one, migration.expected(one, peer))
        assert {s for s in alone if not isinstance(s, Route)} <= set(met.states)


@pytest.mark.parametrize(("old", "new"), DIRECTIONS)
def test_a_network_on_its_way_has_the_devices_of_both(old: str, new: str) -> None:
    """Both devices exist, reverse paths are loose on the underlay, and no two states have the same key."""
    view, network, _ = stage(old, new, False, False)
    states = set(migration.network_states(view, network))
    assert len({s.key for s in states}) == len(states)
    assert {KINDS[old], KINDS[new]} <= {type(s) for s in states}
    assert Sysctl("net/ipv4/conf/eth0/rp_filter", "2") in states


def test_what_a_peer_will_announce_follows_from_its_host_record() -> None:
    """A host lets a peer in by the new way before that peer has offered it."""
    _, network, peer = stage("host-gw", "vxlan", True, False)
    _, _, later = stage("host-gw", "vxlan", True, True)
    new = network.ways[0]
    assert migration.expected(new, peer).lease.endpoints == later.lease.endpoints


def test_a_way_that_does_not_serve_is_told_and_the_other_goes_on() -> None:
    """Behind a router host-gw reaches nobody: the peer stays with VXLAN, and the reason is kept."""
    met = migration.meet(*stage("vxlan", "host-gw", True, True, on_link=False))
    assert met.by == "vxlan"
    assert "router" in met.problem
    assert {s.device for s in met.states if isinstance(s, Route)} == {"lsx64"}


def test_it_sends_by_a_speakers_routes_only_where_they_are_there() -> None:
    """Until then the old way's stay; on the way back the new way's win at once."""
    view, network, peer = stage("vxlan", "bgp", True, True)
    assert migration.meet(view, network, peer).by == "vxlan"
    met = migration.meet(view, network, msgspec.structs.replace(peer, learnt=True))
    assert met.by == "bgp"
    assert not any(isinstance(state, Route) for state in met.states)
    for here, by in ((False, "bgp"), (True, "vxlan")):
        assert migration.meet(*stage("bgp", "vxlan", here, True)).by == by


def test_without_any_way_a_peer_is_unreachable() -> None:
    """A peer whose lease offers no way raises, as without a migration."""
    view, network, peer = stage("vxlan", "ipip", True, True)
    peer.lease.endpoints.clear()
    with pytest.raises(Unavailable):
        migration.meet(view, network, peer)


@pytest.mark.parametrize(
    ("old", "mtu", "new", "meanwhile", "final"),
    [
        ("vxlan", 1450, "host-gw", (1500, 1450), 1500),
        ("host-gw", 1500, "vxlan", (1500, 1450), 1450),
        ("ipip", 1480, "vxlan", (1480, 1450), 1450),
        ("vxlan", 1450, "ipip", (1480, 1450), 1480),
        ("vxlan", 1400, "host-gw", (1400, 0), 1400),
        ("host-gw", 1460, "vxlan", (1460, 1450), 1450),
    ],
)
def test_containers_take_the_larger_mtu_and_send_the_smaller_meanwhile(
    old: str, mtu: int, new: str, meanwhile: tuple[int, int], final: int
) -> None:
    """At the end both are the new way's, a smaller wish of the user's stays, and turning round restores all."""
    network = described(old, mtu)
    wanted = msgspec.structs.replace(network, backend=new, options=OPTIONS[new])
    started = migration.started(network, wanted, peers.HERE, ())
    assert started.mtus == meanwhile
    ended = msgspec.structs.replace(wanted, mtu=final)
    assert started.target == ended
    assert ended.mtus == (final, 0)
    turned = migration.turned(started, ())
    assert turned.mtus == meanwhile
    assert turned.target == network


def test_only_the_word_of_this_migration_counts() -> None:
    """A host is waited for until its offer has the migration's number, which no earlier offer had."""
    network = moving("vxlan", "ipip")
    leases = [peers.lease(n, network, {}) for n in (1, 2, 3)]
    assert migration.waiting(network, leases) == ["id1", "id2", "id3"]
    assert migration.lagging(network, leases[:1]) == ["id1"]
    leases[0].endpoints["ipip"] = Offer({}, 1)
    leases[1].endpoints["ipip"] = Offer({}, 0)
    assert migration.waiting(network, leases) == ["id2", "id3"]
    assert migration.lagging(network, leases) == ["id3"]
    leases[2].endpoints["ipip"] = Offer({}, 0)
    assert migration.lagging(network, leases) == ["id2", "id3"]
    again = migration.started(described("ipip", 1450), network, peers.HERE, leases)
    assert again.migration is not None
    assert again.migration.number == 2


def test_turned_round_only_those_are_waited_for_that_may_send_by_the_new_way() -> None:
    """A host that never offered it has not left the old one, and one that did must say that it is back."""
    network = moving("vxlan", "ipip")
    leases = [peers.lease(n, network, {}) for n in (1, 2, 3)]
    for lease, generation in zip(leases[:2], (1, 0), strict=True):
        lease.endpoints["ipip"] = Offer({}, generation)
    turned = migration.turned(network, leases)
    assert migration.waiting(turned, leases) == migration.lagging(turned, leases) == ["id1", "id2"]
    assert turned.migration is not None
    leases[0].endpoints["vxlan"] = Offer({}, turned.migration.number)
    assert migration.waiting(turned, leases) == ["id2"]
    again = migration.turned(turned, leases)
    assert (again.backend, again.target) == ("vxlan", network.target)
    assert migration.waiting(again, leases) == ["id1", "id2", "id3"]


def test_it_goes_back_to_what_was_and_no_other_options() -> None:
    """Options that are given must be those that the network had."""
    network = moving("vxlan", "ipip")
    migration.check_back(network, {"vni": "100"})
    with pytest.raises(Invalid, match="vni=100"):
        migration.check_back(network, {"direct": "true"})


@pytest.mark.parametrize(
    ("network", "name", "error", "words"),
    [
        (moving("vxlan", "ipip"), "host-gw", Conflict, "migrates from vxlan to ipip already"),
        (peers.network("vxlan"), "bridge", Invalid, "bridge does not cross hosts"),
        (peers.network("bridge"), "vxlan", Invalid, "bridge does not cross hosts"),
        (peers.network("vxlan"), "host", Invalid, "host does not cross hosts"),
        (peers.network("vxlan"), "vxlan", Invalid, "has backend vxlan already"),
    ],
)
def test_what_cannot_be_is_refused(
    network: Network, name: str, error: type[LinkspanError], words: str
) -> None:
    """The error has the reason."""
    with pytest.raises(error, match=words):
        migration.check(network, name)


def test_an_offer_that_stands_outlives_the_agent() -> None:
    """Before it has checked its peers, an agent that starts keeps what its lease says of the new way."""
    view, network, _ = stage("vxlan", "ipip", False, False)
    mine = view.lease("demo")
    assert mine is not None
    assert set(migration.offers(view, network, mine)) == {"vxlan"}
    mine.endpoints["ipip"] = Offer({"address": "192.0.2.1"}, 1)
    assert migration.offers(view, network, mine)["ipip"] == Offer({"address": "192.0.2.1"}, 1)
    del mine.endpoints["ipip"]
    assert set(migration.offers(view, migration.turned(network, [mine]), mine)) == {"vxlan"}
    assert set(migration.offers(view, network, None)) == {"vxlan"}
