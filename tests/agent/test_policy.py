"""Policies on the real kernel: labels, restarts, cuts, published ports, defaults; who may is in the tables' file."""

from __future__ import annotations

import contextlib
import signal
import socket
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from linkspan.kernel.io.nftables import generation, netfilter_socket
from support.agent.agent_host import Host, World, first_ip, pings, run
from support.agent.stage import FAMILIES, OUTSIDE, UPLINK
from support.agent.traffic import SHORT, answers, asked, echoes, inside, late, retransmitted, serving
from support.agent.yard import Yard, yard_in
from support.polling import HEALED_WITHIN, SHARED, until


@pytest.fixture(scope="module")
def yard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Yard]:
    """Return the host of this file's tests."""
    with yard_in(tmp_path_factory.mktemp("policies")) as made:
        yield made


@pytest.fixture(autouse=True)
def _clean(yard: Yard) -> Iterator[None]:
    yield
    yard.apply("")


BY_LABEL = """
policy: b-of-x
select: {network: x, labels: {pod: b}}
ingress:
- from:
  - labels: {pod: a}
  ports: [80/tcp]
- from:
  - {network: y}
  ports: [81/udp]
"""
ONLY_A = """
policy: only-a
select: {name: x-b}
ingress:
- from: [{labels: {pod: a}}]
"""


def test_the_answers_from_the_records_are_the_kernels(yard: Yard) -> None:
    """`policy can` and `who-can` say what the kernel does, and by which policy and line."""
    yard.apply(BY_LABEL)
    yes = yard.host.json("policy", "can", "y-a", "x-b", "--port", "80/tcp")
    assert (yes["allowed"], yes["by"]) == (True, {"policy": "b-of-x", "line": 5})
    no = yard.host.json("policy", "can", "y-b", "x-b", "--port", "80/tcp", code=3)
    assert (no["allowed"], no["by"]) == (False, {"policy": "b-of-x", "line": 2})
    assert yard.host.json("policy", "can", "y-b", "x-b")["ports"] == ["81/udp"]
    who = {one["name"]: one["ports"] for one in yard.host.json("policy", "who-can", "x-b", "--port", "80/tcp")}
    assert who.keys() == {"x-a", "y-a", "z-a"}


def test_a_difference_of_lines_alone_is_a_change(yard: Yard) -> None:
    """Traces and answers name a rule by its line, so an apply would change what they say."""
    file = yard.folder / "lines.yaml"
    file.write_text(ONLY_A)
    yard.host.cli("policy", "apply", str(file))
    assert yard.host.json("policy", "diff", str(file)) == []
    file.write_text(f"# why\n{ONLY_A}")
    (one,) = yard.host.json("policy", "diff", str(file), code=3)
    assert (one["policy"], one["what"]) == ("only-a", "changed")
    assert "the same at other lines" in one["diff"]
    assert yard.host.json("policy", "apply", str(file))["changed"] == ["only-a"]


def test_as_many_exceptions_as_a_policy_may_have_are_enforced(yard: Yard) -> None:
    """Also if some are within others. One condition for each would be more than a rule of the kernel may have."""
    every = [f"10.{number}.0.0/16" for number in range(250)]
    within = [f"10.{number}.{number}.0/24" for number in range(6)]
    rule = "- from: [{{cidr: 10.0.0.0/8, except: [{}]}}]\n"
    but = "policy: but\nselect: {name: x-b}\ningress:\n" + rule.format(", ".join(within + every))
    yard.apply(but)
    assert yard.host.differences() == []
    assert not answers(yard.netns["x-a"], yard.ips["x-b"][4], 80)
    own = f"10.{yard.ips['x-b'][4].split('.')[1]}.0.0/16"
    yard.apply(but.replace(f", {own}", ""))
    assert answers(yard.netns["x-a"], yard.ips["x-b"][4], 80)


def test_the_answers_know_internal_networks_and_the_own_host(yard: Yard) -> None:
    """Neither is a matter of policies: nothing leaves the one, and the other one is always reached."""
    yard.host.network("inner", "10.216.0.0/24", options={"mode": "routed"}, internal=True)
    netns = yard.host.world.namespace()
    try:
        yard.host.attach(netns, "inner", name="inmate")
        assert "internal" in yard.host.json("policy", "can", "inmate", "outside", code=3)["why"]
        assert [one["name"] for one in yard.host.json("policy", "who-can", "inmate")] == []
        yard.apply("policy: shut\nselect: {name: x-b}\ningress: []\negress: []\n")
        assert "own host" in yard.host.json("policy", "can", "x-b", "10.211.0.1")["why"]
    finally:
        yard.host.detach(netns)
        yard.host.cli("network", "delete", "inner")


