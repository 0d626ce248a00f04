"""A lab whose etcd has three members, any of which a test may freeze or kill."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from linkspan.lab import agents, etcd_servers, processes, record
from linkspan.lab.record import Host, Lab
from linkspan.lab.topology import ETCD_PORT, credential, store_url
from support.lab.dns_runs import NamesRun
from support.polling import until

MORE = {"m2": 2389, "m3": 2399}
"""The members beside the lab's own one, and where clients reach them; other members do at the next port."""
HOSTS = ("h1", "h2", "h3")


class EtcdRun(NamesRun):
    """The lab."""

    def __init__(self) -> None:
        super().__init__()
        self._started: dict[str, subprocess.Popen[bytes]] = {}

    def up(self, patched: pytest.MonkeyPatch) -> None:
        """Make three hosts and an etcd, add members to that, and have the agents know of all of them."""
        # Else etcd takes a further member only where the last one has been connected for five seconds.
        patched.setenv("ETCD_STRICT_RECONFIG_CHECK", "false")
        self.run("up", "--backend vxlan --store etcd")
        lab = record.load(self.name)
        for name, port in MORE.items():
            self.etcdctl("member", "add", name, f"--peer-urls=http://127.0.0.1:{port + 1}")
            self._start(lab, name, port)
            until(lambda port=port: self._said(port), f"{name} answers")
        patched.setattr(agents, "store_url", _of_all)
        for host in HOSTS:
            self.run("break", host, "agent-kill")
        self.start(*HOSTS)

    def start(self, *names: str) -> None:
        """Start hosts' agents again."""
        lab = record.load(self.name)
        hosts = [host for host in lab.hosts if host.name in names]
        agents.start(lab, hosts)
        for host in hosts:
            host.broken = []
        lab.save()

    def _start(self, lab: Lab, name: str, port: int) -> None:
        urls = {"lab": 2380, **{each: MORE[each] + 1 for each in self._started}, name: port + 1}
        cluster = ",".join(f"{each}=http://127.0.0.1:{number}" for each, number in urls.items())
        ca, cert, key = (str(credential(lab, one)) for one in ("ca.pem", "server.pem", "server.key"))
        argv = [
            *("etcd", "--name", name, "--data-dir", str(lab.folder / f"etcd-{name}")),
            *("--listen-client-urls", f"https://0.0.0.0:{port}", "--advertise-client-urls", f"https://127.0.0.1:{port}"),
            *("--listen-peer-urls", f"http://127.0.0.1:{port + 1}"),
            *("--initial-advertise-peer-urls", f"http://127.0.0.1:{port + 1}"),
            *("--initial-cluster", cluster, "--initial-cluster-state", "existing"),
            *("--cert-file", cert, "--key-file", key, "--trusted-ca-file", ca, "--client-cert-auth"),
            *("--bcrypt-cost", "4", "--unsafe-no-fsync", "--log-level", "warn"),
        ]
        environment = processes.environment(lab.folder, f"etcd/{name}")
        self._started[name] = processes.start(lab.switch, "", argv, environment, lab.folder / f"etcd-{name}-server")

    def _said(self, port: int) -> dict[str, Any]:
        """Return what the member at a port says of itself, nothing where it does not answer."""
        words = ("--command-timeout", "1s", "endpoint", "status", "-w", "json")
        try:
            (told,) = json.loads(self.etcdctl(*words, port=port))
        except subprocess.CalledProcessError:
            return {}
        found: dict[str, Any] = told["Status"]
        return found

    def stands(self) -> tuple[int, int]:
        """Return how many entries etcd's log has had, and the revision; without a login, which would be an entry."""
        said = json.loads(etcd_servers.ask(record.load(self.name), "POST", "/v3/maintenance/status", {}))
        return int(said["raftIndex"]), int(said["header"]["revision"])

    def leader(self) -> str:
        """Return the name of the member that leads: ``lab`` is the lab's own."""
        ports = {"lab": ETCD_PORT, **MORE}

        def found() -> list[str]:
            said = {name: self._said(port) for name, port in ports.items()}
            return [name for name, one in said.items() if one and one["leader"] == one["header"]["member_id"]]

        until(found, "etcd has a leader")
        return found()[0]

    def give_leadership(self, name: str) -> None:
        """Have a member of the test's own lead."""
        wanted = {m: self._said(port)["header"]["member_id"] for m, port in MORE.items()}[name]
        leads = {"lab": ETCD_PORT, **MORE}[self.leader()]
        if leads != MORE[name]:
            self.etcdctl("move-leader", f"{wanted:x}", port=leads)
        until(lambda: self.leader() == name, f"{name} leads")

    @contextlib.contextmanager
    def frozen(self, name: str) -> Iterator[None]:
        """Let a member of the test's own do nothing meanwhile, with its connections open."""
        pid = self._pid(name)
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    def kill(self, name: str) -> None:
        """End a member of the test's own."""
        os.kill(self._pid(name), signal.SIGKILL)
        self._started[name].wait(30)

    def _pid(self, name: str) -> int:
        (pid,) = processes.of_lab(self.folder, lambda role, _environ: role == f"etcd/{name}")
        return pid

    def revive(self, name: str) -> None:
        """Start it again, with its data."""
        self._start(record.load(self.name), name, MORE[name])
        until(lambda: self._said(MORE[name]), f"{name} answers")

    def well(self) -> bool:
        """Tell whether each host takes all for living."""
        return all(set(self.states(host).values()) == {"alive"} for host in HOSTS)

    def states(self, asked: str) -> dict[str, str]:
        """Return the state of each host as one of them sees it."""
        return {one["name"]: one["state"] for one in self.call(asked, "GET", "/v1/hosts")}


def _of_all(lab: Lab, host: Host) -> str:
    """Return the store's URL with all members in it."""
    url = store_url(lab, host)
    address = url.removeprefix("etcd://").partition(f":{ETCD_PORT}/")[0]
    more = "".join(f",{address}:{port}" for port in MORE.values())
    return url.replace(f":{ETCD_PORT}/", f":{ETCD_PORT}{more}/", 1)
