"""Leases: blocks without a duplicate, exact addresses with one arbiter, removal as a written fact."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from linkspan.cluster.blocks import candidates, own_address
from linkspan.core.addresses import prefix
from linkspan.core.errors import Conflict, Exhausted, Unavailable
from linkspan.core.model import Offer
from linkspan.store.memory import Memory
from linkspan.store.records import SHARED
from support.polling import eventually
from support.records.replicas import Member, network, together


def test_hosts_that_start_at_once_get_blocks_without_a_duplicate(tmp_path: Path) -> None:
    """200 hosts claim at the same time: each has one block, and no block has two owners."""

    async def work() -> None:
        memory, net = Memory(), network()
        members = [Member(memory, tmp_path, f"h{n}") for n in range(200)]
        await asyncio.gather(*(m.replica.start() for m in members))
        leases = await asyncio.gather(*(m.leases.claim(net, {"vxlan": Offer()}) for m in members))
        blocks = [lease.prefixes for lease in leases]
        assert all(len(found) == 1 for found in blocks)
        assert len(set(blocks)) == 200
        await asyncio.gather(*(m.replica.stop() for m in members))

    together(work)


def test_a_first_claim_is_one_change_that_says_how_its_host_receives(tmp_path: Path) -> None:
    """No peer ever sees a lease that offers nothing, and would say that its host cannot be reached."""

    async def work() -> None:
        memory, net, offer = Memory(), network(), {"ipip": Offer({"address": "192.0.2.1"})}
        one = Member(memory, tmp_path, "h1")
        await one.replica.start()
        lease = await one.leases.claim(net, offer)
        assert memory.revision == 1
        assert (lease.endpoints, one.leases.mine("demo")) == (offer, lease)
        await one.replica.stop()

    together(work)


def test_a_lease_lists_every_block_that_was_claimed_at_once(tmp_path: Path) -> None:
    """Containers that come together ask for one block more, while the host offers a way: nothing is overwritten."""

    async def work() -> None:
        memory, net = Memory(), network()
        one = Member(memory, tmp_path, "h1")
        await one.replica.start()
        first = set((await one.leases.claim(net, {})).blocks)
        offer = Offer({"address": "192.0.2.1"})
        grown = [one.leases.grow(net, 4, first) for _ in range(3)]
        await asyncio.gather(*grown, one.leases.claim(net, {"ipip": offer}), one.leases.grow(net, 4, first))
        lease = one.leases.mine("demo")
        assert lease is not None
        assert set(lease.blocks) == one.leases.blocks("demo").keys()
        assert len(lease.blocks) == 2, "one is enough for all"
        assert lease.endpoints == {"ipip": offer}
        await one.replica.stop()

    together(work)


def test_a_pool_too_small_is_an_error_on_the_host_that_got_none(tmp_path: Path) -> None:
    """With two blocks for three hosts, one gets an error, and the others keep their blocks."""

    async def work() -> None:
        memory, net = Memory(), network(pool="10.244.0.0/23")
        members = [Member(memory, tmp_path, f"h{n}") for n in range(3)]
        await asyncio.gather(*(m.replica.start() for m in members))
        for member in members[:2]:
            await member.leases.claim(net, {})
        with pytest.raises(Exhausted, match="no /24 block is left for host h2"):
            await members[2].leases.claim(net, {})
        assert len(members[0].leases.all("demo")) == 2
        await asyncio.gather(*(m.replica.stop() for m in members))

    together(work)


def test_the_own_address_is_neither_the_gateway_nor_the_block_s_first() -> None:
    """The block with the pool's gateway gives its third address, any other its second."""
    pool = prefix("10.244.0.0/16")
    assert own_address(pool, prefix("10.244.0.0/24")) == prefix("10.244.0.2")
    assert own_address(pool, prefix("10.244.7.0/24")) == prefix("10.244.7.1")


def test_candidates_are_every_free_block_once() -> None:
    """All blocks come, each once, without those taken, whatever the host's id."""
    pool = prefix("10.244.0.0/22")
    found = list(candidates(pool, 24, "h1", {prefix("10.244.1.0/24")}))
    assert sorted(map(str, found)) == ["10.244.0.0/24", "10.244.2.0/24", "10.244.3.0/24"]


def test_an_exact_address_has_one_holder(tmp_path: Path) -> None:
    """Two hosts that ask for one address at the same time: one gets it, the other learns of a holder."""

    async def work() -> None:
        memory, net = Memory(), network(ipam="exact")
        one, two = Member(memory, tmp_path, "h1"), Member(memory, tmp_path, "h2")
        await asyncio.gather(one.replica.start(), two.replica.start())
        wanted = prefix("10.244.9.9")
        answers = await asyncio.gather(
            one.leases.take(net, wanted, "c1", "eth0"),
            two.leases.take(net, wanted, "c2", "eth0"),
            return_exceptions=True,
        )
        assert {type(answer) for answer in answers} == {type(None), Conflict}
        await eventually(
            lambda: one.leases.blocks("demo") == {prefix("10.244.9.0/24"): SHARED}, "block is shared"
        )
        await asyncio.gather(one.replica.stop(), two.replica.stop())

    together(work)


