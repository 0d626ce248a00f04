"""The real dockerd with the plugin's socket: containers are on a linkspan network by Docker's own commands."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from support.polling import until
from support.runtimes.docker_engine import IMAGE, Docker, handed_over
from support.runtimes.virtual_host import VirtualHost, reaches

CREATE = "network create -d linkspan --ipam-driver linkspan"
POOL = "10.78.0.0/16"
RESOLVER = "192.0.2.53"
"""The host's: nobody is there, so whatever is answered comes from the network's own server."""


@pytest.fixture(scope="module")
def docker() -> Iterator[Docker]:
    """Return a virtual host with an agent, a network and a dockerd."""
    with tempfile.TemporaryDirectory(prefix="lkd") as folder:
        host = VirtualHost(f"{Path(folder).name}-h1", Path(folder))
        try:
            engine = Docker(host)
            host.run("sh", "-c", f"echo nameserver {RESOLVER} > /etc/resolv.conf")
            host.start_agent()
            host.linkspan("network", "create", "demo", "--pool", POOL)
            engine.start()
            engine.run(f"{CREATE} -o network=demo demo")
            yield engine
        finally:
            host.close()


@pytest.fixture(autouse=True)
def _nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    docker: Docker = request.getfixturevalue("docker")
    docker.remove_all()
    assert docker.host.linkspan("endpoint", "list") == []
    assert docker.host.linkspan("address", "check")["ok"]


def test_containers_reach_each_other_and_the_gateway(docker: Docker) -> None:
    """Two containers have addresses of the network's pool, a way to each other, and their default route by it."""
    docker.container("c1")
    docker.container("c2")
    one, other = docker.address("c1"), docker.address("c2")
    assert one.startswith("10.78.")
    assert reaches(docker, "c1", other)
    assert reaches(docker, "c2", one)
    assert "default via 10.78.0.1" in docker.execute("c1", "ip route")


def test_the_agent_learns_where_the_container_is(docker: Docker) -> None:
    """`endpoint list` shows the name that Docker gave the interface, and `trace` walks out of the container."""
    docker.container("c1")
    docker.container("c2")
    host = docker.host
    until(lambda: {e["ifname"] for e in host.linkspan("endpoint", "list")} == {"eth0"}, "both are found")
    assert host.linkspan("trace", docker.address("c1"), docker.address("c2"))["reachable"]


def test_containers_have_their_names_aliases_and_labels(docker: Docker) -> None:
    """The engine provides Docker's names, which lists and traces show, and labels, which policies look at."""
    docker.container("c1", "--network demo --network-alias web --label app=web")
    until(lambda: docker.host.linkspan("endpoint", "list")[0]["name"], "it is named")
    (found,) = docker.host.linkspan("endpoint", "list")
    assert found["name"] == "c1"
    assert found["labels"] == {"aliases": "web", "app": "web"}


def test_names_that_docker_does_not_know_are_answered_by_its_own_resolver(docker: Docker) -> None:
    """127.0.0.11 asks the host's resolver, and the network's server answers: with every name of the network."""
    docker.container("c1", "--network demo --network-alias web")
    host = docker.host
    host.run("ip", "netns", "add", f"{host.name}-x")
    try:
        made = host.linkspan("attach", f"netns:{host.name}-x", "--network", "demo", "--name", "elsewhere")
        address = made["addresses"][0].partition("/")[0]
        for name in ("elsewhere", "elsewhere.demo", "elsewhere.demo.internal"):
            lookup = f"exec c1 nslookup {name}"
            until(lambda lookup=lookup: address in docker.attempt(lookup).stdout, f"{name} is known")
        assert "elsewhere.demo" in docker.execute("c1", f"nslookup {address}")
        assert docker.address("c1") in docker.execute("c1", "nslookup web.demo")
    finally:
        host.linkspan("detach", f"netns:{host.name}-x")
        host.run("ip", "netns", "delete", f"{host.name}-x")


