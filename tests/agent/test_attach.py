"""Attaching containers to bridged and routed networks, from the command line to the packet."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from support.agent.agent_host import Host, first_ip, pings, run

MODES = [pytest.param({}, id="bridged"), pytest.param({"mode": "routed"}, id="routed")]
POOLS = ("10.201.0.0/16", "fd00:201::/64")


@pytest.mark.parametrize("options", MODES)
def test_containers_reach_each_other_and_the_gateway(
    host: Host, container: Callable[[], str], options: dict[str, str]
) -> None:
    """Two containers of a dual-stack network ping each other, the gateway and the host, by IPv4 and IPv6."""
    network = host.network("demo", *POOLS, options=options)
    one, two = container(), container()
    host.attach(one)
    there = host.attach(two)
    for family in (4, 6):
        assert pings(one, first_ip(there, family))
        assert pings(host.netns, first_ip(there, family))
    for gateway in network["gateways"]:
        assert pings(one, gateway)
    assert host.differences() == []
    assert host.check()["ok"]


@pytest.mark.parametrize("options", MODES)
def test_ipv6_is_usable_when_attach_returns(
    host: Host, container: Callable[[], str], options: dict[str, str]
) -> None:
    """No global address of a container is tentative when attach returns, so the first packet can leave."""
    host.network("demo", *POOLS, options=options)
    name = container()
    host.attach(name)
    addresses = json.loads(
        run("ip", "-j", "-6", "addr", "show", "dev", "eth0", "scope", "global", netns=name)
    )
    flags = [info for info in addresses[0]["addr_info"] if info.get("scope") == "global"]
    assert len(flags) == 1
    assert not flags[0].get("tentative")


@pytest.mark.parametrize("options", MODES)
def test_detach_leaves_nothing(host: Host, container: Callable[[], str], options: dict[str, str]) -> None:
    """After detach the links, elements and addresses of the endpoint are gone; the network's objects stay."""
    host.network("demo", *POOLS, options=options)
    before = host.links()
    elements = run("nft", "list", "ruleset", netns=host.netns)
    name = container()
    host.attach(name, ports=[{"host_ip": "", "host_port": 8080, "port": 80, "protocol": "tcp"}])
    assert host.links() != before
    assert host.detach(name) == 1
    assert host.links() == before
    assert run("nft", "list", "ruleset", netns=host.netns) == elements
    assert "eth0" not in run("ip", "link", netns=name)
    assert host.detach(name) == 0
    assert host.differences() == []


def test_a_bridged_container_has_the_pool_s_prefix_and_the_bridge_as_gateway(
    host: Host, container: Callable[[], str]
) -> None:
    """The seed document's picture: the pool's length on eth0, the default route by the bridge's address."""
    host.network("demo", "10.201.0.0/16")
    name = container()
    endpoint = host.attach(name)
    assert endpoint["addresses"] == ["10.201.0.2/16"]
    assert "default via 10.201.0.1 dev eth0" in run("ip", "route", netns=name)
    bridge = json.loads(run("ip", "-j", "-d", "addr", "show", "ls-demo", netns=host.netns))[0]
    assert "10.201.0.1" in [a["local"] for a in bridge["addr_info"]]
    assert bridge["operstate"] == "UP"


def test_the_bridge_keeps_its_mac(host: Host, container: Callable[[], str]) -> None:
    """A port with a lower MAC does not change the bridge's, so no neighbour entry for the gateway goes stale."""
    host.network()

    def mac() -> str:
        return str(json.loads(run("ip", "-j", "link", "show", "ls-demo", netns=host.netns))[0]["address"])

    before = mac()
    for _ in range(3):
        host.attach(container())
    assert mac() == before


def test_an_address_that_is_used_anew_keeps_its_mac(world: object, container: Callable[[], str]) -> None:
    """The MAC follows from the address, so a neighbour that remembers the last holder reaches the new one."""
    from support.agent.agent_host import World

    assert isinstance(world, World)
    host = Host(world, cooldown=0)
    host.start()
    try:
        host.network("demo", "10.201.0.0/29")
        first, watcher = container(), container()
        host.attach(watcher, ips=["10.201.0.6"])
        old = host.attach(first, ips=["10.201.0.3"])
        assert pings(watcher, "10.201.0.3")
        host.detach(first)
        second = container()
        new = host.attach(second, ips=["10.201.0.3"])
        assert new["mac"] == old["mac"]
        assert pings(watcher, "10.201.0.3")
    finally:
        host.close()


def test_exact_address_and_mac(host: Host, container: Callable[[], str]) -> None:
    """--ip and --mac are honoured on the interface."""
    host.network()
    name = container()
    host.cli(
        "attach",
        name,
        "--network",
        "demo",
        "--ip",
        "10.201.7.7",
        "--mac",
        "02:00:00:00:07:07",
        "--name",
        "web",
    )
    shown = json.loads(run("ip", "-j", "addr", "show", "eth0", netns=name))[0]
    assert shown["address"] == "02:00:00:00:07:07"
    assert "10.201.7.7" in [a["local"] for a in shown["addr_info"]]
    assert host.json("endpoint", "show", "web")[0]["addresses"] == ["10.201.7.7/16"]


