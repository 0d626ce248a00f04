"""The log of refused connections: what becomes of an agent that cannot listen."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest

from linkspan.agent import drop_log
from linkspan.agent.drop_log import DropLog
from linkspan.core.errors import KernelError
from support.polling import eventually


class Group:
    """A group of nflog, to which another program listens at first."""

    taken = True

    def __init__(self, _number: int) -> None:
        if self.taken:
            raise KernelError("listen to nflog group 7615: busy")
        self._ends = os.pipe()

    def fileno(self) -> int:
        """Return a descriptor that nothing comes from."""
        return self._ends[0]

    def close(self) -> None:
        """Close it."""
        for one in self._ends:
            os.close(one)


def test_an_agent_starts_though_another_program_has_the_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """It says so, and listens once it can: a log must not keep containers from their network."""
    monkeypatch.setattr(drop_log, "Nflog", Group)
    monkeypatch.setattr(drop_log, "AGAIN", 0.01)
    unused: Any = None

    async def main() -> None:
        kept = DropLog(unused, unused, always=True)
        kept.start()
        await eventually(lambda: any("7615" in one for one in kept.problems()), "it says so")
        monkeypatch.setattr(Group, "taken", False)
        await eventually(lambda: not kept.problems(), "it listens")
        await kept.stop()

    asyncio.run(main())


def test_a_follower_hears_that_the_agent_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the agent's end would wait until it goes by itself."""
    monkeypatch.setattr(drop_log, "Nflog", Group)
    monkeypatch.setattr(Group, "taken", False)
    unused: Any = None

    async def main() -> None:
        kept = DropLog(unused, unused, always=False)
        with kept.following() as drops:
            kept.end()
            assert await asyncio.wait_for(drops.get(), 5) is None

    asyncio.run(main())
