"""Checks of records: each by itself, and against the others."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from linkspan.cluster.grants import granted
from linkspan.core.addresses import derived_mac, mac_text, prefix
from linkspan.core.errors import Conflict, Invalid
from linkspan.core.model import (
    Allowance,
    Egress,
    Endpoint,
    Host,
    Lease,
    Network,
    Offer,
    Reservation,
    Underlay,
)
from linkspan.store import record_form, validation
from linkspan.store.memory import Memory
from linkspan.store.records import SHARED, AddressRecord, BlockRecord, ClusterSettings, Common
from support.polling import eventually
from support.records.replicas import Member, network, together

VXLAN = {"mac": mac_text(derived_mac("vtep", "h9", "demo")), "address": "192.0.2.9"}


def _lease(**changes: Any) -> Lease:
    made = Lease(network="demo", host="h9", prefixes=("10.244.9.0/24",), addresses=("10.244.9.1/32",))
    return msgspec.structs.replace(made, **changes)


def _host(**changes: Any) -> Host:
    return msgspec.structs.replace(Host(id="h9", name="h9", underlay=Underlay("eth0", ("192.0.2.9/24",))), **changes)


def _offers(**data: str) -> Lease:
    return _lease(endpoints={"vxlan": Offer({key: value for key, value in (VXLAN | data).items() if value})})


def _leaving(*addresses: str, **changes: Any) -> Network:
    return msgspec.structs.replace(network(**changes), egress=tuple(map(Egress, addresses)))


def _endpoint(**changes: Any) -> Endpoint:
    made = Endpoint(id="c1", ifname="eth0", network="demo", addresses=("10.244.9.2/24",))
    return msgspec.structs.replace(made, **changes)


SOUND: dict[str, msgspec.Struct] = {
    "networks/demo": network(),
    "leases/demo/h9": _offers(),
    "hosts/h9": _host(),
    "blocks/demo/10.244.9.0/24": BlockRecord("h9", 5.0),
    "blocks/demo/fd00::/64": BlockRecord("h9", 5.0),
    "addresses/demo/10.244.9.7": AddressRecord("h9", "c1", "eth0", 5.0),
    "endpoints/h9/c1/eth0": _endpoint(),
    "settings/cluster": ClusterSettings(reclaim_after=60),
    "settings/hosts": Common({"bgp.as": "64512"}),
    "allowances/demo/web//0": Allowance("demo", "web"),
    "reservations/demo/10.244.1.0/24": Reservation("demo", "10.244.1.0/24"),
}


@pytest.mark.parametrize("key", sorted(SOUND))
def test_what_agents_write_is_taken(key: str) -> None:
    """A record as an agent has it is read, of every kind."""
    assert not record_form.misplaced(key)
    assert validation.decode(key, msgspec.json.encode(SOUND[key]), type(SOUND[key])) == SOUND[key]


@pytest.mark.parametrize(
    ("key", "record", "why"),
    [
        ("networks/demo", network(options={"vni": "99999999999"}), "vni=99999999999 is out of range"),
        ("networks/demo", network(options={"vni": "9" * 5000}), "out of range"),
        ("networks/demo", network(options={}), "lacks options"),
        ("networks/demo", network(options={"vni": "5", "port": "65536"}), "port=65536 is out of range"),
        ("networks/demo", network(mtu=99999), "MTU is 99999"),
        ("networks/demo", network(mtu=-1), "MTU is -1"),
        ("networks/demo", network(pool="0.0.0.0/0", gateways=("0.0.0.1",), length=24), "which is this host"),
        ("networks/demo", network(pool="127.0.0.0/8", gateways=("127.0.0.1",)), "loopback"),
        ("networks/demo", network(pool="224.0.0.0/8", gateways=("224.0.0.1",)), "multicast"),
        ("networks/demo", network(pool="169.254.0.0/16", gateways=("169.254.0.1",)), "link-local"),
        ("networks/demo", network(pool="10.244.1.0/31", length=30, gateways=("10.244.1.0",)), "do not fit pool"),
        ("networks/demo", network(length=8), "do not fit pool"),
        ("networks/demo", network(length=99), "is 99, and not from 0 to 32"),
        ("networks/demo", network(subnet_len={}), "is -1, and not from 0 to 32"),
        ("networks/demo", network(gateways=("10.9.0.1",)), "gateway 10.9.0.1 is not in pool"),
        ("networks/demo", _leaving("127.0.0.1"), "loopback"),
        ("networks/demo", _leaving("x"), "'x' is not an IP address"),
        ("networks/demo", _leaving("192.0.2.9", "192.0.2.8"), "two egress addresses of one family"),
        ("networks/demo", _leaving("192.0.2.9", internal=True), "cannot have the egress address 192.0.2.9"),
        ("networks/demo", _leaving("192.0.2.9", backend="wireguard", options={}), "cannot have the egress address"),
        ("networks/demo", network("other"), "its name 'other' differs from that of its key"),
        ("networks/a b", network("a b"), "'a b' is not a name"),
        ("leases/demo/h9", _lease(host="h1"), "its host 'h1' differs from that of its key"),
        ("leases/demo/h9", _lease(prefixes=tuple(f"10.{n >> 8}.{n & 255}.0/24" for n in range(4097))), "4097 blocks"),
        ("leases/demo/h9", _lease(prefixes=("10.244.9.1/24",)), "10.244.9.0/24 would be"),
        ("leases/demo/h9", _lease(addresses=("127.0.0.1",)), "loopback"),
        ("leases/demo/h9", _offers(address=""), "its offer for vxlan: it has no address"),
        ("leases/demo/h9", _offers(address="224.0.0.1"), "multicast"),
        ("leases/demo/h9", _offers(mac=""), "'missing', which is not the MAC of its host"),
        ("leases/demo/h9", _offers(mac="02:00:00:00:00:01"), "not the MAC of its host"),
        ("leases/demo/h9", _lease(endpoints={"ipip": Offer({})}), "its offer for ipip: it has no address"),
        ("leases/demo/h9", _lease(endpoints={"ipsec": Offer({"address": "x"})}), "its offer for ipsec: 'x'"),
        ("leases/demo/h9", _lease(endpoints={"sdn": Offer({}, 1 << 60)}), "generation"),
        ("hosts/h9", _host(id="h1"), "its id 'h1' differs from that of its key"),
        ("hosts/h9", _host(name="x" * 300), "its name has 300 bytes"),
        ("hosts/h9", _host(withdraws=0.5), "withdraws is 0.5 s"),
        ("hosts/h9", _host(keys={"wireguard": "x"}), "'x' is no WireGuard key"),
        ("hosts/h9", _host(settings={"wireguard.port": "70000"}), "wireguard.port=70000"),
        ("hosts/h9", _host(underlay=Underlay("eth0", ("127.0.0.1/8",))), "loopback"),
        ("hosts/h9", _host(underlay=Underlay("eth0", ("192.0.2.9/24",), mtu=10**9)), "MTU is 1000000000"),
        ("hosts/h9", _host(underlay=Underlay("eth0", (), advertise_port=70000)), "advertised port is 70000"),
        ("blocks/demo/10.244.9.1/24", BlockRecord("h9", 5.0), "10.244.9.0/24 would be"),
        ("blocks/demo/10.244.9.0/24", BlockRecord("h9", 1e300), "its time 1e+300"),
        ("addresses/demo/10.244.9.7", AddressRecord("h9", "c", "e", -1.0), "its time -1"),
        ("addresses/demo/10.244.009.7", AddressRecord("h9", "c", "e", 5.0), "10.244.009.7"),
        ("endpoints/h9/c1/eth0", _endpoint(addresses=("x",)), "'x' is not an IP address"),
        ("endpoints/h9/c2/eth0", _endpoint(), "its id and interface 'c1/eth0'"),
        ("settings/cluster", ClusterSettings(reclaim_after=0.5), "reclaim_after is 0.5 s"),
        ("settings/cluster", ClusterSettings(reclaim_after=1e12), "reclaim_after is 1e+12 s"),
        ("settings/cluster", ClusterSettings(writes=-1), "schema that is written is -1"),
        ("settings/hosts", Common({"wireguard.port": "x"}), "wireguard.port=x"),
        ("allowances/demo/web/tcp/99999", Allowance("demo", "web", "tcp", 99999), "port is 99999"),
        ("reservations/demo/x/24", Reservation("demo", "x/24"), "x/24"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_with_the_reason(key: str, record: msgspec.Struct, why: str) -> None:
    """Numbers have bounds, an offer has what peers need, and a record is of the host and network of its key."""
    with pytest.raises(Invalid) as error:
        validation.decode(key, msgspec.json.encode(record), type(record))
    assert why in error.value.message


@pytest.mark.parametrize(
    "key",
    [
        *("hosts", "hosts/a/b", "leases/demo", "blocks/demo/x", "addresses", "endpoints/h1/x", "alive/"),
        *("alive/(egress)/demo", "networks/(egress)/a/b", "policies/(egress)/a/b", "gone/networks/(egress)/a/b"),
        *("gone/networks", "gone/networks/", "gone/networks/x/", "gone/networks/x/demo", "gone/leases/demo"),
    ],
)
def test_a_key_that_no_agent_writes_is_named_and_not_followed(tmp_path: Path, key: str) -> None:
    """Followers of records see only keys of the kinds' own shapes, until the store drops this one."""

    async def work() -> None:
        memory = Memory()
        one = Member(memory, tmp_path, "h1")
        await one.start()
        await one.store.transaction({key: b"{}"})
        await eventually(lambda: key in one.replica.reasons, "it is named")
        assert "divided by slashes" in one.replica.reasons[key]
        assert key not in one.replica.records
        assert not any(key in keys for keys in one.seen)
        await one.store.transaction({}, deletes=[key])
        await eventually(lambda: not one.replica.reasons, "it is gone")
        await one.stop()

    together(work)


