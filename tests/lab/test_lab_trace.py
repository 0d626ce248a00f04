"""Trace in a real cluster: it agrees with what the packets do, and names the host and the hop where they end."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from linkspan.api.client import Client
from linkspan.lab import record
from support.lab.cluster_runs import ClusterRun
from support.lab.lab_runs import LabRun
from support.polling import HEALED_WITHIN, SHARED, until

VXLAN_OUTER = ["eth", "ip 192.0.2.1>192.0.2.2", "udp 4789"]
WAYS = [
    ("vxlan", VXLAN_OUTER, 1450),
    ("ipip", ["eth", "ip 192.0.2.1>192.0.2.2"], 1480),
    ("host-gw", ["eth"], 1500),
]


def traced(lab: LabRun, source: str, target: str, at: str = "h1", code: int = 0) -> Any:
    """Trace on a host."""
    return json.loads(lab.exec(at, f"linkspan trace {source} {target} -o json", code=code))


def addresses(lab: LabRun) -> dict[str, str]:
    """Return the containers' addresses."""
    return {c["name"]: c["addresses"][0].partition("/")[0] for c in lab.json("show")["containers"]}


@pytest.mark.parametrize(("backend", "outer", "mtu"), WAYS)
def test_what_the_lab_reaches_trace_reaches_too(lab: LabRun, backend: str, outer: list[str], mtu: int) -> None:
    """From both hosts, for containers and hosts, by name and address: headers and MTU of the backend."""
    lab.run("up", f"--backend {backend} --hosts 2")
    assert lab.json("test")["failed"] == []
    places = addresses(lab)
    for source, target in (("c1", "c2"), ("c1", places["c2"]), ("host:h1", "c2"), ("c1@demo", "host:h2")):
        for at in ("h1", "h2"):
            found = traced(lab, source, target, at)
            assert (found["reachable"], found["path_mtu"]) == (True, mtu), (source, target, at, found)
            (wire,) = [hop["headers"] for hop in found["hops"] if hop["action"] == "left"]
            assert wire[: len(outer)] == outer
            assert [hop["host"] for hop in found["hops"] if hop["action"] == "received"] == ["h2"]
    (wire,) = [hop["headers"] for hop in traced(lab, "c1", "c2")["hops"] if hop["action"] == "left"]
    assert wire[-2:] == [f"ip {places['c1']}>{places['c2']}", "icmp"]


def test_an_address_of_another_host_is_traced_as_it_is(pair: LabRun) -> None:
    """To its underlay address a container's packets leave masqueraded, by no tunnel."""
    found = traced(pair, "c1", "192.0.2.2")
    (wire,) = [hop["headers"] for hop in found["hops"] if hop["action"] == "left"]
    assert wire[-2:] == ["ip 192.0.2.1>192.0.2.2", "icmp"]
    assert found["reachable"], found


@pytest.fixture(scope="module")
def pair() -> Iterator[LabRun]:
    """Give two hosts with VXLAN."""
    found = LabRun()
    try:
        found.run("up", "--backend vxlan --hosts 2")
        yield found
    finally:
        found.run("down")


@pytest.fixture
def vxlan(pair: LabRun) -> Iterator[LabRun]:
    """Give the shared pair, and mend what a test has left broken."""
    yield pair
    for host in pair.json("show")["hosts"]:
        if host["broken"]:
            pair.run("mend", host["name"])
    until(lambda: pair.run("test", code=-1).returncode == 0, "all is well again", HEALED_WITHIN + 5 * SHARED)


FOREIGN = [
    ("h2", "raw", "PREROUTING -p udp --dport 4789", "h2/host", "the packet was dropped by rule `udp dport 4789"),
    ("h2", "mangle", "FORWARD -p icmp -d {c2}", "h2/host", "the packet was dropped by rule `ip daddr"),
    ("c2", "filter", "INPUT -p icmp", "h2/c2/eth0", "the packet was dropped by rule `ip protocol icmp"),
    ("h1", "mangle", "FORWARD -p icmp -s {c2}", "h1/host", "the answer was dropped by rule `ip saddr"),
]  # fmt: skip


@pytest.mark.parametrize(("place", "table", "rule", "at", "reason"), FOREIGN)
def test_a_live_trace_names_a_foreign_rule_on_any_host(
    pair: LabRun, place: str, table: str, rule: str, at: str, reason: str
) -> None:
    """A drop of the tunnel's packets, of the inner packet on the other host, in a container, and of the answer."""
    rule = rule.format(**addresses(pair))
    pair.exec(place, f"iptables -t {table} -I {rule} -j DROP")
    try:
        found = json.loads(pair.exec("h1", "linkspan trace c1 c2 --live -o json", code=3))
        assert found["verdict"] == "broken"
        assert found["reason"].startswith(reason)
        assert f"of table ip {table}" in found["reason"]
        assert found["broken_at"].startswith(at)
    finally:
        pair.exec(place, f"iptables -t {table} -D {rule} -j DROP")
    found = json.loads(pair.exec("h1", "linkspan trace c1 c2 --live -o json"))
    assert found["verdict"] == "reachable"


