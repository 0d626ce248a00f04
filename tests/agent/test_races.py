"""Races, and operations on objects that are gone: nothing is revived, and nothing is given twice."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import subprocess
import threading
from collections.abc import Callable
from typing import Any

import pytest

from linkspan.core.errors import Conflict, LinkspanError
from support.agent.agent_host import Host, World, first_ip, links, pings, run
from support.polling import until


def _failing(work: Callable[[], Any]) -> LinkspanError | None:
    try:
        work()
    except LinkspanError as error:
        return error
    return None


def test_a_dead_container_s_interface_is_put_into_no_other_namespace(
    host: Host, container: Callable[[], str]
) -> None:
    """The kernel gives the inode of a namespace that is gone to the next one: it stays empty, and may be attached."""
    host.network()
    name = container()
    old = host.attach(name)
    other = host.succeed(name)
    until(lambda: host.client.call("GET", "/v1/status")["gone"], "the agent knows that the container is gone")
    host.restart()
    assert links(other) == {"lo"}
    endpoint = host.attach(other)
    assert first_ip(endpoint) != first_ip(old)
    assert host.check()["ok"]
    assert host.differences() == []


def _in_two(host: Host, name: str) -> dict[str, Any]:
    """Attach a namespace to two networks, and return its first endpoint."""
    host.network()
    host.network("back", "10.202.0.0/24", internal=True)
    host.attach(name, "back")
    return host.attach(name)


def _looked(host: Host, container: Callable[[], str]) -> None:
    """Wait until the agent has checked all links: another container's interface is gone, and is back."""
    name = container()
    lost = host.attach(name)["host_ifname"]
    run("ip", "link", "delete", lost, netns=host.netns)
    until(lambda: lost in host.links(), "the agent looked")


def test_a_container_with_a_dead_one_s_inode_has_its_own_networks_alone(
    host: Host, container: Callable[[], str]
) -> None:
    """Attached while the dead one is not yet reaped: no interface, rule or table of that one, and it makes way."""
    name = container()
    old = _in_two(host, name)
    other = host.succeed(name)
    new = host.attach(other)
    _looked(host, container)
    assert links(other) == {"lo", "eth0"}
    assert "lookup 760" not in run("ip", "rule", netns=other)
    assert name not in {endpoint["id"] for endpoint in host.client.call("GET", "/v1/endpoints")}
    assert pings(other, "10.201.0.1")
    assert new["netns"] == old["netns"]
    assert host.check()["ok"]
    assert host.differences() == []


def test_a_namespace_that_is_never_attached_keeps_no_dead_container_alive(
    world: World, container: Callable[[], str]
) -> None:
    """It has the dead one's inode, and stays empty; the dead one's endpoints are reaped."""
    host = Host(world)
    with host.config.open("a") as config:
        config.write("reap_after = 1.0\n")
    host.start()
    try:
        name = container()
        _in_two(host, name)
        other = host.succeed(name)
        _looked(host, container)
        until(lambda: name not in {e["id"] for e in host.client.call("GET", "/v1/endpoints")}, "it is reaped")
        assert links(other) == {"lo"}
        assert host.check()["ok"]
        assert host.differences() == []
    finally:
        host.close()


def test_a_journal_without_cookies_leads_into_no_other_namespace(
    host: Host, container: Callable[[], str]
) -> None:
    """The agent learns a container's cookie while its pair exists; it puts nothing into a namespace that is gone."""
    living, name = container(), container()
    _in_two(host, name)
    host.attach(living)
    host.stop()
    cookies = {one["id"]: one["netns_cookie"] for one in host.journalled()}
    _forget_cookies(host)
    host.start()
    assert {endpoint["id"] for endpoint in host.client.call("GET", "/v1/endpoints")} == {living, name}
    host.stop()
    assert {one["id"]: one["netns_cookie"] for one in host.journalled()} == cookies
    _forget_cookies(host)
    other = host.succeed(name)
    host.start()
    assert {endpoint["id"] for endpoint in host.client.call("GET", "/v1/endpoints")} == {living}
    _looked(host, container)
    assert links(other) == {"lo"}
    assert pings(living, "10.201.0.1")
    assert host.differences() == []


