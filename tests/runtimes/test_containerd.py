"""The real containerd with the installed plugin: containers talk, and nothing is lost when the agent is down."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.runtimes.containerd_engine import IMAGE, Containerd
from support.runtimes.virtual_host import VirtualHost, reaches

NETWORK = "web"
GATEWAY = "10.77.0.1"


@pytest.fixture(scope="module")
def containerd() -> Iterator[Containerd]:
    """Return a virtual host with an agent, the network, the installed plugin and a containerd."""
    with tempfile.TemporaryDirectory(prefix="lkc") as folder:  # short: a socket's path has at most 107 bytes
        host = VirtualHost(f"{Path(folder).name}-h1", Path(folder))
        try:
            host.start_agent()
            host.linkspan("network", "create", NETWORK, "--pool", "10.77.0.0/16")
            host.linkspan("install", "cni", "--network", NETWORK)
            yield Containerd(host)
        finally:
            host.close()


@pytest.fixture(autouse=True)
def _nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    containerd: Containerd = request.getfixturevalue("containerd")
    for name in containerd.running():
        containerd.end(name)
    assert held(containerd.host) == set()
    links = json.loads(containerd.host.run("ip", "-json", "link", "show", "type", "veth").stdout)
    assert [link["ifname"] for link in links if link] == []
    assert containerd.host.linkspan("address", "check")["ok"] is True


def held(host: VirtualHost) -> set[str]:
    """Return the addresses that endpoints hold."""
    endpoints = host.linkspan("endpoint", "list")
    return {address.split("/")[0] for endpoint in endpoints for address in endpoint["addresses"]}


def test_install_puts_the_plugin_where_runtimes_look(containerd: Containerd) -> None:
    """The plugin is executable, answers VERSION, and the configuration names the network."""
    host = containerd.host
    versions = host.run("/opt/cni/bin/linkspan", CNI_COMMAND="VERSION").stdout
    assert {"0.3.1", "0.4.0", "1.0.0", "1.1.0"} <= set(json.loads(versions)["supportedVersions"])
    listed = host.run("cat", f"/etc/cni/net.d/10-linkspan-{NETWORK}.conflist").stdout
    assert json.loads(listed)["name"] == NETWORK


def test_a_container_reaches_its_gateway(containerd: Containerd) -> None:
    """A container that ctr runs pings the gateway, and its address is free when it has ended."""
    containerd.run("one", "ping", "-c", "2", "-W", "5", GATEWAY)  # fails where nothing comes back
    assert held(containerd.host) == set()


def test_two_containers_reach_each_other(containerd: Containerd) -> None:
    """Each container pings the other, by the address that the other sees itself."""
    first, second = containerd.container("first"), containerd.container("second")
    assert held(containerd.host) == {first, second}
    assert reaches(containerd, "first", second)
    assert reaches(containerd, "second", first)


def test_the_end_of_a_container_frees_its_address(containerd: Containerd) -> None:
    """After `ctr task kill` nobody holds the address (the fixture looks at links and the bookkeeping)."""
    address = containerd.container("gone")
    assert held(containerd.host) == {address}
    containerd.end("gone")
    assert held(containerd.host) == set()


def test_a_container_that_ends_while_the_agent_is_down(containerd: Containerd) -> None:
    """The runtime's DEL succeeds without an agent, and the next agent frees the address before it is ready."""
    host = containerd.host
    address = containerd.container("orphan")
    host.stop_agent()
    containerd.end("orphan")
    host.start_agent()
    assert address not in held(host)
    assert host.linkspan("address", "check")["ok"] is True


def test_the_data_path_needs_no_agent(containerd: Containerd) -> None:
    """Containers keep talking while the agent is down; a new one is refused with CNI's code 11."""
    second = (containerd.container("first"), containerd.container("second"))[1]
    containerd.host.stop_agent()
    assert reaches(containerd, "first", second)
    refused = containerd.host.run(
        *("ctr", "-a", containerd.address, "run", "--rm", "--cni", IMAGE, "third", "true"), check=False
    )
    assert refused.returncode != 0
    assert "agent" in refused.stderr
    containerd.host.start_agent()
