"""One network, three hosts, three runtimes: Docker, Podman and pods by containerd's CRI reach each other over VXLAN."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import permutations
from pathlib import Path

import grpc
import pytest

from support.polling import until
from support.runtimes.containerd_engine import IMAGE as POD_IMAGE
from support.runtimes.containerd_engine import Containerd
from support.runtimes.cri import Cri
from support.runtimes.docker_engine import IMAGE as DOCKER_IMAGE
from support.runtimes.docker_engine import Docker
from support.runtimes.podman_engine import IMAGE as PODMAN_IMAGE
from support.runtimes.podman_engine import Podman
from support.runtimes.segment import Segment
from support.runtimes.virtual_host import VirtualHost

pytestmark = pytest.mark.timeout(400)  # real engines are slow on a busy machine

POOL = "10.90.0.0/16"
RESOLVER = "192.0.2.53"
"""The hosts'; nobody is there, so all answers are the network's own."""
COMPOSE = """
services:
  front:
    image: busybox
    command: httpd -f -p 80 -h /etc
    hostname: composed
    stop_grace_period: 1s
    networks: [demo]
    ports: ["8081:80"]
networks:
  demo:
    external: true
"""
PATIENCE = 60


class Three:
    """The hosts; all have Docker, the second Podman too, and the third containerd."""

    def __init__(self, folder: Path) -> None:
        self.segment = Segment(folder.name)
        self.hosts: list[VirtualHost] = []
        self.dockers: list[Docker] = []
        (folder / "store").mkdir()
        for n in range(1, 4):
            (folder / f"h{n}").mkdir()
            host = VirtualHost(f"{folder.name}-h{n}", folder / f"h{n}")
            self.hosts.append(host)
            self.segment.plug(host, self.underlay(n))
            host.settings |= {"store": f"sqlite://{folder}/store", "host_id": f"h{n}"}
            host.run("sh", "-c", f"echo nameserver {RESOLVER} > /etc/resolv.conf")
            self.dockers.append(Docker(host))

    def start(self) -> None:
        """Start everything; the third host joins when the network is there already."""
        one, two, three = self.hosts
        self.podman = Podman(two)
        for host in (one, two):
            host.start_agent()
        for docker in self.dockers:
            docker.launch()
        words = ("--pool", POOL, "--backend", "vxlan", "--expose", "docker,podman,cni")
        one.linkspan("network", "create", "demo", *words)
        two.run("mount", "-t", "tmpfs", "tmpfs", "/usr/local/libexec")
        two.linkspan("install", "podman")
        three.start_agent()
        three.linkspan("install", "cni", "--network", "demo")
        self.containerd = Containerd(three)
        self.cri = Cri(self.containerd.address, POD_IMAGE)
        for docker in self.dockers:
            docker.wait()
            until(lambda docker=docker: has_network(docker), "Docker has the network", PATIENCE)
        until(self.cri.network_is_ready, "containerd has found the network", PATIENCE)

    @staticmethod
    def underlay(n: int) -> str:
        """Return a host's address on the segment."""
        return f"192.0.2.{10 + n}"

    def close(self) -> None:
        """Take everything away."""
        if hasattr(self, "cri"):
            self.cri.close()
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(VirtualHost.close, self.hosts))
        self.segment.close()


def has_network(docker: Docker) -> bool:
    """Return whether a Docker has the network."""
    return "demo" in docker.run("network ls --format {{.Name}}").split()


@pytest.fixture(scope="module")
def three() -> Iterator[Three]:
    """Three hosts, three runtimes and their network."""
    with tempfile.TemporaryDirectory(prefix="lk3") as folder:
        found = Three(Path(folder))
        try:
            found.start()
            yield found
        finally:
            found.close()


class Member:
    """A container of any runtime: its address, and how to run a command in it."""

    def __init__(self, name: str, address: str, execute: Callable[[str], str]) -> None:
        self.name, self.address, self.execute = name, address, execute

    def pings(self, target: str) -> bool:
        """Return whether it reaches an address or a name."""
        with contextlib.suppress(AssertionError, grpc.RpcError):
            return "1 packets received" in self.execute(f"ping -c 1 -W 2 {target}")
        return False


@pytest.fixture(scope="module")
def members(three: Three) -> list[Member]:
    """Start a web server with each runtime, which publishes its port 80 as 8080 of its host."""
    docker, podman, cri = three.dockers[0], three.podman, three.cri
    serve = "httpd -f -p 80 -h /etc"
    docker.run(f"run -d --name one --hostname one --network demo -p 8080:80 {DOCKER_IMAGE} {serve}")
    kept = "--cap-add NET_RAW --hostname two"
    podman.run(f"run -d --name two {kept} --network demo -p 8080:80 {PODMAN_IMAGE} {serve}")
    pod = cri.run_pod("three", ports=[("tcp", 8080, 80)])
    container = cri.run_container(pod, serve)
    return [
        Member("one", docker.address("one"), lambda command: docker.execute("one", command)),
        Member("two", podman.address("two"), lambda command: podman.execute("two", command)),
        Member("three", cri.address(pod), lambda command: cri.execute(container, command)),
    ]


