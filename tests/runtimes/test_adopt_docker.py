"""`linkspan adopt docker` with the real dockerd: a bridge network becomes linkspan's, and back again."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from linkspan.runtimes.docker.docker_adoption import DockerBridges
from linkspan.runtimes.docker.docker_engine import Engine
from support.polling import until
from support.runtimes.docker_engine import IMAGE, Docker
from support.runtimes.killed_adoption import Before, KilledAdoption
from support.runtimes.outage import outage
from support.runtimes.virtual_host import VirtualHost, reaches

pytestmark = pytest.mark.timeout(400)  # real engines are slow on a busy machine

SUBNET = "172.31.0.0/16"
COMPOSE = f"""
services:
  web:
    image: {IMAGE}
    command: httpd -f -p 80 -h /etc
    init: true
    ports: ["8081:80"]
  other:
    image: {IMAGE}
    command: sleep 1000000
    init: true
networks:
  default:
    ipam:
      config: [subnet: 172.29.0.0/16]
"""


@pytest.fixture(scope="module")
def engine() -> Iterator[Docker]:
    """Return a virtual host with an agent and a dockerd."""
    with tempfile.TemporaryDirectory(prefix="lka") as folder:
        host = VirtualHost(f"{Path(folder).name}-h1", Path(folder))
        try:
            found = Docker(host)
            host.start_agent()
            found.start()
            yield found
        finally:
            host.close()


@pytest.fixture
def docker(engine: Docker) -> Iterator[Docker]:
    """Return the engine with a bridge network `shop`, which is gone afterwards, whatever it has become."""
    engine.run(f"network create --subnet {SUBNET} --label keep=me shop")
    yield engine
    engine.remove_all()
    engine.attempt("network rm shop")
    for network in engine.host.linkspan("network", "list"):
        engine.host.linkspan("network", "delete", network["name"])
    (engine.host.folder / "state" / DockerBridges.file).unlink(missing_ok=True)


def _adopt(docker: Docker, *options: str, network: str = "shop") -> Any:
    file = str(docker.host.folder / "agent.toml")
    return docker.host.linkspan("adopt", "docker", network, "--config", file, *options, check=False)


def _driver(docker: Docker, network: str = "shop") -> str:
    return docker.attempt(f"network inspect --format {{{{.Driver}}}} {network}").stdout.strip()


def _shop(docker: Docker) -> dict[str, str]:
    """Start two containers, one with a published port and an alias; return their addresses."""
    docker.run(
        f"run -d --init --name web --network shop --network-alias www -p 8080:80 {IMAGE} httpd -f -p 80 -h /etc"
    )
    docker.container("db", "--init --network shop --ip 172.31.7.7")
    return {name: docker.address(name, "shop") for name in ("web", "db")}


def _serves(docker: Docker) -> bool:
    """Wait until the published port of `web` answers."""
    until(lambda: docker.host.serves(8080), "the published port answers")
    return True


def test_a_network_moves_with_its_containers_and_back(docker: Docker) -> None:
    """Addresses, aliases, labels and ports stay; `--undo` makes Docker's bridge of it again."""
    addresses = _shop(docker)
    docker.run(f"create --name later --network shop --ip 172.31.8.8 {IMAGE} sleep 1000000")
    before = json.loads(docker.run("network inspect shop"))[0]

    outcome = _adopt(docker)
    assert outcome["left"] == outcome["notes"] == []
    done = {one["object"]: one for one in outcome["done"]}
    assert done["container web"]["what"] == addresses["web"]
    assert done["container web"]["seconds"] > 0
    assert done["container later"]["what"] == "not running"
    after = json.loads(docker.run("network inspect shop"))[0]
    assert (after["Driver"], after["Labels"]) == ("linkspan", {"keep": "me"})
    assert {name: docker.address(name, "shop") for name in addresses} == addresses
    ours = docker.host.linkspan("endpoint", "list")
    assert {one["addresses"][0].partition("/")[0] for one in ours} == set(addresses.values())
    assert reaches(docker, "db", addresses["web"])
    assert reaches(docker, "db", "172.31.0.1")
    assert addresses["web"] in docker.execute("db", "nslookup www")
    assert _serves(docker)
    docker.run("start later")
    assert docker.address("later", "shop") == "172.31.8.8"

    undone = _adopt(docker, "--undo")
    assert undone["left"] == []
    again = json.loads(docker.run("network inspect shop"))[0]
    assert {key: again[key] for key in ("Driver", "Labels", "Options", "Internal", "EnableIPv6")} == {
        key: before[key] for key in ("Driver", "Labels", "Options", "Internal", "EnableIPv6")
    }
    assert again["IPAM"]["Config"] == before["IPAM"]["Config"]
    addresses["later"] = "172.31.8.8"
    assert {name: docker.address(name, "shop") for name in addresses} == addresses
    assert reaches(docker, "db", addresses["web"])
    assert _serves(docker)
    assert docker.host.linkspan("network", "list") == []
    assert "was not adopted" in _adopt(docker, "--undo")["error"]["message"]


