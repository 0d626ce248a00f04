"""A turn with the machine ends with no socket open in a container, whatever was done in it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from linkspan.core.errors import NotFound
from linkspan.kernel.worker import Worker
from support.memory_machine import MemoryMachine


class Counted(MemoryMachine):
    """A machine that counts the turns that have ended."""

    def __init__(self) -> None:
        super().__init__()
        self.released = 0

    def release(self) -> None:
        """Count one."""
        self.released += 1


def _work(machine: Counted) -> int:
    return machine.released


def _fail(machine: Counted) -> int:
    raise NotFound("the container is gone")


@pytest.mark.parametrize("how", [Worker.run, Worker.run_brief], ids=["run", "brief"])
def test_sockets_in_containers_are_closed_after_each_turn(how: Callable[..., Any]) -> None:
    """One that fails, too; and they are open until then."""

    async def turns() -> None:
        machine = Counted()
        worker = Worker(machine)
        assert await how(worker, _work, machine) == 0
        assert machine.released == 1
        with pytest.raises(NotFound):
            await how(worker, _fail, machine)
        assert machine.released == 2

    asyncio.run(turns())


def test_a_brief_turn_waits_for_the_one_that_is_under_way() -> None:
    """It starts after the running turn, and ends as every turn does."""

    async def turns() -> None:
        machine, free = Counted(), threading.Event()
        worker = Worker(machine)
        long = asyncio.create_task(worker.run(free.wait, 10))
        await asyncio.sleep(0)
        brief = asyncio.create_task(worker.run_brief(_work, machine))
        asyncio.get_running_loop().call_soon(free.set)
        assert await brief == 1
        assert await long
        assert machine.released == 2

    asyncio.run(turns())
