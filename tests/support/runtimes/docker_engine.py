"""A dockerd in a virtual host, with a /run/docker of its own, driven by its own command line."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

from support.polling import until
from support.runtimes.images import layer
from support.runtimes.virtual_host import VirtualHost, stop

IMAGE = "busybox"
PLUGIN = "/run/docker/plugins/linkspan.sock"

_ACTIVATION = """
import os, pathlib, socket, sys, time
path, start, *command = sys.argv[1:]
pathlib.Path(path).unlink(missing_ok=True)
listening = socket.socket(socket.AF_UNIX)
listening.bind(path)
listening.listen()
os.dup2(listening.fileno(), 3)
os.set_inheritable(3, True)
print("listening", flush=True)
while not os.path.exists(start):
    time.sleep(0.02)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", "LISTEN_FDNAMES": "docker"}
os.execvp(command[0], command)
"""


def handed_over(host: VirtualHost, go: Path) -> list[str]:
    """Return the command of an agent that is given the plugin's socket, as systemd does.

    It says `listening` once the socket is there; the agent itself begins when there is a file ``go``.
    """
    return [sys.executable, "-c", _ACTIVATION, PLUGIN, str(go), *host.agent_command()]


class Docker:
    """The engine of one host."""

    def __init__(self, host: VirtualHost) -> None:
        self.host = host
        self.folder = host.folder / "docker"
        self.folder.mkdir()
        self.socket = self.folder / "docker.sock"
        self.process: subprocess.Popen[str] | None = None
        host.run("mkdir", "-p", "/run/docker")
        host.run("mount", "-t", "tmpfs", "tmpfs", "/run/docker")
        host.run("mkdir", "-p", "/run/docker/plugins")
        host.settings |= {"docker_socket": PLUGIN, "docker_api": str(self.socket)}
        (self.folder / "none.json").write_text("{}")

    def start(self) -> None:
        """Start dockerd, wait until it answers, and load the image."""
        self.launch()
        self.wait()

    def launch(self) -> None:
        """Start dockerd."""
        argv: list[str | Path] = ["dockerd", "--data-root", self.folder / "data"]
        argv += ["--exec-root", self.host.folder / "run/docker"]
        argv += ["--pidfile", self.folder / "pid", "-H", f"unix://{self.socket}"]
        argv += ["--config-file", self.folder / "none.json", "--bip", "10.251.100.1/24", "--shutdown-timeout", "1"]
        self.process = self.host.start(*argv, log="dockerd.log")

    def wait(self) -> None:
        """Wait until dockerd answers, and load the image where it has none."""
        until(self.answers, "dockerd answers", 60)
        if not self.run("images -q"):
            archive = self.folder / "rootfs.tar"
            archive.write_bytes(layer())
            self.run(f"import {archive} {IMAGE}")

    def stop(self) -> None:
        """End dockerd as systemd would."""
        assert self.process is not None
        stop(self.process)

    def log(self) -> str:
        """Return what dockerd has said."""
        return (self.host.folder / "dockerd.log").read_text()

    def reboot(self) -> None:
        """Let the host reboot; neither dockerd nor an agent runs then."""
        self.host.reboot()
        self.host.run("sh", "-c", f"find /run/docker -mindepth 1 -delete; rm -f {self.folder}/pid {self.socket}")
        self.host.run("mkdir", "-p", "/run/docker/plugins")

    def answers(self) -> bool:
        """Return whether it is up."""
        return self.host.run("docker", "-H", f"unix://{self.socket}", "version", check=False).returncode == 0

    def attempt(self, command: str) -> subprocess.CompletedProcess[str]:
        """Run a docker command that may fail."""
        return self.host.run("docker", "-H", f"unix://{self.socket}", *shlex.split(command), check=False)

    def run(self, command: str) -> str:
        """Run a docker command and return what it printed."""
        return self.host.run("docker", "-H", f"unix://{self.socket}", *shlex.split(command)).stdout.strip()

    def container(self, name: str, options: str = "--network demo") -> None:
        """Start a container that stays."""
        self.run(f"run -d --stop-timeout 1 --name {name} {options} {IMAGE} sleep 1000000")

    def execute(self, name: str, command: str) -> str:
        """Run a command in a container."""
        return self.run(f"exec {name} {command}")

    def address(self, name: str, network: str = "demo") -> str:
        """Return a container's IPv4 address as Docker knows it."""
        found = json.loads(self.run(f"inspect {name}"))[0]["NetworkSettings"]["Networks"][network]
        return str(found["IPAddress"])

    def remove_all(self) -> None:
        """Remove all containers."""
        names = self.run("ps -aq").split()
        if names:
            self.run(f"rm -f {' '.join(names)}")