@pytest.mark.parametrize("kind", sorted(record_form.WORDS))
@pytest.mark.parametrize("begin", ["", "gone/"])
def test_only_a_liveness_record_may_be_of_an_egress_address(begin: str, kind: str) -> None:
    """Of every other kind, such a key has the number of words of its kind, or is misplaced."""
    taken = kind == "alive" or record_form.WORDS[kind] == 4
    assert bool(record_form.misplaced(f"{begin}{kind}/(egress)/a/b")) is not taken


@pytest.mark.parametrize("key", [key for key in sorted(SOUND) if not key.startswith("settings/")])
def test_a_value_under_a_key_of_another_shape_is_refused(key: str) -> None:
    """A reader of the record gets a reason, and no other error, whatever number of words the key has."""
    kind = key.partition("/")[0]
    for words in ("", "/(egress)", "/(egress)/a/b/c/d/e"):
        with pytest.raises(Invalid):
            validation.check(kind + words, SOUND[key])


def test_the_reason_of_a_key_with_too_many_words_is_the_key() -> None:
    """The value may be sound."""
    with pytest.raises(Invalid, match="its key has 4 words, which no key of a Network has"):
        validation.check("networks/(egress)/a/b", network())


@pytest.mark.parametrize("key", ["gone", "gone/", "gone/gone/networks/demo"])
def test_a_tombstone_is_of_a_record(key: str) -> None:
    """A tombstone of nothing, or of another tombstone, is misplaced; one of a kind that a newer agent knows is not."""
    assert "names a deleted record" in record_form.misplaced(key)
    assert not record_form.misplaced("gone/networks/demo")
    assert not record_form.misplaced("gone/unknown/kind/of/record")


