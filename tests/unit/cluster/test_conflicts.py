"""Two owners after a restore: the earlier claim wins, the loser is named and frozen, and it can be settled."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest

from linkspan.cluster import conflicts
from linkspan.cluster.blocks import earlier
from linkspan.core.addresses import prefix
from linkspan.core.errors import Conflict, Exhausted
from linkspan.core.model import Lease, Network
from linkspan.store.memory import Memory
from linkspan.store.records import AddressRecord, BlockRecord, block_key
from support.polling import eventually
from support.records import replicas
from support.records.replicas import Member, together

network = functools.partial(replicas.network, backend="ipip")
BLOCK = prefix("10.244.0.0/24")
Backup = tuple[int, Mapping[str, tuple[bytes | None, int]]]


def _backup(memory: Memory) -> Backup:
    return memory.revision, dict(memory.entries)


async def _two_owners(memory: Memory, folder: Path, net: Network) -> tuple[Member, Member]:
    """Let h1 claim the block and attach c1; restore; let h2 claim it and attach c2; bring h1 back."""
    one, two = Member(memory, folder, "h1"), Member(memory, folder, "h2")
    await one.start()
    await one.networks.create(net)
    backup = _backup(memory)
    await one.converge(net)
    await one.attach(net, "c1")
    await eventually(lambda: not one.endpoint_records.due, "c1 is told to all")
    await one.stop()
    memory.restore(*backup)
    await two.start()
    await two.converge(net)
    await two.attach(net, "c2", "10.244.0.77")
    await eventually(lambda: not two.endpoint_records.due, "c2 is told to all")
    again = Member(memory, folder, "h1")
    await again.start()
    again.endpoints.update(one.endpoints)
    again.endpoint_records.start()
    await eventually(lambda: again.replica.settled, "h1 has put back what was lost")
    return again, two


async def _both(one: Member, two: Member, net: Network, owner: str) -> None:
    async def settled() -> bool:
        await one.converge(net)
        await two.converge(net)
        return all(m.leases.blocks("demo").get(BLOCK) == owner for m in (one, two))

    for _ in range(500):
        if await settled():
            break
        await asyncio.sleep(0.01)
    else:
        pytest.fail(f"not all see that {owner} has the block")
    for member in (one, two):
        assert await member.endpoint_records.known(net.name), f"{member.name} knows whose containers are where"
    await two.converge(net)
    await one.converge(net)


def test_the_earlier_claim_wins_and_the_loser_is_named_and_frozen(tmp_path: Path) -> None:
    """h1 claimed first, and has the block; h2 gives nothing from it, keeps c2, and both say so with both names."""

    async def work() -> None:
        memory, net = Memory(), network(pool="10.244.0.0/24")
        one, two = await _two_owners(memory, tmp_path, net)
        await _both(one, two, net, "h1")
        assert list(two.leases.frozen("demo")) == [BLOCK]
        with pytest.raises(Exhausted):
            await two.attach(net, "c3")
        with pytest.raises(Conflict, match=r"block 10\.244\.0\.0/24, which is host h1's by an earlier claim"):
            await two.attach(net, "c3", "10.244.0.80")
        assert two.endpoints["c2", "eth0"].addresses == ("10.244.0.77/32",)
        for member in (one, two):
            (told,) = [member.conflicts.told(dispute) for dispute in member.conflicts.open()]
            assert (told["winner"], told["loser"], told["containers"]) == ("h1", "h2", ["c2"])
            assert "host h1" in str(told["why"])
            assert "detach c2 on host h2" in str(told["fix"])
            assert any("host h2 claims it too" in h.what for h in member.event_log.kept("lease"))
        await asyncio.gather(one.stop(), two.stop())

    together(work)


def test_the_winner_gives_no_address_that_the_loser_s_containers_have(tmp_path: Path) -> None:
    """h1 fills its block: c2's address is never given, and asking for it names c2; others reach c2 by itself."""

    async def work() -> None:
        memory, net = Memory(), network(pool="10.244.0.0/24")
        one, two = await _two_owners(memory, tmp_path, net)
        await _both(one, two, net, "h1")
        assert one.conflicts.astray(net, "h2") == {prefix("10.244.0.77")}
        with pytest.raises(Conflict, match=r"10\.244\.0\.77 is in use by c2 on host h2"):
            await one.attach(net, "x", "10.244.0.77")
        given = {await one.attach(net, f"x{number}") for number in range(one.blocks.free("demo"))}
        assert len(given) > 240
        assert "10.244.0.77" not in given
        with pytest.raises(Exhausted):
            await one.attach(net, "more")
        await asyncio.gather(one.stop(), two.stop())

    together(work)


