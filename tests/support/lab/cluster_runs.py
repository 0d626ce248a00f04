"""A cluster in the lab, spoken to by its agents' sockets: quicker than a command line for each question."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from linkspan.api.client import Client
from linkspan.lab import credentials, etcd_servers, processes, record
from linkspan.lab.commands import entering
from linkspan.lab.topology import ETCD_PORT
from support.lab.lab_runs import LabRun
from support.polling import SHARED, explained, until

ANSWERED_WITHIN = 2.0 * SHARED
"""Seconds: by then an answer does not come late, it is missing."""


class ClusterRun(LabRun):
    """A lab whose hosts share a store."""

    def call(self, host: str, method: str, path: str, body: object = None) -> Any:
        """Ask a host's agent."""
        return Client(record.load(self.name).socket(host)).call(method, path, body)

    def status(self, host: str) -> dict[str, Any]:
        """Return what a host's agent says of itself."""
        found: dict[str, Any] = self.call(host, "GET", "/v1/status")
        return found

    def not_well(self, host: str) -> str:
        """Return all problems in a host's status, as text."""
        told = self.status(host)
        store = told["store"] | {"etcd": None}  # it names the host that compacted last, which is no problem
        return json.dumps([told["unreachable"], store, told["drift"]])

    def host(self, name: str, asked: str = "h1") -> dict[str, Any]:
        """Return what an agent knows of a host."""
        found: dict[str, Any] = self.call(asked, "GET", f"/v1/hosts/{name}")
        return found

    def blocks(self, name: str, network: str, asked: str = "h1") -> list[str]:
        """Return a host's blocks in a network."""
        leases = self.host(name, asked)["leases"]
        return [block for lease in leases if lease["network"] == network for block in lease["prefixes"]]

    def create(self, network: str, pool: str, **more: object) -> dict[str, Any]:
        """Create a network on h1, and wait until h2 and h3 have their place in it."""
        wish = {"name": network, "pools": [pool], "backend": "vxlan", **more}
        found: dict[str, Any] = self.call("h1", "POST", "/v1/networks", wish)
        self.joined(network)
        return found

    def joined(self, network: str, hosts: tuple[str, ...] = ("h1", "h2", "h3")) -> None:
        """Wait until every host sees everybody's lease in a network."""

        def all_in() -> bool:
            return all(
                {one["network"] for one in self.host(host, asked)["leases"]} >= {network}
                for host in hosts
                for asked in hosts
            )

        until(all_in, f"{', '.join(hosts)} are in network {network}")

    def delete(self, network: str) -> None:
        """Delete a network."""
        self.call("h1", "DELETE", f"/v1/networks/{network}?force")

    @contextlib.contextmanager
    def timed(self, host: str, module: ModuleType, **seconds: float) -> Iterator[None]:
        """Beside other tests, let a host's agent have other times for a while: these constants of a module.

        A test that is run by itself has the real ones: its agents are no copies of its process (support/copies.py).
        """
        if SHARED == 1:
            yield
            return
        with pytest.MonkeyPatch.context() as patched:
            for name, value in seconds.items():
                patched.setattr(module, name, value)
            self.restarted(host)
            try:
                yield
            finally:
                patched.undo()
                self.restarted(host)

    def restarted(self, host: str) -> None:
        """Kill a host's agent, and start another one."""
        self.run("break", host, "agent-kill")
        self.run("mend", host)

    def etcdctl(self, *words: str, given: str = "", port: int = ETCD_PORT) -> str:
        """Run ``etcdctl`` beside the lab's etcd; a value that is ``given`` comes by its standard input."""
        lab = record.load(self.name)
        argv = [*entering(lab.switch), "etcdctl", *words]
        env = credentials.environment(lab, f"127.0.0.1:{port}")
        env["PATH"] = "/usr/bin:/bin:/usr/sbin:/sbin:/usr/local/bin"
        return subprocess.run(argv, input=given, capture_output=True, text=True, check=True, env=env).stdout

    def keys(self, part: str) -> list[str]:
        """Return etcd's keys that have ``part`` in them."""
        return [k for k in self.etcdctl("get", "", "--from-key", "--keys-only").split() if part in k]

    def etcd(self) -> int:
        """Return the pid of the lab's etcd."""
        (pid,) = processes.of_lab(self.folder, lambda role, _environ: role == "etcd")
        return pid

    def restore(self, backup: Path) -> None:
        """Exchange etcd's data for those of a snapshot, as an operator does."""
        os.kill(self.etcd(), signal.SIGKILL)
        until(
            lambda: not list(processes.of_lab(self.folder, lambda role, _environ: role == "etcd")),
            "etcd ended",
        )
        shutil.rmtree(self.folder / "etcd")
        peer = "http://127.0.0.1:2380"
        words = ("--name", "lab", "--initial-cluster", f"lab={peer}", "--initial-advertise-peer-urls", peer)
        self.etcdctl("snapshot", "restore", str(backup), "--data-dir", str(self.folder / "etcd"), *words)
        etcd_servers.start(record.load(self.name))

    def ip(self, host: str, words: str) -> str:
        """Run ``ip`` in a host."""
        return self.inside(host, f"ip {words}")

    def inside(self, host: str, command: str) -> str:
        """Run a command in a host's namespace, without the lab's command line; /sys is the machine's."""
        argv = [*entering(f"{self.name}-{host}"), *command.split()]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command} on {host}: {done.stderr}"
        return done.stdout

    def address(self, container: str) -> str:
        """Return a container's first address."""
        found = next(c for c in record.load(self.name).containers if c.name == container)
        return found.attachments[0].addresses[0].partition("/")[0]

    @contextlib.contextmanager
    def no_loss(self, source: str, address: str, *, most: int = 1) -> Iterator[None]:
        """Ping all the while, and fail where more than ``most`` answers were missing.

        On a busy machine answers come late: the ping goes on until a request is answered that was sent after the end.
        """
        argv = [*entering(f"{self.name}-{source}"), "ping", "-D", "-i", "0.05", "-W", "1", address]
        with tempfile.NamedTemporaryFile() as file, subprocess.Popen(argv, stdout=file, stderr=file) as process:
            output = Path(file.name)
            try:
                yield
                ended = time.time()
                with explained(lambda: output.read_text()[-300:]):
                    until(
                        lambda: any(sent > ended for sent in _answered(output).values()),
                        f"{address} answers {source} at the end",
                        ANSWERED_WITHIN,
                    )
            finally:
                process.send_signal(signal.SIGINT)
                process.wait()
            answered, said = _answered(output), output.read_text()[-300:]
        lost = set(range(1, max(answered) + 1)) - answered.keys()
        assert len(lost) <= most, (sorted(lost), said)


def _answered(output: Path) -> dict[int, float]:
    """Return when requests were sent that a ``ping -D`` has had answers to, in seconds since the epoch, by number."""
    found = re.findall(r"^\[([\d.]+)\] .*icmp_seq=(\d+) .*time=([\d.]+) ms", output.read_text(), re.MULTILINE)
    return {int(number): float(at) - float(took) / 1000 for at, number, took in found}
