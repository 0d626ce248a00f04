"""Records that somebody with the store's credentials made up, under real agents with containers."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping

import msgspec
import pytest

from linkspan.core.addresses import derived_mac, mac_text, prefix
from linkspan.core.errors import LinkspanError
from linkspan.lab import record
from support.lab.cluster_runs import ClusterRun
from support.polling import SHARED, until

pytestmark = pytest.mark.skipif(shutil.which("etcdctl") is None, reason="needs etcd and etcdctl")

HOSTS = ("h1", "h2", "h3")
LEASE = "leases/demo/h9"


@pytest.fixture(scope="module")
def lab_() -> Iterator[ClusterRun]:
    """Give three hosts with VXLAN on one segment and an etcd."""
    found = ClusterRun()
    try:
        found.run("up", "--backend vxlan --store etcd")
        found.joined("demo")
        until(lambda: found.run("test", code=-1).returncode == 0, "all containers reach each other")
        yield found
    finally:
        found.run("down")


@pytest.fixture
def cluster(lab_: ClusterRun) -> Iterator[ClusterRun]:
    """Give the shared lab, and see that a test has left it well, with the routes that it had."""
    until(lambda: _complete(lab_), "every host has its peers' routes, and no address is tentative")
    before = _routes(lab_)
    yield lab_
    until(lambda: not any(_named(lab_, host) for host in HOSTS), "no record fails any more")
    assert all(lab_.status(host)["store"]["ok"] for host in HOSTS), "and none is missed"
    until(lambda: _routes(lab_) == before, "all routes are as they were")


def _complete(cluster: ClusterRun) -> bool:
    peers = all(cluster.ip(host, "-4 route show").count(" dev lsx") >= len(HOSTS) - 1 for host in HOSTS)
    return peers and not any(cluster.ip(host, "-6 address show tentative") for host in HOSTS)


def _named(cluster: ClusterRun, host: str) -> dict[str, str]:
    """Return what a host's status says of records that fail: by key, the record's host and the reason."""
    return {one["key"]: f"{one['host']}: {one['why']}" for one in cluster.status(host)["records"]}


def _all_name(cluster: ClusterRun, key: str, words: str) -> None:
    """Wait until every host's status says so of a record."""
    for host in HOSTS:
        until(lambda host=host: words in _named(cluster, host).get(key, ""), f"{host} says {words!r} of {key}")


def _routes(cluster: ClusterRun) -> list[str]:
    """Return every route of every host, in all tables."""
    return sorted(
        f"{host}: {line}"
        for host in HOSTS
        for family in (4, 6)
        for line in cluster.ip(host, f"-{family} route show table all").splitlines()
    )


def _put(cluster: ClusterRun, records: Mapping[str, object]) -> None:
    start = cluster.keys("hosts/h2")[0].removesuffix("hosts/h2")
    for key, value in records.items():
        cluster.etcdctl("put", start + key, given=msgspec.json.encode(value).decode())


def _delete(cluster: ClusterRun, *keys: str) -> None:
    start = cluster.keys("hosts/h2")[0].removesuffix("hosts/h2")
    for key in keys:
        cluster.etcdctl("del", start + key)


def _lease(prefixes: list[str], offer: dict[str, str] | None = None) -> dict[str, object]:
    """Return a lease of host h9 that is well formed but for what it claims or offers."""
    well = {"mac": mac_text(derived_mac("vtep", "h9", "demo")), "address": "198.51.100.99"}
    ways = {"vxlan": {"data": well if offer is None else offer}}
    return {"network": "demo", "host": "h9", "prefixes": prefixes, "addresses": [], "endpoints": ways}


def _host(name: str = "h9") -> dict[str, object]:
    return {"id": "h9", "name": name, "underlay": {"ifname": "eth0", "addresses": ["198.51.100.99/24"]}}


def _said(cluster: ClusterRun, words: str) -> str:
    """Return what a command prints on h1, whatever it finds."""
    return cluster.run("exec", "h1", "--", f"linkspan {words}", code=-1).stdout


def _underlay(cluster: ClusterRun) -> str:
    """Return the prefix of the hosts' own link."""
    return str(prefix(record.load(cluster.name).host("h1").addresses[0]).network())