def test_every_host_lists_the_endpoints_of_all(vxlan: LabRun) -> None:
    """With --local only its own; an endpoint that comes or goes is seen on the other host."""

    def listed(options: str = "") -> set[tuple[str, str]]:
        found = json.loads(vxlan.exec("h1", f"linkspan endpoint list {options} -o json"))
        return {(one["host"], one["name"]) for one in found}

    assert listed() == {("h1", "c1"), ("h2", "c2")}
    assert listed("--local") == {("h1", "c1")}
    vxlan.run("attach", "h2", "late")
    until(lambda: ("h2", "late") in listed(), "h1 hears of the container")
    assert traced(vxlan, "c1", "late")["reachable"]
    (late,) = json.loads(vxlan.exec("h1", "linkspan endpoint show late -o json"))
    assert late["host"] == "h2"
    address = late["addresses"][0].partition("/")[0]
    (held,) = json.loads(vxlan.exec("h1", f"linkspan address show {address} -o json"))
    assert (held["state"], held["holder"], held["host"]) == ("held", "late", "h2")
    vxlan.run("detach", "late")
    until(lambda: ("h2", "late") not in listed(), "h1 hears of its end")


def test_a_network_s_plan_has_its_peers(vxlan: LabRun) -> None:
    """It has the route, the neighbour and the FDB entry of the other host, each with that host as the reason."""
    lines = json.loads(vxlan.exec("h1", "linkspan plan --network demo -o json"))
    kinds = {line["kind"] for line in lines if "to reach host" in line["why"]}
    assert {"Route", "Neighbour", "FdbEntry", "NftElement"} <= kinds


@pytest.mark.parametrize(
    ("host", "failure", "at", "reason"),
    [
        ("h2", "link-down", "h2/host/eth0", "link eth0 in host is down"),
        ("h1", "link-down", "h1/host", "no route to 192.0.2.2"),
        ("h1", "partition:h2", "h1/host/eth0", "192.0.2.2 does not answer on eth0"),
    ],
)
def test_an_underlay_that_is_broken_is_named(
    vxlan: LabRun, host: str, failure: str, at: str, reason: str
) -> None:
    """Though the store is up and both agents answer, no packet crosses; trace reports the hop and the reason."""
    vxlan.run("break", host, failure)
    assert not vxlan.pings("c1", addresses(vxlan)["c2"])
    found = traced(vxlan, "c1", "c2", code=3)
    assert (found["reachable"], found["broken_at"]) == (False, at) or found["broken_at"].startswith(f"{at}/")
    assert reason in found["reason"]


def test_what_the_agents_know_of_each_other_counts(vxlan: LabRun) -> None:
    """The switch drops VXLAN, which no walk shows: once pings fail the walk is doubted, and a packet decides."""
    switch = ["ip", "netns", "exec", record.load(vxlan.name).switch, "nft"]
    rule = "table bridge cut { chain f { type filter hook forward priority 0; udp dport 4789 drop; }; }"
    subprocess.run([*switch, rule], check=True)
    try:
        until(lambda: vxlan.exec("h1", "linkspan status", code=-1).count("no answer to pings"), "h1 misses h2")
        found = Client(record.load(vxlan.name).socket("h1")).call("GET", "/v1/trace?source=c1&target=c2")
        assert found["verdict"] == "unknown"
        assert "host h2 does not answer this host's pings in network demo: no answer to pings of" in found["reason"]
        found = traced(vxlan, "c1", "c2", code=3)
        assert found["verdict"] == "broken"
        assert found["reason"].startswith("no answer came; last seen at h1/host/eth0; unknown: at h1/host/lsx")
    finally:
        subprocess.run([*switch, "delete", "table", "bridge", "cut"], check=True)
    until(lambda: vxlan.pings("c1", addresses(vxlan)["c2"]), "packets pass again")
    found = Client(record.load(vxlan.name).socket("h1")).call("GET", "/v1/trace?source=c1&target=c2")
    assert found["verdict"] == "reachable", "what was so a moment ago is asked once more"