def test_a_namespace_made_again_under_its_name_is_told_that_the_old_one_is_gone(
    world: World, host: Host, container: Callable[[], str]
) -> None:
    """The old endpoint waits to be reaped: the refusal says so, and its fix works."""
    host.network()
    name = container()
    host.attach(name)
    host.succeed(name)
    world.namespace(name)
    for ifname in ("", "eth0"):
        with pytest.raises(Conflict, match="is still attached, in a network namespace that is gone"):
            host.attach(name, ifname=ifname)
    said = host.cli("attach", name, "--network", "demo", code=1)
    host.cli(*said.rpartition("linkspan ")[2].partition(", or wait")[0].split())
    host.attach(name)
    assert pings(name, "10.201.0.1")


def _forget_cookies(host: Host) -> None:
    """Write the journal as an agent did that knew no cookies."""
    with contextlib.closing(sqlite3.connect(host.state_dir / "journal.db")) as database, database:
        for one in host.journalled():
            known = {key: value for key, value in one.items() if key != "netns_cookie"}
            words = json.dumps(known), one["id"], one["ifname"]
            database.execute("UPDATE endpoints SET record = ? WHERE id = ? AND ifname = ?", words)


def test_an_mtu_change_revives_no_container_that_goes(host: Host, container: Callable[[], str]) -> None:
    """`network update --mtu` while containers are detached: none comes back, and no address is held by two."""
    host.network("demo", "10.201.0.0/24")
    names = [container() for _ in range(8)]
    for mtu in (1400, 1500, 1300):
        for name in names:
            host.attach(name)
        threads = [threading.Thread(target=host.detach, args=(name,)) for name in names]
        for thread in threads:
            thread.start()
        host.client.call("PATCH", "/v1/networks/demo", {"mtu": mtu})
        for thread in threads:
            thread.join()
        assert host.client.call("GET", "/v1/endpoints") == []
        assert not [link for link in host.links() if link.startswith("lsp")]


def test_a_network_made_anew_while_the_old_one_goes_gives_no_address_twice(
    host: Host, container: Callable[[], str]
) -> None:
    """Deleting by force and creating the same name at once: each endpoint attached afterwards has a unique address."""
    host.network("demo", "10.201.0.0/24")
    names = [container() for _ in range(8)]
    for name in names:
        host.attach(name)
    deleting = threading.Thread(target=lambda: host.client.call("DELETE", "/v1/networks/demo?force"))
    deleting.start()
    until(lambda: _failing(lambda: host.network("demo", "10.201.0.0/24")) is None, "the name is free")
    deleting.join()
    held = [first_ip(host.attach(name)) for name in names]
    assert len(set(held)) == len(held)
    assert host.check()["ok"]
    assert host.differences() == []


def test_changes_of_one_network_at_once_all_count(host: Host) -> None:
    """Three pools added at the same time are all there afterwards."""
    host.network("demo", "10.201.0.0/24")
    pools = ["10.202.0.0/24", "10.203.0.0/24", "10.204.0.0/24"]

    def add(pool: str) -> None:
        host.client.call("PATCH", "/v1/networks/demo", {"add_pools": [pool]})

    threads = [threading.Thread(target=add, args=(pool,)) for pool in pools]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(host.client.call("GET", "/v1/networks/demo")["pools"]) == {"10.201.0.0/24", *pools}


def test_two_networks_with_one_bridge_name_are_refused(host: Host) -> None:
    """A name that is another network's hash is refused by name, and the agent starts again."""
    host.network("a-very-long-network-name", "10.201.0.0/24")
    bridge = next(link for link in host.links() if link.startswith("ls-"))
    error = _failing(lambda: host.network(bridge.removeprefix("ls-"), "10.202.0.0/24"))
    assert error is not None
    assert "a-very-long-network-name" in error.message
    assert len(host.client.call("GET", "/v1/networks")) == 1
    host.restart()
    assert host.differences() == []


def test_a_container_that_renamed_its_interface_stops_no_other(
    host: Host, container: Callable[[], str]
) -> None:
    """The MTU reaches all containers but the one whose interface is gone, which is named."""
    host.network("demo", "10.201.0.0/24")
    names = [container() for _ in range(3)]
    for name in names:
        host.attach(name)
    run("ip", "link", "set", "eth0", "down", netns=names[0])
    run("ip", "link", "set", "eth0", "name", "other0", netns=names[0])
    error = _failing(lambda: host.client.call("PATCH", "/v1/networks/demo", {"mtu": 1300}))
    assert error is not None
    assert names[0] in error.message
    for name in names[1:]:
        assert json.loads(run("ip", "-j", "link", "show", "eth0", netns=name))[0]["mtu"] == 1300


