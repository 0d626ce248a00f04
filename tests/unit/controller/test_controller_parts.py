"""Parts of the controller: what it reads from the store, the election, and its settings."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from linkspan.backends.sdn.backend import BACKEND
from linkspan.controller import settings
from linkspan.controller.election import KEY, Election
from linkspan.controller.holders import holders
from linkspan.core import config
from linkspan.core.addresses import prefix
from linkspan.core.errors import Invalid
from linkspan.core.model import Host, Lease, Offer, Underlay
from linkspan.core.states.openflow import Claim
from linkspan.core.store_contract import LIFE
from linkspan.runtimes import systemd
from linkspan.store.absence import ABSENCE
from linkspan.store.memory import Memory
from linkspan.store.records import BlockRecord, block_key, lease_key
from support.polling import eventually
from support.records.replicas import Member, network, together
from support.virtual_time import in_virtual_time

DEMO = BACKEND.completed(network(backend="sdn"), ())


def _host(number: int, mac: str | None = None) -> Host:
    text = f"06:00:00:00:00:0{number}" if mac is None else mac
    return Host(id=f"id{number}", name=f"h{number}", underlay=Underlay("eth0", (f"192.0.2.{number}/24",), mac=text))


def _lease(number: int, *blocks: str) -> Lease:
    return Lease(network="demo", host=f"id{number}", prefixes=blocks, endpoints={"sdn": Offer()})


async def _written(member: Member, *records: tuple[str, object]) -> None:
    """Write them, and for each lease that its blocks are its host's."""
    await member.replica.start()
    values = {key: msgspec.json.encode(value) for key, value in records}
    for lease in (value for _, value in records if isinstance(value, Lease)):
        for block in lease.prefixes:
            values[block_key("demo", block)] = msgspec.json.encode(BlockRecord(lease.host, 1.0))
    await member.replica.write({"networks/demo": DEMO, **values})
    member.networks.refresh()


def test_each_prefix_has_its_host_and_each_host_its_mac(tmp_path: Path) -> None:
    """Of leases that offer to receive by the switches; others are not programmed yet."""

    async def work() -> None:
        member = Member(Memory(), tmp_path, "ctl")
        late = msgspec.structs.replace(_lease(3, "10.244.3.0/24"), endpoints={"vxlan": Offer()})
        await _written(
            member,
            *((f"hosts/id{n}", _host(n)) for n in (1, 2, 3)),
            (lease_key("demo", "id1"), _lease(1, "10.244.1.0/24")),
            (lease_key("demo", "id2"), _lease(2, "10.244.2.0/24")),
            (lease_key("demo", "id3"), late),
        )
        found = holders(member.networks, member.allowances.all(), member.hosts.all(), member.leases)
        assert found.problems == ()
        assert found.held.claims == (
            Claim("demo", prefix("10.244.1.0/24"), "id1"), Claim("demo", prefix("10.244.2.0/24"), "id2"),
        )  # fmt: skip
        assert dict(found.held.macs) == {"id1": "06:00:00:00:00:01", "id2": "06:00:00:00:00:02"}
        (served,) = found.held.networks
        assert served.closed
        await member.replica.stop()

    together(work)


def test_of_two_that_claim_a_prefix_the_owner_of_the_block_has_it(tmp_path: Path) -> None:
    """If no record names its owner, neither has it, and both are named."""

    async def work() -> None:
        member = Member(Memory(), tmp_path, "ctl")
        block = "10.244.1.0/24"
        await _written(
            member,
            *((f"hosts/id{n}", _host(n)) for n in (1, 2)),
            *((lease_key("demo", f"id{n}"), _lease(n, block)) for n in (1, 2)),
        )
        await member.replica.write({}, deletes=[block_key("demo", block)])
        found = holders(member.networks, member.allowances.all(), member.hosts.all(), member.leases)
        assert found.held.claims == ()
        why = f"{block}: no record says that it is its block"
        assert found.problems == tuple(f"lease of host {host} in network demo: {why}" for host in ("h1", "h2"))
        record = msgspec.json.encode(BlockRecord("id2", 1.0))
        await member.replica.write({block_key("demo", block): record})
        found = holders(member.networks, member.allowances.all(), member.hosts.all(), member.leases)
        assert found.held.claims == (Claim("demo", prefix(block), "id2"),)
        assert found.problems == ()
        await member.replica.stop()

    together(work)


def test_a_host_that_does_not_say_its_mac_is_named(tmp_path: Path) -> None:
    """An agent of before this backend has no MAC in its record."""

    async def work() -> None:
        member = Member(Memory(), tmp_path, "ctl")
        lease = (lease_key("demo", "id1"), _lease(1, "10.244.1.0/24"))
        await _written(member, ("hosts/id1", _host(1, mac="")), lease)
        found = holders(member.networks, member.allowances.all(), member.hosts.all(), member.leases)
        assert found.problems == ("host h1 does not announce its underlay's MAC: is its agent older?",)
        assert found.held.macs == ()
        await member.replica.stop()

    together(work)


def test_hosts_with_one_mac_name_each_other(tmp_path: Path) -> None:
    """Each is reported, by names and not by ids."""

    async def work() -> None:
        member = Member(Memory(), tmp_path, "ctl")
        await _written(
            member,
            *((f"hosts/id{n}", _host(n, mac="06:00:00:00:00:09" if n < 3 else None)) for n in (1, 2, 3)),
            *((lease_key("demo", f"id{n}"), _lease(n, f"10.244.{n}.0/24")) for n in (1, 2, 3)),
        )
        found = holders(member.networks, member.allowances.all(), member.hosts.all(), member.leases)
        assert set(found.twins) == {"id1", "id2"}
        assert "06:00:00:00:00:09 is also that of host h2" in found.twins["id1"]
        assert "06:00:00:00:00:09 is also that of host h1" in found.twins["id2"]
        await member.replica.stop()

    together(work)


