"""An event loop whose clock goes on only when there is nothing to do, and then at once.

So what takes a minute is tested in milliseconds, and a busy machine makes nothing late. Threads and sockets are real:
what waits for them alone waits in real time.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from linkspan.cluster import liveness, presence
from linkspan.store import contact

Ready = list[tuple[selectors.SelectorKey, int]]


class _Selector(selectors.BaseSelector):
    """Takes the time that it should wait for passed."""

    def __init__(self) -> None:
        self.passed = 0.0
        self._real = selectors.DefaultSelector()

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._real.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._real.unregister(fileobj)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._real.get_map()

    def close(self) -> None:
        self._real.close()

    def select(self, timeout: float | None = None) -> Ready:
        if timeout is None or (ready := self._real.select(0)):
            return self._real.select(timeout) if timeout is None else ready
        self.passed += max(timeout, 0.0)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """The loop; its clock begins at 1000 s."""

    def __init__(self) -> None:
        self._clock = _Selector()
        super().__init__(self._clock)

    def time(self) -> float:
        """Return the seconds that have passed."""
        return 1000.0 + self._clock.passed


def in_virtual_time(work: Callable[[], Awaitable[None]]) -> None:
    """Run a test's coroutine; the clocks by which ages are counted are the loop's meanwhile."""
    clocks = [(module, vars(module)["now"]) for module in (contact, liveness, presence)]

    async def run() -> None:
        for module, _ in clocks:
            vars(module)["now"] = asyncio.get_running_loop().time
        await work()

    try:
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            runner.run(run())
    finally:
        for module, real in clocks:
            vars(module)["now"] = real


def clock() -> float:
    """Return the running loop's time."""
    return asyncio.get_running_loop().time()


async def soon(condition: Callable[[], object], what: str, seconds: float) -> float:
    """Poll a condition until it holds; return after how many seconds, and fail where that is too late."""
    begun = clock()
    while not (value := condition()):
        if clock() - begun > seconds:
            raise AssertionError(f"not within {seconds:g} s: {what} (last seen: {value!r})")
        await asyncio.sleep(0.01)
    return clock() - begun
