"""A virtual host for real runtimes: network and mount namespaces of its own, kept by one process.

The machine's /etc, /opt and /usr/lib/cni are seen through overlays, so that what is installed into them is installed
in here alone, and goes with the namespace.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from support.polling import until

_KEEPER = """
set -e
mount -t tmpfs tmpfs "$1"
for folder in etc opt usr/lib/cni; do
    [ -d "/$folder" ] || continue
    mkdir -p "$1/$folder/upper" "$1/$folder/work"
    mount -t overlay overlay -o "lowerdir=/$folder,upperdir=$1/$folder/upper,workdir=$1/$folder/work" "/$folder"
done
# runc keeps its containers by name in the one, runtimes their namespaces in the other: two hosts must not share them
for folder in containerd netns; do
    mkdir -p "/run/$folder"
    mount -t tmpfs tmpfs "/run/$folder"
done
ip link set lo up
echo ready
exec sleep infinity
"""


_LOST = """
for place in $(awk -v own="$1/" -v disk="$1/overlay" \
    'index($5, own) == 1 && index($5, disk) != 1 || index($5, "/run/netns/") == 1 {print $5}' /proc/self/mountinfo)
do
    umount --lazy "$place" 2>/dev/null
done
find /run/netns /run/containerd -mindepth 1 -delete
"""


class Engine(Protocol):
    """A runtime that runs commands in its containers."""

    def execute(self, name: str, command: str) -> str:
        """Run a command in a container; fails with an AssertionError."""


def reaches(engine: Engine, container: str, address: str) -> bool:
    """Wait until a container has an answer from an address; a single lost packet is no fault."""
    ping = f"{'ping6' if ':' in address else 'ping'} -c1 -W2 {address}"

    def answered() -> bool:
        with contextlib.suppress(AssertionError):
            engine.execute(container, ping)
            return True
        return False

    until(answered, f"{container} reaches {address}")
    return True


def stop(process: subprocess.Popen[str], number: int = signal.SIGTERM) -> int:
    """End a process that a test started, wait for it, and return its exit code."""
    if process.poll() is None:
        process.send_signal(number)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)
    for stream in (process.stdout, process.stderr, process.stdin):
        if stream is not None:
            stream.close()
    return process.returncode


class VirtualHost:
    """Namespaces, an agent where one is started, and commands that run in there."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.folder = folder
        self.socket = folder / "run" / "agent.sock"
        self.processes: list[subprocess.Popen[str]] = []
        self.agent: subprocess.Popen[str] | None = None
        self.boot_id = ""
        self.settings: dict[str, str] = {}
        """The agent's, besides its folder and socket."""
        (folder / "run").mkdir()
        (folder / "state").mkdir()
        (folder / "overlay").mkdir()
        subprocess.run(["ip", "netns", "add", name], check=True)
        keeper = ["unshare", "--mount", "--propagation", "slave", "sh", "-c", _KEEPER, "sh", str(folder / "overlay")]
        self.keeper = subprocess.Popen(
            ["nsenter", f"--net=/run/netns/{name}", *keeper],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.keeper.stdout is not None
        assert self.keeper.stdout.readline() == "ready\n", "the host's namespaces could not be made"

    def inside(self, *argv: str | Path) -> list[str]:
        """Return the command that runs ``argv`` in the host (`ip netns exec` would hide the cgroups from runc)."""
        return ["nsenter", f"--target={self.keeper.pid}", "--mount", "--net", *map(str, argv)]

    def _environment(self, environment: Mapping[str, str]) -> dict[str, str]:
        return {**os.environ, "LINKSPAN_SOCKET": str(self.socket), **self._booted(), **environment}

    def _booted(self) -> dict[str, str]:
        return {"LINKSPAN_BOOT_ID": self.boot_id} if self.boot_id else {}

    def run(
        self, *argv: str | Path, check: bool = True, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the host to its end; fail with its own words where it fails."""
        done = subprocess.run(
            self.inside(*argv),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            stdin=subprocess.DEVNULL,
            env=self._environment(environment),
        )
        if check:
            said = f"{done.stdout}{done.stderr}"
            assert done.returncode == 0, f"{' '.join(map(str, argv))} ended with {done.returncode}: {said}"
        return done

    def start(self, *argv: str | Path, log: str) -> subprocess.Popen[str]:
        """Start a process in the host; what it says on stderr goes to a file in the host's folder."""
        with (self.folder / log).open("a") as file:
            process = subprocess.Popen(
                self.inside(*argv),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
                env=self._environment({}),
            )
        self.processes.append(process)
        return process

    def serves(self, port: int) -> bool:
        """Return whether a web server answers at a port of the host's 127.0.0.1."""
        fetch = ("busybox", "wget", "-q", "-T", "2", "-O", "-", f"http://127.0.0.1:{port}/hostname")
        return self.run(*fetch, check=False).returncode == 0

    def linkspan(self, *argv: str, check: bool = True) -> Any:
        """Run a linkspan command (without ``check`` one that may fail) and return its JSON."""
        return json.loads(self.run("linkspan", *argv, "--output", "json", check=check).stdout)

    def agent_command(self) -> list[str]:
        """Return the command that starts the agent, with its settings in a file."""
        file = self.folder / "agent.toml"
        file.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in self.settings.items()))
        options = ("--state-dir", self.folder / "state", "--socket", self.socket, "--config", file)
        return ["linkspan", "agent", *map(str, options)]

    def start_agent(self) -> None:
        """Start the agent and wait for its word that it is ready."""
        self.agent = self.start(*self.agent_command(), log="agent.log")
        assert self.agent.stdout is not None
        line = self.agent.stdout.readline()
        assert line.strip() == "ready", f"the agent said {line!r}: {(self.folder / 'agent.log').read_text()}"

    def stop_agent(self) -> None:
        """End the agent as systemd would."""
        assert self.agent is not None
        assert stop(self.agent) == 0, (self.folder / "agent.log").read_text()

    def reboot(self) -> None:
        """End every process, empty /run, and give the host an empty network; /etc, /opt and the disk stay."""
        for pid in self._inhabitants():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in self.processes:
            stop(process)
        self.processes.clear()
        self.run("sh", "-c", _LOST, "sh", self.folder)
        shutil.rmtree(self.folder / "run")
        (self.folder / "run").mkdir()
        subprocess.run(["ip", "netns", "delete", self.name], check=True)
        subprocess.run(["ip", "netns", "add", self.name], check=True)
        before, inside = self.keeper, f"--mount=/proc/{self.keeper.pid}/ns/mnt"
        again = ["sh", "-c", "ip link set lo up; echo ready; exec sleep infinity"]
        self.keeper = subprocess.Popen(
            ["nsenter", inside, f"--net=/run/netns/{self.name}", *again], stdout=subprocess.PIPE, text=True
        )
        assert self.keeper.stdout is not None
        assert self.keeper.stdout.readline() == "ready\n", "the host's network could not be recreated"
        stop(before)
        self.boot_id = str(uuid.uuid4())

    def _inhabitants(self) -> list[int]:
        """Return the processes that see the host's mounts, but its keeper, and all that these began: containers."""
        home = os.readlink(f"/proc/{self.keeper.pid}/ns/mnt")
        parents: dict[int, int] = {}
        found: set[int] = set()
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                    if os.readlink(entry / "ns/mnt") == home:
                        found.add(int(entry.name))
        found.discard(self.keeper.pid)
        while more := {pid for pid, parent in parents.items() if parent in found} - found:
            found |= more
        return sorted(found)

    def close(self) -> None:
        """Take everything away; what lived only in the namespaces goes with them."""
        for process in reversed(self.processes):
            stop(process)
        stop(self.keeper)
        left = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True, check=False)
        for pid in left.stdout.split():  # what the agent left running in there, as it should
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        with contextlib.suppress(subprocess.CalledProcessError):
            subprocess.run(["ip", "netns", "delete", self.name], check=True, capture_output=True)
        shutil.rmtree(self.folder, ignore_errors=True)
