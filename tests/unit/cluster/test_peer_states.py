"""States of peers: one snapshot crosses to the worker, and a change costs only the peers concerned."""

from __future__ import annotations

import threading
from pathlib import Path

import msgspec
import pytest

from linkspan.cluster.peers import Pair
from linkspan.core.addresses import prefix
from linkspan.core.errors import KernelError
from linkspan.core.states.host import HOST, Route
from linkspan.kernel.io import link_messages
from linkspan.kernel.io.sockets import Sockets
from linkspan.kernel.probe import underlay
from linkspan.store.records import SHARED, AddressRecord, BlockRecord
from support.records.peer_stage import PeerStage, one_link
from support.records.replicas import together

SHARED_BLOCK = BlockRecord(SHARED, 0.0)


@pytest.fixture(autouse=True)
def kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """All peers are on one link."""
    one_link(monkeypatch)


def test_the_worker_gets_a_snapshot_and_changes_nothing_that_the_loop_reads(tmp_path: Path) -> None:
    """`status` walks over the peers meanwhile, and the view walks over the store's records."""

    async def work() -> None:
        stage = PeerStage(tmp_path, others=3)
        await stage.start()
        await stage.peers.follow(stage.pairs())
        assert stage.kernel.known == [set()]
        assert set(stage.peers.known) == set(stage.pairs())
        assert threading.get_ident() not in stage.kernel.threads
        assert set(stage.views) == {threading.get_ident()}
        await stage.stop()

    together(work)


def test_many_peers_cost_one_batch(tmp_path: Path) -> None:
    """A thousand peers would otherwise cost a thousand transactions, and WireGuard as many processes."""

    async def work() -> None:
        stage = PeerStage(tmp_path, others=20)
        await stage.start()
        await stage.peers.follow(stage.pairs())
        assert [set(batch) for batch in stage.kernel.batches] == [{("peer", *pair) for pair in stage.pairs()}]
        assert stage.kernel.desired.sources().keys() == {("peer", *pair) for pair in stage.pairs()}
        await stage.stop()

    together(work)


def test_the_paths_to_many_peers_cost_one_list_of_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list for each path takes half a millisecond on a host with a dozen containers: half a second of a start."""
    listed: list[object] = []

    def links(socket: object) -> list[object]:
        listed.append(socket)
        return []

    monkeypatch.setattr(Sockets, "at", lambda *_host: None)
    monkeypatch.setattr(link_messages, "links", links)
    monkeypatch.setattr(underlay, "way", lambda sockets, _address: (sockets.names(HOST).get(1, "eth0"), True))

    async def work() -> None:
        stage = PeerStage(tmp_path, others=20)
        await stage.start()
        await stage.peers.follow(stage.pairs())
        assert len(stage.peers.known) == 20
        assert len(listed) == 1
        await stage.stop()

    together(work)


def test_a_peer_that_disagrees_with_something_costs_no_other_peer_its_states(tmp_path: Path) -> None:
    """It is named with what it disagrees with; the others in its batch are put."""

    async def work() -> None:
        stage = PeerStage(tmp_path, others=3)
        await stage.start()
        await stage.peers.follow(stage.pairs(3))
        (route,) = (s for s in stage.kernel.desired.states((Route,)).values() if isinstance(s, Route))
        await stage.leases.remove_host("h3")
        await stage.peers.follow(stage.pairs(3))
        stage.kernel.change(("other",), [msgspec.structs.replace(route, device="eth9")])
        await stage.start()
        await stage.peers.follow(stage.pairs())
        assert list(stage.peers.unreachable) == stage.pairs(3)
        assert "disagree" in stage.peers.unreachable["demo", "h3"]
        kept = {("peer", *pair) for pair in stage.pairs(2, 4)} | {("other",)}
        assert stage.kernel.desired.sources().keys() == kept
        await stage.stop()

    together(work)


def test_a_peer_that_goes_takes_its_states_with_it(tmp_path: Path) -> None:
    """One that cannot be reached is named, and is known still."""

    async def work() -> None:
        stage = PeerStage(tmp_path, others=2)
        await stage.start()
        await stage.peers.follow(stage.pairs())
        assert stage.kernel.desired.sources().keys() == {("peer", *pair) for pair in stage.pairs()}
        await stage.leases.remove_host("h2")
        stage.own_record.change(underlay=None)
        await stage.peers.follow(stage.pairs())
        assert set(stage.peers.known) == set(stage.pairs(3))
        assert set(stage.peers.unreachable) == set(stage.pairs(3))
        assert not stage.kernel.desired.sources()
        await stage.stop()

    together(work)


def test_a_neighbour_that_answers_while_its_peer_is_put_is_not_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The peer is put once more, with the neighbour's answer."""
    monkeypatch.setattr(underlay, "resolved", lambda _sockets, _device, _address: False)

    async def work() -> None:
        stage = PeerStage(tmp_path, others=1)
        await stage.start()
        await stage.peers.follow(stage.pairs())
        (pair,) = stage.pairs()
        assert stage.peers.known[pair].standing == "awaited"
        (heard,) = stage.peers._segment._heard.values()
        stage.kernel.meanwhile = lambda: heard.take(True, 0.0)
        await stage.peers.follow(stage.pairs())
        assert stage.peers.known[pair].standing == "answers"
        assert stage.kernel.batches == [[("peer", *pair)]] * 3
        await stage.stop()

    together(work)