def test_a_dispute_ends_with_the_loser_s_last_container(tmp_path: Path) -> None:
    """c2 is detached: h2 releases the block, stops reporting it, and its next container is in another block."""

    async def work() -> None:
        memory, net = Memory(), network(pool="10.244.0.0/23")
        one, two = await _two_owners(memory, tmp_path, network(pool="10.244.0.0/24"))
        await two.replica.write({"networks/demo": net})
        await _both(one, two, net, "h1")
        lease = two.leases.mine("demo")
        assert lease is not None
        assert lease.prefixes == ("10.244.0.0/24", "10.244.1.0/24")
        assert lease.addresses == ("10.244.1.1/32",), "the host's own address is of the block that it kept"
        assert (await two.attach(net, "c3")).startswith("10.244.1.")
        await two.detach(net, "c2")
        await two.converge(net)
        await eventually(lambda: len(one.leases.lost("demo")) == 0, "nothing is in dispute")
        await one.converge(net)
        assert one.conflicts.open() == two.conflicts.open() == []
        assert await one.attach(net, "x", "10.244.0.77") == "10.244.0.77"
        await asyncio.gather(one.stop(), two.stop())

    together(work)


def test_when_the_winner_is_removed_the_loser_has_its_block_again(tmp_path: Path) -> None:
    """The operator may decide for the loser with `host remove` of the other one; then nothing is frozen."""

    async def work() -> None:
        memory, net = Memory(), network(pool="10.244.0.0/24")
        one, two = await _two_owners(memory, tmp_path, net)
        await _both(one, two, net, "h1")
        await two.leases.remove_host("h1")
        await two.converge(net)
        assert two.leases.blocks("demo") == {BLOCK: "h2"}
        await two.converge(net)
        assert two.leases.frozen("demo") == {}
        await two.attach(net, "c3")
        await asyncio.gather(one.stop(), two.stop())

    together(work)


def test_a_removal_is_no_dispute(tmp_path: Path) -> None:
    """A host that was removed while it was away does not take its block back from the one that has it now."""

    async def work() -> None:
        memory, net = Memory(), network(pool="10.244.0.0/24")
        one, two = Member(memory, tmp_path, "h1"), Member(memory, tmp_path, "h2")
        await one.start()
        await one.networks.create(net)
        await one.converge(net)
        await one.stop()
        await two.start()
        await two.leases.remove_host("h1")
        await two.converge(net)
        again = Member(memory, tmp_path, "h1")
        await again.start()
        assert again.leases.mine("demo") is None
        await again.conflicts.settle(net)
        assert again.leases.blocks("demo") == {BLOCK: "h2"}
        await asyncio.gather(again.stop(), two.stop())

    together(work)


def test_an_exact_address_that_two_hosts_hold_is_the_earlier_one_s(tmp_path: Path) -> None:
    """Lost by a restore and taken by h2, it is h1's again when h1 is back; both know whose container must go."""

    async def work() -> None:
        memory, net, wanted = Memory(), network(ipam="exact"), "10.244.9.9"
        one, two = Member(memory, tmp_path, "h1"), Member(memory, tmp_path, "h2")
        await one.start()
        await one.networks.create(net)
        backup = _backup(memory)
        await one.converge(net)
        await one.attach(net, "c1", wanted)
        await one.stop()
        memory.restore(*backup)
        await two.start()
        await two.converge(net)
        await two.attach(net, "c2", wanted)
        await eventually(lambda: not two.endpoint_records.due, "c2 is told to all")
        again = Member(memory, tmp_path, "h1")
        again.holds(net, "c1", f"{wanted}/32")
        await again.start()
        key = prefix(wanted)
        await eventually(lambda: two.leases.exact("demo").all[key].host == "h1", "h1 has it again")
        await eventually(two.exact_addresses.open, "h2 knows that it lost")
        (lost,), (won,) = two.exact_addresses.open(), again.exact_addresses.open()
        assert (lost.winner, lost.loser) == (won.winner, won.loser) == ("h1", "h2")
        assert won.containers == ("c2",)
        await two.detach(net, "c2")
        await eventually(lambda: not again.exact_addresses.open(), "it is settled when c2 is gone")
        assert two.leases.exact("demo").all[key].host == "h1", "h2's release does not free h1's address"
        await asyncio.gather(again.stop(), two.stop())

    together(work)


