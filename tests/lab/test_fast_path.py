"""A network with fast=true: packets inside it skip connection tracking and all rules, and nothing else changes."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from linkspan.core.addresses import mac
from linkspan.lab import record
from linkspan.policy import document
from support.agent.traffic import Capture, answers, echoes, inside, send_frame, serving, transfer
from support.dns_queries import NOERROR, PTR, ask, reverse
from support.lab.cluster_runs import ClusterRun
from support.netns.forgery import datagram
from support.polling import SHARED, until

pytestmark = pytest.mark.skipif(shutil.which("etcd") is None, reason="needs etcd: apt install etcd-server")

HOSTS = ("h1", "h2", "h3")
OTHERS = """
table inet watch {
  counter seen {}
  chain forward {
    type filter hook forward priority 10;
    ip saddr 10.244.0.0/16 ip daddr 10.244.0.0/16 counter name seen
    ip6 saddr fd00:244::/48 ip6 daddr fd00:244::/48 counter name seen
    ct state invalid drop
  }
}
"""
"""Another program's filter: it counts what it sees of the network, and drops what it has seen one direction of."""
SERVICE = """
table ip service {
  chain in {
    type nat hook prerouting priority dstnat;
    tcp dport 9 dnat to 10.244.255.1:80
  }
}
"""
WEB = """
policy: web
select: {name: c2}
ingress:
- from: [{name: nobody}]
"""


OPEN = WEB.replace("nobody", "c1")


class FastRun(ClusterRun):
    """Three hosts with a container each, c1 on h1, c2 on h2 and c3 on h3."""

    def seen(self) -> dict[str, int]:
        """Return by host how many packets of the network another program's filter has seen."""
        found = {}
        for host in HOSTS:
            listed = json.loads(self.inside(host, "nft -j list counter inet watch seen"))["nftables"]
            found[host] = next(one["counter"]["packets"] for one in listed if "counter" in one)
        return found

    def passed(self, source: str, address: str) -> dict[str, int]:
        """Ping an address, which must answer; return by host how many packets passed the rules of others."""
        before = self.seen()
        assert echoes(self.place(source), address), f"{source} reaches {address}"
        return {host: number - before[host] for host, number in self.seen().items()}

    def is_fast(self, source: str, address: str) -> bool:
        """Return whether a ping is answered, and neither it nor its answer passes a host's rules."""
        before = self.seen()
        return echoes(self.place(source), address) and self.seen() == before

    def place(self, container: str) -> str:
        """Return a container's namespace."""
        return f"{self.name}-{container}"

    def addresses(self, container: str) -> list[str]:
        """Return a container's addresses, of both families."""
        found = next(c for c in record.load(self.name).containers if c.name == container)
        return [one.partition("/")[0] for one in found.attachments[0].addresses]

    def endpoint(self, host: str, container: str) -> dict[str, Any]:
        """Return what an agent knows of its endpoint."""
        found = self.call(host, "GET", "/v1/endpoints?local=true")
        return next(one for one in found if one["name"] == container)

    def words(self, host: str) -> str:
        """Return what a host says of the network's fast path."""
        return str(self.call(host, "GET", "/v1/networks/demo")["fast"]["words"])

    @contextlib.contextmanager
    def attached(self, name: str, *more: str) -> Iterator[str]:
        """Attach one more container to h2 for a while, and give its first address."""
        place = self.place(name)
        subprocess.run(["ip", "netns", "add", place], check=True)
        try:
            told = self.exec("h2", f"linkspan attach {place} --network demo --name {name} -o json {' '.join(more)}")
            yield str(json.loads(told)["addresses"][0].partition("/")[0])
        finally:
            self.exec("h2", f"linkspan detach {place}")
            subprocess.run(["ip", "netns", "delete", place], check=True)


@pytest.fixture(scope="module")
def cluster() -> Iterator[FastRun]:
    """Give three hosts with a fast VXLAN network of both families, and another program's rules on each."""
    found = FastRun()
    try:
        found.run("up", "--backend vxlan --store etcd --underlay dual --opt fast=true")
        for host in HOSTS:
            argv = ["ip", "netns", "exec", found.place(host), "nft", OTHERS]
            subprocess.run(argv, check=True)
        yield found
    finally:
        found.run("down")


