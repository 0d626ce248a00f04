"""The Docker plugin's socket, called as the engine calls it at its worst: again, too late, and with an agent killed."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import socket
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from linkspan.runtimes.docker.docker_driver import delivered
from support.agent.agent_host import Host, World, links, pings, run
from support.agent.damage import forget_records, missing
from support.agent.traffic import transfer
from support.polling import until

ENDPOINT = "e" * 64
NETWORK = "n" * 64
POOL = "10.201.0.0/16"


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("docker", timeout=120)
        self._path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self._path)


class Engine:
    """The calls of an engine to the plugin of a host."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.socket = host.folder / "docker.sock"
        self.macs: dict[str, str] = {}
        with host.config.open("a") as config:
            config.write(f'docker_socket = "{self.socket}"\n')

    def call(self, verb: str, **body: Any) -> dict[str, Any]:
        """Make a call and return its answer, an error too."""
        connection = _Connection(self.socket)
        connection.request("POST", f"/{verb}", json.dumps(body))
        return dict(json.loads(connection.getresponse().read()))

    def well(self, verb: str, **body: Any) -> dict[str, Any]:
        """Make a call that must succeed."""
        answer = self.call(verb, **body)
        assert not answer.get("Err"), answer
        assert not answer.get("Error"), answer
        return answer

    def network(self) -> None:
        """Make the network that Docker knows."""
        pool = {"AddressSpace": "linkspan", "Pool": POOL, "Gateway": "10.201.0.1/16"}
        generic = {"com.docker.network.generic": {"network": "demo"}}
        self.well("NetworkDriver.CreateNetwork", NetworkID=NETWORK, Options=generic, IPv4Data=[pool], IPv6Data=[])

    def address(self) -> str:
        """Ask for an address, with its length."""
        return str(self.well("IpamDriver.RequestAddress", PoolID="demo/4", Address="", Options={})["Address"])

    def endpoint(self, address: str, endpoint: str = ENDPOINT, **options: str) -> None:
        """Create an endpoint with an address and options of its driver."""
        given = {"Address": address, "AddressIPv6": "", "MacAddress": ""}
        words = {"NetworkID": NETWORK, "EndpointID": endpoint, "Interface": given, "Options": options}
        self.macs[endpoint] = self.well("NetworkDriver.CreateEndpoint", **words)["Interface"]["MacAddress"]

    def take(self, netns: str, endpoint: str = ENDPOINT, key: str = "") -> None:
        """Join, and move the container's end into a namespace as the engine does."""
        words = {"NetworkID": NETWORK, "EndpointID": endpoint, "SandboxKey": key or f"/run/netns/{netns}"}
        name = self.well("NetworkDriver.Join", **words, Options={})["InterfaceName"]["SrcName"]
        run("ip", "link", "set", name, "netns", netns, "name", "eth0", netns=self.host.netns)
        run("ip", "link", "set", "eth0", "address", self.macs[endpoint], "up", netns=netns)

    def remove(self, endpoint: str = ENDPOINT) -> None:
        """Leave, and delete the endpoint."""
        self.well("NetworkDriver.Leave", NetworkID=NETWORK, EndpointID=endpoint)
        self.well("NetworkDriver.DeleteEndpoint", NetworkID=NETWORK, EndpointID=endpoint)


@pytest.fixture
def engine(world: World) -> Iterator[Engine]:
    """Return an engine's calls on a host with an agent, and with the network demo, which both know."""
    host = Host(world)
    made = Engine(host)
    host.start()
    try:
        host.network("demo", POOL)
        made.network()
        yield made
    finally:
        host.close()


def clean(host: Host) -> None:
    """Nothing leaks and, after a look of the healer's, nothing differs."""
    assert host.check() == {"ok": True, "leaked": [], "duplicate": [], "orphaned": []}
    until(lambda: host.differences() == [], "nothing differs")


def test_an_agent_that_is_killed_before_a_container_is_found_leaves_it_its_network(
    engine: Engine, container: Callable[[], str]
) -> None:
    """Killed after CreateEndpoint, and again while it looks for the container: the pair of links stays."""
    host, netns = engine.host, container()
    engine.endpoint(engine.address())
    links = host.links()
    host.restart(signal.SIGKILL)
    assert host.links() == links
    engine.take(netns, key="/run/netns/not-there-yet")
    host.restart(signal.SIGKILL)
    assert "eth0" in run("ip", "link", netns=netns)
    clean(host)
    engine.remove()
    clean(host)
    assert host.client.call("GET", "/v1/endpoints") == []


