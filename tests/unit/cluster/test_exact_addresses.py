"""Exact addresses follow what containers hold, whatever was away when one came or went."""

from __future__ import annotations

import asyncio
import functools
import time
from pathlib import Path

import msgspec
import pytest

from linkspan.cluster.exact_claims import RESTED, ExactClaims, _cool
from linkspan.core.addresses import prefix
from linkspan.core.errors import NotFound
from linkspan.core.model import AttachRequest, Reservation
from linkspan.store import record_form
from linkspan.store.memory import Memory
from linkspan.store.records import AddressRecord
from support.polling import eventually
from support.records import replicas
from support.records.replicas import Member, together

network = functools.partial(replicas.network, backend="ipip")
WANTED = "10.244.9.9"


async def _detached_while_away(folder: Path, memory: Memory) -> Member:
    """Give a host whose container went while the store was cut."""
    net = network(ipam="exact")
    one = Member(memory, folder, "h1")
    await one.start()
    await one.networks.create(net)
    await one.converge(net)
    await one.attach(net, "c1", WANTED)
    one.store.cut()
    await one.detach(net, "c1")
    return one


def test_an_address_released_while_the_store_is_away_is_free_when_it_is_back(tmp_path: Path) -> None:
    """The release is tried until the store takes it; then another host may have the address."""

    async def work() -> None:
        memory, net = Memory(), network(ipam="exact")
        one = await _detached_while_away(tmp_path, memory)
        two = Member(memory, tmp_path, "h2")
        await two.start()
        assert two.leases.exact("demo").all[prefix(WANTED)].host == "h1"
        one.store.mend()
        await eventually(lambda: two.leases.exact("demo").all[prefix(WANTED)].host == "", "it is released", 10)
        await two.leases.take(net, prefix(WANTED), "c2", "eth0")
        await asyncio.gather(one.stop(), two.stop())

    together(work)


def test_it_is_released_also_when_the_agent_was_started_anew_meanwhile(tmp_path: Path) -> None:
    """Nothing was written down: the record says that a container holds it which is not there."""

    async def work() -> None:
        memory = Memory()
        one = await _detached_while_away(tmp_path, memory)
        await one.stop()
        again = Member(memory, tmp_path, "h1")
        again.store.cut()
        await again.start()
        again.store.mend()
        await eventually(lambda: again.leases.exact("demo").all[prefix(WANTED)].host == "", "it is released", 10)
        await again.stop()

    together(work)


def test_an_attach_that_is_under_way_keeps_its_address(tmp_path: Path) -> None:
    """Its record exists before its container does; it is left alone for as long as the attach takes."""

    async def work() -> None:
        memory, net = Memory(), network(ipam="exact")
        one = Member(memory, tmp_path, "h1")
        one.exact_addresses._busy = lambda identity: identity == ("c1", "eth0")
        await one.start()
        await one.networks.create(net)
        await one.leases.take(net, prefix(WANTED), "c1", "eth0")
        await eventually(lambda: one.exact_addresses.due == {f"addresses/demo/{WANTED}"}, "it was looked at")
        assert one.leases.exact("demo").all[prefix(WANTED)].host == "h1"
        await one.stop()

    together(work)


def test_an_address_that_another_host_had_is_given_up_by_its_peer_first(tmp_path: Path) -> None:
    """The container's states would contradict those of the peer; one that no container had is nobody's."""

    async def work() -> None:
        exact, blocks = network(ipam="exact"), network("blocks", "10.9.0.0/16", gateways=("10.9.0.1",))
        one = Member(Memory(), tmp_path, "h1")
        await one.start()
        for each in (exact, blocks):
            await one.networks.create(each)
            await one.converge(each)
        await one.attach(blocks, "c1")
        assert one.given_up == []
        await one.attach(exact, "c1", WANTED)
        assert one.given_up == [prefix(WANTED)]
        await one.stop()

    together(work)


def test_a_host_s_own_address_is_not_released(tmp_path: Path) -> None:
    """The host itself is no container, but has an address in a network of exact ones."""

    async def work() -> None:
        memory, net = Memory(), network(ipam="exact")
        one = Member(memory, tmp_path, "h1")
        await one.start()
        await one.networks.create(net)
        await one.converge(net)
        await eventually(lambda: not one.exact_addresses.due, "all was looked at")
        (own,) = one.leases.exact("demo").all.values()
        assert own.host == "h1"
        await one.stop()

    together(work)


def test_a_release_that_lies_in_the_future_has_cooled() -> None:
    """A clock that was a day ahead does not keep an address away for a day; a second's skew does not count."""
    now = time.time()
    assert not _cool(AddressRecord("", "", "", now), 300)
    assert not _cool(AddressRecord("", "", "", now + 1), 300)
    assert _cool(AddressRecord("", "", "", now - 301), 300)
    assert _cool(AddressRecord("", "", "", now + 86400), 300)


# A network that goes while somebody claims in it


def test_nobody_claims_in_a_network_that_was_deleted(tmp_path: Path) -> None:
    """A host that knows of no deletion yet gets neither a block nor an address, and leaves no record of one."""

    async def work() -> None:
        memory, net = Memory(), network()
        one, two = Member(memory, tmp_path, "h1"), Member(memory, tmp_path, "h2")
        await asyncio.gather(one.start(), two.start())
        await one.networks.create(net)
        await eventually(lambda: "networks/demo" in two.replica.records, "h2 knows the network")
        two.networks.refresh()
        await one.networks.delete("demo")
        for claim in (two.leases.claim(net, {}), two.leases.take(net, prefix(WANTED), "c", "eth0")):
            with pytest.raises(NotFound):
                await claim
        left = [key for key, (value, _) in memory.entries.items() if "/demo" in key and value is not None]
        assert left == ["gone/networks/demo"]
        await asyncio.gather(one.stop(), two.stop())

    together(work)


