"""Policies about ports of containers on the host's own network: by labels, for the outside and for containers."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest

from linkspan.core.errors import Invalid
from linkspan.policy import document
from support.agent.agent_host import Host, World, run
from support.agent.cells import servers
from support.agent.stage import FAMILIES, OUTSIDE, UPLINK, port
from support.agent.traffic import answers, asked, inside, serving
from support.polling import until

PORT, OTHER = 8443, 8444
POLICY = f"""
policy: front
select: {{labels: {{app: front}}}}
ingress:
- from: [{{labels: {{app: shop}}}}, {{cidr: '{OUTSIDE[6]}'}}]
  ports: [{PORT}/tcp, {PORT}/udp]
"""


class Ports:
    """A host with a container on its own network, two bridged ones, and a machine outside."""

    def __init__(self, world: World) -> None:
        self.host = Host(world)
        self.outside = self.host.outside()
        for name in ("ipv4.icmp_ratelimit", "ipv6.icmp.ratelimit"):
            run("sysctl", "-qw", f"net.{name}=0", netns=self.host.netns)
        self.host.config.write_text(f"{self.host.config.read_text()}log_drops = true\n")
        self.host.start()
        self.host.network("demo", "10.201.0.0/16", "fd00:201::/64", options={"mode": "routed"})
        self.host.network("shared", backend="host", pools=[])
        self.netns = {"shop": world.namespace(), "other": world.namespace()}
        for name, netns in self.netns.items():
            self.host.attach(netns, "demo", name=name, labels={"app": name})
        self.netns["outside"] = self.outside
        self.front()

    def front(self) -> None:
        """Attach the container on the host's network."""
        ports = [port(PORT, PORT), port(PORT, PORT, "udp")]
        body = {"id": "front", "name": "front", "network": "shared", "ports": ports, "labels": {"app": "front"}}
        self.host.client.call("POST", "/v1/attach", body)

    def apply(self, text: str) -> list[str]:
        """Make these the only policies; return the warnings."""
        policies = document.parsed(text, "file.yaml").policies
        call = self.host.client.call
        found = call("PUT", "/v1/policies", {"policies": policies}) if policies else {"warnings": []}
        for one in call("GET", "/v1/policies"):
            if one["name"] not in {policy.name for policy in policies}:
                call("DELETE", f"/v1/policies/{one['name']}")
        return list(found["warnings"])

    def reach(self, family: int, number: int = PORT, protocol: str = "tcp") -> set[str]:
        """Return who reaches a port of the host."""
        return {name for name, netns in self.netns.items() if answers(netns, UPLINK[family], number, protocol)}


@pytest.fixture(scope="module")
def ports() -> Iterator[Ports]:
    """Return the host of this file's tests."""
    world = World()
    try:
        made = Ports(world)
        try:
            with servers([made.host.netns], (PORT, OTHER)):
                yield made
        finally:
            made.host.close()
    finally:
        world.remove()


@pytest.fixture(autouse=True)
def _clean(ports: Ports) -> Iterator[None]:
    yield
    ports.apply("")


ALL = {"shop", "other", "outside"}


@pytest.mark.parametrize("family", FAMILIES)
def test_labels_and_addresses_decide_about_the_port_and_no_other_one(ports: Ports, family: int) -> None:
    """By TCP and UDP; the host itself always reaches it, and everything is open again without the policy."""
    assert ports.reach(family) == ALL
    assert ports.apply(POLICY) == []
    allowed = {"shop"} | ({"outside"} if family == 6 else set())
    assert ports.reach(family) == allowed
    assert ports.reach(family, OTHER) == ALL
    # A server by UDP that does not choose its address answers containers by their gateway's: they do not take that.
    assert ports.reach(family, PORT, "udp") == allowed & {"outside"}
    assert ports.reach(family, OTHER, "udp") == {"outside"}
    assert asked(ports.host.netns, UPLINK[family], PORT), "its own host reaches it"
    assert ports.host.differences() == []
    ports.apply("")
    assert ports.reach(family) == ALL


