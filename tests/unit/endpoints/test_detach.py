"""A detach waits for the kernel in the worker thread."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from linkspan.core.errors import LinkspanError
from linkspan.core.event_log import Happenings
from linkspan.core.ports import PortTable
from linkspan.core.states.host import Key, State
from linkspan.endpoints.detach import detach
from linkspan.endpoints.journal import Journal
from linkspan.endpoints.registry import Registry, source
from linkspan.kernel.worker import Worker
from linkspan.store.memory import Memory
from support.records.listeners import NoListener
from support.records.one_host import endpoint, network
from support.records.replicas import Member

DEMO = network("demo", "10.1.0.0/24", routed=True)


class SlowMachine:
    """A kernel that removes a link only after the agent's loop has gone on; it gives up after ten seconds."""

    def __init__(self) -> None:
        self.reconciler = self
        self.went_on = threading.Event()
        self.waited_in_vain = False
        self.taken_away: list[tuple[str, ...]] = []

    def changes(self, sources: Mapping[tuple[str, ...], Iterable[State]]) -> dict[Key, LinkspanError]:
        """Take states away, and wait for the loop."""
        self.taken_away += sources
        self.waited_in_vain = not self.went_on.wait(10)
        return {}

    def enter(self, *_words: Any) -> None:
        """Remember nothing."""

    def leave(self, *_words: Any) -> None:
        """Forget nothing."""


def test_the_loop_goes_on_while_the_kernel_removes_a_link(tmp_path: Path) -> None:
    """A host that could not say that it lives for so long would be taken for dead."""

    async def run() -> None:
        machine, worker = SlowMachine(), Worker()
        worker.machine = machine  # type: ignore[assignment]
        member = Member(Memory(), tmp_path, "h1")
        await member.replica.start()
        await member.replica.write({"networks/demo": DEMO})
        member.networks.refresh()
        member.allocator.refresh()
        one = msgspec.structs.replace(endpoint(DEMO, "10.1.0.5"), netns_path="")
        with contextlib.closing(Journal(tmp_path / "journal.db", cooldown=0)) as journal:
            ports, happenings = PortTable(NoListener()), Happenings(tmp_path / "events")
            registry = Registry(worker, journal, member.networks, member.allocator, ports, happenings, "h1", {})
            registry.admit(one, 0)
            asyncio.get_running_loop().call_soon(machine.went_on.set)
            assert await detach(registry, one.id) == 1
        await member.replica.stop()
        assert not machine.waited_in_vain
        assert source(one) in machine.taken_away

    asyncio.run(run())
