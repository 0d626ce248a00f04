"""The real dockerd when something is away: the agent, the network, or all of the host for a while."""

from __future__ import annotations

import json
import signal
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from support.polling import until
from support.runtimes.docker_engine import IMAGE, PLUGIN, Docker
from support.runtimes.virtual_host import VirtualHost, reaches, stop

pytestmark = pytest.mark.timeout(400)  # real engines are slow on a busy machine

CREATE = "network create -d linkspan --ipam-driver linkspan"
POOL = "10.78.0.0/16"


@pytest.fixture(scope="module")
def docker() -> Iterator[Docker]:
    """Return a virtual host with an agent, a network and a dockerd."""
    with tempfile.TemporaryDirectory(prefix="lkd") as folder:
        host = VirtualHost(f"{Path(folder).name}-h1", Path(folder))
        try:
            engine = Docker(host)
            host.start_agent()
            host.linkspan("network", "create", "demo", "--pool", POOL)
            engine.start()
            engine.run(f"{CREATE} --subnet {POOL} -o network=demo demo")
            yield engine
        finally:
            host.close()


@pytest.fixture(autouse=True)
def _nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    docker: Docker = request.getfixturevalue("docker")
    docker.remove_all()
    assert_clean(docker.host)


def assert_clean(host: VirtualHost) -> None:
    """Nothing of a container is left: no endpoint, no address, no link."""
    assert host.linkspan("endpoint", "list") == []
    assert host.linkspan("address", "check")["ok"]
    links = json.loads(host.run("ip", "-json", "link", "show", "type", "veth").stdout)
    assert [link["ifname"] for link in links if link] == []


def test_a_container_that_starts_or_ends_without_an_agent_waits_for_it(docker: Docker) -> None:
    """The engine retries for half a minute: an agent that is back in time serves the request."""
    host = docker.host
    docker.container("c1")
    for command in (f"run -d --name c2 --network demo {IMAGE} sleep 1000000", "rm -f c1"):
        before = len(docker.log())
        host.stop_agent()
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(docker.attempt, command)
            until(lambda before=before: "retrying in" in docker.log()[before:], "it is asked in vain", 60)
            host.start_agent()
            assert asked.result().returncode == 0, asked.result().stderr
    assert [e["addresses"] for e in host.linkspan("endpoint", "list")] == [[f"{docker.address('c2')}/16"]]


def test_the_agent_is_killed_while_containers_start(docker: Docker) -> None:
    """Each container runs or is refused; those that run are on the network (the fixture checks what is left)."""
    host = docker.host

    def tried(n: int) -> str:
        command = f"run -d --stop-timeout 1 --name k{n} --network demo {IMAGE} sleep 1000000"
        return f"k{n}" if docker.attempt(command).returncode == 0 else ""

    with ThreadPoolExecutor(8) as pool:
        running = [pool.submit(tried, n) for n in range(8)]
        until(lambda: any(f.done() for f in running), "the first container runs", 60)
        assert host.agent is not None
        stop(host.agent, signal.SIGKILL)
        host.start_agent()
        names = [found for one in running if (found := one.result())]
    assert names
    held = {a.split("/")[0] for e in host.linkspan("endpoint", "list") for a in e["addresses"]}
    assert {docker.address(name) for name in names} <= held
    for name in names[1:]:
        assert reaches(docker, name, docker.address(names[0]))


def test_a_network_is_deleted_while_docker_knows_it(docker: Docker) -> None:
    """A container of it is refused with the network's name, and Docker can remove its own."""
    docker.host.linkspan("network", "create", "gone", "--pool", "10.79.0.0/16")
    docker.run(f"{CREATE} -o network=gone gone")
    docker.container("c1", "--network gone")
    with pytest.raises(AssertionError, match="c1"):
        docker.host.linkspan("network", "delete", "gone")
    docker.remove_all()
    docker.host.linkspan("network", "delete", "gone")
    refused = docker.attempt(f"run --rm --network gone {IMAGE} true")
    assert "gone" in refused.stderr
    assert "does not exist" in refused.stderr
    docker.run("network rm gone")