def test_a_dry_run_changes_nothing(docker: Docker) -> None:
    """Docker's network and containers, linkspan's networks, the host's links and the state folder stay as they are."""
    addresses = _shop(docker)

    def seen() -> object:
        folder = docker.host.folder / "state"
        return (
            json.loads(docker.run("network inspect shop")),
            json.loads(docker.run("inspect web db")),
            docker.host.linkspan("network", "list"),
            docker.host.run("ip", "-o", "link").stdout,
            sorted(path.name for path in folder.iterdir() if not path.name.startswith("journal")),
        )

    before = seen()
    outcome = _adopt(docker, "--dry-run")
    assert seen() == before
    assert outcome.get("left") == [], outcome
    assert {one["object"]: one["what"] for one in outcome["done"]} == {
        "network shop": f"is linkspan's: backend bridge, pool {SUBNET}",
        **{f"container {name}": address for name, address in addresses.items()},
    }


def test_an_adopted_network_lives_on(docker: Docker) -> None:
    """Containers keep their addresses when they, or the engine, start again; new ones come; a confirmed one stays."""
    addresses = _shop(docker)
    docker.run("update --restart always web")
    _adopt(docker)
    docker.run("restart -t 0 db")
    assert docker.address("db", "shop") == addresses["db"]
    docker.stop()
    docker.start()
    until(lambda: docker.address("web", "shop") == addresses["web"], "web is started by the engine, with its address")
    docker.run("start db")
    assert reaches(docker, "db", addresses["web"])
    assert _serves(docker)
    docker.container("new", "--init --network shop")
    assert reaches(docker, "new", addresses["web"])
    uninstall = ("linkspan", "uninstall", "--dry-run", "--config", docker.host.folder / "agent.toml")
    assert "remove by: linkspan adopt docker shop --undo" in docker.host.run(*uninstall).stdout
    assert "already" in _adopt(docker)["done"][0]["what"]
    assert "confirmed" in _adopt(docker, "--confirm")["done"][0]["what"]
    assert "was not adopted" in _adopt(docker, "--undo")["error"]["message"]
    assert _driver(docker) == "linkspan"


def test_properties_of_the_network_stay(docker: Docker) -> None:
    """An internal network stays internal, addresses that were kept free are reserved, and the MTU is the same."""
    options = "--internal --aux-address printer=172.28.0.2 -o com.docker.network.driver.mtu=1400"
    docker.run(f"network create --subnet 172.28.0.0/24 {options} apart")
    docker.container("in", "--init --network apart")
    address = docker.address("in", "apart")
    try:
        assert _adopt(docker, network="apart")["left"] == []
        network = docker.host.linkspan("network", "show", "apart")
        assert (network["internal"], network["mtu"]) == (True, 1400)
        assert "mtu 1400" in docker.execute("in", "ip link")
        assert docker.address("in", "apart") == address
        docker.container("next", "--init --network apart")
        assert docker.address("next", "apart") != "172.28.0.2"
        assert _adopt(docker, "--undo", network="apart")["left"] == []
        assert docker.address("in", "apart") == address
    finally:
        docker.run("rm -f in next")
        docker.run("network rm apart")


