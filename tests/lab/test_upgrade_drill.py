"""Five hosts are upgraded one by one from the release before, and go back again: no ping is lost."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from functools import partial
from itertools import permutations
from pathlib import Path

import pytest

from linkspan import __version__
from linkspan.core.errors import LinkspanError
from linkspan.lab import agents, containers, processes, record, topology, underlay
from linkspan.lab.record import Attachment
from support.lab.cluster_runs import ClusterRun
from support.polling import until
from support.versions import Installed

COUNT = 5
HOSTS = tuple(f"h{number}" for number in range(1, COUNT + 1))
CONTAINERS = tuple(f"c{number}" for number in range(1, COUNT + 1))
RELEASE_BEFORE = "0.1.0"
STARTS = 3
"""Starts of 0.1.0 that may each cost a ping, with those that end because the host's record is still there."""
pytestmark = pytest.mark.skipif(shutil.which("dnsmasq") is None, reason="needs dnsmasq: apt install dnsmasq-base")


class Drill(ClusterRun):
    """A lab whose hosts have a version of their own each, at a place of its own."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.installed: dict[str, Installed] = {}
        for host in HOSTS:
            (folder / host).mkdir()
            self.installed[host] = Installed(folder / host)
            self.installed[host].before()

    def up(self) -> None:
        """Make the lab, with the release before on each host and a container on each."""
        lab = topology.planned(topology.Wishes(lab=self.name, hosts=COUNT, backend="vxlan"))
        lab.save()
        underlay.make(lab)
        for host in lab.hosts:
            underlay.plug(lab, host)
            self.start(host.name)
        wish = {"name": lab.network, "pools": lab.pools, "backend": "vxlan"}
        self.call("h1", "POST", "/v1/networks", wish)
        agents.await_network(lab, lab.hosts, lab.network, leased=False)
        for container in lab.containers:
            container.attachments = [Attachment(lab.network)]
        containers.make(lab, lab.containers)

    def start(self, name: str) -> None:
        """Start a host's agent by the command line that the host has."""
        lab, folder = record.load(self.name), self.folder / name
        host = lab.host(name)
        folder.mkdir(exist_ok=True)
        (folder / "agent.toml").touch()
        options = [f"--{key.replace('_', '-')}={value}" for key, value in agents.options(lab, host).items()]
        argv = [*self.installed[name].command(), "agent", "--config", str(folder / "agent.toml"), *options]
        log, environment = folder / "agent", processes.environment(lab.folder, f"agent/{name}")
        process = processes.start(host.namespace, name, argv, environment, log)
        processes.await_word(process, log, "ready", f"the agent of {name}")

    def stop(self, name: str) -> None:
        """End a host's agent."""
        (pid,) = processes.agents(self.folder, name)
        os.kill(pid, signal.SIGTERM)
        until(lambda: not processes.agents(self.folder, name), f"the agent of {name} ends")

    def upgrade(self, name: str) -> None:
        """Replace the program, as if the upgrade ended there, and let the command do the rest."""
        self.installed[name].now()
        socket = record.load(self.name).socket(name)
        line = [*self.installed[name].command(), "upgrade", "--socket", socket, "--output", "json"]
        with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as command:
            assert command.stderr is not None
            assert any("systemd does not run here" in line for line in command.stderr), "the command says what to do"
            self.stop(name)
            self.start(name)
            said, errors = command.communicate(timeout=240)
        assert command.returncode == 0, said + errors
        assert json.loads(said) == {"done": [f"agent {RELEASE_BEFORE} to {__version__}"], "left": []}

    def go_back(self, name: str) -> None:
        """Replace the program by the release before, and start its agent."""
        self.stop(name)
        self.installed[name].before()
        until(partial(self._starts, name), f"the agent of {name} is ready")
        until(partial(self._knows_all, name), f"{name} knows all others")

    def _starts(self, name: str) -> bool:
        """Start a host's agent, and return whether it is ready; a service is started again, too.

        0.1.0 takes this version's liveness record for another agent's until it expires.
        """
        try:
            self.start(name)
        except LinkspanError as error:
            if "another agent that lives" not in error.message:
                raise
            return False
        return True

    def _knows_all(self, name: str) -> bool:
        told = self.status(name)
        return bool(told["store"]["ok"]) and not told["unreachable"] and not told["drift"]


@pytest.fixture
def drill(tmp_path: Path) -> Iterator[Drill]:
    """Give a lab of five hosts with the release before."""
    made = Drill(tmp_path)
    try:
        made.up()
        yield made
    finally:
        made.run("down")


@pytest.mark.timeout(600)
def test_five_hosts_are_upgraded_and_go_back(drill: Drill) -> None:
    """No ping between containers is lost on the way here. A start of 0.1.0 may cost one at each end: it sets MACs."""
    addresses = {name: drill.address(name) for name in CONTAINERS}
    pairs = list(permutations(CONTAINERS, 2))
    for source, target in pairs:
        until(partial(drill.pings, source, addresses[target]), f"{source} reaches {target}")
    with contextlib.ExitStack() as pings:
        for source, target in pairs:
            pings.enter_context(drill.no_loss(source, addresses[target], most=0))
        for host in HOSTS:
            drill.upgrade(host)
    assert {drill.status(host)["agent"]["version"] for host in HOSTS} == {__version__}
    with contextlib.ExitStack() as pings:
        for source, target in pairs:
            pings.enter_context(drill.no_loss(source, addresses[target], most=2 * STARTS))
        for host in HOSTS:
            drill.go_back(host)
    assert {drill.status(host)["agent"]["version"] for host in HOSTS} == {RELEASE_BEFORE}
    assert {name: drill.address(name) for name in CONTAINERS} == addresses