def test_an_option_of_a_container_that_linkspan_does_not_know_is_named(docker: Docker) -> None:
    """`--network name=demo,driver-opt=...` is refused, and nothing is left of the container."""
    refused = docker.attempt(f"run --rm --network name=demo,driver-opt=colour=red {IMAGE} true")
    assert refused.returncode != 0
    assert "option colour is unknown to driver linkspan" in refused.stderr


def test_restart_always_containers_are_back_after_a_reboot(docker: Docker) -> None:
    """Whichever of dockerd and the agent is first: one with `--ip` has its address again, and they reach each other."""
    docker.container("c1", "--network demo --restart always --ip 10.78.5.5")
    docker.container("c2", "--network demo --restart always")
    for agent_first in (True, False):
        docker.stop()
        docker.reboot()
        if agent_first:
            docker.host.start_agent()
            docker.launch()
        else:
            docker.launch()
            docker.host.start_agent()
        until(docker.answers, "dockerd answers", 90)
        until(lambda: len(docker.run("ps -q").split()) == 2, "both run again", 90)
        assert docker.address("c1") == "10.78.5.5"
        assert reaches(docker, "c2", "10.78.5.5")
        assert reaches(docker, "c1", docker.address('c2'))


def test_uninstall_names_networks_that_users_made(docker: Docker) -> None:
    """An engine could not remove them without linkspan; asked without a terminal it names --yes, and does nothing."""
    host = docker.host
    podman = host.folder / "networks"
    podman.mkdir()
    host.settings["podman_networks"] = str(podman)
    (podman / "mine.json").write_text(json.dumps({"name": "mine", "id": "0" * 64, "driver": "linkspan"}))
    (podman / "other.json").write_text(json.dumps({"name": "other", "id": "1" * 64, "driver": "bridge"}))
    host.agent_command()
    uninstall = ("linkspan", "uninstall", "--config", host.folder / "agent.toml")
    refused = host.run(*uninstall, "--yes", check=False)
    assert refused.returncode == 1
    assert "Docker network demo, Podman network mine still use linkspan" in refused.stderr
    assert "docker network rm demo; podman network rm mine" in refused.stderr
    docker.run("network rm demo")
    (podman / "mine.json").unlink()
    refused = host.run(*uninstall, check=False)
    assert "give --yes" in refused.stderr
    assert host.linkspan("network", "list")[0]["name"] == "demo"
    host.linkspan("network", "create", "shown", "--pool", "10.79.0.0/16", "--expose", "docker")
    until(lambda: "shown" in docker.run("network ls --format {{.Name}}").split(), "Docker has it", 60)
    gone = host.run(*uninstall, "--yes", "--output", "json", check=False)
    assert json.loads(gone.stdout)["left"] == []
    assert "shown" not in docker.run("network ls --format {{.Name}}").split()
    assert host.run("ls", PLUGIN, check=False).returncode != 0
    host.start_agent()


def test_a_forced_uninstall_leaves_no_network_in_docker(docker: Docker) -> None:
    """Running containers are taken out of the exposed networks, so that Docker waits for no driver afterwards."""
    host = docker.host
    host.linkspan("network", "create", "shown", "--pool", "10.79.0.0/16", "--expose", "docker")
    until(lambda: "shown" in docker.run("network ls --format {{.Name}}").split(), "Docker has it", 60)
    docker.container("c1", "--network shown")
    uninstall = ("linkspan", "uninstall", "--config", host.folder / "agent.toml", "--output", "json")
    until(lambda: host.linkspan("endpoint", "list")[0]["name"] == "c1", "it is named")
    (refused,) = json.loads(host.run(*uninstall, "--dry-run").stdout)["refused"]
    assert "1 endpoint lives on this host (c1 on shown)" in refused
    gone = host.run(*uninstall, "--yes", "--force", check=False)
    assert json.loads(gone.stdout)["left"] == []
    assert "shown" not in docker.run("network ls --format {{.Name}}").split()
    assert docker.run("ps --format {{.Names}}") == "c1"
    docker.run("restart -t 0 c1")
    host.start_agent()
