"""etcd, one member or several, on loopback in a network namespace of its own."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from linkspan.kernel.io import namespaces
from support.polling import explained, until

_numbers = itertools.count()
PATIENCE = 60.0


def run(*argv: str | Path) -> str:
    """Run a command and return its output."""
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
    return done.stdout


class Member:
    """One etcd process and its data."""

    def __init__(self, folder: Path, number: int, count: int, options: Sequence[str], scheme: str) -> None:
        self.data = folder / f"m{number}"
        port = 2379 + number * 10
        self.client = f"127.0.0.1:{port}"
        self.control = f"{scheme}://127.0.1.1:{port}"
        """Another address of it, for the test's own hands while connections to the first are cut."""
        peers = {each: f"http://127.0.0.1:{2380 + each * 10}" for each in range(count)}
        self.restoring = (
            *("--name", f"m{number}", "--initial-advertise-peer-urls", peers[number]),
            *("--initial-cluster", ",".join(f"m{each}={url}" for each, url in peers.items())),
        )
        self._argv = (
            *("etcd", "--data-dir", str(self.data), "--listen-peer-urls", peers[number], *self.restoring),
            *("--listen-client-urls", f"{scheme}://{self.client},{self.control}"),
            *("--advertise-client-urls", f"{scheme}://{self.client}"),
            *("--logger", "zap", "--log-level", "error", "--heartbeat-interval", "50", "--election-timeout", "500"),
            *("--unsafe-no-fsync", "--auth-token-ttl", "2", "--bcrypt-cost", "4", *options),
        )
        self._log = folder / f"m{number}.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, in the namespace that the test is in."""
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(self._argv, stdout=log, stderr=log)

    def stop(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End it."""
        if self.process:
            self.process.send_signal(number)
            self.process.wait(30)
            self.process = None

    def hang(self, hanging: bool) -> None:
        """Let it stop answering, with its connections open; or continue."""
        assert self.process
        self.process.send_signal(signal.SIGSTOP if hanging else signal.SIGCONT)

    def told(self) -> str:
        """Return the end of its log."""
        return self._log.read_text()[-2000:]


class Members:
    """A cluster of them."""

    def __init__(self, namespace: str, folder: Path, count: int, options: Sequence[str], login: Sequence[str]):
        self.namespace = namespace
        self.folder = folder
        self.login = login
        scheme = "https" if "--cert-file" in options else "http"
        self.members = [Member(folder, number, count, options, scheme) for number in range(count)]

    @classmethod
    @contextlib.contextmanager
    def started(cls, count: int, options: Sequence[str] = (), login: Sequence[str] = ()) -> Iterator[Members]:
        """Start them, and remove them with their namespace and data afterwards."""
        for tool in ("etcd", "etcdctl", "etcdutl"):
            if not shutil.which(tool):
                pytest.skip(f"{tool} is not installed")
        name = f"lkset{os.getpid()}-{next(_numbers)}"
        run("ip", "netns", "add", name)
        folder = Path(tempfile.mkdtemp(prefix="lkset"))
        run("ip", "-n", name, "link", "set", "lo", "up")
        members = cls(name, folder, count, options, login)
        try:
            with members.inside():
                for member in members.members:
                    member.start()
                members.ready()
            yield members
        finally:
            for member in members.members:
                member.stop()
            run("ip", "netns", "delete", name)
            shutil.rmtree(folder)

    def url(self, prefix: str = "", options: str = "") -> str:
        """Return the store's URL."""
        return f"etcd://{','.join(member.client for member in self.members)}{prefix}{options}"

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """Put the main thread, and what it starts, into the namespace."""
        home = namespaces.open_namespace("/proc/self/ns/net")
        there = namespaces.open_namespace(f"/run/netns/{self.namespace}")
        namespaces._setns(there, self.namespace)
        os.close(there)
        try:
            yield
        finally:
            namespaces._setns(home, "home")
            os.close(home)

    def ready(self) -> None:
        """Wait until all answer."""
        with explained(lambda: self._control("endpoint", "health")[1] + "".join(m.told() for m in self.members)):
            until(lambda: self._control("endpoint", "health")[0], "etcd answers", PATIENCE)

    def control(self, *words: str) -> str:
        """Run etcdctl at the first endpoint that answers it."""
        done, told = self._control(*words)
        assert done, told
        return told

    def entries(self) -> int:
        """Return how many entries the cluster's log has had."""
        (member, *_) = json.loads(self.control("endpoint", "status", "-w", "json"))
        return int(member["Status"]["raftIndex"])

    def leads(self, member: Member) -> bool:
        """Tell whether a member says that it leads; one that does not answer does not."""
        argv = ("etcdctl", "--endpoints", member.control, "--dial-timeout", "1s", "--command-timeout", "1s")
        inside = ("nsenter", f"--net=/run/netns/{self.namespace}")
        done = subprocess.run(
            (*inside, *argv, *self.login, "endpoint", "status", "-w", "json"),
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        if done.returncode:
            return False
        (told,) = json.loads(done.stdout)
        return bool(told["Status"]["leader"] == told["Status"]["header"]["member_id"])

    def _control(self, *words: str) -> tuple[bool, str]:
        endpoints = ",".join(member.control for member in self.members)
        argv = ("etcdctl", "--endpoints", endpoints, "--dial-timeout", "1s", *self.login, *words)
        inside = ("nsenter", f"--net=/run/netns/{self.namespace}")
        environment = {**os.environ, "ETCDCTL_API": "3"}
        done = subprocess.run(
            (*inside, *argv), capture_output=True, text=True, timeout=120, check=False, env=environment
        )
        return done.returncode == 0, done.stdout + done.stderr

    def save(self) -> Path:
        """Save a snapshot of the first member."""
        path = self.folder / "snapshot"
        path.unlink(missing_ok=True)
        inside = ("nsenter", f"--net=/run/netns/{self.namespace}")
        run(*inside, "etcdctl", *self.login, "--endpoints", self.members[0].control, "snapshot", "save", path)
        return path

    def restore(self, snapshot: Path) -> None:
        """Stop all, and start them again from a snapshot."""
        for member in self.members:
            member.stop()
            shutil.rmtree(member.data)
            run("etcdutl", "snapshot", "restore", str(snapshot), "--data-dir", str(member.data), *member.restoring)
        for member in self.members:
            member.start()
        self.ready()


def users(members: Members, folder: Path) -> str:
    """Let only users in, one of whom may use /c/; return the options of that one's URL."""
    (folder / "password").write_text("secret of this test\n")
    (folder / "password").chmod(0o600)
    for words in (
        ("user", "add", "root:secret of root"),
        ("user", "grant-role", "root", "root"),
        ("user", "add", "agent:secret of this test"),
        ("role", "add", "agent"),
        ("role", "grant-permission", "agent", "readwrite", "/c/", "--prefix"),
        ("user", "grant-role", "agent", "agent"),
        ("auth", "enable"),
    ):
        members.control(*words)
    members.login = ("--user", "root:secret of root")
    return f"?user=agent&password-file={folder}/password"
