"""Endpoints in the store: all hosts see them, and their own host keeps them right."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from linkspan.cluster.endpoint_records import by_container
from linkspan.core.addresses import prefix
from linkspan.core.errors import Conflict, Unavailable
from linkspan.core.event_log import EventLog
from linkspan.core.model import Endpoint, Lease
from linkspan.store import validation
from linkspan.store.memory import Memory
from linkspan.store.request import MOST_BYTES, Request
from support.polling import eventually
from support.records.replicas import Member, together
from support.virtual_time import clock, in_virtual_time, soon


class Teller:
    """A host with endpoints."""

    def __init__(self, memory: Memory, folder: Path, name: str) -> None:
        self.member = Member(memory, folder, name)
        self.replica = self.member.replica
        self.endpoints = self.member.endpoints
        self.endpoint_records = self.member.endpoint_records
        self.name = name
        self._memory = memory

    def attach(self, id_: str, **labels: str) -> Endpoint:
        """Have an endpoint more."""
        made = Endpoint(
            id=id_, ifname="eth0", network="demo", host=self.name, netns=7, netns_path="/proc/1/ns/net", labels=labels
        )
        self.endpoints[made.identity] = made
        self.endpoint_records.note(made.identity)
        return made

    def detach(self, id_: str) -> None:
        """Have one less."""
        del self.endpoints[id_, "eth0"]
        self.endpoint_records.note((id_, "eth0"))

    def seen(self) -> list[tuple[str, str]]:
        """Return what the store has of others: host and id."""
        keys = [key.split("/") for key, (value, _) in self._memory.entries.items() if value and key != "endpoints/h1/x"]
        return sorted((w[1], w[2]) for w in keys if w[0] == "endpoints" and w[1] != self.name)

    async def start(self) -> None:
        """Begin."""
        await self.replica.start()
        self.member.interest.start()
        self.endpoint_records.start()

    async def stop(self) -> None:
        """End."""
        await self.endpoint_records.stop()
        await self.member.interest.stop()
        await self.replica.stop()


async def everywhere(teller: Teller, network: str = "") -> list[Endpoint]:
    """Return a host's list of the cluster's endpoints."""
    return [endpoint async for some in teller.endpoint_records.everywhere(network) for endpoint in some]


def test_endpoints_are_seen_on_other_hosts_until_they_go(tmp_path: Path) -> None:
    """One that was there before the start, and one that comes and goes; no tombstone stays."""

    async def work() -> None:
        memory = Memory()
        one, two = Teller(memory, tmp_path, "h1"), Teller(memory, tmp_path, "h2")
        made = one.attach("a")
        await asyncio.gather(one.start(), two.start())
        await eventually(lambda: two.seen() == [("h1", "a")], "h2 sees a")
        (told,) = await everywhere(two)
        assert (told.netns, told.netns_path, told.addresses) == (7, "", made.addresses)
        one.attach("b")
        await eventually(lambda: two.seen() == [("h1", "a"), ("h1", "b")], "h2 sees b")
        one.detach("a")
        await eventually(lambda: two.seen() == [("h1", "b")], "a is gone")
        assert one.seen() == []
        assert not [key for key in memory.entries if key.startswith("gone/")]
        await asyncio.gather(one.stop(), two.stop())

    together(work)


def test_what_went_while_the_agent_was_away_goes_at_its_start(tmp_path: Path) -> None:
    """And 300 endpoints that it has are reported in as many transactions as it takes."""

    async def work() -> None:
        memory = Memory()
        old, two = Teller(memory, tmp_path, "h1"), Teller(memory, tmp_path, "h2")
        old.attach("gone")
        await asyncio.gather(old.start(), two.start())
        await eventually(lambda: two.seen() == [("h1", "gone")], "h2 sees the old one")
        await old.stop()
        new = Teller(memory, tmp_path, "h1")
        for number in range(300):
            new.attach(f"c{number:03}")
        await new.start()
        await eventually(lambda: two.seen() == [("h1", f"c{n:03}") for n in range(300)], "h2 sees the new ones")
        await asyncio.gather(new.stop(), two.stop())

    together(work)


def test_two_agents_with_one_id_do_not_delete_each_other_s_records(tmp_path: Path) -> None:
    """What the other one's record is about stays known to all hosts, until that agent has ended."""

    async def work() -> None:
        memory = Memory()
        one, two = Teller(memory, tmp_path, "h1"), Teller(memory, tmp_path, "h2")
        one.attach("mine")
        await asyncio.gather(one.start(), two.start())
        one.member.second = "host id h1 is in use by another agent that lives, on web1"
        theirs = Endpoint(id="theirs", ifname="eth0", network="demo", host="h1", netns=9)
        await two.member.store.transaction({"endpoints/h1/theirs/eth0": msgspec.json.encode(theirs)})
        await soon(lambda: one.endpoint_records.withholds(theirs.identity), "h1 sees it", 1)
        one.detach("mine")
        await asyncio.sleep(60)
        assert two.seen() == [("h1", "mine"), ("h1", "theirs")]
        one.member.second = ""
        await soon(lambda: two.seen() == [], "h1 is alone again", 3)
        assert not one.endpoint_records.withholds(theirs.identity)
        await asyncio.gather(one.stop(), two.stop())

    in_virtual_time(work)


