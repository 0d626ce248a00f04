"""reclaim_after: a silent host stops in time by its own clock, and only then others have what it held."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from linkspan.cluster import liveness
from linkspan.cluster.liveness import Liveness
from linkspan.core.addresses import prefix
from linkspan.core.errors import Conflict, Exhausted
from linkspan.core.model import Host
from linkspan.kernel.io import durable_files
from linkspan.store.memory import Memory
from linkspan.store.replica import Replica
from support.polling import eventually
from support.records.replicas import Member, network, together

GAP, PROMISE = 7.0, 60.0


class Clock:
    """The clock that nobody sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(liveness, "now", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Give the clock that the module under test reads."""
    return Clock(monkeypatch)


def _liveness(folder: Path, promise: Callable[[str], float] = lambda _host: PROMISE) -> Liveness:
    return Liveness(folder, GAP, promise)


def test_a_silent_host_stops_at_half_and_withdraws_at_the_end(tmp_path: Path, clock: Clock) -> None:
    """Counted from its last heartbeat; the next heartbeat makes it alive again."""
    one = _liveness(tmp_path)
    one.spoke("h1", clock.now)
    clock.now += PROMISE / 2 - 1
    assert (one.stalled("h1"), one.withdrawn("h1")) == ("", False)
    clock.now += 1
    assert "has not reached the store for 30 s" in one.stalled("h1")
    assert not one.withdrawn("h1")
    clock.now += PROMISE / 2
    assert one.withdrawn("h1")
    one.spoke("h1", clock.now)
    assert (one.stalled("h1"), one.withdrawn("h1")) == ("", False)


def test_a_silence_that_is_over_counts_for_what_began_before_its_end(tmp_path: Path, clock: Clock) -> None:
    """An attach that stood still in it must not use its address: others may have reclaimed the block."""
    one = _liveness(tmp_path)
    one.spoke("h1", clock.now)
    clock.now += 1
    begun = clock.now
    clock.now += PROMISE / 2 - 2
    one.spoke("h1", clock.now)
    assert one.stalled("h1", begun) == ""
    clock.now += PROMISE
    one.spoke("h1", clock.now)
    assert "others may have reclaimed its addresses" in one.stalled("h1", begun)
    assert one.stalled("h1", clock.now) == ""
    assert one.stalled("h1") == ""


def test_without_a_promise_nothing_is_ever_given_up(tmp_path: Path, clock: Clock) -> None:
    """Off by default: a host that is silent for a year holds what it has, for itself and for the others."""
    one = _liveness(tmp_path, lambda _host: 0.0)
    one.heard({"h1", "h2"}, set(), clock.now)
    clock.now += 3e7
    assert (one.stalled("h1"), one.withdrawn("h1"), one.overdue("h2")) == ("", False, False)


def test_the_others_never_count_to_the_end_before_the_silent_host(tmp_path: Path, clock: Clock) -> None:
    """They count from when its record had expired, and again after a time in which they could not look themselves."""
    theirs = _liveness(tmp_path)
    theirs.spoke("h2", clock.now)
    theirs.heard({"h1", "h2"}, {"h2"}, clock.now)
    clock.now += PROMISE - 1
    assert not theirs.overdue("h1")
    clock.now += 1
    assert theirs.overdue("h1")
    assert not theirs.overdue("h2")
    theirs.spoke("h2", clock.now)  # not heard for longer than a record lives: h1 may have spoken meanwhile
    theirs.heard({"h1", "h2"}, {"h2"}, clock.now)
    assert not theirs.overdue("h1")
    for _ in range(int(PROMISE)):
        clock.now += 1
        theirs.spoke("h2", clock.now)
        theirs.heard({"h1", "h2"}, {"h2"}, clock.now)
    assert theirs.overdue("h1")
    theirs.heard({"h1", "h2"}, {"h2"}, clock.now - GAP - 1)
    assert not theirs.overdue("h1"), "a watch that tells nothing tells of no silence"


def test_an_agent_s_restart_does_not_make_its_silence_shorter(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next agent counts on from the last one's word; after a reboot nobody has spoken yet."""
    _liveness(tmp_path).spoke("h1", clock.now)
    clock.now += PROMISE
    assert _liveness(tmp_path).withdrawn("h1")
    clock.now -= PROMISE - 1
    assert not _liveness(tmp_path).withdrawn("h1")
    monkeypatch.setattr(liveness, "boot_id", lambda: "another boot")
    assert _liveness(tmp_path).withdrawn("h1")
    assert durable_files.boot_id() != "another boot"


def test_only_an_overdue_host_s_block_is_reclaimed_and_its_containers_keep_their_addresses(
    tmp_path: Path,
) -> None:
    """h2 gets h1's block when no other is left and h1 is overdue and silent; h1 sees that it lost it."""

    async def work() -> None:
        memory, net = Memory(), network(pool="10.244.0.0/24", backend="ipip")
        overdue: set[str] = set()
        one, two = Member(memory, tmp_path, "h1"), Member(memory, tmp_path, "h2", overdue=overdue.__contains__)
        await asyncio.gather(one.start(), two.start())
        await one.networks.create(net)
        await one.converge(net)
        given = await one.attach(net, "c1")
        await eventually(lambda: "endpoints/h1/c1/eth0" in memory.entries, "the store has c1")
        with pytest.raises(Exhausted):
            await two.leases.claim(net, {})
        overdue.add("h1")
        await one.replica.write({"alive/h1": b"x"})
        with pytest.raises(Exhausted):
            await two.leases.claim(net, {})
        await one.replica.write({}, deletes=["alive/h1"])
        await two.converge(net)
        assert two.leases.blocks("demo") == {prefix("10.244.0.0/24"): "h2"}
        with pytest.raises(Conflict, match="in use by c1 on host h1"):
            await two.attach(net, "c2", given)
        assert await two.attach(net, "c2") != given
        await eventually(lambda: one.leases.frozen("demo"), "h1 knows that it lost the block")
        await one.converge(net)
        assert one.leases.blocks("demo") == {prefix("10.244.0.0/24"): "h2"}, "h1 does not take it back"
        assert one.endpoints["c1", "eth0"].addresses == (f"{given}/32",)
        await asyncio.gather(one.stop(), two.stop())

    together(work)


def test_an_exact_address_of_an_overdue_host_may_be_taken(tmp_path: Path) -> None:
    """So a container with an identity comes back on another host; the first host learns that it lost the address."""

    async def work() -> None:
        memory, net, wanted = Memory(), network(ipam="exact", backend="ipip"), "10.244.9.9"
        overdue: set[str] = set()
        one, two = Member(memory, tmp_path, "h1"), Member(memory, tmp_path, "h2", overdue=overdue.__contains__)
        await asyncio.gather(one.start(), two.start())
        await one.networks.create(net)
        await one.converge(net)
        await one.attach(net, "c1", wanted)
        await eventually(lambda: not one.endpoint_records.due, "c1 is told to all")
        await eventually(lambda: prefix(wanted) in two.leases.exact("demo").all, "h2 knows the address")
        two.networks.refresh()
        with pytest.raises(Conflict):
            await two.attach(net, "c2", wanted)
        overdue.add("h1")
        assert await two.attach(net, "c2", wanted) == wanted
        await eventually(one.exact_addresses.open, "h1 knows that it lost it")
        assert two.leases.exact("demo").all[prefix(wanted)].host == "h2"
        await asyncio.gather(one.stop(), two.stop())

    together(work)


def test_a_host_promises_only_what_is_in_its_record(tmp_path: Path) -> None:
    """A setting that a host has not seen binds nobody: others go by the host's own word."""

    async def work() -> None:
        member = Member(Memory(), tmp_path, "h1")
        await member.start()
        assert isinstance(member.replica, Replica)
        await member.replica.write({"settings/cluster": b'{"reclaim_after": 60}'})
        assert member.replica.settings.reclaim_after == 60
        assert member.hosts.promised("h2") == 0
        await member.replica.write({"hosts/h2": Host(id="h2", name="h2", withdraws=60)})
        assert member.hosts.promised("h2") == 60
        await member.stop()

    together(work)