def test_json_that_is_nested_too_deep_is_a_record_like_any_other_spoilt_one(tmp_path: Path) -> None:
    """The parser's own limit is no defect of the agent."""

    async def work() -> None:
        one = Member(Memory(), tmp_path, "h1")
        await one.start()
        await one.store.transaction({"hosts/x": b'{"id":' * 100_000})
        await eventually(lambda: "hosts/x" in one.replica.records, "it is known")
        assert one.hosts.all() == {}
        assert one.replica.reasons == {"hosts/x": "its JSON is nested too deep"}
        await one.stop()

    together(work)


@pytest.mark.parametrize(
    ("prefixes", "counts", "why"),
    [
        (("10.244.9.0/24",), ("10.244.9.0/24",), ""),
        (("10.244.9.0/24", "10.244.8.0/24"), ("10.244.9.0/24",), "10.244.8.0/24: no record says"),
        (("10.244.1.0/24",), (), ""),  # another's: a dispute, which is told by itself
        (("10.244.9.0/25",), (), "10.244.9.0/25: blocks of this network are /24"),
        (("10.244.0.0/16",), (), "blocks of this network are /24"),
        (("0.0.0.0/0", "192.0.2.0/24", "::/0"), (), "0.0.0.0/0, 192.0.2.0/24, ::/0: it is outside the network's pools"),
        (tuple(f"10.0.{n}.0/24" for n in range(9)), (), "10.0.0.0/24, 10.0.1.0/24, 10.0.2.0/24 and 6 more: it is out"),
    ],
)
def test_a_lease_counts_for_blocks_that_the_store_gives_its_host(
    prefixes: tuple[str, ...], counts: tuple[str, ...], why: str
) -> None:
    """Of the network's own length, in its pools, by their records; the rest is left out and named."""
    owners = {prefix("10.244.9.0/24"): BlockRecord("h9", 1.0), prefix("10.244.1.0/24"): BlockRecord("h1", 1.0)}
    found = granted(network(), _lease(prefixes=prefixes, addresses=()), owners.get, lambda _address: False)
    assert found.lease.prefixes == counts
    assert why in found.refused
    assert bool(found.refused) == bool(why)