def test_containers_that_came_after_the_adoption_go_back_too(docker: Docker) -> None:
    """They, and those that stopped meanwhile, are on Docker's bridge after `--undo`; removed ones are not missed."""
    addresses = _shop(docker)
    _adopt(docker)
    docker.container("new", "--init --network shop")
    address = docker.address("new", "shop")
    docker.run("stop -t 0 db")
    docker.run("rm -f web")
    assert _adopt(docker, "--undo")["left"] == []
    assert docker.address("new", "shop") == address
    docker.run("start db")
    assert docker.address("db", "shop") == addresses["db"]
    assert reaches(docker, "db", address)


def test_endpoints_of_others_are_not_cut_off_by_undo(docker: Docker) -> None:
    """A namespace on the adopted network is named, and nothing changes until it is detached."""
    _shop(docker)
    _adopt(docker)
    host = docker.host
    host.run("ip", "netns", "add", f"{host.name}-x")
    try:
        host.linkspan("attach", f"netns:{host.name}-x", "--network", "shop", "--name", "guest")
        refused = _adopt(docker, "--undo")["error"]
        assert "has other endpoints than Docker's: guest" in refused["message"]
        assert _driver(docker) == "linkspan"
        host.linkspan("detach", f"netns:{host.name}-x")
    finally:
        host.run("ip", "netns", "delete", f"{host.name}-x")
    assert _adopt(docker, "--undo")["left"] == []


def test_what_cannot_be_adopted_is_refused_with_the_reason(docker: Docker) -> None:
    """A network that needs something of Docker's bridge, or whose name or addresses linkspan uses, stays as it is."""
    docker.run("network create --subnet 172.28.0.0/16 -o com.docker.network.bridge.enable_icc=false apart")
    try:
        for network, why in (
            ("apart", "enable_icc=false has no equivalent"),
            ("bridge", "Docker keeps its default network itself"),
            ("host", "its driver is host"),
        ):
            assert why in _adopt(docker, network=network)["error"]["message"]
            assert why in _adopt(docker, "--dry-run", network=network)["left"][0]["why"]
        docker.host.linkspan("network", "create", "wide", "--pool", "172.16.0.0/30", "--pool", "10.9.0.0/16")
        assert "Docker has no network nowhere" in _adopt(docker, network="nowhere")["error"]["message"]
        assert _driver(docker, "apart") == "bridge"
    finally:
        docker.run("network rm apart")


def test_a_network_that_linkspan_refuses_stays_docker_s(docker: Docker) -> None:
    """A route of the host is in the way of the pool: the containers are on Docker's bridge again at once."""
    addresses = _shop(docker)
    docker.host.run("ip", "route", "add", "blackhole", "172.31.200.0/24")
    try:
        refused = _adopt(docker)["error"]
    finally:
        docker.host.run("ip", "route", "delete", "blackhole", "172.31.200.0/24")
    assert "which stays Docker's bridge" in refused["message"]
    assert "172.31.200.0/24" in refused["message"]
    assert _driver(docker) == "bridge"
    assert {name: docker.address(name, "shop") for name in addresses} == addresses
    assert reaches(docker, "db", addresses["web"])
    assert _adopt(docker)["left"] == []


class _Mortal(Engine):
    """The real engine, for a process that ends at one of its changes; ``before`` is called first each time."""

    def __init__(self, socket: str, before: Before) -> None:
        super().__init__(socket)
        self.before = before

    async def _ask(self, method: str, path: str, body: Mapping[str, object] | None = None) -> bytes:
        if method != "GET":
            self.before(f"{method} {path}")
        return await super()._ask(method, path, body)


