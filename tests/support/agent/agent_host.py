"""Namespaces, a host with a real agent, and words for what tests do with them."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from linkspan.api.client import Client
from linkspan.core import config
from linkspan.kernel.io.namespaces import open_namespace
from linkspan.lab.commands import entering
from support import copies
from support.command_line import is_local, linkspan

_numbers = itertools.count()
PATIENCE = 60.0
REUSED_WITHIN = 20.0
"""Seconds in which the kernel is to give the inode of a namespace that is gone to another one."""


def run(*argv: str, netns: str = "", check: bool = True) -> str:
    """Run a command, in a named namespace where one is given, and return its output.

    /sys is the machine's: the mounts of `ip netns exec` take longer than most commands.
    """
    inside = entering(netns) if netns else ()
    done = subprocess.run((*inside, *argv), capture_output=True, text=True, timeout=120, check=False)
    assert not check or done.returncode == 0, f"{' '.join(argv)}: {done.stdout}{done.stderr}"
    return done.stdout


def pings(netns: str, address: str, *options: str) -> bool:
    """Return whether one ping out of three tries is answered."""
    command = [*entering(netns), "ping", "-c1", "-W1", *options, address]
    return any(subprocess.run(command, capture_output=True, check=False).returncode == 0 for _ in range(3))


def links(netns: str) -> set[str]:
    """Return the names of a namespace's links."""
    return {link["ifname"] for link in json.loads(run("ip", "-j", "link", netns=netns))}


def pings_not(netns: str, address: str) -> bool:
    """Return whether a single ping stays without an answer for a second."""
    command = [*entering(netns), "ping", "-c1", "-W1", address]
    return subprocess.run(command, capture_output=True, check=False).returncode != 0


