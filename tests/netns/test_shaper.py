from __future__ import annotations

import json
import socket
import time

import pytest

from linkspan.core.states.host import HOST, ForeignQdisc, TokenBucket
from linkspan.kernel.drivers.shaper import ShaperDriver
from linkspan.kernel.io.namespaces import Namespaces
from linkspan.kernel.io.sockets import Sockets
from support.netns.machine_fixtures import inode, inside, run

MBIT = 125_000
BY_HAND = ("tbf", "rate", "1mbit", "burst", "9000", "latency", "9ms")


@pytest.fixture
def pair(machine: str, container: str, spaces: Namespaces) -> int:
    """Make lsp0 on the machine and eth0 in the container; return the container's inode."""
    run("ip", "link", "add", "lsp0", "type", "veth", "peer", "name", "eth0", "netns", container)
    run("ip", "link", "property", "add", "dev", "lsp0", "altname", f"linkspan:{inode(container)}:eth0")
    spaces.register(inode(container), f"/run/netns/{container}")
    return inode(container)


@pytest.mark.parametrize("rate", [10 * MBIT, 1000 * MBIT, 10_000 * MBIT, 40_000 * MBIT, 1])
@pytest.mark.parametrize("burst", [4096, 1 << 20, 1500, 123_457])
def test_both_ends_are_put_observed_and_lifted(
    spaces: Namespaces, pair: int, container: str, rate: int, burst: int
) -> None:
    """Any rate and burst: observed as put, a second put changes nothing, and delete leaves no qdisc."""
    driver = ShaperDriver(Sockets(spaces))
    before = run("tc", "qdisc", "show")
    wanted = [TokenBucket("lsp0", rate, burst), TokenBucket("eth0", rate, burst, pair)]
    for state, netns, where in zip(wanted, (HOST, pair), ("", container), strict=True):
        assert driver.apply([state], []) == {}
        assert list(driver.observe(netns)) == [state]
        listed = run("tc", "-s", "qdisc", "show", "dev", state.device, netns=where)
        assert "tbf" in listed
        assert driver.apply([state], []) == {}
        assert list(driver.observe(netns)) == [state]
        assert driver.apply([], [state]) == {}
        assert list(driver.observe(netns)) == []
        assert driver.apply([], [state]) == {}
    assert run("tc", "qdisc", "show") == before


@pytest.mark.parametrize("rate", [1000, 10 * MBIT, 10_000 * MBIT, 40_000 * MBIT])
def test_an_agent_with_no_memory_sees_the_same(spaces: Namespaces, pair: int, rate: int) -> None:
    """This holds for bursts that are multiples of the grain, at every rate at which they take less than 274 s."""
    wanted = TokenBucket("lsp0", rate, 256 * 1024)
    ShaperDriver(Sockets(spaces)).apply([wanted], [])
    assert list(ShaperDriver(Sockets(spaces)).observe(HOST)) == [wanted]


def test_tc_shows_what_was_asked_for(spaces: Namespaces, pair: int) -> None:
    """The rate, the burst and the wait of the reference plugin."""
    ShaperDriver(Sockets(spaces)).apply([TokenBucket("lsp0", 10 * MBIT, 64 * 1024)], [])
    (listed,) = json.loads(run("tc", "-j", "qdisc", "show", "dev", "lsp0"))
    options = listed["options"]
    assert listed["kind"] == "tbf"
    assert options["rate"] == 10 * MBIT
    assert abs(options["burst"] - 64 * 1024) <= 1
    assert abs(options["lat"] - 25_000) <= 10, "microseconds"


def test_traffic_is_held_to_the_rate(spaces: Namespaces, pair: int, container: str) -> None:
    """Four bursts' worth of datagrams take as long as the three do that do not fit the bucket."""
    rate, burst = 4 * MBIT, 64 * 1024
    run("ip", "addr", "add", "10.99.1.1/24", "dev", "lsp0")
    run("ip", "addr", "add", "10.99.1.2/24", "dev", "eth0", netns=container)
    run("ip", "link", "set", "lsp0", "up")
    run("ip", "link", "set", "eth0", "up", netns=container)
    ShaperDriver(Sockets(spaces)).apply([TokenBucket("lsp0", rate, burst)], [])
    with inside(container):
        receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        receiver.bind(("10.99.1.2", 7000))
        receiver.settimeout(5)
    with receiver, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)  # so that sending waits for the bucket
        begin = time.monotonic()
        for _ in range(4 * burst // 1000):
            sender.sendto(bytes(1000), ("10.99.1.2", 7000))
        taken = time.monotonic() - begin
    assert taken > 0.8 * 3 * burst / rate


def test_another_rate_is_changed_in_place_and_drift_is_seen(spaces: Namespaces, pair: int) -> None:
    """A bucket changed or removed by hand is not like ours."""
    driver = ShaperDriver(Sockets(spaces))
    wanted = TokenBucket("lsp0", 10 * MBIT, 4096)
    driver.apply([TokenBucket("lsp0", MBIT, 4096)], [])
    assert driver.apply([wanted], []) == {}
    assert list(driver.observe(HOST)) == [wanted]
    run(
        "tc",
        "qdisc",
        "change",
        "dev",
        "lsp0",
        "root",
        *BY_HAND,
    )
    assert list(driver.observe(HOST)) != [wanted]
    driver.apply([wanted], [])
    run("tc", "qdisc", "del", "dev", "lsp0", "root")
    assert list(driver.observe(HOST)) == []


@pytest.mark.parametrize("handle", ["", "handle 1:"])
def test_anothers_qdisc_is_seen_and_makes_way(spaces: Namespaces, pair: int, handle: str) -> None:
    """It is removed if no limit is wanted, and else replaced, whatever its handle."""
    driver = ShaperDriver(Sockets(spaces))
    run(*f"tc qdisc add dev lsp0 root {handle} pfifo limit 1".split())
    foreign = [ForeignQdisc("lsp0", "pfifo")]
    assert list(driver.observe(HOST)) == foreign
    assert driver.apply([], foreign) == {}
    assert list(driver.observe(HOST)) == []
    wanted = TokenBucket("lsp0", MBIT, 4096)
    run(*f"tc qdisc add dev lsp0 root {handle} pfifo limit 1".split())
    assert driver.apply([wanted], foreign) == {}
    assert list(driver.observe(HOST)) == [wanted]


def test_others_devices_are_not_ours_and_a_device_gone_is_done(
    spaces: Namespaces, pair: int, container: str
) -> None:
    """A user's tbf on another device, or inside a container, is not observed."""
    run("ip", "link", "add", "eth7", "type", "veth", "peer", "name", "x")
    for device, netns in (("eth7", ""), ("eth0", container)):
        run(
            "tc",
            "qdisc",
            "add",
            "dev",
            device,
            "root",
            *BY_HAND,
            netns=netns,
        )
    driver = ShaperDriver(Sockets(spaces))
    assert list(driver.observe(HOST)) == []
    assert list(driver.observe(pair)) == []
    gone = TokenBucket("lsp9", MBIT, 4096)
    assert driver.apply([], [gone]) == {}
    assert "lsp9" in driver.apply([gone], [])[gone.key].message