def test_names_of_a_second_network_are_found_while_the_container_is_in_it(docker: Docker) -> None:
    """Docker's resolver asks by the default route, which leads by one of the networks: it is answered by both."""
    host = docker.host
    host.linkspan("network", "create", "second", "--pool", "10.79.0.0/16")
    docker.run(f"{CREATE} -o network=second second")
    host.run("ip", "netns", "add", f"{host.name}-x")
    try:
        docker.container("c1")
        docker.container("c2")
        where = {}
        for network in ("demo", "second"):
            words = ("--network", network, "--name", f"in-{network}")
            made = host.linkspan("attach", f"netns:{host.name}-x", *words)
            where[f"in-{network}"] = made["addresses"][0].partition("/")[0]

        def found(container: str, name: str) -> bool:
            return where[name] in docker.attempt(f"exec {container} nslookup {name}").stdout

        until(lambda: found("c1", "in-demo"), "the first network's")
        assert not found("c1", "in-second")
        docker.run("network connect second c1")
        until(lambda: found("c1", "in-second") and found("c1", "in-demo"), "both networks'")
        assert not found("c2", "in-second")
        docker.run("network disconnect second c1")
        until(lambda: not found("c1", "in-second") and found("c1", "in-demo"), "the first network's alone")
    finally:
        docker.remove_all()
        docker.run("network rm second")
        host.linkspan("detach", f"netns:{host.name}-x")
        host.run("ip", "netns", "delete", f"{host.name}-x")
        host.linkspan("network", "delete", "second")


def test_a_published_port_leads_to_the_container(docker: Docker) -> None:
    """`-p` publishes on the host while the container runs, and no longer."""
    docker.run(f"run -d --name c1 --network demo -p 8080:80 {IMAGE} httpd -f -p 80 -h /etc")
    docker.container("c2")
    host = docker.host
    until(lambda: host.serves(8080), "it listens")
    assert host.linkspan("endpoint", "show", _id(docker, "c1"))[0]["ports"][0]["host_port"] == 8080
    taken = docker.attempt(f"run --rm --name c3 --network demo -p 8080:80 {IMAGE} true")
    assert "port 8080/tcp is in use by endpoint" in taken.stderr
    docker.run("rm -f c1 c3")
    assert not host.serves(8080)


def test_an_address_and_a_mac_that_the_user_chose(docker: Docker) -> None:
    """`--ip` and `--mac-address` are kept, on a network that was made with the linkspan network's subnet."""
    docker.run(f"{CREATE} --subnet {POOL} fixed")
    try:
        options = "--network fixed --ip 10.78.5.5 --mac-address 02:42:0a:4e:05:05"
        docker.container("c1", options)
        assert docker.address("c1", "fixed") == "10.78.5.5"
        assert "02:42:0a:4e:05:05" in docker.execute("c1", "ip link show eth0")
        docker.container("c2")
        assert reaches(docker, "c2", "10.78.5.5")
        refused = docker.attempt(f"run --rm --network fixed --ip 10.78.5.5 {IMAGE} true")
        assert "10.78.5.5" in refused.stderr
        assert "in use by" in refused.stderr
        docker.remove_all()
    finally:
        docker.run("network rm fixed")


def test_connect_and_disconnect_while_it_runs(docker: Docker) -> None:
    """A second network is connected to a running container and disconnected; the first works all the time."""
    docker.host.linkspan("network", "create", "second", "--pool", "10.79.0.0/16")
    docker.run(f"{CREATE} -o network=second second")
    docker.container("c1")
    docker.container("c2", "--network second")
    try:
        assert reaches(docker, "c1", docker.address('c1'))
        docker.run("network connect second c1")
        assert reaches(docker, "c1", docker.address('c2', 'second'))
        docker.run("network disconnect second c1")
        assert "10.79." not in docker.execute("c1", "ip address")
        assert len(docker.host.linkspan("endpoint", "list", "--network", "second")) == 1
        docker.remove_all()
    finally:
        docker.run("network rm second")
    docker.host.linkspan("network", "delete", "second")