def test_all_reach_all_by_address(three: Three, members: list[Member]) -> None:
    """Every address is of the network's pool and nobody else's, and each container pings each other one."""
    assert len({m.address for m in members}) == 3
    assert all(m.address.startswith("10.90.") for m in members)
    for source, target in permutations(members, 2):
        until(
            lambda source=source, target=target: source.pings(target.address),
            f"{source.name} reaches {target.name}",
            PATIENCE,
        )
    for host in three.hosts:
        found = {e["name"]: e["host"] for e in host.linkspan("endpoint", "list")}
        assert found == {"one": "h1", "two": "h2", "three": "h3"}


def test_all_reach_all_by_name(members: list[Member]) -> None:
    """Each container resolves each other one's name, with and without the network's, on either host."""
    for source, target in permutations(members, 2):
        for name in (target.name, f"{target.name}.demo", f"{target.name}.demo.internal"):
            until(
                lambda source=source, name=name: source.pings(name),
                f"{source.name} reaches {name}",
                PATIENCE,
            )


def test_published_ports_are_reached_from_outside(three: Three, members: list[Member]) -> None:
    """A client that is neither a host nor on a network gets the page of each, from its host's address."""
    for n in (1, 2, 3):
        url = f"http://{three.underlay(n)}:8080/hostname"
        until(lambda url=url: three.segment.fetched(url), f"{url} answers", PATIENCE)


def test_an_address_of_another_runtime_s_container_is_refused_with_its_name(
    three: Three, members: list[Member]
) -> None:
    """Whichever runtime asks, and on whichever host: the answer has the holder's name and host."""
    one, two, pod = (m.address for m in members)
    docker, podman, cri = three.dockers[0], three.podman, three.cri
    asked = docker.attempt(f"run --rm --network demo --ip {two} {DOCKER_IMAGE} true")
    assert "is in use by two on host h2" in asked.stderr
    asked = podman.attempt(f"run --rm --network demo:ip={pod} {PODMAN_IMAGE} true")
    assert "is in use by three on host h3" in asked.stderr
    with pytest.raises(grpc.RpcError, match="is in use by one on host h1"):
        cri.run_pod("late", annotations={"linkspan/ip": one})
    asked = three.dockers[0].attempt(f"run --rm --network demo --ip {one} {DOCKER_IMAGE} true")
    assert "is in use by one" in asked.stderr


def test_one_compose_file_runs_on_three_hosts(three: Three) -> None:
    """The file is the same, and the containers are on one network; down leaves nothing of them."""
    for docker in three.dockers:
        file = docker.folder / "compose.yaml"
        file.write_text(COMPOSE)
        docker.run(f"compose -p shop -f {file} up --detach --quiet-pull")
    addresses = [docker.address("shop-front-1") for docker in three.dockers]
    assert len(set(addresses)) == 3
    for docker, target in zip(three.dockers, addresses[1:] + addresses[:1], strict=True):
        until(
            lambda docker=docker, target=target: docker.attempt(
                f"exec shop-front-1 wget -q -T 5 -O - http://{target}/hostname"
            ).stdout,
            f"{target} answers",
            PATIENCE,
        )
    for n, docker in enumerate(three.dockers, 1):
        assert three.segment.fetched(f"http://{three.underlay(n)}:8081/hostname") == "composed"
        docker.run(f"compose -p shop -f {docker.folder / 'compose.yaml'} down --timeout 1")


def test_everything_is_stopped_and_nothing_is_left(three: Three, members: list[Member]) -> None:
    """No endpoint, address, link or rule on any host; the deleted network goes from every runtime."""
    for docker in three.dockers:
        docker.remove_all()
    three.podman.remove_all()
    three.cri.remove_all()
    for host in three.hosts:
        until(lambda host=host: not host.linkspan("endpoint", "list"), "none is told", PATIENCE)
        assert host.linkspan("address", "check")["ok"], host.name
        held = [a for a in host.linkspan("address", "list", "--network", "demo") if a["state"] == "held"]
        assert held == []
        links = json.loads(host.run("ip", "-json", "link", "show", "type", "veth").stdout)
        assert {link["ifname"] for link in links if link} == {"eth0"}
        rules = host.run("nft", "list", "ruleset").stdout
        assert "8080" not in rules
        assert "8081" not in rules
    three.hosts[0].linkspan("network", "delete", "demo")
    files = ("/etc/cni/net.d/10-linkspan-demo.conflist", "/etc/containers/networks/demo.json")
    for docker in three.dockers:
        until(lambda docker=docker: not has_network(docker), "Docker has it no more", PATIENCE)
        assert docker.host.run("ls", *files, check=False).stdout == ""
        found = json.loads(docker.host.run("ip", "-json", "link", "show").stdout)
        assert not [link["ifname"] for link in found if link["ifname"].startswith("ls")]
