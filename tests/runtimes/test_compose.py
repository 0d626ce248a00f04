"""Docker Compose with networks `front` and `back` on two hosts: the page docs/compose.md, played by a real Compose.

And what docs/policy.md does with the application: policies close it, step by step.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.polling import until
from support.runtimes.docker_engine import Docker
from support.runtimes.segment import Segment
from support.runtimes.virtual_host import VirtualHost, reaches

pytestmark = pytest.mark.timeout(400)  # real engines are slow on a busy machine



def shown(page: str) -> str:
    """Return the file that a page shows."""
    text = (Path(__file__).parents[2] / "docs" / page).read_text()
    return text.partition("```yaml\n")[2].partition("```")[0]


FILE, POLICIES = shown("compose.md"), shown("policy.md")
NETWORKS = {"front": ("--pool", "10.95.0.0/16"), "back": ("--pool", "10.96.0.0/16", "--internal")}


class Shop:
    """Two hosts with Docker, and the page's file on each."""

    def __init__(self, folder: Path) -> None:
        self.segment = Segment(folder.name)
        self.hosts: list[VirtualHost] = []
        self.dockers: list[Docker] = []
        (folder / "store").mkdir()
        for n in (1, 2):
            (folder / f"h{n}").mkdir()
            host = VirtualHost(f"{folder.name}-h{n}", folder / f"h{n}")
            self.hosts.append(host)
            self.segment.plug(host, f"192.0.2.{10 + n}")
            host.settings |= {"store": f"sqlite://{folder}/store", "host_id": f"h{n}"}
            self.dockers.append(Docker(host))

    def start(self) -> None:
        """Start agents and engines, and make the networks."""
        for host, docker in zip(self.hosts, self.dockers, strict=True):
            host.start_agent()
            docker.launch()
        for name, words in NETWORKS.items():
            self.hosts[0].linkspan("network", "create", name, *words, "--backend", "vxlan", "--expose", "docker")
        for docker in self.dockers:
            docker.wait()
            (docker.folder / "compose.yaml").write_text(FILE)
            until(lambda docker=docker: has_networks(docker), "Docker has both networks")

    def compose(self, n: int, command: str) -> str:
        """Run a Compose command on a host."""
        return self.dockers[n].run(f"compose -p shop -f {self.dockers[n].folder / 'compose.yaml'} {command}")

    def close(self) -> None:
        """Take everything away."""
        for host in self.hosts:
            host.close()
        self.segment.close()


def has_networks(docker: Docker) -> bool:
    """Return whether a Docker has both networks."""
    return NETWORKS.keys() <= set(docker.run("network ls --format {{.Name}}").split())


@pytest.fixture(scope="module")
def shop() -> Iterator[Shop]:
    """Start the web server on the first host, and the database on the second."""
    with tempfile.TemporaryDirectory(prefix="lkc") as folder:
        found = Shop(Path(folder))
        try:
            found.start()
            found.compose(0, "up --detach --quiet-pull web")
            found.compose(1, "up --detach --quiet-pull db")
            yield found
        finally:
            found.close()


def test_the_web_server_is_in_both_networks_and_reaches_the_database(shop: Shop) -> None:
    """By its address and by its name, though it runs on the other host and is only in `back`."""
    one, two = shop.dockers
    address = two.address("shop-db-1", "back")
    assert reaches(one, "shop-web-1", address)
    assert reaches(two, "shop-db-1", one.address("shop-web-1", "back"))
    for name in (address, "db"):
        fetch = f"exec shop-web-1 wget -q -T 5 -O - http://{name}:5432/hostname"
        until(lambda fetch=fetch: one.attempt(fetch).stdout.strip() == "database", f"{name} answers")
    routes = one.execute("shop-web-1", "ip route")
    assert "default via 10.95.0.1" in routes
    assert "10.96.0.0/16 via 10.96.0.1" in routes


