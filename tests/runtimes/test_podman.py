"""The real Podman with the installed plugin: containers are on a linkspan network by Podman's own commands."""

from __future__ import annotations

import json
import signal
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from support.polling import until
from support.runtimes.podman_engine import IMAGE, Podman
from support.runtimes.virtual_host import VirtualHost, reaches, stop

CREATE = "network create -d linkspan --ipam-driver none"


@pytest.fixture(scope="module")
def podman() -> Iterator[Podman]:
    """Return a virtual host with an agent, a network, the plugin, and Podman's network."""
    with tempfile.TemporaryDirectory(prefix="lkp") as folder:
        host = VirtualHost(f"{Path(folder).name}-h1", Path(folder))
        try:
            host.run("mkdir", "-p", "/usr/local/libexec")
            host.run("mount", "-t", "tmpfs", "tmpfs", "/usr/local/libexec")
            host.start_agent()
            host.linkspan("network", "create", "demo", "--pool", "10.78.0.0/16")
            assert host.linkspan("install", "podman")["files"] == ["/usr/local/libexec/netavark/linkspan"]
            engine = Podman(host)
            engine.run(f"{CREATE} --opt network=demo demo")
            yield engine
        finally:
            host.close()


@pytest.fixture(autouse=True)
def _nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    podman: Podman = request.getfixturevalue("podman")
    podman.remove_all()
    assert podman.host.linkspan("endpoint", "list") == []
    assert podman.host.linkspan("address", "check")["ok"]


def test_containers_reach_each_other_and_have_their_names(podman: Podman) -> None:
    """Two containers have addresses of the pool and a way to each other; linkspan knows their names and aliases."""
    podman.container("c1", "--network demo:alias=web")
    podman.container("c2")
    assert podman.address("c1").startswith("10.78.")
    assert reaches(podman, "c2", podman.address('c1'))
    (found,) = podman.host.linkspan("endpoint", "show", "c1")
    assert found["name"] == "c1"
    assert "web" in found["labels"]["aliases"].split(",")


def test_containers_find_each_other_by_name(podman: Podman) -> None:
    """Podman gives them the network's own server, by the gateway's address."""
    podman.container("c1", "--network demo:alias=web")
    podman.container("c2")
    assert "nameserver 10.78.0.1" in podman.execute("c2", "cat /etc/resolv.conf")
    address = podman.address("c1")
    for name in ("c1", "web", "web.demo"):
        lookup = f"exec c2 nslookup {name}"
        until(lambda lookup=lookup: address in podman.attempt(lookup).stdout, f"{name} is known")


def test_a_published_port_leads_to_the_container(podman: Podman) -> None:
    """`-p` publishes on the host while the container runs; Podman itself refuses a second one."""
    podman.run(f"run -d --name c1 --network demo -p 8080:80 {IMAGE} httpd -f -p 80 -h /etc")
    until(lambda: podman.host.serves(8080), "it answers")
    refused = podman.attempt(f"run --rm --name c2 --network demo -p 8080:80 {IMAGE} true")
    assert "8080: bind: address already in use" in refused.stderr
    podman.run("rm -f -t 0 c1")
    assert not podman.host.serves(8080)


def test_an_address_and_a_mac_that_the_user_chose(podman: Podman) -> None:
    """`--ip` and `--mac-address` are kept, and a taken one names its holder."""
    podman.container("c1", "--network demo:ip=10.78.5.5,mac=02:42:0a:4e:05:05")
    assert "02:42:0a:4e:05:05" in podman.execute("c1", "ip link show eth0")
    assert "10.78.5.5/" in podman.execute("c1", "ip address show eth0")
    refused = podman.attempt(f"run --rm --name c2 --network demo:ip=10.78.5.5 {IMAGE} true")
    assert "10.78.5.5" in refused.stderr
    assert "c1" in refused.stderr


def test_several_networks_in_one_container(podman: Podman) -> None:
    """Each has an interface of its own; a port is published once; one can be disconnected while the container runs."""
    podman.host.linkspan("network", "create", "second", "--pool", "10.79.0.0/16")
    podman.run(f"{CREATE} --opt network=second second")
    podman.container("c1", "--network demo --network second -p 8081:80")
    podman.container("c2", "--network second")
    assert reaches(podman, "c1", podman.address('c2', 'second'))
    podman.run("network disconnect second c1")
    assert "10.79." not in podman.execute("c1", "ip address")
    podman.remove_all()
    podman.run("network rm second")
    podman.host.linkspan("network", "delete", "second")


@pytest.fixture
def second(podman: Podman) -> Iterator[str]:
    """Give another network, which Podman knows as well."""
    podman.host.linkspan("network", "create", "second", "--pool", "10.79.0.0/16")
    podman.run(f"{CREATE} --opt network=second second")
    yield "second"
    podman.remove_all()
    podman.run("network rm second")
    podman.host.linkspan("network", "delete", "second")


