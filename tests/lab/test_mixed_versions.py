"""A cluster of two hosts with the version before and with this one works, and an upgrade in place changes nothing."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from linkspan.lab import agents, containers, etcd_servers, processes, record, topology, underlay
from linkspan.lab.record import Attachment
from support.lab.dns_runs import NamesRun
from support.polling import until
from support.versions import Installed

HOSTS = ("h1", "h2")
PAIRS = (("c1", "c2"), ("c2", "c1"))
ETCD = pytest.mark.skipif(shutil.which("etcd") is None, reason="needs etcd: apt install etcd-server")
pytestmark = pytest.mark.skipif(shutil.which("dnsmasq") is None, reason="needs dnsmasq: apt install dnsmasq-base")


class MixedRun(NamesRun):
    """A lab of two hosts, of which ``old`` runs the version before until it is upgraded."""

    def __init__(self, old: str, folder: Path) -> None:
        super().__init__()
        self.old = old
        self._installed = Installed(folder)
        self._installed.before()

    def up(self, backend: str, store: str) -> None:
        """Make the lab host by host: the first makes the network and has a container before the second one joins."""
        lab = topology.planned(topology.Wishes(lab=self.name, hosts=len(HOSTS), backend=backend, store=store))
        lab.save()
        underlay.make(lab)
        for host in lab.hosts:
            underlay.plug(lab, host)
        if store == "etcd":
            etcd_servers.start(lab)
        for host, container in zip(lab.hosts, lab.containers, strict=True):
            self.start(host.name)
            if host is lab.hosts[0]:
                wish = {"name": lab.network, "pools": lab.pools, "backend": backend}
                self.call(host.name, "POST", "/v1/networks", wish)
            agents.await_network(lab, [host], lab.network, leased=False)  # this version claims with the container
            container.attachments = [Attachment(lab.network)]
            containers.make(lab, [container])

    def start(self, host: str) -> None:
        """Start a host's agent from where the host has its version, by that version's command line."""
        lab = record.load(self.name)
        there, folder = lab.host(host), self.folder / host
        if host != self.old:
            agents.start(lab, [there])
            return
        folder.mkdir(exist_ok=True)
        (folder / "agent.toml").touch()
        options = [f"--{name.replace('_', '-')}={value}" for name, value in agents.options(lab, there).items()]
        argv = [*self._installed.command(), "agent", "--config", str(folder / "agent.toml"), *options]
        log, environment = folder / "agent", processes.environment(lab.folder, f"agent/{host}")
        process = processes.start(there.namespace, host, argv, environment, log)
        processes.await_word(process, log, "ready", f"the agent of {host}")

    def upgrade(self) -> None:
        """Replace the version before by this one, at the same place; the host's state stays."""
        (pid,) = processes.agents(self.folder, self.old)
        os.kill(pid, signal.SIGTERM)
        until(lambda: not processes.agents(self.folder, self.old), "the agent of the version before ends")
        self._installed.now()
        self.start(self.old)

    def leases(self, asked: str) -> dict[str, list[str]]:
        """Return each host's blocks, as one host knows them."""
        return {host: self.blocks(host, "demo", asked) for host in HOSTS}

    def places(self) -> dict[str, Any]:
        """Return what each container's interface is: its number, MAC and addresses."""
        found = {name: json.loads(self.inside(name, "ip -j addr show dev eth0"))[0] for name in ("c1", "c2")}
        return {
            name: (link["ifindex"], link["address"], [one["local"] for one in link["addr_info"]])
            for name, link in found.items()
        }

    def work(self) -> None:
        """Wait until both hosts know both leases, reach each other, answer each other's names and have no drift."""
        until(lambda: all(all(self.leases(asked).values()) for asked in HOSTS), "both know both leases")
        for place, other in PAIRS:
            address = self.address(other)
            until(partial(self.pings, place, address), f"{place} reaches {other}")
            until(partial(self.knows, place, f"{other}.demo"), f"{place} knows {other}")
            assert self.ask(place, other).data == [address]
        for host in HOSTS:
            until(partial(self._is_well, host), f"{host} is well")

    def _is_well(self, host: str) -> bool:
        status = self.status(host)
        # Release 0.1.0 has not all of them.
        told = [status.get(name) for name in ("unreachable", "drift", "disputes", "records", "orphans")]
        return bool(status["store"]["ok"]) and not any(told) and not any(self.call(host, "GET", "/v1/diff").values())


@pytest.fixture
def mixed(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MixedRun]:
    """Give a lab with a backend and a store; the version before is on its first host, or on the one that joins."""
    backend, store, old = request.param
    found = MixedRun(old, tmp_path)
    try:
        found.up(backend, store)
        yield found
    finally:
        found.run("down")


@pytest.mark.parametrize(
    "mixed",
    [
        pytest.param(("vxlan", "sqlite", "h1"), id="vxlan-this-joins"),
        pytest.param(("vxlan", "etcd", "h2"), id="vxlan-the-one-before-joins", marks=ETCD),
        pytest.param(("ipip", "sqlite", "h1"), id="ipip-this-joins"),
        pytest.param(("wireguard", "sqlite", "h2"), id="wireguard-the-one-before-joins"),
    ],
    indirect=True,
)
def test_two_versions_share_a_cluster(mixed: MixedRun) -> None:
    """Both keep their leases, reach each other and know each other's names, also while the older one is upgraded."""
    mixed.work()
    leases, places = mixed.leases("h1"), mixed.places()
    assert mixed.leases("h2") == leases
    with contextlib.ExitStack() as pings:
        for place, other in PAIRS:
            pings.enter_context(mixed.no_loss(place, mixed.address(other)))
        mixed.upgrade()
        mixed.work()
    assert [mixed.leases(asked) for asked in HOSTS] == [leases, leases]
    assert mixed.places() == places
