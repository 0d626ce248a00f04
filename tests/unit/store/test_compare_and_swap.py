"""Several hosts change a part of one record each, and remove records: nobody undoes what another did."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from linkspan import SCHEMA
from linkspan.cluster import host_settings
from linkspan.core.errors import Conflict, Invalid, LinkspanError, NotFound
from linkspan.core.model import Host, Offer
from linkspan.store.compare_and_swap import revised
from linkspan.store.memory import Memory
from linkspan.store.records import SETTINGS
from support.records.replicas import Member, Raced, network, together


async def _two(memory: Memory, folder: Path) -> tuple[Member, Member]:
    one, two = Member(memory, folder, "h1"), Member(memory, folder, "h2")
    await asyncio.gather(one.replica.start(), two.replica.start())
    await one.replica.write({"hosts/h1": Host(id="h1", name="h1")})
    return one, two


async def _set(member: Member, **settings: str) -> None:
    host = member.hosts.record("h1") or Host(id="h1", name="h1")
    changes = {name.replace("_", "."): value for name, value in settings.items()}
    await host_settings.change(member.replica, member.hosts, host, changes)


def test_settings_that_two_hosts_set_at_once_are_both_in_force(tmp_path: Path) -> None:
    """Of one host, and of all."""

    async def work() -> None:
        one, two = await _two(Memory(), tmp_path)
        await asyncio.gather(_set(one, bgp_as="65001"), _set(two, bgp_med="7"))
        await asyncio.gather(
            host_settings.change_common(one.replica, one.hosts, {"bgp.hold": "30"}),
            host_settings.change_common(two.replica, two.hosts, {"bgp.med": "9"}),
        )
        await one.replica.revision("hosts/h1")
        await one.replica.revision("settings/hosts")
        record = one.hosts.record("h1")
        assert record is not None
        assert record.settings == {"bgp.as": "65001", "bgp.med": "7"}
        assert one.hosts.common() == {"bgp.hold": "30", "bgp.med": "9"}
        await asyncio.gather(one.replica.stop(), two.replica.stop())

    together(work)


def test_settings_of_the_cluster_that_two_hosts_set_at_once_are_both_in_force(tmp_path: Path) -> None:
    """Neither the schema that one sets nor the time after which hosts are reclaimed, that another sets, is lost."""

    async def work() -> None:
        one, two = await _two(Memory(), tmp_path)
        await asyncio.gather(
            host_settings.change_cluster(one.replica, reclaim_after=120.0),
            host_settings.change_cluster(two.replica, writes=SCHEMA),
        )
        await one.replica.revision(SETTINGS)
        assert (one.replica.settings.reclaim_after, one.replica.settings.writes) == (120.0, SCHEMA)
        await asyncio.gather(one.replica.stop(), two.replica.stop())

    together(work)


@pytest.mark.parametrize(
    ("seconds", "why"),
    [(1e300, r"1e\+300 s is too long"), (366 * 86400 + 1, "too long"), (59, "too short"), (-1, "short")],
)
def test_a_time_that_no_host_would_accept_is_refused_with_the_bounds(
    tmp_path: Path, seconds: float, why: str
) -> None:
    """The error says which times may be given, and the earlier one stays."""

    async def work() -> None:
        one, two = await _two(Memory(), tmp_path)
        await host_settings.change_cluster(one.replica, reclaim_after=120.0)
        with pytest.raises(Invalid, match=why) as refused:
            await host_settings.change_cluster(one.replica, reclaim_after=seconds)
        assert "60 to 31622400 seconds (366 days), or 0" in refused.value.hint
        assert one.replica.settings.reclaim_after == 120.0
        await asyncio.gather(one.replica.stop(), two.replica.stop())

    together(work)


def test_a_record_that_readers_would_skip_is_not_written(tmp_path: Path) -> None:
    """A change is checked as its readers check it: they would lose the whole record because of one value."""

    async def work() -> None:
        one, two = await _two(Memory(), tmp_path)
        with pytest.raises(Invalid, match=r"withdraws is 1e\+300 s"):
            await revised(one.replica, "hosts/h1", lambda: Host(id="h1", name="h1", withdraws=1e300))
        await one.replica.revision("hosts/h1")
        assert one.hosts.record("h1") == Host(id="h1", name="h1")
        await asyncio.gather(one.replica.stop(), two.replica.stop())

    together(work)


def test_what_another_host_has_removed_does_not_come_back(tmp_path: Path) -> None:
    """A writer that does not know the removal yet brings back neither the host's record nor its claims."""

    async def work() -> None:
        memory, net = Memory(), network()
        one, two = await _two(memory, tmp_path)
        await one.leases.claim(net, {})
        await two.replica.revision("hosts/h1")
        await two.replica.revision("leases/demo/h1")
        one.replica._tasks[0].cancel()  # its watch
        await two.leases.remove_host("h1")
        with pytest.raises(NotFound, match="hosts/h1"):
            await _set(one, bgp_as="65001")
        with pytest.raises(LinkspanError):
            await one.leases.claim(net, {"vxlan": Offer({"address": "192.0.2.77"})})
        left = {key for key, (value, *_) in memory.entries.items() if value is not None}
        assert not left & {"hosts/h1", "leases/demo/h1"}
        await asyncio.gather(one.replica.stop(), two.replica.stop())

    together(work)


def test_a_record_that_others_change_all_the_while_stays_theirs(tmp_path: Path) -> None:
    """The change is given up, by name."""

    async def work() -> None:
        memory = Memory()
        one = Member(memory, tmp_path, "h1", Raced(memory, {"hosts/h1": b'{"id":"h1","name":"theirs"}'}))
        await one.replica.start()
        with pytest.raises(Conflict, match="others change hosts/h1 all the while"):
            await revised(one.replica, "hosts/h1", lambda: Host(id="h1", name="ours"))
        record = one.hosts.record("h1")
        assert record is not None
        assert record.name == "theirs"
        await one.replica.stop()

    together(work)