def test_large_records_are_written_in_as_many_transactions_as_it_takes(tmp_path: Path) -> None:
    """Etcd takes some bytes at once. A record that it never takes keeps no other one away, and is not tried again."""

    async def work() -> None:
        memory = Memory()
        one, two = Teller(memory, tmp_path, "h1"), Teller(memory, tmp_path, "h2")
        one.attach("a-huge", label="x" * (MOST_BYTES + 1))
        for number in range(8):
            one.attach(f"c{number}", label="x" * 700_000)
        one.attach("small")
        await asyncio.gather(one.start(), two.start())
        wanted = [("h1", f"c{number}") for number in range(8)] + [("h1", "small")]
        await eventually(lambda: two.seen() == wanted, "h2 sees all others")
        assert one.replica.problem == ""
        await eventually(lambda: not one.endpoint_records.due, "nothing is left to write")
        await asyncio.gather(one.stop(), two.stop())

    together(work)


def test_a_store_that_lost_them_gets_them_again(tmp_path: Path) -> None:
    """An emptied store stops nothing: each host puts its own records again."""

    async def work() -> None:
        memory = Memory()
        one, two = Teller(memory, tmp_path, "h1"), Teller(memory, tmp_path, "h2")
        one.attach("a")
        await asyncio.gather(one.start(), two.start())
        await eventually(lambda: two.seen() == [("h1", "a")], "h2 sees a")
        await two.member.store.transaction({"hosts/h3": b"{}"})
        await eventually(lambda: "hosts/h3" in one.replica.records, "h1's watch is as far as the store")
        memory.restore(0, {})
        await eventually(lambda: "endpoints/h1/a/eth0" in memory.entries, "h1 puts it again")
        assert one.replica.settled
        await asyncio.gather(one.stop(), two.stop())

    together(work)


def test_a_list_of_one_network_decodes_no_endpoint_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a large cluster that would be most of the store, and the loop would be busy for seconds."""
    decoded: list[str] = []
    decode = validation.decode

    def noted(key: str, *words: Any) -> Any:
        decoded.append(key)
        return decode(key, *words)

    async def work() -> None:
        memory = Memory()
        one, two = Teller(memory, tmp_path, "h1"), Teller(memory, tmp_path, "h2")
        for number in range(20):
            _named(one, f"a{number}", "web")
        _named(one, "b", "db", network="other")
        await asyncio.gather(one.start(), two.start())
        await eventually(lambda: len(two.seen()) == 21, "the store has all")
        monkeypatch.setattr(validation, "decode", noted)
        assert [e.id for e in await everywhere(two, "other")] == ["b"]
        assert decoded == ["endpoints/h1/b/eth0"]
        decoded.clear()
        assert [e async for some in two.endpoint_records.elsewhere(host="h3") for e in some] == []
        assert decoded == []
        await asyncio.gather(one.stop(), two.stop())

    together(work)


def test_a_list_is_of_one_network_or_of_one_host(tmp_path: Path) -> None:
    """This host's endpoints come first, and those of one host together."""

    async def work() -> None:
        memory = Memory()
        one, two = Teller(memory, tmp_path, "h1"), Teller(memory, tmp_path, "h2")
        _named(one, "a", "web")
        _named(one, "b", "db", network="other")
        _named(two, "c", "cache")
        await asyncio.gather(one.start(), two.start())
        await eventually(lambda: len(two.seen()) == 2, "the store has both")
        groups = [[e.id for e in some] async for some in two.endpoint_records.everywhere()]
        assert groups == [["c"], ["a", "b"]]
        assert [e.id for e in await everywhere(two, "other")] == ["b"]
        assert [e.id for e in await two.endpoint_records.find("web@demo")] == ["a"]
        assert await everywhere(two, "third") == []
        assert [e.id async for some in two.endpoint_records.elsewhere(host="h1") for e in some] == ["a", "b"]
        assert [e async for some in two.endpoint_records.elsewhere(host="h3") for e in some] == []
        await asyncio.gather(one.stop(), two.stop())

    together(work)