def test_a_published_port_goes_on_when_its_first_network_is_disconnected(podman: Podman, second: str) -> None:
    """The second network, connected while the container runs, serves it then (C7), and the outside is reached."""
    host = podman.host
    podman.run(f"run -d --stop-timeout 1 --name c1 --network demo -p 8080:80 {IMAGE} httpd -f -p 80 -h /etc")
    until(lambda: host.serves(8080), "it answers")
    podman.run(f"network connect {second} c1")
    podman.run("network disconnect demo c1")
    until(lambda: host.serves(8080), "it answers by the second network", 10)
    assert "via 10.79.0.1 dev eth1" in podman.execute("c1", "ip route show default")
    podman.run("network connect demo c1")
    assert host.serves(8080)
    podman.run("rm -f -t 0 c1")
    assert not host.serves(8080)


def test_names_of_two_networks_are_found_whichever_server_podman_asks(podman: Podman, second: str) -> None:
    """It writes the gateways of both, in no fixed order; a network that is left takes its names with it."""
    podman.container("both", f"--network demo --network {second}")
    podman.container("one")
    podman.container("two", f"--network {second}")
    for name, address in (("one", podman.address("one")), ("two", podman.address("two", second))):
        for asked in (name, f"{name}.{'demo' if name == 'one' else second}"):
            for server in ("", " 10.78.0.1", " 10.79.0.1"):
                lookup = f"exec both nslookup {asked}{server}"
                until(lambda c=lookup, a=address: a in podman.attempt(c).stdout, f"{asked} at{server}")
    assert podman.address("two", second) not in podman.attempt("exec one nslookup two").stdout
    podman.run(f"network disconnect {second} both")
    until(lambda: podman.attempt("exec both nslookup two 10.78.0.1").returncode, "its name is gone")
    assert podman.address("one") in podman.execute("both", "nslookup one 10.78.0.1")


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("network create -d linkspan --opt network=demo x", "--ipam-driver none"),
        (f"{CREATE} --opt network=nonsense x", "nonsense"),
        (f"{CREATE} --opt network=demo --opt colour=red x", "colour"),
    ],
)
def test_a_wrong_network_is_refused_with_what_to_do(podman: Podman, command: str, words: str) -> None:
    """Podman shows our own words."""
    refused = podman.attempt(command)
    assert refused.returncode != 0
    assert words in refused.stderr


def test_the_agent_is_down_at_start_and_at_stop(podman: Podman) -> None:
    """A start says which agent is missing; a stop is queued, and done when the agent is back."""
    podman.container("c1")
    podman.host.stop_agent()
    refused = podman.attempt(f"run --rm --network demo {IMAGE} true")
    assert "is `linkspan agent` running?" in refused.stderr
    podman.run("rm -f -t 0 c1")
    podman.host.start_agent()
    assert podman.host.linkspan("endpoint", "list") == []


def test_the_agent_is_killed_while_containers_start(podman: Podman) -> None:
    """Each container runs or is refused; those that run reach each other (the fixture checks what is left)."""
    host = podman.host

    def tried(n: int) -> str:
        options = f"--stop-timeout 1 --cap-add NET_RAW --name k{n} --network demo"
        return f"k{n}" if podman.attempt(f"run -d {options} {IMAGE} sleep 1000000").returncode == 0 else ""

    with ThreadPoolExecutor(8) as pool:
        running = [pool.submit(tried, n) for n in range(8)]
        until(lambda: any(f.done() for f in running), "the first container runs", 60)
        assert host.agent is not None
        stop(host.agent, signal.SIGKILL)
        host.start_agent()
        names = [found for one in running if (found := one.result())]
    assert names
    for name in names[1:]:
        assert reaches(podman, name, podman.address(names[0]))


def test_a_network_is_deleted_while_podman_knows_it(podman: Podman) -> None:
    """A container of it is refused with the network's name, and Podman can remove its own."""
    podman.host.linkspan("network", "create", "gone", "--pool", "10.79.0.0/16")
    podman.run(f"{CREATE} --opt network=gone gone")
    podman.host.linkspan("network", "delete", "gone")
    refused = podman.attempt(f"run --rm --network gone {IMAGE} true")
    assert "gone" in refused.stderr
    assert "does not exist" in refused.stderr
    podman.run("network rm gone")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--internal", "network demo is not internal"),
        ("--ipv6", "network demo has no IPv6 pool"),
        ("--route 10.99.0.0/16,10.78.0.9", "--route (10.99.0.0/16 via 10.78.0.9)"),
        ("--interface-name br7", "linkspan names its bridge itself"),
        ("--dns 192.0.2.1", "host's resolv.conf"),
        ("--subnet 10.78.0.0/16", "none ipam driver"),  # Podman's own words
    ],
)
def test_what_would_have_no_effect_is_refused_at_create(podman: Podman, options: str, words: str) -> None:
    """Podman shows the reason, and creates no network."""
    refused = podman.attempt(f"{CREATE} {options} --opt network=demo x")
    assert refused.returncode != 0
    assert words in refused.stderr
    assert "x" not in podman.run("network ls --format {{.Name}}").split()