@pytest.fixture(autouse=True)
def _fast(cluster: FastRun) -> None:
    """Begin each test with the fast path between all containers."""
    for source, target in (("c1", "c2"), ("c2", "c3"), ("c3", "c1")):
        until(lambda s=source, t=target: cluster.is_fast(s, cluster.address(t)), f"{source} and {target} are fast")


def test_packets_of_both_families_pass_no_rules(cluster: FastRun) -> None:
    """Neither a ping nor a TCP stream, between hosts; and hosts still reach containers."""
    before = cluster.seen()
    for address in cluster.addresses("c2"):
        assert echoes(cluster.place("c1"), address)
        transfer(cluster.place("c1"), cluster.place("c2"), address, 1 << 20)
    assert cluster.seen() == before
    assert cluster.json("test")["failed"] == []
    assert "fast for 1 of its containers here" in cluster.words("h1")


def test_containers_of_one_host_are_fast_too(cluster: FastRun) -> None:
    """The chain leads from one container's link to another's."""
    with cluster.attached("near") as address:
        until(lambda: cluster.is_fast("c2", address), "c2 and its neighbour are fast")


def test_a_forged_source_gets_nowhere(cluster: FastRun) -> None:
    """Neither another container's address nor another MAC, to another host or to this one."""
    one, target = cluster.endpoint("h1", "c1"), cluster.address("c2")
    gateway, own = mac(_gateway(cluster, "c1")), mac(one["mac"])
    capture = Capture(cluster.place("c2"), "eth0")
    try:
        true = gateway + own + b"\x08\x00" + datagram(cluster.address("c1"), target)
        for source, by in ((cluster.address("c3"), own), (cluster.address("c1"), mac("02:00:00:00:00:99"))):
            send_frame(cluster.place("c1"), "eth0", gateway + by + b"\x08\x00" + datagram(source, target))
        send_frame(cluster.place("c1"), "eth0", true)
        forged = [frame for frame in capture.frames(1.0, outgoing=False) if b"forged" in frame]
    finally:
        capture.close()
    assert len(forged) == 1, "what has its own source arrives"


def test_a_frame_that_the_host_would_drop_is_not_forwarded(cluster: FastRun) -> None:
    """One with a VLAN's tag would reach an interface of that VLAN; one to another MAC is none of the host's."""
    target = cluster.address("c2")
    with cluster.attached("near") as near:
        until(lambda: cluster.is_fast("near", target), "c2 and its neighbour are fast")
        for host, name, address in (("h1", "c1", cluster.address("c1")), ("h2", "near", near)):
            gateway, own = mac(_gateway(cluster, name)), mac(cluster.endpoint(host, name)["mac"])
            packet = b"\x08\x00" + datagram(address, target)
            capture = Capture(cluster.place("c2"), "eth0")
            try:
                for to, tag in ((gateway, b"\x81\x00\x00\x05"), (b"\xff" * 6, b""), (gateway, b"")):
                    send_frame(cluster.place(name), "eth0", to + own + tag + packet)
                arrived = [frame for frame in capture.frames(1.0, outgoing=False) if b"forged" in frame]
            finally:
                capture.close()
            assert len(arrived) == 1, f"only the plain one of {name} arrives"


def _gateway(cluster: FastRun, container: str) -> str:
    echoes(cluster.place(container), cluster.address("c3"))
    argv = ["ip", "-n", cluster.place(container), "-j", "neighbour", "show", "dev", "eth0"]
    found = json.loads(subprocess.run(argv, capture_output=True, check=True, text=True).stdout)
    return str(next(one["lladdr"] for one in found if "lladdr" in one and "." in one["dst"]))


def test_another_fast_network_is_not_reached(cluster: FastRun) -> None:
    """Each network has chains of its own."""
    cluster.create("other", "10.99.0.0/16", options={"fast": "true"})
    place = cluster.place("stranger")
    subprocess.run(["ip", "netns", "add", place], check=True)
    try:
        told = json.loads(cluster.exec("h2", f"linkspan attach {place} --network other --name stranger -o json"))
        address = told["addresses"][0].partition("/")[0]
        chains = "nft list table netdev linkspan"
        until(lambda: cluster.inside("h2", chains).count("goto out_") >= 2, "it is fast in its own network")
        assert not echoes(cluster.place("c1"), address)
        assert not echoes(cluster.place("c2"), address)
        assert not echoes(place, cluster.address("c1"))
    finally:
        cluster.exec("h2", f"linkspan detach {place}")
        subprocess.run(["ip", "netns", "delete", place], check=True)
        cluster.delete("other")


