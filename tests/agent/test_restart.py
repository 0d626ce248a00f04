"""A start of the agent on a host with running containers: none of their packets is lost."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.agent.agent_host import Host, World, run
from support.polling import until

MAC = "02:00:00:00:00:01"
NETFILTER = "12"
"""NETLINK_NETFILTER, as /proc/net/netlink shows it."""


@contextlib.contextmanager
def no_loss(netns: str, address: str) -> Iterator[None]:
    """Ping 200 times a second while the block lasts, and fail if an answer is missing."""
    argv = ["ip", "netns", "exec", netns, "ping", "-n", "-i", "0.005", address]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            for _ in range(10):
                process.stdout.readline()
            yield
        finally:
            process.send_signal(signal.SIGINT)
            output = process.stdout.read()
    found = re.search(r"(\d+) packets transmitted, (\d+) received", output)
    assert found, output
    assert int(found[1]) - int(found[2]) <= 1, output  # the last one may be under way


@pytest.fixture
def host(world: World) -> Iterator[Host]:
    """Give a host with an agent."""
    made = Host(world)
    made.outside()
    made.start()
    try:
        yield made
    finally:
        made.close()


def stale(netns: str) -> set[tuple[str, str]]:
    """Return the neighbour entries of a namespace that nobody has used since, by device and address."""
    found = json.loads(run("ip", "-j", "neigh", "show", "nud", "stale", netns=netns))
    return {(entry["dev"], entry["dst"]) for entry in found}


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="bridged"),
        pytest.param({"options": {"mode": "routed"}}, id="routed"),
        pytest.param({"backend": "vxlan"}, id="vxlan"),
    ],
)
def test_a_start_keeps_neighbour_entries(host: Host, world: World, options: dict[str, object]) -> None:
    """The kernel drops a link's entries whenever a MAC is set, even the same one: a start sets none."""
    host.network("demo", **options)
    name = world.namespace()
    attached = host.attach(name)
    until(lambda: host.differences() == [], "everything is put")
    links = json.loads(run("ip", "-j", "link", netns=host.netns))
    ours = [(host.netns, link["ifname"]) for link in links if link["ifname"].startswith("ls")]
    probes = {(netns, device, "192.0.2.1") for netns, device in [*ours, (name, attached["ifname"])]}
    for netns, device, address in probes:
        run("ip", "neigh", "add", address, "lladdr", MAC, "dev", device, "nud", "stale", netns=netns)
    host.stop()
    host.start()
    until(lambda: host.differences() == [], "the next agent has put everything")
    assert {(netns, *entry) for netns in (host.netns, name) for entry in stale(netns)} >= probes
    assert host.heals() == []


def test_new_rules_are_filled_before_they_are_in_force(host: Host, world: World) -> None:
    """A version with one more guard than the last one lets each packet of running containers pass."""
    (gateway,) = host.network("demo")["gateways"]
    names = [world.namespace() for _ in range(8)]
    for name in names:
        host.attach(name)
    until(lambda: host.differences() == [], "everything is put")
    with no_loss(names[0], gateway):
        host.stop()
        run("nft", "flush chain bridge linkspan port", netns=host.netns)  # as a version without this guard left it
        for name in ("macs", "senders4", "senders6"):
            run("nft", f"delete set bridge linkspan {name}", netns=host.netns)
        host.start()
        until(lambda: host.differences() == [], "the next agent has put everything")
    assert "macs" in run("nft", "list chain bridge linkspan port", netns=host.netns)


def test_an_entry_of_a_rule_that_was_there_does_not_wait_for_the_others(host: Host, world: World) -> None:
    """A guard that the last agent did not need is there before the devices and routes that need it now."""
    host.network("demo")
    host.attach(world.namespace())
    until(lambda: host.differences() == [], "everything is put")
    host.stop()
    run("nft", "flush chain bridge linkspan port", netns=host.netns)  # is put again with the rest
    run("nft", "flush set inet linkspan pools4", netns=host.netns)
    argv = ["ip", "netns", "exec", host.netns, "stdbuf", "-oL", "nft", "monitor"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as monitor:
        assert monitor.stdout is not None
        try:
            until(lambda: _netfilter_listener(monitor.pid), "the monitor listens")
            host.start()
            until(lambda: host.differences() == [], "the next agent has put everything")
        finally:
            monitor.terminate()
        seen = [line for line in monitor.stdout if " linkspan " in line]
    entry = next(at for at, line in enumerate(seen) if "add element inet linkspan pools4" in line)
    rule = next(at for at, line in enumerate(seen) if "add rule bridge linkspan port" in line)
    assert entry < rule, seen


def _netfilter_listener(pid: int) -> bool:
    """Return whether a process has joined the multicast groups of nf_tables."""
    rows = [line.split() for line in Path(f"/proc/{pid}/net/netlink").read_text().splitlines()[1:]]
    return any(row[1] == NETFILTER and int(row[3], 16) for row in rows)
