"""A containerd in a virtual host, driven by its own ctr and, as Kubernetes does, by its CRI."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess

import pytest

from support.polling import until
from support.runtimes.images import write_oci_archive
from support.runtimes.virtual_host import VirtualHost, stop

IMAGE = "linkspan.test/busybox:latest"

# The CRI's word on oom scores and AppArmor is for machines without CAP_SYS_RESOURCE (a small virtual machine).
CONFIG = """
version = 2
root = "{folder}/root"
state = "{folder}/run/containerd"
disabled_plugins = ["io.containerd.internal.v1.restart"]
[grpc]
  address = "{folder}/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "{folder}/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{image}"
  disable_apparmor = true
  restrict_oom_score_adj = true
"""


class Containerd:
    """The engine of one host."""

    def __init__(self, host: VirtualHost) -> None:
        for program in ("containerd", "ctr", "runc"):
            if shutil.which(program) is None:
                pytest.skip(f"{program} is not installed")
        self.host = host
        self.address = host.folder / "containerd.sock"
        (host.folder / "containerd.toml").write_text(CONFIG.format(folder=host.folder, image=IMAGE))
        self.process: subprocess.Popen[str] | None = None
        self.start()
        archive = host.folder / "image.tar"
        write_oci_archive(archive, IMAGE)
        for namespace in ("default", "k8s.io"):
            self.ctr("-n", namespace, "images", "import", str(archive))

    def start(self) -> None:
        """Start containerd and wait until it answers."""
        config = self.host.folder / "containerd.toml"
        self.process = self.host.start("containerd", "--config", config, log="containerd.log")
        until(self.answers, "containerd answers", 60)

    def kill(self) -> None:
        """End containerd as a crash does; its containers continue."""
        assert self.process is not None
        stop(self.process, signal.SIGKILL)

    def answers(self) -> bool:
        """Return whether it is up."""
        return self.host.run("ctr", "-a", self.address, "version", check=False).returncode == 0

    def ctr(self, *argv: str) -> str:
        """Run a ctr command to its end and return what it printed."""
        return self.host.run("ctr", "-a", self.address, *argv).stdout

    def run(self, name: str, *argv: str) -> str:
        """Run a container to its end."""
        return self.ctr("run", "--rm", "--cni", IMAGE, name, *argv)

    def container(self, name: str) -> str:
        """Start a container that stays, and return its IPv4 address."""
        self.ctr("run", "--detach", "--cni", IMAGE, name, "sleep", "1000000")
        return self.address_of(name)

    def execute(self, name: str, command: str) -> str:
        """Run a command in a container that is up."""
        return self.ctr("task", "exec", "--exec-id", f"x{os.urandom(4).hex()}", name, *shlex.split(command))

    def address_of(self, name: str) -> str:
        """Return the address that the container itself sees on eth0."""
        found: list[str] = []

        def seen() -> bool:  # `ctr task exec` may end before it has copied all that was printed
            found[:] = re.findall(r"inet (\S+)/\d+", self.execute(name, "ip -4 addr show dev eth0"))
            return bool(found)

        until(seen, f"{name} has an IPv4 address on eth0")
        return found[0]

    def end(self, name: str) -> None:
        """End a container as an operator does; ctr calls the plugin's DEL here."""
        self.ctr("task", "kill", "--signal", "SIGKILL", name)
        until(lambda: name not in self.running(), f"{name} stopped")
        self.ctr("task", "delete", name)
        self.ctr("container", "delete", name)

    def running(self) -> list[str]:
        """Return the containers whose process runs."""
        lines = self.ctr("task", "list").splitlines()[1:]
        return [line.split()[0] for line in lines if line.endswith("RUNNING")]