def test_every_host_is_the_gateway_though_one_has_its_block(cluster: FastRun) -> None:
    """A host without that block reaches its own container, and its name server answers. No other host has one here."""
    cluster.create("small", "10.98.0.0/22", options={"fast": "true"})
    place = cluster.place("small")
    subprocess.run(["ip", "netns", "add", place], check=True)
    try:
        assert cluster.blocks("h3", "small") == ["10.98.0.0/24"]
        told = json.loads(cluster.exec("h1", f"linkspan attach {place} --network small --name small -o json"))
        address = told["addresses"][0].partition("/")[0]
        chains = "nft list table netdev linkspan"
        until(lambda: cluster.inside("h1", chains).count("goto out_") >= 2, "it is fast")
        assert echoes(cluster.place("h1"), address), "its host reaches it"
        until(lambda: named(place, address), "its host's name server answers")
    finally:
        cluster.exec("h1", f"linkspan detach {place}")
        subprocess.run(["ip", "netns", "delete", place], check=True)
        cluster.delete("small")


def named(place: str, address: str) -> bool:
    """Return whether the name server of the small network knows an address."""
    with inside(place), contextlib.suppress(OSError):
        return ask("10.98.0.1", reverse(address), PTR).code == NOERROR
    return False


def test_a_policy_takes_its_endpoints_off_the_path(cluster: FastRun) -> None:
    """On their host alone: others stay fast, and c2 is fast again without it. It cuts what was open on the path."""
    policies = document.parsed(WEB, "file.yaml").policies
    with inside(cluster.place("c2")):
        server = socket.create_server((cluster.address("c2"), 0))
    with inside(cluster.place("c1")):
        client = socket.create_connection(server.getsockname(), 10)
    accepted, _ = server.accept()
    found = cluster.call("h1", "PUT", "/v1/policies", {"policies": policies})
    try:
        assert "TCP connections" in str(found["warnings"]), "what happens to those that it allows is said"
        until(lambda: not echoes(cluster.place("c1"), cluster.address("c2")), "h2 refuses c1")
        until(lambda: ended(client), "the open connection is cut")
        until(lambda: "policy web is about it" in cluster.words("h2"), "h2 says why")
        assert cluster.is_fast("c1", cluster.address("c3"))
        passed = cluster.passed("c2", cluster.address("c3"))
        assert passed["h2"] > 0, "both directions pass h2's rules"
        assert passed["h3"] == 0
    finally:
        cluster.call("h1", "DELETE", "/v1/policies/web")
        for one in (client, accepted, server):
            one.close()


def test_a_policy_ends_a_stream_that_its_container_sends(cluster: FastRun) -> None:
    """Whichever end's packet is the first that passes rules: an answer must not begin a flow that nobody forbids."""
    policies = document.parsed(WEB, "file.yaml").policies
    with inside(cluster.place("c2")):
        server = socket.create_server((cluster.address("c2"), 0))
    with inside(cluster.place("c1")):
        client = socket.create_connection(server.getsockname(), 10)
    accepted, _ = server.accept()
    accepted.settimeout(5)
    stop, cut = threading.Event(), threading.Event()

    def stream() -> None:
        with contextlib.suppress(TimeoutError):
            while not stop.wait(0.001):
                try:
                    accepted.send(b".")
                except ConnectionError:
                    cut.set()
                    return

    sender = threading.Thread(target=stream)
    sender.start()
    try:
        cluster.call("h1", "PUT", "/v1/policies", {"policies": policies})
        until(cut.is_set, "the stream is cut")
    finally:
        stop.set()
        sender.join()
        cluster.call("h1", "DELETE", "/v1/policies/web")
        for one in (client, accepted, server):
            one.close()


