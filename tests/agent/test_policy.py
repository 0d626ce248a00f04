"""Policies on the real kernel: nine containers in three networks, each cell of the table asked by TCP and UDP."""

from __future__ import annotations

import contextlib
import itertools
import random
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from linkspan.core.addresses import prefix
from linkspan.policy import document
from linkspan.policy.judge import Judge, Party, Probe
from linkspan.policy.model import Subject
from support.agent.agent_host import Host, World, first_ip, pings, run
from support.agent.stage import FAMILIES, OUTSIDE, UPLINK
from support.agent.traffic import answers, asked, echoes, inside, late, serving
from support.polling import HEALED_WITHIN, SHARED, until

NETWORKS = {
    "x": ("10.211.0.0/16", "fd00:211::/64"),
    "y": ("10.212.0.0/16", "fd00:212::/64"),
    "z": ("10.213.0.0/16", "fd00:213::/64"),
}
PORTS = (80, 81)
PROTOCOLS = ("tcp", "udp")
Cell = tuple[str, str, int, str]


class Yard:
    """One host with three routed networks that may reach each other, and containers a, b and c in each."""

    def __init__(self, world: World, folder: Path) -> None:
        self.host = Host(world)
        self.outside = self.host.outside()
        self.folder = folder
        self.host.start()
        for name, pools in NETWORKS.items():
            self.host.network(name, *pools, options={"mode": "routed"})
        for one, other in itertools.permutations(NETWORKS, 2):
            self.host.cli("network", "allow", one, other)
        self.netns: dict[str, str] = {}
        self.ips: dict[str, dict[int, str]] = {}
        for network, pod in itertools.product(NETWORKS, "abc"):
            netns = world.namespace()
            name = f"{network}-{pod}"
            found = self.host.attach(netns, network, name=name, labels={"pod": pod, "ns": network})
            self.netns[name] = netns
            self.ips[name] = {family: first_ip(found, family) for family in (4, 6)}
        self.servers = contextlib.ExitStack()
        for netns, port, protocol in itertools.product(self.netns.values(), PORTS, PROTOCOLS):
            self.servers.enter_context(serving(netns, port, protocol))

    def close(self) -> None:
        """End servers and agent."""
        self.servers.close()
        self.host.close()

    def apply(self, text: str) -> None:
        """Make these the only policies."""
        file = self.folder / "policies.yaml"
        file.write_text(text)
        if text:
            self.host.cli("policy", "apply", str(file))
        wanted = {policy.name for policy in document.read(file).policies}
        for one in self.host.json("policy", "list"):
            if one["name"] not in wanted:
                self.host.cli("policy", "delete", one["name"])

    @contextlib.contextmanager
    def connected(self, name: str, port: int = 90) -> Iterator[tuple[socket.socket, socket.socket]]:
        """Give a connection from a container to x-b: the client's socket, and the server's."""
        server = self.ips["x-b"][4], port
        with inside(self.netns["x-b"]):
            listening = socket.create_server(server)
        with listening:
            with inside(self.netns[name]):
                client = socket.create_connection(server, timeout=10)
            with client, listening.accept()[0] as accepted:
                accepted.settimeout(10)
                yield client, accepted

    def wrong(self, family: int, expected: Callable[[str, str, int, str], bool]) -> list[Cell]:
        """Ask every container from every other one, at each port by each protocol; return where that is not right.

        Who should answer has ten seconds: this machine may be busy.
        """
        cells = [
            (source, target, port, protocol)
            for source, target in itertools.permutations(self.netns, 2)
            for port, protocol in itertools.product(PORTS, PROTOCOLS)
        ]

        def right(cell: Cell) -> bool:
            source, target, port, protocol = cell
            where = self.netns[source], self.ips[target][family], port, protocol
            if not expected(*cell):
                return not answers(*where)
            try:
                return asked(*where)[1] == self.netns[target]
            except OSError:
                return False

        with ThreadPoolExecutor(24) as pool:
            return [cell for cell, holds in zip(cells, pool.map(right, cells), strict=True) if not holds]


