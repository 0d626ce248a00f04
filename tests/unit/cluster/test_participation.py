"""Participation: a host has a lease, and peers, in the networks of its containers, and where a setting says so."""

from __future__ import annotations

import asyncio
from collections.abc import Set
from pathlib import Path
from typing import Any

import msgspec
import pytest

from linkspan.cluster import membership
from linkspan.cluster.participation import chosen
from linkspan.core.addresses import prefix
from linkspan.core.errors import Exhausted, Unavailable
from linkspan.core.model import Allowance, AttachRequest, Host, Lease, Network, Offer
from linkspan.store.records import BlockRecord, Common, block_key, lease_key
from support.polling import eventually
from support.records.membership_stage import MembershipStage
from support.records.peer_stage import one_link, underlay_of
from support.records.replicas import network, together

NAMES = ("one", "two", "three")


def _network(number: int, **more: Any) -> Network:
    fields = {"backend": "host-gw", "options": {}, "gateways": (f"10.{number}.0.1",), **more}
    return network(NAMES[number - 1], f"10.{number}.0.0/16", **fields)


NETWORKS = tuple(map(_network, (1, 2, 3)))
LONELY = Network(name="lonely", backend="bridge", pools=("10.9.0.0/16",), subnet_len={"4": 16}, gateways=("10.9.0.1",))


@pytest.mark.parametrize(
    ("containers", "setting", "allowances", "wanted"),
    [
        ((), "", (), set()),
        (("one",), "", (), {"one"}),
        ((), "all", (), {"one", "two", "three"}),
        (("one",), "two, three,", (), {"one", "two", "three"}),
        ((), "none-of-ours", (), set()),
        (("lonely",), "lonely", (), set()),
        (("one",), "", (("one", "two"),), {"one", "two"}),
        (("two",), "", (("one", "two"),), {"one", "two"}),
        (("one",), "", (("one", "two"), ("two", "three")), {"one", "two"}),
        (("one",), "", (("one", "lonely"),), {"one"}),
        ((), "", (("one", "two"),), set()),
    ],
)
def test_a_host_takes_part_where_containers_or_the_setting_or_an_allowance_want_it(
    containers: tuple[str, ...], setting: str, allowances: tuple[tuple[str, str], ...], wanted: Set[str]
) -> None:
    """An allowance counts for its two networks alone; a network that does not cross hosts needs no part."""
    allowed = [Allowance(*pair) for pair in allowances]
    assert chosen((*NETWORKS, LONELY), allowed, containers, setting) == wanted


class Stage(MembershipStage):
    """Host h1, and its cluster; h2 has a lease in each network."""

    async def start(self) -> None:
        """Have the networks, and h2 in them."""
        await self.replica.start()
        written: dict[str, msgspec.Struct] = {f"networks/{net.name}": net for net in NETWORKS}
        written |= {"hosts/h1": self.hosts.here, "hosts/h2": Host(id="h2", name="h2", underlay=underlay_of(2))}
        for number, name in enumerate(NAMES, 1):
            block = f"10.{number}.7.0/24"
            written[block_key(name, block)] = BlockRecord("h2", 0.0)
            written[lease_key(name, "h2")] = Lease(
                network=name,
                host="h2",
                prefixes=(block,),
                addresses=(f"10.{number}.7.1",),
                endpoints={"host-gw": Offer()},
            )
        await self.replica.write(written)
        await self.membership.converge({""})

    async def come(self, number: int) -> str:
        """Attach a container, but for the kernel; returns its address."""
        net = _network(number)
        await self.allocator.take_part(net)
        (given,) = await self.allocator.allocate(net, AttachRequest(id=f"c{number}", network=net.name, ifname="eth0"))
        self.holds(net, f"c{number}", str(given.address))
        return given.address.address

    @property
    def leased(self) -> set[str]:
        """The networks in which it has a lease."""
        return {lease.network for lease in self.leases.own()}

    @property
    def met(self) -> set[str]:
        """The networks in which it has its peer."""
        return {name for name, _ in self.peers.known}


