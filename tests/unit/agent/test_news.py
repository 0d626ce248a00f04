"""News: what another host has just written is found, although the watch has not reported it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from aiohttp import web

from linkspan.agent import news as news_module
from linkspan.agent.news import READERS, News
from linkspan.api import middleware
from linkspan.core import namesakes
from linkspan.core.errors import NotFound
from linkspan.core.model import Host, Network
from linkspan.core.store_contract import Batch, Record
from linkspan.store.memory import Memory, MemoryStore
from support.polling import eventually
from support.records.replicas import Member, network, together


class Late(MemoryStore):
    """A connection whose watch reports nothing; ``asked`` are the prefixes that were listed.

    It lists nothing while ``answers`` is not set.
    """

    def __init__(self, memory: Memory) -> None:
        super().__init__(memory)
        self.asked: list[str] = []
        self.answers = asyncio.Event()
        self.answers.set()

    async def list(
        self, prefix: str, beside: str = "", each: Callable[[Record], Record] | None = None
    ) -> tuple[list[Record], int]:
        """Return the records of a prefix."""
        self.asked.append(prefix)
        await self.answers.wait()
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
    """The agent answers from its own records alone: what these lack does not exist then."""

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


class Asked:
    """A host whose watch reports nothing, which is asked for what does not exist."""

    def __init__(self, folder: Path) -> None:
        self.memory = Memory()
        self.late = Late(self.memory)
        self.member = Member(self.memory, folder, "h2", self.late)
        self.followed: list[set[str]] = []
        self.news = News(self.member.replica, self._follow)

    async def _follow(self, keys: set[str]) -> None:
        self.followed.append(keys)
        self.member.networks.refresh()

    async def start(self) -> None:
        """Know what the store has."""
        await self.member.replica.start()
        self.late.asked.clear()

    async def missed(self, name: str = "demo", within: float = 0.0) -> bool:
        """Return whether a network does not exist."""

        async def call() -> Network:
            return self.member.networks.get(name)

        try:
            await self.news.known(call, within)
        except NotFound:
            return True
        return False


@pytest.mark.parametrize(("within", "looks"), [(0.0, 2), (READERS, 1)])
def test_who_asks_meanwhile_shares_a_look(tmp_path: Path, within: float, looks: int) -> None:
    """Many requests cost the store one look at a time. Who may change things gets one from after the request."""

    async def work() -> None:
        one = Asked(tmp_path)
        await one.start()
        one.late.answers.clear()
        requests = [asyncio.create_task(one.missed(within=within)) for _ in range(50)]
        await eventually(lambda: one.late.asked, "the first of them looks")
        await asyncio.sleep(0)
        assert one.late.asked == ["networks/demo"]
        one.late.answers.set()
        assert all(await asyncio.gather(*requests))
        assert one.late.asked == ["networks/demo"] * looks
        await one.member.replica.stop()

    together(work)


def test_news_of_a_shared_look_is_everybodys(tmp_path: Path) -> None:
    """It counts before any of them asks once more."""

    async def work() -> None:
        one = Asked(tmp_path)
        await one.start()
        one.late.answers.clear()
        requests = [asyncio.create_task(one.missed()) for _ in range(5)]
        await eventually(lambda: one.late.asked, "the first of them looks")
        await MemoryStore(one.memory).transaction({"networks/demo": msgspec.json.encode(network())})
        one.late.answers.set()
        assert not any(await asyncio.gather(*requests))
        assert one.followed == [{"networks/demo"}]
        await one.member.replica.stop()

    together(work)


def test_what_the_watch_reports_during_a_look_is_news(tmp_path: Path) -> None:
    """The look finds nothing then that this host does not know."""

    async def work() -> None:
        one = Asked(tmp_path)
        await one.start()
        one.late.answers.clear()
        request = asyncio.create_task(one.missed())
        await eventually(lambda: one.late.asked, "it looks")
        await MemoryStore(one.memory).transaction({"networks/demo": msgspec.json.encode(network())})
        await one.member.replica.revision("networks/demo")  # adopts it
        one.late.answers.set()
        assert not await request
        assert one.followed == [{"networks/demo"}]
        await one.member.replica.stop()

    together(work)


def test_nothing_new_counts_for_a_moment_for_readers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They cannot make this host ask the store all the time; and what was asked for long ago is not kept."""
    clock = [1000.0]
    monkeypatch.setattr(news_module, "loop_time", lambda: clock[0])

    async def work() -> None:
        one = Asked(tmp_path)
        await one.start()
        for _ in range(10):
            assert await one.missed(within=READERS)
            clock[0] += READERS / 20
        assert one.late.asked == ["networks/demo"]
        assert await one.missed()
        assert one.late.asked == ["networks/demo"] * 2
        clock[0] += READERS * 1.1
        assert await one.missed(within=READERS)
        assert one.late.asked == ["networks/demo"] * 3
        for number in range(100):
            assert await one.missed(f"n{number}", within=READERS)
        clock[0] += READERS * 1.1
        assert await one.missed("last", within=READERS)
        assert list(one.news._looks) == ["networks/last"]
        await one.member.replica.stop()

    together(work)


def test_a_record_that_no_agent_can_have_written_is_no_news(tmp_path: Path) -> None:
    """This host would follow everything each time that somebody asks."""

    async def work() -> None:
        one = Asked(tmp_path)
        await one.start()
        await MemoryStore(one.memory).transaction({"networks/demo/x": b"{}"})
        assert await one.missed()
        assert (one.late.asked, one.followed) == (["networks/demo"], [])
        await one.member.replica.stop()

    together(work)


@pytest.mark.parametrize(("uid", "within"), [(0, 0.0), (1000, READERS)])
def test_only_for_those_who_may_only_read_an_earlier_look_counts(
    monkeypatch: pytest.MonkeyPatch, uid: int, within: float
) -> None:
    """Root attaches a container to a network as soon as another host has made it."""
    asked: list[float] = []

    class Noted:
        async def known(self, call: Callable[[], Any], within: float = 0.0) -> object:
            asked.append(within)
            return await call()

    async def handler(_request: web.Request) -> web.StreamResponse:
        return web.Response()

    async def work() -> None:
        monkeypatch.setattr(middleware, "peer", lambda _request: (1, uid))
        answered = middleware.with_news(cast(News, Noted()))
        assert (await answered(cast(web.Request, None), handler)).status == 200
        assert asked == [within]

    together(work)