@pytest.mark.parametrize("mode", ["routed", "bridged"])
def test_a_container_in_two_networks_works_in_both(docker: Docker, mode: str) -> None:
    """Both families of both networks, whichever has Docker's default route; the published port follows that route."""
    host, names = docker.host, ("alpha", "beta")
    for number, name in enumerate(names, 91):
        pools = ("--pool", f"10.{number}.0.0/16", "--pool", f"fd{number}::/64")
        host.linkspan("network", "create", name, *pools, "--opt", f"mode={mode}", "--expose", "docker")
    until(lambda: set(names) <= set(docker.run("network ls --format {{.Name}}").split()), "Docker has both")
    try:
        for name in names:
            docker.container(f"peer-{name}", f"--network {name}")
        docker.run(f"run -d --stop-timeout 1 --name c1 --network beta -p 8080:80 {IMAGE} httpd -f -p 80 -h /etc")
        docker.run("network connect alpha c1")

        def is_well(*inside: str) -> bool:
            until(lambda: host.linkspan("diff", check=False) == {"put": [], "delete": []}, "no drift")
            for name in inside:
                for address in _addresses(docker, f"peer-{name}", name):
                    assert reaches(docker, "c1", address)
                for address in _addresses(docker, "c1", name):
                    assert reaches(docker, f"peer-{name}", address)
            until(lambda: host.serves(8080), "the port is served")
            return True

        assert is_well("alpha", "beta")
        default = docker.execute("c1", "ip route show default").split()[2]
        first, second = names if default == "10.91.0.1" else names[::-1]
        docker.run(f"network disconnect {first} c1")
        assert is_well(second)
        docker.run(f"network connect {first} c1")
        assert is_well("alpha", "beta")
        docker.run("restart -t 0 c1")
        assert is_well("alpha", "beta")
        docker.remove_all()
    finally:
        docker.remove_all()
        for name in names:
            host.linkspan("network", "delete", name)


def test_an_internal_network_is_never_docker_s_default(docker: Docker) -> None:
    """Whichever of its networks comes first by name, a container reaches the outside by the other one."""
    host = docker.host
    host.linkspan("network", "create", "a-hidden", "--pool", "10.93.0.0/16", "--internal", "--expose", "docker")
    until(lambda: "a-hidden" in docker.run("network ls --format {{.Name}}").split(), "Docker has it")
    try:
        docker.container("c1", "--network a-hidden")
        until(lambda: "default via 10.93.0.1" in docker.execute("c1", "ip route"), "it is told what it may not")
        docker.run("network connect demo c1")
        docker.container("c2", "--network a-hidden")
        assert reaches(docker, "c1", docker.address("c2", "a-hidden"))
        assert "via 10.78.0.1" in docker.execute("c1", "ip route get 192.0.2.53")
        docker.remove_all()
    finally:
        docker.remove_all()
        host.linkspan("network", "delete", "a-hidden")


@pytest.fixture
def hidden(docker: Docker) -> Iterator[str]:
    """Create an internal network, exposed to Docker."""
    docker.host.linkspan("network", "create", "a-hidden", "--pool", "10.93.0.0/16", "--internal", "--expose", "docker")
    until(lambda: "a-hidden" in docker.run("network ls --format {{.Name}}").split(), "Docker has it")
    yield "a-hidden"
    docker.remove_all()
    docker.host.linkspan("network", "delete", "a-hidden")


