"""Bandwidth limits, announcements of addresses that are given again, and the limit of a bridge's ports."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable, Iterator

import pytest

from linkspan.core.errors import Exhausted
from linkspan.kernel.drivers.links import BRIDGE_PORTS
from support.agent.agent_host import Host, World, pings, run
from support.agent.stage import Container, Stage, options, staged
from support.agent.traffic import capturing, transfer
from support.polling import HEALED_WITHIN, until

MBIT = 1_000_000
SIZE = 500_000
"""Bytes of a transfer: half a second at 8 Mbit/s, which is sixteen times the burst."""


@pytest.fixture(scope="module", params=["bridged", "routed"])
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    """Return a host for the measurements."""
    with staged(request.param) as made:
        yield made


@pytest.mark.parametrize("limited", ["ingress", "egress"])
def test_a_limit_holds_in_its_direction_alone(stage: Stage, limited: str) -> None:
    """The rate limits what the container receives (ingress) or sends (egress), and leaves the other direction free."""
    container: Container = stage.attach(bandwidth={f"{limited}Rate": 8 * MBIT})
    host, gateway = stage.host.netns, stage.gateway("demo", 4)

    def held() -> bool:
        """Return whether the limit holds, and the other direction is free."""
        ingress = transfer(host, container.netns, container.ip(), SIZE)
        egress = transfer(container.netns, host, gateway, SIZE)
        slow, fast = (ingress, egress) if limited == "ingress" else (egress, ingress)
        return 0.7 < slow * MBIT / SIZE < 10 and fast < slow / 4  # a second for a megabyte

    assert held()
    assert stage.host.differences() == []
    stage.host.restart(signal.SIGKILL)
    assert stage.host.differences() == []
    assert held()
    assert stage.host.detach(container.netns) == 1


def test_a_limit_is_asked_for_by_the_command_line_and_shown(stage: Stage) -> None:
    """`attach --bandwidth` limits both directions; `endpoint show` and `plan` have it, and a label changes it."""
    host, netns = stage.host, stage.world.namespace()
    told = host.cli("attach", netns, "--network", "demo", "--name", "slow", "--bandwidth", "in=8M,out=500k")
    assert told.rstrip().endswith(", bandwidth in=8M,out=500k")
    shown = host.cli("endpoint", "show", "slow").splitlines()
    assert [line.split()[-2:] for line in shown] == [["BANDWIDTH", "LABELS"], ["in=8M,out=500k", "-"]]
    (one,) = host.json("endpoint", "show", "slow")
    assert (one["bandwidth"]["ingressRate"], one["bandwidth"]["egressRate"]) == (8 * MBIT, 500_000)
    planned = [line for line in host.cli("plan").splitlines() if "tbf" in line]
    assert sorted("rate 500000bit" in line for line in planned) == [False, True]
    host.cli("endpoint", "label", "slow", "linkspan.bandwidth=in=1M")
    assert host.json("endpoint", "show", "slow")[0]["bandwidth"]["ingressRate"] == MBIT
    assert ["rate 1000000bit" in line for line in host.cli("plan").splitlines() if "tbf" in line] == [True]
    assert host.differences() == []
    host.cli("endpoint", "label", "slow", "linkspan.bandwidth-")
    assert host.json("endpoint", "show", "slow")[0]["bandwidth"] is None
    assert "tbf" not in run("tc", "qdisc", "show", netns=netns) + run("tc", "qdisc", "show", netns=host.netns)
    assert "is not a rate" in host.cli("endpoint", "label", "slow", "linkspan.bandwidth=in=fast", code=1)
    assert host.detach(netns) == 1
    refused = host.cli("attach", netns, "--network", "demo", "--bandwidth", "in=20MB", code=1)
    assert "bandwidth '20MB' is not a rate; write bits a second" in refused


def test_a_limit_that_somebody_removes_comes_back(stage: Stage) -> None:
    """At the host's end of the pair: the kernel tells of it, and the healer says what it put back."""
    container: Container = stage.attach(bandwidth={"ingressRate": 8 * MBIT})
    run("tc", "qdisc", "del", "dev", container.port, "root", netns=stage.host.netns)
    until(
        lambda: "tbf" in run("tc", "qdisc", "show", "dev", container.port, netns=stage.host.netns),
        "the limit is back",
        HEALED_WITHIN,
    )
    until(lambda: any(heal["kind"] == "TokenBucket" for heal in stage.host.heals()), "the heal is told")
    assert stage.host.detach(container.netns) == 1


def test_an_address_used_anew_with_another_mac_is_announced(
    world: World, container: Callable[[], str]
) -> None:
    """Neighbours see a gratuitous ARP and an unsolicited advertisement, and reach the new holder at once."""
    host = Host(world, cooldown=0)
    host.start()
    try:
        host.network("demo", "10.201.0.0/16", "fd00:201::/64")
        watcher, first, second = container(), container(), container()
        host.attach(watcher)
        ips = ["10.201.0.77", "fd00:201::77"]
        host.attach(first, ips=ips, mac="02:00:00:00:00:01")
        assert all(pings(watcher, ip) for ip in ips)
        assert host.detach(first) == 1
        with capturing(watcher, "eth0") as arp, capturing(watcher, "eth0") as advertisement:
            host.attach(second, ips=ips, mac="02:00:00:00:00:02")
            mac, ip = bytes.fromhex("020000000002"), socket.inet_aton(ips[0])
            assert arp.sees(mac + ip + bytes(6) + ip)
            target = socket.inet_pton(socket.AF_INET6, ips[1])
            assert advertisement.sees(b"\x20\0\0\0" + target + b"\2\1" + mac)
        for address in ips:
            until(
                lambda address=address: "02:00:00:00:00:02" in run("ip", "neigh", "show", address, netns=watcher),
                "its MAC",
            )
            assert pings(watcher, address)
    finally:
        host.close()


def test_a_bridge_that_is_full_is_an_error_that_says_so(host: Host, container: Callable[[], str]) -> None:
    """With 1,023 ports on the bridge the next attach names the bridge, the limit and the way out."""
    host.network("demo", "10.201.0.0/16")
    host.network("flat", "10.202.0.0/16", options=options("routed"))
    batch = host.folder / "batch"
    pairs = range(BRIDGE_PORTS // 2 + 1)  # both ends are ports, and stay down
    made = [f"link add d{n} master ls-demo type veth peer name e{n}" for n in pairs]
    batch.write_text("\n".join(made + [f"link set e{n} master ls-demo" for n in pairs[1:]]))
    run("ip", "-batch", str(batch), netns=host.netns)
    netns = container()
    with pytest.raises(
        Exhausted, match=r"bridge ls-demo has no port left \(a bridge takes 1,023\)"
    ) as refused:
        host.attach(netns)
    assert "mode=routed" in refused.value.hint
    assert "eth0" not in run("ip", "link", netns=netns)
    assert not [name for name in host.links() if name.startswith("lsp")]
    assert host.check()["ok"]
    host.attach(netns, "flat")
    run("ip", "link", "del", "d0", netns=host.netns)
    host.attach(container())