def test_a_changed_label_counts_within_a_second(yard: Yard) -> None:
    """A label of a running container is set and removed: what selects it follows."""
    yard.apply(BY_LABEL)
    client, server = yard.netns["z-c"], yard.ips["x-b"][4]
    assert not answers(client, server, 80)
    yard.host.cli("endpoint", "label", "z-c", "pod=a")
    try:
        until(lambda: answers(client, server, 80), "the new label counts", SHARED)
        assert "pod=a" in yard.host.cli("endpoint", "show", "z-c")
    finally:
        yard.host.cli("endpoint", "label", "z-c", "pod=c")
    assert not answers(client, server, 80)
    assert yard.host.differences() == []


def test_a_policy_outlives_its_agent_and_a_restart(yard: Yard) -> None:
    """While no agent runs and after it came back, the same connections are refused."""
    yard.apply(BY_LABEL)
    allowed, refused = yard.netns["z-a"], yard.netns["z-b"]
    server = yard.ips["x-b"][4]
    yard.host.stop()
    try:
        assert answers(allowed, server, 80)
        assert not answers(refused, server, 80)
    finally:
        yard.host.restart()
    assert answers(allowed, server, 80)
    assert not answers(refused, server, 80)
    assert yard.host.differences() == []


def test_an_established_connection_is_cut_by_a_policy_and_another_one_is_not(yard: Yard) -> None:
    """A policy resets the connections that it forbids at both ends, and leaves those that it allows."""
    with yard.connected("z-a") as (kept, kept_at), yard.connected("z-b", 91) as (cut, cut_at):
        yard.apply(ONLY_A)
        kept.sendall(b"still")
        assert kept_at.recv(16) == b"still"
        for one in (cut, cut_at):
            one.sendall(b"gone")
            with pytest.raises(ConnectionResetError):
                one.recv(16)


def test_a_cut_connection_does_not_come_back_when_the_server_speaks_first(yard: Yard) -> None:
    """Its next packet begins no connection of its own: both ends get a reset, whichever of them sends first."""
    with yard.connected("z-b") as (client, accepted):
        yard.apply(ONLY_A)
        for one in (accepted, client):
            one.sendall(b"gone")
            with pytest.raises(ConnectionResetError):
                one.recv(16)


def test_a_late_packet_does_not_end_an_allowed_connection(yard: Yard) -> None:
    """Connection tracking takes it for invalid, which is no reason for a reset."""
    yard.apply(ONLY_A)
    with yard.connected("z-a") as (client, accepted):
        with inside(yard.netns["z-a"]):
            raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
        with raw:
            raw.sendto(late(client), (yard.ips["x-b"][4], 0))
        client.sendall(b"still")
        assert accepted.recv(16) == b"still"
        accepted.sendall(b"there")
        assert client.recv(16) == b"there"


def test_a_container_is_under_its_policies_from_its_first_packet(yard: Yard) -> None:
    """Two containers ask all the time while it is attached: one of them never gets an answer."""
    yard.apply("policy: new\nselect: {labels: {pod: new}}\ningress:\n- from: [{labels: {pod: a}}]\n")
    address, netns = "10.211.77.7", yard.host.world.namespace()
    ended = threading.Event()

    def heard(client: str) -> int:
        """Send a datagram each millisecond, and count the answers."""
        with inside(yard.netns[client]):
            asking = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        answered = 0
        with asking:
            asking.settimeout(0.001)
            while not ended.is_set():
                with contextlib.suppress(OSError):
                    asking.sendto(b"?", (address, 80))
                    answered += bool(asking.recv(64))
        return answered

    with ThreadPoolExecutor(2) as pool, serving(netns, 80, "udp"):
        asking = {name: pool.submit(heard, name) for name in ("y-a", "y-b")}
        try:
            yard.host.attach(netns, "x", name="new", labels={"pod": "new"}, ips=[address])
            until(lambda: answers(yard.netns["y-a"], address, 80, "udp"), "the new container answers")
        finally:
            ended.set()
        assert asking["y-a"].result() > 0
        assert asking["y-b"].result() == 0
    yard.host.detach(netns)


