"""An agent that ends by SIGKILL at a chosen step, to be started in the real one's place.

``killed_agent.py FILE agent OPTIONS``: while FILE has a number N, the Nth boundary between two steps of an
attach or a detach is its end. A boundary is before the first step and after each: a commit of the journal, a
batch to the kernel, a transaction of nftables, a setting written, an address or a port given or taken back.
Without FILE, and outside of these operations, it is an agent like any other.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from linkspan import daemon
from linkspan.core import config
from linkspan.core.ipam import Block
from linkspan.core.ports import PortTable
from linkspan.endpoints import attach, detach
from linkspan.endpoints.journal import Journal
from linkspan.kernel.drivers import sysctl
from linkspan.kernel.drivers.links import Removal
from linkspan.kernel.drivers.shaper import ShaperDriver
from linkspan.kernel.io.netlink import Socket
from linkspan.kernel.io.nftables import Nft
from linkspan.kernel.probe import gratuitous_arp

_OPTIONS = {"--config": "config", "--state-dir": "state_dir", "--socket": "socket"}


class Countdown:
    """Counts boundaries during an attach or a detach, and kills at the one that the file names."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._left = 0

    def arm(self) -> None:
        """Begin to count, from the number in the file."""
        with contextlib.suppress(FileNotFoundError):
            self._left = int(self._file.read_text())
            self.boundary()

    def disarm(self) -> None:
        """Disarm, because the operation ended without a kill."""
        self._left = 0

    def boundary(self) -> None:
        """Pass one boundary, or end at it."""
        if self._left:
            self._left -= 1
            if not self._left:
                os.kill(os.getpid(), signal.SIGKILL)


def _bounded(countdown: Countdown, owner: Any, name: str) -> None:
    """Put a boundary after every call of a function or method."""
    original: Callable[..., Any] = getattr(owner, name)

    @functools.wraps(original)
    def bounded(*args: Any, **kwargs: Any) -> Any:
        try:
            return original(*args, **kwargs)
        finally:
            countdown.boundary()

    @functools.wraps(original)
    async def bounded_when_done(*args: Any, **kwargs: Any) -> Any:
        try:
            return await original(*args, **kwargs)
        finally:
            countdown.boundary()

    setattr(owner, name, bounded_when_done if inspect.iscoroutinefunction(original) else bounded)


def _counted(countdown: Countdown, verb: Any, name: str) -> None:
    """Count while a verb of the endpoints is under way."""
    original: Callable[..., Any] = getattr(verb, name)

    @functools.wraps(original)
    async def counted(*args: Any, **kwargs: Any) -> Any:
        countdown.arm()
        try:
            return await original(*args, **kwargs)
        finally:
            countdown.disarm()

    setattr(verb, name, counted)


def main(file: str, *words: str) -> None:
    """Run the agent with the options that the command line has."""
    options = dict(zip(words[1::2], words[2::2], strict=True))
    found = {_OPTIONS[option]: value for option, value in options.items()}
    countdown = Countdown(Path(file))
    for owner, names in {
        Journal: ("begin", "attached", "detaching", "forget"),
        Removal: ("remove",),
        Socket: ("batch",),
        Nft: ("run",),
        Block: ("allocate", "release"),
        PortTable: ("reserve", "release"),
        ShaperDriver: ("apply",),
        sysctl: ("write",),
        gratuitous_arp: ("announce",),
    }.items():
        for name in names:
            _bounded(countdown, owner, name)
    for verb, name in ((attach, "attach"), (detach, "detach")):
        _counted(countdown, verb, name)
    settings = config.load(found.pop("config"), found)
    os.environ[config.SETTINGS] = msgspec.json.encode(settings).decode()
    daemon.main()


if __name__ == "__main__":
    main(*sys.argv[1:])
