"""A watch at a member that answers and learns nothing any more, as with a disk that hangs: the watch leaves it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from linkspan.core.errors import Unavailable
from linkspan.store.etcd import EtcdStore
from linkspan.store.etcd_watch import COMPARE_SECONDS, LAG_SECONDS, QUIET_SECONDS, Place
from linkspan.store.etcd_wire import Header, Txn
from support.virtual_time import clock, in_virtual_time

HUNG, SOUND = "192.0.2.1:2379", "192.0.2.2:2379"


class Answering:
    """A stream of a member that answers progress requests with one revision."""

    endpoint, received = HUNG, 0

    def __init__(self, revision: int) -> None:
        self._answer = b'{"result":{"header":{"revision":"%d"},"watch_id":"-1"}}' % revision
        self._lines: asyncio.Queue[bytes | None] = asyncio.Queue()

    def send(self, message: object) -> None:
        """Answer it."""
        assert message == {"progress_request": {}}
        self._lines.put_nowait(self._answer)

    def end(self) -> None:
        """Break."""
        self._lines.put_nowait(None)

    async def next(self) -> bytes:
        """Return the next line."""
        if (line := await self._lines.get()) is None:
            raise Unavailable("it was closed")
        return line

    def waiting(self) -> list[bytes]:
        """Return none."""
        return []

    async def pause(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(seconds)

    def close(self) -> None:
        """Do nothing."""


@pytest.mark.parametrize(("told", "lags"), [(5, True), (7, False)])
def test_a_watch_leaves_a_member_that_lags_behind_the_store(
    monkeypatch: pytest.MonkeyPatch, told: int, lags: bool
) -> None:
    """The store is at revision 7: a member that tells 5 for some seconds is asked last from then on."""

    async def work() -> None:
        store, begun = EtcdStore(f"etcd://{HUNG},{SOUND}/c"), clock()

        async def stream(*_request: Any) -> Answering:
            return Answering(told)

        async def guarded(*_request: Any) -> tuple[Txn, bool]:
            return Txn(Header("1", 7, 1), succeeded=True), False

        async def watch() -> None:
            async for batch in store._watch.follow(Place("/c/", 5), QUIET_SECONDS):
                assert not batch.puts

        monkeypatch.setattr(store._guard, "carry_out", guarded)
        monkeypatch.setattr(store.gateway, "stream", stream)
        with pytest.raises(Unavailable if lags else TimeoutError):
            async with asyncio.timeout(60):
                await watch()
        assert store.gateway.order() == ((SOUND, HUNG) if lags else (HUNG, SOUND))
        assert not lags or clock() - begun <= COMPARE_SECONDS + LAG_SECONDS + 1
        await store.close()

    in_virtual_time(work)


class Arriving(Answering):
    """A stream on which one long message with all changes arrives for a minute; nothing else comes meanwhile."""

    def __init__(self) -> None:
        super().__init__(7)
        self._begun = clock()

    @property
    def received(self) -> int:  # type: ignore[override]
        """Return how many bytes came."""
        return int((clock() - self._begun) * 1000)

    def send(self, message: object) -> None:
        """Answer it after the message."""
        if clock() - self._begun >= 60:
            super().send(message)


def test_a_watch_waits_for_a_long_message_that_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over a slow link the first message of many past changes takes long: another watch would begin it again."""

    async def work() -> None:
        store, opened = EtcdStore(f"etcd://{HUNG},{SOUND}/c"), list[Arriving]()

        async def stream(*_request: Any) -> Arriving:
            opened.append(Arriving())
            return opened[-1]

        async def guarded(*_request: Any) -> tuple[Txn, bool]:
            return Txn(Header("1", 7, 1), succeeded=True), False

        async def watch() -> None:
            async for batch in store._watch.follow(Place("/c/", 5), QUIET_SECONDS):
                assert clock() - opened[0]._begun >= 60, batch

        monkeypatch.setattr(store._guard, "carry_out", guarded)
        monkeypatch.setattr(store.gateway, "stream", stream)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(watch(), 90)
        assert len(opened) == 1
        assert store.gateway.order() == (HUNG, SOUND)
        await store.close()

    in_virtual_time(work)


def test_a_keepalive_makes_no_doubted_member_the_first_one() -> None:
    """It needs no disk, so it proves nothing; if all members are doubted, it is all that is known."""

    async def work() -> None:
        gateway = EtcdStore(f"etcd://{HUNG},{SOUND}/c").gateway
        gateway.doubt(HUNG)
        gateway.prefer(HUNG)
        assert gateway.order() == (SOUND, HUNG)
        gateway.doubt(SOUND)
        gateway.prefer(HUNG)
        assert gateway.order() == (HUNG, SOUND)
        await gateway.close()

    asyncio.run(work())
