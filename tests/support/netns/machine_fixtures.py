"""A namespace that serves as the machine, and others for containers and the outside; all are removed."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from linkspan.kernel.io import namespaces
from linkspan.kernel.io.namespaces import Namespaces
from linkspan.kernel.machine import Machine
from linkspan.lab.commands import entering

_numbers = itertools.count()


def run(*argv: str, netns: str = "", check: bool = True) -> str:
    """Run a command, in a named namespace where one is given, and return its output."""
    inside = entering(netns) if netns else ()
    done = subprocess.run((*inside, *argv), capture_output=True, text=True, timeout=120, check=False)
    assert not check or done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
    return done.stdout


def succeeds(*argv: str, netns: str = "") -> bool:
    """Return whether a command ends with 0."""
    inside = entering(netns) if netns else ()
    return subprocess.run((*inside, *argv), capture_output=True, timeout=120, check=False).returncode == 0


def needs(*tools: str) -> None:
    """Skip the test, naming the first tool that this machine lacks."""
    for tool in tools:
        if not shutil.which(tool):
            pytest.skip(f"{tool} is not installed")


def inode(netns: str) -> int:
    """Return a named namespace's inode."""
    return Path("/run/netns", netns).stat().st_ino


@contextlib.contextmanager
def fresh_namespace() -> Iterator[str]:
    """Make a named namespace with lo up, and remove it, with what runs in it, afterwards."""
    name = f"lkm{os.getpid()}-{next(_numbers)}"
    run("ip", "netns", "add", name)
    try:
        run("ip", "link", "set", "lo", "up", netns=name)
        yield name
    finally:
        for pid in run("ip", "netns", "pids", name).split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), 9)
        run("ip", "netns", "delete", name)


@contextlib.contextmanager
def inside(netns: str) -> Iterator[None]:
    """Put the main thread into a named namespace: /proc/self is the main thread's."""
    home = namespaces.open_namespace("/proc/self/ns/net")
    there = namespaces.open_namespace(f"/run/netns/{netns}")
    namespaces._setns(there, netns)
    os.close(there)
    try:
        yield
    finally:
        namespaces._setns(home, "home")
        os.close(home)


@pytest.fixture
def machine() -> Iterator[str]:
    """Make a namespace and enter it: for the test, it is the machine's own."""
    with fresh_namespace() as name, inside(name):
        yield name


@pytest.fixture
def host(machine: str, tmp_path: Path) -> Iterator[Machine]:
    """Make a machine in a namespace that is this process's own for the test."""
    made = Machine(tmp_path)
    yield made
    made.close()
    made.processes.close()


@pytest.fixture
def container(machine: str) -> Iterator[str]:
    """Make a second namespace, to stand for a container's."""
    with fresh_namespace() as name:
        yield name


@pytest.fixture
def outside(machine: str) -> Iterator[str]:
    """Make a third namespace, to stand for the world beyond the machine."""
    with fresh_namespace() as name:
        yield name


@pytest.fixture
def spaces(machine: str) -> Iterator[Namespaces]:
    """Give the driver's view of namespaces, with the fixture's as home."""
    with contextlib.closing(Namespaces()) as found:
        yield found


def joined(netns: str, device: str, number: int) -> None:
    """Join a namespace to the present one by a veth pair, with IPv4 and IPv6, routes and forwarding."""
    run("ip", "link", "add", device, "type", "veth", "peer", "name", "eth0", "netns", netns)
    for here, there in (
        (f"10.99.{number}.1/24", f"10.99.{number}.2/24"),
        (f"fd99:{number}::1/64", f"fd99:{number}::2/64"),
    ):
        nodad = ["nodad"] if ":" in here else []
        run("ip", "addr", "add", here, "dev", device, *nodad)
        run("ip", "addr", "add", there, "dev", "eth0", *nodad, netns=netns)
    run("ip", "link", "set", device, "up")
    run("ip", "link", "set", "eth0", "up", netns=netns)
    run("ip", "route", "add", "default", "via", f"10.99.{number}.1", netns=netns)
    run("ip", "-6", "route", "add", "default", "via", f"fd99:{number}::1", netns=netns)
    run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")


def pings(netns: str, address: str) -> bool:
    """Return whether one echo request is answered."""
    return succeeds("ping", "-c1", "-W0.5", address, netns=netns)
