"""Faults of a cluster and bad input, on one lab that every test leaves well."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest

from linkspan.core.errors import LinkspanError
from linkspan.lab import record
from support.lab.cluster_runs import ClusterRun
from support.polling import SHARED, until

pytestmark = pytest.mark.skipif(shutil.which("etcdctl") is None, reason="needs etcd and etcdctl")


@pytest.fixture(scope="module")
def lab_() -> Iterator[ClusterRun]:
    """Give three hosts with VXLAN on one segment and an etcd."""
    found = ClusterRun()
    try:
        found.run("up", "--backend vxlan --store etcd")
        yield found
    finally:
        found.run("down")


@pytest.fixture
def cluster(lab_: ClusterRun) -> Iterator[ClusterRun]:
    """Give the shared lab, and see that a test has left it well."""
    yield lab_
    for host in lab_.json("show")["hosts"]:
        if host["broken"]:
            lab_.run("mend", host["name"])
    for container in record.load(lab_.name).containers:
        if container.name not in ("c1", "c2", "c3"):
            lab_.run("detach", container.name)
    for network in lab_.call("h1", "GET", "/v1/networks"):
        if network["name"] != "demo":
            lab_.delete(network["name"])


# Networks on all hosts


def test_a_network_s_life_on_one_host_is_its_life_on_all(cluster: ClusterRun) -> None:
    """Created, given another MTU and deleted on h1: h3 follows each time, and nothing of it stays."""
    cluster.create("life", "10.90.0.0/16")
    vni = cluster.call("h3", "GET", "/v1/networks/life")["options"]["vni"]
    until(lambda: f"id {vni} " in cluster.ip("h3", "-d link show type vxlan"), "h3 has its device")
    cluster.call("h1", "PATCH", "/v1/networks/life", {"mtu": 1400})
    until(lambda: cluster.call("h3", "GET", "/v1/networks/life")["mtu"] == 1400, "h3 knows the new MTU")
    cluster.delete("life")
    until(lambda: f"id {vni} " not in cluster.ip("h3", "-d link show type vxlan"), "h3 has no device of it")
    until(lambda: "10.90." not in cluster.ip("h3", "route show table all"), "h3 has no route of it")


def test_a_vni_and_a_pool_are_one_network_s_alone(cluster: ClusterRun) -> None:
    """Given twice, on whichever host, each is refused with the other network's name."""
    cluster.create("first", "10.90.0.0/16", options={"vni": "4242"})
    with pytest.raises(LinkspanError, match="VNI 4242 is used by network first"):
        cluster.call(
            "h2",
            "POST",
            "/v1/networks",
            {"name": "second", "pools": ["10.91.0.0/16"], "backend": "vxlan", "options": {"vni": "4242"}},
        )
    with pytest.raises(LinkspanError, match="network first"):
        cluster.call(
            "h3", "POST", "/v1/networks", {"name": "second", "pools": ["10.90.128.0/17"], "backend": "vxlan"}
        )


def test_sixteen_networks_live_side_by_side_and_apart(cluster: ClusterRun) -> None:
    """In each, containers on two hosts reach each other; from one network to another nobody passes."""
    for number in range(15):
        cluster.call(
            "h1",
            "POST",
            "/v1/networks",
            {"name": f"n{number}", "pools": [f"10.{100 + number}.0.0/16"], "backend": "vxlan"},
        )
    for number in range(15):
        cluster.joined(f"n{number}")
    for number in (0, 7, 14):
        cluster.run("attach", "h1", f"a{number}", f"--network n{number}")
        cluster.run("attach", "h2", f"b{number}", f"--network n{number}")
        assert cluster.pings(f"a{number}", cluster.address(f"b{number}"))
    assert cluster.silent("a0", cluster.address("b7"))
    assert cluster.silent("b14", cluster.address("a0"))
    assert cluster.silent("a7", cluster.address("c2"))


# Blocks and addresses


def test_a_full_block_is_followed_by_another(cluster: ClusterRun) -> None:
    """With blocks of /29 the sixth container makes its host claim a second one, and all hosts have the way to it."""
    cluster.create("small", "10.90.0.0/24", subnet_len=[29])
    assert len(cluster.blocks("h2", "small")) == 1
    for number in range(9):
        cluster.run("attach", "h2", f"s{number}", "--network small")
    assert len(cluster.blocks("h2", "small", "h2")) == 2
    until(lambda: len(cluster.blocks("h2", "small", "h1")) == 2, "h1 knows the second block")
    until(lambda: cluster.pings("h1", cluster.address("s8")), "h1 reaches the last container", 3 * SHARED)


