"""Remote endpoints: what matters here is kept, packed, and nothing else; and it is right whatever comes between."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from linkspan.cluster import interest
from linkspan.cluster.remote_endpoints import FEW, RemoteEndpoints, packed
from linkspan.core.addresses import prefix
from linkspan.core.model import Allowance, Endpoint, Lease
from linkspan.core.store_contract import Batch, Page, Record
from linkspan.policy.model import Policy
from linkspan.store import record_form
from linkspan.store.memory import Memory, MemoryStore
from support.polling import eventually
from support.records.replicas import Member, network, together

DEMO = network()


def made(host: str, id_: str, name: str = "demo", address: str = "10.244.1.2/32") -> dict[str, msgspec.Struct]:
    """Return the record of a container."""
    endpoint = Endpoint(id=id_, ifname="eth0", network=name, host=host, name=f"c-{id_}", addresses=(address,))
    return {f"endpoints/{host}/{id_}/eth0": endpoint}


def leased(host: str, name: str = "demo") -> dict[str, msgspec.Struct]:
    """Return the record of a lease."""
    return {f"leases/{name}/{host}": Lease(network=name, host=host)}


def known(member: Member, name: str = "demo") -> list[str]:
    """Return the ids of the containers that a host keeps of a network."""
    return sorted(at.partition("/")[0] for host in member.remote.hosts(name) for at in member.remote.of(name, host))


class Slow(MemoryStore):
    """A connection whose pages wait: what was read is handed out when it is told."""

    def __init__(self, memory: Memory) -> None:
        super().__init__(memory)
        self.handed = asyncio.Event()
        self.read: list[str] = []

    async def pages(self, prefix: str) -> AsyncIterator[Page]:
        """Yield the pages once it is told."""
        async for page in super().pages(prefix):
            self.read.append(prefix)
            await self.handed.wait()
            yield page


def test_a_host_whose_endpoints_matter_takes_little_memory() -> None:
    """It is one entry in its network, and one among the hosts to read: a thousand take less than 150 KB."""

    async def ignored(_keys: frozenset[str]) -> None:
        pass

    remote = RemoteEndpoints(MemoryStore(Memory()), "h1", ignored)
    hosts = {f"h{number}" for number in range(1, 1002)}
    tracemalloc.start()
    try:
        remote.want({"demo": hosts})
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert remote.wanted == hosts - {"h1"}
    assert taken < 150_000


def test_only_endpoints_in_networks_with_a_container_here_are_kept(tmp_path: Path) -> None:
    """Of hosts that have a lease there: another host's are not even read, and another network's are dropped."""

    async def work() -> None:
        memory = Memory()
        store = Slow(memory)
        store.handed.set()
        one, other = Member(memory, tmp_path, "h1", store), MemoryStore(memory)
        await one.replica.start()
        put = one.replica.write
        await put({**leased("h2"), **leased("h3", "other"), **leased("h4"), **leased("h4", "other")})
        for host, id_, name in (("h2", "a", "demo"), ("h3", "b", "other"), ("h4", "c", "demo"), ("h4", "d", "other")):
            await put(made(host, id_, name))
        one.interest.start()
        assert known(one) == []
        one.holds(DEMO, "own", "10.244.0.2/32")
        await eventually(lambda: known(one) == ["a", "c"], "the two in demo are kept")
        assert known(one, "other") == []
        assert sorted(store.read) == ["endpoints/h2/", "endpoints/h4/"]
        assert one.remote.whole("demo")
        assert not one.replica.under("endpoints/h2/")
        assert await other.get("endpoints/h3/b/eth0") is not None
        await one.interest.stop()
        await one.replica.stop()

    together(work)


def test_a_host_that_joins_a_network_is_read_and_one_that_leaves_is_forgotten(tmp_path: Path) -> None:
    """The lease tells; the containers' own changes are followed one by one."""

    async def work() -> None:
        memory = Memory()
        one = Member(memory, tmp_path, "h1")
        await one.replica.start()
        one.holds(DEMO, "own", "10.244.0.2/32")
        one.interest.start()
        other = Member(memory, tmp_path, "h2")
        await other.replica.start()
        await other.replica.write(made("h2", "a"))
        await other.replica.write(leased("h2"))
        await eventually(lambda: known(one) == ["a"], "h1 has read h2's")
        await other.replica.write(made("h2", "b"))
        await eventually(lambda: known(one) == ["a", "b"], "a change is followed")
        await other.replica.write(made("h2", "a", "other"))
        await eventually(lambda: known(one) == ["b"], "one that moves to another network is forgotten")
        await other.replica.write({}, deletes=["leases/demo/h2"])
        await eventually(lambda: known(one) == [], "h2 has left")
        for member in (one, other):
            await member.interest.stop()
            await member.replica.stop()

    together(work)