def test_a_block_that_was_shared_first_is_shared_again(tmp_path: Path) -> None:
    """h1 holds an exact address of a block that h2 claims after a restore: nobody owns the block, and both continue."""

    async def work() -> None:
        memory, net = Memory(), network(pool="10.244.0.0/24")
        one, two = Member(memory, tmp_path, "h1"), Member(memory, tmp_path, "h2")
        await one.start()
        await one.networks.create(net)
        backup = _backup(memory)
        await one.leases.take(net, prefix("10.244.0.9"), "c1", "eth0")
        await one.stop()
        memory.restore(*backup)
        await two.start()
        await two.converge(net)
        again = Member(memory, tmp_path, "h1")
        again.holds(net, "c1", "10.244.0.9/32")
        await again.start()
        await again.replica.write(
            {"leases/demo/h1": b'{"network":"demo","host":"h1"}'}
        )  # as any host of it has
        await eventually(
            lambda: two.leases.blocks("demo").get(BLOCK) == "shared", "the block is shared again"
        )
        await two.converge(net)
        lease = two.leases.mine("demo")
        assert lease is not None
        assert lease.prefixes == (), "h2 had no container in it, and has let it go"
        await asyncio.gather(again.stop(), two.stop())

    together(work)


@pytest.mark.parametrize("skew", [-86400.0, 0.0, 86400.0])
def test_no_clock_decides_between_a_lost_claim_and_one_made_after(skew: float) -> None:
    """The claim that the store had lost is the earlier one, whatever the claims' times; a decision stays."""
    mine, found = BlockRecord("h1", 1000.0), BlockRecord("h2", 1000.0 + skew)
    assert earlier(mine, found, "h1")
    assert earlier(None, found, "h1")
    assert not earlier(mine, BlockRecord("h2", 1000.0 + skew, over="h1"), "h1")


def test_of_two_claims_that_were_both_lost_the_times_decide() -> None:
    """A store that was restored twice: both were put back, and the older one wins on both sides."""
    old, new = (
        AddressRecord("h1", "c", "eth0", 1.0, back=True),
        AddressRecord("h2", "c", "eth0", 2.0, back=True),
    )
    assert earlier(old, new, "h1")
    assert not earlier(new, old, "h2")
    assert not earlier(None, new, "h1"), "who does not know when it was gives way"


def test_a_clock_that_was_set_back_makes_no_claim_older_than_those_that_are_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A claim's time is never before that of a block in the store."""

    async def work() -> None:
        memory, net = Memory(), network(pool="10.244.0.0/23")
        one, two = Member(memory, tmp_path, "h1"), Member(memory, tmp_path, "h2")
        await asyncio.gather(one.start(), two.start())
        await one.networks.create(net)
        await one.converge(net)
        await eventually(lambda: two.leases.all("demo"), "h2 sees h1's lease")
        monkeypatch.setattr(time, "time", lambda: 1.0)
        await two.converge(net)
        times = {r.owner: r.at for r in two.replica.read("blocks/", BlockRecord).values()}
        assert times["h2"] > times["h1"]
        await asyncio.gather(one.stop(), two.stop())

    together(work)


def _hostile(lease: Lease | None, *blocks: str) -> Lease:
    """Return the lease with other blocks, as somebody else writes it."""
    assert lease is not None
    return msgspec.structs.replace(lease, prefixes=blocks)