def test_several_networks_in_one_container(host: Host, container: Callable[[], str]) -> None:
    """The first interface has the default route; when it goes, the second one's takes over."""
    host.network("one", "10.201.0.0/24", "fd00:1::/64")
    host.network("two", "10.202.0.0/24", "fd00:2::/64")
    name = container()
    assert host.attach(name, "one")["ifname"] == "eth0"
    assert host.attach(name, "two")["ifname"] == "eth1"
    for family, address in (("-4", "198.51.100.9"), ("-6", "2001:db8::9")):
        assert " dev eth0 " in run("ip", family, "route", "get", address, netns=name)
    host.detach(name, "eth0")
    for family, address in (("-4", "198.51.100.9"), ("-6", "2001:db8::9")):
        assert " dev eth1 " in run("ip", family, "route", "get", address, netns=name)
    assert host.differences() == []


@pytest.mark.parametrize("options", MODES)
def test_two_interfaces_in_one_network_of_both_families(
    host: Host, container: Callable[[], str], options: dict[str, str]
) -> None:
    """For the second one the kernel does not accept the gateway of IPv6 as on the link: the first one leads to it."""
    host.network("demo", *POOLS, options=options)
    name, other = container(), container()
    there = host.attach(other)
    host.attach(name)
    host.attach(name, ifname="eth1")
    for family in (4, 6):
        for device in ("eth0", "eth1"):
            run("ping", "-c", "1", "-W", "5", "-I", device, first_ip(there, family), netns=name)
    assert host.differences() == []


def test_mtu_is_the_networks_and_can_change_in_running_containers(
    host: Host, container: Callable[[], str]
) -> None:
    """`network update --mtu` reaches the bridge, both ends of the pair, and packets with DF."""
    host.network("demo", "10.201.0.0/24", mtu=1400)
    one, two = container(), container()
    host.attach(one)
    there = first_ip(host.attach(two))
    assert pings(one, there, "-M", "do", "-s", str(1400 - 28))
    assert not pings(one, there, "-M", "do", "-s", str(1400 - 27))
    host.cli("network", "update", "demo", "--mtu", "1300")
    assert pings(one, there, "-M", "do", "-s", str(1300 - 28))
    assert not pings(one, there, "-M", "do", "-s", str(1300 - 27))
    assert host.differences() == []


def test_a_second_pool_serves_when_the_first_is_full(host: Host, container: Callable[[], str]) -> None:
    """After `network update --add-pool` containers get addresses of it, and reach those of the first pool."""
    host.network("demo", "10.201.0.0/30")
    one, two = container(), container()
    first = first_ip(host.attach(one))
    message = host.cli("attach", two, "--network", "demo", code=1)
    assert "10.201.0.0/30" in message
    assert "1 addresses are in use" in message
    host.cli("network", "update", "demo", "--add-pool", "10.202.0.0/24")
    assert first_ip(host.attach(two)) == "10.202.0.2"
    assert pings(two, first)
    assert host.differences() == []


@pytest.mark.parametrize(
    ("pool", "mode", "addresses"),
    [
        ("10.201.0.0/31", "bridged", ["10.201.0.1/31"]),
        ("10.201.0.0/31", "routed", ["10.201.0.0/32", "10.201.0.1/32"]),
        ("10.201.0.5/32", "routed", ["10.201.0.5/32"]),
        ("fd00:201::/127", "bridged", ["fd00:201::1/127"]),
        ("fd00:201::/127", "routed", ["fd00:201::/128", "fd00:201::1/128"]),
    ],
)
def test_the_smallest_pools_serve(
    host: Host, container: Callable[[], str], pool: str, mode: str, addresses: list[str]
) -> None:
    """/31, /32 and /127 pools give every address that they have, and each reaches the host."""
    host.network("demo", pool, options={"mode": mode})
    names = [container() for _ in addresses]
    assert [host.attach(name)["addresses"] for name in names] == [[address] for address in addresses]
    for name, address in zip(names, addresses, strict=True):
        assert pings(host.netns, address.partition("/")[0]), name


@pytest.mark.parametrize("options", MODES)
def test_a_namespace_with_ipv6_turned_off_gets_ipv6_from_a_network_that_has_it(
    host: Host, container: Callable[[], str], options: dict[str, str]
) -> None:
    """Runtimes turn IPv6 off in a new namespace; the interface of a dual-stack network still has it."""
    host.network("demo", *POOLS, options=options)
    name = container()
    run(
        "sysctl", "-w", "net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.default.disable_ipv6=1", netns=name
    )
    assert pings(host.netns, first_ip(host.attach(name), 6))