def test_a_port_on_an_internal_network_alone_is_refused(docker: Docker, hidden: str) -> None:
    """`docker run -p` fails with the reason; in a second network that is not internal the port is published."""
    refused = docker.attempt(f"run --rm --name c1 --network {hidden} -p 8099:80 {IMAGE} true")
    assert refused.returncode != 0
    assert f"network {hidden} is internal, so port 80/tcp is not published" in refused.stderr
    assert "leave -p out" in refused.stderr
    docker.run("rm -f c1")
    serving = f"--network {hidden} -p 8099:80 {IMAGE} httpd -f -p 80 -h /etc"
    docker.run(f"create --name c1 --stop-timeout 1 {serving}")
    docker.run("network connect demo c1")
    docker.run("start c1")
    until(lambda: docker.host.serves(8099), "the port is served by the other network")
    docker.run("network disconnect demo c1")
    docker.run("network connect demo c1")
    docker.run("restart -t 0 c1")
    until(lambda: docker.host.serves(8099), "after a restart, too")


def test_a_running_container_with_ports_may_join_an_internal_network(docker: Docker, hidden: str) -> None:
    """Its port stays published by the other network, though a stopped container has only the internal network."""
    docker.run(f"create --name still --network {hidden} {IMAGE} true")
    docker.run(f"run -d --name joined --stop-timeout 1 --network demo -p 8099:80 {IMAGE} httpd -f -p 80 -h /etc")
    docker.run(f"network connect {hidden} joined")
    until(lambda: docker.host.serves(8099), "the port is served")
    assert not _unpublished(docker, "joined")


def test_a_port_that_cannot_be_refused_in_time_is_told_in_the_events(docker: Docker, hidden: str) -> None:
    """A stopped container is in both networks, so linkspan cannot know which one starts: an event names the port."""
    docker.run(f"create --name both --network {hidden} {IMAGE} true")
    docker.run("network connect demo both")
    docker.container("late", f"--network {hidden} -p 8099:80")
    until(lambda: _unpublished(docker, "late"), "the event is there")
    assert f"network {hidden} is internal" in _unpublished(docker, "late")[0]


def _unpublished(docker: Docker, name: str) -> list[str]:
    lines = docker.host.run("linkspan", "events").stdout.splitlines()
    return [line for line in lines if f"port 80/tcp of {name} is not published" in line]


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("network create -d linkspan -o network=demo x", "--ipam-driver linkspan"),
        (f"{CREATE} x", "-o network=NAME"),
        (f"{CREATE} -o network=nonsense x", "nonsense"),
        (f"{CREATE} -o network=demo -o colour=red x", "colour"),
        (f"{CREATE} --subnet 192.0.2.0/24 x", "192.0.2.0/24"),
        (f"{CREATE} --subnet 10.78.0.0/24 x", "only a part of a pool of network demo"),
        (f"{CREATE} --subnet 10.78.0.0/24 -o network=demo x", "--subnet 10.78.0.0/16"),
        (f"{CREATE} --subnet 10.78.0.0/16 --ip-range 10.78.3.0/24 -o network=demo x", "address reserve"),
        (f"{CREATE} --subnet 10.78.0.0/16 --gateway 10.78.3.1 -o network=demo x", "leave --gateway out"),
        (f"{CREATE} --subnet 10.78.0.0/16 --aux-address a=10.78.3.1 -o network=demo x", "address reserve demo"),
        (f"{CREATE} --ipam-opt colour=red -o network=demo x", "--ipam-opt colour"),
        (f"{CREATE} -o com.docker.network.driver.mtu=1400 -o network=demo x", "com.docker.network.driver.mtu"),
        (f"{CREATE} --internal -o network=demo x", "network demo is not internal"),
        (f"{CREATE} --internal --subnet 10.78.0.0/16 x", "network demo is not internal"),
        (f"{CREATE} --ipv6 -o network=demo x", "network demo has no IPv6 pool"),
        (f"{CREATE} --ipv6 --ipam-opt network=demo x", "has no pool of IPv6"),
    ],
)
def test_a_wrong_network_is_refused_with_what_to_do(docker: Docker, command: str, words: str) -> None:
    """The engine shows our own words."""
    refused = docker.attempt(command)
    assert refused.returncode != 0
    assert words in refused.stderr