def labels(member: Member, name: str = "demo") -> dict[str, dict[str, str]]:
    """Return the kept labels of the containers that a host keeps of a network, by their ids."""
    found = (member.remote.of(name, host) for host in member.remote.hosts(name))
    return {at.partition("/")[0]: dict(one.labels) for some in found for at, one in some.items()}


def test_only_labels_that_policies_look_at_are_kept(tmp_path: Path) -> None:
    """A label that matters now is read again from the store, and a changed one is followed."""

    def labelled(app: str) -> dict[str, msgspec.Struct]:
        (key, found), *_ = made("h2", "a").items()
        return {key: msgspec.structs.replace(found, labels={"app": app, "note": "x" * 99})}

    async def work() -> None:
        one = Member(Memory(), tmp_path, "h1")
        await one.replica.start()
        await one.replica.write({**leased("h2"), **labelled("web")})
        one.holds(DEMO, "own", "10.244.0.2/32")
        one.interest.start()
        await eventually(lambda: labels(one) == {"a": {}}, "it is kept without its labels")
        one.remote.want_labels(frozenset({"app"}))
        assert await one.remote.caught_up(10)
        assert labels(one) == {"a": {"app": "web"}}
        await one.replica.write(labelled("db"))
        await eventually(lambda: labels(one) == {"a": {"app": "db"}}, "the change is followed")
        await one.interest.stop()
        await one.replica.stop()

    together(work)


def test_under_policies_the_networks_matter_that_may_reach_one_here(tmp_path: Path) -> None:
    """Labels of their containers decide, so they are kept as those of the network here are."""

    async def work() -> None:
        one = Member(Memory(), tmp_path, "h1")
        await one.replica.start()
        await one.replica.write({**leased("h2", "other"), **made("h2", "b", "other")})
        await one.replica.write({"allowances/other/demo//0": Allowance("other", "demo")})
        one.holds(DEMO, "own", "10.244.0.2/32")
        one.interest.start()
        await eventually(lambda: one.interest.networks() == {"demo"}, "without policies demo alone matters")
        await one.replica.write({"policies/web": Policy(name="web", ingress=())})
        await eventually(lambda: known(one, "other") == ["b"], "the other network's containers are kept")
        await one.replica.write({}, deletes=["allowances/other/demo//0"])
        await one.interest.stop()
        await one.replica.stop()

    together(work)


def test_a_network_matters_a_while_longer_than_its_last_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container that comes again finds what was known; then nothing is kept."""

    async def work() -> None:
        memory = Memory()
        one = Member(memory, tmp_path, "h1")
        await one.start()
        await one.replica.write({**leased("h2"), **made("h2", "a")})
        one.holds(DEMO, "own", "10.244.0.2/32")
        await eventually(lambda: known(one) == ["a"], "it is kept")
        monkeypatch.setattr(interest, "LINGER", 60.0)
        await one.detach(DEMO, "own")
        one.interest.look()
        assert known(one) == ["a"]
        monkeypatch.setattr(interest, "LINGER", 0.0)
        one.interest.look()
        assert known(one) == []
        assert one.remote.count() == 0
        await one.stop()

    together(work)


def test_all_that_a_listing_reads_is_counted(tmp_path: Path) -> None:
    """A host's containers in networks that do not matter here are read, too."""

    async def work() -> None:
        one = Member(Memory(), tmp_path, "h1")
        await one.start()
        others = {key: value for number in range(5) for key, value in made("h2", f"other{number}", "other").items()}
        await one.replica.write({**leased("h2"), **made("h2", "a"), **others})
        one.holds(DEMO, "own", "10.244.0.2/32")
        await eventually(lambda: known(one) == ["a"], "it is kept")
        await eventually(lambda: one.remote.count() == 6, "all are counted")
        await one.stop()

    together(work)