def test_attaches_of_one_container_at_once_get_names_of_their_own(
    host: Host, container: Callable[[], str]
) -> None:
    """Without --ifname, three attaches at the same time get eth0, eth1 and eth2."""
    for number in range(3):
        host.network(f"net{number}", f"10.20{number}.0.0/24")
    name = container()
    found: list[str] = []
    threads = [
        threading.Thread(target=lambda n=n: found.append(host.attach(name, f"net{n}")["ifname"]))
        for n in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == ["eth0", "eth1", "eth2"]


def test_of_containers_that_want_one_mac_at_once_one_gets_it(host: Host, container: Callable[[], str]) -> None:
    """The others are refused by the name of who has it, and nothing is left of their attempts."""
    host.network()
    names = [container() for _ in range(6)]
    found: list[LinkspanError | None] = []
    wanted = "02:00:00:00:07:07"
    threads = [
        threading.Thread(target=lambda n=name: found.append(_failing(lambda: host.attach(n, mac=wanted))))
        for name in names
    ]
    threads += [threading.Thread(target=host.differences) for _ in range(4)]  # each attach waits for its turn
    for thread in threads[::-1]:
        thread.start()
    for thread in threads:
        thread.join(60)
    refused = [error for error in found if error is not None]
    assert (len(found), len(refused)) == (6, 5)
    assert all(f"MAC {wanted} is used by" in error.message for error in refused)
    assert len(host.client.call("GET", "/v1/endpoints")) == 1
    assert host.differences() == []


@pytest.mark.parametrize(
    "more",
    [
        {"ports": [{"host_ip": "", "host_port": 70000, "port": 80, "protocol": "tcp"}]},
        {"ports": [{"host_ip": "", "host_port": 0, "port": 80, "protocol": "tcp"}]},
        {"port_ranges": [{"host_ip": "", "first": -5, "last": -1, "port": 80, "protocol": "tcp"}]},
        {"bandwidth": {"ingressRate": -8}},
        {"bandwidth": {"ingressRate": 1000000, "ingressBurst": 1 << 40}},
    ],
)
def test_numbers_out_of_range_are_refused(
    host: Host, container: Callable[[], str], more: dict[str, Any]
) -> None:
    """An invalid port or limit is refused with a clear error, and leaves nothing."""
    host.network()
    name = container()
    error = _failing(lambda: host.attach(name, **more))
    assert error is not None
    assert error.code == "invalid"
    assert host.check()["ok"]


@pytest.mark.parametrize(("protocol", "port"), [("", 80), ("tcp", 0), ("tcp", 99999), ("tcp }", 80)])
def test_an_allowance_of_no_port_is_refused(host: Host, protocol: str, port: int) -> None:
    """Nothing but a protocol and a port reaches the firewall's words."""
    host.network("one", "10.201.0.0/24")
    host.network("two", "10.202.0.0/24")
    body = {"source": "one", "target": "two", "protocol": protocol, "port": port}
    error = _failing(lambda: host.client.call("POST", "/v1/allowances", body))
    assert error is not None
    assert error.code == "invalid"
    assert host.differences() == []


def test_healing_outlives_a_fault(host: Host) -> None:
    """An agent that had no descriptors left for a while repairs again once it has."""
    host.network()
    assert host.process is not None
    pid = str(host.process.pid)
    run("prlimit", "--pid", pid, "--nofile=10:4096")
    subprocess.run(["ip", "netns", "exec", host.netns, "nft", "add", "table", "inet", "other"], check=True)
    log = host.log
    until(
        lambda: "defect in linkspan" in log.read_text() or "too many open files" in log.read_text().lower(),
        "it has failed",
    )
    run("prlimit", "--pid", pid, "--nofile=4096:4096")
    run("ip", "link", "set", "ls-demo", "down", netns=host.netns)
    until(
        lambda: '"UP"' in run("ip", "-j", "link", "show", "ls-demo", netns=host.netns),
        "the bridge is up again",
    )