def test_a_network_may_be_named_by_an_ipam_option(docker: Docker) -> None:
    """`--ipam-opt network=` alone selects the network, also while the host has a route to its pool."""
    docker.container("c1")
    docker.run(f"{CREATE} --ipam-opt network=demo other")
    docker.container("c2", "--network other")
    assert reaches(docker, "c2", docker.address("c1"))
    docker.remove_all()
    docker.run("network rm other")


@pytest.mark.parametrize("mode", ["bridged", "routed"])
def test_an_internal_network_is_internal_in_docker_too(docker: Docker, mode: str) -> None:
    """`--internal` is accepted if the linkspan network is internal: its containers reach only each other."""
    host = docker.host
    options = ("--opt", "mode=routed") if mode == "routed" else ()
    host.linkspan("network", "create", "inside", "--pool", "10.82.0.0/16", "--internal", *options)
    outside = f"{host.name}-x"
    host.run("ip", "netns", "add", outside)
    try:
        host.run("ip", "link", "add", "uplink", "type", "veth", "peer", "name", "eth0", "netns", outside)
        host.run("ip", "address", "add", "198.51.100.1/24", "dev", "uplink")
        host.run("ip", "link", "set", "uplink", "up")
        host.run("ip", "-n", outside, "address", "add", "198.51.100.2/24", "dev", "eth0")
        host.run("ip", "-n", outside, "link", "set", "eth0", "up")
        docker.run(f"{CREATE} --internal -o network=inside inside")
        docker.container("c1", "--network inside")
        docker.container("c2", "--network inside")
        docker.container("c3")
        assert reaches(docker, "c1", docker.address("c2", "inside"))
        assert reaches(docker, "c3", "198.51.100.2")
        for target in ("198.51.100.2", docker.address("c3")):
            assert docker.attempt(f"exec c1 ping -c1 -W1 {target}").returncode != 0, target
        docker.remove_all()
        docker.run("network rm inside")
    finally:
        host.run("ip", "netns", "delete", outside)
        host.linkspan("network", "delete", "inside")


def test_an_ipv6_only_network_is_refused_with_the_reason(docker: Docker) -> None:
    """Docker asks for an IPv4 address for every container: the error comes with network create, and with expose."""
    docker.host.linkspan("network", "create", "six", "--pool", "fd66::/48")
    for options in ("-o network=six", "--ipam-opt network=six", "--subnet fd66::/48"):
        refused = docker.attempt(f"{CREATE} --ipv6 {options} x")
        assert refused.returncode != 0
        assert "IPv4" in refused.stderr
    words = ("network", "create", "seven", "--pool", "fd77::/48", "--expose", "docker")
    refused = docker.host.run("linkspan", *words, check=False)
    assert refused.returncode == 1
    assert "without an IPv4 pool" in refused.stderr
    assert "seven" not in str(docker.host.linkspan("network", "list"))
    docker.host.linkspan("network", "delete", "six")


def test_a_container_that_is_renamed_gives_its_name_free(docker: Docker) -> None:
    """After `docker rename` only a new container has the old name, also if the agent was away meanwhile."""

    def called(*names: str) -> bool:
        return sorted(e["name"] for e in docker.host.linkspan("endpoint", "list")) == sorted(names)

    docker.container("web")
    until(lambda: called("web"), "it is named")
    docker.run("rename web web-old")
    docker.container("web")
    until(lambda: called("web", "web-old"), "both are named")
    docker.host.stop_agent()
    docker.run("rename web-old web-older")
    docker.host.start_agent()
    until(lambda: called("web", "web-older"), "the agent has learnt it")
    docker.stop()
    docker.start()
    docker.remove_all()
    docker.container("one")
    until(lambda: called("one"), "it is named")
    docker.run("rename one two")
    until(lambda: called("two"), "an engine that was restarted is followed")


