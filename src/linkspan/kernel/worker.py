"""Worker: the lock that lets one thread at a time use the machine."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ParamSpec, TypeVar

from linkspan.kernel.machine import Machine

P = ParamSpec("P")
R = TypeVar("R")


class Worker:
    """The machine, used by one thread at a time: the worker's own, or briefly the loop's.

    It closes the sockets in containers at the end of each turn: an open one would keep the namespace of a container
    that ends.
    """

    def __init__(self, machine: Machine | None = None) -> None:
        """Without a ``machine``, ``start`` makes one."""
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="kernel")
        self._using = threading.Lock()
        self._waiting = 0
        self._machine = machine

    @property
    def machine(self) -> Machine:
        """The machine, from ``start`` on."""
        assert self._machine is not None
        return self._machine

    async def start(self, state_dir: Path) -> None:
        """Make the machine in the thread."""
        self._machine = await self.run(Machine, state_dir)

    async def run(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run a function in the worker thread and return its result; calls are served in order."""

        def alone() -> R:
            with self._using:
                return self._turn(function, *args, **kwargs)

        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, alone)
        finally:
            self._waiting -= 1

    async def run_brief(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run a function of a millisecond or two: here and now where the machine is free, else as ``run`` does.

        The way to another thread and back would cost a quarter of an attach.
        """
        if self._waiting or not self._using.acquire(blocking=False):
            return await self.run(function, *args, **kwargs)
        try:
            return self._turn(function, *args, **kwargs)
        finally:
            self._using.release()

    def _turn(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        finally:
            if self._machine is not None:
                self._machine.release()

    async def stop(self) -> None:
        """Finish what is under way, close the machine and end the thread."""
        if self._machine is not None:
            await self.run(self._machine.close)
        self._pool.shutdown(wait=False)