def test_a_list_leaves_out_what_cannot_be_read_and_names_it(tmp_path: Path) -> None:
    """Its owner puts it right; the reason ends with that."""

    async def work() -> None:
        memory = Memory()
        one, two = Teller(memory, tmp_path, "h1"), Teller(memory, tmp_path, "h2")
        await two.start()
        await two.member.store.transaction({"endpoints/h1/x": b"{}", "endpoints/h1/a/eth0": b"{", "endpoints/h1/": b""})
        assert await everywhere(two) == []
        assert two.member.remote.reasons.keys() == {"endpoints/h1/x", "endpoints/h1/a/eth0", "endpoints/h1/"}
        one.attach("a")
        await one.start()
        left = {"endpoints/h1/x", "endpoints/h1/"}
        await eventually(lambda: two.member.remote.reasons.keys() == left, "h1 has put its own right")
        assert [e.id for e in await everywhere(two)] == ["a"]
        await asyncio.gather(one.stop(), two.stop())

    together(work)


def test_a_list_without_the_store_is_refused_and_says_what_goes(tmp_path: Path) -> None:
    """A list of some would be no list; what this host has is found by name."""

    async def work() -> None:
        memory = Memory()
        one, two = Teller(memory, tmp_path, "h1"), Teller(memory, tmp_path, "h2")
        _named(one, "a", "web")
        _named(two, "c", "cache")
        await asyncio.gather(one.start(), two.start())
        await eventually(lambda: two.seen() == [("h1", "a")], "the store has a")
        two.member.store.cut()
        with pytest.raises(Unavailable) as refused:
            await everywhere(two)
        assert "--local" in refused.value.hint
        assert [e.id for e in await two.endpoint_records.find("cache")] == ["c"]
        with pytest.raises(Unavailable):
            await two.endpoint_records.find("web")
        two.member.store.mend()
        assert [e.id for e in await two.endpoint_records.find("web")] == ["a"]
        await asyncio.gather(one.stop(), two.stop())

    together(work)


@pytest.mark.parametrize("word", ["web", "WEB.demo", "a" * 24, "10.244.0.9", "fd00:0:0::9", "alias.demo.internal"])
def test_an_end_of_a_trace_is_found_in_the_store(tmp_path: Path, word: str) -> None:
    """By any name, address or id; what is known only by its address is a sketch."""

    async def work() -> None:
        memory = Memory()
        one, two = Teller(memory, tmp_path, "h1"), Teller(memory, tmp_path, "h2")
        made = Endpoint(
            id="a" * 64, ifname="eth0", name="web", network="demo", host="h1", netns=7,
            addresses=("10.244.0.9/32", "fd00::9/128"), labels={"aliases": "alias"},
        )  # fmt: skip
        other = msgspec.structs.replace(made, id="b", name="db", netns=8, addresses=("10.244.0.8/32",), labels={})
        one.endpoints |= {made.identity: made, other.identity: other}
        _named(two, "c", "cache")
        await asyncio.gather(one.start(), two.start())
        await one.member.replica.write({"leases/demo/h1": Lease(network="demo", host="h1")})
        await eventually(lambda: two.member.remote.count() == 2, "h2 keeps both")
        assert two.endpoint_records.keeps(prefix("10.244.0.9"))
        assert not two.endpoint_records.keeps(prefix("10.244.0.90"))
        found = {endpoint.id: (host, endpoint) for host, endpoint in await two.endpoint_records.met(word)}
        assert found.keys() == {"a" * 64, "b"}
        assert found["a" * 64] == ("h1", made)
        host, sketch = found["b"]
        assert (host, sketch.name, sketch.netns, sketch.prefixes) == ("h1", "db", 0, other.prefixes)
        two.member.store.cut()
        assert {(host, endpoint.name, endpoint.netns) for host, endpoint in await two.endpoint_records.met(word)} == {
            ("h1", "web", 0),
            ("h1", "db", 0),
        }
        await asyncio.gather(one.stop(), two.stop())

    together(work)