def test_an_exact_address_in_another_host_s_block_is_refused_with_its_name(tmp_path: Path) -> None:
    """A host can never take an address of a block that another host owns."""

    async def work() -> None:
        memory, net = Memory(), network()
        one, two = Member(memory, tmp_path, "h1"), Member(memory, tmp_path, "h2")
        await asyncio.gather(one.replica.start(), two.replica.start())
        lease = await one.leases.claim(net, {})
        await eventually(lambda: two.leases.all("demo"), "h2 sees the lease")
        with pytest.raises(Conflict, match="of host h1"):
            await two.leases.take(net, lease.blocks[0].at(9).single(), "c", "eth0")
        await asyncio.gather(one.replica.stop(), two.replica.stop())

    together(work)


def test_a_shared_block_is_never_owned(tmp_path: Path) -> None:
    """A host can no longer claim a block from which an exact address was given."""

    async def work() -> None:
        memory, net = Memory(), network(pool="10.244.0.0/24")
        one = Member(memory, tmp_path, "h1")
        await one.replica.start()
        await one.leases.take(net, prefix("10.244.0.9"), "c", "eth0")
        with pytest.raises(Exhausted):
            await one.leases.claim(net, {})
        await one.replica.stop()

    together(work)


def test_a_released_address_may_be_taken_by_another_host(tmp_path: Path) -> None:
    """give_back leaves a record that says so, and the next host takes it over."""

    async def work() -> None:
        memory, net = Memory(), network(ipam="exact")
        one, two = Member(memory, tmp_path, "h1"), Member(memory, tmp_path, "h2")
        await asyncio.gather(one.replica.start(), two.replica.start())
        wanted = prefix("10.244.9.9")
        await one.leases.take(net, wanted, "c1", "eth0")
        await eventually(lambda: wanted in two.leases.exact("demo").all, "h2 sees the holder")
        with pytest.raises(Conflict, match="in use by c1 on host h1"):
            await two.leases.take(net, wanted, "c2", "eth0")
        await one.leases.give_back("demo", wanted)
        await two.leases.take(net, wanted, "c2", "eth0")
        assert two.leases.exact("demo").all[wanted].host == "h2"
        await asyncio.gather(one.replica.stop(), two.replica.stop())

    together(work)


def test_an_identity_outlasts_the_release_of_its_address(tmp_path: Path) -> None:
    """A container that was detached, and comes on another host with its identity, finds the address at once."""

    async def work() -> None:
        memory, net = Memory(), network(ipam="exact")
        one, two = Member(memory, tmp_path, "h1"), Member(memory, tmp_path, "h2")
        await asyncio.gather(one.replica.start(), two.replica.start())
        wanted = prefix("10.244.9.9")
        await one.leases.take(net, wanted, "c1", "eth0", "web-0")
        await one.leases.give_back("demo", wanted)
        await eventually(lambda: wanted in two.leases.exact("demo").all, "h2 sees the address")
        assert two.leases.exact("demo").all[wanted].identity == "web-0"
        await asyncio.gather(one.replica.stop(), two.replica.stop())

    together(work)


def test_a_removed_host_s_blocks_are_free_and_it_stays_away(tmp_path: Path) -> None:
    """`host remove` writes tombstones: others may claim the block, and the host knows that it was removed."""

    async def work() -> None:
        memory, net = Memory(), network(pool="10.244.0.0/24")
        one, two = Member(memory, tmp_path, "h1"), Member(memory, tmp_path, "h2")
        await asyncio.gather(one.replica.start(), two.replica.start())
        await one.replica.write({"hosts/h1": b'{"id":"h1","name":"h1"}'})
        await one.leases.claim(net, {})
        await eventually(lambda: two.leases.all("demo"), "h2 sees the lease")
        await two.leases.remove_host("h1")
        await eventually(one.hosts.removed, "h1 learns of it")
        assert not one.leases.all("demo")
        assert (await two.leases.claim(net, {})).prefixes == ("10.244.0.0/24",)
        await asyncio.gather(one.replica.stop(), two.replica.stop())

    together(work)


def test_nothing_new_is_claimed_while_the_store_misses_records(tmp_path: Path) -> None:
    """An emptied store: records stay known, their owners put them back, and no claim is made until then."""

    async def work() -> None:
        memory, net = Memory(), network()
        one, two = Member(memory, tmp_path, "h1"), Member(memory, tmp_path, "h2")
        await asyncio.gather(one.join(), two.join())
        await one.leases.claim(net, {})
        await eventually(lambda: two.leases.all("demo"), "h2 sees the lease")
        await one.replica.stop()
        for key in [key for key in memory.entries if not key.startswith("gone/")]:
            await two.store.transaction({}, deletes=[key])
        await eventually(lambda: two.replica.lost, "h2 misses h1's records")
        assert two.leases.all("demo")
        with pytest.raises(Unavailable, match="lost"):
            await two.leases.claim(net, {})
        again = Member(memory, tmp_path, "h1")
        await again.join()
        await eventually(lambda: two.replica.settled, "h1 has put its records back")
        assert again.leases.mine("demo") is not None
        await two.leases.claim(net, {})
        await asyncio.gather(again.replica.stop(), two.replica.stop())

    together(work)


def test_a_host_serves_what_it_knows_while_the_store_is_away(tmp_path: Path) -> None:
    """An agent that starts without the store has the records of its snapshot, and reports the problem."""

    async def work() -> None:
        memory, net = Memory(), network()
        one = Member(memory, tmp_path, "h1")
        await one.replica.start()
        await one.leases.claim(net, {})
        await one.replica.stop()
        again = Member(memory, tmp_path, "h1")
        again.store.cut()
        await again.replica.start()
        assert again.leases.mine("demo") is not None
        assert not again.replica.settled
        again.store.mend()
        await eventually(lambda: again.replica.settled, "the store answers again")
        await again.replica.stop()

    together(work)
