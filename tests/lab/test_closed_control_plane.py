"""Containers and the store: none reaches it, at any of its addresses, while agents continue to use it."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import socket
import threading
from collections.abc import Iterator

import pytest

from linkspan.lab import commands, sockets
from support.lab.cluster_runs import ClusterRun
from support.polling import SHARED, until

pytestmark = pytest.mark.skipif(shutil.which("etcdctl") is None, reason="needs etcd and etcdctl")

CLIENTS, PEERS, OTHER = 2379, 2380, 8080
"""etcd's ports, and that of a server beside it which containers may reach."""
STORE = ("192.0.2.253", "198.51.100.253")
"""etcd's address on each segment: of each host's agent uses that of its own."""
WAIT = 3.0


def knock(netns: str, address: str, port: int) -> str:
    """Return how a connection from a namespace goes: ``open``, ``refused``, or the system's name of the error."""
    with sockets.inside(netns):
        client = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    with client:
        client.settimeout(WAIT)
        try:
            client.connect((address, port))
        except TimeoutError:
            return "silence"
        except OSError as error:
            known = {errno.ECONNREFUSED: "refused"}
            return known.get(error.errno or 0, errno.errorcode.get(error.errno or 0, str(error)))
    return "open"


@contextlib.contextmanager
def beside(cluster: ClusterRun, address: str) -> Iterator[None]:
    """Listen beside etcd, at the same address."""
    with sockets.inside(f"{cluster.name}-switch"):
        server = socket.create_server((address, OTHER), family=socket.AF_INET6 if ":" in address else socket.AF_INET)
    with server:
        yield


@pytest.fixture(scope="module")
def cluster() -> Iterator[ClusterRun]:
    """Give two hosts on two segments, and an etcd on each of these."""
    found = ClusterRun()
    try:
        found.run("up", "--hosts 2 --segments 2 --store etcd")
        yield found
    finally:
        found.run("down")


NETWORKS = [
    pytest.param({"backend": "vxlan"}, id="vxlan"),
    pytest.param({"backend": "vxlan", "masquerade": False}, id="vxlan-not-masqueraded"),
    pytest.param({"backend": "bridge"}, id="bridge"),
    pytest.param({"backend": "bridge", "masquerade": False}, id="bridge-not-masqueraded"),
    pytest.param({"backend": "bridge", "options": {"mode": "routed"}}, id="bridge-routed"),
]


@pytest.fixture
def container(cluster: ClusterRun, request: pytest.FixtureRequest) -> Iterator[str]:
    """Give a container on h1, in a network of its own kind."""
    wish = {"name": "kind", "pools": ["10.91.0.0/16"], **request.param}
    cluster.call("h1", "POST", "/v1/networks", wish)
    try:
        cluster.run("attach", "h1", "k1", "--network kind")
        yield f"{cluster.name}-k1"
    finally:
        cluster.run("detach", "k1")
        cluster.delete("kind")


@pytest.mark.parametrize("container", NETWORKS, indirect=True)
def test_a_container_is_refused_by_every_address_of_the_store(cluster: ClusterRun, container: str) -> None:
    """Any network's container is refused, masqueraded or not, also at an address that only another host uses."""
    for address in STORE:
        for port in (CLIENTS, PEERS):
            assert (address, port, knock(container, address, port)) == (address, port, "refused")
    for host, address in zip(("h1", "h2"), STORE, strict=True):
        assert knock(f"{cluster.name}-{host}", address, CLIENTS) == "open"
        assert cluster.status(host)["store"]["ok"]


def test_what_is_beside_the_store_is_reached(cluster: ClusterRun) -> None:
    """The store's ports are closed, and no other of its machine's."""
    with beside(cluster, STORE[0]):
        assert knock(f"{cluster.name}-c1", STORE[0], OTHER) == "open"


def test_a_translation_opens_no_way_to_the_store(cluster: ClusterRun) -> None:
    """A foreign DNAT leads an address to the store: containers are refused behind it as well."""
    rule = f"ip daddr 198.18.99.1 tcp dport 80 dnat to {STORE[0]}:{CLIENTS}"
    table = f"table ip stranger {{ chain in {{ type nat hook prerouting priority dstnat; {rule}; }}; }}"
    commands.run("nft", "-f", "-", given=table, netns=f"{cluster.name}-h1")
    try:
        assert knock(f"{cluster.name}-c1", "198.18.99.1", 80) == "refused"
    finally:
        commands.run("nft", "delete", "table", "ip", "stranger", netns=f"{cluster.name}-h1")