def test_the_first_container_of_a_family_is_under_its_policies_at_once(host: Host, world: World) -> None:
    """Policies are in force for IPv4 alone; the next network is the first one with IPv6 on this host."""
    host.network("old", "10.215.0.0/24", options={"mode": "routed"})
    one, two, three = (world.namespace() for _ in range(3))
    host.attach(one, "old", name="client")
    policy = host.folder / "policy.yaml"
    policy.write_text("policy: web\nselect: {name: web}\ningress: []\n")
    host.cli("policy", "apply", str(policy))
    host.network("new", "fd00:215::/64", options={"mode": "routed"})
    target = first_ip(host.attach(two, "new", name="web"), 6)
    assert target in run("nft", "list", "set", "inet", "linkspan", "policed_in6", netns=host.netns)
    host.attach(three, "new", name="other")
    with serving(two, 80):
        assert not answers(three, target, 80)
    assert host.differences() == []


@pytest.mark.parametrize("protocol", [47, 50])
def test_a_flow_of_another_protocol_is_cut_as_well(yard: Yard, protocol: int) -> None:
    """Connection tracking knows it by its addresses alone (GRE's by a key)."""
    listed = ("conntrack", "-L", "-s", yard.ips["z-b"][4], "-d", yard.ips["x-b"][4])
    with inside(yard.netns["z-b"]), socket.socket(socket.AF_INET, socket.SOCK_RAW, protocol) as raw:
        raw.sendto(bytes(8), (yard.ips["x-b"][4], 0))
    until(lambda: run(*listed, netns=yard.host.netns), "the flow is known")
    yard.apply(BY_LABEL)
    assert not run(*listed, netns=yard.host.netns)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_outside_reaches_a_published_port_only_from_allowed_addresses(yard: Yard, family: int) -> None:
    """A client of a published port keeps its address, so a policy decides about it."""
    published = yard.host.world.namespace()
    port = {"host_ip": "", "host_port": 8080 + family, "port": 80, "protocol": "tcp"}
    found = yard.host.attach(published, "x", name=f"published{family}", ports=[port])

    at, here = UPLINK[family], OUTSIDE[family]
    with serving(published, 80):
        try:
            assert asked(yard.outside, at, 8080 + family)[0] == here
            head = f"policy: from\nselect: {{name: published{family}}}\ningress:\n- from: "
            yard.apply(head + "[{labels: {pod: a}}]\n")
            assert not answers(yard.outside, at, 8080 + family)
            yard.apply(head + f"[{{cidr: '{here}'}}]\n")
            assert asked(yard.outside, at, 8080 + family)[0] == here
            assert asked(yard.host.netns, first_ip(found, family), 80), "its own host reaches it"
        finally:
            yard.host.detach(published)


def test_a_default_deny_network_lets_in_what_a_policy_allows(yard: Yard) -> None:
    """Without any policy nobody comes in, and the refusal names the network."""
    yard.host.cli("network", "update", "y", "--policy", "default-deny")
    try:
        assert not answers(yard.netns["y-a"], yard.ips["y-b"][4], 80)
        assert answers(yard.netns["y-a"], yard.ips["x-b"][4], 80)
        no = yard.host.json("policy", "can", "y-a", "y-b", code=3)
        assert no["by"] == {"policy": "default of network y", "line": 0}
        yard.apply("policy: open\nselect: {name: y-b}\ningress:\n- from: [{name: y-a}]\n")
        assert answers(yard.netns["y-a"], yard.ips["y-b"][4], 80)
        assert not answers(yard.netns["y-c"], yard.ips["y-b"][4], 80)
    finally:
        yard.host.cli("network", "update", "y", "--policy", "default-allow")


def test_a_network_may_be_closed_from_the_start(yard: Yard) -> None:
    """So no container is ever attached to it while it is open; lists say that it is closed."""
    made = yard.host.cli(
        "network", "create", "shut", "--pool", "10.217.0.0/24", "--opt", "mode=routed", "--policy", "default-deny"
    )
    assert made.rstrip().endswith("default-deny")
    ends = yard.host.world.namespace(), yard.host.world.namespace()
    try:
        one, other = (yard.host.attach(netns, "shut", name=f"shut-{n}") for n, netns in enumerate(ends))
        assert not echoes(ends[0], first_ip(other))
        no = yard.host.json("policy", "can", "shut-0", "shut-1", code=3)
        assert no["by"] == {"policy": "default of network shut", "line": 0}
        assert "default-deny" in yard.host.cli("network", "list")
        yard.apply("policy: open\nselect: {name: shut-0}\ningress: [{from: [{network: shut}]}]\n")
        assert echoes(ends[1], first_ip(one))
    finally:
        for netns in ends:
            yard.host.detach(netns)
        yard.host.cli("network", "delete", "shut")