def test_what_the_network_is_may_be_asked_for(podman: Podman) -> None:
    """`--internal` and `--ipv6` are accepted if the linkspan network has them, and take effect."""
    pools = ("--pool", "10.83.0.0/16", "--pool", "fd83::/48")
    podman.host.linkspan("network", "create", "inside", *pools, "--internal")
    podman.run(f"{CREATE} --internal --ipv6 --opt network=inside inside")
    podman.container("c1", "--network inside")
    podman.container("c2", "--network inside:interface_name=net7")
    podman.container("c3")
    assert "fd83::" in podman.execute("c2", "ip address show net7")
    assert reaches(podman, "c1", podman.address("c2", "inside"))
    assert podman.attempt(f"exec c1 ping -c1 -W1 {podman.address('c3')}").returncode != 0
    podman.remove_all()
    podman.run("network rm inside")
    podman.host.linkspan("network", "delete", "inside")


def test_a_port_that_no_network_publishes_is_told_in_the_events(podman: Podman) -> None:
    """All networks of its container are internal; one in another network too has its port there, and no event."""
    podman.host.linkspan("network", "create", "inside", "--pool", "10.83.0.0/16", "--internal")
    podman.run(f"{CREATE} --opt network=inside inside")

    def told(name: str) -> list[str]:
        lines = podman.host.run("linkspan", "events").stdout.splitlines()
        return [line for line in lines if f"port 80/tcp of {name} is not published" in line]

    for number in range(3):  # which network comes first is chance
        both = f"both{number}"
        podman.run(f"run -d --name {both} --network demo --network inside -p 8080:80 {IMAGE} httpd -f -p 80 -h /etc")
        until(lambda: podman.host.serves(8080), "it answers")
        podman.run(f"rm -f -t 0 {both}")
    podman.container("c1", "--network inside -p 8080:80")
    until(lambda: told("c1"), "the event is there")
    assert "network inside is internal" in told("c1")[0]
    assert not any(told(f"both{number}") for number in range(3))
    podman.remove_all()
    podman.run("network rm inside")
    podman.host.linkspan("network", "delete", "inside")


def test_dns_servers_that_are_added_to_a_network_are_refused_at_run(podman: Podman) -> None:
    """`network update` calls no plugin, so the error comes at the next container, with the fix."""
    podman.run(f"{CREATE} --opt network=demo asking")
    podman.run("network update asking --dns-add 192.0.2.1")
    refused = podman.attempt(f"run --rm --network asking {IMAGE} true")
    assert "192.0.2.1" in refused.stderr
    assert "podman network update asking --dns-drop 192.0.2.1" in refused.stderr
    podman.run("network update asking --dns-drop 192.0.2.1")
    podman.run(f"run --rm --network asking {IMAGE} true")
    podman.run("network rm asking")


def test_an_option_of_a_container_that_linkspan_does_not_know_is_named(podman: Podman) -> None:
    """It is refused, and nothing is left of the container."""
    refused = podman.attempt(f"run --rm --network demo:colour=red {IMAGE} true")
    assert refused.returncode != 0
    assert "colour" in refused.stderr
    assert "linkspan" in refused.stderr


def test_a_rootless_run_says_so_in_one_line(podman: Podman) -> None:
    """In a user namespace the plugin does not try: its error has the cause and the fix."""
    plugin = "/usr/local/libexec/netavark/linkspan"
    done = podman.host.run("unshare", "--user", "--map-root-user", plugin, "setup", "/proc/self/ns/net", check=False)
    assert done.returncode == 1
    assert "rootless" in json.loads(done.stdout)["error"]


def test_many_containers_at_once_leave_nothing(podman: Podman) -> None:
    """Eight at a time, each started and removed (the fixture checks what is left)."""
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: podman.run(f"run --rm --name m{n} --network demo {IMAGE} true"), range(16)))


