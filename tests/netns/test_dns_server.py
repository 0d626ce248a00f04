"""A network's DNS server on the real machine, started by the command that linkspan uses."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from linkspan.core.model import Network
from linkspan.core.states.programs import File, Process
from linkspan.dns import zone
from linkspan.dns.zone import Server
from linkspan.kernel.probe import dnsmasq
from support.netns.world import World
from support.polling import until

DEMO = Network(name="demo", pools=("10.244.0.0/16",), gateways=("10.244.0.1",), subnet_len={"4": 24}, backend="bridge")


@pytest.mark.skipif(shutil.which("dnsmasq") is None, reason="needs dnsmasq: apt install dnsmasq-base")
def test_a_server_takes_no_file_of_the_machine(tmp_path: Path) -> None:
    """Its log is /dev/null, which dnsmasq would give to the user that it becomes."""
    log = tmp_path / "log"
    program = dnsmasq.found(Path("/run"))
    assert program is not None
    assert program.user != "root"
    states = list(zone.states(DEMO, Server(program), b"", b"", DEMO.prefixes))
    (server,) = [one for one in states if isinstance(one, Process)]
    argv = [word.replace("/dev/null", str(log)) if word.startswith("--log-") else word for word in server.argv]
    for number, file in enumerate(one for one in states if isinstance(one, File)):
        own = tmp_path / str(number)
        own.write_bytes(file.content)
        argv = [word.replace(file.path, str(own)) for word in argv]
    assert f"--log-facility={log}" in argv
    world = World("host", tag="lkn")
    try:
        world.sh("host", "ip link set lo up; ip addr add 10.244.0.1/32 dev lo")
        with subprocess.Popen(["nsenter", f"--net={world.path('host')}", *argv]) as process:
            try:
                until(lambda: log.exists() and "started" in log.read_text(), "the server has started")
                assert log.owner() == "root"
            finally:
                process.kill()
    finally:
        world.close()
