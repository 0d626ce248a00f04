"""Containers in several networks: each network is reached by its own interface, and replies leave where they belong."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator

import pytest

from linkspan.core.states.host import ROUTE_PROTOCOL
from linkspan.endpoints.multihoming import INTERNAL, TABLE
from linkspan.lab.topology import bare
from support.lab.lab_runs import LabRun
from support.polling import until

POOLS = {"web": "10.245.0.0/16,fd45::/48", "data": "10.246.0.0/16,fd46::/48"}

_SERVER = """
import socket, sys, threading
def datagrams():
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind((sys.argv[1], int(sys.argv[2])))
    while True:
        _, client = server.recvfrom(100)
        server.sendto(client[0].encode(), client)
if ":" not in sys.argv[1]:
    threading.Thread(target=datagrams, daemon=True).start()
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
server = socket.create_server((sys.argv[1], int(sys.argv[2])), family=family)
print("ready", flush=True)
while True:
    connection, (client, *_) = server.accept()
    connection.sendall(client.encode())
    connection.close()
"""
_ASK = """
import socket, sys
host, port, source = sys.argv[1:4]
if sys.argv[4] == "tcp":
    client = socket.create_connection((host, int(port)), 3, (source, 0) if source else None)
else:
    client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    client.settimeout(3)
    client.connect((host, int(port)))
    client.send(b"?")
print(client.recv(100).decode())
"""


@contextlib.contextmanager
def serving(lab: LabRun, container: str, address: str, port: int) -> Iterator[None]:
    """Answer clients (TCP, and UDP by IPv4) in a container with the address that they come from.

    The UDP server leaves the choice of its answers' source to the kernel.
    """
    command = ["ip", "netns", "exec", f"{lab.name}-{container}", sys.executable, "-c", _SERVER, address, str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == b"ready\n"
            yield
        finally:
            server.kill()


def asked(lab: LabRun, place: str, address: str, port: int, protocol: str = "tcp") -> str:
    """Return the address that a server sees a client in a place come from, '' where it does not answer."""
    inside = ["ip", "netns", "exec", f"{lab.name}-{place}"]
    command = [*inside, sys.executable, "-c", _ASK, address, str(port), "", protocol]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=20).stdout.strip()


def create(lab: LabRun, name: str, backend: str, more: str = "") -> None:
    """Create a network of two families."""
    lengths = "--subnet-len 24,64" if backend != "bridge" else ""
    lab.exec("h1", f"linkspan network create {name} --pool {POOLS[name]} --backend {backend} {lengths} {more}")
    known(lab, "h2", name)


def known(lab: LabRun, host: str, network: str) -> None:
    """Wait until a host knows a network that another one created."""
    lines = f"linkspan network show {network}"
    until(lambda: network in lab.exec(host, lines, code=-1).split(), f"{host} knows network {network}")


def addresses(endpoint: dict[str, list[str]]) -> dict[int, str]:
    """Return an endpoint's address for each family."""
    return {6 if ":" in text else 4: bare(text) for text in endpoint["addresses"]}


def rules(lab: LabRun, container: str, family: int = 4) -> list[str]:
    """Return the container's rules of ours, as `ip rule` prints them."""
    said = lab.exec(container, f"ip -{family} rule show")
    return [" ".join(line.split()) for line in said.splitlines() if f"proto {ROUTE_PROTOCOL}" in line]


def drift(lab: LabRun) -> list[object]:
    """Return what differs on h1 from what should be."""
    found = json.loads(lab.exec("h1", "linkspan diff -o json", code=-1))
    return [*found["put"], *found["delete"]]


@pytest.mark.parametrize("backend", ["vxlan", "bridge"])
def test_a_container_in_two_networks_works_in_both(lab: LabRun, backend: str) -> None:
    """All pairs reach each other in both networks and families, also bridged; no drift, and status is clean (F1)."""
    lab.run("up", f"--hosts 2 --backend vxlan --containers-per-host {2 if backend == 'bridge' else 1}")
    create(lab, "web", backend)
    for container in lab.json("show")["containers"]:
        lab.run("attach", container["host"], container["name"], "--network web")
    if backend == "bridge":  # it stays on its host
        mine = [c["name"] for c in lab.json("show")["containers"] if c["host"] == "h1"]
        other = json.loads(lab.exec("h1", "linkspan endpoint list --network web -o json"))
        target = next(e for e in other if e["name"] == mine[1])
        assert all(lab.pings(mine[0], address) for address in addresses(target).values())
    else:
        until(lambda: lab.json("test", code=-1) == {"pairs": 6, "ok": 6, "failed": []}, "all reach each other")
    assert drift(lab) == []


@pytest.fixture(scope="module")
def several() -> Iterator[LabRun]:
    """Give two hosts with networks demo (VXLAN, IPv4), web (VXLAN) and data (bridged on each host)."""
    found = LabRun()
    try:
        found.run("up", "--hosts 2 --backend vxlan")
        create(found, "web", "vxlan")
        create(found, "data", "bridge")
        yield found
    finally:
        found.run("down")