class World:
    """Named network namespaces, removed again with the processes in them."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._processes: list[subprocess.Popen[bytes]] = []

    def namespace(self, name: str = "") -> str:
        """Make a namespace with lo up, with a new name where none is given, and return its name."""
        name = name or f"lst{os.getpid()}-{next(_numbers)}"
        run("ip", "netns", "add", name)
        self._names.append(name)
        run("ip", "link", "set", "lo", "up", netns=name)
        return name

    def delete(self, name: str) -> None:
        """Remove a namespace during the test, as a runtime does when a container ends."""
        self._names.remove(name)
        run("ip", "netns", "delete", name)

    def reused(self, inode: int) -> str:
        """Make namespaces until one has the inode that another had, and return its name; skips where none has.

        The kernel gives the lowest one that is free. Where something else on the machine has it now, it is waited for.
        """
        deadline = time.monotonic() + REUSED_WITHIN
        while time.monotonic() < deadline:
            name = self.namespace()
            found = Path(f"/run/netns/{name}").stat().st_ino
            if found == inode:
                return name
            if found > inode:
                self.delete(name)
        pytest.skip("the kernel gave the inode to no other namespace")

    def spawn(self, netns: str, *argv: str, **options: Any) -> subprocess.Popen[bytes]:
        """Start a process in a namespace; it is ended with the test."""
        process = subprocess.Popen(["nsenter", f"--net=/run/netns/{netns}", *argv], **options)
        self._processes.append(process)
        return process

    def remove(self) -> None:
        """End the processes, and remove the namespaces."""
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait()
        end_in(self._names)  # what agents left running
        for name in self._names:
            run("ip", "netns", "delete", name, check=False)


def end_in(names: Iterable[str]) -> None:
    """End the processes in these namespaces; one look at /proc takes as long as `ip netns pids` for one of them."""
    found = [Path("/run/netns", name) for name in names]
    inodes = {path.stat().st_ino for path in found if path.exists()}
    for process in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):  # it has ended
            if os.stat(f"/proc/{process}/ns/net").st_ino in inodes:
                os.kill(int(process), signal.SIGKILL)


class Host:
    """A namespace, and the agent that runs in it.

    It serves names only where that is asked for: they come a moment after the first container, and go a moment after
    the last one, which would change what a test compares.
    """

    def __init__(self, world: World, cooldown: float = 60.0, names: bool = False) -> None:
        self.world = world
        self.netns = world.namespace()
        self.folder = Path(tempfile.mkdtemp(prefix="lst-", dir="/run"))
        self.state_dir = self.folder / "state"
        self.socket = self.folder / "run" / "agent.sock"
        self.config = self.folder / "agent.toml"
        self.config.write_text(f"cooldown = {cooldown}\nnames = {str(names).lower()}\n")
        self.log = self.folder / "agent.log"
        self.client = Client(str(self.socket))
        self.process: subprocess.Popen[bytes] | None = None
        self.containers: list[str] = []
        """The namespaces that a fixture attached, for its tests."""

    def start(self, *argv: str, program: Callable[..., None] | None = None) -> None:
        """Start the agent and wait until it says ready.

        It is started as the command line does it once it has read its options. With ``argv``, such as the command line
        itself in a mount namespace, that is started instead, and told the options; ``program`` is the function that it
        calls with them, if it is a Python program that may begin as a copy of this process.
        """
        given = {"state_dir": str(self.state_dir), "socket": str(self.socket)}
        env, copy = dict(os.environ), None
        if argv:
            options = ("--state-dir", given["state_dir"], "--socket", given["socket"])
            words = ("agent", "--config", str(self.config), *options)
            command = [*argv, *words]
            if program is not None:
                copy = copies.agent(self.netns, "", command, env, functools.partial(program, *words))
        else:
            command, variables = config.process(config.checked(config.given(str(self.config), "", given)))
            env |= variables
            copy = copies.agent(self.netns, "", command, env)
        with self.log.open("ab") as log:
            self.process = self.world.spawn(
                self.netns, *command, stdout=subprocess.PIPE, stderr=log, env=env, preexec_fn=copy
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line == b"ready\n", f"the agent said {line!r}: {self.log.read_text()[-3000:]}"

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End the agent by a signal, and wait for its end."""
        assert self.process is not None
        self.process.send_signal(number)
        self.process.wait(PATIENCE)

    def restart(self, number: signal.Signals = signal.SIGTERM, *argv: str) -> None:
        """End the agent and start it (or the command given in its place) again."""
        self.stop(number)
        self.start(*argv)

    def journalled(self) -> list[dict[str, Any]]:
        """Return the endpoints that the journal of an agent that has ended has."""
        with contextlib.closing(sqlite3.connect(self.state_dir / "journal.db")) as database:
            return [json.loads(record) for (record,) in database.execute("SELECT record FROM endpoints")]

    def succeed(self, name: str) -> str:
        """Remove a container's namespace, and return another one that has its inode.

        The agent stands still meanwhile, where it runs: /proc has an inode for each link that it makes, too.
        """
        running = self.process is not None and self.process.poll() is None
        inode = Path(f"/run/netns/{name}").stat().st_ino
        if self.process is not None and running:
            self.process.send_signal(signal.SIGSTOP)
        try:
            self.world.delete(name)
            return self.world.reused(inode)
        finally:
            if self.process is not None and running:
                self.process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """End the agent and remove its folder."""
        if self.process is not None and self.process.poll() is None:
            self.stop(signal.SIGKILL)
        shutil.rmtree(self.folder, ignore_errors=True)

    def cli(self, *words: str, code: int = 0) -> str:
        """Run the command line against this agent, expect an exit code, and return stdout (stderr where it fails)."""
        variables = {"LINKSPAN_SOCKET": str(self.socket)}
        done = linkspan(*words, variables=variables, netns=self.netns if is_local(words) else "")
        assert done.returncode == code, f"{words}: {done.returncode}: {done.stdout}{done.stderr}"
        return done.stdout if code in (0, 3) else done.stderr + done.stdout

    def json(self, *words: str, code: int = 0) -> Any:
        """Run the command line with -o json and return what it prints."""
        return json.loads(self.cli(*words, "-o", "json", code=code))

    def network(self, name: str = "demo", *pools: str, **more: Any) -> dict[str, Any]:
        """Create a network by the API."""
        body = {"name": name, "pools": pools or ("10.201.0.0/16",), **more}
        return dict(self.client.call("POST", "/v1/networks", body))

    def attach(self, netns: str, network: str = "demo", **more: Any) -> dict[str, Any]:
        """Attach a namespace by the API."""
        path = f"/run/netns/{netns}"
        fd = open_namespace(path)
        body = {"id": netns, "network": network, "namespace_fd": fd, "namespace_path": path, **more}
        try:
            return dict(self.client.call("POST", "/v1/attach", body))
        finally:
            os.close(fd)

    def detach(self, identity: str, ifname: str = "") -> int:
        """Detach a container by the API."""
        return int(self.client.call("POST", "/v1/detach", {"id": identity, "ifname": ifname})["detached"])

    def check(self) -> dict[str, Any]:
        """Return what `address check` finds."""
        return dict(self.client.call("GET", "/v1/address-check"))

    def differences(self) -> list[dict[str, Any]]:
        """Return what `diff` finds."""
        found = self.client.call("GET", "/v1/diff")
        return [*found["put"], *found["delete"]]

    def heals(self) -> list[dict[str, Any]]:
        """Return the last repairs."""
        return list(self.client.call("GET", "/v1/status")["heals"])

    def links(self) -> set[str]:
        """Return the names of this host's links, without lo."""
        return links(self.netns) - {"lo"}

    def outside(self, *addresses: str) -> str:
        """Join one more namespace to the host by a cable, 198.51.100.1/24 and 2001:db8::1/64 here and .2 there.

        The other side has no route to any pool: what is not masqueraded gets no answer. Returns its name.
        """
        there = self.world.namespace()
        run(
            "ip",
            "link",
            "add",
            "uplink",
            "netns",
            self.netns,
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            there,
        )
        for netns, device, last in ((self.netns, "uplink", 1), (there, "eth0", 2)):
            run("ip", "addr", "add", f"198.51.100.{last}/24", "dev", device, netns=netns)
            run("ip", "addr", "add", f"2001:db8::{last}/64", "dev", device, "nodad", netns=netns)
            run("ip", "link", "set", device, "up", netns=netns)
        run("ip", "route", "add", "default", "via", "198.51.100.2", netns=self.netns)
        run("ip", "route", "add", "default", "via", "2001:db8::2", netns=self.netns)
        return there