def test_the_answers_of_the_records_and_of_a_trace_are_the_kernels(ports: Ports) -> None:
    """`policy can` and `who-can` know the port; a trace names the policy and its line."""
    ports.apply(POLICY)
    can = ports.host.json("policy", "can", "shop", "front")
    assert (can["allowed"], can["ports"]) == (True, [f"{PORT}/tcp", f"{PORT}/udp"])
    no = ports.host.json("policy", "can", "other", "front", "--port", f"{PORT}/tcp", code=3)
    assert no["by"] == {"policy": "front", "line": 2}
    assert ports.host.json("policy", "can", "other", "front", "--port", f"{OTHER}/tcp")["allowed"]
    assert [one["name"] for one in ports.host.json("policy", "who-can", "front")] == ["shop"]
    found = ports.host.json("trace", "other", UPLINK[4], "--port", str(PORT), code=3)
    assert "policy front line 2 refuses it" in str(found)
    assert ports.host.json("trace", "shop", UPLINK[4], "--port", str(PORT))["reachable"]


def test_live_tests_and_drops_know_the_container_by_its_port(ports: Ports) -> None:
    """Packets go to the port at the host's address, and from such a container by the host, which nobody refuses."""
    file = ports.host.folder / "live.yaml"
    file.write_text(POLICY + f"""
tests:
- {{from: shop, to: front, port: {PORT}/tcp, expect: allow}}
- {{from: other, to: front, port: {OTHER}/tcp, expect: allow}}
- {{from: front, to: other, port: {PORT}/tcp, expect: allow}}
- {{from: other, to: front, expect: deny}}
""")
    ports.apply(POLICY)
    found = ports.host.json("policy", "test", "--live", str(file))
    assert (found["ok"], found["failed"], found["skipped"]) == (4, [], [])
    until(lambda: f"{PORT}/tcp: policy front line 2" in ports.host.cli("drops"), "the refusal is logged")
    drop = ports.host.cli("drops").splitlines()[-1]
    assert " refused  other (" in drop
    assert "> front (" in drop
    ports.apply("")
    found = ports.host.json("policy", "test", "--live", str(file), code=3)
    assert [one["got"] for one in found["failed"]] == ["allow"]


def test_a_changed_label_cuts_connections_at_both_ends(ports: Ports) -> None:
    """Of the client, and of the container on the host's network; what is allowed still goes on."""
    ports.apply(POLICY)

    def connected(name: str) -> tuple[socket.socket, socket.socket]:
        with inside(ports.host.netns):
            listening = socket.create_server((UPLINK[4], OTHER + 1))
        with listening, inside(ports.netns[name]):
            client = socket.create_connection(listening.getsockname(), timeout=10)
            accepted = listening.accept()[0]
        accepted.settimeout(10)
        return client, accepted

    call = ports.host.client.call
    call("POST", "/v1/attach", {
        "id": "late", "name": "late", "network": "shared", "ports": [port(OTHER + 1, OTHER + 1)],
    })  # fmt: skip
    kept, cut = connected("shop"), connected("other")
    try:
        ports.apply(POLICY + f"- {{from: [{{labels: {{app: shop}}}}], ports: [{OTHER + 1}]}}\n")
        ports.host.cli("endpoint", "label", "late", "app=front")
        for end in cut[::-1]:  # the host's container speaks first
            end.sendall(b"gone")
            with pytest.raises(ConnectionResetError):
                end.recv(16)
        kept[0].sendall(b"still")
        assert kept[1].recv(16) == b"still"
        ports.host.cli("endpoint", "label", "shop", "app=none")
        kept[0].sendall(b"gone")
        with pytest.raises(ConnectionResetError):
            kept[0].recv(16)
    finally:
        for end in (*kept, *cut):
            end.close()
        ports.host.cli("endpoint", "label", "shop", "app=shop")
        ports.host.detach("late")
    assert ports.host.differences() == []