def _store(cluster: ClusterRun) -> str:
    """Return the store's address."""
    return str(cluster.status("h1")["store"]["url"]).split("//")[1].split(":")[0]


def test_a_lease_counts_only_for_what_its_host_was_given(cluster: ClusterRun) -> None:
    """h9 claims everything, the store, others' blocks and addresses: no route changes, each is named, pings go on."""
    block = prefix(cluster.blocks("h1", "demo")[0])
    outside, no_block, nobody = "outside the network's pools", "blocks of this network are /24", "no record says"
    claims = {
        "0.0.0.0/0": outside,
        "128.0.0.0/1": outside,
        "127.0.0.0/8": outside,
        _underlay(cluster): outside,
        f"{_store(cluster)}/32": outside,
        f"{block.address}/25": no_block,
        f"{cluster.address('c1')}/32": no_block,
        "10.244.0.0/16": no_block,
        "10.244.253.0/24": nobody,
    }
    before = _routes(cluster)
    with cluster.no_loss("c1", cluster.address("c2")):
        _put(cluster, {"hosts/h9": _host()})
        for text, why in claims.items():
            _put(cluster, {LEASE: _lease([text])})
            _all_name(cluster, LEASE, f"h9: {text}: ")
            assert why in _named(cluster, "h2")[LEASE]
            assert _routes(cluster) == before, text
        many = [f"100.{64 + n // 256}.{n % 256}.0/24" for n in range(20_000)]
        _put(cluster, {LEASE: _lease(many)})
        _all_name(cluster, LEASE, "h9: it has 20000 blocks, and may have 4096")
        assert _routes(cluster) == before
        assert LEASE in cluster.exec("h2", "linkspan status", code=3)
        checks = [c for c in cluster.call("h2", "GET", "/v1/doctor") if c["check"] == "records"]
        assert [(c["status"], LEASE in c["detail"]) for c in checks] == [("fail", True)]
        _delete(cluster, LEASE)
        until(lambda: not any(_named(cluster, host) for host in HOSTS), "nothing is said of a record that is gone")
        cluster.call("h1", "DELETE", "/v1/hosts/h9")
    assert _routes(cluster) == before


def test_a_network_over_what_hosts_need_is_not_in_force(cluster: ClusterRun) -> None:
    """Its pool is the underlay, everything, or another network's: no route comes, and any host can delete it."""
    before = _routes(cluster)
    pools = {_underlay(cluster): "overlaps with this host's route", "0.0.0.0/0": "this host", "10.244.128.0/17": "demo"}
    for pool, why in pools.items():
        gateway = prefix(pool).at(1).address
        fields = {"pools": [pool], "gateways": [gateway], "subnet_len": {"4": 26}, "options": {"vni": "77"}}
        with cluster.no_loss("c1", cluster.address("c2")):
            _put(cluster, {"networks/evil": {"name": "evil", "backend": "vxlan", **fields}})
            _all_name(cluster, "networks/evil", why)
            assert _routes(cluster) == before
            assert "evil" in cluster.run("attach", "h1", "c9", "--network evil", code=1).stderr
            if pool != "0.0.0.0/0":
                cluster.delete("evil")
            else:
                _delete(cluster, "networks/evil")
            until(lambda: not any(_named(cluster, host) for host in HOSTS), "it is gone")


def test_what_no_agent_could_have_written_stops_no_other(cluster: ClusterRun) -> None:
    """A promise of half a second, an offer without an address, a huge VNI: all are named, and a new network works."""
    before = _routes(cluster)
    evil = {"name": "evil", "backend": "vxlan", "pools": ["10.77.0.0/16"], "gateways": ["10.77.0.1"]}
    _put(
        cluster,
        {
            "settings/cluster": {"reclaim_after": 0.5},
            "hosts/h9": _host(),
            LEASE: _lease(["10.244.253.0/24"], {"mac": "02:00:00:00:00:09"}),
            "networks/evil": evil | {"subnet_len": {"4": 24}, "options": {"vni": "99999999999"}},
        },
    )
    _all_name(cluster, "settings/cluster", "reclaim_after is 0.5 s")
    _all_name(cluster, LEASE, "its offer for vxlan: it has no address")
    _all_name(cluster, "networks/evil", "vni=99999999999 is out of range")
    assert _routes(cluster) == before
    assert cluster.host("h2")["state"] == "alive"
    cluster.create("after", "10.90.0.0/16")
    cluster.run("attach", "h1", "a1", "--network after")
    cluster.run("attach", "h2", "a2", "--network after")
    until(lambda: cluster.pings("a1", cluster.address("a2")), "the new network works", 10 * SHARED)
    for name in ("a1", "a2"):
        cluster.run("detach", name)
    cluster.delete("after")
    _delete(cluster, "settings/cluster", LEASE, "networks/evil")
    cluster.call("h1", "DELETE", "/v1/hosts/h9")