def test_who_holds_an_address_is_told_before_docker_has_told_his_name(engine: Engine) -> None:
    """Of one that is being started only that is known; then it is an endpoint of Docker's on this host."""
    address = engine.address()
    taken = {"PoolID": "demo/4", "Address": address.partition("/")[0], "Options": {}}
    said = engine.call("IpamDriver.RequestAddress", **taken)
    assert "is in use by a container that Docker starts on this host" in str(said)
    engine.endpoint(address)
    said = engine.call("IpamDriver.RequestAddress", **taken)
    assert f"is in use by Docker's endpoint {ENDPOINT[:12]} on host" in str(said)
    engine.well("NetworkDriver.DeleteEndpoint", NetworkID=NETWORK, EndpointID=ENDPOINT)
    clean(engine.host)


@pytest.mark.parametrize("left", [True, False], ids=["left", "not-left"])
def test_a_container_with_a_dead_one_s_inode_has_its_own_network_alone(
    engine: Engine, container: Callable[[], str], left: bool
) -> None:
    """The dead one was also attached to an internal network: the new one gets none of it, whatever Docker reported."""
    host, netns, another = engine.host, container(), "d" * 64
    host.network("back", "10.202.0.0/24", internal=True)
    engine.endpoint(engine.address())
    engine.take(netns)
    until(lambda: _found(host, ENDPOINT), "the container is found")
    dead = host.attach(netns, "back")
    assert dead["ifname"] == "eth1"
    if left:
        engine.remove()
    other = host.succeed(netns)
    engine.endpoint(engine.address(), another)
    engine.take(other, another)
    until(lambda: _found(host, another), "the new container is found")
    assert _found(host, another)["netns"] == dead["netns"]
    spare = container()
    lost = host.attach(spare)["host_ifname"]
    run("ip", "link", "delete", lost, netns=host.netns)
    until(lambda: lost in host.links(), "the agent looked at all links")
    assert links(other) == {"lo", "eth0"}
    assert {e["id"] for e in host.client.call("GET", "/v1/endpoints")} == {another, spare}
    clean(host)


def test_one_that_is_taken_again_without_having_been_left_is_where_it_is_now(
    engine: Engine, container: Callable[[], str]
) -> None:
    """An engine that was killed joins again: the endpoint has the new namespace though its inode is the same."""
    host, netns = engine.host, container()
    address = engine.address()
    engine.endpoint(address)
    engine.take(netns)
    until(lambda: _found(host, ENDPOINT), "the container is found")
    other = host.succeed(netns)
    until(lambda: delivered(ENDPOINT) in host.links(), "the pair is made again")
    engine.take(other)
    run("ip", "addr", "add", address, "dev", "eth0", netns=other)
    until(lambda: "lookup 76001" in run("ip", "rule", netns=other), "its rules are where it is")
    assert pings(other, "10.201.0.1")
    clean(host)


def _records(host: Host) -> str:
    """Return the records of endpoints that the host's store has."""
    with contextlib.closing(sqlite3.connect(host.state_dir / "store" / "store.db")) as database:
        found = database.execute("SELECT CAST(value AS TEXT) FROM entries WHERE key LIKE 'endpoints/%'").fetchall()
    return "".join(text or "" for (text,) in found)


def _found(host: Host, endpoint: str) -> dict[str, Any]:
    """Return an endpoint whose container the agent has found, {} before."""
    every = host.client.call("GET", "/v1/endpoints")
    return next((e for e in every if e["id"] == endpoint and e["ifname"] == "eth0"), {})


def test_what_docker_attached_is_detached_by_force_only(engine: Engine, container: Callable[[], str]) -> None:
    """Without --force the error has Docker's own command, by id and by name; the events say whose endpoint it was."""
    host, netns = engine.host, container()
    engine.endpoint(engine.address())
    engine.take(netns)
    until(lambda: host.client.call("GET", "/v1/endpoints")[0]["ifname"] == "eth0", "the container is found")
    assert host.json("endpoint", "list")[0]["engine"] == "docker"
    for words in ((ENDPOINT[:24],), ("--id", ENDPOINT), (ENDPOINT[:4], "--ifname", "eth0")):
        said = host.cli("detach", *words, code=1)
        assert "on network demo is Docker's, and would not learn that it is gone" in said
        assert "docker network disconnect demo CONTAINER" in said
    assert f"Docker's endpoint {ENDPOINT[:12]} has 10.201." in host.cli("events")
    assert host.cli("detach", ENDPOINT[:24], "--ifname", "eth7", "--force").endswith("no other interface here\n")
    assert host.json("detach", ENDPOINT[:24], "--ifname", "eth0", "--force")["detached"] == 1
    engine.remove()
    clean(host)


def test_a_forced_deletion_names_those_that_it_cut_off(engine: Engine, container: Callable[[], str]) -> None:
    """With their host, and with the Docker commands that an operator must run by hand."""
    host, netns = engine.host, container()
    engine.endpoint(engine.address())
    engine.take(netns)
    said = host.cli("network", "delete", "demo", "--force")
    assert f"cut off: {ENDPOINT[:24]} on host " in said
    assert "docker network disconnect --force demo CONTAINER" in said
    engine.remove()
    assert host.client.call("GET", "/v1/endpoints") == []