def test_a_host_claims_no_prefix_of_its_lease_that_is_no_block(tmp_path: Path) -> None:
    """Somebody added prefixes of other lengths, families and pools, and the host has lost its state folder.

    It claims the free block only.
    """

    async def work() -> None:
        memory, net = Memory(), network()
        one, other = Member(memory, tmp_path, "h1"), Member(memory, tmp_path, "h2")
        await asyncio.gather(one.start(), other.start())
        await one.networks.create(net)
        await one.converge(net)
        (mine,) = one.leases.blocks("demo")
        added = ("::/0", "fd00::/64", "0.0.0.0/0", "10.0.0.0/8", "10.244.9.0/25", "10.99.0.0/24", "10.244.7.0/24")
        hostile = _hostile(one.leases.mine("demo"), str(mine), *added)
        await one.stop()
        await other.replica.write({"leases/demo/h1": hostile})
        again = Member(memory, _folder(tmp_path), "h1")
        await again.start()
        await again.converge(net)
        assert again.leases.blocks("demo") == {mine: "h1", prefix("10.244.7.0/24"): "h1"}
        await asyncio.gather(again.stop(), other.stop())

    together(work)


def _folder(path: Path) -> Path:
    """Return an empty state folder beside the first one."""
    (path / "new").mkdir()
    return path / "new"


@pytest.mark.parametrize("stopped", [False, True], ids=["running", "stopped"])
def test_a_lease_that_somebody_else_rewrites_is_put_back(tmp_path: Path, stopped: bool) -> None:
    """h2's lease lists h1's block in place of its own: h1 keeps its block, and h2's lease is as it was."""

    async def work() -> None:
        memory, net = Memory(), network()
        one, two = Member(memory, tmp_path, "h1"), Member(memory, tmp_path, "h2")
        await asyncio.gather(one.start(), two.start())
        await one.networks.create(net)
        await one.converge(net)
        await two.converge(net)
        before, owners = two.leases.mine("demo"), two.leases.blocks("demo")
        assert before is not None
        (theirs,) = (block for block, owner in owners.items() if owner == "h1")
        if stopped:
            await two.stop()
        hostile = _hostile(before, str(theirs))
        await one.replica.write({"leases/demo/h2": hostile})
        if stopped:
            two = Member(memory, tmp_path, "h2")
            await two.start()
        await eventually(lambda: two.leases.mine("demo") == hostile, "h2 reads its rewritten lease")
        await two.converge(net)
        assert two.leases.mine("demo") == before
        assert two.leases.blocks("demo") == owners
        assert not two.replica.rewritten
        await asyncio.gather(one.stop(), two.stop())

    together(work)


def test_a_block_of_a_rewritten_lease_that_names_its_host_stays_in_it(tmp_path: Path) -> None:
    """h1 was killed before it had its second block on disk: with its old state folder it keeps both."""

    async def work() -> None:
        memory, net = Memory(), network()
        one = Member(memory, tmp_path, "h1")
        await one.start()
        await one.networks.create(net)
        await one.converge(net)
        await one.stop()
        old = (tmp_path / "h1.json").read_bytes()
        again = Member(memory, tmp_path, "h1")
        await again.start()
        await again.leases.grow(net, 4, again.leases.blocks("demo"))
        both = again.leases.mine("demo")
        assert both is not None
        assert len(both.prefixes) == 2
        await again.stop()
        (tmp_path / "h1.json").write_bytes(old)
        third = Member(memory, tmp_path, "h1")
        await third.start()
        await third.converge(net)
        assert third.leases.mine("demo") == both
        assert not third.replica.rewritten
        await third.stop()

    together(work)


def test_a_second_family_that_an_old_state_folder_does_not_have_keeps_its_address(tmp_path: Path) -> None:
    """h1 was killed before it had its block of IPv6 on disk: its own address of IPv6 is not taken for a forgery."""

    async def work() -> None:
        memory, net = Memory(), network()
        one = Member(memory, tmp_path, "h1")
        await one.start()
        await one.networks.create(net)
        await one.converge(net)
        await one.stop()
        old = (tmp_path / "h1.json").read_bytes()
        pools, lengths = (*net.pools, "fd00:244::/48"), {**net.subnet_len, "6": 64}
        dual = msgspec.structs.replace(net, pools=pools, subnet_len=lengths, gateways=(*net.gateways, "fd00:244::1"))
        again = Member(memory, tmp_path, "h1")
        await again.start()
        await again.replica.write({"networks/demo": dual})
        await again.converge(dual)
        both = again.leases.mine("demo")
        assert both is not None
        assert both.address(6) is not None
        await again.stop()
        (tmp_path / "h1.json").write_bytes(old)
        third = Member(memory, tmp_path, "h1")
        await third.start()
        await third.converge(dual)
        assert third.leases.mine("demo") == both
        await third.stop()

    together(work)