def test_a_key_that_somebody_made_by_hand_stops_nothing(tmp_path: Path) -> None:
    """It belongs to no endpoint, and is deleted; broken records are put again, and each event is reported."""

    async def work() -> None:
        memory = Memory()
        one, two = Teller(memory, tmp_path, "h1"), Teller(memory, tmp_path, "h2")
        one.attach("a")
        await asyncio.gather(one.start(), two.start())
        await eventually(lambda: two.seen() == [("h1", "a")], "h2 sees a")
        await two.member.store.transaction({"endpoints/h1/x": b"{}", "endpoints/h1/": b"", "endpoints/h1/a/eth0": b"{"})
        one.attach("b")
        await eventually(lambda: two.seen() == [("h1", "a"), ("h1", "b")], "the others are gone")
        assert [e.id for e in await everywhere(two)] == ["a", "b"]
        await asyncio.gather(one.stop(), two.stop())

    together(work)


def test_a_removed_host_s_endpoints_stay_away(tmp_path: Path) -> None:
    """The operator's removal deletes them, and the host does not put them back."""

    async def work() -> None:
        memory = Memory()
        one, two = Teller(memory, tmp_path, "h1"), Teller(memory, tmp_path, "h2")
        one.attach("a")
        await asyncio.gather(one.start(), two.start())
        await eventually(lambda: two.seen() == [("h1", "a")], "h2 sees a")
        await two.member.leases.remove_host("h1")
        assert two.seen() == []
        await eventually(lambda: "gone/hosts/h1" in one.replica.records, "h1 hears of it")
        one.attach("b")
        await eventually(lambda: not one.endpoint_records.due, "h1 has looked at it")
        assert two.seen() == []
        await asyncio.gather(one.stop(), two.stop())

    together(work)


def test_whose_an_address_is_says_what_is_known(tmp_path: Path) -> None:
    """The name if there is one; else the id, with the host, and with Docker if it is Docker's."""
    one = Teller(Memory(), tmp_path, "h1")

    def whose(name: str, delivered: str = "") -> str:
        made = Endpoint(id="5fa4" * 16, ifname="eth0", network="demo", host="h1", name=name, delivered=delivered)
        one.endpoints.clear()
        one.endpoints[made.identity] = msgspec.structs.replace(made, addresses=("10.244.0.9/16",))
        return one.endpoint_records.holder("demo", prefix("10.244.0.9"))

    assert whose("web", "lsd1") == "web"
    assert whose("", "lsd1") == "Docker's endpoint 5fa45fa45fa4 on host h1"
    assert whose("") == f"{'5fa4' * 16} on host h1"
    assert one.endpoint_records.holder("demo", prefix("10.244.0.8")) == ""


def _named(teller: Teller, id_: str, name: str, network: str = "demo") -> None:
    made = Endpoint(id=id_, ifname="eth0", name=name, network=network, host=teller.name)
    teller.endpoints[made.identity] = made
    teller.endpoint_records.note(made.identity)


