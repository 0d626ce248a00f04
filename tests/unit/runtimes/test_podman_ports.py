"""Ports of a Podman container whose networks may all be internal: known when netavark has gone through them."""

from __future__ import annotations

import asyncio
import os
import subprocess
from pathlib import Path

import pytest
from msgspec.structs import replace

from linkspan.core.event_log import EventLog
from linkspan.core.model import Endpoint, Port
from linkspan.runtimes.podman import podman_service as podman
from linkspan.runtimes.podman.podman_service import Podman
from support.cni.cni_agent import DEMO, FakeAgent

WANTED = (Port("", 8080, 80, "tcp"), Port("", 53, 53, "udp"))


def endpoint(ifname: str, network: str) -> Endpoint:
    """Return an interface of container c1."""
    return Endpoint(id="c1", ifname=ifname, name="web", network=network)


@pytest.mark.parametrize(
    ("later", "told"),
    [
        ([], ["port 80/tcp, 53/udp of web is not published by linkspan: network inside is internal"]),
        (["demo"], []),
        (["gone"], []),
    ],
)
def test_ports_that_no_network_publishes_are_told_when_netavark_has_ended(
    tmp_path: Path, later: list[str], told: list[str]
) -> None:
    """Nothing is reported before, because the container's next network may publish them."""
    agent = FakeAgent(replace(DEMO, name="inside", internal=True), DEMO)
    agent.attached["c1", "eth0"] = endpoint("eth0", "inside")
    event_log = EventLog(tmp_path / "events")

    async def work(netavark: subprocess.Popen[bytes]) -> None:
        assert netavark.stdin is not None
        pidfd = os.pidfd_open(netavark.pid)
        waiting = asyncio.create_task(Podman(agent, event_log)._tell_unpublished(pidfd, "c1", WANTED))
        await asyncio.sleep(0)
        assert not event_log.kept("network")
        for number, name in enumerate(later, 1):
            agent.attached["c1", f"eth{number}"] = endpoint(f"eth{number}", name)
        netavark.stdin.close()
        await waiting

    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as netavark:
        asyncio.run(work(netavark))
    assert [one.what for one in event_log.kept("network")] == told


def test_the_parent_of_a_plugin_is_netavark() -> None:
    """Its end says that all networks are done, and nobody waits for one that is gone."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as plugin:
        parent = podman._open_parent(plugin.pid)
        assert f"Pid:\t{os.getpid()}\n" in Path(f"/proc/self/fdinfo/{parent}").read_text()
        os.close(parent)
    assert podman._open_parent(plugin.pid) == -1