@pytest.mark.parametrize(
    ("route", "way"),
    [
        ("10.60.0.0/16 dev eth0", "by eth0"),
        ("blackhole 10.60.0.0/16", "of type blackhole"),
        ("unreachable 10.60.0.0/16", "of type unreachable"),
        ("prohibit 10.60.0.0/16", "of type prohibit"),
        ("throw 10.60.0.0/16", "of type throw"),
        ("local 10.60.0.0/16 dev lo table local", "of type local"),
    ],
)
def test_a_pool_over_a_host_s_own_route_waits_there_until_the_route_is_gone(
    cluster: ClusterRun, route: str, way: str
) -> None:
    """h2 has the route before the network comes: it is kept, and named on h2; later it is only named."""
    before = _routes(cluster)
    cluster.ip("h2", f"route add {route}")
    try:
        wish = {"name": "six", "pools": ["10.60.1.0/24"], "subnet_len": [26], "backend": "vxlan"}
        cluster.call("h1", "POST", "/v1/networks", wish)
        until(lambda: f"10.60.0.0/16 {way}" in _named(cluster, "h2").get("networks/six", ""), "h2 names it")
        until(lambda: "10.60.1.0/24" in cluster.ip("h1", "route show table all"), "h1 has the pool")
        assert "10.60.1." not in cluster.ip("h2", "route show table all")
        said = cluster.run("attach", "h2", "s2", "--network six", code=1).stderr
        assert "not in force on this host" in said
        assert f"overlaps with this host's route 10.60.0.0/16 {way}" in " ".join(said.split())
        assert "networks/six" not in _named(cluster, "h1")
    finally:
        cluster.ip("h2", f"route del {route}")
    cluster.joined("six")
    until(lambda: "10.60.1.0/24" in cluster.ip("h2", "route show table all"), "h2 has the pool")
    cluster.ip("h2", f"route add {route}")
    try:
        until(lambda: "overlaps with this host's own route 10.60.0.0/16" in cluster.not_well("h2"), "h2 says so")
        checks = cluster.call("h2", "GET", "/v1/doctor")
        assert any(c["status"] == "fail" and f"own route 10.60.0.0/16 {way}" in c["detail"] for c in checks)
        assert "10.60.1.0/24" in cluster.ip("h2", "route show table all"), "what is in force stays"
        with pytest.raises(LinkspanError, match="overlaps"):
            cluster.call("h2", "POST", "/v1/networks", {"name": "ten", "pools": ["10.60.2.0/24"]})
    finally:
        cluster.ip("h2", f"route del {route}")
        cluster.delete("six")
    until(lambda: _routes(cluster) == before, "all is as before")


def test_a_container_s_address_that_the_host_itself_takes_is_named(cluster: ClusterRun) -> None:
    """Somebody gives h1 the address of a container of h2, on another link: its packets end on h1."""
    address = cluster.address("c2")
    cluster.ip("h1", f"addr add {address}/32 dev lo")
    try:
        until(lambda: f"own route {address}/32 of type local" in cluster.not_well("h1"), "h1 says so")
    finally:
        cluster.ip("h1", f"addr del {address}/32 dev lo")
    until(lambda: cluster.pings("c1", address), "the container is reached again")


NOBODY_S = {
    "blocks/demo/10.244.9.0/24": {"schema": 1, "owner": "h77", "at": 1796010441.0, "back": False, "over": ""},
    "leases/demo/h77": {"network": "demo", "host": "h77", "prefixes": ["10.244.9.0/24"]},
    "addresses/demo/10.244.9.9": {"host": "h77", "container": "c", "ifname": "eth0", "at": 1796010441.0},
}