def test_plan_shows_the_rules_with_the_policys_name_and_they_are_healed(yard: Yard) -> None:
    """The chains are desired objects: plan prints them, and a removed rule comes back."""
    yard.apply(BY_LABEL)
    plan = yard.host.cli("plan")
    assert 'comment "policy b-of-x line 5"' in plan.replace('\\"', '"')
    run("nft", "flush", "chain", "inet", "linkspan", "policy_in4", netns=yard.host.netns)
    refused = yard.netns["z-b"], yard.ips["x-b"][4], 80
    until(lambda: not answers(*refused), "the rules are there again", HEALED_WITHIN)


def test_icmp_is_a_protocol_of_its_own(yard: Yard) -> None:
    """A policy that allows ICMP lets pings in, of both families, and nothing else."""
    yard.apply("policy: ping\nselect: {name: x-b}\ningress:\n- from: [{name: y-a}]\n  ports: [icmp]\n")
    for family in (4, 6):
        assert pings(yard.netns["y-a"], yard.ips["x-b"][family])
        assert not answers(yard.netns["y-a"], yard.ips["x-b"][family], 80)
        assert not echoes(yard.netns["y-b"], yard.ips["x-b"][family])


def _stamped(netns: str, target: str) -> bool:
    """Return whether a request for a timestamp (RFC 792) is answered."""
    plain = struct.pack("!BBHHHIII", 13, 0, 0, 7, 1, 0, 0, 0)
    total = sum(struct.unpack("!10H", plain))
    request = plain[:2] + struct.pack("!H", ~((total >> 16) + (total & 0xFFFF)) & 0xFFFF) + plain[4:]
    with inside(netns), socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as raw:
        raw.settimeout(SHORT)
        raw.sendto(request, (target, 0))
        with contextlib.suppress(TimeoutError):
            while True:
                packet, (peer, _) = raw.recvfrom(2048)
                if peer == target and packet[20] == 14:
                    return True
    return False


def test_a_request_of_icmp_may_be_allowed_alone(yard: Yard) -> None:
    """Pings come in by both families, and no other request; records, trace and live tests say the same."""
    text = "policy: ping\nselect: {name: x-b}\ningress:\n- from: [{name: y-a}]\n  ports: [echo-request/icmp]\n"
    assert _stamped(yard.netns["y-a"], yard.ips["x-b"][4]), "nothing is in the way yet"
    file = yard.folder / "ping.yaml"
    cases = [("y-a", "icmp", "allow"), ("y-a", "echo-request/icmp", "allow"), ("y-b", "icmp", "deny")]
    cases += [("y-a", "timestamp-request/icmp", "deny")]
    tests = [f"- {{from: {source}, to: x-b, port: {port}, expect: {expect}}}" for source, port, expect in cases]
    file.write_text("\n".join([text + "tests:", *tests, ""]))
    yard.host.cli("policy", "apply", str(file))
    for family in (4, 6):
        assert pings(yard.netns["y-a"], yard.ips["x-b"][family])
        assert not echoes(yard.netns["y-b"], yard.ips["x-b"][family])
    assert not _stamped(yard.netns["y-a"], yard.ips["x-b"][4])
    assert yard.host.json("policy", "test", str(file))["failed"] == []
    live = yard.host.json("policy", "test", "--live", str(file))
    assert (live["failed"], [one["line"] for one in live["skipped"]]) == ([], [10])
    assert yard.host.json("policy", "can", "y-a", "x-b")["ports"] == ["echo-request/icmp"]
    assert yard.host.json("trace", "y-a", yard.ips["x-b"][6])["reachable"]
    assert "policy ping line 1" in str(yard.host.json("trace", "y-b", yard.ips["x-b"][6], code=3))
    assert yard.host.differences() == []


def test_trace_names_the_policy_and_its_line(yard: Yard) -> None:
    """A trace that a policy refuses says which one, and where in the file."""
    yard.apply(BY_LABEL)
    found = yard.host.json("trace", "z-b", "x-b", "--port", "80", code=3)
    assert "policy b-of-x line 2" in str(found)