def test_it_holds_without_an_agent_and_from_the_moment_of_an_attach(ports: Ports) -> None:
    """Rules and elements outlive the agent; a container that comes is under the policies that are there."""
    ports.apply(POLICY)
    ports.host.stop()
    try:
        assert ports.reach(4) == {"shop"}
    finally:
        ports.host.restart()
    assert ports.reach(4) == {"shop"}
    assert ports.host.differences() == []
    late = {"id": "late", "name": "late", "network": "shared", "labels": {"app": "front"}}
    ports.host.client.call("POST", "/v1/attach", late | {"ports": [port(OTHER + 2, OTHER + 2)]})
    with serving(ports.host.netns, OTHER + 2):
        assert ports.reach(4, OTHER + 2) == set(), "the policy opens another port"
        ports.host.cli("endpoint", "label", "late", "app=back")
        until(lambda: ports.reach(4, OTHER + 2) == ALL, "no policy selects it any more")
        ports.host.cli("endpoint", "label", "late", "app=front")
        assert ports.reach(4, OTHER + 2) == set()
        ports.host.detach("late")
        assert ports.reach(4, OTHER + 2) == ALL, "the port is nobody's"


def test_whoever_talked_with_a_port_before_its_container_came_is_judged_as_well(ports: Ports) -> None:
    """A flow by UDP that never pauses would come to each process that listens there later."""
    ports.apply(POLICY)
    number = OTHER + 3

    def bound() -> socket.socket:
        with inside(ports.host.netns):
            made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.bind(("", number))
        made.settimeout(0.5)
        return made

    with inside(ports.outside):
        client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with client:
        client.settimeout(10)
        client.connect((UPLINK[4], number))
        with bound() as earlier:
            client.send(b"first")
            earlier.sendto(b"answer", earlier.recvfrom(16)[1])
            assert client.recv(16) == b"answer"
        late = {"id": "late", "name": "late", "network": "shared", "labels": {"app": "front"}}
        ports.host.client.call("POST", "/v1/attach", late | {"ports": [port(number, number, "udp")]})
        with bound() as later:

            def heard() -> bool:
                with contextlib.suppress(OSError):  # an earlier one was refused
                    client.send(b"more")
                with contextlib.suppress(TimeoutError):
                    return bool(later.recv(16))
                return False

            try:
                until(lambda: not heard(), "the policy is about the old flow")
            finally:
                ports.host.detach("late")


def test_tiers_default_deny_and_staged_policies_count_for_it_as_well(ports: Ports) -> None:
    """The network's default decides what admin passes on; the kernel counts what a staged policy would refuse."""
    tier = "policy: guard\ntier: admin\nselect: {network: shared}\ningress:\n"
    ports.host.cli("network", "update", "shared", "--policy", "default-deny")
    try:
        assert ports.reach(4) == set()
        ports.apply(tier + "- {action: pass, from: [{name: other}]}\n- {from: [{name: shop}]}\n")
        assert ports.reach(4) == {"shop"}
        assert ports.host.differences() == []
    finally:
        ports.host.cli("network", "update", "shared", "--policy", "default-allow")
    ports.apply(tier + "- {action: pass, from: [{name: other}]}\n- {action: deny}\n")
    assert ports.reach(4) == {"other"}
    file = ports.host.folder / "front.yaml"
    file.write_text(POLICY)
    ports.apply("")
    ports.host.cli("policy", "apply", "--stage", str(file))
    try:
        assert ports.reach(4) == ALL
        refused = ports.host.json("policy", "staged")["refused"]
        found = {(one["policy"], one["from"], one["to"], one["port"]) for one in refused}
        assert ("front", "other", "front", f"{PORT}/tcp") in found
        assert "shop" not in {one["from"] for one in refused}
    finally:
        ports.host.cli("policy", "delete", "--staged", "front")


def test_what_it_sends_is_nobodys_and_that_is_said(ports: Ports) -> None:
    """A policy that names the network may not have egress; one that does not is accepted with a warning."""
    named = "policy: out\nselect: {network: shared}\negress: []\n"
    with pytest.raises(Invalid, match="what it sends has the host's own addresses"):
        ports.apply(named)
    (warned,) = ports.apply("policy: out\nselect: {labels: {app: front}}\negress: []\n")
    assert warned.startswith("policy out does not count in network shared: what it sends has the host's own addresses")
    assert any("policy out does not protect front" in str(one) for one in ports.host.client.call("GET", "/v1/doctor"))