@pytest.mark.parametrize(
    ("address", "counts"),
    [("10.244.9.1", True), ("10.244.9.1/32", True), ("10.244.7.7", True), ("10.244.1.1", False), ("10.244.0.1", False)],
)
def test_a_host_s_own_address_is_of_its_blocks_or_an_exact_one(address: str, counts: bool) -> None:
    """An address in the host's own block or an exact one counts; another host's address and the gateway do not."""
    owners = {prefix("10.244.9.0/24"): BlockRecord("h9", 1.0)}
    found = granted(network(), _lease(addresses=(address,)), owners.get, {prefix("10.244.7.7")}.__contains__)
    assert found.lease.addresses == ((address,) if counts else ())
    assert bool(found.refused) == (not counts)


def test_exact_addresses_count_in_the_pools_where_nobody_else_has_them(tmp_path: Path) -> None:
    """An address outside the pools, the gateway, and one that the block's owner has do not count."""

    async def work() -> None:
        one, net = Member(Memory(), tmp_path, "h1"), network()
        await one.start()
        await one.networks.create(net)
        lease = await one.leases.claim(net, {})
        taken = await one.attach(net, "c1")
        (own,) = lease.addresses
        free = prefix(lease.prefixes[0]).at(200).address
        other = "10.244.77.7" if "10.244.77." not in free else "10.244.78.7"
        mine = AddressRecord("h9", "c9", "eth0", time.time())
        await one.replica.write({"hosts/h9": Host(id="h9", name="h9")})
        wanted = [taken, prefix(own).address, "10.244.0.1", "10.9.9.9", free, other]
        await one.replica.write({f"addresses/demo/{address}": mine for address in dict.fromkeys(wanted)})
        assert {a.address for a in one.leases.counted(net, {"h9"})["h9"]} == {free, other}
        assert set(one.leases.refused([net])) == {f"addresses/demo/{a}" for a in set(wanted) - {free, other}}
        await one.stop()

    together(work)


def test_a_block_is_not_given_from_what_somebody_put_into_the_own_lease(tmp_path: Path) -> None:
    """h1's lease is written over with the whole pool: h1 claims nothing of it, takes it out, and continues."""

    async def work() -> None:
        one, net = Member(Memory(), tmp_path, "h1"), network()
        await one.start()
        await one.networks.create(net)
        await one.converge(net)
        before = one.leases.mine("demo")
        assert before is not None
        spoilt = msgspec.structs.replace(before, prefixes=(*before.prefixes, "10.244.0.0/16", "0.0.0.0/0"))
        await one.store.transaction({"leases/demo/h1": msgspec.json.encode(spoilt)})
        await eventually(lambda: one.leases.mine("demo") == spoilt, "h1 has it")
        assert [one_.prefixes for one_ in one.leases.serving([net])] == [before.prefixes]
        await one.converge(net)
        assert one.leases.mine("demo") == before
        assert list(one.leases.blocks("demo")) == list(before.blocks)
        given = prefix(await one.attach(net, "c1"))
        assert any(block.holds(given) for block in before.blocks)
        await one.stop()

    together(work)


def test_what_never_counted_is_not_missed(tmp_path: Path) -> None:
    """Somebody deletes such a lease and such a network from the store, without a tombstone: they are gone."""

    async def work() -> None:
        one, net = Member(Memory(), tmp_path, "h1"), network()
        await one.start()
        await one.networks.create(net)
        await one.converge(net)
        evil = {"leases/demo/h9": _lease(), "networks/evil": _other("evil", "10.244.0.0/17")}
        await one.store.transaction({key: msgspec.json.encode(value) for key, value in evil.items()})
        await eventually(lambda: evil.keys() <= one.replica.records.keys(), "they are known")
        one.networks.refresh()
        await one.store.transaction({}, deletes=[*evil, "leases/demo/h1"])
        await eventually(lambda: not evil.keys() & one.replica.records.keys(), "they are gone")
        assert one.leases.mine("demo") is not None, "what counts is put back"
        await eventually(lambda: one.replica.settled, "and nothing is missed")
        await one.stop()

    together(work)


# Networks