def test_a_container_is_named_by_what_a_list_shows(tmp_path: Path) -> None:
    """By id or name, or NAME@NETWORK; an id comes before a name, and a name of several is refused with all of them."""
    one = Teller(Memory(), tmp_path, "h1")
    _named(one, "4f1c", "web")
    _named(one, "77aa", "db", "front")
    _named(one, "88bb", "db", "back")
    _named(one, "db1", "cache")
    _named(one, "99cc", "db1")

    def ids(word: str, *, named: bool = True) -> list[str]:
        return [e.id for e in one.endpoint_records.here(word, named=named)]

    assert ids("4f1c") == ["4f1c"]
    assert ids("web") == ["4f1c"]
    assert ids("db@back") == ["88bb"]
    assert ids("db1") == ["db1"]
    assert ids("nobody") == []
    assert ids("web", named=False) == []
    with pytest.raises(Conflict) as refused:
        one.endpoint_records.here("db")
    assert refused.value.message == (
        "2 containers on this host are called db: db@front (77aa eth0), db@back (88bb eth0)"
    )
    assert "NAME@NETWORK" in refused.value.hint


@pytest.mark.parametrize(
    ("word", "named", "ifname", "found"),
    [
        ("d1", False, "eth0", ["eth0"]),
        ("d1", False, "", ["eth0", "eth1"]),
        ("d1", True, "", ["eth0", "eth1"]),
        ("d1@demo", True, "", ["eth0", "eth1"]),
    ],
)
def test_an_id_means_its_endpoints_in_two_namespaces(
    tmp_path: Path, word: str, named: bool, ifname: str, found: list[str]
) -> None:
    """The namespace was made again, and one endpoint is still in the old one: the remedy of attach detaches it."""
    one = Teller(Memory(), tmp_path, "h1")
    for number in range(2):
        made = Endpoint(id="d1", ifname=f"eth{number}", name="d1", network="demo", host="h1", netns=7 + number)
        one.endpoints[made.identity] = made
    assert [e.ifname for e in one.endpoint_records.here(word, named=named, ifname=ifname)] == found


def test_a_name_of_several_containers_is_told_apart_by_interface_or_network(tmp_path: Path) -> None:
    """The choice comes before the refusal; what it leaves of two containers is refused as ever."""
    one = Teller(Memory(), tmp_path, "h1")
    for number, network in enumerate(("front", "back", "back")):
        made = Endpoint(
            id=f"c{number}", ifname=f"eth{number}", name="web", network=network, host="h1", netns=7 + number
        )
        one.endpoints[made.identity] = made
    assert [e.id for e in one.endpoint_records.here("web", ifname="eth1")] == ["c1"]
    assert [e.id for e in one.endpoint_records.here("web", network="front")] == ["c0"]
    with pytest.raises(Conflict, match="2 containers on this host are called web"):
        one.endpoint_records.here("web", network="back")


def test_one_container_in_two_networks_of_docker_s_is_one(tmp_path: Path) -> None:
    """Docker gives each of its interfaces another id; the namespace is the same."""
    one = Teller(Memory(), tmp_path, "h1")
    for number, network in enumerate(("front", "back")):
        made = Endpoint(
            id=str(number) * 64, ifname=f"eth{number}", name="web", network=network, host="h1", netns=7,
            delivered=f"lsd{number}",
        )  # fmt: skip
        one.endpoints[made.identity] = made
    assert [e.network for e in one.endpoint_records.here("web")] == ["front", "back"]
    assert [e.network for e in one.endpoint_records.here("web@back")] == ["back"]


@pytest.mark.parametrize(
    ("cookies", "containers"),
    [((5, 5), 1), ((5, 6), 2), ((0, 0), 1), ((5, 0), 1), ((5, 0, 5), 1), ((5, 0, 6), 3)],
)
def test_an_inode_that_the_kernel_gave_again_is_another_container_s(
    tmp_path: Path, cookies: tuple[int, ...], containers: int
) -> None:
    """Its cookie says so; a record of an older agent has none, and is of the one namespace that has this inode."""
    one = Teller(Memory(), tmp_path, "h1")
    every = [
        Endpoint(id=f"c{n}", ifname=f"eth{n}", name="web", network="demo", host="h1", netns=7, netns_cookie=cookie)
        for n, cookie in enumerate(cookies)
    ]
    one.endpoints |= {made.identity: made for made in every}
    if containers > 1:
        with pytest.raises(Conflict, match=f"{containers} containers on this host are called web"):
            one.endpoint_records.here("web")
    else:
        assert one.endpoint_records.here("web") == every
    other = Endpoint(id="x", ifname="eth0", network="demo", host="h2", netns=7, netns_cookie=cookies[0])
    mixed = [every[0], other, *every[1:]]
    assert by_container(mixed) == ([*every, other] if containers == 1 else mixed)