def test_what_of_ipv6_loopback_is_not_as_dockers_bridge(docker: Docker) -> None:
    """A published port does not answer at [::1], and one that is wanted there is refused with the reason."""
    docker.run(f"run -d --name c1 --network demo -p 8080:80 {IMAGE} httpd -f -p 80 -h /etc")
    until(lambda: docker.host.serves(8080), "it answers at 127.0.0.1")
    fetch = ("busybox", "wget", "-q", "-T", "2", "-O", "-", "http://[::1]:8080/hostname")
    assert docker.host.run(*fetch, check=False).returncode != 0
    refused = docker.attempt(f"run --rm --network demo -p [::1]:8081:80 {IMAGE} true")
    assert "::1" in refused.stderr
    assert "127.0.0.1" in refused.stderr


def test_a_restarted_container_keeps_what_the_user_chose(docker: Docker) -> None:
    """`docker restart` gives another address, and the same one with `--ip`; `--mac-address` stays too."""
    docker.run(f"{CREATE} --subnet {POOL} fixed")
    docker.container("c1")
    docker.container("c2", "--network fixed --ip 10.78.5.6 --mac-address 02:42:0a:4e:05:06")
    before = docker.address("c1")
    docker.run("restart -t 0 c1 c2")
    assert docker.address("c1") != before
    assert docker.address("c2", "fixed") == "10.78.5.6"
    assert "02:42:0a:4e:05:06" in docker.execute("c2", "ip link show eth0")
    docker.remove_all()
    docker.run("network rm fixed")


def test_the_agent_restarts_under_running_containers(docker: Docker) -> None:
    """They reach each other all the time; endpoints of containers stopped meanwhile are released afterwards."""
    docker.container("c1")
    docker.container("c2")
    other = docker.address("c2")
    docker.host.stop_agent()
    assert reaches(docker, "c1", other)
    docker.host.start_agent()
    assert reaches(docker, "c1", other)
    docker.container("c3")
    assert reaches(docker, "c1", docker.address('c3'))


def test_dockerd_restarts(docker: Docker) -> None:
    """Its networks are known afterwards, and a container that is restarted always is back on its network."""
    docker.container("c1", "--network demo --restart always")
    docker.stop()
    docker.start()
    until(lambda: docker.run("ps -q --filter name=c1"), "the container runs again", 30)
    docker.container("c2")
    assert reaches(docker, "c2", docker.address('c1'))


def test_the_plugin_s_socket_is_there_before_the_agent(docker: Docker) -> None:
    """With a socket that is handed over, as systemd does, dockerd and the agent may start in any order."""
    host = docker.host
    docker.container("c1", "--network demo --restart always")
    docker.stop()
    host.stop_agent()
    start = host.folder / "start"
    socket = host.settings.pop("docker_socket")
    host.agent = host.start(*handed_over(host, start), log="agent.log")
    assert host.agent.stdout is not None
    assert host.agent.stdout.readline() == "listening\n"
    before = len(docker.log())
    docker.launch()
    start.touch()
    assert host.agent.stdout.readline() == "ready\n"
    docker.wait()
    assert "retrying in" not in docker.log()[before:]  # else its start takes 15 s longer
    until(lambda: docker.run("ps -q --filter name=c1"), "the container runs again", 30)
    docker.container("c2")
    assert reaches(docker, "c2", docker.address('c1'))
    host.stop_agent()
    host.settings["docker_socket"] = socket
    host.start_agent()