@pytest.mark.parametrize("key", NOBODY_S)
def test_what_is_of_a_host_without_a_record_is_named_and_not_missed(cluster: ClusterRun, key: str) -> None:
    """It is put and deleted, or removed with its host by an operator: new networks come, and nothing is left."""
    for removal in (lambda: _delete(cluster, key), lambda: _said(cluster, "host remove h77")):
        _put(cluster, {key: NOBODY_S[key]})
        _all_name(cluster, key, "host h77 has no record")
        removal()
        until(lambda: not any(_named(cluster, host) for host in HOSTS), "it is gone")
        assert all(cluster.status(host)["store"]["lost"] == [] for host in HOSTS)
        cluster.create("after", "10.91.0.0/16")
        cluster.delete("after")


def test_a_host_s_removal_ends_the_wait_for_what_the_store_lost(cluster: ClusterRun) -> None:
    """A host, its block and its lease are deleted by hand: all miss them, until the host is removed at one of them."""
    offer = {"mac": mac_text(derived_mac("vtep", "h8", "demo")), "address": "198.51.100.99"}
    keys = {
        "blocks/demo/10.244.8.0/24": {"owner": "h8", "at": 1796010441.0},
        "hosts/h8": _host() | {"id": "h8"},
        "leases/demo/h8": _lease(["10.244.8.0/24"], offer) | {"host": "h8"},
    }
    _put(cluster, keys)
    for host in HOSTS:
        until(lambda host=host: "h8" in {h["id"] for h in cluster.call(host, "GET", "/v1/hosts")}, f"{host} knows h8")
    _delete(cluster, *keys)
    for host in HOSTS:
        until(lambda host=host: cluster.status(host)["store"]["lost"] == sorted(keys), f"{host} misses them")
    cluster.call("h1", "DELETE", "/v1/hosts/h8")
    for host in HOSTS:
        until(lambda host=host: cluster.status(host)["store"]["lost"] == [], f"{host} misses nothing")


def test_a_block_that_was_removed_is_claimed_again_by_the_host_whose_lease_has_it(cluster: ClusterRun) -> None:
    """Somebody removed its record as an agent would: the host does not wait for another change, nor for a restart."""
    key = f"blocks/demo/{cluster.blocks('h1', 'demo')[0]}"
    _put(cluster, {f"gone/{key}": {"by": "h9", "at": 1.0}})
    _delete(cluster, key)
    until(lambda: any("/gone/" not in one for one in cluster.keys(key)), "h1 claims it again", 20)


def test_a_record_that_is_put_back_is_used_and_not_named(cluster: ClusterRun) -> None:
    """A host's, a lease's and a network's record is spoilt, and is again what it was."""
    start = cluster.keys("hosts/h2")[0].removesuffix("hosts/h2")
    for key in ("hosts/h2", "leases/demo/h2", "networks/demo"):
        value = cluster.etcdctl("get", "--print-value-only", start + key).rstrip("\n")
        cluster.etcdctl("put", start + key, given="{")
        _all_name(cluster, key, "Input data was truncated")
        cluster.etcdctl("put", start + key, given=value)
        until(lambda: not any(_named(cluster, host) for host in HOSTS), f"{key} is used again")


def test_a_host_s_name_with_control_characters_is_shown_escaped(cluster: ClusterRun) -> None:
    """In tables, errors, events and logs: no escape sequence, and no line that the name forges."""
    _put(cluster, {"hosts/h9": _host("h9\x1b[31m\nh1 forged"), LEASE: _lease(["10.244.253.0/24"])})
    shown = "h9\\u001b[31m\\u000ah1 forged"
    until(lambda: shown in _said(cluster, "host list"), "h1 lists it")
    said = [_said(cluster, words) for words in ("host list", "status", "events")]
    log = (record.load(cluster.name).folder / "h1").glob("*.log")
    for text in (*said, *(path.read_text() for path in log)):
        assert "\x1b" not in text
        assert "\nh1 forged" not in text
    assert shown in said[1]
    cluster.call("h1", "DELETE", "/v1/hosts/h9")
