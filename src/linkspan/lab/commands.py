"""Commands in named network namespaces, which are made and removed here. Never in the machine's own."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from linkspan.core.errors import Conflict, LinkspanError, NotFound, Unavailable

PATIENCE = 60.0
"""Seconds: a machine that is busy with a hundred hosts is slow, but not broken."""
STEP = 0.02
"""Seconds between two checks of an awaited condition."""
PACKAGES = "apt install iproute2 iputils-ping nftables procps util-linux"


def run(*argv: str, given: str | None = None, netns: str = "") -> str:
    """Run a command and return its output. Raises LinkspanError with the command and its message."""
    inside = (*entering(netns), *argv) if netns else argv
    try:
        done = subprocess.run(
            inside, input=given, capture_output=True, text=True, check=False, timeout=PATIENCE
        )
    except FileNotFoundError as error:
        raise NotFound(f"{inside[0]} is not installed", PACKAGES) from error
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"{' '.join(argv)}: no end after {PATIENCE:.0f} s") from error
    if done.returncode:
        raise LinkspanError(f"{' '.join(argv)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def ip(netns: str, commands: Iterable[str]) -> None:
    """Run `ip` commands in a namespace, in one process. Raises LinkspanError at the first that fails."""
    run("ip", "-n", netns, "-batch", "-", given="\n".join(commands) + "\n")


def entering(netns: str, hostname: str = "") -> tuple[str, ...]:
    """Return the words that run a command in a namespace, as the machine of that name."""
    renamed = ("unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', hostname)
    return ("nsenter", f"--net=/run/netns/{netns}", *(renamed if hostname else ()))


def there(netns: str) -> bool:
    """Return whether a named namespace exists."""
    return Path("/run/netns", netns).exists()


def refuse_taken(netns: str) -> None:
    """Raise Conflict if a namespace of this name exists."""
    if there(netns):
        raise Conflict(
            f"a network namespace {netns} exists already", f"remove it first: ip netns delete {netns}"
        )


def add(netns: str) -> None:
    """Add a namespace with lo up. Raises Conflict if somebody else's has the name."""
    refuse_taken(netns)
    run("ip", "netns", "add", netns)
    run("ip", "-n", netns, "link", "set", "lo", "up")


def delete(netns: str) -> None:
    """Remove a namespace; one that is gone already is no error."""
    if there(netns):
        run("ip", "netns", "delete", netns)


def await_(condition: Callable[[], object], seconds: float = PATIENCE) -> bool:
    """Poll a condition until it holds; return whether it did in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(STEP)
    return True