def test_limits_are_options_of_a_container_for_its_network(podman: Podman) -> None:
    """`--network demo:bandwidth-in=...`: the kernel has them, and `endpoint show` tells them."""
    podman.container("c1", "--network demo:bandwidth-in=20M,bandwidth-out=5M")
    (shown,) = podman.host.linkspan("endpoint", "show", "c1")
    assert (shown["bandwidth"]["ingressRate"], shown["bandwidth"]["egressRate"]) == (20_000_000, 5_000_000)
    assert "rate 20Mbit" in podman.host.run("tc", "qdisc", "show", "dev", shown["host_ifname"]).stdout
    assert podman.host.linkspan("diff") == {"put": [], "delete": []}
    refused = podman.attempt(f"run --rm --network demo:bandwidth-in=fast {IMAGE} true")
    assert "bandwidth 'fast' is not a rate" in refused.stderr


def test_labels_are_those_of_the_container(podman: Podman) -> None:
    """A user's labels, without linkspan's own; a limit among them counts, and one that is none is refused."""
    labels = "--label app=web --label linkspan.bandwidth=in=20M --label aliases=db --label linkspan.from=192.0.2.1"
    podman.container("c1", f"--network demo:alias=www {labels}")
    (shown,) = podman.host.linkspan("endpoint", "show", "c1")
    assert shown["labels"] == {"aliases": "www", "app": "web", "linkspan.bandwidth": "in=20M"}
    assert "rate 20Mbit" in podman.host.run("tc", "qdisc", "show", "dev", shown["host_ifname"]).stdout
    refused = podman.attempt(f"run --rm --network demo --label linkspan.bandwidth=fast {IMAGE} true")
    assert "label linkspan.bandwidth: bandwidth 'fast' is not understood" in refused.stderr


def test_labels_come_with_each_network_and_each_start(podman: Podman, second: str) -> None:
    """A network that is connected later has them, too, and a container that starts again has its own again."""
    podman.container("c1", "--network demo --label app=web")
    podman.run(f"network connect {second} c1")

    def labels() -> dict[str, str]:
        shown = podman.host.linkspan("endpoint", "show", "c1")
        return {one["network"]: one["labels"].get("app", "") for one in shown}

    assert labels() == {"demo": "web", second: "web"}
    podman.host.linkspan("endpoint", "label", "c1", "app=other")
    podman.run("restart -t 0 c1")
    assert labels() == {"demo": "web", second: "web"}


def test_a_pod_has_its_own_labels(podman: Podman) -> None:
    """Its containers share one interface, so labels of a single one of them do not count."""
    infra = f"--infra-image {IMAGE} --infra-command '/bin/sleep 1000000'"
    podman.run(f"pod create --name shop --network demo --label app=shop {infra}")
    podman.run(f"run -d --stop-timeout 1 --pod shop --label app=web --label tier=front {IMAGE} sleep 1000000")
    (shown,) = podman.host.linkspan("endpoint", "list")
    assert {key: value for key, value in shown["labels"].items() if key != "aliases"} == {"app": "shop"}
    podman.run("pod rm -f -t 0 shop")


def test_a_pod_of_kubernetes_yaml_has_its_metadata_s_labels(podman: Podman, monkeypatch: pytest.MonkeyPatch) -> None:
    """`kube play` gives them to the pod and not to its infra container, which has the interface."""
    archive, settings, file = (podman.folder / name for name in ("rootfs.tar", "infra.conf", "shop.yaml"))
    podman.run(f"import --change 'ENTRYPOINT [\"/bin/sleep\", \"1000000\"]' {archive} infra")
    settings.write_text('[engine]\ninfra_image = "localhost/infra"\n')
    monkeypatch.setitem(podman.environment, "CONTAINERS_CONF_OVERRIDE", str(settings))
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "shop", "labels": {"app": "shop"}},
        "spec": {"containers": [{"name": "web", "image": IMAGE, "command": ["sleep", "1000000"]}]},
    }
    file.write_text(json.dumps(pod))
    podman.run(f"kube play --network demo {file}")
    (shown,) = podman.host.linkspan("endpoint", "list")
    assert shown["labels"]["app"] == "shop"
    podman.run("pod rm -f -t 0 shop")


def test_a_container_is_under_its_policy_from_its_first_packet(podman: Podman) -> None:
    """What a container does first is refused, if its label says so."""
    file = podman.host.folder / "closed.yaml"
    file.write_text("policy: closed\nselect: {labels: {app: closed}}\negress: []\n")
    podman.container("c2")
    ping = f"{IMAGE} ping -c1 -W2 {podman.address('c2')}"
    podman.host.linkspan("policy", "apply", str(file))
    try:
        run = "run --rm --cap-add NET_RAW --network demo"
        for _ in range(3):
            assert podman.attempt(f"{run} --label app=closed {ping}").returncode == 1, "ping had no answer"
        podman.run(f"{run} --label app=open {ping}")
    finally:
        podman.host.linkspan("policy", "delete", "closed")