def test_a_container_in_two_networks_is_one_container(engine: Engine, container: Callable[[], str]) -> None:
    """Docker's endpoints of one namespace are one container; a third interface on one of its networks is refused."""
    host, netns = engine.host, container()
    engine.endpoint(engine.address())
    engine.take(netns)
    until(lambda: host.client.call("GET", "/v1/endpoints")[0]["ifname"] == "eth0", "the container is found")
    said = host.cli("attach", netns, "--network", "demo", code=1)
    assert f"container Docker's endpoint {ENDPOINT[:12]} is attached already, by eth0" in said
    engine.remove()
    clean(host)


def test_a_part_of_a_pool_is_no_subnet_of_a_network(engine: Engine) -> None:
    """Docker's network would give addresses of the whole pool, so it is refused; the whole pool is taken."""

    def made(pool: str) -> str:
        told = {"AddressSpace": "linkspan", "Pool": pool, "Gateway": "10.201.0.1/16"}
        words = {"NetworkID": "m" * 64, "Options": {}, "IPv4Data": [told], "IPv6Data": []}
        return str(engine.call("NetworkDriver.CreateNetwork", **words).get("Err", ""))

    assert "subnet 10.201.3.0/24 is only a part of a pool of network demo" in made("10.201.3.0/24")
    assert f"--subnet {POOL}" in made("10.201.3.0/24")
    assert made(POOL) == ""


def test_a_container_follows_its_network_s_mtu(engine: Engine, container: Callable[[], str]) -> None:
    """Both ends of the pair have it: what the one sends and is too large for the other is dropped."""
    host, netns = engine.host, container()
    engine.endpoint(engine.address())
    engine.take(netns)
    until(lambda: host.client.call("GET", "/v1/endpoints")[0]["ifname"] == "eth0", "the container is found")
    host.cli("network", "update", "demo", "--mtu", "1300")
    assert "mtu 1300" in run("ip", "link", "show", "eth0", netns=netns)
    engine.remove()
    clean(host)


@pytest.mark.parametrize("known", [True, False], ids=["store", "kernel"])
def test_a_lost_journal_costs_no_container_its_network(
    engine: Engine, container: Callable[[], str], known: bool
) -> None:
    """From the store's record or the kernel alone: ports stay published, and the engine's next call finds it."""
    host, netns = engine.host, container()
    address = engine.address()
    engine.endpoint(address)
    engine.take(netns)
    run("ip", "addr", "add", address, "dev", "eth0", netns=netns)
    ports = {"com.docker.network.portmap": [{"Proto": 6, "IP": "", "Port": 80, "HostIP": "", "HostPort": 8080}]}
    words = {"NetworkID": NETWORK, "EndpointID": ENDPOINT}
    engine.well("NetworkDriver.ProgramExternalConnectivity", **words, Options=ports)
    until(lambda: host.client.call("GET", "/v1/endpoints")[0]["ifname"] == "eth0", "the container is found")
    # Both: a record without the ports is no longer true, and the kernel alone would count.
    known_all = ('"ifname":"eth0"', '"host_port":8080')
    until(lambda: all(word in _records(host) for word in known_all), "the store knows it as well")
    (before,) = host.client.call("GET", "/v1/endpoints")
    host.stop(signal.SIGKILL)
    missing(host)
    if not known:
        forget_records(host)
    host.start()
    assert host.client.call("GET", "/v1/status")["rebuilt"]["endpoints"] == 1
    assert pings(netns, "10.201.0.1")
    engine.well("NetworkDriver.EndpointOperInfo", **words)
    (after,) = host.client.call("GET", "/v1/endpoints")
    same = ("id", "addresses", "mac", "ports", "network", *(("ifname", "netns") if known else ()))
    assert {key: after[key] for key in same} == {key: before[key] for key in same}
    assert engine.address() != address
    clean(host)
    engine.remove()
    assert host.client.call("GET", "/v1/endpoints") == []
    clean(host)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"com.docker.network.enable_ipv4": False}, "has an IPv4 pool"),
        ({"com.docker.network.bridge.name": "br9"}, "option com.docker.network.bridge.name is unknown"),
        ({"mtu": "1400"}, "option mtu is unknown"),
    ],
)
def test_a_network_is_refused_what_linkspan_would_not_do(engine: Engine, options: dict[str, Any], words: str) -> None:
    """An option that changes nothing is an error, and the engine's own ones are none."""
    pool = {"AddressSpace": "linkspan", "Pool": POOL, "Gateway": "10.201.0.1/16"}
    known = {"com.docker.network.generic": {"network": "demo"}, "com.docker.network.enable_ipv6": False}
    call = {"NetworkID": "m" * 64, "IPv4Data": [pool], "IPv6Data": []}
    assert words in engine.call("NetworkDriver.CreateNetwork", **call, Options=known | options)["Err"]
    engine.well("NetworkDriver.CreateNetwork", **call, Options=known | {"com.docker.network.enable_ipv4": True})