def test_an_exposed_network_is_docker_s_own_while_it_exists(docker: Docker) -> None:
    """`--expose docker` makes it, with its subnet, so that `--ip` is taken; deleting it removes it there."""
    words = ("network", "create", "shown", "--pool", "10.80.0.0/16", "--expose", "docker,podman,cni")
    assert docker.host.linkspan(*words)["expose"] == ["docker", "podman", "cni"]
    until(lambda: "shown" in docker.run("network ls --format {{.Name}}").split(), "Docker has it")
    docker.container("c1", "--network shown --ip 10.80.7.7")
    assert docker.address("c1", "shown") == "10.80.7.7"
    files = ("/etc/cni/net.d/10-linkspan-shown.conflist", "/etc/containers/networks/shown.json")
    assert docker.host.run("ls", *files).returncode == 0
    docker.remove_all()
    docker.host.linkspan("network", "delete", "shown")
    until(lambda: "shown" not in docker.run("network ls --format {{.Name}}").split(), "Docker has it not")
    assert docker.host.run("ls", *files, check=False).stdout == ""


def test_an_exposed_network_is_made_again_where_it_was_removed_by_hand(docker: Docker) -> None:
    """Docker's network goes by `docker network rm`, and comes back by itself."""
    docker.host.linkspan("network", "create", "shown", "--pool", "10.80.0.0/16", "--expose", "docker")
    until(lambda: "shown" in docker.run("network ls --format {{.Name}}").split(), "Docker has it")
    docker.run("network rm shown")
    until(lambda: "shown" in docker.run("network ls --format {{.Name}}").split(), "Docker has it again")
    docker.host.linkspan("network", "delete", "shown")
    until(lambda: "shown" not in docker.run("network ls --format {{.Name}}").split(), "Docker has it not")


def test_a_forced_deletion_takes_containers_out_of_docker_s_network(docker: Docker) -> None:
    """It names them; Docker then shows no address that a container no longer has, and no network that is gone."""
    docker.host.linkspan("network", "create", "shown", "--pool", "10.80.0.0/16", "--expose", "docker")
    until(lambda: "shown" in docker.run("network ls --format {{.Name}}").split(), "Docker has it")
    docker.container("c1", "--network shown")
    until(lambda: docker.host.linkspan("endpoint", "list")[0]["name"] == "c1", "it is named")
    refused = docker.host.run("linkspan", "detach", "c1", check=False)
    assert refused.returncode == 1
    assert "eth0 of c1 on network shown is Docker's" in refused.stderr
    assert "docker network disconnect shown c1" in refused.stderr
    (cut,) = docker.host.linkspan("network", "delete", "shown", "--force")["cut_off"]
    assert (cut["name"], cut["engine"]) == ("c1", "docker")
    until(lambda: "shown" not in docker.run("network ls --format {{.Name}}").split(), "Docker has it not")
    assert json.loads(docker.run("inspect c1"))[0]["NetworkSettings"]["Networks"] == {}
    assert docker.run("ps --format {{.Names}}") == "c1"


def test_linkspan_attaches_a_container_of_docker_s_by_its_name(docker: Docker) -> None:
    """`attach docker:NAME` keeps the name, and gives no second interface on a network that Docker put it in."""
    host = docker.host
    host.linkspan("network", "create", "second", "--pool", "10.79.0.0/16")
    docker.container("c1")
    until(lambda: host.linkspan("endpoint", "list")[0]["name"] == "c1", "it is named")
    words = ("linkspan", "attach", "docker:c1", "--network")
    engine = f"unix://{docker.socket}"
    try:
        said = host.run(*words, "second", DOCKER_HOST=engine).stdout
        assert said.startswith("c1: eth1 on network second")
        assert [e["ifname"] for e in host.linkspan("endpoint", "show", "c1")] == ["eth0", "eth1"]
        again = host.run(*words, "demo", check=False, DOCKER_HOST=engine)
        assert "container c1 is attached already, by eth0" in again.stderr
        assert host.run("linkspan", "detach", "c1@second").stdout == "c1@second: 1 interface detached\n"
    finally:
        docker.remove_all()
        host.linkspan("network", "delete", "second", "--force")


def _status(docker: Docker) -> Any:
    """Return what status tells, whether everything is ok or not."""
    return json.loads(docker.host.run("linkspan", "status", "-o", "json", check=False).stdout)