def test_a_connection_that_is_older_than_the_rules_is_cut(cluster: ClusterRun) -> None:
    """If the store begins to be served at a port, existing connections of containers to it are cut."""
    record = json.loads(cluster.etcdctl("get", "/lab/hosts/h2", "--print-value-only"))
    with beside(cluster, STORE[0]), sockets.inside(f"{cluster.name}-c1"):
        client = socket.create_connection((STORE[0], OTHER), WAIT)
    with client:
        more = record | {"control": [*record["control"], f"{STORE[0]}:{OTHER}"]}
        cluster.etcdctl("put", "/lab/hosts/h2", json.dumps(more))

        def cut() -> bool:
            try:
                client.send(b"?")
            except OSError:
                return True
            return False

        until(cut, "the connection is cut", 10 * SHARED)


def test_no_packet_of_a_fresh_container_gets_to_the_store(cluster: ClusterRun) -> None:
    """A container that tries before it has an interface never gets in, and reaches the port beside the store."""
    name = f"{cluster.name}-fresh"
    commands.run("ip", "netns", "add", name)
    seen: list[str] = []
    ended = threading.Event()

    def knocking() -> None:
        while not ended.is_set():
            seen.append(knock(name, STORE[0], CLIENTS))

    thread = threading.Thread(target=knocking)
    thread.start()
    try:
        with beside(cluster, STORE[0]):
            cluster.exec("h1", f"linkspan attach netns:{name} --network demo --id fresh")
            until(lambda: knock(name, STORE[0], OTHER) == "open", "the container reaches the other port")
            until(lambda: seen.count("refused") > 3, "it was refused")
    finally:
        ended.set()
        thread.join()
        cluster.exec("h1", "linkspan detach --id fresh")
        commands.delete(name)
    assert set(seen) <= {"ENETUNREACH", "EHOSTUNREACH", "refused"}


def test_the_first_container_after_a_reboot_is_kept_out_where_no_store_answers(cluster: ClusterRun) -> None:
    """A host that boots without an answer of the store knows the store's addresses from its disk."""
    cluster.run("break", "h1", "store-cut")
    cluster.run("break", "h1", "reboot")
    try:
        assert not cluster.status("h1")["store"]["ok"]
        assert f"{STORE[0]} . {CLIENTS}" in cluster.inside("h1", "nft list set inet linkspan control4")
        assert knock(f"{cluster.name}-c1", STORE[0], CLIENTS) == "refused"
    finally:
        cluster.run("mend", "h1")


def test_the_lab_s_store_takes_its_users_only(cluster: ClusterRun) -> None:
    """Without a certificate TLS fails; with one and without a user nothing is read; `lab exec` has what it needs."""
    bare = {"PATH": os.environ["PATH"], "ETCDCTL_API": "3"}
    endpoint = f"https://{STORE[0]}:{CLIENTS}"
    ours = cluster.folder / "credentials"
    certificate = f"--cacert {ours}/ca.pem --cert {ours}/client.pem --key {ours}/client.key"
    for words in ("--insecure-skip-tls-verify", certificate):
        line = " ".join(f"{name}={value}" for name, value in bare.items())
        command = f"env -i {line} etcdctl --endpoints {endpoint} --command-timeout 3s {words} get /lab/ --prefix"
        assert not cluster.run("exec", "h1", "--", command, code=1).stdout
    assert "/lab/hosts/h1" in cluster.exec("h1", "etcdctl get /lab/hosts/ --prefix --keys-only")
    assert "ETCDCTL_USER" not in cluster.exec("c1", "env")


def test_ipv6_is_closed_as_well() -> None:
    """Containers do not reach a store at an IPv6 address, and do reach the port beside it."""
    found = ClusterRun()
    try:
        found.run("up", "--hosts 2 --store etcd --underlay v6")
        address = "2001:db8:1::fd"
        with beside(found, address):
            assert knock(f"{found.name}-c1", address, OTHER) == "open"
        assert [knock(f"{found.name}-c1", address, port) for port in (CLIENTS, PEERS)] == ["refused", "refused"]
        assert found.status("h1")["store"]["ok"]
    finally:
        found.run("down")