async def _hold(stage: PeerStage, host: str) -> None:
    record = AddressRecord(host, "c1", "eth0", 0.0)
    await stage.replica.write({"addresses/demo/10.244.99.7": record, "blocks/demo/10.244.99.0/24": SHARED_BLOCK})


def _concerned(stage: PeerStage, key: str = "addresses/demo/10.244.99.7") -> set[Pair]:
    return set(stage.peers.concerned({key}, everything=False))


def test_an_exact_address_concerns_its_holder_and_who_held_it_before(tmp_path: Path) -> None:
    """The others' routes and tunnels are as they were; a network may have thousands of such addresses."""

    async def work() -> None:
        stage = PeerStage(tmp_path, others=4)
        await stage.start()
        await _hold(stage, "h2")
        assert _concerned(stage) == set(stage.pairs(2))
        await stage.peers.follow(stage.pairs())
        await _hold(stage, "h3")
        assert _concerned(stage) == set(stage.pairs(2, 3))
        await stage.peers.follow(stage.pairs(2, 3))
        await stage.replica.write({}, deletes=["addresses/demo/10.244.99.7"])
        assert _concerned(stage) == set(stage.pairs(3))
        assert _concerned(stage, "addresses/demo/10.244.4.0") == set(stage.pairs(4))
        assert _concerned(stage, "addresses/demo/no-address") == set()
        await stage.stop()

    together(work)


def test_the_states_of_a_peer_give_up_an_address_that_this_host_has_claimed(tmp_path: Path) -> None:
    """A container's own states follow at once, and must not wait until all that changed is worked off."""

    async def work() -> None:
        stage, address = PeerStage(tmp_path, others=3), prefix("10.244.99.7")
        await stage.start()
        await _hold(stage, "h2")
        await stage.peers.follow(stage.pairs())
        assert stage.peers.known["demo", "h2"].exact == (address,)
        stage.kernel.batches.clear()
        await _hold(stage, "h1")
        await stage.peers.give_up("demo", address)
        assert [set(batch) for batch in stage.kernel.batches] == [{("peer", *pair) for pair in stage.pairs(2)}]
        assert not stage.peers.known["demo", "h2"].exact
        await stage.peers.give_up("demo", address)
        assert len(stage.kernel.batches) == 1
        await stage.stop()

    together(work)


def test_an_address_of_this_host_concerns_all_whose_states_have_it_in_them(tmp_path: Path) -> None:
    """Tunnels have both ends' addresses in their states; other states do not change."""

    async def work() -> None:
        stage = PeerStage(tmp_path, others=3)
        await stage.start()
        await stage.peers.follow(stage.pairs())
        await _hold(stage, "h1")
        assert _concerned(stage) == set()
        stage.exact = (("demo", prefix("10.244.99.7")),)
        assert _concerned(stage) == set(stage.pairs())
        await stage.peers.follow(stage.pairs())
        stage.exact = ()
        await _hold(stage, "h2")
        await stage.peers.follow(stage.pairs(2))
        assert _concerned(stage) == set(stage.pairs())
        await stage.stop()

    together(work)