def _other(name: str, pool: str, length: int = 24, **more: object) -> Network:
    gateway = prefix(pool).at(1).address
    return network(name, pool, length, backend="ipip", gateways=(gateway,), **more)


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (_other("evil", "10.244.128.0/17"), "pool 10.244.128.0/17 overlaps with a pool of network demo"),
        (_other("evil", "10.0.0.0/8"), "pool 10.0.0.0/8 overlaps with a pool of network demo"),
        (network("evil", pool="10.9.0.0/16", gateways=("10.9.0.1",)), "network demo has vni/100 already"),
        (_other("evil", "192.0.2.0/24"), "overlaps with this host's route 192.0.2.0/24 by eth0"),
        (_other("evil", "198.51.100.0/24"), "covers 198.51.100.2, the underlay address of host h2"),
    ],
)
def test_a_network_that_takes_what_others_have_is_not_in_force(tmp_path: Path, other: Network, why: str) -> None:
    """The one that was there stays, over restarts too; the other comes into force when nothing is in its way."""

    async def work() -> None:
        memory = Memory()
        one = Member(memory, tmp_path, "h1")
        await one.start()
        away = Host(id="h2", name="h2", underlay=Underlay("eth0", ("198.51.100.2/24",)))
        await one.replica.write({"networks/demo": network(), "hosts/h2": away})
        await one.store.transaction({"networks/evil": msgspec.json.encode(other)})
        await eventually(lambda: "networks/evil" in one.replica.records, "it is known")
        one.networks.look({prefix("192.0.2.0/24"): "by eth0", prefix("0.0.0.0/0"): "by eth0"}, None)
        one.networks.refresh()
        assert why in one.networks.withheld["evil"]
        assert [n.name for n in one.networks.all()] == ["demo"]
        assert [n.name for n in one.networks.every()] == ["demo", "evil"]
        with pytest.raises(Conflict, match="network evil is not in force on this host"):
            one.networks.get("evil")
        await one.replica.write({"networks/demo": network(mtu=1400)})  # later than the other now
        await one.stop()
        again = Member(memory, tmp_path, "h1")
        again.networks.look({prefix("192.0.2.0/24"): "by eth0"}, None)
        await again.start()
        assert again.networks.get("demo").mtu == 1400
        assert "evil" in again.networks.withheld
        again.networks.look({}, None)
        await again.replica.write({}, deletes=["networks/demo", "hosts/h2"])
        again.networks.refresh()
        assert [n.name for n in again.networks.all()] == ["evil"]
        await again.networks.delete("evil")
        assert not again.networks.every()
        await again.stop()

    together(work)


def test_a_network_in_force_stays_as_it_was_when_its_record_takes_too_much(tmp_path: Path) -> None:
    """A pool is added that covers the underlay: the network continues without that pool."""

    async def work() -> None:
        one = Member(Memory(), tmp_path, "h1")
        await one.start()
        await one.replica.write({"networks/demo": network()})
        one.networks.look({prefix("192.0.2.0/24"): "by eth0"}, None)
        one.networks.refresh()
        more = network(pools=("10.244.0.0/16", "192.0.2.0/24"), gateways=("10.244.0.1", "192.0.2.1"))
        await one.replica.write({"networks/demo": more})
        one.networks.refresh()
        assert one.networks.all() == (network(),)
        assert "192.0.2.0/24" in one.networks.withheld["demo"]
        assert one.networks.get("demo") == network()
        await one.stop()

    together(work)


def test_a_host_in_a_pool_is_not_reached_and_costs_no_network(tmp_path: Path) -> None:
    """Its record says that its underlay is in a pool that is in force: it is the host that is left out."""

    async def work() -> None:
        one = Member(Memory(), tmp_path, "h1")
        await one.start()
        await one.replica.write({"networks/demo": network()})
        one.networks.refresh()
        underlay = Underlay("eth0", ("10.244.3.3/24",))
        inside = Host(id="h9", name="h9", underlay=underlay)
        await one.replica.write({"hosts/h9": inside})
        one.networks.refresh()
        assert [n.name for n in one.networks.all()] == ["demo"]
        why = "its underlay address 10.244.3.3 is in pool 10.244.0.0/16 of network demo"
        assert one.networks.covering(inside) == why
        hidden = msgspec.structs.replace(underlay, hidden=True)
        assert not one.networks.covering(msgspec.structs.replace(inside, underlay=hidden))
        await one.stop()

    together(work)


def test_what_an_operator_shared_is_no_host_s_lease() -> None:
    """A shared block counts for no lease, whichever lease lists it."""
    found = granted(network(), _lease(addresses=()), lambda _block: BlockRecord(SHARED, 1.0), lambda _address: False)
    assert found.lease.prefixes == ()