def test_a_pool_too_small_is_an_error_on_the_host_that_got_none(cluster: ClusterRun) -> None:
    """Two blocks for three hosts: one says so in its status, the two others are ok."""
    wish = {"name": "tight", "pools": ["10.90.0.0/27"], "subnet_len": [28], "backend": "vxlan"}
    cluster.call("h1", "POST", "/v1/networks", wish)
    without = ""

    def said() -> bool:
        nonlocal without
        # While leases are young a host may name the network for a peer that does not receive in it yet, too.
        names = [h for h in ("h1", "h2", "h3") if "no /28 block is left" in cluster.not_well(h)]
        without = names[0] if len(names) == 1 else ""
        return bool(without)

    until(said, "one host says it")
    assert "network update --add-pool" in cluster.not_well(without)
    one, two = sorted({"h1", "h2", "h3"} - {without})
    cluster.run("attach", one, "t1", "--network tight")
    cluster.run("attach", two, "t2", "--network tight")
    until(lambda: cluster.pings("t1", cluster.address("t2")), "t1 reaches t2")
    assert cluster.run("attach", without, "t3", "--network tight", code=1).stderr


def test_exact_addresses_reach_each_other_and_move(cluster: ClusterRun) -> None:
    """In a network of exact addresses, one given by --ip lives on h1, then on h2; all hosts follow."""
    cluster.create("exact", "10.90.0.0/16", ipam="exact")
    cluster.run("attach", "h1", "e1", "--network exact --ip 10.90.7.7")
    cluster.run("attach", "h3", "e3", "--network exact")
    until(lambda: cluster.pings("e3", "10.90.7.7"), "e3 reaches e1", 5 * SHARED)
    said = cluster.run("attach", "h2", "e2", "--network exact --ip 10.90.7.7", code=1).stderr
    assert "in use by e1 on host h1" in said
    cluster.run("detach", "e1")
    cluster.run("attach", "h2", "e2", "--network exact --ip 10.90.7.7")
    until(lambda: cluster.pings("e3", "10.90.7.7"), "e3 reaches e2", 5 * SHARED)


def test_an_exact_address_of_another_host_s_block_is_refused_by_its_name(cluster: ClusterRun) -> None:
    """--ip from a block that nobody owns works in a network of blocks; from h2's block it does not on h1."""
    theirs = cluster.blocks("h2", "demo")[0].rpartition(".")[0] + ".99"
    assert "host h2" in cluster.run("attach", "h1", "x1", f"--ip {theirs}", code=1).stderr
    owned = {block for host in ("h1", "h2", "h3") for block in cluster.blocks(host, "demo")}
    free = next(f"10.244.{n}.77" for n in range(9, 250) if f"10.244.{n}.0/24" not in owned)
    cluster.run("attach", "h1", "x1", f"--ip {free}")
    until(lambda: cluster.pings("c3", free), "c3 reaches it", 5 * SHARED)


# Hosts


def test_a_drained_host_claims_nothing_new(cluster: ClusterRun) -> None:
    """Drained it gets no block of a new network; undrained it does."""
    cluster.call("h1", "PATCH", "/v1/hosts/h3", {"drained": "1"})
    cluster.call(
        "h1", "POST", "/v1/networks", {"name": "later", "pools": ["10.90.0.0/16"], "backend": "vxlan"}
    )
    until(lambda: "h3 is drained" in cluster.not_well("h3"), "h3 says that it is drained")
    assert cluster.host("h3")["state"] == "drained"
    cluster.call("h1", "PATCH", "/v1/hosts/h3", {"drained": ""})
    cluster.joined("later")