@pytest.fixture(autouse=True)
def link(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a kernel that reaches all peers."""
    one_link(monkeypatch)


def test_a_block_is_claimed_and_peers_are_met_with_the_first_container(tmp_path: Path) -> None:
    """Not before, and in no other network; the next containers find all there."""

    async def work() -> None:
        stage = Stage(tmp_path)
        await stage.start()
        assert (stage.leased, stage.met) == (set(), set())
        address = await stage.come(2)
        assert (stage.leased, stage.met) == ({"two"}, {"two"})
        assert address.startswith("10.2.")
        await stage.detach(_network(2), "c2")
        await stage.membership.converge({"networks/"})
        assert (stage.leased, stage.met) == ({"two"}, {"two"})
        await stage.replica.stop()

    together(work)


def test_the_first_container_of_a_network_needs_the_store_and_later_ones_do_not(tmp_path: Path) -> None:
    """The error says what is missing; nothing is left of the attempt."""

    async def work() -> None:
        stage = Stage(tmp_path)
        await stage.start()
        await stage.come(1)
        stage.store.cut()
        with pytest.raises(Unavailable):
            await stage.come(2)
        assert await stage.come(1)
        stage.store.mend()
        assert await stage.come(2)
        await stage.replica.stop()

    together(work)


@pytest.mark.parametrize("where", ["hosts/h1", "settings/hosts"])
def test_a_setting_makes_a_host_take_part_without_a_container(tmp_path: Path, where: str) -> None:
    """Of one host that is named, or of all; what was claimed by it stays."""

    async def work() -> None:
        stage = Stage(tmp_path)
        await stage.start()
        wish = {"networks": "one,three"}
        record = msgspec.structs.replace(stage.hosts.here, settings=wish) if where == "hosts/h1" else Common(wish)
        await stage.replica.write({where: record})
        await stage.membership.converge()
        await stage.membership.converge()
        assert (stage.leased, stage.met) == ({"one", "three"}, {"one", "three"})
        await stage.replica.stop()

    together(work)


def test_an_allowance_makes_a_host_take_part_in_the_other_network(tmp_path: Path) -> None:
    """Its container's packets need the routes of that network, and the answers those of its own."""

    async def work() -> None:
        stage = Stage(tmp_path)
        await stage.start()
        await stage.come(1)
        await stage.allowances.allow(Allowance("one", "two"))
        await stage.membership.converge()
        await stage.membership.converge()
        assert (stage.leased, stage.met) == ({"one", "two"}, {"one", "two"})
        await stage.replica.stop()

    together(work)


def test_a_change_in_a_network_without_a_part_here_concerns_no_peer(tmp_path: Path) -> None:
    """Of a lease, a block or a host; in the host's own network it does."""

    async def work() -> None:
        stage = Stage(tmp_path)
        await stage.start()
        await stage.come(1)
        concerned = stage.peers.concerned
        assert set(concerned({"leases/two/h2", "blocks/two/10.2.7.0/24"}, everything=False)) == set()
        for key in ("leases/one/h2", "blocks/one/10.1.7.0/24", "hosts/h2"):
            assert set(concerned({key}, everything=False)) == {("one", "h2")}
        await stage.membership.converge()
        before = stage.planned
        await stage.replica.write({"blocks/two/10.2.8.0/24": BlockRecord("h2", 0.0), "addresses/two/10.2.9.9": b"{}"})
        await stage.membership.converge()
        assert stage.planned == before
        await stage.replica.write({}, deletes=["leases/one/h2", "blocks/one/10.1.7.0/24"])
        await stage.membership.converge()
        assert stage.planned == before + 1
        assert stage.met == set()
        await stage.replica.stop()

    together(work)


def test_a_host_tells_how_many_addresses_it_could_give_before_it_claims(tmp_path: Path) -> None:
    """A runtime asks that before its first container; of a full pool, or a store that lost records, there are none."""

    async def work() -> None:
        stage = Stage(tmp_path)
        await stage.start()
        before = stage.blocks.free("one")
        stage.replica.lost.add("networks/lost")
        assert stage.blocks.free("one") == 0
        stage.replica.lost.clear()
        await stage.come(1)
        assert stage.blocks.free("one") == before - 1
        every = {block_key("two", f"10.2.{number}.0/24"): BlockRecord("h2", 0.0) for number in range(256)}
        for start in range(0, 256, 64):
            await stage.replica.write(dict(list(every.items())[start : start + 64]))
        assert stage.blocks.free("two") == 0
        with pytest.raises(Exhausted):
            await stage.come(2)
        assert "two" not in stage.claims.refused
        await eventually(lambda: "two" not in stage.leased, "nothing is claimed")
        await stage.replica.stop()

    together(work)


def test_unfinished_work_leaves_the_peers_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that is not in force is tried again and again; once it is in force, its peers follow."""
    monkeypatch.setattr(membership, "AGAIN", 0.02)
    one_link(monkeypatch)

    async def work() -> None:
        stage = Stage(tmp_path)
        await stage.start()
        await stage.come(1)
        routes = {prefix("10.12.0.0/24"): "dev eth9"}
        stage.machine.own = routes
        pools = {"pools": ("10.2.0.0/16", "10.12.0.0/16"), "gateways": ("10.2.0.1", "10.12.0.1")}
        await stage.replica.write({"networks/two": msgspec.structs.replace(NETWORKS[1], **pools)})
        await stage.replica.write({"settings/hosts": Common(settings={"networks": "all"})})
        await stage.membership.converge({""})
        assert "two" in stage.networks.withheld
        following = asyncio.create_task(stage.membership._follow())
        begun = stage.planned
        await eventually(lambda: stage.planned > begun + 3, "the leases that it claimed are followed")
        stage.kernel.batches.clear()
        begun = stage.planned
        await eventually(lambda: stage.planned > begun + 3, "it is tried again")
        assert stage.kernel.batches == []
        routes.clear()
        await eventually(lambda: not stage.networks.withheld, "the route is not in the way any more")
        await eventually(lambda: stage.kernel.batches, "the peers follow")
        following.cancel()
        await stage.replica.stop()

    together(work)
