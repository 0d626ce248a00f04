"""The promise of records: whatever the store has, no agent fails, and nothing that it puts lies outside the pools."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from linkspan.backends import CROSSING, backend, migration
from linkspan.backends.wireguard.backend import asked
from linkspan.cluster.peers import seen
from linkspan.controller.holders import holders
from linkspan.core.addresses import Prefix, derived_mac, mac_text, prefix
from linkspan.core.errors import LinkspanError
from linkspan.core.host_view import Facts, HostView, Peer
from linkspan.core.model import Host, Lease, Network, Offer
from linkspan.core.states.host import Address, NftElement, Route, State
from linkspan.core.states.ipsec import Strongswan
from linkspan.core.states.programs import Bird
from linkspan.core.states.wireguard import AllowedIp, Tools
from linkspan.store.memory import Memory
from linkspan.store.records import BlockRecord
from support.polling import eventually
from support.records.peers import HERE, THERE
from support.records.replicas import Member

KEYS = {1: "A" * 43 + "=", 2: "B" * 42 + "A="}
FACTS = Facts(
    programs=(
        Bird("/usr/sbin/bird", "/usr/sbin/birdc", "/state/bird"),
        Strongswan("/usr/sbin/charon-systemd", "/state/ipsec", kernel=True, plugin=True),
        Tools(public=KEYS[1], file="/state/private.key"),
    )
)
POOL, TWO = prefix("10.77.0.0/16"), "10.77.2.0/24"
ADMITTED = ("ways", "vteps", "marks")
"""The sets that let packets in by their sources; the last part of an element is the source."""

PREFIXES = (
    *("0.0.0.0/0", "128.0.0.0/1", "::/0", "10.77.0.0/16", TWO, "10.77.2.0/25", "10.77.2.9/32", "10.77.9.0/24"),
    *("192.0.2.1/32", "192.0.2.0/24", "127.0.0.0/8", "198.51.100.0/24", "10.78.9.0/24", "10.77.2.1"),
)
prefixes = st.lists(st.sampled_from(PREFIXES), max_size=4)
texts = st.one_of(
    st.sampled_from(
        (*PREFIXES, "10.77.2.9", "10.77.2.2", "10.77.0.1", "192.0.2.1", "127.0.0.1", "224.0.0.1", "fe80::1",
         "10.77.2.0/33", "h1", "h2", "h9", "demo", "evil", "vxlan", "shared", "\x1b[31m", "\n", "", "/",
         "x" * 300, "9" * 5000)
    ),
    st.text(max_size=12),
)  # fmt: skip
numbers = st.one_of(
    st.sampled_from((0, -1, 1, 23, 33, 129, 65536, 1 << 31, 1 << 63, 1 << 64, 10**30, 0.5, 1e308, 24, 1500)),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
)
values: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, texts),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(texts, inner, max_size=4)),
    max_leaves=8,
)


def _sound(way: str) -> dict[str, Any]:
    """Return records of host h9 and of a network that are as agents write them, to be spoilt; by key."""
    ours = {"id": "h9", "name": "h9", "underlay": {"ifname": "eth0", "addresses": ["192.0.2.9/24"]}}
    offer = {"address": "192.0.2.9", "mac": mac_text(derived_mac("vtep", "h9", "demo"))}
    network = msgspec.to_builtins(_network(way, "evil", "10.78.0.0/16", "78"))
    endpoint = {"id": "c9", "ifname": "eth0", "network": "demo", "addresses": ["10.77.9.9/32"], "name": "c9"}
    lease = {"network": "demo", "host": "h9", "prefixes": ["10.77.9.0/24"], "addresses": ["10.77.9.1"]}
    return {
        "hosts/h9": ours | {"keys": {"wireguard": "C" * 42 + "A="}},
        "leases/demo/h9": lease | {"endpoints": {way: {"data": offer, "generation": 0}}},
        "blocks/demo/10.77.9.0/24": {"owner": "h9", "at": 5.0, "back": False, "over": ""},
        "addresses/demo/10.77.9.7": {"host": "h9", "container": "c7", "ifname": "eth0", "at": 5.0},
        "addresses/demo/10.77.2.9": {"host": "h9", "container": "c7", "ifname": "eth0", "at": 5.0},
        "networks/evil": network,
        "leases/evil/h9": lease | {"network": "evil", "prefixes": ["10.78.9.0/24"], "addresses": []},
        "blocks/evil/10.78.9.0/24": {"owner": "h9", "at": 5.0},
        "endpoints/h9/c9/eth0": endpoint,
        "settings/cluster": {"writes": 1, "reclaim_after": 60.0},
        "settings/hosts": {"settings": {"wireguard.port": "51821"}},
        "allowances/demo/evil/tcp/80": {"source": "demo", "target": "evil", "protocol": "tcp", "port": 80},
        "reservations/demo/10.77.5.0/24": {"network": "demo", "cidr": "10.77.5.0/24"},
        "gone/hosts/h8": {"by": "h9", "at": 1.0},
    }


def _network(way: str, name: str = "demo", pool: str = str(POOL), vni: str = "77") -> Network:
    options = {"vni": vni} if way == "vxlan" else {}
    made = Network(
        name=name, pools=(pool,), subnet_len={"4": 24}, backend=way, options=options, mtu=1400,
        gateways=(prefix(pool).at(1).address,),
    )  # fmt: skip
    return backend(way).completed(made, ())


def _well(way: str) -> dict[str, msgspec.Struct]:
    """Return the records of two hosts that no case of the test touches."""
    found: dict[str, msgspec.Struct] = {"networks/demo": _network(way)}
    for number, underlay in ((1, HERE), (2, THERE)):
        id_, block = f"h{number}", f"10.77.{number}.0/24"
        offer = {"address": f"192.0.2.{number}", "mac": mac_text(derived_mac("vtep", id_, "demo"))}
        host = Host(id=id_, name=id_, underlay=underlay, keys={"wireguard": KEYS[number]})
        found[f"hosts/{id_}"] = msgspec.structs.replace(host, settings={"ipsec.psk-file": "/etc/key"})
        found[f"leases/demo/{id_}"] = Lease(
            network="demo", host=id_, prefixes=(block,), addresses=(f"10.77.{number}.1",), endpoints={way: Offer(offer)}
        )
        found[f"blocks/demo/{block}"] = BlockRecord(id_, float(number))
    return found


@st.composite
def spoilt(draw: st.DrawFn) -> tuple[str, list[tuple[str, bytes]]]:
    """Return a backend and records: sound ones, of which some have a part exchanged, another key, or any bytes."""
    way = draw(st.sampled_from(CROSSING))
    sound = _sound(way)
    # What is well formed and claims too much comes often: chance alone would seldom make it.
    claimed = draw(prefixes)
    if claimed:
        sound["leases/demo/h9"]["prefixes"] = claimed
        if draw(st.booleans()):
            sound |= {f"blocks/demo/{one}": {"owner": "h9", "at": 5.0} for one in claimed}
        sound["networks/evil"]["pools"] = [draw(st.sampled_from((*PREFIXES, "10.78.0.0/16")))]
        sound["endpoints/h9/c9/eth0"]["addresses"] = claimed
    found = {key: msgspec.json.encode(value) for key, value in sound.items()}
    for key in draw(st.lists(st.sampled_from(sorted(sound)), max_size=5)):
        how = draw(st.integers(0, 9))
        raw = found.pop(key, b"")
        if how == 0:
            raw = draw(st.one_of(st.binary(max_size=40), st.sampled_from((raw[:-1], b"[" * 5000, b'{"a":' * 5000))))
        elif how < 9:
            raw = msgspec.json.encode(_changed(draw, sound[key]))
        words = key.split("/")
        if how == 9:
            words = [words[0], *draw(st.lists(texts, max_size=4))]
        found["/".join(words)] = raw
    well = _well(way)
    return way, [one for one in found.items() if one[0] not in well and not one[0].startswith("gone/networks/demo")]


def _changed(draw: st.DrawFn, value: dict[str, Any]) -> dict[str, Any]:
    """Return a record with one of its parts, at some depth, exchanged or left out."""
    name = draw(st.sampled_from(sorted(value)))
    inner = value[name]
    if isinstance(inner, dict) and inner and draw(st.booleans()):
        return value | {name: _changed(draw, inner)}
    if not draw(st.integers(0, 4)):
        return {other: one for other, one in value.items() if other != name}
    return value | {name: draw(st.one_of(values, texts, numbers, prefixes, prefixes))}


def _wanted(member: Member, here: Host) -> Iterator[tuple[Network, State]]:
    """Yield all that host h1 would put, each state with the network that it is of."""
    networks = member.networks.all()
    hosts, leases = member.hosts, member.leases
    pairs = [(lease.network, lease.host) for lease in leases.all() if lease.host != here.id]
    met = seen(hosts, leases, member.networks, member.conflicts, pairs)
    peers = tuple(
        msgspec.structs.replace(one, device="eth0", on_link=True) for one in met.values() if isinstance(one, Peer)
    )
    view = HostView(networks, member.allowances.all(), FACTS, hosts.whole(here), leases.serving(networks))
    names = [network.name for network in networks]
    view = asked(view, map(hosts.whole, hosts.all().values()), leases.networks(names))
    view = msgspec.structs.replace(view, peers=peers)
    there = {network.name: network for network in networks}
    for network in networks:
        yield from ((network, state) for state in _possible(migration.network_states(view, network)))
        for way in network.ways:
            yield from ((network, state) for state in _possible(backend(way.backend).host(view)))
    for peer in peers:
        network = there[peer.lease.network]
        try:
            found = migration.meet(view, network, peer).states
            migration.needs(view, network, peer)
        except LinkspanError:
            continue
        yield from ((network, state) for state in found)


def _possible(states: Iterable[State]) -> Iterator[State]:
    try:
        yield from states
    except LinkspanError:  # told in `status`; what came before it stands
        return


def _place(state: State) -> Prefix | None:
    """Return where a state leads packets to, or from where it lets them in; None where it does neither."""
    if isinstance(state, Route):
        return state.destination
    if isinstance(state, AllowedIp | Address):
        return state.prefix
    if isinstance(state, NftElement) and state.set.startswith(ADMITTED):
        return prefix(state.parts[-1])
    return None


@settings(max_examples=300, deadline=None)
@given(spoilt(), st.booleans())
def test_nothing_in_the_store_fails_an_agent_or_leads_outside_the_pools(
    case: tuple[str, list[tuple[str, bytes]]], before: bool
) -> None:
    """Records of any shape, there before the agent or coming later: h2 is reached as ever, and all is in the pools."""
    way, records = case

    async def work(folder: Path) -> None:
        memory = Memory()
        member = Member(memory, folder, "h1")
        well = {key: msgspec.json.encode(value) for key, value in _well(way).items()}
        await member.store.transaction(well)
        here = msgspec.json.decode(well["hosts/h1"], type=Host)
        member.own_record.change(**msgspec.structs.asdict(here))
        if before and records:
            await member.store.transaction(dict(records))
        await member.start()
        member.networks.look({prefix("192.0.2.0/24"): "by eth0"}, here.underlay)
        if not before and records:
            await member.store.transaction(dict(records))
            kept = [key for key, _ in records if not key.startswith("endpoints/") or key.startswith("endpoints/h1/")]
            seen_all = lambda: all(key in member.replica.records or key in member.replica.reasons for key in kept)  # noqa: E731
            await eventually(seen_all, "the records are known")
        demo = _network(way)
        await member.converge(demo)
        holders(member.networks, member.allowances.all(), member.hosts.all(), member.leases)
        member.leases.refused(member.networks.all())
        assert demo in member.networks.all()
        told = list(_wanted(member, here))
        for network, state in told:
            place = _place(state)
            assert place is None or any(pool.holds(place) for pool in network.prefixes), state
        for network in member.networks.all():
            assert not any(pool.overlaps(prefix("192.0.2.0/24")) for pool in network.prefixes)
        if way not in ("bgp", "sdn"):  # whose routes to peers are the speaker's, or the switches'
            assert any(isinstance(state, Route) and state.destination == prefix(TWO) for _, state in told)
        assert await member.attach(demo, "c1")
        assert await member.endpoint_records.known("demo")
        assert [one async for some in member.endpoint_records.everywhere() for one in some]
        await member.stop()

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(work(Path(folder)))