def test_a_host_s_new_underlay_address_is_followed(cluster: ClusterRun) -> None:
    """Its lease is unchanged, and its peers send to the new address within two seconds."""
    lease = cluster.blocks("h3", "demo")
    old = cluster.host("h3")["underlay"]["addresses"][0]
    new = old.replace(".3/", ".33/")
    cluster.ip("h3", f"addr del {old} dev eth0")
    cluster.ip("h3", f"addr add {new} dev eth0")
    try:
        until(lambda: new.partition("/")[0] in cluster.inside("h1", "bridge fdb show"), "h1 sends there", 2.5 * SHARED)
        until(lambda: cluster.pings("c1", cluster.address("c3")), "c1 reaches c3", 3 * SHARED)
        assert cluster.blocks("h3", "demo") == lease
    finally:
        cluster.ip("h3", f"addr del {new} dev eth0")
        cluster.ip("h3", f"addr add {old} dev eth0")
    until(lambda: cluster.pings("c1", cluster.address("c3")), "c1 reaches c3 again")


def test_a_lease_that_somebody_overwrote_is_put_right(cluster: ClusterRun) -> None:
    """Its host sees that it is not what it announces: else its peers would send elsewhere until the next change."""
    (key,) = cluster.keys("leases/demo/h3")
    right = cluster.etcdctl("get", key, "--print-value-only").strip()
    address = cluster.host("h3")["underlay"]["addresses"][0].partition("/")[0]
    assert right.count(f'"{address}"') == 1
    cluster.etcdctl("put", key, right.replace(f'"{address}"', '"192.0.2.99"'))
    until(lambda: cluster.etcdctl("get", key, "--print-value-only").strip() == right, "the lease is right", 2 * SHARED)
    until(lambda: address in cluster.inside("h1", "bridge fdb show"), "h1 sends there", 2 * SHARED)
    assert cluster.pings("c1", cluster.address("c3"))


def test_two_agents_that_live_by_one_id_do_not_overwrite_each_other_for_ever(cluster: ClusterRun) -> None:
    """Machines that were copied begin at the same moment: neither answers each change of the lease while both live."""
    (key,) = cluster.keys("leases/demo/h3")
    right = cluster.etcdctl("get", key, "--print-value-only").strip()
    alive, address = cluster.keys("alive/h3")[0], cluster.host("h3")["underlay"]["addresses"][0].partition("/")[0]

    def other(times: int) -> int:
        for _ in range(times):
            cluster.etcdctl("put", alive, "copy:1")
            cluster.etcdctl("put", key, right.replace(f'"{address}"', '"192.0.2.99"'))
        return int(json.loads(cluster.etcdctl("get", key, "-w", "json"))["kvs"][0]["version"])

    def told() -> bool:
        cluster.etcdctl("put", alive, "copy:1")
        return "h3 is in use by another agent that lives, on copy" in json.dumps(cluster.status("h3"))

    until(told, "h3 names the other one")
    before = other(1)
    assert other(20) - before < 30
    until(lambda: cluster.etcdctl("get", key, "--print-value-only").strip() == right, "the lease is right once it went")


def test_two_hosts_with_one_underlay_address_are_named(cluster: ClusterRun) -> None:
    """A record that claims h2's address for another host is reported in every status."""
    record_ = json.loads(cluster.etcdctl("get", cluster.keys("hosts/h2")[0], "--print-value-only"))
    twin = cluster.keys("hosts/h2")[0].replace("hosts/h2", "hosts/twin")
    cluster.etcdctl("put", twin, json.dumps(record_ | {"id": "twin", "name": "twin"}))
    until(lambda: "hosts h2 and twin have the same underlay address" in cluster.not_well("h1"), "h1 names both")
    cluster.call("h1", "DELETE", "/v1/hosts/twin")
    until(lambda: "twin" not in cluster.not_well("h1"), "it is told no more")