@pytest.fixture(scope="module")
def yard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Yard]:
    """Return the host of this file's tests."""
    world = World()
    try:
        made = Yard(world, tmp_path_factory.mktemp("policies"))
        try:
            yield made
        finally:
            made.close()
    finally:
        world.remove()


@pytest.fixture(autouse=True)
def _clean(yard: Yard) -> Iterator[None]:
    yield
    yard.apply("")
    for network in NETWORKS:
        yard.host.cli("network", "update", network, "--policy", "default-allow")


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
CLOSED = """
policy: closed
select: {network: y}
ingress: []
"""
INSIDE = """
policy: inside
select: {labels: {pod: c}}
egress:
- to: [{name: x-a}]
"""
ORDERED = """
policy: first
order: 1
select: {network: z}
ingress:
- {action: deny, from: [{labels: {pod: b}}], ports: [80]}
---
policy: second
select: {network: z}
ingress:
- from: [{expressions: [{key: ns, operator: NotIn, values: [x]}]}]
"""
BOTH = """
policy: out
select: {network: x}
egress:
- ports: [80/tcp, 80/udp]
---
policy: in
select: {network: y}
ingress:
- ports: [80-81/udp]
"""
KUBERNETES = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: z}
spec:
  podSelector: {matchLabels: {pod: a}}
  policyTypes: [Ingress]
  ingress:
  - from:
    - podSelector: {}
    - namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: y}}
      podSelector: {matchExpressions: [{key: pod, operator: In, values: [b, c]}]}
    ports:
    - {port: 80, endPort: 81}
