"""A bridge keeps the MTU that it was given, whatever its ports have."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from linkspan.core.addresses import mac
from linkspan.core.states.host import Bridge
from linkspan.kernel.machine import Machine
from support.netns.machine_fixtures import run


@pytest.mark.parametrize("mtu", [1280, 1499, 1500, 9000])
def test_a_bridge_does_not_follow_its_ports(machine: str, tmp_path: Path, mtu: int) -> None:
    """Neither when a port with a smaller MTU comes, nor when the last one goes; also of the kernel's default."""
    host = Machine(tmp_path)
    try:
        bridge = Bridge("ls-demo", mac("02:00:00:00:00:01"), mtu)
        assert host.links.apply([bridge], []) == {}
        run("ip", "link", "add", "p0", "mtu", "1270", "type", "veth", "peer", "name", "p1")
        run("ip", "link", "set", "p0", "master", "ls-demo")
        assert _mtu() == mtu
        run("ip", "link", "delete", "p0")
        assert _mtu() == mtu
        assert list(host.links.observe(0)) == [bridge]
        assert host.links.apply([], [bridge]) == {}
    finally:
        host.close()
        host.processes.close()


def _mtu() -> int:
    (found,) = json.loads(run("ip", "-j", "link", "show", "ls-demo"))
    return int(found["mtu"])