def test_a_second_agent_with_one_host_id_is_refused(cluster: ClusterRun) -> None:
    """It does not start, and names the host with that id; it runs on the switch, where there is no other agent."""
    lab = record.load(cluster.name)
    folder = lab.folder / "second"
    words = ["--state-dir", str(folder / "state"), "--socket", str(folder / "a.sock"), "--host-id", "h2"]
    store = cluster.status("h1")["store"]["url"]
    argv = ["ip", "netns", "exec", lab.switch, sys.executable, "-m", "linkspan.cli.main", "agent"]
    (folder / "state").mkdir(parents=True)
    done = subprocess.run(
        [*argv, *words, "--store", store], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 1
    assert "host id h2 is in use by another agent" in done.stderr


def test_a_silent_host_is_named_within_ten_seconds(cluster: ClusterRun) -> None:
    """With its agent killed, pings to the host are still answered, and liveness reports it."""
    cluster.run("break", "h2", "agent-kill")
    said = {"network": "", "host": "h2", "why": "its agent has been silent for a while"}
    until(lambda: said in cluster.status("h1")["unreachable"], "h1 names h2", 10 * SHARED)
    assert cluster.host("h2")["state"] == "silent"
    cluster.run("mend", "h2")
    until(lambda: "h2" not in cluster.not_well("h1"), "h2 is well again", 10 * SHARED)


# The store


def test_a_garbage_record_is_skipped_and_named(cluster: ClusterRun) -> None:
    """All hosts continue, whatever the record's kind, and name it until it is gone."""
    prefix = cluster.keys("hosts/h2")[0].removesuffix("hosts/h2")
    keys = [
        "networks/bad",
        "hosts/bad",
        "leases/demo/bad",
        "blocks/demo/10.244.254.0/24",
        "blocks/demo/x",
        "addresses/demo/y",
    ]
    for key in keys:
        cluster.etcdctl("put", prefix + key, "{garbage")
    until(lambda: set(keys) <= set(cluster.status("h3")["store"]["unreadable"]), "h3 names them")
    cluster.create("after", "10.90.0.0/16")
    for key in keys:
        cluster.etcdctl("del", prefix + key)
    until(lambda: not cluster.status("h3")["store"]["unreadable"], "they are gone")
    assert cluster.status("h3")["store"]["ok"]


def test_an_emptied_store_costs_no_ping(cluster: ClusterRun) -> None:
    """Hosts put their records back; no route is removed meanwhile, and claims are made again after that."""
    routes = cluster.ip("h1", "route show")
    with cluster.no_loss("c1", cluster.address("c2")):
        cluster.etcdctl("del", "", "--from-key")
        until(lambda: len(cluster.keys("leases/demo/")) == 3, "the leases are back")
    assert cluster.ip("h1", "route show") == routes
    until(lambda: all(cluster.status(h)["store"]["ok"] for h in ("h1", "h2", "h3")), "all is settled")
    cluster.create("anew", "10.90.0.0/16")


def test_killed_and_started_agents_cost_no_ping(cluster: ClusterRun) -> None:
    """SIGKILL on both sides and a start with the store cut: not an answer is missing, and status says why."""
    with cluster.no_loss("c1", cluster.address("c3")):
        cluster.run("break", "h1", "agent-kill")
        cluster.run("break", "h3", "agent-kill")
        cluster.run("mend", "h1")
        cluster.run("mend", "h3")
    assert cluster.status("h1")["drift"] == []


def test_an_agent_that_starts_without_the_store_serves_what_it_knows(cluster: ClusterRun) -> None:
    """It attaches from its own block, refuses what needs the store and says why, and is ok when it is back."""
    cluster.run("break", "h2", "agent-kill")
    cluster.run("break", "h2", "store-cut")
    from linkspan.lab import agents  # the lab's own way to start one agent

    lab = record.load(cluster.name)
    agents.start(lab, [lab.host("h2")])
    assert cluster.status("h2")["store"]["ok"] is False
    cluster.run("attach", "h2", "late")
    assert cluster.pings("c1", cluster.address("late"))
    with pytest.raises(LinkspanError, match="etcd"):
        cluster.call(
            "h2", "POST", "/v1/networks", {"name": "no", "pools": ["10.92.0.0/16"], "backend": "vxlan"}
        )
    cluster.run("mend", "h2")
    until(lambda: cluster.status("h2")["store"]["ok"], "the store is back", 15 * SHARED)


def test_a_partition_heals_with_attachments_of_both_sides(cluster: ClusterRun) -> None:
    """Containers attached on both sides meanwhile reach each other when it is over, and status forgets it."""
    cluster.run("break", "h1", "partition:h2")
    cluster.run("attach", "h1", "p1")
    cluster.run("attach", "h2", "p2")
    assert cluster.silent("p1", cluster.address("p2"))
    until(lambda: "no answer to pings" in cluster.not_well("h1"), "h1 names the peer", 10 * SHARED)
    cluster.run("mend", "h1")
    until(lambda: cluster.pings("p1", cluster.address("p2")), "both sides meet", 3 * SHARED)
    until(lambda: "no answer" not in cluster.not_well("h1"), "h1 is well", 5 * SHARED)


def test_a_removed_host_stays_away_and_its_block_is_free(cluster: ClusterRun) -> None:
    """Last of this lab: h3 is removed, its peers drop the way, another host has its block, and it stays away."""
    block = cluster.blocks("h3", "demo")[0]
    for host in ("h1", "h2"):
        cluster.call("h1", "PATCH", f"/v1/hosts/{host}", {"drained": "1"})
    cluster.call(
        "h1",
        "POST",
        "/v1/networks",
        {"name": "one", "pools": ["10.90.0.0/28"], "subnet_len": [28], "backend": "vxlan"},
    )
    until(lambda: cluster.blocks("h3", "one") == ["10.90.0.0/28"], "h3 has the only block of a network")
    cluster.call("h1", "PATCH", "/v1/hosts/h1", {"drained": ""})
    with pytest.raises(LinkspanError, match="alive"):
        cluster.call("h1", "DELETE", "/v1/hosts/h3")
    cluster.call("h1", "DELETE", "/v1/hosts/h3?force")
    until(lambda: "was removed from the cluster" in cluster.not_well("h3"), "h3 says so")
    until(lambda: block not in cluster.ip("h1", "route show"), "h1 has no way to its block")
    until(lambda: cluster.blocks("h1", "one", "h2") == ["10.90.0.0/28"], "h1 has the block that was h3's")
    cluster.call("h1", "PATCH", "/v1/hosts/h2", {"drained": ""})
    cluster.run("break", "h3", "agent-kill")
    cluster.run("mend", "h3")
    assert "was removed from the cluster" in cluster.not_well("h3")
    assert not any(
        key.endswith(("/hosts/h3", "/demo/h3")) for key in cluster.keys("") if "gone/" not in key
    )


def test_a_network_in_use_elsewhere_is_deleted_by_force_only(cluster: ClusterRun) -> None:
    """`network delete` on one host names the containers of others; with --force they lose the network everywhere."""
    cluster.exec("h1", "linkspan network create spare --pool 10.77.0.0/16 --backend vxlan")
    until(lambda: "spare" in cluster.exec("h2", "linkspan network list"), "h2 knows the network")
    cluster.run("attach", "h2", "guest", "--network", "spare")
    until(lambda: "guest" in cluster.exec("h1", "linkspan endpoint list"), "h1 knows the container")
    refused = cluster.run("exec", "h1", "--", "linkspan", "network", "delete", "spare", code=1)
    assert "guest" in refused.stderr + refused.stdout
    cluster.exec("h1", "linkspan network delete spare --force")
    until(lambda: "guest" not in cluster.exec("h2", "linkspan endpoint list"), "the container is detached")
    cluster.run("detach", "guest")


@pytest.mark.parametrize("missed", ["store-cut", "agent-kill"])
def test_a_network_that_was_made_anew_with_other_pools_is_another(cluster: ClusterRun, missed: str) -> None:
    """A host that missed that detaches the first one's container, and follows the new one, as all others do."""
    wish = {"name": "anew", "pools": ["10.91.0.0/16"], "backend": "vxlan"}
    cluster.call("h1", "POST", "/v1/networks", wish)
    cluster.joined("anew", ("h1", "h2"))
    cluster.run("attach", "h2", "old", "--network anew")
    cluster.run("break", "h2", missed)
    cluster.call("h1", "DELETE", "/v1/networks/anew?force=1")
    cluster.call("h1", "POST", "/v1/networks", wish | {"pools": ["10.92.0.0/16"], "backend": "ipip"})
    cluster.run("mend", "h2")
    cluster.joined("anew", ("h1", "h2"))
    until(lambda: all(e["id"] != "old" for e in cluster.call("h2", "GET", "/v1/endpoints")), "old is detached")
    until(lambda: "anew" not in cluster.not_well("h2"), "h2 is well")
    cluster.run("attach", "h1", "one", "--network anew")
    cluster.run("attach", "h2", "two", "--network anew")
    until(lambda: cluster.pings("one", cluster.address("two")), "they reach each other")