"""


def _by_label(source: str, target: str, port: int, protocol: str) -> bool:
    first = source[2] == "a" and (port, protocol) == (80, "tcp")
    return target != "x-b" or first or (source[0] == "y" and (port, protocol) == (81, "udp"))


def _ordered(source: str, target: str, port: int, protocol: str) -> bool:
    denied = source[2] == "b" and (port, protocol) == (80, "tcp")
    return target[0] != "z" or (source[0] != "x" and not denied)


def _kubernetes(source: str, target: str, port: int, protocol: str) -> bool:
    return target != "z-a" or (protocol == "tcp" and (source[0] == "z" or source in ("y-b", "y-c")))


CASES: dict[str, tuple[str, Callable[[str, str, int, str], bool]]] = {
    "nothing": ("", lambda _s, _t, _port, _protocol: True),
    "labels and ports": (BY_LABEL, _by_label),
    "nobody comes in": (CLOSED, lambda _s, t, _port, _protocol: t[0] != "y"),
    "nobody goes out, but to one": (INSIDE, lambda s, t, _port, _protocol: s[2] != "c" or t == "x-a"),
    "a deny before an allow": (ORDERED, _ordered),
    "both ends count": (BOTH, lambda s, t, p, w: (s[0] != "x" or p == 80) and (t[0] != "y" or w == "udp")),
    "of Kubernetes": (KUBERNETES, _kubernetes),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("case", CASES)
def test_every_cell_is_as_the_policies_say(yard: Yard, case: str, family: int) -> None:
    """For each pair of nine containers, two ports and two protocols the kernel does what the table says."""
    text, expected = CASES[case]
    yard.apply(text)
    assert yard.wrong(family, expected) == []
    assert yard.host.differences() == []


def _drawn(chance: random.Random) -> str:
    """Return four random policies."""

    def selector() -> dict[str, Any]:
        found: dict[str, Any] = {}
        if chance.random() < 0.5:
            found["labels"] = {"pod": chance.choice("abc")}
        if chance.random() < 0.4:
            found["network"] = chance.choice("xyz")
        if chance.random() < 0.2:
            values = chance.sample("xyz", 2)
            found["expressions"] = [{"key": "ns", "operator": chance.choice(["In", "NotIn"]), "values": values}]
        return found

    def rule(end: str) -> dict[str, Any]:
        found: dict[str, Any] = {"action": chance.choice(["allow", "allow", "deny"])}
        if chance.random() < 0.8:
            cidr = {"cidr": "10.211.0.0/16", "except": ["10.211.0.0/30"]}
            found[end] = [chance.choice([selector(), selector(), cidr]) for _ in range(chance.randint(1, 2))]
        if chance.random() < 0.6:
            found["ports"] = chance.sample(["80/tcp", "81", "80-81/udp", "tcp", "81/udp"], chance.randint(1, 3))
        return found

    made = []
    for number in range(4):
        way, end = chance.choice([("ingress", "from"), ("egress", "to")])
        rules = [rule(end) for _ in range(chance.randint(0, 3))]
        made.append({"policy": f"p{number}", "order": chance.randint(0, 2), "select": selector(), way: rules})
    return "---\n".join(yaml.safe_dump(one) for one in made)


@pytest.mark.parametrize("seed", range(4))
def test_the_kernel_and_the_judge_agree_on_random_policies(yard: Yard, seed: int) -> None:
    """Whatever four policies say, each cell is what the judge says of it."""
    text = _drawn(random.Random(seed))  # noqa: S311 - the same policies in each run
    yard.apply(text)
    judge = Judge(document.parsed(text, "").policies)
    parties = {}
    for name, ips in yard.ips.items():
        subject = Subject(name, name[0], "", {"pod": name[2], "ns": name[0]})
        parties[name] = Party(prefix(ips[4]), judge.chosen(subject))

    def expected(source: str, target: str, port: int, protocol: str) -> bool:
        return judge.verdict(parties[source], parties[target], Probe(protocol, port)).allowed

    assert yard.wrong(4, expected) == [], text


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
    assert not answers(yard.netns["y-a"], yard.ips["y-b"][4], 80)
    assert answers(yard.netns["y-a"], yard.ips["x-b"][4], 80)
    no = yard.host.json("policy", "can", "y-a", "y-b", code=3)
    assert no["by"] == {"policy": "default of network y", "line": 0}
    yard.apply("policy: open\nselect: {name: y-b}\ningress:\n- from: [{name: y-a}]\n")
    assert answers(yard.netns["y-a"], yard.ips["y-b"][4], 80)
    assert not answers(yard.netns["y-c"], yard.ips["y-b"][4], 80)


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


def test_trace_names_the_policy_and_its_line(yard: Yard) -> None:
    """A trace that a policy refuses says which one, and where in the file."""
    yard.apply(BY_LABEL)
    found = yard.host.json("trace", "z-b", "x-b", "--port", "80", code=3)
    assert "policy b-of-x line 2" in str(found)


def test_bridged_networks_are_refused_in_words(yard: Yard) -> None:
    """A policy that names a bridged network is refused; one that may select its containers says so."""
    yard.host.network("bridged", "10.214.0.0/16")
    netns = yard.host.world.namespace()
    try:
        file = yard.folder / "bridged.yaml"
        file.write_text("policy: web\nselect: {network: bridged}\ningress: []\n")
        refused = yard.host.cli("policy", "apply", str(file), code=1)
        assert "bridge" in refused
        assert yard.host.json("policy", "list") == []
        file.write_text("policy: web\nselect: {labels: {app: web}}\ningress: []\n")
        assert "bridge" in yard.host.json("policy", "apply", str(file))["warnings"][0]
        assert "bridge" in yard.host.cli("network", "update", "bridged", "--policy", "default-deny", code=1)
        yard.host.attach(netns, "bridged", name="bare", labels={"app": "web"})
        assert "policy web selects container bare of network bridged" in str(yard.host.json("status", code=3)["drift"])
        why = yard.host.json("policy", "can", "x-a", "bare", code=3)["why"]
        assert "isolated" in why
    finally:
        yard.host.detach(netns)
        yard.host.cli("network", "delete", "bridged")