def test_a_reply_leaves_by_the_interface_whose_address_it_bears(several: LabRun) -> None:
    """A container only in demo gets an answer from the web address of a container in both networks, and the reverse."""
    lab = several
    lab.exec("h1", "linkspan network allow demo web")
    lab.exec("h1", "linkspan network allow web demo")
    first = lab.json("attach", "h1", "both", "--network demo")
    second = lab.json("attach", "h1", "both", "--network web")
    only = lab.json("attach", "h1", "only", "--network web")
    peer = next(c for c in lab.json("show")["containers"] if c["name"] == "c1")
    with serving(lab, "both", addresses(second)[4], 8001), serving(lab, "both", addresses(first)[4], 8002):
        assert asked(lab, "c1", addresses(second)[4], 8001) == bare(peer["addresses"][0])
        assert asked(lab, "only", addresses(first)[4], 8002) == addresses(only)[4]
    lab.run("detach", "both")
    lab.run("detach", "only")


def test_the_first_of_three_is_detached_and_attached_again(several: LabRun) -> None:
    """The default route moves to the second network, every network continues, and rules and tables are as should be."""
    lab = several
    ends = {name: lab.json("attach", "h1", "three", f"--network {name}") for name in ("demo", "web", "data")}
    peers = {name: lab.json("attach", "h1", f"peer-{name}", f"--network {name}") for name in ends}
    assert "dev eth0" in lab.exec("three", "ip route get 192.0.2.2")
    assert len(rules(lab, "three")) == 3 * 2 + 1
    assert len(rules(lab, "three", 6)) == 2 * 2 + 1

    def reached(names: tuple[str, ...]) -> bool:
        there = [address for name in names for address in addresses(peers[name]).values()]
        back = [(f"peer-{name}", address) for name in names for address in addresses(ends[name]).values()]
        return all(lab.pings("three", a) for a in there) and all(lab.pings(place, a) for place, a in back)

    assert reached(("demo", "web", "data"))
    lab.exec("h1", f"linkspan detach --id three --ifname {ends['demo']['ifname']}")
    assert "dev eth1" in lab.exec("three", "ip route get 192.0.2.2")
    assert reached(("web", "data"))
    assert not any(addresses(ends["demo"])[4] in rule for rule in rules(lab, "three"))
    again = f"linkspan attach netns:{lab.name}-three --id three --network demo -o json"
    ends["demo"] = json.loads(lab.exec("h1", again))
    assert "dev eth1" in lab.exec("three", "ip route get 192.0.2.2")
    assert reached(("demo", "web", "data"))
    assert drift(lab) == []
    for name in ("three", *(f"peer-{name}" for name in ends)):
        lab.run("detach", name)


def test_families_that_networks_share_only_in_part(several: LabRun) -> None:
    """An IPv4-only network and an IPv6-only network each have the default route of their family."""
    lab = several
    lab.exec("h1", "linkspan network create six --pool fd47::/48 --subnet-len 64 --backend vxlan")
    lab.json("attach", "h1", "mixed", "--network demo")
    six = lab.json("attach", "h1", "mixed", "--network six")
    known(lab, "h2", "six")
    peer = lab.json("attach", "h2", "peer6", "--network six")
    until(lambda: lab.pings("mixed", addresses(peer)[6]), "h1 knows the way to h2")
    assert lab.pings("mixed", "192.0.2.2")
    assert "dev eth1" in lab.exec("mixed", "ip -6 route get 2001:db8::1")
    assert addresses(six).keys() == {6}
    lab.run("detach", "mixed")
    lab.run("detach", "peer6")


def test_an_internal_network_is_the_default_only_where_there_is_no_other(several: LabRun) -> None:
    """Attached first, it has the default route until another network comes, and again when that goes."""
    lab = several
    lab.exec("h1", "linkspan network create inner --pool 10.248.0.0/16 --subnet-len 24 --backend vxlan --internal")
    lab.json("attach", "h1", "inside", "--network inner")
    outer = lab.json("attach", "h1", "inside", "--network demo")
    assert outer["ifname"] == "eth1"
    assert "dev eth1" in lab.exec("inside", "ip route get 192.0.2.2")
    assert lab.pings("inside", "192.0.2.2")
    assert f"metric {INTERNAL}" in lab.exec("inside", "ip route show default dev eth0")
    lab.exec("h1", "linkspan detach --id inside --ifname eth1")
    assert not lab.pings("inside", "192.0.2.2")
    lab.run("detach", "inside")