def test_an_option_says_who_may_come_in_by_a_containers_ports(engine: Engine) -> None:
    """It counts for all of its ports from the first packet; one at an address that no such client has is closed."""
    given = {"Address": engine.address(), "AddressIPv6": "", "MacAddress": ""}
    words = {"NetworkID": NETWORK, "EndpointID": ENDPOINT}
    chosen = {"linkspan.from": "192.0.2.128/25, 192.0.2.0/25"}
    engine.well("NetworkDriver.CreateEndpoint", **words, Interface=given, Options=chosen)
    bindings = [("", 8080), ("0.0.0.0", 8081), ("::", 8082)]
    ports = [{"Proto": 6, "IP": "", "Port": 80, "HostIP": at, "HostPort": number} for at, number in bindings]
    engine.well("NetworkDriver.ProgramExternalConnectivity", **words, Options={"com.docker.network.portmap": ports})
    (found,) = engine.host.client.call("GET", "/v1/endpoints")
    assert [(one["host_port"], one["sources"]) for one in found["ports"]] == [
        (8080, ["192.0.2.0/24"]), (8081, ["192.0.2.0/24"])
    ]  # fmt: skip
    assert "linkspan.from of an attached" in engine.host.cli(
        "endpoint", "label", ENDPOINT, "linkspan.from=0.0.0.0/0", code=1
    )
    engine.remove()
    clean(engine.host)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"com.docker.network.portmap": "x"}, "com.docker.network.portmap cannot be read"),
        ({"com.docker.network.portmap": [{"Proto": 6}]}, "com.docker.network.portmap cannot be read"),
        ({"com.docker.network.endpoint.ifname": "lan0"}, "option com.docker.network.endpoint.ifname is unknown"),
        ({"linkspan.from": "192.0.2.1/24"}, "driver-opt linkspan.from: from=192.0.2.1/24 has bits after its length"),
        ({"linkspan.from": ""}, "driver-opt linkspan.from: '' is not an IP address or prefix"),
    ],
)
def test_an_endpoint_is_refused_what_linkspan_would_not_do(engine: Engine, options: dict[str, Any], words: str) -> None:
    """Nothing is made for it."""
    links = engine.host.links()
    call = {"NetworkID": NETWORK, "EndpointID": ENDPOINT, "Interface": {"Address": engine.address()}}
    assert words in engine.call("NetworkDriver.CreateEndpoint", **call, Options=options)["Err"]
    assert engine.host.links() == links


def test_limits_of_a_container_hold_in_both_directions(engine: Engine, container: Callable[[], str]) -> None:
    """The agent limits its first received packet, and what it sends once it is found; over a restart, too."""
    host, netns, address = engine.host, container(), engine.address()
    engine.endpoint(address, **{"bandwidth-in": "8m", "bandwidth-out": "4m"})
    (link,) = [name for name in host.links() if name.startswith("lsp")]
    assert "rate 8Mbit" in run("tc", "qdisc", "show", "dev", link, netns=host.netns)
    engine.take(netns)
    run("ip", "address", "add", address, "dev", "eth0", netns=netns)
    until(lambda: "rate 4Mbit" in run("tc", "qdisc", "show", "dev", "eth0", netns=netns), "what it sends is limited")
    host.restart(signal.SIGKILL)
    clean(host)
    size, plain = 250_000, address.partition("/")[0]
    received = transfer(host.netns, netns, plain, size)
    sent = transfer(netns, host.netns, "10.201.0.1", size)
    assert 0.7 < received * 8_000_000 / (8 * size) < 10
    assert 0.7 < sent * 4_000_000 / (8 * size) < 10
    engine.remove()
    clean(host)


def test_a_limit_that_is_none_leaves_no_container(engine: Engine) -> None:
    """The engine shows the reason, and the address is free again."""
    address = engine.address()
    given = {"Address": address, "AddressIPv6": "", "MacAddress": ""}
    words = {"NetworkID": NETWORK, "EndpointID": ENDPOINT, "Interface": given}
    refused = engine.call("NetworkDriver.CreateEndpoint", **words, Options={"bandwidth-in": "20mb"})
    assert "bandwidth '20mb' is not a rate" in refused["Err"]
    engine.well("IpamDriver.ReleaseAddress", PoolID="demo/4", Address=address.partition("/")[0])
    clean(engine.host)
