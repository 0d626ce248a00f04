"""A lab of bare hosts, in which a test types `cluster init` and `cluster join` as a user does."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from linkspan.cluster.founding.trust_files import TrustFiles
from linkspan.core.errors import LinkspanError
from linkspan.core.store_url import OWN_CLIENTS
from linkspan.lab import inside, processes, record
from linkspan.lab.commands import entering
from support.command_line import is_local
from support.lab.cluster_runs import ClusterRun
from support.lab.lab_runs import COMMAND
from support.polling import explained, until


class BareRun(ClusterRun):
    """Hosts with nothing but the program.

    ``wrapped`` has, by host, the words before the command that starts its agent.
    """

    def __init__(self) -> None:
        super().__init__()
        self.wrapped: dict[str, tuple[str, ...]] = {}

    def up(self, hosts: int = 3) -> None:
        """Make the hosts."""
        self.run("up", f"--bare --hosts {hosts}")

    def exec(self, place: str, command: str, code: int = 0) -> str:
        """Run a command in a host or container; one that may start an agent begins with the host's words, too."""
        words, before = command.split(), self.wrapped.get(place)
        if before is None or words[:2] != ["linkspan", "cluster"] or not is_local(words[1:]):
            return super().exec(place, command, code)
        lab = record.load(self.name)
        argv = inside.command(lab, place, [*before, sys.executable, "-m", "linkspan.cli.main", *words[1:]])
        environment = inside.environment(lab, place)
        done = subprocess.run(argv, capture_output=True, text=True, timeout=180, check=False, env=environment)
        assert code in (done.returncode, -1), f"{command} on {place}: {done.returncode}: {done.stdout}{done.stderr}"
        return done.stdout

    def killed(self, host: str, command: str, there: Callable[[], bool]) -> None:
        """Type a command, kill the agent and the command as soon as something is there, and start an agent."""
        lab = record.load(self.name)
        argv = inside.command(lab, host, [*COMMAND[:-1], *command.split()])
        with subprocess.Popen(argv, env=inside.environment(lab, host), stderr=subprocess.DEVNULL) as process:
            while not there() and process.poll() is None:
                time.sleep(0.001)
            self.run("break", f"{host} agent-kill", code=-1)
            process.kill()
        self.run("mend", host)

    def init(self, host: str = "h1", options: str = "") -> str:
        """Begin a cluster, and return the token."""
        return str(json.loads(self.exec(host, f"linkspan cluster init {options} -o json"))["token"])

    def join(self, host: str, token: str) -> dict[str, Any]:
        """Let a host join, and return what it prints."""
        found: dict[str, Any] = json.loads(self.exec(host, f"linkspan cluster join {token} -o json"))
        return found

    def refused(self, host: str, command: str) -> str:
        """Return the message and hint of a command of linkspan that must fail."""
        error = json.loads(self.exec(host, f"linkspan {command} -o json", code=1))["error"]
        return f"{error['message']}; {error['hint']}"

    def token(self, options: str = "", host: str = "h1") -> dict[str, Any]:
        """Make a token, and return it with what it is."""
        found: dict[str, Any] = json.loads(self.exec(host, f"linkspan cluster token create {options} -o json"))
        return found

    def members(self, host: str = "h1") -> dict[str, str]:
        """Return the role of each healthy host, by the agent's own answer: this is asked again and again."""
        found = self.call(host, "GET", "/v1/cluster/members")
        return {one["host"]: one["role"] for one in found if one["healthy"]}

    def hurry(self, host: str = "h1", **settings: float) -> None:
        """Let voters change within seconds: the cluster's settings of voting, as they are in the vault."""
        quick = {"steady": 1.0, "replace_after": 5.0, **settings}
        words = ["put", "/linkspan-trust/voting/settings", json.dumps(quick)]
        until(lambda: self.own_etcdctl(words, host).returncode == 0, "etcd takes the settings")

    def roles(self, host: str = "h1") -> dict[str, str]:
        """Return the role of each host, healthy or not; none if the agent does not answer."""
        try:
            found = self.call(host, "GET", "/v1/cluster/members")
        except LinkspanError:
            return {}
        return {one["host"]: one["role"] for one in found}

    def voters(self, *hosts: str, asked: str = "h1") -> None:
        """Wait until these hosts are the voters, and healthy."""

        def found() -> object:
            try:
                roles = self.members(asked)
            except LinkspanError:  # its agent does not answer
                return {}
            return {host for host, role in roles.items() if role == "voter"} == {*hosts} or roles

        def are() -> bool:
            return found() is True

        with explained(lambda: f"{self.roles(asked)} {self.exec(asked, 'linkspan events', code=-1)[-1500:]}"):
            until(are, f"{', '.join(hosts)} are the voters")

    def files(self, host: str) -> TrustFiles:
        """Return a host's files of trust."""
        return TrustFiles(self.folder / host / "state")

    def host_id(self, host: str) -> str:
        """Return a host's id."""
        return (self.folder / host / "state" / "host-id").read_text().strip()

    def own_etcd(self, host: str = "h1") -> list[int]:
        """Return the pids of the etcd that a host runs."""
        found = processes.helpers(self.folder, host)
        return [pid for pid in found if Path(f"/proc/{pid}/comm").read_text().strip() == "etcd"]

    def agents(self, host: str) -> list[int]:
        """Return the pids of a host's agents."""
        return processes.agents(self.folder, host)

    def own_etcdctl(
        self, words: str | list[str], host: str = "h1", user: str = "root"
    ) -> subprocess.CompletedProcess[str]:
        """Run ``etcdctl`` on a host, with its certificate, as root of etcd or with the host's own user."""
        more = words.split() if isinstance(words, str) else words
        argv = [*self.etcdctl_words(host, user), "--command-timeout", "3s", *more]
        return subprocess.run(argv, capture_output=True, text=True, check=False)

    def etcdctl_words(self, host: str, user: str) -> list[str]:
        """Return the command with which ``etcdctl`` begins there."""
        files = self.files(host)
        name = "root" if user == "root" else f"host-{(files.state_dir / 'host-id').read_text().strip()}"
        password = (files.root_password if user == "root" else files.password).read_text().strip()
        argv = [*entering(f"{self.name}-{host}"), "env", "ETCDCTL_API=3", "etcdctl"]
        own = f"https://192.0.2.{host.removeprefix('h')}:{OWN_CLIENTS}"
        argv += ["--endpoints", own if files.voter() is not None else f"https://192.0.2.1:{OWN_CLIENTS}"]
        argv += ["--cacert", str(files.authority), "--cert", str(files.certificate), "--key", str(files.key)]
        return [*argv, "--user", f"{name}:{password}"]
