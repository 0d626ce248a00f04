"""Another machine on the segment sends with a container's address: peers' plain packets have peers' MACs."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
from collections.abc import Iterator

import pytest

from linkspan.lab import commands, processes, record, sockets
from support.lab.cluster_runs import ClusterRun
from support.polling import SHARED, until

pytestmark = pytest.mark.skipif(shutil.which("etcdctl") is None, reason="needs etcd and etcdctl")

PORT = 9010
NEW = "02:aa:00:00:00:99"
SHORT = 0.5
"""Seconds that a negative finding waits: what passes takes less than a millisecond."""
HOSTS = {4: ("192.0.2.1", "192.0.2.66/24"), 6: ("2001:db8:1::1", "2001:db8:1::66/64")}


class Segment:
    """A lab whose hosts send plain packets, and a machine beside them that is none of it."""

    def __init__(self, words: str) -> None:
        self.cluster = ClusterRun()
        self.cluster.run("up", f"--hosts 2 --store etcd --underlay dual {words}")
        self.evil = f"{self.cluster.name}-evil"
        commands.run("ip", "netns", "add", self.evil)
        switch = f"{self.cluster.name}-switch"
        words = f"link add evil netns {switch} type veth peer name eth0 netns {self.evil}"
        commands.run("ip", *words.split())
        commands.ip(switch, ["link set evil master seg1 up"])
        lines = ["link set lo up", "link set eth0 up"]
        for family, (host, own) in HOSTS.items():
            nodad = " nodad" if family == 6 else ""
            lines += [f"address add {own} dev eth0{nodad}"]
            lines += [f"route add {address} via {host}" for address in self.addresses("c1", family)]
            lines += [f"address add {address} dev lo{nodad}" for address in self.addresses("c2", family)]
        commands.ip(self.evil, lines)

    def down(self) -> None:
        """Take it all away."""
        commands.delete(self.evil)
        self.cluster.run("down")

    def addresses(self, container: str, family: int) -> list[str]:
        """Return a container's addresses of a family."""
        found = record.load(self.cluster.name).container(container).addresses
        return [text.partition("/")[0] for text in found if (":" in text) == (family == 6)]

    def arrives(self, family: int, sender: str, tries: int = 1) -> bool:
        """Return whether a datagram that a namespace sends from c2's address gets to c1."""
        kind = socket.AF_INET6 if family == 6 else socket.AF_INET
        (source,), (target,) = self.addresses("c2", family), self.addresses("c1", family)
        with sockets.inside(f"{self.cluster.name}-c1"):
            server = socket.socket(kind, socket.SOCK_DGRAM)
        with sockets.inside(sender):
            client = socket.socket(kind, socket.SOCK_DGRAM)
        with server, client:
            server.settimeout(SHORT)
            server.bind((target, PORT))
            client.bind((source, 0))
            for _ in range(tries):
                client.sendto(b"?", (target, PORT))
                with contextlib.suppress(TimeoutError):
                    return bool(server.recv(16))
        return False

    def elements(self, family: int) -> str:
        """Return by which MACs h1 takes plain packets."""
        return self.cluster.inside("h1", f"nft list set inet linkspan stations{family}")


WAYS = {"host-gw": "--backend host-gw", "direct": "--backend vxlan --opt direct=true"}


@pytest.fixture(scope="module", params=WAYS)
def segment(request: pytest.FixtureRequest) -> Iterator[Segment]:
    """Give the lab with each way of plain packets."""
    found = Segment(WAYS[request.param])
    try:
        yield found
    finally:
        found.down()


@pytest.mark.parametrize("family", [4, 6])
def test_another_machine_does_not_send_with_a_container_s_address(segment: Segment, family: int) -> None:
    """Its frames have its own MAC, and are dropped on the host; the container itself gets through."""
    until(lambda: segment.arrives(family, f"{segment.cluster.name}-c2"), "c2 reaches c1")
    assert not segment.arrives(family, segment.evil, tries=3)


def test_trace_knows_by_which_mac_a_peer_sends(segment: Segment) -> None:
    """A plain way is reachable both ways: each host's MAC is among those that the other one takes."""
    assert json.loads(segment.cluster.exec("h2", "linkspan trace c2 c1 -o json"))["reachable"]


def test_a_peer_that_changes_its_mac_is_taken_by_both_for_a_while(segment: Segment) -> None:
    """The new one within moments, the old one for ten seconds more."""
    cluster = segment.cluster
    old = json.loads(cluster.etcdctl("get", "/lab/hosts/h2", "--print-value-only"))["underlay"]["mac"]
    cluster.ip("h2", f"link set eth0 address {NEW}")
    try:
        until(lambda: NEW in segment.elements(4), "the new MAC is taken", 5 * SHARED)
        assert old in segment.elements(4)
        until(lambda: segment.arrives(4, f"{cluster.name}-c2"), "c2 reaches c1 by the new MAC", 30 * SHARED)
        until(lambda: old not in segment.elements(4), "the old MAC is taken no more", 20 * SHARED)
    finally:
        cluster.ip("h2", f"link set eth0 address {old}")
    until(lambda: segment.arrives(4, f"{cluster.name}-c2"), "c2 reaches c1 by the old MAC", 30 * SHARED)


def test_a_peer_of_which_no_mac_is_known_is_taken_by_any(segment: Segment) -> None:
    """A record that an older linkspan wrote has none: `doctor` says who that is."""
    cluster = segment.cluster
    lab = record.load(cluster.name)
    processes.kill(lab.folder, lambda: processes.agents(lab.folder, "h2"), "host h2")
    try:
        known = json.loads(cluster.etcdctl("get", "/lab/hosts/h2", "--print-value-only"))
        del known["underlay"]["macs"]
        cluster.etcdctl("put", "/lab/hosts/h2", json.dumps(known))
        until(lambda: segment.arrives(4, segment.evil), "it is taken by any MAC", 20 * SHARED)
        told = {one["check"]: one for one in cluster.call("h1", "GET", "/v1/doctor")}
        assert told["MACs of peers"]["detail"].startswith("h2 do not announce their MACs")
        assert told["MACs of peers"]["status"] == "warn"
    finally:
        cluster.run("mend", "h2")
    until(lambda: not segment.arrives(4, segment.evil), "h2 says its MACs again", 20 * SHARED)


def test_a_network_may_take_any_mac() -> None:
    """`check-mac=false` is for hosts whose MACs other programs change; creating such a network gives a warning."""
    found = Segment("--backend host-gw --opt check-mac=false")
    try:
        until(lambda: found.arrives(4, f"{found.cluster.name}-c2"), "c2 reaches c1")
        assert found.arrives(4, found.evil, tries=3)
        words = "linkspan network create any --pool 10.92.0.0/16 --backend host-gw --opt check-mac=false"
        done = found.cluster.run("exec", "h1", "--", words)
        assert "any machine on the underlay's segment" in done.stdout + done.stderr
    finally:
        found.down()