def test_one_of_two_controllers_is_active_and_the_other_follows(tmp_path: Path) -> None:
    """At once if the first one ends in order."""

    async def work() -> None:
        memory = Memory()
        members = [Member(memory, tmp_path, name) for name in ("a", "b")]
        turned: list[str] = []
        elections = []
        for member in members:
            await member.replica.start()
            one = Election(member.replica, member.name, lambda name=member.name: turned.append(name))  # type: ignore[misc]
            member.told = one.changed
            elections.append(one)
            await one.start()
        first, second = elections
        assert first.active
        await eventually(lambda: second.leader == "a", "b knows who is active")
        assert not second.active
        await first.stop()
        await eventually(lambda: second.active, "b is active")
        assert turned == ["a", "b"]
        assert not first.active
        await second.stop()
        assert await members[1].store.get(KEY) is None
        for member in members:
            await member.replica.stop()

    together(work)


def test_an_active_controller_costs_the_store_nothing_and_is_followed_in_time(tmp_path: Path) -> None:
    """No revision while it is active; where it dies the other takes over, and there are never two."""

    async def work() -> None:
        memory = Memory()
        members = [Member(memory, tmp_path, name) for name in ("a", "b")]
        first, second = [Election(member.replica, member.name, lambda: None) for member in members]
        for member, one in zip(members, (first, second), strict=True):
            await member.replica.start()
            member.told = one.changed
            await one.start()
        revision = memory.revision
        for _ in range(600):
            await asyncio.sleep(0.1)
            assert (first.active, second.active) == (True, False)
        assert memory.revision == revision
        await members[0].store.transaction({}, deletes=[KEY])  # as a leader of etcd does that was frozen
        for _ in range(100):
            await asyncio.sleep(0.05)
            assert (first.active, second.active) == (True, False)
        members[0].store.cut()
        took = 0.0
        while not second.active:
            assert first.active or took > LIFE - 1.5
            await asyncio.sleep(0.05)
            took += 0.05
        assert not first.active
        assert took <= LIFE + ABSENCE + 0.2
        members[0].store.mend()
        await asyncio.sleep(5)
        assert (first.active, second.active) == (False, True)
        for one, member in zip((first, second), members, strict=True):
            await one.stop()
            await member.replica.stop()

    in_virtual_time(work)


def test_a_controller_that_begins_again_is_active_at_once(tmp_path: Path) -> None:
    """It finds its own record, whose lease was the last process's, and takes it over."""

    async def work() -> None:
        memory = Memory()
        members = [Member(memory, tmp_path, "a") for _ in range(2)]
        for member in members:
            await member.replica.start()
        last, one = [Election(member.replica, "a", lambda: None) for member in members]
        await last._stand_once()
        await asyncio.sleep(0.1)
        await one.start()
        assert one.active
        await asyncio.sleep(10)
        assert one.active
        assert await members[1].store.get(KEY)
        await one.stop()
        for member in members:
            await member.replica.stop()

    in_virtual_time(work)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"switches": {"sw1": "unix:/x"}}, "needs the agents' store"),
        ({"store": "sqlite:///x"}, "nothing to control"),
        ({"store": "sqlite:///x", "switches": {"sw1": "192.0.2.1"}}, "address '192.0.2.1' is not understood"),
        ({"store": "sqlite:///x", "switches": {"sw1": "unix:/x", "s w": "unix:/x"}}, "is not a name"),
        ({"colour": "red"}, "setting colour does not exist"),
        ({"tls": {"ca_cert": "/ca"}}, "setting tls.ca_cert: the key does not exist"),
        ({"ssh": {"Identity File": "/key"}}, "setting ssh.Identity File: the key does not exist"),
        ({"ssh": {"Port": 22}}, "setting ssh.Port: expected text, got 22"),
        ({"switches": {"sw1": "ssl:192.0.2.1"}, "tls": {"ca-cert": "/ca"}},
         r"switch sw1: .* needs private-key, certificate, ca-cert in \[tls\]; private-key, certificate are missing"),
    ],
)
def test_settings_that_mean_nothing_are_refused(tmp_path: Path, values: dict[str, object], said: str) -> None:
    """Each says which it is."""
    file = tmp_path / "empty.toml"
    file.write_text("")
    with pytest.raises(Invalid, match=said):
        settings.load(str(file), values)


def test_printed_settings_are_read_again(tmp_path: Path) -> None:
    """With their tables."""
    empty, file = tmp_path / "empty.toml", tmp_path / "controller.toml"
    empty.write_text("")
    switches = {"a": "tcp:192.0.2.1:6653", "b": "ssl:[2001:db8::1]:6653", "c": "unix:/run/c.mgmt"}
    tls = {"private-key": "/key", "certificate": "/cert", "ca-cert": "/ca"}
    found = settings.load(str(empty), {"store": "sqlite:///x", "switches": switches, "tls": tls})
    file.write_text(config.as_toml(config.shown(settings.Settings, msgspec.structs.asdict(found))))
    assert settings.load(str(file), {}) == found


def test_the_unit_starts_the_controller() -> None:
    """By an absolute path only."""
    assert "ExecStart=/usr/bin/linkspan controller\n" in systemd.controller_unit("/usr/bin/linkspan")
    with pytest.raises(Invalid):
        systemd.controller_unit("linkspan")