def test_an_agent_that_is_away_is_named_though_the_way_is_well(vxlan: LabRun) -> None:
    """The walk ends at the host that does not report its part; a real packet decides, and is answered."""
    vxlan.run("break", "h2", "agent-kill")
    assert vxlan.pings("c1", addresses(vxlan)["c2"])
    found = traced(vxlan, "c1", "c2")
    assert found["verdict"] == "reachable"
    assert "a real packet was answered, though what h2/host does is not known: " in found["reason"]
    assert "host h2 did not report its part of the path: it is silent" in found["reason"]
    assert [hop["action"] for hop in found["hops"]] == ["sent", "routed", "encapsulated", "left", "unknown"]


@pytest.mark.parametrize("failure", ["routes-flush", "fdb-flush", "rules-flush"])
def test_what_stays_flushed_because_the_agent_is_away_is_not_called_well(vxlan: LabRun, failure: str) -> None:
    """Nothing reports the loss on h2, so a real packet decides; the reason still names h2."""
    vxlan.run("break", "h2", "agent-kill")
    vxlan.run("break", "h2", failure)
    works = vxlan.pings("c1", addresses(vxlan)["c2"])
    assert works == (failure == "rules-flush")
    found = traced(vxlan, "c1", "c2", code=0 if works else 3)
    assert found["verdict"] == ("reachable" if works else "broken")
    assert "host h2 did not report" in found["reason"]


@pytest.mark.parametrize("failure", ["routes-flush", "fdb-flush", "rules-flush"])
def test_what_was_flushed_and_healed_is_traced_well(vxlan: LabRun, failure: str) -> None:
    """With the agent there, trace is ok again when the packets are."""
    vxlan.run("break", "h2", failure)
    until(lambda: vxlan.run("test", code=-1).returncode == 0, "the packets pass", HEALED_WITHIN + 2 * SHARED)
    until(lambda: traced(vxlan, "c1", "c2", code=-1)["reachable"], "trace says so", HEALED_WITHIN)


def test_a_live_trace_shows_the_packet_on_both_hosts(vxlan: LabRun) -> None:
    """It is seen at each device, wrapped and not, on the host that sends it and on the other, both ways."""
    found = json.loads(vxlan.exec("h1", "linkspan trace c1 c2 --live -o json"))
    assert found["reachable"]
    for hops in (found["hops"], found["reply_hops"]):
        assert {hop["host"] for hop in hops} == {"h1", "h2"}
        assert all(hop["seen"] for hop in hops), hops


def test_a_capture_has_the_packet_at_every_device_of_both_hosts(vxlan: LabRun, tmp_path: Path) -> None:
    """Wireshark's own reader finds an interface for each hop, wrapped and bare packets, in the path's order."""
    file = tmp_path / "c1-c2.pcapng"
    found = json.loads(vxlan.exec("h1", f"linkspan trace c1 c2 --pcap {file} -o json"))
    assert found["reachable"]
    assert "pcap" not in found
    ways = [
        [f"{hop['host']}/{hop['namespace']}/{hop['port'] or hop['device']}" for hop in found[way]]
        for way in ("hops", "reply_hops")
    ]
    fields = ("frame.interface_name", "frame.comment", "vxlan.vni", "icmp.type", "sll.pkttype")
    command = ["tshark", "-r", str(file), "-T", "fields", *(word for field in fields for word in ("-e", field))]
    read = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    packets = [dict(zip(fields, line.split("\t"), strict=True)) for line in read]
    for hops, comment, kind in zip(ways, ("the packet", "the answer"), ("8", "0"), strict=True):
        seen = [one for one in packets if one["frame.comment"] == comment]
        order = list(dict.fromkeys(one["frame.interface_name"] for one in seen))
        assert [name for name in order if name in hops] == list(dict.fromkeys(hops))
        assert set(order) == {*ways[0], *ways[1]}  # a packet also enters where the other way leaves
        assert {one["icmp.type"] for one in seen} == {kind}
        assert len(seen) == len(order)  # one packet, though it was sent again until h2 listened
        wrapped = {one["frame.interface_name"] for one in seen if one["vxlan.vni"]}
        assert wrapped == {"h1/host/eth0", "h2/host/eth0"}


@pytest.mark.parametrize("port", [8099, 8098])
def test_a_live_tcp_trace_shows_syn_and_answer_on_both_hosts(vxlan: LabRun, port: int) -> None:
    """The SYN there, encapsulated and not, and SYN-ACK or RST back; without a listener, the answer is a refusal."""
    program = f"import socket as s\nl=s.create_server(('',{8099}))\nprint(flush=True)\nwhile 1: l.accept()"
    argv = ["ip", "netns", "exec", f"{vxlan.name}-c2", "python3", "-c", program]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            server.stdout.readline()
            found = json.loads(vxlan.exec("h1", f"linkspan trace c1 c2 --port {port}/tcp --live -o json"))
        finally:
            server.kill()
    assert found["reachable"]
    assert {hop["host"] for hop in found["hops"]} == {"h1", "h2"}
    assert all(hop["seen"] for hop in (*found["hops"], *found["reply_hops"])), found