def test_doctor_names_a_policy_that_selects_nothing(yard: Yard) -> None:
    """And says that all are well once it selects a container."""

    def found() -> list[tuple[str, str, str]]:
        checks = yard.host.client.call("GET", "/v1/doctor")
        return [(one["check"], one["status"], one["detail"]) for one in checks if one["check"].startswith("polic")]

    assert found() == []
    yard.apply("policy: web\nselect: {labels: {pod: wbe}}\ningress: []\n")
    assert found() == [("policy web", "warn", "it selects no container")]
    yard.apply(BY_LABEL)
    assert found() == [("policies", "ok", "1 policy: each selects a container, and none contradicts another")]


def test_doctor_takes_no_policy_for_the_firewall_of_another_program(yard: Yard) -> None:
    """Its fix for such a firewall would open the policy."""
    yard.apply("policy: shut\nselect: {}\negress: []\n")
    found = [one for one in yard.host.client.call("GET", "/v1/doctor") if one["check"].startswith("nft forward")]
    assert found
    assert [one["status"] for one in found] == ["ok"] * len(found)


TESTS = f"""{BY_LABEL}
tests:
- {{from: y-a, to: x-b, port: 80, expect: allow}}
- {{from: y-a, to: x-b, expect: allow}}
- {{from: y-b, to: x-b, port: 81/udp, expect: allow}}
- {{from: z-b, to: x-b, port: 80, expect: deny}}
- {{from: z-b, to: x-b, port: 81/udp, expect: deny}}
- {{from: z-b, to: x-b, port: icmp, expect: deny}}
- {{from: z-b, to: x-a, port: icmp, expect: allow}}
- {{from: z-b, to: x-a, port: 4444, expect: allow}}
- {{from: outside, to: x-a, expect: allow}}
"""


def test_live_tests_ask_by_packets_what_is_in_force(yard: Yard) -> None:
    """Before the policy is applied its denials fail; a closed port is no refusal; the outside sends nothing."""
    file = yard.folder / "tests.yaml"
    file.write_text(TESTS)
    before = yard.host.json("policy", "test", "--live", str(file), code=3)
    assert [(one["line"], one["got"]) for one in before["failed"]] == [(16, "allow"), (17, "allow"), (18, "allow")]
    yard.host.cli("policy", "apply", str(file))
    after = yard.host.json("policy", "test", "--live", str(file))
    assert (after["cases"], after["ok"], after["failed"]) == (9, 8, [])
    assert [one["line"] for one in after["skipped"]] == [21]


def test_live_tests_take_no_lost_refusal_for_an_open_way(yard: Yard) -> None:
    """As on any machine: the kernel sends a receiver six refusals at once, and then one a second."""
    cases = "".join(f"- {{from: x-a, to: x-b, port: {port}/udp, expect: allow}}\n" for port in range(1000, 1012))
    file = yard.folder / "datagrams.yaml"
    file.write_text(f"policy: web\nselect: {{name: x-b}}\ningress: []\ntests:\n{cases}")
    yard.host.cli("policy", "apply", str(file))
    run("sysctl", "-qw", "net.ipv4.icmp_ratelimit=1000", netns=yard.host.netns)
    try:
        found = yard.host.json("policy", "test", "--live", str(file), code=3)
    finally:
        run("sysctl", "-qw", "net.ipv4.icmp_ratelimit=0", netns=yard.host.netns)
    assert found["ok"] == 0, "all are refused"
    assert found["failed"]
    assert len(found["failed"]) + len(found["skipped"]) == found["cases"] == 12


@contextlib.contextmanager
def asking(yard: Yard, name: str) -> Iterator[list[bool]]:
    """Connect from a container to x-b at port 80 all the time; give whether each connection came about at once.

    One whose first packet was lost does not count: TCP sends it again after a second (RFC 6298).
    """
    found: list[bool] = []
    ended = threading.Event()

    def connect() -> None:
        with inside(yard.netns[name]):
            while not ended.wait(0.001):
                with socket.socket() as client:
                    client.settimeout(10)
                    try:
                        client.connect((yard.ips["x-b"][4], 80))
                        found.append(retransmitted(client) == 0)
                    except OSError:
                        found.append(False)

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()


RULE = """
policy: {name}
select: {select}
ingress:
- from: {peers}
  ports: {ports}
"""


