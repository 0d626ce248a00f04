"""Records as values: one that cannot be read is skipped and named, and its last readable version stays in force."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from linkspan.core.model import Host, Lease, Network, Reservation, Underlay
from linkspan.store import record_form
from linkspan.store.memory import Memory
from linkspan.store.records import Tombstone
from linkspan.store.request import MOST_BYTES, Request
from support.polling import eventually
from support.records.replicas import Member, network, together


def test_garbage_is_skipped_named_and_not_missed(tmp_path: Path) -> None:
    """Unreadable records of every kind stop no host; a block with such a record cannot be claimed."""

    async def work() -> None:
        memory, net = Memory(), network(pool="10.244.0.0/23")
        one = Member(memory, tmp_path, "h1")
        keys = ["hosts/x", "leases/demo/x", "blocks/demo/10.244.0.0/24", "blocks/demo/x", "addresses/demo/x"]
        await one.store.transaction(dict.fromkeys(keys, b"\xff{"))
        await one.replica.start()
        assert (await one.leases.claim(net, {})).prefixes == ("10.244.1.0/24",)
        one.hosts.all(), one.leases.all(), one.leases.exact("demo")
        assert one.replica.unreadable == set(keys)
        await one.store.transaction({}, deletes=keys)
        await eventually(lambda: not one.replica.unreadable, "they are gone")
        assert one.replica.settled
        await one.replica.stop()

    together(work)


def test_a_spoilt_record_is_what_it_was_also_after_a_restart(tmp_path: Path) -> None:
    """The last readable version stays in force and the record is reported, until it is written or removed."""

    async def work() -> None:
        memory = Memory()
        one = Member(memory, tmp_path, "h1")
        await one.start()
        await one.replica.write({"networks/demo": network()})
        one.networks.refresh()
        await one.store.transaction({"networks/demo": b"{"})
        await eventually(lambda: one.replica.records["networks/demo"].value == b"{", "it is spoilt")
        one.networks.refresh()
        assert one.networks.get("demo") == network()
        await one.stop()
        again = Member(memory, tmp_path, "h1")
        await again.store.transaction({"networks/demo": b"\xff"})
        await again.start()
        assert again.networks.get("demo") == network()
        assert again.replica.unreadable == {"networks/demo"}
        await again.replica.write({}, deletes=["networks/demo"])
        again.networks.refresh()
        assert again.networks.all() == ()
        assert again.replica.unreadable == set()
        await again.stop()

    together(work)


def test_the_last_readable_version_is_in_force_and_is_put_back_where_the_spoilt_one_is_deleted(tmp_path: Path) -> None:
    """That is true for versions that no host had read yet; a key deleted by hand is no removal."""

    async def work() -> None:
        one = Member(Memory(), tmp_path, "h1")
        await one.start()
        await one.replica.write({"networks/demo": network()})
        one.networks.refresh()
        later = msgspec.structs.replace(network(), internal=True)
        await one.store.transaction({"networks/demo": msgspec.json.encode(later)})
        await one.store.transaction({"networks/demo": b"{"})
        await eventually(lambda: one.replica.records["networks/demo"].value == b"{", "it is spoilt")
        one.networks.refresh()
        assert one.networks.get("demo") == later
        await one.store.transaction({}, deletes=["networks/demo"])
        await eventually(lambda: one.replica.settled and not one.replica.unreadable, "it is put back")
        one.networks.refresh()
        assert one.networks.get("demo") == later
        kept = await one.store.get("networks/demo")
        assert kept is not None
        assert msgspec.json.decode(kept.value)["internal"] is True
        await one.stop()

    together(work)


_TYPES: dict[str, type[msgspec.Struct]] = {
    "hosts/h2": Host,
    "leases/demo/h2": Lease,
    "networks/demo": Network,
    "gone/hosts/h3": Tombstone,
}


@pytest.mark.parametrize("key", _TYPES)
@pytest.mark.parametrize("read", [True, False], ids=["read", "unread"])
def test_a_record_that_is_put_right_is_not_named_any_more(tmp_path: Path, key: str, read: bool) -> None:
    """Its reason is gone, also if it has its old content again, and if nobody asks for it."""
    right = {
        "hosts/h2": Host(id="h2", name="h2"),
        "leases/demo/h2": Lease(network="demo", host="h2"),
        "networks/demo": network(),
        "gone/hosts/h3": Tombstone("h1", 1.0),
    }

    async def put(one: Member, value: bytes) -> None:
        await one.store.transaction({key: value})
        await eventually(lambda: one.replica.records[key].value == value, "it is known")

    async def work() -> None:
        one = Member(Memory(), tmp_path, "h1")
        as_it_was = msgspec.json.encode(right[key])
        await one.store.transaction({key: as_it_was})
        await one.replica.start()
        assert one.replica.value(key, _TYPES[key]) == right[key]
        for mended in (as_it_was, msgspec.json.encode({"schema": 1, **msgspec.to_builtins(right[key])})):
            await put(one, b"{")
            one.replica.value(key, _TYPES[key])
            assert one.replica.unreadable == {key}
            await put(one, mended)
            if read:
                assert one.replica.value(key, _TYPES[key]) == right[key]
            assert one.replica.unreadable == set()
        await one.replica.stop()

    together(work)


def test_a_misplaced_record_that_a_restored_store_lacks_is_not_named_any_more(tmp_path: Path) -> None:
    """Only the reason to skip it was known, and the store reports no deletion."""

    async def work() -> None:
        memory = Memory()
        one = Member(memory, tmp_path, "h1")
        await one.store.transaction({"blocks/demo": b"{}"})
        await one.replica.start()
        assert one.replica.unreadable == {"blocks/demo"}
        memory.restore(0, {})
        await eventually(lambda: not one.replica.unreadable, "it is not named any more")
        await one.replica.stop()

    together(work)


def test_of_very_many_misplaced_records_some_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A writer of the store fills neither the log nor the status; those that come later have their turn."""
    monkeypatch.setattr(record_form, "NAMED", 5)

    async def work() -> None:
        one = Member(Memory(), tmp_path, "h1")
        await one.replica.start()
        keys = [f"blocks/demo{number}" for number in range(50)]
        await one.store.transaction(dict.fromkeys(keys, b"{}"))
        await eventually(lambda: one.replica.unreadable == set(keys[:5]), "some are named")
        await one.store.transaction({}, deletes=keys)
        await eventually(lambda: not one.replica.unreadable, "they are gone")
        await one.store.transaction({"leases/x": b"{}"})
        await eventually(lambda: one.replica.unreadable == {"leases/x"}, "another one is named")
        await one.replica.stop()

    together(work)
    assert sum("is skipped" in line for line in caplog.messages) == 6


