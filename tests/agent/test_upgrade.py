"""An upgrade of a running host: its helpers continue, whatever the new version has moved in its package."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.agent.agent_host import Host, World, pings, run
from support.polling import until
from support.versions import Installed


def helpers(host: Host) -> dict[str, tuple[int, str]]:
    """Return pid and start time of the agent's helper programs, by name."""
    found = {}
    for pid in map(int, run("ip", "netns", "pids", host.netns).split()):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a command that has ended meanwhile
            environ = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
            owner = next((word for word in environ if word.startswith(f"LINKSPAN_PROCESS={host.state_dir}:")), "")
            if owner and os.getsid(pid) == pid:  # its children have the same environment
                started = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
                found[owner.rpartition(":")[2]] = pid, started
    return found


@pytest.fixture
def host(world: World) -> Iterator[Host]:
    """Give a host with an uplink, whose agent does not run yet."""
    made = Host(world)
    made.outside()
    try:
        yield made
    finally:
        made.close()


def test_an_agent_leaves_no_fast_path_to_an_older_one(host: Host, world: World, tmp_path: Path) -> None:
    """The release before knows none, so nothing would follow containers and policies."""
    installed = Installed(tmp_path)
    installed.before()
    installed.now()
    host.start(*installed.command())
    (gateway,) = host.network("demo", backend="vxlan", options={"fast": "true"})["gateways"]
    name = world.namespace()
    host.attach(name)

    def chains() -> str:
        tables = run("nft", "list", "tables", netns=host.netns)
        return run("nft", "list", "table", "netdev", "linkspan", netns=host.netns) if "netdev" in tables else ""

    until(lambda: "goto out_" in chains(), "the container is on the fast path")
    installed.before()
    host.stop()
    assert chains() == ""
    assert pings(name, gateway)


def test_an_upgrade_keeps_the_ipip_helper(host: Host, world: World, tmp_path: Path) -> None:
    """The helper that the version before started continues: the upgrade interrupts no tunnel."""
    installed = Installed(tmp_path)
    installed.before()
    host.start(*installed.command())
    (gateway,) = host.network("demo", backend="ipip")["gateways"]
    name = world.namespace()
    host.attach(name)
    until(lambda: host.differences() == [], "the agent of the version before has put everything")
    before = helpers(host)
    if not before:
        pytest.skip("the kernel has ipip: no helper runs")
    assert set(before) == {"ipip"}
    host.stop()
    installed.now()
    host.start(*installed.command())
    until(lambda: host.differences() == [], "the agent of this version has put everything")
    assert helpers(host) == before
    assert host.heals() == []
    assert pings(name, gateway)