def first_ip(endpoint: dict[str, Any], family: int = 4) -> str:
    """Return an endpoint's address of a family, without its length."""
    addresses: list[str] = endpoint["addresses"]
    return next(a.partition("/")[0] for a in addresses if (":" in a) == (family == 6))


def refused(host: Host, *words: str, inside: tuple[str, ...] = ()) -> str:
    """Start an agent that must not come up, and return the line that it says; ``inside`` leads to a mount namespace."""
    given = ("--config", str(host.config), "--state-dir", str(host.state_dir), "--socket", str(host.socket))
    entered = (*inside, "nsenter", f"--net=/run/netns/{host.netns}")
    done = subprocess.run(
        [*entered, sys.executable, "-m", "linkspan.cli.main", "agent", *given, *words],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 1, done
    assert done.stdout == ""
    said = [line for line in done.stderr.splitlines() if not line.startswith("{")]
    assert len(said) == 1, done.stderr
    assert said[0].startswith("linkspan: ")
    return said[0]


def ids(host: Host) -> set[str]:
    """Return the ids of what is attached."""
    return {e["id"] for e in host.client.call("GET", "/v1/endpoints")}


def clean(host: Host) -> None:
    """Nothing leaks and nothing differs."""
    assert host.check() == {"ok": True, "leaked": [], "duplicate": [], "orphaned": []}
    assert host.differences() == []
