"""The lab itself, with hosts that share nothing (backend bridge): no cluster is needed for any of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from linkspan.core.errors import Invalid
from linkspan.core.states.host import ROUTE_PROTOCOL
from linkspan.lab import processes, topology
from support.lab.lab_runs import COMMAND, LabRun
from support.polling import HEALED_WITHIN, until

# Names and JSON


def test_what_lab_up_and_show_print_is_the_contract(hosts: LabRun) -> None:
    """Hosts with namespace, underlay and socket; containers with host, namespace and addresses."""
    found = hosts.json("show")
    assert [host["name"] for host in found["hosts"]] == ["h1", "h2", "h3"]
    first = found["hosts"][0]
    assert first["namespace"] == f"{hosts.name}-h1"
    assert first["underlay"]["ifname"] == "eth0"
    assert first["underlay"]["addresses"] == ["192.0.2.1/24", "2001:db8:1::1/64"]
    assert Path(first["socket"]).is_socket()
    assert [(c["name"], c["host"]) for c in found["containers"]] == [("c1", "h1"), ("c2", "h2"), ("c3", "h3")]
    assert found["containers"][0]["namespace"] == f"{hosts.name}-c1"
    assert found["containers"][0]["addresses"][0].startswith("10.244.")


def test_the_segments_are_joined_by_a_router(hosts: LabRun) -> None:
    """h1 and h3 are on one segment, h2 on another: it is reached by the router, in both families."""
    for address in ("192.0.2.3", "198.51.100.2", "2001:db8:1::3", "2001:db8:2::2"):
        assert hosts.pings("h1", address), address
    there = json.loads(hosts.exec("h1", "ip -j route get 198.51.100.2"))
    near = json.loads(hosts.exec("h1", "ip -j route get 192.0.2.3"))
    assert there[0]["gateway"] == "192.0.2.254"
    assert "gateway" not in near[0]


def test_a_table_names_hosts_containers_and_what_is_broken(hosts: LabRun) -> None:
    """`lab show` for people has all in it that the JSON has; `lab list` has a line for the lab."""
    said = hosts.run("show").stdout
    for word in ("h1", "c1", "192.0.2.1/24", "alive", "BROKEN", f"{hosts.name}-h1"):
        assert word in said
    listed = json.loads(
        subprocess.run([*COMMAND, "list", "-o", "json"], capture_output=True, check=True).stdout
    )
    (mine,) = [one for one in listed if one["name"] == hosts.name]
    kinds = ("name", "state", "hosts", "containers", "backend", "store", "segments")
    assert mine == dict(zip(kinds, (hosts.name, "up", 3, 3, "bridge", "sqlite", 2), strict=True))


# Commands inside


def _said(lab: LabRun, place: str, command: str) -> str:
    """Return what a command prints that `lab exec` runs: the tests of other things run commands without it."""
    return lab.run("exec", place, "--", command).stdout


def test_exec_in_a_host_speaks_to_its_agent(hosts: LabRun) -> None:
    """`linkspan` is on the PATH, and the agent that answers is the host's own; its name is the host's."""
    (endpoint,) = json.loads(_said(hosts, "h2", "linkspan endpoint list -o json"))
    assert endpoint["id"] == "c2"
    assert _said(hosts, "h2", "hostname").strip() == "h2"
    assert _said(hosts, "c3", "hostname").strip() == "c3"


def test_exec_in_a_container_is_in_its_namespace(hosts: LabRun) -> None:
    """The container's interface is there, and the command's own exit code comes back."""
    addresses = json.loads(_said(hosts, "c1", "ip -j addr show eth0"))
    assert addresses[0]["ifname"] == "eth0"
    hosts.run("exec", "c1", "--", "sh -c false", code=1)
    assert "there is no" not in hosts.run("exec", "c1", "--", "no-such-command", code=1).stderr
    assert "no host or container c9" in hosts.run("exec", "c9", "--", "true", code=1).stderr


def test_attach_and_detach_change_record_and_agent(hosts: LabRun) -> None:
    """A container more is an endpoint with the address asked for; one less leaves no namespace."""
    endpoint = hosts.json("attach", "h1", "web", "--ip 10.244.0.77")
    assert endpoint["addresses"][0] == "10.244.0.77/16"
    assert (
        "10.244.0.77/16"
        in next(c for c in hosts.json("show")["containers"] if c["name"] == "web")["addresses"]
    )
    assert hosts.pings("c1", "10.244.0.77")
    taken = hosts.run("attach", "h1", "other", "--ip 10.244.0.77", code=1).stderr
    assert "10.244.0.77" in taken
    assert f"{hosts.name}-other" not in hosts.namespaces()
    assert hosts.json("detach", "web") == {"detached": 1}
    assert f"{hosts.name}-web" not in hosts.namespaces()
    assert "web" not in {c["name"] for c in hosts.json("show")["containers"]}


def test_one_more_interface_on_a_network_is_asked_for_by_its_name(hosts: LabRun) -> None:
    """Without --ifname a second attach is refused, with the option in the hint and the operation named once."""
    hosts.json("attach", "h1", "twice")
    refused = hosts.run("attach", "h1", "twice", code=1).stderr
    assert refused == (
        "linkspan: host h1: attach twice to demo: container twice is attached already, by eth0; "
        "give --ifname for one more interface on this network, or detach it first\n"
    )
    assert hosts.json("attach", "h1", "twice", "--ifname eth5")["ifname"] == "eth5"
    assert hosts.json("detach", "twice") == {"detached": 2}


def test_lab_test_counts_pairs_and_names_what_fails(hosts: LabRun) -> None:
    """Each container is tried from its host; one that does not find its way back is named, with exit code 3."""
    assert hosts.json("test") == {"pairs": 3, "ok": 3, "failed": []}
    hosts.exec("c2", "ip route add blackhole 10.244.0.1")
    found = hosts.json("test", code=3)
    hosts.exec("c2", "ip route del blackhole 10.244.0.1")
    assert (found["pairs"], found["ok"]) == (3, 2)
    assert {(one["from"], one["to"]) for one in found["failed"]} == {("h2", "c2")}
    assert [one["what"].split(" 10.244.")[0] for one in found["failed"]] == [
        "ping",
        "TCP to",
        "1500 bytes with DF to",
    ]


# Failures, and their end


def test_an_agent_that_was_killed_is_mended(hosts: LabRun) -> None:
    """After agent-kill no agent runs, and the containers are still reached; mend starts an agent."""
    hosts.run("break", "h1", "agent-kill")
    assert processes.agents(hosts.folder, "h1") == []
    shown = hosts.json("show")["hosts"][0]
    assert (shown["agent"], shown["broken"]) == ("dead", ["agent-kill"])
    assert hosts.json("test")["failed"] == []
    assert "runs on host h1" in hosts.run("break", "h1", "agent-kill", code=1).stderr
    hosts.run("mend", "h1")
    assert len(processes.agents(hosts.folder, "h1")) == 1
    assert hosts.json("show")["hosts"][0]["broken"] == []
    assert hosts.json("mend", "h1")["done"] == ["nothing on h1 was broken"]


def test_a_link_that_was_cut_is_mended(hosts: LabRun) -> None:
    """link-down cuts the host off; mend brings back addresses and the route to the other segment."""
    hosts.run("break", "h1", "link-down")
    assert hosts.silent("h3", "192.0.2.1")
    hosts.run("mend", "h1")
    for address in ("192.0.2.3", "198.51.100.2", "2001:db8:2::2"):
        assert hosts.pings("h1", address), address


@pytest.mark.parametrize(
    ("failure", "shown"),
    [
        ("rules-flush", "nft list ruleset"),
        ("routes-flush", f"ip route show table all proto {ROUTE_PROTOCOL}"),
    ],
)
def test_what_is_flushed_is_healed(hosts: LabRun, failure: str, shown: str) -> None:
    """With the agent away the flushed objects are gone and stay so; with it they are back within two seconds."""
    before = hosts.exec("h1", shown)
    assert before
    hosts.run("break", "h1", "agent-kill")
    hosts.run("break", "h1", failure)
    assert hosts.exec("h1", shown) == ""
    hosts.run("mend", "h1")
    until(
        lambda: hosts.exec("h1", shown).count("\n") == before.count("\n"), f"{shown} as before", HEALED_WITHIN
    )


def test_a_partition_has_two_sides_and_one_end(hosts: LabRun) -> None:
    """Separated hosts do not reach each other, on one segment or two, and reach all others; either mend ends it."""
    hosts.run("break", "h1", "partition:h3")
    hosts.run("break", "h1", "partition:h2")
    for source, address in (("h1", "192.0.2.3"), ("h3", "192.0.2.1"), ("h1", "2001:db8:2::2")):
        assert hosts.silent(source, address), (source, address)
    assert hosts.pings("h3", "198.51.100.2")
    hosts.run("break", "h1", "rules-flush")
    assert hosts.silent("h3", "192.0.2.1")
    hosts.run("mend", "h2")
    assert hosts.pings("h2", "192.0.2.1")
    assert hosts.silent("h3", "192.0.2.1")
    hosts.run("mend", "h1")
    assert hosts.pings("h3", "192.0.2.1")


def test_a_reboot_makes_kernel_and_containers_anew_and_keeps_the_disk(hosts: LabRun) -> None:
    """Other namespaces, another agent with another boot id, the same state folder; the container is attached again."""
    namespace = Path(f"/run/netns/{hosts.name}-h3")
    inode, agents = namespace.stat().st_ino, processes.agents(hosts.folder, "h3")
    network = hosts.exec("h3", "linkspan network show demo -o json")
    hosts.run("break", "h3", "reboot")
    assert namespace.stat().st_ino != inode
    assert processes.agents(hosts.folder, "h3") != agents
    assert hosts.exec("h3", "linkspan network show demo -o json") == network
    assert hosts.json("test")["failed"] == []
    assert hosts.pings("h1", "192.0.2.3")
    assert json.loads(hosts.exec("h3", "linkspan address check -o json"))["ok"]


def test_failures_that_cannot_be_say_why(hosts: LabRun) -> None:
    """No FDB, no network store, no such failure, no such host: each names what there is instead."""
    for failure, words in (
        ("fdb-flush", "no FDB entry"),
        ("store-cut", "--store etcd"),
        ("earthquake", "agent-kill"),
        ("partition:h9", "no host h9"),
        ("partition:h1", "itself"),
    ):
        assert words in hosts.run("break", "h1", failure, code=1).stderr, failure
    assert "no host h9; it has h1" in hosts.run("break", "h9", "reboot", code=1).stderr


# Up and down


def test_two_labs_live_side_by_side(hosts: LabRun, lab: LabRun) -> None:
    """A second lab has the same names and addresses inside; its end leaves the first as it is."""
    found = lab.json("up", "--backend bridge --hosts 1 --containers-per-host 2")
    assert found["hosts"][0]["name"] == "h1"
    assert lab.json("test") == {"pairs": 4, "ok": 4, "failed": []}
    again = lab.run("up", "--backend bridge", code=1).stderr
    assert f"linkspan lab down --lab {lab.name}" in again
    lab.run("down")
    assert lab.left() == []
    assert hosts.json("test")["failed"] == []


def test_down_without_a_lab_succeeds(lab: LabRun) -> None:
    """There is nothing to remove, and the command succeeds."""
    assert lab.json("down") == {"down": False}


def _agents_run(lab: LabRun) -> bool:
    return any(processes.agents(lab.folder, host) for host in ("h1", "h2"))


@pytest.mark.parametrize(
    "moment",
    [
        lambda lab: (lab.folder / "lab.json").exists(),
        lambda lab: len(lab.namespaces()) >= 2,
        _agents_run,
        lambda lab: f"{lab.name}-c1" in lab.namespaces(),
    ],
    ids=["record", "namespaces", "agents", "containers"],
)
def test_down_after_up_was_killed(lab: LabRun, moment: Callable[[LabRun], bool]) -> None:
    """Wherever `lab up` is killed, what it had made is found again and removed."""
    # So many containers that it is still at work when this process, on a busy machine, has seen the moment.
    words = ["up", "--backend", "bridge", "--hosts", "2", "--containers-per-host", "12", "--lab", lab.name]
    process = subprocess.Popen([*COMMAND, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until(lambda: moment(lab), "the moment to kill it")
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert lab.left() != []
    assert "half made" in lab.run("up", "--backend bridge", code=1).stderr
    assert lab.json("down") == {"down": True}
    assert lab.left() == []


def test_up_takes_away_what_it_made_where_a_part_fails(lab: LabRun) -> None:
    """A foreign namespace is refused by name and left alone; a bad option leaves nothing either."""
    theirs = f"{lab.name}-c1"
    subprocess.run(["ip", "netns", "add", theirs], check=True)
    try:
        assert theirs in lab.run("up", "--backend bridge --hosts 1", code=1).stderr
        assert lab.left() == [theirs]
    finally:
        subprocess.run(["ip", "netns", "delete", theirs], check=True)
    said = lab.run("up", "--backend bridge --hosts 1 --opt nonsense=1", code=1).stderr
    assert "nonsense" in said
    assert lab.left() == []
    logs = Path(f"{lab.folder}.failed")
    assert f"the logs are in {logs}" in said or (logs / "h1" / "agent.log").exists()
    lab.run("down")
    assert not logs.exists()


def test_a_process_that_got_a_lab_process_s_pid_is_left_alone(lab: LabRun) -> None:
    """Only a process with this lab's mark is ended: another lab's mark does not count."""
    lab.run("up", "--backend bridge --hosts 1")
    mark = {processes.MARK: f"{lab.folder}x:agent/h1"}
    with subprocess.Popen(["sleep", "60"], env=os.environ | mark) as other:
        lab.run("down")
        assert other.poll() is None
        other.kill()


@pytest.mark.parametrize(
    ("wishes", "words"),
    [
        ({"lab": "Lab!"}, "no name for a lab"),
        ({"hosts": 0}, "--hosts 0"),
        ({"hosts": 2, "segments": 3}, "give 1 to 2"),
        ({"underlay": "v5"}, "--underlay 'v5'"),
        ({"store": "paper"}, "sqlite or etcd"),
        ({"underlay": "v6", "mtu": 1000}, "--mtu 1000"),
        ({"backend": "vxlna"}, "--backend 'vxlna' is unknown; give bridge, bgp"),
        ({"backend": "host"}, "--backend 'host' is unknown"),
        ({"backend": "sdn", "nat": ("h2",)}, "leave out --nat"),
        ({"backend": "ipip", "underlay": "v6"}, "needs an IPv4 underlay"),
        ({"routers": "quagga"}, "kernel, bird or frr"),
        ({"routers": "frr", "routers_per_segment": 3}, "give 1 to 2"),
        ({"routers_per_segment": 2}, "speak BGP"),
        ({"backend": "bgp", "segments": 2}, "give --routers bird or frr"),
        ({"reflector": True, "segments": 2}, "--reflector is for one segment"),
        ({"reflector": True, "routers": "frr", "routers_per_segment": 2}, "makes one speaker"),
    ],
)
def test_wishes_that_cannot_be_are_refused_by_name(wishes: dict[str, object], words: str) -> None:
    """The option is named, and what it may be."""
    with pytest.raises(Invalid) as error:
        topology.planned(topology.Wishes(**wishes))  # type: ignore[arg-type]
    assert words in f"{error.value.message}; {error.value.hint}"