def test_what_changes_while_a_host_is_read_is_not_lost(tmp_path: Path) -> None:
    """One that came, one that changed, one that went, and one that went and came again, between the two answers."""

    async def work() -> None:
        memory = Memory()
        store = Slow(memory)
        one, other = Member(memory, tmp_path, "h1", store), Member(memory, tmp_path, "h2")
        await asyncio.gather(one.replica.start(), other.replica.start())
        put = other.replica.write
        await put(leased("h2"))
        for id_ in ("stays", "changes", "goes", "again"):
            await put(made("h2", id_))
        await eventually(lambda: "leases/demo/h2" in one.replica.records, "h1 knows of h2")
        one.holds(DEMO, "own", "10.244.0.2/32")
        one.interest.start()
        await eventually(lambda: store.read, "the store has answered, and h1 has not got it yet")
        await put({**made("h2", "comes"), **made("h2", "changes", address="10.244.1.9/32")})
        await put({}, deletes=["endpoints/h2/goes/eth0", "endpoints/h2/again/eth0"])
        await put(made("h2", "again"))
        await put({"hosts/h9": b"{}"})
        await eventually(lambda: "hosts/h9" in one.replica.records, "h1's watch is as far as the store")
        store.handed.set()
        await eventually(lambda: one.remote.whole("demo"), "h1 has read h2's")
        assert known(one) == ["again", "changes", "comes", "stays"]
        assert one.endpoint_records.living("demo", "h2") == {prefix("10.244.1.2"), prefix("10.244.1.9")}
        for member in (one, other):
            await member.interest.stop()
            await member.replica.stop()

    together(work)


def test_an_endpoint_that_moves_between_two_networks_that_matter_is_in_one(tmp_path: Path) -> None:
    """Its name is not in the network that it left."""

    async def work() -> None:
        memory = Memory()
        one = Member(memory, tmp_path, "h1")
        await one.start()
        await one.replica.write({**leased("h2"), **leased("h2", "other"), **made("h2", "a")})
        one.holds(DEMO, "own", "10.244.0.2/32")
        one.holds(network("other", "10.245.0.0/16"), "own2", "10.245.0.2/32")
        await eventually(lambda: known(one) == ["a"], "it is kept")
        await one.replica.write(made("h2", "a", "other"))
        await eventually(lambda: known(one, "other") == ["a"], "it is in the other network")
        assert known(one) == []
        await one.stop()

    together(work)


def test_a_network_that_begins_to_matter_while_a_host_is_read_is_read_as_well(tmp_path: Path) -> None:
    """The answer that is under way has it, but was not sorted for it."""

    async def work() -> None:
        memory = Memory()
        store = Slow(memory)
        one = Member(memory, tmp_path, "h1", store)
        await one.replica.start()
        await one.replica.write({**leased("h2"), **leased("h2", "other")})
        await one.replica.write({**made("h2", "a"), **made("h2", "b", "other")})
        one.holds(DEMO, "own", "10.244.0.2/32")
        one.interest.start()
        await eventually(lambda: store.read, "the store has answered, and h1 has not got it yet")
        one.holds(network("other", "10.245.0.0/16"), "own2", "10.245.0.2/32")
        one.interest.look()
        store.handed.set()
        await eventually(lambda: one.remote.whole("demo") and one.remote.whole("other"), "h1 has read both")
        assert (known(one), known(one, "other")) == (["a"], ["b"])
        await one.interest.stop()
        await one.replica.stop()

    together(work)


def test_an_answer_from_before_the_store_was_restored_does_not_count(tmp_path: Path) -> None:
    """The store is listed again meanwhile, so the host is read again, too."""

    async def work() -> None:
        memory = Memory()
        store = Slow(memory)
        one = Member(memory, tmp_path, "h1", store)
        await one.replica.start()
        await one.replica.write({**leased("h2"), **made("h2", "a")})
        backup = dict(memory.entries)
        await one.replica.write(made("h2", "b"))
        await one.replica.write({"hosts/h9": b"{}"})
        one.holds(DEMO, "own", "10.244.0.2/32")
        one.interest.start()
        await eventually(lambda: store.read, "the store has answered, and h1 has not got it yet")
        memory.restore(1, backup)
        await eventually(lambda: "hosts/h9" not in one.replica.records or one.replica.lost, "h1 has listed it again")
        store.handed.set()
        await eventually(lambda: one.remote.whole("demo"), "h1 has read h2's")
        assert known(one) == ["a"]
        await one.interest.stop()
        await one.replica.stop()

    together(work)


def test_a_store_that_is_another_one_is_read_again(tmp_path: Path) -> None:
    """A record that it lacks is forgotten; without the store what is known stays."""

    async def work() -> None:
        memory = Memory()
        one = Member(memory, tmp_path, "h1")
        await one.start()
        await one.replica.write({**leased("h2"), **made("h2", "a"), **made("h2", "b")})
        one.holds(DEMO, "own", "10.244.0.2/32")
        await eventually(lambda: known(one) == ["a", "b"], "both are kept")
        backup = dict(memory.entries)
        one.store.cut()
        assert known(one) == ["a", "b"]
        del backup["endpoints/h2/b/eth0"]
        memory.restore(1, backup)
        one.store.mend()
        await eventually(lambda: known(one) == ["a"], "what the store lacks is forgotten")
        await one.stop()

    together(work)