def test_an_old_state_folder_takes_no_block_back_that_was_released(tmp_path: Path) -> None:
    """h1's machine is set back to a time when it had the block that h2 has now: h2 keeps it, and h1 its new one."""

    async def work() -> None:
        memory, net = Memory(), network()
        one, two = Member(memory, tmp_path, "h1"), Member(memory, tmp_path, "h2")
        await one.start()
        await one.networks.create(net)
        await one.converge(net)
        (block,) = one.leases.blocks("demo")
        await one.stop()
        old = (tmp_path / "h1.json").read_bytes()
        again = Member(memory, tmp_path, "h1")
        await asyncio.gather(again.start(), two.start())
        await again.leases.delete(again.leases.held("h1"))
        theirs = Lease(network="demo", host="h2", prefixes=(str(block),), addresses=(f"{block.at(1).address}/32",))
        taken = {f"blocks/demo/{block}": BlockRecord("h2", time.time()), "leases/demo/h2": theirs}
        assert await two.replica.write(taken)
        await eventually(lambda: again.leases.blocks("demo").get(block) == "h2", "h1 sees that h2 has it")
        await again.converge(net)
        after, owners = again.leases.mine("demo"), again.leases.blocks("demo")
        assert len(owners) == 2
        await again.stop()
        (tmp_path / "h1.json").write_bytes(old)
        third = Member(memory, tmp_path, "h1")
        await third.start()
        await third.converge(net)
        assert third.leases.blocks("demo") == owners
        assert third.leases.mine("demo") == after
        await asyncio.gather(third.stop(), two.stop())

    together(work)


def test_a_lease_alone_takes_no_block_of_another_host(tmp_path: Path) -> None:
    """h2 has lost its state folder, and its lease lists h1's block: h1 keeps it, and h2's lease drops it."""

    async def work() -> None:
        memory, net = Memory(), network()
        one, two = Member(memory, tmp_path, "h1"), Member(memory, _folder(tmp_path), "h2")
        await one.start()
        await one.networks.create(net)
        await one.converge(net)
        (block,) = one.leases.blocks("demo")
        await one.replica.write({"leases/demo/h2": Lease(network="demo", host="h2", prefixes=(str(block),))})
        await two.start()
        await two.converge(net)
        assert two.leases.blocks("demo")[block] == "h1"
        mine = two.leases.mine("demo")
        assert mine is not None
        assert str(block) not in mine.prefixes
        await asyncio.gather(one.stop(), two.stop())

    together(work)


def test_a_block_that_the_lease_no_longer_lists_is_released(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else made this host claim three and rewrote its lease: after a time it keeps only what is used.

    An attach that got an address before that keeps its block.
    """

    async def work() -> None:
        memory, net, at = Memory(), network(), 1000.0
        monkeypatch.setattr(conflicts, "now", lambda: at)
        one, other = Member(memory, tmp_path, "h1"), Member(memory, tmp_path, "h2")
        await asyncio.gather(one.start(), other.start())
        await one.networks.create(net)
        await one.converge(net)
        (mine,) = one.leases.blocks("demo")
        three = ("10.244.7.0/24", "10.244.8.0/24", "10.244.9.0/24")
        stray = {block_key("demo", block): BlockRecord("h1", 5.0) for block in ("::/0", *three)}
        await other.replica.write(stray)
        one.holds(net, "c1", "10.244.8.5/32")
        await eventually(lambda: len(one.leases.blocks("demo")) == 5, "h1 reads its new blocks")
        await one.converge(net)
        assert len(one.leases.blocks("demo")) == 5, "an attach may be about to use one of them"
        assert one.conflicts.pending
        listed = _hostile(one.leases.mine("demo"), str(mine), three[0])
        await other.replica.write({"leases/demo/h1": listed})
        await eventually(lambda: one.leases.mine("demo") == listed, "h1 reads its lease")
        at += conflicts.UNLISTED
        await one.converge(net)
        left = {mine: "h1", prefix(three[0]): "h1", prefix(three[1]): "h1"}
        assert one.leases.blocks("demo") == left
        assert not one.conflicts.pending
        await eventually(lambda: other.leases.blocks("demo") == left, "the other host sees that they are free")
        assert other.replica.settled, "they were released, not lost"
        await asyncio.gather(one.stop(), other.stop())

    together(work)
