"""A large cluster: what one host does for its own containers does not grow with the other hosts."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from linkspan.cluster.blocks import own_address
from linkspan.cluster.grants import granted
from linkspan.cluster.remote_endpoints import Packed, RemoteEndpoints
from linkspan.core.addresses import prefix
from linkspan.core.model import Endpoint, Host, Lease
from linkspan.core.store_contract import Batch, Record
from linkspan.store import record_index
from linkspan.store.memory import Memory, MemoryStore
from linkspan.store.record_index import RecordIndex
from linkspan.store.records import AddressRecord, BlockRecord, block_key, lease_key
from support.polling import eventually
from support.records.replicas import Member, network, together

DEMO = network()
OTHERS = [f"other{number}" for number in range(25)]


def claimed() -> dict[str, msgspec.Struct]:
    """Return what the other hosts have in the store: their records, a block each, and a container."""
    found: dict[str, msgspec.Struct] = {}
    for number, host in enumerate(OTHERS, 100):
        block = prefix(f"10.244.{number}.0/24")
        addresses = (str(own_address(DEMO.prefixes[0], block)),)
        found[f"hosts/{host}"] = Host(id=host, name=host)
        found[block_key("demo", block)] = BlockRecord(host, 1.0)
        found[lease_key("demo", host)] = Lease(network="demo", host=host, prefixes=(str(block),), addresses=addresses)
        found |= container(host, "c1", f"10.244.{number}.2/32")
    return found


def container(host: str, id_: str, address: str) -> dict[str, msgspec.Struct]:
    """Return the record of a container."""
    made = Endpoint(id=id_, ifname="eth0", name=f"{host}-{id_}", network="demo", host=host, addresses=(address,))
    return {f"endpoints/{host}/{id_}/eth0": made}


@contextmanager
def reading(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Collect the keys of records that are looked up or listed meanwhile."""
    keys: list[str] = []
    place, keys_under = record_index._place, RecordIndex.keys_under

    def looked_up(key: str) -> tuple[str, str | None, str]:
        keys.append(key)
        return place(key)

    def listed(self: RecordIndex, start: str) -> list[str]:
        found = keys_under(self, start)
        keys.extend(found)
        return found

    with monkeypatch.context() as patched:
        patched.setattr(record_index, "_place", looked_up)
        patched.setattr(RecordIndex, "keys_under", listed)
        yield keys


def test_an_attach_reads_no_record_of_another_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither does a detach, nor what follows: which endpoints matter, and this host's records for the others."""

    async def work() -> None:
        one = Member(Memory(), tmp_path, "h1")
        await one.join()
        await one.replica.write({"networks/demo": DEMO})
        await one.replica.write(claimed())
        await one.start()
        await one._take_part(DEMO)
        await one.attach(DEMO, "first")
        await eventually(lambda: one.remote.count() == len(OTHERS), "h1 has read the other hosts' containers")
        await eventually(lambda: "endpoints/h1/first/eth0" in one.replica.records, "the first one is recorded")
        with reading(monkeypatch) as keys:
            await one.attach(DEMO, "second")
            one.interest.look()
            await eventually(lambda: "endpoints/h1/second/eth0" in one.replica.records, "it is recorded")
            await one.detach(DEMO, "second")
            one.interest.look()
            await eventually(lambda: "endpoints/h1/second/eth0" not in one.replica.records, "it is not any more")
        assert "endpoints/h1/second/eth0" in keys
        own = one.leases.mine("demo")
        assert own is not None
        mine = {block_key("demo", text) for text in own.prefixes}
        assert [key for key in keys if "other" in key or (key.startswith("blocks/") and key not in mine)] == []
        await one.stop()

    together(work)


