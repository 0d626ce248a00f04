"""The real containerd with the installed plugin: containers talk, and nothing is lost when the agent is down."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from images import write_oci_archive
from virtual_host import VirtualHost, wait_until

IMAGE = "linkspan.test/busybox:latest"
NETWORK = "web"
GATEWAY = "10.77.0.1"

CONFIG = """
version = 2
root = "{folder}/root"
state = "{folder}/containerd"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.restart"]
[grpc]
  address = "{folder}/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "{folder}/opt"
"""


class Containerd:
    """A containerd in a virtual host, driven by its own ctr."""

    def __init__(self, host: VirtualHost) -> None:
        self.host = host
        self.address = host.folder / "containerd.sock"
        config = host.folder / "containerd.toml"
        config.write_text(CONFIG.format(folder=host.folder))
        self.process = host.start("containerd", "--config", config, log="containerd.log")
        wait_until(self.answers, "containerd answers")
        archive = host.folder / "image.tar"
        write_oci_archive(archive, IMAGE)
        self.ctr("images", "import", str(archive))

    def answers(self) -> bool:
        """Tell whether it is up."""
        return self.host.run("ctr", "-a", self.address, "version", check=False).returncode == 0

    def ctr(self, *argv: str) -> str:
        """Run a ctr command to its end and return what it printed."""
        return self.host.run("ctr", "-a", self.address, *argv).stdout

    def run(self, name: str, *argv: str) -> str:
        """Run a container to its end."""
        return self.ctr("run", "--rm", "--cni", IMAGE, name, *argv)

    def start(self, name: str) -> str:
        """Start a container that stays, and return its IPv4 address."""
        self.ctr("run", "--detach", "--cni", IMAGE, name, "sleep", "1000000")
        return self.address_of(name)

    def execute(self, name: str, *argv: str) -> str:
        """Run a command in a container that is up."""
        return self.ctr("task", "exec", "--exec-id", f"x{os.urandom(4).hex()}", name, *argv)

    def address_of(self, name: str) -> str:
        """Return the address that the container itself sees on eth0."""
        found = re.search(r"inet (\S+)/\d+", self.execute(name, "ip", "-4", "addr", "show", "dev", "eth0"))
        assert found is not None, f"{name} has no IPv4 address on eth0"
        return found[1]

    def kill(self, name: str) -> None:
        """End a container as an operator does; ctr calls the plugin's DEL here."""
        self.ctr("task", "kill", "--signal", "SIGKILL", name)
        wait_until(lambda: name not in self.running(), f"{name} stopped")
        self.ctr("task", "delete", name)
        self.ctr("container", "delete", name)

    def running(self) -> list[str]:
        """Return the containers whose process runs."""
        lines = self.ctr("task", "list").splitlines()[1:]
        return [line.split()[0] for line in lines if line.endswith("RUNNING")]


@pytest.fixture
def host() -> Iterator[VirtualHost]:
    """Give a virtual host with an agent, the network and the installed plugin."""
    for program in ("containerd", "ctr", "runc"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    folder = Path(tempfile.mkdtemp(prefix="lkp"))  # short: a socket's path has at most 107 bytes
    host = VirtualHost(f"lkp-{os.getpid()}", folder)
    try:
        host.start_agent()
        host.linkspan("network", "create", NETWORK, "--pool", "10.77.0.0/16")
        host.linkspan("install", "cni", "--network", NETWORK)
        yield host
    finally:
        host.close()


@pytest.fixture
def containerd(host: VirtualHost) -> Iterator[Containerd]:
    """Give a containerd on that host, with an image."""
    containerd = Containerd(host)
    yield containerd
    for name in containerd.running():
        containerd.kill(name)


def held(host: VirtualHost) -> set[str]:
    """Return the addresses that endpoints hold."""
    endpoints = host.linkspan("endpoint", "list")
    return {address.split("/")[0] for endpoint in endpoints for address in endpoint["addresses"]}


def test_install_puts_the_plugin_where_runtimes_look(host: VirtualHost) -> None:
    """The plugin is executable, answers VERSION, and the configuration names the network."""
    versions = host.run("/opt/cni/bin/linkspan", CNI_COMMAND="VERSION").stdout
    assert {"0.3.1", "0.4.0", "1.0.0", "1.1.0"} <= set(json.loads(versions)["supportedVersions"])
    listed = host.run("cat", f"/etc/cni/net.d/10-linkspan-{NETWORK}.conflist").stdout
    assert json.loads(listed)["name"] == NETWORK


def test_a_container_reaches_its_gateway(containerd: Containerd) -> None:
    """A container that ctr runs pings the gateway, and its address is free when it has ended."""
    assert "1 packets received" in containerd.run("one", "ping", "-c", "1", "-W", "2", GATEWAY)
    assert held(containerd.host) == set()


def test_two_containers_reach_each_other(containerd: Containerd) -> None:
    """Each container pings the other, by the address that the other sees itself."""
    first, second = containerd.start("first"), containerd.start("second")
    assert held(containerd.host) == {first, second}
    assert "1 packets received" in containerd.execute("first", "ping", "-c", "1", "-W", "2", second)
    assert "1 packets received" in containerd.execute("second", "ping", "-c", "1", "-W", "2", first)


def test_the_end_of_a_container_frees_its_address(containerd: Containerd) -> None:
    """After `ctr task kill` nobody holds the address, no interface is left, and the bookkeeping is clean."""
    address = containerd.start("gone")
    assert held(containerd.host) == {address}
    containerd.kill("gone")
    assert held(containerd.host) == set()
    links = json.loads(containerd.host.run("ip", "-json", "link", "show", "type", "veth").stdout)
    assert [link["ifname"] for link in links if link] == []
    assert containerd.host.linkspan("address", "check")["ok"] is True


def test_a_container_that_ends_while_the_agent_is_down(containerd: Containerd) -> None:
    """The runtime's DEL succeeds without an agent, and the next agent frees the address before it is ready."""
    host = containerd.host
    address = containerd.start("orphan")
    host.stop_agent()
    containerd.kill("orphan")
    host.start_agent()
    assert address not in held(host)
    assert host.linkspan("address", "check")["ok"] is True


def test_the_data_path_needs_no_agent(containerd: Containerd) -> None:
    """Containers go on talking while the agent is down; a new one is refused with CNI's code 11."""
    second = (containerd.start("first"), containerd.start("second"))[1]
    containerd.host.stop_agent()
    assert "1 packets received" in containerd.execute("first", "ping", "-c", "1", "-W", "2", second)
    refused = containerd.host.run(
        *("ctr", "-a", containerd.address, "run", "--rm", "--cni", IMAGE, "third", "true"), check=False
    )
    assert refused.returncode != 0
    assert "agent" in refused.stderr
    containerd.host.start_agent()