def test_what_was_claimed_while_a_network_was_deleted_is_given_up(tmp_path: Path) -> None:
    """A claim that the deleting host did not know of is deleted by its host as soon as that knows of the deletion."""

    async def work() -> None:
        memory, net = Memory(), network()
        one, two = Member(memory, tmp_path, "h1"), Member(memory, tmp_path, "h2")
        await asyncio.gather(one.start(), two.start())
        await one.networks.create(net)
        await eventually(lambda: "networks/demo" in two.replica.records, "h2 knows the network")
        await two.converge(net)
        await two.store.transaction({"gone/networks/demo": b'{"by":"h1","at":1}'}, deletes=["networks/demo"])
        await eventually(lambda: "networks/demo" not in two.replica.records, "h2 knows of the deletion")
        two.networks.refresh()
        await two.leases.leave(two.networks.all())
        live = {key for key, (value, _) in memory.entries.items() if value is not None}
        assert not {key for key in live if key.startswith(("leases/", "blocks/"))}
        await asyncio.gather(one.stop(), two.stop())

    together(work)


@pytest.mark.parametrize("words", ["", "x/", "x/demo", "/"])
def test_a_tombstone_of_no_network_costs_no_claim(
    tmp_path: Path, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if the replica had it: no name means all networks elsewhere, and a part of the words is no name."""
    monkeypatch.setattr(record_form, "misplaced", lambda _key: "")

    async def work() -> None:
        memory, net, grave = Memory(), network(), f"gone/networks/{words}"
        one = Member(memory, tmp_path, "h1")
        await one.start()
        await one.networks.create(net)
        await one.converge(net)
        held = one.leases.held("h1")
        assert held
        await one.store.transaction({grave: b'{"by":"h1","at":1}'})
        await eventually(lambda: grave in one.replica.records, "h1 knows the tombstone")
        await one.leases.leave([])
        assert one.leases.held("h1") == held
        await one.stop()

    together(work)


def test_a_network_of_many_hosts_is_deleted_whole(tmp_path: Path) -> None:
    """Its records are more than one transaction takes."""

    async def work() -> None:
        memory, net = Memory(), network()
        members = [Member(memory, tmp_path, f"h{n}") for n in range(150)]
        await asyncio.gather(*(m.replica.start() for m in members))
        await members[0].networks.create(net)
        await eventually(lambda: all("networks/demo" in m.replica.records for m in members), "all know it")
        await asyncio.gather(*(m.leases.claim(net, {}) for m in members))
        await eventually(lambda: len(members[0].leases.all("demo")) == 150, "h0 knows all leases")
        await members[0].networks.delete("demo")
        live = {key for key, (value, _) in memory.entries.items() if value is not None}
        assert not {key for key in live if key.startswith(("leases/", "blocks/", "networks/", "claims/"))}
        await asyncio.gather(*(m.replica.stop() for m in members))

    together(work)


def test_containers_that_come_and_go_leave_few_records(tmp_path: Path) -> None:
    """A large pool gives out again what has rested, and two hosts that do so never take the same address."""

    async def work() -> None:
        memory = Memory()
        of_v6 = {"subnet_len": {"6": 120}, "gateways": ("fd00:1::1",)}
        net = replicas.network(pool="fd00:1::/64", ipam="exact", **of_v6)  # type: ignore[arg-type]
        one, two = Member(memory, tmp_path, "h1"), Member(memory, tmp_path, "h2")
        for member in (one, two):
            await member.join()
            await member.replica.write({"networks/demo": net})
            member.networks.refresh()
        kept = await one.attach(net, "kept")
        for number in range(2 * RESTED):
            await one.attach(net, f"c{number}")
            await one.detach(net, f"c{number}")
        assert len(one.leases.exact("demo").all) <= RESTED + 4
        assert len(one.leases.blocks("demo")) <= 4
        await eventually(lambda: two.leases.exact("demo").all == one.leases.exact("demo").all, "h2 knows them")
        given = await asyncio.gather(
            *(member.attach(net, f"{member.name}-{number}") for number in range(40) for member in (one, two))
        )
        assert len({*given, kept}) == 81
        assert len(one.leases.exact("demo").all) <= RESTED + 8
        for member in (one, two):
            await member.replica.stop()

    together(work)


def test_an_address_that_cools_down_is_not_given_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither is one that was reserved meanwhile, however many there are."""

    async def work() -> None:
        net = network(ipam="exact")
        one = Member(Memory(), tmp_path, "h1")
        await one.join()
        await one.replica.write({"networks/demo": net})
        one.networks.refresh()
        now = time.time()
        for number in range(2 * RESTED):
            at = now if number % 2 else now - 100
            address = f"10.244.{200 + number // 250}.{number % 250 + 2}"
            await one.replica.write({f"addresses/demo/{address}": AddressRecord("", "", "", at)})
        claims = ExactClaims("h1", one.leases, one.reservations, one.conflicts, 60, one.exact_addresses.note)
        request = AttachRequest(id="c", network="demo", ifname="eth0")
        given = (await claims.next(net, 4, request)).address
        assert one.replica.value(f"addresses/demo/{given.address}", AddressRecord) is not None
        assert given.packed[2] in (200, 201, 202)
        assert given.packed[3] % 2 == 0, "the others were released just now"
        reserved = Reservation(network="demo", cidr="10.244.200.0/22")
        await one.replica.write({f"reservations/demo/{reserved.cidr}": reserved})
        given = (await claims.next(net, 4, msgspec.structs.replace(request, id="other"))).address
        assert given.packed[2] not in (200, 201, 202)
        await one.replica.stop()

    together(work)
