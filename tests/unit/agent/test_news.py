"""News: what another host has just written is found, although the watch has not reported it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from linkspan.agent.news import News
from linkspan.core import namesakes
from linkspan.core.contracts import Batch, Record
from linkspan.core.errors import NotFound
from linkspan.core.model import Host, Network
from linkspan.store.memory import Memory, MemoryStore
from support.records.replicas import Member, network, together


class Late(MemoryStore):
    """A connection whose watch reports nothing; ``asked`` are the prefixes that were listed."""

    def __init__(self, memory: Memory) -> None:
        super().__init__(memory)
        self.asked: list[str] = []

    async def list(
        self, prefix: str, beside: str = "", each: Callable[[Record], Record] | None = None
    ) -> tuple[list[Record], int]:
        """Return the records of a prefix."""
        self.asked.append(prefix)
        return await super().list(prefix, beside, each)

    async def watch(self, prefix: str, revision: int) -> AsyncIterator[Batch]:
        """Wait."""
        await asyncio.Event().wait()
        yield Batch(0, (), ())


def test_what_another_host_has_just_made_exists_here(tmp_path: Path) -> None:
    """A network and a host, by its name: the store is asked once, and what it has counts from then on."""

    async def work() -> None:
        memory = Memory()
        one, late = Member(memory, tmp_path, "h1"), Late(memory)
        two = Member(memory, tmp_path, "h2", late)
        followed: list[set[str]] = []

        async def follow(keys: set[str]) -> None:
            followed.append(keys)
            two.networks.refresh()

        news = News(two.replica, follow)

        async def demo() -> Network:
            return two.networks.get("demo")

        async def web() -> str:
            if found := namesakes.meant(two.hosts.names(), "web"):
                return found
            raise namesakes.missing(two.hosts.names(), "web")

        await one.replica.start()
        await two.replica.start()
        late.asked.clear()
        with pytest.raises(NotFound, match="network 'demo' does not exist"):
            await news.known(demo)
        assert (late.asked, followed) == (["networks/demo"], [])
        await one.replica.write({"networks/demo": network(), "hosts/f00d": Host(id="f00d", name="web")})
        assert (await news.known(demo)).name == "demo"
        assert await news.known(web) == "f00d"
        assert followed == [{"networks/demo"}, {"hosts/"}]
        late.asked.clear()
        assert (await news.known(demo)).name == "demo"
        assert late.asked == []
        await one.replica.stop()
        await two.replica.stop()

    together(work)


def test_a_store_that_is_away_keeps_nobody_waiting(tmp_path: Path) -> None:
    """What this host does not know does not exist then."""

    async def work() -> None:
        memory = Memory()
        late = Late(memory)
        two = Member(memory, tmp_path, "h2", late)
        await two.replica.start()
        one = Member(memory, tmp_path, "h1")
        await one.replica.start()
        await one.replica.write({"networks/demo": network()})

        async def demo() -> Network:
            return two.networks.get("demo")

        async def follow(_keys: set[str]) -> None:
            raise AssertionError

        late.cut()
        with pytest.raises(NotFound, match="network 'demo' does not exist"):
            await News(two.replica, follow).known(demo)
        await one.replica.stop()
        await two.replica.stop()

    together(work)