def test_the_published_port_is_reached_from_outside_and_from_the_database(shop: Shop) -> None:
    """It leads to `front`, which has Docker's default route."""
    until(lambda: shop.segment.fetched("http://192.0.2.11:8080/hostname") == "shop", "the outside is answered")
    (endpoint,) = [e for e in shop.hosts[0].linkspan("endpoint", "list", "--local") if e["ports"]]
    assert endpoint["network"] == "front"


def test_the_database_is_reached_from_back_alone(shop: Shop) -> None:
    """A container in `front` gets no answer from it, and it reaches no outside."""
    one, two = shop.dockers
    address = two.address("shop-db-1", "back")
    asked = one.attempt(f"run --rm --network front busybox wget -q -T 2 -O - http://{address}:5432/hostname")
    assert asked.returncode != 0
    assert two.attempt("exec shop-db-1 ping -c 1 -W 1 192.0.2.99").returncode != 0
    assert reaches(one, "shop-web-1", address)


def test_a_port_of_a_container_in_back_alone_is_refused(shop: Shop) -> None:
    """The web server's is published by `front`; with only `back`, `docker run -p` fails with the reason."""
    refused = shop.dockers[0].attempt("run --rm --network back -p 8099:80 busybox true")
    assert refused.returncode != 0
    assert "network back is internal, so port 80/tcp is not published" in refused.stderr


def test_trace_walks_out_of_the_network_that_is_named(shop: Shop) -> None:
    """The web server's name fits two endpoints; `@back` selects the one that leads to the database."""
    host = shop.hosts[0]
    until(lambda: {e["name"] for e in host.linkspan("endpoint", "list")} == {"shop-web-1", "shop-db-1"}, "named")
    assert host.linkspan("trace", "shop-web-1@back", "shop-db-1", check=False)["reachable"]
    assert "shop-web-1@front" in host.run("linkspan", "trace", "shop-web-1", "shop-db-1", check=False).stderr


def test_policies_close_it_step_by_step(shop: Shop) -> None:
    """First they only count a stranger in `back`, then they refuse it; the web server and the outside go on."""
    one, two = shop.dockers
    first, second = shop.hosts
    file = first.folder / "shop.yaml"
    file.write_text(POLICIES)
    two.run("run -d --stop-timeout 1 --name stranger --network back busybox sleep 1000000")
    database = "wget -q -T 5 -O - http://db:5432/hostname"

    def tests_pass() -> bool:
        found = first.linkspan("policy", "test", str(file), check=False)
        return bool(found["ok"] == found["cases"] == 5)

    def refused() -> list[tuple[str, ...]]:
        assert two.execute("stranger", database) == "database", "a staged policy refuses nothing"
        found = second.linkspan("policy", "staged")["refused"]
        return [tuple(one[key] for key in ("policy", "from", "to", "port")) for one in found]

    until(tests_pass, "the tests in the file pass, once the labels are known")
    try:
        assert first.linkspan("policy", "apply", "--stage", str(file))["created"] == ["db", "web"]
        until(lambda: refused() == [("db", "stranger", "shop-db-1", "5432/tcp")], "the stranger is counted")
        for name in ("db", "web"):
            assert first.linkspan("policy", "enforce", name)["created"] == [name]
        until(lambda: two.attempt(f"exec stranger {database}").returncode != 0, "the stranger is refused")
        assert one.execute("shop-web-1", database) == "database"
        assert shop.segment.fetched("http://192.0.2.11:8080/hostname") == "shop"
        traced = second.linkspan("trace", "stranger", "shop-db-1", "--port", "5432", check=False)
        assert "policy db line 1 refuses it" in str(traced)
        assert tests_pass()
    finally:
        for name in ("db", "web"):
            first.run("linkspan", "policy", "delete", name, check=False)
        two.run("rm -f stranger")


def test_down_leaves_nothing(shop: Shop) -> None:
    """No endpoint, and no difference, on either host."""
    for n, host in enumerate(shop.hosts):
        assert host.linkspan("diff") == {"put": [], "delete": []}
        shop.compose(n, "down --timeout 1")
        until(lambda host=host: not host.linkspan("endpoint", "list", "--local"), "none is left")
        assert host.linkspan("address", "check")["ok"]