def _text(
    name: str = "web", select: str = "{network: x, labels: {pod: b}}", peers: str = "[{labels: {pod: a}}]",
    ports: str = "[80]",
) -> str:
    return RULE.format(name=name, select=select, peers=peers, ports=ports)  # fmt: skip


ABOVE = """---
policy: above
tier: admin
select: {network: x}
ingress:
- {action: pass, from: [{labels: {pod: a}}], ports: [80]}
- {action: deny, from: [{name: z-b}]}
"""
SAME_FOR_BOTH = (
    _text(ports="[80, 81]"),
    _text(peers="[{labels: {pod: c}}, {labels: {pod: a, ns: z}}]"),
    _text(select="{name: x-b}"),
    _text(name="renamed"),
    _text() + "---" + _text("more", peers="[{labels: {pod: c}}]"),
    _text() + "---\npolicy: never\norder: 1\nselect: {network: x}\ningress:\n- {action: deny, from: [{name: z-b}]}\n",
    _text() + "---\npolicy: out\nselect: {network: z}\negress:\n- to: [{network: x}]\n",
    _text() + ABOVE,
    _text() + ABOVE.replace("tier: admin", "tier: baseline").replace("pass", "allow"),
)
"""Policies by which z-a reaches x-b at port 80, and z-b does not."""


def test_while_policies_change_no_allowed_connection_is_refused_and_no_forbidden_one_comes_about(yard: Yard) -> None:
    """Ports, peers, subjects, the name and the tier of a policy change, others beside it, labels, and a default."""
    yard.apply(_text())
    with asking(yard, "z-a") as allowed, asking(yard, "z-b") as forbidden:
        for text in SAME_FOR_BOTH:
            yard.apply(text)
        for labels in ("pod=a", "pod=c"):
            yard.host.cli("endpoint", "label", "z-c", labels)
        for default in ("default-deny", "default-allow"):
            yard.host.cli("network", "update", "x", "--policy", default)
        tries = len(allowed), len(forbidden)
        until(lambda: len(allowed) > tries[0] + 5 and len(forbidden) > tries[1] + 5, "both asked afterwards, too")
    assert all(allowed), f"refused: {allowed.count(False)} of {len(allowed)}"
    assert not any(forbidden), f"let in: {forbidden.count(True)} of {len(forbidden)}"
    assert yard.host.differences() == []


def test_while_the_first_policy_comes_and_the_last_one_goes_no_packet_is_lost(yard: Yard) -> None:
    """Packets that are in the rules when these go still find what the rules look up: again and again."""
    with asking(yard, "z-a") as one, asking(yard, "y-a") as other:
        for _ in range(10):
            yard.apply(_text())
            yard.apply("")
        tries = len(one)
        until(lambda: len(one) > tries + 5, "it asked afterwards, too")
    assert all([*one, *other]), f"lost or refused: {[*one, *other].count(False)} of {len(one) + len(other)}"
    assert yard.host.differences() == []


@pytest.mark.parametrize("change", [1, 2])
def test_an_agent_that_is_killed_between_two_transactions_leaves_a_whole(yard: Yard, change: int) -> None:
    """After the first transaction of a change, or the second: all is right before the start and after it."""
    yard.apply(_text())
    wanted = _text("more", "{labels: {pod: b}}", "[{labels: {pod: a}}, {name: y-c}]", "[80, 81]") + ABOVE
    with inside(yard.host.netns):
        rules = netfilter_socket()
    with ThreadPoolExecutor(1) as pool, asking(yard, "z-a") as allowed, asking(yard, "z-b") as forbidden:
        try:
            before = generation(rules)
            applying = pool.submit(yard.apply, wanted)
            while generation(rules) < before + change and not applying.done():
                pass
            yard.host.stop(signal.SIGKILL)
            applying.exception()
        finally:
            yard.host.start()
            rules.close()
        tries = len(allowed), len(forbidden)
        until(lambda: len(allowed) > tries[0] + 5 and len(forbidden) > tries[1] + 5, "both asked afterwards, too")
    assert all(allowed), f"refused: {allowed.count(False)} of {len(allowed)}"
    assert not any(forbidden), f"let in: {forbidden.count(True)} of {len(forbidden)}"
    until(lambda: yard.host.differences() == [], "nothing is left of the change", SHARED)
    yard.apply(wanted)
    assert yard.host.differences() == []