def test_a_record_that_is_larger_than_any_agent_s_is_not_kept(tmp_path: Path) -> None:
    """Nor under a kind that nobody reads; the version before it stays in force."""

    async def work() -> None:
        memory = Memory()
        one = Member(memory, tmp_path, "h1")
        await one.replica.start()
        await one.store.transaction({"networks/demo": b"{}", "junk/a": b"{}"})
        await eventually(lambda: "junk/a" in one.replica.records, "it is known")
        for key in ("networks/demo", "junk/a", "junk/b"):
            memory.commit(Request({key: b" " * (MOST_BYTES + 1)}))
            memory.ring()
        await eventually(lambda: one.replica.unreadable == {"networks/demo", "junk/a", "junk/b"}, "all are named")
        assert "the largest request of an agent has" in one.replica.reasons["junk/b"]
        assert {key: record.value for key, record in one.replica.records.items()} == {
            "networks/demo": b"{}", "junk/a": b"{}",
        }  # fmt: skip
        await one.store.transaction({"junk/a": b"[]"}, deletes=["junk/b", "networks/demo"])
        await eventually(lambda: one.replica.unreadable == set(), "nothing is wrong any more")
        assert one.replica.records["junk/a"].value == b"[]"
        await one.replica.stop()

    together(work)


@pytest.mark.parametrize(
    ("key", "record"),
    [
        ("networks/x", network("x", backend="newer")),
        ("networks/x", network("x", pool="10.9.0.0/99")),
        ("networks/x", msgspec.structs.replace(network("x"), gateways=())),
        ("reservations/demo/x/32", Reservation("demo", "x/32")),
        ("hosts/x", Host(id="x", name="x", underlay=Underlay("eth0", ("x",)))),
        ("leases/demo/x", Lease(network="demo", host="x", prefixes=("x",))),
    ],
)
def test_a_record_that_means_nothing_here_is_skipped_and_named(
    tmp_path: Path, key: str, record: msgspec.Struct
) -> None:
    """It is well formed, from a newer linkspan or edited by hand: readers of the kind get the other records."""

    async def work() -> None:
        memory = Memory()
        one = Member(memory, tmp_path, "h1")
        well = {"networks/demo": network(), "reservations/demo/10.244.0.9/32": Reservation("demo", "10.244.0.9/32")}
        puts = {key: record, **well}
        await one.store.transaction({k: msgspec.json.encode(value) for k, value in puts.items()})
        await one.start()
        assert [one.name for one in one.networks.all()] == ["demo"]
        assert [r.cidr for r in one.reservations.all()] == ["10.244.0.9/32"]
        assert one.allowances.all() == ()
        assert (one.hosts.all(), one.leases.all()) == ({}, [])
        assert one.replica.unreadable == {key}
        await one.stop()

    together(work)