@pytest.mark.parametrize(
    ("word", "found"),
    [
        ("db", ["a" * 64]),
        ("DB.demo", ["a" * 64]),
        ("shop-db-1.demo.internal", ["a" * 64]),
        ("db.other", []),
        ("aaaa", ["a" * 64]),
        ("aaa", []),
        ("b" * 24, ["b" * 30]),
        ("b" * 23, []),
        ("shop", []),
        ("", []),
    ],
)
def test_what_dns_answers_and_the_start_of_an_id_mean_a_container(
    tmp_path: Path, word: str, found: list[str]
) -> None:
    """The start of an engine's id has four digits, of any other what lists show; of a name it means nobody."""
    one = Teller(Memory(), tmp_path, "h1")
    for id_, name, labels in (("a" * 64, "shop-db-1", {"aliases": "db"}), ("b" * 30, "shop-web-1", {})):
        made = Endpoint(id=id_, ifname="eth0", name=name, network="demo", host="h1", labels=labels)
        one.endpoints[made.identity] = made
    assert [e.id for e in one.endpoint_records.here(word)] == found


def test_why_nothing_was_detached_is_told_though_the_store_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A detach needs no store, and what it did not find is explained as far as this host knows."""

    async def work() -> None:
        one, begun = Teller(Memory(), tmp_path, "h1"), clock()

        async def hangs(_word: str) -> None:
            await asyncio.sleep(3600)

        monkeypatch.setattr(one.endpoint_records, "named", hangs)
        why = await one.endpoint_records.missing("nobody", EventLog(tmp_path / "events"))
        assert "the store does not say whether another host has it" in why
        assert clock() - begun <= 2

    in_virtual_time(work)


def test_why_nothing_was_detached_is_told(tmp_path: Path) -> None:
    """Another interface, another host, gone already and never known are four things."""

    async def work() -> None:
        memory = Memory()
        one, two = Teller(memory, tmp_path, "h1"), Teller(memory, tmp_path, "h2")
        log = EventLog(tmp_path / "events")
        log.add("detach", "web left network demo", endpoint="4f1c", ifname="eth0", network="demo")
        await one.start()
        await two.start()
        _named(one, "77aa", "db", "front")
        _named(two, "88bb", "k1")
        await eventually(lambda: one.seen() == [("h2", "88bb")], "the store has what h2 has")
        assert "eth0 of network front" in await one.endpoint_records.missing("db", log)
        assert "`linkspan detach db` detaches eth0" in await one.endpoint_records.missing("db", log, named=False)
        assert "on host h2, where the command can detach it" in await one.endpoint_records.missing("k1", log)
        assert "where the command can label it" in await one.endpoint_records.missing("k1", log, to="label it")
        for word in ("web", "4f1c"):
            assert "was detached already, at 20" in await one.endpoint_records.missing(word, log)
        assert "no container on this host" in await one.endpoint_records.missing("nobody", log)
        await one.stop()
        await two.stop()

    together(work)


def test_a_burst_of_containers_is_few_writes_and_the_first_is_at_once(tmp_path: Path) -> None:
    """Three hundred that come within three seconds are one transaction in a tenth of a second, not one each."""
    written: list[float] = []

    async def work() -> None:
        memory = Memory()
        one, two = Teller(memory, tmp_path, "h1"), Teller(memory, tmp_path, "h2")
        await asyncio.gather(one.start(), two.start())
        commit = memory.commit

        def timed(request: Request) -> int:
            written.extend([clock()] if any(key.startswith("endpoints/h1/") for key in request.puts) else [])
            return commit(request)

        memory.commit = timed  # type: ignore[method-assign]
        begun = clock()
        for number in range(300):
            one.attach(f"c{number}")
            await asyncio.sleep(0.01)
        await soon(lambda: len(two.seen()) == 300, "h2 sees all", 1)
        assert written[0] - begun < 0.01
        assert len(written) <= 32, written
        await asyncio.gather(one.stop(), two.stop())

    in_virtual_time(work)