def test_published_ports_follow_the_default_route(several: LabRun) -> None:
    """They lead to the first network's address, and to the second's when the first is detached, by TCP and UDP."""
    lab = several
    name = f"netns:{lab.name}-pub"
    subprocess.run(["ip", "netns", "add", f"{lab.name}-pub"], check=True)
    attach = f"linkspan attach {name} --id pub -o json --publish 8080:80 --publish 8080:80/udp"
    lab.json("attach", "h1", "asker", "--network web")

    def served(address: str) -> bool:
        there = lab.exec("h1", "nft list map inet linkspan publish4").count(address) == 2
        outside = {asked(lab, "h2", "192.0.2.1", 8080, protocol) for protocol in ("tcp", "udp")}
        return there and outside == {"192.0.2.2"} and bool(asked(lab, "asker", "192.0.2.1", 8080))

    try:
        first = json.loads(lab.exec("h1", f"{attach} --network demo"))
        second = json.loads(lab.exec("h1", f"{attach} --network web"))
        with serving(lab, "pub", "0.0.0.0", 80):
            assert served(addresses(first)[4])
            lab.exec("h1", f"linkspan detach --id pub --ifname {first['ifname']}")
            assert served(addresses(second)[4])
        taken = lab.run(
            "exec", "h1", "--", f"linkspan attach {name} --id pub --publish 8080:81 --network data", code=1
        )
        assert "8080/tcp is in use by endpoint pub" in taken.stderr
        lab.exec("h1", "linkspan detach --id pub")
    finally:
        subprocess.run(["ip", "netns", "del", f"{lab.name}-pub"], check=True)
        lab.run("detach", "asker")


def test_rules_are_planned_seen_missing_and_put_back(several: LabRun) -> None:
    """`plan` has them as `ip rule add`, `diff` misses one, and a new agent puts it back and drops a stale one."""
    lab = several
    lab.json("attach", "h1", "ruled", "--network demo")
    end = lab.json("attach", "h1", "ruled", "--network web")
    commands = [line["command"] for line in json.loads(lab.exec("h1", "linkspan plan -o json"))]
    source = f"from {addresses(end)[4]}/32 lookup {TABLE + 1}"
    assert any(f"ip -n {lab.name}-ruled -4 rule add pref" in c and source in c for c in commands), commands
    assert any(f"onlink table {TABLE + 1} proto" in c for c in commands)
    whole = rules(lab, "ruled")
    lab.exec("ruled", f"ip rule del pref 32002 from {addresses(end)[4]}")
    assert {one["kind"] for one in drift(lab) if isinstance(one, dict)} == {"PolicyRule"}
    lab.exec("ruled", f"ip rule add pref 32002 from 10.9.9.9 lookup {TABLE + 9} protocol {ROUTE_PROTOCOL}")
    lab.run("break", "h1", "agent-kill")
    lab.run("mend", "h1")
    until(lambda: rules(lab, "ruled") == whole, "rules are as before")
    assert drift(lab) == []
    lab.run("detach", "ruled")


def test_a_pool_that_is_added_is_reached_by_its_network(several: LabRun) -> None:
    """A container in two networks gets a route to a pool that its second network is given while it runs."""
    lab = several
    lab.json("attach", "h1", "grown", "--network demo")
    lab.json("attach", "h1", "grown", "--network web")
    lab.exec("h1", "linkspan network update web --add-pool 10.249.0.0/16")
    until(lambda: "dev eth1" in lab.exec("grown", "ip route get 10.249.1.1"), "the new pool is by eth1")
    assert drift(lab) == []
    lab.run("detach", "grown")


WAYS = ("vxlan --opt direct=false", "vxlan --opt direct=true", "ipip", "host-gw", "wireguard")


@pytest.mark.parametrize("backend", WAYS)
def test_a_network_reaches_another_one_across_hosts_where_it_is_allowed(several: LabRun, backend: str) -> None:
    """It may begin, and is answered; the other may not begin; nothing passes before, or once it is taken back."""
    lab = several
    for name, pool in (("near", "10.250.0.0/16"), ("far", "10.251.0.0/16")):
        lab.exec("h1", f"linkspan network create {name} --pool {pool} --subnet-len 24 --backend {backend}")
        known(lab, "h2", name)
    one, two = (lab.json("attach", host, host + "x", f"--network {n}") for host, n in (("h1", "near"), ("h2", "far")))
    with serving(lab, "h2x", addresses(two)[4], 8001), serving(lab, "h1x", addresses(one)[4], 8001):
        assert asked(lab, "h1x", addresses(two)[4], 8001) == ""
        lab.exec("h1", "linkspan network allow near far")
        until(lambda: asked(lab, "h1x", addresses(two)[4], 8001) == addresses(one)[4], "near reaches far")
        assert asked(lab, "h2x", addresses(one)[4], 8001) == ""
        lab.exec("h1", "linkspan network disallow near far")
        until(lambda: asked(lab, "h1x", addresses(two)[4], 8001) == "", "it is taken back")
    for container, network in (("h1x", "near"), ("h2x", "far")):
        lab.run("detach", container)
        lab.exec("h1", f"linkspan network delete {network}")


def test_uninstall_leaves_no_rule_in_a_container(lab: LabRun) -> None:
    """Rules do not go with a link, as routes do: they are removed by name."""
    lab.run("up", "--hosts 1 --backend bridge")
    lab.exec("h1", f"linkspan network create web --pool {POOLS['web']}")
    lab.run("attach", "h1", "c1", "--network web")
    assert rules(lab, "c1")
    assert rules(lab, "c1", 6)
    assert "PolicyRule" in lab.exec("h1", "linkspan uninstall --dry-run --force")
    lab.exec("h1", "linkspan uninstall --yes --force")
    assert rules(lab, "c1") == rules(lab, "c1", 6) == []