def test_a_network_that_docker_does_not_take_is_named_in_status(docker: Docker) -> None:
    """Docker has another network of that name: `status` says so until it is gone."""
    docker.run("network create --subnet 10.251.101.0/24 shown")
    docker.host.linkspan("network", "create", "shown", "--pool", "10.80.0.0/16", "--expose", "docker")
    until(lambda: "another network shown" in str(_status(docker)["drift"]), "status says it")
    docker.run("network rm shown")
    until(lambda: _status(docker)["drift"] == [], "it is made", 30)
    docker.host.linkspan("network", "delete", "shown")
    until(lambda: "shown" not in docker.run("network ls --format {{.Name}}").split(), "Docker has it not")


def test_both_families(docker: Docker) -> None:
    """A dual-stack network gives an address of each, and they answer."""
    docker.host.linkspan(
        "network", "create", "dual", "--pool", "10.81.0.0/16", "--pool", "fd81::/48", "--expose", "docker"
    )
    until(lambda: "dual" in docker.run("network ls --format {{.Name}}").split(), "Docker has it")
    docker.container("c1", "--network dual")
    docker.container("c2", "--network dual")
    found = json.loads(docker.run("inspect c1"))[0]["NetworkSettings"]["Networks"]["dual"]
    assert reaches(docker, "c2", found['GlobalIPv6Address'])
    assert reaches(docker, "c2", found['IPAddress'])
    docker.remove_all()
    docker.host.linkspan("network", "delete", "dual")


def test_many_containers_at_once_leave_nothing(docker: Docker) -> None:
    """Eight at a time, each started and removed: no address, rule or link is left (the fixture looks)."""
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: docker.run(f"run --rm --name m{n} --network demo {IMAGE} true"), range(24)))


def test_limits_are_options_of_a_container_for_its_network(docker: Docker) -> None:
    """`driver-opt=bandwidth-in=` and `-out=`: the kernel has them, and `endpoint list` tells them."""
    docker.container("c1", "--network name=demo,driver-opt=bandwidth-in=20M,driver-opt=bandwidth-out=5M")
    host = docker.host
    (shown,) = host.linkspan("endpoint", "list")
    assert (shown["bandwidth"]["ingressRate"], shown["bandwidth"]["egressRate"]) == (20_000_000, 5_000_000)
    assert "rate 20Mbit" in host.run("tc", "qdisc", "show", "dev", shown["host_ifname"]).stdout
    planned = "tc qdisc replace dev eth0 root tbf rate 5000000bit"
    until(lambda: any(planned in one["command"] and one["present"] for one in host.linkspan("plan")), "both are there")
    docker.run("rm -f c1")
    docker.container("c2", "--network demo --label linkspan.bandwidth=in=20M,out=5M")  # a compose file's way
    until(lambda: any(planned in one["command"] and one["present"] for one in host.linkspan("plan")), "both are there")
    docker.container("c3", "--network demo --label linkspan.bandwidth=20M")
    said = "c3 is not limited as its label says: label linkspan.bandwidth: bandwidth '20M' is not understood"
    until(lambda: said in host.run("linkspan", "events").stdout, "the label that is no limit is told")
    refused = docker.attempt(f"run --rm --network name=demo,driver-opt=bandwidth-in=fast {IMAGE} true")
    assert "bandwidth 'fast' is not a rate" in refused.stderr


def _addresses(docker: Docker, name: str, network: str) -> list[str]:
    found = json.loads(docker.run(f"inspect {name}"))[0]["NetworkSettings"]["Networks"][network]
    return [found["IPAddress"], found["GlobalIPv6Address"]]


def _id(docker: Docker, name: str) -> str:
    found = json.loads(docker.run(f"inspect {name}"))[0]["NetworkSettings"]["Networks"]["demo"]
    return str(found["EndpointID"])