def test_a_policy_cuts_what_was_open_before_an_obstacle_closed_the_path(cluster: FastRun) -> None:
    """The first packet that h2 tracks is an answer, so connection tracking takes c2 for the one that began."""
    policies = document.parsed(WEB, "file.yaml").policies
    with inside(cluster.place("c2")):
        server = socket.create_server((cluster.address("c2"), 0))
    with inside(cluster.place("c1")):
        client = socket.create_connection(server.getsockname(), 10)
    accepted, _ = server.accept()
    argv = ["ip", "netns", "exec", cluster.place("h2"), "nft"]
    subprocess.run([*argv, SERVICE], check=True)
    try:
        until(lambda: not cluster.is_fast("c1", cluster.address("c2")), "the path of h2 is closed")
        accepted.send(b"!")
        assert client.recv(1) == b"!"
        cluster.call("h1", "PUT", "/v1/policies", {"policies": policies})
        until(lambda: ended(client), "the open connection is cut")
    finally:
        cluster.call("h1", "DELETE", "/v1/policies/web")
        subprocess.run([*argv, "delete table ip service"], check=True)
        for one in (client, accepted, server):
            one.close()


@pytest.mark.parametrize("text", [WEB, OPEN], ids=["forbids", "allows"])
def test_a_policy_that_comes_while_the_agent_is_dead_cuts_what_is_open(cluster: FastRun, text: str) -> None:
    """Also a connection that was tracked before the path: its packets are none that connection tracking expects."""
    allowed, policies = (document.parsed(one, "file.yaml").policies for one in (OPEN, text))
    cluster.call("h1", "PUT", "/v1/policies", {"policies": allowed})
    until(lambda: "policy web is about it" in cluster.words("h2"), "h2 tracks c2")
    with inside(cluster.place("c2")):
        server = socket.create_server((cluster.address("c2"), 0))
    with inside(cluster.place("c1")):
        client = socket.create_connection(server.getsockname(), 10)
    accepted, _ = server.accept()
    try:
        cluster.call("h1", "DELETE", "/v1/policies/web")
        until(lambda: cluster.is_fast("c1", cluster.address("c2")), "c2 is on the path")
        for _ in range(32):
            client.sendall(bytes(1 << 18))
            assert len(accepted.recv(1 << 18, socket.MSG_WAITALL)) == 1 << 18
        cluster.run("break", "h2 agent-kill")
        cluster.call("h1", "PUT", "/v1/policies", {"policies": policies})
        cluster.run("mend", "h2")
        until(lambda: ended(client), "the open connection is cut")
        assert echoes(cluster.place("c1"), cluster.address("c2")) == (text == OPEN)
    finally:
        cluster.call("h1", "DELETE", "/v1/policies/web")
        for one in (client, accepted, server):
            one.close()


def ended(client: socket.socket) -> bool:
    """Send a byte; return whether the connection has been reset."""
    client.settimeout(0.2)
    try:
        client.send(b"?")
        client.recv(1)
    except TimeoutError:
        return False
    except OSError:
        return True
    return False


def test_a_published_port_answers_containers_of_the_same_network(cluster: FastRun) -> None:
    """Its answers are translated back, so its container is not on the path."""
    with cluster.attached("web", "--publish", "8080:80") as address, serving(cluster.place("web"), 80):
        (own,) = (lease["host_address"][0] for lease in cluster.host("h2")["leases"] if lease["network"] == "demo")
        for client in ("c1", "c2"):
            until(lambda c=client: answers(cluster.place(c), own.partition("/")[0], 8080), f"{client} is answered")
        assert cluster.passed("c1", address)["h2"] > 0
        assert "web: it publishes ports" in cluster.words("h2")


def test_a_limit_of_bandwidth_holds(cluster: FastRun) -> None:
    """The path sends through the queue of the container's link: 1 MB takes a second at 8 Mbit/s."""
    with cluster.attached("slow", "--bandwidth", "in=8M") as address:
        until(lambda: cluster.is_fast("c1", address), "c1 and the limited one are fast")
        before = cluster.seen()
        assert transfer(cluster.place("c1"), cluster.place("slow"), address, 1_000_000) > 0.7
        assert cluster.seen() == before


def test_an_agent_that_starts_again_keeps_the_path(cluster: FastRun) -> None:
    """No packet is lost, and the path is as before: the new agent finds nothing to change."""
    before = cluster.inside("h2", "nft -a list table netdev linkspan")
    with cluster.no_loss("c1", cluster.address("c2"), most=0):
        cluster.run("break", "h2 agent-kill")
        cluster.run("mend", "h2")
    until(lambda: cluster.status("h2")["ok"], "h2 is well")
    assert cluster.inside("h2", "nft -a list table netdev linkspan") == before


