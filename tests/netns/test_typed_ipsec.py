"""The plan of an IPsec network, typed by hand into bare hosts: associations stand, and containers ping."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from linkspan.core.host_view import Facts
from linkspan.diagnose.plan.plan import commands, endings, ordered
from support.netns.machine_fixtures import needs, run
from support.netns.overlay import Cluster, OverlayHost, network
from support.polling import until

DEMO = network("demo", 77, "ipsec", (4, 6))


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Cluster]:
    """Make two hosts whose secret is in a file."""
    needs("charon-systemd", "swanctl")
    key = tmp_path / "psk"
    key.touch(mode=0o600)
    key.write_text('a key with a "quote", a \\ and a $sign\n')
    cluster = Cluster(2, tmp_path, (4,))
    try:
        for host in cluster.hosts:
            with cluster.world.entered(host.name):
                host.facts = Facts(programs=host.machine.facts().programs)
            host.host = msgspec.structs.replace(host.host, settings={"ipsec.psk-file": str(key)})
        cluster.known([DEMO])
        yield cluster
    finally:
        for host in cluster.hosts:
            for pid in run("ip", "netns", "pids", cluster.world.named(host.name)).split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGTERM)
        cluster.close()


def _typed(cluster: Cluster, host: OverlayHost) -> str:
    states, folder = host.states(), shlex.quote(str(host.folder))
    lines = [line for s in ordered(states) for line in commands(s, cluster.world.by_inode, folder)]
    return "\n".join([*lines, *(command for _, command, _ in endings(states, folder))])


def test_typed_commands_join_two_bare_hosts(pair: Cluster) -> None:
    """Nothing is shown of the key."""
    for host in pair.hosts:
        script = _typed(pair, host)
        assert "quote" not in script
        # The daemon keeps what it is given to write to.
        pair.world.sh(host.name, f"exec >{host.folder}/typed 2>&1\n{script}")
    until(lambda: pair.pings(1, 2, DEMO), "container 1 reaches container 2", 40)
    assert pair.pings(2, 1, DEMO)
