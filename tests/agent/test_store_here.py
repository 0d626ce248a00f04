"""A store on the agent's own host: its containers reach it by none of the host's addresses."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator

import pytest

from support.agent.agent_host import Host, World, run
from support.agent.stage import UPLINK, port
from support.agent.traffic import answers, asked, refusal, serving
from support.polling import until

pytestmark = pytest.mark.skipif(shutil.which("etcd") is None, reason="needs etcd")

POOLS = ("10.201.0.0/16", "fd00:201::/64")


@pytest.fixture
def host(world: World) -> Iterator[Host]:
    """Give a host with an etcd at all of its addresses, which its agent knows by the loopback address only."""
    found = Host(world)
    data = found.folder / "etcd"
    argv = ("etcd", "--data-dir", str(data), "--listen-client-urls", "http://[::]:2379", "--log-level", "error")
    peers = ("--listen-peer-urls", "http://[::]:2380", "--advertise-client-urls", "http://127.0.0.1:2379")
    world.spawn(found.netns, *argv, *peers, "--unsafe-no-fsync")
    until(lambda: "LISTEN" in run("ss", "-ltnH", "sport = :2379", netns=found.netns), "etcd listens")
    found.config.write_text(found.config.read_text() + 'store = "etcd://127.0.0.1:2379/here"\n')
    try:
        yield found
    finally:
        found.close()


@pytest.mark.parametrize("mode", ["bridged", "routed"])
def test_a_store_on_this_host_is_closed_at_every_address(host: Host, world: World, mode: str) -> None:
    """The uplink's address, the gateway's, both families: refused; others' clients get in as before."""
    outside = host.outside()
    host.start()
    network = host.network("demo", *POOLS, options={"mode": "routed"} if mode == "routed" else {})
    container = world.namespace()
    host.attach(container)
    for address in (*UPLINK.values(), *network["gateways"]):
        for number in (2379, 2380):
            assert (address, number, refusal(container, address, number)) == (address, number, errno.ECONNREFUSED)
    for address in UPLINK.values():
        assert refusal(outside, address, 2379) == 0
        with serving(host.netns, 8080):
            assert asked(container, address, 8080)[1] == host.netns


def test_a_translation_of_another_engine_does_not_open_it(host: Host, world: World) -> None:
    """Another engine publishes the store's port: a container is refused by the address before the translation."""
    host.outside()
    engine = world.namespace()
    run("ip", "link", "add", "docker0", "type", "veth", "peer", "name", "eth0", "netns", engine, netns=host.netns)
    for netns, device, last in ((host.netns, "docker0", 1), (engine, "eth0", 2)):
        run("ip", "addr", "add", f"172.17.0.{last}/16", "dev", device, netns=netns)
        run("ip", "link", "set", device, "up", netns=netns)
    run("ip", "route", "add", "default", "via", "172.17.0.1", netns=engine)
    rule = "-t nat -A PREROUTING -m addrtype --dst-type LOCAL -p tcp --dport {} -j DNAT --to-destination 172.17.0.2:80"
    for number in (2379, 8081):
        run("iptables", *rule.format(number).split(), netns=host.netns)
    host.start()
    gateway = host.network("demo", *POOLS)["gateways"][0]
    container = world.namespace()
    host.attach(container)
    with serving(engine, 80, address="0.0.0.0"):
        assert asked(container, gateway, 8081)[1] == engine
        assert refusal(container, gateway, 2379) == errno.ECONNREFUSED
        assert refusal(container, UPLINK[4], 2379) == errno.ECONNREFUSED


def test_a_published_port_takes_no_place_of_the_store(host: Host, world: World) -> None:
    """A container that publishes a port of the store's answers at every address but the store's."""
    outside = host.outside()
    text = host.config.read_text()
    host.config.write_text(text.replace("127.0.0.1:2379", f"127.0.0.1:2379,{UPLINK[4]}:9000"))
    host.start()
    host.network("demo", *POOLS)
    container = world.namespace()
    host.attach(container, ports=[port(9000, 80), port(9001, 80)])
    with serving(container, 80):
        assert asked(outside, UPLINK[4], 9001)[1] == container
        assert not answers(outside, UPLINK[4], 9000)
