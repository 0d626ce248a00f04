"""Real clusters in the lab: these need the cluster's agent, its stores and its backends, not the lab alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from linkspan.core.states.host import ROUTE_PROTOCOL
from support.lab.lab_runs import LabRun
from support.polling import HEALED_WITHIN, SHARED, until

HOSTS = 3
CONTAINERS = HOSTS
PAIRS = CONTAINERS * (CONTAINERS - 1) + HOSTS * CONTAINERS

ETCD = pytest.mark.skipif(shutil.which("etcd") is None, reason="needs etcd: apt install etcd-server")


def _cases() -> Iterator[Any]:
    """Every backend with each store, number of segments and kind of underlay that it serves."""
    for backend in ("vxlan", "host-gw", "ipip"):
        for segments in (1, 2):
            if backend == "host-gw" and segments == 2:
                continue  # has a test of its own
            for underlay in ("v4", "dual"):
                for store in ("sqlite", "etcd"):
                    name = f"{backend}-{segments}-{underlay}-{store}"
                    marks = [ETCD] if store == "etcd" else []
                    yield pytest.param(backend, segments, underlay, store, id=name, marks=marks)
    yield pytest.param("vxlan", 2, "v6", "sqlite", id="vxlan-2-v6-sqlite")


@pytest.mark.parametrize(("backend", "segments", "underlay", "store"), list(_cases()))
def test_everybody_reaches_everybody(
    lab: LabRun, backend: str, segments: int, underlay: str, store: str
) -> None:
    """Ping, TCP and full-sized packets with DF, from all containers and hosts to all containers; no drift left."""
    lab.run("up", f"--backend {backend} --segments {segments} --underlay {underlay} --store {store}")
    assert lab.json("test") == {"pairs": PAIRS, "ok": PAIRS, "failed": []}
    found = lab.json("show")
    addresses = [c["addresses"][0].partition("/")[0] for c in found["containers"]]
    assert len(set(addresses)) == CONTAINERS
    for host in ("h1", "h2", "h3"):
        assert json.loads(lab.exec(host, "linkspan diff -o json")) == {"put": [], "delete": []}
        names = {one["name"] for one in json.loads(lab.exec(host, "linkspan host list -o json"))}
        assert names == {"h1", "h2", "h3"}


@pytest.mark.parametrize(("backend", "mtu"), [("vxlan", 1450), ("ipip", 1480), ("host-gw", 1500)])
def test_the_network_s_mtu_is_the_underlay_s_less_the_overhead(lab: LabRun, backend: str, mtu: int) -> None:
    """Containers get it, and with jumbo frames underneath as much more."""
    lab.run("up", f"--backend {backend} --hosts 2")
    link = json.loads(lab.exec("c1", "ip -j link show eth0"))[0]
    assert link["mtu"] == mtu
    lab.run("down")
    lab.run("up", f"--backend {backend} --hosts 2 --mtu 9000")
    link = json.loads(lab.exec("c1", "ip -j link show eth0"))[0]
    assert link["mtu"] == mtu + 7500
    assert lab.json("test")["failed"] == []


def test_host_gw_reaches_whom_it_can_and_says_whom_it_cannot(lab: LabRun) -> None:
    """Over a router plain routes cannot be: up says so, and only the pairs of one segment are ok."""
    said = lab.run("up", "--backend host-gw --segments 2", code=1).stderr
    assert "is up, but has problems" in said
    failed = lab.json("test", code=3)["failed"]
    apart = [{one["from"][1:], one["to"][1:]} for one in failed]
    assert apart
    assert all("2" in pair for pair in apart)
    assert "h2" in lab.exec("h1", "linkspan status", code=3)


def test_vxlan_direct_routes_on_a_segment_and_tunnels_across(lab: LabRun) -> None:
    """With direct=true a peer on the same segment is one plain route, a peer beyond the router a tunnel."""
    lab.run("up", "--backend vxlan --segments 2 --opt direct=true")
    assert lab.json("test")["failed"] == []
    places = {c["name"]: c["addresses"][0].partition("/")[0] for c in lab.json("show")["containers"]}
    near = json.loads(lab.exec("h1", f"ip -j route get {places['c3']}"))[0]
    far = json.loads(lab.exec("h1", f"ip -j route get {places['c2']}"))[0]
    assert (near["dev"], near["gateway"]) == ("eth0", "192.0.2.3")
    assert far["dev"] != "eth0"


@pytest.fixture
def vxlan(cluster: LabRun) -> Iterator[LabRun]:
    """Give the shared cluster, and mend what a test has left broken."""
    yield cluster
    for host in cluster.json("show")["hosts"]:
        if host["broken"]:
            cluster.run("mend", host["name"])


@pytest.fixture(scope="module")
def cluster() -> Iterator[LabRun]:
    """Give three hosts with VXLAN on one segment, sharing an etcd where there is one."""
    found = LabRun()
    try:
        store = "etcd" if shutil.which("etcd") else "sqlite"
        found.run("up", f"--backend vxlan --store {store}")
        yield found
    finally:
        found.run("down")


@pytest.mark.parametrize(
    ("failure", "count"),
    [
        ("fdb-flush", lambda lab: lab.exec("h1", "bridge fdb show").count(" dst ")),
        ("routes-flush", lambda lab: lab.exec("h1", f"ip route show proto {ROUTE_PROTOCOL}").count("\n")),
        ("rules-flush", lambda lab: lab.exec("h1", "nft list ruleset").count("chain ")),
    ],
)
def test_what_is_flushed_is_back_within_two_seconds(
    vxlan: LabRun, failure: str, count: Callable[[LabRun], int]
) -> None:
    """FDB, routes and rules are put back as they were, and everybody reaches everybody."""
    before = count(vxlan)
    assert before > 0
    vxlan.run("break", "h1", failure)
    until(lambda: count(vxlan) == before, f"{failure} healed", HEALED_WITHIN)
    assert vxlan.json("test")["failed"] == []


def test_a_heal_names_its_object_as_people_write_it(vxlan: LabRun) -> None:
    """An FDB entry that was put back is reported with its MAC as text."""
    vxlan.run("break", "h1", "fdb-flush")
    mac = vxlan.exec("h1", "linkspan plan").partition("bridge fdb replace ")[2].split()[0]
    until(lambda: mac in vxlan.exec("h1", "linkspan events"), "the heal is told", HEALED_WITHIN)


def test_an_option_that_is_given_goes_before_what_auto_would_choose(vxlan: LabRun) -> None:
    """``direct=false`` without --backend means tunnels only, and a wrong value of it is refused."""
    said = vxlan.exec("h1", "linkspan network create own --pool 10.61.0.0/16 --opt direct=false")
    assert "backend vxlan, direct=false," in said
    vxlan.exec("h1", "linkspan network delete own")
    wrong = "linkspan network create own --pool 10.61.0.0/16 --opt direct=maybe"
    assert "direct=maybe is unknown" in vxlan.run("exec", "h1", "--", wrong, code=1).stderr


def test_a_block_length_that_does_not_fit_is_told_the_range(vxlan: LabRun) -> None:
    """In numbers, for the pools that are meant."""
    asked = "linkspan network create own --pool 10.61.0.0/16 --subnet-len 12"
    assert "from 16 to 30" in vxlan.run("exec", "h1", "--", asked, code=1).stderr


def test_a_drained_host_takes_no_container_until_it_is_undrained(vxlan: LabRun) -> None:
    """Its running containers stay; the refusal says what to do."""
    vxlan.exec("h1", "linkspan host drain h3")

    def refused() -> bool:
        done = vxlan.run("attach", "h3", "more", code=-1)
        if done.returncode == 0:
            vxlan.run("detach", "more")
        return "host h3 is drained" in done.stderr

    until(refused, "h3 hears that it is drained")
    assert vxlan.json("test")["failed"] == []
    vxlan.exec("h1", "linkspan host undrain h3")
    until(lambda: vxlan.run("attach", "h3", "more", code=-1).returncode == 0, "h3 takes a container again")
    vxlan.run("detach", "more")


def test_a_killed_agent_loses_no_packet(vxlan: LabRun) -> None:
    """The data path needs no agent."""
    vxlan.run("break", "h2", "agent-kill")
    assert vxlan.json("test")["failed"] == []
    vxlan.run("mend", "h2")
    assert vxlan.json("test")["failed"] == []


def test_a_link_that_was_down_is_healed_when_it_is_back(vxlan: LabRun) -> None:
    """The routes that the kernel dropped with the link are put again."""
    vxlan.run("break", "h2", "link-down")
    failed = vxlan.json("test", code=3)["failed"]
    assert all("2" in one["from"] + one["to"] for one in failed)
    vxlan.run("mend", "h2")
    until(
        lambda: vxlan.run("test", code=-1).returncode == 0, "everybody reaches everybody", HEALED_WITHIN + 2 * SHARED
    )


@ETCD
def test_a_host_that_is_cut_off_from_the_store_goes_on(vxlan: LabRun) -> None:
    """No pair is lost; status reports it; containers can be attached to it from its own block."""
    vxlan.run("break", "h3", "store-cut")
    assert vxlan.json("test")["failed"] == []
    until(
        lambda: not json.loads(vxlan.exec("h3", "linkspan status -o json", code=-1))["store"]["ok"],
        "status tells that the store is away",
    )
    vxlan.run("attach", "h3", "late")
    vxlan.run("mend", "h3")
    until(
        lambda: json.loads(vxlan.exec("h3", "linkspan status -o json", code=-1))["store"]["ok"],
        "status tells that the store is back",
    )
    assert vxlan.json("test")["failed"] == []
    vxlan.run("detach", "late")


def test_endpoints_of_all_hosts_are_listed_on_each(vxlan: LabRun) -> None:
    """`endpoint list` is of the cluster."""
    until(lambda: "c2" in vxlan.exec("h1", "linkspan endpoint list"), "h1 knows c2")


@ETCD
def test_lists_of_one_host_s_containers_say_which_host_it_is(vxlan: LabRun) -> None:
    """In a cluster the column is always there; detach names the host of a container that runs elsewhere."""
    until(lambda: "c2" in vxlan.exec("h1", "linkspan endpoint list"), "h1 knows c2")
    for words in ("endpoint show c2", "endpoint list --local"):
        header, row, *_ = vxlan.exec("h1", f"linkspan {words}").splitlines()
        assert header.split()[1] == "HOST", words
        assert row.split()[1] == ("h2" if "show" in words else "h1")
    assert "c2: 0 interfaces detached: it is on host h2" in vxlan.exec("h1", "linkspan detach c2")


def test_a_partition_parts_two_hosts_only(vxlan: LabRun) -> None:
    """h1 and h2 lose each other, h3 loses nobody; status and doctor name the peer; afterwards everything is ok."""
    vxlan.run("break", "h1", "partition:h2")
    apart = vxlan.json("test", code=3)["failed"]
    assert {frozenset((one["from"][1:], one["to"][1:])) for one in apart} == {frozenset("12")}
    until(
        lambda: "h2" in str(json.loads(vxlan.exec("h1", "linkspan status -o json", code=-1))["unreachable"]),
        "status names the peer that does not answer",
        10.0 * SHARED,
    )
    checks = json.loads(vxlan.exec("h1", "linkspan doctor -o json", code=-1))
    assert any((one["check"], one["status"]) == ("hosts", "fail") and "h2" in one["detail"] for one in checks)
    vxlan.run("mend", "h2")
    assert vxlan.json("test")["failed"] == []


def test_a_rebooted_host_has_its_block_again(vxlan: LabRun) -> None:
    """Its lease outlasts the reboot, its container gets an address of the same block, and all reach it."""
    before = json.loads(vxlan.exec("h1", "linkspan host show h2 -o json"))["leases"]
    vxlan.run("break", "h2", "reboot")
    after = json.loads(vxlan.exec("h1", "linkspan host show h2 -o json"))["leases"]
    assert [one["prefixes"] for one in after] == [one["prefixes"] for one in before]
    assert vxlan.json("test")["failed"] == []


def test_a_killed_helper_is_started_again(lab: LabRun) -> None:
    """If IPIP runs in user space its helper is back within two seconds; the kernel's needs none."""
    lab.run("up", "--backend ipip --hosts 2")
    done = lab.run("break", "h1", "helper-kill", code=-1)
    if "no helper program" in done.stderr:
        pytest.skip("the kernel has ipip: no helper runs")
    until(lambda: lab.run("test", code=-1).returncode == 0, "everybody reaches everybody", HEALED_WITHIN + 2 * SHARED)