def test_a_look_follows_only_the_peers_to_which_the_kernel_has_another_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look comes each minute, and in a large cluster nearly all of them stay as they are."""

    async def work() -> None:
        stage = PeerStage(tmp_path, others=3)
        await stage.start()
        await stage.peers.follow(stage.pairs())
        await stage.peers.look()  # the first one knows of no view before
        stage.kernel.batches.clear()
        await stage.peers.look()
        assert stage.kernel.batches == []
        third = prefix("192.0.2.3").packed
        monkeypatch.setattr(underlay, "way", lambda _sockets, to: ("eth1" if to == third else "eth0", True))
        await stage.peers.look()
        assert [set(batch) for batch in stage.kernel.batches] == [{("peer", *pair) for pair in stage.pairs(3)}]
        assert stage.peers.known["demo", "h3"].device == "eth1"
        await stage.stop()

    together(work)


@pytest.mark.parametrize("case", ["exact", "lost"])
def test_a_look_follows_peers_whose_addresses_another_host_s_containers_may_have(tmp_path: Path, case: str) -> None:
    """The exact addresses of h2 depend on h3's containers, and no record of h2 changes with these."""

    async def work() -> None:
        stage, there = PeerStage(tmp_path, others=3), prefix("10.244.3.9")
        theirs = {there}
        stage.leases._living = lambda _network, host: theirs if host == "h3" else ()
        await stage.start()
        if case == "exact":
            record = AddressRecord("h2", "c1", "eth0", 0.0)
            await stage.replica.write({"addresses/demo/10.244.3.9": record, "addresses/demo/10.244.4.9": _free(record)})
        else:
            await stage.replica.write({"blocks/demo/10.244.2.0/24": BlockRecord("h3", 0.0)})
            stage.conflicts.look(["demo"])
        await stage.peers.follow(stage.pairs())
        await stage.peers.look()
        stage.kernel.batches.clear()
        theirs.clear()
        await stage.peers.look()
        assert [set(batch) for batch in stage.kernel.batches] == [{("peer", *pair) for pair in stage.pairs(2)}]
        assert stage.peers.known["demo", "h2"].exact == ((there,) if case == "exact" else ())
        await stage.stop()

    together(work)


def _free(record: AddressRecord) -> AddressRecord:
    return msgspec.structs.replace(record, host="")


def test_a_look_tries_peers_again_that_could_not_be_reached(tmp_path: Path) -> None:
    """The obstacle may be gone, and no record says so."""

    async def work() -> None:
        stage = PeerStage(tmp_path, others=2)
        await stage.start()
        (one,) = stage.pairs(2)
        await stage.peers.follow(stage.pairs())
        await stage.peers.look()
        stage.kernel.batches.clear()
        stage.peers.unreachable[one] = "its route was refused"
        await stage.peers.look()
        assert [set(batch) for batch in stage.kernel.batches] == [{("peer", *one)}]
        assert not stage.peers.unreachable
        await stage.stop()

    together(work)


def test_a_look_finds_a_peer_whose_route_was_lost_and_refused_since(tmp_path: Path) -> None:
    """A resync finds it, and `status` and the metrics name peers from what was followed."""

    async def work() -> None:
        stage = PeerStage(tmp_path, others=3)
        await stage.start()
        (one,) = stage.pairs(2)
        await stage.peers.follow(stage.pairs())
        await stage.peers.look()
        (key, *_) = stage.kernel.desired.sources()["peer", *one]
        stage.kernel.failing = {key: KernelError("it is refused")}
        stage.kernel.batches.clear()
        await stage.peers.look()
        assert [set(batch) for batch in stage.kernel.batches] == [{("peer", *one)}]
        assert stage.peers.unreachable == {one: "it is refused"}
        stage.kernel.failing = {}
        await stage.peers.look()
        assert not stage.peers.unreachable
        await stage.stop()

    together(work)


def test_a_look_lists_the_links_of_the_host_at_most_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many peers it asks the kernel for."""

    async def work() -> None:
        stage = PeerStage(tmp_path, others=3)
        await stage.start()
        await stage.peers.follow(stage.pairs())
        await stage.peers.look()
        looking = []

        def way(sockets: Sockets, _to: bytes) -> tuple[str, bool]:
            looking.append(sockets._looking)
            return "eth0", True

        monkeypatch.setattr(underlay, "way", way)
        await stage.peers.look()
        assert looking == [True] * 3
        await stage.stop()

    together(work)


def test_a_look_follows_all_peers_after_a_change_of_this_host(tmp_path: Path) -> None:
    """States of peers depend on its facts and settings."""

    async def work() -> None:
        stage = PeerStage(tmp_path, others=2)
        await stage.start()
        await stage.peers.follow(stage.pairs())
        await stage.peers.look()
        stage.kernel.batches.clear()
        stage.own_record.change(settings={"drained": "true"})
        await stage.peers.look()
        assert [set(batch) for batch in stage.kernel.batches] == [{("peer", *pair) for pair in stage.pairs()}]
        await stage.stop()

    together(work)