def test_a_lease_that_joins_a_network_makes_its_leases_be_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lease of another network does not."""

    async def work() -> None:
        one = Member(Memory(), tmp_path, "h1")
        await one.join()
        await one.replica.write(claimed())
        one.holds(DEMO, "own", "10.244.0.2/32")
        one.interest.look()
        assert one.remote.wanted == {*OTHERS}
        with reading(monkeypatch) as keys:
            await one.replica.write({"leases/elsewhere/new": Lease(network="elsewhere", host="new")})
            one.interest.look()
        assert not any(key.startswith("leases/demo/") for key in keys)
        await one.replica.write({"leases/demo/new": Lease(network="demo", host="new")})
        assert one.remote.wanted == {*OTHERS, "new"}
        await one.replica.write({}, deletes=["leases/demo/new"])
        assert one.remote.wanted == {*OTHERS}
        await one.replica.stop()

    together(work)


def test_a_change_of_an_exact_address_reads_no_other_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network with exact addresses has a record for each container of the cluster."""

    async def work() -> None:
        one = Member(Memory(), tmp_path, "h1")
        await one.join()
        await one.replica.write({"networks/demo": DEMO})
        for number in range(1, 201):
            record = AddressRecord(f"other{number % 10}", f"c{number}", "eth0", float(number))
            await one.replica.write({f"addresses/demo/10.244.200.{number}": record})
        assert len(one.leases.counted(DEMO, {"other7"})["other7"]) == 20
        with reading(monkeypatch) as keys:
            taken = AddressRecord("other7", "new", "eth0", 300.0)
            await one.replica.write({"addresses/demo/10.244.200.9": taken})
            assert len(one.leases.counted(DEMO, {"other7"})["other7"]) == 21
            assert len(one.leases.counted(DEMO, {"other9"})["other9"]) == 19
            assert one.leases.doubtful(DEMO) == set()
        # The watch reports the last write before, too.
        seen = {key for key in keys if key.startswith("addresses/")}
        assert seen <= {"addresses/demo/10.244.200.9", "addresses/demo/10.244.200.200"}
        await one.replica.write({}, deletes=["addresses/demo/10.244.200.9"])
        assert len(one.leases.counted(DEMO, {"other7"})["other7"]) == 20
        await one.replica.stop()

    together(work)


async def ignored(_keys: frozenset[str]) -> None:
    """Follow nothing."""


def test_another_host_s_container_takes_little_memory() -> None:
    """Of 1,000 hosts with five containers each in a network, they are 5,000."""
    remote = RemoteEndpoints(MemoryStore(Memory()), "h1", ignored)
    hosts = [f"peer{number}" for number in range(1000)]
    remote.want({"demo": hosts})
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number, host in enumerate(hosts):
            some = (container(host, f"{number:032d}{each:032d}", f"10.244.1.{each}/32") for each in range(5))
            found = [(key, msgspec.json.encode(one)) for made in some for key, one in made.items()]
            remote.take(Batch(1, tuple(Record(key, value, 1) for key, value in found)))
        assert remote.count() == 5000
        assert (tracemalloc.get_traced_memory()[0] - before) / 5000 < 300
    finally:
        tracemalloc.stop()


def test_a_host_s_containers_are_decoded_once_for_a_burst_of_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred that come at once are one transaction."""
    remote = RemoteEndpoints(MemoryStore(Memory()), "h1", ignored)
    remote.want({"demo": ["h2"], "other": ["h2"]})
    decoded = 0
    of = remote.of

    def counted(network: str, host: str) -> dict[str, Packed]:
        nonlocal decoded
        decoded += 1
        return of(network, host)

    monkeypatch.setattr(remote, "of", counted)
    for first in (0, 100):
        made = [container("h2", f"c{number}", "10.244.1.2/32") for number in range(first, first + 100)]
        records = [Record(key, msgspec.json.encode(one), 1) for one_of in made for key, one in one_of.items()]
        remote.take(Batch(1, tuple(records)))
    assert remote.take(Batch(2, (), tuple(f"endpoints/h2/c{number}/eth0" for number in range(50, 200))))
    assert remote.count() == 50
    assert decoded <= 6  # in each of its networks, for each of the three batches


def test_a_lease_of_which_all_counts_is_not_copied() -> None:
    """A host keeps the lease of each peer."""
    lease = claimed()[lease_key("demo", OTHERS[0])]
    assert isinstance(lease, Lease)
    assert granted(DEMO, lease, lambda _block: BlockRecord(OTHERS[0], 1.0), lambda _address: False).lease is lease