@pytest.fixture(scope="module")
def routed() -> Iterator[ClusterRun]:
    """Give two hosts with a router between them, with IPIP, which does not let packets with DF be fragmented."""
    found = ClusterRun()
    try:
        found.run("up", "--backend ipip --hosts 2 --segments 2")
        # The kernel answers a host with one error a second, and the agents' own pings have these.
        argv = ["ip", "netns", "exec", f"{found.name}-router", "sysctl", "-qw", "net.ipv4.icmp_ratelimit=0"]
        subprocess.run(argv, check=True)
        yield found
    finally:
        found.run("down")


@pytest.mark.parametrize(
    ("breaks", "mends", "reachable", "words"),
    [
        ("true", "true", True, ""),
        (
            # Not an unreachable route, whose errors have a limit that nobody can set for a namespace.
            "nft -f - <<< 'add table inet cut; add chain inet cut f {{ type filter hook forward priority 0; }}; "
            "add rule inet cut f ip daddr {h2} reject with icmp type host-unreachable'",
            "nft delete table inet cut",
            False,
            "says: host unreachable",
        ),
        ("ip route add blackhole {h2}", "ip route del blackhole {h2}", False, "no router says why"),
        (
            "nft -f - <<< 'add table inet cut; add chain inet cut f {{ type filter hook forward priority 0; }}; "
            "add rule inet cut f meta l4proto 4 drop'",
            "nft delete table inet cut",
            False,
            "{h2} answers pings, but nothing comes back by ipip",
        ),
        (
            "ip link set eth2 mtu 1400; nft -f - <<< 'add table inet cut; add chain inet cut o "
            "{{ type filter hook output priority 0; }}; add rule inet cut o icmp type destination-unreachable drop'",
            "ip link set eth2 mtu 1500; nft delete table inet cut",
            True,
            "packets of 1480 bytes do not pass it, of 1380 bytes they do",
        ),
        # Last: what is said once is remembered for ten minutes.
        ("ip link set eth2 mtu 1400", "ip link set eth2 mtu 1500", True, "says: too large, at most 1380 bytes"),
    ],
    ids=["well", "unreachable", "blackhole", "protocol-dropped", "narrow-and-silent", "narrow"],
)
def test_what_the_router_between_does_is_found_out(
    routed: ClusterRun, breaks: str, mends: str, reachable: bool, words: str
) -> None:
    """The router cannot be asked: the packets that pass it and come back show it, and its ICMP errors."""
    h2 = routed.host("h2")["underlay"]["addresses"][0].partition("/")[0]

    def router(script: str) -> None:
        argv = ["ip", "netns", "exec", f"{routed.name}-router", "bash", "-c", script.format(h2=h2)]
        subprocess.run(argv, check=True)

    def told() -> bool:
        """Trace, once more where what is awaited was not said."""
        found = routed.call("h1", "GET", "/v1/trace?source=c1&target=c2")
        assert found["reachable"] == reachable, found
        if reachable:
            assert found["path_mtu"] == (1380 if "1400" in breaks else 1480)
        else:
            assert found["broken_at"] == "h1/host/eth0"
        said = found["reason"] + " ".join(hop["detail"] for hop in (*found["hops"], *found["reply_hops"]))
        assert "through router" in said
        return words.format(h2=h2) in said

    router(breaks)
    try:
        until(told, words, 30 * SHARED)
    finally:
        router(mends)


@pytest.mark.skipif(shutil.which("etcd") is None, reason="needs etcd: apt install etcd-server")
def test_a_store_that_one_side_does_not_reach_is_named(lab: LabRun) -> None:
    """Each side names what it does not hear, its store or the other host; a real packet shows that packets pass."""
    lab.run("up", "--backend vxlan --hosts 2 --store etcd")
    assert traced(lab, "c1", "c2")["reachable"]
    lab.run("break", "h2", "store-cut")
    assert lab.pings("c1", addresses(lab)["c2"])
    found = traced(lab, "c1", "c2")
    assert "what h2/host does is not known: host h2 did not report" in found["reason"]
    assert "it is silent" in found["reason"]
    found = traced(lab, "c2", "c1", at="h2")
    assert "what h1/host does is not known: host h1 did not report" in found["reason"]
    assert "the store is away" in found["reason"]