def _killed(docker: Docker, addresses: dict[str, str]) -> KilledAdoption:
    """Return adoptions of `shop` in this process."""

    def bridges(before: Before) -> DockerBridges:
        return DockerBridges(_Mortal(str(docker.socket), before), docker.socket)  # the plugin's is in the host alone

    return KilledAdoption(docker, bridges, lambda: _driver(docker), addresses)


def test_an_adoption_killed_at_any_step_is_continued(docker: Docker) -> None:
    """The same command finishes it, or its undo: two disconnected, one removed, two networks made, two connected."""
    assert _killed(docker, _shop(docker)).is_continued() == 7


def test_an_adoption_that_was_killed_can_be_undone(docker: Docker) -> None:
    """`--undo` goes back from the middle: Docker's network is removed, and linkspan's does not exist yet."""
    addresses = _shop(docker)
    _killed(docker, addresses).is_killed_in_the_middle()
    assert _adopt(docker, "--undo")["left"] == []
    assert _driver(docker) == "bridge"
    assert {name: docker.address(name, "shop") for name in addresses} == addresses
    assert _serves(docker)


def test_a_container_that_comes_meanwhile_is_moved_too(docker: Docker) -> None:
    """It starts on the old network after the others were disconnected: Docker refuses to remove that network."""
    addresses = _shop(docker)

    def before(change: str) -> None:
        if change.startswith("DELETE /networks/") and not docker.run("ps -aq --filter name=late"):
            docker.container("late", "--init --network shop --ip 172.31.9.9")

    outcome = _killed(docker, addresses).adopter(before).adopt("shop", slow=False)
    assert outcome.left == ()
    assert _driver(docker) == "linkspan"
    assert docker.address("late", "shop") == "172.31.9.9"
    assert reaches(docker, "late", addresses["web"])


def test_a_compose_project_goes_on(docker: Docker) -> None:
    """`docker compose up` finds the network and the containers as they should be, and `down` removes both."""
    (docker.folder / "compose.yaml").write_text(COMPOSE)
    compose = f"compose -p shoes -f {docker.folder / 'compose.yaml'}"
    docker.run(f"{compose} up --detach --quiet-pull")
    before = docker.run("ps -q --no-trunc").split()
    address = docker.address("shoes-web-1", "shoes_default")
    try:
        outcome = _adopt(docker, network="shoes_default")
        assert outcome.get("left") == [], outcome
        assert "docker compose down" in outcome["notes"][0]["why"]
        docker.run(f"{compose} up --detach --quiet-pull")
        assert docker.run("ps -q --no-trunc").split() == before
        assert _driver(docker, "shoes_default") == "linkspan"
        assert docker.address("shoes-web-1", "shoes_default") == address
        until(lambda: docker.host.serves(8081), "the published port answers")
        assert address in docker.execute("shoes-other-1", "nslookup web")
        docker.run(f"{compose} up --detach --quiet-pull --force-recreate")
        assert reaches(docker, "shoes-other-1", "web")
    finally:
        docker.run(f"{compose} down -t 0")


@pytest.mark.alone
@pytest.mark.parametrize("backwards", [False, True], ids=["adopt", "undo"])
def test_containers_are_without_the_network_for_at_most_a_second(docker: Docker, backwards: bool) -> None:
    """Three containers, one of which is asked all the time: the longest time without an answer counts.

    What else the machine does can only add to it, so the best of three times is what the command needs.
    """
    _shop(docker)
    docker.container("third", "--init --network shop")
    gaps = list[float]()
    while len(gaps) < 3 and not any(gap <= 1.0 for gap in gaps):
        if gaps or backwards:
            _adopt(docker, *(["--undo"] if not backwards else []))
        with outage(docker.host, docker.address("web", "shop")) as longest:
            outcome = _adopt(docker, *(["--undo"] if backwards else []))
            assert reaches(docker, "db", docker.address("web", "shop"))
        gaps.append(max(longest[0], *(one["seconds"] for one in outcome["done"])))
    assert min(gaps) <= 1.0, gaps