def test_what_somebody_removes_is_put_back(cluster: FastRun) -> None:
    """Chains, elements, the whole table: packets pass the rules meanwhile."""
    for command in ("flush table netdev linkspan", "delete table netdev linkspan"):
        cluster.inside("h1", f"nft {command}")
        assert echoes(cluster.place("c1"), cluster.address("c2"))
        until(lambda: cluster.is_fast("c1", cluster.address("c2")), f"the path is back after {command}")


def test_a_host_with_another_programs_translation_is_not_fast(cluster: FastRun) -> None:
    """Both directions pass its rules, and none of another host's; its status says why."""
    argv = ["ip", "netns", "exec", cluster.place("h3"), "nft"]
    subprocess.run([*argv, SERVICE], check=True)
    try:
        until(lambda: "translates" in cluster.words("h3"), "h3 sees the translation")
        found = cluster.passed("c1", cluster.address("c3"))
        assert (found["h1"], found["h2"]) == (0, 0)
        assert found["h3"] > 0
        for address in cluster.addresses("c3"):
            transfer(cluster.place("c1"), cluster.place("c3"), address, 1 << 18)
        (check,) = [one for one in cluster.call("h3", "GET", "/v1/doctor") if one["check"] == "fast path of demo"]
        assert check["status"] == "warn"
    finally:
        subprocess.run([*argv, "delete table ip service"], check=True)


def test_a_host_whose_underlay_takes_smaller_packets_is_not_fast(cluster: FastRun) -> None:
    """The kernel's message of the link tells it, long before the look at everything once a minute would."""
    try:
        cluster.inside("h3", "ip link set eth0 mtu 1400")
        until(lambda: "fast for" not in cluster.words("h3"), "h3 sees its MTU", 5 * SHARED)
        assert "MTU" in cluster.words("h3")
    finally:
        cluster.inside("h3", "ip link set eth0 mtu 1500")
    until(lambda: "fast for" in cluster.words("h3"), "h3 is fast again", 5 * SHARED)


def test_a_trace_names_the_chain_that_forwards(cluster: FastRun) -> None:
    """On both hosts, both ways; a ping by the trace itself goes the same way."""
    for address in cluster.addresses("c2"):
        told = json.loads(cluster.exec("h1", f"linkspan trace c1 {address} -o json"))
        assert told["verdict"] == "reachable", told
        for way in ("hops", "reply_hops"):
            early = [hop for hop in told[way] if hop["action"] == "forwarded"]
            assert [hop["detail"].split()[1:5] for hop in early] == [
                ["netdev", "linkspan", f"out{6 if ':' in address else 4}_{early[0]['device']}", "sends"],
                ["netdev", "linkspan", f"in_{early[0]['device']}", "sends"],
            ]


def test_a_network_that_migrates_loses_nothing(cluster: FastRun) -> None:
    """To plain routes, which have no such path, and back to a fast network."""
    for way, options in (("host-gw", {}), ("vxlan", {"fast": "true"})):
        with cluster.no_loss("c1", cluster.address("c2")):
            cluster.call("h1", "POST", "/v1/networks/demo/migration", {"backend": way, "options": options})

            def done(way: str = way) -> bool:
                told = [cluster.call(host, "GET", "/v1/networks/demo") for host in HOSTS]
                return all(one["backend"] == way and one["migration"] is None for one in told)

            until(done, f"all hosts use {way}")
        for host in HOSTS if way == "host-gw" else ():
            until(lambda h=host: "netdev linkspan" not in cluster.inside(h, "nft list tables"), f"{host} has no table")


def test_uninstall_leaves_nothing_of_it(cluster: FastRun) -> None:
    """The table goes with all else."""
    with inside(cluster.place("h3")):
        assert "netdev linkspan" in cluster.inside("h3", "nft list tables")
    cluster.exec("h3", "linkspan uninstall --yes --force")
    assert "linkspan" not in cluster.inside("h3", "nft list tables")
    assert cluster.is_fast("c1", cluster.address("c2"))
