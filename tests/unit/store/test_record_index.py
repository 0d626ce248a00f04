"""Records in memory: packed, found by the first words of their keys, and the same as before."""

from __future__ import annotations

import tracemalloc

import msgspec
import pytest

from linkspan.core.model import Lease, Offer
from linkspan.core.store_contract import Record
from linkspan.store.record_index import RecordIndex, same

STRANGE = ("", "a", "a/", "a//", "/", "//", "a/b", "a//b", "a/b/", "a/b//c", "a/b/c", "a/b/c/d", "b", "ab/c", "a/é")


def test_every_key_leads_to_its_own_record() -> None:
    """However its words are divided: whoever may write to the store chooses the keys."""
    index = RecordIndex()
    for number, key in enumerate(STRANGE, 1):
        index.keep(Record(key, key.encode() * 3, number))
    assert {key: (one.value, one.revision) for key, one in index.items()} == {
        key: (key.encode() * 3, number) for number, key in enumerate(STRANGE, 1)
    }
    assert len(index) == len(STRANGE)
    assert {one.key: one for one in index.all()} == dict(index)
    for key in STRANGE:
        assert key in index
        index.drop(key)
        assert key not in index
        assert index.get(key) is None
    assert not index


@pytest.mark.parametrize("value", [b"", b"{}", b"\xff\x00" * 40, bytes(range(256)) * 5000])
def test_a_value_comes_out_as_it_went_in(value: bytes) -> None:
    """Also beside another first one, which is the dictionary of all."""
    for first in (b"", b'{"owner":"h1"}', value):
        index = RecordIndex()
        index.keep(Record("x/first", first, 1))
        index.keep(Record("x/other", value, 2))
        assert [one.value for one in index.values()] == [first, value]


def test_a_kind_that_ends_leaves_nothing_behind() -> None:
    """A writer of the store can invent kinds; the next first value is the dictionary then."""
    tracemalloc.start()
    try:
        index, before = RecordIndex(), tracemalloc.get_traced_memory()[0]
        for number in range(1000):
            index.keep(Record(f"kind{number}/a", bytes(4000), 1))
            index.drop(f"kind{number}/a")
        assert tracemalloc.get_traced_memory()[0] - before < 200_000  # the counts of changes are left
    finally:
        tracemalloc.stop()
    index.keep(Record("kind1/a", b"other", 2))
    assert index["kind1/a"].value == b"other"


def test_keys_are_found_by_their_first_words() -> None:
    """A kind, a kind of one network, and what of these begins in a certain way."""
    index = RecordIndex()
    for key in ("leases/a/h1", "leases/a/h2", "leases/ab/h1", "blocks/a/10.0.0.0/24", "hosts/a", "gone/hosts/b"):
        index.keep(Record(key, b"{}", 1))
    assert index.keys_under("leases/a/") == ["leases/a/h1", "leases/a/h2"]
    assert index.keys_under("leases/a/h2") == ["leases/a/h2"]
    assert index.keys_under("leases/") == ["leases/a/h1", "leases/a/h2", "leases/ab/h1"]
    assert index.keys_under("hosts/") == ["hosts/a"]
    assert index.keys_under("gone/hosts/") == ["gone/hosts/b"]
    assert index.under("blocks/a/").keys() == {"blocks/a/10.0.0.0/24"}
    assert list(index.groups("leases")) == ["a", "ab"]
    assert list(index.groups("hosts")) == []


def test_only_another_value_counts_as_a_change() -> None:
    """A listing brings all records again, with their revisions."""
    index = RecordIndex()
    index.keep(Record("hosts/a", b"one", 1))
    before, first = index.changes("hosts"), index.packed("hosts/a")
    assert index.forget_revisions() == {"hosts/a": 1}
    assert index.forget_revisions() == {}
    assert index.revision("hosts/a") == 0
    index.keep(Record("hosts/a", b"one", 2))
    assert index.touch("hosts/a", 3)
    assert not index.touch("hosts/a", 2)
    assert not index.touch("hosts/b", 4)
    second = index.packed("hosts/a")
    assert first is not None
    assert second is not None
    assert same(first, second)
    assert (index.changes("hosts"), index.revision("hosts/a")) == (before, 3)
    index.keep(Record("hosts/a", b"two", 4))
    third = index.packed("hosts/a")
    assert third is not None
    assert not same(second, third)
    assert index.changes("hosts") != before


def test_a_lease_takes_little_memory() -> None:
    """A cluster of 1,000 hosts with 20 networks has 20,000 of them, and a host needs a tenth."""
    offer = {"vxlan": Offer({"mac": "02:00:00:00:00:01", "address": "198.18.0.1"})}
    tracemalloc.start()
    try:
        index, before = RecordIndex(), tracemalloc.get_traced_memory()[0]
        for number in range(1000):
            host, block = f"peer{number}", f"10.{number // 256}.{number % 256}.0"
            held = {"prefixes": (f"{block}/24",), "addresses": (f"{block}/32",)}
            lease = Lease(network="net1", host=host, endpoints=offer, **held)
            index.keep(Record(f"leases/net1/{host}", msgspec.json.encode(lease), number))
        assert (tracemalloc.get_traced_memory()[0] - before) / 1000 < 300
    finally:
        tracemalloc.stop()


def test_loaded_records_are_as_any_others() -> None:
    """A start keeps the records of its snapshot as they are, because to pack them takes longer than all else of it."""
    index = RecordIndex()
    given = {key: Record(key, key.encode() * 9, number) for number, key in enumerate(STRANGE, 1)}
    index.load(given.values())
    assert dict(index) == given
    assert {one.key: one for one in index.all()} == given
    assert all(key in index and index.revision(key) == one.revision for key, one in given.items())
    before = index.changes("a")
    assert index.touch("a/b", 99)
    index.keep(Record("a/b", given["a/b"].value, 100))
    assert (index["a/b"].value, index.revision("a/b"), index.changes("a")) == (given["a/b"].value, 100, before)
    index.drop("a/b/c")
    assert index.get("a/b/c") is None
    expected = {key: one.revision for key, one in given.items() if key != "a/b/c"} | {"a/b": 100}
    assert index.forget_revisions() == expected
    assert {index.revision(key) for key in index} == {0}


def test_loaded_records_are_packed_a_few_at_a_time() -> None:
    """Then they take as little memory as others, and those that came or went meanwhile do not matter."""
    tracemalloc.start()
    try:
        index, before = RecordIndex(), tracemalloc.get_traced_memory()[0]
        index.load(Record(f"leases/net/h{number}", f"{number:04}".encode() * 100, number) for number in range(1000))
        loaded = tracemalloc.get_traced_memory()[0] - before
        index.drop("leases/net/h999")
        index.keep(Record("leases/net/h998", b"new", 2000))
        for _ in range(9):
            assert index.pack(100)
        assert not index.pack(100)
        assert tracemalloc.get_traced_memory()[0] - before < loaded / 2
    finally:
        tracemalloc.stop()
    assert index["leases/net/h7"] == Record("leases/net/h7", b"0007" * 100, 7)
    assert index["leases/net/h998"] == Record("leases/net/h998", b"new", 2000)
    assert "leases/net/h999" not in index