def test_a_record_that_cannot_be_read_is_named_and_stays_what_it_was(tmp_path: Path) -> None:
    """Also when its host is read again; the reason ends with the next change."""

    async def work() -> None:
        memory = Memory()
        one, other = Member(memory, tmp_path, "h1"), MemoryStore(memory)
        await one.start()
        await one.replica.write({**leased("h2"), **made("h2", "a")})
        one.holds(DEMO, "own", "10.244.0.2/32")
        await eventually(lambda: known(one) == ["a"], "it is kept")
        key = "endpoints/h2/a/eth0"
        await other.transaction({key: b"{spoilt", "endpoints/h2/new/eth0": b"[]"})
        await eventually(lambda: key in one.remote.reasons, "it is named")
        assert known(one) == ["a"]
        one.remote.listed()
        assert await one.remote.caught_up(5)
        assert known(one) == ["a"]
        assert one.remote.reasons.keys() == {key, "endpoints/h2/new/eth0"}
        await other.transaction({}, deletes=[key, "endpoints/h2/new/eth0"])
        await eventually(lambda: not one.remote.reasons, "nobody names it any more")
        assert known(one) == []
        await one.stop()

    together(work)


def test_of_very_many_unreadable_records_some_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each would be a line in the log of each host, and in its status."""
    monkeypatch.setattr(record_form, "NAMED", 5)

    async def work() -> None:
        memory = Memory()
        one, other = Member(memory, tmp_path, "h1"), MemoryStore(memory)
        await one.start()
        await one.replica.write(leased("h2"))
        one.holds(DEMO, "own", "10.244.0.2/32")
        assert await one.remote.caught_up(5)
        await other.transaction({f"endpoints/h2/z{number}": b"{}" for number in range(50)} | {"endpoints/h2/b/e": b"["})
        await other.transaction({key: one.replica.encoded(key, made_) for key, made_ in made("h2", "a").items()})
        await eventually(lambda: known(one) == ["a"], "what is right counts")
        assert len(one.remote.reasons) == 5
        await one.stop()

    together(work)


@pytest.mark.parametrize(
    ("name", "id_", "labels", "names", "container"),
    [
        ("web", "4f1c" * 16, {"aliases": "shop"}, ("web", "shop", "4f1c4f1c4f1c"), "web"),
        ("Web_1", "c1", {}, ("web_1", "c1"), "Web_1"),
        ("", "c1", {}, ("c1",), "c1"),
        ("", "4f1c" * 16, {}, ("4f1c4f1c4f1c",), "4f1c" * 16),
    ],
)
def test_a_packed_endpoint_has_names_addresses_and_what_people_call_it(
    name: str, id_: str, labels: dict[str, str], names: tuple[str, ...], container: str
) -> None:
    """That is all that other hosts need of it."""
    addresses = ("10.244.1.2/32", "fd00::2/128")
    one = packed(Endpoint(id=id_, ifname="eth0", name=name, network="demo", labels=labels, addresses=addresses))
    assert tuple(one.names.split()) == names
    assert one.container == container
    assert [found.address for found in one.prefixes] == ["10.244.1.2", "fd00::2"]


def test_hosts_that_left_a_network_are_forgotten_when_they_are_many() -> None:
    """Hosts come and go for years: whoever made a file of their names makes it again then."""

    async def ignored(_keys: frozenset[str]) -> None:
        pass

    async def work() -> None:
        remote = RemoteEndpoints(MemoryStore(Memory()), "h1", ignored)
        hosts = [f"h{number}" for number in range(2, FEW + 10)]
        remote.want({"demo": hosts})
        records = [(key, msgspec.json.encode(one)) for host in hosts for key, one in made(host, "a").items()]
        remote.take(Batch(1, tuple(Record(key, value, 1) for key, value in records)))
        matters, seen = remote.matters("demo"), remote.number
        remote.want({"demo": hosts[-2:]})
        assert remote.matters("demo") > matters
        assert seen < remote.matters("demo")
        assert remote.changed("demo", remote.matters("demo")).keys() == {*hosts[-2:]}
        assert remote._known["demo"].keys() == {*hosts[-2:]}
        seen = remote.number
        remote.want({"demo": hosts[-1:]})
        assert remote.changed("demo", seen) == {hosts[-2]: {}}

    asyncio.run(work())
