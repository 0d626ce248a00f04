"""Podman in a virtual host, with storage and networks of its own."""

from __future__ import annotations

import json
import shlex
import subprocess

from support.polling import until
from support.runtimes.images import layer
from support.runtimes.virtual_host import VirtualHost

IMAGE = "localhost/busybox"

CONTAINERS = """
[containers]
default_ulimits = []
log_driver = "k8s-file"
[network]
network_backend = "netavark"
network_config_dir = "{folder}/networks"
firewall_driver = "nftables"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
tmp_dir = "{folder}/tmp"
static_dir = "{folder}/static"
volume_path = "{folder}/volumes"
"""
STORAGE = """
[storage]
driver = "overlay"
graphroot = "{folder}/graph"
runroot = "{folder}/run"
"""


class Podman:
    """The engine of one host."""

    def __init__(self, host: VirtualHost) -> None:
        self.host = host
        self.folder = host.folder / "podman"
        self.folder.mkdir()
        self.environment = {
            "CONTAINERS_CONF": str(self.folder / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(self.folder / "storage.conf"),
            "PODMAN_IGNORE_CGROUPSV1_WARNING": "1",
        }
        host.settings["podman_networks"] = str(self.folder / "networks")
        (self.folder / "containers.conf").write_text(CONTAINERS.format(folder=self.folder))
        (self.folder / "storage.conf").write_text(STORAGE.format(folder=self.folder))
        host.run("mkdir", "-p", "/run/containers")
        host.run("mount", "-t", "tmpfs", "tmpfs", "/run/containers")
        host.run("sh", "-c", "umount /sys/fs/cgroup/unified || true")
        archive = self.folder / "rootfs.tar"
        archive.write_bytes(layer())
        self.run(f"import {archive} busybox")

    def attempt(self, command: str) -> subprocess.CompletedProcess[str]:
        """Run a podman command that may fail."""
        return self._podman(command, check=False)

    def run(self, command: str) -> str:
        """Run a podman command and return what it printed."""
        return self._podman(command, check=True).stdout.strip()

    def _podman(self, command: str, *, check: bool) -> subprocess.CompletedProcess[str]:
        return self.host.run("podman", *shlex.split(command), check=check, **self.environment)

    def container(self, name: str, options: str = "--network demo") -> None:
        """Start a container that stays; it may ping."""
        self.run(f"run -d --stop-timeout 1 --cap-add NET_RAW --name {name} {options} {IMAGE} sleep 1000000")

    def execute(self, name: str, command: str) -> str:
        """Run a command in a container."""
        return self.run(f"exec {name} {command}")

    def address(self, name: str, network: str = "demo") -> str:
        """Return a container's IPv4 address as Podman knows it."""
        found = json.loads(self.run(f"inspect {name}"))[0]["NetworkSettings"]["Networks"][network]
        return str(found["IPAddress"])

    def remove_all(self) -> None:
        """Remove all containers; Podman's own name server may be busy for a moment."""
        until(lambda: self.attempt("rm -af -t 0").returncode == 0, "all containers are removed")
